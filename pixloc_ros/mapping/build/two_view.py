# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs of images of a drive that no pose is known of: which to compare, what matches, and what that says of the motion."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...features import Extractor
from ...geometry.cameras import Camera
from ...io.images import fit_to_working_size, load_image
from ..retrieval import PooledFeatures
from .building import Progress
from .matching import Matcher, match_descriptors, pixel_scale, require_pycolmap

AHEAD = (1, 2, 3, 4, 6, 8)
"""By how many places in the order of time images of a pair are apart."""
_FEATURES = 1500
_ERROR_PX, _TRIALS = 1.5, 2000
_FEWEST_INLIERS = 15
_LOOP_APART, _LOOP_STEP, _LOOP_CANDIDATES, _LOOP_QUERIES = 20, 3, 2, 400
_LOOP_INLIERS, _LOOP_SHARE = 40, 0.3
_NO_PARALLAX_PX = 1.5


@dataclass(frozen=True, eq=False)
class Pair:
    """What two images share.

    Attributes:
        matches: int32 [m, 2], features that agree with one motion (or one homography).
        shift_px: How far matches moved, median.
        parallax_px: What of that no turn of the camera explains, median.
        raw: int, matches before that was looked at.
    """

    matches: np.ndarray
    shift_px: float
    parallax_px: float
    raw: int

    @property
    def is_link(self) -> bool:
        """Whether it says anything of the motion."""
        return len(self.matches) >= _FEWEST_INLIERS

    @property
    def is_loop(self) -> bool:
        """Whether it is sure enough between images that time does not bring together: halls have shelves that look the same."""
        return len(self.matches) >= max(_LOOP_INLIERS, _LOOP_SHARE * self.raw)

    @property
    def has_parallax(self) -> bool:
        return self.parallax_px > _NO_PARALLAX_PX


class PairFinder:
    """Matches images of a drive with those before, and with those of earlier visits that look the same.

    Args:
        matcher: Features of the images, in the order of time.
        extractor: What images look like as a whole.
        known_focal: Whether the cameras' focal lengths are measured.
    """

    def __init__(self, matcher: Matcher, extractor: Extractor, known_focal: bool = True) -> None:
        self.matcher, self.extractor, self.known_focal = matcher, extractor, known_focal
        self.count = len(matcher.images.paths)
        self.pairs: dict[tuple[int, int], Pair] = {}
        self.loops: list[tuple[int, int]] = []

    def find(self, progress: Progress | None) -> None:
        """Fill `pairs` and `loops`, by (earlier, later)."""
        for k in range(self.count):
            if progress:
                progress(k, self.count, "matching images with those before")
            self.pairs |= self.compared(f"pairs/{k:06d}", [(k - step, k) for step in AHEAD if k >= step])
        candidates = self._loop_candidates(progress)
        for n, wanted in enumerate(candidates):
            if progress:
                progress(n, len(candidates), "looking for loops")
            found = self.compared(f"loops/{wanted[0][1]:06d}", wanted)
            sure = [pair for pair in found if found[pair].is_loop]
            # One pair may look the same by chance; neighbours of both must agree.
            around = [(a + step, b + step) for a, b in sure for step in (-1, 1) if b + step < self.count and a + step >= 0]
            found |= self.compared(f"loops/{wanted[0][1]:06d}.around", around) if around else {}
            for a, b in sure:
                support = [p for p in ((a - 1, b - 1), (a + 1, b + 1)) if p in found and found[p].is_loop]
                for pair in [(a, b), *support] if support else []:
                    self.pairs[pair] = found[pair]
                    self.loops.append(pair)
        self.loops = sorted(set(self.loops))

    def compared(self, name: str, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], Pair]:
        """Pairs of images, (earlier, later); under that name they are kept in the work folder."""

        def make() -> dict[str, np.ndarray]:
            values = {}
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                compared = list(threads.map(self._compare, *zip(*wanted))) if wanted else []
            for (a, b), pair in zip(wanted, compared):
                values[f"{a} {b}"] = pair.matches
                values[f"{a} {b} figures"] = np.array((pair.shift_px, pair.parallax_px, pair.raw))
            return values

        stored = self.matcher.work.arrays(name, make)
        figures = {pair: stored[f"{pair[0]} {pair[1]} figures"] for pair in wanted}
        return {(a, b): Pair(stored[f"{a} {b}"], *f[:2].tolist(), int(f[2])) for (a, b), f in figures.items()}

    def _compare(self, a: int, b: int) -> Pair:
        pycolmap, cameras = require_pycolmap(), self.matcher.images.cameras
        (pixels_a, rays_a, look_a, numbers_a), (pixels_b, rays_b, look_b, numbers_b) = (
            self.matcher.strongest(k, _FEATURES) for k in (a, b)
        )
        matches = match_descriptors(look_a @ look_b.T)
        if len(matches) < _FEWEST_INLIERS:
            return Pair(np.empty((0, 2), np.int32), 0.0, 0.0, len(matches))
        options = pycolmap.TwoViewGeometryOptions()
        options.ransac.max_error = _ERROR_PX * pixel_scale(cameras[b])
        options.ransac.max_num_trials = _TRIALS  # more find few pairs that are of use
        options.ransac.random_seed = 0
        options.detect_watermark = False
        pixels = (pixels_a[matches[:, 0]] + 0.5, pixels_b[matches[:, 1]] + 0.5)  # COLMAP's pixel (0, 0) is a corner
        rows = np.arange(len(matches), dtype=np.uint32)
        one, other = (colmap_camera(cameras[k], k + 1, self.known_focal) for k in (a, b))
        found = pycolmap.estimate_two_view_geometry(one, pixels[0], other, pixels[1], np.stack((rows, rows), 1), options)
        good = matches[np.asarray(found.inlier_matches)[:, 0].astype(int)] if len(found.inlier_matches) else matches[:0]
        if not len(good):
            return Pair(good.astype(np.int32), 0.0, 0.0, len(matches))
        focal = float(cameras[b].params[0])
        shift = np.linalg.norm(pixels_a[good[:, 0]] - pixels_b[good[:, 1]], axis=1)
        parallax = focal * without_turn(rays_a[good[:, 0]], rays_b[good[:, 1]])
        scale = pixel_scale(cameras[b])
        good = np.stack((numbers_a[good[:, 0]], numbers_b[good[:, 1]]), 1)
        return Pair(good.astype(np.int32), float(np.median(shift)) / scale, float(np.median(parallax)) / scale, len(matches))

    # ---- loops

    def _loop_candidates(self, progress: Progress | None) -> list[list[tuple[int, int]]]:
        """For some images the earlier ones that look most like them."""
        if self.count <= _LOOP_APART:
            return []
        looks, apart = self._looks(progress), min(AHEAD[-1], self.count - 1)
        # As alike as images are that see the same place.
        usual = np.percentile((looks[apart:] * looks[: self.count - apart]).sum(1), 10)
        candidates = []
        step = max(_LOOP_STEP, self.count // _LOOP_QUERIES)
        for k in range(_LOOP_APART, self.count, step):
            likeness, chosen = looks[: k - _LOOP_APART + 1] @ looks[k], []
            while len(chosen) < _LOOP_CANDIDATES and likeness.max() > usual:
                chosen.append((int(likeness.argmax()), k))
                likeness[max(chosen[-1][0] - AHEAD[-1], 0) : chosen[-1][0] + AHEAD[-1]] = -1.0
            if chosen:
                candidates.append(chosen)
        return candidates

    def _looks(self, progress: Progress | None) -> np.ndarray:
        """float32 [K, G]: what images look like, less what all of them share."""
        looks = []
        for k in range(self.count):
            if progress:
                progress(k, self.count, "what images look like")
            looks.append(self.matcher.work.arrays(f"looks/{k:06d}", lambda k=k: {"look": self._look(k)})["look"])
        looks = np.stack(looks) - np.mean(looks, axis=0)
        return looks / np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-9)

    def _look(self, k: int) -> np.ndarray:
        image, camera = load_image(self.matcher.images.paths[k]), self.matcher.images.cameras[k]
        image, camera = fit_to_working_size(image, camera, self.extractor.working_side)
        return PooledFeatures().describe(image, self._suited.extract(image))

    @cached_property
    def _suited(self) -> Extractor:
        camera = self.matcher.images.cameras[0]
        return self.extractor.suited_to(camera.width, camera.height)


def colmap_camera(camera: Camera, number: int, known_focal: bool = True, refined: bool = False):
    """pycolmap's camera of that number. refined: Whether it is to be refined: then one without distortion gets one of zero."""
    model, params = camera.to_colmap()
    if refined and camera.model == "pinhole":
        square = params[0] == params[1]
        model, params = ("SIMPLE_RADIAL", [*params[1:], 0.0]) if square else ("OPENCV", [*params, 0.0, 0.0, 0.0, 0.0])
    made = require_pycolmap().Camera(camera_id=number, model=model, width=camera.width, height=camera.height, params=params)
    made.has_prior_focal_length = known_focal
    return made


def without_turn(rays_a: np.ndarray, rays_b: np.ndarray) -> np.ndarray:
    """Angles [m], radians, that are left between unit rays [m, 3] of two images when one is turned as well as can be."""
    weight = np.ones(len(rays_a))
    for _ in range(5):
        u, _, v = np.linalg.svd((rays_b * weight[:, None]).T @ rays_a)
        b_from_a = u @ np.diag((1.0, 1.0, np.linalg.det(u @ v))) @ v
        off = np.linalg.norm(np.cross(rays_a @ b_from_a.T, rays_b), axis=1)
        weight = 1 / (np.median(off) + off + 1e-9)
    return off

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Two plain ways to find a camera in the same map, to compare ours with: ORB + PnP and KLT + PnP, both OpenCV's.

They take the place of `FrameAligner` in the same tracker: same start, odometry, prediction, dead reckoning and search around a
lost pose; the same map's points and keyframes, chosen by the same selector. Only how an image becomes a pose differs. What
the map does not hold, its images, they need as well. They never run on a robot; docs/evidence/robustness.md.

- `OrbPnp`: ORB features of the image matched with those of the keyframes; a keyframe's feature has the depth of the map point
  nearest to it in that image.
- `KltPnp`: each map point tracked from its keyframe into the image by pyramidal Lucas-Kanade, from where the prior sees it,
  there and back; after PnP once more from the pose found. Grey values are equalised (CLAHE), as visual-inertial front ends do.
"""

import dataclasses
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.files import find_files
from ..io.images import fit_to_working_size, load_image
from ..mapping import Map
from ..mapping.local_points import LocalPointSelector
from ..tracking.options import QualityGates, TrackerOptions
from ..tracking.types import FrameAlignment

_LEAST_INLIERS = 12
_RANSAC_PX, _INLIER_PX = 3.0, (3.0, 1.5, 1.5)
"""Of RANSAC, and of the rounds of refinement after it."""
_NOISE_PX = 1.0
"""Standard deviation of a match; scales the covariance."""
_CACHED_KEYFRAMES = 64
_MAX_POINTS = 512
_EQUAL_QUALITY = 0.5
_ORB_FEATURES, _ORB_RATIO, _ORB_DEPTH_PX, _ORB_SEARCH_SHARE = 2000, 0.9, 3.0, 0.25
_KLT_PASSES = (((31, 31), 4), ((21, 21), 2))
"""Window and highest pyramid level, first from the prior, then from the pose found."""
_KLT_RETURN_PX = 1.0


@dataclass(frozen=True)
class _Image:
    """A query or keyframe at the map's scale.

    Attributes:
        grey: uint8 [H, W], equalised where the rival wants it.
        camera: Of that size.
        timings_ms: What it took.
        pixels: Of its ORB features, float [n, 2].
        descriptors: Of the same, [n, 32].
    """

    grey: np.ndarray
    camera: Camera
    timings_ms: dict[str, float]
    pixels: np.ndarray | None = None
    descriptors: np.ndarray | None = None


@dataclass(frozen=True)
class _Keyframe:
    """An image of the map with the points float64 [n, 3] (map frame) that its pixels [n, 2] show."""

    image: _Image
    pixels: np.ndarray
    xyz: np.ndarray
    point_ids: np.ndarray


def rival_options() -> TrackerOptions:
    """The tracker's, without the gates on the share of points that agree, which mean features as ours has them: a rival's pose
    passes where PnP found it from enough points, and it is where the prior says within the gate for sure poses."""
    least = {"min_visible_fraction": 0.0, "min_inlier_fraction": 0.0}
    return TrackerOptions(gates=QualityGates(min_visible_points=_LEAST_INLIERS, **least))


class Rival:
    """What both share: the choice of points, the keyframes' images, PnP. Takes the place of a `FrameAligner`."""

    def __init__(self, map_: Map, images: Path, max_points: int = _MAX_POINTS) -> None:
        """Look for the map's images.

        Args:
            map_: The map.
            images: The folder that its images are in.
            max_points: Used per image.

        Raises:
            InputError: An image is missing.
        """
        remedy = "give the folder that the map was made of with --images"
        self._images = find_files(images, map_.keyframe_names, "images of the map", remedy)
        # How similar a point's descriptors are is our network's knowledge: without it, a rival depends on no network.
        self.map = dataclasses.replace(map_, quality=np.full_like(map_.quality, _EQUAL_QUALITY))
        self._max_points, self._selector = max_points, LocalPointSelector(self.map)
        self._focal_px = float(np.median([float(c.params[:2].mean()) for c in map_.cameras]))
        self._keyframes: OrderedDict[int, _Keyframe] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Of all of the map that its poses depend on."""
        map_ = self.map
        digest = hashlib.sha256(repr((type(self).__name__, self._max_points, map_.working_side, map_.keyframe_names)).encode())
        names = ("xyz", "observation_offsets", "observation_point", "map_from_keyframe", "keyframe_camera", "keyframe_depth")
        arrays = [getattr(map_, name) for name in (*names, "track_length")]
        for array in (*arrays, *(camera.params for camera in map_.cameras)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def prepare(self, image: np.ndarray, camera: Camera) -> _Image:
        """As of `FrameAligner.prepare`."""
        began = time.perf_counter()
        image, camera = fit_to_working_size(image, camera, self.map.working_side, self._focal_px)
        return self._described(_grey(image), camera, began)

    def localize_prepared(
        self, prepared: _Image, map_from_camera: torch.Tensor, prior_covariance: torch.Tensor | None = None
    ) -> FrameAlignment:
        """As of `FrameAligner.localize_prepared`; the prior's covariance and the last image play no part."""
        began = time.perf_counter()
        local = self._selector.select(map_from_camera, prepared.camera, self._max_points)
        keyframes = [self._keyframe(k) for k in local.keyframe_ids.tolist()]
        found = self._pose(prepared, keyframes, local.point_ids.numpy(), map_from_camera)
        timings = {**prepared.timings_ms, "alignment": (time.perf_counter() - began) * 1e3}
        if found is None:
            unknown, why = torch.full((6, 6), torch.inf, dtype=torch.float64), "too few points were found again"
            return FrameAlignment(map_from_camera, unknown, False, why, math.inf, 0.0, 0.0, len(local.point_ids), 0, timings)
        pose, covariance, inliers, matches = found
        return FrameAlignment(
            pose, covariance, True, "converged", 0.0, inliers / matches, 1.0, matches, 0, timings, probability=1.0
        )

    def _described(self, grey: np.ndarray, camera: Camera, began: float) -> _Image:
        raise NotImplementedError

    def _pose(
        self, query: _Image, keyframes: list[_Keyframe], point_ids: np.ndarray, prior: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int, int] | None:
        raise NotImplementedError

    def _keyframe(self, number: int) -> _Keyframe:
        """Kept for the images that follow."""
        found = self._keyframes.pop(number, None)
        if found is None:
            camera = self.map.cameras[self.map.keyframe_camera[number]]
            grey = _grey(load_image(self._images[self.map.keyframe_names[number]]))
            if grey.shape != (camera.height, camera.width):
                grey = cv2.resize(grey, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
            ids = self.map.observation_point[self.map.observations(number)].astype(np.int64)
            image = self._described(grey, camera, time.perf_counter())
            found = self._with_points(image, self.map.map_from_keyframe[number], ids)
        self._keyframes[number] = found
        if len(self._keyframes) > _CACHED_KEYFRAMES:
            self._keyframes.popitem(last=False)
        return found

    def _with_points(self, image: _Image, map_from_keyframe: torch.Tensor, ids: np.ndarray) -> _Keyframe:
        pixels, inside = _project(image.camera, map_from_keyframe, self.map.xyz[ids])
        return _Keyframe(image, pixels[inside], self.map.xyz[ids][inside], ids[inside])


class KltPnp(Rival):
    """See the module."""

    def _described(self, grey: np.ndarray, camera: Camera, began: float) -> _Image:
        equal = cv2.createCLAHE(3.0, (8, 8)).apply(grey)
        return _Image(equal, camera, {"features": (time.perf_counter() - began) * 1e3})

    def _pose(self, query, keyframes, point_ids, prior):
        found, pose = None, prior
        for window, level in _KLT_PASSES:
            pixels, points, left = [], [], point_ids
            for keyframe in keyframes:
                mine = np.flatnonzero(np.isin(keyframe.point_ids, left))
                left = np.setdiff1d(left, keyframe.point_ids[mine])
                guess, inside = _project(query.camera, pose, keyframe.xyz[mine])
                mine, guess = mine[inside], guess[inside]
                if not len(mine):
                    continue
                tracked, good = _tracked(keyframe.image.grey, query.grey, keyframe.pixels[mine], guess, window, level)
                pixels.append(tracked[good])
                points.append(keyframe.xyz[mine][good])
            again = solve_pnp(np.concatenate(pixels), np.concatenate(points), query.camera, pose) if pixels else None
            if again is None:
                return found
            found, pose = again, again[0]
        return found


class OrbPnp(Rival):
    """See the module."""

    def _described(self, grey: np.ndarray, camera: Camera, began: float) -> _Image:
        features, descriptors = cv2.ORB_create(_ORB_FEATURES, fastThreshold=10).detectAndCompute(grey, None)
        pixels = np.array([feature.pt for feature in features], float).reshape(-1, 2)
        descriptors = np.empty((0, 32), np.uint8) if descriptors is None else descriptors
        return _Image(grey, camera, {"features": (time.perf_counter() - began) * 1e3}, pixels, descriptors)

    def _with_points(self, image: _Image, map_from_keyframe: torch.Tensor, ids: np.ndarray) -> _Keyframe:
        points = super()._with_points(image, map_from_keyframe, ids)
        if not len(points.xyz) or not len(image.pixels):
            nothing = _Image(image.grey, image.camera, {}, np.empty((0, 2)), np.empty((0, 32), np.uint8))
            return _Keyframe(nothing, np.empty((0, 2)), np.empty((0, 3)), np.empty(0, np.int64))
        gaps = np.linalg.norm(image.pixels[:, None].astype(np.float32) - points.pixels.astype(np.float32), axis=-1)
        nearest = gaps.argmin(1)
        near = gaps[np.arange(len(nearest)), nearest] <= _ORB_DEPTH_PX
        rays, valid = image.camera.unproject(torch.from_numpy(image.pixels))
        near &= valid.numpy() & (rays[:, 2] > 0).numpy()
        depth = se3.transform(se3.inverse(map_from_keyframe), torch.from_numpy(points.xyz))[nearest, 2]
        xyz = se3.transform(map_from_keyframe, rays / rays[:, 2:] * depth[:, None]).numpy()
        kept = _Image(image.grey, image.camera, {}, image.pixels[near], image.descriptors[near])
        return _Keyframe(kept, kept.pixels, xyz[near], points.point_ids[nearest[near]])

    def _pose(self, query, keyframes, point_ids, prior):
        matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
        pixels, points = [np.empty((0, 2))], [np.empty((0, 3))]
        for keyframe in keyframes:
            if len(keyframe.xyz) < 2 or len(query.pixels) < 2:
                continue
            known = keyframe.image.descriptors
            matches = (m for m in matcher.knnMatch(known, query.descriptors, 2) if m[0].distance < _ORB_RATIO * m[1].distance)
            pairs = np.array([(best.trainIdx, best.queryIdx) for best, _ in matches], np.int64).reshape(-1, 2)
            back = [match.trainIdx for match in matcher.match(query.descriptors[pairs[:, 0]], known)] if len(pairs) else []
            pairs = pairs[pairs[:, 1] == back]
            expected, seen = _project(query.camera, prior, keyframe.xyz[pairs[:, 1]])
            away = np.linalg.norm(expected - query.pixels[pairs[:, 0]], axis=1)
            near = seen & (away < _ORB_SEARCH_SHARE * max(query.grey.shape))
            pixels.append(query.pixels[pairs[near, 0]])
            points.append(keyframe.xyz[pairs[near, 1]])
        return solve_pnp(np.concatenate(pixels), np.concatenate(points), query.camera, prior)


RIVALS: dict[str, tuple[str, Callable[..., Rival]]] = {"klt": ("KLT + PnP", KltPnp), "orb": ("ORB + PnP", OrbPnp)}
"""Name on the command line: title and class."""


def solve_pnp(
    pixels: np.ndarray, xyz: np.ndarray, camera: Camera, prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, int, int] | None:
    """Pose of a camera from pixels of known points.

    OpenCV's RANSAC over three points, then Levenberg-Marquardt over those that agree, in the end within half the distance. Works
    on rays, so with every lens; distances are pixels in the middle of the image.

    Args:
        pixels: float [n, 2].
        xyz: The points in the map, float [n, 3].
        camera: Its calibration.
        prior: A pose nearby; only its place is used, so that numbers stay small.

    Returns:
        map_from_camera [4, 4], covariance [6, 6] of a right perturbation, inliers, points; None with too few.
    """
    rays, valid = camera.unproject(torch.from_numpy(np.ascontiguousarray(pixels, float)))
    valid = (valid & (rays[:, 2] > 0.1)).numpy()
    if valid.sum() < _LEAST_INLIERS:
        return None
    plane = (rays[:, :2] / rays[:, 2:]).numpy()[valid]
    points = np.ascontiguousarray(xyz[valid] - prior[:3, 3].numpy())
    focal_px = float(camera.params[:2].mean())
    cv2.setRNGSeed(0)
    try:
        limits = {"iterationsCount": 500, "confidence": 0.999, "reprojectionError": _RANSAC_PX / focal_px}
        done, turn, shift, inliers = cv2.solvePnPRansac(points, plane, np.eye(3), None, flags=cv2.SOLVEPNP_AP3P, **limits)
        chosen = inliers[:, 0] if done and inliers is not None else np.empty(0, np.int64)
        for limit_px in _INLIER_PX:
            if len(chosen) < _LEAST_INLIERS:
                return None
            turn, shift = cv2.solvePnPRefineLM(points[chosen], plane[chosen], np.eye(3), None, turn, shift)
            away = np.linalg.norm(cv2.projectPoints(points, turn, shift, np.eye(3), None)[0][:, 0] - plane, axis=1)
            chosen = np.flatnonzero(away * focal_px < limit_px)
    except cv2.error:  # points that make no pose
        return None
    camera_from_local = se3.from_rotation_translation(torch.from_numpy(cv2.Rodrigues(turn)[0]), torch.from_numpy(shift[:, 0]))
    covariance = _covariance(se3.transform(camera_from_local, torch.from_numpy(points[chosen])), focal_px)
    if len(chosen) < _LEAST_INLIERS or covariance is None:
        return None
    map_from_camera = se3.inverse(camera_from_local)
    map_from_camera[:3, 3] += prior[:3, 3]
    return map_from_camera, covariance, len(chosen), int(valid.sum())


def _covariance(points_camera: torch.Tensor, focal_px: float) -> torch.Tensor | None:
    """float64 [6, 6] of a right perturbation (translation, rotation), camera axes, from the matches' noise; None where the points
    [n, 3] do not determine the pose."""
    lens = Camera("pinhole", 1, 1, torch.tensor([focal_px, focal_px, 0, 0], dtype=torch.float64))
    _, valid, by_point = lens.project_with_jacobian(points_camera)
    # Seen from map_from_camera · exp(e), a point p is exp(-e) p: it moves by -(translation) + p × rotation.
    by_error = torch.cat((-torch.eye(3, dtype=torch.float64).expand(len(points_camera), 3, 3), se3.skew(points_camera)), -1)
    jacobian = ((by_point @ by_error)[valid].reshape(-1, 6) / _NOISE_PX).numpy()
    try:
        covariance = np.linalg.inv(jacobian.T @ jacobian)
    except np.linalg.LinAlgError:
        return None
    return torch.from_numpy((covariance + covariance.T) / 2) if np.isfinite(covariance).all() else None


def _tracked(
    reference: np.ndarray, query: np.ndarray, pixels: np.ndarray, guess: np.ndarray, window: tuple[int, int], level: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels [n, 2] of one image are in the other, from a guess, and which came back to where they started."""
    height, width = np.maximum(reference.shape, query.shape)  # OpenCV wants two images of one size
    reference, query = (
        cv2.copyMakeBorder(image, 0, int(height - image.shape[0]), 0, int(width - image.shape[1]), cv2.BORDER_REPLICATE)
        for image in (reference, query)
    )
    options = {"winSize": window, "maxLevel": level, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    start = pixels[:, None].astype(np.float32)
    there, found, _ = cv2.calcOpticalFlowPyrLK(reference, query, start, guess[:, None].astype(np.float32), **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(query, reference, there, start.copy(), **options)
    good = (found > 0) & (found_back > 0) & (np.linalg.norm(back - start, axis=2) < _KLT_RETURN_PX)
    return there[:, 0].astype(float), good[:, 0]


def _project(camera: Camera, map_from_camera: torch.Tensor, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels float64 [n, 2] of points [n, 3], and which lie in the image."""
    pixels, valid = camera.project(se3.transform(se3.inverse(map_from_camera), torch.from_numpy(xyz)))
    return pixels.numpy(), (valid & camera.in_image(pixels)).numpy()


def _grey(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

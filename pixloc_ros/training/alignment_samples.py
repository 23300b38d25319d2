# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Alignments with known outcome, for learning what the optimizer should believe: images against map points, from wrong poses.

Two sources: pairs of views drawn from single photos (`photos.PhotoPairs`), and places, i.e. maps with further images whose poses
are known. Queries look different from what the map saw (`augmentation`), and priors are wrong by as much as real ones are, or by
more than they claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ..alignment import PriorFactor, ReferencePoints, View
from ..errors import InputError
from ..evaluation.queries import read_queries
from ..features import Extractor
from ..features.sampling import sample_reference
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.bags import BagReader
from ..io.frames import CameraFrame
from ..io.images import load_grey
from ..io.trajectory import read_benchmark_poses
from ..mapping.map_file import Map
from ..tracking.frame_aligner import FrameAligner
from .augmentation import AugmentationOptions, augment
from .pairs import BadSample
from .photos import PhotoPairs

_LEAST_POINTS = 40
_TRUTH_GAP_NS = 100_000_000
_LARGE_VIEW = 640
"""Views this wide get the coarse levels that maps of such images have."""
_LARGE_STRIDES = (64, 16, 8, 2, 1)
ELSEWHERE, FOREIGN = "elsewhere", "foreign image"
"""Kinds of samples in which next to nothing is right."""
_FAR = (20.0, 0.5)
"""Degrees, or share of the depth."""


@dataclass(frozen=True)
class PriorKind:
    """Priors of one kind: how wrong they are, total angle and share of the depth, both times 0.3 to 1.5; how often they come."""

    name: str
    rotation_deg: float
    depth_share: float
    weight: float

    def __post_init__(self) -> None:
        if min(self.rotation_deg, self.depth_share, self.weight) <= 0:
            raise InputError(f"samples: rotation_deg, depth_share and weight of prior '{self.name}' must be above 0")


@dataclass(frozen=True)
class SampleOptions:
    """How samples are drawn.

    Attributes:
        priors: Of which kinds.
        spread: Standard deviation of the logarithm of what a prior claims over what it is.
        pushed: Share of priors that are wrong by `pushed_factor` times as much as they claim.
        points: Fewest and most map points of a sample.
        map_noise: Smallest and largest error of a map point along its ray, as a share of its distance.
        focal: Share of images of places that another camera took: fewer pixels.
        clean: Share of images of places that stay as they are.
        elsewhere: Share of images of places whose prior is the pose of another image, far away or turned away, and claims to be
            as good as any: a robot that was carried.
        augmentation: Of all other images.
    """

    priors: tuple[PriorKind, ...]
    spread: float = 0.3
    pushed: float = 0.08
    pushed_factor: float = 3.0
    points: tuple[int, int] = (60, 600)
    map_noise: tuple[float, float] = (1e-4, 8e-3)
    focal: float = 0.25
    clean: float = 0.2
    elsewhere: float = 0.0
    augmentation: AugmentationOptions = AugmentationOptions()

    def __post_init__(self) -> None:
        if not self.priors or not 0 < self.points[0] <= self.points[1] or not 0 < self.map_noise[0] <= self.map_noise[1]:
            raise InputError("samples: priors must not be empty; points and map_noise are a smallest and a largest number")


@dataclass(frozen=True, eq=False)
class AlignmentSample:
    """One image against map points, all unbatched.

    Attributes:
        view: Image and points.
        truth: camera_from_map [4, 4].
        start: Where the alignment begins; also the prior.
        information: [6, 6] that the prior claims, as of `PriorFactor`.
        depth: Median depth of the points at the truth.
        source: Where it comes from.
        kind: Of prior.
        shows: What its image shows, if other samples may show the same.
    """

    view: View
    truth: torch.Tensor
    start: torch.Tensor
    information: torch.Tensor
    depth: float
    source: str
    kind: str
    shows: str = ""

    @property
    def prior(self) -> PriorFactor:
        return PriorFactor(self.start, self.information)

    def error(self, camera_from_map: torch.Tensor) -> tuple[float, float]:
        """Of a pose: degrees, and the camera's distance in per cent of the depth."""
        away, turned = se3.pose_difference(se3.inverse(self.truth), se3.inverse(camera_from_map.double()))
        return float(torch.rad2deg(turned)), 100 * float(away) / self.depth


def draw_prior(
    truth: torch.Tensor, depth: float, options: SampleOptions, rng: np.random.Generator
) -> tuple[str, torch.Tensor, torch.Tensor]:
    """Kind, wrong pose [4, 4] and claimed information [6, 6] of a prior."""
    kinds = options.priors
    weights = np.array([kind.weight for kind in kinds])
    choice = int(rng.choice(len(kinds), p=weights / weights.sum()))
    grow = np.exp(rng.uniform(np.log(0.3), np.log(1.5)))
    std = np.repeat((kinds[choice].depth_share * depth, np.radians(kinds[choice].rotation_deg)), 3) * grow / np.sqrt(3)
    pushed = rng.random() < options.pushed
    error = rng.standard_normal(6) * std * (options.pushed_factor if pushed else 1.0)
    claimed = std * np.exp(rng.normal(0, options.spread, 2)).repeat(3)
    start = se3.se3_exp(torch.from_numpy(error)) @ truth
    return kinds[choice].name + " pushed" * pushed, start, torch.from_numpy(np.diag(claimed**-2))


class PhotoSamples:
    """Two views of a scene made of photos: one gives the points' descriptors, the other is the image."""

    def __init__(self, pairs: PhotoPairs, extractor: Extractor, name: str) -> None:
        large = pairs.view.width >= _LARGE_VIEW
        self.pairs, self.name = pairs, name
        self.extractor = extractor.with_strides(_LARGE_STRIDES) if large else extractor

    def draw(self, options: SampleOptions, rng: np.random.Generator) -> AlignmentSample:
        """Raises BadSample where the views share too little."""
        pair = self.pairs.draw(rng)
        reference = augment(pair.reference, rng, options.augmentation, reference=True)
        seen, query = (self.extractor.extract(i) for i in (reference, augment(pair.query, rng, options.augmentation)))
        xyz = pair.xyz.float()
        pixels, valid = pair.reference_camera.project(xyz[None])
        mask, descriptors = (valid & pair.reference_camera.in_image(pixels))[0], []
        for level in seen.levels:
            values, _, inside = sample_reference(level, pixels)
            mask = mask & inside[0]
            descriptors.append(values[0])
        some = torch.nonzero(mask)[:, 0].numpy()
        some = torch.from_numpy(rng.permutation(some)[: _count(options, rng)])
        if len(some) < _LEAST_POINTS:
            raise BadSample("few points")
        noise = np.exp(rng.uniform(*np.log(options.map_noise)))
        moved = xyz[some] * (1 + noise * torch.from_numpy(rng.standard_normal((len(some), 1)))).float()
        points = ReferencePoints(moved, tuple(d[some] for d in descriptors), (None,) * len(descriptors))
        view, truth = View(query, pair.query_camera, points), pair.query_from_reference
        depth = float(se3.transform(truth, moved.double())[:, 2].median())
        if depth <= 0:
            raise BadSample("behind the camera")
        kind, start, information = draw_prior(truth, depth, options, rng)
        return AlignmentSample(view, truth, start, information, depth, self.name, kind)


def _count(options: SampleOptions, rng: np.random.Generator) -> int:
    return int(np.exp(rng.uniform(*np.log(options.points))))


class PlaceSamples:
    """A map and images with known poses that are not in it.

    Args:
        images: What gives the image, its camera, and map_from_camera [4, 4].
    """

    def __init__(
        self,
        aligner: FrameAligner,
        images: Sequence[tuple[Callable[[], np.ndarray], Camera, torch.Tensor]],
        name: str,
        shows: str = "",
    ) -> None:
        self.aligner, self.images, self.name, self.shows = aligner, images, name, shows or name

    @classmethod
    def open(
        cls, map_: Path, extractor: Extractor, queries: Path | None = None, images: Path | None = None, drive: Path | None = None
    ) -> PlaceSamples:
        """A map's file, with a folder that holds cameras.txt and truth.txt of `images` (as `pixloc localize` takes them), or with
        a drive with ground truth."""
        aligner, name = FrameAligner(Map.open(map_), extractor), map_.stem
        if drive is None:
            truth = read_benchmark_poses(queries / "truth.txt")
            found = read_queries(images, queries / "cameras.txt")
            return cls(
                aligner, [(lambda q=q: load_grey(q.path), q.camera, se3.inverse(truth[q.name])) for q in found], name, str(images)
            )
        with BagReader(drive) as bag:
            frames = [event for event in bag.events() if isinstance(event, CameraFrame)]
            poses, known = bag.truth().at(np.array([frame.stamp_ns for frame in frames]), _TRUTH_GAP_NS)
            cameras = poses @ bag.base_from_camera
        return cls(aligner, [(lambda f=f: _grey(f.image), f.camera, p) for f, p, k in zip(frames, cameras, known) if k], name)

    def draw(self, options: SampleOptions, rng: np.random.Generator) -> AlignmentSample:
        """Raises BadSample where the map shows too little."""
        load, camera, map_from_camera = self.images[int(rng.integers(len(self.images)))]
        image = load()
        if rng.random() > options.clean:
            image = augment(image, rng, options.augmentation)
        if rng.random() < options.focal:
            height, width = image.shape
            size = tuple(round(side * rng.uniform(0.45, 0.9)) for side in (width, height))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            camera = camera.scaled(size[0] / width, size[1] / height, *size)
        prepared = self.aligner.prepare(image, camera)
        truth, count = se3.inverse(map_from_camera), _count(options, rng)
        near = self.aligner.points_near(map_from_camera, prepared.camera, count)
        if len(near.points) < _LEAST_POINTS:
            raise BadSample("few points")
        depth = float((se3.transform(truth, near.points.xyz.double() + near.origin))[:, 2].median())
        away = rng.random() < options.elsewhere
        kind, start, information = draw_prior(self._elsewhere(truth, depth, rng) if away else truth, depth, options, rng)
        chosen = self.aligner.points_near(se3.inverse(start), prepared.camera, count)
        if len(chosen.points) < _LEAST_POINTS:
            raise BadSample("few points")
        local = torch.eye(4, dtype=torch.float64)
        local[:3, 3] = chosen.origin
        view = View(prepared.pyramid, prepared.camera, chosen.points)
        kind = ELSEWHERE if away else kind
        return AlignmentSample(view, truth @ local, start @ local, information, depth, self.name, kind, self.shows)

    def _elsewhere(self, truth: torch.Tensor, depth: float, rng: np.random.Generator) -> torch.Tensor:
        """camera_from_map of another image, which is half the depth away, or turned away. Raises BadSample for a small place."""
        for _ in range(20):
            other = self.images[int(rng.integers(len(self.images)))][2]
            away, turned = se3.pose_difference(se3.inverse(truth), other)
            if float(away) > _FAR[1] * depth or float(turned) > math.radians(_FAR[0]):
                return se3.inverse(other)
        raise BadSample("no other place")


def _grey(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


@torch.inference_mode()
def draw_samples(
    source: PhotoSamples | PlaceSamples, count: int, options: SampleOptions, seed: tuple[int, ...]
) -> list[AlignmentSample]:
    """The samples of a source: a function of seed and source alone. Raises InputError where hardly any draw gives one."""
    samples, attempts = [], 0
    while len(samples) < count:
        attempts += 1
        if attempts > 40 * count + 40:
            raise InputError(f"{source.name}: only {len(samples)} of {attempts} draws are usable: check the data")
        try:
            samples.append(source.draw(options, np.random.default_rng((*seed, attempts))))
        except BadSample:
            continue
    return samples


def with_foreign_image(sample: AlignmentSample, other: AlignmentSample) -> AlignmentSample | None:
    """The sample with the image of another: nothing in it is right. None where the images do not have the same levels."""
    same = [level.stride for level in sample.view.pyramid.levels] == [level.stride for level in other.view.pyramid.levels]
    if not same:
        return None
    view = View(other.view.pyramid, other.view.camera, sample.view.points)
    return replace(sample, view=view, kind=FOREIGN)

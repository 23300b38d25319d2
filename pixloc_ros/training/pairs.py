# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs of images with known points and motion: what every data source hands to training; and batches of them by step number.

Every sample is a function of the seed and its number alone, so a run that was killed goes on with the same data, and several
machines share the samples of a step without talking to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from .augmentation import AugmentationOptions, augment

_ATTEMPTS = 40
_TRAINING, _VALIDATION = 0, 1
_PREFIX_MODELS = ("pinhole", "radial", "plumb_bob", "rational_polynomial")
"""Camera models whose parameters begin with those of the models before them, the rest being zero there."""


class BadSample(Exception):
    """This draw gave no usable pair. The message is a few words for the tally of skipped samples."""


@dataclass(frozen=True)
class PairShape:
    """What the network sees in training: image width and height in pixels, and points per pair."""

    width: int = 320
    height: int = 240
    points: int = 256

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 64 or self.width % 32 or self.height % 32 and self.height % 16:
            raise InputError(f"view: {self.width}x{self.height} must be at least 64 pixels and a multiple of 32 by 16")
        if self.points < 16:
            raise InputError("view: points must be at least 16")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images of one scene.

    Attributes:
        reference: uint8 [H, W] grey.
        query: uint8 [H, W] grey.
        reference_camera: Its camera.
        query_camera: Its camera.
        xyz: float64 [n, 3], points that the reference sees, in its camera's frame, n at most the view's points.
        query_from_reference: float64 [4, 4].
        name: Where it comes from, for people.
        clean: Both images as they were before they were changed; None: they are.
    """

    reference: np.ndarray
    query: np.ndarray
    reference_camera: Camera
    query_camera: Camera
    xyz: torch.Tensor
    query_from_reference: torch.Tensor
    name: str
    clean: tuple[np.ndarray, np.ndarray] | None = None


class PairSource(Protocol):
    """A data source: draws a pair with the generator's randomness alone, or raises BadSample."""

    def draw(self, rng: np.random.Generator) -> Pair: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs of one image size. Cameras have params [B, P].

    Attributes:
        reference: float32 [B, 1, H, W], grey levels 0 to 255.
        query: float32 [B, 1, H, W].
        xyz: float32 [B, N, 3].
        mask: bool [B, N], which points exist.
        query_from_reference: float64 [B, 4, 4].
        initial: float64 [B, 4, 4].
        clean: float32 [2 B, 1, H, W], the references, then the queries, before they were changed.
        names: [B].
        skipped: Why samples were left out on the way.
    """

    reference: torch.Tensor
    query: torch.Tensor
    reference_camera: Camera
    query_camera: Camera
    xyz: torch.Tensor
    mask: torch.Tensor
    query_from_reference: torch.Tensor
    initial: torch.Tensor
    clean: torch.Tensor
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def collate(pairs: Sequence[Pair], initial: Sequence[torch.Tensor], points: int, skipped: Sequence[str] = ()) -> Batch:
    """Put pairs and their initial poses [4, 4] together; points are padded to `points`.

    Padding repeats the first point, so that it is finite and in front of the camera, but it is masked.
    """
    xyz = torch.empty(len(pairs), points, 3)
    mask = torch.zeros(len(pairs), points, dtype=torch.bool)
    for b, pair in enumerate(pairs):
        count = min(len(pair.xyz), points)
        xyz[b, :count] = pair.xyz[:count].float()
        xyz[b, count:] = pair.xyz[0].float()
        mask[b, :count] = True
    together = ("reference", "query", "reference_camera", "query_camera", "query_from_reference")
    return Batch(
        **{name: _stacked([getattr(pair, name) for pair in pairs]) for name in together},
        xyz=xyz,
        mask=mask,
        initial=torch.stack(list(initial)),
        clean=_stacked([(pair.clean or (pair.reference, pair.query))[k] for k in (0, 1) for pair in pairs]),
        names=tuple(pair.name for pair in pairs),
        skipped=tuple(skipped),
    )


def _stacked(values: list) -> torch.Tensor | Camera:
    """Images, cameras or tensors with a batch dimension."""
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values)).float()[:, None]
    if isinstance(values[0], Camera):
        return stack_cameras(values)
    return torch.stack(values)


def stack_cameras(cameras: Sequence[Camera]) -> Camera:
    """One camera with batched params; models are raised to the one that contains them all.

    Raises InputError where the image sizes differ, or fisheye cameras are mixed with others.
    """
    first = cameras[0]
    if any((c.width, c.height) != (first.width, first.height) for c in cameras):
        raise InputError("cameras of different image sizes cannot share a batch: use the same view for all")
    models = {camera.model for camera in cameras}
    if len(models) == 1:
        params = [camera.params for camera in cameras]
        model = first.model
    elif models <= set(_PREFIX_MODELS):
        model = max(models, key=_PREFIX_MODELS.index)
        length = max(camera.params.shape[-1] for camera in cameras)
        params = [torch.nn.functional.pad(camera.params, (0, length - camera.params.shape[-1])) for camera in cameras]
    else:
        raise InputError("fisheye cameras cannot share a batch with others: undistort those images")
    return Camera(model, first.width, first.height, torch.stack(params), torch.stack([camera.limit for camera in cameras]))


def perturbed(
    query_from_reference: torch.Tensor, rotation_rad: float, translation: float, rng: np.random.Generator
) -> torch.Tensor:
    """The pose [4, 4] turned about the query camera's centre by an angle and moved by a distance, both in random directions."""
    turn, shift = (torch.from_numpy(v / np.linalg.norm(v)) for v in rng.normal(size=(2, 3)))
    return se3.retract(query_from_reference, torch.cat((translation * shift, rotation_rad * turn)))


def fit_view(
    image: np.ndarray, camera: Camera, view: PairShape, rng: np.random.Generator, largest_zoom: float = 1.25
) -> tuple[np.ndarray, Camera]:
    """Shrink or enlarge an image until it covers the view, a little more at random, and cut the view out at random."""
    height, width = image.shape[:2]
    scale = max(view.width / width, view.height / height) * rng.uniform(1.0, largest_zoom)
    size = (max(view.width, round(width * scale)), max(view.height, round(height * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    camera = camera.scaled(size[0] / width, size[1] / height, *size)
    left, top = (int(rng.integers(0, n - m + 1)) for n, m in zip(size, (view.width, view.height)))
    params = camera.params.clone()
    params[2:4] -= params.new_tensor([left, top])
    cut = np.ascontiguousarray(image[top : top + view.height, left : left + view.width])
    return cut, replace(camera, width=view.width, height=view.height, params=params)


def spread_corners(
    grey: np.ndarray, count: int, rng: np.random.Generator, mask: np.ndarray | None = None, corner_share: float = 0.7
) -> np.ndarray:
    """Pixels float64 [n, 2] to put points at: corners, as maps have them, and the rest anywhere, n at most count.

    Args:
        mask: uint8 [H, W], where points may be.
    """
    corners = cv2.goodFeaturesToTrack(grey, round(count * corner_share), 0.003, 4.0, mask=mask)
    corners = np.empty((0, 2)) if corners is None else corners[:, 0].astype(np.float64)
    rows, columns = (
        np.nonzero(mask) if mask is not None else (np.arange(grey.size) // grey.shape[1], np.arange(grey.size) % grey.shape[1])
    )
    if len(rows) == 0:
        return corners
    chosen = rng.choice(len(rows), min(count - len(corners), len(rows)), replace=False)
    return np.concatenate((corners, np.stack((columns[chosen], rows[chosen]), 1)))


# ---- batches of a run


@dataclass(frozen=True)
class Curriculum:
    """Initial errors are random from 0 to a limit that grows linearly from the first value to the second.

    Attributes:
        rotation_deg: Degrees.
        translation: Share of the median depth of the points.
        steps: Over which the limits grow; 0 starts at the second value.
        exponent: Of the uniform random number that the limit is multiplied with; below 1 far starts are more frequent than near
            ones.
    """

    rotation_deg: tuple[float, float] = (2.0, 12.0)
    translation: tuple[float, float] = (0.03, 0.18)
    steps: int = 2000
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if min(*self.rotation_deg, *self.translation) < 0 or self.steps < 0:
            raise InputError("initial_error: rotation_deg, translation and steps must not be negative")
        if not self.exponent > 0:
            raise InputError("initial_error: exponent must be above 0")

    def limits(self, step: int) -> tuple[float, float]:
        """Largest rotation in degrees and translation as a share of the depth at a step."""
        done = min(step / self.steps, 1.0) if self.steps else 1.0
        (a, b), (c, d) = self.rotation_deg, self.translation
        return a + done * (b - a), c + done * (d - c)


@dataclass(frozen=True, eq=False)
class PairMixture:
    """Data sources and what happens to their pairs.

    Attributes:
        sources: To draw pairs from.
        weights: How often each is drawn.
        points: Per pair, padded to that.
        seed: Of all randomness.
        augmentation: Of the images, or None.
        exponent: As in `Curriculum`.
    """

    sources: Sequence[PairSource]
    weights: Sequence[float]
    points: int
    seed: int
    augmentation: AugmentationOptions | None
    exponent: float = 1.0

    def sample(self, key: tuple[int, ...], limits: tuple[float, float]) -> tuple[Pair, torch.Tensor, list[str]]:
        """Pair, initial pose [4, 4] and the reasons of draws that were skipped. Raises InputError after 40 bad draws."""
        skipped: list[str] = []
        share = np.array(self.weights, float) / sum(self.weights)
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng((self.seed, *key, attempt))
            source = self.sources[rng.choice(len(share), p=share)]
            try:
                pair = source.draw(rng)
            except (BadSample, InputError) as error:
                skipped.append(str(error))
                continue
            initial = self._initial(pair, limits, rng)
            if self.augmentation is not None:
                reference = augment(pair.reference, rng, self.augmentation, reference=True)
                query, clean = augment(pair.query, rng, self.augmentation), (pair.reference, pair.query)
                pair = replace(pair, reference=reference, query=query, clean=clean)
            return pair, initial, skipped
        raise InputError(
            f"training data: {_ATTEMPTS} draws in a row were unusable, the last one for '{skipped[-1]}': check the data sources"
        )

    def batch(self, keys: Sequence[tuple[int, ...]], limits: tuple[float, float]) -> Batch:
        """The samples of the keys together."""
        samples = [self.sample(key, limits) for key in keys]
        return collate(
            [pair for pair, _, _ in samples],
            [initial for _, initial, _ in samples],
            self.points,
            [reason for _, _, reasons in samples for reason in reasons],
        )

    def _initial(self, pair: Pair, limits: tuple[float, float], rng: np.random.Generator) -> torch.Tensor:
        depth = float(se3.transform(pair.query_from_reference, pair.xyz)[:, 2].median())
        rotation, translation = (limit * rng.random() ** self.exponent for limit in limits)
        return perturbed(pair.query_from_reference, np.radians(rotation), translation * abs(depth), rng)


@dataclass(frozen=True, eq=False)
class TrainingSteps(torch.utils.data.Dataset):
    """Step number to this process's batch. Of the `batch * world` samples of a step, a process takes `batch` in a row."""

    mixture: PairMixture
    curriculum: Curriculum
    batch: int
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        first = (step * self.world + self.rank) * self.batch
        return self.mixture.batch([(_TRAINING, first + k) for k in range(self.batch)], self.curriculum.limits(step))


def validation_batches(mixture: PairMixture, pairs: int, batch: int, limits: tuple[float, float]) -> list[Batch]:
    """The fixed pairs that a run is watched with."""
    keys = [(_VALIDATION, k) for k in range(pairs)]
    return [mixture.batch(keys[k : k + batch], limits) for k in range(0, pairs, batch)]

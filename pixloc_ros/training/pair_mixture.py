# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Batches of a training run by step number.

Every sample is a function of the seed and its number alone, so a run that was killed goes on with the same data, and
several machines share the samples of a step without talking to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .augmentation import AugmentationOptions, augment
from .pairs import BadSample, Batch, Pair, PairSource, collate, perturbed

_ATTEMPTS = 40
_TRAINING, _VALIDATION = 0, 1
_SAME_TROUBLE = 0.7


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
                pair = self._augmented(pair, self.augmentation, rng)
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

    @staticmethod
    def _augmented(pair: Pair, options: AugmentationOptions, rng: np.random.Generator) -> Pair:
        pair = replace(pair, reference=augment(pair.reference, rng, options, reference=True))
        if pair.step is None:
            return replace(pair, query=augment(pair.query, rng, options))
        # What spoils a frame has often spoilt the one before in the same way.
        seed = int(rng.integers(2**32))
        query = augment(pair.query, np.random.default_rng(seed), options)
        previous = augment(pair.step.previous, np.random.default_rng(seed + (rng.random() > _SAME_TROUBLE)), options)
        return replace(pair, query=query, step=replace(pair.step, previous=previous))

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

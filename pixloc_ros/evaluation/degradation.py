# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives made worse: the same bag with images that are blurred, dark, covered, now and then blank, or fewer.

Strengths are those of the benchmark the single-image tables use: 15 pixels of motion blur, a quarter of the light with
noise, 30 % covered by textured blocks. What happens to an image depends on its stamp and the seed alone.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np

from ..errors import InputError
from ..tracking.types import CameraFrame
from .bags import BagReader, Event

CONDITIONS = ("nominal", "blurred", "dark", "occluded", "blank bursts", "every fourth image")
_BLUR_PX = 15
_COVERED = 0.3
_BURST_S, _BURST_EVERY_S = 0.8, 2.5
_FOURTH = 4
_CLEAR_S = 1.0
"""The first second stays as it is, so that every drive begins tracking."""


class DegradedBag:
    """A `BagReader` whose images are degraded; everything else is the bag's."""

    def __init__(self, bag: BagReader, condition: str, seed: int = 0) -> None:
        if condition not in CONDITIONS:
            raise InputError(f"no condition '{condition}': choose one of {', '.join(CONDITIONS)}")
        self._bag, self.condition, self.seed = bag, condition, seed

    def __getattr__(self, name: str) -> object:
        return getattr(self._bag, name)

    def events(self) -> Iterator[Event]:
        """As of `BagReader.events`."""
        first, count = None, 0
        for event in self._bag.events():
            if isinstance(event, CameraFrame):
                first = event.stamp_ns if first is None else first
                count += 1
                if self.condition == "every fourth image" and (count - 1) % _FOURTH:
                    continue
                event = replace(event, image=self.degrade(event.image, event.stamp_ns, (event.stamp_ns - first) * 1e-9))
            yield event

    def degrade(self, image: np.ndarray, stamp_ns: int, seconds: float) -> np.ndarray:
        """A changed copy of uint8 [H, W] or [H, W, 3], taken `seconds` after the first image."""
        if seconds < _CLEAR_S:
            return image
        rng = np.random.default_rng((self.seed, stamp_ns))
        if self.condition == "blurred":
            return _blurred(image, rng)
        if self.condition == "dark":
            noisy = 255 * 0.25 * (image / 255.0) ** 1.5 + rng.normal(0, 3, image.shape)
            return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
        if self.condition == "occluded":
            return _occluded(image, rng)
        if self.condition == "blank bursts" and (seconds - _CLEAR_S) % _BURST_EVERY_S < _BURST_S:
            return np.clip(np.round(128 + rng.normal(0, 3, image.shape)), 0, 255).astype(np.uint8)
        return image


def _blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A straight streak in a random direction, centred."""
    size = 2 * _BLUR_PX + 1
    kernel = np.zeros((size, size), np.float32)
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-_BLUR_PX / 2, _BLUR_PX / 2, 8 * _BLUR_PX)
    rows, columns = (np.round(_BLUR_PX + along * part).astype(int) for part in (np.sin(angle), np.cos(angle)))
    np.add.at(kernel, (rows, columns), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _occluded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = image.copy()
    height, width = image.shape[:2]
    covered = np.zeros((height, width), bool)
    while covered.mean() < _COVERED:
        size = (int(min(height, width) * rng.uniform(0.15, 0.4)), int(min(height, width) * rng.uniform(0.15, 0.4)))
        top, left = int(rng.integers(0, height - size[0])), int(rng.integers(0, width - size[1]))
        texture = cv2.resize(rng.integers(0, 256, (6, 6)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
        area = (slice(top, top + size[0]), slice(left, left + size[1]))
        image[area] = texture if image.ndim == 2 else texture[..., None]
        covered[area] = True
    return image

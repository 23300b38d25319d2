# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What can be said of an image by itself: how bright, how sharp, how much of it is lost in black or white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np

_SIDE_PX = 480
"""Images are shrunk to this longer side first: on larger ones the noise of the sensor passes for sharpness."""
_BLACK, _WHITE = 4, 251


@dataclass(frozen=True)
class ImageQuality:
    """brightness, contrast: mean and standard deviation of the grey values, 0 to 255. gradient_energy: mean squared slope of the
    grey values in units of their variance, per square pixel of the shrunk image: blur lowers it, brightness does not change it.
    black, white: shares of the pixels at either end."""

    brightness: float
    contrast: float
    gradient_energy: float
    black: float
    white: float

    @classmethod
    def of(cls, image: np.ndarray) -> ImageQuality:
        """image: uint8 [H, W] or [H, W, 3] RGB."""
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        black, white = float((grey <= _BLACK).mean()), float((grey >= _WHITE).mean())
        scale = _SIDE_PX / max(grey.shape)
        if scale < 1:
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        values = grey.astype(np.float32)
        dy, dx = np.gradient(values)
        variance = float(values.var())
        energy = float((dx**2 + dy**2).mean()) / variance if variance > 0.25 else 0.0
        return cls(float(values.mean()), float(values.std()), energy, black, white)

    @classmethod
    def typical(cls, qualities: Sequence[ImageQuality]) -> ImageQuality:
        """The median of each figure."""
        return cls(*np.median([astuple(quality) for quality in qualities], 0).tolist())

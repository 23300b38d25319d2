# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From light to image as a real camera does it: motion blur, vignetting, automatic exposure, noise, gamma."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera

from .rendering import Renderer, encode

_BLUR_STEP_PX = 1.6
"""Instants averaged over an exposure lie less than this far apart in the image."""
_MAX_INSTANTS = 16
_GREY = 0.20
"""Mean radiance that automatic exposure aims at."""


@dataclass(frozen=True)
class Sensor:
    """How the camera sees.

    Attributes:
        exposure_s: Time over which motion blurs; the image's stamp is its middle.
        gain: Exposure on top of the automatic one.
        automatic: 0 keeps the gain as it is, 1 brings every image to the same mean brightness.
        read_noise: Standard deviation of the linear signal (white = 1).
        shot_noise: As `read_noise`, per square root of the signal.
        vignetting: Share of the light that is lost in the corners.
    """

    exposure_s: float = 0.004
    gain: float = 1.0
    automatic: float = 0.7
    read_noise: float = 0.002
    shot_noise: float = 0.012
    vignetting: float = 0.25

    def capture(
        self, renderer: Renderer, camera: Camera, map_from_camera_at: Callable[[float], torch.Tensor], rng: np.random.Generator
    ) -> np.ndarray:
        """One image, uint8 [H, W, 3] RGB.

        map_from_camera_at: the camera's pose, float64 [4, 4], so many seconds after the image's stamp.
        """
        count = self._instants(renderer, camera, map_from_camera_at)
        offsets = ((np.arange(count) + 0.5) / count - 0.5) * self.exposure_s
        radiance = sum(renderer.radiance(camera, map_from_camera_at(float(offset)))[0] for offset in offsets)
        return self.develop(radiance / np.float32(count), rng)

    def develop(self, radiance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image uint8 [H, W, 3] RGB of linear light float32 [H, W, 3]: all but motion blur."""
        signal = radiance * self._falloff(*radiance.shape[:2])
        mean = max(float(np.minimum(signal, 1.0).mean()), 1e-4)
        signal *= np.float32(self.gain * (_GREY / mean) ** self.automatic)
        if self.read_noise or self.shot_noise:
            deviation = np.sqrt(np.float32(self.read_noise**2) + np.float32(self.shot_noise**2) * signal)
            signal += deviation * rng.standard_normal(signal.shape, np.float32)
        return encode(signal)

    def _instants(self, renderer: Renderer, camera: Camera, map_from_camera_at: Callable[[float], torch.Tensor]) -> int:
        """Number of instants that an exposure takes, by the motion of the scene's points in the image."""
        if self.exposure_s <= 0:
            return 1
        start, end = map_from_camera_at(-self.exposure_s / 2), map_from_camera_at(self.exposure_s / 2)
        rows, columns = np.meshgrid(np.linspace(0, camera.height - 1, 8), np.linspace(0, camera.width - 1, 8), indexing="ij")
        rays, valid = camera.unproject(torch.from_numpy(np.stack((columns, rows), -1).reshape(-1, 2)))
        rays = rays[valid & (rays[:, 2] > 0.1)]
        depth = torch.from_numpy(renderer.cast(rays.numpy(), start))
        points = (rays / rays[:, 2:] * depth[:, None])[depth > 0]
        first, first_valid = camera.project(points)
        second, second_valid = camera.project(se3.transform(se3.inverse(end) @ start, points))
        moved = (second - first).norm(dim=-1)[first_valid & second_valid]
        if not len(moved):
            return 1
        return 1 + min(int(float(moved.quantile(0.9)) / _BLUR_STEP_PX), _MAX_INSTANTS - 1)

    def _falloff(self, height: int, width: int) -> np.ndarray:
        x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * np.float32(2 / width)
        y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) * np.float32(2 / height)
        return 1.0 - np.float32(self.vignetting) * ((x * x)[None, :, None] + (y * y)[:, None, None]) / 2.0

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From light to image as a real camera does it: motion blur, vignetting, automatic exposure, noise, gamma."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..geometry import se3
from ..geometry.cameras import Camera
from .rendering import Renderer, encode

_BLUR_STEP_PX = 1.6
"""Instants averaged over an exposure lie about this far apart in the image."""
_MAX_INSTANTS = 12
_GREY = 0.20
"""Mean radiance that automatic exposure aims at."""


@dataclass(frozen=True)
class Sensor:
    """How the camera sees.

    exposure_s: time over which motion blurs; the image's stamp is its middle. gain: exposure on top of the automatic one.
    automatic: 0 keeps the gain as it is, 1 brings every image to the same mean brightness.
    read_noise, shot_noise: standard deviation of the linear signal (white = 1), constant and times its square root.
    vignetting: share of the light that is lost in the corners.
    """

    exposure_s: float = 0.004
    gain: float = 1.0
    automatic: float = 0.7
    read_noise: float = 0.002
    shot_noise: float = 0.012
    vignetting: float = 0.25

    def capture(self, renderer: Renderer, camera: Camera, map_from_camera_at: Callable[[float], torch.Tensor],
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One image: uint8 [H, W, 3] RGB, and the exact depth float32 [H, W] (m) in the middle of the exposure.

        map_from_camera_at: the camera's pose, float64 [4, 4], so many seconds after the image's stamp.
        """
        middle = map_from_camera_at(0.0)
        radiance, depth = renderer.radiance(camera, middle)
        count = self._instants(camera, map_from_camera_at, depth)
        if count > 1:
            # An odd number of instants, so that the middle one is among them.
            offsets = ((np.arange(count) + 0.5) / count - 0.5) * self.exposure_s
            for index, offset in enumerate(offsets):
                if index != count // 2:
                    radiance += renderer.radiance(camera, map_from_camera_at(float(offset)))[0]
            radiance /= count
        signal = radiance * self._falloff(camera)
        mean = max(float(np.minimum(signal, 1.0).mean()), 1e-4)
        signal *= np.float32(self.gain * (_GREY / mean) ** self.automatic)
        if self.read_noise or self.shot_noise:
            deviation = np.sqrt(np.float32(self.read_noise**2) + np.float32(self.shot_noise**2) * signal)
            signal += deviation * rng.standard_normal(signal.shape, np.float32)
        return encode(signal), depth

    def _instants(self, camera: Camera, map_from_camera_at, depth: np.ndarray) -> int:
        """Odd number of instants that an exposure takes, by the largest motion of a scene point in the image."""
        if self.exposure_s <= 0:
            return 1
        start, end = map_from_camera_at(-self.exposure_s / 2), map_from_camera_at(self.exposure_s / 2)
        rows, columns = np.meshgrid(*(np.linspace(0.1, 0.9, 7) * (n - 1) for n in depth.shape), indexing="ij")
        z = torch.from_numpy(depth[rows.astype(int), columns.astype(int)].astype(np.float64).ravel())
        rays, valid = camera.unproject(torch.from_numpy(np.stack((columns, rows), -1).reshape(-1, 2)))
        points = rays / rays[:, 2:].clamp(min=1e-3) * z[:, None]
        first, first_valid = camera.project(points)
        second, second_valid = camera.project(se3.transform(se3.inverse(end) @ start, points))
        valid = valid & first_valid & second_valid & (z > 0)
        if not bool(valid.any()):
            return 1
        extent = float((second - first).norm(dim=-1)[valid].quantile(0.9))
        return 1 + 2 * min(int(extent / _BLUR_STEP_PX / 2 + 0.5), _MAX_INSTANTS // 2)

    def _falloff(self, camera: Camera) -> np.ndarray:
        x = (np.arange(camera.width, dtype=np.float32) - (camera.width - 1) / 2) * np.float32(2 / camera.width)
        y = (np.arange(camera.height, dtype=np.float32) - (camera.height - 1) / 2) * np.float32(2 / camera.height)
        return 1.0 - np.float32(self.vignetting) * ((x * x)[None, :, None] + (y * y)[:, None, None]) / 2.0

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs of image and point, as arrays: what the builders share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ...geometry import se3
from ...geometry.cameras import Camera


class Views(NamedTuple):
    """K images: their cameras, and map_from_camera float64 [K, 4, 4]."""

    cameras: Sequence[Camera]
    map_from_camera: torch.Tensor


class Observations(NamedTuple):
    """M pairs of an image and a point: indices int64 [M] of both, and where the image shows the point, float64 [M, 2]."""

    image: np.ndarray
    point: np.ndarray
    pixel: np.ndarray | None = None

    def only(self, rows: np.ndarray) -> Observations:
        """Some of them, by index or bool [M]."""
        return Observations(self.image[rows], self.point[rows], None if self.pixel is None else self.pixel[rows])


def rows_by_image(image: np.ndarray, count: int) -> list[np.ndarray]:
    """For each of `count` images the rows of `image` (int64 [M]) that name it, rising."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, count)))


def project(camera: Camera, camera_from_map: torch.Tensor, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels float64 [N, 2] of points [N, 3], bool [N] whether they are valid, and their depth along the optical axis [N]."""
    points = se3.transform(camera_from_map, torch.from_numpy(xyz))
    pixels, valid = camera.project(points)
    return pixels.numpy(), valid.numpy(), points[:, 2].numpy()


def reprojection_errors(
    xyz: np.ndarray, cameras: Sequence[Camera], camera_from_map: Sequence[torch.Tensor], seen: Observations
) -> np.ndarray:
    """How far observations are from where their points [P, 3] project: pixels float64 [M], infinite where a point does not."""
    error = np.full(len(seen.point), np.inf)
    for camera, pose, rows in zip(cameras, camera_from_map, rows_by_image(seen.image, len(cameras))):
        pixels, valid, _ = project(camera, pose, xyz[seen.point[rows]])
        distance = np.linalg.norm(pixels - seen.pixel[rows], axis=1)
        error[rows] = np.where(valid & np.isfinite(distance), distance, np.inf)
    return error

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs of image and point, as arrays: what the builders share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...geometry import se3
from ...geometry.cameras import Camera


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
    xyz: np.ndarray,
    cameras: Sequence[Camera],
    camera_from_map: Sequence[torch.Tensor],
    image: np.ndarray,
    point: np.ndarray,
    observed: np.ndarray,
) -> np.ndarray:
    """How far observations are from where their points project.

    Args:
        xyz: float64 [P, 3].
        cameras: Per image.
        camera_from_map: float64 [4, 4] per image.
        image: int64 [M].
        point: int64 [M].
        observed: float64 [M, 2].

    Returns:
        Pixels float64 [M], infinite where the point does not project.
    """
    error = np.full(len(point), np.inf)
    for camera, pose, rows in zip(cameras, camera_from_map, rows_by_image(image, len(cameras))):
        pixels, valid, _ = project(camera, pose, xyz[point[rows]])
        distance = np.linalg.norm(pixels - observed[rows], axis=1)
        error[rows] = np.where(valid & np.isfinite(distance), distance, np.inf)
    return error

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far off triangulated points are expected to project, and the choice of the surest where there are more than enough."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...geometry import se3
from ...geometry.cameras import Camera
from .. import selection
from .observations import project, rows_by_image

_BELIEF = 4.0  # the map's own residual counts as much as so many of a point's
_DEPTH_SIGMA = 0.5  # as a share of the depth: what is known of it without any parallax


def expected_error(
    xyz: np.ndarray,
    cameras: list[Camera],
    map_from_camera: torch.Tensor,
    image: np.ndarray,
    point: np.ndarray,
    error_px: np.ndarray,
    view_image: np.ndarray,
    view_point: np.ndarray,
) -> np.ndarray:
    """By how much points are expected to project off in the images where they are searched for.

    A point's covariance is that of least squares over its observations (poses as they are): rays that hardly cross leave the
    depth open. Their standard deviation is the point's own, drawn towards what is usual in the map, as two rays agree by chance.

    Args:
        xyz: float64 [P, 3].
        cameras: [K].
        map_from_camera: float64 [K, 4, 4].
        image: int64 [M], of the observations.
        point: int64 [M].
        error_px: float64 [M], how far observations are from where their point projects.
        view_image: int64 [V], of the pairs to expect it for, observations or not.
        view_point: int64 [V].

    Returns:
        Root mean square, pixels [P]; infinite where a point has no observation or no view.
    """
    count = len(xyz)
    observations = np.bincount(point, minlength=count)
    usual = float(np.median(error_px**2)) / 2 if len(error_px) else 0.0  # of one axis
    squares = np.bincount(point, error_px**2, count)
    variance = (_BELIEF * usual + squares) / (_BELIEF + np.maximum(2 * observations - 3, 0))
    normal = np.zeros((count, 3, 3))
    for at, jacobian, depth in _jacobians(xyz, cameras, map_from_camera, image, point):
        np.add.at(normal, at, np.einsum("nki,nkj->nij", jacobian, jacobian))
        np.add.at(normal, at, (variance[at] / (_DEPTH_SIGMA * depth) ** 2)[:, None, None] * np.eye(3))
    covariance = np.zeros((count, 3, 3))
    seen = observations > 0
    covariance[seen] = np.linalg.inv(normal[seen]) * variance[seen, None, None]
    total, views = np.zeros(count), np.zeros(count)
    for at, jacobian, _ in _jacobians(xyz, cameras, map_from_camera, view_image, view_point):
        np.add.at(total, at, np.einsum("nki,nij,nkj->n", jacobian, covariance[at], jacobian))
        np.add.at(views, at, 1.0)
    return np.sqrt(np.where(seen & (views > 0), total / np.maximum(views, 1), np.inf))


def _jacobians(
    xyz: np.ndarray, cameras: list[Camera], map_from_camera: torch.Tensor, image: np.ndarray, point: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per image, of its points before the camera: their numbers [n], derivative of pixel by point [n, 2, 3], depth [n]."""
    for camera, pose, rows in zip(cameras, se3.inverse(map_from_camera), rows_by_image(image, len(cameras))):
        inside = se3.transform(pose, torch.from_numpy(xyz[point[rows]]))
        _, valid, jacobian = camera.project_with_jacobian(inside)
        good = valid.numpy()
        yield point[rows][good], (jacobian @ pose[:3, :3]).numpy()[good], inside[:, 2].numpy()[good]


def surest_points(
    xyz: np.ndarray,
    cameras: list[Camera],
    map_from_camera: torch.Tensor,
    image: np.ndarray,
    point: np.ndarray,
    expected_px: np.ndarray,
    limit: int,
) -> np.ndarray:
    """Points that are among the `limit` surest of an image that sees them, spread over that image: bool [P].

    A poor point goes only where there are better ones. Arguments as of `expected_error`; `expected_px` is its result.
    """
    kept, score = np.zeros(len(xyz), bool), 1 / (1 + expected_px**2)
    for camera, pose, rows in zip(cameras, se3.inverse(map_from_camera), rows_by_image(image, len(cameras))):
        seen = point[rows]
        pixels, _, _ = project(camera, pose, xyz[seen])
        kept[seen[selection.spread(pixels, score[seen], (camera.width, camera.height), limit)]] = True
    return kept

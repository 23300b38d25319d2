# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far off triangulated points are expected to project, and the choice of the surest where there are more than enough."""

from __future__ import annotations

import numpy as np
import torch

from ...geometry import se3
from ...geometry.cameras import Camera
from .. import selection

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
    """Pixels [P] by which points [P, 3] are expected to project off in images where they are looked for; root mean square.

    image, point, error_px [M]: observations and how far they are from where their point projects. view_image, view_point [V]:
    pairs of image and point to expect it for, observations or not. A point's covariance is that of least squares over its
    observations (poses as they are): rays that hardly cross leave the depth open. Their standard deviation is the point's own,
    drawn to what is usual in the map, as two rays agree by chance. Infinite where a point has no observation or no view.
    """
    count = len(xyz)
    observations = np.bincount(point, minlength=count)
    usual = float(np.median(error_px**2)) / 2 if len(error_px) else 0.0  # of one axis
    squares = np.bincount(point, error_px**2, count)
    variance = (_BELIEF * usual + squares) / (_BELIEF + np.maximum(2 * observations - 3, 0))
    normal = np.zeros((count, 3, 3))
    for rows, jacobian, depth in _jacobians(xyz, cameras, map_from_camera, image, point):
        np.add.at(normal, point[rows], np.einsum("nki,nkj->nij", jacobian, jacobian))
        np.add.at(normal, point[rows], (variance[point[rows]] / (_DEPTH_SIGMA * depth) ** 2)[:, None, None] * np.eye(3))
    covariance = np.zeros((count, 3, 3))
    seen = observations > 0
    covariance[seen] = np.linalg.inv(normal[seen]) * variance[seen, None, None]
    total, views = np.zeros(count), np.zeros(count)
    for rows, jacobian, _ in _jacobians(xyz, cameras, map_from_camera, view_image, view_point):
        at = view_point[rows]
        np.add.at(total, at, np.einsum("nki,nij,nkj->n", jacobian, covariance[at], jacobian))
        np.add.at(views, at, 1.0)
    return np.sqrt(np.where(seen & (views > 0), total / np.maximum(views, 1), np.inf))


def _jacobians(xyz, cameras: list[Camera], map_from_camera: torch.Tensor, image: np.ndarray, point: np.ndarray):
    """Per image: rows of its pairs whose point lies before the camera, derivative of the pixel by the point [n, 2, 3], depth."""
    camera_from_map = se3.inverse(map_from_camera)
    order = np.argsort(image, kind="stable")
    bounds = np.searchsorted(image[order], np.arange(len(cameras) + 1))
    for k, camera in enumerate(cameras):
        rows = order[bounds[k] : bounds[k + 1]]
        inside = se3.transform(camera_from_map[k], torch.from_numpy(xyz[point[rows]]))
        _, valid, jacobian = camera.project_with_jacobian(inside)
        good = valid.numpy()
        yield rows[good], (jacobian @ camera_from_map[k, :3, :3]).numpy()[good], inside[:, 2].numpy()[good]


def surest_points(
    xyz: np.ndarray,
    cameras: list[Camera],
    map_from_camera: torch.Tensor,
    image: np.ndarray,
    point: np.ndarray,
    expected_px: np.ndarray,
    limit: int,
) -> np.ndarray:
    """bool [P]: points that are among the `limit` surest of an image that sees them, spread over that image.

    A poor point goes only where there are better ones.
    """
    kept = np.zeros(len(xyz), bool)
    camera_from_map = se3.inverse(map_from_camera)
    score = 1 / (1 + expected_px**2)
    order = np.argsort(image, kind="stable")
    bounds = np.searchsorted(image[order], np.arange(len(cameras) + 1))
    for k, camera in enumerate(cameras):
        seen = point[order[bounds[k] : bounds[k + 1]]]
        if not len(seen):
            continue
        pixels, _ = camera.project(se3.transform(camera_from_map[k], torch.from_numpy(xyz[seen])))
        kept[seen[selection.spread(pixels.numpy(), score[seen], (camera.width, camera.height), limit)]] = True
    return kept

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs of image and point, as arrays: where points project, how far off they are expected to, and which are surest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ...geometry import se3
from ...geometry.cameras import Camera
from .. import selection

_BELIEF = 4.0  # the map's own residual counts as much as so many of a point's
_DEPTH_SIGMA = 0.5  # as a share of the depth: what is known of it without any parallax


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


def expected_error(xyz: np.ndarray, views: Views, seen: Observations, error_px: np.ndarray, wanted: Observations) -> np.ndarray:
    """By how much points are expected to project off in the images where they are searched for.

    A point's covariance is that of least squares over its observations (poses as they are): rays that hardly cross leave the
    depth open. Their standard deviation is the point's own, drawn towards what is usual in the map, as two rays agree by chance.

    Args:
        xyz: float64 [P, 3].
        views: Of the images.
        seen: The observations that points are made of.
        error_px: float64 [M], how far those are from where their point projects.
        wanted: The pairs to expect an error for, observations or not.

    Returns:
        Root mean square, pixels [P]; infinite where a point has no observation or no view.
    """
    count = len(xyz)
    observations = np.bincount(seen.point, minlength=count)
    usual = float(np.median(error_px**2)) / 2 if len(error_px) else 0.0  # of one axis
    squares = np.bincount(seen.point, error_px**2, count)
    variance = (_BELIEF * usual + squares) / (_BELIEF + np.maximum(2 * observations - 3, 0))
    normal = np.zeros((count, 3, 3))
    for at, jacobian, depth in _jacobians(xyz, views, seen):
        np.add.at(normal, at, np.einsum("nki,nkj->nij", jacobian, jacobian))
        np.add.at(normal, at, (variance[at] / (_DEPTH_SIGMA * depth) ** 2)[:, None, None] * np.eye(3))
    covariance = np.zeros((count, 3, 3))
    known = observations > 0
    covariance[known] = np.linalg.inv(normal[known]) * variance[known, None, None]
    total, times = np.zeros(count), np.zeros(count)
    for at, jacobian, _ in _jacobians(xyz, views, wanted):
        np.add.at(total, at, np.einsum("nki,nij,nkj->n", jacobian, covariance[at], jacobian))
        np.add.at(times, at, 1.0)
    return np.sqrt(np.where(known & (times > 0), total / np.maximum(times, 1), np.inf))


def _jacobians(xyz: np.ndarray, views: Views, pairs: Observations) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per image, of its points before the camera: their numbers [n], derivative of pixel by point [n, 2, 3], depth [n]."""
    by_image = rows_by_image(pairs.image, len(views.cameras))
    for camera, pose, rows in zip(views.cameras, se3.inverse(views.map_from_camera), by_image):
        inside = se3.transform(pose, torch.from_numpy(xyz[pairs.point[rows]]))
        _, valid, jacobian = camera.project_with_jacobian(inside)
        good = valid.numpy()
        yield pairs.point[rows][good], (jacobian @ pose[:3, :3]).numpy()[good], inside[:, 2].numpy()[good]


def surest_points(xyz: np.ndarray, views: Views, seen: Observations, expected_px: np.ndarray, limit: int) -> np.ndarray:
    """Points that are among the `limit` surest of an image that sees them, spread over that image: bool [P].

    A poor point goes only where there are better ones. Arguments as of `expected_error`; `expected_px` is its result.
    """
    kept, score = np.zeros(len(xyz), bool), 1 / (1 + expected_px**2)
    by_image = rows_by_image(seen.image, len(views.cameras))
    for camera, pose, rows in zip(views.cameras, se3.inverse(views.map_from_camera), by_image):
        points = seen.point[rows]
        pixels, _, _ = project(camera, pose, xyz[points])
        kept[points[selection.spread(pixels, score[points], (camera.width, camera.height), limit)]] = True
    return kept

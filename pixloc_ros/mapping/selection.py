# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The loops over points behind `local_points`, compiled: they run once per frame and have a millisecond."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from ..geometry.projection import CameraNumbers, project_point
from ..geometry.single import JIT


class Viewer(NamedTuple):
    """The camera that points are chosen for.

    Attributes:
        camera: Its numbers.
        size: Width and height of the image, pixels.
        margin: float64 [2], pixels by which the image is enlarged on each side.
        camera_from_map: Rotation, float64 [3, 3].
        focal_log2: log2 of the focal length in pixels.
        angle: Difference of viewing direction, radians, at which an observation counts 1/e.
        octaves: Difference of scale at which an observation counts 1/e.
    """

    camera: CameraNumbers
    size: tuple[int, int]
    margin: np.ndarray
    camera_from_map: np.ndarray
    focal_log2: float
    angle: float
    octaves: float


@numba.njit(**JIT)
def weigh(viewer, shift, offsets, rays, scales, step, pixels, weights):
    """How much each observation of a keyframe counts for a `Viewer`: 0 outside its enlarged image.

    Args:
        viewer: The camera.
        shift: float64 [3], the keyframe's centre seen from the viewer's, map axes and unit.
        offsets: float32 [n, 3], from the keyframe's centre to the points, map axes.
        rays: float32 [n, 3], their directions.
        scales: float32 [n], log2 of the keyframe's focal length over distance.
        step: Every so many rows one is used; its pixel and its weight go to rows 0, 1, ... of the results.
        pixels: float64 [., 2], a result.
        weights: float64 [.], a result.

    Returns:
        The number of rows used.
    """
    pixel, jacobian = np.empty(2), np.empty((2, 3))
    width, height = viewer.size
    margin, camera_from_map = viewer.margin, viewer.camera_from_map
    row = 0
    for i in range(0, offsets.shape[0], step):
        weights[row] = 0.0
        dx, dy, dz = shift[0] + offsets[i, 0], shift[1] + offsets[i, 1], shift[2] + offsets[i, 2]
        x = camera_from_map[0, 0] * dx + camera_from_map[0, 1] * dy + camera_from_map[0, 2] * dz
        y = camera_from_map[1, 0] * dx + camera_from_map[1, 1] * dy + camera_from_map[1, 2] * dz
        z = camera_from_map[2, 0] * dx + camera_from_map[2, 1] * dy + camera_from_map[2, 2] * dz
        if (
            project_point(viewer.camera, x, y, z, pixel, jacobian)
            and -margin[0] <= pixel[0] <= width - 1 + margin[0]
            and -margin[1] <= pixel[1] <= height - 1 + margin[1]
        ):
            distance = math.sqrt(dx * dx + dy * dy + dz * dz)
            cosine = (rays[i, 0] * dx + rays[i, 1] * dy + rays[i, 2] * dz) / distance
            scale = (viewer.focal_log2 - np.log2(distance) - scales[i]) / viewer.octaves
            # 2 (1 - cos) is the squared angle, as far as this matters.
            weights[row] = math.exp(2.0 * (cosine - 1.0) / (viewer.angle * viewer.angle) - scale * scale)
            pixels[row, 0], pixels[row, 1] = pixel[0], pixel[1]
        row += 1
    return row


@numba.njit(**JIT)
def _cell(pixels, i, image_size, columns, rows):
    """Number of the grid cell of a pixel; pixels outside the image belong to the cell at its border."""
    column = int(max((pixels[i, 0] + 0.5) * columns / image_size[0], 0.0))
    row = int(max((pixels[i, 1] + 0.5) * rows / image_size[1], 0.0))
    return min(row, rows - 1) * columns + min(column, columns - 1)


@numba.njit(**JIT)
def add_worth(pixels, weights, factor, image_size, columns, rows, worth):
    """Add factor times each weight to the cell of its pixel. worth: [rows * columns]."""
    for i in range(len(weights)):
        if weights[i] > 0.0:
            worth[_cell(pixels, i, image_size, columns, rows)] += factor * weights[i]


@numba.njit(**JIT)
def best_of_each_point(points, starts, weights):
    """Row of each point's observation of largest weight; the first keyframe's where they are equal, none where all are 0.

    Args:
        points: [n], rising within each keyframe.
        starts: [k + 1], a keyframe's rows are starts[k] to starts[k + 1].
        weights: [n].
    """
    chosen = np.empty(len(points), np.int64)
    count, keyframes = 0, len(starts) - 1
    at = starts[:-1].copy()
    while True:
        point = -1
        for k in range(keyframes):
            if at[k] < starts[k + 1] and (point < 0 or points[at[k]] < point):
                point = points[at[k]]
        if point < 0:
            return chosen[:count]
        best = -1
        for k in range(keyframes):
            if at[k] < starts[k + 1] and points[at[k]] == point:
                if weights[at[k]] > (weights[best] if best >= 0 else 0.0):
                    best = at[k]
                at[k] += 1
        if best >= 0:
            chosen[count] = best
            count += 1


def spread(pixels, scores, image_size, limit):
    """Rows of the best pixels of each cell of a grid over the image, then of each second best, and so on.

    Args:
        pixels: [n, 2].
        scores: [n], positive; compared to 1/65535 of the largest, then by row.
        image_size: Width and height.
        limit: At most so many; the grid has about as many square cells.

    Returns:
        int64, rising.
    """
    if len(scores) <= limit:
        return np.arange(len(scores))
    columns = max(1, round(math.sqrt(limit * image_size[0] / image_size[1])))
    rows = max(1, round(limit / columns))
    # Sixteen-bit keys are sorted in linear time.
    order = np.argsort((scores * (-65535.0 / scores.max()) + 65535.0).astype(np.uint16), kind="stable")
    return np.sort(_first_by_rank(pixels, order, image_size, columns, rows, limit))


@numba.njit(**JIT)
def _first_by_rank(pixels, order, image_size, columns, rows, limit):
    in_cell = np.zeros(columns * rows, np.int64)
    rank = np.empty(len(order), np.int64)
    of_rank = np.zeros(len(order) + 1, np.int64)
    for k in range(len(order)):
        cell = _cell(pixels, order[k], image_size, columns, rows)
        rank[k] = in_cell[cell]
        in_cell[cell] += 1
        of_rank[rank[k] + 1] += 1
    place = np.cumsum(of_rank)
    chosen = np.empty(limit, np.int64)
    for k in range(len(order)):
        if place[rank[k]] < limit:
            chosen[place[rank[k]]] = order[k]
        place[rank[k]] += 1
    return chosen

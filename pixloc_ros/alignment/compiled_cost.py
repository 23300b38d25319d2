# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`cost` compiled for one CPU core: one view's normal equations, and their sum over the views of a rig.

One pass over the points replaces some sixty tensor operations, and geometry is in double precision throughout. A test holds
the two together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from ..geometry.projection import CameraNumbers, project_point
from ..geometry.single import INLINE_JIT, adjoint, compose

LOSSES = {"cauchy": 0, "geman_mcclure": 1, "squared": 2}


class ViewArrays(NamedTuple):
    """A `types.View`. Tuples have an entry per level, coarse to fine; arrays are empty where there is nothing.

    Attributes:
        features: float32 [H, W, C].
        query_confidences: float32 [H, W] or empty.
        xyz: float32 [N, 3], in the unit of the poses.
        descriptors: float32 [N, C].
        confidences: float32 [N] or empty.
        mask: bool [N] or empty.
        image_size: (width, height) in pixels.
        camera: The camera.
        camera_from_rig: float64 [4, 4], or [0, 0] where the camera's frame is the rig's.
    """

    features: tuple[np.ndarray, ...]
    query_confidences: tuple[np.ndarray, ...]
    xyz: np.ndarray
    descriptors: tuple[np.ndarray, ...]
    confidences: tuple[np.ndarray, ...]
    mask: np.ndarray
    image_size: tuple[int, int]
    camera: CameraNumbers
    camera_from_rig: np.ndarray


class CostSettings(NamedTuple):
    """Robust loss (one of LOSSES, and its scale), and how far inside the image points must be, in cells."""

    loss: int
    scale: float
    border: float


class System(NamedTuple):
    """Normal equations at a pose: hessian [6, 6] and gradient [6] for a left perturbation.

    motion [6, 6] is the sum of JᵀJ of the valid reprojections: a step s moves them by sqrt(sᵀ motion s / count) pixels. slopes
    [1] is the sum of the squared slopes of the features per cell there.
    """

    hessian: np.ndarray
    gradient: np.ndarray
    motion: np.ndarray
    slopes: np.ndarray


class PointState(NamedTuple):
    """Per point of all views, one view after the other: squared residual, loss, confidence, valid [N] and pixels [N, 2]."""

    squared: np.ndarray
    loss: np.ndarray
    confidence: np.ndarray
    valid: np.ndarray
    pixels: np.ndarray


@numba.njit(**INLINE_JIT)
def turn(hessian, gradient, axes, turned, pull):
    """Fill in normal equations (turned, pull) for steps along the columns of axes [6, 6]."""
    half = np.zeros((6, 6))
    turned[:], pull[:] = 0.0, 0.0
    for m in range(6):
        for n in range(6):
            for k in range(6):
                half[m, n] += hessian[m, k] * axes[k, n]
    for m in range(6):
        for k in range(6):
            pull[m] += axes[k, m] * gradient[k]
            for n in range(6):
                turned[m, n] += axes[k, m] * half[k, n]


@numba.njit(**INLINE_JIT)
def linearize_views(views, level, stride, pose, settings, system, points, look=0):
    """Fill the sum of the views' normal equations at a pose of the rig [4, 4]; return the number of valid points.

    look: Where above 0, so many points of each view, about, stand for all, evenly chosen; the others are left as they are, and
    the number returned is of all, by these.
    """
    system.hessian[:], system.gradient[:], system.motion[:], system.slopes[:] = 0.0, 0.0, 0.0, 0.0
    count = first = 0
    for view in views:
        p, a, b = points, first, first + view.xyz.shape[0]
        part = PointState(p.squared[a:b], p.loss[a:b], p.confidence[a:b], p.valid[a:b], p.pixels[a:b])
        placed = view.camera_from_rig.size > 0
        own, camera_from_map = system, pose
        if placed:
            own = System(np.zeros((6, 6)), np.zeros(6), np.zeros((6, 6)), system.slopes)
            camera_from_map = compose(view.camera_from_rig, pose)
        every = max(view.xyz.shape[0] // look, 1) if look else 1
        count += every * add_view(view, level, stride, camera_from_map, settings, own, part, every)
        if placed:
            axes, turned, pull = adjoint(view.camera_from_rig), np.empty((6, 6)), np.empty(6)
            turn(own.motion, own.gradient, axes, turned, pull)
            for m in range(6):
                for n in range(6):
                    system.motion[m, n] += turned[m, n]
            turn(own.hessian, own.gradient, axes, turned, pull)
            for m in range(6):
                system.gradient[m] += pull[m]
                for n in range(6):
                    system.hessian[m, n] += turned[m, n]
        first = b
    return count


@numba.njit(**INLINE_JIT)
def add_view(view, level, stride, pose, settings, system, points, every):
    """Add one view's normal equations at its pose camera_from_map [4, 4], of every so many-th point; return how many count."""
    features, query_confidence = view.features[level], view.query_confidences[level]
    descriptors, confidences = view.descriptors[level], view.confidences[level]
    camera, xyz, mask = view.camera, view.xyz, view.mask
    width, height = view.image_size
    hessian, gradient, motion, slopes = system
    squared, loss, confidence, valid, pixels = points
    loss_kind, loss_scale, border = settings
    rows, columns, channels = features.shape
    pixel, jac, full = np.empty(2), np.empty((2, 3)), np.empty((2, 6))
    margin = border * stride - 0.5
    half = 0.5 / stride
    count = 0
    for i in range(0, xyz.shape[0], every):
        valid[i] = False
        if mask.size and not mask[i]:
            continue
        px, py, pz = float(xyz[i, 0]), float(xyz[i, 1]), float(xyz[i, 2])
        x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
        y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
        z = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3]
        if not project_point(camera, x, y, z, pixel, jac):
            continue
        pixels[i, 0], pixels[i, 1] = pixel[0], pixel[1]
        cell_x, cell_y = (pixel[0] + 0.5) / stride - 0.5, (pixel[1] + 0.5) / stride - 0.5
        if not (-0.5 <= cell_x <= columns - 0.5 and -0.5 <= cell_y <= rows - 0.5):
            continue
        if not (margin <= pixel[0] <= width - 1 - margin and margin <= pixel[1] <= height - 1 - margin):
            continue
        cell_x, cell_y = min(max(cell_x, 0.0), columns - 1.0), min(max(cell_y, 0.0), rows - 1.0)
        column, row = int(cell_x), int(cell_y)
        fx, fy = cell_x - column, cell_y - row
        a, b = np.float32(fx), np.float32(fy)
        one = np.float32(1.0)
        left, right, far = max(column - 1, 0), min(column + 1, columns - 1), min(column + 2, columns - 1)
        above, below, deep = max(row - 1, 0), min(row + 1, rows - 1), min(row + 2, rows - 1)
        f01, f02 = features[above, column], features[above, right]
        f10, f11, f12, f13 = features[row, left], features[row, column], features[row, right], features[row, far]
        f20, f21, f22, f23 = features[below, left], features[below, column], features[below, right], features[below, far]
        f31, f32 = features[deep, column], features[deep, right]
        reference = descriptors[i]
        rr = rx = ry = xx = xy = yy = np.float32(0.0)
        for c in range(channels):
            # Along x within the two middle rows, along y within the two middle columns; slopes are one cell to either side.
            top = (one - a) * f11[c] + a * f12[c]
            low = (one - a) * f21[c] + a * f22[c]
            up = (one - a) * f01[c] + a * f02[c]
            down = (one - a) * f31[c] + a * f32[c]
            r = (one - b) * top + b * low - reference[c]
            sx = (one - b) * ((one - a) * (f12[c] - f10[c]) + a * (f13[c] - f11[c])) + b * (
                (one - a) * (f22[c] - f20[c]) + a * (f23[c] - f21[c])
            )
            sy = (one - b) * (low - up) + b * (down - top)
            rr += r * r
            rx += r * sx
            ry += r * sy
            xx += sx * sx
            xy += sx * sy
            yy += sy * sy
        weight = 1.0
        if confidences.size:
            weight *= confidences[i]
        if query_confidence.size:
            weight *= (1 - fy) * ((1 - fx) * query_confidence[row, column] + fx * query_confidence[row, right]) + fy * (
                (1 - fx) * query_confidence[below, column] + fx * query_confidence[below, right]
            )
        confidence[i] = weight
        squared[i] = rr
        ratio = rr / (2 * loss_scale)
        if loss_kind == 0:
            loss[i] = 2 * loss_scale * math.log1p(ratio)
            weight *= 1 / (1 + ratio)
        elif loss_kind == 1:
            loss[i] = rr / (1 + ratio)
            weight *= 1 / ((1 + ratio) * (1 + ratio))
        else:
            loss[i] = rr
        valid[i] = True
        slopes[0] += (xx + yy) / 4
        count += 1
        for k in range(2):
            j0, j1, j2 = jac[k, 0], jac[k, 1], jac[k, 2]
            full[k, 0], full[k, 1], full[k, 2] = j0, j1, j2
            full[k, 3], full[k, 4], full[k, 5] = y * j2 - z * j1, z * j0 - x * j2, x * j1 - y * j0
        gx, gy = weight * half * rx, weight * half * ry
        hxx, hxy, hyy = weight * half * half * xx, weight * half * half * xy, weight * half * half * yy
        for m in range(6):
            u, v = full[0, m], full[1, m]
            gradient[m] += u * gx + v * gy
            hu, hv = u * hxx + v * hxy, u * hxy + v * hyy
            for n in range(m, 6):
                hessian[m, n] += hu * full[0, n] + hv * full[1, n]
                motion[m, n] += u * full[0, n] + v * full[1, n]
    for m in range(6):
        for n in range(m):
            hessian[m, n] = hessian[n, m]
            motion[m, n] = motion[n, m]
    return count


@numba.njit(**INLINE_JIT)
def mean_cost(points):
    """Mean loss over the valid points, weighted by their confidence."""
    confidence, loss, valid = points.confidence, points.loss, points.valid
    total, weight = 0.0, 0.0
    for i in range(loss.shape[0]):
        if valid[i]:
            total += confidence[i] * loss[i]
            weight += confidence[i]
    return total / max(weight, 1e-9)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Projection of single points, compiled: the models of `cameras.Camera`, which a test compares with it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from .cameras import MIN_DEPTH, Camera
from .single import FAST_JIT, INLINE_JIT

POLYNOMIAL, EQUIDISTANT = 0, 1
PARAMS = 12


class CameraNumbers(NamedTuple):
    """An unbatched camera as compiled code takes it.

    Attributes:
        kind: POLYNOMIAL or EQUIDISTANT.
        params: float64 [12]: fx, fy, cx, cy, distortion. Every polynomial model is a rational one with zeros: k1, k2, p1, p2,
            k3, k4, k5, k6.
        limit: As of `Camera`.
    """

    kind: int
    params: np.ndarray
    limit: float


def camera_numbers(camera: Camera) -> CameraNumbers:
    """The numbers of an unbatched camera."""
    params = np.zeros(PARAMS)
    params[: camera.params.shape[-1]] = camera.params.double().numpy()
    return CameraNumbers(EQUIDISTANT if camera.model == "equidistant" else POLYNOMIAL, params, float(camera.limit))


@numba.njit(**INLINE_JIT)
def project_point(camera, x, y, z, pixel, jac):
    """Pixel (2) and its derivative jac (2, 3) of a point in the camera frame, in any unit; False where it is invalid."""
    kind, cam, limit = camera
    if kind == EQUIDISTANT:
        radius2 = x * x + y * y
        distance2 = radius2 + z * z
        if not (distance2 > MIN_DEPTH * MIN_DEPTH and distance2 < np.inf):
            return False
        on_axis = radius2 <= 2.3e-16 * distance2
        radius = math.sqrt(radius2)
        theta = (0.0 if z > 0 else math.pi) if on_axis else math.atan2(radius, z)
        if not theta < limit:
            return False
        t2 = theta * theta
        ratio = 1 + t2 * (cam[4] + t2 * (cam[5] + t2 * (cam[6] + t2 * cam[7])))
        slope = 1 + t2 * (3 * cam[4] + t2 * (5 * cam[5] + t2 * (7 * cam[6] + t2 * 9 * cam[7])))
        scale = 1 / z if on_axis else theta * ratio / radius
        cross = 0.0 if on_axis else (slope * z / distance2 - scale) / radius2
        last = -slope / distance2
        pixel[0], pixel[1] = cam[2] + cam[0] * scale * x, cam[3] + cam[1] * scale * y
        jac[0, 0], jac[0, 1], jac[0, 2] = cam[0] * (scale + cross * x * x), cam[0] * cross * x * y, cam[0] * last * x
        jac[1, 0], jac[1, 1], jac[1, 2] = cam[1] * cross * x * y, cam[1] * (scale + cross * y * y), cam[1] * last * y
        return True
    if not z > MIN_DEPTH:
        return False
    inverse = 1 / z
    u, v = x * inverse, y * inverse
    r2 = u * u + v * v
    if not r2 < limit:
        return False
    k1, k2, p1, p2, k3 = cam[4], cam[5], cam[6], cam[7], cam[8]
    gain = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = k1 + r2 * (2 * k2 + 3 * r2 * k3)
    denominator = 1 + r2 * (cam[9] + r2 * (cam[10] + r2 * cam[11]))
    gain = gain / denominator
    slope = (slope - gain * (cam[9] + r2 * (2 * cam[10] + 3 * r2 * cam[11]))) / denominator
    factor = gain + 2 * (p2 * u + p1 * v)
    pixel[0] = cam[2] + cam[0] * (factor * u + r2 * p2)
    pixel[1] = cam[3] + cam[1] * (factor * v + r2 * p1)
    # d(x) = factor x + r² q, factor = gain + 2 q·x, q = (p2, p1); its derivative is factor I + 2 slope x xᵀ + 2 (x qᵀ + q xᵀ).
    a = factor + 2 * slope * u * u + 4 * p2 * u
    b = 2 * slope * u * v + 2 * (p1 * u + p2 * v)
    d = factor + 2 * slope * v * v + 4 * p1 * v
    jac[0, 0], jac[0, 1] = cam[0] * inverse * a, cam[0] * inverse * b
    jac[1, 0], jac[1, 1] = cam[1] * inverse * b, cam[1] * inverse * d
    jac[0, 2] = -(jac[0, 0] * u + jac[0, 1] * v)
    jac[1, 2] = -(jac[1, 0] * u + jac[1, 1] * v)
    return True


@numba.njit(**FAST_JIT)
def median_motion(camera, xyz, pose, pixels, visible):
    """Median distance in pixels between the projections of points [N, 3] at a pose [4, 4] and pixels [N, 2], over the visible
    points that are valid there; 0 where there are none."""
    moved, pixel, jacobian = np.empty(len(xyz)), np.empty(2), np.empty((2, 3))
    count = 0
    for i in range(len(xyz)):
        px, py, pz = float(xyz[i, 0]), float(xyz[i, 1]), float(xyz[i, 2])
        x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
        y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
        z = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3]
        if visible[i] and project_point(camera, x, y, z, pixel, jacobian):
            moved[count] = math.hypot(pixel[0] - pixels[i, 0], pixel[1] - pixels[i, 1])
            count += 1
    return np.median(moved[:count]) if count else 0.0

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Functions of `se3` for one transform in double precision, compiled: `se3` calls them where no gradient is asked for.

A frame takes some hundred of them, and as tensor operations each costs 25 to 300 microseconds, here about one. Arrays are
float64 and C-contiguous, transforms [4, 4], tangent vectors [6], covariances [6, 6]; formulas and conventions are those of
`se3`, and a test holds the two together.
"""

from __future__ import annotations

import math

import numba
import numpy as np


def _can_cache() -> bool:
    """Whether compiled code can be kept for the next start: not where neither the package's folder nor the user's is writable."""
    try:
        numba.njit(cache=True)(lambda: None)
    except RuntimeError:
        return False
    return True


JIT = {"cache": _can_cache(), "nogil": True, "error_model": "numpy"}
FAST_JIT = {**JIT, "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
"""For loops over many points. No "nnan": features and poses that are not numbers must be seen as such."""
INLINE_JIT = {**FAST_JIT, "forceinline": True}
"""For their callees. Otherwise the process that compiles them calls each one's own code, and a process that loads its caller from
the cache calls the caller's copy, which has been optimized once more: other last bits."""
_SMALL = 1e-4
"""Below this angle two terms of a series are exact to double precision."""


def _rotation(phi, rotation):
    """Rotation [3, 3] of a rotation vector; returns (1 - cos a) / a² and (a - sin a) / a³ of its angle a."""
    x, y, z = phi[0], phi[1], phi[2]
    squared = x * x + y * y + z * z
    angle = math.sqrt(squared)
    if angle < _SMALL:
        a, b, c = 1 - squared / 6, 0.5 - squared / 24, 1 / 6 - squared / 120
    else:
        a = math.sin(angle) / angle
        b = 2 * (math.sin(0.5 * angle) / angle) ** 2
        if squared < 0.25:
            # The difference loses its digits for small angles: its series.
            c = 1 / 6 - squared * (1 / 120 - squared * (1 / 5040 - squared * (1 / 362880 - squared * (
                1 / 39916800 - squared * (1 / 6227020800 - squared / 1307674368000)))))  # fmt: skip
        else:
            c = (angle - math.sin(angle)) / (squared * angle)
    rotation[0, 0], rotation[0, 1], rotation[0, 2] = 1 - b * (y * y + z * z), b * x * y - a * z, b * x * z + a * y
    rotation[1, 0], rotation[1, 1], rotation[1, 2] = b * x * y + a * z, 1 - b * (x * x + z * z), b * y * z - a * x
    rotation[2, 0], rotation[2, 1], rotation[2, 2] = b * x * z - a * y, b * y * z + a * x, 1 - b * (x * x + y * y)
    return b, c


_exp = numba.njit(**JIT)(_rotation)
# Not cached: numba's cache would take it for the one above.
_exp_fast = numba.njit(**{**INLINE_JIT, "cache": False})(_rotation)


@numba.njit(**JIT)
def _log(r, phi):
    """Rotation vector of r [3, 3], through the longest row of 4 q qᵀ as in `se3.quaternion_from_rotation`."""
    xx, yy = 1 + r[0, 0] - r[1, 1] - r[2, 2], 1 - r[0, 0] + r[1, 1] - r[2, 2]
    zz, ww = 1 - r[0, 0] - r[1, 1] + r[2, 2], 1 + r[0, 0] + r[1, 1] + r[2, 2]
    xy, xz, yz = r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] + r[1, 2]
    xw, yw, zw = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    if ww >= xx and ww >= yy and ww >= zz:
        x, y, z, w = xw, yw, zw, ww
    elif xx >= yy and xx >= zz:
        x, y, z, w = xx, xy, xz, xw
    elif yy >= zz:
        x, y, z, w = xy, yy, yz, yw
    else:
        x, y, z, w = xz, yz, zz, zw
    if w < 0:
        x, y, z, w = -x, -y, -z, -w
    length = math.sqrt(x * x + y * y + z * z)
    factor = 2 / w if length < 1e-6 * w else 2 * math.atan2(length, w) / length
    phi[0], phi[1], phi[2] = factor * x, factor * y, factor * z


@numba.njit(**JIT)
def exp(xi):
    """`se3.se3_exp`."""
    result = np.zeros((4, 4))
    b, c = _exp(xi[3:], result[:3, :3])
    result[3, 3] = 1.0
    x, y, z = xi[3], xi[4], xi[5]
    kx, ky, kz = y * xi[2] - z * xi[1], z * xi[0] - x * xi[2], x * xi[1] - y * xi[0]
    result[0, 3] = xi[0] + b * kx + c * (y * kz - z * ky)
    result[1, 3] = xi[1] + b * ky + c * (z * kx - x * kz)
    result[2, 3] = xi[2] + b * kz + c * (x * ky - y * kx)
    return result


@numba.njit(**JIT)
def log(a_from_b):
    """`se3.se3_log`."""
    xi = np.empty(6)
    _log(a_from_b[:3, :3], xi[3:])
    w0, w1, w2 = xi[3], xi[4], xi[5]
    squared = w0 * w0 + w1 * w1 + w2 * w2
    if squared < 0.25:
        d = 1 / 12 + squared * (1 / 720 + squared * (1 / 30240 + squared * (1 / 1209600 + squared * (
            1 / 47900160 + squared * (691 / 1307674368000 + squared / 74724249600)))))  # fmt: skip
    else:
        half = 0.5 * math.sqrt(squared)
        d = (1 - half * math.cos(half) / math.sin(half)) / squared
    x, y, z = a_from_b[0, 3], a_from_b[1, 3], a_from_b[2, 3]
    kx, ky, kz = w1 * z - w2 * y, w2 * x - w0 * z, w0 * y - w1 * x
    xi[0] = x - 0.5 * kx + d * (w1 * kz - w2 * ky)
    xi[1] = y - 0.5 * ky + d * (w2 * kx - w0 * kz)
    xi[2] = z - 0.5 * kz + d * (w0 * ky - w1 * kx)
    return xi


@numba.njit(**JIT)
def inverse(a_from_b):
    """`se3.inverse`."""
    result = np.zeros((4, 4))
    for i in range(3):
        for j in range(3):
            result[i, j] = a_from_b[j, i]
            result[i, 3] -= a_from_b[j, i] * a_from_b[j, 3]
    result[3, 3] = 1.0
    return result


@numba.njit(**JIT)
def interpolate(a_from_b0, a_from_b1, fraction):
    """`se3.interpolate`."""
    relative, turn, step = np.zeros((3, 3)), np.empty(3), np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            for k in range(3):
                relative[i, j] += a_from_b0[k, i] * a_from_b1[k, j]
    _log(relative, turn)
    _exp(fraction * turn, step)
    result = np.zeros((4, 4))
    for i in range(3):
        for j in range(3):
            for k in range(3):
                result[i, j] += a_from_b0[i, k] * step[k, j]
        result[i, 3] = a_from_b0[i, 3] + fraction * (a_from_b1[i, 3] - a_from_b0[i, 3])
    result[3, 3] = 1.0
    return result


@numba.njit(**JIT)
def pose_difference(a, b):
    """`se3.pose_difference`: (distance, angle)."""
    x, y, z = a[0, 3] - b[0, 3], a[1, 3] - b[1, 3], a[2, 3] - b[2, 3]
    relative = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for k in range(3):
                relative[i, j] += a[k, i] * b[k, j]
    xw, yw, zw = relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]
    sine, cosine = math.sqrt(xw * xw + yw * yw + zw * zw), relative[0, 0] + relative[1, 1] + relative[2, 2] - 1
    return math.sqrt(x * x + y * y + z * z), math.atan2(sine, cosine)


@numba.njit(**JIT)
def compose(a_from_b, b_from_c):
    """a_from_c."""
    result = np.zeros((4, 4))
    for i in range(3):
        for j in range(4):
            for k in range(3):
                result[i, j] += a_from_b[i, k] * b_from_c[k, j]
        result[i, 3] += a_from_b[i, 3]
    result[3, 3] = 1.0
    return result


@numba.njit(**JIT)
def adjoint(a_from_b):
    """`se3.adjoint`."""
    result = np.zeros((6, 6))
    x, y, z = a_from_b[0, 3], a_from_b[1, 3], a_from_b[2, 3]
    for j in range(3):
        for i in range(3):
            result[i, j] = result[3 + i, 3 + j] = a_from_b[i, j]
        result[0, 3 + j] = y * a_from_b[2, j] - z * a_from_b[1, j]
        result[1, 3 + j] = z * a_from_b[0, j] - x * a_from_b[2, j]
        result[2, 3 + j] = x * a_from_b[1, j] - y * a_from_b[0, j]
    return result


@numba.njit(**JIT)
def transform_covariance(covariance, a_from_b):
    """`se3.transform_covariance`."""
    axes, half, result = adjoint(a_from_b), np.zeros((6, 6)), np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            for k in range(6):
                half[i, j] += axes[i, k] * covariance[k, j]
    for i in range(6):
        for j in range(6):
            for k in range(6):
                result[i, j] += half[i, k] * axes[j, k]
    return result


@numba.njit(**INLINE_JIT)
def retract(pose, step, out):
    """`se3.retract` of the optimizer, into out: pixloc's decoupled left update."""
    rotation = np.empty((3, 3))
    _exp_fast(step[3:], rotation)
    for m in range(3):
        for n in range(4):
            out[m, n] = rotation[m, 0] * pose[0, n] + rotation[m, 1] * pose[1, n] + rotation[m, 2] * pose[2, n]
        out[m, 3] += step[m]


@numba.njit(**INLINE_JIT)
def difference(pose, other_inverse, error):
    """error = log(pose · other⁻¹) of the optimizer: as `log`, in less time, for rotations below π."""
    t = np.zeros((3, 4))
    for m in range(3):
        for n in range(4):
            t[m, n] = pose[m, 0] * other_inverse[0, n] + pose[m, 1] * other_inverse[1, n] + pose[m, 2] * other_inverse[2, n]
        t[m, 3] += pose[m, 3]
    vx, vy, vz = t[2, 1] - t[1, 2], t[0, 2] - t[2, 0], t[1, 0] - t[0, 1]
    sine, cosine = 0.5 * math.sqrt(vx * vx + vy * vy + vz * vz), 0.5 * (t[0, 0] + t[1, 1] + t[2, 2] - 1)
    angle = math.atan2(sine, cosine)
    scale = 0.5 if angle < 1e-6 else 0.5 * angle / sine
    w0, w1, w2 = scale * vx, scale * vy, scale * vz
    d = 1 / 12 if angle < 1e-3 else (1 - 0.5 * angle * math.cos(0.5 * angle) / math.sin(0.5 * angle)) / (angle * angle)
    x, y, z = t[0, 3], t[1, 3], t[2, 3]
    cx, cy, cz = w1 * z - w2 * y, w2 * x - w0 * z, w0 * y - w1 * x
    error[0] = x - 0.5 * cx + d * (w1 * cz - w2 * cy)
    error[1] = y - 0.5 * cy + d * (w2 * cx - w0 * cz)
    error[2] = z - 0.5 * cz + d * (w0 * cy - w1 * cx)
    error[3], error[4], error[5] = w0, w1, w2


@numba.njit(**JIT)
def is_pose(a_from_b, tolerance):
    """Whether `se3.check_pose` lets a [4, 4] matrix pass."""
    for i in range(4):
        for j in range(4):
            if not math.isfinite(a_from_b[i, j]):
                return False
    for i in range(3):
        for j in range(3):
            product = -1.0 if i == j else 0.0
            for k in range(3):
                product += a_from_b[i, k] * a_from_b[j, k]
            if abs(product) > tolerance:
                return False
    r = a_from_b
    determinant = (
        r[0, 0] * (r[1, 1] * r[2, 2] - r[1, 2] * r[2, 1])
        - r[0, 1] * (r[1, 0] * r[2, 2] - r[1, 2] * r[2, 0])
        + r[0, 2] * (r[1, 0] * r[2, 1] - r[1, 1] * r[2, 0])
    )
    last = max(abs(r[3, 0]), abs(r[3, 1]), abs(r[3, 2]), abs(r[3, 3] - 1))
    return determinant >= 0 and last <= tolerance

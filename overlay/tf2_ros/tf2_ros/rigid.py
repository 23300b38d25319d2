# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as plain tuples (translation (x, y, z), unit quaternion (x, y, z, w)): for single transforms that is
several times faster than arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Rigid(NamedTuple):
    """a_from_b: maps coordinates in frame b to frame a."""

    translation: Vector
    rotation: Quaternion


IDENTITY = Rigid((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def _multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def _rotate(q: Quaternion, v: Vector) -> Vector:
    x, y, z, w = q
    vx, vy, vz = v
    tx, ty, tz = 2.0 * (y * vz - z * vy), 2.0 * (z * vx - x * vz), 2.0 * (x * vy - y * vx)
    return (vx + w * tx + y * tz - z * ty, vy + w * ty + z * tx - x * tz, vz + w * tz + x * ty - y * tx)


def compose(a_from_b: Rigid, b_from_c: Rigid) -> Rigid:
    """a_from_c."""
    x, y, z = _rotate(a_from_b.rotation, b_from_c.translation)
    tx, ty, tz = a_from_b.translation
    return Rigid((x + tx, y + ty, z + tz), _multiply(a_from_b.rotation, b_from_c.rotation))


def inverse(a_from_b: Rigid) -> Rigid:
    """b_from_a."""
    x, y, z, w = a_from_b.rotation
    back = (-x, -y, -z, w)
    tx, ty, tz = _rotate(back, a_from_b.translation)
    return Rigid((-tx, -ty, -tz), back)


def interpolate(first: Rigid, second: Rigid, ratio: float) -> Rigid:
    """Straight line between the translations, shortest arc between the rotations; ratio 0 is first, 1 is second."""
    translation = tuple(a + ratio * (b - a) for a, b in zip(first.translation, second.translation))
    cosine = sum(a * b for a, b in zip(first.rotation, second.rotation))
    target = second.rotation if cosine >= 0.0 else tuple(-b for b in second.rotation)
    cosine = min(abs(cosine), 1.0)
    angle = math.acos(cosine)
    if angle < 1e-6:  # the sines below cancel; the chord is exact to the last digit
        weights = (1.0 - ratio, ratio)
    else:
        weights = (math.sin((1.0 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle))
    rotation = tuple(weights[0] * a + weights[1] * b for a, b in zip(first.rotation, target))
    norm = math.sqrt(sum(r * r for r in rotation))
    return Rigid(translation, tuple(r / norm for r in rotation))

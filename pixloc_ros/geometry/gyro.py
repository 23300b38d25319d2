# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How a body has turned, from the angular velocities that a gyro reads."""

from __future__ import annotations

import numpy as np
import torch

from . import se3


def turned(stamps_ns: np.ndarray, rates: np.ndarray, at_ns: np.ndarray, max_gap_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations of a body between times, its rate linear between two readings.

    Args:
        stamps_ns: int64 [N], rising.
        rates: float64 [N, 3] rad/s, in the body's axes.
        at_ns: int64 [K], rising.
        max_gap_ns: Readings must not be further apart.

    Returns:
        body at each time from body at the next, float64 [K - 1, 3, 3], the identity where it is not known, and bool [K - 1]
        whether it is.
    """
    rotations, known = np.tile(np.eye(3), (max(len(at_ns) - 1, 0), 1, 1)), np.zeros(max(len(at_ns) - 1, 0), bool)
    if len(stamps_ns) < 2 or not len(known):
        return rotations, known
    known = (at_ns[:-1] >= stamps_ns[0]) & (at_ns[1:] <= stamps_ns[-1])
    gaps = np.flatnonzero(np.diff(stamps_ns) > max_gap_ns)
    known &= np.searchsorted(stamps_ns[gaps + 1], at_ns[:-1], "right") == np.searchsorted(stamps_ns[gaps], at_ns[1:], "left")
    times = np.union1d(stamps_ns[(stamps_ns > at_ns[0]) & (stamps_ns < at_ns[-1])], at_ns)
    begin = min(int(times[0]), int(stamps_ns[0]))  # doubles hold spans of nanoseconds, not stamps
    seconds, read = (times - begin) * 1e-9, (stamps_ns - begin) * 1e-9
    rate = np.stack([np.interp(seconds, read, rates[:, axis]) for axis in range(3)], 1)
    steps = se3.so3_exp(torch.from_numpy((rate[1:] + rate[:-1]) / 2 * np.diff(seconds)[:, None])).numpy()
    all_ = np.concatenate((np.eye(3)[None], _running_products(steps)))[np.searchsorted(times, at_ns)]
    between = all_[:-1].transpose(0, 2, 1) @ all_[1:]
    rotations[known] = between[known]
    return rotations, known


def mount_turn(seen: np.ndarray, read: np.ndarray) -> tuple[float, float]:
    """By which angle a gyro's axes are turned against those that it is taken to have.

    Args:
        seen: float64 [N, 3], rotation vectors that others measured.
        read: float64 [N, 3], those of the gyro, the bias that fits best taken out.

    Returns:
        The angle, radians, and which share of their difference is left when it is turned back. A bias fitted to the wrong axes
        takes up the mean of the turns, so that only their changes tell.
    """
    seen, read = seen - seen.mean(0), read - read.mean(0)
    u, _, v = np.linalg.svd(seen.T @ read)
    mount = u @ np.diag((1.0, 1.0, np.linalg.det(u @ v))) @ v
    left, before = (float(np.linalg.norm(seen - read @ turn.T)) for turn in (mount, np.eye(3)))
    return float(se3.rotation_angle(torch.from_numpy(mount))), left / max(before, 1e-12)


def _running_products(steps: np.ndarray) -> np.ndarray:
    """Of rotations [N, 3, 3], from the first on; by rows of a square, so that the loops are short."""
    side = int(np.ceil(np.sqrt(max(len(steps), 1))))
    square = np.tile(np.eye(3), (side * side, 1, 1))
    square[: len(steps)] = steps
    square = square.reshape(side, side, 3, 3)
    for column in range(1, side):
        square[:, column] = square[:, column - 1] @ square[:, column]
    for row in range(1, side):
        square[row] = square[row - 1, -1] @ square[row]
    return square.reshape(-1, 3, 3)[: len(steps)]

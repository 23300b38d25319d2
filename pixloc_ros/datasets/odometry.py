# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Odometry for drives of public data sets: as recorded, or made from the ground truth with stated errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..io.frames import Odometry
from ..io.trajectory import Trajectory, twist_of_poses


@dataclass(frozen=True)
class OdometryErrors:
    """What is wrong with the wheels.

    Attributes:
        scale: Distance read per distance driven.
        yaw_scale: Turning read per turning.
        yaw_per_metre: Turning read where there is none (rad/m).
        noise: Standard deviation of distance and turning read, per square root of a metre and of a radian.
        slips_per_minute: Bursts during which the wheels spin.
        slip: They read up to this share too much of the way.
        slip_yaw: They turn falsely by up to this (rad/m).
    """

    scale: float = 1.02
    yaw_scale: float = 0.985
    yaw_per_metre: float = 0.006
    noise: float = 0.01
    slips_per_minute: float = 12.0
    slip: float = 0.5
    slip_yaw: float = 0.25


SIMULATED_TOPIC = "/odom_simulated"
ERRORS = OdometryErrors(slips_per_minute=0.0)
"""Those of the simulation's wheels without their slips, in all directions."""
_RATE_HZ = 50.0
_PER_METRE, _PER_RADIAN = 0.04, 0.03
_FLOOR = 1e-4


def errors_in_words(errors: OdometryErrors = ERRORS) -> str:
    """What is wrong with odometry made by `odometry_from_truth`."""
    return (
        f"lengths times {errors.scale:g}, turning times {errors.yaw_scale:g}, {errors.yaw_per_metre:g} rad of false turning "
        f"about the base's z axis per metre, and noise of {errors.noise:g} (m and rad, per axis) times the square root of "
        "the metres and radians of each step"
    )


def odometry_from_truth(truth: Trajectory, first_ns: int, last_ns: int, seed: int, errors: OdometryErrors = ERRORS) -> Odometry:
    """Dead reckoning with the errors given, 50 Hz, over the part of the truth between two stamps; from the identity.

    Six axes, each step being wrong in the base's own. The same seed gives the same numbers. Raises InputError where the truth
    has fewer than two poses there.
    """
    first, last = (int(np.clip(stamp, truth.stamps_ns[0], truth.stamps_ns[-1])) for stamp in (first_ns, last_ns))
    stamps = np.arange(first, last + 1, round(1e9 / _RATE_HZ), dtype=np.int64)
    if len(stamps) < 2:
        raise InputError("the ground truth is too short to make odometry of: fewer than two poses")
    true = truth.at(stamps, np.iinfo(np.int64).max)[0]
    step = se3.se3_log(se3.inverse(true[:-1]) @ true[1:]).numpy()
    length, turn = (np.linalg.norm(step[:, part], axis=1, keepdims=True) for part in (slice(3), slice(3, 6)))
    rng = np.random.default_rng([seed, 29])
    read = step * np.repeat([errors.scale, errors.yaw_scale], 3)
    read += errors.noise * rng.normal(size=read.shape) * np.sqrt(np.repeat(np.hstack((length, turn)), 3, axis=1))
    read[:, 5] += errors.yaw_per_metre * length[:, 0]
    odom_from_base = [torch.eye(4, dtype=torch.float64)]
    for motion in se3.se3_exp(torch.from_numpy(read)):
        odom_from_base.append(odom_from_base[-1] @ motion)
    return with_covariances(stamps, torch.stack(odom_from_base))


def with_covariances(stamps_ns: np.ndarray, odom_from_base: torch.Tensor, twist: np.ndarray | None = None) -> Odometry:
    """Odometry that comes without covariances: those of the velocity are 4 % of it (and 0.03 rad for every metre), those of the
    pose grow with the way.

    Args:
        stamps_ns: int64 [N].
        odom_from_base: float64 [N, 4, 4].
        twist: Velocities as recorded, float64 [N, 6] in base axes. Where there are none, or all are zero, as drivers write that
            do not measure them, the poses give them.
    """
    if twist is None or not twist.any():
        twist = twist_of_poses(stamps_ns, odom_from_base)
    step, _ = se3.pose_difference(odom_from_base[:-1], odom_from_base[1:])
    way = np.concatenate(([0.0], np.cumsum(step.numpy())))
    variances = np.stack([_FLOOR + (_PER_METRE * way) ** 2] * 3 + [_FLOOR + (_PER_RADIAN * way) ** 2] * 3, 1)
    speed = np.linalg.norm(twist[:, :3], axis=1, keepdims=True)
    spread = _FLOOR + (_PER_METRE * twist) ** 2
    spread[:, 3:] += (_PER_RADIAN * speed) ** 2
    return Odometry(stamps_ns, odom_from_base, variances[:, :, None] * np.eye(6), twist, spread[:, :, None] * np.eye(6))


def between(odometry: Odometry, first_ns: int, last_ns: int) -> Odometry:
    """The part between two stamps. Raises InputError where there is none."""
    here = (odometry.stamps_ns >= first_ns) & (odometry.stamps_ns <= last_ns)
    if not here.any():
        raise InputError("the odometry does not cover the images: they use different clocks")
    return Odometry(*(values[here] for values in vars(odometry).values()))

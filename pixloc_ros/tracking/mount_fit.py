# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The turn of a mount that makes what camera and odometry say of the robot's motions agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..geometry import se3

FEW_PAIRS = 8
"""So many motions are few."""
_LEAST_ERROR, _LEAST_ERROR_FEW = math.radians(5), math.radians(9)
"""A smaller turn of the mount is not spoken of, with many and with few motions,"""
_LEAST_SUSPICIOUS = math.radians(10)
"""and this much is waited for."""
_EVIDENCE, _EVIDENCE_FEW, _SUSPICION, _DOUBT = 20.0, 30.0, 9.0, 2.0
"""By how much the turn must lower the cost, in squared standard deviations: to be sure, with many and few motions, to wait
for more or remark on it, and to look more often. Right mounts lower it by less than 2 on the validation drives."""
_VERIFIED_STD = math.radians(6)
"""A mount known as well as this by motion needs no other proof."""
OUTLIER = 3.0
_LEVER_STD, _SCALE_STD = 0.2, 0.2
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Motion:
    """Translation of the camera's centre and rotation vector [3], as seen and by odometry, and their standard deviations."""

    seen_way: np.ndarray
    way: np.ndarray
    seen_turn: np.ndarray
    turn: np.ndarray
    rotation: np.ndarray
    way_std: float
    turn_std: float


@dataclass(frozen=True, eq=False)
class MountFit:
    """turn: The rotation [3, 3] of the mount that fits best; std: of it, about each axis, [3]; gain: by how much it lowers the
    cost; count: motions."""

    turn: np.ndarray
    std: np.ndarray
    gain: float
    count: int

    @cached_property
    def angle(self) -> float:
        return float(np.linalg.norm(log(self.turn)))

    @cached_property
    def right(self) -> bool:
        return float(self.std.max()) < _VERIFIED_STD and self.angle < _LEAST_ERROR

    @cached_property
    def wrong(self) -> bool:
        many = self.count >= FEW_PAIRS
        least, evidence = (_LEAST_ERROR, _EVIDENCE) if many else (_LEAST_ERROR_FEW, _EVIDENCE_FEW)
        return self.angle > least and self.gain > evidence

    @property
    def odd(self) -> bool:
        """Worth a remark."""
        return self.count >= FEW_PAIRS and self.angle > _LEAST_ERROR and self.gain > _SUSPICION

    @property
    def doubtful(self) -> bool:
        """Worth another look soon."""
        return self.gain > _DOUBT

    @cached_property
    def suspicious(self) -> bool:
        return self.angle > _LEAST_SUSPICIOUS and self.gain > _SUSPICION


def fit_mount(motions: Sequence[Motion]) -> MountFit:
    """The rotation of the mount that makes camera and odometry agree: seen = turn · odometry, where lever arms and the
    odometry's scale may be a little wrong, too."""
    ways, turns = np.array([m.way for m in motions]), np.array([m.turn for m in motions])
    seen_ways, seen_turns = np.array([m.seen_way for m in motions]), np.array([m.seen_turn for m in motions])
    levers = np.array([m.rotation for m in motions]) - np.eye(3)
    way_std = np.array([m.way_std for m in motions])[:, None]
    turn_std = np.array([m.turn_std for m in motions])[:, None]

    def solved(turn: np.ndarray, free: bool) -> tuple[np.ndarray, np.ndarray, float]:
        lever, scale, weights = np.zeros(3), 0.0, np.ones(len(motions))
        for round_ in range(_ROUNDS + 1):
            way = (ways * (1 + scale) + levers @ lever) @ turn.T
            turned = turns @ turn.T
            residuals = np.hstack(((seen_ways - way) / way_std, (seen_turns - turned) / turn_std))
            squares = (residuals**2).sum(1) / OUTLIER**2
            weights = 1 / (1 + squares)
            cost = OUTLIER**2 * float(np.log1p(squares).sum()) + float((lever / _LEVER_STD) @ (lever / _LEVER_STD))
            cost += (scale / _SCALE_STD) ** 2
            # Columns: a turn about each axis, the lever, the scale.
            upper = np.concatenate((-_cross(way), turn @ levers, (ways @ turn.T)[..., None]), 2) / way_std[..., None]
            lower = np.concatenate((-_cross(turned), np.zeros((len(motions), 3, 4))), 2) / turn_std[..., None]
            jacobian = np.concatenate((upper, lower), 1)
            prior = np.array([1e-2] * 3 + [_LEVER_STD**-2] * 3 + [_SCALE_STD**-2])
            weighted = weights[:, None, None] * jacobian
            hessian = np.einsum("nij,nik->jk", weighted, jacobian) + np.diag(prior)
            if round_ == _ROUNDS:
                break
            gradient = np.einsum("nij,ni->j", weighted, residuals) - prior * np.array([0.0] * 3 + [*lever, scale])
            active = slice(0 if free else 3, 7)
            step = np.zeros(7)
            step[active] = np.linalg.solve(hessian[active, active], gradient[active])
            turn = exp(step[:3]) @ turn
            lever, scale = lever + step[3:6], scale + step[6]
        return turn, np.sqrt(np.linalg.inv(hessian).diagonal()[:3]), cost

    # Where vectors turn to, at once for any angle; a little of the identity decides what they leave open.
    moment = (seen_ways / way_std**2).T @ ways + (seen_turns / turn_std**2).T @ turns + 1e-3 * np.eye(3)
    left, _, right = np.linalg.svd(moment)
    start = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    begins = (start, np.eye(3)) if np.trace(start) < 2.7 else (np.eye(3),)
    turn, std, cost = min((solved(begin, True) for begin in begins), key=lambda found: found[2])
    return MountFit(turn, std, solved(np.eye(3), False)[2] - cost, len(motions))


def log(rotation: np.ndarray) -> np.ndarray:
    """Rotation vector [3] of a rotation [3, 3]."""
    return se3.so3_log(torch.from_numpy(np.ascontiguousarray(rotation))).numpy()


def exp(vector: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of a rotation vector [3]."""
    return se3.so3_exp(torch.from_numpy(np.ascontiguousarray(vector))).numpy()


def _cross(vectors: np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 3] of cross products with vectors [N, 3]."""
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    return np.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3)

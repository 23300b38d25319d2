# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which way is up, as an accelerometer reads it: a check of poses that are found, and a hold on roll and pitch.

Up in the map is learned from poses that images surely showed: the map need not be level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import se3
from .types import MotionPrior

STANDARD_GRAVITY = 9.80665


@dataclass(frozen=True)
class GravityOptions:
    """What is believed of an accelerometer.

    Attributes:
        settle_s: Time over which it is averaged, turned along by the gyro: a robot's own accelerations pass.
        most_g: A reading further from 1 g tells nothing, m/s².
        max_gap_s: After a longer hole the average begins anew.
        least_std: Of up, rad, however well it fits.
        usual_std: Of up, rad, before anything is known.
        least_poses: Before up is known in the map.
        forget: Share of what was learned that each pose replaces, at least.
        most_std: A scatter against the poses beyond this, rad, says that it does not read gravity.
        least_wrong: A pose tilted by less, rad, contradicts nothing.
    """

    settle_s: float = 1.5
    most_g: float = 2.0
    max_gap_s: float = 0.2
    least_std: float = math.radians(1.0)
    usual_std: float = math.radians(3.0)
    least_poses: int = 20
    forget: float = 0.01
    most_std: float = math.radians(8.0)
    least_wrong: float = math.radians(15.0)


class Gravity:
    """An accelerometer on the base.

    Attributes:
        problem: What is wrong with it and what to do; empty: nothing that is known.
    """

    def __init__(self, options: GravityOptions | None = None) -> None:
        self.options = options or GravityOptions()
        self.problem = ""
        self._up: np.ndarray | None = None
        self._stamp_ns, self._settled_s = 0, 0.0
        self._map_up, self._variance, self._poses = np.zeros(3), self.options.usual_std**2, 0

    def add(self, stamp_ns: int, force: np.ndarray, rate: np.ndarray) -> None:
        """A reading: float64 [3] m/s² and rad/s of the base, in its axes. At rest the force points up. Late ones, and what is no
        number, are left out."""
        if not (np.isfinite(force).all() and np.isfinite(rate).all()):
            return
        seconds = (stamp_ns - self._stamp_ns) * 1e-9
        if -1.0 <= seconds <= 0:
            return
        self._stamp_ns, strength = stamp_ns, float(np.linalg.norm(force))
        usable = abs(strength - STANDARD_GRAVITY) <= self.options.most_g
        if self._up is None or not 0 < seconds <= self.options.max_gap_s:
            self._up, self._settled_s = (force / strength if usable else None), 0.0
            return
        # What stands still in the world turns back in the body.
        up = self._up - seconds * np.cross(rate, self._up)
        if usable:
            self._settled_s += seconds
            gain = max(seconds / self.options.settle_s, seconds / (self._settled_s + seconds))
            up = up + min(gain, 1.0) * (force / strength - up)
        self._up = up / np.linalg.norm(up)

    def up(self, stamp_ns: int) -> np.ndarray | None:
        """Up in the base's axes, float64 [3], unit; None where it is not known at about that time."""
        near = abs(stamp_ns - self._stamp_ns) * 1e-9 <= self.options.max_gap_s
        return self._up if near and self._settled_s >= 0.3 * self.options.settle_s else None

    @property
    def map_up(self) -> np.ndarray | None:
        """Up in the map, float64 [3], unit; None before it is known, and where the readings contradict the poses."""
        known = self._poses >= self.options.least_poses and self._variance <= self.options.most_std**2
        return self._map_up / np.linalg.norm(self._map_up) if known else None

    @property
    def std(self) -> float:
        """Of a reading against the poses, rad."""
        return math.sqrt(max(self._variance, self.options.least_std**2))

    def learn(self, stamp_ns: int, map_from_base: torch.Tensor) -> None:
        """A pose that an image surely showed."""
        up = self.up(stamp_ns)
        if up is None:
            return
        self._poses += 1
        share, shown = max(1.0 / self._poses, self.options.forget), map_from_base[:3, :3].numpy() @ up
        if self._poses > 1:
            off = angle_between(shown, self._map_up)
            self._variance += share * (off**2 - self._variance)
        self._map_up = self._map_up + share * (shown - self._map_up)
        wrong = self._poses >= self.options.least_poses and self._variance > self.options.most_std**2
        said = "the accelerometer's up turns with the robot: check the IMU's transform, and that it reads m/s² with gravity"
        self.problem = said if wrong else ""

    def against(self, stamp_ns: int, map_from_base: torch.Tensor) -> str:
        """Why a pose contradicts what is read, in words; empty: it does not."""
        up, map_up = self.up(stamp_ns), self.map_up
        if up is None or map_up is None:
            return ""
        off = angle_between(map_from_base[:3, :3].numpy() @ up, map_up)
        wrong = off > max(self.options.least_wrong, 4 * self.std)
        return f"a pose was found that is tilted by {math.degrees(off):.0f}° against gravity" if wrong else ""

    def upright(self, prior: MotionPrior, stamp_ns: int) -> MotionPrior:
        """The prior with roll and pitch held by the reading, where that knows them better (a Kalman update)."""
        up, map_up, variance = self.up(stamp_ns), self.map_up, self.std**2
        if up is None or map_up is None or float(prior.covariance.diagonal()[3:].max()) < variance:
            return prior
        expected = prior.map_from_base[:3, :3].numpy().T @ map_up
        # true = prior · exp(e): up in its axes is expected + expected x e
        slope = np.zeros((3, 6))
        slope[:, 3:] = np.cross(expected, np.eye(3)).T

        def updated(covariance: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
            known = covariance.numpy()
            gain = known @ slope.T @ np.linalg.inv(slope @ known @ slope.T + variance * np.eye(3))
            rest = np.eye(6) - gain @ slope
            return gain, torch.from_numpy(rest @ known @ rest.T + variance * gain @ gain.T)

        gain, covariance = updated(prior.covariance)
        step = torch.from_numpy(gain @ (up - expected))
        pose = prior.map_from_base @ se3.se3_exp(step)
        motion = None if prior.motion is None else prior.motion @ se3.se3_exp(step)
        published = updated(prior.published)[1]
        return replace(prior, map_from_base=pose, covariance=covariance, published=published, motion=motion)


def angle_between(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors [3], rad."""
    return math.atan2(float(np.linalg.norm(np.cross(one, other))), float(one @ other))

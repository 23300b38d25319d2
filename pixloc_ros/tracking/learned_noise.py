# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far the odometry can be trusted, and how long its metre is, learned from what the camera sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..geometry import se3
from .covariances import mahalanobis
from .motion_prior import KnownPose, MotionOptions, predict
from .odometry import OdometryBuffer, OdometryUnavailable

_LEAST_WAY_M = 1e-6
_CHANGE_SHARE = 0.1
"""Of what the velocity changed by from step to step, that each one replaces."""


@dataclass(frozen=True)
class LearnedNoiseOptions:
    """How fast trust is lost and won back.

    Attributes:
        surprise: Squared distance, in three degrees of freedom, beyond which an image's motion surprises (6.25: one in ten honest
            ones does).
        rise: What the standard deviations' factor is multiplied by with an image that surprises.
        fall: The same with one that does not: where one in eight does, the factor stays.
        least: The smallest factor. `OdometryNoise` is for any wheels; most are better.
        most: The largest.
        smooth: Distance, in six degrees of freedom, from where the velocity of the last two images led, within which an image
            tells anything: where images scatter, they are wrong, not the odometry.
        way_std: Standard deviation of what the odometry's way is multiplied by, before anything is known. Wheels are worn, tyres
            soft: their error is the same all the time.
        way_drift: By how much that changes per square root of a metre.
        most_way: The largest factor, and one over the smallest; beyond, wheels or map are wrong (`OdometryCheck` warns).
        most_noise: Standard deviation of the odometry's noise, as a share of the way, up to which a motion tells its scale.
    """

    surprise: float = 6.25
    rise: float = 1.19
    fall: float = 0.975
    least: float = 0.3
    most: float = 10.0
    smooth: float = 3.5
    way_std: float = 0.05
    way_drift: float = 0.002
    most_way: float = 1.2
    most_noise: float = 0.2


class LearnedNoise:
    """Compares the motion between two images with the odometry's, and sets `OdometryBuffer.noise_factors` (1: the odometry is as
    good as it is taken for; translation and rotation each have their own) and `OdometryBuffer.way_factor`."""

    def __init__(self, odometry: OdometryBuffer, motion: MotionOptions, options: LearnedNoiseOptions | None = None) -> None:
        self.options = options or LearnedNoiseOptions()
        self._odometry, self._motion = odometry, motion
        self._variance, self._changes = self.options.way_std**2, None
        self.interrupt()

    def interrupt(self) -> None:
        """The next pose has nothing to do with the last."""
        self._before: KnownPose | None = None
        self._last: KnownPose | None = None

    def add(self, pose: KnownPose) -> None:
        """A pose that an image surely showed, with what it claims to know and the odometry at its time."""
        before, last = self._before, self._last
        self._before, self._last = last, pose
        if before is None:
            return
        expected = predict(last, before, pose.stamp_ns, None, self._odometry, self._motion)
        if expected.source != "constant velocity":
            return
        self._learn_velocity(last, expected.map_from_base, pose)
        away = mahalanobis(expected.map_from_base, expected.covariance, pose.map_from_base, pose.covariance)
        if away > self.options.smooth:
            return
        if None in (last.odometry, pose.odometry) or last.odometry.extrapolated_s or pose.odometry.extrapolated_s:
            return
        try:
            motion, noise = self._odometry.motion_between(last.odometry, pose.odometry)
        except OdometryUnavailable:
            return
        error = se3.se3_log(se3.inverse(last.map_from_base @ motion) @ pose.map_from_base).numpy()
        images = (se3.transform_covariance(last.covariance, se3.inverse(motion)) + pose.covariance).numpy()
        surprised = self._learn_factors(error, images, noise.numpy())
        if not surprised:
            self._learn_way(motion[:3, 3].numpy(), error[:3], images[:3, :3], noise.numpy()[:3, :3])

    def _learn_velocity(self, last: KnownPose, expected: torch.Tensor, pose: KnownPose) -> None:
        """From a pose and where its predecessors' velocity let it be expected, map_from_base [4, 4]."""
        off = se3.se3_log(se3.inverse(expected) @ pose.map_from_base).numpy() / ((pose.stamp_ns - last.stamp_ns) * 1e-9)
        changes = np.array((off[:3] @ off[:3], off[3:] @ off[3:])) / 3
        self._changes = changes if self._changes is None else self._changes + _CHANGE_SHARE * (changes - self._changes)

    def velocity(self, stamp_ns: int) -> tuple[torch.Tensor, np.ndarray] | None:
        """float64 [6] (translation, rotation) a second in base axes between the last two images, and how far it may be off at a
        time soon after: variances [2] of each axis. None where too little is known."""
        before, last = self._before, self._last
        if before is None or self._changes is None or not 0 <= (stamp_ns - last.stamp_ns) * 1e-9 <= self._motion.max_velocity_s:
            return None
        step_s = (last.stamp_ns - before.stamp_ns) * 1e-9
        if not 0 < step_s <= self._motion.max_velocity_s:
            return None
        # `_changes` is of one step after the other; from the middle of the last step to that time it is as many.
        steps = 0.5 + (stamp_ns - last.stamp_ns) * 1e-9 / step_s
        return se3.se3_log(se3.inverse(before.map_from_base) @ last.map_from_base) / step_s, steps**2 * self._changes

    def _learn_factors(self, error: np.ndarray, images: np.ndarray, noise: np.ndarray) -> bool:
        """From a motion's error [6] and covariances [6, 6] of images and odometry; whether the translation surprises."""
        factors, surprises, options = [], [], self.options
        for part, factor in zip((slice(0, 3), slice(3, 6)), self._odometry.noise_factors):
            surprises.append(error[part] @ np.linalg.solve((images + noise)[part, part], error[part]) > options.surprise)
            # Images less exact than the odometry do not tell that it is better than usual.
            tells = surprises[-1] or factor > 1 or np.trace(noise[part, part]) > np.trace(images[part, part])
            change = (options.rise if surprises[-1] else options.fall) if tells else 1.0
            factors.append(min(max(factor * change, options.least), options.most))
        self._odometry.noise_factors = tuple(factors)
        return surprises[0]

    def _learn_way(self, translation: np.ndarray, error: np.ndarray, images: np.ndarray, noise: np.ndarray) -> None:
        """A Kalman filter of one number, from a motion's translation [3] as the odometry has it, its error, and covariances."""
        way, options = float(np.linalg.norm(translation)), self.options
        if way < _LEAST_WAY_M:
            return
        along = translation / way
        scatter = along @ noise @ along
        if scatter > (options.most_noise * way) ** 2:
            return  # a way that is mostly noise looks too long
        self._variance = min(self._variance + options.way_drift**2 * way, options.way_std**2)
        gain = self._variance / (self._variance + (scatter + along @ images @ along) / way**2)
        factor = self._odometry.way_factor * (1 + gain * float(along @ error) / way)
        self._odometry.way_factor = min(max(factor, 1 / options.most_way), options.most_way)
        self._variance *= 1 - gain

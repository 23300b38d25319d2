# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far the odometry can be trusted, learned from what the camera sees: factors on the variances of `OdometryNoise`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry import se3
from .covariances import mahalanobis
from .motion_prior import KnownPose, MotionOptions, predict
from .odometry import OdometryBuffer, OdometryUnavailable


@dataclass(frozen=True)
class LearnedNoiseOptions:
    """How fast trust is lost and won back.

    Attributes:
        surprise: Squared distance, in three degrees of freedom, beyond which an image's motion surprises (6.25: one in ten honest
            ones does).
        rise: What the standard deviations' factor is multiplied by with an image that surprises.
        fall: The same with one that does not: where one in eight does, the factor stays.
        most: The largest factor.
        smooth: Distance, in six degrees of freedom, from where the velocity of the last two images led, within which an image
            tells anything: where images scatter, they are wrong, not the odometry.
    """

    surprise: float = 6.25
    rise: float = 1.19
    fall: float = 0.975
    most: float = 10.0
    smooth: float = 3.5


class LearnedNoise:
    """Compares the motion between two images with the odometry's, and sets `OdometryBuffer.noise_factors`: 1 as long as the
    odometry is as good as it is taken for, never less. Translation and rotation each have their own factor."""

    def __init__(self, odometry: OdometryBuffer, motion: MotionOptions, options: LearnedNoiseOptions | None = None) -> None:
        self.options = options or LearnedNoiseOptions()
        self._odometry, self._motion = odometry, motion
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
        covariance = se3.transform_covariance(last.covariance, se3.inverse(motion)) + noise + pose.covariance
        factors = []
        for part, factor in zip((slice(0, 3), slice(3, 6)), self._odometry.noise_factors):
            distance2 = error[part] @ np.linalg.solve(covariance.numpy()[part, part], error[part])
            change = self.options.rise if distance2 > self.options.surprise else self.options.fall
            factors.append(min(max(factor * change, 1.0), self.options.most))
        self._odometry.noise_factors = tuple(factors)

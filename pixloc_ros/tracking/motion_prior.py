# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Where the robot should be at the time of an image: from odometry, else from its last velocity, else where it was; turned as a
gyro says where that knows it better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import se3
from .covariances import isotropic
from .odometry import OdometryBuffer, OdometrySample, OdometryUnavailable
from .types import MotionPrior

Turn = Callable[[int, int], tuple[torch.Tensor, torch.Tensor] | None]
"""Called with two times, gives the rotation of the base [3, 3] and its covariance [3, 3] where they are known (`Gyro.turn`)."""


@dataclass(frozen=True)
class MotionOptions:
    """What is believed of a robot without odometry.

    Attributes:
        acceleration: Standard deviation of a change of velocity, m/s².
        angular_acceleration: The same for turning, rad/s².
        speed: Standard deviation of an unknown velocity, m/s.
        turn_rate: The same for turning, rad/s.
        max_velocity_s: A velocity measured longer ago, or over a longer step, says nothing; the robot is not moved for longer
            than this by it.
    """

    acceleration: float = 3.0
    angular_acceleration: float = 6.0
    speed: float = 1.0
    turn_rate: float = 1.0
    max_velocity_s: float = 0.5


@dataclass(frozen=True)
class KnownPose:
    """A pose the prediction can start from.

    Attributes:
        stamp_ns: When.
        map_from_base: float64 [4, 4].
        covariance: float64 [6, 6], base frame, body perturbation.
        odometry: At the same time, where there is any.
        published: The covariance that others get; the same if it is not given.
        depth: Of what the camera saw, m.
        shared: The part of the covariance that the pose before has as well; None for none.
    """

    stamp_ns: int
    map_from_base: torch.Tensor
    covariance: torch.Tensor
    odometry: OdometrySample | None = None
    published: torch.Tensor | None = None
    depth: float = float("inf")
    shared: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.published is None:
            object.__setattr__(self, "published", self.covariance)

    @property
    def own(self) -> torch.Tensor:
        """The part of the covariance that is the pose's own."""
        return self.covariance if self.shared is None else self.covariance - self.shared

    def refocused(self, change: float) -> KnownPose:
        """The pose as far as it is known when the focal length turns out to differ by a share: it was found with the other, and
        is off by so much of the depth."""
        if not math.isfinite(self.depth):
            return self
        shift = isotropic(change * self.depth, change)
        return replace(self, covariance=self.covariance + shift, published=self.published + shift)


def predict(
    known: KnownPose,
    before: KnownPose | None,
    stamp_ns: int,
    odometry: OdometrySample | None,
    buffer: OdometryBuffer,
    options: MotionOptions,
    turn: Turn | None = None,
) -> MotionPrior:
    """Prior of the pose at a time.

    Args:
        known: The last pose.
        before: The one before it, for the velocity.
        stamp_ns: The time.
        odometry: At that time, None where there is none.
        buffer: Where it comes from.
        options: What is believed without it.
        turn: Of a gyro.
    """
    turned = turn(known.stamp_ns, stamp_ns) if turn is not None else None
    seconds = (stamp_ns - known.stamp_ns) * 1e-9
    if odometry is not None and known.odometry is not None:
        try:
            motion, noise = buffer.motion_between(known.odometry, odometry)
        except OdometryUnavailable:
            pass
        else:
            return _moved(known, *_turned(motion, noise, turned), "odometry", seconds)
    if before is not None and seconds > 0:
        step_s = (known.stamp_ns - before.stamp_ns) * 1e-9
        if 0 < step_s <= options.max_velocity_s and seconds <= options.max_velocity_s:
            ratio = seconds / step_s
            step = se3.se3_log(se3.inverse(before.map_from_base) @ known.map_from_base)
            # The velocity is that of the middle of the step: it had from there to the end of the guess to change.
            change = 0.5 * seconds * (step_s + seconds)
            noise = isotropic(options.acceleration * change, options.angular_acceleration * change)
            motion = se3.se3_exp(ratio * step)
            # The velocity is no better than the two poses it was measured between. With errors e of the last pose and b of the
            # one before, the step is wrong by e - Ad(step⁻¹) b and the motion by `ratio` times that. `_moved` adds the variance
            # of the last pose itself; as its error is the same e, their covariance counts, too.
            earlier = se3.transform_covariance(before.own, se3.inverse(se3.se3_exp(step)))
            shared = ratio * se3.adjoint(se3.inverse(motion)) @ known.own
            noise = noise + ratio**2 * (known.own + earlier) + shared + shared.mT
            return _moved(known, *_turned(motion, noise, turned), "constant velocity", seconds)
    noise = isotropic(options.speed * abs(seconds), options.turn_rate * abs(seconds))
    return _moved(known, *_turned(torch.eye(4, dtype=torch.float64), noise, turned), "static", seconds)


def motion_near(
    stamp_ns: int,
    prior: MotionPrior | None,
    odometry: OdometrySample | None,
    other_ns: int,
    other: OdometrySample | None,
    buffer: OdometryBuffer,
    options: MotionOptions,
    turn: Turn | None = None,
    velocity: tuple[torch.Tensor, np.ndarray] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Motion [4, 4] of the base from the time of an image to a time shortly before or after, and its covariance [6, 6] (body
    perturbation of the motion).

    Args:
        stamp_ns: Of the image.
        prior: Of its pose: what the robot moved by lately.
        odometry: At that time.
        other_ns: The other time.
        other: Odometry then.
        buffer: As of `predict`, and so on.
        velocity: Of the images, as of `LearnedNoise.velocity`, used where it claims to be better.
    """
    start, end = sorted(((stamp_ns, odometry), (other_ns, other)), key=lambda one: one[0])
    still, nothing, before = torch.eye(4, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64), None
    if prior is not None and prior.motion is not None and prior.age_s > 0:
        earlier_ns = start[0] - round(prior.age_s * 1e9)
        before = KnownPose(earlier_ns, se3.inverse(prior.motion), prior.covariance)
    here = KnownPose(start[0], still, nothing, start[1])
    moved, seconds = predict(here, before, *end, buffer, options), (end[0] - start[0]) * 1e-9
    noise = moved.covariance.clone()
    if moved.source == "odometry" and prior is not None and prior.age_s > seconds > 0:
        # The noise is that of a step from image to image. The body's shaking, which wheels do not tell, is in it, and does not
        # get less in proportion to the time.
        noise[3:, 3:] *= prior.age_s / seconds
    step = se3.se3_log(moved.map_from_base).clone()
    for part, k in ((slice(0, 3), 0), (slice(3, 6), 1)):
        if velocity is not None and 3 * velocity[1][k] * seconds**2 < float(noise[part, part].trace()):
            step[part] = velocity[0][part] * seconds
            noise[part, :], noise[:, part] = 0.0, 0.0
            noise[part, part] = float(velocity[1][k]) * seconds**2 * torch.eye(3, dtype=torch.float64)
    motion, noise = _turned(se3.se3_exp(step), noise, turn(start[0], end[0]) if turn is not None else None)
    if start[0] == stamp_ns:
        return motion, noise
    return se3.inverse(motion), se3.transform_covariance(noise, motion)


def _turned(
    motion: torch.Tensor, noise: torch.Tensor, turned: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A motion of the base and its covariance, with the gyro's rotation where that is known better; the way is bent with it."""
    if turned is None or float(turned[1].trace()) >= float(noise[3:, 3:].trace()):
        return motion, noise
    step, better = se3.se3_log(motion).clone(), torch.zeros_like(noise)
    step[3:] = se3.so3_log(turned[0])
    better[:3, :3], better[3:, 3:] = noise[:3, :3], turned[1]
    return se3.se3_exp(step), better


def _moved(known: KnownPose, motion: torch.Tensor, noise: torch.Tensor, source: str, seconds: float) -> MotionPrior:
    # known · exp(e) · motion · exp(n) = known · motion · exp(Ad(motion⁻¹) e) · exp(n)
    back = se3.inverse(motion)
    covariance = se3.transform_covariance(known.covariance, back) + noise
    published = se3.transform_covariance(known.published, back) + noise
    return MotionPrior(known.map_from_base @ motion, covariance, source, seconds, motion, published=published)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Odometry kept for a while, so that the robot's motion up to an image's time stamp can be asked for."""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .covariances import from_variances
from .odometry_twist import TwistCheck

# A reported velocity variance above this ((10 m/s)² or (10 rad/s)²) is a driver's way of saying "not measured".
_PLACEHOLDER_VARIANCE = 100.0
_VELOCITY_S = 0.1
"""A velocity is taken from the poses of this time: stamps jitter."""


@dataclass(frozen=True)
class OdometryNoise:
    """Standard deviations that grow with the motion (in the spirit of AMCL's alpha parameters). They add as variances.

    Errors of wheels are systematic (radius, slip), so they grow in proportion to the path, not with its square root.
    """

    translation_per_metre: float = 0.05
    translation_per_radian: float = 0.02
    translation_per_second: float = 0.01
    rotation_per_radian: float = 0.05
    rotation_per_metre: float = 0.01
    rotation_per_second: float = 0.005
    acceleration: float = 3.0
    """m/s² the robot may change its velocity by while odometry is extrapolated."""
    angular_acceleration: float = 6.0
    """rad/s², the same for turning."""

    def variances(self, distance: float, turn: float, seconds: float, guess2: float = 0.0) -> np.ndarray:
        """Variances float64 [6], base axes, of a motion.

        Args:
            distance: Length of the path, m.
            turn: Turning along it, rad.
            seconds: The time it took.
            guess2: Of the part of that time that was extrapolated: half its square, squared (s⁴).
        """
        rotation = (
            (self.rotation_per_radian * turn) ** 2
            + (self.rotation_per_metre * distance) ** 2
            + (self.rotation_per_second * seconds) ** 2
            + self.angular_acceleration**2 * guess2
        )
        translation = (
            (self.translation_per_metre * distance) ** 2
            + (self.translation_per_radian * turn) ** 2
            + (self.translation_per_second * seconds) ** 2
            + self.acceleration**2 * guess2
            + 0.25 * rotation * distance**2  # the heading was wrong, on average by half, all along the path
        )
        return np.array([translation] * 3 + [rotation] * 3)


@dataclass(frozen=True)
class OdometryOptions:
    """How odometry is kept.

    Attributes:
        window_s: How long samples are kept.
        max_extrapolation_s: How far beyond the newest sample a pose is guessed with constant velocity.
        max_gap_s: The widest hole between samples that is bridged.
        jump_back_s: Stamps older than the newest by more are a jump of the clock (a bag played again), by less late messages.
        max_speed: m/s; faster steps mean that the odometry was reset.
        max_turn_rate: rad/s; the same for turning.
        noise: How far it errs.
    """

    window_s: float = 10.0
    max_extrapolation_s: float = 0.1
    max_gap_s: float = 0.5
    jump_back_s: float = 1.0
    max_speed: float = 60.0
    max_turn_rate: float = 30.0
    noise: OdometryNoise = field(default_factory=OdometryNoise)


@dataclass(frozen=True)
class OdometrySample:
    """Odometry at one time.

    Attributes:
        stamp_ns: The time.
        odom_from_base: float64 [4, 4].
        distance_m: Path since the buffer began.
        turn_rad: Turning since the buffer began.
        twist_variance: Reported variance of the velocity, float64 [6] (base frame; 0 where unknown).
        epoch: Samples of different epochs (before and after a reset) have nothing in common.
        extrapolated_s: How much of it is a guess.
    """

    stamp_ns: int
    odom_from_base: torch.Tensor
    distance_m: float
    turn_rad: float
    twist_variance: torch.Tensor
    epoch: int
    extrapolated_s: float = 0.0


@dataclass(frozen=True)
class OdometryReport:
    """What `OdometryBuffer.add` did with a sample: accepted or not, and whether what was kept before is gone."""

    accepted: bool
    reset: bool = False
    message: str = ""


class OdometryUnavailable(LookupError):
    """No odometry for the time asked for; the message says why."""


class OdometryBuffer:
    """Time-ordered odometry of one robot. Safe to fill from one thread and read from another.

    Attributes:
        options: How it is kept.
        noise_factors: On the standard deviations of translation and rotation that the noise has; `LearnedNoise` sets them.
        way_factor: On the translation of motions; `LearnedNoise` sets it, too.
        twist_check: Whether the twists fit the poses.
    """

    def __init__(self, options: OdometryOptions | None = None) -> None:
        self.options = options or OdometryOptions()
        self.way_factor = 1.0
        self.noise_factors = (1.0, 1.0)
        self.twist_check = TwistCheck()
        self._samples: list[OdometrySample] = []
        self._epoch = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def newest_stamp_ns(self) -> int | None:
        """Stamp of the newest sample; None while there is none."""
        samples = self._samples
        return samples[-1].stamp_ns if samples else None

    def age_s(self, stamp_ns: int) -> float:
        """How much older the newest sample is than stamp_ns (negative: it is newer); infinite while there is none."""
        newest = self.newest_stamp_ns
        return float("inf") if newest is None else (stamp_ns - newest) * 1e-9

    def clear(self) -> None:
        """Forget everything; samples looked up before cannot be related to later ones."""
        with self._lock:
            self._restart()

    @torch.no_grad()
    def add(
        self,
        stamp_ns: int,
        odom_from_base: torch.Tensor,
        twist_covariance: torch.Tensor | None = None,
        twist: np.ndarray | None = None,
    ) -> OdometryReport:
        """Append the pose of the base in the odometry frame.

        Bad, late and repeated samples are refused; a clock that goes back or a pose that jumps empties the buffer first.

        Args:
            stamp_ns: When.
            odom_from_base: float64 [4, 4].
            twist_covariance: [6, 6] of nav_msgs/Odometry.twist (base axes), used as far as it is meaningful. The covariance of
                the pose is not asked for: it is about the place where odometry began, and most drivers fill in a constant.
            twist: float64 [6], the velocity itself: only compared with the poses.
        """
        try:
            se3.check_pose(odom_from_base, "odometry pose")
        except InputError as error:
            return OdometryReport(False, message=str(error))
        variance = _meaningful_variance(twist_covariance)
        pose = odom_from_base.detach().to("cpu", torch.float64, copy=True)
        with self._lock:
            message = ""
            distance = turn = 0.0
            if self._samples:
                last = self._samples[-1]
                step_s = (stamp_ns - last.stamp_ns) * 1e-9
                if step_s < -self.options.jump_back_s:
                    message = f"odometry went back in time by {-step_s:.3f} s: earlier odometry is forgotten"
                elif step_s <= 0:
                    message = f"odometry stamp is not newer than the last ({step_s:.3f} s): ignored"
                    return OdometryReport(False, message=message)
                else:
                    moved, turned = (float(v) for v in se3.pose_difference(last.odom_from_base, pose))
                    # Half a metre and radian on top, for stamps that jitter.
                    too_far = moved > self.options.max_speed * step_s + 0.5
                    if too_far or turned > self.options.max_turn_rate * step_s + 0.5:
                        message = (
                            f"odometry jumped by {moved:.2f} m and {turned:.2f} rad in {step_s:.3f} s: "
                            "earlier odometry is forgotten; give an initial pose if the robot was carried"
                        )
                    else:
                        distance, turn = last.distance_m + moved, last.turn_rad + turned
            if message:
                self._restart()
            self.twist_check.add(stamp_ns, pose, twist)
            variance[torch.tensor(self.twist_check.empty).repeat_interleave(3)] = 0.0  # of a velocity that nobody measured
            self._samples.append(OdometrySample(stamp_ns, pose, distance, turn, variance, self._epoch))
            oldest = stamp_ns - int(self.options.window_s * 1e9)
            if self._samples[0].stamp_ns < oldest:
                # One sample before the window stays, to interpolate from.
                keep = bisect.bisect_right(self._samples, oldest, key=_stamp) - 1
                del self._samples[:keep]
        return OdometryReport(True, bool(message), message)

    def covers(self, stamp_ns: int) -> bool:
        """Whether `lookup` at stamp_ns would not have to extrapolate: a live feeder waits a moment for this."""
        newest = self.newest_stamp_ns
        return newest is not None and newest >= stamp_ns

    def find(self, stamp_ns: int) -> tuple[OdometrySample | None, str]:
        """As `lookup`, or None and why there is nothing."""
        try:
            return self.lookup(stamp_ns), ""
        except OdometryUnavailable as unavailable:
            return None, str(unavailable)

    @torch.no_grad()
    def lookup(self, stamp_ns: int) -> OdometrySample:
        """Odometry at a time: interpolated (slerp, straight line), or for a short while extrapolated and marked so.

        Raises OdometryUnavailable: nothing there, too old, too new, or a hole in the odometry.
        """
        with self._lock:
            samples = self._samples
            if not samples:
                raise OdometryUnavailable("no odometry received")
            after = bisect.bisect_left(samples, stamp_ns, key=_stamp)
            if after < len(samples) and samples[after].stamp_ns == stamp_ns:
                return samples[after]
            if after == 0:
                missing = (samples[0].stamp_ns - stamp_ns) * 1e-9
                raise OdometryUnavailable(f"odometry begins {missing:.3f} s after the image")
            if after == len(samples):
                behind = (stamp_ns - samples[-1].stamp_ns) * 1e-9
                if behind > self.options.max_extrapolation_s:
                    raise OdometryUnavailable(f"newest odometry is {behind:.3f} s older than the image")
                if len(samples) == 1:
                    raise OdometryUnavailable("a single odometry sample, older than the image, tells no velocity")
                first, second, extrapolated = samples[-2], samples[-1], behind
            else:
                first, second, extrapolated = samples[after - 1], samples[after], 0.0
        step_s = (second.stamp_ns - first.stamp_ns) * 1e-9
        if step_s > self.options.max_gap_s:
            raise OdometryUnavailable(f"odometry has a hole of {step_s:.3f} s around the image")
        fraction = (stamp_ns - first.stamp_ns) / (second.stamp_ns - first.stamp_ns)
        return OdometrySample(
            stamp_ns,
            se3.interpolate(first.odom_from_base, second.odom_from_base, fraction),
            first.distance_m + fraction * (second.distance_m - first.distance_m),
            first.turn_rad + fraction * (second.turn_rad - first.turn_rad),
            second.twist_variance,
            first.epoch,
            extrapolated,
        )

    @torch.no_grad()
    def motion_between(self, start: OdometrySample, end: OdometrySample) -> tuple[torch.Tensor, torch.Tensor]:
        """Motion ``start_from_end`` [4, 4] of the base between two looked-up samples, and its covariance [6, 6] (body
        perturbation, base axes at the end): by the path in between, the time, and the reported velocity variances.

        The samples may be older than the buffer's window. Raises OdometryUnavailable if the odometry was reset in
        between.
        """
        if start.epoch != end.epoch:
            raise OdometryUnavailable("odometry was reset since the last known pose")
        distance, turn = abs(end.distance_m - start.distance_m), abs(end.turn_rad - start.turn_rad)
        seconds = abs(end.stamp_ns - start.stamp_ns) * 1e-9
        guess2 = 0.25 * (start.extrapolated_s**2 + end.extrapolated_s**2) ** 2
        variances = self.options.noise.variances(distance, turn, seconds, guess2)
        variances *= np.repeat(np.square(self.noise_factors), 3)
        variances += end.twist_variance.numpy() * seconds**2
        motion = se3.inverse(start.odom_from_base) @ end.odom_from_base
        motion[:3, 3] *= self.way_factor
        return motion, from_variances(variances)

    @torch.no_grad()
    def velocity(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Velocity float64 [6] of the last poses, in base axes, and its covariance [6, 6]; None where there are too few."""
        with self._lock:
            if not self._samples:
                return None
            end = self._samples[-1]
            first = bisect.bisect_left(self._samples, end.stamp_ns - int(_VELOCITY_S * 1e9), key=_stamp)
            start = self._samples[min(first, max(len(self._samples) - 2, 0))]
        seconds = (end.stamp_ns - start.stamp_ns) * 1e-9
        if not 0 < seconds <= self.options.max_gap_s:
            return None
        motion, covariance = self.motion_between(start, end)
        return se3.se3_log(motion) / seconds, covariance / seconds**2

    def _restart(self) -> None:
        self._samples = []
        self._epoch += 1
        self.twist_check.restart()


def _stamp(sample: OdometrySample) -> int:
    return sample.stamp_ns


def _meaningful_variance(covariance: torch.Tensor | None) -> torch.Tensor:
    """Diagonal of a reported velocity covariance, 0 where it is NaN, not positive (unknown) or a huge placeholder."""
    variance = np.zeros(6)
    if covariance is not None:
        reported = torch.as_tensor(covariance, dtype=torch.float64).detach().cpu().numpy().reshape(6, 6).diagonal()
        good = np.isfinite(reported) & (reported > 0) & (reported < _PLACEHOLDER_VARIANCE)
        variance[good] = reported[good]
    return torch.from_numpy(variance)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How the base turns between images, as a gyro reads it; its bias, noise, clock and axes are found by the poses of the images.

Readings are integrated, with the bias known by then, to rotations that are kept as odometry's poses are.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..geometry import se3
from ..geometry.gyro import mount_turn
from .gravity import Gravity
from .learned_noise import LearnedNoise, LearnedNoiseOptions
from .motion_prior import KnownPose, MotionOptions
from .odometry import OdometryBuffer, OdometryNoise, OdometryOptions, OdometryUnavailable
from .odometry_check import OdometryCheck, OdometryFindings

_NOISE = OdometryNoise(
    0.0, 0.0, 0.0, rotation_per_radian=0.01, rotation_per_metre=0.0, rotation_per_second=0.01, acceleration=0.0
)


@dataclass(frozen=True)
class GyroOptions:
    """What is believed of a gyro.

    Attributes:
        buffer: How its rotations are kept, and how far they err, the bias not counted.
        sample_ns: Readings are put together to samples of this time.
        step_s: Least time between two poses that tell of the bias.
        most_step_s: Largest.
        bias_std: Of a bias that nothing is known of, rad/s.
        bias_drift: By how much it changes per square root of a second, rad/s.
        surprise: Squared distance, in three degrees of freedom, beyond which a step tells nothing of the bias,
        surprises: unless so many follow each other.
        steps: That are remembered, to see whether it reads what the camera does.
        least_steps: Before it is believed.
        most_off: Largest share of the turning, in squares, that the images may contradict.
        mount_rad: A turn of its axes worth a warning.
    """

    buffer: OdometryOptions = field(default_factory=lambda: OdometryOptions(max_gap_s=0.1, max_turn_rate=40.0, noise=_NOISE))
    sample_ns: int = 9_000_000
    step_s: float = 0.25
    most_step_s: float = 1.0
    bias_std: float = 0.05
    bias_drift: float = 0.0005
    surprise: float = 16.0
    surprises: int = 4
    steps: int = 40
    least_steps: int = 1
    most_off: float = 0.1
    mount_rad: float = math.radians(8)


class Gyro:
    """A gyro on the base. Readings may be added by one thread while another asks.

    Attributes:
        bias: float64 [3], rad/s, base axes.
        trusted: Whether it reads what the camera does.
        problem: What is wrong with it and what to do; empty: nothing that is known.
        gravity: What the accelerometer next to it reads.
    """

    def __init__(
        self, motion: MotionOptions, learning: LearnedNoiseOptions | None = None, options: GyroOptions | None = None
    ) -> None:
        self.options = options or GyroOptions()
        self.bias, self._variance = np.zeros(3), self.options.bias_std**2
        self._buffer = OdometryBuffer(self.options.buffer)
        self._noise, self._check = LearnedNoise(self._buffer, motion, learning), OdometryCheck(self._buffer)
        self._steps: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=self.options.steps)
        self.trusted, self.problem, self._surprises = False, "", 0
        self._pose: torch.Tensor | None = None
        self.gravity = Gravity()
        self.interrupt()

    def __bool__(self) -> bool:
        return len(self._buffer) > 0

    def interrupt(self) -> None:
        """The poses that follow have nothing to do with those before."""
        self._anchor: KnownPose | None = None
        self._noise.interrupt()
        self._check.interrupt()

    def add(self, stamp_ns: int, rate: np.ndarray, force: np.ndarray | None = None) -> None:
        """An angular velocity float64 [3] rad/s of the base, in its axes, and what an accelerometer reads in them, m/s². What is
        late, or no number, is left out."""
        if force is not None:
            self.gravity.add(stamp_ns, force, rate - self.bias)
        if not np.isfinite(rate).all():
            return
        if (fast := float(np.linalg.norm(rate))) > self.options.buffer.max_turn_rate:
            self.problem = f"the gyro read {fast:.0f} rad/s, which no robot turns with: does it read degrees a second?"
            return
        if self._pose is not None:
            step_ns = stamp_ns - self._stamp_ns
            if -self.options.buffer.jump_back_s * 1e9 <= step_ns <= 0:
                return
            if 0 < step_ns <= self.options.buffer.max_gap_s * 1e9:
                mean = torch.from_numpy(((self._rate + rate) / 2 - self.bias) * step_ns * 1e-9)
                self._pose = self._pose @ se3.from_rotation_translation(se3.so3_exp(mean), torch.zeros(3, dtype=torch.float64))
            else:  # set back, or with a hole: nothing connects both sides
                self._pose = None
        if self._pose is None:
            self._pose, self._kept_ns = torch.eye(4, dtype=torch.float64), None
            self._buffer.clear()
        self._stamp_ns, self._rate = stamp_ns, np.asarray(rate, float)
        if self._kept_ns is None or stamp_ns - self._kept_ns >= self.options.sample_ns:
            self._kept_ns = stamp_ns
            self._buffer.add(stamp_ns, self._pose)

    def turn(self, start_ns: int, end_ns: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rotation [3, 3] of the base from one time to another, and its covariance [3, 3] (body perturbation); None where it is
        not known, or not to be trusted."""
        if not self.trusted:
            return None
        try:
            motion, noise = self._buffer.motion_between(self._buffer.lookup(start_ns), self._buffer.lookup(end_ns))
        except OdometryUnavailable:
            return None
        bias = self._variance * ((end_ns - start_ns) * 1e-9) ** 2
        return motion[:3, :3], noise[3:, 3:] + bias * torch.eye(3, dtype=torch.float64)

    def learn(self, pose: KnownPose) -> None:
        """A pose that an image surely showed."""
        self.gravity.learn(pose.stamp_ns, pose.map_from_base)
        try:
            sample = self._buffer.lookup(pose.stamp_ns)
        except OdometryUnavailable:
            return
        pose = replace(pose, odometry=sample)
        self._noise.add(pose)
        self._check.add(pose.stamp_ns, pose.map_from_base)
        last, seconds = self._anchor, 0.0
        if last is not None:
            seconds = (pose.stamp_ns - last.stamp_ns) * 1e-9
            if 0 < seconds < self.options.step_s:
                return
        self._anchor = pose
        if 0 < seconds <= self.options.most_step_s and last.odometry.epoch == sample.epoch:
            self._learn_step(last, pose, seconds)

    def _learn_step(self, last: KnownPose, pose: KnownPose, seconds: float) -> None:
        motion, noise = self._buffer.motion_between(last.odometry, pose.odometry)
        seen = last.map_from_base[:3, :3].mT @ pose.map_from_base[:3, :3]
        off = se3.so3_log(motion[:3, :3].mT @ seen).numpy()
        images = se3.transform_covariance(last.covariance, se3.inverse(motion)) + pose.covariance + noise
        step_variance = float(images.diagonal()[3:].max()) / seconds**2
        self._variance = min(self._variance + self.options.bias_drift**2 * seconds, self.options.bias_std**2)
        off_rate = off / seconds
        if (off_rate @ off_rate) / (self._variance + step_variance) <= self.options.surprise:
            gain, self._surprises = self._variance / (self._variance + step_variance), 0
            self.bias = self.bias - gain * off_rate
            self._variance *= 1 - gain
        else:
            self._surprises += 1
            if self._surprises >= self.options.surprises:
                self._variance, self._surprises = self.options.bias_std**2, 0
        # A bias that is still being found is no contradiction.
        read, usual = se3.so3_log(motion[:3, :3]).numpy(), seconds**2 * (step_variance + self._variance)
        self._steps.append((se3.so3_log(seen).numpy(), read, usual))
        self._judge()

    def _judge(self) -> None:
        seen, read = (np.array(part) for part in list(zip(*self._steps))[:2])
        off2, usual = ((seen - read) ** 2).sum(1), np.array([step[2] for step in self._steps])
        turning = (seen**2).sum()
        contradicted = np.minimum(off2, 16 * usual + (seen**2).sum(1)).sum() > self.options.most_off * turning + 6 * usual.sum()
        self.trusted = len(self._steps) >= self.options.least_steps and not contradicted
        self.problem = "" if self.trusted else self.problem
        if contradicted and len(self._steps) >= self.options.steps // 2:
            apart, left = mount_turn(seen, read)
            self.problem = "the gyro does not turn as the camera does: check the IMU's transform, unit and clock"
            if left < 0.5 and apart > self.options.mount_rad:
                axes = f"the gyro's axes are turned by {math.degrees(apart):.0f} deg against the camera's"
                self.problem = f"{axes}: check the IMU's transform"

    def findings(self) -> OdometryFindings:
        """What the images say of its clock (as of odometry's) and of how far it turns."""
        return self._check.findings()

    def warnings(self, time_offset_s: float = 0.0) -> tuple[str, ...]:
        """What is wrong with it, in words. time_offset_s: added to the images' stamps already."""
        said = self.findings().warnings(time_offset_s)
        lines = [line.replace("the odometry", "the gyro") for name, line in said.items() if name != "way"]
        return (*filter(None, (self.problem, self.gravity.problem)), *lines)

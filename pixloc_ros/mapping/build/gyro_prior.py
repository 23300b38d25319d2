# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How a gyro says that the camera turned from keyframe to keyframe, after its bias is found with the help of the images."""

from __future__ import annotations

import numpy as np
import torch

from ...geometry.gyro import mount_turn, turned
from ...io.bag_sensors import ImuReadings
from ...io.trajectory import Trajectory
from .adjustment import Links
from .turns import nearer, rotation_vectors, with_turns

MAX_GAP_NS = 100_000_000
_FEWEST_STEPS = 5
_NOISE_RAD, _WALK_RAD, _SHARE = np.radians(0.03), np.radians(0.05), 0.01
"""Of a rotation of the gyro: at least, in a second, and as a share of the angle; standard deviations."""
_MOST_FACTOR = 5.0
_TURNING_PERCENTILE, _LEAST_RIGHT = 80, 0.2
_PAIRS_OFF_RAD, _ADJUSTED_OFF_RAD = np.radians(1.0), np.radians(0.3)
_MOUNT_RAD, _MOUNT_LEFT, _ALIKE_LOG = np.radians(5.0), 1 / 3, 0.5
_POSES, _POSE_GAP_NS, _FLAT_SHARE, _WINDOWS = 2000, 1_500_000_000, 0.5, 40
_ROUNDS = 10


class GyroPrior:
    """The gyro's rotations between keyframes that follow each other.

    Args:
        imu: What it read.
        stamps_ns: int64 [K], of the keyframes, rising.

    Attributes:
        bias: float64 [3] rad/s, in the camera's axes.
        factor: How many times less exact it is than usual.
        off_rad: Median angle between its rotations and those of the images, after `fit`.
        trouble: Why it is of no use; None while it is.
    """

    def __init__(self, imu: ImuReadings, stamps_ns: np.ndarray) -> None:
        self.imu, self._stamps_ns = imu, stamps_ns
        self.bias, self.factor, self.off_rad, self.trouble = np.zeros(3), 1.0, float("nan"), None
        self._integrate()
        if len(self.first) < _FEWEST_STEPS:
            self.trouble = "its readings cover too little of the drive, or have gaps"

    def _integrate(self) -> None:
        rotations, known = turned(self.imu.stamps_ns, self.imu.rates - self.bias, self._stamps_ns, MAX_GAP_NS)
        self.first = np.flatnonzero(known)
        self.rotations = rotations[known]
        self._seconds = np.diff(self._stamps_ns)[known] * 1e-9

    def fit(self, first: np.ndarray, rotations: np.ndarray, off_rad: float = _PAIRS_OFF_RAD) -> None:
        """Find the bias, how exact the gyro is, and whether it is right at all.

        Args:
            first: int64 [n], keyframes.
            rotations: float64 [n, A, 3, 3], how the images say that the camera turned from each to the next; the nearest counts.
            off_rad: How wrong these may be.
        """
        if self.trouble:
            return
        _, mine, theirs = np.intersect1d(self.first, first, return_indices=True)
        if len(mine) < _FEWEST_STEPS:
            self.trouble = "the images do not say how the camera turned"
            return
        seconds = self._seconds[mine]
        for _ in range(_ROUNDS):
            seen = nearer(rotations[theirs], self.rotations[mine])
            off = rotation_vectors(self.rotations[mine].transpose(0, 2, 1) @ seen)
            self.bias = self.bias - _robust_rate(off, seconds)
            self._integrate()
        off = np.linalg.norm(rotation_vectors(self.rotations[mine].transpose(0, 2, 1) @ seen), axis=1)
        self.off_rad = float(np.median(off))
        # A Gaussian's angle is 1.54 standard deviations of an axis in the median.
        self.factor = float(np.clip(np.median(off / self._std()[mine]) / 1.54, 1.0, _MOST_FACTOR))
        self._check(rotation_vectors(seen), rotation_vectors(self.rotations[mine]), off, off_rad)

    def _check(self, seen: np.ndarray, read: np.ndarray, off: np.ndarray, off_rad: float) -> None:
        """Where the camera turns most, the gyro must say the same."""
        angle = np.linalg.norm(seen, axis=1)
        # Where two views alone say how it turned, the largest turns are their worst errors.
        sizes = (np.linalg.norm(read, axis=1), *((angle,) if off_rad < _PAIRS_OFF_RAD else ()))
        figures = [
            [float(np.median(value[size >= np.percentile(size, _TURNING_PERCENTILE)])) for value in (off, angle)]
            for size in sizes
        ]
        wrong, turning = max(figures, key=lambda figure: figure[0] / max(off_rad, _LEAST_RIGHT * figure[1]))
        if wrong < max(off_rad, _LEAST_RIGHT * turning):
            return
        self.trouble = (
            f"where the images say that the camera turned by {np.degrees(turning):.1f} deg from keyframe to keyframe it is "
            f"{np.degrees(wrong):.1f} deg off"
        )
        apart, left = mount_turn(seen, read)
        # Of rates, since integrated turns are no larger than half a turn.
        size = float(np.linalg.norm(self.imu.rates, axis=1).mean() / max(angle.sum() / self._seconds.sum(), 1e-9))
        if left < _MOUNT_LEFT and apart > _MOUNT_RAD:
            self.trouble += f"; turned by {np.degrees(apart):.0f} deg it would agree: check the IMU's transform"
        elif abs(np.log(max(size, 1e-6) / np.degrees(1.0))) < _ALIKE_LOG:
            self.trouble += "; it seems to read degrees a second instead of radians"
        else:
            self.trouble += ": check its transform, its unit and its clock"

    def _std(self) -> np.ndarray:
        angle = np.linalg.norm(rotation_vectors(self.rotations), axis=1)
        return np.sqrt(_NOISE_RAD**2 + _WALK_RAD**2 * self._seconds + (_SHARE * angle) ** 2)

    def joined(self, links: Links | None, poses: np.ndarray) -> Links | None:
        """Links between the keyframes, and the gyro's, its bias found anew by poses [K, 4, 4] that were adjusted without it."""
        steps = poses[:-1, :3, :3].transpose(0, 2, 1) @ poses[1:, :3, :3]
        self.fit(np.arange(len(steps)), steps[:, None], _ADJUSTED_OFF_RAD)
        if self.trouble:
            return links
        return self.links() if links is None else Links.join([links, self.links()])

    def links(self) -> Links:
        """Its rotations; they say nothing of translations."""
        count, poses = len(self.first), np.tile(np.eye(4), (len(self.first), 1, 1))
        poses[:, :3, :3] = self.rotations
        nothing = np.full(count, np.inf)
        return Links(self.first, self.first + 1, poses, nothing, self.factor * self._std(), np.ones(count, bool))

    def turn(self, poses: np.ndarray, base_from_camera: np.ndarray) -> np.ndarray:
        """Odometry's poses [K, 4, 4] of the camera, the base turned as the gyro says from keyframe to keyframe."""
        return with_turns(poses, self.first, self.rotations, base_from_camera)

    def summary(self) -> str:
        """For people."""
        if self.trouble:
            return f"gyro of {self.imu.topic}: left out, {self.trouble}"
        bias = " ".join(f"{v:.2f}" for v in np.degrees(self.bias @ self.imu.camera_from_imu))
        return (
            f"gyro of {self.imu.topic}: {len(self.first)} of {len(self._stamps_ns) - 1} steps between keyframes, bias {bias} "
            f"deg/s (x y z), {np.degrees(self.off_rad):.2f} deg from the images in the median"
        )


def upwards(imu: ImuReadings, stamps_ns: np.ndarray, poses: np.ndarray) -> np.ndarray | None:
    """Unit vector [3] that the accelerometer says points up, in the poses' frame, of any scale; None where it does not say it.

    What it reads is gravity and the camera's acceleration, which the poses show.
    """
    if imu.forces is None or len(poses) < 3:
        return None
    rows = np.arange(0, len(imu.stamps_ns), max(len(imu.stamps_ns) // _POSES, 1))
    forces = np.add.reduceat(imu.forces, rows) / np.diff(np.append(rows, len(imu.forces)))[:, None]
    middle = imu.stamps_ns[np.minimum(rows + (rows[1] - rows[0] - 1) // 2 if len(rows) > 1 else rows, len(imu.stamps_ns) - 1)]
    there, known = Trajectory(stamps_ns, torch.from_numpy(poses)).at(middle, _POSE_GAP_NS)
    forces, middle = np.einsum("nij,nj->ni", there[known, :3, :3].numpy(), forces[known]), middle[known]
    ends = np.unique(np.linspace(0, len(poses) - 1, min(len(poses), _WINDOWS)).round().astype(int))
    velocity = np.gradient(poses[:, :3, 3], (stamps_ns - stamps_ns[0]) * 1e-9, axis=0)[ends]
    window = np.searchsorted(stamps_ns[ends], middle, "right") - 1
    counts = np.bincount(window, minlength=len(ends))[: len(ends) - 1]
    used = counts > 0
    if not used.any():
        return None
    read = np.stack([np.bincount(window, forces[:, axis], len(ends))[: len(ends) - 1] for axis in range(3)], 1)
    read = read[used] / counts[used, None]
    moved = (np.diff(velocity, axis=0) / (np.diff(stamps_ns[ends]) * 1e-9)[:, None])[used]
    weight = counts[used] / counts.sum()
    change, other = moved - weight @ moved, read - weight @ read
    scale = max(weight @ (change * other).sum(1) / max(weight @ (change**2).sum(1), 1e-12), 0.0)
    up, usual = weight @ read - scale * (weight @ moved), np.median(np.linalg.norm(forces, axis=1))
    length = np.linalg.norm(up)
    return up / length if length > _FLAT_SHARE * usual > 0 else None


def _robust_rate(off: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The rate [3] that explains rotation vectors [n, 3] over times [n]; outliers count little."""
    weight = np.ones(len(off))
    for _ in range(_ROUNDS):
        rate = ((weight * seconds) @ off) / max((weight * seconds**2).sum(), 1e-12)
        left = np.linalg.norm(off - seconds[:, None] * rate, axis=1)
        weight = 1 / (1 + (left / max(np.median(left), 1e-9)) ** 2)
    return rate

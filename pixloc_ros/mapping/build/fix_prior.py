# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Satellite fixes in the adjustment of a drive: they give its scale, and hold it where images and wheels drift."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ...geometry import se3
from ...io.bag_sensors import Fixes
from ...io.trajectory import Trajectory
from ..georeference import Georeference
from .adjustment import Bundle, Links, Rays, adjust, link_errors
from .odometry_structure import STAGES, graph_links, stage

_GAP_NS, _SHORT_M = 2_000_000_000, 0.5
"""Keyframes around a fix must be no further apart, in time or in metres."""
_ALIKE_NS = 10_000_000_000
"""Errors of fixes last: those within this time count as one."""
_SAMPLES, _ROUNDS, _REJECTED = 500, 10, 4.0
_FEWEST, _MEDIAN_2D, _MOST_FACTOR, _LARGEST_SCALE_ERROR = 5, 1.18, 10.0, 0.3
_FRAME_RAD, _ENOUGH_SHARE = np.radians(3.0), 0.5


@dataclass(frozen=True, eq=False)
class PlacedFixes:
    """Fixes of a drive with respect to its keyframes.

    Attributes:
        rows: int64 [N], which of the fixes have a pose at their time.
        keyframe: int64 [N], the nearest.
        enu: float64 [N, 3], where they are, metres.
        std: float64 [N, 3], of each, since others say the same.
    """

    rows: np.ndarray
    keyframe: np.ndarray
    enu: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, eq=False)
class FixSolution:
    """What fixes made of a drive.

    Attributes:
        poses: float64 [K, 4, 4], metres.
        scale: What the poses were multiplied with.
        uncertainty: Of the scale, as a share.
        used: int64, rows of the fixes that agree.
        rejected: How many do not.
        error_m: Median horizontal distance of those that do.
    """

    poses: np.ndarray
    scale: float
    uncertainty: float
    used: np.ndarray
    rejected: int
    error_m: float


class FixPrior:
    """Fixes and the poses of a drive that they belong to.

    Args:
        fixes: All of them.
        stamps_ns: int64 [K], of the poses, rising.
        up: float64 [3], unit, in the poses' frame.
    """

    def __init__(self, fixes: Fixes, stamps_ns: np.ndarray, up: np.ndarray) -> None:
        self.fixes, self._stamps_ns, self._level = fixes, stamps_ns, _level(up)
        latitude, longitude, altitude = np.median(fixes.places, 0)
        self._enu = Georeference(latitude, longitude, altitude, torch.eye(4, dtype=torch.float64)).enu_from_fix(fixes.places)

    def antennas(self, poses: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the antenna was at the fixes' times [N, 3] (poses' frame, metres), and whether that is known, bool [N]."""
        poses = poses.copy()
        poses[:, :3, 3] *= scale
        stamps = self.fixes.stamps_ns
        there, known = Trajectory(self._stamps_ns, torch.from_numpy(poses)).at(stamps, np.iinfo(np.int64).max)
        after = np.clip(np.searchsorted(self._stamps_ns, stamps), 1, len(poses) - 1)
        apart_m = np.linalg.norm(poses[after, :3, 3] - poses[after - 1, :3, 3], axis=1)
        known &= (self._stamps_ns[after] - self._stamps_ns[after - 1] <= _GAP_NS) | (apart_m < _SHORT_M)
        return se3.transform(there, torch.from_numpy(self.fixes.antenna)[None, None])[:, 0].numpy(), known

    def solve(
        self, poses: np.ndarray, rays: Rays, points: int, links: Links, wheels: float | None, robust_px: float
    ) -> FixSolution | str:
        """The poses with all that is known of them, or why fixes say nothing of them.

        Args:
            poses: float64 [K, 4, 4], metric where there are wheels.
            rays: What the images see, of so many points.
            points: Their number.
            links: Motions, the gyro's rotations.
            wheels: How wrong the poses' scale may be, as a share; None: it is not known.
            robust_px: As of `adjust`.
        """
        fitted = self._fit(poses, wheels is not None)
        if isinstance(fitted, str):
            return fitted
        ratio, uncertainty, yaw, shift, factor = fitted
        scale = ratio
        if wheels is not None:
            weights = np.array((uncertainty, wheels)) ** -2.0
            scale = float(np.exp(weights[0] * np.log(ratio) / weights.sum()))
            uncertainty = float(weights.sum() ** -0.5)
        if uncertainty > _LARGEST_SCALE_ERROR:
            return f"they are too inexact for so short a drive (scale ± {100 * uncertainty:.0f} %)"
        poses = poses.copy()
        poses[:, :3, 3] *= scale
        steps = links.first_from_second.copy()
        steps[:, :3, 3] *= scale
        links = replace(links, first_from_second=steps, translation_std=links.translation_std * scale)
        poses_from_enu = se3.inverse(torch.from_numpy(_frame(self._level, yaw, shift))).numpy()
        poses = np.concatenate((poses, poses_from_enu[None]))
        held = self._links(poses, factor)
        if held is None:
            return "too few of them have a pose at their time"
        graph = Links.join([graph_links(poses[:-1]), *held])
        poses = adjust(Bundle(poses, np.zeros((0, 3))), rays.only(np.zeros(0, np.int64)), graph, 1.0, 30).poses
        for share, iterations in STAGES[1:]:
            held = self._links(poses, factor)
            bundle, _ = stage(poses, rays, points, Links.join([links, *held]), share * robust_px, iterations)
            poses = bundle.poses
        placed, off = self._off(poses, factor)
        good = np.abs(off[:, :2]).max(1) < _REJECTED
        flat = np.linalg.norm((off * placed.std)[:, :2], axis=1) / self._inflation(placed.rows)
        error = float(np.median(flat[good])) if good.any() else float("inf")
        return FixSolution(poses[:-1], scale, uncertainty, placed.rows[good], int((~good).sum()), error)

    def _fit(self, poses: np.ndarray, metric: bool) -> tuple[float, float, float, np.ndarray, float] | str:
        """Scale, its uncertainty, heading, shift, and how many times less exact fixes are than they say."""
        scale, lever = 1.0, self.fixes.antenna
        for _ in range(_ROUNDS):
            places, known = self.antennas(poses, scale)
            if known.sum() < _FEWEST:
                return f"only {known.sum()} of them have a pose at their time"
            flat, std = (places @ self._level.T)[known], self.fixes.std[known][:, 0] * self._inflation(np.flatnonzero(known))
            mine, theirs = flat[:, 0] + 1j * flat[:, 1], self._enu[known, 0] + 1j * self._enu[known, 1]
            turn, off = _similarity(mine, theirs, std)
            if turn is None:
                return "the drive does not leave its place"
            agree = off < _REJECTED * max(np.median(off) / _MEDIAN_2D, 1e-3)
            if agree.mean() < _ENOUGH_SHARE:
                return "most of them contradict the images"
            more = abs(turn)
            scale *= more
            if metric or not lever.any() or abs(more - 1) < 1e-4:
                break
        factor = float(np.clip(np.median(np.abs(off / self.fixes.std[known][:, 0])) / _MEDIAN_2D, 1.0, _MOST_FACTOR))
        weight = agree / (factor * std) ** 2
        middle = (weight @ mine) / weight.sum()
        spread = (weight * np.abs(mine - middle) ** 2).sum()
        shift = (weight @ theirs) / weight.sum() - turn * middle
        up = float(np.median(self._enu[known, 2] - flat[:, 2] * abs(turn)))
        values = np.array((shift.real, shift.imag, up))
        return scale, float(1 / np.sqrt(max(spread, 1e-12))), float(np.angle(turn)), values, factor

    def _inflation(self, rows: np.ndarray) -> np.ndarray:
        """How many times more a fix's std counts, since others near in time have the same error."""
        stamps = self.fixes.stamps_ns[rows]
        begin, end = (np.searchsorted(stamps, stamps + s * _ALIKE_NS // 2) for s in (-1, 1))
        return np.sqrt(np.maximum(end - begin, 1))

    def _placed(self, poses: np.ndarray, factor: float) -> PlacedFixes:
        """With poses whose last is that of the frame of east, north, up."""
        own, frame = poses[:-1], poses[-1]
        places, known = self.antennas(own, 1.0)
        rows = np.flatnonzero(known)
        stamps = self.fixes.stamps_ns[rows]
        after = np.clip(np.searchsorted(self._stamps_ns, stamps), 1, len(own) - 1)
        nearer = stamps - self._stamps_ns[after - 1] < self._stamps_ns[after] - stamps
        keyframe = after - nearer
        beside = (places[rows] - own[keyframe, :3, 3]) @ frame[:3, :3]
        std = self.fixes.std[rows] * (factor * self._inflation(rows))[:, None]
        return PlacedFixes(rows, keyframe, self._enu[rows] - beside, std)

    def _links(self, poses: np.ndarray, factor: float) -> list[Links] | None:
        """From the frame of east, north, up to the keyframes; and that it stays about where it is."""
        placed, last = self._placed(poses, factor), len(poses) - 1
        if len(placed.rows) < _FEWEST:
            return None
        count, relative = len(placed.rows), np.tile(np.eye(4), (len(placed.rows), 1, 1))
        relative[:, :3, 3] = placed.enu
        nothing = np.full(count, np.inf)
        ends = np.full(count, last), placed.keyframe
        fixes = Links(*ends, relative, placed.std, nothing, np.ones(count, bool))
        held = (np.linalg.inv(poses[0]) @ poses[last])[None]
        one = np.zeros(1, np.int64)
        frame = Links(one, one + last, held, np.full(1, np.inf), np.full(1, _FRAME_RAD), np.zeros(1, bool))
        return [fixes, frame]

    def _off(self, poses: np.ndarray, factor: float) -> tuple[PlacedFixes, np.ndarray]:
        """The fixes, and how far they are off, [N, 3] in standard deviations."""
        placed, (fixes, _) = self._placed(poses, factor), self._links(poses, factor)
        return placed, link_errors(Bundle(poses, np.zeros((0, 3))), fixes)[:, :3]


def _level(up: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] that brings a direction to the z axis."""
    axis = np.eye(3)[np.abs(up).argmin()]
    x = np.cross(np.cross(up, axis), up)
    x /= np.linalg.norm(x)
    return np.stack((x, np.cross(up, x), up))


def _frame(level: np.ndarray, yaw: float, shift: np.ndarray) -> np.ndarray:
    """enu_from_poses [4, 4]."""
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn @ level, shift
    return pose


def _similarity(mine: np.ndarray, theirs: np.ndarray, std: np.ndarray) -> tuple[complex | None, np.ndarray]:
    """What to multiply points in the plane with to come onto others, up to a shift, and how far each is off then.

    That with the least median error among those of two points each, then by least squares without outliers.
    """
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(mine), (2, _SAMPLES))
    apart = mine[second] - mine[first]
    far = np.abs(apart) > 0.3 * np.ptp(mine.real) + 0.3 * np.ptp(mine.imag)
    far &= np.abs(apart) > 1e-9
    if not far.any():
        return None, np.zeros(len(mine))
    first, second, apart = first[far], second[far], apart[far]
    turns = (theirs[second] - theirs[first]) / apart
    offs = np.abs(theirs - theirs[first][:, None] - turns[:, None] * (mine - mine[first][:, None]))
    off = offs[np.median(offs, axis=1).argmin()]
    turn = None
    for _ in range(_ROUNDS):
        weight = (off < 2.5 * max(np.median(off), 1e-6)) / std**2
        weight /= weight.sum()
        centre, target = weight @ mine, weight @ theirs
        size = (weight * np.abs(mine - centre) ** 2).sum()
        if not size > 0:
            return None, off
        turn = (weight * np.conj(mine - centre)) @ (theirs - target) / size
        off = np.abs(theirs - target - turn * (mine - centre))
    return (turn, off) if abs(turn) > 0 else (None, off)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses over time and the text formats they are exchanged in.

- TUM: one line a pose, ``stamp tx ty tz qx qy qz qw``, stamp in seconds, map_from_body.
- KITTI odometry: one line a pose, the first three rows of map_from_body, row by row (12 numbers); no stamps.
- The visual-localization benchmark's: ``name qw qx qy qz tx ty tz``, camera_from_map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .files import write_text
from .text import parse_numbers, parse_stamp, read_rows


@dataclass(frozen=True)
class Trajectory:
    """Poses of one body in the map, in the order of time.

    Attributes:
        stamps_ns: int64 [N], strictly increasing.
        map_from_body: float64 [N, 4, 4].
        covariances: float64 [N, 6, 6] (translation, rotation) of body perturbations, or None.
    """

    stamps_ns: np.ndarray
    map_from_body: torch.Tensor
    covariances: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.map_from_body.shape != (len(self.stamps_ns), 4, 4):
            raise ValueError(f"{len(self.stamps_ns)} stamps but poses {tuple(self.map_from_body.shape)}")
        if np.any(np.diff(self.stamps_ns) <= 0):
            raise InputError("the stamps of a trajectory must increase: sort its lines and drop repeated stamps")

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @classmethod
    def from_poses(cls, poses: Iterable[tuple[int, torch.Tensor]]) -> Trajectory:
        """From (stamp_ns, map_from_body [4, 4]) pairs in any order; of several poses with one stamp the last is kept."""
        latest = dict(poses)
        stamps = sorted(latest)
        matrices = torch.stack([latest[s].double() for s in stamps]) if stamps else torch.empty(0, 4, 4, dtype=torch.float64)
        return cls(np.array(stamps, np.int64), matrices)

    def at(self, stamps_ns: np.ndarray, max_gap_ns: int) -> tuple[torch.Tensor, np.ndarray]:
        """Poses interpolated at stamps; nothing is extrapolated.

        Args:
            stamps_ns: int64 [M].
            max_gap_ns: Neighbours must not be further apart.

        Returns:
            map_from_body [M, 4, 4], the identity where it is not known, and bool [M] whether it is.
        """
        poses = torch.eye(4, dtype=torch.float64).repeat(len(stamps_ns), 1, 1)
        if not len(self):
            return poses, np.zeros(len(stamps_ns), bool)
        after = np.searchsorted(self.stamps_ns, stamps_ns, side="left")
        exact = (after < len(self)) & (self.stamps_ns[np.minimum(after, len(self) - 1)] == stamps_ns)
        before = np.where(exact, after, after - 1)
        inside = (before >= 0) & (after < len(self))
        before, after = np.where(inside, before, 0), np.where(inside, after, 0)
        gap = self.stamps_ns[after] - self.stamps_ns[before]
        inside &= gap <= max_gap_ns
        fraction = np.where(gap > 0, (stamps_ns - self.stamps_ns[before]) / np.maximum(gap, 1), 0.0)
        between = se3.interpolate(self.map_from_body[before], self.map_from_body[after], torch.from_numpy(fraction))
        poses[inside] = between[inside]
        return poses, inside


def read_tum(path: Path) -> Trajectory:
    """Read a TUM file; lines starting with # are comments. Raises `InputError` naming file and line of what is malformed."""
    poses: list[tuple[int, torch.Tensor]] = []
    for where, words in read_rows(path, "give one pose a line"):
        if len(words) != 8:
            raise InputError(f"{where}: {len(words)} words instead of 8: write 'stamp tx ty tz qx qy qz qw'")
        values = parse_numbers(where, words[1:])
        stamp_ns = _rising(where, words[0], poses[-1][0] if poses else None)
        poses.append((stamp_ns, _pose(where, values[:3], values[3:])))
    return Trajectory.from_poses(poses)


def read_stamps(path: Path) -> np.ndarray:
    """Stamps of images, from a text file whose lines begin with seconds (KITTI's times.txt, TUM's rgb.txt) → int64 [N]
    nanoseconds. Raises `InputError` as `read_tum`."""
    stamps: list[int] = []
    for where, words in read_rows(path, "give one pose a line"):
        stamps.append(_rising(where, words[0], stamps[-1] if stamps else None))
    return np.array(stamps, np.int64)


def read_kitti(path: Path) -> torch.Tensor:
    """Poses of a KITTI odometry file → map_from_body float64 [N, 4, 4]. Raises `InputError` naming file and line."""
    poses = []
    for where, words in read_rows(path, "give one pose a line"):
        if len(words) != 12:
            raise InputError(f"{where}: {len(words)} words instead of 12: write the first three rows of the pose's matrix")
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3] = torch.tensor(parse_numbers(where, words), dtype=torch.float64).reshape(3, 4)
        se3.check_pose(pose, where)
        poses.append(pose)
    return torch.stack(poses) if poses else torch.empty(0, 4, 4, dtype=torch.float64)


def pose_format(path: Path) -> str:
    """ "tum", "kitti" or "benchmark", by the first line that says something. Raises `InputError` where it is none of them."""
    where, words = next(iter(read_rows(path, "give one pose a line")), (str(path), []))
    if len(words) == 12:
        return "kitti"
    if len(words) == 8:
        try:
            float(words[0])
        except ValueError:
            return "benchmark"
        return "tum"
    raise InputError(
        f"{where}: no line of poses: write 'stamp tx ty tz qx qy qz qw' (TUM), the 12 numbers of a matrix's first "
        "three rows (KITTI), or 'name qw qx qy qz tx ty tz' (benchmark)"
    )


def write_tum(path: Path, trajectory: Trajectory) -> None:
    """Write a TUM file with nanosecond stamps, atomically."""
    quaternions = se3.quaternion_from_rotation(trajectory.map_from_body[:, :3, :3])
    numbers = torch.cat((trajectory.map_from_body[:, :3, 3], quaternions), -1).tolist()
    write_text(
        path,
        "".join(
            f"{stamp // 10**9}.{stamp % 10**9:09d} " + " ".join(f"{v:.12g}" for v in row) + "\n"
            for stamp, row in zip(trajectory.stamps_ns.tolist(), numbers)
        ),
    )


def read_benchmark_poses(path: Path) -> dict[str, torch.Tensor]:
    """Lines ``name qw qx qy qz tx ty tz`` → camera_from_map [4, 4] by name, in the file's order. Raises `InputError`."""
    poses: dict[str, torch.Tensor] = {}
    for where, words in read_rows(path, "give one pose a line"):
        if len(words) != 8:
            raise InputError(f"{where}: {len(words)} words instead of 8: write 'name qw qx qy qz tx ty tz', names without spaces")
        if words[0] in poses:
            raise InputError(f"{where}: a second pose for '{words[0]}': keep one")
        w, x, y, z, *translation = parse_numbers(where, words[1:])
        poses[words[0]] = _pose(where, translation, [x, y, z, w])
    return poses


def write_benchmark_poses(path: Path, camera_from_map: Mapping[str, torch.Tensor]) -> None:
    """Write poses by name in the order given, atomically."""
    lines = []
    for name, pose in camera_from_map.items():
        x, y, z, w = se3.quaternion_from_rotation(pose[:3, :3]).tolist()
        lines.append(f"{name} " + " ".join(f"{v:.12g}" for v in (w, x, y, z, *pose[:3, 3].tolist())) + "\n")
    write_text(path, "".join(lines))


def parse_pose(words: list[str], what: str) -> torch.Tensor:
    """a_from_b [4, 4] from the words ``x y z qx qy qz qw``. Raises `InputError` naming `what`."""
    if len(words) != 7:
        raise InputError(f"{what} takes 7 numbers x y z qx qy qz qw, not {len(words)}")
    values = parse_numbers(what, words)
    return _pose(what, values[:3], values[3:])


def _rising(where: str, word: str, last_ns: int | None) -> int:
    """The stamp of a word, which comes after `last_ns`."""
    stamp_ns = parse_stamp(where, word)
    if last_ns is not None and stamp_ns <= last_ns:
        raise InputError(f"{where}: the stamp does not increase: sort the lines and drop repeated stamps")
    return stamp_ns


def _pose(where: str, translation: list[float], quaternion_xyzw: list[float]) -> torch.Tensor:
    length = math.sqrt(sum(value * value for value in quaternion_xyzw))
    if not 0.9 < length < 1.1:
        raise InputError(f"{where}: the quaternion has length {length:.3g} instead of 1: check the order of the columns")
    return se3.from_rotation_translation(
        se3.rotation_from_quaternion(torch.tensor(quaternion_xyzw, dtype=torch.float64)),
        torch.tensor(translation, dtype=torch.float64),
    )

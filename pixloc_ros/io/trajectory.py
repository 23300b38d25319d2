# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses over time and the text formats they are exchanged in.

- TUM: one line a pose, ``stamp tx ty tz qx qy qz qw``, stamp in seconds, map_from_body.
- KITTI odometry: one line a pose, the first three rows of map_from_body, row by row (12 numbers); no stamps.
- The visual-localization benchmark's: ``name qw qx qy qz tx ty tz``, camera_from_map.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .files import write_text
from .text import is_number, may_be_comment, parse_numbers, parse_stamp, read_lines, read_named_rows, read_rows

_REMEDY = "give one pose a line"


@dataclass(frozen=True)
class Trajectory:
    """Poses of one body in the map, in the order of time.

    Attributes:
        stamps_ns: int64 [N], strictly increasing.
        map_from_body: float64 [N, 4, 4].
        covariances: float64 [N, 6, 6] (translation, rotation) of body perturbations, or None.
        repeated: How many more poses its source has, at stamps that another one has.
        missing: How many stamps its source has without a pose: NaN, or a quaternion of zeros.
    """

    stamps_ns: np.ndarray
    map_from_body: torch.Tensor
    covariances: torch.Tensor | None = None
    repeated: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        if self.map_from_body.shape != (len(self.stamps_ns), 4, 4):
            raise ValueError(f"{len(self.stamps_ns)} stamps but poses {tuple(self.map_from_body.shape)}")
        if np.any(np.diff(self.stamps_ns) <= 0):
            raise InputError("the stamps of a trajectory must increase: sort its lines and drop repeated stamps")

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @classmethod
    def from_poses(cls, poses: Iterable[tuple[int, torch.Tensor]]) -> Trajectory:
        """From (stamp_ns, map_from_body [4, 4]) pairs in any order; of several poses with one stamp the last is kept; NaN is
        no pose."""
        pairs = list(poses)
        poses = [pair for pair in pairs if bool(torch.isfinite(pair[1]).all())]
        latest = dict(poses)
        stamps = sorted(latest)
        matrices = torch.stack([latest[s].double() for s in stamps]) if stamps else torch.empty(0, 4, 4, dtype=torch.float64)
        return cls(np.array(stamps, np.int64), matrices, repeated=len(poses) - len(latest), missing=len(pairs) - len(poses))

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


def twist_of_poses(stamps_ns: np.ndarray, map_from_body: torch.Tensor) -> np.ndarray:
    """Velocities float64 [N, 6] in body axes that lead to each pose [N, 4, 4] from the one before; the first is the second's."""
    if len(stamps_ns) < 2:
        return np.zeros((len(stamps_ns), 6))
    step = se3.se3_log(se3.inverse(map_from_body[:-1]) @ map_from_body[1:]).numpy()
    twist = step / (np.diff(stamps_ns) * 1e-9)[:, None]
    return np.concatenate((twist[:1], twist))


def read_tum(path: Path, more: bool = False, left_out: dict[str, str] | None = None) -> Trajectory:
    """Read a TUM file, lines in any order, those with # are comments; of several poses with one stamp the last counts, lines of
    NaN or with a quaternion of zeros say that there is no pose (`Trajectory.missing`).

    Args:
        path: The file; commas separate words, too.
        more: Whether lines may hold more words.
        left_out: Gets all numbers that make no pose, by file and line; without it, those other than NaN and zeros are errors.

    Raises:
        InputError: Naming file and line of what is malformed.
    """
    poses: list[tuple[int, torch.Tensor]] = []
    for where, words in read_rows(path, _REMEDY):
        words = [word for part in words for word in part.split(",") if word]
        if len(words) != 8 and not (more and len(words) > 8):
            raise InputError(f"{where}: {len(words)} words instead of 8: write 'stamp tx ty tz qx qy qz qw'")
        stamp_ns = parse_stamp(where, words[0])
        try:
            poses.append((stamp_ns, (_pose_or_nan if left_out is None else parse_pose)(words[1:8], where)))
        except InputError as error:
            if left_out is None:
                raise
            left_out[where] = str(error)
    track = Trajectory.from_poses(poses)
    if track.missing and not len(track):
        raise InputError(f"{path} holds no pose: all its lines are NaN or have a quaternion of zeros")
    return track


def read_stamps(path: Path) -> np.ndarray:
    """Stamps of images, from a text file whose lines begin with seconds (KITTI's times.txt, TUM's rgb.txt) → int64 [N]
    nanoseconds, in the file's order. Raises `InputError` as `read_tum`."""
    rows = read_rows(path, "give one stamp a line")
    return np.array([parse_stamp(where, words[0].split(",")[0]) for where, words in rows], np.int64)


def read_stamped_list(path: Path) -> tuple[np.ndarray, list[str]]:
    """Lines of a time in seconds and, behind blanks or a comma, the rest → stamps, int64 nanoseconds [N], in the order of time,
    and the rest of each line. Raises `InputError`: the file is missing, malformed or empty."""
    stamps, rest = [], []
    for where, line in read_lines(path, "a sequence needs it"):
        stamp, *words = re.split(r"[\s,]+", line, maxsplit=1)
        if not words or not words[0]:
            raise InputError(f"{where}: 1 words where 2 are needed: fix or remove the line")
        stamps.append(parse_stamp(where, stamp))
        rest.append(words[0])
    if not stamps:
        raise InputError(f"{path} is empty: record the sequence again")
    order = np.argsort(stamps, kind="stable")
    return np.array(stamps, np.int64)[order], [rest[k] for k in order]


def read_kitti(path: Path) -> torch.Tensor:
    """Poses of a KITTI odometry file → map_from_body float64 [N, 4, 4]. Raises `InputError` naming file and line."""
    poses = []
    for where, words in read_rows(path, _REMEDY):
        if len(words) != 12:
            raise InputError(f"{where}: {len(words)} words instead of 12: write the first three rows of the pose's matrix")
        pose = torch.eye(4, dtype=torch.float64)
        remedy = "write the poses that there are with their stamps, as TUM files have them"  # lines stand for images: none may go
        pose[:3] = torch.tensor(parse_numbers(where, words, remedy), dtype=torch.float64).reshape(3, 4)
        se3.check_pose(pose, where)
        poses.append(pose)
    return torch.stack(poses) if poses else torch.empty(0, 4, 4, dtype=torch.float64)


def pose_format(path: Path) -> str:
    """ "tum", "kitti" or "benchmark", by the first line that says something. Raises `InputError` where it is none of them."""
    rows = list(read_named_rows(path, _split_pose, _REMEDY))
    # A pose that is commented out looks as if its name began with "#".
    where, name, rest = next((row for row in rows if not row[1].startswith("#")), rows[0] if rows else (str(path), "", ""))
    words = [*name.split(), *rest.split()]
    numbers = [is_number(word) for word in words]
    between_commas = [word for part in words for word in part.split(",") if word]
    if len(between_commas) == 8 and all(map(is_number, between_commas)):
        return "tum"
    if len(words) == 12 and all(numbers):
        return "kitti"
    if len(words) >= 8 and all(numbers[-7:]) and not all(numbers):
        if len(words) == 8 and not _is_unit(words[1:5]) and _is_unit(words[4:]):
            raise InputError(f"{where}: the stamp '{name}' is not a time: write seconds")
        return "benchmark"
    raise InputError(
        f"{where}: no line of poses (a heading must begin with #): write 'stamp tx ty tz qx qy qz qw' (TUM), the 12 numbers of a "
        "matrix's first three rows (KITTI), or 'name qw qx qy qz tx ty tz' (benchmark)"
    )


def _split_pose(line: str) -> tuple[str, str] | None:
    """The name, and the 7 numbers behind it."""
    name, *numbers = line.rsplit(maxsplit=7) or [""]
    return (name, " ".join(numbers)) if len(numbers) == 7 and all(map(is_number, numbers)) else None


def _split_rough_pose(line: str) -> tuple[str, str] | None:
    """As `_split_pose`, of lines that may end with two more words: a number, and one that is none."""
    pose, *std = line.rsplit(maxsplit=2) or [""]
    split = _split_pose(pose) if len(std) == 2 and is_number(std[0]) and not is_number(std[1]) else None
    return (split[0], f"{split[1]} {' '.join(std)}") if split else _split_pose(line)


def _check_columns(where: str, name: str, words: list[str]) -> None:
    """Raises `InputError` where further numbers follow a pose, and its first ones were taken for part of the name."""
    for more in (1, 2):
        numbers = [*name.split()[1:][-more:], *words]
        numeric = len(numbers) == 7 + more and all(map(is_number, numbers)) and any(map(float, words))
        if numeric and _is_unit(numbers[:4]) and not _is_unit(words[:4]):
            raise InputError(
                f"{where}: {7 + more} numbers instead of 7 behind the name: write 'name qw qx qy qz tx ty tz'; standard "
                "deviations of a prior have a unit: '5 10%' (degrees, share of the depth) or '5 0.3m'"
            )


def _is_unit(quaternion: list[str]) -> bool:
    return 0.9 < math.hypot(*map(float, quaternion)) < 1.1


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


def read_benchmark_poses(
    path: Path, missing: list[str] | None = None, stds: dict[str, tuple[str, list[str]]] | None = None
) -> dict[str, torch.Tensor]:
    """Read lines ``name qw qx qy qz tx ty tz``; names may hold blanks and begin with "#".

    Args:
        path: The file.
        missing: Gets the names whose lines are NaN or have a quaternion of zeros: they say that there is no pose.
        stds: Where given, two more words may follow, how far off the pose may be, as ``5 10%``: gets file and line, and these
            words, by name.

    Returns:
        camera_from_map [4, 4] by name, in the file's order. A line that was commented out gives a name that no image has.

    Raises:
        InputError: Naming file and line of what is malformed.
    """
    poses: dict[str, torch.Tensor] = {}
    for where, name, rest in read_named_rows(path, _split_pose if stds is None else _split_rough_pose, _REMEDY):
        words = rest.split()
        std = words[7:] if stds is not None and len(words) == 9 else []
        words = words[: len(words) - len(std)]
        try:
            _check_columns(where, name, words)
            if len(words) != 7:
                raise InputError(f"{where}: {len(words) + 1} words instead of 8: write 'name qw qx qy qz tx ty tz'")
            if name in poses:
                raise InputError(f"{where}: a second pose for '{name}': keep one")
            w, x, y, z, *translation = words
            poses[name] = _pose_or_nan([*translation, x, y, z, w], where)
        except InputError:
            if not may_be_comment(name):
                raise
            continue
        if std:
            stds[name] = where, std
    found = {name: pose for name, pose in poses.items() if not bool(pose.isnan().any())}
    if missing is not None:
        missing += poses.keys() - found.keys()
    return found


def write_benchmark_poses(path: Path, camera_from_map: Mapping[str, torch.Tensor]) -> None:
    """Write poses by name in the order given, atomically."""
    lines = []
    for name, pose in camera_from_map.items():
        x, y, z, w = se3.quaternion_from_rotation(pose[:3, :3]).tolist()
        lines.append(f"{name} " + " ".join(f"{v:.12g}" for v in (w, x, y, z, *pose[:3, 3].tolist())) + "\n")
    write_text(path, "".join(lines))


def _pose_or_nan(words: list[str], where: str) -> torch.Tensor:
    """As `parse_pose`; NaN where the words say that there is no pose, by NaN or a quaternion of zeros."""
    if all(map(is_number, words)):
        values = np.array(words, float)
        if np.isnan(values).any() or not values[3:].any():
            return torch.full((4, 4), torch.nan, dtype=torch.float64)
    return parse_pose(words, where)


def parse_pose(words: list[str], what: str) -> torch.Tensor:
    """a_from_b [4, 4] from the words ``x y z qx qy qz qw``. Raises `InputError` naming `what`."""
    if len(words) != 7:
        raise InputError(f"{what} takes 7 numbers x y z qx qy qz qw, not {len(words)}")
    values = parse_numbers(what, words)
    return _pose(what, values[:3], values[3:])


def _pose(where: str, translation: list[float], quaternion_xyzw: list[float]) -> torch.Tensor:
    length = math.sqrt(sum(value * value for value in quaternion_xyzw))
    if not 0.9 < length < 1.1:
        raise InputError(f"{where}: the quaternion has length {length:.3g} instead of 1: check the order of the columns")
    return se3.from_rotation_translation(
        se3.rotation_from_quaternion(torch.tensor(quaternion_xyzw, dtype=torch.float64)),
        torch.tensor(translation, dtype=torch.float64),
    )

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses of all images of a drive, not of its keyframes alone: the others are localized in the finished map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.frames import UnusableFrame
from ..io.trajectory import Trajectory, write_benchmark_poses, write_tum
from ..io.work_folder import WorkFolder
from ..localization import Localizer
from ..mapping.build.drive import SPARE
from ..mapping.build.drive_frames import DriveFrames
from ..mapping.build.keyframes import PosedFrame
from ..mapping.map_file import Map
from .held_out import nearby_std


@dataclass(frozen=True, eq=False)
class DrivePoses:
    """The images of a drive in the order of time.

    Attributes:
        names: [N], of the images.
        stamps: int64 [N], nanoseconds, or numbers of images without.
        map_from_camera: float64 [N, 4, 4], NaN where none was found that can be believed.
        reasons: [N], why there is none; empty.
    """

    names: tuple[str, ...]
    stamps: np.ndarray
    map_from_camera: torch.Tensor
    reasons: tuple[str, ...]

    @property
    def found(self) -> np.ndarray:
        """Bool [N]."""
        return np.array([not reason for reason in self.reasons], bool)

    def write(self, path: Path, stamped: bool) -> None:
        """The poses found: a TUM file of map_from_camera, or the benchmark's lines of name and camera_from_map without stamps."""
        poses = self.map_from_camera[self.found]
        if stamped:
            write_tum(path, Trajectory(self.stamps[self.found], poses))
        else:
            names = [name for name, reason in zip(self.names, self.reasons) if not reason]
            write_benchmark_poses(path, dict(zip(names, se3.inverse(poses))))


def localize_drive(
    map_: Map,
    frames: DriveFrames,
    extractor: Extractor,
    work: WorkFolder,
    refined_camera: bool = False,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> DrivePoses:
    """Localize each image that is no keyframe, beginning between the keyframes before and after it.

    Args:
        map_: The map of the drive.
        frames: Of the drive, as the map was made of them.
        extractor: That made the map.
        work: Keeps the poses of the images between two keyframes, once they are found.
        refined_camera: Whether the map's cameras are right, rather than the frames'.
        progress: Called with the keyframes passed and all of them.
    """
    between = _Between.of(map_, frames, extractor, work, refined_camera)
    stamps = between.stamps

    def stretch(stamp: int) -> int:
        return int(np.searchsorted(stamps, stamp, side="right"))

    def stored(part: int) -> str:
        return f"all/{part:06d}"

    unfinished = (frame for frame in frames(lambda stamp: not work.path(f"{stored(stretch(stamp))}.npz").is_file()))
    for part, group in groupby(unfinished, lambda frame: stretch(frame.stamp_ns)):
        progress(part, len(stamps), "keyframes passed, localizing the images between")
        work.arrays(stored(part), partial(between.localize, group))
    empty = {"name": np.empty(0, "U1"), "stamp": np.empty(0, np.int64), "pose": np.empty((0, 4, 4)), "reason": np.empty(0, "U1")}
    parts = [work.arrays(stored(part), lambda: empty) for part in range(len(stamps) + 1)]
    names, when, poses, reasons = (np.concatenate([part[key] for part in parts]) for key in empty)
    return DrivePoses(tuple(names.tolist()), when, torch.from_numpy(poses), tuple(reasons.tolist()))


@dataclass(frozen=True, eq=False)
class _Between:
    """Keyframes in the order of time, those that are posed and not in the map among them: stamps, poses, depths, cameras."""

    stamps: np.ndarray
    poses: torch.Tensor
    depth: np.ndarray
    camera: list[Camera]
    localizer: Localizer
    refined_camera: bool

    @classmethod
    def of(cls, map_: Map, frames: DriveFrames, extractor: Extractor, work: WorkFolder, refined_camera: bool) -> _Between:
        spare = work.arrays(SPARE, dict)
        names, poses = (
            [*map_.keyframe_names, *spare["name"].tolist()],
            torch.cat((map_.map_from_keyframe, torch.from_numpy(spare["pose"]))),
        )
        if frames.stamped:
            stamps = np.array([int(Path(name).stem) for name in names], np.int64)
        else:
            number = {path.name: k for k, path in enumerate(frames.paths)}
            stamps = np.array([number[name] for name in names], np.int64)
        depth = np.concatenate((map_.keyframe_depth, np.full(len(spare["name"]), np.median(map_.keyframe_depth))))
        camera = [map_.cameras[k] for k in (*map_.keyframe_camera, *map_.keyframe_camera[:1].repeat(len(spare["name"])))]
        order = np.argsort(stamps, kind="stable")
        return cls(
            stamps[order], poses[order], depth[order], [camera[k] for k in order], Localizer(map_, extractor), refined_camera
        )

    def localize(self, frames) -> dict[str, np.ndarray]:
        """As arrays."""
        rows = [(getattr(frame, "name", "") or f"{frame.stamp_ns}.png", frame.stamp_ns, *self._pose(frame)) for frame in frames]
        names, stamps, poses, reasons = zip(*rows)
        return {"name": np.array(names), "stamp": np.array(stamps), "pose": np.stack(poses), "reason": np.array(reasons)}

    def _pose(self, frame: PosedFrame | UnusableFrame) -> tuple[np.ndarray, str]:
        unknown = np.full((4, 4), np.nan)
        if isinstance(frame, UnusableFrame):
            return unknown, frame.reason
        after = int(np.searchsorted(self.stamps, frame.stamp_ns))
        poses, last = self.poses, len(self.stamps) - 1
        if after <= last and self.stamps[after] == frame.stamp_ns:
            return poses[after].numpy(), ""
        a, b = max(after - 1, 0), min(after, last)
        way = (frame.stamp_ns - self.stamps[a]) / max(int(self.stamps[b] - self.stamps[a]), 1)
        prior = se3.interpolate(poses[a], poses[b], float(np.clip(way, 0.0, 1.0)))
        nearest = a if way < 0.5 else b
        std = nearby_std(*se3.pose_difference(poses[a], poses[b]), float(self.depth[nearest]))
        camera = self.camera[nearest].of_image(frame.image) if self.refined_camera else frame.camera
        found = self.localizer.locate(frame.image, camera, prior, std)
        return (found.map_from_camera.numpy(), "") if found.success else (unknown, found.reason)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Several cameras of one robot in a map: the leading one chooses the keyframes, and the images of the others that are nearest to
each in time become keyframes too, each with its own calibration, stamp and pose."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from ...errors import InputError
from ...geometry import se3
from ...io.frames import UnusableFrame
from ...io.rig_images import MAX_AGE_NS, nearest_stamps
from ...io.trajectory import Trajectory
from .drive_frames import DriveBag
from .keyframes import KeyframeFiles, PosedFrame
from .posed_bag import PosedBag
from .posed_frames import SolvedKeyframes, Solver

T = TypeVar("T", bound=PosedBag | DriveBag)
_LARGEST_GAP_NS = 2_000_000_000
"""Between keyframes that are further apart nothing is interpolated."""


class RigFrames(Generic[T]):
    """The frames of the leading camera, and those of the others at its keyframes; else as the leading camera's source. Use it in
    a `with` statement.

    Args:
        names: Of the cameras, the leading one first.
        open_: Opens the frames of one camera in the bag.

    Raises:
        InputError: As `open_`, naming the camera.
    """

    def __init__(self, names: Sequence[str], open_: Callable[[str], T]) -> None:
        if len(set(names)) < len(names):
            raise InputError(f"--cameras {','.join(names)}: a camera is named twice")
        self.name, self._stack = names[0], contextlib.ExitStack()
        self.sources: dict[str, T] = {}
        with contextlib.ExitStack() as opened:
            for name in names:
                try:
                    self.sources[name] = opened.enter_context(open_(name))
                except InputError as error:
                    raise InputError(f"camera {name}: {error}") from error
            self._stack = opened.pop_all()

    def __enter__(self) -> RigFrames[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getattr__(self, what: str):
        return getattr(self.sources[self.name], what)

    @property
    def said(self) -> str:
        """As of the leading camera's source."""
        return f"cameras {', '.join(self.sources)}; {self.sources[self.name].said}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read so far."""
        every = {name: getattr(source, "notes", source.bag.notes) for name, source in self.sources.items()}
        own = every.pop(self.name)
        return (*own, *(f"{name}: {note}" for name, notes in every.items() for note in notes if note not in own))

    def __call__(self, wanted: Callable[[int], bool] = lambda stamp_ns: True) -> Iterator[PosedFrame | UnusableFrame]:
        """The leading camera's."""
        return _named(self.name, self.sources[self.name](wanted))

    def companions(self, stamps_ns: np.ndarray) -> Iterator[PosedFrame | UnusableFrame]:
        """The other cameras' frames nearest to stamps, int64 [K] rising; camera by camera, each in the order of time."""
        for name, source in self.sources.items():
            if name != self.name:
                own = np.unique(np.fromiter(source.bag.image_stamps(), np.int64))
                nearest = nearest_stamps(own, stamps_ns)
                wanted = frozenset(nearest[np.abs(nearest - stamps_ns) <= MAX_AGE_NS].tolist())
                yield from _named(name, source(wanted.__contains__))


def _named(name: str, frames: Iterator[PosedFrame | UnusableFrame]) -> Iterator[PosedFrame | UnusableFrame]:
    for frame in frames:
        if isinstance(frame, UnusableFrame):
            yield replace(frame, reason=f"{name}: {frame.reason}")
        else:
            yield replace(frame, name=f"{name}/{frame.stamp_ns}.png")


class RigSolver:
    """Poses of all cameras' keyframes where those of the leading one are found by another solver.

    Args:
        solve: For the leading camera.
        frames: With odometry's poses where there is odometry.
    """

    def __init__(self, solve: Solver, frames: RigFrames[DriveBag]) -> None:
        self._solve, self._frames = solve, frames

    def __call__(self, images: KeyframeFiles, names: list[str]) -> SolvedKeyframes:
        """As of `Solver`. Raises `InputError` as the solver of the leading camera."""
        cameras = np.array([name.rpartition("/")[0] for name in names])
        stamps = np.array([int(Path(name).stem) for name in names], np.int64)
        lead = np.flatnonzero(cameras == self._frames.name)
        own = ([values[k] for k in lead] for values in (images.paths, images.cameras, names))
        paths, calibrations, own_names = own
        found = self._solve(KeyframeFiles(paths, calibrations, images.map_from_camera[lead], images.masks), own_names)
        solved = lead[found.keyframe]
        moving = self._frames.has_odometry  # then map_from_odom is interpolated, which hardly moves; else map_from_base
        before = images.map_from_camera[solved] if moving else self._frames.base_from_camera
        way = Trajectory(stamps[solved], found.map_from_camera @ se3.inverse(before))
        keyframes, poses, used = [solved], [found.map_from_camera], list(found.cameras)
        for camera, source in self._frames.sources.items():
            rows = np.flatnonzero(cameras == camera)
            rows = rows[np.abs(stamps[rows] - nearest_stamps(way.stamps_ns, stamps[rows])) <= MAX_AGE_NS]
            if camera == self._frames.name or not len(rows):
                continue
            at = stamps[rows].clip(*way.stamps_ns[[0, -1]]) if moving else stamps[rows]
            pose, known = way.at(at, _LARGEST_GAP_NS)
            keyframes.append(rows[known])
            poses.append((pose @ (images.map_from_camera[rows] if moving else source.base_from_camera))[known])
            used += [images.cameras[k] for k in rows[known]]
        return SolvedKeyframes(np.concatenate(keyframes), torch.cat(poses), used, found.notes, lead[found.spare])

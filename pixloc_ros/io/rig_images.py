# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Several cameras of one robot: which images make a frame, and bags that hold them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from ..errors import InputError
from .bags import BagOptions, BagReader
from .frames import CameraFrame, Event, MountedFrame, UnusableFrame

T = TypeVar("T")
SILENT_NS = 350_000_000
"""A camera that gave no image for so long leads no frame: the next in the list does."""
MAX_AGE_NS, WAIT_NS = 150_000_000, 40_000_000
"""An image further from its frame in time is not used, and so long a frame waits for those of the other cameras."""


class LatestImages(Generic[T]):
    """Makes frames of the images of several cameras, in the order of their arrival.

    Each image of the leading camera (the first of the list that is alive) is a frame, with the images of the others that are
    nearest in time; those are awaited a little, but not longer than until the leading camera's next.

    Attributes:
        late: Names of cameras that are not awaited.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self.late: set[str] = set()
        self.restart()

    def restart(self) -> None:
        """Time begins anew."""
        self._newest: dict[str, tuple[int, T]] = {}
        self._heard_ns: dict[str, int] = {}
        self._begin_ns: int | None = None
        self._frame: dict[str, tuple[int, T]] = {}
        self._last_ns: int | None = None

    def add(self, name: str, stamp_ns: int, image: T | None) -> dict[str, tuple[int, T]]:
        """Of an image that came (None: one that cannot be used), the frame that it completes: stamps and images by camera, the
        leading one first; empty while others are awaited. Stamps of leading images rise."""
        done: dict[str, tuple[int, T]] = {}
        if self._frame and stamp_ns > self._lead_ns + WAIT_NS * (name != next(iter(self._frame))):
            done = self.rest()
        self._begin_ns = stamp_ns if self._begin_ns is None else self._begin_ns
        if image is not None:
            self._heard_ns[name] = stamp_ns
            self._offer(name, stamp_ns, image)
        if self._frame and all(
            self._heard_ns.get(one, -1) >= self._lead_ns for one in self._alive(stamp_ns) if one not in self.late
        ):
            return done or self.rest()
        return done

    def rest(self) -> dict[str, tuple[int, T]]:
        """The frame that waits, as it is."""
        frame, self._frame = self._frame, {}
        return frame

    @property
    def waiting_ns(self) -> int | None:
        """Stamp of the frame that waits; None without one."""
        return self._lead_ns if self._frame else None

    @property
    def _lead_ns(self) -> int:
        return next(iter(self._frame.values()))[0]

    def _alive(self, stamp_ns: int) -> list[str]:
        return [one for one in self._names if stamp_ns - self._heard_ns.get(one, self._begin_ns) < SILENT_NS]

    def _offer(self, name: str, stamp_ns: int, image: T) -> None:
        if self._alive(stamp_ns)[0] == name and (self._last_ns is None or stamp_ns > self._last_ns):
            self._last_ns = stamp_ns
            near = {one: at for one, at in self._newest.items() if one != name and abs(at[0] - stamp_ns) <= MAX_AGE_NS}
            self._frame = {name: (stamp_ns, image)} | near
        elif self._frame and abs(stamp_ns - self._lead_ns) <= abs(
            self._frame.get(name, (self._lead_ns - MAX_AGE_NS,))[0] - self._lead_ns
        ):
            self._frame[name] = stamp_ns, image
        self._newest[name] = stamp_ns, image


class RigReader(BagReader):
    """A bag with several cameras: its frames hold the images of all (`CameraFrame.others`). Topics, frames and mount of a
    `BagReader` are those of the first camera.

    Raises:
        InputError: As `BagReader`, for every camera; there are no images below a name.
    """

    def __init__(self, path: Path, options: BagOptions, names: Sequence[str]) -> None:
        if len(set(names)) < len(names):
            raise InputError(f"--cameras {','.join(names)}: a camera is named twice")
        if options.base_from_camera is not None:
            raise InputError("a mount given by hand is one camera's: let TF say where the cameras are, or leave out --cameras")
        self.cameras = tuple(names)
        self._others: dict[str, BagReader] = {}
        super().__init__(path, options)
        try:
            for name in names[1:]:
                own = {"image": None, "camera_info": None, "odometry": "none", "truth": "none", "base_frame": self.base_frame}
                self._others[name] = _OneOf(self.path, replace(options, **own), name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        for reader in self._others.values():
            reader.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read so far."""
        others = (f"{name}: {note}" for name, reader in self._others.items() for note in reader.notes)
        return (*super().notes, *(note for note in others if note.partition(": ")[2] not in super(RigReader, self).notes))

    @property
    def readers(self) -> dict[str, BagReader]:
        """By camera; this one is the first's."""
        return {self.cameras[0]: self, **self._others}

    def _image_candidates(self) -> list[str]:
        return _below(super()._image_candidates(), self.cameras[0], self.path)

    def events(self) -> Iterator[Event]:
        """Odometry and frames in the order of their stamps, each with the images of all cameras."""
        latest: LatestImages[CameraFrame] = LatestImages(self.cameras)
        own = ((event.stamp_ns, 1, self.cameras[0], event) for event in super().events())
        others = (_named(name, reader) for name, reader in self._others.items())
        for stamp_ns, _, name, event in heapq.merge(own, *others, key=lambda item: item[:2]):
            if isinstance(event, CameraFrame | UnusableFrame):
                usable = isinstance(event, CameraFrame)
                frame = latest.add(name, stamp_ns, replace(event, name=name) if usable else None)
                if not usable:
                    self._left_out[f"{name}: {event.reason}"] += 1
                if frame:
                    yield self._together(frame)
            else:
                yield event
        if frame := latest.rest():
            yield self._together(frame)

    def _together(self, frame: dict[str, tuple[int, CameraFrame]]) -> CameraFrame:
        lead, *rest = (image for _, image in frame.values())
        return replace(lead, others=tuple(MountedFrame(one, self.mount_of(one)) for one in rest))

    def frames_at(self, stamps_ns: frozenset[int]) -> Iterator[CameraFrame]:
        """The first camera's usable images of these stamps, each with those of the others that are nearest in time."""
        wanted = np.array(sorted(stamps_ns), np.int64)
        near: dict[int, list[MountedFrame]] = {stamp_ns: [] for stamp_ns in wanted.tolist()}
        for name, reader in self._others.items():
            nearest = nearest_stamps(np.unique(np.fromiter(reader.image_stamps(), np.int64)), wanted)
            found = {one.stamp_ns: one for one in reader.frames(frozenset(nearest.tolist()).__contains__)}
            for stamp_ns, one_ns in zip(wanted.tolist(), nearest.tolist()):
                if isinstance(found.get(one_ns), CameraFrame) and abs(one_ns - stamp_ns) <= MAX_AGE_NS:
                    frame = replace(found[one_ns], name=name)
                    near[stamp_ns].append(MountedFrame(frame, self.mount_of(frame)))
        for frame in self.frames(stamps_ns.__contains__):
            if isinstance(frame, CameraFrame):
                yield replace(frame, name=self.cameras[0], others=tuple(near[frame.stamp_ns]))

    def mount_of(self, frame: CameraFrame) -> torch.Tensor:
        """base_from_camera of a frame's own camera."""
        return self._others[frame.name].base_from_camera if frame.name in self._others else self.base_from_camera


class _OneOf(BagReader):
    """One of several cameras in a bag."""

    def __init__(self, path: Path, options: BagOptions, name: str) -> None:
        self.name = name
        super().__init__(path, options)

    def _image_candidates(self) -> list[str]:
        return _below(super()._image_candidates(), self.name, self.path)


def nearest_stamps(stamps_ns: np.ndarray, wanted_ns: np.ndarray) -> np.ndarray:
    """Of stamps, int64 [N] rising and not empty, those nearest to others [M]."""
    after = np.searchsorted(stamps_ns, wanted_ns).clip(1, max(len(stamps_ns) - 1, 1))
    before, after = stamps_ns[after - 1], stamps_ns[np.minimum(after, len(stamps_ns) - 1)]
    return np.where(wanted_ns - before <= after - wanted_ns, before, after)


def open_bag(path: Path, options: BagOptions, cameras: Sequence[str]) -> BagReader:
    """Of the one camera in a bag, or of those named. Raises InputError as the readers."""
    if not cameras:
        return BagReader(path, options)
    return RigReader(path, options, cameras) if len(cameras) > 1 else _OneOf(path, options, cameras[0])


def _named(name: str, reader: BagReader) -> Iterator[tuple]:
    return ((frame.stamp_ns, 0, name, frame) for frame in reader.frames())


def _below(topics: list[str], name: str, path: Path) -> list[str]:
    found = [topic for topic in topics if f"/{name.strip('/')}/" in topic]
    if not found:
        raise InputError(f"{path} has no images below /{name}: its image topics are {', '.join(topics) or 'none'}")
    return found

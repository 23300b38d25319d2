# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A bag played differently from how it was recorded: every way to make a drive worse is a `Change` of its stream of events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..geometry.cameras import Camera
from ..io.bags import BagReader
from ..io.frames import CameraFrame, Event, OdometryMessage
from ..io.trajectory import Trajectory

OdometryChange = Callable[[int, torch.Tensor], torch.Tensor]
"""Stamp and odom_from_base float64 [4, 4] → another odom_from_base; called in the order of time."""


@dataclass(frozen=True)
class Change:
    """What becomes of a drive. Stamps that the functions are called with are those of the recording.

    Attributes:
        image: Image (uint8 [H, W] or [H, W, 3]) and stamp → another image, never changed in place.
        odometry: Makes a function of odometry, which may keep a state, for one pass through the bag.
        keeps: Stamp and whether it is an image's → whether the message is left.
        stamp: Stamp → the stamp that is played, increasing.
        focal: Factor of the calibration's focal lengths.
        late_ns: What the images' stamps are too late by.
    """

    image: Callable[[np.ndarray, int], np.ndarray] | None = None
    odometry: Callable[[], OdometryChange] | None = None
    keeps: Callable[[int, bool], bool] = lambda stamp_ns, is_image: True
    stamp: Callable[[int], int] = lambda stamp_ns: stamp_ns
    focal: float = 1.0
    late_ns: int = 0

    def camera(self, camera: Camera) -> Camera:
        """The calibration with the wrong focal lengths."""
        if self.focal == 1.0:
            return camera
        params = camera.params.clone()
        params[..., :2] *= self.focal
        return replace(camera, params=params)


class AlteredBag:
    """A `BagReader` of a drive with a change; what the change does not touch is the bag's."""

    def __init__(self, bag: BagReader, change: Change | None, truth: Trajectory | None = None, cause: Any = None) -> None:
        """Wrap an open bag.

        Args:
            bag: As recorded.
            change: What happens to it, None for nothing.
            truth: Replaces the bag's.
            cause: Where the change comes from, for whoever asks.
        """
        self._bag, self._truth, self.cause = bag, truth, cause
        self.unchanged, self.change = change is None, change or Change()

    def __getattr__(self, name: str) -> object:
        return getattr(self._bag, name)

    def events(self) -> Iterator[Event]:
        """As of `BagReader.events`."""
        if self.unchanged:
            return self._bag.events()
        events = self._changed(self._bag.events())
        return _images_later(events, self.change.late_ns) if self.change.late_ns else events

    def _changed(self, events: Iterable[Event]) -> Iterator[Event]:
        change = self.change
        odometry = change.odometry() if change.odometry is not None else None
        for event in events:
            stamp_ns = event.stamp_ns
            if not change.keeps(stamp_ns, not isinstance(event, OdometryMessage)):
                continue
            if isinstance(event, CameraFrame):
                image = event.image if change.image is None else change.image(event.image, stamp_ns)
                event = replace(event, image=image, camera=change.camera(event.camera))
            elif isinstance(event, OdometryMessage) and odometry is not None:
                event = replace(event, odom_from_base=odometry(stamp_ns, event.odom_from_base))
            yield replace(event, stamp_ns=change.stamp(stamp_ns))

    def image_stamps(self) -> Iterator[int]:
        """As of `BagReader.image_stamps`: of the images that are left, as played."""
        stamps = (stamp for stamp in self._bag.image_stamps() if self.change.keeps(stamp, True))
        return (self.change.stamp(stamp) + self.change.late_ns for stamp in stamps)

    @property
    def image_count(self) -> int:
        return self._bag.image_count if self.unchanged else sum(1 for _ in self.image_stamps())

    def odometry(self) -> Trajectory:
        """As of `BagReader.odometry`, with the change of the poses."""
        odometry = self._bag.odometry()
        if self.change.odometry is None:
            return odometry
        change = self.change.odometry()
        samples = zip(odometry.stamps_ns.tolist(), odometry.map_from_body)
        return Trajectory.from_poses([(stamp_ns, change(stamp_ns, pose)) for stamp_ns, pose in samples])

    def truth(self) -> Trajectory:
        """As of `BagReader.truth`: never changed."""
        return self._bag.truth() if self._truth is None else self._truth


def _images_later(events: Iterable[Event], offset_ns: int) -> Iterator[Event]:
    """The images' stamps moved, everything in the order of stamps; at equal stamps odometry first."""
    waiting: deque[Event] = deque()
    for event in events:
        if not isinstance(event, OdometryMessage):
            waiting.append(replace(event, stamp_ns=event.stamp_ns + offset_ns))
            continue
        while waiting and waiting[0].stamp_ns < event.stamp_ns:
            yield waiting.popleft()
        yield event
    yield from waiting

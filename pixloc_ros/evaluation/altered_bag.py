# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A bag played differently from how it was recorded: every way to make a drive worse is a `Change` of its stream of events.

Such a drive can be exported as a bag for other systems, with the same images, odometry, calibration and stamps as ours sees.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.bag_writer import BagWriter, new_bag
from ..io.bags import BagReader
from ..io.frames import CameraFrame, Event, OdometryMessage
from ..io.messages import RawMessage, frame_name, message_stamp
from ..io.trajectory import Trajectory, twist_of_poses
from .runs import TRUTH_GAP_NS

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
        odometry, twists = (change.odometry(), self.twist_changes()) if change.odometry is not None else (None, {})
        for event in events:
            stamp_ns = event.stamp_ns
            if not change.keeps(stamp_ns, not isinstance(event, OdometryMessage)):
                continue
            if isinstance(event, CameraFrame):
                image = event.image if change.image is None else change.image(event.image, stamp_ns)
                event = replace(event, image=image, camera=change.camera(event.camera))
            elif isinstance(event, OdometryMessage) and odometry is not None:
                twist = event.twist if event.twist is None else changed_twist(event.twist, twists.get(stamp_ns))
                event = replace(event, odom_from_base=odometry(stamp_ns, event.odom_from_base), twist=twist)
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

    def twist_changes(self) -> dict[int, np.ndarray]:
        """What the change of the poses adds to the velocity float64 [6] in base axes, by stamp as recorded."""
        before, after = self._bag.odometry(), self.odometry()
        changes = [twist_of_poses(track.stamps_ns, track.map_from_body) for track in (before, after)]
        return dict(zip(before.stamps_ns.tolist(), changes[1] - changes[0]))

    def truth(self) -> Trajectory:
        """As of `BagReader.truth`: never changed."""
        return self._bag.truth() if self._truth is None else self._truth


def changed_twist(twist: np.ndarray, change: np.ndarray | None) -> np.ndarray:
    """A velocity [6] with its change; one that is all zero, as drivers write that do not measure it, as it is."""
    return twist if change is None or not twist.any() else twist + change


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


def export_bag(path: Path, drive: AlteredBag) -> None:
    """Write a rosbag2 (MCAP) folder of what a localizer needs: images (raw topics as mono8 or rgb8, compressed ones as PNG, so
    that nothing more is lost), CameraInfo, odometry, transforms and truth. Raises InputError where the folder cannot be written.

    Images that cannot be used are left out. The folder appears when it is complete, and replaces an earlier one.
    """
    path = Path(path)
    if path.exists() and not (path / "metadata.yaml").is_file():
        raise InputError(f"{path} exists and is no bag: give another folder with --export")
    with new_bag(path) as bag:
        _Exporter(bag, drive).write()


class _Exporter:
    def __init__(self, bag: BagWriter, drive: AlteredBag) -> None:
        self._bag, self._drive = bag, drive
        self._odometry = drive.odometry() if drive.change.odometry is not None else None
        self._twists = drive.twist_changes() if drive.change.odometry is not None else {}
        self._offset_ns = drive.change.late_ns + drive.options.time_offset_ns

    def write(self) -> None:
        """Images come from the drive's events; everything else is copied in the order of recording, changed where it must be."""
        drive = self._drive
        moving, static = drive.transform_topics()
        topics = [drive.camera_info_topic, *moving, *static]
        topics += [t for t in (drive.odometry_topic, drive.truth_topic) if t and t != "tf" and not t.startswith("tf:")]
        images = ((image[0], image) for image in self._images())
        others = ((raw.time_ns, self._changed(raw, static)) for raw in drive.raw_messages(dict.fromkeys(topics)))
        for _, message in heapq.merge(images, others, key=lambda timed: timed[0]):
            self._bag.put(*message)

    def _changed(self, raw: RawMessage, static: list[str]) -> tuple[int, str, object]:
        message = self._bag.store.deserialize_cdr(raw.cdr, raw.type_name)
        drive, time_ns = self._drive, raw.time_ns
        if raw.topic == drive.camera_info_topic:
            time_ns += self._offset_ns
            stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec + self._offset_ns
            stamp = replace(message.header.stamp, sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
            message = replace(message, header=replace(message.header, stamp=stamp))
            if drive.change.focal != 1.0:
                message = replace(message, k=self._stretched(message.k, 3), p=self._stretched(message.p, 4))
        elif self._odometry is not None and raw.topic == drive.odometry_topic:
            pose = self._moved(message.pose.pose, message_stamp(message), "position", "orientation")
            twist = self._twist(message.twist.twist, message_stamp(message))
            message = replace(message, pose=replace(message.pose, pose=pose), twist=replace(message.twist, twist=twist))
        elif self._odometry is not None and hasattr(message, "transforms") and raw.topic not in static:
            message = replace(message, transforms=[self._transform(t) for t in message.transforms])
        return time_ns, raw.topic, message

    def _images(self) -> Iterator[tuple[int, str, object]]:
        drive = self._drive
        for frame in drive.events():
            if not isinstance(frame, CameraFrame):
                continue
            grey, (height, width) = frame.image.ndim == 2, frame.image.shape[:2]
            if drive.image_compressed:
                encoding = "png"
                data = cv2.imencode(".png", frame.image if grey else frame.image[..., ::-1])[1].ravel()
            else:
                encoding, data = "mono8" if grey else "rgb8", np.ascontiguousarray(frame.image).reshape(-1)
            message = self._bag.image(frame.stamp_ns, drive.camera_frame, (width, height), encoding, data)
            yield frame.stamp_ns, drive.image_topic, message

    def _stretched(self, matrix: np.ndarray, columns: int) -> np.ndarray:
        """A row-major matrix with its two focal lengths wrong, as `Change.camera` makes them."""
        matrix = np.array(matrix, float)
        matrix[[0, columns + 1]] *= self._drive.change.focal
        return matrix

    def _transform(self, transform):
        """odom → base with the change of the odometry; any other as it is."""
        names = frame_name(transform.header.frame_id), frame_name(transform.child_frame_id)
        if names != (self._drive.odom_frame, self._drive.base_frame):
            return transform
        return replace(transform, transform=self._moved(transform.transform, message_stamp(transform), "translation", "rotation"))

    def _twist(self, twist, stamp_ns: int):
        """A Twist that fits the poses."""
        parts = ("linear", "angular")
        vector = np.array([getattr(getattr(twist, part), axis) for part in parts for axis in "xyz"])
        numbers = changed_twist(vector, self._twists.get(stamp_ns)).reshape(2, 3).tolist()
        changed = {part: replace(getattr(twist, part), **dict(zip("xyz", row))) for part, row in zip(parts, numbers)}
        return replace(twist, **changed)

    def _moved(self, message, stamp_ns: int, translation: str, rotation: str):
        """A pose or transform that says what the drive's odometry says; as it is where that is not known."""
        poses, known = self._odometry.at(np.array([stamp_ns]), TRUTH_GAP_NS)
        if not known[0]:
            return message
        pose: torch.Tensor = poses[0]
        place = dict(zip("xyz", pose[:3, 3].tolist()))
        turn = dict(zip("xyzw", se3.quaternion_from_rotation(pose[:3, :3]).tolist()))
        changed = {translation: place, rotation: turn}
        return replace(message, **{part: replace(getattr(message, part), **value) for part, value in changed.items()})

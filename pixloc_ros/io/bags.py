# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Recorded drives (rosbag2 in sqlite3 or MCAP, ROS 1 bags) as odometry and camera frames in the order of their stamps.

Needs no ROS. Header stamps decide the order, never the times of recording: the same bag gives the same sequence always.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from rosbags.typesys import Stores, get_typestore

from ..errors import InputError
from ..geometry import se3
from . import messages
from .bag_storage import BagStorage
from .calibration import Calibration, try_calibration
from .frames import CameraFrame, Event, OdometryMessage, UnusableFrame
from .messages import RawMessage
from .trajectory import Trajectory
from .transforms import RecordedTransforms

_POSE_TYPES = (messages.POSE, messages.POSE_COVARIANCE, messages.ODOMETRY, messages.TRANSFORM)
_NOT_PICTURES = ("depth", "disparity", "mask", "theora")

REORDER_NS = 1_000_000_000
"""Messages are sorted by stamp within this span; one that comes later than that is passed on as it comes."""
TF_GAP_NS = 1_000_000_000
"""Moving transforms are interpolated between two that are no further apart."""
_CLOCKS_APART_NS = 10_000_000_000
"""Stamps of images and odometry that were recorded at one time are less apart, unless they come from two clocks."""


@dataclass(frozen=True)
class BagOptions:
    """What cannot be guessed from a bag; None is detected.

    Attributes:
        image: Topic.
        camera_info: Topic.
        odometry: Topic, "tf" (odom_frame → base_frame) or "none".
        truth: Topic, "none", or "tf:PARENT:CHILD", along as many transforms as lead there.
        odom_frame: Name of the frame.
        base_frame: Name of the frame.
        base_from_camera: float64 [4, 4], instead of the static transforms.
        time_offset_s: Added to the stamps of the images and of their calibration, as the node's parameter time_offset does.
        recording_time: Whether images and their calibration have the time when they were recorded instead of their stamp.
    """

    image: str | None = None
    camera_info: str | None = None
    odometry: str | None = None
    truth: str | None = None
    odom_frame: str = "odom"
    base_frame: str | None = None
    base_from_camera: torch.Tensor | None = None
    time_offset_s: float = field(default=0.0, repr=False)
    recording_time: bool = False

    @property
    def time_offset_ns(self) -> int:
        """`time_offset_s` in nanoseconds, as stamps are."""
        return round(self.time_offset_s * 1e9)


class BagReader:
    """An open bag; use it in a `with` statement.

    Attributes:
        image_topic: Found or chosen.
        camera_info_topic: Likewise.
        odometry_topic: Likewise; "tf", or None where there is none.
        truth_topic: Likewise; None where there is none.
        base_frame: Name.
        odom_frame: Name.
        camera_frame: Name.
        image_compressed: Whether the images are CompressedImages.
        base_from_camera: float64 [4, 4].
        transforms: Between the frames.

    Raises:
        InputError: Something is missing, or there are several candidates.
    """

    def __init__(self, path: Path, options: BagOptions = BagOptions()) -> None:
        self.path, self.options = Path(path), options
        self._storage, self._left_out = BagStorage(self.path), Counter()
        try:
            self._types = {c.topic: c.msgtype for c in self._storage.connections}
            self._find_topics()
        except BaseException as error:
            self.close()
            if isinstance(error, InputError) and self._storage.notes:
                raise InputError(f"{error}. {'. '.join(self._storage.notes)}") from None
            raise

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._storage.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read so far."""
        notes = *self._storage.notes, *self.transforms.notes, *getattr(self._first_calibration, "notes", ())
        return (*notes, *(f"{what}: {number} left out" for what, number in self._left_out.items() if number))

    # ---- what is in it

    def events(self) -> Iterator[Event]:
        """Odometry and frames in the order of their stamps; at equal stamps odometry first."""
        calibration = self._first_calibration
        for kind, stamp_ns, message in self._sorted_messages():
            if kind == _INFO:
                calibration = try_calibration(message, self.image_topic)
            else:
                yield message if kind == _ODOMETRY else self._frame(stamp_ns, message, calibration)

    def frames(
        self, wanted: Callable[[int], bool] = lambda stamp_ns: True, other: str | None = None
    ) -> Iterator[CameraFrame | UnusableFrame | tuple[int, object]]:
        """The images whose stamps are wanted, in the order of stamps; the others are not decoded.

        Args:
            wanted: Asked once for every image.
            other: A further topic, whose messages come in between as (stamp_ns, message), at equal stamps before the image.
        """
        calibration = self._first_calibration
        for kind, stamp_ns, message in self._sorted_messages(other):
            if kind == _INFO:
                calibration = try_calibration(message, self.image_topic)
            elif kind == _OTHER:
                yield stamp_ns, message
            elif kind == _IMAGE and wanted(stamp_ns):
                yield self._frame(stamp_ns, message, calibration)

    def mount_of(self, frame: CameraFrame) -> torch.Tensor:
        """base_from_camera of a frame."""
        return self.base_from_camera

    def odometry(self) -> Trajectory:
        """odom_from_base over time; empty where there is no odometry."""
        return Trajectory.from_poses((m.stamp_ns, m.odom_from_base) for m in self._odometry_messages())

    def truth(self) -> Trajectory:
        """map_from_base as the bag knows it; empty where it does not."""
        truth = Trajectory.from_poses(self._truth_poses())
        self._left_out["poses of the truth at a stamp that another one has"] = truth.repeated
        self._left_out["poses of the truth that are no numbers"] = truth.missing
        return truth

    @property
    def image_count(self) -> int:
        """Images on the image topic."""
        return sum(c.msgcount for c in self._storage.connections if c.topic == self.image_topic)

    def image_stamps(self) -> Iterator[int]:
        """Stamps of the images in the order of recording."""
        return (self._image_stamp(m) for _, m in self.messages([self.image_topic]) if messages.message_stamp(m))

    def raw_messages(self, topics: Iterable[str]) -> Iterator[RawMessage]:
        """Messages of some topics in the order they were recorded, with the stamps they were recorded with, for playing them
        again."""
        ros2 = get_typestore(Stores.ROS2_HUMBLE)  # tells what a ROS 1 message becomes: its header has no seq
        for connection, time_ns, data, _ in self._storage.messages(topics):
            cdr = bytes(ros2.ros1_to_cdr(data, connection.msgtype) if self._storage.is_ros1 else data)
            if self.options.recording_time and connection.msgtype in messages.OF_CAMERAS:
                order = "little" if cdr[1] & 1 else "big"
                cdr = cdr[:4] + b"".join(part.to_bytes(4, order) for part in divmod(time_ns, 10**9)) + cdr[12:]
            yield RawMessage(time_ns, connection.topic, connection.msgtype, cdr)

    def tf_has_odometry(self) -> bool:
        """Whether the moving transforms hold odom_frame → base_frame (among the first messages)."""
        first = islice(self.messages(self._tf_topics("tf")), 1000)
        return any(self._is_odometry(transform) for _, message in first for transform in message.transforms)

    def transform_topics(self) -> tuple[list[str], list[str]]:
        """The topics of moving and of static transforms."""
        return self._tf_topics("tf"), self._tf_topics("tf_static")

    def pose_topics(self) -> list[str]:
        """Those that could be the truth."""
        return self.topics_of_type(*_POSE_TYPES)

    def topics_of_type(self, *types: str) -> list[str]:
        """Names of the topics of some types, such as "sensor_msgs/msg/Image"."""
        return sorted(topic for topic, type_ in self._types.items() if type_ in types)

    # ---- finding the topics

    def _find_topics(self) -> None:
        options = self.options
        self.image_topic = self._chosen("image", options.image, self._image_candidates(), (messages.IMAGE, messages.COMPRESSED))
        self.image_compressed = self._types[self.image_topic] == messages.COMPRESSED
        self.camera_info_topic = self._chosen("camera-info", options.camera_info, self._info_candidates(), (messages.INFO,))
        first = next((m for _, m in self.messages([self.image_topic])), None)
        if first is None:
            raise InputError(f"no image on {self.image_topic} in {self.path}: give another --image-topic")
        self.camera_frame = messages.frame_name(first.header.frame_id)
        info = next((m for _, m in self.messages([self.camera_info_topic])), None)
        if info is None:
            raise InputError(f"no message on {self.camera_info_topic} in {self.path}: give another --camera-info-topic")
        self._first_calibration = try_calibration(info, self.image_topic)
        self._find_odometry()
        self._check_stamps()
        self._find_transforms()
        self.base_from_camera = options.base_from_camera
        if self.base_from_camera is None:
            self.base_from_camera = self.transforms.static(self.base_frame, self.camera_frame)
        self._find_truth()

    def _check_stamps(self) -> None:
        """Images without stamps, and those of another clock than the odometry, can be placed by the times of recording alone."""
        stamps = [messages.message_stamp(message) for _, message in self.messages([self.image_topic])]
        known, what = set(stamps) - {0}, None
        hint = "let the driver stamp its images, or take the times of recording with --recording-time"
        if not known:
            what = "have no stamp (0)"
        elif len(known) < max(len(stamps) / 2, min(len(stamps), 2)):
            what = f"are {len(stamps)}, but have only {len(known)} different stamp{'s'[: len(known) > 1]}"
        elif self.odometry_topic is not None:
            (seen, image), (heard, odometry) = (self._times(t) for t in ([self.image_topic], self._odometry_topics()))
            late = (seen - image) - (heard - odometry)
            # A converter may have written one topic after the other: then the stamps are near each other.
            if seen and heard and min(abs(late), abs(image - odometry)) > _CLOCKS_APART_NS:
                what = f"are dated {-late / 1e9:+.0f} s from odometry that was recorded at the same time"
                if abs(heard - odometry) > _CLOCKS_APART_NS:  # the recorder had the clock of the images
                    hint = "synchronise the clocks, or leave the odometry out with --odometry-topic none"
        if what:
            raise InputError(f"the images on {self.image_topic} in {self.path} {what}: {hint}")

    def _times(self, topics: list[str]) -> tuple[int, int]:
        """When the first message was recorded, and its stamp; of images the first with a stamp."""
        for connection, time_ns, _, message in self._storage.messages(topics):
            if connection.msgtype in messages.OF_CAMERAS and self.options.recording_time:
                return time_ns, time_ns
            if connection.msgtype in messages.OF_CAMERAS and not messages.message_stamp(message):
                continue
            stamped = next(filter(self._is_odometry, message.transforms), None) if hasattr(message, "transforms") else message
            if stamped is not None:
                return time_ns, messages.message_stamp(stamped)
        return 0, 0

    def _find_transforms(self) -> None:
        moving, static = self.transform_topics()
        self.transforms = RecordedTransforms(self.path, *(partial(self._transforms_on, topics) for topics in (static, moving)))

    def _transforms_on(self, topics: list[str]) -> Iterator[tuple[tuple[str, str], int, torch.Tensor]]:
        """((parent, child), stamp_ns, parent_from_child)."""
        for transform in (t for _, message in self.messages(topics) for t in message.transforms):
            yield messages.frames_of(transform), messages.message_stamp(transform), messages.matrix(transform.transform)

    def _chosen(self, what: str, asked: str | None, candidates: list[str], types: tuple[str, ...]) -> str:
        if asked:
            if self._types.get(asked) not in types:
                names = ", ".join(self.topics_of_type(*types)) or "none"
                raise InputError(f"no {what} topic {asked} in {self.path}: it has {names}")
            return asked
        if len(candidates) != 1:
            names = " or ".join(type_.split("/")[-1] for type_ in types)
            found = candidates or self.topics_of_type(*types)
            if not found:
                there = ", ".join(sorted(self._types)) or "no messages"
                raise InputError(f"{self.path} has no {what} topic ({names}), but {there}: record one as well")
            raise InputError(
                f"{self.path} has {len(found)} topics that could be the {what} ({names}): {', '.join(found)}; "
                f"choose with --{what}-topic"
            )
        return candidates[0]

    def _image_candidates(self) -> list[str]:
        topics = [
            t for t in self.topics_of_type(messages.IMAGE, messages.COMPRESSED) if not any(w in t.lower() for w in _NOT_PICTURES)
        ]
        # A compressed twin of a raw topic shows nothing new.
        topics = [t for t in topics if not (t.endswith("/compressed") and t.removesuffix("/compressed") in topics)]
        calibrated = [t for t in topics if _info_topic(t) in self._types]
        return calibrated or topics

    def _info_candidates(self) -> list[str]:
        sibling = _info_topic(self.image_topic)
        return [sibling] if self._types.get(sibling) == messages.INFO else self.topics_of_type(messages.INFO)

    def _find_odometry(self) -> None:
        asked = self.options.odometry
        candidates = [t for t in self.topics_of_type(messages.ODOMETRY) if not messages.is_truth_name(t)]
        self.odom_frame, self.base_frame = self.options.odom_frame, self.options.base_frame or "base_link"
        if asked == "none" or (asked is None and not candidates and not self.tf_has_odometry()):
            self.odometry_topic = None
        elif asked == "tf" or (asked is None and not candidates):
            self.odometry_topic = "tf"
        else:
            self.odometry_topic = self._chosen("odometry", asked, candidates, (messages.ODOMETRY,))
            first = next((m for _, m in self.messages([self.odometry_topic])), None)
            if first is None:
                raise InputError(f"no message on {self.odometry_topic} in {self.path}: use --odometry-topic none")
            self.odom_frame = messages.frame_name(first.header.frame_id) or self.odom_frame
            child = messages.frame_name(first.child_frame_id)
            if self.options.base_frame not in (None, "", child) and child:
                raise InputError(
                    f"{self.odometry_topic} is the odometry of {child}, not of {self.base_frame}: use --base-frame {child}"
                )
            self.base_frame = child or self.base_frame

    def _find_truth(self) -> None:
        asked = self.options.truth
        candidates = [t for t in self.pose_topics() if messages.is_truth_name(t)]
        if asked == "none" or (asked is None and not candidates):
            self.truth_topic = None
        elif asked is not None and asked.startswith("tf:"):
            if len(asked.split(":")) != 3:
                raise InputError(f"--truth-topic {asked} names no transform: write tf:PARENT:CHILD")
            self.truth_topic = asked
        else:
            self.truth_topic = self._chosen("truth", asked, candidates, _POSE_TYPES)

    def _tf_topics(self, name: str) -> list[str]:
        return [t for t in self.topics_of_type(messages.TF, "tf/msg/tfMessage") if t.strip("/").split("/")[-1] == name]

    def _is_odometry(self, transform) -> bool:
        return messages.frames_of(transform) == (self.odom_frame, self.base_frame)

    # ---- reading

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[str, object]]:
        """(topic, message) in the order of recording; those that cannot be read are left out (`notes`)."""
        for connection, time_ns, _, message in self._storage.messages(topics):
            if self.options.recording_time and connection.msgtype in messages.OF_CAMERAS:
                stamp = replace(message.header.stamp, sec=time_ns // 10**9, nanosec=time_ns % 10**9)
                message = replace(message, header=replace(message.header, stamp=stamp))
            yield connection.topic, message

    def _sorted_messages(self, other: str | None = None) -> Iterator[tuple[int, int, object]]:
        """(kind, stamp_ns, message) by stamp and kind, see `REORDER_NS`. other: one topic more."""
        order = count()
        reorder_ns = REORDER_NS + abs(self.options.time_offset_ns)
        heap: list[tuple[int, int, int, object]] = []
        self._left_out[_UNSTAMPED] = 0
        newest = None
        topics = [self.image_topic, self.camera_info_topic, *self._odometry_topics(), *([other] if other else [])]
        for topic, message in self.messages(topics):
            for kind, stamp_ns, item in self._classified(topic, message, other):
                if kind == _INFO and newest is not None and stamp_ns < newest - reorder_ns:
                    stamp_ns = newest  # some drivers stamp their calibration once, or never
                if newest is not None and stamp_ns < newest - reorder_ns:
                    # The clock was set back: what came before is over.
                    yield from _drain(heap, None)
                    newest = stamp_ns
                newest = stamp_ns if newest is None else max(newest, stamp_ns)
                heapq.heappush(heap, (stamp_ns, kind, next(order), item))
            yield from _drain(heap, newest - reorder_ns if newest is not None else None)
        yield from _drain(heap, None)

    def _classified(self, topic: str, message, other: str | None) -> Iterator[tuple[int, int, object]]:
        if topic == self.image_topic and not messages.message_stamp(message):
            self._left_out[_UNSTAMPED] += 1
        elif topic == self.image_topic:
            yield _IMAGE, self._image_stamp(message), message
        elif topic == self.camera_info_topic:
            yield _INFO, self._image_stamp(message), message
        elif topic == other:
            yield _OTHER, messages.message_stamp(message), message
        else:
            for odometry in self._odometry_of(message):
                yield _ODOMETRY, odometry.stamp_ns, odometry

    def _image_stamp(self, message) -> int:
        return messages.message_stamp(message) + self.options.time_offset_ns

    def _odometry_topics(self) -> list[str]:
        if self.odometry_topic is None:
            return []
        return self._tf_topics("tf") if self.odometry_topic == "tf" else [self.odometry_topic]

    def _odometry_messages(self) -> Iterator[OdometryMessage]:
        for _, message in self.messages(self._odometry_topics()):
            yield from self._odometry_of(message)

    def _odometry_of(self, message) -> Iterator[OdometryMessage]:
        if self.odometry_topic == "tf":
            for transform in message.transforms:
                if self._is_odometry(transform):
                    yield OdometryMessage(messages.message_stamp(transform), messages.matrix(transform.transform))
        else:
            covariance, twist = torch.tensor(np.asarray(message.twist.covariance, float).reshape(6, 6)), message.twist.twist
            vector = np.array([getattr(part, axis) for part in (twist.linear, twist.angular) for axis in "xyz"])
            yield OdometryMessage(messages.message_stamp(message), messages.matrix(message.pose.pose), covariance, vector)

    def _truth_poses(self) -> Iterator[tuple[int, torch.Tensor]]:
        if self.truth_topic is None:
            return
        if self.truth_topic.startswith("tf:"):
            _, parent, child = self.truth_topic.split(":")
            body_from_base = se3.inverse(self._base_from(child))
            chain = self.transforms.chain(messages.frame_name(parent), messages.frame_name(child))
            poses, known = chain.at(chain.stamps_ns, TF_GAP_NS)
            yield from zip(chain.stamps_ns[known].tolist(), poses[torch.from_numpy(known)] @ body_from_base)
            return
        for _, message in self.messages([self.truth_topic]):
            body = messages.frame_name(getattr(message, "child_frame_id", ""))
            yield messages.message_stamp(message), messages.matrix(messages.pose_of(message)) @ se3.inverse(self._base_from(body))

    def _base_from(self, body: str) -> torch.Tensor:
        """base_from_body; a body that no transform of the robot knows (a marker's name, say) is taken for the base itself."""
        if body in ("", self.base_frame) or body not in self.transforms:
            return torch.eye(4, dtype=torch.float64)
        return self.transforms.static(self.base_frame, body)

    def _frame(self, stamp_ns: int, message, calibration: Calibration | InputError) -> CameraFrame | UnusableFrame:
        frame = messages.frame_name(message.header.frame_id)
        try:
            if frame != self.camera_frame and self.options.base_from_camera is None:
                raise InputError(f"its frame is '{frame}', not '{self.camera_frame}' as that of the first: record one camera")
            if isinstance(calibration, InputError):
                raise calibration
            image, camera = messages.image_of(message), calibration.camera
            if image.shape[:2] != (camera.height, camera.width):
                size = f"{image.shape[1]}x{image.shape[0]} but CameraInfo says {camera.width}x{camera.height}"
                raise InputError(f"the image is {size}: record the calibration of this resolution")
        except InputError as error:
            return UnusableFrame(stamp_ns, str(error))
        return CameraFrame(stamp_ns, image, camera, calibration=calibration)


_UNSTAMPED = "images without a stamp (0)"
# Also the order at equal stamps.
_ODOMETRY, _INFO, _OTHER, _IMAGE = range(4)


def _drain(heap: list, until_ns: int | None) -> Iterator[tuple[int, int, object]]:
    while heap and (until_ns is None or heap[0][0] <= until_ns):
        stamp_ns, kind, _, message = heapq.heappop(heap)
        yield kind, stamp_ns, message


def _info_topic(image_topic: str) -> str:
    return f"{image_topic.removesuffix('/compressed').rpartition('/')[0]}/camera_info"

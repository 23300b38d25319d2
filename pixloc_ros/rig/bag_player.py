# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Plays a bag over DDS with /clock, as `ros2 bag play --clock` does, and starts the localizer with its initial pose.

Messages go out as the bytes that were recorded, at their times of recording, except for two things: transforms whose parent
is the map (another localizer's) are left out, and where the bag has odometry but no transform odom → base, that is added.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage

from ..errors import InputError
from ..io.bags import BagReader
from ..io.messages import RawMessage
from ..node import conversions
from ..node.conversions import NS_PER_S, stamp_from_ns, stamp_to_ns

_CLOCK_STEP_NS = 10_000_000
_DEPTH = 200
_DISCOVERY_S = 1.0


class BagPlayer:
    """Publishers for one bag on a node. on_image: called just before an image is published, with the stamp that the localizer
    will use for it: the bag's time offset is in it."""

    def __init__(self, node: Node, bag: BagReader, map_frame: str, on_image: Callable[[int], None]) -> None:
        self._node, self._bag, self._map_frame, self._on_image = node, bag, map_frame, on_image
        self._moving, self._static = bag.transform_topics()
        odometry = [bag.odometry_topic] if bag.odometry_topic not in (None, "tf") else []
        self._topics = [bag.image_topic, bag.camera_info_topic, *odometry, *self._moving]
        self._adds_transform = bool(odometry) and not bag.tf_has_odometry()
        self._publishers: dict[str, Publisher] = {}
        self._types: dict[str, type] = {}
        latched = QoSProfile(depth=_DEPTH, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._start = node.create_publisher(PoseWithCovarianceStamped, "/initialpose", 10)
        self._tf = node.create_publisher(TFMessage, "/tf", _DEPTH)
        self._tf_static = node.create_publisher(TFMessage, "/tf_static", latched)
        self.last_odometry_ns: int | None = None

    @property
    def image_topic(self) -> str:
        """Where the images go: compressed ones under the name that image_transport gives them."""
        topic = self._bag.image_topic
        return f"{topic}/compressed" if self._bag.image_compressed and not topic.endswith("/compressed") else topic

    def wait_for_listener(self, alive: Callable[[], None], timeout_s: float) -> None:
        """Until somebody listens to images, odometry and initial poses. alive: raises when it is no use to wait.

        Raises InputError when time is up.
        """
        # All made before the first message goes out: what is sent before the two sides know each other is lost.
        data = [topic for topic in self._topics if topic not in self._moving]
        firsts = [next(self._bag.raw_messages([topic])) for topic in data]
        publishers = [*map(self._publisher, firsts), self._start, self._tf]
        deadline = time.monotonic() + timeout_s
        while any(p.get_subscription_count() == 0 for p in publishers):
            alive()
            if time.monotonic() > deadline:
                raise InputError(f"the node did not listen to {self.image_topic} within {timeout_s:g} s: see its log")
            time.sleep(0.05)
        # Discovery is one-sided: the other side may need a moment more.
        time.sleep(_DISCOVERY_S)

    def play(
        self,
        rate: float,
        start_ns: int,
        map_from_base: torch.Tensor,
        covariance: torch.Tensor,
        alive: Callable[[], None],
        progress: Callable[..., None],
    ) -> None:
        """Play everything once.

        rate: seconds of the bag a second. map_from_base: float64 [4, 4] at stamp start_ns, covariance [6, 6] in the base
        frame, given to the localizer before the first message.
        """
        self._publish_static()
        began_s, first_ns, clock_ns = time.monotonic(), None, None
        images = 0
        for message in self._bag.raw_messages(self._topics):
            if first_ns is None:
                first_ns = clock_ns = message.time_ns
                self._publish_clock(first_ns)
                self._publish_start(start_ns, map_from_base, covariance)
                time.sleep(_DISCOVERY_S)
                began_s = time.monotonic()
            while clock_ns < message.time_ns:
                clock_ns = min(clock_ns + _CLOCK_STEP_NS, message.time_ns)
                wait_s = began_s + (clock_ns - first_ns) / NS_PER_S / rate - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
                self._publish_clock(clock_ns)
            self._publish(message)
            if message.topic == self._bag.image_topic:
                images += 1
                alive()
                progress(images, self._bag.image_count)

    def _publish(self, message: RawMessage) -> None:
        if message.topic in self._moving:
            self._publish_transforms(message)
            return
        publisher = self._publisher(message)
        if message.topic == self._bag.image_topic:
            self._on_image(_header_stamp(message.cdr) + self._bag.options.time_offset_ns)
        publisher.publish(message.cdr)
        if message.topic == self._bag.odometry_topic:
            self._follow_odometry(message)

    def _publisher(self, message: RawMessage) -> Publisher:
        if message.topic not in self._publishers:
            name = self.image_topic if message.topic == self._bag.image_topic else message.topic
            package, _, type_name = message.type_name.split("/")
            type_ = getattr(importlib.import_module(f"{package}.msg"), type_name)
            self._types[message.topic] = type_
            self._publishers[message.topic] = self._node.create_publisher(type_, name, _DEPTH)
        return self._publishers[message.topic]

    def _publish_transforms(self, message: RawMessage) -> None:
        transforms = deserialize_message(message.cdr, TFMessage).transforms
        kept = [t for t in transforms if t.header.frame_id.lstrip("/") != self._map_frame]
        for transform in kept:
            if transform.child_frame_id.lstrip("/") == self._bag.base_frame:
                self._note_odometry(stamp_to_ns(transform.header.stamp))
        if kept:
            self._tf.publish(TFMessage(transforms=kept))

    def _follow_odometry(self, message: RawMessage) -> None:
        if not self._adds_transform:
            return
        odometry = deserialize_message(message.cdr, self._types[message.topic])
        stamp_ns = stamp_to_ns(odometry.header.stamp)
        pose = conversions.pose_to_matrix(odometry.pose.pose, "odometry")
        self._tf.publish(
            TFMessage(transforms=[conversions.transform_stamped(self._bag.odom_frame, self._bag.base_frame, stamp_ns, pose)])
        )
        self._note_odometry(stamp_ns)

    def _note_odometry(self, stamp_ns: int) -> None:
        self.last_odometry_ns = max(stamp_ns, self.last_odometry_ns or 0)

    def _publish_static(self) -> None:
        transforms = [
            t for message in self._bag.raw_messages(self._static) for t in deserialize_message(message.cdr, TFMessage).transforms
        ]
        if self._bag.options.base_from_camera is not None:
            transforms = [t for t in transforms if t.child_frame_id.lstrip("/") != self._bag.camera_frame]
            transforms.append(
                conversions.transform_stamped(self._bag.base_frame, self._bag.camera_frame, 0, self._bag.base_from_camera)
            )
        self._tf_static.publish(TFMessage(transforms=transforms))

    def _publish_clock(self, time_ns: int) -> None:
        self._clock.publish(serialize_message(Clock(clock=stamp_from_ns(time_ns))))

    def _publish_start(self, start_ns: int, map_from_base: torch.Tensor, covariance: torch.Tensor) -> None:
        message = PoseWithCovarianceStamped()
        message.header.frame_id, message.header.stamp = self._map_frame, stamp_from_ns(start_ns)
        message.pose = conversions.pose_with_covariance(map_from_base, covariance)
        self._start.publish(message)


def _header_stamp(cdr: bytes) -> int:
    """Stamp of a serialized message that begins with a std_msgs/Header: after four bytes that name the byte order."""
    order = "little" if cdr[1] & 1 else "big"
    return int.from_bytes(cdr[4:8], order, signed=True) * NS_PER_S + int.from_bytes(cdr[8:12], order)

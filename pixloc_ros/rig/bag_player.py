# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Plays a bag over DDS with /clock, as `ros2 bag play --clock` does, and gives the localizer its initial pose.

Messages go out as the recorded bytes, at their recorded times, with two exceptions: transforms whose parent is the map (those of
another localizer) are left out, and if the bag has odometry but no transform odom → base, that transform is added.
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

from ..io.bags import BagReader
from ..io.messages import RawMessage
from ..node import conversions
from ..node.conversions import NS_PER_S, stamp_from_ns, stamp_to_ns

_CLOCK_STEP_NS = 10_000_000
_DEPTH = 200
_DISCOVERY_S = 1.0


class BagPlayer:
    """Publishers for one bag.

    Args:
        node: the node that publishes.
        bag: the opened bag.
        map_frame: frame whose transforms are left out.
        on_image: called just before an image is published, with the stamp that the localizer will use for it (the bag's time
            offset is added to it).

    Attributes:
        last_odometry_ns: newest stamp of odom → base published so far.
    """

    def __init__(self, node: Node, bag: BagReader, map_frame: str, on_image: Callable[[int], None]) -> None:
        self._node, self._bag, self._map_frame, self._on_image = node, bag, map_frame, on_image
        self._moving, self._static = bag.transform_topics()
        odometry = [bag.odometry_topic] if bag.odometry_topic not in (None, "tf") else []
        self._topics = [bag.image_topic, bag.camera_info_topic, *odometry, *self._moving]
        self._adds_transform = bool(odometry) and not bag.tf_has_odometry()
        self._publishers: dict[str, Publisher] = {}
        latched = QoSProfile(depth=_DEPTH, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._start = node.create_publisher(PoseWithCovarianceStamped, "/initialpose", 10)
        self._tf = node.create_publisher(TFMessage, "/tf", _DEPTH)
        self._tf_static = node.create_publisher(TFMessage, "/tf_static", latched)
        # All made before the first message goes out: what is sent before the two sides know each other is lost.
        firsts = [next(bag.raw_messages([topic])) for topic in self._topics if topic not in self._moving]
        self._awaited = [*map(self._publisher, firsts), self._start, self._tf]
        self.last_odometry_ns: int | None = None

    @property
    def image_topic(self) -> str:
        """Where the images go: compressed ones under the name that image_transport gives them."""
        topic = self._bag.image_topic
        return f"{topic}/compressed" if self._bag.image_compressed and not topic.endswith("/compressed") else topic

    def is_heard(self) -> bool:
        """Whether somebody listens to images, calibration, odometry and initial poses."""
        return all(publisher.get_subscription_count() for publisher in self._awaited)

    def play(
        self,
        rate: float,
        start_ns: int,
        map_from_base: torch.Tensor,
        covariance: torch.Tensor,
        alive: Callable[[], None],
        progress: Callable[..., None],
    ) -> None:
        """Plays everything once.

        Args:
            rate: seconds of the bag per second.
            start_ns: stamp of the initial pose, which the localizer gets before the first message.
            map_from_base: float64 [4, 4], the initial pose.
            covariance: float64 [6, 6] of the initial pose, in the base frame.
            alive: called at every image; raises if it is no use to go on.
            progress: called with the number of images sent and of all images.
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
        odometry = deserialize_message(message.cdr, self._publishers[message.topic].msg_type)
        stamp_ns = stamp_to_ns(odometry.header.stamp)
        pose = conversions.pose_to_matrix(odometry.pose.pose, "odometry")
        transform = conversions.transform_stamped(self._bag.odom_frame, self._bag.base_frame, stamp_ns, pose)
        self._tf.publish(TFMessage(transforms=[transform]))
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

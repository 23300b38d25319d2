# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives a live node with a bag over DDS: starts `localization_node`, plays, records, stops it."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage

from ..errors import InputError
from ..evaluation.live_run import Recording
from ..evaluation.offline import initial_covariance
from ..evaluation.usage import UsageMeter
from ..io.bags import BagReader
from ..io.messages import RawMessage
from ..io.rig_images import RigReader
from ..node import conversions
from ..node.conversions import NS_PER_S, stamp_from_ns, stamp_to_ns
from .node_process import NODE, NodeProcess, spinning_node
from .recorder import Recorder
from .robot import initial_pose_message

MAP_FRAME = "map"
_SILENCE_S = 5.0
"""`replay` stops waiting for the outcome of images when nothing has come for so long."""
_ODOMETRY_WAIT_S, _LONGEST_ODOMETRY_WAIT_S = 0.5, 5.0
_DISCOVERY_S = 1.0
_CLOCK_STEP_NS = 10_000_000
_DEPTH = 200


@dataclass(frozen=True)
class ReplayOptions:
    """How a bag is played.

    Attributes:
        rate: seconds of the bag per second.
        all_frames: the node processes every image instead of the newest one.
        weights: feature network, by name or path.
        preset: name of the preset.
        parameters: further node parameters, as (name, value).
        imu_topic: of the bag, which the node hears, too.
    """

    rate: float = 1.0
    all_frames: bool = False
    weights: str = "compact"
    preset: str = "balanced"
    parameters: tuple[tuple[str, str], ...] = ()
    imu_topic: str | None = None


def replay(
    map_path: Path,
    bag: BagReader,
    start_ns: int,
    map_from_base: torch.Tensor,
    log: Path,
    options: ReplayOptions,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> Recording:
    """Plays the bag to a fresh node and records what it publishes.

    Args:
        map_path: the map file.
        bag: the opened bag.
        start_ns: stamp at which the drive begins.
        map_from_base: float64 [4, 4], pose at that stamp.
        log: file for the node's output.
        options: how the bag is played.
        progress: called with the number of images sent and of all images.

    Raises:
        NodeDied: the node ended by itself.
        InputError: the node does not come up.
    """
    log.unlink(missing_ok=True)
    # Started first: it loads while the player is made.
    with NodeProcess(_parameters(map_path, bag, options), log) as process:
        with spinning_node("pixloc_replay") as node:
            recorder = Recorder(node, NODE, MAP_FRAME, bag.base_frame, bag.camera_frame)
            player = BagPlayer(node, bag, recorder.sent, options.imu_topic)
            process.wait_for(player.is_heard, f"did not listen to {player.image_topic}")
            process.wait_for(recorder.hears_node, "did not publish poses")
            # Discovery is one-sided: the other side may need a moment more.
            time.sleep(_DISCOVERY_S)
            meter = UsageMeter(process.pid)
            start = initial_pose_message(map_from_base, initial_covariance())
            start.header.stamp = stamp_from_ns(start_ns)
            player.play(options.rate, start, process.check, progress)
            _wait_for_reports(recorder, process)
            recorder.recording.usage = meter.read()
        return recorder.finish(player.last_odometry_ns)


def camera_topics(bag: BagReader) -> dict[str, str]:
    """The topics of images and calibrations in a bag, and what they are played as: compressed images under the name that
    image_transport gives them, those of several cameras under each one's name.

    Raises:
        InputError: The images of some cameras are compressed, those of others are not.
    """
    if not isinstance(bag, RigReader):
        compressed = bag.image_compressed and not bag.image_topic.endswith("/compressed")
        return {bag.image_topic: bag.image_topic + "/compressed" * compressed, bag.camera_info_topic: bag.camera_info_topic}
    if len({reader.image_compressed for reader in bag.readers.values()}) > 1:
        raise InputError(f"some cameras of {bag.path} have compressed images, others raw ones: the node takes one kind")
    ends, names = ("image_raw" + "/compressed" * bag.image_compressed, "camera_info"), {}
    for name, reader in bag.readers.items():
        names |= {topic: f"/{name}/{end}" for topic, end in zip((reader.image_topic, reader.camera_info_topic), ends)}
    return names


def _parameters(map_path: Path, bag: BagReader, options: ReplayOptions) -> dict[str, object]:
    source = {None: "none", "tf": "tf"}.get(bag.odometry_topic, "topic")
    # The node waits by the wall clock: if the bag is played slowly, odometry comes later, and a machine that also plays and
    # records may hold a message up. A pose from extrapolated odometry would not agree with the TF that follows.
    odometry_wait_s = min(_ODOMETRY_WAIT_S / min(options.rate, 1.0), _LONGEST_ODOMETRY_WAIT_S)
    parameters = {
        "map": map_path.resolve(),
        "weights": options.weights,
        "preset": options.preset,
        "use_sim_time": True,
        "image_topic": bag.image_topic.removesuffix("/compressed"),
        "camera_info_topic": bag.camera_info_topic,
        "image_transport": "compressed" if bag.image_compressed else "raw",
        "image_reliability": "reliable",
        "odom_source": source,
        "global_frame_id": MAP_FRAME,
        "odom_frame_id": bag.odom_frame,
        "base_frame_id": bag.base_frame,
        "process_all_frames": options.all_frames,
        "odometry_wait_s": f"{odometry_wait_s:.3f}",
        "time_offset": f"{bag.options.time_offset_s:.9f}",
    }
    if isinstance(bag, RigReader):
        parameters["cameras"] = ",".join(f"/{name}" for name in bag.readers)
        parameters |= {"image_topic": "image_raw", "camera_info_topic": "camera_info"}
    if source == "topic":
        parameters["odom_topic"] = bag.odometry_topic
    if options.imu_topic is not None:
        parameters["imu_topic"] = options.imu_topic
    return parameters | dict(options.parameters)


def _wait_for_reports(recorder: Recorder, process: NodeProcess) -> None:
    left, changed_s = recorder.outstanding(), time.monotonic()
    while left and time.monotonic() - changed_s < _SILENCE_S:
        process.check()
        time.sleep(0.05)
        now = recorder.outstanding()
        if now != left:
            left, changed_s = now, time.monotonic()


class BagPlayer:
    """Plays one bag with /clock, as `ros2 bag play --clock` does, and gives the localizer its initial pose.

    Messages go out as the recorded bytes, at their recorded times, with two exceptions: transforms whose parent is the map (those
    of another localizer) are left out, and if the bag has odometry but no transform odom → base, that transform is added.

    Args:
        node: the node that publishes.
        bag: the opened bag.
        on_image: called just before an image is published, with the stamp that the localizer will use for it (the bag's time
            offset is added to it).
        imu_topic: played, too.

    Attributes:
        last_odometry_ns: newest stamp of odom → base published so far.
    """

    def __init__(self, node: Node, bag: BagReader, on_image: Callable[[int], None], imu_topic: str | None = None) -> None:
        self._node, self._bag, self._on_image = node, bag, on_image
        self._moving, self._static = bag.transform_topics()
        odometry = [bag.odometry_topic] if bag.odometry_topic not in (None, "tf") else []
        imu = [imu_topic] if imu_topic is not None else []
        self._names = camera_topics(bag)
        self._topics = [*self._names, *odometry, *imu, *self._moving]
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
        """Where the images go; of several cameras, those of the first."""
        return self._names[self._bag.image_topic]

    def is_heard(self) -> bool:
        """Whether somebody listens to images, calibration, odometry and initial poses."""
        return all(publisher.get_subscription_count() for publisher in self._awaited)

    def play(
        self, rate: float, start: PoseWithCovarianceStamped, alive: Callable[[], None], progress: Callable[..., None]
    ) -> None:
        """Plays everything once.

        Args:
            rate: seconds of the bag per second.
            start: the initial pose, which the localizer gets before the first message.
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
                self._start.publish(start)
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
            name = self._names.get(message.topic, message.topic)
            package, _, type_name = message.type_name.split("/")
            type_ = getattr(importlib.import_module(f"{package}.msg"), type_name)
            self._publishers[message.topic] = self._node.create_publisher(type_, name, _DEPTH)
        return self._publishers[message.topic]

    def _publish_transforms(self, message: RawMessage) -> None:
        transforms = deserialize_message(message.cdr, TFMessage).transforms
        kept = [t for t in transforms if t.header.frame_id.lstrip("/") != MAP_FRAME]
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
        self._clock.publish(Clock(clock=stamp_from_ns(time_ns)))


def _header_stamp(cdr: bytes) -> int:
    """Stamp of a serialized message that begins with a std_msgs/Header: after four bytes that name the byte order."""
    order = "little" if cdr[1] & 1 else "big"
    return int.from_bytes(cdr[4:8], order, signed=True) * NS_PER_S + int.from_bytes(cdr[8:12], order)

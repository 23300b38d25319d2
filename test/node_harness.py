# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A node under test, a robot that feeds it and a listener, over real DDS in one process.

The images of `Robot` carry their number as a grey value; `FakeLocalizer` reads it and answers with the true pose: so
everything but the alignment itself is real.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time

import numpy as np
import rclpy
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from pixloc_ros.msg import LocalizationStatus
from rclpy.parameter import Parameter
from rclpy.time import Time as RosTime
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener

from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.node import conversions
from pixloc_ros.node.localization_node import LocalizationNode
from pixloc_ros.rig import robot
from pixloc_ros.rig.node_process import spinning_node
from pixloc_ros.tracking.options import TrackerOptions
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import FrameAlignment, PreparedImage

WIDTH, HEIGHT = 64, 48
PERIOD_NS = 50_000_000
START_NS = 1_000_000_000_000
BASE_FROM_CAMERA = torch.tensor(
    [[0.0, 0.0, 1.0, 0.2], [-1.0, 0.0, 0.0, 0.05], [0.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
)
BROKEN = 250
"""Grey value of an image that aligns with nothing."""


def isolate() -> None:
    """Own DDS domain, unless the environment has chosen one."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(10 + os.getpid() % 80))


def true_pose(seconds: float) -> torch.Tensor:
    """map_from_base while driving a curve, uphill."""
    turn = 0.4 * seconds
    return conversions.matrix_from_euler(
        (3.0 * math.sin(turn) + 1.0, 3.0 * (1 - math.cos(turn)) - 2.0, 0.3 + 0.1 * seconds), 0.02, -0.1, turn + 0.7
    )


def odometry_pose(seconds: float) -> torch.Tensor:
    """odom_from_base: begins elsewhere and drifts."""
    motion = se3.inverse(true_pose(0.0)) @ true_pose(seconds * 1.01)
    return conversions.matrix_from_euler((0.4, 0.1, 0.0), 0.0, 0.0, 0.2) @ motion


def stamp_of(number: int) -> int:
    """Of image `number`."""
    return START_NS + number * PERIOD_NS


def pose_of(number: int) -> torch.Tensor:
    """True map_from_base at image `number`."""
    return true_pose((stamp_of(number) - START_NS) * 1e-9)


def start_pose() -> dict:
    """Parameters that start the node at image 0."""
    x, y, z = pose_of(0)[:3, 3].tolist()
    values = {"x": x, "y": y, "z": z, "roll": 0.02, "pitch": -0.1, "yaw": 0.7}
    return {"set_initial_pose": True, **{f"initial_pose__{name}": value for name, value in values.items()}}


class FakeAligner:
    """Reads the number of an image and answers with its pose, as `answer` changes it."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def prepare(self, image, camera) -> PreparedImage:
        return PreparedImage(image, camera, {})

    def localize_prepared(self, prepared, map_from_camera, prior_covariance=None, last=0.0) -> FrameAlignment:
        units, fifties = (float(part.mean()) for part in (prepared.pyramid[-8:], prepared.pyramid[HEIGHT // 2 : -8]))
        good = units < BROKEN - 10
        number = round((units - 20) / 4) + 50 * round((fifties - 20) / 4)
        pose = pose_of(number) @ BASE_FROM_CAMERA if good else map_from_camera
        covariance, quality = 1e-4 * torch.eye(6, dtype=torch.float64), (0.01, 0.9, 1.0, 200, 3)
        return self.answer(FrameAlignment(pose, covariance, good, "fake", *quality, probability=0.999))


class FakeLocalizer:
    """Stands in for `pixloc_ros.Localizer`."""

    map_name = "fake.pixmap"
    network = "fake"
    georeference = None

    def __init__(self, *_) -> None:
        self.aligner = FakeAligner(self.answer)

    def answer(self, found: FrameAlignment) -> FrameAlignment:
        return found

    def tracker(self, options: TrackerOptions | None = None, relocalization: bool = True) -> Tracker:
        return Tracker(self.aligner, options)

    def warm_up(self, progress, rig=False) -> None:
        pass


def grey_image(number: int | None) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH]: white upper half, the number's fifties and units below; None: an image that aligns with nothing."""
    image = np.full((HEIGHT, WIDTH), 255, np.uint8)
    fifties, units = (BROKEN, BROKEN) if number is None else (20 + 4 * digit for digit in divmod(number, 50))
    image[HEIGHT // 2 : -8], image[-8:] = fifties, units
    return image


def camera_info() -> CameraInfo:
    lens = torch.tensor([60.0, 60.0, 31.5, 23.5], dtype=torch.float64)
    return robot.camera_info_message(Camera("pinhole", WIDTH, HEIGHT, lens))


def odometry_message(stamp_ns: int) -> Odometry:
    message = robot.odometry_message(stamp_ns, odometry_pose((stamp_ns - START_NS) * 1e-9))
    message.twist.twist.linear.x, message.twist.twist.angular.z = 1.2, 0.4
    return message


def initial_pose_message(number: int, stamp_ns: int | None = None) -> PoseWithCovarianceStamped:
    message = robot.initial_pose_message(pose_of(number), torch.zeros(6, 6, dtype=torch.float64))
    message.header.stamp = Time() if stamp_ns is None else conversions.stamp_from_ns(stamp_ns)
    message.pose.covariance[0] = message.pose.covariance[7] = 0.04
    message.pose.covariance[35] = 0.01
    return message


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-6) -> bool:
    return torch.allclose(a, b, atol=atol, rtol=0)


def having(message, *changes):
    """The message with other values in fields, whose names may have dots."""
    for name, value in changes:
        *path, leaf = name.split(".")
        target = message
        for part in path:
            target = getattr(target, part)
        setattr(target, leaf, value)
    return message


class Robot(robot.RobotTopics):
    """Publishes what a robot does, and keeps all that the node publishes."""

    def __init__(self, node: rclpy.node.Node, compressed: bool) -> None:
        super().__init__(node, compressed)
        self.node, self.is_compressed = node, compressed
        self.tf = TransformBroadcaster(node)
        self.statuses: list[LocalizationStatus] = []
        self.poses: list[PoseWithCovarianceStamped] = []
        self.odometries: list[Odometry] = []
        self.transforms: list = []
        self.levels: dict[str, bytes] = {}
        self.values: dict[str, dict[str, str]] = {}
        self.texts: list[str] = []
        self.buffer = Buffer(node=node)
        self.listener = TransformListener(self.buffer, node)
        self.odometry_ns = START_NS - 40_000_000
        kept = {"status": (LocalizationStatus, self.statuses), "odometry": (Odometry, self.odometries)}
        for name, (kind, messages) in (kept | {"pose": (PoseWithCovarianceStamped, self.poses)}).items():
            node.create_subscription(kind, f"localization_node/{name}", messages.append, 500)
        node.create_subscription(TFMessage, "/tf", self._on_tf, 500)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)

    def _on_tf(self, message: TFMessage) -> None:
        self.transforms += [t for t in message.transforms if t.header.frame_id == "map"]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            component = status.name.split(": ")[1]
            self.levels[component] = status.level
            self.values[component] = {pair.key: pair.value for pair in status.values}
            self.texts.append(f"{component}: {status.message}")

    # ---- what it publishes

    def describe_camera(self) -> None:
        self.info.publish(camera_info())
        self.static_tf.sendTransform(conversions.transform_stamped("base_link", "camera_optical", 0, BASE_FROM_CAMERA))

    def drive_to(self, stamp_ns: int) -> None:
        """Odometry and its TF at 50 Hz up to one sample at or after a stamp."""
        while self.odometry_ns < stamp_ns:
            self.odometry_ns += 20_000_000
            self.odometry.publish(odometry_message(self.odometry_ns))
            pose = odometry_pose((self.odometry_ns - START_NS) * 1e-9)
            self.tf.sendTransform(conversions.transform_stamped("odom", "base_link", self.odometry_ns, pose))

    def see(self, number: int | None, stamp_ns: int | None = None) -> None:
        """Publishes image `number`."""
        stamp_ns = stamp_of(number) if stamp_ns is None else stamp_ns
        self.image.publish(robot.image_message(grey_image(number), stamp_ns, compressed=self.is_compressed))

    def give_pose(self, number: int, stamp_ns: int | None = None, *changes) -> None:
        """Publishes the pose of image `number` as the initial pose, and waits until the node has it."""
        self.initial_pose.publish(having(initial_pose_message(number, stamp_ns), *changes))
        self.initial_pose.wait_for_all_acked()
        time.sleep(0.1)

    def step(self, number: int, image: int | None = -1) -> LocalizationStatus:
        """One image with its odometry (`image`: another picture than its own); the node's answer."""
        self.drive_to(stamp_of(number))
        self.see(number if image == -1 else image, stamp_of(number))
        return self.status_of(stamp_of(number))

    # ---- what it waits for

    def connect(self, node: LocalizationNode, describe: bool = True) -> None:
        """Waits until the node hears everything and, if the camera is described, knows it."""
        publishers = [self.image, self.info, self.initial_pose]
        if node.get_parameter("odom_source").value == "topic":
            publishers.append(self.odometry)
        self.wait(lambda: all(p.get_subscription_count() for p in publishers))
        self.wait(lambda: self.node.count_publishers("localization_node/status") and "map" in self.levels)
        if describe:
            self.describe_camera()
            self.wait(lambda: all(camera.is_calibrated for camera in node._worker.inputs.cameras.values()))

    def wait(self, condition, seconds: float = 20.0):
        """The first true value of the condition."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {seconds} s in vain; last diagnostics: {self.texts[-7:]}"
            time.sleep(0.002)
        return value

    def status_of(self, stamp_ns: int) -> LocalizationStatus:
        """The status with this stamp."""
        stamp = conversions.stamp_from_ns(stamp_ns)
        return self.wait(lambda: next((s for s in self.statuses if s.header.stamp == stamp), None))

    def pose(self, number: int) -> torch.Tensor:
        """map_from_base of the pose that came as the `number`th."""
        message = self.wait(lambda: self.poses[number] if len(self.poses) > number else None)
        return conversions.pose_to_matrix(message.pose.pose, "pose")

    def looked_up(self, target: str, source: str, stamp_ns: int) -> torch.Tensor:
        """target_from_source, as soon as the listener knows it."""

        def known():
            with contextlib.suppress(TransformException):
                return self.buffer.lookup_transform(target, source, RosTime(nanoseconds=stamp_ns))

        return conversions.transform_to_matrix(self.wait(known).transform, "transform")

    def diagnosed(self, text: str) -> str:
        """Waits for a diagnostic message that contains the text."""
        return self.wait(lambda: next((t for t in self.texts if text in t), None))


@contextlib.contextmanager
def running(transport: str = "raw", open_localizer=FakeLocalizer, ready: bool = True, connect: bool = True, **parameters):
    """(node, robot): both spinning and connected, the node started with these parameters ('__' stands for a dot)."""
    isolate()
    gc.collect()  # objects of earlier nodes refer to each other, and until the last is gone the graph shows those nodes too
    values = {"image_transport": transport, "map": "fake.pixmap", **parameters}
    overrides = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]

    def make(context: rclpy.Context) -> LocalizationNode:
        return LocalizationNode(open_localizer, context=context, parameter_overrides=overrides)

    # In one context: discovery within a participant is immediate.
    with spinning_node(make) as node, spinning_node("robot", node.context) as robot_node:
        fed = Robot(robot_node, transport == "compressed")
        if connect:
            fed.connect(node, describe=ready)
        yield node, fed

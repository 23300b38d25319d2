# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node: messages in, `Tracker`, messages and TF out (docs/node.md).

Threads: the executor's thread runs all callbacks, each of which only checks and stores; one worker thread owns the tracker,
takes images from `FrameQueue`, waits for what belongs to their stamps, and publishes. So odometry and TF are never held up
by the network.
"""
from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped, TwistWithCovariance
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.exceptions import InvalidParameterException, InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener

from ..errors import InputError
from ..features import load_extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..mapping.map_file import Map
from ..msg import LocalizationStatus
from ..tracking.localizer import FrameLocalizer, LocalizerOptions
from ..tracking.tracker import Tracker
from ..tracking.types import CameraFrame, TrackResult, TrackState
from . import conversions
from .conversions import NS_PER_S, stamp_from_ns, stamp_to_ns
from .diagnostics import ERROR, OK, WARN, DiagnosticBoard
from .frames import FrameQueue, ReceivedImage
from .images import decode_image
from .parameters import FRAME_QUEUE_LIMIT, PARAMETERS, check_values, image_subscription_topic
from .transform_schedule import TransformSchedule

_JUMP_BACK_NS = NS_PER_S
"""Stamps that go back by more mean that time itself did (a bag played again); by less, that a message was late."""

_MAX_INITIAL_POSE_AGE_NS = 10 * NS_PER_S
"""How long ago an initial pose may have been true: as long as the tracker keeps odometry."""

_POLL_S = 0.005

TrackerFactory = Callable[[], Tracker]


@dataclass(frozen=True)
class _OdometryMessage:
    """One checked odometry message. twist is None where the message's is not finite."""

    stamp_ns: int
    odom_from_base: torch.Tensor
    twist: TwistWithCovariance | None


@dataclass(frozen=True)
class _InitialPose:
    """stamp_ns: None means the time of the next image."""

    map_from_base: torch.Tensor
    covariance: torch.Tensor
    stamp_ns: int | None


@dataclass
class _Counters:
    received: int = 0
    processed: int = 0
    dropped: int = 0
    rejected: int = 0


class _Rejected(Exception):
    """An image that cannot be used: component and name of the diagnostic condition, and its message."""

    def __init__(self, component: str, name: str, message: str, level: bytes = ERROR) -> None:
        super().__init__(message)
        self.component, self.name, self.level = component, name, level


def load_tracker_factory(map_path: str, weights: str, max_points: int) -> tuple[TrackerFactory, str]:
    """Opens the map and the network; returns what makes a fresh tracker, and the map's file name.

    Raises InputError where either cannot be used.
    """
    if not map_path:
        raise InputError("parameter map is empty: give the map file, for example map:=site.pixmap")
    path = Path(map_path).expanduser()
    map_ = Map.open(path)
    extractor = load_extractor(weights)
    localizer = FrameLocalizer(map_, extractor, LocalizerOptions(max_points=max_points))
    # The first run of the network is many times slower than the others: not at the cost of the first image.
    camera = map_.cameras[0]
    extractor.extract(np.zeros((camera.height, camera.width), np.uint8))
    return lambda: Tracker(localizer), path.name


class LocalizationNode(Node):
    """See the module and docs/node.md.

    load: makes the tracker factory; tests put in their own.
    """

    def __init__(self, load: Callable[[str, str, int], tuple[TrackerFactory, str]] = load_tracker_factory, **node_arguments) -> None:
        super().__init__("localization_node", **node_arguments)
        self._declare_parameters()
        self._board = DiagnosticBoard(self._log_condition)
        self._lock = threading.Lock()
        """Guards everything below up to the blank line: it is shared between the callbacks and the worker."""
        self._counters = _Counters()
        self._camera: Camera | None = None
        self._camera_info_key: tuple | None = None
        self._odometry: deque[_OdometryMessage] = deque(maxlen=20_000)
        self._newest_odometry_ns: int | None = None
        self._newest_image_ns: int | None = None
        self._initial_pose: _InitialPose | None = None
        self._reset_reason: str | None = None
        self._silence: dict[str, float] = {name: time.monotonic() for name in ("image", "calibration", "odometry")}
        self._ever: set[str] = set()

        self._tf_lock = threading.Lock()
        self._schedule: TransformSchedule[torch.Tensor] = TransformSchedule()
        self._input_arrived = threading.Event()
        self._state = TrackState.INITIALIZING
        self._last_pose: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self._last_image_ns: int | None = None
        self._twist: TwistWithCovariance | None = None
        self._durations_ms: deque[float] = deque(maxlen=100)
        self._delays_ms: deque[float] = deque(maxlen=100)

        self._map_name = ""
        self._tracker_factory: TrackerFactory | None = None
        self._tracker: Tracker | None = None
        self._load(load)
        self._prepare_start()

        every_frame = self._parameter("process_all_frames")
        self._frames = FrameQueue(FRAME_QUEUE_LIMIT if every_frame else 1)
        self._worker = threading.Thread(target=self._work, name="localization")
        self._create_interfaces(every_frame)
        self._worker.start()

    # ---- set-up

    def _declare_parameters(self) -> None:
        for parameter in PARAMETERS:
            self.declare_parameter(parameter.name, parameter.default, conversions.parameter_descriptor(parameter))
        self._values = {parameter.name: self.get_parameter(parameter.name).value for parameter in PARAMETERS}
        check_values(self._values)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

    def _parameter(self, name: str):
        return self._values[name]

    def _check_parameters(self, parameters: list[rclpy.Parameter]) -> SetParametersResult:
        try:
            check_values({p.name: p.value for p in parameters if p.name in self._values})
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, parameters: list[rclpy.Parameter]) -> None:
        self._values = self._values | {p.name: p.value for p in parameters if p.name in self._values}

    def _load(self, load: Callable[[str, str, int], tuple[TrackerFactory, str]]) -> None:
        if self._parameter("threads"):
            torch.set_num_threads(self._parameter("threads"))
        try:
            self._tracker_factory, self._map_name = load(
                self._parameter("map"), self._parameter("weights"), self._parameter("max_points"))
        except InputError as error:
            self._board.report("map", "load", ERROR, f"{error}. Then start the node again: nothing is localized until then")
            return
        self._tracker = self._tracker_factory()
        self._board.value("map", file=self._map_name)

    def _prepare_start(self) -> None:
        """Takes the initial pose of the parameters, if it is to be used."""
        if not self._parameter("set_initial_pose"):
            self._board.report("initial pose", "missing", WARN,
                               "no initial pose yet: publish one on initialpose (RViz: 2D Pose Estimate) or set set_initial_pose "
                               "and initial_pose.*")
            return
        x, y, z, roll, pitch, yaw = (self._parameter(f"initial_pose.{n}") for n in ("x", "y", "z", "roll", "pitch", "yaw"))
        with self._lock:
            self._initial_pose = _InitialPose(conversions.matrix_from_euler((x, y, z), roll, pitch, yaw),
                                              self._default_initial_covariance(), None)

    def _default_initial_covariance(self) -> torch.Tensor:
        translation, rotation = (self._parameter(f"initial_pose.{n}_stddev") for n in ("position", "rotation"))
        return torch.diag(torch.tensor([translation**2] * 3 + [rotation**2] * 3, dtype=torch.float64))

    def _create_interfaces(self, every_frame: bool) -> None:
        self._pose_publisher = self.create_publisher(PoseWithCovarianceStamped, "~/pose", 10)
        self._odometry_publisher = self.create_publisher(Odometry, "~/odometry", 10)
        self._status_publisher = self.create_publisher(LocalizationStatus, "~/status", 100)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._tf_broadcaster = TransformBroadcaster(self)
        self._tf_buffer = Buffer(node=self)
        self._tf_listener = TransformListener(self._tf_buffer, self)
        self.create_subscription(PoseWithCovarianceStamped, "initialpose", self._on_initial_pose, 1)
        self.create_subscription(CameraInfo, self._parameter("camera_info_topic"), self._on_camera_info, qos_profile_sensor_data)
        if self._parameter("odom_source") == "topic":
            self.create_subscription(Odometry, self._parameter("odom_topic"), self._on_odometry,
                                     QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT))
        # Timers follow the machine's clock: with simulated time that has not begun, the node still says what is wrong.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0 / self._parameter("tf_publish_rate"), self._on_tick, clock=steady)
        self.create_timer(1.0, self._on_second, clock=steady)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-_JUMP_BACK_NS), on_clock_change=False),
            post_callback=lambda jump: self._on_time_jump("the clock went back"))
        # Images last: whoever waits for this subscription knows that the node is ready.
        transport = self._parameter("image_transport")
        reliability = {"best_effort": ReliabilityPolicy.BEST_EFFORT, "reliable": ReliabilityPolicy.RELIABLE}
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=FRAME_QUEUE_LIMIT if every_frame else 5,
                         reliability=reliability[self._parameter("image_reliability")])
        topic = image_subscription_topic(self._parameter("image_topic"), transport)
        self._image_subscription = self.create_subscription(
            CompressedImage if transport == "compressed" else Image, topic, self._on_image, qos)

    def close(self) -> None:
        """Ends the worker; the node can be destroyed then."""
        self._frames.close()
        self._worker.join()

    # ---- callbacks: check and store

    def _on_image(self, message: Image | CompressedImage) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        self._heard("image")
        with self._lock:
            self._counters.received += 1
            back_ns = (self._newest_image_ns or stamp_ns) - stamp_ns
        if back_ns > _JUMP_BACK_NS:
            self._on_time_jump(f"image stamps went back by {back_ns / NS_PER_S:.3f} s")
        with self._lock:
            self._newest_image_ns = max(stamp_ns, self._newest_image_ns or 0)
        dropped = self._frames.put(ReceivedImage(message, stamp_ns, time.monotonic()))
        if dropped is not None:
            self._drop(dropped, "dropped: a newer image came before its turn")

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._heard("calibration")
        roi = message.roi
        key = (message.width, message.height, message.distortion_model, tuple(message.k), tuple(message.d), message.binning_x,
               message.binning_y, roi.x_offset, roi.y_offset, roi.width, roi.height)
        if key == self._camera_info_key:
            return
        self._camera_info_key = key
        try:
            camera = conversions.camera_from_info(message)
        except InputError as error:
            self._board.report("calibration", "invalid", ERROR, f"{self._resolved('camera_info_topic')}: {error}")
            camera = None
        else:
            self._board.clear("calibration", "invalid")
        with self._lock:
            self._camera = camera
        self._input_arrived.set()

    def _on_odometry(self, message: Odometry) -> None:
        self._heard("odometry")
        stamp_ns = stamp_to_ns(message.header.stamp)
        topic = self._resolved("odom_topic")
        frames = (message.header.frame_id, self._parameter("odom_frame_id")), (message.child_frame_id, self._parameter("base_frame_id"))
        for (got, wanted), name in zip(frames, ("odom_frame_id", "base_frame_id"), strict=True):
            if got and got != wanted:
                self._board.report("odometry", "frames", ERROR,
                                   f"{topic} speaks of frame '{got}' where {name} is '{wanted}': ignored; set {name} to '{got}'")
                return
        self._board.clear("odometry", "frames")
        try:
            odom_from_base = conversions.pose_to_matrix(message.pose.pose, f"{topic}: pose")
        except InputError as error:
            self._board.report("odometry", "invalid", ERROR, f"{error}; the message is ignored")
            return
        self._board.clear("odometry", "invalid")
        with self._lock:
            step_ns = stamp_ns - (self._newest_odometry_ns if self._newest_odometry_ns is not None else stamp_ns - 1)
        if step_ns < -_JUMP_BACK_NS:
            self._on_time_jump(f"odometry stamps went back by {-step_ns / NS_PER_S:.3f} s")
        elif step_ns < 0:
            self._board.report("odometry", "order", WARN,
                               f"{topic}: a stamp lies {-step_ns / NS_PER_S:.3f} s before the last one: ignored; look for a second "
                               "publisher on the topic")
            return
        elif step_ns == 0:
            return
        self._board.clear("odometry", "order")
        with self._lock:
            self._odometry.append(_OdometryMessage(stamp_ns, odom_from_base, _checked_twist(message.twist)))
            self._newest_odometry_ns = stamp_ns
        self._input_arrived.set()

    def _on_initial_pose(self, message: PoseWithCovarianceStamped) -> None:
        frame, wanted = message.header.frame_id, self._parameter("global_frame_id")
        if frame != wanted:
            self._board.report("initial pose", "invalid", ERROR,
                               f"the initial pose is in frame '{frame}', not '{wanted}': refused; set RViz's fixed frame to '{wanted}'")
            return
        try:
            map_from_base = conversions.pose_to_matrix(message.pose.pose, "the initial pose")
            covariance = conversions.covariance_from_message(message.pose.covariance, map_from_base, "the initial pose")
        except InputError as error:
            self._board.report("initial pose", "invalid", ERROR, f"{error}; it is refused")
            return
        self._board.clear("initial pose", "invalid")
        stamp_ns = stamp_to_ns(message.header.stamp) or None
        default = self._default_initial_covariance()
        if covariance is None:
            covariance = default
        else:
            # RViz gives no variance for z, roll and pitch: what is zero is unknown, not exact.
            unknown = covariance.diagonal() < 1e-9
            covariance = covariance + torch.diag(torch.where(unknown, default.diagonal(), torch.zeros(6, dtype=torch.float64)))
        with self._lock:
            self._initial_pose = _InitialPose(map_from_base, covariance, stamp_ns)
        self.get_logger().info("initial pose received")

    def _on_time_jump(self, reason: str) -> None:
        """Forgets all that belongs to the time before."""
        with self._lock:
            self._odometry.clear()
            self._newest_odometry_ns = self._newest_image_ns = None
            self._initial_pose = None
            self._reset_reason = reason
        self._board.report("localization", "time", WARN, f"{reason}: localization starts again")
        self._board.clear("localization", "time")
        self._prepare_start()
        self._tf_buffer.clear()
        with self._tf_lock:
            self._schedule.clear()
        for frame in self._frames.clear():
            self._drop(frame, f"dropped: {reason}")

    def _on_tick(self) -> None:
        with self._lock:
            newest_ns = max(self._newest_image_ns or 0, self._newest_odometry_ns or 0)
        if self._parameter("publish_tf"):
            with self._tf_lock:
                self._send_transforms(self._schedule.due(newest_ns, self._tolerance_ns()))
        if self._board.take_changed():
            self._publish_diagnostics()

    def _on_second(self) -> None:
        self._check_silence()
        self._publish_diagnostics()

    # ---- worker

    def _work(self) -> None:
        with torch.inference_mode():
            while (frame := self._frames.take()) is not None:
                self._process(frame)

    def _process(self, received: ReceivedImage) -> None:
        began = time.monotonic()
        self._apply_reset()
        try:
            frame, base_from_camera = self._assemble(received)
            result = self._tracker.track(frame, base_from_camera)
        except _Rejected as rejection:
            self._board.report(rejection.component, rejection.name, rejection.level, str(rejection))
            self._reject(received, str(rejection))
            return
        except InputError as error:
            self._board.report("image", "unusable", ERROR, f"{error}; the image is not used")
            self._reject(received, str(error))
            return
        self._last_image_ns = received.stamp_ns
        self._state = result.state
        self._durations_ms.append((time.monotonic() - began) * 1e3)
        self._publish_result(received, result)
        self._delays_ms.append((time.monotonic() - received.received_at) * 1e3)
        self._judge(result)

    def _apply_reset(self) -> None:
        with self._lock:
            reason, self._reset_reason = self._reset_reason, None
        if reason is None:
            return
        self._last_pose = self._last_image_ns = self._twist = None
        self._state = TrackState.INITIALIZING
        if self._tracker_factory is not None:
            self._tracker = self._tracker_factory()

    def _assemble(self, received: ReceivedImage) -> tuple[CameraFrame, torch.Tensor]:
        """All that the tracker wants for one image. Raises _Rejected."""
        if self._tracker is None:
            raise _Rejected("map", "load", "no map is loaded: see the first error in the log, mend it and start the node again")
        stamp_ns = received.stamp_ns
        if stamp_ns <= 0:
            raise _Rejected("image", "stamp", "images have no time stamp: the driver must fill in header.stamp")
        if self._last_image_ns is not None and stamp_ns <= self._last_image_ns:
            late_s = (self._last_image_ns - stamp_ns) / NS_PER_S
            raise _Rejected("image", "order", f"an image is {late_s:.3f} s older than the last one used: ignored; look for a second "
                                              "publisher on the topic", WARN)
        try:
            pixels = decode_image(received.message)
        except InputError as error:
            raise _Rejected("image", "format", f"{error}; the image is not used") from None
        deadline = received.received_at + self._parameter("odometry_wait_s")
        camera = self._wait_for_camera(deadline)
        height, width = pixels.shape[:2]
        if (width, height) != (camera.width, camera.height):
            raise _Rejected("calibration", "size",
                            f"images are {width}x{height} but {self._resolved('camera_info_topic')} is for {camera.width}x"
                            f"{camera.height}: publish the calibration of this image size (binning and roi are understood)")
        base_from_camera = self._wait_for_extrinsics(received, deadline)
        self._feed_odometry(stamp_ns, deadline)
        self._feed_initial_pose(stamp_ns)
        self._board.clear("image", "stamp", "order", "format", "unusable")
        self._board.clear("calibration", "missing", "size")
        return CameraFrame(stamp_ns, pixels, camera), base_from_camera

    def _wait_until(self, ready: Callable[[], bool], deadline: float) -> bool:
        """Whether `ready` became true before the deadline (`time.monotonic`)."""
        while not ready():
            if time.monotonic() >= deadline:
                return False
            self._input_arrived.clear()
            self._input_arrived.wait(_POLL_S)
        return True

    def _wait_for_camera(self, deadline: float) -> Camera:
        self._wait_until(lambda: self._camera is not None, deadline)
        with self._lock:
            camera = self._camera
        if camera is not None:
            return camera
        topic = self._resolved("camera_info_topic")
        if self._camera_info_key is None:
            raise _Rejected("calibration", "missing", f"no CameraInfo on {topic} yet: set camera_info_topic or start its publisher")
        raise _Rejected("calibration", "missing", f"the CameraInfo on {topic} is not usable, images are not used until it is")

    def _wait_for_extrinsics(self, received: ReceivedImage, deadline: float) -> torch.Tensor:
        base = self._parameter("base_frame_id")
        camera = self._parameter("camera_frame_id") or received.message.header.frame_id
        if not camera:
            raise _Rejected("transforms", "camera", "images have no frame_id: set camera_frame_id to the camera's optical frame")
        transform = self._wait_for_transform(base, camera, received.stamp_ns, deadline, "camera",
                                             f"ros2 run tf2_ros static_transform_publisher --frame-id {base} --child-frame-id {camera} "
                                             "--x ... (or the robot's URDF)")
        return transform

    def _wait_for_transform(self, target: str, source: str, stamp_ns: int, deadline: float, name: str, remedy: str) -> torch.Tensor:
        """``target_from_source`` at a stamp, by tf2. Raises _Rejected."""
        stamp = Time(nanoseconds=stamp_ns, clock_type=ClockType.ROS_TIME)
        while True:
            try:
                message = self._tf_buffer.lookup_transform(target, source, stamp)
                break
            except TransformException as error:
                if time.monotonic() >= deadline:
                    raise _Rejected("transforms", name, f"no transform {target} -> {source} ({error}): publish it with "
                                                        f"{remedy}; images are not used until then") from None
            time.sleep(_POLL_S)
        try:
            matrix = conversions.transform_to_matrix(message.transform, f"transform {target} -> {source}")
        except InputError as error:
            raise _Rejected("transforms", name, str(error)) from None
        self._board.clear("transforms", name)
        return matrix

    def _feed_odometry(self, stamp_ns: int, deadline: float) -> None:
        """Gives the tracker the odometry up to the image, having waited for it."""
        source = self._parameter("odom_source")
        if source == "tf":
            odom, base = self._parameter("odom_frame_id"), self._parameter("base_frame_id")
            matrix = self._wait_for_transform(odom, base, stamp_ns, deadline, "odometry", "the robot's odometry, or set odom_source")
            self._tracker.add_odometry(stamp_ns, matrix)
        elif source == "topic":
            with self._lock:
                silent_s = time.monotonic() - self._silence["odometry"]
            if silent_s < self._parameter("input_timeout_s"):
                self._wait_until(lambda: (self._newest_odometry_ns or 0) >= stamp_ns, deadline)
            for message in self._take_odometry(stamp_ns):
                report = self._tracker.add_odometry(message.stamp_ns, message.odom_from_base,
                                                    _twist_covariance(message.twist))
                if message.stamp_ns <= stamp_ns or self._twist is None:
                    self._twist = message.twist
                if report.reset:
                    self._board.report("odometry", "jump", WARN, report.message)
                    self._board.clear("odometry", "jump")
            self._check_odometry_at(stamp_ns)

    def _take_odometry(self, stamp_ns: int) -> list[_OdometryMessage]:
        """Messages up to and including the first at or after the image: later ones must not change what the image gives."""
        taken = []
        with self._lock:
            while self._odometry:
                taken.append(self._odometry.popleft())
                if taken[-1].stamp_ns >= stamp_ns:
                    break
        return taken

    def _check_odometry_at(self, stamp_ns: int) -> None:
        newest_ns = self._tracker.odometry.newest_stamp_ns
        if newest_ns is None or newest_ns >= stamp_ns:
            self._board.clear("odometry", "late")
            return
        behind_s = (stamp_ns - newest_ns) / NS_PER_S
        self._board.report("odometry", "late", WARN,
                           f"the newest odometry (stamp {newest_ns / NS_PER_S:.3f}) is {behind_s:.3f} s older than the image (stamp "
                           f"{stamp_ns / NS_PER_S:.3f}): raise odometry_wait_s, or synchronise the clocks of camera and odometry")

    def _feed_initial_pose(self, image_ns: int) -> None:
        with self._lock:
            pose, self._initial_pose = self._initial_pose, None
        if pose is None:
            return
        stamp_ns = image_ns if pose.stamp_ns is None else pose.stamp_ns
        age_s = (image_ns - stamp_ns) / NS_PER_S
        if not 0 <= image_ns - stamp_ns <= _MAX_INITIAL_POSE_AGE_NS:
            if abs(age_s) > 1.0:
                self._board.report("initial pose", "stamp", WARN,
                                   f"the initial pose (stamp {stamp_ns / NS_PER_S:.3f}) is {age_s:.1f} s older than the image (stamp "
                                   f"{image_ns / NS_PER_S:.3f}): taken as the pose at the image; use one clock (use_sim_time) everywhere")
                self._board.clear("initial pose", "stamp")
            stamp_ns = image_ns
        self._tracker.initialize(pose.map_from_base, pose.covariance, stamp_ns)
        self._board.clear("initial pose", "missing")
        self._last_pose = None

    # ---- what goes out

    def _publish_result(self, received: ReceivedImage, result: TrackResult) -> None:
        if result.map_from_base is None:
            with self._tf_lock:
                self._schedule.clear()
            self._last_pose = None
        else:
            self._publish_transform(result)
            self._publish_pose(result)
            self._last_pose = (result.stamp_ns, result.map_from_base, result.covariance)
        with self._lock:
            self._counters.processed += 1
        self._publish_status(received, result.message, result)

    def _publish_transform(self, result: TrackResult) -> None:
        blind = self._parameter("odom_source") == "none"
        transform = result.map_from_base if blind else result.map_from_odom
        if transform is None or not self._parameter("publish_tf"):
            return
        with self._tf_lock:
            self._send_transforms(self._schedule.found(transform, result.stamp_ns, self._tolerance_ns()))

    def _send_transforms(self, stamped: list[tuple[int, torch.Tensor]]) -> None:
        if not stamped:
            return
        child = self._parameter("base_frame_id" if self._parameter("odom_source") == "none" else "odom_frame_id")
        parent = self._parameter("global_frame_id")
        self._tf_broadcaster.sendTransform(
            [conversions.transform_stamped(parent, child, stamp_ns, transform) for stamp_ns, transform in stamped])

    def _publish_pose(self, result: TrackResult) -> None:
        pose = PoseWithCovarianceStamped(pose=conversions.pose_with_covariance(result.map_from_base, result.covariance))
        pose.header.frame_id, pose.header.stamp = self._parameter("global_frame_id"), stamp_from_ns(result.stamp_ns)
        self._pose_publisher.publish(pose)
        odometry = Odometry(header=pose.header, child_frame_id=self._parameter("base_frame_id"), pose=pose.pose)
        odometry.twist = self._twist if self._twist is not None else self._twist_from_poses(result)
        self._odometry_publisher.publish(odometry)

    def _twist_from_poses(self, result: TrackResult) -> TwistWithCovariance:
        """Velocity since the last pose, in the base frame; where there is none, zero with a covariance that says so."""
        unknown = 1e3 * torch.eye(6, dtype=torch.float64)
        if self._last_pose is None or result.stamp_ns - self._last_pose[0] > NS_PER_S:
            return TwistWithCovariance(covariance=unknown.ravel().tolist())
        stamp_ns, map_from_last, covariance = self._last_pose
        seconds = (result.stamp_ns - stamp_ns) / NS_PER_S
        velocity = se3.se3_log(se3.inverse(map_from_last) @ result.map_from_base) / seconds
        spread = (covariance + result.covariance) / seconds**2
        return TwistWithCovariance(twist=conversions.twist_from_vector(velocity), covariance=spread.ravel().tolist())

    def _drop(self, frame: ReceivedImage, message: str) -> None:
        with self._lock:
            self._counters.dropped += 1
        self._publish_status(frame, message, None)

    def _reject(self, frame: ReceivedImage, message: str) -> None:
        with self._lock:
            self._counters.rejected += 1
        self._publish_status(frame, message, None)

    def _publish_status(self, frame: ReceivedImage, message: str, result: TrackResult | None) -> None:
        status = LocalizationStatus(state=int(self._state), message=message, map_name=self._map_name)
        status.header.frame_id, status.header.stamp = self._parameter("global_frame_id"), frame.message.header.stamp
        for name in ("inlier_fraction", "cost", "prior_distance_m", "prior_rotation_rad", "frame_ms", "feature_ms", "alignment_ms"):
            setattr(status, name, math.nan)
        if result is not None:
            status.prior_distance_m, status.prior_rotation_rad = result.prior_distance_m, result.prior_rotation_rad
            status.frame_ms = self._durations_ms[-1]
            status.feature_ms = result.timings_ms.get("features", math.nan)
            status.alignment_ms = result.timings_ms.get("alignment", math.nan)
            if result.prior is not None:
                status.prior_source = result.prior.source.replace(" ", "_")
            if result.alignment is not None:
                status.inlier_fraction, status.cost = result.alignment.inlier_fraction, _float32(result.alignment.cost)
                status.points_used = result.alignment.points_used
        status.age_ms = _float32((self.get_clock().now().nanoseconds - frame.stamp_ns) * 1e-6)
        with self._lock:
            counters = replace(self._counters)
        status.frames_received, status.frames_processed = counters.received, counters.processed
        status.frames_dropped, status.frames_rejected = counters.dropped, counters.rejected
        self._status_publisher.publish(status)

    # ---- diagnostics

    def _heard(self, name: str) -> None:
        self._silence[name] = time.monotonic()
        self._ever.add(name)

    def _judge(self, result: TrackResult) -> None:
        """Diagnostics of one processed image."""
        board = self._board
        if result.state is TrackState.TRACKING and not result.message:
            board.clear("localization", "state")
        elif result.state is TrackState.INITIALIZING:
            board.report("localization", "state", WARN, result.message or "waiting for the first pose")
        elif result.state in (TrackState.TRACKING, TrackState.DEGRADED):
            board.report("localization", "state", WARN, result.message)
        else:
            board.report("localization", "state", ERROR, f"{result.state.name}: {result.message}; no pose is published")
        if self._tracker.has_pose:
            board.clear("initial pose", "missing")
        else:
            board.report("initial pose", "missing", WARN,
                         "there is no pose to start from: publish one on initialpose (RViz: 2D Pose Estimate)")

    def _check_silence(self) -> None:
        now, limit = time.monotonic(), self._parameter("input_timeout_s")
        image_topic = self._image_subscription.topic_name
        topics = {"image": image_topic, "calibration": self._resolved("camera_info_topic")}
        if self._parameter("odom_source") == "topic":
            topics["odometry"] = self._resolved("odom_topic")
        remedies = {"image": "image_topic, image_transport", "calibration": "camera_info_topic",
                    "odometry": "odom_topic, or odom_source to none if the robot has no odometry"}
        for component, topic in topics.items():
            silent_s = now - self._silence[component]
            if silent_s <= limit:
                self._board.clear(component, "silent")
                continue
            since = "nothing" if component not in self._ever else f"nothing for {silent_s:.1f} s"
            publishers = self.get_publishers_info_by_topic(topic)
            if not publishers:
                why = f"it has no publisher: start it, or set {remedies[component]}"
            elif component == "image" and self._parameter("image_reliability") == "reliable" and all(
                    p.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for p in publishers):
                why = "its publisher is best effort: set image_reliability to best_effort"
            elif component == "image":
                why = ("it has a publisher: check that the camera streams and the type fits image_transport; for large images see "
                       "docs/troubleshooting.md, shared memory")
            else:
                why = "it has a publisher: check that it publishes"
            self._board.report(component, "silent", WARN, f"{since} received on {topic}, {why}")

    def _publish_diagnostics(self) -> None:
        with self._lock:
            counters = replace(self._counters)
        self._board.value("image", received=counters.received, processed=counters.processed, dropped=counters.dropped,
                          rejected=counters.rejected)
        self._board.value("localization", state=self._state.name)
        for name, values in (("frame_ms", tuple(self._durations_ms)), ("delay_ms", tuple(self._delays_ms))):
            if values:
                p50, p95 = np.percentile(values, (50, 95))
                self._board.value("localization", **{f"{name}_p50": f"{p50:.1f}", f"{name}_p95": f"{p95:.1f}"})
        message = DiagnosticArray(status=self._board.statuses(self.get_fully_qualified_name().lstrip("/"), self._map_name))
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(message)

    def _log_condition(self, level: bytes, text: str) -> None:
        (self.get_logger().error if level == ERROR else self.get_logger().warning)(text)

    def _resolved(self, topic_parameter: str) -> str:
        return self.resolve_topic_name(self._parameter(topic_parameter))

    def _tolerance_ns(self) -> int:
        return round(self._parameter("transform_tolerance") * NS_PER_S)


def _checked_twist(twist: TwistWithCovariance) -> TwistWithCovariance | None:
    """The twist, if all its numbers are finite."""
    linear, angular = twist.twist.linear, twist.twist.angular
    numbers = (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)
    return twist if all(map(math.isfinite, numbers)) and np.isfinite(twist.covariance).all() else None


def _twist_covariance(twist: TwistWithCovariance | None) -> torch.Tensor | None:
    return None if twist is None else torch.from_numpy(np.array(twist.covariance, np.float64).reshape(6, 6))


def _float32(value: float) -> float:
    """The value where a float32 field can hold it, else infinity (rclpy refuses others)."""
    return float(np.float32(np.clip(value, -3.4e38, 3.4e38))) if math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Runs the node until it is told to stop. Exit code 0 then, 2 for parameters that cannot be used."""
    # Callbacks must not wait long for the interpreter while the worker computes.
    sys.setswitchinterval(1e-3)
    rclpy.init(args=arguments)
    try:
        node = LocalizationNode()
    except (InputError, InvalidParameterException, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"localization_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

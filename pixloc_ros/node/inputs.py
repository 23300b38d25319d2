# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node hears on topics: callbacks check and store every message, the worker waits for what it needs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped, TwistWithCovariance
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix, NavSatStatus

from ..errors import InputError
from ..io.calibration import Calibration, read_calibration
from ..io.frames import OdometryMessage
from ..tracking.covariances import isotropic
from ..tracking.silence import LEAST_S
from . import conversions
from .conversions import NS_PER_S, stamp_to_ns
from .diagnostics import ERROR, OK, WARN, DiagnosticBoard
from .gyro_input import GyroInput
from .input_watch import InputWatch
from .parameters import FRAME_QUEUE_LIMIT, Value, image_subscription_topic
from .transforms import POLL_S, Rejected, Transforms

JUMP_BACK_NS = NS_PER_S
"""If stamps go back by more, time itself went back (a bag is played again); if by less, a message was late."""

FUTURE_NS = NS_PER_S
"""An image dated further ahead of the odometry (without odometry: of the clock) is refused: all later ones would seem late."""
_ODOMETRY_ALIVE_S = 0.5

_ODOMETRY_LIMIT = 20_000
_FILTER_STD, _FILTER_FLOOR = (0.2, 0.05), (0.03, 0.01)
"""Standard deviations (m, rad) of a filter's pose if it publishes none, and those that its delay adds to the published ones."""


@dataclass(frozen=True)
class InitialPose:
    """map_from_base float64 [4, 4] and its covariance [6, 6] in base axes; stamp_ns None: at the next image."""

    map_from_base: torch.Tensor
    covariance: torch.Tensor
    stamp_ns: int | None = None


class ReceivedOdometry(NamedTuple):
    """One checked message, and its velocity; None if not all numbers of that are finite."""

    message: OdometryMessage
    twist: TwistWithCovariance | None


class Inputs:
    """Subscriptions, and what came in through them.

    Callbacks run in the executor's thread, the methods that take a deadline (`time.monotonic`) in the worker's.

    Args:
        node: the node that listens.
        setting: gives the value of a parameter by name.
        board: takes the diagnostics.
        on_image: called with an image, its stamp in nanoseconds, and why it must not be used, or None. `time_offset` is added
            to the stamp, which is 0 if the message has none.
        on_time_jump: called with the reason when stamps go back; it calls `forget`.
        is_own: whether this node sent a transform that came in.

    Attributes:
        transforms: what came in over TF.
        gyro: what came in of an IMU; None without one.
        watch: since when inputs have been silent.
        is_first_start: whether the next start is the first, or the first of a new time.
        starts_from_parameters: whether the next start takes the initial pose of the parameters.
        hears_images: whether images are subscribed to.
    """

    def __init__(
        self,
        node: Node,
        setting: Callable[[str], Value],
        board: DiagnosticBoard,
        on_image: Callable[[Image | CompressedImage, int, Rejected | None], None],
        on_time_jump: Callable[[str], None],
        is_own: Callable[[TransformStamped], bool],
    ) -> None:
        self._node, self._setting, self._board = node, setting, board
        self._on_image_checked, self._on_time_jump = on_image, on_time_jump
        self.transforms = Transforms(node, setting, board, is_own)
        imu_topic = setting("imu_topic")
        self.gyro = GyroInput(node, imu_topic, self.transforms, board) if imu_topic else None
        self._subscriptions: list[Subscription] = []
        self.hears_images = False
        self._arrived = threading.Event()
        self.watch = InputWatch(node, setting, board)
        self._lock = threading.Lock()  # guards the following
        self._calibration: Calibration | None = None
        self._camera_info_key: tuple | None = None
        self._odometry: deque[ReceivedOdometry] = deque(maxlen=_ODOMETRY_LIMIT)
        self._newest_odometry_ns: int | None = None
        self._newest_image_ns: int | None = None
        self._initial_pose: InitialPose | None = None
        self._fix: tuple[np.ndarray, np.ndarray] | None = None
        self._filter_covariance: torch.Tensor | None = None
        self._filter_frames = setting("global_frame_id"), setting("base_frame_id")
        self.is_first_start, self.starts_from_parameters = True, setting("set_initial_pose")
        # Heard before the node is active, too: a pose that comes while it is not is the start.
        overridable = QoSOverridingOptions.with_default_policies()
        self._pose_subscription = node.create_subscription(
            PoseWithCovarianceStamped, "initialpose", self._on_initial_pose, 1, qos_overriding_options=overridable
        )

    def _listen(self, *arguments) -> None:
        overridable = QoSOverridingOptions.with_default_policies()
        self._subscriptions.append(self._node.create_subscription(*arguments, qos_overriding_options=overridable))

    def subscribe(self) -> None:
        """Begins to listen to all but images."""
        listen, setting = self._listen, self._setting
        image_topic = image_subscription_topic(setting("image_topic"), setting("image_transport"))
        validate_topic_name(image_topic)
        self._image_topic = self._node.resolve_topic_name(image_topic)
        self.transforms.subscribe()
        listen(NavSatFix, setting("fix_topic"), self._on_fix, qos_profile_sensor_data)
        listen(CameraInfo, setting("camera_info_topic"), self._on_camera_info, qos_profile_sensor_data)
        listen(Odometry, setting("filter_topic"), self._on_filter, qos_profile_sensor_data)
        if setting("odom_source") == "topic":
            qos = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
            listen(Odometry, setting("odom_topic"), self._on_odometry, qos)
        if self.gyro is not None:
            self.gyro.listen(listen)

    def subscribe_to_images(self) -> None:
        """Begins to listen to images: whoever waits for that subscription knows that the node is ready."""
        setting = self._setting
        self.watch.begin()
        reliable = setting("image_reliability") == "reliable"
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=FRAME_QUEUE_LIMIT if setting("process_all_frames") else 5, reliability=reliability)
        kind = CompressedImage if setting("image_transport") == "compressed" else Image
        self._listen(kind, self._image_topic, self._on_image, qos)
        self.hears_images = True
        topics = [self._image_topic, self.topic("camera_info_topic")]
        topics += [self.topic("odom_topic")] if setting("odom_source") == "topic" else []
        self._node.get_logger().info(f"listening to {', '.join(topics)}")

    def unsubscribe(self) -> None:
        """Stops listening."""
        self.hears_images = False
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self.transforms.unsubscribe()

    def close(self) -> None:
        """Stops listening to initial poses as well."""
        self._node.destroy_subscription(self._pose_subscription)

    # ---- callbacks

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.watch.heard("image")
        stamp_ns = stamp_to_ns(message.header.stamp)
        if stamp_ns > 0:  # not before the beginning of a simulated time
            stamp_ns = max(stamp_ns + round(self._setting("time_offset") * NS_PER_S), 1)
        with self._lock:
            back_ns = 0 if self._newest_image_ns is None else self._newest_image_ns - stamp_ns
            newest_odometry_ns = self._newest_odometry_ns or 0
        # A recording may be played without simulated time: then the odometry gives the time, as long as it comes.
        alive = newest_odometry_ns and self.watch.silent_s("odometry") < _ODOMETRY_ALIVE_S
        now_ns = newest_odometry_ns if alive else self._node.get_clock().now().nanoseconds
        if now_ns and stamp_ns - now_ns > FUTURE_NS:  # 0: simulated time has not begun
            text = (
                f"an image is dated {(stamp_ns - now_ns) / NS_PER_S:.3f} s ahead of the {'odometry' if alive else 'clock'}: it "
                "is not used; synchronise the camera's clock, or set use_sim_time if a recording is played"
            )
            self._on_image_checked(message, stamp_ns, Rejected("image", "future", text))
            return
        self._board.clear("image", "future")
        if stamp_ns and back_ns > JUMP_BACK_NS:
            self._on_time_jump(f"image stamps went back by {back_ns / NS_PER_S:.3f} s")
        with self._lock:
            self._newest_image_ns = max(stamp_ns, self._newest_image_ns or 0)
        self._on_image_checked(message, stamp_ns, None)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.watch.heard("calibration")
        roi = message.roi
        key = (
            *(message.width, message.height, message.distortion_model, *map(tuple, (message.k, message.d, message.r, message.p))),
            *(message.binning_x, message.binning_y, roi.x_offset, roi.y_offset, roi.width, roi.height),
        )
        if key == self._camera_info_key:
            return
        calibration = None
        try:
            calibration = read_calibration(message, self.topic("image_topic"))
            self._board.clear("calibration", "invalid")
            self._board.value("calibration", reading=calibration.taken)
            self._board.update("calibration", "reading", calibration.note, OK)
        except InputError as error:
            self._board.report("calibration", "invalid", ERROR, f"{self.topic('camera_info_topic')}: {error}")
        with self._lock:
            self._camera_info_key, self._calibration = key, calibration
        self._arrived.set()

    def _on_odometry(self, message: Odometry) -> None:
        self.watch.heard("odometry")
        board, topic = self._board, self.topic("odom_topic")
        for parameter, name in (("odom_frame_id", message.header.frame_id), ("base_frame_id", message.child_frame_id)):
            wanted = self._setting(parameter)
            if name and name != wanted:
                text = f"{topic} is about frame '{name}', not '{wanted}': ignored; set {parameter} to '{name}'"
                board.report("odometry", "frames", ERROR, text)
                return
        try:
            odom_from_base = conversions.pose_to_matrix(message.pose.pose, f"{topic}: the pose")
        except InputError as error:
            board.report("odometry", "invalid", ERROR, f"{error}; the message is ignored")
            return
        board.clear("odometry", "frames", "invalid")
        stamp_ns = stamp_to_ns(message.header.stamp)
        with self._lock:
            step_ns = 1 if self._newest_odometry_ns is None else stamp_ns - self._newest_odometry_ns
        if step_ns < -JUMP_BACK_NS:
            self._on_time_jump(f"odometry stamps went back by {-step_ns / NS_PER_S:.3f} s")
        elif step_ns < 0:
            late_s = -step_ns / NS_PER_S
            text = f"{topic}: a stamp is {late_s:.3f} s older than the last: ignored; look for a second publisher"
            board.report("odometry", "order", WARN, text)
        if -JUMP_BACK_NS <= step_ns <= 0:
            return
        board.clear("odometry", "order")
        with self._lock:
            self._odometry.append(_received(stamp_ns, odom_from_base, message.twist))
            self._newest_odometry_ns = stamp_ns
        self.watch.odometry_came(stamp_ns)
        self._arrived.set()

    def _on_initial_pose(self, message: PoseWithCovarianceStamped) -> None:
        try:
            self.set_initial_pose(message)
        except InputError as error:
            self._board.report("initial pose", "invalid", ERROR, f"{error}; it is refused")

    def set_initial_pose(self, message: PoseWithCovarianceStamped) -> None:
        """The next image starts from this pose. Raises InputError if it cannot be used."""
        name, wanted = message.header.frame_id, self._setting("global_frame_id")
        what = "the initial pose"
        if name != wanted:
            raise InputError(f"{what} is in frame '{name}', not '{wanted}': set RViz's fixed frame to '{wanted}'")
        map_from_base = conversions.pose_to_matrix(message.pose.pose, what)
        covariance = conversions.covariance_from_message(message.pose.covariance, map_from_base, what)
        self._board.clear("initial pose", "invalid")
        default = self._default_covariance()
        # RViz leaves z, roll and pitch zero: that means unknown here, not exact.
        covariance = torch.zeros_like(default) if covariance is None else covariance
        covariance = covariance + torch.diag(torch.where(covariance.diagonal() < 1e-9, default.diagonal(), 0.0))
        with self._lock:
            self._initial_pose = InitialPose(map_from_base, covariance, stamp_to_ns(message.header.stamp) or None)
        self._node.get_logger().info("initial pose received")

    def _on_fix(self, message: NavSatFix) -> None:
        covariance = np.array(message.position_covariance, np.float64).reshape(3, 3)
        known = message.position_covariance_type != NavSatFix.COVARIANCE_TYPE_UNKNOWN
        place = np.array([message.latitude, message.longitude, message.altitude])
        if message.status.status < NavSatStatus.STATUS_FIX or not np.isfinite(place).all():
            return
        if not known or not np.isfinite(covariance).all() or np.linalg.eigvalsh(covariance)[0] <= 0:
            text = f"{self.topic('fix_topic')} has no usable position_covariance: ignored; let its driver fill it in"
            self._board.report("initial pose", "fix", WARN, text)
            return
        self._board.clear("initial pose", "fix")
        with self._lock:
            self._fix = place, covariance

    def _on_filter(self, message: Odometry) -> None:
        covariance, problem = None, ""
        frames, wanted = (message.header.frame_id, message.child_frame_id), self._filter_frames
        try:
            if frames != wanted:
                text = "is about {1} in {0}, not about {3} in {2}: set filter_topic to that output of the filter"
                raise InputError(text.format(*frames, *wanted))
            pose = conversions.pose_to_matrix(message.pose.pose, "pose")
            covariance = conversions.covariance_from_message(message.pose.covariance, pose, "pose")
        except InputError as error:
            problem = f"{self.topic('filter_topic')}: {error}; its covariance is not used"
        self._board.update("transforms", "filter covariance", problem if not self._setting("publish_tf") else "")
        with self._lock:
            self._filter_covariance = covariance

    # ---- start and time jumps

    def expect_start(self) -> None:
        """Takes the initial pose of the parameters, or asks for one in diagnostics. A pose that came in already stays."""
        first, self.is_first_start = self.is_first_start, False
        always = self._setting("always_reset_initial_pose")
        self.starts_from_parameters = self._setting("set_initial_pose") and (first or always)
        if not self.starts_from_parameters:
            if self._setting("relocalization"):
                self._board.report("initial pose", "missing", OK, "none is given: the whole map is searched")
                return
            text = (
                "there is no pose to start from: publish one on initialpose (RViz: 2D Pose Estimate), or set "
                "set_initial_pose and initial_pose.*"
            )
            self._board.report("initial pose", "missing", WARN, text)
            return
        x, y, z, *angles = (self._setting(f"initial_pose.{name}") for name in ("x", "y", "z", "roll", "pitch", "yaw"))
        pose = InitialPose(conversions.matrix_from_euler((x, y, z), *angles), self._default_covariance())
        with self._lock:
            self._initial_pose = self._initial_pose or pose

    def _default_covariance(self) -> torch.Tensor:
        return isotropic(*(self._setting(f"initial_pose.{name}_stddev") for name in ("position", "rotation")))

    def forget(self) -> None:
        """Drops all that belongs to the time before a jump."""
        with self._lock:
            self._odometry.clear()
            self._newest_odometry_ns = self._newest_image_ns = self._initial_pose = self._fix = None
        self.transforms.forget()
        if self.gyro is not None:
            self.gyro.forget()

    # ---- for the worker

    @property
    def newest_ns(self) -> int:
        """The newest stamp of any image or odometry; 0 before the first."""
        with self._lock:
            return max(self._newest_image_ns or 0, self._newest_odometry_ns or 0)

    def take_initial_pose(self) -> InitialPose | None:
        """The initial pose that came since the last call."""
        with self._lock:
            pose, self._initial_pose = self._initial_pose, None
        return pose

    def take_fix(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The newest satellite fix since the last call: float64 [3] latitude, longitude (degrees), altitude (m), and its
        covariance [3, 3] in east, north, up (m²)."""
        with self._lock:
            fix, self._fix = self._fix, None
        return fix

    def published_pose(self, stamp_ns: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """map_from_base [4, 4] at a stamp as others publish it on TF, and its covariance [6, 6] in base axes as the filter says,
        at least `_FILTER_FLOOR`; None where it is not known."""
        pose = self.transforms.map_from_base(stamp_ns)
        if pose is None:
            return None
        with self._lock:
            covariance = self._filter_covariance
        return pose, isotropic(*_FILTER_STD) if covariance is None else covariance + isotropic(*_FILTER_FLOOR)

    def wait_for_odometry(self, stamp_ns: int, received_at: float, deadline: float) -> None:
        """Waits for odometry at or after the stamp of an image that came at `received_at` (`time.monotonic`)."""

        def covered() -> bool:
            return (self._newest_odometry_ns or 0) >= stamp_ns

        # If odometry has stopped, there is nothing to wait for.
        if self.watch.silent_s("odometry") < self._setting("input_timeout_s"):
            self._wait_until(covered, deadline)
        if covered():
            self._board.clear("odometry", "late")
        else:
            self.watch.wait_for_odometry(stamp_ns, received_at)

    def take_odometry(self, stamp_ns: int) -> list[ReceivedOdometry]:
        """The new messages up to and including the first one at or after a stamp.

        Later ones stay: the pose of an image must not depend on how much came in meanwhile.
        """
        taken = []
        with self._lock:
            while self._odometry:
                taken.append(self._odometry.popleft())
                if taken[-1].message.stamp_ns >= stamp_ns:
                    break
        return taken

    def calibration(self, deadline: float) -> Calibration:
        """The calibration in the latest CameraInfo, waited for until the deadline. Raises Rejected."""
        self._wait_until(lambda: self._calibration is not None, deadline)
        with self._lock:
            calibration, key = self._calibration, self._camera_info_key
        if calibration is None:
            topic = self.topic("camera_info_topic")
            text = f"no CameraInfo on {topic} yet: start its publisher, or set camera_info_topic"
            if key is not None:
                text = f"the CameraInfo on {topic} cannot be used: images wait for a better one"
            raise Rejected("calibration", "missing", text, may_come=key is None)
        return calibration

    def _wait_until(self, ready: Callable[[], bool], deadline: float) -> None:
        while not ready() and time.monotonic() < deadline:
            self._arrived.clear()
            self._arrived.wait(POLL_S)

    # ---- diagnostics

    def topic(self, parameter: str) -> str:
        """Full name of the topic that a parameter names."""
        return self._node.resolve_topic_name(self._setting(parameter))

    def check_silence(self) -> None:
        """Reports inputs that have been silent for a while. Does nothing before `subscribe_to_images`."""
        if not self.hears_images:
            return
        topics = {"image": self._image_topic, "calibration": self.topic("camera_info_topic")}
        if self._setting("odom_source") == "topic":
            topics["odometry"] = self.topic("odom_topic")
        # A calibration may be published just once (transient local).
        self.watch.check(topics, {"calibration"} if self._calibration is not None else set())

    def describe_images(self) -> str:
        """Why no image could be used for a while."""
        if self.watch.silent_s("image") < LEAST_S:
            return f"images come on {self._image_topic}, but none can be used: see the diagnostics"
        return self.watch.describe("image", self._image_topic)


def _received(stamp_ns: int, odom_from_base: torch.Tensor, twist: TwistWithCovariance) -> ReceivedOdometry:
    linear, angular = twist.twist.linear, twist.twist.angular
    vector = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
    covariance = np.array(twist.covariance, np.float64).reshape(6, 6)
    if not np.isfinite(vector).all() or not np.isfinite(covariance).all():
        return ReceivedOdometry(OdometryMessage(stamp_ns, odom_from_base), None)
    return ReceivedOdometry(OdometryMessage(stamp_ns, odom_from_base, torch.from_numpy(covariance), vector), twist)

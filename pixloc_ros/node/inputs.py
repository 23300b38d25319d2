# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node hears on topics: callbacks check and store every message, the worker waits for what it needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix, NavSatStatus

from ..errors import InputError
from ..io.frames import CameraFrame
from ..tracking.covariances import isotropic
from ..tracking.silence import LEAST_S
from . import conversions
from .camera_input import CameraInput
from .conversions import NS_PER_S, stamp_to_ns
from .diagnostics import ERROR, OK, WARN, DiagnosticBoard
from .gyro_input import GyroInput
from .input_watch import InputWatch, Source
from .odometry_input import JUMP_BACK_NS, OdometryInput
from .parameters import FRAME_QUEUE_LIMIT, Value, camera_namespaces
from .transforms import Rejected, Transforms

FUTURE_NS = NS_PER_S
"""An image dated further ahead of the odometry (without odometry: of the clock) is refused: all later ones would seem late."""
_ODOMETRY_ALIVE_S = 0.5

_FILTER_STD, _FILTER_FLOOR = (0.2, 0.05), (0.03, 0.01)
"""Standard deviations (m, rad) of a filter's pose if it publishes none, and those that its delay adds to the published ones."""


@dataclass(frozen=True)
class InitialPose:
    """map_from_base float64 [4, 4] and its covariance [6, 6] in base axes; stamp_ns None: at the next image."""

    map_from_base: torch.Tensor
    covariance: torch.Tensor
    stamp_ns: int | None = None


class Inputs:
    """Subscriptions, and what came in through them.

    Callbacks run in the executor's thread, the methods that take a deadline (`time.monotonic`) in the worker's.

    Args:
        node: the node that listens.
        setting: gives the value of a parameter by name.
        board: takes the diagnostics.
        on_image: called with the camera's name, an image, its stamp in nanoseconds, and why it must not be used, or None.
            `time_offset` is added to the stamp, which is 0 if the message has none.
        on_time_jump: called with the reason when stamps go back; it calls `forget`.
        is_own: whether this node sent a transform that came in.

    Attributes:
        cameras: by name; the only one's is empty.
        transforms: what came in over TF.
        odometry: what came in on its topic.
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
        on_image: Callable[[str, Image | CompressedImage, int, Rejected | None], None],
        on_time_jump: Callable[[str], None],
        is_own: Callable[[TransformStamped], bool],
    ) -> None:
        self._node, self._setting, self._board = node, setting, board
        self._on_image_checked, self._on_time_jump = on_image, on_time_jump
        namespaces = {namespace.strip("/"): namespace for namespace in camera_namespaces(setting("cameras"))}
        boards = board.of_cameras(list(namespaces))
        self.cameras = {name: CameraInput(node, setting, namespaces[name], boards[name]) for name in namespaces}
        self._held: dict[str, Rejected] = {}  # why images cannot be used, while what they need may be on its way; by camera
        self.transforms = Transforms(node, setting, board, is_own)
        imu_topic = setting("imu_topic")
        self.gyro = GyroInput(node, imu_topic, self.transforms, board) if imu_topic else None
        self._subscriptions: list[Subscription] = []
        self.hears_images = False
        self.watch = InputWatch(node, setting, board)
        self.odometry = OdometryInput(node, setting, board, self.watch, on_time_jump)
        self._lock = threading.Lock()  # guards the following
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
        self._held.clear()
        self._topics = [
            one for camera in self.cameras.values() for one in (camera.image_topic, camera.topic("camera_info_topic"))
        ]
        self.transforms.subscribe()
        listen(NavSatFix, setting("fix_topic"), self._on_fix, qos_profile_sensor_data)
        for camera in self.cameras.values():
            heard = partial(self._on_camera_info, camera)
            listen(CameraInfo, camera.topic("camera_info_topic"), heard, qos_profile_sensor_data)
        listen(Odometry, setting("filter_topic"), self._on_filter, qos_profile_sensor_data)
        if setting("odom_source") == "topic":
            self.odometry.listen(listen)
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
        for camera in self.cameras.values():
            self._listen(kind, camera.image_topic, partial(self._on_image, camera), qos)
        self.hears_images = True
        topics = [self.odometry.topic] if setting("odom_source") == "topic" else []
        self._node.get_logger().info(f"listening to {', '.join(self._topics + topics)}")

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

    def _on_image(self, camera: CameraInput, message: Image | CompressedImage) -> None:
        self.watch.heard("image", camera.name)
        camera.count("received")
        stamp_ns = stamp_to_ns(message.header.stamp)
        if stamp_ns > 0:  # not before the beginning of a simulated time
            stamp_ns = max(stamp_ns + round(self._setting("time_offset") * NS_PER_S), 1)
        back_ns = 0 if camera.newest_ns is None else camera.newest_ns - stamp_ns
        newest_odometry_ns = self.odometry.newest_ns or 0
        # A recording may be played without simulated time: then the odometry gives the time, as long as it comes.
        alive = newest_odometry_ns and self.watch.silent_s("odometry") < _ODOMETRY_ALIVE_S
        now_ns = newest_odometry_ns if alive else self._node.get_clock().now().nanoseconds
        if now_ns and stamp_ns - now_ns > FUTURE_NS:  # 0: simulated time has not begun
            text = (
                f"an image is dated {(stamp_ns - now_ns) / NS_PER_S:.3f} s ahead of the {'odometry' if alive else 'clock'}: it "
                "is not used; synchronise the camera's clock, or set use_sim_time if a recording is played"
            )
            self._on_image_checked(camera.name, message, stamp_ns, Rejected("image", "future", text))
            return
        camera.board.clear("image", "future")
        if self.is_rig and alive and back_ns > JUMP_BACK_NS and newest_odometry_ns - stamp_ns > JUMP_BACK_NS:
            text = f"its stamps went back by {back_ns / NS_PER_S:.3f} s, the odometry's did not: not used; synchronise its clock"
            self._on_image_checked(camera.name, message, stamp_ns, Rejected("image", "clock", text))
            return
        camera.board.clear("image", "clock")
        if stamp_ns and back_ns > JUMP_BACK_NS:
            self._on_time_jump(f"image stamps went back by {back_ns / NS_PER_S:.3f} s")
        camera.newest_ns = max(stamp_ns, camera.newest_ns or 0)
        self._on_image_checked(camera.name, message, stamp_ns, None)

    def _on_camera_info(self, camera: CameraInput, message: CameraInfo) -> None:
        self.watch.heard("calibration", camera.name)
        camera.on_camera_info(message)

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

    @property
    def is_rig(self) -> bool:
        """Whether the parameter `cameras` names some."""
        return "" not in self.cameras

    @property
    def camera_problems(self) -> str:
        """Which cameras the tracker leaves out, and why."""
        return "; ".join(f"camera {name} is left out: {one.problem}" for name, one in self.cameras.items() if one.problem)

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
            self._initial_pose = self._fix = None
        self.odometry.forget()
        for camera in self.cameras.values():
            camera.newest_ns = None
        self.transforms.forget()
        if self.gyro is not None:
            self.gyro.forget()

    # ---- for the worker

    @property
    def newest_ns(self) -> int:
        """The newest stamp of any image or odometry; 0 before the first."""
        images = [camera.newest_ns or 0 for camera in self.cameras.values() if not camera.is_ahead]
        return max(self.odometry.newest_ns or 0, *images)

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

    # ---- diagnostics

    def topic(self, parameter: str) -> str:
        """Full name of the topic that a parameter names."""
        return self._node.resolve_topic_name(self._setting(parameter))

    def refuse(self, rejection: Rejected, camera: str = "", stamp_ns: int = 0) -> None:
        """An image cannot be used; of several cameras, those of this one. Soon after the start it may be too early to say so."""
        board = self.cameras[camera].board if camera else self._board
        if camera:
            self.cameras[camera].count("rejected", stamp_ns)
        if self.watch.is_settling and rejection.may_come:
            self._held[camera] = rejection
        else:
            board.report(rejection.component, rejection.name, rejection.level, str(rejection))

    def accept(self, frame: CameraFrame) -> None:
        """The images of a frame are used."""
        for image in (frame, *(other.frame for other in frame.others)):
            self._held.pop(image.name, None)
            self.cameras[image.name].used(image.stamp_ns)
        self._held.pop("", None)
        self._board.clear("image", "stamp", "order", "format", "unusable")
        self._board.clear("calibration", "missing", "size")
        self._board.clear("transforms", "camera")

    def check_silence(self) -> None:
        """Reports inputs that have been silent for a while, or do not let images be used. Does nothing before
        `subscribe_to_images`."""
        if not self.hears_images:
            return
        sources = [source for camera in self.cameras.values() for source in camera.sources()]
        if self._setting("odom_source") == "topic":
            sources.append(Source("odometry", self.odometry.topic, self._board))
        self.watch.check(sources)
        if self.is_rig:
            silent = self.watch.silent_s("image") > self._setting("input_timeout_s")
            self._board.update("image", "silent", f"no camera gives images: {self._image_topics}" if silent else "", ERROR)
        if not self.watch.is_settling:
            for name in list(self._held):
                self.refuse(self._held.pop(name), name)

    @property
    def _image_topics(self) -> str:
        return ", ".join(camera.image_topic for camera in self.cameras.values())

    def describe_images(self) -> str:
        """Why no image could be used for a while."""
        if self.watch.silent_s("image") < LEAST_S:
            return f"images come on {self._image_topics}, but none can be used: see the diagnostics"
        if self.is_rig:
            return f"no camera gives images: {self._image_topics}"
        return self.watch.describe(self.cameras[""].sources()[0])

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node publishes: pose, odometry, status, TF and pictures for RViz. All stamps are those of the images."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from geometry_msgs.msg import Point, PoseStamped, PoseWithCovarianceStamped, Transform, TransformStamped, TwistWithCovariance
from nav_msgs.msg import Odometry, Path
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import ColorRGBA
from tf2_ros import TransformBroadcaster
from visualization_msgs.msg import Marker

from ..geometry import se3
from ..io.frames import CameraFrame
from ..msg import LocalizationStatus
from ..report.overlays import AGREES, DISAGREES, draw_alignment
from ..tracking.types import PreparedFrame, TrackResult, TrackState
from . import conversions
from .conversions import NS_PER_S, stamp_from_ns
from .parameters import Value
from .planar import Planar, planar
from .transform_schedule import TransformSchedule

_UNKNOWN_VARIANCE = 1e3
_TIMES = tuple(name for name in LocalizationStatus.get_fields_and_field_types() if name.endswith("_ms"))
_PER_FRAME = ("prior_distance_m", "prior_rotation_rad", "pose_probability", "inlier_fraction", "cost")
_TRACKER_STAGES = {"feature_ms": "features", "gather_ms": "gather", "alignment_ms": "alignment"}
_SENT_REMEMBERED = 256
_LONGEST_STEP_NS = NS_PER_S
"""Longest time between two poses whose difference still gives a velocity."""
_PATH_STEP_M, _PATH_STEP_RAD = 0.05, 0.05
"""A pose joins the path when the robot has moved or turned by this much since the last one."""
_PATH_LIMIT = 5000
_OVERLAY_PERIOD_NS = 200_000_000
"""Pictures are published at 5 Hz at most: they are for people, and cost the worker time."""
_POINT_SIZE_M = 0.03


class Outputs:
    """Publishers. Thread-safe except for `result`, which the worker calls.

    Args:
        node: the node that publishes.
        setting: value of a parameter by name.

    Attributes:
        planar: the transform with the parameter `planar`, while there is one.
    """

    def __init__(self, node: Node, setting: Callable[[str], Value]) -> None:
        self._node, self._setting = node, setting
        overridable = QoSOverridingOptions.with_default_policies()
        # A consumer of amcl's pose may need it latched.
        latchable = QoSOverridingOptions([*overridable.policy_kinds, QoSPolicyKind.DURABILITY])
        self._pose = node.create_publisher(PoseWithCovarianceStamped, "~/pose", 10, qos_overriding_options=latchable)
        self._amcl_pose = None
        if setting("amcl_interface"):
            latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._amcl_pose = node.create_publisher(PoseWithCovarianceStamped, "amcl_pose", latched)
        self._odometry = node.create_publisher(Odometry, "~/odometry", 10, qos_overriding_options=overridable)
        self._status = node.create_publisher(LocalizationStatus, "~/status", 100)
        self._broadcaster = TransformBroadcaster(node)
        self._tf_lock = threading.Lock()
        self._schedule = TransformSchedule()
        self._transforms: list[TransformStamped] = []
        self._last: TrackResult | None = None
        self.planar: Planar | None = None
        # What was sent recently: it comes back through our own transform listener.
        self._sent: deque[tuple] = deque(maxlen=_SENT_REMEMBERED)
        self._pose_topic = self._pose.topic_name

    def destroy(self) -> None:
        """Removes the publishers from the node."""
        for publisher in (self._pose, self._odometry, self._status, self._amcl_pose):
            if publisher is not None:
                self._node.destroy_publisher(publisher)

    def result(self, result: TrackResult, twist: TwistWithCovariance | None) -> None:
        """Publishes transform, pose and odometry of an image. If it gave no pose: nothing, and the transform is not repeated.

        Args:
            result: the tracker's result.
            twist: of the robot's odometry; without it the velocity is computed from the last two poses.
        """
        if result.map_from_base is None:
            self.lose()
            return
        blind = self._setting("odom_source") == "none"
        transform = result.map_from_base if blind else result.map_from_odom
        if self._setting("planar") and transform is not None:
            self.planar = planar(result.map_from_base, se3.inverse(transform) @ result.map_from_base)
            transform = self.planar.transform
        pose = PoseWithCovarianceStamped()
        pose.header.frame_id, pose.header.stamp = self._setting("global_frame_id"), stamp_from_ns(result.stamp_ns)
        pose.pose = conversions.pose_with_covariance(result.map_from_base, result.covariance)
        odometry = Odometry(header=pose.header, child_frame_id=self._setting("base_frame_id"), pose=pose.pose)
        odometry.twist = twist if twist is not None else self._twist_since_last(result)
        # All are made before the first goes out: then our own transform listener takes the interpreter. The transform is first,
        # for those who look it up when the pose comes.
        if transform is not None and self._setting("publish_tf"):
            message = conversions.matrix_to_transform(transform)
            with self._tf_lock:
                self._send(self._schedule.found(message, result.stamp_ns, self._tolerance_ns()))
        self._pose.publish(pose)
        if self._amcl_pose is not None:
            self._amcl_pose.publish(pose)
        self._odometry.publish(odometry)
        self._last = result

    def lose(self) -> None:
        """The tracker no longer knows the pose: the transform is not repeated, unless `publish_tf_when_lost` is set."""
        if not self._setting("publish_tf_when_lost"):
            self.fall_silent()

    def fall_silent(self) -> None:
        """The pose is no longer known: the transform is not repeated."""
        with self._tf_lock:
            self._schedule.clear()
        self._last = self.planar = None

    def repeat_transform(self, newest_ns: int) -> None:
        """Sends the transform again if it would soon be too old for data with that stamp."""
        if self._setting("publish_tf"):
            with self._tf_lock:
                self._send(self._schedule.due(newest_ns, self._tolerance_ns()))

    def is_own(self, stamped: TransformStamped) -> bool:
        """Whether this node sent a transform that came in."""
        return _key(stamped) in self._sent

    def pose_publishers(self) -> int:
        """How many nodes publish `~/pose`, including this one."""
        return self._node.count_publishers(self._pose_topic)

    def status(
        self,
        stamp_ns: int,
        state: TrackState,
        message: str,
        map_name: str,
        counters: dict[str, int],
        result: TrackResult | None = None,
        stages_ms: dict[str, float] | None = None,
    ) -> None:
        """Publishes the outcome of an image.

        Args:
            stamp_ns: the image's stamp.
            state: of the tracker.
            message: what is wrong, empty if all is well.
            map_name: file name of the map in use.
            counters: of the images so far.
            result: None if the image was not aligned.
            stages_ms: times that the tracker does not know, by the names of the message's fields.
        """
        status = LocalizationStatus(state=int(state), message=message, map_name=map_name)
        status.header.frame_id, status.header.stamp = self._setting("global_frame_id"), stamp_from_ns(stamp_ns)
        for name, number in counters.items():
            setattr(status, f"frames_{name}", number)
        alignment = result.alignment if result is not None else None
        times_ms = dict.fromkeys(_TIMES, math.nan) | (stages_ms or {})
        if result is not None:
            times_ms.update((name, result.timings_ms.get(stage, math.nan)) for name, stage in _TRACKER_STAGES.items())
        times_ms["age_ms"] = (self._node.get_clock().now().nanoseconds - stamp_ns) * 1e-6
        numbers = times_ms | dict.fromkeys(_PER_FRAME, math.nan)
        if result is not None:
            numbers |= {name: getattr(result, name) for name in ("prior_distance_m", "prior_rotation_rad")}
            status.prior_source = result.prior.source.replace(" ", "_") if result.prior is not None else ""
        if alignment is not None:
            numbers |= {name: getattr(alignment, name) for name in ("inlier_fraction", "cost")}
            numbers["pose_probability"] = alignment.probability
            status.points_used = alignment.points_used
        for name, value in numbers.items():
            setattr(status, name, _as_float32(value))
        self._status.publish(status)

    def _tolerance_ns(self) -> int:
        return round(self._setting("transform_tolerance") * NS_PER_S)

    def _send(self, stamped: list[tuple[int, Transform]]) -> None:
        if not stamped:
            return
        parent = self._setting("global_frame_id")
        child = self._setting("base_frame_id" if self._setting("odom_source") == "none" else "odom_frame_id")
        # Several per image, and expensive to make: they are reused.
        while len(self._transforms) < len(stamped):
            self._transforms.append(conversions.transform_stamped(parent, child, 0, Transform()))
        messages = self._transforms[: len(stamped)]
        for message, (stamp_ns, transform) in zip(messages, stamped):
            message.header.stamp, message.transform = stamp_from_ns(stamp_ns), transform
            self._sent.append(_key(message))
        self._broadcaster.sendTransform(messages)

    def _twist_since_last(self, result: TrackResult) -> TwistWithCovariance:
        """Velocity since the last pose, in base axes; without a last pose zero, with a covariance that says so."""
        last = self._last
        if last is None or result.stamp_ns - last.stamp_ns > _LONGEST_STEP_NS:
            return TwistWithCovariance(covariance=(_UNKNOWN_VARIANCE * np.eye(6)).ravel().tolist())
        seconds = (result.stamp_ns - last.stamp_ns) / NS_PER_S
        velocity = se3.se3_log(se3.inverse(last.map_from_base) @ result.map_from_base) / seconds
        covariance = (last.covariance + result.covariance) / seconds**2
        return TwistWithCovariance(twist=conversions.twist_from_vector(velocity), covariance=covariance.ravel().tolist())


class DebugOutputs:
    """Pictures for RViz on `~/path`, `~/overlay`, `~/points`, only for subscribers. Called by the worker, except `forget`."""

    def __init__(self, node: Node, setting: Callable[[str], Value]) -> None:
        self._node, self._setting = node, setting
        self._path = node.create_publisher(Path, "~/path", 1)
        self._overlay = node.create_publisher(Image, "~/overlay", 1)
        self._points = node.create_publisher(Marker, "~/points", 1)
        self._poses: deque[PoseStamped] = deque(maxlen=_PATH_LIMIT)
        self._last: torch.Tensor | None = None
        self._drawn_ns = 0

    def destroy(self) -> None:
        """Removes the publishers from the node."""
        for publisher in (self._path, self._overlay, self._points):
            self._node.destroy_publisher(publisher)

    def forget(self) -> None:
        """Begins a new path."""
        self._poses.clear()
        self._last, self._drawn_ns = None, 0

    def result(self, frame: CameraFrame, camera_frame_id: str, result: TrackResult) -> None:
        """Publishes the result of one image. camera_frame_id: of the image's message."""
        if result.map_from_base is not None:
            self._extend_path(result)
        if abs(result.stamp_ns - self._drawn_ns) < _OVERLAY_PERIOD_NS or result.alignment is None:
            return
        self._drawn_ns = result.stamp_ns
        if self._overlay.get_subscription_count():
            self._publish_overlay(frame, camera_frame_id, result)
        if self._points.get_subscription_count():
            self._publish_points(result)

    def _extend_path(self, result: TrackResult) -> None:
        if self._last is not None:
            moved_m, turned_rad = se3.pose_difference(self._last, result.map_from_base)
            if moved_m < _PATH_STEP_M and turned_rad < _PATH_STEP_RAD:
                return
        self._last = result.map_from_base
        pose = PoseStamped(pose=conversions.matrix_to_pose(result.map_from_base))
        pose.header.frame_id, pose.header.stamp = self._setting("global_frame_id"), stamp_from_ns(result.stamp_ns)
        self._poses.append(pose)
        if self._path.get_subscription_count():
            self._path.publish(Path(header=pose.header, poses=list(self._poses)))

    def _publish_overlay(self, frame: CameraFrame, camera_frame_id: str, result: TrackResult) -> None:
        own = next((one for one in result.alignment.views if one.view.name == frame.name), None)
        if own is None or not isinstance(frame, PreparedFrame):
            return
        picture = draw_alignment(frame.image, frame.prepared.camera, result.alignment.details, own.rows)
        message = conversions.rgb_message(picture)
        message.header.frame_id, message.header.stamp = camera_frame_id, stamp_from_ns(frame.stamp_ns)
        self._overlay.publish(message)

    def _publish_points(self, result: TrackResult) -> None:
        alignment = result.alignment
        if not alignment.views:
            return
        visible, agrees = alignment.details.visible.numpy(), alignment.details.inliers.numpy()
        xyz = np.concatenate([one.points.points.xyz.double().numpy() + one.points.origin.numpy() for one in alignment.views])
        marker = Marker(ns="points", type=Marker.POINTS, action=Marker.ADD)
        marker.header.frame_id, marker.header.stamp = self._setting("global_frame_id"), stamp_from_ns(result.stamp_ns)
        marker.pose.orientation.w = 1.0
        marker.scale.x = marker.scale.y = _POINT_SIZE_M
        for chosen, rgb in ((visible & ~agrees, DISAGREES), (visible & agrees, AGREES)):
            r, g, b = np.array(rgb) / 255.0
            colour = ColorRGBA(r=r, g=g, b=b, a=1.0)
            marker.points += [Point(x=x, y=y, z=z) for x, y, z in xyz[chosen].tolist()]
            marker.colors += [colour] * int(chosen.sum())
        self._points.publish(marker)


def _key(stamped: TransformStamped) -> tuple:
    stamp, place = stamped.header.stamp, stamped.transform.translation
    return stamped.header.frame_id, stamp.sec, stamp.nanosec, place.x, place.y, place.z


def _as_float32(value: float) -> float:
    """The value, cut to what a float32 field can hold: rclpy refuses larger ones."""
    return min(max(value, -3.4e38), 3.4e38) if math.isfinite(value) else value

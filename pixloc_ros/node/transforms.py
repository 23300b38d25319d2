# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node hears on TF: the camera's place on the robot, odometry, and others that publish the node's own transform."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from geometry_msgs.msg import TransformStamped
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.time import Time
from tf2_ros import Buffer, TransformException, TransformListener

from ..errors import InputError
from . import conversions
from .diagnostics import ERROR, DiagnosticBoard
from .parameters import Value

POLL_S = 0.005
"""How often the worker looks for what it waits for."""


class Rejected(Exception):
    """An image that cannot be used: the diagnostic condition that says why. may_come: what is missing may be on its way."""

    def __init__(self, component: str, name: str, message: str, level: bytes = ERROR, may_come: bool = False) -> None:
        super().__init__(message)
        self.component, self.name, self.level, self.may_come = component, name, level, may_come


class Transforms:
    """A transform buffer that is filled while the node is active.

    Args:
        node: the node that listens.
        setting: gives the value of a parameter by name.
        board: takes the diagnostics.
        is_own: whether this node sent a transform that came in.
    """

    def __init__(
        self, node: Node, setting: Callable[[str], Value], board: DiagnosticBoard, is_own: Callable[[TransformStamped], bool]
    ) -> None:
        self._node, self._setting, self._board, self._is_own = node, setting, board, is_own
        own_frame = setting("base_frame_id" if setting("odom_source") == "none" else "odom_frame_id")
        self._buffer = _WatchedBuffer(node, own_frame, self._on_own_frame)
        self._listener: TransformListener | None = None

    def subscribe(self) -> None:
        """Begins to listen."""
        self._listener = TransformListener(self._buffer, self._node)

    def unsubscribe(self) -> None:
        """Stops listening."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = None

    def forget(self) -> None:
        """Drops all transforms of the past."""
        self._buffer.clear()

    def base_from_camera(self, image_frame_id: str, stamp_ns: int, deadline: float) -> torch.Tensor:
        """float64 [4, 4] at a stamp, waited for until a deadline (`time.monotonic`). Raises Rejected."""
        base, camera = self._setting("base_frame_id"), self._setting("camera_frame_id") or image_frame_id
        if not camera:
            raise Rejected("transforms", "camera", "images have no frame_id: set camera_frame_id to the camera's optical frame")
        remedy = (
            f"publish it (robot_state_publisher, or: ros2 run tf2_ros static_transform_publisher --frame-id {base} "
            f"--child-frame-id {camera} --x ...)"
        )
        return self._lookup(base, camera, stamp_ns, deadline, "camera", remedy)

    def odom_from_base(self, stamp_ns: int, deadline: float) -> torch.Tensor:
        """float64 [4, 4] at a stamp, waited for until a deadline (`time.monotonic`). Raises Rejected."""
        odom, base = self._setting("odom_frame_id"), self._setting("base_frame_id")
        remedy = "start the robot's odometry, or set odom_source to topic or none"
        odom_from_base = self._lookup(odom, base, stamp_ns, deadline, "odometry", remedy)
        self._board.clear("transforms", "odometry")
        return odom_from_base

    def base_turned_from(self, frame: str) -> torch.Tensor | None:
        """float64 [3, 3], rotation from a frame that is fixed to the base; None where it is not known."""
        try:
            message = self._buffer.lookup_transform(self._setting("base_frame_id"), frame, Time())
            return conversions.transform_to_matrix(message.transform, f"the transform to {frame}")[:3, :3]
        except (InputError, TransformException):
            return None

    def map_from_base(self, stamp_ns: int) -> torch.Tensor | None:
        """float64 [4, 4] at a stamp, as others publish it; None where it is not known."""
        frames, stamp = ("global_frame_id", "base_frame_id"), Time(nanoseconds=stamp_ns, clock_type=ClockType.ROS_TIME)
        try:
            message = self._buffer.lookup_transform(*map(self._setting, frames), stamp)
            return conversions.transform_to_matrix(message.transform, "the published transform of the map")
        except (InputError, TransformException):
            return None

    def newest_odom_from_base(self) -> tuple[int, torch.Tensor] | None:
        """The newest transform and its stamp; None without any."""
        try:
            message = self._buffer.lookup_transform(self._setting("odom_frame_id"), self._setting("base_frame_id"), Time())
            return conversions.stamp_to_ns(message.header.stamp), conversions.transform_to_matrix(message.transform, "odometry")
        except (InputError, TransformException):
            return None

    def _lookup(self, target: str, source: str, stamp_ns: int, deadline: float, condition: str, remedy: str) -> torch.Tensor:
        stamp = Time(nanoseconds=stamp_ns, clock_type=ClockType.ROS_TIME)
        while True:
            try:
                message = self._buffer.lookup_transform(target, source, stamp)
                return conversions.transform_to_matrix(message.transform, f"the transform {target} -> {source}")
            except InputError as error:
                raise Rejected("transforms", condition, str(error)) from None
            except TransformException as error:
                if time.monotonic() >= deadline:
                    text = f"no transform {target} -> {source} ({error}): {remedy}"
                    raise Rejected("transforms", condition, text, may_come=True) from None
            time.sleep(POLL_S)

    def _on_own_frame(self, stamped: TransformStamped) -> None:
        if not self._setting("publish_tf") or self._is_own(stamped):
            return
        text = (
            f"something else publishes {stamped.header.frame_id} -> {stamped.child_frame_id}, the transform of a frame that this "
            "node publishes: stop it (AMCL: tf_broadcast, robot_localization: publish_tf), or set publish_tf to false here"
        )
        self._board.report_once("transforms", "rival", ERROR, text)


class _WatchedBuffer(Buffer):
    """A transform buffer that reports every transform of one child frame that comes in."""

    def __init__(self, node: Node, child_frame_id: str, on_child: Callable[[TransformStamped], None]) -> None:
        super().__init__(node=node)
        self._child_frame_id, self._on_child = child_frame_id, on_child

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        if transform.child_frame_id == self._child_frame_id:
            self._on_child(transform)
        super().set_transform(transform, authority)

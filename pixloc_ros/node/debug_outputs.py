# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pictures of the localizer's work for RViz: path, overlay, points. Computed only while somebody subscribes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker

from ..geometry import se3
from ..io.frames import CameraFrame
from ..report.overlays import AGREES, DISAGREES, draw_alignment
from ..tracking.types import PreparedFrame, TrackResult
from . import conversions
from .conversions import stamp_from_ns
from .parameters import Value

_PATH_STEP_M, _PATH_STEP_RAD = 0.05, 0.05
"""A pose joins the path when the robot has moved or turned by this much since the last one."""
_PATH_LIMIT = 5000
_OVERLAY_PERIOD_NS = 200_000_000
"""Pictures are published at 5 Hz at most: they are for people, and cost the worker time."""
_POINT_SIZE_M = 0.03


class DebugOutputs:
    """Publishers of `~/path`, `~/overlay`, `~/points`. Called by the worker, except `forget`."""

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
        details = result.alignment.details
        if details is None or not isinstance(frame, PreparedFrame):
            return
        picture = draw_alignment(frame.image, frame.prepared.camera, details)
        message = conversions.rgb_message(picture)
        message.header.frame_id, message.header.stamp = camera_frame_id, stamp_from_ns(frame.stamp_ns)
        self._overlay.publish(message)

    def _publish_points(self, result: TrackResult) -> None:
        alignment = result.alignment
        if alignment.details is None or alignment.points is None:
            return
        visible, agrees = alignment.details.visible.numpy(), alignment.details.inliers.numpy()
        xyz = alignment.points.points.xyz.double().numpy() + alignment.points.origin.numpy()
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

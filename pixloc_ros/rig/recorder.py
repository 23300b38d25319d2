# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Listens to the localization node as a robot's other nodes would, and records what it hears."""

import threading
import time
from typing import NamedTuple

import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from tf2_ros import Buffer, TransformException, TransformListener

from ..evaluation.live_run import LookupRecord, PoseRecord, Recording, StatusRecord
from ..msg import LocalizationStatus
from ..node import conversions
from ..node.conversions import stamp_to_ns
from ..tracking.types import TrackState

_DEPTH = 1000
_TRY_EVERY_S = 0.01
_PATIENCE_S = 1.0
"""How long after the node's report of an image a lookup at its stamp may still fail."""
_KEEP_S = 86_400


class _Pending(NamedTuple):
    """A lookup that has not worked yet: time of the first attempt and of the node's status (monotonic clock, seconds)."""

    began_s: float
    reported_s: float | None = None


class Recorder:
    """Subscriptions on a node that the caller spins; `recording` may be read when spinning has ended.

    For every image it looks up map → base in TF at the image's stamp, again and again until that works.
    """

    def __init__(self, node: Node, localizer: str, map_frame: str, base_frame: str, camera_frame: str) -> None:
        self._map_frame, self._base_frame, self._camera_frame = map_frame, base_frame, camera_frame
        self.recording = Recording()
        self._node, self._topics = node, (f"{localizer}/pose", f"{localizer}/status")
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._reported: set[int] = set()
        self._buffer = Buffer(cache_time=Duration(seconds=_KEEP_S), node=node)
        self._listener = TransformListener(self._buffer, node)
        node.create_subscription(PoseWithCovarianceStamped, self._topics[0], self._on_pose, _DEPTH)
        node.create_subscription(LocalizationStatus, self._topics[1], self._on_status, _DEPTH)
        node.create_timer(_TRY_EVERY_S, self._try_lookups, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def sent(self, stamp_ns: int) -> None:
        """An image with this stamp goes out now."""
        now = time.monotonic()
        with self._lock:
            self.recording.sent_s[stamp_ns] = now
            self._pending[stamp_ns] = _Pending(now)

    def hears_node(self) -> bool:
        """Whether the node's topics are there."""
        return all(self._node.count_publishers(topic) for topic in self._topics)

    def outstanding(self) -> int:
        """How many images the node has not reported yet, or have lookups that are still tried."""
        with self._lock:
            return len(self._pending.keys() | (self.recording.sent_s.keys() - self._reported))

    def finish(self, last_odometry_ns: int | None) -> Recording:
        """Looks up the whole chain at each image's stamp. Called when all transforms have come and nobody spins the node."""
        for stamp_ns in list(self._pending):
            self._settle(stamp_ns, "NoReport", "the node never reported the image")
        self.recording.last_odometry_ns = last_odometry_ns
        for stamp_ns in sorted(self.recording.sent_s):
            try:
                self.recording.chain[stamp_ns] = self._lookup(self._camera_frame, stamp_ns)
            except TransformException:
                self.recording.chain[stamp_ns] = None
        return self.recording

    def _lookup(self, frame: str, stamp_ns: int) -> torch.Tensor:
        message = self._buffer.lookup_transform(self._map_frame, frame, Time(nanoseconds=stamp_ns, clock_type=ClockType.ROS_TIME))
        return conversions.transform_to_matrix(message.transform, "transform")

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        now = time.monotonic()
        pose = conversions.pose_to_matrix(message.pose.pose, "pose")
        covariance = conversions.covariance_from_message(message.pose.covariance, pose, "pose")
        if covariance is None:
            covariance = torch.full((6, 6), torch.nan, dtype=torch.float64)
        self.recording.poses.append(PoseRecord(stamp_to_ns(message.header.stamp), pose, covariance, now))

    def _on_status(self, message: LocalizationStatus) -> None:
        now, stamp_ns = time.monotonic(), stamp_to_ns(message.header.stamp)
        m, state = message, TrackState(message.state)
        times_ms = m.frame_ms, m.feature_ms, m.alignment_ms
        record = StatusRecord(stamp_ns, state, m.message, m.inlier_fraction, *times_ms, m.frames_dropped, now, m.age_ms)
        self.recording.statuses.append(record)
        with self._lock:
            self._reported.add(stamp_ns)
            if stamp_ns in self._pending:
                self._pending[stamp_ns] = self._pending[stamp_ns]._replace(reported_s=now)

    def _try_lookups(self) -> None:
        with self._lock:
            pending = dict(self._pending)
        for stamp_ns, (_, reported_s) in pending.items():
            try:
                self._lookup(self._base_frame, stamp_ns)
            except TransformException as error:
                if reported_s is not None and time.monotonic() - reported_s > _PATIENCE_S:
                    self._settle(stamp_ns, type(error).__name__, str(error))
            else:
                self._settle(stamp_ns, "", "")

    def _settle(self, stamp_ns: int, error: str, text: str) -> None:
        with self._lock:
            waited_ms = (time.monotonic() - self._pending.pop(stamp_ns).began_s) * 1e3
        self.recording.lookups.append(LookupRecord(stamp_ns, error, text, waited_ms))

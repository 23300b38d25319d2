# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node hears of odometry on its topic: checked messages, which wait for the images of their time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from geometry_msgs.msg import TwistWithCovariance
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from ..errors import InputError
from ..io.frames import OdometryMessage
from . import conversions
from .conversions import NS_PER_S, stamp_to_ns
from .diagnostics import ERROR, WARN, DiagnosticBoard
from .input_watch import InputWatch
from .parameters import Value
from .transforms import POLL_S

JUMP_BACK_NS = NS_PER_S
"""If stamps go back by more, time itself went back (a bag is played again); if by less, a message was late."""
_LIMIT = 20_000


class ReceivedOdometry(NamedTuple):
    """One checked message, and its velocity; None if not all numbers of that are finite."""

    message: OdometryMessage
    twist: TwistWithCovariance | None


class OdometryInput:
    """Messages of nav_msgs/Odometry. Callbacks run in the executor's thread, what takes a stamp in the worker's.

    Args:
        node: the node that listens.
        setting: gives the value of a parameter by name.
        board: takes the diagnostics.
        watch: since when it is silent.
        on_time_jump: called with the reason when stamps go back.

    Attributes:
        newest_ns: the newest stamp; None before the first.
    """

    def __init__(
        self,
        node: Node,
        setting: Callable[[str], Value],
        board: DiagnosticBoard,
        watch: InputWatch,
        on_time_jump: Callable[[str], None],
    ) -> None:
        self._node, self._setting, self._board, self._watch, self._on_time_jump = node, setting, board, watch, on_time_jump
        self._arrived, self._lock = threading.Event(), threading.Lock()
        self._messages: deque[ReceivedOdometry] = deque(maxlen=_LIMIT)
        self.newest_ns: int | None = None

    @property
    def topic(self) -> str:
        """Full name of its topic."""
        return self._node.resolve_topic_name(self._setting("odom_topic"))

    def listen(self, listen: Callable[..., None]) -> None:
        """Subscribe with a function that takes type, topic, callback and quality of service."""
        qos = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
        listen(Odometry, self._setting("odom_topic"), self._on_odometry, qos)

    def forget(self) -> None:
        """A new time begins."""
        with self._lock:
            self._messages.clear()
            self.newest_ns = None

    def _on_odometry(self, message: Odometry) -> None:
        self._watch.heard("odometry")
        board, topic = self._board, self.topic
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
            step_ns = 1 if self.newest_ns is None else stamp_ns - self.newest_ns
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
            self._messages.append(_received(stamp_ns, odom_from_base, message.twist))
            self.newest_ns = stamp_ns
        self._watch.odometry_came(stamp_ns)
        self._arrived.set()

    def wait_for(self, stamp_ns: int, received_at: float, deadline: float) -> None:
        """Waits for odometry at or after the stamp of an image that came at `received_at` (`time.monotonic`)."""

        def covered() -> bool:
            return (self.newest_ns or 0) >= stamp_ns

        # If odometry has stopped, there is nothing to wait for.
        if self._watch.silent_s("odometry") < self._setting("input_timeout_s"):
            self._wait_until(covered, deadline)
        if covered():
            self._board.clear("odometry", "late")
        else:
            self._watch.wait_for_odometry(stamp_ns, received_at)

    def take(self, stamp_ns: int) -> list[ReceivedOdometry]:
        """The new messages up to and including the first one at or after a stamp.

        Later ones stay: the pose of an image must not depend on how much came in meanwhile.
        """
        taken = []
        with self._lock:
            while self._messages:
                taken.append(self._messages.popleft())
                if taken[-1].message.stamp_ns >= stamp_ns:
                    break
        return taken

    def _wait_until(self, ready: Callable[[], bool], deadline: float) -> None:
        while not ready() and time.monotonic() < deadline:
            self._arrived.clear()
            self._arrived.wait(POLL_S)


def _received(stamp_ns: int, odom_from_base: torch.Tensor, twist: TwistWithCovariance) -> ReceivedOdometry:
    linear, angular = twist.twist.linear, twist.twist.angular
    vector = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
    covariance = np.array(twist.covariance, np.float64).reshape(6, 6)
    if not np.isfinite(vector).all() or not np.isfinite(covariance).all():
        return ReceivedOdometry(OdometryMessage(stamp_ns, odom_from_base), None)
    return ReceivedOdometry(OdometryMessage(stamp_ns, odom_from_base, torch.from_numpy(covariance), vector), twist)

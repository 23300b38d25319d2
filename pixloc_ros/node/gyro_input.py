# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node hears of an IMU: readings that wait for the images of their time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Imu

from .conversions import stamp_to_ns
from .diagnostics import WARN, DiagnosticBoard
from .transforms import Transforms

_LIMIT = 20_000
AHEAD_NS = 10_000_000
"""Readings up to so long after an image are taken with it."""


class GyroInput:
    """Readings of one IMU. Callbacks run in the executor's thread, `take` in the worker's."""

    def __init__(self, node: Node, topic: str, transforms: Transforms, board: DiagnosticBoard) -> None:
        self._topic, self._transforms, self._board = node.resolve_topic_name(topic), transforms, board
        self._lock = threading.Lock()
        self._readings: deque[tuple[int, str, np.ndarray, np.ndarray | None]] = deque(maxlen=_LIMIT)

    def listen(self, listen: Callable[..., None]) -> None:
        """Subscribe with a function that takes type, topic, callback and quality of service."""
        listen(Imu, self._topic, self._on_imu, QoSProfile(depth=400, reliability=ReliabilityPolicy.BEST_EFFORT))

    def _on_imu(self, message: Imu) -> None:
        if message.angular_velocity_covariance[0] == -1:
            text = f"{self._topic} says that it holds no angular velocities: set imu_topic to one that does, or leave it empty"
            self._board.report_once("odometry", "imu", WARN, text)
            return
        rate, force = message.angular_velocity, message.linear_acceleration
        forces = None if message.linear_acceleration_covariance[0] == -1 else np.array((force.x, force.y, force.z))
        reading = stamp_to_ns(message.header.stamp), message.header.frame_id, np.array((rate.x, rate.y, rate.z)), forces
        with self._lock:
            self._readings.append(reading)

    def forget(self) -> None:
        """A new time begins."""
        with self._lock:
            self._readings.clear()

    def take(self, stamp_ns: int) -> list[tuple[int, np.ndarray, np.ndarray | None]]:
        """What came up to an image's stamp since the last call: stamps, angular velocities [3] of the base, rad/s, and what the
        accelerometer read [3] in its axes, m/s² (None: nothing)."""
        taken = []
        with self._lock:
            while self._readings and self._readings[0][0] <= stamp_ns + AHEAD_NS:
                taken.append(self._readings.popleft())
        turns: dict[str, torch.Tensor | None] = {}
        for _, frame, _, _ in taken:
            if frame not in turns:
                turns[frame] = self._transforms.base_turned_from(frame)
        missing = [frame for frame, turn in turns.items() if turn is None]
        text = f"no transform leads to '{missing[0]}', the frame of {self._topic}: publish the IMU's place" if missing else ""
        if taken:
            self._board.update("odometry", "imu transform", text)
        known = ((stamp, turns[frame].numpy(), *read) for stamp, frame, *read in taken if turns[frame] is not None)
        return [(stamp, turn @ rate, None if force is None else turn @ force) for stamp, turn, rate, force in known]

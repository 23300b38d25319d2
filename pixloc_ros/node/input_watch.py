# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Inputs that are silent or late: since when, and what to do about it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy

from .diagnostics import ERROR, WARN, Diagnostics
from .parameters import BY_NAME, Value

_SETTLE_S = 2.0
"""Time for publishers and transforms to be found: what is missing meanwhile is on its way."""
_RATE_IMAGES = 30
_LATE_LIMIT = 32
_PARAMETERS = {
    "image": "image_topic and image_transport",
    "calibration": "camera_info_topic",
    "odometry": "odom_topic, or odom_source to none if the robot has no odometry",
}


class Source(NamedTuple):
    """An input that should not be silent.

    Attributes:
        component: "image", "calibration" or "odometry".
        topic: its full name.
        board: takes the diagnostics.
        camera: its name, where there are several.
        known: whether one message was enough, and it came.
    """

    component: str
    topic: str
    board: Diagnostics
    camera: str = ""
    known: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Of what was heard."""
        return self.component, self.camera


class InputWatch:
    """When each input was heard. Callbacks and timers of the executor call it, except `wait_for_odometry`.

    Args:
        node: the node that listens.
        setting: gives the value of a parameter by name.
        board: takes the diagnostics of the odometry.
    """

    def __init__(self, node: Node, setting: Callable[[str], Value], board: Diagnostics) -> None:
        self._node, self._setting, self._board = node, setting, board
        self._ever_heard: set[tuple[str, str]] = set()
        self._clock_ns = 0
        self.begin()

    def begin(self) -> None:
        """The node listens from now on."""
        self._began_at = now = time.monotonic()
        self._heard_at = {(component, ""): now for component in _PARAMETERS}
        self._images_at: dict[str, deque[float]] = {}
        self._awaited: deque[tuple[int, float]] = deque(maxlen=_LATE_LIMIT)

    @property
    def is_settling(self) -> bool:
        """Whether the node has only just begun to listen."""
        return time.monotonic() < self._began_at + _SETTLE_S

    def heard(self, component: str, camera: str = "") -> None:
        """A message came."""
        now = time.monotonic()
        for key in ((component, camera), (component, "")):
            self._heard_at[key] = now
            self._ever_heard.add(key)
        if component == "image":
            self._images_at.setdefault(camera, deque(maxlen=_RATE_IMAGES)).append(now)

    def silent_s(self, component: str, camera: str = "") -> float:
        """Since the last message (without a name: of any camera), or since the node has begun to listen."""
        return time.monotonic() - self._heard_at.get((component, camera), self._began_at)

    # ---- odometry that comes too late for its image

    def wait_for_odometry(self, stamp_ns: int, received_at: float) -> None:
        """An image that came at `received_at` (`time.monotonic`) had to do without odometry of its stamp."""
        if self._heard_at["odometry", ""] > self._began_at:
            self._awaited.append((stamp_ns, received_at))

    def odometry_came(self, stamp_ns: int) -> None:
        """Measures how much later than the image the odometry of its stamp came: only now that is known."""
        late_s = 0.0
        while self._awaited and self._awaited[0][0] <= stamp_ns:
            late_s = max(late_s, time.monotonic() - self._awaited.popleft()[1])
        if not late_s:
            return
        wanted_s, most_s = math.ceil(late_s * 1.2 / 0.05) * 0.05, BY_NAME["odometry_wait_s"].bounds[1]
        remedy = f"set odometry_wait_s to {wanted_s:.2f}" if wanted_s <= min(1.0, most_s) else "synchronise the clocks of both"
        text = f"the odometry of an image's time comes {late_s:.2f} s after the image: {remedy}, or let the odometry come sooner"
        self._board.report("odometry", "late", WARN, text)

    # ---- silence

    def check(self, sources: Sequence[Source]) -> None:
        """Reports inputs that have been silent for a while, and the likely reason."""
        clock, before_ns = self._node.get_clock(), self._clock_ns
        self._clock_ns = clock.now().nanoseconds
        if clock.ros_time_is_active and self._clock_ns == before_ns > 0:  # a recording is over, or a simulation paused
            self._heard_at = dict.fromkeys((*self._heard_at, *(source.key for source in sources)), time.monotonic())
        for source in sources:
            if source.known or self.silent_s(*source.key) <= self._setting("input_timeout_s"):
                source.board.clear(source.component, "silent")
            else:
                level = ERROR if source.component == "image" and source.key in self._ever_heard else WARN
                source.board.report(source.component, "silent", level, self.describe(source))

    def describe(self, source: Source) -> str:
        """How long an input has been silent, and what to do about it."""
        why = self._why_silent(source)
        if source.key not in self._ever_heard:
            return f"nothing yet on {source.topic}, {why}"
        rate, times = "", self._images_at.get(source.camera, ())
        if source.component == "image" and len(times) > 1:
            rate = f" (before at {(len(times) - 1) / (times[-1] - times[0] + 1e-9):.1f} Hz)"
        return f"nothing for {self.silent_s(*source.key):.1f} s on {source.topic}{rate}, {why}"

    def _why_silent(self, source: Source) -> str:
        component, topic = source.component, source.topic
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            base = topic.removesuffix("/compressed")
            sibling, transport = (base, "raw") if base != topic else (f"{topic}/compressed", "compressed")
            if component == "image" and self._node.count_publishers(sibling):
                return f"it has no publisher, but {sibling} has: set image_transport to {transport}"
            return f"it has no publisher: start it, or set {_PARAMETERS[component]}"
        if component == "image":
            best_effort = all(p.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for p in publishers)
            if best_effort and self._setting("image_reliability") == "reliable":
                return "its publisher is best effort: set image_reliability to best_effort"
            if source.key not in self._ever_heard:
                return "it has a publisher: check image_transport; for large images see docs/troubleshooting.md"
        return "it has a publisher: check that it publishes"

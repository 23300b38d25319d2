# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A BufferCore that can wait and that follows the node's clock."""

from __future__ import annotations

import time as wall
from collections.abc import Callable

from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.task import Future
from rclpy.time import Time

from .buffer_core import BufferCore


class Buffer(BufferCore):
    """cache_time: how long transforms are kept (default 10 s). node: whose clock is followed (default: system time).

    Time that jumps back by more than a second (a bag played again) empties the buffer.
    """

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        super().__init__(cache_time)
        self._waiting: list[tuple[Callable[[], bool], Future]] = []
        self.clock = Clock() if node is None else node.get_clock()
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=True)
        self._jump_handle = self.clock.create_jump_callback(threshold, post_callback=self.time_jump_callback)

    def time_jump_callback(self, time_jump: TimeJump) -> None:
        """Called by the clock after a jump."""
        self.clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        super().set_transform(transform, authority)
        self._resolve_waiting()

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        super().set_transform_static(transform, authority)
        self._resolve_waiting()

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration | None = None
    ) -> TransformStamped:
        """target_from_source at a time (zero: the latest), waiting for it up to `timeout` (default: not at all).

        Raises LookupException, ConnectivityException, ExtrapolationException or InvalidArgumentException.
        """
        self.can_transform(target_frame, source_frame, time, timeout)
        return self.lookup_transform_core(target_frame, source_frame, time)

    def lookup_transform_full(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
        timeout: Duration | None = None,
    ) -> TransformStamped:
        """target (at target_time) from source (at source_time), by way of a frame that stands still meanwhile."""
        self.can_transform_full(target_frame, target_time, source_frame, source_time, fixed_frame, timeout)
        return self.lookup_transform_full_core(target_frame, target_time, source_frame, source_time, fixed_frame)

    async def lookup_transform_async(self, target_frame: str, source_frame: str, time: Time) -> TransformStamped:
        """target_from_source as soon as it is known."""
        await self.wait_for_transform_async(target_frame, source_frame, time)
        return self.lookup_transform_core(target_frame, source_frame, time)

    async def lookup_transform_full_async(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> TransformStamped:
        """As lookup_transform_full, as soon as it is known."""
        await self.wait_for_transform_full_async(target_frame, target_time, source_frame, source_time, fixed_frame)
        return self.lookup_transform_full_core(target_frame, target_time, source_frame, source_time, fixed_frame)

    def can_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration | None = None, return_debug_tuple: bool = False
    ) -> bool | tuple[bool, str]:
        """Whether lookup_transform would succeed within `timeout`; with return_debug_tuple also why not."""
        answer = self._wait(lambda: self.can_transform_core(target_frame, source_frame, time), timeout)
        return answer if return_debug_tuple else answer[0]

    def can_transform_full(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
        timeout: Duration | None = None,
        return_debug_tuple: bool = False,
    ) -> bool | tuple[bool, str]:
        """Whether lookup_transform_full would succeed within `timeout`; with return_debug_tuple also why not."""
        answer = self._wait(
            lambda: self.can_transform_full_core(target_frame, target_time, source_frame, source_time, fixed_frame), timeout
        )
        return answer if return_debug_tuple else answer[0]

    def wait_for_transform_async(self, target_frame: str, source_frame: str, time: Time) -> Future:
        """A future that becomes True when lookup_transform would succeed."""
        return self._future(lambda: self.can_transform_core(target_frame, source_frame, time)[0])

    def wait_for_transform_full_async(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> Future:
        """A future that becomes True when lookup_transform_full would succeed."""
        return self._future(
            lambda: self.can_transform_full_core(target_frame, target_time, source_frame, source_time, fixed_frame)[0]
        )

    def _wait(self, test: Callable[[], tuple[bool, str]], timeout: Duration | None) -> tuple[bool, str]:
        answer = test()
        if answer[0] or timeout is None or timeout.nanoseconds <= 0:
            return answer
        # By the wall clock, for simulated time may stand still.
        deadline = wall.monotonic() + timeout.nanoseconds * 1e-9
        with self._changed:
            while True:
                answer = test()
                remaining = deadline - wall.monotonic()
                if answer[0] or remaining <= 0:
                    return answer
                self._changed.wait(remaining)

    def _future(self, test: Callable[[], bool]) -> Future:
        future = Future()
        with self._changed:
            self._waiting.append((test, future))
        self._resolve_waiting()
        return future

    def _resolve_waiting(self) -> None:
        if not self._waiting:
            return
        with self._changed:
            ready = [future for test, future in self._waiting if not future.done() and test()]
            self._waiting = [one for one in self._waiting if one[1] not in ready and not one[1].done()]
        for future in ready:
            future.set_result(True)

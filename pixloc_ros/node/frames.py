# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Images on their way from the subscription to the worker thread."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReceivedImage:
    """An image message as it came, not yet looked into.

    message: sensor_msgs Image or CompressedImage. received_at: `time.monotonic` seconds.
    """

    message: Any
    stamp_ns: int
    received_at: float


class FrameQueue:
    """Hands images to one worker: the newest only (limit 1), or all of them up to a limit. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._frames: deque[ReceivedImage] = deque()
        self._limit = limit
        self._closed = False
        self._condition = threading.Condition()

    def put(self, frame: ReceivedImage) -> ReceivedImage | None:
        """Adds an image; returns the one that had to make way: the oldest waiting, or a latecomer among the newest."""
        with self._condition:
            if self._limit == 1 and self._frames and frame.stamp_ns < self._frames[0].stamp_ns:
                return frame
            dropped = self._frames.popleft() if len(self._frames) >= self._limit else None
            self._frames.append(frame)
            self._condition.notify()
            return dropped

    def take(self) -> ReceivedImage | None:
        """Waits for the next image; None when the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._frames or self._closed)
            return None if self._closed else self._frames.popleft()

    def clear(self) -> list[ReceivedImage]:
        """Empties the queue and returns what was waiting."""
        with self._condition:
            waiting = list(self._frames)
            self._frames.clear()
            return waiting

    def close(self) -> None:
        """Ends the worker's waiting; what still waits is not handed out."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

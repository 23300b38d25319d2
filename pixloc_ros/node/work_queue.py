# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Images and requests on their way from the executor's thread to the worker."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

from ..errors import InputError


@dataclass(frozen=True)
class ReceivedImage:
    """An image message as it came, not decoded yet.

    Attributes:
        message: the message.
        stamp_ns: its stamp with the time offset added; 0 if it has none.
        received_at: `time.monotonic` seconds.
        arrival_ms: its age on arrival, by the node's clock.
        camera: its name, where there are several.
        others: the images of other cameras that belong to the same frame.
        shown_ns: stamp of the first of the images in a row that show the same, to the bit.
    """

    message: Image | CompressedImage
    stamp_ns: int
    received_at: float
    arrival_ms: float = math.nan
    camera: str = ""
    others: tuple[ReceivedImage, ...] = ()
    shown_ns: int | None = None


@dataclass(frozen=True)
class Request:
    """Other work than images; the future gets None, or the InputError that `work` raised."""

    work: Callable[[], None]
    future: Future

    def settle(self) -> None:
        """Does the work. Errors other than InputError are raised: they are ours."""
        try:
            self.work()
            self.future.set_result(None)
        except InputError as error:
            self.future.set_result(error)

    def refuse(self, reason: str) -> None:
        """The work will not be done."""
        self.future.set_result(InputError(reason))


class WorkQueue:
    """Hands work to one worker: requests first, then images. Thread-safe.

    Args:
        limit: number of images that wait at most; 1 keeps only the newest.
    """

    def __init__(self, limit: int) -> None:
        self._frames: deque[ReceivedImage] = deque()
        self._requests: deque[Request] = deque()
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

    def ask(self, request: Request) -> bool:
        """Adds a request; False if the queue is closed."""
        with self._condition:
            if not self._closed:
                self._requests.append(request)
                self._condition.notify()
            return not self._closed

    @property
    def closed(self) -> bool:
        """Whether the worker is to end."""
        return self._closed

    def take(self, timeout_s: float | None = None) -> ReceivedImage | Request | None:
        """Waits for the next request or image; None when time is up or the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._requests or self._frames or self._closed, timeout_s)
            waiting = self._requests or self._frames
            return None if self._closed or not waiting else waiting.popleft()

    def clear_frames(self) -> list[ReceivedImage]:
        """Takes out the images that wait."""
        with self._condition:
            waiting = list(self._frames)
            self._frames.clear()
            return waiting

    def close(self) -> list[Request]:
        """Ends the worker's waiting. Images that still wait are not handed out; requests are returned."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            left = list(self._requests)
            self._requests.clear()
            return left

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Reading a bag and computing features on one core while the tracker works on another. The tracker gets the same images with the
same features in the same order: nothing of the result changes, only the time it takes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from ..errors import InputError
from ..io.frames import CameraFrame, Event
from ..tracking.types import PreparedFrame, PreparedImage

_DEPTH = 64
"""Events that may wait, most of which are odometry."""
_IMAGES = 4
"""Images with features that may wait: they are large."""
_END = object()


def read_ahead(events: Iterator[Event], prepare: Callable[[CameraFrame], PreparedImage]) -> Iterator[Event]:
    """The events, images prepared; one that cannot be (InputError) comes as it is, for the tracker to say why. Errors in reading
    are raised here."""
    waiting: queue.Queue = queue.Queue(_DEPTH)
    room = threading.Semaphore(_IMAGES)
    stop = threading.Event()

    def work() -> None:
        warm = False
        try:
            for event in events:
                if isinstance(event, CameraFrame):
                    room.acquire()
                    with contextlib.suppress(InputError):
                        if not warm and not stop.is_set():
                            prepare(event)  # the first call is slow; it must not pass for what an image takes
                            warm = True
                        event = event if stop.is_set() else PreparedFrame.of(event, prepare(event))
                waiting.put(event)
                if stop.is_set():
                    return
            waiting.put(_END)
        except Exception as error:
            waiting.put(error)

    thread = threading.Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        while (event := waiting.get()) is not _END:
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, CameraFrame):
                room.release()
    finally:
        stop.set()
        room.release()
        while thread.is_alive():  # it may be waiting for room
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=0.01)

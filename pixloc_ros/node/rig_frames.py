# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Frames of the images of several cameras, made as these arrive."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from ..io.rig_images import MAX_AGE_NS, WAIT_NS, LatestImages
from .conversions import NS_PER_S
from .diagnostics import WARN
from .inputs import Inputs
from .transforms import Rejected
from .work_queue import ReceivedImage

_ALIVE_S = 1.0
_LATE_NS = 2 * WAIT_NS
"""A camera that is later than this is named: on a machine that is busy, each is a little late now and then."""
_IMAGES, _LEAST = 15, 5
"""The delay of a camera is the median of so many images; with fewer than the second, nothing is said of it yet."""


class RigFrames:
    """Makes frames as `LatestImages` does; none waits longer than `WAIT_NS`, and none for a camera whose images come later than
    those of the others. Thread-safe.

    Args:
        node: the node that listens.
        inputs: has the cameras.
        on_frame: called with each frame.
    """

    def __init__(self, node: Node, inputs: Inputs, on_frame: Callable[[ReceivedImage], None]) -> None:
        self._node, self._inputs, self._on_frame = node, inputs, on_frame
        self._lock = threading.Lock()
        self._latest: LatestImages[ReceivedImage] = LatestImages(list(inputs.cameras))
        self._waiting_ns: int | None = None
        self._timer = node.create_timer(WAIT_NS / NS_PER_S, self._time_is_up, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.forget()

    def forget(self) -> None:
        """A new time begins."""
        self._timer.cancel()
        with self._lock:
            self._latest.restart()
            self._last_ns = dict.fromkeys(self._inputs.cameras, 0)
            self._steps_ns, self._jumped = self._last_ns.copy(), self._last_ns.copy()
            self._delays_ns: dict[str, deque[int]] = {name: deque(maxlen=_IMAGES) for name in self._inputs.cameras}

    def destroy(self) -> None:
        """Removes the timer from the node."""
        self._node.destroy_timer(self._timer)

    def add(self, image: ReceivedImage) -> None:
        """An image came."""
        with self._lock:
            rejection = self._refusal(image)
            frame = {}
            if rejection is None:
                frame = self._latest.add(image.camera, image.stamp_ns, image)
                waiting_ns, self._waiting_ns = self._waiting_ns, self._latest.waiting_ns
                if self._waiting_ns not in (None, waiting_ns):
                    self._timer.reset()
        if rejection is not None:
            self._inputs.refuse(rejection, image.camera, image.stamp_ns)
        self._hand_on(frame)

    def _time_is_up(self) -> None:
        self._timer.cancel()
        with self._lock:
            frame, self._waiting_ns = self._latest.rest(), None
        self._hand_on(frame)

    def _hand_on(self, frame: dict[str, tuple[int, ReceivedImage]]) -> None:
        if frame:
            lead, *others = (image for _, image in frame.values())
            self._on_frame(replace(lead, others=tuple(others)))

    def _refusal(self, image: ReceivedImage) -> Rejected | None:
        name, stamp_ns, camera = image.camera, image.stamp_ns, self._inputs.cameras[image.camera]
        if stamp_ns <= 0:
            return Rejected("image", "stamp", "images have no time stamp: the driver must fill in header.stamp")
        step_ns, self._last_ns[name] = stamp_ns - self._last_ns[name], stamp_ns
        if step_ns <= 0:
            text = f"an image is {-step_ns / NS_PER_S:.3f} s older than the last one: it is not used; look for a second publisher"
            return Rejected("image", "order", text, WARN)
        delay_ns = round(image.received_at * NS_PER_S) - stamp_ns
        self._delays_ns[name].append(delay_ns)
        heard = [one for one in self._delays_ns if self._inputs.watch.silent_s("image", one) < _ALIVE_S]
        delays = {one: statistics.median(self._delays_ns[one]) for one in heard if self._delays_ns[one]}
        # One that is before most others has a clock of its own.
        middle_ns = sorted(delays.values())[len(delays) // 2]
        least_ns = min(delay for delay in delays.values() if middle_ns - delay <= MAX_AGE_NS)
        late_ns, camera.is_ahead = delays[name] - least_ns, middle_ns - delays[name] > MAX_AGE_NS
        others_ns = min((min(self._delays_ns[one]) for one in delays if one != name), default=delay_ns)
        jumped_ns = self._jumped_by(name, step_ns, others_ns - delay_ns)
        camera.is_ahead = camera.is_ahead or jumped_ns > 0
        is_late = late_ns > WAIT_NS and len(self._delays_ns[name]) >= _LEAST
        self._latest.late = self._latest.late - {name} | ({name} if is_late else set())
        text = (
            f"its images come {late_ns / NS_PER_S:.2f} s later than those of other cameras, by their stamps: frames do not wait "
            "for them; look at its driver and network, or synchronise its clock"
        )
        camera.board.update("image", "late", text if is_late and late_ns > _LATE_NS else "")
        ahead_s = max(middle_ns - delays[name], jumped_ns) / NS_PER_S
        text = (
            f"its images are dated {ahead_s:.2f} s ahead of those of other cameras: they are not "
            "used; synchronise the clocks, or look why the others come late"
        )
        if not camera.is_ahead:
            camera.board.clear("image", "ahead")
        return Rejected("image", "ahead", text, may_come=len(self._delays_ns[name]) < _LEAST) if camera.is_ahead else None

    def _jumped_by(self, name: str, step_ns: int, ahead_ns: int) -> int:
        """By how much a camera's clock is ahead since it jumped, for as many images as the median takes to tell; 0: it is not.

        Otherwise the others would seem to be silent at once, and the camera would lead.

        step_ns: from the stamp before; ahead_ns: of those images of the others that came soonest.
        """
        usual_ns, self._steps_ns[name] = self._steps_ns[name], step_ns
        if ahead_ns <= MAX_AGE_NS:
            self._jumped[name] = 0
        elif step_ns > usual_ns + MAX_AGE_NS:
            self._jumped[name] = _IMAGES // 2 + 1
        else:
            self._jumped[name] = max(self._jumped[name] - 1, 0)
        return ahead_ns if self._jumped[name] else 0

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node hears of one camera, and what becomes of its images."""

from __future__ import annotations

import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable

from rclpy.node import Node
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..errors import InputError
from ..io.calibration import Calibration, read_calibration
from .conversions import NS_PER_S
from .diagnostics import ERROR, OK, WARN, Diagnostics
from .input_watch import Source
from .parameters import Value, camera_topic, image_subscription_topic
from .transforms import POLL_S, Rejected

_LASTING_NS = NS_PER_S
"""A camera that looks at a bare wall for a moment is no fault."""
_PARTS, _PART_BYTES = 16, 2048
"""What is compared of an image's bytes: noise changes some of them in any picture."""


class CameraInput:
    """One camera: its topics and its calibration. Callbacks run in the executor's thread.

    Args:
        node: the node that listens.
        setting: gives the value of a parameter by name.
        namespace: of its topics, where there are several cameras.
        board: takes its diagnostics.

    Attributes:
        name: empty for the only camera.
        newest_ns: stamp of the newest image; None before the first.
        is_ahead: whether its clock is ahead of the other cameras'.
        impatient_until: `time.monotonic`, until when its images do not wait for calibration and transforms, as that was in vain.
        problem: why the tracker leaves it out for a while now; else empty.
    """

    def __init__(self, node: Node, setting: Callable[[str], Value], namespace: str, board: Diagnostics) -> None:
        self._node, self._setting, self._namespace, self.board = node, setting, namespace, board
        self.name = namespace.strip("/")
        self.newest_ns: int | None = None
        self.is_ahead, self.impatient_until, self.problem = False, 0.0, ""
        self._problem_since_ns: int | None = None
        self._outcomes: Counter[str] = Counter()
        self._settled_ns = self._shown_ns = 0
        self._digest: int | None = None
        self._lock = threading.Lock()  # guards the following
        self._calibration: Calibration | None = None
        self._camera_info_key: tuple | None = None

    def topic(self, parameter: str) -> str:
        """Full name of its topic that a parameter names. Raises NameValidationException."""
        return self._resolved(camera_topic(self._setting(parameter), self._namespace))

    def _resolved(self, topic: str) -> str:
        validate_topic_name(topic)
        return self._node.resolve_topic_name(topic)

    @property
    def image_topic(self) -> str:
        """Full name of the topic of its images. Raises NameValidationException."""
        base = camera_topic(self._setting("image_topic"), self._namespace)
        return self._resolved(image_subscription_topic(base, self._setting("image_transport")))

    def sources(self) -> list[Source]:
        """Its inputs that should not be silent. A calibration may be published just once (transient local)."""
        info = Source("calibration", self.topic("camera_info_topic"), self.board, self.name, self.is_calibrated)
        return [Source("image", self.image_topic, self.board, self.name), info]

    # ---- calibration

    @property
    def is_calibrated(self) -> bool:
        """Whether a calibration came that can be used."""
        return self._calibration is not None

    def on_camera_info(self, message: CameraInfo) -> None:
        """Takes a calibration that differs from the one before."""
        roi = message.roi
        key = (
            *(message.width, message.height, message.distortion_model, *map(tuple, (message.k, message.d, message.r, message.p))),
            *(message.binning_x, message.binning_y, roi.x_offset, roi.y_offset, roi.width, roi.height),
        )
        if key == self._camera_info_key:
            return
        calibration = None
        try:
            calibration = read_calibration(message, self.topic("image_topic"))
            self.board.clear("calibration", "invalid")
            self.board.value("calibration", reading=calibration.taken)
            self.board.update("calibration", "reading", calibration.note, OK)
        except InputError as error:
            self.board.report("calibration", "invalid", ERROR, f"{self.topic('camera_info_topic')}: {error}")
        with self._lock:
            self._camera_info_key, self._calibration = key, calibration

    def calibration(self, deadline: float) -> Calibration:
        """The calibration in the latest CameraInfo, waited for until a deadline (`time.monotonic`). Raises Rejected."""
        while self._calibration is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        with self._lock:
            calibration, key = self._calibration, self._camera_info_key
        if calibration is None:
            topic = self.topic("camera_info_topic")
            text = f"no CameraInfo on {topic} yet: start its publisher, or set camera_info_topic"
            if key is not None:
                text = f"the CameraInfo on {topic} cannot be used: images wait for a better one"
            raise Rejected("calibration", "missing", text, may_come=key is None)
        return calibration

    # ---- images

    def shown_since(self, message: Image | CompressedImage, stamp_ns: int) -> int:
        """Stamp of the first of the images in a row whose content is this one's, to the bit. Images that are dropped count,
        too: a camera that hangs is noticed at the first image that is used."""
        content = memoryview(message.data)
        parts = range(0, len(content), max(len(content) // _PARTS, _PART_BYTES))
        digest = len(content)
        for begin in parts:
            digest = zlib.crc32(content[begin : begin + _PART_BYTES], digest)
        if digest != self._digest or stamp_ns < self._shown_ns:
            self._digest, self._shown_ns = digest, stamp_ns
        return self._shown_ns

    # ---- what became of images

    def count(self, outcome: str, stamp_ns: int = 0) -> None:
        """One more image was received, used or rejected. An image may be in two frames; it is counted once."""
        if not stamp_ns or stamp_ns != self._settled_ns:
            self._outcomes[outcome] += 1
        self._settled_ns = stamp_ns or self._settled_ns

    def used(self, stamp_ns: int) -> None:
        """An image is used for a pose."""
        self.count("used", stamp_ns)
        self.board.clear("image", "stamp", "order", "format", "unusable")
        self.board.clear("calibration", "missing", "size")
        self.board.clear("transforms", "camera")

    def judge(self, problem: str, stamp_ns: int) -> None:
        """What the tracker says of the camera at an image."""
        if not problem:
            self._problem_since_ns = None
        elif self._problem_since_ns is None or self._problem_since_ns > stamp_ns:
            self._problem_since_ns = stamp_ns
        lasts = problem and stamp_ns - self._problem_since_ns >= _LASTING_NS
        self.problem = problem if lasts else ""
        self.board.update("image", "rig", f"left out: {problem}" if problem else "", WARN if lasts else OK)

    def report_values(self) -> None:
        """Puts the counts on the board."""
        received, used, rejected = (self._outcomes[name] for name in ("received", "used", "rejected"))
        dropped = max(received - used - rejected, 0)
        self.board.value("image", received=received, used=used, dropped=dropped, rejected=rejected)

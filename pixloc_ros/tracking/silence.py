# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether a camera has stopped: nothing else would tell, as dead reckoning needs no images."""

from __future__ import annotations

from collections import deque

import numpy as np

LEAST_S = 1.0
"""Less is no silence."""
_USUAL_INTERVALS = 3.0
"""So many times the usual interval is none either, for cameras that give an image every few seconds."""
_REMEMBERED = 9


class ImageGap:
    """The time since the last image, compared with the usual interval between images.

    Attributes:
        last_ns: Stamp of the last image.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """The time before does not count any more."""
        self.last_ns: int | None = None
        self._intervals_s: deque[float] = deque(maxlen=_REMEMBERED)

    def saw(self, stamp_ns: int) -> None:
        """An image of this stamp came."""
        if self.last_ns is not None:
            self._intervals_s.append((stamp_ns - self.last_ns) * 1e-9)
        self.last_ns = stamp_ns

    def seconds(self, stamp_ns: int) -> float:
        """How long there has been no image at a time; 0 while that is no longer than usual."""
        silent_s = 0.0 if self.last_ns is None else (stamp_ns - self.last_ns) * 1e-9
        if silent_s <= LEAST_S:
            return 0.0
        usual_s = float(np.median(self._intervals_s)) if self._intervals_s else LEAST_S
        return silent_s if silent_s > _USUAL_INTERVALS * usual_s else 0.0

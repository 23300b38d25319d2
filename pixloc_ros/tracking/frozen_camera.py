# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A camera that hangs: it gives its last picture again and again, with new stamps."""

from __future__ import annotations

import zlib

import numpy as np

from .odometry import OdometrySample

MOVED_M, MOVED_RAD = 0.02, 0.01
"""A robot that stands still in a simulator gives equal pictures too; one that has moved by this much does not."""

_ROWS = 8
"""Every so many rows are compared."""


class FrozenCamera:
    """Compares each image with the one before it, to the bit: a real camera's noise never gives the same rows twice."""

    def __init__(self) -> None:
        self._digest: int | None = None
        self._since: OdometrySample | None = None

    def repeats(self, image: np.ndarray, odometry: OdometrySample | None) -> bool:
        """Whether the camera shows what it showed before, although odometry says that the robot has moved since.

        image: uint8, any shape. odometry: at the image's stamp; without it nothing can be said.
        """
        digest = zlib.crc32(np.ascontiguousarray(image[::_ROWS]))
        if digest != self._digest:
            self._digest, self._since = digest, odometry
            return False
        since = self._since
        if odometry is None or since is None or odometry.epoch != since.epoch:
            return False
        if image.min() == image.max():  # black or white: equal without hanging
            return False
        moved_m, turned_rad = odometry.distance_m - since.distance_m, odometry.turn_rad - since.turn_rad
        return moved_m > MOVED_M or turned_rad > MOVED_RAD

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether odometry's twist and its poses tell of the same motion: drivers that fill in only one of them are common."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from ..geometry import se3

WINDOW_S = 2.0
_LEAST_S = 0.5
_LEAST_MOTION = 0.2
"""Metres or radians between the ends of the window; less may be jitter of a robot that stands."""
_NOTHING = 1e-9


class TwistCheck:
    """Compares poses and twists of the last `WINDOW_S`. What was found stays until another window shows the opposite.

    Attributes:
        empty: Whether the linear and the angular velocity are zero while the poses move, by the last windows that show it.
        frozen: Whether the poses stay where they are, to the bit, while the twist moves.
    """

    def __init__(self) -> None:
        self.empty, self.frozen = (False, False), False
        self._window: deque[tuple[int, torch.Tensor, np.ndarray]] = deque()

    @property
    def problem(self) -> str:
        """What is wrong and what to do, in words; empty if nothing is."""
        if self.frozen:
            return "the odometry's poses stand still while its twist moves: fix its driver, or set odom_source to tf or none"
        parts = " and ".join(part for part, empty in zip(("linear", "angular"), self.empty) if empty)
        if not parts:
            return ""
        return (
            f"the odometry's {parts} twist is zero although its poses move: the velocity is taken from the poses; fix its driver "
            "(a filter that fuses this twist believes that the robot stands)"
        )

    def restart(self) -> None:
        """The poses that follow have nothing to do with those before."""
        self._window.clear()

    def add(self, stamp_ns: int, odom_from_base: torch.Tensor, twist: np.ndarray | None) -> None:
        """The next sample. twist: float64 [6], velocity in base axes; None or not finite: it says nothing."""
        if twist is None or not np.isfinite(twist).all():
            return
        window = self._window
        window.append((stamp_ns, odom_from_base, twist))
        while (stamp_ns - window[0][0]) * 1e-9 > WINDOW_S:
            window.popleft()
        seconds = (stamp_ns - window[0][0]) * 1e-9
        if seconds < _LEAST_S:
            return
        moved = se3.pose_difference(window[0][1], odom_from_base)
        twists = np.stack([sample[2] for sample in window])
        self.empty = tuple(
            bool((np.abs(twists[:, part]) < _NOTHING).all()) if float(motion) >= _LEAST_MOTION else empty
            for motion, part, empty in zip(moved, (slice(3), slice(3, 6)), self.empty)
        )
        if max(map(float, moved)) > _NOTHING:
            self.frozen = False
        else:
            told = np.abs(twists.mean(0) * seconds).reshape(2, 3).max()
            still = all(torch.equal(sample[1], odom_from_base) for sample in window)
            self.frozen = self.frozen or bool(still and told >= _LEAST_MOTION)

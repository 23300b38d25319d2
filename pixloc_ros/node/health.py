# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the diagnostics say of the worker's images: counters, times, and the judgement of each result."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from ..tracking.odometry_check import FIGURES, WARNINGS
from ..tracking.tracker import Tracker
from ..tracking.types import TrackResult, TrackState
from .conversions import NS_PER_S
from .diagnostics import ERROR, WARN, DiagnosticBoard
from .parameters import Value

MOST_DROPPED = 0.5
"""If more than this share of the images is dropped, diagnostics warn."""
_PACE_IMAGES = 20
"""The share is computed from at least so many images."""


class Health:
    """Counts images and fills in the board of diagnostics. The methods `judge...` belong to the worker's thread."""

    def __init__(self, board: DiagnosticBoard, setting: Callable[[str], Value]) -> None:
        self._board, self._setting = board, setting
        self._counters = dict.fromkeys(("received", "processed", "dropped", "rejected"), 0)
        self._lock = threading.Lock()
        self._counted = self.counters  # as they were at the last check of the pace
        self._untracked = 0
        self._frame_ms: deque[float] = deque(maxlen=100)
        self._delay_ms: deque[float] = deque(maxlen=100)

    def count(self, outcome: str) -> None:
        """One more image was received, processed, dropped or rejected."""
        with self._lock:
            self._counters[outcome] += 1

    @property
    def counters(self) -> dict[str, int]:
        """Images received, and their outcomes: `received` is the sum of the others and of the images that wait."""
        with self._lock:
            return dict(self._counters)

    def took(self, frame_ms: float, delay_ms: float) -> None:
        """How long an image was worked on, and how long after its arrival its pose was published."""
        self._frame_ms.append(frame_ms)
        self._delay_ms.append(delay_ms)

    def check_pace(self, paused: bool) -> None:
        """Reports whether most images are dropped because they come faster than they can be aligned. For a timer."""
        now = self.counters
        received, dropped = (now[name] - self._counted[name] for name in ("received", "dropped"))
        if received < _PACE_IMAGES:
            return
        self._counted = now
        if paused or dropped <= MOST_DROPPED * received:
            self._board.clear("image", "pace")
            return
        took = f", one takes {np.median(self._frame_ms):.0f} ms" if self._frame_ms else ""
        text = (
            f"{dropped} of {received} images dropped (more than {MOST_DROPPED:.0%}): they come faster than they can be "
            f"aligned{took}; set preset to fast, or lower the camera's rate"
        )
        self._board.report("image", "pace", WARN, text)

    def report_values(self, map_name: str, state: TrackState) -> None:
        """Puts the counters, the state and the times on the board."""
        self._board.value("image", **self.counters)
        self._board.value("map", file=map_name)
        self._board.value("localization", state=state.name)
        for name, values in (("frame_ms", tuple(self._frame_ms)), ("delay_ms", tuple(self._delay_ms))):
            if values:
                p50, p95 = np.percentile(values, (50, 95))
                self._board.value("localization", **{f"{name}_p50": f"{p50:.1f}", f"{name}_p95": f"{p95:.1f}"})

    def judge(self, result: TrackResult, tracker: Tracker) -> None:
        """Diagnostics of a processed image."""
        tracking = result.state is TrackState.TRACKING
        self._untracked = 0 if tracking else self._untracked + 1
        self._board.value("localization", images_since_tracking=self._untracked)
        gates, alignment = tracker.options.gates, result.alignment
        if alignment is not None:
            self._board.value(
                "localization", inlier_fraction=f"{alignment.inlier_fraction:.2f}",
                least_inlier_fraction=f"{gates.min_inlier_fraction:.2f}, {gates.min_inlier_fraction_search:.2f} without a prior",
                visible_fraction=f"{alignment.visible_fraction:.2f}", least_visible_fraction=f"{gates.min_visible_fraction:.2f}",
                cost=f"{alignment.cost:.4f}", iterations=alignment.iterations,
                prior_distance_m=f"{result.prior_distance_m:.3f}", prior_rotation_rad=f"{result.prior_rotation_rad:.4f}",
            )  # fmt: skip
        if tracking and not result.message:
            self._board.clear("localization", "state")
        else:
            silent = result.state in (TrackState.LOST, TrackState.RELOCALIZING)
            text = f"{result.state.name.lower()}: {result.message}" + ("; no pose is published" if silent else "")
            self._board.report("localization", "state", ERROR if silent else WARN, text)
        if tracker.has_pose:
            self._board.clear("initial pose", "missing")
            return
        text = "there is no pose to start from: publish one on initialpose (RViz: 2D Pose Estimate)"
        if tracker.can_relocalize:
            text = "no pose yet: the whole map is searched; a pose on initialpose (RViz: 2D Pose Estimate) may help"
        self._board.report("initial pose", "missing", WARN, text)

    def judge_odometry(self, tracker: Tracker, time_offset_ns: int) -> None:
        """Compares the odometry with the poses. time_offset_ns: added to the stamps of the images."""
        if self._setting("odom_source") == "none":
            return
        findings = tracker.check_odometry()
        known = {name: f"{value:.3f} +- {std:.3f}" for name, (value, std) in findings.known().items()}
        translation, rotation = tracker.odometry.noise_factors
        self._board.value("odometry", **{name: known.get(name, "not known yet") for name in FIGURES})
        self._board.value("odometry", noise_factors=f"{translation:.1f} translation, {rotation:.1f} rotation")
        warnings = findings.warnings(time_offset_ns / NS_PER_S)
        self._board.clear("odometry", *(name for name in WARNINGS if name not in warnings))
        for name, text in warnings.items():
            self._board.report("odometry", name, WARN, text)

    def judge_calibration(self, tracker: Tracker) -> None:
        """Whether the focal length fits the images."""
        report = tracker.check_calibration()
        if report is None:
            return
        found = f"{report.focal_ratio:.4f} ± {report.std:.4f}, of {report.images} images"
        self._board.value("calibration", focal_length_ratio=found)
        if report.wrong:
            self._board.report("calibration", "focal length", WARN, report.message)
        else:
            self._board.clear("calibration", "focal length")

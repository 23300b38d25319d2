# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is wrong and what to do about it, as diagnostic_msgs (REP-107).

Each component (map, image, odometry, ...) has named conditions with a level and a message. A component's status carries its
worst level and the messages of all its conditions. A condition stays for at least `HOLD_S` after it was last seen, so that
people notice a single bad message among many good ones as well.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from ..geometry import se3
from ..tracking.covariances import mahalanobis
from ..tracking.odometry_check import FIGURES, WARNINGS
from ..tracking.tracker import Tracker
from ..tracking.types import TrackResult, TrackState
from .conversions import NS_PER_S
from .parameters import Value
from .planar import flat

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

COMPONENTS = ("map", "image", "calibration", "transforms", "odometry", "initial pose", "localization")
"""One diagnostic status each."""
_CAMERA = "camera "
"""Of several cameras, each has a status of its own: this and its name."""

HOLD_S = 2.0
MOST_DROPPED = 0.5
"""If more than this share of the images is dropped, diagnostics warn."""
_PACE_IMAGES = 20
"""The share is computed from at least so many images."""
_FILTER_LIMIT, _FILTER_PATIENCE_NS = 5.3, NS_PER_S
"""A filter's pose further from ours, in standard deviations (1 in 10 000 by chance), for so long, is wrong."""
_FLAT_M, _FLAT_RAD = 0.05, 0.02
_CALM_NS = 10 * NS_PER_S
"""A search for the first pose that takes no longer is no fault."""


@dataclass
class _Condition:
    level: bytes
    message: str
    seen_at: float
    over: bool = False


class Diagnostics:
    """Takes conditions and figures of components."""

    def report(self, component: str, name: str, level: bytes, message: str) -> None:
        """Condition `name` of a component holds."""
        raise NotImplementedError

    def clear(self, component: str, *names: str) -> None:
        """These conditions no longer hold; without names: none of the component's does."""
        raise NotImplementedError

    def value(self, component: str, **values: object) -> None:
        """Figures shown with the component."""
        raise NotImplementedError

    def update(self, component: str, name: str, message: str, level: bytes = WARN) -> None:
        """Condition `name` of a component holds, or no longer holds if the message is empty."""
        if message:
            self.report(component, name, level, message)
        else:
            self.clear(component, name)

    def report_once(self, component: str, name: str, level: bytes, message: str) -> None:
        """Condition `name` of a component held for a moment."""
        self.report(component, name, level, message)
        self.clear(component, name)


class DiagnosticBoard(Diagnostics):
    """The conditions that hold now. Thread-safe.

    Args:
        on_new: called with (level, "component: message") when a condition begins, for the log.
        clock: monotonic seconds.
    """

    def __init__(self, on_new: Callable[[bytes, str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_new = on_new
        self._clock = clock
        self._lock = threading.Lock()
        self._conditions: dict[str, dict[str, _Condition]] = {component: {} for component in COMPONENTS}
        self._values: dict[str, dict[str, str]] = {component: {} for component in COMPONENTS}
        self._changed = True

    def report(self, component: str, name: str, level: bytes, message: str) -> None:
        now = self._clock()
        with self._lock:
            known = self._conditions[component].get(name)
            new = known is None or known.level != level
            self._changed |= new
            self._conditions[component][name] = _Condition(level, message, now)
        if new:
            self._on_new(level, f"{component}: {message}")

    def of_cameras(self, names: Sequence[str]) -> dict[str, Diagnostics]:
        """Where the diagnostics of each camera go: of several, each is a component; the only one, without a name, has no own."""
        with self._lock:
            components = [*COMPONENTS, *(_CAMERA + name for name in names if name)]
            for kept in (self._conditions, self._values):
                old = dict(kept)
                kept.clear()
                kept.update((component, old.get(component, {})) for component in components)
        return {name: CameraDiagnostics(self, name) if name else self for name in names}

    def clear(self, component: str, *names: str) -> None:
        with self._lock:
            conditions = self._conditions[component]
            for name in names or tuple(conditions):
                if name in conditions:
                    conditions[name].over = True

    def clear_all(self, keep: tuple[str, ...] = ()) -> None:
        """No condition holds any more, except those of the components to keep."""
        for component in tuple(self._conditions):
            if component not in keep:
                self.clear(component)

    def value(self, component: str, **values: object) -> None:
        with self._lock:
            self._values[component].update({key: str(value) for key, value in values.items()})

    def take_changed(self) -> bool:
        """Whether a condition has begun or ended since the last call."""
        with self._lock:
            self._expire()
            changed, self._changed = self._changed, False
            return changed

    def statuses(self, node_name: str, hardware_id: str) -> list[DiagnosticStatus]:
        """The messages, one per component."""
        with self._lock:
            self._expire()
            return [self._status(component, node_name, hardware_id) for component in self._conditions]

    def _expire(self) -> None:
        oldest = self._clock() - HOLD_S
        for conditions in self._conditions.values():
            for name in [n for n, condition in conditions.items() if condition.over and condition.seen_at < oldest]:
                del conditions[name]
                self._changed = True

    def _status(self, component: str, node_name: str, hardware_id: str) -> DiagnosticStatus:
        conditions = sorted(self._conditions[component].values(), key=lambda condition: condition.level, reverse=True)
        return DiagnosticStatus(
            name=f"{node_name}: {component}",
            hardware_id=hardware_id,
            level=conditions[0].level if conditions else OK,
            message="; ".join(condition.message for condition in conditions) or "ok",
            values=[KeyValue(key=key, value=value) for key, value in self._values[component].items()],
        )


class CameraDiagnostics(Diagnostics):
    """All that is said of one of several cameras, as one component."""

    def __init__(self, board: DiagnosticBoard, camera: str) -> None:
        self._board, self._component = board, _CAMERA + camera

    def report(self, component: str, name: str, level: bytes, message: str) -> None:
        self._board.report(self._component, f"{component} {name}", level, message)

    def clear(self, component: str, *names: str) -> None:
        self._board.clear(self._component, *(f"{component} {name}" for name in names))

    def value(self, component: str, **values: object) -> None:
        self._board.value(self._component, **values)


class Health:
    """Counts images and fills in the board of diagnostics. The methods `judge...` belong to the worker's thread."""

    def __init__(self, board: DiagnosticBoard, setting: Callable[[str], Value]) -> None:
        self._board, self._setting = board, setting
        self._counters = dict.fromkeys(("received", "processed", "dropped", "rejected"), 0)
        self._lock = threading.Lock()
        self._counted = self.counters  # as they were at the last check of the pace
        self._untracked = 0
        self._searched_since_ns: int | None = None
        self._times_ms = {name: deque[float](maxlen=100) for name in ("frame_ms", "delay_ms", "after_ms")}
        self._agreed_ns: int | None = None  # when the filter agreed last; what it has not come to yet; whether it ever has
        self._unjudged: deque[TrackResult] = deque()
        self._filter_known = False

    def count(self, outcome: str) -> None:
        """One more image was received, processed, dropped or rejected."""
        with self._lock:
            self._counters[outcome] += 1

    @property
    def counters(self) -> dict[str, int]:
        """Images received, and their outcomes: `received` is the sum of the others and of the images that wait."""
        with self._lock:
            return dict(self._counters)

    def took(self, *milliseconds: float) -> None:
        """How long an image was worked on until its pose was published, how long after its arrival that was, and how long the
        worker learned from it and reported after that."""
        for values, value in zip(self._times_ms.values(), milliseconds):
            values.append(value)

    def check_pace(self, paused: bool) -> None:
        """Reports whether most images are dropped because they come faster than they can be aligned. For a timer."""
        now = self.counters
        received, dropped = (now[name] - self._counted[name] for name in ("received", "dropped"))
        if received < _PACE_IMAGES:
            return
        self._counted = now
        frame_ms = self._times_ms["frame_ms"]
        took = f", one takes {np.median(frame_ms):.0f} ms" if frame_ms else ""
        text = (
            f"{dropped} of {received} images dropped (more than {MOST_DROPPED:.0%}): they come faster than they can be "
            f"aligned{took}; set preset to fast, or lower the camera's rate"
        )
        self._board.update("image", "pace", text if not paused and dropped > MOST_DROPPED * received else "")

    def report_values(self, map_name: str, state: TrackState) -> None:
        """Puts the counters, the state and the times on the board."""
        self._board.value("image", **self.counters)
        self._board.value("map", file=map_name)
        self._board.value("localization", state=state.name)
        for name, values in self._times_ms.items():
            if values:
                p50, p95 = np.percentile(tuple(values), (50, 95))
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
                pose_probability=f"{alignment.probability:.3f}",
                least_pose_probability=f"{gates.min_probability:.3f}, {gates.min_probability_search:.3f} without a prior",
                visible_fraction=f"{alignment.visible_fraction:.2f}", least_visible_fraction=f"{gates.min_visible_fraction:.2f}",
                cost=f"{alignment.cost:.4f}", iterations=alignment.iterations,
                prior_distance_m=f"{result.prior_distance_m:.3f}", prior_rotation_rad=f"{result.prior_rotation_rad:.4f}",
            )  # fmt: skip
        text = result.message if tracking else f"{result.state.name.lower()}: {result.message}"
        calm = self._is_calm(result, tracker)
        self.report_state(result.state, text, OK if calm else WARN)
        self._board.update("transforms", "mount", tracker.mount_check.problem, ERROR)
        self._board.update("transforms", "mount odd", tracker.mount_check.suspicion)
        self._board.update("transforms", "mount unverified", tracker.mount_check.unverified, OK)
        text = "there is no pose to start from: publish one on initialpose (RViz: 2D Pose Estimate)"
        if tracker.can_relocalize:
            text = "no pose yet: the whole map is searched" + ("" if calm else "; a pose on initialpose may help")
        self._board.update("initial pose", "missing", "" if tracker.has_pose else text, OK if calm else WARN)

    def report_state(self, state: TrackState, text: str, level: bytes = WARN) -> None:
        """Diagnostics of the state. level: where a pose is published or has never been known; empty text: all is well."""
        silent = state in (TrackState.LOST, TrackState.RELOCALIZING)
        self._board.update(
            "localization", "state", text + ("; no pose is published" if silent else ""), ERROR if silent else level
        )

    def _is_calm(self, result: TrackResult, tracker: Tracker) -> bool:
        """Whether the first pose is being searched for, and has not been for long."""
        if result.state is not TrackState.INITIALIZING or not tracker.can_relocalize:
            self._searched_since_ns = None
            return False
        if self._searched_since_ns is None or self._searched_since_ns > result.stamp_ns:
            self._searched_since_ns = result.stamp_ns
        return result.stamp_ns - self._searched_since_ns < _CALM_NS

    def judge_odometry(self, tracker: Tracker, time_offset_ns: int) -> None:
        """Compares odometry and gyro with the poses. time_offset_ns: added to the stamps of the images."""
        self._board.update("odometry", "gyro", "; ".join(tracker.gyro.warnings(time_offset_ns / NS_PER_S)))
        if tracker.gyro:
            bias = " ".join(f"{axis:.4f}" for axis in tracker.gyro.bias)
            self._board.value("odometry", gyro=f"bias {bias} rad/s{'' if tracker.gyro.trusted else ', not used yet'}")
        if self._setting("odom_source") == "none":
            return
        findings = tracker.check_odometry()
        known = {name: f"{value:.3f} +- {std:.3f}" for name, (value, std) in findings.known().items()}
        translation, rotation = tracker.odometry.noise_factors
        self._board.value("odometry", **{name: known.get(name, "not known yet") for name in FIGURES})
        self._board.value("odometry", noise_factors=f"{translation:.1f} translation, {rotation:.1f} rotation")
        self._board.value("odometry", way_factor=f"{tracker.odometry.way_factor:.3f}")
        warnings = findings.warnings(time_offset_ns / NS_PER_S)
        for name in WARNINGS:
            self._board.update("odometry", name, warnings.get(name, ""))

    def judge_filter(self, result: TrackResult, published: Callable[[int], tuple[torch.Tensor, torch.Tensor] | None]) -> None:
        """Whether the map -> base that a filter publishes agrees with the poses of the images.

        Args:
            result: of the newest image; it is compared as soon as the filter has come to its stamp.
            published: gives map_from_base [4, 4] at a stamp and its covariance [6, 6]; None where it is not known.
        """
        waiting = self._unjudged
        if waiting and result.stamp_ns < waiting[-1].stamp_ns:
            self.forget_filter()
        if result.state is TrackState.TRACKING:
            waiting.append(result)
        while waiting:
            found = published(waiting[0].stamp_ns)
            if found is not None:
                self._filter_known = True
                self._board.clear("transforms", "filter silent")
                self._compare_filter(waiting.popleft(), *found)
            elif result.stamp_ns - waiting[0].stamp_ns > _FILTER_PATIENCE_NS:
                waiting.popleft()
                if self._filter_known:
                    text = (
                        f"nothing publishes map -> {self._setting('base_frame_id')} at the images' times any more: look whether "
                        "the filter and the odometry run"
                    )
                    self._board.report("transforms", "filter silent", ERROR, text)
            else:
                break

    def forget_filter(self) -> None:
        """A new time begins."""
        self._unjudged.clear()
        self._agreed_ns, self._filter_known = None, False

    def _compare_filter(self, result: TrackResult, pose: torch.Tensor, covariance: torch.Tensor) -> None:
        ours = result.map_from_base
        if mahalanobis(ours, result.covariance, pose, covariance) < _FILTER_LIMIT:
            self._agreed_ns = result.stamp_ns
            self._board.clear("transforms", "filter")
        elif self._agreed_ns is None or result.stamp_ns - self._agreed_ns < _FILTER_PATIENCE_NS:
            self._agreed_ns = self._agreed_ns or result.stamp_ns
        else:
            distance, angle = map(float, se3.pose_difference(ours, pose))
            beside, turned = map(float, se3.pose_difference(*(flat(p) for p in (ours, pose))))
            remedy = "the filter does not take ~/pose; check its topic, and that it has no rejection threshold (config/ekf.yaml)"
            if beside < 0.1 * distance + _FLAT_M and turned < 0.1 * angle + _FLAT_RAD:
                remedy = "in height or tilt; for a filter with two_d_mode, bring the map's floor to z = 0 with 'pixloc map move'"
            text = (
                f"the published map -> {self._setting('base_frame_id')} is {distance:.2f} m and {math.degrees(angle):.1f} "
                f"degrees away from the pose of the images, more than both covariances allow: {remedy}"
            )
            self._board.report("transforms", "filter", ERROR, text)

    def judge_calibration(self, tracker: Tracker) -> None:
        """Whether the calibration that was read and its focal length fit the images."""
        self._board.update("calibration", "choice", tracker.calibration_choice.note)
        report = tracker.check_calibration()
        if report is None:
            return
        found = f"{report.focal_ratio:.4f} ± {report.std:.4f}, of {report.images} images"
        self._board.value("calibration", focal_length_ratio=found)
        self._board.update("calibration", "focal length", report.message if report.wrong else "")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A bag through the tracker, frame by frame in the order of stamps: no ROS, no clock, the same poses every time.

A frame waits for the odometry of its stamp as in the node: it is processed once a sample at or after its stamp has come, or
once any data shows that `ODOMETRY_WAIT_NS` have passed.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
import torch

from ..errors import InputError
from ..io.bags import BagReader
from ..io.frames import CameraFrame, OdometryMessage, UnusableFrame
from ..io.trajectory import Trajectory
from ..tracking.tracker import Tracker
from ..tracking.types import PreparedFrame, TrackResult
from .bench import FALSE_TRACK, summarize
from .read_ahead import read_ahead
from .runs import TRUTH_GAP_NS, BagRun, FrameRecord, odometry_in_map

__all__ = [
    "FALSE_TRACK",
    "INITIAL_STD",
    "ODOMETRY_WAIT_NS",
    "TRUTH_GAP_NS",
    "BagRun",
    "FrameRecord",
    "Watch",
    "first_pose",
    "initial_covariance",
    "odometry_in_map",
    "run_bag",
    "summarize",
]

ODOMETRY_WAIT_NS = 100_000_000
INITIAL_STD = (0.3, 0.05)
"""Metres and radians: standard deviations that go with an initial pose, as in the node."""
Watch = Callable[[CameraFrame | UnusableFrame, TrackResult | None], bool]
"""Told of every image and what the tracker says of it (None where the image could not be used); True ends the run."""


def initial_covariance() -> torch.Tensor:
    """float64 [6, 6] of a pose somebody gives."""
    translation, rotation = INITIAL_STD
    return torch.diag(torch.tensor([translation**2] * 3 + [rotation**2] * 3, dtype=torch.float64))


def first_pose(bag: BagReader, truth: Trajectory, given: torch.Tensor | None) -> tuple[int, torch.Tensor]:
    """(stamp_ns, map_from_base) to start from: the one given, for the first image, or the truth at the first image it knows.

    Raises InputError where there is neither.
    """
    for stamp_ns in bag.image_stamps():
        if given is not None:
            return stamp_ns, given
        pose, known = truth.at(np.array([stamp_ns]), TRUTH_GAP_NS)
        if known[0]:
            return stamp_ns, pose[0]
    raise InputError(f"nothing tells where the drive {bag.path} begins: give --initial-pose x y z qx qy qz qw")


def run_bag(
    tracker: Tracker,
    bag: BagReader,
    initial_pose: torch.Tensor | None = None,
    cold_start: bool = False,
    progress: Callable[..., None] = lambda done, of, note="": None,
    watch: Watch = lambda frame, result: False,
    ahead: bool = False,
) -> BagRun:
    """Track a whole bag, or until `watch` has seen enough.

    Args:
        tracker: A new one (`Localizer.tracker`).
        bag: The drive.
        initial_pose: map_from_base float64 [4, 4] at the first image; None: from the bag's truth.
        cold_start: No pose is given, the tracker's search must find it.
        progress: Called with the number of images done, of all, and the tracker's state.
        watch: Sees every image; ends the run early.
        ahead: A second core reads the bag and computes features meanwhile: the same poses sooner.

    Raises:
        InputError: The bag or the start cannot be used.
    """
    truth = bag.truth()
    start = None if cold_start else first_pose(bag, truth, initial_pose)
    runner = _Runner(tracker, bag, start, progress, watch)
    with contextlib.ExitStack() as stack:
        events = bag.events()
        if ahead:
            events = stack.enter_context(
                contextlib.closing(read_ahead(events, lambda frame: tracker.aligner.prepare(frame.image, frame.camera)))
            )
        for event in events:
            runner.feed(event)
            if runner.ended:
                break
    runner.finish()
    odometry = tracker.check_odometry()
    findings = {key: number for name, figure in odometry.known().items() for key, number in zip((name, f"{name}_std"), figure)}
    remarks = tuple(odometry.warnings(bag.options.time_offset_s).values())
    calibration = tracker.check_calibration()
    if calibration is not None:
        findings |= {"focal_ratio": calibration.focal_ratio, "focal_ratio_std": calibration.std}
        remarks += (calibration.message,) if calibration.wrong else ()
    return BagRun(
        runner.records, truth, Trajectory.from_poses(runner.odometry), runner.refused, findings=findings, remarks=remarks
    )


class _Runner:
    """Feeds a tracker and keeps what it says."""

    def __init__(
        self,
        tracker: Tracker,
        bag: BagReader,
        start: tuple[int, torch.Tensor] | None,
        progress: Callable[..., None],
        watch: Watch,
    ) -> None:
        self.records: list[FrameRecord] = []
        self.ended = False
        self._watch = watch
        self.refused: Counter = Counter()
        self.odometry: list[tuple[int, torch.Tensor]] = []
        self._tracker, self._bag, self._progress = tracker, bag, progress
        self._start = start
        self._cold = start is None
        self._waiting: deque[CameraFrame | UnusableFrame] = deque()
        self._images = bag.image_count

    def feed(self, event: OdometryMessage | CameraFrame | UnusableFrame) -> None:
        if isinstance(event, OdometryMessage):
            report = self._tracker.add_odometry(event.stamp_ns, event.odom_from_base, event.twist_covariance)
            self.odometry.append((event.stamp_ns, event.odom_from_base))
            if report.message:
                self.refused[report.message] += 1
        else:
            self._waiting.append(event)
        self._process(event.stamp_ns)

    def finish(self) -> None:
        self._process(None)

    def _process(self, now_ns: int | None) -> None:
        """Process what need not wait longer; everything if `now_ns` is None."""
        while self._waiting and not self.ended:
            stamp_ns = self._waiting[0].stamp_ns
            covered = self._bag.odometry_topic is None or self._tracker.odometry.covers(stamp_ns)
            if not covered and now_ns is not None and now_ns - stamp_ns < ODOMETRY_WAIT_NS:
                return
            self._track(self._waiting.popleft())

    def _track(self, frame: CameraFrame | UnusableFrame) -> None:
        self._progress(len(self.records), self._images, self._tracker.state.name)
        if isinstance(frame, UnusableFrame):
            self._unusable(frame, frame.reason)
            return
        if self._start is not None and frame.stamp_ns >= self._start[0]:
            stamp_ns, pose = self._start
            self._start = None
            self._tracker.initialize(pose, initial_covariance(), stamp_ns)
            self._warm_up(frame, pose)
        elif self._cold:
            self._cold = False
            self._warm_up(frame, None)
        try:
            result = self._tracker.track(frame, self._bag.base_from_camera)
        except InputError as error:
            self._unusable(frame, str(error))
            return
        alignment, timings_ms = result.alignment, dict(result.timings_ms)
        if isinstance(frame, PreparedFrame):  # in another thread, before the tracker's clock ran
            timings_ms["total"] += sum(timings_ms.get(stage, 0.0) for stage in ("prepare", "features"))
        self.records.append(
            FrameRecord(
                frame.stamp_ns,
                result.state,
                result.map_from_base,
                result.covariance,
                timings_ms,
                alignment.inlier_fraction if alignment is not None else float("nan"),
                result.message,
            )
        )
        self._tracker.check_calibration()
        self._tracker.check_odometry()
        self.ended = self._watch(frame, result)

    def _warm_up(self, frame: CameraFrame, map_from_base: torch.Tensor | None) -> None:
        """The first call of everything is slow; it must not pass for what a frame takes. Neither aligner nor search keeps a
        state."""
        tracker = self._tracker
        with contextlib.suppress(InputError):
            prepared = tracker.aligner.prepare(frame.image, frame.camera)
            if map_from_base is not None:
                tracker.aligner.localize_prepared(prepared, map_from_base @ self._bag.base_from_camera)
            if tracker.pose_search is not None:
                tracker.pose_search.search(PreparedFrame.of(frame, prepared), self._bag.base_from_camera)

    def _unusable(self, frame: CameraFrame | UnusableFrame, reason: str) -> None:
        self.records.append(FrameRecord(frame.stamp_ns, self._tracker.state, None, None, {}, float("nan"), reason, unusable=True))
        self.ended = self._watch(frame, None)

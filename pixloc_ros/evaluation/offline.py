# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A bag through the tracker, frame by frame in the order of stamps: no ROS, no clock, the same poses every time.

A frame waits for the odometry of its stamp as in the node: it is processed once a sample at or after its stamp has come, or
once any data shows that `ODOMETRY_WAIT_NS` have passed.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from ..errors import InputError
from ..io.bag_sensors import ImuReadings
from ..io.bags import BagReader
from ..io.frames import CameraFrame, Event, OdometryMessage, UnusableFrame
from ..io.trajectory import Trajectory
from ..tracking.tracker import Tracker
from ..tracking.types import PreparedFrame, TrackResult
from .runs import TRUTH_GAP_NS, BagRun, FrameRecord

ODOMETRY_WAIT_NS = 100_000_000
GYRO_WAIT_NS = 10_000_000
"""An image's turn is known so long after it was taken; features take as long."""
INITIAL_STD = (0.3, 0.05)
"""Metres and radians: standard deviations that go with an initial pose, as in the node."""
Watch = Callable[[CameraFrame | UnusableFrame, TrackResult | None], bool]
"""Called with every image, its camera as it was aligned, and what the tracker says of it (None where it could not be used); True
ends the run."""
_AHEAD = 4
"""Images with features that may wait for the tracker: they are large."""


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
    remedy = "give --initial-pose x y z qx qy qz qw, or let 'pixloc track --cold-start' find it"
    raise InputError(f"nothing says where the drive {bag.path} begins: {remedy}")


def run_bag(
    tracker: Tracker,
    bag: BagReader,
    initial_pose: torch.Tensor | None = None,
    cold_start: bool = False,
    progress: Callable[..., None] = lambda done, of, note="": None,
    watch: Watch = lambda frame, result: False,
    ahead: bool = False,
    imu: ImuReadings | None = None,
) -> BagRun:
    """Track a whole bag, or until `watch` has seen enough.

    Args:
        tracker: A new one (`Localizer.tracker`).
        bag: The drive, open.
        initial_pose: map_from_base float64 [4, 4] at the first image; None: from the bag's truth.
        cold_start: No pose is given, the tracker's search must find it.
        progress: Called before every image.
        watch: Called after every image.
        ahead: A second core reads the bag and computes features meanwhile; the same poses sooner.
        imu: What it read, in the camera's axes.

    Raises:
        InputError: The bag or the start cannot be used.
    """
    truth = bag.truth()
    start = None if cold_start else first_pose(bag, truth, initial_pose)
    records: list[FrameRecord] = []
    samples: list[tuple[int, torch.Tensor]] = []
    refused: Counter = Counter()
    image_count, read = bag.image_count, 0
    base_turned = bag.base_from_camera[:3, :3].numpy().T
    rates = None if imu is None else imu.rates @ base_turned
    forces = None if imu is None or imu.forces is None else imu.forces @ base_turned

    def warm_up(frame: CameraFrame, map_from_base: torch.Tensor | None) -> None:
        """The first call of everything is slow; it must not count as what a frame takes. Nothing here keeps a state."""
        with contextlib.suppress(InputError):
            prepared = tracker.aligner.prepare(frame.image, frame.camera)
            if map_from_base is not None:
                tracker.aligner.localize_prepared(prepared, map_from_base @ bag.mount_of(frame))
            if tracker.pose_search is not None:
                tracker.pose_search.search(PreparedFrame.of(frame, prepared), bag.mount_of(frame))

    def track(frame: CameraFrame | UnusableFrame) -> bool:
        """Process one image → whether that was the last."""
        nonlocal start, cold_start, read
        while imu is not None and read < len(rates) and imu.stamps_ns[read] <= frame.newest_ns + GYRO_WAIT_NS:
            tracker.gyro.add(int(imu.stamps_ns[read]), rates[read], None if forces is None else forces[read])
            read += 1
        progress(len(records), image_count, tracker.state.name)
        result, reason = None, getattr(frame, "reason", "")
        if isinstance(frame, CameraFrame):
            if start is not None and frame.stamp_ns >= start[0]:
                (stamp_ns, pose), start = start, None
                tracker.initialize(pose, initial_covariance(), stamp_ns)
                warm_up(frame, pose)
            elif cold_start:
                cold_start = False
                warm_up(frame, None)
            try:
                result = tracker.track(frame, bag.mount_of(frame))
            except InputError as error:
                reason = str(error)
        if result is None:
            records.append(FrameRecord(frame.stamp_ns, tracker.state, message=reason, unusable=True))
            return watch(frame, None)
        timings_ms = dict(result.timings_ms)
        if isinstance(frame, PreparedFrame):  # in another thread, before the tracker's clock ran
            timings_ms["total"] += sum(timings_ms.get(stage, 0.0) for stage in ("prepare", "features"))
        names = ("inlier_fraction", "probability", "depth")
        numbers = {name: getattr(result.alignment, name) for name in names if result.alignment is not None}
        pose = result.map_from_base, result.covariance, timings_ms
        records.append(FrameRecord(frame.stamp_ns, result.state, *pose, message=result.message, **numbers))
        tracker.check_odometry()  # learns from the image first
        # Whoever draws the image needs the camera that fitted.
        return watch(frame if result.camera is None else replace(frame, camera=result.camera), result)

    waiting: deque[CameraFrame | UnusableFrame] = deque()

    def process(now_ns: int | None) -> bool:
        """Process what need not wait longer, everything if `now_ns` is None → whether the run has ended."""
        while waiting:
            stamp_ns = waiting[0].newest_ns
            covered = bag.odometry_topic is None or tracker.odometry.covers(stamp_ns)
            if not covered and now_ns is not None and now_ns - stamp_ns < ODOMETRY_WAIT_NS:
                return False
            if track(waiting.popleft()):
                return True
        return False

    with contextlib.ExitStack() as stack:
        events = bag.events()
        if ahead:
            events = read_ahead(events, tracker.rig.prepare)
            stack.enter_context(contextlib.closing(events))
        for event in events:
            if isinstance(event, OdometryMessage):
                report = tracker.add_odometry(event.stamp_ns, event.odom_from_base, event.twist_covariance, event.twist)
                samples.append((event.stamp_ns, event.odom_from_base))
                if report.message:
                    refused[report.message] += 1
            else:
                waiting.append(event)
            if process(event.stamp_ns):
                break
        else:
            process(None)
    odometry = tracker.check_odometry()
    findings = {key: number for name, figure in odometry.known().items() for key, number in zip((name, f"{name}_std"), figure)}
    mount = tracker.mount_check
    said = filter(None, (tracker.calibration_choice.note, mount.problem, mount.suspicion, mount.unverified))
    remarks = (*bag.notes, *said, *odometry.warnings(bag.options.time_offset_s).values())
    remarks += tracker.gyro.warnings(bag.options.time_offset_s)
    remarks += tuple(f"camera {name}: {problem}" for name, problem in tracker.rig.said.items())
    remarks += (tracker.odometry.twist_check.problem,) if tracker.odometry.twist_check.problem else ()
    remarks += camera_silence(records, [stamp_ns for stamp_ns, _ in samples], tracker.options.max_degraded_s)
    calibration = tracker.check_calibration()
    if calibration is not None:
        findings |= {"focal_ratio": calibration.focal_ratio, "focal_ratio_std": calibration.std}
        remarks += (calibration.message,) if calibration.wrong else ()
    return BagRun(records, truth, Trajectory.from_poses(samples), refused, findings=findings, remarks=remarks)


def camera_silence(records: list[FrameRecord], odometry_ns: list[int], longest_s: float) -> tuple[str, ...]:
    """A remark on the longest time, if longer than `longest_s`, in which odometry went on but no image could be used."""
    used_ns = [record.stamp_ns for record in records if not record.unusable]
    if not used_ns or not odometry_ns:
        return ()
    ends_ns = np.array([*used_ns, max(used_ns[-1], odometry_ns[-1])])
    at = int(np.diff(ends_ns).argmax())
    begin_ns, end_ns = ends_ns[at : at + 2].tolist()
    seconds = (end_ns - begin_ns) * 1e-9
    if seconds <= longest_s or sum(begin_ns < stamp_ns < end_ns for stamp_ns in odometry_ns) < 2:
        return ()
    return (f"no image could be used for {seconds:.1f} s after {begin_ns * 1e-9:.3f}, while odometry went on: check the camera",)


def read_ahead(events: Iterator[Event], prepare: Callable[[CameraFrame], PreparedFrame]) -> Iterator[Event]:
    """Reads events and prepares images on one core while the tracker works on another; only the time it takes changes.

    An image that cannot be prepared (InputError) comes as it is, for the tracker to say why. Errors in reading are raised here.
    """
    warm = False

    def prepared(event: Event) -> Event:
        nonlocal warm
        if isinstance(event, CameraFrame):
            with contextlib.suppress(InputError):
                if not warm:
                    prepare(event)  # the first call is slow; it must not count as what an image takes
                    warm = True
                return prepare(event)
        return event

    def up_to_next_image() -> tuple[list[Event], Exception | None]:
        """The next image and what comes before it, and what ended the reading."""
        batch: list[Event] = []
        try:
            for event in events:
                batch.append(prepared(event))
                if isinstance(event, CameraFrame):
                    return batch, None
        except Exception as error:
            return batch, error
        return batch, StopIteration()

    with ThreadPoolExecutor(1, "read ahead") as pool:
        ahead = deque(pool.submit(up_to_next_image) for _ in range(_AHEAD))
        try:
            while True:
                batch, end = ahead.popleft().result()
                ahead.append(pool.submit(up_to_next_image))
                yield from batch
                if isinstance(end, StopIteration):
                    return
                if end is not None:
                    raise end
        finally:
            pool.shutdown(cancel_futures=True)

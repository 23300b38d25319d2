# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From images to poses: `Inputs` in, `Tracker`, `Outputs` out. Exists while the node is configured.

The executor's thread runs all callbacks, each of which only checks and stores. One worker thread owns the tracker: it
takes images and requests from `WorkQueue`, waits for what belongs to an image's stamp, and publishes. So odometry,
services and TF are never held up by the network.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped, TwistWithCovariance
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

from ..errors import InputError
from ..features import Execution
from ..io.frames import CameraFrame
from ..localization import Localizer
from ..tracking.checks.calibration import CalibrationReport
from ..tracking.checks.odometry import FIGURES, WARNINGS
from ..tracking.last_pose import LastPose, load_last_pose, save_last_pose
from ..tracking.types import TrackResult, TrackState
from .conversions import NS_PER_S, stamp_to_ns
from .debug_outputs import DebugOutputs
from .diagnostics import ERROR, WARN, DiagnosticBoard
from .frames import ReceivedImage, Request, WorkQueue
from .images import decode_image
from .inputs import Inputs, Rejected
from .outputs import Counters, Outputs
from .parameters import FRAME_QUEUE_LIMIT, Value

_MAX_INITIAL_POSE_AGE_NS = 10 * NS_PER_S
"""How long ago an initial pose may have been true: as long as the tracker keeps odometry."""

MOST_DROPPED = 0.5
"""Share of the images that may be dropped before diagnostics warn, over so many at least:"""
_PACE_IMAGES = 20

OpenLocalizer = Callable[..., Localizer]
"""Called as `Localizer.open`."""


class Pipeline:
    """Subscriptions, worker and publishers.

    setting: value of a parameter by name. open_localizer: called as `Localizer.open`. on_failure: called in the worker's thread
    when it ends because of an error in the program. Where the map cannot be used, the pipeline stands all the same, rejects
    images with the reason, and waits for `load_map`.
    """

    def __init__(
        self,
        node: Node,
        setting: Callable[[str], Value],
        board: DiagnosticBoard,
        open_localizer: OpenLocalizer,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._node, self._setting, self._board = node, setting, board
        self._open_localizer, self._on_failure = open_localizer, on_failure
        # The worker's own
        self._localizer: Localizer | None = None
        self._tracker = None
        self._map_name = ""
        self._last_pose: LastPose | None = None
        self._state = TrackState.INITIALIZING
        self._last_image_ns: int | None = None
        self._untracked = 0
        self._twist: TwistWithCovariance | None = None
        self._time_offset_ns = 0  # what the stamps that the tracker knows have added to them
        # Shared by the worker and the callbacks
        self._counters = Counters()
        self._counters_lock = threading.Lock()
        self._paced = Counters()  # as they were when the pace was looked at
        self._pose_to_keep: LastPose | None = None
        self._paused = threading.Event()
        self._start_anew = threading.Event()
        self._publishing = threading.Lock()
        self._frame_ms: deque[float] = deque(maxlen=100)
        self._delay_ms: deque[float] = deque(maxlen=100)

        # Wakes the executor, which does not notice by itself that the worker has answered a request.
        self._answered = node.create_guard_condition(lambda: None)
        self._queue = WorkQueue(FRAME_QUEUE_LIMIT if setting("process_all_frames") else 1)
        self.inputs = Inputs(node, setting, board, self._on_image, self.restart, self._on_own_frame)
        self._outputs = Outputs(node, setting)
        self._debug = DebugOutputs(node, setting)
        ready = threading.Event()
        self._worker = threading.Thread(target=self._work, args=(ready,), name="localization")
        self._worker.start()
        try:
            ready.wait()
        except BaseException:  # a signal to stop: nobody else knows of the worker yet
            self.close()
            raise

    # ---- for the node

    def start(self) -> None:
        """Begins to listen, with the initial pose of the parameters."""
        self.inputs.expect_start()
        self.inputs.subscribe()

    def stop(self) -> None:
        """Stops listening and forgets the pose."""
        self.inputs.unsubscribe()
        self.restart("deactivated")
        self._paused.clear()
        self._board.clear_all(keep=("map",))

    def close(self) -> None:
        """Ends the worker and the publishers."""
        for request in self._queue.close():
            request.refuse("the node is being cleaned up")
        self._worker.join()
        self._node.destroy_guard_condition(self._answered)
        self._outputs.destroy()
        self._debug.destroy()

    def restart(self, reason: str) -> None:
        """Forgets all that belongs to the time before: clocks went back, or the node was deactivated."""
        self._board.report("localization", "time", WARN, f"{reason}: localization starts again")
        self._board.clear("localization", "time")
        waiting = self._queue.clear_frames()
        with self._publishing:
            self._start_anew.set()
            self._outputs.fall_silent()
            self._debug.forget()
        self.inputs.forget()
        for frame in waiting:
            self._drop(frame, f"dropped: {reason}")

    def pause(self) -> None:
        """No image is looked at, and no pose and no transform published, until `resume`."""
        with self._publishing:
            self._paused.set()
            self._outputs.fall_silent()
        self._board.report("localization", "paused", WARN, "paused: nothing is published; call ~/resume to go on")

    def resume(self) -> None:
        """Goes on from the last pose and the odometry since."""
        self._paused.clear()
        self._board.clear("localization", "paused")

    def load_map(self, path: str) -> Future:
        """Future of None, or of the InputError that says why the map cannot be used; the old one stays then."""
        return self._ask(lambda: self._change_map(path))

    def relocalize(self) -> Future:
        """Future of None, or of an InputError: the pose is forgotten and searched for in the whole map."""
        return self._ask(self._forget_pose)

    def set_pose(self, message: PoseWithCovarianceStamped) -> None:
        """As a message on initialpose. Raises InputError."""
        self.inputs.set_initial_pose(message)

    def keep_pose(self) -> None:
        """Writes the last pose to its file, where there is a new one. For a timer: it may take some milliseconds."""
        pose, path = self._pose_to_keep, self._setting("last_pose_file")
        if pose is None or not path:
            return
        self._pose_to_keep = None
        try:
            save_last_pose(Path(path).expanduser(), pose)
            self._board.clear("initial pose", "file")
        except InputError as error:
            self._board.report("initial pose", "file", WARN, str(error))

    def check_rivals(self) -> None:
        """Reports whether another localizer of this name is there. For a timer."""
        others = self._outputs.pose_publishers() - 1
        if others > 0:
            text = (
                f"{others} more publish our ~/pose: stop the other localizer, or give it a namespace (one that was killed is "
                "counted for some 20 s more)"
            )
            self._board.report("localization", "twin", WARN, text)
        else:
            self._board.clear("localization", "twin")

    def check_pace(self) -> None:
        """Reports whether most images are dropped because they come faster than they can be aligned. For a timer."""
        with self._counters_lock:
            now = replace(self._counters)
        received, dropped = now.received - self._paced.received, now.dropped - self._paced.dropped
        if received < _PACE_IMAGES and received >= 0:
            return
        self._paced = now
        if self._paused.is_set() or dropped <= MOST_DROPPED * received:
            self._board.clear("image", "pace")
            return
        took = f", one takes {np.median(self._frame_ms):.0f} ms" if self._frame_ms else ""
        text = (
            f"{dropped} of {received} images dropped (more than {MOST_DROPPED:.0%}): they come faster than they can be "
            f"aligned{took}; set preset to fast, or lower the camera's rate"
        )
        self._board.report("image", "pace", WARN, text)

    def repeat_transform(self) -> None:
        """Sends the transform again where it would soon be too old."""
        self._outputs.repeat_transform(self.inputs.newest_ns)

    @property
    def map_name(self) -> str:
        """File name of the map in use; empty without one."""
        return self._map_name

    def report_values(self) -> None:
        """Puts figures onto the board: counters, state, times."""
        with self._counters_lock:
            self._board.value("image", **vars(self._counters))
        self._board.value("map", file=self._map_name)
        self._board.value("localization", state=self._state.name)
        for name, values in (("frame_ms", tuple(self._frame_ms)), ("delay_ms", tuple(self._delay_ms))):
            if values:
                p50, p95 = np.percentile(values, (50, 95))
                self._board.value("localization", **{f"{name}_p50": f"{p50:.1f}", f"{name}_p95": f"{p95:.1f}"})

    # ---- callbacks

    def _on_image(self, message: Image | CompressedImage, stamp_ns: int, rejection: Rejected | None) -> None:
        self._count("received")
        arrival_ms = (self._node.get_clock().now().nanoseconds - stamp_ns) * 1e-6
        frame = ReceivedImage(message, stamp_ns, time.monotonic(), arrival_ms)
        if rejection is not None:
            self._reject(frame, rejection)
            return
        if self._paused.is_set():
            self._drop(frame, "dropped: paused")
            return
        dropped = self._queue.put(frame)
        if dropped is not None:
            self._drop(dropped, "dropped: a newer image came before its turn")

    def _on_own_frame(self, stamped: TransformStamped) -> None:
        if not self._setting("publish_tf") or self._outputs.is_own(stamped):
            return
        text = (
            f"something else publishes {stamped.header.frame_id} -> {stamped.child_frame_id}, the transform of a frame that this "
            "node publishes: stop it (AMCL: tf_broadcast, robot_localization: publish_tf), or set publish_tf to false here"
        )
        self._board.report("transforms", "rival", ERROR, text)
        self._board.clear("transforms", "rival")

    def _ask(self, work: Callable[[], None]) -> Future:
        request = Request(work, Future())
        request.future.add_done_callback(lambda _: self._answered.trigger())
        if not self._queue.ask(request):
            request.refuse("the node is being cleaned up")
        return request.future

    # ---- worker

    def _work(self, ready: threading.Event) -> None:
        try:
            with torch.inference_mode():
                # Here, because compute threads belong to the thread that first asks for them.
                try:
                    self._use(self._load(self._setting("map")))
                except InputError as error:
                    text = f"{error}. Mend it and call ~/load_map, or start the node again: nothing is localized until then"
                    self._board.report("map", "load", ERROR, text)
                ready.set()
                while (job := self._queue.take()) is not None:
                    if isinstance(job, Request):
                        job.settle()
                    else:
                        self._process(job)
        except BaseException as error:
            self._on_failure(error)
        finally:
            ready.set()
            for request in self._queue.close():
                request.refuse("the node is ending")

    def _load(self, map_path: str) -> Localizer:
        if not map_path:
            raise InputError("parameter map is empty: give the map file, for example map:=site.pixmap")
        if self._setting("threads"):
            torch.set_num_threads(self._setting("threads"))
        execution = Execution(*(self._setting(name) for name in ("backend", "device", "precision")))
        weights, preset, max_points = (self._setting(name) for name in ("weights", "preset", "max_points"))
        localizer = self._open_localizer(map_path, weights, preset, max_points, execution)
        localizer.warm_up()
        # What is there now stays. Otherwise Python's collector goes through it all every minute or so: a third of a million
        # objects, most of them the libraries', while every thread waits for 150 ms.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return localizer

    def _use(self, localizer: Localizer) -> None:
        self._localizer, self._map_name = localizer, localizer.map_name
        self._board.value("map", network=localizer.network)
        self._new_tracker()
        self._board.clear("map", "load")

    def _new_tracker(self) -> None:
        self._tracker = self._localizer.tracker(relocalization=self._setting("relocalization"))
        self._last_pose = None
        path = self._setting("last_pose_file")
        if path and not self._setting("set_initial_pose"):
            try:
                self._last_pose = load_last_pose(Path(path).expanduser(), self._map_name)
            except InputError as error:
                self._board.report("initial pose", "file", WARN, str(error))

    def _change_map(self, path: str) -> None:
        localizer = self._load(path)
        self._use(localizer)
        self.restart(f"map {localizer.map_name} loaded")

    def _forget_pose(self) -> None:
        if self._tracker is None:
            raise InputError("no map is loaded: call ~/load_map first")
        if self._tracker.can_relocalize:
            self._tracker.relocalize()
        else:
            self._tracker.reset()
        with self._publishing:
            self._outputs.fall_silent()

    def _process(self, received: ReceivedImage) -> None:
        began = time.monotonic()
        stages_ms = {"arrival_ms": received.arrival_ms, "queue_ms": (began - received.received_at) * 1e3}
        if self._start_anew.is_set():
            self._begin()
        self._note_time_offset(received)
        try:
            frame, base_from_camera = self._assemble(received, stages_ms)
            result = self._tracker.track(frame, base_from_camera)
        except Rejected as rejection:
            self._reject(received, rejection)
            return
        except InputError as error:
            self._reject(received, Rejected("image", "unusable", f"{error}; the image is not used"))
            return
        tracked = time.monotonic()
        with self._publishing:
            outdated = self._start_anew.is_set() or self._paused.is_set()
            if not outdated:
                self._last_image_ns, self._state = received.stamp_ns, result.state
                self._outputs.result(result, self._twist)
        if outdated:
            self._drop(received, "dropped: paused or started again meanwhile")
            return
        now = time.monotonic()
        stages_ms |= {"publish_ms": (now - tracked) * 1e3, "frame_ms": (now - began) * 1e3}
        self._frame_ms.append(stages_ms["frame_ms"])
        self._delay_ms.append((now - received.received_at) * 1e3)
        self._count("processed")
        self._publish_status(received, result.message, result, stages_ms)
        if result.state is TrackState.TRACKING:
            self._pose_to_keep = LastPose(self._map_name, received.stamp_ns, result.map_from_base, result.covariance)
        self._judge(result)
        self._judge_odometry()
        self._debug.result(frame, received.message.header.frame_id, result)
        self._judge_calibration(self._tracker.check_calibration())

    def _begin(self) -> None:
        self._start_anew.clear()
        self._last_image_ns = self._twist = None
        self._state = TrackState.INITIALIZING
        self.inputs.expect_start()
        if self._localizer is not None:
            self._new_tracker()

    def _assemble(self, received: ReceivedImage, stages_ms: dict[str, float]) -> tuple[CameraFrame, torch.Tensor]:
        """The frame and base_from_camera, with odometry and initial pose given to the tracker. Raises Rejected.

        stages_ms: takes the times for decoding and waiting.
        """
        stamp_ns = received.stamp_ns
        if self._tracker is None:
            raise Rejected("map", "load", "no map is loaded: see the error at the start, mend it, call ~/load_map")
        if stamp_ns <= 0:
            raise Rejected("image", "stamp", "images have no time stamp: the driver must fill in header.stamp")
        if self._last_image_ns is not None and stamp_ns <= self._last_image_ns:
            late_s = (self._last_image_ns - stamp_ns) / NS_PER_S
            text = f"an image is {late_s:.3f} s older than the last one: it is not used; look for a second publisher"
            raise Rejected("image", "order", text, WARN)
        began = time.monotonic()
        try:
            pixels = decode_image(received.message)
        except InputError as error:
            raise Rejected("image", "format", f"{error}; the image is not used") from None
        stages_ms["decode_ms"] = (time.monotonic() - began) * 1e3
        deadline = received.received_at + self._setting("odometry_wait_s")
        camera = self.inputs.camera(deadline)
        height, width = pixels.shape[:2]
        if (width, height) != (camera.width, camera.height):
            topic = self.inputs.topic("camera_info_topic")
            text = (
                f"images are {width}x{height} but {topic} says {camera.width}x{camera.height}: publish the calibration "
                "of this image size (binning and roi are understood)"
            )
            raise Rejected("calibration", "size", text)
        # The network runs while the odometry of the image's stamp is on its way.
        frame = self._tracker.prepare(CameraFrame(stamp_ns, pixels, camera))
        began = time.monotonic()
        base_from_camera = self.inputs.base_from_camera(received.message.header.frame_id, stamp_ns, deadline)
        self._feed_odometry(stamp_ns, deadline)
        stages_ms["wait_ms"] = (time.monotonic() - began) * 1e3
        self._feed_initial_pose(stamp_ns)
        if not self._tracker.has_pose:
            self._feed_hint(stamp_ns)
        self._board.clear("image", "stamp", "order", "format", "unusable")
        self._board.clear("calibration", "missing", "size")
        return frame, base_from_camera

    def _feed_odometry(self, stamp_ns: int, deadline: float) -> None:
        source = self._setting("odom_source")
        if source == "tf":
            self._tracker.add_odometry(stamp_ns, self.inputs.odom_from_base(stamp_ns, deadline))
        if source != "topic":
            return
        for message in self.inputs.take_odometry(stamp_ns, deadline):
            report = self._tracker.add_odometry(message.stamp_ns, message.odom_from_base, message.twist_covariance)
            self._twist = message.twist
            if report.message:
                self._board.report("odometry", "tracker", WARN, report.message)
                self._board.clear("odometry", "tracker")
        newest_ns = self._tracker.odometry.newest_stamp_ns
        if newest_ns is None or newest_ns >= stamp_ns:
            self._board.clear("odometry", "late")
            return
        behind_s = (stamp_ns - newest_ns) / NS_PER_S
        if behind_s > 1.0:
            self._twist = None
        text = (
            f"the newest odometry ({newest_ns / NS_PER_S:.3f}) is {behind_s:.3f} s older than the image "
            f"({stamp_ns / NS_PER_S:.3f}): raise odometry_wait_s, or synchronise the clocks of camera and odometry"
        )
        self._board.report("odometry", "late", WARN, text)

    def _feed_initial_pose(self, image_ns: int) -> None:
        pose = self.inputs.take_initial_pose()
        if pose is None:
            return
        stamp_ns = image_ns if pose.stamp_ns is None else pose.stamp_ns
        age_ns = image_ns - stamp_ns
        if not 0 <= age_ns <= _MAX_INITIAL_POSE_AGE_NS:
            # A little ahead is normal: the image was on its way when the pose was given.
            if abs(age_ns) > NS_PER_S:
                text = (
                    f"the initial pose ({stamp_ns / NS_PER_S:.3f}) is {age_ns / NS_PER_S:.1f} s older than the image "
                    f"({image_ns / NS_PER_S:.3f}): taken as valid at the image; use one clock (use_sim_time) everywhere"
                )
                self._board.report("initial pose", "stamp", WARN, text)
                self._board.clear("initial pose", "stamp")
            stamp_ns = image_ns
        self._tracker.initialize(pose.map_from_base, pose.covariance, stamp_ns)

    def _feed_hint(self, image_ns: int) -> None:
        """Where nobody gave a pose: the one kept in the file, then a satellite fix."""
        if self._last_pose is not None:
            last, self._last_pose = self._last_pose, None
            self._tracker.initialize(last.map_from_base, last.prior_covariance(), image_ns)
            return
        georeference = self._localizer.georeference
        fix = None if georeference is None else self.inputs.take_fix()
        if fix is not None:
            try:
                self._tracker.initialize(*georeference.prior(fix.place, fix.enu_covariance), image_ns)
            except InputError as error:
                self._board.report("initial pose", "fix", WARN, f"{error}; it is ignored")

    # ---- status and diagnostics

    def _count(self, what: str) -> None:
        with self._counters_lock:
            setattr(self._counters, what, getattr(self._counters, what) + 1)

    def _drop(self, frame: ReceivedImage, message: str) -> None:
        self._count("dropped")
        self._publish_status(frame, message)

    def _reject(self, frame: ReceivedImage, rejection: Rejected) -> None:
        self._board.report(rejection.component, rejection.name, rejection.level, str(rejection))
        self._count("rejected")
        self._publish_status(frame, str(rejection))

    def _publish_status(self, frame: ReceivedImage, message: str, *details) -> None:
        with self._counters_lock:
            counters = replace(self._counters)
        self._outputs.status(frame.stamp_ns, self._state, message, self._map_name, counters, *details)

    def _note_time_offset(self, received: ReceivedImage) -> None:
        offset_ns = received.stamp_ns - stamp_to_ns(received.message.header.stamp)
        if received.stamp_ns > 0 and offset_ns != self._time_offset_ns and self._tracker is not None:
            self._time_offset_ns = offset_ns
            self._tracker.restart_odometry_check()

    def _judge_odometry(self) -> None:
        if self._setting("odom_source") == "none":
            return
        findings = self._tracker.check_odometry()
        known = {name: f"{value:.3f} +- {std:.3f}" for name, (value, std) in findings.known().items()}
        self._board.value("odometry", **{name: known.get(name, "not known yet") for name in FIGURES})
        translation, rotation = self._tracker.odometry.noise_factors
        self._board.value("odometry", noise_factors=f"{translation:.1f} translation, {rotation:.1f} rotation")
        warnings = findings.warnings(self._time_offset_ns / NS_PER_S)
        self._board.clear("odometry", *(name for name in WARNINGS if name not in warnings))
        for name, text in warnings.items():
            self._board.report("odometry", name, WARN, text)

    def _judge_calibration(self, report: CalibrationReport | None) -> None:
        if report is None:
            return
        found = f"{report.focal_ratio:.4f} ± {report.std:.4f}, of {report.images} images"
        self._board.value("calibration", focal_length_ratio=found)
        if report.wrong:
            self._board.report("calibration", "focal length", WARN, report.message)
        else:
            self._board.clear("calibration", "focal length")

    def _judge(self, result: TrackResult) -> None:
        """Diagnostics of a processed image."""
        self._untracked = 0 if result.state is TrackState.TRACKING else self._untracked + 1
        gates, alignment = self._tracker.options.gates, result.alignment
        self._board.value("localization", images_since_tracking=self._untracked)
        if alignment is not None:
            self._board.value(
                "localization", inlier_fraction=f"{alignment.inlier_fraction:.2f}",
                least_inlier_fraction=f"{gates.min_inlier_fraction:.2f}, {gates.min_inlier_fraction_search:.2f} without a prior",
                visible_fraction=f"{alignment.visible_fraction:.2f}", least_visible_fraction=f"{gates.min_visible_fraction:.2f}",
                cost=f"{alignment.cost:.4f}", iterations=alignment.iterations,
                prior_distance_m=f"{result.prior_distance_m:.3f}", prior_rotation_rad=f"{result.prior_rotation_rad:.4f}",
            )  # fmt: skip
        if result.state is TrackState.TRACKING and not result.message:
            self._board.clear("localization", "state")
        else:
            silent = result.state in (TrackState.LOST, TrackState.RELOCALIZING)
            text = f"{result.state.name.lower()}: {result.message}" + ("; no pose is published" if silent else "")
            self._board.report("localization", "state", ERROR if silent else WARN, text)
        if self._tracker.has_pose:
            self._board.clear("initial pose", "missing")
        else:
            text = "there is no pose to start from: publish one on initialpose (RViz: 2D Pose Estimate)"
            if self._tracker.can_relocalize:
                text = "no pose yet: it is looked for in the whole map; one on initialpose (RViz: 2D Pose Estimate) may help"
            self._board.report("initial pose", "missing", WARN, text)

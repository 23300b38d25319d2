# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The one thread that owns the tracker: images and requests in, poses out. Exists while the node is configured.

The executor's thread runs all callbacks, which only check and store. The worker takes images and requests from a `WorkQueue`,
waits for what belongs to an image's stamp (`FrameAssembly`), tracks, and publishes (`Outputs`). So the network never holds up
odometry, services and TF.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

from ..errors import InputError
from ..features import Execution
from ..localization import Localizer
from ..tracking.last_pose import LastPose, save_last_pose
from ..tracking.types import TrackResult, TrackState
from .diagnostics import ERROR, WARN, DiagnosticBoard, Health
from .frame_assembly import FrameAssembly
from .inputs import Inputs, Rejected
from .outputs import DebugOutputs, Outputs
from .parameters import FRAME_QUEUE_LIMIT, Value
from .work_queue import ReceivedImage, Request, WorkQueue

OpenLocalizer = Callable[[str, str, str, int, Execution], Localizer]


class Worker:
    """Subscriptions, the tracker's thread, and publishers.

    If the map cannot be used, the worker exists all the same, rejects images with the reason, and waits for `load_map`.

    Args:
        node: the node that owns it.
        setting: gives the value of a parameter by name.
        board: takes the diagnostics.
        open_localizer: `Localizer.open`.
        on_failure: called in the worker's thread when an error in the program ends it.
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
        self._localizer: Localizer | None = None
        self._state = TrackState.INITIALIZING
        # Shared by the worker and the callbacks
        self._pose_to_keep: LastPose | None = None
        self._paused = threading.Event()
        self._start_anew = threading.Event()
        self._publishing = threading.Lock()

        # Wakes the executor, which does not notice by itself that the worker has answered a request.
        self._answered = node.create_guard_condition(lambda: None)
        self._queue = WorkQueue(FRAME_QUEUE_LIMIT if setting("process_all_frames") else 1)
        self._outputs, self._debug = Outputs(node, setting), DebugOutputs(node, setting)
        self.inputs = Inputs(node, setting, board, self._on_image, self.restart, self._outputs.is_own)
        self.health = Health(board, setting)
        self._assembly = FrameAssembly(self.inputs, setting, board)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="localization")
        self._thread.start()
        try:
            ready.wait()
        except BaseException:  # a signal to stop: nobody else knows of the thread yet
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
        """Ends the thread and the publishers."""
        for request in self._queue.close():
            request.refuse("the node is being cleaned up")
        self._thread.join()
        self._node.destroy_guard_condition(self._answered)
        self._outputs.destroy()
        self._debug.destroy()

    def restart(self, reason: str) -> None:
        """Forgets all that belongs to the time before: clocks went back, or the node was deactivated."""
        self._board.report_once("localization", "time", WARN, f"{reason}: localization starts again")
        waiting = self._queue.clear_frames()
        with self._publishing:
            self._start_anew.set()
            self._outputs.fall_silent()
            self._debug.forget()
        self.inputs.forget()
        for frame in waiting:
            self._drop(frame, f"dropped: {reason}")

    def pause(self) -> None:
        """No image is used, and no pose and no transform is published, until `resume`."""
        with self._publishing:
            self._paused.set()
            self._outputs.fall_silent()
        self._board.report("localization", "paused", WARN, "paused: nothing is published; call ~/resume to go on")

    def resume(self) -> None:
        """Goes on from the last pose and the odometry since."""
        self._paused.clear()
        self._board.clear("localization", "paused")

    def load_map(self, path: str) -> Future:
        """Future of None, or of the InputError that says why the map cannot be used; then the old one stays."""
        return self._ask(lambda: self._change_map(path))

    def relocalize(self) -> Future:
        """Future of None, or of an InputError: the pose is forgotten and the whole map is searched for it."""
        return self._ask(self._forget_pose)

    def on_second(self) -> None:
        """Checks what only time shows, and writes the last pose to its file. For a timer."""
        self.inputs.check_silence()
        self._check_rivals()
        self.health.check_pace(self._paused.is_set())
        self._keep_pose()

    def repeat_transform(self) -> None:
        """Sends the transform again if it would soon be too old."""
        self._outputs.repeat_transform(self.inputs.newest_ns)

    @property
    def map_name(self) -> str:
        """File name of the map in use; empty without one."""
        return self._localizer.map_name if self._localizer is not None else ""

    def report_values(self) -> None:
        """Puts figures on the board: counters, state, times."""
        self.health.report_values(self.map_name, self._state)

    def _keep_pose(self) -> None:
        pose, path = self._pose_to_keep, self._setting("last_pose_file")
        if pose is None or not path:
            return
        self._pose_to_keep = None
        problem = ""
        try:
            save_last_pose(Path(path).expanduser(), pose)
        except InputError as error:
            problem = str(error)
        self._board.update("initial pose", "file", problem)

    def _check_rivals(self) -> None:
        others = self._outputs.pose_publishers() - 1
        text = f"{others} more publish our ~/pose: stop the other localizer, or give it a namespace"
        self._board.update("localization", "twin", f"{text} (a killed one still counts for some 20 s)" if others > 0 else "")

    # ---- callbacks

    def _on_image(self, message: Image | CompressedImage, stamp_ns: int, rejection: Rejected | None) -> None:
        self.health.count("received")
        arrival_ms = (self._node.get_clock().now().nanoseconds - stamp_ns) * 1e-6
        frame = ReceivedImage(message, stamp_ns, time.monotonic(), arrival_ms)
        if rejection is not None:
            self._reject(frame, rejection)
        elif self._paused.is_set():
            self._drop(frame, "dropped: paused")
        elif (dropped := self._queue.put(frame)) is not None:
            self._drop(dropped, "dropped: a newer image came before its turn")

    def _ask(self, work: Callable[[], None]) -> Future:
        request = Request(work, Future())
        request.future.add_done_callback(lambda _: self._answered.trigger())
        if not self._queue.ask(request):
            request.refuse("the node is being cleaned up")
        return request.future

    # ---- the thread

    def _work(self, ready: threading.Event) -> None:
        try:
            with torch.inference_mode():
                # Here, because compute threads belong to the thread that first asks for them.
                try:
                    self._use(self._load(self._setting("map")))
                except InputError as error:
                    text = f"{error}. Fix it and call ~/load_map, or start the node again: nothing is localized until then"
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
        weights, preset, max_points = (self._setting(name) for name in ("weights", "preset", "max_points"))
        execution = Execution(*(self._setting(name) for name in ("backend", "device", "precision")))
        localizer = self._open_localizer(map_path, weights, preset, max_points, execution)
        localizer.warm_up()
        # What exists now stays. Otherwise Python's collector visits it all every minute or so: a third of a million objects,
        # most of them the libraries', while every thread waits for 150 ms.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return localizer

    def _use(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self._board.value("map", network=localizer.network)
        self._new_tracker()
        self._board.clear("map", "load")

    def _new_tracker(self) -> None:
        tracker = self._localizer.tracker(relocalization=self._setting("relocalization"))
        self._assembly.use(tracker, self.map_name, self._localizer.georeference)

    def _change_map(self, path: str) -> None:
        self._use(self._load(path))
        self.restart(f"map {self.map_name} loaded")

    def _forget_pose(self) -> None:
        tracker = self._assembly.tracker
        if tracker is None:
            raise InputError("no map is loaded: call ~/load_map first")
        if tracker.can_relocalize:
            tracker.relocalize()
        else:
            tracker.reset()
        with self._publishing:
            self._outputs.fall_silent()

    def _process(self, received: ReceivedImage) -> None:
        began = time.monotonic()
        stages_ms = {"arrival_ms": received.arrival_ms, "queue_ms": (began - received.received_at) * 1e3}
        if self._start_anew.is_set():
            self._begin()
        assembly = self._assembly
        try:
            frame, base_from_camera = assembly.assemble(received, stages_ms)
            result = assembly.tracker.track(frame, base_from_camera)
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
                assembly.last_image_ns, self._state = received.stamp_ns, result.state
                self._outputs.result(result, assembly.twist)
        if outdated:
            self._drop(received, "dropped: paused or started again meanwhile")
            return
        now = time.monotonic()
        stages_ms |= {"publish_ms": (now - tracked) * 1e3, "frame_ms": (now - began) * 1e3}
        self.health.took(stages_ms["frame_ms"], (now - received.received_at) * 1e3)
        self.health.count("processed")
        self._publish_status(received, result.message, result, stages_ms)
        if result.state is TrackState.TRACKING:
            self._pose_to_keep = LastPose(self.map_name, received.stamp_ns, result.map_from_base, result.covariance)
        self.health.judge(result, assembly.tracker)
        if self._outputs.planar is not None:
            self._board.update("localization", "planar", self._outputs.planar.warning)
        if not self._setting("publish_tf"):
            self.health.judge_filter(result, self.inputs.published_pose(result.stamp_ns))
        self.health.judge_odometry(assembly.tracker, assembly.time_offset_ns)
        self._debug.result(frame, received.message.header.frame_id, result)
        self.health.judge_calibration(assembly.tracker)

    def _begin(self) -> None:
        self._start_anew.clear()
        self._assembly.forget()
        self._state = TrackState.INITIALIZING
        self.inputs.expect_start()
        if self._localizer is not None:
            self._new_tracker()

    # ---- outcomes of images

    def _drop(self, frame: ReceivedImage, message: str) -> None:
        self.health.count("dropped")
        self._publish_status(frame, message)

    def _reject(self, frame: ReceivedImage, rejection: Rejected) -> None:
        self._board.report(rejection.component, rejection.name, rejection.level, str(rejection))
        self.health.count("rejected")
        self._publish_status(frame, str(rejection))

    def _publish_status(
        self, frame: ReceivedImage, message: str, result: TrackResult | None = None, stages_ms: dict[str, float] | None = None
    ) -> None:
        counters = self.health.counters
        self._outputs.status(frame.stamp_ns, self._state, message, self.map_name, counters, result, stages_ms)

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
from ..tracking.options import TrackerOptions
from ..tracking.silence import LEAST_S
from ..tracking.types import TrackResult, TrackState
from .diagnostics import ERROR, OK, WARN, DiagnosticBoard, Health
from .frame_assembly import FrameAssembly
from .inputs import Inputs, Rejected
from .outputs import DebugOutputs, Outputs
from .parameters import FRAME_QUEUE_LIMIT, Value
from .rig_frames import RigFrames
from .work_queue import ReceivedImage, Request, WorkQueue

OpenLocalizer = Callable[[str, str, str, int, Execution], Localizer]
WORKER = "localization"
"""Name of the thread."""
_WATCH_S = 0.1
"""How often the worker looks whether images still come."""
_END_S = 0.5
"""So long it may take to finish an image when the node ends."""
_TELL_S = 5.0
"""How often the log tells how far compiling has come."""


class _Closed(Exception):
    """The node ends while the worker loads."""


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

        self._listens = self._loaded = False
        self._used_at, self._used_ns = 0.0, 0  # when an image was tracked: monotonic seconds, and by the node's clock
        self._compiling: tuple[float, int, int] | None = None  # since when, steps done, steps in all
        self._told_at = self._kept_at = 0.0

        # Wakes the executor, which does not notice by itself what the worker has done.
        self._answered = node.create_guard_condition(self._subscribe_when_loaded)
        self._queue = WorkQueue(FRAME_QUEUE_LIMIT if setting("process_all_frames") else 1)
        self._outputs, self._debug = Outputs(node, setting), DebugOutputs(node, setting)
        self.inputs = Inputs(node, setting, board, self._on_image, self.restart, self._outputs.is_own)
        self._rig = RigFrames(node, self.inputs, self._take) if self.inputs.is_rig else None
        self.health = Health(board, setting)
        self._assembly = FrameAssembly(self.inputs, setting, board)
        # Compiling cannot be interrupted: Python must be able to end without this thread.
        self._thread = threading.Thread(target=self._work, name=WORKER, daemon=True)
        self._thread.start()

    # ---- for the node

    def start(self) -> None:
        """Begins to listen, with the initial pose of the parameters; to images as soon as the map is loaded."""
        self.inputs.expect_start()
        self.inputs.subscribe()
        self._listens = True
        self._subscribe_when_loaded()

    def _subscribe_when_loaded(self) -> None:
        if self._listens and self._loaded and not self.inputs.hears_images:
            self.inputs.subscribe_to_images()

    def stop(self) -> None:
        """Stops listening and forgets the pose."""
        self._listens = False
        self.inputs.unsubscribe()
        self._start_again("deactivated")
        self._paused.clear()
        self._board.clear_all(keep=("map",))

    def close(self) -> None:
        """Ends the publishers, and the thread as soon as it can be: it may be compiling."""
        for request in self._queue.close():
            request.refuse("the node is being cleaned up")
        if threading.current_thread() is not self._thread:  # whose failure shuts the node down
            self._thread.join(_END_S)
        self._node.destroy_guard_condition(self._answered)
        if self._rig is not None:
            self._rig.destroy()
        self.inputs.close()
        self._outputs.destroy()
        self._debug.destroy()

    def restart(self, reason: str) -> None:
        """Forgets all that belongs to the time before: clocks went back, or another map is in use."""
        self._board.report_once("localization", "time", WARN, f"{reason}: localization starts again")
        self.inputs.is_first_start = True
        self._start_again(reason)

    def _start_again(self, reason: str) -> None:
        waiting = self._queue.clear_frames()
        with self._publishing:
            self._start_anew.set()
            self._outputs.fall_silent()
            self._debug.forget()
        self.inputs.forget()
        if self._rig is not None:
            self._rig.forget()
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

    def tell_progress(self) -> None:
        """Says how far compiling has come, if it takes long. For a timer."""
        compiling, now = self._compiling, time.monotonic()
        if compiling is None or now - max(compiling[0], self._told_at) < _TELL_S:
            return
        self._told_at = now
        began, done, of = compiling
        text = f"compiling for this machine: {done} of {of} steps in {now - began:.0f} s; only the first start takes so long"
        self._node.get_logger().info(text)

    def on_tick(self) -> None:
        """Sends the transform again if it would soon be too old. For a timer."""
        self._outputs.repeat_transform(self.inputs.newest_ns)

    @property
    def map_name(self) -> str:
        """File name of the map in use; empty without one."""
        return self._localizer.map_name if self._localizer is not None else ""

    def report_values(self) -> None:
        """Puts figures on the board: counters, state, times."""
        self.health.report_values(self.map_name, self._state)
        for camera in self.inputs.cameras.values() if self._rig is not None else ():
            camera.report_values()

    def _keep_pose(self) -> None:
        pose, path, rate = self._pose_to_keep, self._setting("last_pose_file"), self._setting("save_pose_rate")
        now = time.monotonic()
        if pose is None or not path or not rate or now - self._kept_at < 0.9 / rate:
            return
        self._kept_at = now
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

    def _on_image(self, camera: str, message: Image | CompressedImage, stamp_ns: int, rejection: Rejected | None) -> None:
        arrival_ms, shown_ns = (self._now_ns() - stamp_ns) * 1e-6, self.inputs.cameras[camera].shown_since(message, stamp_ns)
        image = ReceivedImage(message, stamp_ns, time.monotonic(), arrival_ms, camera, shown_ns=shown_ns)
        if self._rig is None:
            self._take(image, rejection)
        elif rejection is not None:
            self.inputs.refuse(rejection, camera, stamp_ns)
        else:
            self._rig.add(image)

    def _take(self, frame: ReceivedImage, rejection: Rejected | None = None) -> None:
        self.health.count("received")
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
            raise InputError("the node has been shut down: start it again")
        return request.future

    # ---- the thread

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                # Here, because compute threads belong to the thread that first asks for them.
                try:
                    self._use(self._load(self._setting("map")))
                except InputError as error:
                    text = f"{error}. Fix it and call ~/load_map, or start the node again: nothing is localized until then"
                    self._board.report("map", "load", ERROR, text)
                self._loaded = True
                self._answered.trigger()
                while not self._queue.closed:
                    job = self._queue.take(_WATCH_S)
                    if isinstance(job, Request):
                        job.settle()
                    elif job is not None:
                        self._process(job)
                    self._watch()
        except _Closed:
            pass
        except BaseException as error:
            if not self._queue.closed:
                self._on_failure(error)
        finally:
            for request in self._queue.close():
                request.refuse("the node is ending")

    def _load(self, map_path: str) -> Localizer:
        if not map_path:
            raise InputError("parameter map is empty: give the map file, for example map:=site.pixmap")
        if self._setting("threads"):
            torch.set_num_threads(self._setting("threads"))
        weights, preset, max_points = (self._setting(name) for name in ("weights", "preset", "max_points"))
        execution = Execution(*(self._setting(name) for name in ("backend", "device", "precision")))
        began = time.monotonic()
        self._board.report("map", "loading", OK, f"loading {map_path}")

        def tell(done: int, of: int) -> None:
            self._compiling = began, done, of
            if self._queue.closed:
                raise _Closed

        try:
            localizer = self._open_localizer(map_path, weights, preset, max_points, execution)
            localizer.warm_up(tell, self._rig is not None)
        finally:
            self._compiling = None
            self._board.clear("map", "loading")
        # What exists now stays. Otherwise Python's collector visits it all every minute or so: a third of a million objects,
        # most of them the libraries', while every thread waits for 150 ms.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        seconds = time.monotonic() - began
        self._node.get_logger().info(f"map: loaded {map_path} in {seconds:.1f} s, network {localizer.network}")
        return localizer

    def _use(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self._board.value("map", network=localizer.network)
        self._new_tracker()
        self._board.clear("map", "load")

    def _new_tracker(self) -> None:
        options = TrackerOptions(max_degraded_s=self._setting("max_dead_reckoning_s"))
        self._localizer.mount_check = self._setting("mount_check")
        tracker = self._localizer.tracker(options, relocalization=self._setting("relocalization"))
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
            received, frame, base_from_camera = assembly.assemble(received, stages_ms)
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
                assembly.last_image_ns = received.stamp_ns
                self._used_at, self._used_ns = time.monotonic(), self._now_ns()
                self._enter(result.state, result)
                self._outputs.result(result, assembly.twist)
        if outdated:
            self._drop(received, "dropped: paused or started again meanwhile")
            return
        now = time.monotonic()
        stages_ms |= {"publish_ms": (now - tracked) * 1e3, "frame_ms": (now - began) * 1e3}
        self.health.count("processed")
        for name, problem in result.cameras.items():
            self.inputs.cameras[name].judge(problem, result.stamp_ns)
        for name, problem in assembly.tracker.rig.calibrations.items() if result.cameras else ():
            self.inputs.cameras[name].board.update("calibration", "focal length", problem)
        self._publish_status(received, result.message or self.inputs.camera_problems, result, stages_ms)
        assembly.tracker.learn()
        if result.state is TrackState.TRACKING:
            self._pose_to_keep = LastPose(self.map_name, received.stamp_ns, result.map_from_base, result.covariance)
        self.health.judge(result, assembly.tracker)
        planar = self._outputs.planar
        self._board.update("localization", "planar", planar.warning if planar is not None else "")
        if not self._setting("publish_tf"):
            self.health.judge_filter(result, self.inputs.published_pose)
        self.health.judge_odometry(assembly.tracker, assembly.time_offset_ns)
        self._debug.result(frame, received.message.header.frame_id, result)
        self.health.judge_calibration(assembly.tracker)
        self.health.took(stages_ms["frame_ms"], (now - received.received_at) * 1e3, (time.monotonic() - now) * 1e3)

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _enter(self, state: TrackState, result: TrackResult | None = None) -> None:
        if state is self._state:
            return
        text = f"{self._state.name} -> {state.name}"
        if state is TrackState.TRACKING and self._state is not TrackState.DEGRADED:
            x, y, z = result.map_from_base[:3, 3].tolist()
            text += f": pose found at x={x:.2f} y={y:.2f} z={z:.2f}"
        self._node.get_logger().info(text)
        self._state = state

    def _watch(self) -> None:
        """While no image can be tracked: dead reckoning ends in time."""
        tracker = self._assembly.tracker
        silent = time.monotonic() - self._used_at > LEAST_S and self._state in (TrackState.TRACKING, TrackState.DEGRADED)
        if tracker is None or not silent or self._start_anew.is_set() or self._paused.is_set():
            return
        stamp_ns = self._assembly.catch_up(max(self._now_ns() - self._used_ns, 0))
        silent_s = tracker.watch(stamp_ns)
        if not silent_s or tracker.state is TrackState.TRACKING:
            return
        with self._publishing:
            if self._start_anew.is_set() or self._paused.is_set():
                return
            changed = tracker.state is not self._state
            self._enter(tracker.state)
            if tracker.state is TrackState.LOST:
                self._outputs.lose()
        text = f"no image could be used for {silent_s:.1f} s; {self.inputs.describe_images()}"
        self.health.report_state(tracker.state, f"{tracker.state.name.lower()}: {text}")
        if changed:
            counters = self.health.counters
            self._outputs.status(stamp_ns, self._state, text, self.map_name, counters)

    def _begin(self) -> None:
        self._start_anew.clear()
        self._assembly.forget()
        self.health.forget_filter()
        self._state = TrackState.INITIALIZING
        self.inputs.expect_start()
        if self._localizer is not None:
            self._new_tracker()

    # ---- outcomes of images

    def _drop(self, frame: ReceivedImage, message: str) -> None:
        self.health.count("dropped")
        self._publish_status(frame, message)

    def _reject(self, frame: ReceivedImage, rejection: Rejected) -> None:
        self.inputs.refuse(rejection)
        self.health.count("rejected")
        self._publish_status(frame, str(rejection))

    def _publish_status(
        self, frame: ReceivedImage, message: str, result: TrackResult | None = None, stages_ms: dict[str, float] | None = None
    ) -> None:
        counters = self.health.counters
        self._outputs.status(frame.stamp_ns, self._state, message, self.map_name, counters, result, stages_ms)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node: `Inputs` in, `Tracker`, `Outputs` out (docs/node.md).

The executor's thread runs all callbacks, each of which only checks and stores. One worker thread owns the tracker: it
takes images from `FrameQueue`, waits for what belongs to their stamps, and publishes. So odometry and TF are never held
up by the network.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistWithCovariance
from rcl_interfaces.msg import SetParametersResult
from rclpy._rclpy_pybind11 import RCLError
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from ..errors import InputError
from ..tracking.types import CameraFrame, TrackResult, TrackState
from . import conversions
from .conversions import NS_PER_S
from .diagnostics import ERROR, WARN, DiagnosticBoard
from .engine import Engine
from .frames import FrameQueue, ReceivedImage
from .images import decode_image
from .inputs import JUMP_BACK_NS, Inputs, Rejected
from .outputs import Counters, Outputs
from .parameters import BY_NAME, FRAME_QUEUE_LIMIT, PARAMETERS, Value, check_values

_MAX_INITIAL_POSE_AGE_NS = 10 * NS_PER_S
"""How long ago an initial pose may have been true: as long as the tracker keeps odometry."""


class LocalizationNode(Node):
    """See the module and docs/node.md. load_engine: called with the parameters map, weights and max_points."""

    def __init__(self, load_engine: Callable[[str, str, int], Engine] = Engine, **node_arguments) -> None:
        super().__init__("localization_node", **node_arguments)
        self.failure: BaseException | None = None
        """What ended the worker, if it was an error in the program."""
        self._declare_parameters()
        self._board = DiagnosticBoard(self._log_condition)
        self._engine = self._load(load_engine)
        self._tracker = self._engine.tracker() if self._engine is not None else None
        self._map_name = self._engine.map_name if self._engine is not None else ""
        self._board.value("map", file=self._map_name)

        # The worker's own
        self._state = TrackState.INITIALIZING
        self._last_image_ns: int | None = None
        self._twist: TwistWithCovariance | None = None
        # Shared by the worker and the callbacks
        self._counters = Counters()
        self._counters_lock = threading.Lock()
        self._time_jumped = threading.Event()
        self._frame_ms: deque[float] = deque(maxlen=100)
        self._delay_ms: deque[float] = deque(maxlen=100)

        self._frames = FrameQueue(FRAME_QUEUE_LIMIT if self._setting("process_all_frames") else 1)
        self._inputs = Inputs(self, self._setting, self._board, self._on_image, self._on_time_jump)
        self._outputs = Outputs(self, self._setting)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._inputs.expect_start()
        warm = threading.Event()
        self._worker = threading.Thread(target=self._work, args=(warm,), name="localization")
        self._worker.start()
        warm.wait()
        try:
            self._start_listening()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the worker; the node can be destroyed then."""
        self._frames.close()
        self._worker.join()

    # ---- set-up

    def _declare_parameters(self) -> None:
        for parameter in PARAMETERS:
            self.declare_parameter(parameter.name, parameter.default, conversions.parameter_descriptor(parameter))
        self._values = {parameter.name: self.get_parameter(parameter.name).value for parameter in PARAMETERS}
        check_values(self._values)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def _setting(self, name: str) -> Value:
        return self._values[name]

    def _on_set_parameters(self, parameters: list[rclpy.Parameter]) -> SetParametersResult:
        """Checks new values and applies those that may change; rclpy refuses the others by their descriptors."""
        new = {p.name: p.value for p in parameters if p.name in BY_NAME and BY_NAME[p.name].live}
        try:
            check_values(new)
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._values = self._values | new
        return SetParametersResult(successful=True)

    def _load(self, load_engine: Callable[[str, str, int], Engine]) -> Engine | None:
        if self._setting("threads"):
            torch.set_num_threads(self._setting("threads"))
        try:
            return load_engine(self._setting("map"), self._setting("weights"), self._setting("max_points"))
        except InputError as error:
            text = f"{error}. Mend it and start the node again: nothing is localized until then"
            self._board.report("map", "load", ERROR, text)
            return None

    def _start_listening(self) -> None:
        # Timers follow the machine's clock: where simulated time has not begun, the node still says what is wrong.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0 / self._setting("tf_publish_rate"), self._on_tick, clock=steady)
        self.create_timer(1.0, self._on_second, clock=steady)
        threshold = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-JUMP_BACK_NS), on_clock_change=False
        )
        self._jump_handle = self.get_clock().create_jump_callback(
            threshold, post_callback=lambda jump: self._on_time_jump("the clock went back")
        )
        self._inputs.subscribe()

    # ---- callbacks

    def _on_image(self, message: Image | CompressedImage, stamp_ns: int) -> None:
        self._count("received")
        dropped = self._frames.put(ReceivedImage(message, stamp_ns, time.monotonic()))
        if dropped is not None:
            self._drop(dropped, "dropped: a newer image came before its turn")

    def _on_time_jump(self, reason: str) -> None:
        """Forgets all that belongs to the time before."""
        self._board.report("localization", "time", WARN, f"{reason}: localization starts again")
        self._board.clear("localization", "time")
        waiting = self._frames.clear()
        self._time_jumped.set()
        self._inputs.forget()
        self._outputs.fall_silent()
        for frame in waiting:
            self._drop(frame, f"dropped: {reason}")

    def _on_tick(self) -> None:
        self._outputs.repeat_transform(self._inputs.newest_ns)
        if self._board.take_changed():
            self._publish_diagnostics()

    def _on_second(self) -> None:
        self._inputs.check_silence()
        self._publish_diagnostics()

    # ---- worker

    def _work(self, warm: threading.Event) -> None:
        try:
            with torch.inference_mode():
                # Here, because compute threads belong to the thread that first asks for them.
                if self._engine is not None:
                    self._engine.warm_up()
                warm.set()
                while (frame := self._frames.take()) is not None:
                    self._process(frame)
        except BaseException as error:
            # A node that looks alive and does nothing is worse than one that ends and is started again.
            if self.context.ok():
                self.failure = error
                self.context.try_shutdown()
        finally:
            warm.set()

    def _process(self, received: ReceivedImage) -> None:
        began = time.monotonic()
        if self._time_jumped.is_set():
            self._start_again()
        try:
            frame, base_from_camera = self._assemble(received)
            result = self._tracker.track(frame, base_from_camera)
        except Rejected as rejection:
            self._reject(received, rejection)
            return
        except InputError as error:
            self._reject(received, Rejected("image", "unusable", f"{error}; the image is not used"))
            return
        if self._time_jumped.is_set():
            self._drop(received, "dropped: time jumped back meanwhile")
            return
        self._last_image_ns, self._state = received.stamp_ns, result.state
        self._outputs.result(result, self._twist)
        now = time.monotonic()
        self._frame_ms.append((now - began) * 1e3)
        self._delay_ms.append((now - received.received_at) * 1e3)
        self._count("processed")
        self._publish_status(received, result.message, result, self._frame_ms[-1])
        self._judge(result)

    def _start_again(self) -> None:
        self._time_jumped.clear()
        self._last_image_ns = self._twist = None
        self._state = TrackState.INITIALIZING
        self._inputs.expect_start()
        if self._engine is not None:
            self._tracker = self._engine.tracker()

    def _assemble(self, received: ReceivedImage) -> tuple[CameraFrame, torch.Tensor]:
        """The frame and base_from_camera, with odometry and initial pose given to the tracker. Raises Rejected."""
        stamp_ns = received.stamp_ns
        if self._tracker is None:
            raise Rejected("map", "load", "no map is loaded: see the error at the start, mend it, start the node again")
        if stamp_ns <= 0:
            raise Rejected("image", "stamp", "images have no time stamp: the driver must fill in header.stamp")
        if self._last_image_ns is not None and stamp_ns <= self._last_image_ns:
            late_s = (self._last_image_ns - stamp_ns) / NS_PER_S
            text = f"an image is {late_s:.3f} s older than the last one: it is not used; look for a second publisher"
            raise Rejected("image", "order", text, WARN)
        try:
            pixels = decode_image(received.message)
        except InputError as error:
            raise Rejected("image", "format", f"{error}; the image is not used") from None
        deadline = received.received_at + self._setting("odometry_wait_s")
        camera = self._inputs.camera(deadline)
        height, width = pixels.shape[:2]
        if (width, height) != (camera.width, camera.height):
            topic = self._inputs.topic("camera_info_topic")
            text = (
                f"images are {width}x{height} but {topic} says {camera.width}x{camera.height}: publish the calibration "
                "of this image size (binning and roi are understood)"
            )
            raise Rejected("calibration", "size", text)
        # The network runs while the odometry of the image's stamp is on its way.
        frame = self._tracker.prepare(CameraFrame(stamp_ns, pixels, camera))
        base_from_camera = self._inputs.base_from_camera(received.message.header.frame_id, stamp_ns, deadline)
        self._feed_odometry(stamp_ns, deadline)
        self._feed_initial_pose(stamp_ns)
        self._board.clear("image", "stamp", "order", "format", "unusable")
        self._board.clear("calibration", "missing", "size")
        return frame, base_from_camera

    def _feed_odometry(self, stamp_ns: int, deadline: float) -> None:
        source = self._setting("odom_source")
        if source == "tf":
            self._tracker.add_odometry(stamp_ns, self._inputs.odom_from_base(stamp_ns, deadline))
        if source != "topic":
            return
        for message in self._inputs.take_odometry(stamp_ns, deadline):
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
        pose = self._inputs.take_initial_pose()
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

    def _judge(self, result: TrackResult) -> None:
        """Diagnostics of a processed image."""
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
            self._board.report("initial pose", "missing", WARN, text)

    def _publish_diagnostics(self) -> None:
        with self._counters_lock:
            self._board.value("image", **vars(self._counters))
        self._board.value("localization", state=self._state.name)
        for name, values in (("frame_ms", tuple(self._frame_ms)), ("delay_ms", tuple(self._delay_ms))):
            if values:
                p50, p95 = np.percentile(values, (50, 95))
                self._board.value("localization", **{f"{name}_p50": f"{p50:.1f}", f"{name}_p95": f"{p95:.1f}"})
        name = self.get_fully_qualified_name().lstrip("/")
        message = DiagnosticArray(status=self._board.statuses(name, self._map_name))
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _log_condition(self, level: bytes, text: str) -> None:
        # Two calls in two lines: rclpy refuses another severity from the same line.
        if level == ERROR:
            self.get_logger().error(text)
        else:
            self.get_logger().warning(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the node until it is told to stop: exit code 0, 2 for parameters that cannot be used, 1 for our errors."""
    # Callbacks must not wait long for the interpreter while the worker computes.
    sys.setswitchinterval(1e-3)
    node = None
    try:
        rclpy.init(args=arguments)
        node = LocalizationNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except (InputError, ParameterException, NameValidationException) as error:
        print(f"localization_node: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RCLError:
        if rclpy.ok():
            raise
        # The signal to stop came while something was being published.
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    if node is not None and node.failure is not None:
        traceback.print_exception(node.failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

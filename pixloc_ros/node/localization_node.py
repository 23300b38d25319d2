# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node: life cycle, parameters, services and diagnostics around a `Worker` (docs/robot.md)."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future
from std_srvs.srv import Trigger

from ..errors import InputError
from ..localization import Localizer
from ..srv import LoadMap, SetPose
from . import conversions
from .diagnostics import ERROR, WARN, DiagnosticBoard
from .nav2 import ManagerBond, amcl_services
from .odometry_input import JUMP_BACK_NS
from .parameters import BY_NAME, PARAMETERS, Value, check_values
from .worker import WORKER, OpenLocalizer, Worker


def _explained(transition):
    """Makes a transition that fails report why; rclpy would drop the exception."""

    @functools.wraps(transition)
    def explained(node: LocalizationNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node.explain(error)
            return TransitionCallbackReturn.FAILURE

    return explained


class LocalizationNode(LifecycleNode):
    """The node `localization_node`.

    Configured, it has loaded the map. Active, it listens and localizes. With the parameter `autostart` it is active at once.

    Args:
        open_localizer: makes a localizer of a map, weights, preset, number of points and execution.
        node_arguments: of rclpy's node.

    Attributes:
        failure: the error in the program that ended the worker.
    """

    def __init__(self, open_localizer: OpenLocalizer = Localizer.open, **node_arguments) -> None:
        super().__init__("localization_node", **node_arguments)
        self.failure: BaseException | None = None
        self._open_localizer = open_localizer
        self._worker: Worker | None = None
        self._active = False
        self._values: dict[str, Value] = {}
        self._declare_parameters()
        self._board = DiagnosticBoard(self._log_condition)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Timers follow the machine's clock: before simulated time begins, the node still says what is wrong.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._every_second = self.create_timer(1.0, self._on_second, clock=self._steady)
        self._refusal: Exception | None = None
        if self._setting("autostart"):
            try:
                if self.trigger_configure() is TransitionCallbackReturn.SUCCESS:
                    self.trigger_activate()
                if self._refusal is not None:
                    raise self._refusal
            except BaseException:  # also a signal to stop that comes meanwhile: the worker must not outlive the node
                self._close()
                raise

    def destroy_node(self) -> None:
        """Ends the worker and destroys the node. Nobody may spin it any more."""
        self._close()
        super().destroy_node()

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    # ---- life cycle

    @_explained
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Creates publishers and services; the worker begins to load the map. Diagnostics report one that cannot be used."""
        self._worker = Worker(self, self._setting, self._board, self._open_localizer, self._on_failure)
        worker = self._worker
        services = (  # name, type, action, whether the node must be active
            ("load_map", LoadMap, lambda request: worker.load_map(request.map), False),
            ("relocalize", Trigger, lambda _: worker.relocalize(), True),
            ("set_pose", SetPose, lambda request: worker.inputs.set_initial_pose(request.pose), True),
            ("pause", Trigger, lambda _: worker.pause(), True),
            ("resume", Trigger, lambda _: worker.resume(), True),
        )
        self._bond = ManagerBond(self, 0.0 if self._setting("autostart") else self._setting("bond_heartbeat_period"))
        # A group of their own: the others go on while one of these waits for the worker.
        group = ReentrantCallbackGroup()
        self._own_services = [
            self.create_service(kind, f"~/{name}", functools.partial(self._serve, *how), callback_group=group)
            for name, kind, *how in services
        ]
        if self._setting("amcl_interface"):
            self._own_services += amcl_services(self, lambda: self._when_active(worker.relocalize), group)
        return super().on_configure(state)

    @_explained
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins to listen."""
        self._tick = self.create_timer(1.0 / self._setting("tf_publish_rate"), self._on_tick, clock=self._steady)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-JUMP_BACK_NS), on_clock_change=False)
        self._jump_handle = self.get_clock().create_jump_callback(
            threshold, post_callback=lambda jump: self._worker.restart("the clock went back")
        )
        self._active = True
        try:
            self._worker.start()
            self._bond.start()
        except BaseException:
            self._stop_listening()
            raise
        self._board.clear("localization", "transition")
        self.get_logger().info("active")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops listening; the pose is forgotten, the map stays loaded."""
        self._stop_listening()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to the beginning: all parameters can be set then."""
        for service in self._own_services:
            self.destroy_service(service)
        self._close()
        self._board.clear_all()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends all that runs."""
        if self._active:
            self._stop_listening()
        self._close()
        return super().on_shutdown(state)

    def explain(self, error: Exception) -> None:
        """Reports why a transition was refused."""
        self._refusal = error
        self._board.report("localization", "transition", ERROR, f"{' '.join(str(error).split())}; fix it and try again")

    def _stop_listening(self) -> None:
        self._active = False
        self._bond.stop()
        self.destroy_timer(self._tick)
        self._jump_handle.unregister()
        self._worker.stop()

    def _on_failure(self, error: BaseException) -> None:
        # A node that looks alive and does nothing is worse than one that ends and is started again.
        if self.context.ok():
            self.failure = error
            self.context.try_shutdown()

    # ---- parameters

    def _declare_parameters(self) -> None:
        for parameter in PARAMETERS:
            self.declare_parameter(parameter.name, parameter.default, conversions.parameter_descriptor(parameter))
        self._values = {parameter.name: self.get_parameter(parameter.name).value for parameter in PARAMETERS}
        check_values(self._values)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def _setting(self, name: str) -> Value:
        if name == "publish_tf":
            return self._values["publish_tf"] and self._values["tf_broadcast"]
        return self._values[name]

    def _on_set_parameters(self, parameters: list[rclpy.Parameter]) -> SetParametersResult:
        """Checks new values. Most may change only before the node is configured."""
        new = {p.name: p.value for p in parameters if p.name in BY_NAME}
        fixed = [name for name in new if not BY_NAME[name].live]
        if fixed and self._worker is not None:
            reason = f"{', '.join(fixed)} cannot change while the node is configured: deactivate and clean up first"
            return SetParametersResult(successful=False, reason=reason)
        try:
            check_values(self._values | new)
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._values = self._values | new
        return SetParametersResult(successful=True)

    # ---- services

    def _when_active(self, action: Callable[..., Future | None], *arguments) -> Future | None:
        if not self._active:
            raise InputError("the node is not active: activate it first")
        return action(*arguments)

    async def _serve(self, action: Callable[[object], Future | None], needs_active: bool, request, response):
        """Answers a service. The action gets the request; it raises InputError, or gives a future of one or of None."""
        error = None
        try:
            pending = self._when_active(action, request) if needs_active else action(request)
            if pending is not None:
                error = await pending
        except InputError as refused:
            error = refused
        response.success, response.message = error is None, "" if error is None else str(error)
        return response

    # ---- diagnostics

    def _on_tick(self) -> None:
        self._worker.on_tick()
        if self._board.take_changed():
            self._publish_diagnostics()

    def _on_second(self) -> None:
        if self._worker is not None:
            self._worker.tell_progress()
        if self._active:
            self._worker.on_second()
        self._publish_diagnostics()

    def _publish_diagnostics(self) -> None:
        map_name = ""
        if self._worker is not None:
            self._worker.report_values()
            map_name = self._worker.map_name
        name = self.get_fully_qualified_name().lstrip("/")
        message = DiagnosticArray(status=self._board.statuses(name, map_name))
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _log_condition(self, level: bytes, text: str) -> None:
        # A line each: rclpy refuses another severity from the same line.
        if level == ERROR:
            self.get_logger().error(text)
        elif level == WARN:
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the node until it is stopped: exit code 0, 2 for parameters that cannot be used, 1 for errors in the program."""
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
    except RuntimeError:  # RCLError and InvalidHandle among them
        if not _ends_soon():
            raise
        # The signal to stop came while rclpy was publishing, making or taking something: then it cannot convert the message.
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    code = 0
    if node is not None and node.failure is not None:
        traceback.print_exception(node.failure)
        code = 1
    if any(isinstance(thread, threading.Thread) and thread.name == WORKER for thread in threading.enumerate()):
        # It compiles or loads, for a minute perhaps, and Python would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _ends_soon(seconds: float = 1.0) -> bool:
    """Whether a signal came: rclpy ends its context from another thread, a moment later."""
    deadline = time.monotonic() + seconds
    while rclpy.ok() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not rclpy.ok()


if __name__ == "__main__":
    sys.exit(main())

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`localization_node` as a process of its own, and a node of this process that talks to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ..errors import InputError

NODE = "/localization_node"
"""Full name of the node in the process."""
START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0


class NodeDied(InputError):
    """The node ended by itself; its log says why."""


class NodeProcess:
    """A running `localization_node`. As a context manager it stops the node at the end of the block.

    The node talks only to processes on this machine, unless ROS_AUTOMATIC_DISCOVERY_RANGE says otherwise. It also ends when this
    process ends without stopping it, even if this process is killed.

    Args:
        parameters: node parameters by name.
        log: file that the node's output is appended to.
    """

    def __init__(self, parameters: Mapping[str, object], log: Path) -> None:
        _stay_on_this_machine()
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in parameters.items()}
        words = [word for name, text in texts.items() for word in ("-p", f"{name}:={text}")]
        with open(log, "a", encoding="utf-8") as file:
            # In a session of its own: Ctrl-C reaches the node through `stop` only.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pixloc_ros.node", "--ros-args", *words],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        # Its input ends with this process. Not PR_SET_PDEATHSIG: that would act when the thread that started the node ends.
        guard = f"exec >/dev/null 2>&1; read _; kill -INT {self.pid}; sleep 5; kill -KILL {self.pid}"
        self._guard = subprocess.Popen(["sh", "-c", guard], stdin=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self.process.pid

    def output(self) -> str:
        """All that the node has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raises NodeDied, with the node's error message, if it has ended."""
        if self.process.poll() is not None:
            lines = [line for line in self.output().splitlines() if line.strip()] or ["it printed nothing"]
            line = next((line for line in reversed(lines) if line.startswith("localization_node: ")), lines[-1])
            raise NodeDied(f"the node ended with code {self.process.returncode}: {line} (see {self.log})")

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until a condition is true.

        Args:
            condition: called again and again.
            what: the node's failure, for the error message ("did not ...").
            timeout_s: longest wait, in seconds.

        Raises:
            NodeDied: the node ended meanwhile.
            InputError: time is up.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise InputError(f"the node {what} within {timeout_s:g} s: see its log {self.log}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the node, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self) -> int:
        """Interrupts the node, and kills it if it does not end. Returns its exit code."""
        self.send(signal.SIGINT)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._guard.kill()
        self._guard.communicate()
        return self.process.wait()


@contextlib.contextmanager
def spinning_node(make: str | Callable[[rclpy.Context], Node], context: rclpy.Context | None = None) -> Iterator[Node]:
    """A node that a thread of its own spins until the block ends.

    Args:
        make: the node's name, or what makes it.
        context: ROS context of the node; None for one of its own.
    """
    _stay_on_this_machine()
    own = rclpy.Context() if context is None else None
    if own is not None:
        rclpy.init(context=own, args=[])
    context = context or own
    node = rclpy.create_node(make, context=context) if isinstance(make, str) else make(context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        if own is not None:
            rclpy.try_shutdown(context=own)


def _stay_on_this_machine() -> None:
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A bag through the live node: starts `localization_node` as a process of its own, plays, records, stops it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import rclpy
import torch
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

from ..errors import InputError
from ..evaluation.live_run import Recording
from ..evaluation.offline import initial_covariance
from ..evaluation.usage import UsageMeter
from ..io.bags import BagReader
from .bag_player import BagPlayer
from .recorder import Recorder

MAP_FRAME = "map"
_LOCALIZER = "/localization_node"
_START_TIMEOUT_S = 120.0
_SILENCE_S = 5.0
"""The node is given up on when images are outstanding and nothing has come for so long."""
_STOP_TIMEOUT_S = 10.0
_ODOMETRY_WAIT_S, _LONGEST_ODOMETRY_WAIT_S = 0.5, 5.0


class NodeDied(InputError):
    """The node ended by itself; its log says why."""


@dataclass(frozen=True)
class ReplayOptions:
    """rate: seconds of the bag a second. all_frames: the node works through every image instead of the newest one.
    parameters: further node parameters."""

    rate: float = 1.0
    all_frames: bool = False
    weights: str = "compact"
    preset: str = "balanced"
    parameters: tuple[tuple[str, str], ...] = ()


def replay(
    map_path: Path,
    bag: BagReader,
    start_ns: int,
    map_from_base: torch.Tensor,
    log: Path,
    options: ReplayOptions,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> Recording:
    """Play the bag to a fresh node and return what was heard.

    map_from_base: where the drive begins, at stamp start_ns. log: file for the node's output. Only processes on this
    machine are spoken to, unless ROS_AUTOMATIC_DISCOVERY_RANGE says otherwise. Raises `NodeDied`, and InputError where the
    node does not come up.
    """
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # Started first: it loads while the player is made.
        process = stack.enter_context(_localizer(_arguments(map_path, bag, options), log))
        ros = stack.enter_context(_ros_context())
        node = rclpy.create_node("pixloc_replay", context=ros)
        recorder = Recorder(node, _LOCALIZER, MAP_FRAME, bag.base_frame, bag.camera_frame)
        player = BagPlayer(node, bag, MAP_FRAME, recorder.sent)
        spinning = stack.enter_context(_spinning(node, ros))

        def alive() -> None:
            if process.poll() is not None:
                raise NodeDied(f"the node ended with code {process.returncode}: {_last_line(log)} (see {log})")

        player.wait_for_listener(alive, _START_TIMEOUT_S)
        while not recorder.hears_node():
            alive()
            time.sleep(0.05)
        meter = UsageMeter(process.pid)
        player.play(options.rate, start_ns, map_from_base, initial_covariance(), alive, progress)
        _wait_for_reports(recorder, alive)
        usage = meter.read()
        spinning.set()
        recording = recorder.finish(player.last_odometry_ns)
        recording.usage = usage
        return recording


def _arguments(map_path: Path, bag: BagReader, options: ReplayOptions) -> list[str]:
    source = {None: "none", "tf": "tf"}.get(bag.odometry_topic, "topic")
    parameters = {
        "map": str(map_path.resolve()),
        "weights": options.weights,
        "preset": options.preset,
        "use_sim_time": "true",
        "image_topic": bag.image_topic.removesuffix("/compressed"),
        "camera_info_topic": bag.camera_info_topic,
        "image_transport": "compressed" if bag.image_compressed else "raw",
        "image_reliability": "reliable",
        "odom_source": source,
        "global_frame_id": MAP_FRAME,
        "odom_frame_id": bag.odom_frame,
        "base_frame_id": bag.base_frame,
        "process_all_frames": str(options.all_frames).lower(),
    }
    # The node waits by the wall clock: where the bag is played slowly, odometry comes later, and a machine that plays and
    # records besides may hold a message up. A pose from extrapolated odometry would not agree with the TF that follows.
    parameters["odometry_wait_s"] = f"{min(_ODOMETRY_WAIT_S / min(options.rate, 1.0), _LONGEST_ODOMETRY_WAIT_S):.3f}"
    if source == "topic":
        parameters["odom_topic"] = bag.odometry_topic
    if bag.options.time_offset_s:
        parameters["time_offset"] = f"{bag.options.time_offset_s:.9f}"
    parameters.update(options.parameters)
    return [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]


@contextlib.contextmanager
def _localizer(arguments: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """The node as a process, stopped by the end."""
    command = [sys.executable, "-m", "pixloc_ros.node.localization_node", "--ros-args", *arguments]
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextlib.contextmanager
def _ros_context() -> Iterator[rclpy.Context]:
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    try:
        yield context
    finally:
        rclpy.try_shutdown(context=context)


@contextlib.contextmanager
def _spinning(node: rclpy.node.Node, context: rclpy.Context) -> Iterator[threading.Event]:
    """Serves the node's callbacks in a thread until the event given is set or the block ends."""
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    stop = threading.Event()

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)

    thread = threading.Thread(target=spin, name="recorder")
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()
        executor.shutdown()
        node.destroy_node()


def _wait_for_reports(recorder: Recorder, alive: Callable[[], None]) -> None:
    left, changed_s = recorder.outstanding(), time.monotonic()
    while left and time.monotonic() - changed_s < _SILENCE_S:
        alive()
        time.sleep(0.05)
        now = recorder.outstanding()
        if now != left:
            left, changed_s = now, time.monotonic()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"

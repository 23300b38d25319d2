# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A node under test and a simulated robot that feeds it, with a fault for a while: what `faults.py` runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from pixloc_ros.msg import LocalizationStatus
from pixloc_ros.srv import LoadMap
from sensor_msgs.msg import CameraInfo

from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.usage import memory_mib
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.node import conversions
from pixloc_ros.node.conversions import NS_PER_S, stamp_from_ns, stamp_to_ns
from pixloc_ros.rig import robot
from pixloc_ros.rig.node_process import NODE, NodeProcess, spinning_node
from pixloc_ros.tracking.types import TrackState
from pixloc_sim.recordings import SimulationOptions, simulate

WRONG = (0.25, 2.0)
"""Metres, degrees: a pose given as TRACKING that is further off is wrong."""
BEGIN_S, END_S, SECONDS = 2.5, 4.5, 12.0
"""When in the drive the fault is present, and how long the drive is."""


@dataclass(frozen=True)
class Event:
    """Something to send at a time of the drive. true_ns: stamp of the robot's place in an image."""

    at_s: float
    topic: str
    message: object
    true_ns: int = 0

    @property
    def stamp_ns(self) -> int:
        return stamp_to_ns(self.message.header.stamp)

    def moved(self, seconds: float) -> Event:
        """With another stamp."""
        header = copy(self.message.header)
        header.stamp = stamp_from_ns(self.stamp_ns + round(seconds * NS_PER_S))
        return self.having(header=header)

    def late(self, seconds: float) -> Event:
        """Sent later, with the same stamp."""
        return replace(self, at_s=self.at_s + seconds)

    def having(self, **fields) -> Event:
        """With other values in fields of the message."""
        message = copy(self.message)
        for name, value in fields.items():
            setattr(message, name, value)
        return replace(self, message=message)

    @property
    def pixels(self) -> np.ndarray:
        m = self.message
        return np.frombuffer(m.data, np.uint8).reshape(m.height, m.width, -1).squeeze()

    def showing(self, pixels: np.ndarray) -> Event:
        """With another picture."""
        return replace(self, message=robot.image_message(np.ascontiguousarray(pixels), self.stamp_ns))

    def along(self, metres: float, pose: torch.Tensor | None = None) -> Event:
        """Odometry that is moved along its x axis, with the same twist."""
        message = deepcopy(self.message)
        if pose is not None:
            message.pose.pose = conversions.matrix_to_pose(pose)
        message.pose.pose.position.x += metres
        return replace(self, message=message)


@dataclass
class Drive:
    """What a healthy robot sends, in order of time, with the truth, the calibration and base_link -> camera."""

    map_path: Path
    events: list[Event]
    truth: Trajectory
    info: CameraInfo
    mount: TransformStamped
    pose: PoseWithCovarianceStamped


def make_drive(folder: Path, rate_hz: float) -> Drive:
    """A simulated drive, kept in the folder for the next time, and its map."""
    scene, map_path = _places(folder, rate_hz)
    if not scene.is_dir():
        simulate(scene, SimulationOptions(seconds=SECONDS, rate_hz=rate_hz, width=320, height=240, texel=0.02, seed=5))
    # Made anew each time: the weights may have changed.
    build_map_from_colmap(scene / "map", scene / "images", load_extractor())[0].save(map_path)
    return read_drive(folder, rate_hz)


def _places(folder: Path, rate_hz: float) -> tuple[Path, Path]:
    return folder / f"scene_{rate_hz:g}hz", folder / f"site_{rate_hz:g}hz.pixmap"


def read_drive(folder: Path, rate_hz: float) -> Drive:
    """What `make_drive` has left in the folder."""
    scene, map_path = _places(folder, rate_hz)
    with BagReader(scene / "drive") as bag:
        truth = bag.truth()
        start_ns, start = offline.first_pose(bag, truth, None)
        mount = conversions.transform_stamped("base_link", "camera_optical", 0, bag.base_from_camera)
        events, camera = [], None
        for item in bag.events():
            at_s = (item.stamp_ns - start_ns) / NS_PER_S
            if isinstance(item, CameraFrame):
                camera = item.camera
                # Images come a little after their stamp, as from a real camera.
                events.append(Event(at_s + 0.02, "image", robot.image_message(item.image, item.stamp_ns), item.stamp_ns))
            else:
                message = robot.odometry_message(item.stamp_ns, item.odom_from_base, item.twist)
                events.append(Event(at_s, "odom", message, item.stamp_ns))
    pose = robot.initial_pose_message(start, offline.initial_covariance())
    return Drive(map_path, sorted(events, key=lambda e: e.at_s), truth, robot.camera_info_message(camera), mount, pose)


@dataclass(frozen=True)
class Fault:
    """What is wrong for a while.

    Attributes:
        topics: whose messages are changed.
        change: gives what is sent instead of a message: an event, several, or None.
        until_s: when in the drive the changes end.
        extra: gives (time, topic, message) of what is sent in addition.
        act: called when the fault begins.
        missing: topics that are silent from the start until `extra` sends them.
        ends_node: it ends the node or starts another one.
    """

    topics: str = ""
    change: Callable[[Event], Event | list[Event] | None] | None = None
    until_s: float = END_S
    extra: Callable[[Drive], list[tuple[float, str, object]]] = lambda drive: []
    act: Callable[[Stage], None] | None = None
    missing: str = ""
    ends_node: bool = False

    def applied(self, drive: Drive) -> list[Event]:
        """What the robot sends with this fault."""
        events = [Event(*extra) for extra in self.extra(drive)]
        for event in drive.events:
            present = event.topic in self.topics.split() and BEGIN_S <= event.at_s < self.until_s
            new = self.change(event) if present else event
            events += new if isinstance(new, list) else [] if new is None else [new]
        return sorted(events, key=lambda e: e.at_s)


@dataclass
class Run:
    """What the node did. states: in the order they were first seen. growth_mb: from before the fault to the end."""

    name: str
    states: list[str] = field(default_factory=list)
    recovered_s: float | None = None
    wrong: int = 0
    tracked: int = 0
    images: int = 0
    growth_mb: float = 0.0
    exit_code: int | None = None
    said: str = ""

    def problem(self) -> str:
        """Why this run is not good; empty if it is."""
        if self.exit_code != 0:
            return f"ended with {self.exit_code}"
        if self.wrong:
            return f"{self.wrong} wrong poses"
        return "did not recover" if self.recovered_s is None else ""


class Stage(contextlib.ExitStack):
    """A node under test and the robot that feeds it, for a `with` block; at its end the processes are stopped."""

    def __init__(self, drive: Drive, folder: Path) -> None:
        super().__init__()
        self.drive, self.folder = drive, folder
        self.parameters = {"map": drive.map_path, "image_transport": "raw"}
        self.notes: list[str] = []
        self.statuses: list[LocalizationStatus] = []
        self.poses: list[PoseWithCovarianceStamped] = []
        self.true_ns: dict[int, int] = {}
        self.sent_s: dict[int, float] = {}
        self.info: CameraInfo | None = drive.info
        node = self.enter_context(spinning_node("fault_injector"))
        self.topics = robot.RobotTopics(node)
        node.create_subscription(LocalizationStatus, f"{NODE}/status", self.statuses.append, 1000)
        node.create_subscription(PoseWithCovarianceStamped, f"{NODE}/pose", self.poses.append, 1000)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)
        self.loader = node.create_client(LoadMap, f"{NODE}/load_map")
        self.start_node()  # a process that ends with this one, whatever happens
        self.process.wait_for(self.topics.is_heard, "did not listen", 180.0)
        time.sleep(0.3)  # discovery is one-sided

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        """Keeps what only the diagnostics report: second publishers and a camera that is too fast."""
        for status in message.status:
            for words in ("publish our ~/pose", "something else publishes", "faster than they can be aligned"):
                if words in status.message and not any(words in note for note in self.notes):
                    self.notes.append(next(part for part in status.message.split("; ") if words in part))

    def started(self, process: NodeProcess) -> NodeProcess:
        """A process that is stopped with the stage."""
        self.callback(process.stop)
        return process

    def start_node(self) -> None:
        self.process = self.started(NodeProcess(self.parameters, self.folder / "node.log"))

    def load_map(self, path: Path):
        self.loader.wait_for_service(5.0)
        future = self.loader.call_async(LoadMap.Request(map=str(path)))
        self.process.wait_for(future.done, "did not answer", 10.0)
        return future.result()

    def memory_mb(self) -> float:
        return sum(memory_mib(self.process.pid).values())

    def play(self, name: str, fault: Fault, shift_s: float = 0.0) -> Run:
        """One drive with a fault. shift_s: added to all stamps. Returns what the node did."""
        for kept in (self.statuses, self.poses, self.true_ns, self.sent_s, self.notes):
            kept.clear()
        self.info = None if "info" in fault.missing else self.drive.info
        if "static" not in fault.missing:
            self.topics.static_tf.sendTransform(self.drive.mount)
        self.topics.initial_pose.publish(self.drive.pose)
        time.sleep(0.3)
        before_mb, act = 0.0, fault.act
        began = time.monotonic()
        for event in fault.applied(self.drive):
            time.sleep(max(0.0, began + event.at_s - time.monotonic()))
            before_mb = before_mb or (event.at_s > BEGIN_S - 0.3 and self.memory_mb())
            if act is not None and event.at_s >= BEGIN_S:
                threading.Thread(target=act, args=(self,)).start()
                act = None
            self._send(event, shift_s)
        time.sleep(1.0)
        return self._judged(name, self.memory_mb() - before_mb)

    def _send(self, event: Event, shift_s: float) -> None:
        if event.topic == "info":
            self.info = event.message
        elif event.topic == "static":
            self.topics.static_tf.sendTransform(event.message)
        elif event.topic == "odom":
            self.topics.odometry.publish(event.moved(shift_s).message)
        else:
            event = event.moved(shift_s)
            if self.info is not None:  # as camera drivers do: the calibration with every image
                self.topics.info.publish(self.info)
            self.true_ns[event.stamp_ns] = event.true_ns
            self.sent_s.setdefault(event.stamp_ns, event.at_s)
            self.topics.image.publish(event.message)

    def _judged(self, name: str, growth_mb: float) -> Run:
        """Compares what the node published with the truth."""
        states = {stamp_to_ns(s.header.stamp): TrackState(s.state) for s in self.statuses}
        messages = [s.message for s in self.statuses if s.message and not s.message.startswith("dropped")]
        result = Run(name, list(dict.fromkeys(TrackState(s.state).name for s in self.statuses)), growth_mb=growth_mb)
        result.images, result.said = len(self.sent_s), (self.notes or messages or [""])[0]
        for pose in self.poses:
            stamp_ns = stamp_to_ns(pose.header.stamp)
            if stamp_ns not in self.true_ns or states.get(stamp_ns) is not TrackState.TRACKING:
                continue
            true, known = self.drive.truth.at([self.true_ns[stamp_ns]], offline.TRUTH_GAP_NS)
            if not bool(known[0]):
                continue
            result.tracked += 1
            distance, angle = se3.pose_difference(true[0], conversions.pose_to_matrix(pose.pose.pose, "pose"))
            if float(distance) > WRONG[0] or float(torch.rad2deg(angle)) > WRONG[1]:
                result.wrong += 1
            elif self.sent_s[stamp_ns] >= END_S and result.recovered_s is None:
                result.recovered_s = self.sent_s[stamp_ns] - END_S
        return result

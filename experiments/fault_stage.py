# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A node under test and a simulated robot that feeds it, with a fault for a while: what `faults.py` runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from pixloc_ros.msg import LocalizationStatus
from pixloc_ros.srv import LoadMap
from sensor_msgs.msg import CameraInfo

from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.usage import memory_mib
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagOptions
from pixloc_ros.io.frames import OdometryMessage
from pixloc_ros.io.rig_images import open_bag
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
START_S = 600.0
"""So long a node may take to start: the first time it compiles."""
BEGIN_S, END_S, SECONDS = 2.5, 4.5, 12.0
"""When in the drive the fault is present, and how long the drive is."""


@dataclass(frozen=True)
class Event:
    """Something to send at a time of the drive. true_ns: stamp of the robot's place in an image; camera: whose, of several."""

    at_s: float
    topic: str
    message: object
    true_ns: int = 0
    camera: str = ""

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
        frame_id = self.message.header.frame_id
        return replace(self, message=robot.image_message(np.ascontiguousarray(pixels), self.stamp_ns, frame_id))

    def along(self, metres: float, pose: torch.Tensor | None = None) -> Event:
        """Odometry that is moved along its x axis, with the same twist."""
        message = deepcopy(self.message)
        if pose is not None:
            message.pose.pose = conversions.matrix_to_pose(pose)
        message.pose.pose.position.x += metres
        return replace(self, message=message)


@dataclass
class Drive:
    """What a healthy robot sends, in order of time, with the truth, and the calibration and base_link -> camera of each camera.

    The name of the only camera is empty. `info` and `mount` are those of the camera that `camera` names.
    """

    map_path: Path
    events: list[Event]
    truth: Trajectory
    infos: dict[str, CameraInfo]
    mounts: dict[str, TransformStamped]
    pose: PoseWithCovarianceStamped
    camera: str = ""

    @property
    def info(self) -> CameraInfo:
        return self.infos[self.camera]

    @property
    def mount(self) -> TransformStamped:
        return self.mounts[self.camera]


def make_drive(folder: Path, rate_hz: float, cameras: tuple[str, ...] = ()) -> Drive:
    """A simulated drive of one camera, or of those named, kept in the folder for the next time, and its map."""
    scene, map_path = _places(folder, rate_hz, cameras)
    if not scene.is_dir():
        size = {"width": 320, "height": 240, "texel": 0.02}
        simulate(scene, SimulationOptions(seconds=SECONDS, rate_hz=rate_hz, seed=5, cameras=cameras, **size))
    # Made anew each time: the weights may have changed.
    build_map_from_colmap(scene / "map", scene / "images", load_extractor())[0].save(map_path)
    return read_drive(folder, rate_hz, cameras)


def _places(folder: Path, rate_hz: float, cameras: tuple[str, ...]) -> tuple[Path, Path]:
    name = "_".join((f"{rate_hz:g}hz", *cameras))
    return folder / f"scene_{name}", folder / f"site_{name}.pixmap"


def read_drive(folder: Path, rate_hz: float, cameras: tuple[str, ...] = ()) -> Drive:
    """What `make_drive` has left in the folder."""
    scene, map_path = _places(folder, rate_hz, cameras)
    events, infos, mounts = [], {}, {}
    with open_bag(scene / "drive", BagOptions(), cameras) as bag:
        truth = bag.truth()
        start_ns, start = offline.first_pose(bag, truth, None)
        for item in bag.events():
            if isinstance(item, OdometryMessage):
                message = robot.odometry_message(item.stamp_ns, item.odom_from_base, item.twist)
                events.append(Event((item.stamp_ns - start_ns) / NS_PER_S, "odom", message, item.stamp_ns))
        for name, reader in bag.readers.items() if cameras else [("", bag)]:
            frame_id = f"{name or 'camera'}_optical"
            mounts[name] = conversions.transform_stamped("base_link", frame_id, 0, reader.base_from_camera)
            for item in reader.frames():
                infos[name] = robot.camera_info_message(item.camera)
                message = robot.image_message(item.image, item.stamp_ns, frame_id)
                # Images come a little after their stamp, as from a real camera.
                at_s = (item.stamp_ns - start_ns) / NS_PER_S + 0.02
                events.append(Event(at_s, "image", message, item.stamp_ns, name))
    pose = robot.initial_pose_message(start, offline.initial_covariance())
    return Drive(map_path, sorted(events, key=lambda e: e.at_s), truth, infos, mounts, pose)


@dataclass(frozen=True)
class Fault:
    """What is wrong for a while.

    Attributes:
        topics: whose messages are changed.
        change: gives what is sent instead of a message: an event, several, or None.
        since_s: when in the drive the changes begin.
        until_s: when in the drive the changes end.
        extra: gives (time, topic, message) of what is sent in addition.
        act: called when the fault begins.
        missing: topics that are silent from the start until `extra` sends them.
        ends_node: it ends the node or starts another one.
        cameras: of several, those whose messages are changed, added or missing; none are all.
    """

    topics: str = ""
    change: Callable[[Event], Event | list[Event] | None] | None = None
    since_s: float = BEGIN_S
    until_s: float = END_S
    extra: Callable[[Drive], list[tuple[float, str, object]]] = lambda drive: []
    act: Callable[[Stage], None] | None = None
    missing: str = ""
    ends_node: bool = False
    cameras: tuple[str, ...] = ()

    def applied(self, drive: Drive) -> list[Event]:
        """What the robot sends with this fault."""
        named = self.cameras or ("",)
        events = [Event(*extra, camera=name) for name in named for extra in self.extra(replace(drive, camera=name))]
        for event in drive.events:
            present = event.topic in self.topics.split() and self.since_s <= event.at_s < self.until_s
            present = present and (not event.camera or self.is_of(event.camera))
            new = self.change(event) if present else event
            events += new if isinstance(new, list) else [] if new is None else [new]
        return sorted(events, key=lambda e: e.at_s)

    def is_of(self, camera: str) -> bool:
        """Whether it is one of that camera."""
        return not self.cameras or camera in self.cameras


@dataclass
class Run:
    """What the node did. states: in the order they were first seen. growth_mb: from before the fault to the end. named: of
    several cameras, what diagnostics complained of; well_s: from the fault's end until those that failed were free of that."""

    name: str
    states: list[str] = field(default_factory=list)
    recovered_s: float | None = None
    wrong: int = 0
    tracked: int = 0
    images: int = 0
    growth_mb: float = 0.0
    exit_code: int | None = None
    said: str = ""
    well_s: float | None = None
    named: dict[str, str] = field(default_factory=dict)

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
        cameras = [name for name in drive.infos if name]
        self.parameters = {"map": drive.map_path, "image_transport": "raw"} | ({"cameras": ",".join(cameras)} if cameras else {})
        self.notes: list[str] = []
        self.camera_statuses: list[tuple[float, str, str]] = []
        self.statuses: list[LocalizationStatus] = []
        self.poses: list[PoseWithCovarianceStamped] = []
        self.true_ns: dict[int, int] = {}
        self.sent_s: dict[int, float] = {}
        self.began = time.monotonic()
        self.sent: Counter[str] = Counter()
        self.stamps_are_true = False
        self.infos: dict[str, CameraInfo | None] = dict(drive.infos)
        node = self.enter_context(spinning_node("fault_injector"))
        self.topics = robot.RobotTopics(node, cameras=cameras or ("camera",))
        node.create_subscription(LocalizationStatus, f"{NODE}/status", self.statuses.append, 1000)
        node.create_subscription(PoseWithCovarianceStamped, f"{NODE}/pose", self.poses.append, 1000)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)
        self.loader = node.create_client(LoadMap, f"{NODE}/load_map")
        try:
            self.start_node()  # a process that ends with this one, whatever happens
            self.process.wait_for(self.topics.is_heard, "did not listen", START_S)
            time.sleep(0.3)  # discovery is one-sided
        except BaseException:
            self.close()
            raise

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        """Keeps what only the diagnostics report: second publishers, a camera that is too fast, and what is said of cameras."""
        for status in message.status:
            _, is_camera, camera = status.name.partition(": camera ")
            if is_camera:
                problem = status.message if status.level > DiagnosticStatus.OK else ""
                self.camera_statuses.append((time.monotonic() - self.began, camera, problem))
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
        for kept in (self.statuses, self.poses, self.true_ns, self.sent_s, self.sent, self.notes, self.camera_statuses):
            kept.clear()
        self.stamps_are_true = bool(fault.cameras)
        silent = [name for name in self.drive.infos if fault.missing and fault.is_of(name)]
        self.infos = {name: None if name in silent and "info" in fault.missing else i for name, i in self.drive.infos.items()}
        mounts = [m for name, m in self.drive.mounts.items() if not (name in silent and "static" in fault.missing)]
        self.topics.static_tf.sendTransform(mounts)
        self.topics.initial_pose.publish(self.drive.pose)
        time.sleep(0.3)
        before_mb, act = 0.0, fault.act
        self.began = time.monotonic()
        for event in fault.applied(self.drive):
            time.sleep(max(0.0, self.began + event.at_s - time.monotonic()))
            before_mb = before_mb or (event.at_s > BEGIN_S - 0.3 and self.memory_mb())
            if act is not None and event.at_s >= BEGIN_S:
                threading.Thread(target=act, args=(self,)).start()
                act = None
            self._send(event, shift_s)
        time.sleep(1.0)
        result = self._judged(name, self.memory_mb() - before_mb)
        self._judge_cameras(result, fault)
        return result

    def _send(self, event: Event, shift_s: float) -> None:
        if event.topic == "info":
            self.infos[event.camera] = event.message
        elif event.topic == "static":
            self.topics.static_tf.sendTransform(event.message)
        elif event.topic == "odom":
            self.topics.odometry.publish(event.moved(shift_s).message)
        else:
            event, shift_ns = event.moved(shift_s), round(shift_s * NS_PER_S)
            camera, info = event.camera or "camera", self.infos[event.camera]
            if info is not None:  # as camera drivers do: the calibration with every image
                self.topics.infos[camera].publish(info)
            # A pose is of its stamp also where one of several cameras has another clock.
            self.true_ns[event.stamp_ns] = event.stamp_ns - shift_ns if self.stamps_are_true else event.true_ns
            self.sent[event.camera] += event.stamp_ns not in self.sent_s
            self.sent_s.setdefault(event.stamp_ns, event.at_s)
            self.topics.images[camera].publish(event.message)

    def _judged(self, name: str, growth_mb: float) -> Run:
        """Compares what the node published with the truth."""
        states = {stamp_to_ns(s.header.stamp): TrackState(s.state) for s in self.statuses}
        messages = [s.message for s in self.statuses if s.message and not s.message.startswith("dropped")]
        result = Run(name, list(dict.fromkeys(TrackState(s.state).name for s in self.statuses)), growth_mb=growth_mb)
        result.images, result.said = max(self.sent.values()), (self.notes or messages or [""])[0]
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

    def _judge_cameras(self, result: Run, fault: Fault) -> None:
        """What diagnostics said of each of several cameras, and when they had nothing more to say of those that failed."""
        last_s, problems = END_S, {}
        for at_s, camera, problem in self.camera_statuses:
            if problem:
                result.named.setdefault(camera, problem)
            if fault.is_of(camera):
                problems[camera], last_s = problem, at_s if problem else last_s
        result.well_s = None if any(problems.values()) else max(last_s - END_S, 0.0)

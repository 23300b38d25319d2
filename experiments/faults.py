# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Injects faults into the running node over DDS, and tells what it did: the table of docs/evidence/reliability.md.

    python experiments/faults.py -o out/faults                    # all of them, about a quarter of a minute each
    python experiments/faults.py -o out/faults --only "garbage images" --only "odometry jumps 5 m"
    python experiments/faults.py -o out/soak --soak-minutes 60    # random faults at 15 Hz, one after the other, on one node

Each run starts a node on a simulated drive, lets it track, injects the fault for a while, and goes on. Told are: the states
the node went through, how soon it was right again, wrong poses given as TRACKING (further off than 0.25 m or 2 degrees), its
memory, and whether it lived. Exit code 1 if a node died, gave a wrong pose as TRACKING or did not recover, and after a soak in
which its memory grew by more than 2 % from the first tenth on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from pixloc_ros.msg import LocalizationStatus
from pixloc_ros.srv import LoadMap
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.io.frames import OdometryMessage as BagOdometry
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.node import conversions
from pixloc_ros.node.conversions import NS_PER_S, stamp_from_ns, stamp_to_ns
from pixloc_ros.tracking.types import TrackState
from pixloc_sim.recordings import SimulationOptions, simulate

WRONG = (0.25, 2.0)
"""Metres, degrees: a pose given as TRACKING that is further off is wrong."""
FAULT_S = (2.5, 4.5)
"""When in the drive the fault is there."""
SECONDS = 12.0
RATE_HZ, SOAK_RATE_HZ = 10.0, 15.0
SOAK_GROWTH_PERCENT = 2.0
NODE = "/localization_node"
COMMAND = [sys.executable, "-m", "pixloc_ros.node.localization_node", "--ros-args"]


@dataclass(frozen=True)
class Event:
    """Something to send at a time of the drive. true_ns: when in the drive the robot was where the image shows."""

    at_s: float
    topic: str
    message: object
    true_ns: int = 0


@dataclass
class Drive:
    """What a healthy robot sends, in order. info: the right calibration; static: base_link -> camera."""

    map_path: Path
    events: list[Event]
    truth: Trajectory
    start_ns: int
    static: TFMessage
    info: CameraInfo
    pose: PoseWithCovarianceStamped


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

    def problem(self, fault: Fault) -> str:
        """Why this run is not good; empty if it is."""
        if self.exit_code != 0:
            return f"ended with {self.exit_code}"
        if self.wrong:
            return f"{self.wrong} wrong poses"
        return "" if self.recovered_s is not None or not fault.recovers else "did not recover"


@dataclass(frozen=True)
class Fault:
    """change: what is sent instead of the events. act: called when the fault begins, with the stage."""

    change: Callable[[list[Event], Drive], list[Event]] = lambda events, drive: events
    act: Callable[[Stage], None] | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    recovers: bool = True


# ---- the drive


def make_drive(folder: Path, rate_hz: float) -> Drive:
    """A simulated drive, kept in the folder for the next time, and its map."""
    scene = folder / f"scene_{rate_hz:g}hz"
    map_path = folder / f"site_{rate_hz:g}hz.pixmap"
    if not scene.is_dir():
        simulate(scene, SimulationOptions(seconds=SECONDS, rate_hz=rate_hz, width=320, height=240, texel=0.02, seed=5))
    # Made anew each time: the weights may be others.
    map_, _ = build_map_from_colmap(scene / "map", scene / "images", load_extractor())
    map_.save(map_path)
    with BagReader(scene / "drive") as bag:
        truth = bag.truth()
        start_ns, start = offline.first_pose(bag, truth, None)
        static = TFMessage(transforms=[conversions.transform_stamped("base_link", "camera_optical", 0, bag.base_from_camera)])
        events, info = [], None
        for item in bag.events():
            at_s = (item.stamp_ns - start_ns) / NS_PER_S
            if isinstance(item, BagOdometry):
                events.append(Event(at_s, "odom", odometry_message(item.stamp_ns, item.odom_from_base), item.stamp_ns))
                continue
            info = info or info_message(item.camera)
            # Images come a little after their stamp, as from a real camera.
            events.append(Event(at_s + 0.02, "image", image_message(item.stamp_ns, item.image), item.stamp_ns))
    pose = PoseWithCovarianceStamped(pose=conversions.pose_with_covariance(start, offline.initial_covariance()))
    pose.header.frame_id = "map"
    return Drive(map_path, sorted(events, key=lambda e: e.at_s), truth, start_ns, static, info, pose)


def image_message(stamp_ns: int, pixels: np.ndarray) -> Image:
    """uint8 [H, W] or [H, W, 3] as a message."""
    height, width = pixels.shape[:2]
    channels = pixels.size // (height * width)
    message = Image(height=height, width=width, step=width * channels, encoding="mono8" if channels == 1 else "rgb8")
    message.header.frame_id, message.header.stamp = "camera_optical", stamp_from_ns(stamp_ns)
    message.data = array("B", pixels.tobytes())
    return message


def pixels_of(message: Image) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, -1)


def odometry_message(stamp_ns: int, odom_from_base: torch.Tensor) -> Odometry:
    message = Odometry(child_frame_id="base_link")
    message.header.frame_id, message.header.stamp = "odom", stamp_from_ns(stamp_ns)
    message.pose.pose = conversions.matrix_to_pose(odom_from_base)
    return message


def info_message(camera) -> CameraInfo:
    fx, fy, cx, cy = (float(v) for v in camera.params[:4])
    return CameraInfo(
        width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5,
        k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
    )  # fmt: skip


# ---- faults


def during(event: Event, topic: str) -> bool:
    return event.topic == topic and FAULT_S[0] <= event.at_s < FAULT_S[1]


def altered(topic: str, change: Callable[[Event], Event | list[Event] | None]) -> Callable:
    """Every message of a topic, while the fault is there, changed, left out (None) or replaced by several."""

    def apply(events: list[Event], drive: Drive) -> list[Event]:
        result: list[Event] = []
        for event in events:
            new = change(event) if during(event, topic) else event
            result += new if isinstance(new, list) else [] if new is None else [new]
        return sorted(result, key=lambda e: e.at_s)

    return apply


def with_pixels(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def apply(event: Event) -> Event:
        stamp_ns = stamp_to_ns(event.message.header.stamp)
        return replace(event, message=image_message(stamp_ns, np.ascontiguousarray(change(pixels_of(event.message)))))

    return altered("image", apply)


def with_fields(topic: str, **fields) -> Callable:
    """Fields of the message replaced; values may be functions of the old one. Fields of the pose by name."""

    def apply(event: Event) -> Event:
        message = copied(event.message)
        for name, value in fields.items():
            setattr(message, name, value(getattr(message, name)) if callable(value) else value)
        return replace(event, message=message)

    return altered(topic, apply)


def copied(message):
    """A shallow copy: the same field values in a new message."""
    return type(message)(**{name: getattr(message, name) for name in message.get_fields_and_field_types()})


def restamped(offset_s: float, from_s: float = FAULT_S[0], to_s: float = FAULT_S[1], topics=("image", "odom")) -> Callable:
    """All stamps moved."""

    def apply(events: list[Event], drive: Drive) -> list[Event]:
        return [move(e) if from_s <= e.at_s < to_s and e.topic in topics else e for e in events]

    def move(event: Event) -> Event:
        message = copied(event.message)
        header = copied(message.header)
        header.stamp = stamp_from_ns(stamp_to_ns(header.stamp) + round(offset_s * NS_PER_S))
        message.header = header
        return replace(event, message=message)

    return apply


def moved_odometry(jump_m: float) -> Callable:
    """The odometry is somewhere else from the fault on, for good."""

    def apply(events: list[Event], drive: Drive) -> list[Event]:
        return [jumped(e) if e.topic == "odom" and e.at_s >= FAULT_S[0] else e for e in events]

    def jumped(event: Event) -> Event:
        pose = conversions.pose_to_matrix(event.message.pose.pose, "odometry").clone()
        pose[0, 3] += jump_m
        return replace(event, message=odometry_message(stamp_to_ns(event.message.header.stamp), pose))

    return apply


def broken_odometry(value: float) -> Callable:
    def apply(event: Event) -> Event:
        message = odometry_message(stamp_to_ns(event.message.header.stamp), torch.eye(4, dtype=torch.float64))
        message.pose.pose.position.x = value
        return replace(event, message=message)

    return altered("odom", apply)


def calibration(change: Callable[[CameraInfo], None] | None) -> Callable:
    """Another calibration from the fault's beginning to its end; None: none from the very start until its end."""

    def apply(events: list[Event], drive: Drive) -> list[Event]:
        right = Event(FAULT_S[1], "info", drive.info)
        if change is None:
            return sorted([*events, right], key=lambda e: e.at_s)
        other = copied(drive.info)
        change(other)
        return sorted([*events, Event(FAULT_S[0], "info", other), right], key=lambda e: e.at_s)

    return apply


def static_transform_late(events: list[Event], drive: Drive) -> list[Event]:
    return sorted([*events, Event(FAULT_S[1], "static", drive.static)], key=lambda e: e.at_s)


def cyclic_transforms(events: list[Event], drive: Drive) -> list[Event]:
    cycle = [("camera_optical", "elsewhere"), ("elsewhere", "base_link")]
    message = TFMessage(transforms=[conversions.transform_stamped(a, b, 0, torch.eye(4, dtype=torch.float64)) for a, b in cycle])
    # The camera's parent is told again afterwards; base_link keeps a parent of its own unless odometry's TF says otherwise.
    changes = [Event(FAULT_S[0], "static", message), Event(FAULT_S[1], "static", drive.static)]
    return sorted([*events, *changes], key=lambda e: e.at_s)


def scale_focal(info: CameraInfo) -> None:
    k = list(info.k)
    k[0] *= 1.3
    k[4] *= 1.3
    info.k = k


def other_size(info: CameraInfo) -> None:
    info.width, info.height = 640, 480


def flooded(event: Event) -> list[Event]:
    """Ten images instead of one, a millisecond apart, each with a stamp of its own."""
    copies = []
    for n in range(10):
        message = copied(event.message)
        message.header = copied(message.header)
        message.header.stamp = stamp_from_ns(stamp_to_ns(event.message.header.stamp) + n * 1_000_000)
        copies.append(replace(event, at_s=event.at_s + n * 0.009, message=message))
    return copies


_DROPS = random.Random(0)


def frozen(events: list[Event], drive: Drive) -> list[Event]:
    """The camera repeats its last good picture with new stamps."""
    last = None

    def apply(event: Event) -> Event:
        nonlocal last
        last = last or event
        return replace(event, message=image_message(stamp_to_ns(event.message.header.stamp), pixels_of(last.message)))

    return altered("image", apply)(events, drive)


def black_half(pixels: np.ndarray) -> np.ndarray:
    covered = pixels.copy()
    covered[:, : pixels.shape[1] * 2 // 3] = 10
    return covered


def load_broken_map(stage: Stage) -> None:
    broken = stage.folder / "broken.pixmap"
    broken.write_bytes(stage.drive.map_path.read_bytes()[:5000])
    answer = stage.load_map(broken)
    assert answer is not None and not answer.success and answer.message, answer
    stage.notes.append(answer.message)


def kill_and_restart(stage: Stage) -> None:
    stage.process.kill()
    stage.process.wait()
    stage.start_node()


def start_second(stage: Stage) -> None:
    """Another localizer with the same name on the same robot, for a while."""
    second = stage.launch("second.log")
    threading.Timer(FAULT_S[1] - FAULT_S[0] + 2.0, second.send_signal, (signal.SIGINT,)).start()
    stage.others.append(second)


def faults() -> dict[str, Fault]:
    """By name, in the order of the table."""
    nothing = with_pixels
    noise = np.random.default_rng(0)
    return {
        "none": Fault(),
        "images dropped (70 %)": Fault(altered("image", lambda e: e if _DROPS.random() > 0.7 else None)),
        "images duplicated": Fault(altered("image", lambda e: [e, replace(e, at_s=e.at_s + 0.003)])),
        "images reordered": Fault(altered("image", lambda e: replace(e, at_s=e.at_s + (0.15 if int(e.at_s * 10) % 2 else 0)))),
        "images late by 0.6 s": Fault(altered("image", lambda e: replace(e, at_s=e.at_s + 0.6))),
        "images from the future (5 s)": Fault(restamped(5.0, topics=("image",))),
        "camera stops": Fault(altered("image", lambda e: None)),
        "clock jumps ahead by 60 s": Fault(restamped(60.0, to_s=SECONDS + 1)),
        "clock jumps back by 60 s": Fault(restamped(-60.0, to_s=SECONDS + 1)),
        "odometry is NaN": Fault(broken_odometry(float("nan"))),
        "odometry is infinite": Fault(broken_odometry(float("inf"))),
        "odometry stops": Fault(altered("odom", lambda e: None)),
        "odometry jumps 5 m": Fault(moved_odometry(5.0)),
        "no calibration at first": Fault(calibration(None)),
        "calibration of another lens": Fault(calibration(scale_focal)),
        "calibration of another size": Fault(calibration(other_size)),
        "unknown encoding": Fault(with_fields("image", encoding="jpegish")),
        "empty images": Fault(with_fields("image", width=0, height=0, data=array("B"))),
        "images cut short": Fault(with_fields("image", data=lambda data: data[: len(data) // 3])),
        "garbage images": Fault(nothing(lambda p: noise.integers(0, 256, p.shape, np.uint8))),
        "black images": Fault(nothing(np.zeros_like)),
        "white images": Fault(nothing(lambda p: np.full_like(p, 255))),
        "frozen images": Fault(frozen),
        "blurred images": Fault(nothing(lambda p: cv2.blur(p, (25, 25)).reshape(p.shape))),
        "lens covered by two thirds": Fault(nothing(black_half)),
        "camera transform late": Fault(static_transform_late),
        "transforms make a cycle": Fault(cyclic_transforms),
        "broken map through the service": Fault(act=load_broken_map),
        "flood of images (10 times)": Fault(altered("image", flooded)),
        "kill -9 and restart": Fault(act=kill_and_restart),
        "two nodes at once": Fault(act=start_second),
    }


# ---- running


class Stage:
    """A node under test and the robot that feeds it."""

    def __init__(self, drive: Drive, folder: Path, parameters: tuple[tuple[str, str], ...] = ()) -> None:
        self.drive, self.folder, self.parameters = drive, folder, parameters
        self.notes: list[str] = []
        self.others: list[subprocess.Popen] = []
        self.statuses: list[tuple[float, LocalizationStatus]] = []
        self.poses: list[PoseWithCovarianceStamped] = []
        self.true_ns: dict[int, int] = {}
        self.sent_s: dict[int, float] = {}
        self.info: CameraInfo | None = drive.info
        self.context = rclpy.Context()
        rclpy.init(context=self.context, args=[])
        self.node = node = rclpy.create_node("fault_injector", context=self.context)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.publishers = {
            "image": node.create_publisher(Image, "camera/image_raw", 50),
            "odom": node.create_publisher(Odometry, "odom", 50),
            "info": node.create_publisher(CameraInfo, "camera/camera_info", 10),
            "static": node.create_publisher(TFMessage, "/tf_static", latched),
            "start": node.create_publisher(PoseWithCovarianceStamped, "initialpose", 1),
        }
        node.create_subscription(
            LocalizationStatus, f"{NODE}/status", lambda m: self.statuses.append((time.monotonic(), m)), 1000
        )
        node.create_subscription(PoseWithCovarianceStamped, f"{NODE}/pose", self.poses.append, 1000)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 100)
        self.loader = node.create_client(LoadMap, f"{NODE}/load_map")
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)

        def spin() -> None:
            with contextlib.suppress(ExternalShutdownException):
                executor.spin()

        self._thread = threading.Thread(target=spin)
        self._executor = executor
        self._thread.start()
        self.start_node()

    def _diagnosed(self, message: DiagnosticArray) -> None:
        """Keeps what the diagnostics alone say: of second publishers and of a camera that is too fast."""
        for status in message.status:
            for words in ("publish our ~/pose", "something else publishes", "faster than they can be aligned"):
                if words in status.message and not any(words in note for note in self.notes):
                    self.notes.append(next(part for part in status.message.split("; ") if words in part))

    def launch(self, log: str) -> subprocess.Popen:
        values = {"map": self.drive.map_path, "image_transport": "raw", **dict(self.parameters)}
        words = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
        with open(self.folder / log, "a", encoding="utf-8") as file:
            return subprocess.Popen(
                COMMAND + words, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def start_node(self) -> None:
        self.process = self.launch("node.log")

    def wait_until_heard(self, seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        while not all(p.get_subscription_count() for p in self.publishers.values()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node does not listen: see {self.folder / 'node.log'}")
            time.sleep(0.05)
        time.sleep(0.3)

    def forget(self) -> None:
        """What was sent and heard so far."""
        for kept in (self.statuses, self.poses, self.true_ns, self.sent_s, self.notes):
            kept.clear()

    def send(self, topic: str, message) -> None:
        self.publishers[topic].publish(message)

    def load_map(self, path: Path):
        self.loader.wait_for_service(5.0)
        future = self.loader.call_async(LoadMap.Request(map=str(path)))
        deadline = time.monotonic() + 10
        while not future.done() and time.monotonic() < deadline:
            time.sleep(0.01)
        return future.result()

    def memory_mb(self) -> float:
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except OSError:
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def play(self, events: list[Event], actions: list[tuple[float, Callable[[], None]]]) -> None:
        """Sends everything at its time. actions: called at theirs, in threads of their own."""
        began = time.monotonic()
        todo = sorted(actions, key=lambda a: a[0])
        for event in events:
            while todo and todo[0][0] <= event.at_s:
                threading.Thread(target=todo.pop(0)[1]).start()
            time.sleep(max(0.0, began + event.at_s - time.monotonic()))
            if event.topic == "info":
                self.info = event.message
                continue
            if event.topic == "image":
                # As camera drivers do: the calibration with every image.
                if self.info is not None:
                    self.send("info", self.info)
                stamp_ns = stamp_to_ns(event.message.header.stamp)
                self.true_ns[stamp_ns] = event.true_ns
                self.sent_s.setdefault(stamp_ns, event.at_s)
            self.send(event.topic, event.message)

    def close(self) -> int:
        """Ends everything; the node's exit code."""
        for process in (self.process, *self.others):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in (self.process, *self.others):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        self.context.try_shutdown()
        return self.process.wait()


def run(name: str, fault: Fault, drive: Drive, folder: Path) -> Run:
    """One drive with one fault."""
    stage = Stage(drive, folder, fault.parameters)
    try:
        stage.wait_until_heard()
        if name != "camera transform late":
            stage.send("static", drive.static)
        if name == "no calibration at first":
            stage.info = None
        stage.send("start", drive.pose)
        time.sleep(0.3)
        memory: list[float] = []
        actions = [(FAULT_S[0] - 0.3, lambda: memory.append(stage.memory_mb()))]
        if fault.act is not None:
            actions.append((FAULT_S[0], lambda: fault.act(stage)))
        stage.play(fault.change(drive.events, drive), actions)
        time.sleep(1.0)
        growth = stage.memory_mb() - memory[0]
    finally:
        code = stage.close()
    return judge(name, stage, growth, code)


def judge(name: str, stage: Stage, growth_mb: float, code: int) -> Run:
    """Compares what was said with the truth."""
    states = {stamp_to_ns(s.header.stamp): TrackState(s.state) for _, s in stage.statuses}
    result = Run(name, images=len(stage.sent_s), growth_mb=growth_mb, exit_code=code)
    result.states = list(dict.fromkeys(TrackState(s.state).name for _, s in stage.statuses))
    told = [s.message for _, s in stage.statuses if s.message and not s.message.startswith("dropped")]
    result.said = (stage.notes or told or [""])[0]
    for pose in stage.poses:
        stamp_ns = stamp_to_ns(pose.header.stamp)
        true_ns = stage.true_ns.get(stamp_ns)
        if true_ns is None or states.get(stamp_ns) is not TrackState.TRACKING:
            continue
        true, known = stage.drive.truth.at([true_ns], TRUTH_GAP_NS)
        if not bool(known[0]):
            continue
        result.tracked += 1
        distance, angle = se3.pose_difference(true[0], conversions.pose_to_matrix(pose.pose.pose, "pose"))
        if float(distance) > WRONG[0] or float(torch.rad2deg(angle)) > WRONG[1]:
            result.wrong += 1
        elif stage.sent_s[stamp_ns] >= FAULT_S[1] and result.recovered_s is None:
            result.recovered_s = stage.sent_s[stamp_ns] - FAULT_S[1]
    return result


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def table(runs: list[Run]) -> str:
    rows = [
        "| fault, for 2 s | states | right again after | tracked | wrong as TRACKING | memory | what it said |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in runs:
        lived = "" if r.exit_code == 0 else f" **(ended with {r.exit_code})**"
        states = ", ".join(state.lower() for state in r.states)
        said = r.said.replace("|", "/")
        said = said if len(said) <= 110 else said[:107] + "..."
        figures = f"{seconds(r.recovered_s)} | {r.tracked}/{r.images} | {r.wrong} | {r.growth_mb:+.0f} MB"
        rows.append(f"| {r.name}{lived} | {states} | {figures} | {said} |")
    return "\n".join(rows) + "\n"


# ---- soak


@dataclass
class Soak:
    """A drive again and again on one node, each time with a random fault. memory_mb: (seconds since the start, MB) before the
    first round and after each. recovery_s: of each fault, for each time it was injected, None where the node was not right again
    before the round ended. images: sent."""

    minutes: float
    rate_hz: float
    seed: int
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    recovery_s: dict[str, list[float | None]] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    images: int = 0
    tracked: int = 0
    exit_code: int | None = None
    problem: str = ""

    def add(self, result: Run) -> None:
        """Counts one round."""
        self.recovery_s.setdefault(result.name, []).append(result.recovered_s)
        self.wrong[result.name] = self.wrong.get(result.name, 0) + result.wrong
        self.images += result.images
        self.tracked += result.tracked

    def settled_mb(self) -> tuple[float, float]:
        """Memory after the warm-up and at the end: medians of the second tenth and the last tenth of the rounds."""
        values = [mb for _, mb in self.memory_mb]
        tenth = max(len(values) // 10, 1)
        return float(np.median(values[tenth : 2 * tenth] or values[-1:])), float(np.median(values[-tenth:]))

    def summary(self) -> dict[str, object]:
        """What is told, as JSON."""
        warm, end = self.settled_mb()
        recoveries = [s for times in self.recovery_s.values() for s in times]
        found = [s for s in recoveries if s is not None]
        return {
            "minutes": self.memory_mb[-1][0] / 60, "asked_minutes": self.minutes, "rate_hz": self.rate_hz, "seed": self.seed,
            "images": self.images, "tracked": self.tracked,
            "memory_mb": {"start": self.memory_mb[0][1], "after_warm_up": warm, "end": end,
                          "most": max(mb for _, mb in self.memory_mb)},
            "growth_percent": 100 * (end / warm - 1),
            "faults": len(recoveries), "missed_recoveries": len(recoveries) - len(found),
            "worst_recovery_s": max(found, default=None), "wrong_poses": sum(self.wrong.values()),
            "exit_code": self.exit_code, "problem": self.problem,
            "by_fault": {name: {"injected": len(times), "missed": times.count(None), "wrong_poses": self.wrong[name],
                                "worst_recovery_s": max((s for s in times if s is not None), default=None)}
                         for name, times in sorted(self.recovery_s.items())},
        }  # fmt: skip

    def good(self) -> bool:
        """Whether the node lived, always recovered, was never wrong, and did not grow."""
        told = self.summary()
        failed = self.exit_code or self.problem or told["missed_recoveries"] or told["wrong_poses"]
        return not failed and told["growth_percent"] <= SOAK_GROWTH_PERCENT


def soak(drive: Drive, folder: Path, minutes: float, rate_hz: float, seed: int) -> Soak:
    """Random faults on one node for so long; what is known so far is kept in soak.json. Left out are faults that are there from
    the start of a node, and those that end it or start another."""
    choice = random.Random(seed)
    left_out = ("no calibration at first", "camera transform late", "kill -9 and restart", "two nodes at once")
    known = {name: fault for name, fault in faults().items() if name not in left_out}
    result = Soak(minutes, rate_hz, seed)
    stage = Stage(drive, folder)
    try:
        stage.wait_until_heard()
        began = time.monotonic()
        result.memory_mb.append((0.0, stage.memory_mb()))
        rounds = 0
        while time.monotonic() - began < 60 * minutes:
            name = choice.choice(sorted(known))
            stage.forget()
            stage.send("static", drive.static)
            stage.info = drive.info
            # Each round is later than all of the one before, whichever way its fault moved the clock.
            shift = restamped(rounds * 200.0, -10.0, 1e6)
            events = shift(known[name].change(drive.events, drive), drive)
            stage.send("start", drive.pose)
            time.sleep(0.2)
            act = known[name].act
            stage.play(events, [] if act is None else [(FAULT_S[0], functools.partial(act, stage))])
            time.sleep(0.5)
            if stage.process.poll() is not None:
                result.problem = f"the node ended with {stage.process.returncode} in round {rounds + 1}: {name}"
                break
            told = judge(name, stage, 0.0, 0)
            result.add(told)
            rounds += 1
            result.memory_mb.append((time.monotonic() - began, stage.memory_mb()))
            write_text(folder / "soak.json", json.dumps(result.summary(), indent=1) + "\n")
            again = "MISSED" if told.recovered_s is None else f"{told.recovered_s:4.1f} s"
            print(
                f"{result.memory_mb[-1][0] / 60:5.1f} min  {name:34} right again {again}  tracked {told.tracked}/{told.images}  "
                f"wrong {told.wrong}  memory {result.memory_mb[-1][1]:.1f} MB",
                flush=True,
            )
    finally:
        result.exit_code = stage.close()
    return result


def soak_table(summary: dict) -> str:
    """The summary, and a row a fault."""
    memory = summary["memory_mb"]
    lines = [
        f"{summary['minutes']:.0f} minutes at {summary['rate_hz']:g} Hz, {summary['images']} images, {summary['faults']} faults "
        f"on one node: {summary['missed_recoveries']} recoveries missed, {seconds(summary['worst_recovery_s'])} for the slowest, "
        f"{summary['wrong_poses']} wrong poses given as TRACKING. Memory {memory['start']:.0f} MB before the first image, "
        f"{memory['after_warm_up']:.1f} MB after the warm-up (median of the second tenth of the time), {memory['end']:.1f} MB at "
        f"the end (of the last tenth): {summary['growth_percent']:+.1f} %; {memory['most']:.1f} MB at most. "
        f"Exit code {summary['exit_code']}.",
        "",
        "| fault | injected | recoveries missed | slowest | wrong as TRACKING |",
        "|---|---|---|---|---|",
    ]
    for name, row in summary["by_fault"].items():
        lines.append(
            f"| {name} | {row['injected']} | {row['missed']} | {seconds(row['worst_recovery_s'])} | {row['wrong_poses']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    split = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=split)
    arguments.add_argument("-o", "--out", type=Path, required=True, help="folder for data, logs and results")
    arguments.add_argument("--only", action="append", help="only this fault; may be given again")
    arguments.add_argument("--soak-minutes", type=float, help="random faults on one node for so long")
    arguments.add_argument("--rate", type=float, help=f"images a second; default {RATE_HZ:g}, in a soak {SOAK_RATE_HZ:g}")
    arguments.add_argument("--seed", type=int, default=0, help="of the soak's choices")
    arguments.add_argument("--write", type=Path, help="a page whose table between its markers (faults, or soak) is replaced")
    given = arguments.parse_args()
    known = faults()
    unknown = set(given.only or ()) - set(known)
    if unknown:
        arguments.error(f"no fault {', '.join(sorted(unknown))}: give one of {'; '.join(known)}")
    # Told to stop, it stops its nodes as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    given.out.mkdir(parents=True, exist_ok=True)
    print("making the drive ...", flush=True)
    rate_hz = given.rate or (SOAK_RATE_HZ if given.soak_minutes else RATE_HZ)
    drive = make_drive(given.out, rate_hz)
    if given.soak_minutes:
        result = soak(drive, given.out, given.soak_minutes, rate_hz, given.seed)
        summary = result.summary()
        write_text(given.out / "soak.json", json.dumps(summary, indent=1) + "\n")
        print(soak_table(summary))
        if result.problem:
            print(result.problem)
        if given.write is not None:
            write_section(given.write, "soak", soak_table(summary))
        print(f"results: {given.out / 'soak.json'}; the node's log: {given.out / 'node.log'}")
        return 0 if result.good() else 1
    runs = []
    for number, name in enumerate(given.only or known, 1):
        runs.append(run(name, known[name], drive, given.out))
        problem = runs[-1].problem(known[name])
        print(f"{number:2d}/{len(given.only or known)}  {name:36} {problem or 'good'}", flush=True)
    text = table(runs)
    print(text)
    write_text(given.out / "faults.md", text)
    write_text(given.out / "faults.json", json.dumps([vars(r) for r in runs], indent=1) + "\n")
    if given.write is not None:
        write_section(given.write, "faults", text)
    print(f"results: {given.out / 'faults.md'}, {given.out / 'faults.json'}; the node's log: {given.out / 'node.log'}")
    return 1 if any(r.problem(known[r.name]) for r in runs) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"faults: error: {error}", file=sys.stderr)
        sys.exit(2)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How old the pose is when it is published: the live node, fed over DDS at a camera's rate for a given time.

A simulated drive (made once, kept in out/benchmarks) goes to and fro: images with the stamp of the moment, wheel odometry,
calibration, all from this process to `localization_node` in another one, as a robot's drivers would send them.

    benchmarks/live.py                                   # 30 Hz, 20 seconds
    benchmarks/live.py --minutes 10 --json live.json     # what docs/evidence/performance.md quotes
    benchmarks/live.py --rates 15 30 --parameters preset:=fast

"age": from the image's stamp until the pose goes out, by the node's clock (so with serialization and transport of the image);
"heard": until a listener has it. "after": how long the worker then learns from the image and reports (medians of what the node
says of its last hundred images). "cores": processor time of the node, all threads, per second. Memory of the node in the
first and in the last tenth of the run: its own, and pages of files (the map), which the system takes back when it needs them.
"late" is how long this process itself was late with an image, 95 %, and "others" how many cores everything else on the
machine took, this process included.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import measuring
import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from pixloc_ros.msg import LocalizationStatus
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.evaluation.usage import UsageMeter, busy_s, memory_mib
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.node import conversions
from pixloc_ros.node.conversions import NS_PER_S, stamp_from_ns, stamp_to_ns
from pixloc_ros.rig.node_process import NODE, NodeProcess, spinning_node
from pixloc_ros.rig.robot import RobotTopics, image_message, initial_pose_message, odometry_message
from pixloc_ros.tracking.types import TrackState

ODOMETRY_HZ = 50.0
STAGES = ("arrival", "queue", "decode", "feature", "wait", "gather", "alignment", "publish")
"""Of the status message."""
LAST_ODOMETRY_S = 0.3
WARM_UP_S = 2.0
"""Not counted."""


@dataclass(frozen=True)
class Drive:
    """What is sent. stamps_s [n] and the odometry are in the drive's own time."""

    stamps_s: np.ndarray
    images: list[Image]
    info: CameraInfo
    odometry: Trajectory
    base_from_camera: torch.Tensor
    camera_frame: str
    start: torch.Tensor

    def index(self, image: int) -> int:
        """Of the drive's image that is the `image`-th one sent."""
        last = len(self.stamps_s) - 1
        return last - abs(image % (2 * last) - last)

    def odom_from_base(self, image: float) -> torch.Tensor:
        """float64 [4, 4] at the (fractional) `image`-th image sent: to the end and back, again and again."""
        before, stamps_ns = math.floor(image), self.odometry.stamps_ns
        first, second = self.stamps_s[self.index(before)], self.stamps_s[self.index(before + 1)]
        stamp_ns = np.clip(round((first + (image - before) * (second - first)) * NS_PER_S), stamps_ns[0], stamps_ns[-1])
        return self.odometry.at(stamp_ns[None], offline.TRUTH_GAP_NS)[0][0]


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=1 / 3, help="at each rate (default a third)")
    parser.add_argument("--rates", type=float, nargs="+", default=[30.0], metavar="HZ", help="of the images (default 30)")
    parser.add_argument("--parameters", nargs="*", default=[], metavar="NAME:=VALUE", help="further ones of the node")
    args = parser.parse_args()
    if args.minutes <= 0 or min(args.rates) <= 0:
        parser.error("--minutes and --rates must be positive")
    figures: dict[str, object] = {"machine": measuring.describe_machine(), "rates": {}}
    for rate in args.rates:
        path = measuring.simulated_drive(640, 480, args.data, rate)
        map_path = measuring.map_of_drive(path, load_extractor(args.weights))
        figures["rates"][f"{rate:g} Hz"] = run(path, map_path, rate, args)
    old = measuring.earlier(args).get("rates", {})
    return measuring.report(figures, args, rows(figures["rates"], old), stage_rows(figures["rates"]))


def read_drive(path: Path) -> Drive:
    """The test drive in memory, as messages."""
    with BagReader(path / "drive") as bag:
        start_ns, start = offline.first_pose(bag, bag.truth(), None)
        frames = [item for item in bag.events() if isinstance(item, CameraFrame) and item.stamp_ns >= start_ns]
        info = deserialize_message(next(bag.raw_messages([bag.camera_info_topic])).cdr, CameraInfo)
        info.header.frame_id = bag.camera_frame
        return Drive(
            np.array([frame.stamp_ns / NS_PER_S for frame in frames]),
            [image_message(frame.image, 0, bag.camera_frame) for frame in frames],
            info,
            bag.odometry(),
            bag.base_from_camera,
            bag.camera_frame,
            start,
        )


def run(path: Path, map_path: Path, rate: float, args: argparse.Namespace) -> dict[str, object]:
    """Figures of one node fed at one rate."""
    drive, parameters = read_drive(path), {"map": map_path.resolve(), "weights": args.weights, "image_transport": "raw"}
    parameters |= dict(setting.split(":=", 1) for setting in args.parameters)
    with (
        tempfile.TemporaryDirectory() as folder,
        NodeProcess(parameters, Path(folder) / "node.log") as process,
        spinning_node("robot") as node,
    ):
        return Robot(drive, node, process).feed(rate, 60 * args.minutes)


class Robot:
    """Camera, wheels and listener."""

    def __init__(self, drive: Drive, node: Node, process: NodeProcess) -> None:
        self._drive, self._process = drive, process
        self._statuses: list[LocalizationStatus] = []
        self._heard_ms: list[float] = []
        self._after_ms: list[dict[str, float]] = []
        self._topics = RobotTopics(node)
        mount = conversions.transform_stamped("base_link", drive.camera_frame, 0, drive.base_from_camera)
        self._topics.static_tf.sendTransform(mount)
        node.create_subscription(PoseWithCovarianceStamped, f"{NODE}/pose", self._on_pose, 10)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        node.create_subscription(LocalizationStatus, f"{NODE}/status", self._statuses.append, 100)
        process.wait_for(lambda: self._topics.is_heard() and node.count_publishers(f"{NODE}/pose"), "did not come up")
        time.sleep(1.0)  # discovery is one-sided

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        self._heard_ms.append((time.time_ns() - stamp_to_ns(message.header.stamp)) * 1e-6)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        values = {one.key: one.value for status in message.status for one in status.values}
        if "after_ms_p50" in values:
            self._after_ms.append({name: float(values[f"after_ms_{name}"]) for name in ("p50", "p95")})

    def feed(self, rate: float, seconds: float) -> dict[str, object]:
        """Sends images, odometry and calibration; returns the figures after the warm-up."""
        self._topics.initial_pose.publish(initial_pose_message(self._drive.start, offline.initial_covariance()))
        gc.collect()
        gc.freeze()  # or this process would stall now and then, and its images would come all at once
        memory, late_ms, sent, meter = [], [], 0, None
        began = time.monotonic() + 0.5
        # Everything in the order of its times: odometry, images, samples of the node's process.
        due = {"odometry": began - 0.1, "image": began, "sample": began + WARM_UP_S}
        step = {"odometry": 1 / ODOMETRY_HZ, "image": 1 / rate, "sample": 1.0}
        end = began + WARM_UP_S + seconds
        # The last image needs odometry as well.
        while (what := min(due, key=due.get)) and due[what] < end + LAST_ODOMETRY_S:
            wait_s = due[what] - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            if what == "odometry":
                before, pose = (self._drive.odom_from_base(max((due[what] - began) * rate - back, 0.0)) for back in (0.5, 0.0))
                twist = se3.se3_log(se3.inverse(before) @ pose) * 2 * rate
                self._topics.odometry.publish(odometry_message(time.time_ns(), pose, twist))
            elif due[what] >= end:
                pass
            elif what == "image":
                late_ms.append(-1e3 * min(wait_s, 0.0))
                self._send_image(sent)
                sent += 1
            else:
                self._process.check()
                memory.append(memory_mib(self._process.pid))
                if meter is None:
                    for measured in (self._statuses, self._heard_ms, self._after_ms, late_ms):
                        measured.clear()
                    meter, outside, first = UsageMeter(self._process.pid), busy_s(), sent
            due[what] += step[what]
        time.sleep(0.5)
        usage, others_s, own, file = meter.read(), busy_s() - outside, *([m[name] for m in memory] for name in ("own", "file"))
        statuses, tenth = list(self._statuses), max(1, len(memory) // 10)
        aligned = [s for s in statuses if math.isfinite(s.alignment_ms)]
        if not aligned:
            raise InputError("no image was aligned; the last status: " + (statuses[-1].message if statuses else "none"))
        return {
            "sent": sent - first,
            "tracked": sum(s.state == TrackState.TRACKING for s in aligned) / max(sent - first, 1),
            "dropped": sum("dropped" in s.message for s in statuses),
            "age_ms": measuring.percentiles([s.age_ms for s in aligned]) | {"max": max(s.age_ms for s in aligned)},
            "heard_ms": measuring.percentiles(self._heard_ms),
            "after_ms": {name: float(np.median([one[name] for one in self._after_ms])) for name in ("p50", "p95")},
            "stages_ms": {stage: measuring.percentiles([getattr(s, f"{stage}_ms") for s in aligned]) for stage in STAGES},
            "cores": usage.cpu_s / usage.wall_s,
            "own_mib": [float(np.median(own[: tenth + 1])), float(np.median(own[-tenth:]))],
            "file_mib": [float(np.median(file[: tenth + 1])), float(np.median(file[-tenth:]))],
            "late_p95_ms": float(np.percentile(late_ms, 95)),
            "others_cores": (others_s - usage.cpu_s) / usage.wall_s,
        }

    def _send_image(self, image: int) -> None:
        message = self._drive.images[self._drive.index(image)]
        message.header.stamp = self._drive.info.header.stamp = stamp_from_ns(time.time_ns())
        self._topics.info.publish(self._drive.info)
        self._topics.image.publish(message)


def rows(rates: dict[str, dict], old: dict[str, dict]) -> list[tuple[str, ...]]:
    times, rest = "images, age p50 ms, p95, p99, max, heard p50, after p50, p95", "dropped %, tracked %, cores, own MiB, file MiB"
    table = [tuple(f"{times}, {rest}, late p95, others".split(", "))]
    for name, entry in rates.items():
        before = old.get(name, {})
        ages = [measuring.against(entry["age_ms"][p], before.get("age_ms", {}).get(p)) for p in ("p50", "p95", "p99", "max")]
        shares = [f"{100 * share:.2f}" for share in (entry["dropped"] / entry["sent"], entry["tracked"])]
        cores = measuring.against(entry["cores"], before.get("cores"))
        memory = [f"{entry[key][0]:.0f} to {entry[key][1]:.0f}" for key in ("own_mib", "file_mib")]
        heard, *others = (format_number(v) for v in (entry["heard_ms"]["p50"], entry["late_p95_ms"], entry["others_cores"]))
        after = [format_number(entry["after_ms"][p]) for p in ("p50", "p95")]
        table.append((name, *ages, heard, *after, *shares, cores, *memory, *others))
    return table


def stage_rows(rates: dict[str, dict]) -> list[tuple[str, ...]]:
    percentiles = {name: [entry["stages_ms"][stage] for stage in STAGES] for name, entry in rates.items()}
    cells = {name: [f"{format_number(p['p50'])} / {format_number(p['p99'])}" for p in of] for name, of in percentiles.items()}
    return [("stages, p50 / p99 ms", *STAGES), *((name, *of) for name, of in cells.items())]


if __name__ == "__main__":
    run_script(main)

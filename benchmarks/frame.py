#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What one frame costs, stage by stage: JPEG in, pose out, as the tracker runs it.

Simulated drives (made once, kept in out/benchmarks) are tracked at several image sizes, each in a process of its own:

    benchmarks/frame.py
    benchmarks/frame.py --json new.json --compare old.json      # and how the medians moved

Stages: "decode" the JPEG; "prepare" the image (grey, size); "features", the network; "gather", choice of map points and
their descriptors; "alignment"; "tracker", everything else until the pose is there (motion prior, gates, covariances); "total"
until then. "learning": after that, from the image, for the next ones. Times are of the clock; "CPU" is processor time of
all threads, learning included, which suffers less from other work on the machine; "others" is how many cores that took
meanwhile: repeat a run where it is not near 0. Peak memory is of the whole process, map and network included.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import measuring
import numpy as np
import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.evaluation.usage import Load, peak_mib
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame, OdometryMessage
from pixloc_ros.io.image_format import decode_compressed
from pixloc_ros.localization import Localizer

SIZES = ("320x240", "640x480", "1280x720")
STAGES = ("decode", "prepare", "features", "gather", "alignment", "tracker", "total", "learning")
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Recording:
    """A bag in memory.

    Attributes:
        frames: stamp_ns, camera, JPEG.
        odometry: All of it.
        base_from_camera: float64 [4, 4].
        start: stamp_ns, map_from_base [4, 4].
    """

    frames: list[tuple[int, Camera, np.ndarray]]
    odometry: list[OdometryMessage]
    base_from_camera: torch.Tensor
    start: tuple[int, torch.Tensor]


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH", help="of the simulated images")
    parser.add_argument("--preset", nargs="+", default=["balanced"], help="fast, balanced (default), accurate")
    parser.add_argument("--frames", type=int, default=200, help="how many to time at each size (default 200)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the network (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, object] = {"machine": measuring.describe_machine(), "sizes": {}}
    extractor = load_extractor(args.weights)
    for size in args.sizes:
        drive = measuring.simulated_drive(*map(int, size.split("x")), args.data)
        map_path = measuring.map_of_drive(drive, extractor)
        for preset in args.preset:
            run = measuring.in_process(time_drive, map_path, drive / "drive", args.weights, preset, args.frames, args.threads)
            figures["sizes"][size if len(args.preset) == 1 else f"{size} {preset}"] = run
    return measuring.report(figures, args, rows(figures["sizes"], measuring.earlier(args).get("sizes", {})))


def time_drive(map_path: Path, bag: Path, weights: str, preset: str, frames: int, threads: int) -> dict[str, object]:
    """Track the drive until so many frames are timed."""
    torch.set_num_threads(threads)
    recording, localizer = read_bag(bag), Localizer.open(map_path, weights, preset)
    track(localizer, recording)  # caches, compiled code
    laps: list[dict[str, float]] = []
    load = Load()
    while len(laps) < frames:
        laps += track(localizer, recording)
    _, cpu, others = load.read()
    return {
        "frames": len(laps),
        "tracked": float(np.mean([lap["tracked"] for lap in laps])),
        "stages": {stage: measuring.percentiles([lap[stage] for lap in laps]) for stage in STAGES},
        "cpu_ms": 1e3 * cpu / len(laps),
        "others_cores": others,
        "peak_mib": peak_mib(),
    }


def read_bag(bag: Path) -> Recording:
    """The bag with its images as JPEG, whatever they were."""
    frames, odometry = [], []
    with BagReader(bag) as reader:
        start = offline.first_pose(reader, reader.truth(), None)
        for event in reader.events():
            if isinstance(event, OdometryMessage):
                odometry.append(event)
            elif isinstance(event, CameraFrame) and event.stamp_ns >= start[0]:
                pixels = event.image if event.image.ndim == 2 else cv2.cvtColor(event.image, cv2.COLOR_RGB2BGR)
                jpeg = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
                frames.append((event.stamp_ns, event.camera, jpeg))
        return Recording(frames, odometry, reader.base_from_camera, start)


def track(localizer: Localizer, drive: Recording) -> list[dict[str, float]]:
    """Milliseconds per stage of every frame of one pass."""
    tracker = localizer.tracker(relocalization=False)
    tracker.initialize(drive.start[1], offline.initial_covariance(), drive.start[0])
    odometry = iter(drive.odometry)
    laps = []
    for stamp_ns, camera, jpeg in drive.frames:
        while not tracker.odometry.covers(stamp_ns) and (sample := next(odometry, None)) is not None:
            tracker.add_odometry(sample.stamp_ns, sample.odom_from_base, sample.twist_covariance)
        began = time.perf_counter()
        image = decode_compressed(jpeg)
        decoded = time.perf_counter()
        result = tracker.track(CameraFrame(stamp_ns, image, camera), drive.base_from_camera)
        ended = time.perf_counter()
        tracker.check_odometry()  # learns from the image first
        learned = time.perf_counter()
        stages = result.alignment.timings_ms if result.alignment is not None else {}
        times = {"decode": decoded - began, "tracker": ended - decoded, "total": ended - began, "learning": learned - ended}
        lap = {stage: stages.get(stage, 0.0) for stage in STAGES} | {name: 1e3 * value for name, value in times.items()}
        lap["tracker"] -= sum(stages.values())
        laps.append(lap | {"tracked": float(result.state.name == "TRACKING")})
    return laps


def rows(sizes: dict[str, dict], old: dict[str, dict]) -> list[tuple[str, ...]]:
    table = [("", *(f"{stage} ms" for stage in STAGES), "CPU ms", "peak MiB", "tracked %", "others")]
    for size, entry in sizes.items():
        before = old.get(size, {})
        for name in ("p50", "p95", "p99"):
            past = before.get("stages", {}) if name == "p50" else {}
            cells = [measuring.against(entry["stages"][stage][name], past.get(stage, {}).get(name)) for stage in STAGES]
            rest = [""] * 4
            if name == "p50":
                rest = [f"{100 * entry['tracked']:.1f}", format_number(entry["others_cores"])]
                rest = [*measuring.compared(entry, before, "cpu_ms", "peak_mib"), *rest]
            table.append((f"{size} {name}", *cells, *rest))
    return table


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Several cameras on one robot: how much better they are than one, and what happens when some of them fail.

A robot with cameras that look ahead, to both sides and back drives through the simulated workshop; their images are up to 30 ms
apart. It is tracked by the front camera alone and by all, as recorded, and with faults: the front camera is covered for ten
seconds, and another one is mounted otherwise than its transform says. With and without the IMU that the bag holds. The map has
images of another drive, by other light.

Where the data folder has kitti07: its images cut into two that overlap, as a check on real images: both together should be as
good as the whole image. Every third image is in the map and not scored.

examples:
    experiments/rig.py ../shared/data -o out/rig --docs docs/evidence/performance.md
    experiments/rig.py ../shared/data -o out/rig --seconds 12 --scenes
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import common
import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bag_sensors import IMU, find_sensor
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.frames import CameraFrame, Event, MountedFrame
from pixloc_ros.io.rig_images import open_bag
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_sim.drives import CAMERAS
from pixloc_sim.recordings import SimulationOptions, simulate

COVERED_S, COVERED_AFTER_S, WRONG = 10.0, 5.0, "left"
"""How long the front camera is covered, and from when on; the camera whose mount is wrong."""
WRONG_MOUNT = se3.from_rotation_translation(
    se3.so3_exp(torch.tensor([0.0, 0.0, math.radians(6.0)], dtype=torch.float64)),
    torch.tensor([0.05, 0.1, 0.0], dtype=torch.float64),
)
OVERLAP = 0.6
"""Share of an image's width that each of its two parts has."""
FIGURES = ("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg", "nees_median")
_WARM = 30
"""Images that are not timed: memory for features that are kept is touched for the first time."""
_LEAST_SECONDS = 5.0
"""Of the simulated drive, at 10 images a second."""
HEAD = (
    "drive | cameras | IMU | images | tracked % | median m | p95 m | median deg | NEES median (5.35 is right) | false tracks | "
    "p50 ms | p99 ms | what it said of cameras"
)


class FaultyDrive:
    """A bag of a rig whose first camera is covered for a while, and in which another camera's mount is wrong."""

    def __init__(self, bag: BagReader) -> None:
        self._bag = bag
        self._begin_ns = next(iter(bag.image_stamps()))

    def __getattr__(self, name: str):
        return getattr(self._bag, name)

    def events(self) -> Iterator[Event]:
        for event in self._bag.events():
            if isinstance(event, CameraFrame):
                if 0 <= (event.stamp_ns - self._begin_ns) * 1e-9 - COVERED_AFTER_S < COVERED_S:
                    event = replace(event, image=_covered(event))
                event = replace(event, others=tuple(_remounted(other) for other in event.others))
            yield event


def _covered(frame: CameraFrame) -> np.ndarray:
    noise = np.random.default_rng(frame.stamp_ns).normal(12, 3, frame.image.shape)
    return noise.clip(0, 255).astype(np.uint8)


def _remounted(other: MountedFrame) -> MountedFrame:
    return replace(other, base_from_camera=WRONG_MOUNT @ other.base_from_camera) if other.frame.name == WRONG else other


class CutDrive:
    """A bag of one camera whose images are cut into a left and a right one."""

    def __init__(self, bag: BagReader, parts: tuple[str, ...]) -> None:
        self._bag, self._parts = bag, parts

    def __getattr__(self, name: str):
        return getattr(self._bag, name)

    def events(self) -> Iterator[Event]:
        for event in self._bag.events():
            if isinstance(event, CameraFrame):
                first, *rest = (self._part(event, part) for part in self._parts)
                event = replace(first, others=tuple(MountedFrame(one, self._bag.base_from_camera) for one in rest))
            yield event

    def _part(self, frame: CameraFrame, part: str) -> CameraFrame:
        camera = frame.camera
        width = 2 * int(OVERLAP * camera.width / 2)
        begin = 0 if part == "left" else camera.width - width
        params = camera.params.clone()
        params[2] -= begin
        image = np.ascontiguousarray(frame.image[:, begin : begin + width])
        return replace(frame, image=image, camera=replace(camera, width=width, params=params), calibration=None, name=part)


def main() -> int:
    parser = common.parser(__doc__, "out/rig", ("kitti07",), drives=True)
    parser.add_argument("--seconds", type=float, default=40.0, metavar="S", help="of the simulated drive (default: %(default)g)")
    args = parser.parse_args()
    if args.seconds < _LEAST_SECONDS:
        parser.error(f"--seconds must be {_LEAST_SECONDS:g} or more: the first {_WARM} images are not timed")
    args.simulated = False
    extractor, results, rows = load_extractor(args.weights), {}, []

    def measure(localizer: Localizer, bag: BagReader, names: tuple[str, str, str], imu=None, skip: int = 0) -> None:
        tracker = localizer.tracker()
        with show_progress(", ".join(names)) as progress:
            run = offline.run_bag(tracker, bag, progress=progress, imu=imu)
        figures = run_figures(run, skip_map_frames=skip)
        times = [record.timings_ms["total"] for record in run.records[_WARM:] if not record.unusable]
        p50, p99 = np.percentile(times, (50, 99))
        said = "; ".join(f"{name}: {problem.partition(':')[0]}" for name, problem in tracker.rig.said.items())
        results[", ".join(names)] = figures | {"p50_ms": p50, "p99_ms": p99, "said": dict(tracker.rig.said)}
        numbers = (format_number(figures[name]) for name in FIGURES)
        counts = str(figures["frames"]), f"{100 * figures['tracked_fraction']:.1f}"
        rows.append((*names, *counts, *numbers, str(figures["false_tracked_frames"]), f"{p50:.0f}", f"{p99:.0f}", said))
        print(*rows[-1], sep=" | ", flush=True)
        common.save(args, "rig", results, {"rig": markdown_table(HEAD, rows)})

    folder = args.output / "simulated"
    if not folder.is_dir():
        with show_progress("simulate") as progress:
            options = SimulationOptions(seconds=args.seconds, cameras=tuple(CAMERAS), imu=True)
            simulate(folder, options, lambda what, done, of: progress(done, of, what))
    scene = common.Scene(folder)
    path = args.output / "simulated.pixmap"
    localizer = Localizer(Map.open(path) if path.is_file() else scene.build_map(extractor, path), extractor)
    for faulty in (False, True):
        for cameras in (("front",), tuple(CAMERAS)):
            for with_imu in (False, True):
                with open_bag(scene.drive, BagOptions(), cameras) as bag:
                    imu = find_sensor(bag, IMU, None)[0] if with_imu else None
                    drive, name = (FaultyDrive(bag), "with faults") if faulty else (bag, "as recorded")
                    names = f"simulated, {name}", "front" if len(cameras) == 1 else "all four", "yes" if with_imu else ""
                    measure(localizer, drive, names, imu)
    for scene in common.scenes_of(args):
        path = args.output / f"{scene.name}.pixmap"
        localizer = Localizer(Map.open(path) if path.is_file() else scene.build_map(extractor, path), extractor)
        for name, parts in (("whole image", ()), ("left part", ("left",)), ("both parts", ("left", "right"))):
            with BagReader(scene.drive, BagOptions()) as bag:
                drive = CutDrive(bag, parts) if parts else bag
                measure(localizer, drive, (scene.name, name, ""), skip=common.MAP_STRIDE)
    return common.finish(args, {"rig": markdown_table(HEAD, rows)})


if __name__ == "__main__":
    run_script(main)

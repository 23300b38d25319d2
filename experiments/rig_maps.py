#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of several cameras: how exact those of a bag are, compared with that of the simulation's exact model.

A robot with four cameras drives twice through the simulated workshop. Maps are made of the second drive's bag ('pixloc map bag
--cameras'), with the poses in it and with those that its images and odometry give; the first drive is tracked in them, by all
cameras and by the one that looks ahead. A map whose poses are its own is laid on the true place of its first keyframe.

examples:
    experiments/rig_maps.py -o out/rig_maps --docs docs/evidence/maps.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import numpy as np

from pixloc_ros.cli.main import main as pixloc
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bag_sensors import IMU, find_sensor
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.rig_images import open_bag
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.care import moved
from pixloc_sim.drives import CAMERAS
from pixloc_sim.recordings import MAPPING_LIGHT, SimulationOptions, simulate, simulate_drive

HEAD = "map | keyframes | points | tracked by | images | tracked % | median mm | p95 mm | median deg | false tracks"
EVERY = ",".join(CAMERAS)
MAPS = {
    "exact model": None,
    "bag, all cameras, given poses": ["--cameras", EVERY],
    "bag, all cameras, poses from the images": ["--cameras", EVERY, "--poses", "images"],
    "bag, front camera, given poses": ["--cameras", "front"],
}


def make_map(args: argparse.Namespace, scene: common.Scene, bag: Path, what: str) -> Map:
    """One of `MAPS`, in the frame of the truth; kept in the output folder."""
    path = args.output / f"{what.replace(', ', '_').replace(' ', '_')}.pixmap"
    if MAPS[what] is None:
        return Map.open(path) if path.is_file() else scene.build_map(load_extractor(args.weights), path)
    if not path.is_file():
        pixloc(["map", "bag", str(bag), "-o", str(path), "--weights", args.weights, *MAPS[what]])
    made = Map.open(path)
    if "--poses" not in MAPS[what]:
        return made
    first = made.keyframe_names.index(min(name for name in made.keyframe_names if name.startswith("front/")))
    with BagReader(bag, BagOptions(image="/front/image_raw/compressed")) as reader:
        truth, _ = reader.truth().at(made.keyframe_stamp_ns[[first]], 1_000_000_000)
        return moved(made, truth[0] @ reader.base_from_camera @ se3.inverse(made.map_from_keyframe[first]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=common.absolute, default="out/rig_maps", metavar="DIR", help="results")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of the drives (default: %(default)g)")
    parser.add_argument("--width", type=int, default=640, metavar="PX", help="of the images (default: %(default)d)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="images a second (default: %(default)g)")
    parser.add_argument("--weights", default="compact", metavar="NAME|FILE", help="network (default: %(default)s)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="also put the table between its markers in this page")
    args = parser.parse_args()
    args.output = common.absolute(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    folder, bag = args.output / "simulated", args.output / "mapping_drive"
    size = {"width": args.width, "height": 3 * args.width // 4, "texel": 0.004 * 640 / args.width}
    options = SimulationOptions(seconds=args.seconds, rate_hz=args.rate, cameras=tuple(CAMERAS), imu=True, **size)
    with show_progress("simulate") as progress:
        if not folder.is_dir():
            simulate(folder, options, lambda what, done, of: progress(done, of, what))
        if not bag.is_dir():
            simulate_drive(bag, options, MAPPING_LIGHT, 2, lambda what, done, of: progress(done, of, what))
    scene, results, rows = common.Scene(folder), {}, []
    for what in MAPS:
        map_ = make_map(args, scene, bag, what)
        localizer = Localizer(map_, load_extractor(args.weights))
        for cameras in (("front",), tuple(CAMERAS)):
            by = "front" if len(cameras) == 1 else "all four"
            with open_bag(scene.drive, BagOptions(), cameras) as drive, show_progress(f"{what}, {by}") as progress:
                run = offline.run_bag(localizer.tracker(), drive, progress=progress, imu=find_sensor(drive, IMU, None)[0])
            found = run_figures(run)
            results[f"{what}, {by}"] = found
            numbers = [1e3 * (found[f"translation_error_{name}_m"] or np.nan) for name in ("median", "p95")]
            shown = (*(f"{mm:.1f}" for mm in numbers), format_number(found["rotation_error_median_deg"]))
            made = len(map_.keyframe_names), len(map_.xyz)
            counts = found["frames"], f"{100 * found['tracked_fraction']:.1f}"
            rows.append((what, *made, by, *counts, *shown, found["false_tracked_frames"]))
            print(*rows[-1], sep=" | ", flush=True)
            common.save(args, "rig_maps", results, {"rig maps": markdown_table(HEAD, rows)})
    return common.finish(args, {"rig maps": markdown_table(HEAD, rows)})


if __name__ == "__main__":
    run_script(main)

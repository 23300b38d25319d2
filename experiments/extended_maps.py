#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What `pixloc map extend` makes of a second drive in other light, as in docs/evidence/maps.md.

The simulated workshop is mapped by day. A second drive, at night (one lamp is on), extends the map; a third one at night, on
another path, is searched for image by image without any prior: in the old map, in the extended one, in one of as many keyframes
as the old one has. By then most surfaces have been repainted: 80 % of the textures are turned upside down. Nor may the map get
worse for what it was made of: the drive that comes with the simulation (half of the lamps, nothing repainted) is searched
for, too.

Found: within 0.1 m and 1°, and confident. Confident and wrong: further off than 0.25 m or 2°.

    experiments/extended_maps.py -o out/extended
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixloc_ros.cli.main import main as pixloc
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import format_number, markdown_table, write_section
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_sim.lighting import Lighting
from pixloc_sim.recordings import SimulationOptions, simulate, simulate_drive

NIGHT = Lighting(lamps=(0.0, 0.0, 1.6, 0.0, 0.0, 0.0), daylight=0.0, ambient=0.05, seed=2)
RATE_HZ = 4.0  # of the drives at night
REPAINTED = 0.8
BUDGET = 56  # keyframes that the map by day has
FOUND, WRONG = (0.1, 1.0), (0.25, 2.0)
"""Metres and degrees."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/extended"), metavar="DIR")
    parser.add_argument("--seconds", type=float, default=25.0, metavar="S", help="length of each drive (default 25)")
    parser.add_argument("--images", type=int, default=50, metavar="N", help="search for so many images of a drive (default 50)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="also put the table between its markers in this page")
    args = parser.parse_args()
    drives, results = prepare(args), {}
    for name, (path, command) in maps(args).items():
        if not path.is_file():
            run(*command, "-o", path)
        results[name] = {drive: search(path, bag, args.images, f"{name}: {drive}") for drive, bag in drives.items()}
        results[name] |= {"keyframes": len(Map.open(path).keyframe_names), "bytes": path.stat().st_size}
        write_text(args.output / "extended.json", json.dumps(results, indent=1) + "\n")
        write_text(args.output / "extended.md", table(results))
    print(table(results))
    if args.docs:
        write_section(args.docs, "extended", table(results))
    return 0


def prepare(args) -> dict[str, Path]:
    """The drives that are searched for, by name; all data is made where it is not there."""
    options, world = SimulationOptions(seconds=args.seconds), args.output / "world"
    if not world.is_dir():
        simulate(world, options)
    for number, name in ((2, "second"), (3, "third")):
        if not (args.output / name).is_dir():
            with show_progress(f"{name} drive") as progress:
                said = lambda what, done, of, show=progress: show(done, of, what)  # noqa: E731
                simulate_drive(args.output / name, replace(options, rate_hz=RATE_HZ, repainted=REPAINTED), NIGHT, number, said)
    return {"night": args.output / "third", "day": world / "drive"}


def maps(args) -> dict[str, tuple[Path, tuple]]:
    """Path and command of each map, in the order in which they can be made."""
    world, day = args.output / "world", args.output / "day.pixmap"
    extend = ("map", "extend", day, args.output / "second")
    return {
        "day": (day, ("map", "colmap", "--model", world / "map", "--images", world / "images")),
        "extended": (args.output / "extended.pixmap", extend),
        f"extended, --budget {BUDGET}": (args.output / "bounded.pixmap", (*extend, "--budget", BUDGET)),
    }


def run(*words: object) -> None:
    """A command of `pixloc`. Raises `SystemExit` where it fails."""
    code = pixloc([str(word) for word in words])
    if code:
        raise SystemExit(code)


def search(path: Path, drive: Path, images: int, said: str) -> dict[str, float]:
    """Figures of a drive's images, each searched for in the whole map."""
    localizer, errors, sure = Localizer.open(path), [], []
    with BagReader(drive) as bag, show_progress(said) as progress:
        truth = bag.truth()
        stamps = list(bag.image_stamps())
        stamps = [stamps[k] for k in np.linspace(0, len(stamps) - 1, min(images, len(stamps))).astype(int)]
        for frame in bag.frames(lambda stamp_ns: stamp_ns in stamps):
            progress(len(sure), len(stamps))
            if not isinstance(frame, CameraFrame):
                continue
            found = localizer.locate(frame.image, frame.camera)
            pose, _ = truth.at(np.array([frame.stamp_ns]), 10**9)
            error = (math.inf, math.inf)
            if found.map_from_camera is not None:
                distance, angle = se3.pose_difference(pose[0] @ bag.base_from_camera, found.map_from_camera)
                error = float(distance), math.degrees(float(angle))
            errors.append(error)
            sure.append(found.success)
    errors, sure = np.array(errors), np.array(sure)
    median = np.median(errors[sure], 0).tolist() if sure.any() else [None, None]
    return {
        "images": len(sure),
        "found": float(((errors <= FOUND).all(1) & sure).mean()),
        "confident_and_wrong": int(((errors > WRONG).any(1) & sure).sum()),
        "median": median,
    }


def table(results: dict[str, dict]) -> str:
    rows = []
    for name, r in results.items():
        figures = []
        for drive in ("night", "day"):
            d = r[drive]
            found = f"{100 * d['found']:.1f} % of {d['images']}"
            figures += [found, d["confident_and_wrong"], *(format_number(value) for value in d["median"])]
        rows.append((name, r["keyframes"], f"{r['bytes'] / 1e6:.1f}", *figures))
    head = (
        "map | keyframes | MB | third drive, night: found | confident and wrong | median m | deg "
        "| other drive, day: found | confident and wrong | median m | deg"
    )
    return markdown_table(head, rows)


if __name__ == "__main__":
    run_script(main)

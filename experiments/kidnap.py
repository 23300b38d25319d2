#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives that go wrong, through the tracker, offline: how soon the pose is right again, as in docs/evidence/results.md.

For each scene with map/, images/ and drive/ (and the simulated one with --simulated): a map of its COLMAP model; then the
drive from several places on, switched on without a pose, carried away, blinded for 5 s (or a third of a shorter drive), or told
a wrong pose. Writes a Markdown table and a JSON file.

Right again: the first pose given as TRACKING within 0.25 m and 2°. Wrong: a pose given that is more than 0.5 m or 5° off;
counted from the event on until the end of the run, by the state it was given in.

    experiments/kidnap.py ../shared/data --simulated -o out/kidnap
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import kidnap
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_sim.recordings import SimulationOptions, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/kidnap"), help="folder of the results")
    parser.add_argument("--scenes", nargs="*", help="names; default: all that have a map and a drive")
    parser.add_argument("--simulated", action="store_true", help="make a simulated drive of 40 s, too, in the output folder")
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="places to start from, evenly over the drive")
    parser.add_argument("--after", type=float, default=4.0, metavar="S", help="seconds that a drive goes on after the event")
    parser.add_argument("--weights", default="compact")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="also put the table between <!-- kidnap: begin --> and <!-- kidnap: end --> there",
    )
    args = parser.parse_args()
    names = args.scenes
    if names is None:
        names = sorted(p.parent.name for p in args.data.glob("*/drive") if (p.parent / "map").is_dir())
    scenes = [args.data / name for name in names]
    if args.simulated:
        scenes.append(args.output / "simulated")
        if not scenes[-1].is_dir():
            simulate(scenes[-1], SimulationOptions(seconds=40.0))
    extractor = load_extractor(args.weights)
    results: dict[str, list[dict]] = {}
    for scene in scenes:
        results[scene.name] = [dataclasses.asdict(o) for o in evaluate(scene, args, extractor)]
        # After each scene, so that a long run can be looked at.
        write_text(args.output / "kidnap.json", json.dumps(results, indent=2) + "\n")
        write_text(args.output / "kidnap.md", markdown(results))
    if args.docs:
        write_section(args.docs, "kidnap", markdown(results))
    print(markdown(results))
    return 0


def evaluate(scene: Path, args: argparse.Namespace, extractor: Extractor) -> list[kidnap.Outcome]:
    """All events of one scene; its map goes to the output folder."""
    path = args.output / f"{scene.name}.pixmap"
    build_map_from_colmap(scene / "map", scene / "images", extractor)[0].save(path)
    localizer = Localizer.open(path, args.weights)
    outcomes = []
    with BagReader(scene / "drive") as bag:
        for event in kidnap.EVENTS:
            for begin in np.linspace(0.02, 0.9, args.starts):
                outcome = kidnap.run_event(event, localizer, bag, float(begin), args.after)
                if outcome is not None:
                    outcomes.append(outcome)
    return outcomes


def markdown(results: dict[str, list[dict]]) -> str:
    """A row a scene and event."""
    lines = [
        "| drive | event | runs | right again | after s: median, worst | images: median, worst | wrong as TRACKING "
        "| wrong as DEGRADED | ms an image: median, worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scene, outcomes in results.items():
        for event in kidnap.EVENTS:
            runs = [o for o in outcomes if o["event"] == event]
            if not runs:
                continue
            found = [o for o in runs if o["seconds"] is not None]
            seconds = [o["seconds"] for o in found] or [np.nan]
            images = [o["images"] for o in found] or [np.nan]
            times = [ms for o in runs for ms in o["frame_ms"]] or [np.nan]
            cells = [
                scene,
                event,
                len(runs),
                len(found),
                f"{np.median(seconds):.2f}, {max(seconds):.2f}",
                f"{np.median(images):.0f}, {max(images):.0f}",
                sum(o["wrong_tracking"] for o in runs),
                sum(o["wrong_degraded"] for o in runs),
                f"{np.median(times):.0f}, {max(times):.0f}",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"kidnap: error: {error}", file=sys.stderr)
        sys.exit(2)

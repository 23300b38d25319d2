#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives that go wrong, through the tracker, offline: how soon the pose is right again, as in docs/evidence/results.md.

For each drive: a map of the scene's COLMAP model; then the drive from several places on, switched on without a pose, carried
away, blinded for 5 s (or a third of a shorter drive), or given a wrong pose.

Right again: the first pose given as TRACKING within 0.25 m and 2°. Wrong: a pose given that is more than 0.5 m or 5° off;
counted from the event on until the end of the run, by the state it was given in.

    experiments/kidnap.py ../shared/data --simulated -o out/kidnap --docs docs/evidence/results.md
"""

from __future__ import annotations

import dataclasses

import common
import numpy as np

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import kidnap
from pixloc_ros.evaluation.pages import markdown_table
from pixloc_ros.io.bags import BagReader


def main() -> int:
    parser = common.parser(__doc__, "out/kidnap", drives=True)
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="places to start from, evenly over the drive")
    parser.add_argument("--after", type=float, default=4.0, metavar="S", help="seconds that a drive continues after the event")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {}
    for scene in common.scenes_of(args):
        localizer = scene.localizer(args)
        with BagReader(scene.drive) as bag:
            outcomes = [
                kidnap.run_event(event, localizer, bag, float(begin), args.after)
                for event in kidnap.EVENTS
                for begin in np.linspace(0.02, 0.9, args.starts)
            ]
        results[scene.name] = [dataclasses.asdict(outcome) for outcome in outcomes if outcome is not None]
        common.save(args, "kidnap", results, {"kidnap": report(results)})
    return common.finish(args, {"kidnap": report(results)})


def report(results: dict[str, list[dict]]) -> str:
    """A row for each scene and event."""
    rows = []
    for scene, outcomes in results.items():
        for event in kidnap.EVENTS:
            runs = [o for o in outcomes if o["event"] == event]
            if not runs:
                continue
            found = [o for o in runs if o["seconds"] is not None]
            values = [
                (2, [o["seconds"] for o in found]),
                (0, [o["images"] for o in found]),
                (0, [ms for o in runs for ms in o["frame_ms"]]),
            ]
            seconds, images, times = (f"{np.median(v or np.nan):.{d}f}, {max(v, default=np.nan):.{d}f}" for d, v in values)
            wrong = [sum(o[f"wrong_{state}"] for o in runs) for state in ("tracking", "degraded")]
            rows.append((scene, event, len(runs), len(found), seconds, images, *wrong, times))
    head = (
        "drive | event | runs | right again | after s: median, worst | images: median, worst | wrong as TRACKING "
        "| wrong as DEGRADED | ms an image: median, worst"
    )
    return markdown_table(head, rows)


if __name__ == "__main__":
    run_script(main)

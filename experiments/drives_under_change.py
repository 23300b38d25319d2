#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives whose images get worse: how much of them is tracked, how well, and whether covariances stay honest.

Tracks each drive as recorded, and with its images blurred, noisy, dark and covered. Every third image is in the map and not
scored. The weights are those of the command line: run it once for each and compare.

    experiments/drives_under_change.py ../shared/data -o out/drives --docs docs/evidence/results.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.degradation import Degradation, degraded
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import load_extractor
from pixloc_ros.io.bags import BagReader
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map

CHANGES = (
    *(Degradation("blur", px) for px in (0, 15, 30, 45)),
    Degradation("noise", 80),
    Degradation("dark", 2),
    Degradation("occlusion", 70),
)
FIGURES = ("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg", "nees_mean", "nees_median")
HEAD = "drive | images | tracked % | median m | p95 m | median deg | NEES mean (6 is right) | NEES median (5.35) | false tracks"


def main() -> int:
    parser = common.parser(__doc__, "out/drives", (*common.VALIDATION_DRIVES, "tum_fr1_rpy"), drives=True)
    common.add_scheduler(parser)
    args, work, done = parser.parse_args(), [], {}
    for scene in common.scenes_of(args):
        if not map_of(scene, args).is_file():
            scene.build_map(load_extractor(args.weights), map_of(scene, args))
        changes = CHANGES if scene.name in common.VALIDATION_DRIVES else [change for change in CHANGES if not change.severity]
        work += [(scene, change, args) for change in changes]
    for number, figures in common.run_jobs(args, measure, work):
        done[number] = figures
        names = {n: (work[n][0].name, str(work[n][1])) for n in sorted(done)}
        rows = {n: row(names[n], done[n]) for n in names}
        print(*rows[number], sep=" | ", flush=True)
        results = {", ".join(names[n]): done[n] for n in names}
        common.save(args, "drives", results, {"drives": markdown_table(HEAD, list(rows.values()))})
    return common.finish(args, {"drives under change": markdown_table(HEAD, list(rows.values()))})


def map_of(scene: common.Scene, args: argparse.Namespace) -> Path:
    return args.output / f"{scene.name}.pixmap"


def measure(job: tuple[common.Scene, Degradation, argparse.Namespace]) -> dict[str, object]:
    """Figures of a drive under one change."""
    scene, change, args = job
    localizer = Localizer(Map.open(map_of(scene, args)), load_extractor(args.weights))
    with BagReader(scene.drive) as bag, show_progress(f"{scene.name}, {change}") as progress:
        run = offline.run_bag(localizer.tracker(), degraded(bag, change), progress=progress)
    return run_figures(run, skip_map_frames=common.MAP_STRIDE)


def row(name: tuple[str, str], figures: dict) -> tuple[str, ...]:
    numbers = (format_number(figures[one]) for one in FIGURES)
    return (*name, f"{100 * figures['tracked_fraction']:.1f}", *numbers, str(figures["false_tracked_frames"]))


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives whose images get worse: how much of them is tracked, how well, and whether covariances stay honest.

Tracks each drive as recorded, and with its images blurred, noisy, dark and covered. Every third image is in the map and not
scored. The weights are those of the command line: run it once for each and compare.

    experiments/drives_under_change.py ../shared/data -o out/drives --docs docs/evidence/results.md
"""

from __future__ import annotations

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
    args = parser.parse_args()
    extractor, results, rows = load_extractor(args.weights), {}, []
    for scene in common.scenes_of(args):
        path = args.output / f"{scene.name}.pixmap"
        localizer = Localizer(Map.open(path) if path.is_file() else scene.build_map(extractor, path), extractor)
        for change in CHANGES:
            if scene.name not in common.VALIDATION_DRIVES and change.severity:
                continue
            with BagReader(scene.drive) as bag, show_progress(f"{scene.name}, {change}") as progress:
                run = offline.run_bag(localizer.tracker(), degraded(bag, change), progress=progress)
            figures = run_figures(run, skip_map_frames=common.MAP_STRIDE)
            results[f"{scene.name}, {change}"] = figures
            numbers = (format_number(figures[name]) for name in FIGURES)
            false = figures["false_tracked_frames"]
            rows.append((scene.name, str(change), f"{100 * figures['tracked_fraction']:.1f}", *numbers, str(false)))
            print(*rows[-1], sep=" | ", flush=True)
            common.save(args, "drives", results, {"drives": markdown_table(HEAD, rows)})
    return common.finish(args, {"drives under change": markdown_table(HEAD, rows)})


if __name__ == "__main__":
    run_script(main)

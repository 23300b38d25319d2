#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the prior over time is worth: drives tracked with and without it, and without what it learns on the way.

The prior is where odometry leads from the last pose, with a covariance. Its trust on each level is learned beforehand (level
weights); how far these wheels err and how long their metre is, while driving. Every third image is in the map and not scored.

    experiments/temporal_prior.py ../shared/data -o out/prior --docs docs/evidence/temporal_prior.md
"""

from __future__ import annotations

from dataclasses import replace

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
from pixloc_ros.tracking.frame_aligner import AlignerOptions
from pixloc_ros.tracking.learned_noise import LearnedNoiseOptions
from pixloc_ros.tracking.options import TrackerOptions

CHANGES = (*(Degradation("blur", px) for px in (0, 15, 30, 45)), Degradation("noise", 80), Degradation("occlusion", 70))
SAME_METRE = LearnedNoiseOptions(most_way=1.0)
NOTHING = replace(SAME_METRE, least=1.0, most=1.0)
VARIANTS = {
    "only where it starts": (False, NOTHING),
    "a factor, usual noise": (True, NOTHING),
    "noise learned on the way": (True, SAME_METRE),
    "and the metre (ships)": (True, LearnedNoiseOptions()),
}
"""Whether the prior is a factor, and what is learned on the way."""
FIGURES = ("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg", "nees_mean")
HEAD = "drive | images | prior | tracked % | median m | p95 m | median deg | NEES mean (6 is right) | false tracks"


def main() -> int:
    args = common.parser(__doc__, "out/prior", common.VALIDATION_DRIVES, drives=True).parse_args()
    extractor, results, rows = load_extractor(args.weights), {}, []
    for scene in common.scenes_of(args):
        path = args.output / f"{scene.name}.pixmap"
        known = Map.open(path) if path.is_file() else scene.build_map(extractor, path)
        for change in CHANGES:
            for name, (factor, learning) in VARIANTS.items():
                localizer = Localizer(known, extractor, AlignerOptions(use_prior_factor=factor))
                tracker = localizer.tracker(TrackerOptions(learning=learning))
                with BagReader(scene.drive) as bag, show_progress(f"{scene.name}, {change}, {name}") as progress:
                    run = offline.run_bag(tracker, degraded(bag, change), progress=progress)
                figures = run_figures(run, skip_map_frames=common.MAP_STRIDE)
                results[f"{scene.name}, {change}, {name}"] = figures
                numbers = (format_number(figures[figure]) for figure in FIGURES)
                false = str(figures["false_tracked_frames"])
                rows.append((scene.name, str(change), name, f"{100 * figures['tracked_fraction']:.1f}", *numbers, false))
                common.save(args, "prior", results, {"temporal prior": markdown_table(HEAD, rows)})
    return common.finish(args, {"temporal prior": markdown_table(HEAD, rows)})


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether the published covariances can be believed: NEES and coverage of the 95 % ellipsoid on drives with ground truth.

NEES is the squared error in units of the covariance: 6 on average where it is right (six degrees of freedom), less where the
tracker is too cautious. The band is where the mean of so many independent frames lies in 95 % of all cases; errors of
successive frames are similar, so the true band is wider. Only poses given as TRACKING count, and no image that is in the map.

    experiments/consistency.py ../shared/data --simulations out/sim1 out/sim2 --docs docs/evidence/reliability.md
"""

from __future__ import annotations

import common
import numpy as np
from scipy.stats import chi2

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.degradation import CONDITIONS, degraded
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.io.bags import BagReader


def main() -> int:
    parser = common.parser(__doc__, "out/consistency", common.VALIDATION_DRIVES, drives=True)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=["nominal"])
    args = parser.parse_args()
    rows: list[dict] = []
    for scene in common.scenes_of(args):
        localizer, stride = scene.localizer(args), common.map_stride(scene, args)
        for condition in args.conditions:
            with BagReader(scene.drive) as bag, show_progress(f"{scene.name}, {condition}") as progress:
                run = offline.run_bag(localizer.tracker(relocalization=False), degraded(bag, condition), progress=progress)
                in_map = set(list(bag.image_stamps())[::stride]) if stride else set()
            rows.append({"drive": scene.name, "condition": condition, **figures(common.tracked_nees(run, in_map))})
            common.save(args, "consistency", rows, {"consistency": report(rows)})
    return common.finish(args, {"consistency": report(rows)})


def figures(nees: np.ndarray) -> dict[str, object]:
    """Mean, median, the 95 % band of the mean, and the share inside the 95 % ellipsoid."""
    count = len(nees)
    if not count:
        return {"frames": 0}
    band = [float(chi2.ppf(p, 6 * count)) / count for p in (0.025, 0.975)]
    coverage = float(np.mean(nees <= common.NEES_95))
    return {"frames": count, "mean": float(nees.mean()), "median": float(np.median(nees)), "band": band, "coverage": coverage}


def report(rows: list[dict]) -> str:
    """One row for each drive and condition."""

    def cells(row: dict) -> list[str]:
        if not row["frames"]:
            return ["–"] * 4
        band, inside = "{:.2f} to {:.2f}".format(*row["band"]), f"{100 * row['coverage']:.1f} %"
        return [f"{row['mean']:.2f}", band, f"{row['median']:.2f}", inside]

    head = "drive | images | tracked frames | NEES mean | 95 % band | median (5.35 is right) | inside the 95 % ellipsoid"
    return markdown_table(head, ((row["drive"], row["condition"], row["frames"], *cells(row)) for row in rows))


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether the published covariances can be believed: NEES and coverage of the 95 % ellipsoid on drives with ground truth.

NEES is the squared error in units of the covariance: 6 on average where it is right (six degrees of freedom), less where the
tracker is too cautious. The band is where the mean of so many independent frames lies in 95 % of all cases; errors of
successive frames are alike, so the true band is wider. Only poses given as TRACKING count, and no image that is in the map.

    experiments/consistency.py ../shared/data --simulations out/sim1 out/sim2 --write docs/evidence/reliability.md
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import metrics, offline
from pixloc_ros.evaluation.degradation import CONDITIONS, degraded
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS, BagRun
from pixloc_ros.features import load_extractor
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.tracking.types import TrackState

SCENES = ("kitti07", "kitti01")
"""Validation scenes with a drive. The truth of tum_fr1_rpy is wrong by more than the poses are: name it to see."""
MAP_STRIDE = 3
"""Every third image of a scene's drive is in its map; simulated drives take part in no map."""
FREEDOM = 6
LIMIT_95 = float(chi2.ppf(0.95, FREEDOM))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes with map/, images/ and drive/")
    parser.add_argument("--scenes", nargs="*", default=list(SCENES))
    parser.add_argument("--simulations", nargs="*", type=Path, default=[], help="folders made by pixloc simulate")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=["nominal"])
    parser.add_argument("--weights", default="compact")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page whose table between its markers is replaced")
    args = parser.parse_args()
    extractor = load_extractor(args.weights)
    rows = []
    drives = [(args.data / name, MAP_STRIDE) for name in args.scenes] + [(folder, 0) for folder in args.simulations]
    for folder, stride in drives:
        with show_progress(f"{folder.name}: map") as progress:
            map_, _ = build_map_from_colmap(folder / "map", folder / "images", extractor, progress=progress)
        localizer = Localizer(map_, extractor)
        for condition in args.conditions:
            with BagReader(folder / "drive") as bag, show_progress(f"{folder.name}, {condition}") as progress:
                run = offline.run_bag(localizer.tracker(relocalization=False), degraded(bag, condition), progress=progress)
                in_map = set(list(bag.image_stamps())[::stride]) if stride else set()
            rows.append({"drive": folder.name, "condition": condition, **figures(tracked_nees(run, in_map))})
    if args.output:
        write_text(args.output, json.dumps(rows, indent=1) + "\n")
    print(markdown(rows))
    if args.write:
        write_section(args.write, "consistency", markdown(rows))
    return 0


def tracked_nees(run: BagRun, left_out: set[int]) -> np.ndarray:
    """Float64 [N] of the frames given as TRACKING whose truth is known."""
    stamps = np.array(
        [
            r.stamp_ns
            for r in run.records
            if r.state is TrackState.TRACKING and r.map_from_base is not None and r.stamp_ns not in left_out
        ],
        np.int64,
    )
    poses, known = run.truth.at(stamps, TRUTH_GAP_NS)
    errors = metrics.absolute_errors(Trajectory(stamps[known], poses[known]), run.estimate, tolerance_ns=0)
    return np.empty(0) if errors.nees is None else errors.nees[np.isfinite(errors.nees)]


def figures(nees: np.ndarray) -> dict[str, object]:
    """Mean, median, the 95 % band of the mean, and the share inside the 95 % ellipsoid."""
    count = len(nees)
    if not count:
        return {"frames": 0}
    low, high = (float(chi2.ppf(p, FREEDOM * count)) / count for p in (0.025, 0.975))
    return {
        "frames": count,
        "mean": float(nees.mean()),
        "median": float(np.median(nees)),
        "band": [low, high],
        "coverage": float(np.mean(nees <= LIMIT_95)),
    }


def markdown(rows: list[dict]) -> str:
    """One row a drive and condition."""
    lines = [
        "| drive | images | tracked frames | NEES mean | 95 % band | median (5.35 is right) | inside the 95 % ellipsoid |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["drive"], row["condition"], row["frames"]]
        if row["frames"]:
            cells += [
                f"{row['mean']:.2f}",
                "{:.2f} to {:.2f}".format(*row["band"]),
                f"{row['median']:.2f}",
                f"{100 * row['coverage']:.1f} %",
            ]
        else:
            cells += ["–"] * 4
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"consistency: error: {error}", file=sys.stderr)
        sys.exit(2)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Does the tracker notice that its inputs are wrong? Focal lengths, clocks and wheels made wrong on real drives, as in
docs/evidence/reliability.md.

For each drive: a map of the scene's COLMAP model; then the drive through the tracker as recorded, with a calibration whose focal
length is wrong, with images stamped too late or early, and with odometry that measures distance or turning too long or short.

    experiments/input_checks.py ../shared/data --simulated -o out/input_checks --docs docs/evidence/reliability.md
"""

from __future__ import annotations

from collections.abc import Callable

import common
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.altered_bag import AlteredBag, Change, OdometryChange
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.localization import Localizer

KINDS = {
    "focal_ratio": ("right focal length / given", 1, 4),
    "time_offset_s": ("to add to the images' stamps, ms", 1e3, 0),
    "way_ratio": ("odometry's way / camera's", 1, 3),
    "turn_ratio": ("odometry's turning / camera's", 1, 3),
}
"""Findings of the tracker: title, unit, digits."""


def wheels(way: float = 1.0, turning: float = 1.0) -> Callable[[], OdometryChange]:
    """Odometry that measures so many times the distance and the turning."""

    def made() -> OdometryChange:
        before = measured = None

        def changed(stamp_ns: int, odom_from_base: torch.Tensor) -> torch.Tensor:
            nonlocal before, measured
            if before is None:
                measured = odom_from_base
            else:
                motion = se3.inverse(before) @ odom_from_base
                turn = se3.so3_exp(se3.so3_log(motion[:3, :3]) * turning)
                measured = measured @ se3.from_rotation_translation(turn, motion[:3, 3] * way)
            before = odom_from_base
            return measured

        return changed

    return made


SCALES = (0.8, 0.9, 1.1, 1.4)
FAULTS = {
    "focal_ratio": {1 / factor: Change(focal=factor) for factor in (0.95, 0.99, 1.01, 1.05)},
    "time_offset_s": {-s: Change(late_ns=round(s * 1e9)) for s in (-0.2, -0.1, -0.06, -0.03, 0.03, 0.06, 0.1, 0.2)},
    "way_ratio": {scale: Change(odometry=wheels(way=scale)) for scale in SCALES},
    "turn_ratio": {scale: Change(odometry=wheels(turning=scale)) for scale in SCALES},
}
"""What makes an input wrong, by the finding and by the value that should be found."""


def main() -> int:
    args = common.parser(__doc__, "out/input_checks", drives=True).parse_args()
    results: dict[str, dict] = {}
    for scene in common.scenes_of(args):
        localizer = scene.localizer(args)
        with BagReader(scene.drive) as bag, show_progress(scene.name) as progress:
            results[scene.name] = {"as recorded": figures(localizer, bag, None)}
            for number, (name, changes) in enumerate(FAULTS.items()):
                progress(number, len(FAULTS), name)
                rows = {truth: figures(localizer, bag, change) for truth, change in changes.items()}
                results[scene.name][name] = rows
        common.save(args, "input_checks", results, {"input checks": report(results)})
    return common.finish(args, {"input checks": report(results)})


def figures(localizer: Localizer, bag: BagReader, change: Change | None) -> dict[str, object]:
    """What the tracker found and said on a drive, how much of it was tracked, and how exactly."""
    run = offline.run_bag(localizer.tracker(), AlteredBag(bag, change))
    errors = run_figures(run, skip_map_frames=common.MAP_STRIDE)
    result = {"findings": dict(run.findings), "remarks": list(run.remarks), "tracked": errors["tracked_fraction"]}
    return result | {"median_m": errors["translation_error_median_m"]}


def report(results: dict[str, dict]) -> str:
    """A row for each drive and finding: what it should be (the drive as recorded first), and what was found."""
    table = []
    for scene, result in results.items():
        for name, (title, unit, digits) in KINDS.items():
            recorded, wrong = result["as recorded"], result[name]

            def number(value: float | None, unit: float = unit, digits: int = digits) -> str:
                return "–" if value is None else f"{unit * value:.{digits}f}"

            found = ", ".join(number(row["findings"].get(name)) for row in wrong.values())
            std = number(max((row["findings"].get(f"{name}_std", 0.0) for row in wrong.values()), default=0.0) or None)
            errors = [100 * row["median_m"] for row in (recorded, *wrong.values()) if row["median_m"] is not None]
            warned = f"{sum(not set(row['remarks']) <= set(recorded['remarks']) for row in wrong.values())} of {len(wrong)}"
            tracked = f"{100 * min(row['tracked'] for row in wrong.values()):.0f}"
            cells = (found, std, warned, number(recorded["findings"].get(name)), tracked, f"{errors[0]:.3g}, {max(errors):.3g}")
            table.append((scene, title, ", ".join(map(number, wrong)), *cells))
    head = (
        "drive | what | made so | found | largest std | warned, of these wrong | as recorded | tracked %, least "
        "| median error as recorded, worst, cm"
    )
    return markdown_table(head, table)


if __name__ == "__main__":
    run_script(main)

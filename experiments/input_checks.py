#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Does the tracker notice that its inputs are wrong? Focal lengths, clocks and wheels made wrong on real drives, as in
docs/evidence/reliability.md.

For each drive: a map of the scene's COLMAP model; then the drive through the tracker as recorded, with a calibration whose focal
length is wrong, with images stamped too late or early, and with odometry that measures distance or turning too long or short.

    experiments/input_checks.py ../shared/data --simulated -o out/input_checks --docs docs/evidence/reliability.md
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

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

FOCAL = (0.95, 0.99, 1.01, 1.05)
LATE_S = (-0.2, -0.1, -0.06, -0.03, 0.03, 0.06, 0.1, 0.2)
SCALES = (0.8, 0.9, 1.1, 1.4)


@dataclass(frozen=True)
class Fault:
    """What is wrong with the inputs.

    Attributes:
        focal: The focal length of the calibration over the right one.
        late_s: What is added to the images' stamps.
        way: The odometry's distance over the right one.
        turning: The odometry's turning over the right one.
    """

    focal: float = 1.0
    late_s: float = 0.0
    way: float = 1.0
    turning: float = 1.0

    @property
    def truth(self) -> dict[str, float]:
        """What the tracker should find, by the name it has among its findings."""
        return {"focal_ratio": 1 / self.focal, "time_offset_s": -self.late_s, "way_ratio": self.way, "turn_ratio": self.turning}

    def change(self) -> Change:
        """As an alteration of a drive."""
        return Change(focal=self.focal, late_ns=round(self.late_s * 1e9), odometry=self._odometry)

    def _odometry(self) -> OdometryChange:
        before = measured = None

        def changed(stamp_ns: int, odom_from_base: torch.Tensor) -> torch.Tensor:
            nonlocal before, measured
            if before is None:
                measured = odom_from_base
            else:
                motion = se3.inverse(before) @ odom_from_base
                turn = se3.so3_exp(se3.so3_log(motion[:3, :3]) * self.turning)
                measured = measured @ se3.from_rotation_translation(turn, motion[:3, 3] * self.way)
            before = odom_from_base
            return measured

        return changed


FAULTS = (
    Fault(),
    *(Fault(focal=f) for f in FOCAL),
    *(Fault(late_s=s) for s in LATE_S),
    *(Fault(way=s) for s in SCALES),
    *(Fault(turning=s) for s in SCALES),
)


def main() -> int:
    args = common.parser(__doc__, "out/input_checks", drives=True).parse_args()
    results: dict[str, list[dict]] = {}
    for scene in common.scenes_of(args):
        results[scene.name] = evaluate(scene, args)
        common.save(args, "input_checks", results, {"input checks": report(results)})
    return common.finish(args, {"input checks": report(results)})


def evaluate(scene: common.Scene, args) -> list[dict]:
    """All faults on one drive."""
    localizer, rows = scene.localizer(args), []
    with show_progress(scene.name) as progress:
        for number, fault in enumerate(FAULTS):
            progress(number, len(FAULTS))
            with BagReader(scene.drive) as bag:
                run = offline.run_bag(localizer.tracker(), AlteredBag(bag, fault.change()))
            figures = run_figures(run, skip_map_frames=common.MAP_STRIDE)
            row = {"fault": asdict(fault), "truth": fault.truth, "findings": dict(run.findings), "remarks": list(run.remarks)}
            errors = {"tracked": figures["tracked_fraction"], "median_m": figures["translation_error_median_m"]}
            rows.append(row | errors)
    return rows


KINDS = {
    "focal_ratio": ("right focal length / given", 1, 4),
    "time_offset_s": ("to add to the images' stamps, ms", 1e3, 0),
    "way_ratio": ("odometry's way / camera's", 1, 3),
    "turn_ratio": ("odometry's turning / camera's", 1, 3),
}
"""Findings: title, unit, digits."""


def report(results: dict[str, list[dict]]) -> str:
    """A row for each drive and finding: what it should be (the drive as recorded first), and what was found."""
    table = []
    for scene, rows in results.items():
        for name, (title, unit, digits) in KINDS.items():
            wrong = [row for row in rows if row["truth"][name] != Fault().truth[name]]

            def number(value: float | None, unit: float = unit, digits: int = digits) -> str:
                return "–" if value is None else f"{unit * value:.{digits}f}"

            truths = ", ".join(number(row["truth"][name]) for row in wrong)
            found = ", ".join(number(row["findings"].get(name)) for row in wrong)
            std = number(max((row["findings"].get(f"{name}_std", 0.0) for row in wrong), default=0.0) or None)
            errors = [100 * row["median_m"] for row in (rows[0], *wrong) if row["median_m"] is not None]
            warned = f"{sum(bool(row['remarks']) for row in wrong)} of {len(wrong)}"
            tracked = f"{100 * min(row['tracked'] for row in wrong):.0f}"
            recorded, worst = number(rows[0]["findings"].get(name)), f"{errors[0]:.3g}, {max(errors):.3g}"
            table.append((scene, title, truths, found, std, warned, recorded, tracked, worst))
    head = (
        "drive | what | made so | found | largest std | warned, of these wrong | as recorded | tracked %, least "
        "| median error as recorded, worst, cm"
    )
    return markdown_table(head, table)


if __name__ == "__main__":
    run_script(main)

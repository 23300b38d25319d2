#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Does the tracker notice that its inputs are wrong? Focal lengths, clocks and wheels made wrong on real drives, as in
docs/evidence/reliability.md.

For each scene with map/, images/ and drive/ (and the simulated one with --simulated): a map of its COLMAP model; then the drive
through the tracker as recorded, with a calibration whose focal length is wrong, with images stamped too late or early, and with
odometry that measures its way or its turning too long or short. Writes a Markdown table and a JSON file.

    experiments/input_checks.py ../shared/data --simulated -o out/input_checks
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.io.frames import CameraFrame, Event, OdometryMessage
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_sim.recordings import SimulationOptions, simulate

FOCAL = (0.95, 0.99, 1.01, 1.05)
LATE_S = (-0.2, -0.1, -0.06, -0.03, 0.03, 0.06, 0.1, 0.2)
SCALES = (0.8, 0.9, 1.1, 1.4)
MAP_STRIDE = 3
"""Every third image of a drive is in the map; it is not scored."""


@dataclass(frozen=True)
class Fault:
    """focal: the focal length told over the right one. late_s: the images' stamps. way, turning: the odometry's over the right
    ones. truth: what the tracker should find, by the name it has among its findings."""

    focal: float = 1.0
    late_s: float = 0.0
    way: float = 1.0
    turning: float = 1.0

    @property
    def truth(self) -> dict[str, float]:
        return {"focal_ratio": 1 / self.focal, "time_offset_s": -self.late_s, "way_ratio": self.way, "turn_ratio": self.turning}

    def __str__(self) -> str:
        parts = (
            (self.focal, f"focal length told {100 * (self.focal - 1):+.0f} %"),
            (self.way, f"way measured {self.way:g} times"),
            (self.turning, f"turning measured {self.turning:g} times"),
        )
        texts = [text for factor, text in parts if factor != 1.0]
        if self.late_s:
            texts.append(f"images stamped {1e3 * abs(self.late_s):.0f} ms {'late' if self.late_s > 0 else 'early'}")
        return ", ".join(texts) or "none"


FAULTS = (
    Fault(),
    *(Fault(focal=f) for f in FOCAL),
    *(Fault(late_s=s) for s in LATE_S),
    *(Fault(way=s) for s in SCALES),
    *(Fault(turning=s) for s in SCALES),
)


class WrongInputs:
    """A `BagReader` with a fault; stamps are the bag's own business (`BagOptions.time_offset_s`)."""

    def __init__(self, bag: BagReader, fault: Fault) -> None:
        self._bag, self._fault = bag, fault

    def __getattr__(self, name: str) -> object:
        return getattr(self._bag, name)

    def events(self) -> Iterator[Event]:
        before = told = None
        for event in self._bag.events():
            if isinstance(event, OdometryMessage):
                pose = event.odom_from_base
                told = pose if before is None else told @ self._measured(se3.inverse(before) @ pose)
                before, event = pose, replace(event, odom_from_base=told)
            elif isinstance(event, CameraFrame) and self._fault.focal != 1.0:
                params = event.camera.params.clone()
                params[:2] *= self._fault.focal
                event = replace(event, camera=replace(event.camera, params=params))
            yield event

    def _measured(self, motion: torch.Tensor) -> torch.Tensor:
        turn = se3.so3_log(motion[:3, :3]) * self._fault.turning
        return se3.from_rotation_translation(se3.so3_exp(turn), motion[:3, 3] * self._fault.way)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/input_checks"), help="folder of the results")
    parser.add_argument("--scenes", nargs="*", help="names; default: all that have a map and a drive")
    parser.add_argument("--simulated", action="store_true", help="make a simulated drive of 40 s, too, in the output folder")
    parser.add_argument("--weights", default="compact")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="also put the table between <!-- input checks: begin --> and <!-- input checks: end --> there",
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
        results[scene.name] = evaluate(scene, args, extractor)
        # After each scene, so that a long run can be looked at.
        write_text(args.output / "input_checks.json", json.dumps(results, indent=2) + "\n")
    write_text(args.output / "input_checks.md", markdown(results))
    if args.write:
        write_section(args.write, "input checks", markdown(results))
    print(markdown(results))
    print(f"results are in {args.output}")
    return 0


def evaluate(scene: Path, args: argparse.Namespace, extractor: Extractor) -> list[dict]:
    """All faults on one scene's drive; its map goes to the output folder."""
    path = args.output / f"{scene.name}.pixmap"
    build_map_from_colmap(scene / "map", scene / "images", extractor)[0].save(path)
    localizer = Localizer.open(path, args.weights)
    rows = []
    with show_progress(scene.name) as progress:
        for number, fault in enumerate(FAULTS):
            progress(number, len(FAULTS), str(fault))
            with BagReader(scene / "drive", BagOptions(time_offset_s=fault.late_s)) as bag:
                run = offline.run_bag(localizer.tracker(), WrongInputs(bag, fault))
            figures = run_figures(run, skip_map_frames=MAP_STRIDE)
            rows.append(
                {
                    "fault": asdict(fault),
                    "text": str(fault),
                    "truth": fault.truth,
                    "findings": dict(run.findings),
                    "remarks": list(run.remarks),
                    "tracked": figures["tracked_fraction"],
                    "median_m": figures["translation_error_median_m"],
                }
            )
    return rows


KINDS = {
    "focal_ratio": ("right focal length / given", 1, 4),
    "time_offset_s": ("to add to the images' stamps, ms", 1e3, 0),
    "way_ratio": ("odometry's way / camera's", 1, 3),
    "turn_ratio": ("odometry's turning / camera's", 1, 3),
}
"""Findings: title, unit, digits."""


def markdown(results: dict[str, list[dict]]) -> str:
    """A row a drive and finding: what it should be (the drive as recorded first), and what was found."""
    lines = [
        "| drive | what | made so | found | largest std | warned, of these wrong | as recorded | tracked %, least "
        "| median error as recorded, worst, cm |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scene, rows in results.items():
        for name, (title, unit, digits) in KINDS.items():
            wrong = [row for row in rows if row["truth"][name] != Fault().truth[name]]
            truths = ", ".join(f"{unit * row['truth'][name]:.{digits}f}" for row in wrong)
            found = ", ".join(_number(row, name, unit, digits) for row in wrong)
            stds = [unit * row["findings"][f"{name}_std"] for row in wrong if name in row["findings"]]
            errors = [100 * row["median_m"] for row in (rows[0], *wrong) if row["median_m"] is not None]
            cells = [
                scene,
                title,
                truths,
                found,
                f"{max(stds):.{digits}f}" if stds else "–",
                f"{sum(bool(row['remarks']) for row in wrong)} of {len(wrong)}",
                _number(rows[0], name, unit, digits),
                f"{100 * min(row['tracked'] for row in wrong):.0f}",
                f"{errors[0]:.3g}, {max(errors):.3g}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(row: dict, name: str, unit: float, digits: int) -> str:
    found = row["findings"].get(name)
    return "–" if found is None else f"{unit * found:.{digits}f}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"input_checks: error: {error}", file=sys.stderr)
        sys.exit(2)

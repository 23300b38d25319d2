#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What terms between frames are worth: drives tracked with and without them, where the map shows nothing of the images for a
while, and where the images are as recorded, blurred, noisy, dark or covered.

"contrast inverted": the images, for some seconds. "no map": of these seconds the map has pictures of noise instead of its own.
Odometry is left out where it says so. Every third image is in the map and not scored.

    experiments/between_frames.py ../shared/data -o out/between --docs docs/evidence/temporal_prior.md
    experiments/between_frames.py ../shared/data --scenes kitti07 --begin 2 --only inverted    # rows whose name has the word
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass

import common
import cv2
import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.altered_bag import AlteredBag, Change
from pixloc_ros.evaluation.degradation import Degradation, degraded
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS, BagRun
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.tracking.types import TrackState

SPANS = {"kitti07": (0.25, 9.0), "kitti01": (0.25, 5.0), "tum_fr1_rpy": (4.0, 5.0)}
"""From when on the contrast is inverted, and for how long; kitti01 lasts 5 seconds in all. The map shows nothing for 5 s."""
VELOCITY_S = 1.0
"""Without odometry changes begin no sooner: before, a car's speed is not known."""
NO_MAP_S = 5.0
OTHERS = (
    *(Degradation("blur", px) for px in (0, 15, 30, 45)),
    Degradation("noise", 80),
    Degradation("dark", 2),
    Degradation("occlusion", 70),
    Degradation("blank", 0.8),
)
HEAD = (
    "drive | images | terms between frames | span, s | tracked % | dead reckoning % | times lost | "
    "wheels alone: median m | median m | p95 m | "
    "end, % of way | NEES of dead reckoning (mean) | false tracks"
)


@dataclass(frozen=True)
class Situation:
    """What is done to a drive: to its images, to the map's pictures, and whether there is odometry."""

    name: str
    images: Degradation | None = None
    begin_s: float = 1.0
    blind_map: bool = False
    odometry: bool = True


def situations(scene: str, begin: float | None = None) -> list[Situation]:
    begin_s, seconds = SPANS.get(scene, (2.0, 5.0))
    begin_s = begin_s if begin is None else begin
    inverted = Degradation("inverted", seconds)
    found = []
    for odometry, text in ((True, ""), (False, ", no odometry")):
        begin_s = begin_s if odometry else max(begin_s, VELOCITY_S)
        found.append(Situation(f"{inverted}{text}", inverted, begin_s, odometry=odometry))
        found.append(Situation(f"no map for {NO_MAP_S:g} s{text}", None, begin_s, True, odometry))
    found += [Situation(str(change), change) for change in OTHERS]
    return [*found, Situation("as recorded, no odometry", None, odometry=False)]


def blind_map(scene: common.Scene, begin_s: float, args: argparse.Namespace) -> Map:
    """The scene's map with noise in the place of its pictures for `NO_MAP_S` seconds."""
    path = args.output / f"{scene.name}_blind_{begin_s:g}.pixmap"
    if path.is_file():
        return Map.open(path)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    with BagReader(scene.drive) as bag:
        stamps = sorted(bag.image_stamps())
    for stamp_ns, source in zip(stamps, sorted(scene.images.iterdir()), strict=True):
        picture = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
        if begin_s <= (stamp_ns - stamps[0]) * 1e-9 <= begin_s + NO_MAP_S:
            picture = np.random.default_rng(stamp_ns).integers(0, 256, picture.shape, np.uint8)
        cv2.imwrite(str(folder / source.name), picture, (cv2.IMWRITE_JPEG_QUALITY, 98))
    build_map_from_colmap(scene.folder / "map", folder, load_extractor(args.weights))[0].save(path)
    return Map.open(path)


def track(scene: common.Scene, known: Map, situation: Situation, between: bool, args: argparse.Namespace) -> BagRun:
    tracker = Localizer(known, load_extractor(args.weights)).tracker(between_frames=between)
    name = f"{scene.name}, {situation.name}, {'with' if between else 'without'}"
    with BagReader(scene.drive) as bag, show_progress(name) as progress:
        drive = bag if situation.images is None else degraded(bag, situation.images, clear_s=situation.begin_s)
        if not situation.odometry:
            drive = AlteredBag(drive, Change(keeps=lambda stamp_ns, is_image: is_image))
        return offline.run_bag(tracker, drive, progress=progress)


def figures_of(run: BagRun, situation: Situation) -> dict[str, object]:
    """Of the whole run, and of the images in the span in which they, or the map, were changed."""
    figures = run_figures(run, skip_map_frames=common.MAP_STRIDE)
    first_ns = run.records[0].stamp_ns
    seconds = np.array([(record.stamp_ns - first_ns) * 1e-9 for record in run.records])
    scored = np.arange(len(seconds)) % common.MAP_STRIDE != 0
    length = math.inf
    if situation.blind_map:
        length = NO_MAP_S
    elif situation.images is not None and situation.images.kind == "inverted":
        length = situation.images.severity
    begin_s = situation.begin_s if math.isfinite(length) else 0.0
    span = (seconds >= begin_s) & (seconds <= begin_s + length)
    poses, known = run.truth.at(run.stamps_ns, TRUTH_GAP_NS)
    odometry, driven = run.odometry.at(run.stamps_ns, TRUTH_GAP_NS) if len(run.odometry) else (poses, np.zeros(len(poses), bool))
    errors, wheels, nees, end, first = [], [], [], math.nan, int(span.argmax())
    for k in np.flatnonzero(span & np.asarray(known)):
        record = run.records[k]
        if driven[first] and driven[k] and scored[k]:
            alone = poses[first] @ se3.inverse(odometry[first]) @ odometry[k]
            wheels.append(float(se3.pose_difference(alone, poses[k])[0]))
        if record.map_from_base is None:
            continue
        xi = se3.se3_log(se3.inverse(record.map_from_base) @ poses[k])
        end = float(se3.pose_difference(record.map_from_base, poses[k])[0])
        if scored[k]:
            errors.append(end)
            if record.state is TrackState.DEGRADED:
                nees.append(float(xi @ torch.linalg.solve(record.covariance, xi)))
    states = [record.state for record, inside in zip(run.records, span) if inside]
    places = poses[span & np.asarray(known)][:, :3, 3]
    way = float(torch.linalg.vector_norm(places.diff(dim=0), dim=-1).sum())
    times = [record.timings_ms["total"] for record, inside in zip(run.records, span) if inside and record.timings_ms]
    return {
        "span_s": float(seconds[span][-1] - seconds[span][0]),
        "tracked_pct": 100 * states.count(TrackState.TRACKING) / len(states),
        "degraded_pct": 100 * states.count(TrackState.DEGRADED) / len(states),
        "losses": figures["losses"],
        "median_m": float(np.median(errors)) if errors else math.nan,
        "wheels_m": float(np.median(wheels)) if wheels and math.isfinite(length) else math.nan,
        "p95_m": float(np.percentile(errors, 95)) if errors else math.nan,
        "end_pct": 100 * end / way if math.isfinite(length) else math.nan,
        "nees_degraded": float(np.mean(nees)) if nees else math.nan,
        "false": figures["false_tracked_frames"],
        "p50_ms": float(np.median(times)),
        "p99_ms": float(np.percentile(times, 99)),
        "all": figures,
        "errors": errors,
        "nees": nees,
    }


def row(name: tuple[str, str, str], figures: Mapping[str, float]) -> tuple[str, ...]:
    numbers = (figures[key] for key in ("wheels_m", "median_m", "p95_m", "end_pct", "nees_degraded"))
    shares = (f"{figures[key]:.1f}" for key in ("span_s", "tracked_pct", "degraded_pct"))
    shown = ("" if math.isnan(number) else format_number(number) for number in numbers)
    return (*name, *shares, str(figures["losses"]), *shown, str(figures["false"]))


def main() -> int:
    parser = common.parser(__doc__, "out/between", (*common.VALIDATION_DRIVES, "tum_fr1_rpy"), drives=True)
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose images are described with this word")
    parser.add_argument("--begin", type=float, metavar="S", help="when contrast or map change, s (default: early on)")
    parser.add_argument("--terms", choices=("with", "without"), help="only with, or only without them (default: both)")
    args, results, rows = parser.parse_args(), {}, []
    for scene in common.scenes_of(args):
        path = args.output / f"{scene.name}.pixmap"
        usual = Map.open(path) if path.is_file() else scene.build_map(load_extractor(args.weights), path)
        for situation in situations(scene.name, args.begin):
            if args.only not in situation.name:
                continue
            known = blind_map(scene, situation.begin_s, args) if situation.blind_map else usual
            for terms in ("without", "with"):
                if args.terms in (None, terms):
                    figures = figures_of(track(scene, known, situation, terms == "with", args), situation)
                    name = scene.name, situation.name, terms
                    results[", ".join(name)] = figures
                    rows.append(row(name, figures))
                    print(*rows[-1], sep=" | ", flush=True)
                    common.save(args, "between", results, {"between": markdown_table(HEAD, rows)})
    return common.finish(args, {"terms between frames": markdown_table(HEAD, rows)})


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Localization figures of a folder of scenes, as in docs/evidence/results.md.

For each scene: a map of its COLMAP model, and another of its RGB-D sequence where there is one (tum/); the queries localized
from each set of priors and without one; for scenes with drive/, the bag tracked offline. Writes Markdown tables and a JSON file.

    experiments/evaluate_scenes.py ../shared/data -o out/scenes
"""

from __future__ import annotations

import argparse

import common
import numpy as np

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import load_extractor
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.trajectory import write_benchmark_poses
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_rgbd
from pixloc_ros.tracking.frame_aligner import preset_options

PRIORS = ("small", "medium", "large", "none")
LEVELS = ((0.1, 0.002), (0.5, 0.01), (2.0, 0.05))
"""Degrees, share of the depth."""
SINGLE = "median deg | median % depth | median m | R@0.1°/0.2 % | R@0.5°/1 % | R@2°/5 % | ms p50 | ms p99"
DRIVE_KEYS = (
    *("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg", "rotation_error_p95_deg"),
    *("odometry_error_median_m", "losses", "frame_ms_p50", "frame_ms_p99", "nees_mean", "nees_median", "nees_inside_95"),
)
DRIVES = (
    "median m | p95 m | median deg | p95 deg | odometry alone, median m | losses | ms p50 | ms p99 | NEES mean (6 is right) "
    "| NEES median (5.35 is right) | share inside the 95 % ellipsoid"
)


def main() -> int:
    parser = common.parser(__doc__, "out/scenes")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=PRIORS)
    parser.add_argument("--preset", default="balanced", help="fast, balanced (default) or accurate")
    common.add_scheduler(parser)
    args, work, results = parser.parse_args(), {}, {}
    for scene in common.scenes_of(args):
        work[scene.name] = scene, "colmap", args
        if (scene.folder / "tum").is_dir():
            work[f"{scene.name}, RGB-D map"] = scene, "rgbd", args
    labels = list(work)
    for number, result in common.run_jobs(args, evaluate, list(work.values())):
        results[labels[number]] = result
        results = {label: results[label] for label in labels if label in results}
        common.save(args, "scenes", results, tables(results))
    return common.finish(args, tables(results))


def evaluate(job: tuple[common.Scene, str, argparse.Namespace]) -> dict[str, object]:
    """Everything about one map of one scene; its files go to the output folder."""
    scene, kind, args = job
    extractor, folder = load_extractor(args.weights), args.output / scene.name
    path = folder / f"{scene.name}_{kind}.pixmap"
    if kind == "colmap":
        map_ = scene.build_map(extractor, path)
    else:
        build_map_from_rgbd(scene.folder / "tum", extractor)[0].save(path)
        map_ = Map.open(path)
    size = {"keyframes": len(map_.keyframe_names), "points": len(map_.xyz), "mebibytes": path.stat().st_size / 2**20}
    result: dict[str, object] = {"map": size}
    localizer = Localizer(map_, extractor, preset_options(args.preset))
    for priors in args.priors:
        found = scene.localize(localizer, priors)
        write_benchmark_poses(folder / f"poses_{kind}_{priors}.txt", {r.name: r.camera_from_map for r in found if not r.reason})
        errors, times = scene.errors(found), [r.total_ms for r in found if r.alignment is not None]
        result[priors] = {"queries": len(found), **common.medians(errors)}
        result[priors] |= {"recall": [common.recall(errors, *level) for level in LEVELS]}
        result[priors] |= {f"ms_p{p}": float(np.percentile(times, p)) for p in (50, 99) if times}
    if scene.drive.is_dir():
        with BagReader(scene.drive) as bag, show_progress(f"{scene.name}: drive") as progress:
            run = offline.run_bag(localizer.tracker(), bag, progress=progress)
        result["drive"] = run_figures(run, skip_map_frames=common.MAP_STRIDE)
    return result


def tables(results: dict[str, dict]) -> dict[str, str]:
    """Two: single images, and drives."""
    single, drives = [], []
    for scene, result in results.items():
        for priors in (name for name in PRIORS if name in result):
            r = result[priors]
            depth = None if r["median_depth"] is None else 100 * r["median_depth"]
            figures = [format_number(v) for v in (r["median_deg"], depth, r["median_distance"])]
            times = [format_number(r.get(key)) for key in ("ms_p50", "ms_p99")]
            single.append((scene, priors, r["queries"], *figures, *(f"{100 * v:.0f}" for v in r["recall"]), *times))
        if "drive" in result:
            d = result["drive"]
            tracked = f"{100 * d['tracked_fraction']:.1f}"
            drives.append((scene, d["frames"], tracked, d["scored_frames"], *(format_number(d[key]) for key in DRIVE_KEYS)))
    result = {"scenes": markdown_table(f"scene | priors | queries | {SINGLE}", single)}
    return result | ({"drives": markdown_table(f"drive | frames | tracked % | scored | {DRIVES}", drives)} if drives else {})


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Localization figures of a folder of scenes, as in docs/evidence/results.md.

For each scene with map/, images/ and queries/: a map of the map split's COLMAP model, and another of its RGB-D
sequence where there is one (tum/); the queries localized from each set of priors (and from retrieval), scored by the
folder's own tool; for scenes with drive/, the bag tracked offline. Writes a Markdown table and a JSON file.

    experiments/evaluate_scenes.py ../shared/data -o out/scenes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import localize, offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.io.trajectory import read_benchmark_poses, write_benchmark_poses
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap, build_map_from_rgbd

PRIORS = ("small", "medium", "large", "none")
RGBD_FOLDER = "tum"
"""Of a scene: the map split in the format of the TUM RGB-D benchmark."""
MAP_STRIDE = 3
"""Every third image of a drive is in the map."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/scenes"), help="folder of the results")
    parser.add_argument("--scenes", nargs="+", help="names; default: all that have a map and queries")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--preset", default="balanced", help="fast, balanced (default) or accurate")
    parser.add_argument("--score", type=Path, help="the scoring tool (default: DATA/../tools/score.py)")
    args = parser.parse_args()
    score = args.score or args.data / ".." / "tools" / "score.py"
    if not score.is_file():
        print(f"no scoring tool {score}: give --score", file=sys.stderr)
        return 2
    names = args.scenes or sorted(p.parent.name for p in args.data.glob("*/queries") if (p.parent / "map").is_dir())
    extractor = load_extractor(args.weights)
    results = {}
    for name in names:
        for kind in ("colmap", "rgbd"):
            if kind == "rgbd" and not (args.data / name / RGBD_FOLDER).is_dir():
                continue
            label = name if kind == "colmap" else f"{name}, RGB-D map"
            results[label] = evaluate_scene(
                args.data / name, kind, args.output / name, extractor, args.weights, args.priors, score, args.preset
            )
            # After each scene, so that a long run can be looked at.
            write_text(args.output / "scenes.json", json.dumps(results, indent=2) + "\n")
            write_text(args.output / "scenes.md", markdown(results))
    print(markdown(results))
    return 0


def build(scene: Path, kind: str, extractor: Extractor) -> Map:
    """The scene's map from its COLMAP model ("colmap") or its RGB-D sequence ("rgbd")."""
    with show_progress(f"{scene.name}: map") as progress:
        if kind == "colmap":
            return build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)[0]
        return build_map_from_rgbd(scene / RGBD_FOLDER, extractor, progress=progress)[0]


def evaluate_scene(
    scene: Path, kind: str, output: Path, extractor: Extractor, weights: str, priors: list[str], score: Path, preset_name: str
) -> dict[str, object]:
    """Everything about one map of one scene; its files go to `output`."""
    began = time.perf_counter()
    map_ = build(scene, kind, extractor)
    path = output / f"{scene.name}_{kind}.pixmap"
    map_.save(path)
    about = {
        "keyframes": len(map_.keyframe_names),
        "points": len(map_.xyz),
        "mebibytes": path.stat().st_size / 2**20,
        "seconds": time.perf_counter() - began,
    }
    result: dict[str, object] = {"map": about}
    localizer = Localizer.open(path, weights, preset_name)
    queries = localize.read_queries(scene / "images", scene / "queries" / "cameras.txt")
    for name in priors:
        starts = {} if name == "none" else read_benchmark_poses(scene / "queries" / f"priors_{name}.txt")
        with show_progress(f"{scene.name}: priors {name}") as progress:
            found = localize.localize_queries(localizer, queries, starts, progress)
        poses = output / f"poses_{kind}_{name}.txt"
        write_benchmark_poses(poses, {r.name: r.camera_from_map for r in found if not r.reason})
        scored = subprocess.run(
            [sys.executable, str(score), str(scene), str(poses), "--json"], check=True, capture_output=True, text=True
        )
        stats = localize.summarize(found)
        del stats["per_image"]
        result[name] = {"score": json.loads(scored.stdout), "stats": stats}
    if (scene / "drive").is_dir():
        with BagReader(scene / "drive") as bag, show_progress(f"{scene.name}: drive") as progress:
            run = offline.run_bag(localizer.tracker(), bag, progress=progress)
        result["drive"] = run_figures(run, skip_map_frames=MAP_STRIDE)
    return result


def markdown(results: dict[str, dict]) -> str:
    """Two tables: single images, and drives."""
    lines = [
        "| scene | priors | queries | median deg | median % depth | median m | R@0.1°/0.2 % | R@0.5°/1 % "
        "| R@2°/5 % | ms p50 | ms p99 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for scene, result in results.items():
        for prior in PRIORS:
            if prior in result:
                s, t = result[prior]["score"], result[prior]["stats"]
                recall = [f"{100 * v:.0f}" for k, v in s.items() if k.startswith("recall@")]
                cells = [
                    scene,
                    prior,
                    s["queries"],
                    *(format_number(s[k]) for k in ("median_deg", "median_pct_depth", "median_dist")),
                    *recall,
                    *(format_number(t[f"frame_ms_p{p}"]) for p in (50, 99)),
                ]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "| drive | frames | tracked % | scored | median m | p95 m | median deg | p95 deg "
        "| odometry alone, median m | losses | ms p50 | ms p99 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for scene, result in results.items():
        if "drive" in result:
            d = result["drive"]
            keys = (
                "translation_error_median_m",
                "translation_error_p95_m",
                "rotation_error_median_deg",
                "rotation_error_p95_deg",
                "odometry_error_median_m",
                "losses",
                "frame_ms_p50",
                "frame_ms_p99",
            )
            cells = [
                scene,
                d["frames"],
                f"{100 * d['tracked_fraction']:.1f}",
                d["scored_frames"],
                *(format_number(d[k]) for k in keys),
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"evaluate_scenes: error: {error}", file=sys.stderr)
        sys.exit(2)

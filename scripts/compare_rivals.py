#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""This package beside other ways to find a camera in a map, on the same frames and machine, as in docs/results.md.

The rivals (klt, lk, xfeat_align, sift, orb, xfeat_mnn, ...) are run by a benchmark harness (its run.py) with an
interpreter that has their packages. The harness also exports what an outside system needs: priors, and the queries
clean, blurred, dark, occluded and at half resolution. These are localized here, the harness scores the trajectories, and
the same queries are timed the way it times the others: images in memory, map open, the quietest rounds of several count.
All figures are gathered in JSON files, one a scene, and a Markdown table.

    scripts/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python --rivals sift orb klt lk
    scripts/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python     # ours again, rivals kept
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import localize
from pixloc_ros.evaluation.trajectory import Trajectory, read_benchmark_poses, read_tum, write_text, write_tum
from pixloc_ros.features import load_extractor
from pixloc_ros.features.images import load_image
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.mapping import build_map_from_colmap

OURS = "pixloc_ros"
VARIANTS = ("clean", "blur", "lowlight", "occlusion", "halfres")
LEVELS = {0: "small", 1: "medium", 2: "large"}
"""The harness's numbers of the prior sets."""
RUNS = [("clean", 0), ("clean", 1), ("clean", 2), *((variant, 0) for variant in VARIANTS[1:])]
TIMED_QUERIES, ROUNDS, QUIETEST = 8, 6, 3
"""As in the harness."""
SAME_FRAME = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/rivals"), help="folder of maps and results")
    parser.add_argument("--scenes", nargs="+", help="names; default: all that have a map and queries")
    parser.add_argument("--rivals", nargs="*", default=[], help="rivals to run (again); results of others are kept")
    parser.add_argument("--harness", type=Path, help="the harness (default: DATA/../tools/peers/run.py)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the rivals' packages")
    parser.add_argument("--max-queries", type=int, default=0, help="so many of a scene's queries only (0: all)")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--no-timing", action="store_true", help="accuracy only")
    parser.add_argument("--no-accuracy", action="store_true", help="time again, on a quieter machine")
    args = parser.parse_args()
    harness = args.harness or args.data / ".." / "tools" / "peers" / "run.py"
    if not harness.is_file():
        print(f"no harness {harness}: give --harness", file=sys.stderr)
        return 2
    names = args.scenes or sorted(p.parent.name for p in args.data.glob("*/queries") if (p.parent / "map").is_dir())
    for name in names:
        compare(args.data / name, args, [
            args.python, str(harness), "--scene", str(args.data / name), "--max-queries", str(args.max_queries),
            "--cache", str(args.output / "cache"), "--out", str(args.output / f"{name}.json")])
    results = {name: json.loads((args.output / f"{name}.json").read_text()) for name in names}
    table = markdown(results)
    write_text(args.output / "rivals.md", table)
    print(table)
    return 0


def compare(scene: Path, args: argparse.Namespace, harness: list[str]) -> None:
    """One scene: rivals, then ours; everything ends up in the harness's result file."""
    name, results = scene.name, args.output / f"{scene.name}.json"
    args.output.mkdir(parents=True, exist_ok=True)
    export = args.output / "export" / name
    if not (export / "lists.json").is_file():
        subprocess.run([*harness, "--peers", "--export", str(export)], check=True)
    switches = ["--no-timing"] * args.no_timing + ["--no-accuracy"] * args.no_accuracy
    if args.rivals:
        subprocess.run([*harness, *switches, "--peers", *args.rivals], check=True, stdout=subprocess.DEVNULL)
    map_path = args.output / "maps" / f"{name}.pixmap"
    extractor = load_extractor(args.weights)
    with show_progress(f"{name}: map") as progress:
        map_, _ = build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)
    map_.save(map_path)
    if not args.no_accuracy:
        found = localize_all(export, world_from_map(export, scene), map_path, args.weights, args.output / "ours" / name)
        specs = [word for (variant, level), path in found.items()
                 for word in ("--external", f"{OURS}@{variant}@{level}={path}")]
        subprocess.run([*harness, "--peers", *specs], check=True, stdout=subprocess.DEVNULL)
    if not args.no_timing:
        # In a process of its own, so that the peak of its memory is its own.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            timing = pool.apply(time_ours, (export, world_from_map(export, scene), map_path, args.weights))
        result = json.loads(results.read_text())
        result["peers"].setdefault(OURS, {}).update(timing)
        write_text(results, json.dumps(result))


def world_from_map(export: Path, scene: Path) -> torch.Tensor:
    """[4, 4]: the harness may use another world frame than the scene's map; the queries' truth is known in both."""
    world_from_camera = read_tum(export / "truth.txt").map_from_body
    camera_from_map = read_benchmark_poses(scene / "queries" / "truth.txt")
    both = world_from_camera @ torch.stack([camera_from_map[name] for name in query_names(export)])
    if float((both - both[0]).abs().max()) > SAME_FRAME:
        raise InputError(f"{export} and {scene} have different poses: remove the export")
    return both[0]


def localize_all(export: Path, frame: torch.Tensor, map_path: Path, weights: str, output: Path
                 ) -> dict[tuple[str, int], Path]:
    """Trajectories (TUM files) of every variant and prior set, one pose a query that was found. frame: world_from_map."""
    localizer = localize.open_localizer(map_path, weights)
    names = query_names(export)
    paths = {}
    for variant, level in RUNS:
        priors = read_tum(export / f"prior_{level}.txt")
        camera = export_camera(export / variant)
        poses = []
        with show_progress(f"{export.name}: {variant}, priors {LEVELS[level]}") as progress:
            for k, (name, stamp) in enumerate(zip(names, priors.stamps_ns.tolist(), strict=True)):
                prior = se3.inverse(frame) @ priors.map_from_body[k]
                result = localizer.localize(load_image(export / variant / png_name(name)), camera, prior)
                if result.success:
                    poses.append((stamp, frame @ result.map_from_camera))
                progress(k + 1, len(names))
        paths[variant, level] = output / f"{variant}_{level}.txt"
        paths[variant, level].parent.mkdir(parents=True, exist_ok=True)
        write_tum(paths[variant, level], Trajectory.from_poses(poses))
    return paths


def time_ours(export: Path, frame: torch.Tensor, map_path: Path, weights: str) -> dict[str, object]:
    """Milliseconds a query (small priors), as the harness takes them: median over the quietest rounds."""
    torch.set_num_threads(2)
    localizer = localize.open_localizer(map_path, weights)
    priors, camera = read_tum(export / "prior_0.txt"), export_camera(export / "clean")
    starts = se3.inverse(frame) @ priors.map_from_body
    images = [load_image(export / "clean" / png_name(name)) for name in query_names(export)[:TIMED_QUERIES]]
    rounds = []
    for _ in range(ROUNDS + 1):
        outside, cpu, wall = _busy_s(), time.process_time(), time.perf_counter()
        stages = [localizer.localize(image, camera, prior).timings_ms
                  for image, prior in zip(images, starts)]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rounds.append(((_busy_s() - outside - cpu) / wall, 1e3 * cpu / len(images), 1e3 * wall / len(images), stages))
    quiet = sorted(rounds[1:], key=lambda r: r[0])[:QUIETEST]  # the first round warms up
    stages = [stage for r in quiet for stage in r[3]]
    median = {key: float(np.median([stage[key] for stage in stages])) for key in stages[0]}
    ms = {"features": median["prepare"] + median["features"], "matching": median["gather"],
          "solver": median["alignment"],
          "total": float(np.median([r[2] for r in quiet])),
          "cpu": float(np.median([r[1] for r in quiet])),
          "outside": float(np.median([r[0] for r in quiet]))}
    return {"ms": ms, "rss_mib": _peak_mib()}


def markdown(results: dict[str, dict]) -> str:
    """Per scene: accuracy and robustness of each, then cost."""
    lines = []
    for scene, result in results.items():
        unit = "cm" if result["metric"] else "% depth"
        lines += [f"### {scene}: {result['refs']} map images, {result['queries']} queries", "",
                  f"| | small: deg | {unit} | R | medium: deg | {unit} | R | large: deg | {unit} | R | blur | dark "
                  "| occluded | half res |", "|---" * 14 + "|"]
        for peer, entry in sorted(result["peers"].items(), key=lambda item: item[0] != OURS):
            summary = entry.get("summary", {})
            cells = [c for level in LEVELS for c in _accuracy(summary.get(f"clean@{level}"), result["metric"])]
            cells += [_accuracy(summary.get(f"{variant}@0"), result["metric"])[2] for variant in
                      ("blur", "lowlight", "occlusion", "halfres")]
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
        timed = {peer: entry for peer, entry in result["peers"].items() if "ms" in entry}
        if timed:
            lines += ["", "| | features | matching | solver | total ms | CPU ms | peak MiB | cores others took |",
                      "|---" * 8 + "|"]
            for peer, entry in sorted(timed.items(), key=lambda item: item[0] != OURS):
                ms = entry["ms"]
                cells = [f"{ms[key]:.1f}" for key in ("features", "matching", "solver", "total", "cpu")]
                cells += [f"{entry['rss_mib']:.0f}", f"{ms['outside']:.2f}"]
                lines.append(f"| {peer} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _accuracy(summary: dict | None, metric: bool) -> list[str]:
    if summary is None:
        return ["–"] * 3
    if summary["med_deg"] is None:
        return ["lost", "lost", f"{100 * summary['recall'][1]:.0f}"]
    distance = f"{100 * summary['med_trans']:.2f}" if metric else f"{100 * summary['med_rel']:.3f}"
    return [f"{summary['med_deg']:.3f}", distance, f"{100 * summary['recall'][1]:.0f}"]


def query_names(export: Path) -> list[str]:
    """In the order of the trajectories."""
    return [query["name"] for query in json.loads((export / "lists.json").read_text())["queries"]]


def png_name(name: str) -> str:
    """How the export calls a query's image."""
    return str(Path(name).with_suffix(".png"))


def export_camera(folder: Path) -> Camera:
    return Camera.parse_colmap_line((folder / "camera.txt").read_text().strip())


def _peak_mib() -> float:
    """Largest resident memory of this process. Not `getrusage`, which counts what the parent held when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _busy_s() -> float:
    """Seconds of processor time that the whole machine has spent, stolen time included."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"compare_rivals: error: {error}", file=sys.stderr)
        sys.exit(2)

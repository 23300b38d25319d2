#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What maps weigh and take to make, as in docs/evidence/maps.md: sizes and their price in accuracy, and maps of matched features.

For each scene (map/, images/, queries/): the map of its COLMAP model, whole and made smaller in several ways, with bytes per
keyframe and point, time to make per image, and the errors of the queries from the small priors. Where there is drive/, also the
map of the bag's images that the model has. Beside them the map that a benchmark harness (its mapping.py) makes of the same images
with matched features (`matched_features.py`): its size as hloc stores it (keypoint, score and descriptor in half precision, a
4096-number global descriptor per image, COLMAP's binary model). Times are of the processor, all cores together.

    experiments/map_sizes.py ../shared/data -o out/sizes --scenes kitti07 fox
    experiments/map_sizes.py ../shared/data -o out/sizes --python ~/rivals/bin/python --peers sift aliked_lg
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
from pixloc_ros.evaluation import localize
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.io.files import write_text
from pixloc_ros.io.trajectory import read_benchmark_poses, write_benchmark_poses
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.build.care import PruneOptions, prune
from pixloc_ros.mapping.build.posed_bag import PosedBag, PosedBagOptions
from pixloc_ros.mapping.build.posed_frames import build_map_from_posed_frames

SIZES = {
    "whole": PruneOptions(),
    "int8": PruneOptions(int8=True),
    "400 points a keyframe": PruneOptions(points_per_keyframe=400),
    "200 points a keyframe": PruneOptions(points_per_keyframe=200),
    "200 points, int8": PruneOptions(points_per_keyframe=200, int8=True),
    "100 points, int8": PruneOptions(points_per_keyframe=100, int8=True),
    "keyframes 0.25 depths apart": PruneOptions(keyframe_spacing=0.25),
}
BAG = "from the bag, points and features"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/sizes"))
    parser.add_argument("--scenes", nargs="+", default=["kitti07", "fox"])
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--harness", type=Path, help="folder of the harness (default: DATA/../tools/peers)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the harness's packages")
    parser.add_argument("--peers", nargs="*", default=["sift"], help="features of the harness to make maps of")
    args = parser.parse_args()
    tools = args.data / ".." / "tools"
    results = {}
    for name in args.scenes:
        results[name] = measure(args.data / name, args.output, args.weights, tools / "score.py")
        for peer in args.peers:
            results[name][f"hloc's files, {peer}"] = matched(args, args.harness or tools / "peers", args.data / name, peer)
        write_text(args.output / "sizes.json", json.dumps(results, indent=2) + "\n")
    print(markdown(results))
    return 0


def measure(scene: Path, output: Path, weights: str, score: Path) -> dict[str, dict]:
    """Sizes, times and errors of the scene's map and of what it is made smaller to."""
    extractor = load_extractor(weights)
    for _ in range(2):  # the first call of everything is slow
        begin = time.process_time()
        whole = build_map_from_colmap(scene / "map", scene / "images", extractor)[0]
        seconds = time.process_time() - begin
    queries = localize.read_queries(scene / "images", scene / "queries" / "cameras.txt")
    priors = read_benchmark_poses(scene / "queries" / "priors_small.txt")
    rows = {}
    maps = {label: (prune(whole, options), seconds if label == "whole" else None) for label, options in SIZES.items()}
    if (scene / "drive").is_dir():
        maps[BAG] = map_of_bag(scene, output, extractor)
    for label, (made, seconds) in maps.items():
        path = output / f"{scene.name}_{len(rows)}.pixmap"
        made.save(path)
        map_ = Map.open(path)
        with show_progress(f"{scene.name}, {label}") as progress:
            found = localize.localize_queries(Localizer(map_, extractor), queries, priors, progress)
        poses = path.with_suffix(".txt")
        write_benchmark_poses(poses, {r.name: r.camera_from_map for r in found if not r.reason})
        scored = json.loads(
            subprocess.run(
                [sys.executable, str(score), str(scene), str(poses), "--json"], check=True, capture_output=True, text=True
            ).stdout
        )
        rows[label] = {
            **_sizes(path.stat().st_size, len(map_.keyframe_names), len(map_.xyz)),
            "observations": len(map_.observation_point),
            "seconds_per_image": seconds / len(map_.keyframe_names) if seconds else None,
            "median_deg": scored["median_deg"],
            "median_pct_depth": scored["median_pct_depth"],
            "recall": scored["recall@0.1deg/0.2%"],
        }
    return rows


def map_of_bag(scene: Path, output: Path, extractor: Extractor) -> tuple[Map, float]:
    """Map of the bag's images that are in the scene's model too, and the processor seconds it took."""
    begin = time.process_time()
    work = WorkFolder(output / f"{scene.name}.work", {"begun": time.time_ns()})  # never goes on: it is timed
    with PosedBag(scene / "drive", PosedBagOptions(every=3, depth="none")) as frames:
        map_, _ = build_map_from_posed_frames(frames, extractor, work, name=scene.name)
    work.remove()
    return map_, time.process_time() - begin


def matched(args: argparse.Namespace, harness: Path, scene: Path, peer: str) -> dict:
    """Size and time of a map of matched features of the same images."""
    counted = args.output / "matched" / f"{scene.name}_{peer}.json"
    command = [
        args.python,
        "-W",
        "ignore",
        str(Path(__file__).with_name("matched_features.py")),
        str(harness),
        str(scene),
        "-o",
        str(counted),
        "--peer",
        peer,
        "--cache",
        str(args.output / "matched"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the harness's map of {scene.name} with {peer} failed: {done.stderr.strip().splitlines()[-1]}")
    counts = json.loads(counted.read_text())["map"]
    return {
        **_sizes(sum(counts["bytes"].values()), counts["keyframes"], counts["points"]),
        "observations": counts["observations"],
        "seconds_per_image": counts["seconds"] / counts["keyframes"],
    }


def _sizes(bytes_: int, keyframes: int, points: int) -> dict:
    return {
        "bytes": bytes_,
        "keyframes": keyframes,
        "points": points,
        "bytes_per_keyframe": bytes_ / keyframes,
        "bytes_per_point": bytes_ / max(points, 1),
    }


def markdown(results: dict[str, dict[str, dict]]) -> str:
    """One row a map."""
    lines = [
        "| scene | map | MB | kB a keyframe | bytes a point | points | ms an image to make | median deg | median % depth "
        "| R@0.1°/0.2 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for scene, rows in results.items():
        for label, row in rows.items():
            seconds = row.get("seconds_per_image")
            cells = [
                scene,
                label,
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['bytes_per_keyframe'] / 1e3:.0f}",
                f"{row['bytes_per_point']:.0f}",
                row["points"],
                f"{1e3 * seconds:.0f}" if seconds else "",
                *(format_number(row[k]) if k in row else "" for k in ("median_deg", "median_pct_depth")),
                f"{100 * row['recall']:.0f}" if "recall" in row else "",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"map_sizes: error: {error}", file=sys.stderr)
        sys.exit(2)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What maps weigh and take to make, as in docs/evidence/maps.md: sizes and their price in accuracy, and maps of matched features.

For each scene: the map of its COLMAP model, whole and made smaller in several ways, with bytes per keyframe and point, time to
make per image, and the errors of the queries from the small priors. Where there is drive/, also the map of the bag's images that
the model has. For comparison, the map that a benchmark harness makes of the same images with matched features
(`matched_features.py`): its size as hloc stores it. Times are of the processor, all cores together.

    experiments/map_sizes.py ../shared/data -o out/sizes --scenes kitti07 fox
    experiments/map_sizes.py ../shared/data -o out/sizes --python ~/rivals/bin/python --peers sift aliked_lg
"""

from __future__ import annotations

import time

import common

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import Extractor, load_extractor
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


def main() -> int:
    parser = common.parser(__doc__, "out/sizes", ("kitti07", "fox"))
    common.add_rival_arguments(parser)
    parser.add_argument("--peers", nargs="*", default=["sift"], help="features of the harness to make maps of (default sift)")
    args = parser.parse_args()
    results = {}
    for scene in common.scenes_of(args):
        results[scene.name] = measure(scene, args) | {f"hloc's files, {peer}": matched(scene, peer, args) for peer in args.peers}
        common.save(args, "sizes", results, {"sizes": report(results)})
    return common.finish(args, {"sizes": report(results)})


def measure(scene: common.Scene, args) -> dict[str, dict]:
    """Sizes, times and errors of the scene's map and of what it is made smaller to."""
    extractor = load_extractor(args.weights)
    for _ in range(2):  # the first call of everything is slow
        begin = time.process_time()
        whole = build_map_from_colmap(scene.folder / "map", scene.folder / "images", extractor)[0]
        seconds = time.process_time() - begin
    maps = {label: (prune(whole, options), seconds if label == "whole" else None) for label, options in SIZES.items()}
    if scene.drive.is_dir():
        maps["from the bag, points and features"] = map_of_bag(scene, args, extractor)
    rows = {}
    for label, (made, seconds) in maps.items():
        path = args.output / f"{scene.name}_{len(rows)}.pixmap"
        made.save(path)
        map_ = Map.open(path)
        errors = scene.errors(scene.localize(Localizer(map_, extractor), "small"))
        rows[label] = sizes(path.stat().st_size, len(map_.keyframe_names), len(map_.xyz), seconds)
        rows[label] |= {**common.medians(errors), "recall": common.recall(errors, 0.1, 0.002)}
    return rows


def map_of_bag(scene: common.Scene, args, extractor: Extractor) -> tuple[Map, float]:
    """Map of the bag's images that are in the scene's model too, and the processor seconds it took."""
    begin = time.process_time()
    work = WorkFolder(args.output / f"{scene.name}.work", {"begun": time.time_ns()})  # never resumed: it is timed
    with PosedBag(scene.drive, PosedBagOptions(every=common.MAP_STRIDE, depth="none")) as frames:
        map_, _ = build_map_from_posed_frames(frames, extractor, work, name=scene.name)
    work.remove()
    return map_, time.process_time() - begin


def matched(scene: common.Scene, peer: str, args) -> dict:
    """Size and time of a map of matched features of the same images."""
    result = args.output / "matched" / f"{scene.name}_{peer}.json"
    counts = common.match_features(args, scene, result, "--peer", peer)["map"]
    return sizes(sum(counts["bytes"].values()), counts["keyframes"], counts["points"], counts["seconds"])


def sizes(bytes_: int, keyframes: int, points: int, seconds: float | None) -> dict:
    made = seconds / keyframes if seconds else None
    return {"bytes": bytes_, "keyframes": keyframes, "points": points, "seconds_per_image": made}


def report(results: dict[str, dict[str, dict]]) -> str:
    """One row for each map."""
    rows = []
    for scene, maps in results.items():
        for label, row in maps.items():
            size = row["bytes"] / 1e6, 1e-3 * row["bytes"] / row["keyframes"], row["bytes"] / max(row["points"], 1)
            cells = [f"{size[0]:.2f}", f"{size[1]:.0f}", f"{size[2]:.0f}", row["points"]]
            cells.append(f"{1e3 * row['seconds_per_image']:.0f}" if row["seconds_per_image"] else "")
            if "recall" in row:
                cells += [format_number(row["median_deg"]), format_number(100 * (row["median_depth"] or float("nan")))]
                cells.append(f"{100 * row['recall']:.0f}")
            rows.append((scene, label, *cells, *[""] * (8 - len(cells))))
    head = (
        "scene | map | MB | kB a keyframe | bytes a point | points | ms an image to make | median deg | median % depth "
        "| R@0.1°/0.2 %"
    )
    return markdown_table(head, rows)


if __name__ == "__main__":
    run_script(main)

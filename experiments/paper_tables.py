#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tables of PixLoc's paper, measured here, with data and weights that you have.

Cambridge Landmarks and 7-Scenes: median errors of all test images per scene, next to the paper's figures as other work quotes
them. Aachen, CMU Seasons and RobotCar keep their truth: submission.txt is what their benchmark takes. A folder per scene holds
map, queries and poses; one that is there is not made again.

    experiments/paper_tables.py --cambridge data/cambridge --7scenes data/7scenes -o out/paper
    experiments/paper_tables.py --cambridge data/Cambridge --hloc outputs/hloc --weights vgg19.safetensors -o out/paper
    experiments/paper_tables.py --aachen data/aachen --cmu data/cmu --slices 2 3 --robotcar data/robotcar -o out/paper

--hloc: folder with Cambridge/, 7Scenes/, Aachen/, CMU/, RobotCar/ as the PixLoc authors publish them (models of SuperPoint and
SuperGlue, retrieval, lists of queries): the paper's protocol. Without it maps are made of the sets' own models (7-Scenes: of the
training images' depth), and queries are searched for in the whole map. The authors' weights: `pixloc weights import`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.datasets.image_benchmarks import open_aachen, open_cambridge, open_cmu, open_robotcar
from pixloc_ros.datasets.image_set import ImageSet
from pixloc_ros.datasets.output import licence_note, localize_set, made_already, make_queries, query_errors, write_submission
from pixloc_ros.datasets.seven_scenes import open_seven_scenes
from pixloc_ros.evaluation.queries import QueryResult
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.io.files import write_text
from pixloc_ros.localization import Localizer

CAMBRIDGE = {
    "GreatCourt": "30/0.14",
    "KingsCollege": "14/0.24",
    "OldHospital": "16/0.32",
    "ShopFacade": "5/0.23",
    "StMarysChurch": "10/0.34",
}
SEVEN_SCENES = {
    "chess": "2/0.80",
    "fire": "2/0.73",
    "heads": "1/0.82",
    "office": "3/0.82",
    "pumpkin": "4/1.21",
    "redkitchen": "3/1.20",
    "stairs": "5/1.30",
}
"""PixLoc from retrieval, trained on MegaDepth: median cm/deg, quoted from secondary sources, not checked against the paper. The
truth of its 7-Scenes row is the original poses."""
TEST_SLICES = (2, 3, 4, 5, 6, 13, 14, 15, 16, 17, 18, 19, 20, 21)


def localize(args: argparse.Namespace, source: ImageSet, folder: Path) -> list[QueryResult]:
    """The poses of a set's queries; the folder is made unless it is there."""
    if not made_already(folder, source):
        with show_progress("map") as progress:
            make_queries(folder, source, args.weights, args.working_side, progress, print)
    localizer = Localizer.open(folder / "map.pixmap", args.weights, args.preset)
    with show_progress(f"{source.name} {source.scene}") as progress:
        return localize_set(folder, source, localizer, progress)


def medians(
    args: argparse.Namespace, title: str, name: str, quoted: dict[str, str], root: Path, open_scene: Callable[[str], ImageSet]
) -> str:
    """The table of a set with known truth."""
    print(licence_note(name))
    rows, figures = [], {}
    for scene, paper in quoted.items():
        if not (root / scene).is_dir():
            rows.append((scene, "no data", "", paper, ""))
            continue
        source = open_scene(scene)
        results = localize(args, source, args.output / name / scene)
        errors = query_errors(source, results)
        (metres, degrees), share = errors.medians(), 100 * errors.recall(0.05, 5.0)
        found, count = sum(not result.reason for result in results), len(results)
        figures[scene] = {"median_m": metres, "median_deg": degrees, "recall_5cm_5deg": share, "localized": found}
        figures[scene] |= {"queries": count, "map_of": source.made_from, "priors": len(source.pairs)}
        rows.append((scene, f"{100 * metres:.1f}/{degrees:.2f}", f"{found} of {count}", paper, f"{share:.1f}"))
    write_text(args.output / name / "figures.json", json.dumps(figures, indent=2) + "\n")
    table = markdown_table("scene | here | localized | PixLoc, quoted | here: % within 5 cm, 5°", rows)
    return f"## {title}: median error, cm/deg, of all test images ({args.weights})\n\n{table}"


def submission(args: argparse.Namespace, name: str, sources: list[ImageSet]) -> tuple[str, str, Path]:
    """Localize a set without known truth in its parts; one submission for all, and its row of the table."""
    print(licence_note(name))
    results = []
    for source in sources:
        results += localize(args, source, args.output / name / (source.scene if len(sources) > 1 else ""))
    path = args.output / name / "submission.txt"
    write_submission(path, sources[0], results)
    return name, f"{sum(not result.reason for result in results)} of {len(results)}", path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("data, whichever you have").add_argument
    add("--cambridge", type=Path, metavar="DIR", help="folder of scenes: KingsCollege, ...")
    add("--7scenes", type=Path, metavar="DIR", dest="seven_scenes", help="folder of scenes: chess, ...")
    add("--aachen", type=Path, metavar="DIR")
    add("--cmu", type=Path, metavar="DIR", help="folder of slices and intrinsics.txt")
    add("--slices", type=int, nargs="+", default=TEST_SLICES, metavar="N", help="of CMU (default: the test slices)")
    add("--robotcar", type=Path, metavar="DIR")
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR")
    add("--hloc", type=Path, metavar="DIR", help="models and retrieval as the PixLoc authors publish them")
    add("--weights", default="compact", metavar="NAME|FILE", help="network (default compact)")
    add("--preset", default="accurate", metavar="NAME", help="fast, balanced or accurate (default)")
    add("--working-side", type=int, metavar="PX", help="longer side of the network's images (default: its own)")
    add("--every", type=int, default=1, metavar="N", help="of 7-Scenes: use each N-th training image")
    args = parser.parse_args()
    if not any((args.cambridge, args.seven_scenes, args.aachen, args.cmu, args.robotcar)):
        parser.error("name at least one data set")
    parts, kept = [], {}

    def files(folder: str, model: str, pairs: str, queries: str = "") -> dict[str, Path]:
        """Of a set in the folders that the PixLoc authors publish."""
        names = {"model": f"{folder}/{model}", "pairs": f"{folder.split('/')[0]}/{pairs}"}
        names |= {"queries": f"{folder}/{queries}"} if queries else {}
        return {key: args.hloc / name for key, name in names.items()} if args.hloc else {}

    intrinsics, superglue = "query_list_with_intrinsics.txt", "sfm_superpoint+superglue"

    def cambridge(scene: str) -> ImageSet:
        found = files(f"Cambridge/{scene}", superglue, f"{scene}/pairs-query-netvlad10.txt", intrinsics)
        return open_cambridge(args.cambridge / scene, **found)

    def seven_scenes(scene: str) -> ImageSet:
        found = files(f"7Scenes/{scene}", f"{superglue}+depth", f"7scenes_densevlad_retrieval/{scene}_top10.txt", intrinsics)
        return open_seven_scenes(args.seven_scenes / scene, every=args.every, **found)

    if args.cambridge:
        parts.append(medians(args, "Cambridge Landmarks", "cambridge", CAMBRIDGE, args.cambridge, cambridge))
    if args.seven_scenes:
        parts.append(medians(args, "7-Scenes", "7scenes", SEVEN_SCENES, args.seven_scenes, seven_scenes))
    if args.aachen:
        kept["aachen"] = [open_aachen(args.aachen, **files("Aachen", superglue, "pairs-query-netvlad50.txt"))]
    if args.cmu:
        slices = [f"slice{number}" for number in args.slices]
        pairs = "pairs-query-netvlad10.txt"
        kept["cmu"] = [open_cmu(args.cmu / n, **files(f"CMU/{n}", f"{superglue}/model", f"{n}/{pairs}")) for n in slices]
    if args.robotcar:
        pairs = "pairs-query-netvlad10-percam-perloc.txt"
        kept["robotcar"] = [open_robotcar(args.robotcar, **files("RobotCar", superglue, pairs))]
    if kept:
        rows = [submission(args, name, sources) for name, sources in kept.items()]
        table = markdown_table("set | localized | hand in at visuallocalization.net", rows)
        parts.append(f"## Sets that keep their truth ({args.weights})\n\n{table}")
    text = "\n".join(parts)
    write_text(args.output / "tables.md", text)
    print(f"\n{text}\n{args.output / 'tables.md'}")
    return 0


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tables of PixLoc's paper, measured here, with data and weights that you have.

Cambridge Landmarks and 7-Scenes: median errors of all test images per scene, beside the paper's figures as other work quotes
them. Aachen, CMU Seasons and RobotCar keep their truth: submission.txt is what their benchmark takes. A folder per scene holds
map, queries and poses; one that is there is not made again.

    experiments/paper_tables.py --cambridge data/cambridge --7scenes data/7scenes -o out/paper
    experiments/paper_tables.py --cambridge data/Cambridge --hloc outputs/hloc --weights vgg19.safetensors -o out/paper
    experiments/paper_tables.py --aachen data/aachen --cmu data/cmu --slices 2 3 --robotcar data/robotcar -o out/paper

--hloc: folder with Cambridge/, 7Scenes/, Aachen/, CMU/, RobotCar/ as the PixLoc authors publish them (models of SuperPoint and
SuperGlue, retrieval, lists of queries): the paper's protocol. Without it maps are made of the sets' own models (7-Scenes: of the
training images' depth), and queries are looked for in the whole map. The authors' weights: `pixloc weights import`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pixloc_ros.cli.map_common import ProgressLine
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.datasets.cambridge import open_cambridge
from pixloc_ros.datasets.hloc import open_aachen, open_cmu, open_robotcar
from pixloc_ros.datasets.image_set import ImageSet
from pixloc_ros.datasets.licences import licence_note
from pixloc_ros.datasets.queries import localize_set, made_already, make_queries, query_errors, write_submission
from pixloc_ros.datasets.seven_scenes import open_seven_scenes
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.localize import QueryResult
from pixloc_ros.features import load_extractor
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
LARGE_SCALE = {
    "Aachen day": "64.3/69.3/77.4",
    "Aachen night": "51.0/55.1/67.3",
    "RobotCar day": "52.7/77.5/93.9",
    "RobotCar night": "12.0/20.7/45.4",
    "CMU urban": "88.3/90.4/93.7",
    "CMU suburban": "79.6/81.1/85.2",
    "CMU park": "61.0/62.5/69.4",
}
"""PixLoc from retrieval: per cent within (0.25 m, 2°)/(0.5 m, 5°)/(5 m, 10°), quoted likewise."""
TEST_SLICES = (2, 3, 4, 5, 6, 13, 14, 15, 16, 17, 18, 19, 20, 21)


@dataclass(frozen=True)
class Run:
    """How to localize: options of the command line, and where results go."""

    output: Path
    weights: str
    preset: str
    working_side: int | None

    def localize(self, source: ImageSet, folder: Path) -> list[QueryResult]:
        """The poses of a set's queries; the folder is made unless it is there."""
        if not made_already(folder, source):
            with ProgressLine() as progress:
                make_queries(folder, source, load_extractor(self.weights), self.working_side, self.weights, progress, print)
        localizer = Localizer.open(folder / "map.pixmap", self.weights, self.preset)
        with show_progress(f"{source.name} {source.scene}") as progress:
            return localize_set(folder, source, localizer, progress)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = parser.add_argument_group("data, whichever you have")
    sets.add_argument("--cambridge", type=Path, metavar="DIR", help="folder of scenes: KingsCollege, ...")
    sets.add_argument("--7scenes", type=Path, metavar="DIR", dest="seven_scenes", help="folder of scenes: chess, ...")
    sets.add_argument("--aachen", type=Path, metavar="DIR")
    sets.add_argument("--cmu", type=Path, metavar="DIR", help="folder of slices and intrinsics.txt")
    sets.add_argument("--slices", type=int, nargs="+", default=TEST_SLICES, metavar="N", help="of CMU (default: the test slices)")
    sets.add_argument("--robotcar", type=Path, metavar="DIR")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--hloc", type=Path, metavar="DIR", help="models and retrieval as the PixLoc authors publish them")
    parser.add_argument("--weights", default="compact", metavar="NAME|FILE", help="network (default compact)")
    parser.add_argument("--preset", default="accurate", metavar="NAME", help="fast, balanced or accurate (default)")
    parser.add_argument("--working-side", type=int, metavar="PX", help="longer side of the network's images (default: its own)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of 7-Scenes: look at each N-th training image")
    args = parser.parse_args()
    run = Run(args.output, args.weights, args.preset, args.working_side)
    if not any((args.cambridge, args.seven_scenes, args.aachen, args.cmu, args.robotcar)):
        parser.error("name at least one data set")
    parts = []

    def cambridge(scene: str) -> ImageSet:
        files = _hloc(args.hloc, "Cambridge", scene, "sfm_superpoint+superglue", f"{scene}/pairs-query-netvlad10.txt")
        return open_cambridge(args.cambridge / scene, **files)

    def seven_scenes(scene: str) -> ImageSet:
        files = _hloc(
            args.hloc, "7Scenes", scene, "sfm_superpoint+superglue+depth", f"7scenes_densevlad_retrieval/{scene}_top10.txt"
        )
        return open_seven_scenes(args.seven_scenes / scene, every=args.every, **files)

    if args.cambridge:
        parts.append(_median_table("Cambridge Landmarks", "cambridge", CAMBRIDGE, args.cambridge, run, cambridge))
    if args.seven_scenes:
        parts.append(_median_table("7-Scenes", "7scenes", SEVEN_SCENES, args.seven_scenes, run, seven_scenes))
    parts += _submissions(args, run)
    text = "\n\n".join(parts)
    write_text(args.output / "tables.md", text + "\n")
    print(f"\n{text}\n\n{args.output / 'tables.md'}")
    return 0


def _hloc(root: Path | None, set_: str, scene: str, model: str, pairs: str) -> dict[str, Path]:
    """model, pairs and queries in the folders that the PixLoc authors publish."""
    if root is None:
        return {}
    folder = root / set_
    queries = folder / scene / "query_list_with_intrinsics.txt"
    return {"model": folder / scene / model, "pairs": folder / pairs, "queries": queries}


def _median_table(title: str, name: str, quoted: dict[str, str], root: Path, run: Run, open_: Callable[[str], ImageSet]) -> str:
    print(licence_note(name))
    rows, figures = [], {}
    for scene, paper in quoted.items():
        if not (root / scene).is_dir():
            rows.append((scene, "no data", "", paper, ""))
            continue
        source = open_(scene)
        results = run.localize(source, run.output / name / scene)
        errors = query_errors(source, results)
        metres, degrees = errors.medians()
        found = sum(not result.reason for result in results)
        recall = 100 * errors.recall(0.05, 5.0)
        figures[scene] = {
            "median_m": metres,
            "median_deg": degrees,
            "recall_5cm_5deg": recall,
            "localized": found,
            "queries": len(results),
            "map_of": source.made_from,
            "priors": len(source.pairs),
        }
        rows.append((scene, f"{100 * metres:.1f}/{degrees:.2f}", f"{found} of {len(results)}", paper, f"{recall:.1f}"))
    write_text(run.output / name / "figures.json", json.dumps(figures, indent=2) + "\n")
    heading = f"## {title}: median error, cm/deg, of all test images ({run.weights})"
    return f"{heading}\n\n" + _table(("scene", "here", "localized", "PixLoc, quoted", "here: % within 5 cm, 5°"), rows)


def _submissions(args: argparse.Namespace, run: Run) -> list[str]:
    rows = []
    hloc = args.hloc
    if args.aachen:
        folder = hloc / "Aachen" if hloc else None
        source = open_aachen(args.aachen, *_optional(folder, "sfm_superpoint+superglue", "pairs-query-netvlad50.txt"))
        rows.append(_hand_in(run, [source], "aachen"))
    if args.cmu:
        sources = []
        for number in args.slices:
            folder = hloc / "CMU" / f"slice{number}" if hloc else None
            sources.append(
                open_cmu(
                    args.cmu / f"slice{number}", *_optional(folder, "sfm_superpoint+superglue/model", "pairs-query-netvlad10.txt")
                )
            )
        rows.append(_hand_in(run, sources, "cmu"))
    if args.robotcar:
        folder = hloc / "RobotCar" if hloc else None
        source = open_robotcar(
            args.robotcar, *_optional(folder, "sfm_superpoint+superglue", "pairs-query-netvlad10-percam-perloc.txt")
        )
        rows.append(_hand_in(run, [source], "robotcar"))
    if not rows:
        return []
    table = _table(("set", "localized", "hand in at visuallocalization.net"), rows)
    paper = _table(("set", "PixLoc, quoted: % within (0.25 m, 2°)/(0.5 m, 5°)/(5 m, 10°)"), LARGE_SCALE.items())
    return [f"## Sets that keep their truth ({run.weights})\n\n{table}\n\n{paper}"]


def _optional(folder: Path | None, model: str, pairs: str) -> tuple[Path | None, Path | None]:
    return (folder / model, folder / pairs) if folder else (None, None)


def _hand_in(run: Run, sources: list[ImageSet], name: str) -> tuple[str, str, str]:
    """Localize one set in its parts; one submission for all."""
    print(licence_note(name))
    results = []
    for source in sources:
        folder = run.output / name if len(sources) == 1 else run.output / name / source.scene
        results += run.localize(source, folder)
    submission = run.output / name / "submission.txt"
    write_submission(submission, sources[0], results)
    return name, f"{sum(not result.reason for result in results)} of {len(results)}", str(submission)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head)]
    lines.append(tuple("---" for _ in lines[0]))
    lines += [tuple(row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"paper_tables: error: {error}")

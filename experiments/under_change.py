#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Single images taken under other conditions than the map: years, cameras, weather, as in docs/evidence/results.md.

Takes a folder of cases as leave-one-out makes them: CASE/map (a COLMAP model without the query) and CASE/queries; the images
of all cases are in one folder. Each query is localized from priors of each size, from the truth and without a prior; the table
is over all cases. Confident and wrong: a pose that is not called doubtful and is beyond 5° or 10 % of the depth.

    experiments/under_change.py CASES --images ../shared/data/sacre_coeur/images -o out/under_change
    experiments/under_change.py ../shared/data --scenes fox kitti01 --change occluded --variants shipped said no_factor
    experiments/under_change.py CASES --images IMAGES --weights best.safetensors --variants shipped --priors medium large
    experiments/under_change.py out/bookstore/cases --images out/bookstore/images --each    # as render_world.py makes them
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import common
import cv2
import numpy as np
from ablations import changed

from pixloc_ros.alignment import AlignmentOptions, RobustLoss
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.queries import Query, QueryResult
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import load_extractor
from pixloc_ros.localization import Localizer
from pixloc_ros.tracking.frame_aligner import AlignerOptions

PRIORS = ("medium", "large", "none", "truth")
LIMITS = ((0.5, 0.01), (2.0, 0.05))
"""Degrees, share of the depth."""
WRONG = (5.0, 0.10)
HEAD = (
    "variant | priors | queries | R@0.5°/1 % | R@2°/5 % | median deg | median % depth | confident | confident and wrong | ms p50"
)


@dataclass(frozen=True)
class Variant:
    """What is compared.

    Attributes:
        title: For the table.
        options: Of the aligner.
        said: Whether the localizer is given the priors' standard deviations.
    """

    title: str
    options: AlignerOptions = AlignerOptions()
    said: bool = False


VARIANTS = {
    "shipped": Variant("as it ships"),
    "said": Variant("priors' standard deviations are given", said=True),
    "no_factor": Variant("priors are only where it starts", AlignerOptions(use_prior_factor=False)),
    "scale_0.15": Variant(
        "robust scale 0.15", AlignerOptions(AlignmentOptions(loss=RobustLoss(AlignmentOptions().loss.kind, 0.15)))
    ),
}


def main() -> int:
    parser = common.parser(__doc__, "out/under_change")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images of all cases (default: images/ of each case)")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=PRIORS)
    parser.add_argument(
        "--change", choices=("blurred", "dark", "occluded"), help="make the queries worse before (in copies of them)"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["shipped"])
    parser.add_argument("--each", action="store_true", help="rows for each case before those of all")
    args = parser.parse_args()
    section = f"under change {args.change}" if args.change else "under change"
    extractor = load_extractor(args.weights)
    results: dict[str, dict[str, list[dict]]] = {name: {priors: [] for priors in args.priors} for name in args.variants}
    for scene in common.scenes_of(args):
        map_ = scene.build_map(extractor)
        queries = worse(scene.queries, args.change, args.output / scene.name) if args.change else scene.queries
        for name in args.variants:
            localizer = Localizer(map_, extractor, VARIANTS[name].options)
            for priors in args.priors:
                found = scene.localize(localizer, priors, queries, said=VARIANTS[name].said)
                results[name][priors] += [entry(scene, each) for each in found]
        common.save(args, "under_change", results, {section: table(results, args.each)})
    return common.finish(args, {section: table(results, args.each)})


def worse(queries: Sequence[Query], change: str, folder: Path) -> list[Query]:
    """The same queries with images that were changed, written into a folder."""
    result = []
    for query in queries:
        path = folder / change / f"{Path(query.name).stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = changed(query, change)[0]
        cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])
        result.append(replace(query, path=path))
    return result


def entry(scene: common.Scene, found: QueryResult) -> dict[str, object]:
    """What became of one query, for JSON."""
    degrees, _, share = scene.error(found.name, found.camera_from_map)
    return {
        "case": scene.name,
        "name": found.name,
        "degrees": degrees if math.isfinite(degrees) else None,
        "depth": share if math.isfinite(share) else None,
        "doubt": found.reason or found.doubtful,
        "inliers": found.alignment.inlier_fraction if found.alignment else 0.0,
        "ms": found.total_ms,
    }


def table(results: dict[str, dict[str, list[dict]]], each: bool = False) -> str:
    """A row for each variant and size of priors over all cases; before that of each case, where wanted."""
    rows = []
    for name, by_priors in results.items():
        title = VARIANTS[name].title
        for case in dict.fromkeys(e["case"] for entries in by_priors.values() for e in entries) if each else ():
            for priors, entries in by_priors.items():
                some = [entry for entry in entries if entry["case"] == case]
                rows.append((f"{title}, {case}", priors, len(some), *figures(some)))
        rows += [(title, priors, len(entries), *figures(entries)) for priors, entries in by_priors.items()]
    return markdown_table(HEAD, rows)


def figures(entries: list[dict]) -> tuple[object, ...]:
    """What the table says of some queries."""
    pairs = [(e["degrees"], e["depth"]) for e in entries]
    errors = np.array([(math.inf, math.inf, math.inf) if d is None else (d, 0.0, s) for d, s in pairs]).reshape(-1, 3)
    sure = np.array([not entry["doubt"] for entry in entries], bool)
    wrong = sure & ((errors[:, 0] > WRONG[0]) | (errors[:, 2] > WRONG[1]))
    middle = common.medians(errors) if len(errors) else {"median_deg": None, "median_depth": None}
    depth = None if middle["median_depth"] is None else 100 * middle["median_depth"]
    shares = [f"{common.recall(errors, *limits):.2f}" if len(errors) else "–" for limits in LIMITS]
    times = [entry["ms"] for entry in entries]
    middles = format_number(middle["median_deg"]), format_number(depth)
    return *shares, *middles, int(sure.sum()), int(wrong.sum()), f"{np.median(times):.0f}" if times else "–"


if __name__ == "__main__":
    run_script(main)

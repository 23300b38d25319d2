#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Single images found in a map without any prior, and images that the map does not show, as in docs/evidence/results.md.

For each scene: a map of its COLMAP model; every query image searched for in it; and every image of the other scenes (and of
--photos), which must not be found.

Within 0.1 m and 1°, within 0.25 m and 2° (scenes without a unit: 1 % and 2.5 % of the median scene depth). Confident and
wrong: a pose that is not called doubtful and is further off than the second limit, or a pose of an image of another scene.

    experiments/cold_start.py ../shared/data -o out/cold_start --photos ../shared/data/photos
"""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
import torch
from scipy.stats import beta

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.queries import Query, QueryResult, localize_queries
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.images import load_image

LIMITS = ((0.1, 0.01, 1.0), (0.25, 0.025, 2.0))
"""Metres, share of the scene depth where there is no unit, degrees."""


def main() -> int:
    parser = common.parser(__doc__, "out/cold_start")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th image, of all kinds")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="images of other places, searched for in each map, too")
    args = parser.parse_args()
    scenes, results = common.scenes_of(args), {}
    photos = photos_of(args.photos)[:: args.every] if args.photos else []
    for scene in scenes:
        foreign = [query for other in scenes if other is not scene for query in other.queries[:: args.every]]
        results[scene.name] = evaluate(scene, foreign + photos, args)
        common.save(args, "cold_start", results, {"cold start": report(results)})
    return common.finish(args, {"cold start": report(results)})


def photos_of(folder: Path) -> list[Query]:
    """All images in a folder and below, with a camera that sees some 58 degrees."""
    queries = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")):
        height, width = load_image(path).shape[:2]
        params = torch.tensor([0.9 * max(width, height)] * 2 + [(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
        queries.append(Query(str(path.relative_to(folder)), path, Camera("pinhole", width, height, params)))
    return queries


def evaluate(scene: common.Scene, foreign: list[Query], args) -> dict[str, object]:
    """Figures of one scene."""
    localizer, queries = scene.localizer(args), scene.queries[:: args.every]
    scene.localize(localizer, "none", queries[:1])  # the first call of everything is slow
    found = scene.localize(localizer, "none", queries)
    others = localize_queries(localizer, foreign, {})
    within = np.array([limits_kept(*error, scene.metric) for error in scene.errors(found)])
    sure = np.array([is_sure(result) for result in found])
    times = [result.total_ms for result in found]
    return {
        "metric": scene.metric,
        "queries": len(found),
        "keyframes": len(localizer.map.keyframe_names),
        "within": within.mean(0).tolist(),
        "confident": float(sure.mean()),
        "confident_and_wrong": int((sure & ~within[:, 1]).sum()),
        "foreign": len(others),
        "foreign_confident": sum(map(is_sure, others)),
        "ms_p50": float(np.median(times)),
        "ms_p95": float(np.percentile(times, 95)),
    }


def is_sure(result: QueryResult) -> bool:
    return not result.reason and not result.doubtful


def limits_kept(degrees: float, distance: float, share: float, metric: bool) -> list[bool]:
    """Whether a pose lies within each of the LIMITS."""
    return [(distance <= m if metric else share <= part) and degrees <= most for m, part, most in LIMITS]


def percent(*shares: float) -> list[str]:
    return [f"{100 * share:.1f} %" for share in shares]


def report(results: dict[str, dict]) -> str:
    """A row for each scene, and one for all."""
    counts = ("confident_and_wrong", "foreign", "foreign_confident")
    rows = []
    for name, r in results.items():
        unit = "" if r["metric"] else " (1 %, 2.5 % of depth)"
        shares, times = percent(*r["within"], r["confident"]), [f"{r[key]:.0f}" for key in ("ms_p50", "ms_p95")]
        rows.append((name + unit, r["keyframes"], r["queries"], *shares, *(r[key] for key in counts), *times))
    weights = [r["queries"] for r in results.values()]
    shares = np.average([[*r["within"], r["confident"]] for r in results.values()], axis=0, weights=weights)
    count, (wrong, foreign, believed) = sum(weights), (sum(r[key] for r in results.values()) for key in counts)
    rows.append(("all", "", count, *percent(*shares), wrong, foreign, believed, "", ""))
    head = (
        "scene | keyframes | queries | within 0.1 m / 1° | within 0.25 m / 2° | confident | confident and wrong "
        "| foreign images | of them confident | ms p50 | ms p95"
    )
    return (
        f"{markdown_table(head, rows)}\nConfident and wrong: {wrong + believed} of {count + foreign} images; with 95 % certainty "
        f"fewer than {100 * largest_share(wrong + believed, count + foreign):.2g} % of such images are.\n"
    )


def largest_share(count: int, of: int) -> float:
    """Upper end of the one-sided 95 % confidence interval of a share (Clopper and Pearson; 3 / of where count is 0)."""
    return 1.0 if count >= of else float(beta.ppf(0.95, count + 1, of - count))


if __name__ == "__main__":
    run_script(main)

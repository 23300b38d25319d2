#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Single images found in a map without any prior, and images that the map does not show: as in docs/evidence/results.md.

For each scene with map/, images/ and queries/: a map of its COLMAP model; every query image looked for in it; and every
image of the other scenes (and of --photos), which must not be found. Writes a Markdown table and a JSON file.

Within 0.1 m and 1°, within 0.25 m and 2° (scenes without a unit: 1 % and 2.5 % of the median scene depth). Confident and
wrong: a pose that is not called doubtful and is further off than the second limit, or of an image of another scene.

With --rival-python also, in a second table, matched features on the same map images and queries (`matched_features.py`: retrieval
by VLAD, ALIKED and LightGlue against the nearest map images, PnP by poselib). Queries already found stay in the output's folder.

    experiments/cold_start.py ../shared/data -o out/cold_start --photos ../shared/data/photos
    experiments/cold_start.py ../shared/data -o out/cold_start --rival-python ~/rivals/bin/python --rival-queries 40
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import localize
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.files import write_text
from pixloc_ros.io.images import load_image
from pixloc_ros.io.trajectory import read_benchmark_poses
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping.build import build_map_from_colmap

LIMITS = ((0.1, 1.0, 1.0), (0.25, 2.5, 2.0))
"""Metres, per cent of the scene depth where there is no unit, degrees."""
SURE_INLIERS = 30
"""A rival's pose with as many is called confident."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/cold_start"), help="folder of the results")
    parser.add_argument("--scenes", nargs="+", help="names; default: all that have a map and queries")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th query")
    parser.add_argument("--foreign-every", type=int, default=1, metavar="N", help="only every N-th image of other scenes")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="images of nowhere, looked for in each map, too")
    parser.add_argument("--photos-every", type=int, default=1, metavar="N", help="only every N-th of them")
    parser.add_argument("--weights", default="compact")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="also put the tables between <!-- cold start: begin --> and "
        "... end -->, <!-- cold start rival: begin --> and ... end --> there",
    )
    rival = parser.add_argument_group("matched features beside it")
    rival.add_argument("--rival-python", metavar="PYTHON", help="interpreter with the packages of the benchmark harness")
    rival.add_argument("--harness", type=Path, help="folder of the harness (default: DATA/../tools/peers)")
    rival.add_argument("--rival-queries", type=int, default=0, metavar="N", help="at most N of a scene, evenly spaced (0: all)")
    rival.add_argument("--nearest", type=int, default=5, metavar="K", help="map images that it matches (default 5)")
    args = parser.parse_args()
    names = args.scenes or sorted(p.parent.name for p in args.data.glob("*/queries") if (p.parent / "map").is_dir())
    extractor = load_extractor(args.weights)
    photos = photos_of(args.photos)[:: args.photos_every] if args.photos else []
    results = {}
    for name in names:
        foreign = [q for other in names if other != name for q in queries_of(args.data / other)[:: args.foreign_every]] + photos
        results[name] = evaluate(args.data / name, foreign, args.every, extractor, args.weights, args.output)
        if args.rival_python:
            results[name]["rival"] = match(args.data / name, args)
        # After each scene, so that a long run can be looked at.
        write_text(args.output / "cold_start.json", json.dumps(results, indent=2) + "\n")
        write_text(args.output / "cold_start.md", markdown(results) + beside(results))
    if args.docs:
        write_section(args.docs, "cold start", markdown(results))
        if args.rival_python:
            write_section(args.docs, "cold start rival", beside(results))
    print(markdown(results) + beside(results))
    return 0


def match(scene: Path, args: argparse.Namespace) -> list[dict]:
    """What matched features make of a scene's queries: one entry each."""
    names = [query.name for query in queries_of(scene)]
    if 0 < args.rival_queries < len(names):
        names = [names[k] for k in np.linspace(0, len(names) - 1, args.rival_queries).round().astype(int)]
    found = args.output / "rival" / f"{scene.name}.json"
    command = [
        args.rival_python,
        "-W",
        "ignore",
        str(Path(__file__).with_name("matched_features.py")),
        str(args.harness or args.data / ".." / "tools" / "peers"),
        str(scene),
        "-o",
        str(found),
        "--nearest",
        str(args.nearest),
        "--cache",
        str(args.output / "matched"),
        "--threads",
        str(torch.get_num_threads()),
        "--queries",
        *names,
    ]
    # Threads that spin while they wait would slow down whatever else runs.
    done = subprocess.run(command, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    if done.returncode:
        raise InputError(f"matching {scene.name} failed: look at the messages above")
    return [entry for entry in json.loads(found.read_text())["queries"] if entry["query"] in names]


def queries_of(scene: Path) -> list[localize.Query]:
    return localize.read_queries(scene / "images", scene / "queries" / "cameras.txt")


def photos_of(folder: Path) -> list[localize.Query]:
    """All images in a folder and below, with a camera that sees some 58 degrees."""
    queries = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")):
        height, width = load_image(path).shape[:2]
        params = torch.tensor([0.9 * max(width, height)] * 2 + [(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
        queries.append(localize.Query(str(path.relative_to(folder)), path, Camera("pinhole", width, height, params)))
    return queries


def evaluate(
    scene: Path, foreign: list[localize.Query], every: int, extractor: Extractor, weights: str, output: Path
) -> dict[str, object]:
    """Figures of one scene; its map goes to `output`."""
    path = output / f"{scene.name}.pixmap"
    with show_progress(f"{scene.name}: map") as progress:
        build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)[0].save(path)
    localizer = Localizer.open(path, weights)
    truth = read_benchmark_poses(scene / "queries" / "truth.txt")
    depth = json.loads((scene / "queries" / "scale.json").read_text())
    metric = bool(json.loads((scene / "scene.json").read_text()).get("metric"))
    queries = queries_of(scene)[::every]
    # The first call of everything is slow; it must not pass for what an image takes.
    localize.localize_queries(localizer, queries[:1], {})
    cpu_s = time.process_time()
    with show_progress(f"{scene.name}: queries") as progress:
        found = localize.localize_queries(localizer, queries, {}, progress)
    cpu_s = (time.process_time() - cpu_s) / len(queries)
    with show_progress(f"{scene.name}: images of other scenes") as progress:
        others = localize.localize_queries(localizer, foreign, {}, progress)
    within = np.zeros((len(found), len(LIMITS)), bool)
    for i, result in enumerate(found):
        if result.camera_from_map is not None:
            away, turned = se3.pose_difference(se3.inverse(truth[result.name]), se3.inverse(result.camera_from_map))
            error = float(away) if metric else 100 * float(away) / depth[result.name]
            within[i] = limits_kept(error, np.degrees(float(turned)), metric)
    sure = np.array([not r.reason and not r.doubtful for r in found])
    times = [r.total_ms for r in found]
    return {
        "metric": metric,
        "queries": len(found),
        "keyframes": len(localizer.map.keyframe_names),
        "within": within.mean(0).tolist(),
        "confident": float(sure.mean()),
        "confident_and_wrong": int((sure & ~within[:, 1]).sum()),
        "per_query": {r.name: {"within": w.tolist(), "confident": bool(c)} for r, w, c in zip(found, within, sure)},
        "cpu_s": cpu_s,
        "doubtful_or_none_names": [r.name for r, s in zip(found, sure) if not s],
        "foreign": len(others),
        "foreign_confident": sum(not r.reason and not r.doubtful for r in others),
        "ms_p50": float(np.median(times)),
        "ms_p95": float(np.percentile(times, 95)),
        "foreign_ms_p50": float(np.median([r.total_ms for r in others])) if others else None,
    }


def limits_kept(error: float, deg: float, metric: bool) -> list[bool]:
    """Whether a pose lies within each of the LIMITS; error: metres, or per cent of the scene's depth."""
    return [error <= (m if metric else share) and deg <= most for m, share, most in LIMITS]


def beside(results: dict[str, dict]) -> str:
    """Table of ours and the rival on the queries that both were given; empty without a rival."""
    lines = []
    for name, result in results.items():
        entries = result.get("rival", [])
        both = [e for e in entries if e["query"] in result["per_query"]]
        if not both:
            continue
        ours = [result["per_query"][e["query"]] for e in both]
        kept = [
            limits_kept(e["trans"] if result["metric"] else 100 * e["rel"], e["deg"], result["metric"])
            if e["pose"]
            else [False] * len(LIMITS)
            for e in both
        ]
        sure = [e["inliers"] >= SURE_INLIERS for e in both]
        for label, inside, certain, seconds in (
            ("pixloc_ros", [o["within"] for o in ours], [o["confident"] for o in ours], result["cpu_s"]),
            ("ALIKED + LightGlue + PnP", kept, sure, float(np.mean([e["cpu_s"] for e in both]))),
        ):
            wrong = sum(c and not i[1] for c, i in zip(certain, inside))
            cells = [
                name,
                label,
                len(both),
                *(f"{100 * v:.1f} %" for v in (*np.mean(inside, 0), np.mean(certain))),
                wrong,
                f"{seconds:.2f}",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    if not lines:
        return ""
    head = [
        "",
        "| scene | | queries | within 0.1 m / 1° | within 0.25 m / 2° | confident | confident and wrong | processor s an image |",
        "|---" * 8 + "|",
    ]
    return "\n".join([*head, *lines]) + "\n"


def markdown(results: dict[str, dict]) -> str:
    """A row a scene, and one of all."""
    lines = [
        "| scene | keyframes | queries | within 0.1 m / 1° | within 0.25 m / 2° | confident | confident and wrong "
        "| foreign images | of them confident | ms p50 | ms p95 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        unit = "" if r["metric"] else " (1 %, 2.5 % of depth)"
        cells = [
            name + unit,
            r["keyframes"],
            r["queries"],
            *(f"{100 * v:.1f} %" for v in (*r["within"], r["confident"])),
            r["confident_and_wrong"],
            r["foreign"],
            r["foreign_confident"],
            f"{r['ms_p50']:.0f}",
            f"{r['ms_p95']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    count = sum(r["queries"] for r in results.values())
    share = [sum(r["within"][k] * r["queries"] for r in results.values()) / count for k in range(len(LIMITS))]
    sure = sum(r["confident"] * r["queries"] for r in results.values()) / count
    wrong, foreign, believed = (
        sum(r[k] for r in results.values()) for k in ("confident_and_wrong", "foreign", "foreign_confident")
    )
    cells = ["all", "", count, *(f"{100 * v:.1f} %" for v in (*share, sure)), wrong, foreign, believed, "", ""]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
    most = largest_share(wrong + believed, count + foreign)
    lines += [
        "",
        f"Confident and wrong: {wrong + believed} of {count + foreign} images; with 95 % certainty fewer than "
        f"{100 * most:.2g} % of such images are.",
    ]
    return "\n".join(lines) + "\n"


def largest_share(count: int, of: int) -> float:
    """Upper end of the one-sided 95 % confidence interval of a share (Clopper and Pearson; 3 / of where count is 0)."""
    return 1.0 if count >= of else float(beta.ppf(0.95, count + 1, of - count))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"cold_start: error: {error}", file=sys.stderr)
        sys.exit(2)

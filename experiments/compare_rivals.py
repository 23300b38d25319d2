#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""This package beside other ways to find a camera in a map, on the same frames and machine, as in docs/evidence/results.md.

The rivals (klt, lk, xfeat_align, sift, orb, xfeat_mnn, ...) are run by a benchmark harness (its run.py) with an
interpreter that has their packages. The harness also exports what an outside system needs: priors, and the queries
clean, blurred, dark, occluded and at half resolution. These are localized here, the harness scores the trajectories, and
the same queries are timed the way it times the others: images in memory, map open, the quietest rounds of several count.
All figures are gathered in JSON files, one a scene, and Markdown tables: accuracy, cost, and how many times ours each costs.

--vgg times the method as it was published, for its cost alone: a VGG19 with random weights sees the query and, anew for every
query, its three references, of which 512 points each are aligned by the paper's rule, 150 iterations a level at most.

    experiments/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python --rivals sift orb klt lk
    experiments/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python     # ours again, rivals kept
    experiments/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python --scenes fox tum_fr1_rpy \
        --rivals all --vgg --no-accuracy --timed-queries 3      # what docs/evidence/performance.md quotes
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

from pixloc_ros.alignment import AlignmentOptions, ReferencePoints, RobustLoss, align
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.features.vgg import VggNetwork
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.files import write_text
from pixloc_ros.io.images import fit_to_working_size, load_image
from pixloc_ros.io.trajectory import Trajectory, read_benchmark_poses, read_tum, write_tum
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap

OURS, VGG = "pixloc_ros", "vgg_pixloc"
RIVALS = ("klt", "lk", "sift", "orb", "xfeat_align", "xfeat_mnn", "xfeat_lg", "aliked_lg", "disk_lg")
"""All of the harness whose packages are on PyPI."""
ASKED = {"orb": 4, "aliked_lg": 50, VGG: 100}
"""How many times ours they are to cost at least."""
PAPER = AlignmentOptions(strategy="paper", iterations=150, loss=RobustLoss("cauchy", 0.01))
PAPER_POINTS, PAPER_ROUNDS = 512, 2
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
    parser.add_argument(
        "--rivals", nargs="*", default=[], help=f"rivals to run (again); results of others are kept; all: {' '.join(RIVALS)}"
    )
    parser.add_argument("--vgg", action="store_true", help="time the paper's network and rule, too")
    parser.add_argument("--harness", type=Path, help="the harness (default: DATA/../tools/peers/run.py)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the rivals' packages")
    parser.add_argument("--max-queries", type=int, default=0, help="so many of a scene's queries only (0: all)")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--no-timing", action="store_true", help="accuracy only")
    parser.add_argument("--no-accuracy", action="store_true", help="time again, on a quieter machine")
    parser.add_argument("--small-priors", action="store_true", help="accuracy on clean images from small priors only")
    parser.add_argument("--docs", type=Path, help="also put the tables between <!-- rivals: begin --> and ... end --> there")
    parser.add_argument(
        "--timed-queries",
        type=int,
        default=0,
        metavar="N",
        help=f"time N evenly spaced queries (default: the first {TIMED_QUERIES})",
    )
    args = parser.parse_args()
    if args.rivals == ["all"]:
        args.rivals = list(RIVALS)
    harness = args.harness or args.data / ".." / "tools" / "peers" / "run.py"
    if not harness.is_file():
        print(f"no harness {harness}: give --harness", file=sys.stderr)
        return 2
    names = args.scenes or sorted(p.parent.name for p in args.data.glob("*/queries") if (p.parent / "map").is_dir())
    for name in names:
        compare(
            args.data / name,
            args,
            [args.python, str(harness), "--scene", str(args.data / name), "--cache", str(args.output / "cache")],
        )
    results = {name: json.loads((args.output / f"{name}.json").read_text()) for name in names}
    table = markdown(results)
    write_text(args.output / "rivals.md", table)
    if args.docs:
        write_section(args.docs, "rivals", table)
    print(table)
    return 0


def compare(scene: Path, args: argparse.Namespace, harness: list[str]) -> None:
    """One scene: rivals, then ours; everything ends up in the harness's result file."""
    name, results = scene.name, args.output / f"{scene.name}.json"
    args.output.mkdir(parents=True, exist_ok=True)
    map_path = args.output / "maps" / f"{name}.pixmap"
    extractor = load_extractor(args.weights)
    with show_progress(f"{name}: map") as progress:
        map_, _ = build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)
    map_.save(map_path)
    if not args.no_accuracy:
        command = [*harness, "--max-queries", str(args.max_queries), "--out", str(results), "--peers"]
        export = exported(args.output / "export" / name, command)
        if args.rivals:
            columns = ["--variants", VARIANTS[0], "--levels", "0"] if args.small_priors else []
            subprocess.run([*command, *args.rivals, "--no-timing", *columns], check=True, stdout=subprocess.DEVNULL)
        found = localize_all(
            export,
            world_from_map(export, scene),
            map_path,
            args.weights,
            args.output / "ours" / name,
            RUNS[:1] if args.small_priors else RUNS,
        )
        specs = [word for (variant, level), path in found.items() for word in ("--external", f"{OURS}@{variant}@{level}={path}")]
        subprocess.run([*command, *specs], check=True, stdout=subprocess.DEVNULL)
    if not args.no_timing:
        time_all(scene, args, harness, map_path, results)


def time_all(scene: Path, args: argparse.Namespace, harness: list[str], map_path: Path, results: Path) -> None:
    """Rivals, ours and the paper's, one after the other, on the same queries; their times go into the result file."""
    timed = args.output / f"timed_{scene.name}.json"
    count = args.timed_queries or args.max_queries
    command = [*harness, "--max-queries", str(count), "--out", str(timed), "--peers"]
    export = exported(args.output / "export" / (f"{scene.name}_{count}" if args.timed_queries else scene.name), command)
    timed.unlink(missing_ok=True)
    if args.rivals:
        subprocess.run([*command, *args.rivals, "--no-accuracy"], check=True, stdout=subprocess.DEVNULL)
    elif not results.is_file():
        raise InputError(f"{results} is not there yet: run once without --no-accuracy, or name --rivals")
    times = json.loads(timed.read_text()) if timed.is_file() else {"peers": {}}
    peers = times.pop("peers")
    jobs = {OURS: (time_ours, (export, world_from_map(export, scene), map_path, args.weights))}
    if args.vgg:
        jobs[VGG] = (time_vgg, (export, world_from_map(export, scene), map_path, scene))
    for name, (time_one, arguments) in jobs.items():
        # In a process of its own, so that the peak of its memory is its own.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peers[name] = pool.apply(time_one, arguments)
    result = json.loads(results.read_text()) if results.is_file() else times | {"peers": {}}
    for name, entry in peers.items():
        result["peers"].setdefault(name, {}).update(entry)
    write_text(results, json.dumps(result))
    timed.unlink(missing_ok=True)


def exported(export: Path, command: list[str]) -> Path:
    """Priors and queries of the harness; command: it, up to and with its option for rivals."""
    if not (export / "lists.json").is_file():
        subprocess.run([*command, "--export", str(export)], check=True)
    return export


def world_from_map(export: Path, scene: Path) -> torch.Tensor:
    """[4, 4]: the harness may use another world frame than the scene's map; the queries' truth is known in both."""
    world_from_camera = read_tum(export / "truth.txt").map_from_body
    camera_from_map = read_benchmark_poses(scene / "queries" / "truth.txt")
    both = world_from_camera @ torch.stack([camera_from_map[name] for name in query_names(export)])
    if float((both - both[0]).abs().max()) > SAME_FRAME:
        raise InputError(f"{export} and {scene} have different poses: remove the export")
    return both[0]


def localize_all(
    export: Path, frame: torch.Tensor, map_path: Path, weights: str, output: Path, runs: list[tuple[str, int]]
) -> dict[tuple[str, int], Path]:
    """Trajectories (TUM files) of variants and prior sets, one pose a query that was found. frame: world_from_map."""
    localizer = Localizer.open(map_path, weights).aligner
    names = query_names(export)
    paths = {}
    for variant, level in runs:
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
    localizer = Localizer.open(map_path, weights).aligner
    priors, camera = read_tum(export / "prior_0.txt"), export_camera(export / "clean")
    starts = se3.inverse(frame) @ priors.map_from_body
    images = [load_image(export / "clean" / png_name(name)) for name in query_names(export)[:TIMED_QUERIES]]
    rounds = []
    for _ in range(ROUNDS + 1):
        outside, cpu, wall = _busy_s(), time.process_time(), time.perf_counter()
        stages = [localizer.localize(image, camera, prior).timings_ms for image, prior in zip(images, starts)]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rounds.append(((_busy_s() - outside - cpu) / wall, 1e3 * cpu / len(images), 1e3 * wall / len(images), stages))
    stages = [stage for r in _quietest(rounds) for stage in r[3]]
    median = {key: float(np.median([stage[key] for stage in stages])) for key in stages[0]}
    return _timing(rounds, median["prepare"] + median["features"], median["gather"], median["alignment"])


@torch.inference_mode()
def time_vgg(export: Path, frame: torch.Tensor, map_path: Path, scene: Path) -> dict[str, object]:
    """Milliseconds a query of the method as it was published, with random weights; points and poses are the map's."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    extractor, map_ = Extractor(VggNetwork(19), VGG, VGG), Map.open(map_path)
    starts, camera = se3.inverse(frame) @ read_tum(export / "prior_0.txt").map_from_body, export_camera(export / "clean")
    lists = json.loads((export / "lists.json").read_text())["queries"][:TIMED_QUERIES]
    keyframes = {name: k for k, name in enumerate(map_.keyframe_names)}
    queries = [
        fit_to_working_size(load_image(export / "clean" / png_name(entry["name"])), camera, extractor.working_side)
        for entry in lists
    ]
    references = [[(keyframes[name], load_image(scene / "images" / name)) for name in entry["near"]["0"]] for entry in lists]
    rounds = []
    for _ in range(PAPER_ROUNDS + 1):
        outside, cpu, wall = _busy_s(), time.process_time(), time.perf_counter()
        stages = []
        for (image, at), near, start in zip(queries, references, starts):
            began = time.perf_counter()
            pyramid = extractor.extract(image)
            seen = time.perf_counter()
            sampled = [_vgg_points(extractor, map_, keyframe, other) for keyframe, other in near]
            points = ReferencePoints(
                torch.cat([one.xyz for one in sampled]),
                *(
                    tuple(map(torch.cat, zip(*levels)))
                    for levels in zip(*((one.descriptors, one.confidences) for one in sampled))
                ),
            )
            matched = time.perf_counter()
            align(pyramid, at, points, se3.inverse(start), PAPER)
            stages.append((seen - began, matched - seen, time.perf_counter() - matched))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rounds.append(((_busy_s() - outside - cpu) / wall, 1e3 * cpu / len(queries), 1e3 * wall / len(queries), stages))
    return _timing(rounds, *(1e3 * np.median([stage for r in _quietest(rounds) for stage in r[3]], 0)))


def _vgg_points(extractor: Extractor, map_: Map, keyframe: int, image: np.ndarray) -> ReferencePoints:
    """Points that a keyframe observes, with the features of its image."""
    camera = map_.cameras[int(map_.keyframe_camera[keyframe])]
    image, camera = fit_to_working_size(
        image,
        camera.scaled(image.shape[1] / camera.width, image.shape[0] / camera.height, image.shape[1], image.shape[0]),
        extractor.working_side,
    )
    pyramid = extractor.extract(image)
    rows = map_.observations(keyframe)
    xyz = torch.from_numpy(map_.xyz[map_.observation_point[rows]][:PAPER_POINTS])
    pixels, _ = camera.project(se3.transform(se3.inverse(map_.map_from_keyframe[keyframe]), xyz))
    sampled = [sample_level(level, pixels.float()[None]) for level in pyramid.levels]
    return ReferencePoints(xyz.float(), tuple(one[0][0] for one in sampled), tuple(one[1][0] for one in sampled))


def _quietest(rounds: list[tuple]) -> list[tuple]:
    """Without the first, which warms up."""
    return sorted(rounds[1:], key=lambda r: r[0])[:QUIETEST]


def _timing(rounds: list[tuple], features: float, matching: float, solver: float) -> dict[str, object]:
    """What the harness notes of a rival: rounds of (cores that others took, CPU ms, ms a query, stages)."""
    outside, cpu, total = (float(np.median([r[k] for r in _quietest(rounds)])) for k in range(3))
    return {
        "ms": {
            "features": float(features),
            "matching": float(matching),
            "solver": float(solver),
            "total": total,
            "cpu": cpu,
            "outside": outside,
        },
        "rss_mib": _peak_mib(),
    }


def markdown(results: dict[str, dict]) -> str:
    """Per scene: accuracy and robustness of each, then cost."""
    lines = []
    for scene, result in results.items():
        unit = "cm" if result["metric"] else "% depth"
        lines += [f"### {scene}: {result['refs']} map images, {result['queries']} queries", ""]
        judged = {peer: entry for peer, entry in result["peers"].items() if entry.get("summary")}
        if judged:
            lines += [
                f"| | small: deg | {unit} | R | medium: deg | {unit} | R | large: deg | {unit} | R | blur | dark "
                "| occluded | half res |",
                "|---" * 14 + "|",
            ]
        for peer, entry in sorted(judged.items(), key=lambda item: item[0] != OURS):
            summary = entry["summary"]
            cells = [c for level in LEVELS for c in _accuracy(summary.get(f"clean@{level}"), result["metric"])]
            cells += [
                _accuracy(summary.get(f"{variant}@0"), result["metric"])[2]
                for variant in ("blur", "lowlight", "occlusion", "halfres")
            ]
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
        timed = {peer: entry for peer, entry in result["peers"].items() if "ms" in entry}
        if timed:
            lines += [
                "",
                "| | features | matching | solver | total ms | CPU ms | peak MiB | cores others took | ours, times | "
                "its CPU, times | asked |",
                "|---" * 11 + "|",
            ]
            ours = timed.get(OURS, {"ms": {"total": np.nan, "cpu": np.nan}})["ms"]
            for peer, entry in sorted(timed.items(), key=lambda item: (item[0] != OURS, item[1]["ms"]["total"])):
                ms = entry["ms"]
                cells = [f"{ms[key]:.1f}" for key in ("features", "matching", "solver", "total", "cpu")]
                cells += [
                    f"{entry['rss_mib']:.0f}",
                    f"{ms['outside']:.2f}",
                    f"{ms['total'] / ours['total']:.1f}",
                    f"{ms['cpu'] / ours['cpu']:.1f}",
                    f"{ASKED[peer]}" if peer in ASKED else "",
                ]
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

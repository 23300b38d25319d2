#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""This package and other ways to find a camera in a map, on the same frames and machine, as in docs/evidence/results.md.

The rivals (klt, lk, xfeat_align, sift, orb, xfeat_mnn, ...) are run by a benchmark harness (its run.py) with an interpreter
that has their packages. The harness also exports what an outside system needs: priors, and the queries clean, blurred, dark,
occluded and at half resolution. These are localized here, the harness scores the trajectories, and the same queries are timed
the way it times the others: images in memory, map open, the quietest of several rounds count.

--vgg times the method as it was published, for its cost alone: a VGG19 with random weights sees the query and, anew for every
query, its three references, of which 512 points each are aligned by the paper's rule, 150 iterations a level at most.

    experiments/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python --rivals sift orb klt lk
    experiments/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python     # ours again, rivals kept
    experiments/compare_rivals.py ../shared/data -o out/rivals --python ~/rivals/bin/python --scenes fox tum_fr1_rpy \
        --rivals all --vgg --no-accuracy --timed-queries 3      # what docs/evidence/performance.md quotes
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import common
import numpy as np
import torch
from harness import LEVELS, RUNS, VARIANTS, Export, Harness

from pixloc_ros.alignment import AlignmentOptions, ReferencePoints, RobustLoss, View, align
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.evaluation.usage import Load, peak_mib
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.features.vgg import VggNetwork
from pixloc_ros.geometry import se3
from pixloc_ros.io.files import write_text
from pixloc_ros.io.images import fit_to_working_size, load_image
from pixloc_ros.io.trajectory import Trajectory, write_tum
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map

OURS, VGG = "pixloc_ros", "vgg_pixloc"
RIVALS = ("klt", "lk", "sift", "orb", "xfeat_align", "xfeat_mnn", "xfeat_lg", "aliked_lg", "disk_lg")
"""All of the harness whose packages are on PyPI."""
ASKED = {"orb": 4, "aliked_lg": 50, VGG: 100}
"""How many times ours they are to cost at least."""
PAPER = AlignmentOptions(strategy="paper", iterations=150, loss=RobustLoss("cauchy", 0.01))
PAPER_POINTS, PAPER_ROUNDS = 512, 2
TIMED_QUERIES, ROUNDS, QUIETEST = 8, 6, 3
"""As in the harness."""
STAGES = ("features", "matching", "solver")


def main() -> int:
    parser = common.parser(__doc__, "out/rivals")
    common.add_rival_arguments(parser)
    add, everything = parser.add_argument, " ".join(RIVALS)
    add("--rivals", nargs="*", default=[], metavar="NAME", help=f"run these (again), keep results of others; all: {everything}")
    add("--vgg", action="store_true", help="time the paper's network and rule, too")
    add("--max-queries", type=int, default=0, metavar="N", help="N queries of a scene only (0: all)")
    add("--no-timing", action="store_true", help="accuracy only")
    add("--no-accuracy", action="store_true", help="time again, on a quieter machine")
    add("--small-priors", action="store_true", help="accuracy on clean images from small priors only")
    add("--timed-queries", type=int, default=0, metavar="N", help=f"evenly spaced ones (default: the first {TIMED_QUERIES})")
    args = parser.parse_args()
    args.rivals = list(RIVALS) if args.rivals == ["all"] else args.rivals
    results = {scene.name: compare(scene, args) for scene in common.scenes_of(args)}
    tables = {"rivals": report(results)}
    write_text(args.output / "rivals.md", tables["rivals"])
    return common.finish(args, tables)


def compare(scene: common.Scene, args) -> dict:
    """One scene: rivals, then ours; everything is written into the harness's result file."""
    result, map_path = args.output / f"{scene.name}.json", args.output / "maps" / f"{scene.name}.pixmap"
    scene.build_map(load_extractor(args.weights), map_path)
    if not args.no_accuracy:
        harness = Harness(args, scene, args.max_queries, result)
        export = harness.export(Export(args.output / "export" / scene.name, scene))
        if args.rivals:
            harness.run("--no-timing", *(["--variants", "clean", "--levels", 0] if args.small_priors else []), peers=args.rivals)
        runs = RUNS[:1] if args.small_priors else RUNS
        found = localize_all(export, Localizer.open(map_path, args.weights), args.output / "ours" / scene.name, runs)
        harness.run(*(word for run, path in found.items() for word in ("--external", f"{OURS}@{run[0]}@{run[1]}={path}")))
    if not args.no_timing:
        time_all(scene, args, map_path, result)
    return json.loads(result.read_text())


def localize_all(export: Export, localizer: Localizer, output: Path, runs) -> dict[tuple[str, int], Path]:
    """Trajectories (TUM files) of variants and prior sets, with one pose for each query that was found."""
    paths = {}
    for variant, level in runs:
        camera, poses = export.camera(variant), []
        with show_progress(f"{export.scene.name}: {variant}, priors {LEVELS[level]}") as progress:
            for k, (name, stamp_ns, prior) in enumerate(zip(export.names, export.stamps_ns(), export.priors(level), strict=True)):
                result = localizer.aligner.localize(export.image(variant, name), camera, prior)
                if result.success:
                    poses.append((stamp_ns, export.world_from_map @ result.map_from_camera))
                progress(k + 1, len(export.names))
        paths[variant, level] = output / f"{variant}_{level}.txt"
        output.mkdir(parents=True, exist_ok=True)
        write_tum(paths[variant, level], Trajectory.from_poses(poses))
    return paths


# ---- time


def time_all(scene: common.Scene, args, map_path: Path, result: Path) -> None:
    """Rivals, ours and the paper's, one after the other, on the same queries; their times go into the result file."""
    timed = args.output / f"timed_{scene.name}.json"
    name = f"{scene.name}_{args.timed_queries}" if args.timed_queries else scene.name
    harness = Harness(args, scene, args.timed_queries or args.max_queries, timed)
    export = harness.export(Export(args.output / "export" / name, scene))
    timed.unlink(missing_ok=True)
    if args.rivals:
        harness.run("--no-accuracy", peers=args.rivals)
    elif not result.is_file():
        raise InputError(f"{result} is not there yet: run once without --no-accuracy, or name --rivals")
    times = json.loads(timed.read_text()) if timed.is_file() else {"peers": {}}
    peers = times.pop("peers")
    for name, time_one in {OURS: time_ours, **({VGG: time_vgg} if args.vgg else {})}.items():
        # In a process of its own, so that the peak of its memory is its own.
        with get_context("spawn").Pool(1) as pool:
            peers[name] = pool.apply(time_one, (export, map_path, args.weights))
    figures = json.loads(result.read_text()) if result.is_file() else times | {"peers": {}}
    for name, entry in peers.items():
        figures["peers"].setdefault(name, {}).update(entry)
    write_text(result, json.dumps(figures))
    timed.unlink(missing_ok=True)


def time_ours(export: Export, map_path: Path, weights: str) -> dict[str, object]:
    """Milliseconds a query (small priors), as the harness takes them."""
    localizer, camera, starts = Localizer.open(map_path, weights), export.camera("clean"), export.priors(0)
    images = [export.image("clean", name) for name in export.names[:TIMED_QUERIES]]

    def work() -> list[tuple[float, ...]]:
        stages = [localizer.aligner.localize(image, camera, prior).timings_ms for image, prior in zip(images, starts)]
        return [(s["prepare"] + s["features"], s["gather"], s["alignment"]) for s in stages]

    return timing(work, ROUNDS)


@torch.inference_mode()
def time_vgg(export: Export, map_path: Path, weights: str) -> dict[str, object]:
    """Milliseconds a query of the method as it was published, with random weights; points and poses are the map's."""
    torch.manual_seed(0)
    extractor, map_ = Extractor(VggNetwork(19), VGG, VGG), Map.open(map_path)
    starts, camera, queries = export.priors(0), export.camera("clean"), export.lists[:TIMED_QUERIES]
    keyframes = {name: k for k, name in enumerate(map_.keyframe_names)}
    images = [fit_to_working_size(export.image("clean", q["name"]), camera, extractor.working_side) for q in queries]
    references = [
        [(keyframes[name], load_image(export.scene.folder / "images" / name)) for name in query["near"]["0"]] for query in queries
    ]

    def work() -> list[tuple[float, ...]]:
        stages = []
        for (image, at), near, start in zip(images, references, starts):
            clock = [time.perf_counter()]
            pyramid = extractor.extract(image)
            clock.append(time.perf_counter())
            sampled = [vgg_points(extractor, map_, keyframe, other) for keyframe, other in near]
            levels = (zip(*(getattr(one, what) for one in sampled)) for what in ("descriptors", "confidences"))
            points = ReferencePoints(torch.cat([one.xyz for one in sampled]), *(tuple(map(torch.cat, level)) for level in levels))
            clock.append(time.perf_counter())
            align(View(pyramid, at, points), se3.inverse(start), PAPER)
            clock.append(time.perf_counter())
            stages.append(tuple(1e3 * np.diff(clock)))
        return stages

    return timing(work, PAPER_ROUNDS)


def vgg_points(extractor: Extractor, map_: Map, keyframe: int, image: np.ndarray) -> ReferencePoints:
    """Points that a keyframe observes, with the features of its image."""
    camera, (height, width) = map_.cameras[int(map_.keyframe_camera[keyframe])], image.shape[:2]
    camera = camera.scaled(width / camera.width, height / camera.height, width, height)
    image, camera = fit_to_working_size(image, camera, extractor.working_side)
    pyramid = extractor.extract(image)
    xyz = torch.from_numpy(map_.xyz[map_.observation_point[map_.observations(keyframe)]][:PAPER_POINTS])
    pixels, _ = camera.project(se3.transform(se3.inverse(map_.map_from_keyframe[keyframe]), xyz))
    sampled = [sample_level(level, pixels.float()[None]) for level in pyramid.levels]
    return ReferencePoints(xyz.float(), tuple(one[0][0] for one in sampled), tuple(one[1][0] for one in sampled))


def timing(work: Callable[[], list[tuple[float, ...]]], count: int) -> dict[str, object]:
    """What the harness notes of a rival; work: one round, milliseconds of the STAGES of each query."""
    torch.set_num_threads(2)
    rounds = []
    for _ in range(count + 1):
        load = Load()
        stages = work()
        wall, cpu, others = load.read()
        rounds.append((others, 1e3 * cpu / len(stages), 1e3 * wall / len(stages), stages))
    quietest = sorted(rounds[1:], key=lambda r: r[0])[:QUIETEST]  # the first one warms up
    stages = np.median([stage for r in quietest for stage in r[3]], 0).tolist()
    outside, cpu, total = (float(np.median([r[k] for r in quietest])) for k in range(3))
    return {"ms": dict(zip(STAGES, stages)) | {"total": total, "cpu": cpu, "outside": outside}, "rss_mib": peak_mib()}


# ---- tables


def report(results: dict[str, dict]) -> str:
    """For each scene: accuracy and robustness of each, then cost."""
    parts = []
    for scene, result in results.items():
        unit = "cm" if result["metric"] else "% depth"
        parts.append(f"### {scene}: {result['refs']} map images, {result['queries']} queries\n")
        peers = sorted(result["peers"].items(), key=lambda item: item[0] != OURS)
        rows = [(peer, *accuracies(entry["summary"], result["metric"])) for peer, entry in peers if entry.get("summary")]
        levels = " | ".join(f"{level}: deg | {unit} | R" for level in LEVELS)
        if rows:
            parts.append(markdown_table(f"method | {levels} | blur | dark | occluded | half res", rows))
        timed = sorted((item for item in peers if "ms" in item[1]), key=lambda item: (item[0] != OURS, item[1]["ms"]["total"]))
        if timed:
            ours = result["peers"].get(OURS, {}).get("ms", {"total": np.nan, "cpu": np.nan})
            head = "method | features | matching | solver | total ms | CPU ms | peak MiB | cores others took | ours, times"
            parts.append(markdown_table(f"{head} | its CPU, times | asked", (costs(peer, entry, ours) for peer, entry in timed)))
    return "\n".join(parts)


def accuracies(summary: dict, metric: bool) -> list[str]:
    """Degrees, distance and recall of clean images; recall of degraded ones."""
    cells = []
    for variant, level in RUNS:
        found = summary.get(f"{variant}@{level}")
        if found is None:
            deg, distance, share = "–", "–", "–"
        else:
            share = f"{100 * found['recall'][1]:.0f}"
            deg, distance = "lost", "lost"
            if found["med_deg"] is not None:
                deg = f"{found['med_deg']:.3f}"
                distance = f"{100 * found['med_trans']:.2f}" if metric else f"{100 * found['med_rel']:.3f}"
        cells += [deg, distance, share] if variant == VARIANTS[0] else [share]
    return cells


def costs(peer: str, entry: dict, ours: dict) -> list[str]:
    ms = entry["ms"]
    times = [f"{ms[key]:.1f}" for key in (*STAGES, "total", "cpu")]
    ratios = [f"{ms[key] / ours[key]:.1f}" for key in ("total", "cpu")]
    return [peer, *times, f"{entry['rss_mib']:.0f}", f"{ms['outside']:.2f}", *ratios, str(ASKED.get(peer, ""))]


if __name__ == "__main__":
    run_script(main)

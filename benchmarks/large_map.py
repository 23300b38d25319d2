#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A district of ten thousand keyframes: finding an image in it without a prior, and driving through all of it.

The map of a simulated drive, thinned to 1000 points of 10 keyframes, lies side by side as in scaling.py, but each copy shows
another place: its features are turned by a random rotation, and its keyframes' global descriptors are drawn with the mean and
covariance of those of the whole simulated map. Images of the drive are looked for in all of it; then a camera visits every
keyframe of the district at 10 images a second, from a file that is not in the system's cache, and the time to choose the points
of each image is taken: what loading from disk costs, where it is not hidden.

    benchmarks/large_map.py [--json new.json]

Memory is what using the map added to the process: "own", and "file" pages, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import measuring
import numpy as np
import scaling
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.mapping import LocalPointSelector, Map
from pixloc_ros.mapping.retrieval import KeyframeIndex
from pixloc_ros.tracking.frame_aligner import FrameAligner
from pixloc_ros.tracking.relocalization import Relocalizer
from pixloc_ros.tracking.types import PreparedFrame

COPIES = 1000
IMAGE_PERIOD_S = 0.1
TURNS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=COPIES, help="of 10 keyframes each")
    parser.add_argument("--visits", type=int, default=300, help="keyframes driven past, in real time")
    parser.add_argument("--data", type=Path, default=measuring.DATA, help="where drive and map are kept (2 GB)")
    measuring.add_output_arguments(parser)
    args = parser.parse_args()
    extractor = load_extractor()
    drive = measuring.simulated_drive(640, 480, args.data)
    base = Map.open(measuring.map_of_drive(drive, extractor))
    path = args.data / f"district_{base.extractor_fingerprint}_{args.copies}.pixmap"
    if not path.is_file():
        district(base, args.copies).save(path)
    table = [("what", "p50 ms", "p99 ms", "worst ms", "note")]
    figures: dict[str, object] = {"machine": measuring.describe_machine()}
    for name, work in (("search", search), ("drive", drive_through)):
        scaling.drop_from_cache(path)
        with get_context("spawn").Pool(1) as pool:
            figures[name] = run = pool.apply(work, (path, drive, args.copies // 2, args.visits))
        for what, (times, note) in run.items():
            cells = (format_number(float(v)) for v in (np.median(times), np.percentile(times, 99), max(times)))
            table.append((what, *cells, note))
    measuring.report(figures, args, table)
    return 0


def district(map_: Map, copies: int) -> Map:
    """So many places side by side; the middle one is the map's own."""
    rng = np.random.default_rng(0)
    known = map_.global_descriptors.astype(float)
    small = scaling.thinned(map_, scaling.COPY_POINTS, scaling.COPY_KEYFRAMES)
    big = scaling.repeated(small, copies)
    middle, keyframes, rows = copies // 2, len(small.keyframe_names), len(small.observation_point)
    others = rng.multivariate_normal(known.mean(0), np.cov(known.T), len(big.keyframe_names), method="eigh")
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    own = slice(middle * keyframes, (middle + 1) * keyframes)
    others[own] = big.global_descriptors[own]
    levels = [np.array(level) for level in big.descriptors]
    for copy in range(copies):
        if copy != middle:
            for level in levels:
                turn = np.linalg.qr(rng.normal(size=(level.shape[1], level.shape[1])))[0]
                piece = slice(copy * rows, (copy + 1) * rows)
                level[piece] = level[piece].astype(np.float32) @ turn.astype(np.float32)
    return replace(big, global_descriptors=others.astype(np.float16), descriptors=tuple(levels))


def search(path: Path, drive: Path, middle: int, visits: int) -> dict[str, tuple[list[float], str]]:
    """Images of the drive in the whole district, in a fresh process."""
    torch.set_num_threads(1)
    extractor = load_extractor()
    frames, poses, camera = scaling._frames(drive, scaling.SPACING_M * middle)
    scaling._warm_up(drive, extractor, frames[0], poses[0], camera)
    base = FrameAligner(Map.open(measuring.map_of_drive(drive, extractor)), extractor)
    eye = torch.eye(4, dtype=torch.float64)
    Relocalizer(base).search(PreparedFrame(0, frames[0], camera, base.prepare(frames[0], camera)), eye)
    before = measuring.memory_mib()
    opening = _timed(lambda: Map.open(path))
    map_ = Map.open(path)
    localizer = FrameAligner(map_, extractor)
    ready = _timed(lambda: Relocalizer(localizer))
    relocalizer = Relocalizer(localizer)
    index, alike, turns, found = KeyframeIndex(map_), [], [], []
    for image, pose in zip(frames, poses):
        frame = PreparedFrame(0, image, camera, localizer.prepare(image, camera))
        description = index.descriptor.describe(image, frame.prepared.pyramid)
        alike.append(_timed(lambda d=description: index.by_place(index.most_similar(d, relocalizer.options.pool))))
        needed = np.nan
        for turn in range(TURNS):
            began = time.perf_counter()
            best = relocalizer.search(frame, eye, turn)
            turns.append(1e3 * (time.perf_counter() - began))
            if best and best[0].inlier_fraction > 0.25:
                away, turned = se3.pose_difference(best[0].map_from_camera, pose)
                right = float(away) < 0.3 and float(turned) < 0.1  # the poses are priors, not exact
                needed = turn + 1 if right else -1
                break
        found.append(needed)
    found = np.array(found)
    memory = {name: value - before[name] for name, value in measuring.memory_mib().items()}
    note = (
        f"{np.mean(found > 0):.0%} of {len(found)} images found, {np.mean(found == 1):.0%} at once, "
        f"{np.sum(found < 0)} wrong; memory own {memory['own']:.0f} MiB, file {memory['file']:.0f} MiB"
    )
    size = f"{len(map_.keyframe_names)} keyframes, {path.stat().st_size / 2**20:.0f} MiB"
    return {
        "open the map, not cached": ([opening], size),
        "index the keyframes": ([ready], ""),
        "similar keyframes by place": (alike, ""),
        "search, one image": (turns, note),
    }


def drive_through(path: Path, drive: Path, middle: int, visits: int) -> dict[str, tuple[list[float], str]]:
    """Choosing points along keyframes never seen before, at the pace of a camera, in a fresh process."""
    torch.set_num_threads(1)
    extractor = load_extractor()
    frames, poses, camera = scaling._frames(drive, 0.0)
    scaling._warm_up(drive, extractor, frames[0], poses[0], camera)
    map_ = Map.open(path)
    selector = LocalPointSelector(map_)
    before = measuring.memory_mib()
    first, again = [], []
    for k in range(0, visits):
        pose = map_.map_from_keyframe[(middle + 5) * 10 + k]
        began = time.perf_counter()
        selector.select(pose, camera, 1024)
        first.append(1e3 * (time.perf_counter() - began))
        again.append(_timed(lambda p=pose: selector.select(p, camera, 1024)))
        time.sleep(max(0.0, IMAGE_PERIOD_S - (time.perf_counter() - began)))
    memory = {name: value - before[name] for name, value in measuring.memory_mib().items()}
    note = f"memory own {memory['own']:.0f} MiB, file {memory['file']:.0f} MiB after {visits} keyframes"
    return {"points of a keyframe never seen, from disk": (first, note), "the same again": (again, "")}


def _timed(call) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"large_map: error: {error}", file=sys.stderr)
        sys.exit(2)

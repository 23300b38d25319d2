#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A district of ten thousand keyframes: finding an image in it without a prior, and driving through all of it.

The map of a simulated drive, thinned to 1000 points of 10 keyframes, lies side by side as in scaling.py, but each copy shows
another place: its features are turned by a random rotation, and its keyframes' global descriptors are drawn with the mean and
covariance of those of the whole simulated map. Images of the drive are searched for in all of it; then a camera visits every
keyframe of the district at 10 images a second, from a file that is not in the system's cache, and the time to choose the points
of each image is taken: what loading from disk costs, where it is not hidden.

    benchmarks/large_map.py [--json new.json]

Memory is what using the map added to the process: "own", and "file" pages, which the system takes back when it needs them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import scaling
import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.evaluation.usage import memory_mib
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
    parser = measuring.parser(__doc__, compare=False)
    parser.add_argument("--copies", type=int, default=COPIES, help="of 10 keyframes each")
    parser.add_argument("--visits", type=int, default=300, help="keyframes driven past, in real time")
    args = parser.parse_args()
    extractor = load_extractor(args.weights)
    drive = measuring.simulated_drive(640, 480, args.data)
    base = Map.open(measuring.map_of_drive(drive, extractor))
    path = args.data / f"district_{base.extractor_fingerprint}_{args.copies}.pixmap"
    if not path.is_file():
        district(base, args.copies).save(path)
    table = [("what", "p50 ms", "p99 ms", "worst ms", "note")]
    figures: dict[str, object] = {"machine": measuring.describe_machine()}
    for name, work in (("search", search), ("drive", drive_through)):
        scaling.drop_from_cache(path)
        figures[name] = run = measuring.in_process(work, path, drive, args.weights, args.copies // 2, args.visits)
        for what, (times, note) in run.items():
            cells = (format_number(float(v)) for v in (np.median(times), np.percentile(times, 99), max(times)))
            table.append((what, *cells, note))
    return measuring.report(figures, args, table)


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


def search(path: Path, drive: Path, weights: str, middle: int, visits: int) -> dict[str, tuple[list[float], str]]:
    """Images of the drive in the whole district, in a fresh process."""
    torch.set_num_threads(1)
    extractor = load_extractor(weights)
    frames, poses, camera = scaling.frames_of(drive, scaling.SPACING_M * middle)
    scaling.warm_up(drive, extractor, frames[0], poses[0], camera)
    base = FrameAligner(Map.open(measuring.map_of_drive(drive, extractor)), extractor)
    eye = torch.eye(4, dtype=torch.float64)
    Relocalizer(base).search(PreparedFrame(0, frames[0], camera, base.prepare(frames[0], camera)), eye)
    before = memory_mib()
    opening = measuring.timed_ms(lambda: Map.open(path))
    map_ = Map.open(path)
    localizer = FrameAligner(map_, extractor)
    ready = measuring.timed_ms(lambda: Relocalizer(localizer))
    relocalizer = Relocalizer(localizer)
    index, similar, turns, found = KeyframeIndex(map_), [], [], []
    for image, pose in zip(frames, poses):
        frame = PreparedFrame(0, image, camera, localizer.prepare(image, camera))
        description = index.descriptor.describe(image, frame.prepared.pyramid)
        similar.append(measuring.timed_ms(lambda d=description: index.by_place(index.most_similar(d, relocalizer.options.pool))))
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
    memory = {name: value - before[name] for name, value in memory_mib().items()}
    note = (
        f"{np.mean(found > 0):.0%} of {len(found)} images found, {np.mean(found == 1):.0%} at once, "
        f"{np.sum(found < 0)} wrong; memory own {memory['own']:.0f} MiB, file {memory['file']:.0f} MiB"
    )
    size = f"{len(map_.keyframe_names)} keyframes, {path.stat().st_size / 2**20:.0f} MiB"
    return {
        "open the map, not cached": ([opening], size),
        "index the keyframes": ([ready], ""),
        "similar keyframes by place": (similar, ""),
        "search, one image": (turns, note),
    }


def drive_through(path: Path, drive: Path, weights: str, middle: int, visits: int) -> dict[str, tuple[list[float], str]]:
    """Choosing points along keyframes never seen before, at the pace of a camera, in a fresh process."""
    torch.set_num_threads(1)
    extractor = load_extractor(weights)
    frames, poses, camera = scaling.frames_of(drive, 0.0)
    scaling.warm_up(drive, extractor, frames[0], poses[0], camera)
    map_ = Map.open(path)
    selector = LocalPointSelector(map_)
    before = memory_mib()
    first, again = [], []
    for k in range(visits):
        pose = map_.map_from_keyframe[(middle + 5) * 10 + k]
        began = time.perf_counter()
        selector.select(pose, camera, 1024)
        first.append(1e3 * (time.perf_counter() - began))
        again.append(measuring.timed_ms(lambda p=pose: selector.select(p, camera, 1024)))
        time.sleep(max(0.0, IMAGE_PERIOD_S - (time.perf_counter() - began)))
    memory = {name: value - before[name] for name, value in memory_mib().items()}
    note = f"memory own {memory['own']:.0f} MiB, file {memory['file']:.0f} MiB after {visits} keyframes"
    return {"points of a keyframe never seen, from disk": (first, note), "the same again": (again, "")}


if __name__ == "__main__":
    run_script(main)

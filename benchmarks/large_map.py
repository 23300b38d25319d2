#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the size of a map costs: opening it, choosing points, a frame with and without a prior, driving past, memory.

The map of a simulated drive, thinned to 1000 points of 10 keyframes, lies side by side up to a million points and ten thousand
keyframes. Each copy shows another place: its features are turned by a random rotation, and its keyframes' global descriptors are
drawn with the mean and covariance of those of the whole simulated map; the middle copy is the map's own. Images of the drive are
localized in it from a prior, and searched for in all of the map; then a camera visits keyframes never seen before at 10 images a
second. Each map is opened in a process of its own, its file dropped from the system's cache before (where the system lets us).

    benchmarks/large_map.py [--json new.json] [--compare old.json]

Memory: what using the map added to the process; "own" memory, and "file" pages, which the system takes back when it needs them.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.evaluation.usage import Load, memory_mib
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.mapping import LocalPointSelector, Map
from pixloc_ros.mapping.build.care import subset
from pixloc_ros.tracking.frame_aligner import FrameAligner
from pixloc_ros.tracking.relocalization import Relocalizer
from pixloc_ros.tracking.types import PreparedFrame

COPY_POINTS, COPY_KEYFRAMES = 1000, 10
SPACING_M = 100.0
FRAMES, ROUNDS, TURNS = 20, 5, 3
IMAGE_PERIOD_S = 0.1
START_STD = (0.03, 0.01)
"""Standard deviations of the priors: metres, radians."""
NEAR = (0.3, 0.1)
"""Metres, radians: a pose found by the search that is so near to the prior is right."""
REPEATED = ("keyframe_camera", "keyframe_stamp_ns", "keyframe_depth", "global_descriptors", "track_length", "quality")
"""Fields of a map that are the same in each copy."""
WORK = ("select", "frame", "search", "unseen", "seen")
COLUMNS = ("open_ms", "ready_ms", *(f"{what}_{p}" for what in WORK for p in ("p50", "p99")))
HEAD = ", ".join(("points / keyframes, file on disk MiB, open ms, ready ms", *(f"{what} p50 ms, p99" for what in WORK)))


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--copies", nargs="+", type=int, default=[1, 10, 100, 1000], help="sizes, in copies of 1000 points")
    parser.add_argument("--visits", type=int, default=200, help="keyframes driven past, in real time (default 200)")
    args = parser.parse_args()
    drive = measuring.simulated_drive(640, 480, args.data)
    base = Map.open(measuring.map_of_drive(drive, load_extractor(args.weights)))
    figures: dict[str, object] = {"machine": measuring.describe_machine(), "maps": {}}
    old = measuring.earlier(args).get("maps", {})
    table = [(*HEAD.split(", "), "searches right %", "wrong", "own MiB", "file MiB", "others")]
    for copies in args.copies:
        path = args.data / f"district_{base.extractor_fingerprint}_{copies}.pixmap"
        if not path.is_file():
            district(base, copies).save(path)
        drop_from_cache(path)
        run = measuring.in_process(time_map, path, copies // 2, drive, args.weights, args.visits)
        name = f"{run['points']} / {run['keyframes']}"
        figures["maps"][name] = run
        cells = measuring.compared(run, old.get(name, {}), *COLUMNS)
        memory = (format_number(run[key]) for key in ("own", "file", "others_cores"))
        found = f"{100 * run['searches_right']:.0f}", str(run["searches_wrong"])
        table.append((name, format_number(path.stat().st_size / 2**20), *cells, *found, *memory))
    return measuring.report(figures, args, table)


def district(map_: Map, copies: int) -> Map:
    """So many places side by side along x; the middle one is the map's own, at most so many keyframes and points of it."""
    rng, known = np.random.default_rng(0), map_.global_descriptors.astype(float)
    early = np.arange(len(map_.observation_point)) < map_.observation_offsets[min(COPY_KEYFRAMES, len(map_.keyframe_names))]
    seen = rng.permutation(np.unique(map_.observation_point[early]))[:COPY_POINTS]
    small = subset(map_, early & np.isin(map_.observation_point, seen))
    keyframes, points, rows = len(small.keyframe_names), len(small.xyz), len(small.observation_point)
    which, shift = np.arange(copies), np.array([SPACING_M, 0.0, 0.0])
    poses = small.map_from_keyframe.repeat(copies, 1, 1)
    poses[:, :3, 3] += torch.from_numpy(np.repeat(which, keyframes)[:, None] * shift)

    def again(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.tile(array, (copies,) + (1,) * (array.ndim - 1))

    others = rng.multivariate_normal(known.mean(0), np.cov(known.T), copies * keyframes, method="eigh")
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    own = slice(copies // 2 * keyframes, (copies // 2 + 1) * keyframes)
    others[own] = small.global_descriptors
    levels = tuple(again(level) for level in small.descriptors)
    for copy in (copy for copy in range(copies) if copy != copies // 2):
        for level in levels:
            turn = np.linalg.qr(rng.normal(size=(level.shape[1], level.shape[1])))[0]
            piece = slice(copy * rows, (copy + 1) * rows)
            level[piece] = level[piece].astype(np.float32) @ turn.astype(np.float32)
    return replace(
        small,
        **{name: again(getattr(small, name)) for name in REPEATED} | {"global_descriptors": others.astype(np.float16)},
        keyframe_names=[f"{copy}/{name}" for copy in which for name in small.keyframe_names],
        map_from_keyframe=poses,
        xyz=again(small.xyz) + np.repeat(which, points)[:, None] * shift,
        observation_offsets=np.append(which[:, None] * rows + small.observation_offsets[:-1], copies * rows),
        observation_point=again(small.observation_point) + np.repeat(which * points, rows).astype(np.int32),
        descriptors=levels,
        confidences=tuple(map(again, small.confidences)),
    )


def drop_from_cache(path: Path) -> None:
    """So that opening reads the disk, as after a start of the machine."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_map(path: Path, middle: int, drive: Path, weights: str, visits: int) -> dict[str, float]:
    """Everything about one map, in a fresh process."""
    torch.set_num_threads(1)
    extractor, eye = load_extractor(weights), torch.eye(4, dtype=torch.float64)
    frames, poses, camera = frames_of(drive, SPACING_M * middle)
    # Compile and allocate with another map, so that it is not counted as this one's.
    other = FrameAligner(Map.open(measuring.map_of_drive(drive, extractor)), extractor)
    prepared = [PreparedFrame(0, image, camera, other.prepare(image, camera)) for image in frames]
    other.localize(frames[0], camera, other.map.map_from_keyframe[0])
    Relocalizer(other).search(prepared[0], eye)
    before, began = memory_mib(), time.perf_counter()
    map_ = Map.open(path)
    run = {"open_ms": 1e3 * (time.perf_counter() - began), "points": len(map_.xyz), "keyframes": len(map_.keyframe_names)}
    localizer, selector = FrameAligner(map_, extractor), LocalPointSelector(map_)
    relocalizer = Relocalizer(localizer)
    run["ready_ms"] = 1e3 * (time.perf_counter() - began)
    load, times, found = Load(), {what: [] for what in WORK}, []

    def select(pose: torch.Tensor) -> float:
        return measuring.timed_ms(lambda: selector.select(pose, camera, localizer.options.max_points))

    for round_ in range(ROUNDS + 1):
        for image, pose in zip(frames, poses):
            selected, localized = select(pose), measuring.timed_ms(lambda i=image, p=pose: localizer.localize(i, camera, p))
            if round_:  # the first reads the file
                times["select"].append(selected)
                times["frame"].append(localized)
    for frame, pose in zip(prepared, poses):
        for turn in range(TURNS):
            began = time.perf_counter()
            best = relocalizer.search(frame, eye, turn)
            times["search"].append(1e3 * (time.perf_counter() - began))
            if best and best[0].inlier_fraction > 0.25:
                away, turned = se3.pose_difference(best[0].map_from_camera, pose)
                found.append(float(away) < NEAR[0] and float(turned) < NEAR[1])
                break
    unseen = [k for k in range((middle + 5) * COPY_KEYFRAMES, run["keyframes"])] or list(range(run["keyframes"]))
    for k in unseen[:visits]:
        began = time.perf_counter()
        times["unseen"].append(select(map_.map_from_keyframe[k]))
        times["seen"].append(select(map_.map_from_keyframe[k]))
        time.sleep(max(0.0, IMAGE_PERIOD_S - (time.perf_counter() - began)))
    for what, values in times.items():
        run |= {f"{what}_{name}": value for name, value in measuring.percentiles(values).items()}
    run |= {"searches_right": sum(found) / len(frames), "searches_wrong": len(found) - sum(found), "others_cores": load.read()[2]}
    return run | {name: value - before[name] for name, value in memory_mib().items()}


def frames_of(drive: Path, offset_m: float):
    """Images of the drive's start, priors around their poses in the copy at `offset_m`, and their camera."""
    with BagReader(drive / "drive") as bag:
        truth = bag.truth()
        frames = [event for event in bag.events() if isinstance(event, CameraFrame)]
        poses, known = truth.at(np.array([frame.stamp_ns for frame in frames]), 10**9)
        chosen = [k for k in range(len(frames)) if known[k]][:FRAMES]
        noise = torch.randn(len(chosen), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        noise *= torch.tensor([START_STD[0]] * 3 + [START_STD[1]] * 3, dtype=torch.float64)
        priors = poses[chosen] @ bag.base_from_camera @ se3.se3_exp(noise)
        priors[:, 0, 3] += offset_m
        return [frames[k].image for k in chosen], list(priors), frames[0].camera


if __name__ == "__main__":
    run_script(main)

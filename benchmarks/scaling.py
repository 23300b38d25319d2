#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the size of a map costs: opening it, memory, choosing points, a whole frame.

The map of a simulated drive, thinned to 1000 points of 10 keyframes, is repeated side by side up to a million points and ten
thousand keyframes; the same images are then localized in each size of map, in its middle copy. Each map is opened in a
process of its own, its file dropped from the system's cache before (where the system lets us).

    benchmarks/scaling.py [--json new.json] [--compare old.json]

Memory: what opening and using the map added to the process; "own" memory, and "file" pages, which the system takes back
when it needs them.
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

COPY_POINTS, COPY_KEYFRAMES = 1000, 10
COPIES = (1, 10, 100, 1000)
SPACING_M = 100.0
FRAMES, ROUNDS = 20, 5
START_STD = (0.03, 0.01)
"""Standard deviations of the priors: metres, radians."""


REPEATED = ("keyframe_camera", "keyframe_stamp_ns", "keyframe_depth", "global_descriptors", "track_length", "quality")
"""Fields of a map that are the same in each copy."""
COLUMNS = {
    "open_ms": "open ms",
    "open_own_mib": "own MiB",
    "open_file_mib": "file MiB",
    "ready_ms": "ready ms",
    "used_own_mib": "own, in use",
    "used_file_mib": "file, in use",
    "select_p50_ms": "select p50 ms",
    "select_p99_ms": "select p99",
    "frame_p50_ms": "frame p50 ms",
    "frame_p99_ms": "frame p99",
    "points_used": "points used",
    "found": "found",
    "others_cores": "others",
}


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--copies", nargs="+", type=int, default=COPIES, help="sizes, in copies of 1000 points")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the network (default: all)")
    args = parser.parse_args()
    drive = measuring.simulated_drive(640, 480, args.data)
    base = Map.open(measuring.map_of_drive(drive, load_extractor(args.weights)))
    figures: dict[str, object] = {"machine": measuring.describe_machine(), "maps": {}}
    old = measuring.earlier(args).get("maps", {})
    table = [("points / keyframes", "file on disk, MiB", *COLUMNS.values())]
    for copies in args.copies:
        path = args.data / f"scaling_{base.extractor_fingerprint}_{copies}.pixmap"
        if not path.is_file():
            repeated(thinned(base, COPY_POINTS, COPY_KEYFRAMES), copies).save(path)
        drop_from_cache(path)
        run = measuring.in_process(time_map, path, SPACING_M * (copies // 2), drive, args.weights, args.threads)
        name = f"{run['points']} / {run['keyframes']}"
        figures["maps"][name] = run
        cells = measuring.compared(run, old.get(name, {}), *COLUMNS)
        table.append((name, format_number(path.stat().st_size / 2**20), *cells))
    return measuring.report(figures, args, table)


def thinned(map_: Map, points: int, keyframes: int) -> Map:
    """At most so many keyframes, from the drive's start, and of what they see so many points."""
    early = np.arange(len(map_.observation_point)) < map_.observation_offsets[min(keyframes, len(map_.keyframe_names))]
    seen = np.unique(map_.observation_point[early])
    return subset(map_, early & np.isin(map_.observation_point, np.random.default_rng(0).permutation(seen)[:points]))


def repeated(map_: Map, copies: int) -> Map:
    """The map side by side so many times, along x."""
    keyframes, points, observations = len(map_.keyframe_names), len(map_.xyz), len(map_.observation_point)
    which, shift = np.arange(copies), np.array([SPACING_M, 0.0, 0.0])
    poses = map_.map_from_keyframe.repeat(copies, 1, 1)
    poses[:, :3, 3] += torch.from_numpy(np.repeat(which, keyframes)[:, None] * shift)

    def again(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.tile(array, (copies,) + (1,) * (array.ndim - 1))

    return replace(
        map_,
        **{name: again(getattr(map_, name)) for name in REPEATED},
        keyframe_names=[f"{copy}/{name}" for copy in which for name in map_.keyframe_names],
        map_from_keyframe=poses,
        xyz=again(map_.xyz) + np.repeat(which, points)[:, None] * shift,
        observation_offsets=np.append(which[:, None] * observations + map_.observation_offsets[:-1], copies * observations),
        observation_point=again(map_.observation_point) + np.repeat(which * points, observations).astype(np.int32),
        descriptors=tuple(map(again, map_.descriptors)),
        confidences=tuple(map(again, map_.confidences)),
    )


def drop_from_cache(path: Path) -> None:
    """So that opening reads the disk, as after a start of the machine."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_map(path: Path, offset_m: float, drive: Path, weights: str, threads: int) -> dict[str, float]:
    """Open, choose points, localize, in a fresh process."""
    torch.set_num_threads(threads)
    extractor = load_extractor(weights)
    frames, poses, camera = frames_of(drive, offset_m)
    warm_up(drive, extractor, frames[0], poses[0], camera)
    before = memory_mib()

    def added(prefix: str) -> dict[str, float]:
        return {f"{prefix}_{name}_mib": max(0.0, value - before[name]) for name, value in memory_mib().items()}

    began = time.perf_counter()
    map_ = Map.open(path)
    run = {"open_ms": 1e3 * (time.perf_counter() - began), **added("open")}
    localizer = FrameAligner(map_, extractor)
    run["ready_ms"] = 1e3 * (time.perf_counter() - began)
    selector = LocalPointSelector(map_)
    load = Load()
    select_ms, frame_ms, used = [], [], []
    for round_ in range(ROUNDS + 1):
        for image, pose in zip(frames, poses):
            began = time.perf_counter()
            selector.select(pose, camera, localizer.options.max_points)
            selected = time.perf_counter()
            result = localizer.localize(image, camera, pose)
            if round_:  # the first reads the file
                select_ms.append(1e3 * (selected - began))
                frame_ms.append(1e3 * (time.perf_counter() - selected))
                used.append(result.points_used if result.success else np.nan)
    others = load.read()[2]
    run.update({f"select_{name}_ms": value for name, value in measuring.percentiles(select_ms).items()})
    run.update({f"frame_{name}_ms": value for name, value in measuring.percentiles(frame_ms).items()})
    found = {"points_used": float(np.nanmedian(used)), "found": float(np.mean(np.isfinite(used))), "others_cores": others}
    return {**run, **added("used"), "points": len(map_.xyz), "keyframes": len(map_.keyframe_names), **found}


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


def warm_up(drive: Path, extractor, image: np.ndarray, prior: torch.Tensor, camera) -> None:
    """Compile and allocate with another map, so that it is not counted as this one's."""
    other = Map.open(measuring.map_of_drive(drive, extractor))
    for _ in range(3):
        FrameAligner(other, extractor).localize(image, camera, other.map_from_keyframe[0])


if __name__ == "__main__":
    run_script(main)

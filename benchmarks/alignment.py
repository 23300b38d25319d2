#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Time of one alignment, tensor code against compiled code: by number of points, and by number of starts.

On a frame of a simulated drive (made once, kept in out/benchmarks), from starts around its pose.

    benchmarks/alignment.py [--json new.json] [--compare old.json]
"""

from __future__ import annotations

import time
from pathlib import Path

import measuring
import numpy as np
import torch

from pixloc_ros.alignment import AlignmentOptions, ReferencePoints, View, align
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.features import FeaturePyramid, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.mapping import LocalPointSelector, Map

BACKENDS = ("torch", "compiled")
POINTS = (64, 128, 256, 512, 1024, 2048)
STARTS = (1, 2, 8, 32, 128)
DEFAULT_POINTS = 512
START_STD = (0.05, 0.02)
"""Standard deviations of the starts: metres, radians."""
SECONDS, LEAST_ROUNDS = 1.5, 3
"""For each figure; the median of the rounds counts."""


class Problem:
    """One image's features, and starts around its pose."""

    def __init__(self, data: Path, weights: str) -> None:
        drive = measuring.simulated_drive(640, 480, data)
        extractor = load_extractor(weights)
        map_ = Map.open(measuring.map_of_drive(drive, extractor), verify=True)  # all of it read: files are not measured
        with BagReader(drive / "drive") as bag:
            truth = bag.truth()
            frames = [event for event in bag.events() if isinstance(event, CameraFrame)]
            frame = frames[len(frames) // 2]
            _, map_from_base = offline.first_pose(bag, truth, None)
            poses, known = truth.at(np.array([frame.stamp_ns]), 10**9)
            self.map_from_camera = (poses[0] if known[0] else map_from_base) @ bag.base_from_camera
        self.camera: Camera = frame.camera
        self.pyramid: FeaturePyramid = extractor.with_strides(map_.strides).extract(frame.image)
        self.local = LocalPointSelector(map_).select(self.map_from_camera, self.camera, max(POINTS))

    def points(self, count: int) -> ReferencePoints:
        """So many points: the view's over and over, since no view has 2048."""
        rows = torch.arange(count) % len(self.local.points)
        given = self.local.points
        return ReferencePoints(
            given.xyz[rows],
            tuple(level[rows] for level in given.descriptors),
            tuple(None if level is None else level[rows] for level in given.confidences),
        )

    def starts(self, count: int) -> torch.Tensor:
        """camera_from_map [count, 4, 4], relative to the points' origin."""
        map_from_local = torch.eye(4, dtype=torch.float64)
        map_from_local[:3, 3] = self.local.origin
        noise = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        noise *= torch.tensor([START_STD[0]] * 3 + [START_STD[1]] * 3, dtype=torch.float64)
        return se3.se3_exp(noise) @ se3.inverse(self.map_from_camera) @ map_from_local

    @torch.inference_mode()
    def time(self, backend: str, points: int, starts: int) -> dict[str, float]:
        """Milliseconds of the clock and of the processor, and iterations of all levels."""
        reference, poses = self.points(points), self.starts(starts)
        options = AlignmentOptions(backend=backend)
        iterations = sum(level.iterations for level in align(View(self.pyramid, self.camera, reference), poses, options).trace)
        walls, cpus, began = [], [], time.perf_counter()
        while len(walls) < LEAST_ROUNDS or time.perf_counter() - began < SECONDS:
            cpu, wall = time.process_time(), time.perf_counter()
            align(View(self.pyramid, self.camera, reference), poses, options)
            walls.append(1e3 * (time.perf_counter() - wall))
            cpus.append(1e3 * (time.process_time() - cpu))
        return {"ms": float(np.median(walls)), "cpu_ms": float(np.median(cpus)), "iterations": iterations}


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the tensor code")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problem = Problem(args.data, args.weights)
    figures: dict[str, object] = {"machine": measuring.describe_machine(), "runs": {}}
    old = measuring.earlier(args).get("runs", {})
    table = [("points x starts", "torch ms", "torch CPU ms", "compiled ms", "compiled CPU ms", "a start, ms", "iterations")]
    for points, starts in [(points, 1) for points in POINTS] + [(DEFAULT_POINTS, starts) for starts in STARTS[1:]]:
        name = f"{points} x {starts}"
        run = {backend: problem.time(backend, points, starts) for backend in BACKENDS}
        figures["runs"][name] = run
        before = old.get(name, {})
        cells = [c for b in BACKENDS for c in measuring.compared(run[b], before.get(b, {}), "ms", "cpu_ms")]
        table.append((name, *cells, format_number(run["compiled"]["ms"] / starts), str(run["compiled"]["iterations"])))
    return measuring.report(figures, args, table)


if __name__ == "__main__":
    run_script(main)

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The network's time against its floor: multiply-adds over what the machine multiplies float32 matrices at.

    benchmarks/network.py [--sizes 640x480] [--json new.json] [--compare old.json]

Times are medians of short runs by the clock; "CPU" is processor time of all threads, per image.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import measuring
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.report import format_number
from pixloc_ros.features import load_extractor

SIZES = ("320x240", "640x480", "1280x720")
MATRIX = 512
SECONDS = 2.0
"""For each figure."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH", help="of the images that the network is given")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="figures of an earlier run to compare with")
    args = parser.parse_args()
    figures: dict[str, object] = {"machine": measuring.describe_machine(), "runs": {}}
    old = json.loads(args.compare.read_text())["runs"] if args.compare else {}
    table = [("image, threads", "multiply-adds", "machine's peak", "floor ms", "network p50 ms", "CPU ms", "of peak")]
    for threads in args.threads:
        torch.set_num_threads(threads)
        peak = peak_gflops()
        for size in args.sizes:
            run = time_network(args.weights, *(int(side) for side in size.split("x")))
            run["peak_gflops"], run["floor_ms"] = peak, 1e3 * 2 * run["multiply_adds"] / (peak * 1e9)
            name = f"{size}, {threads}"
            figures["runs"][name] = run
            before = old.get(name, {})
            table.append((name, f"{run['multiply_adds'] / 1e9:.2f} G", f"{peak:.0f} GFLOP/s", format_number(run["floor_ms"]),
                          measuring.against(run["ms"], before.get("ms")), measuring.against(run["cpu_ms"], before.get("cpu_ms")),
                          f"{100 * run['floor_ms'] / run['ms']:.0f} %"))
    measuring.report(figures, table, args.json)
    return 0


@torch.inference_mode()
def time_network(weights: str, width: int, height: int) -> dict[str, float]:
    """Of one image: multiply-adds, milliseconds of the clock (median) and of the processor."""
    extractor = load_extractor(weights).suited_to(width, height)
    image = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    with FlopCounterMode(display=False) as counter:
        extractor.extract(image)
    walls, cpu = _repeat(lambda: extractor.extract(image))
    return {"multiply_adds": counter.get_total_flops() / 2, "ms": 1e3 * float(np.median(walls)), "cpu_ms": 1e3 * cpu}


def peak_gflops() -> float:
    """Float32 operations a second in a large product of matrices; the best of many, since that is what could be."""
    a, b = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    walls, _ = _repeat(lambda: a @ b)
    return 2 * MATRIX**3 / min(walls) / 1e9


def _repeat(run: Callable[[], object]) -> tuple[list[float], float]:
    """Seconds of the clock of each call, and processor seconds per call."""
    for _ in range(3):
        run()
    walls, cpu, began = [], time.process_time(), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        last = time.perf_counter()
        run()
        walls.append(time.perf_counter() - last)
    return walls, (time.process_time() - cpu) / len(walls)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"network: error: {error}", file=sys.stderr)
        sys.exit(2)

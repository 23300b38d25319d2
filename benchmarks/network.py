#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The network's time by every way to run it that is installed.

    benchmarks/network.py [--sizes 640x480] [--threads 1 2] [--json new.json] [--compare old.json]

From a uint8 image to unit descriptors, the ways in turn on the same image, so that other work on the machine affects all of
them. Times are medians by the clock; "CPU" is processor time of all threads per image, "difference" the largest one of any
descriptor's value from the plain network's.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable

import cv2
import measuring
import numpy as np
import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.features import Execution, FeaturePyramid, load_extractor

SIZES = ("320x240", "640x480", "1280x720")
PLAIN = "torch, the network as it is trained"
BURST = 5
"""Calls in a row of one way, of which the first is not counted: its data is not in the cache."""


def main() -> int:
    parser = measuring.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH", help="of the images that the network is given")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each size and number of threads (default 6)")
    args = parser.parse_args()
    figures: dict[str, object] = {"machine": measuring.describe_machine(), "runs": {}}
    old = measuring.earlier(args).get("runs", {})
    table = [("image, threads", "way", "p50 ms", "CPU ms", "difference")]
    for threads, size in itertools.product(args.threads, args.sizes):
        name = f"{size}, {threads}"
        run = measuring.in_process(time_network, args.weights, *map(int, size.split("x")), threads, args.seconds)
        figures["runs"][name] = run
        for way, times in run.items():
            cells = measuring.compared(times, old.get(name, {}).get(way, {}), "ms", "cpu_ms")
            table.append((name, way, *cells, f"{times['difference']:.0e}"))
    return measuring.report(figures, args, table)


@torch.inference_mode()
def time_network(weights: str, width: int, height: int, threads: int, seconds: float) -> dict[str, dict[str, float]]:
    """Of one image by each way: milliseconds of the clock (median) and of the processor (mean), and the difference."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8), (0, 0), 2)
    network, grey = load_extractor(weights).suited_to(width, height).network, torch.from_numpy(image)[None, None]
    ways: dict[str, Callable[[], FeaturePyramid]] = {PLAIN: lambda: network(grey.float())}
    for backend, precision in itertools.product(("torch", "onnxruntime", "openvino"), ("float32", "bfloat16")):
        with contextlib.suppress(InputError):  # what cannot run here
            extractor = load_extractor(weights, Execution(backend, precision=precision)).suited_to(width, height)
            name = backend if precision == "float32" else f"{backend}, {precision}"
            ways[name] = lambda e=extractor: e.extract(image)
    pyramids = {name: run().levels for name, run in ways.items()}  # makes the sessions, too
    walls, cpu, began = {name: [] for name in ways}, {name: [] for name in ways}, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for name, run in ways.items():
            run()
            for _ in range(BURST - 1):
                processor = time.process_time()
                walls[name].append(measuring.timed_ms(run))
                cpu[name].append(1e3 * (time.process_time() - processor))

    def difference(levels: tuple) -> float:
        return max(float((level.features - same.features).abs().max()) for level, same in zip(levels, pyramids[PLAIN]))

    return {
        name: {"ms": float(np.median(walls[name])), "cpu_ms": float(np.mean(cpu[name])), "difference": difference(levels)}
        for name, levels in pyramids.items()
    }


if __name__ == "__main__":
    run_script(main)

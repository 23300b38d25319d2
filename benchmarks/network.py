#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The network's time by every way to run it that is installed, against its floor.

    benchmarks/network.py [--sizes 640x480] [--threads 1 2] [--json new.json] [--compare old.json]

From a uint8 image to unit descriptors, the ways in turn on the same image, so that other work on the machine affects all of
them. The floor: multiply-adds over the most that the machine is seen to do a second. Times are medians by the clock; "CPU" is
processor time of all threads per image, "difference" the largest one of any descriptor's value from the plain network's.
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
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.tables import format_number
from pixloc_ros.features import Execution, FeaturePyramid, load_extractor

SIZES = ("320x240", "640x480", "1280x720")
SIDE, CHANNELS = 512, 64
PEAK_SECONDS = 1.0
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
    table = [("image, threads", "way", "floor ms", "p50 ms", "CPU ms", "of peak", "difference")]
    for threads in args.threads:
        for size in args.sizes:
            run = measuring.in_process(time_network, args.weights, *map(int, size.split("x")), threads, args.seconds)
            name = f"{size}, {threads}"
            figures["runs"][name] = run
            work = f"{run['multiply_adds'] / 1e9:.2f} G at {run['peak_gflops']:.0f} GFLOP/s"
            table.append((name, work, format_number(run["floor_ms"]), *[""] * 4))
            for way, times in run["ways"].items():
                cells = measuring.compared(times, old.get(name, {}).get("ways", {}).get(way, {}), "ms", "cpu_ms")
                share = f"{100 * run['floor_ms'] / times['ms']:.0f} %"
                table.append(("", way, "", *cells, share, f"{times['difference']:.0e}"))
    return measuring.report(figures, args, table)


@torch.inference_mode()
def time_network(weights: str, width: int, height: int, threads: int, seconds: float) -> dict[str, object]:
    """Of one image: multiply-adds, the machine's peak, and by each way milliseconds of the clock (median) and processor."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8), (0, 0), 2)
    network = load_extractor(weights).suited_to(width, height).network
    grey = torch.from_numpy(image)[None, None]
    with FlopCounterMode(display=False) as counter:
        expected = network(grey.float())
    ways: dict[str, Callable[[], FeaturePyramid]] = {PLAIN: lambda: network(grey.float())}
    for backend, precision in itertools.product(("torch", "onnxruntime", "openvino"), ("float32", "bfloat16")):
        with contextlib.suppress(InputError):  # what cannot run here
            extractor = load_extractor(weights, Execution(backend, precision=precision)).suited_to(width, height)
            name = backend if precision == "float32" else f"{backend}, {precision}"
            ways[name] = lambda e=extractor: e.extract(image)
    multiply_adds, peak = counter.get_total_flops() / 2, peak_gflops()
    times = time_in_turn(ways, seconds)
    for name, run in ways.items():
        times[name]["difference"] = max(
            float((level.features - same.features).abs().max()) for level, same in zip(run().levels, expected.levels)
        )
    return {
        "multiply_adds": multiply_adds,
        "peak_gflops": peak,
        "floor_ms": 1e3 * 2 * multiply_adds / (peak * 1e9),
        "ways": times,
    }


def time_in_turn(ways: dict[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, float]]:
    """Of each: median milliseconds by the clock, mean milliseconds of the processor."""
    for run in ways.values():  # makes the sessions
        run()
    walls, cpu, began = {name: [] for name in ways}, {name: [] for name in ways}, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for name, run in ways.items():
            run()
            for _ in range(BURST - 1):
                processor = time.process_time()
                walls[name].append(measuring.timed_ms(run))
                cpu[name].append(1e3 * (time.process_time() - processor))
    return {name: {"ms": float(np.median(walls[name])), "cpu_ms": float(np.mean(cpu[name]))} for name in ways}


def peak_gflops() -> float:
    """The most that the machine is seen to do a second: a large product of matrices, or a convolution."""
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    shapes = (1, CHANNELS, CHANNELS, CHANNELS), (CHANNELS, CHANNELS, 3, 3)
    image, weight = (torch.rand(shape).to(memory_format=torch.channels_last) for shape in shapes)
    product = 2 * SIDE**3 / quickest_s(lambda: a @ b)
    return max(product, 2 * 9 * CHANNELS**4 / quickest_s(lambda: F.conv2d(image, weight, padding=1))) / 1e9


def quickest_s(run: Callable[[], object]) -> float:
    best, began = np.inf, time.perf_counter()
    while time.perf_counter() - began < PEAK_SECONDS:
        best = min(best, 1e-3 * measuring.timed_ms(run))
    return best


if __name__ == "__main__":
    run_script(main)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Time to choose the local points of a frame, over the keyframes of a map as priors: benchmarks/local_points.py
MAP"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from pixloc_ros.geometry import se3
from pixloc_ros.mapping import LocalPointSelector, Map

ROUNDS = 5
PERTURBATION = (0.05, 0.05)
"""Standard deviations: share of the scene's depth, radians."""


def main() -> None:
    map_ = Map.open(sys.argv[1])
    torch.set_num_threads(1)
    selector = LocalPointSelector(map_)
    generator = torch.Generator().manual_seed(0)
    cold, warm, counts = [], [], []
    for round_ in range(ROUNDS):
        for k, pose in enumerate(map_.map_from_keyframe):
            noise = torch.randn(6, generator=generator, dtype=torch.float64)
            noise[:3] *= PERTURBATION[0] * float(map_.keyframe_depth[k])
            noise[3:] *= PERTURBATION[1]
            prior, camera = pose @ se3.se3_exp(noise), map_.cameras[map_.keyframe_camera[k]]
            begin = time.perf_counter()
            local = selector.select(prior, camera)
            (warm if round_ else cold).append(1e3 * (time.perf_counter() - begin))
            counts.append(len(local.points))
    print(f"{sys.argv[1]}: {len(map_.keyframe_names)} keyframes, {len(map_.xyz)} points")
    print(f"points chosen: median {np.median(counts):.0f}, least {min(counts)}")
    for name, times in (("first visit", cold), ("again", warm)):
        print(f"{name}: p50 {np.median(times):.2f} ms, p99 {np.quantile(times, 0.99):.2f} ms")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Tracking without wheels, with and without the gyro of a cheap IMU, made from the truth.

The truth's poses are smoothed by a spline to give angular velocities; bias, its drift and noise are those of
`pixloc_sim.sensors.ImuErrors`, the bias five times as large in the last row. Every third image is in the map and not scored.

    experiments/gyro.py ../shared/data -o out/gyro
"""

from __future__ import annotations

from dataclasses import replace

import common
import numpy as np
import torch
from scipy.spatial.transform import Rotation, RotationSpline

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bag_sensors import ImuReadings
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_sim.sensors import ImuErrors, imu_readings

_RATE_HZ = 200
CHEAP = ImuErrors()
VARIANTS = {
    "wheels, no gyro": (None, None),
    "none": ("none", None),
    "cheap": ("none", CHEAP),
    "cheap, five times its bias": ("none", replace(CHEAP, bias=tuple(5 * v for v in CHEAP.bias))),
    "wheels and cheap": (None, CHEAP),
}
"""Odometry topic, and the gyro's errors."""
FIGURES = ("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg")
HEAD = "drive | gyro | tracked % | lost | median m | p95 m | median deg | false tracks"


def gyro_of(truth: Trajectory, base_from_camera: np.ndarray, errors: ImuErrors, seed: int = 0) -> ImuReadings:
    """Readings of an IMU with the base's axes (base_from_camera [3, 3]) along the whole truth."""
    begin = int(truth.stamps_ns[0])
    seconds = (truth.stamps_ns - begin) * 1e-9
    turns = RotationSpline(seconds, Rotation.from_matrix(truth.map_from_body[:, :3, :3].numpy()))

    def poses(time: np.ndarray) -> torch.Tensor:
        turned = torch.from_numpy(turns(np.clip(time, 0, seconds[-1])).as_matrix())
        return se3.from_rotation_translation(turned, torch.zeros(len(time), 3, dtype=torch.float64))

    stamps = np.arange(begin, int(truth.stamps_ns[-1]), 1_000_000_000 // _RATE_HZ)
    read = imu_readings(poses, stamps, begin, torch.eye(4, dtype=torch.float64), seed, errors)
    return ImuReadings("truth", stamps, read.rates @ base_from_camera, None, base_from_camera.T)


def main() -> int:
    args = common.parser(__doc__, "out/gyro", ("tum_fr1_rpy", *common.VALIDATION_DRIVES), drives=True).parse_args()
    extractor, results, rows = load_extractor(args.weights), {}, []
    for scene in common.scenes_of(args):
        path = args.output / f"{scene.name}.pixmap"
        localizer = Localizer(Map.open(path) if path.is_file() else scene.build_map(extractor, path), extractor)
        for name, (odometry, errors) in VARIANTS.items():
            with BagReader(scene.drive, BagOptions(odometry=odometry)) as bag, show_progress(f"{scene.name}, {name}") as progress:
                imu = errors and gyro_of(bag.truth(), bag.base_from_camera[:3, :3].numpy(), errors)
                run = offline.run_bag(localizer.tracker(), bag, progress=progress, imu=imu)
            figures = run_figures(run, skip_map_frames=common.MAP_STRIDE)
            lost = sum(a.state.name != "LOST" and b.state.name == "LOST" for a, b in zip(run.records, run.records[1:]))
            results[f"{scene.name}, {name}"] = figures | {"times_lost": lost}
            numbers = (format_number(figures[figure]) for figure in FIGURES)
            tracked, false = f"{100 * figures['tracked_fraction']:.1f}", str(figures["false_tracked_frames"])
            rows.append((scene.name, name, tracked, str(lost), *numbers, false))
            common.save(args, "gyro", results, {"gyro": markdown_table(HEAD, rows)})
    return common.finish(args, {"gyro": markdown_table(HEAD, rows)})


if __name__ == "__main__":
    run_script(main)

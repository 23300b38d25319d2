#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses of drives without anybody's poses, with a gyro and satellite fixes that are made from the truth.

The gyro is a cheap one (`pixloc_sim.sensors.ImuErrors`), the fixes are those of a receiver with errors of half a metre that last
for seconds, one in twenty 15 m off. Bad wheels turn by one degree a metre too far. Keyframes' centres against the truth, after a
similarity alignment; `drive_maps.py` has all images.

    experiments/drive_sensors.py ../shared/data -o out/drive_sensors
"""

from __future__ import annotations

import common
import numpy as np
import torch
from drive_maps import Truth, keyframe_poses, path_figures
from gyro import CHEAP, gyro_of

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bag_sensors import Fixes
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.mapping.build.drive_frames import DriveBag
from pixloc_sim.sensors import satellite_fixes

_TURNS_RAD_PER_M = np.radians(1.0)
_FIX_HZ = 5
VARIANTS = {
    "wheels": (True, False, False, False),
    "wheels, gyro": (True, False, True, False),
    "bad wheels": (True, True, False, False),
    "bad wheels, gyro": (True, True, True, False),
    "images alone": (False, False, False, False),
    "fixes": (False, False, False, True),
    "wheels, gyro, fixes": (True, False, True, True),
}
"""Wheels, whether they turn wrongly, gyro, fixes."""
HEAD = "drive | besides images | RMSE, cm | median, cm | rotation, deg | scale off, % | said, ± %"


def main() -> int:
    args = common.parser(__doc__, "out/drive_sensors", common.VALIDATION_DRIVES, drives=True).parse_args()
    extractor, results, rows = load_extractor(args.weights), {}, []
    for scene in common.scenes_of(args):
        for name, which in VARIANTS.items():
            results[f"{scene.name}, {name}"] = figures = evaluate(scene, extractor, *which)
            said = figures["said_scale"]
            numbers = (100 * figures["rmse_m"], 100 * figures["median_m"], figures["median_deg"], 100 * figures["scale_off"])
            uncertainty = "–" if said is None else format_number(100 * said)
            off = "–" if said is None else format_number(numbers[-1])
            rows.append((scene.name, name, *map(format_number, numbers[:-1]), off, uncertainty))
            common.save(args, "drive_sensors", results, {"drive sensors": markdown_table(HEAD, rows)})
    return common.finish(args, {"drive sensors": markdown_table(HEAD, rows)})


def evaluate(scene: common.Scene, extractor: Extractor, wheels: bool, wrong: bool, gyro: bool, fixes: bool) -> dict[str, object]:
    """The keyframes' poses."""
    truth = Truth.of(scene)
    with BagReader(scene.drive) as bag:
        true = bag.truth()
    with DriveBag(scene.drive, BagOptions(truth="none", odometry=None if wheels else "none")) as frames:
        mount = frames.base_from_camera.numpy()
        frames.imu = gyro_of(true, mount[:3, :3], CHEAP) if gyro else None
        frames.fixes = fixes_of(true, mount) if fixes else None
        if wrong:
            frames._odometry = turning(frames._odometry)
        stamps, poses, found = keyframe_poses(frames, scene.name, extractor)
    figures = path_figures(poses, truth.poses[np.searchsorted(truth.stamps, stamps)])
    return figures | {"said_scale": found["scale_uncertainty"], "sensors": found["sensors"]}


def turning(odometry: Trajectory) -> Trajectory:
    """Odometry whose wheels turn too far."""
    poses, turn = [odometry.map_from_body[0]], torch.zeros(3, dtype=torch.float64)
    for one, other in zip(odometry.map_from_body, odometry.map_from_body[1:]):
        step = se3.inverse(one) @ other
        turn[2] = _TURNS_RAD_PER_M * float(step[:3, 3].norm())
        more = se3.from_rotation_translation(se3.so3_exp(turn), torch.zeros(3, dtype=torch.float64))
        poses.append(poses[-1] @ step @ more)
    return Trajectory(odometry.stamps_ns, torch.stack(poses))


def fixes_of(truth: Trajectory, base_from_camera: np.ndarray) -> Fixes:
    """What a receiver reads above the base along the truth, whose frame is taken for east, north, up."""
    begin, end = (int(truth.stamps_ns[k]) for k in (0, -1))
    stamps, antenna = np.arange(begin, end, 1_000_000_000 // _FIX_HZ), np.array((0.0, 0.0, 1.5))

    def poses(time: np.ndarray) -> torch.Tensor:
        return truth.at(begin + np.rint(time * 1e9).astype(np.int64), end - begin)[0]

    read = satellite_fixes(poses, stamps, begin, antenna, 0)
    place = np.linalg.inv(base_from_camera)[:3] @ (*antenna, 1.0)
    return Fixes("truth", stamps, read.places, np.tile(read.std, (len(stamps), 1)), place, 0)


if __name__ == "__main__":
    run_script(main)

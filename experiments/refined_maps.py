#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What `--refine` makes of poses that are off as those of a LiDAR SLAM and a mount are, as in docs/evidence/maps.md.

For each scene, maps of the images of its model, with points triangulated with their poses: as they are; disturbed by 3 cm and
0.5° in random directions, each keyframe for itself; by one and the same 3 cm and 0.5° in the camera frame (a wrong mount); by
both. Each as it is and refined. The queries are localized from medium priors.

Errors are those against the truth, and "in the map": after the constant turn of the camera between map and truth was taken off
and the keyframes within 5 m of the path on each side of a query (at least 3) were laid onto the true ones, as in `drive_maps.py`.
Nothing in poses and images tells by how much all poses are off together; and the truth of the public drives has such a turn
itself: undisturbed poses, refined, show it. Their truth also errs from image to image; how far matches of queries, which no map
was made of, lie from the epipolar lines of the poses found favours neither.

    experiments/refined_maps.py ../shared/data -o out/refined
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import common
import drive_maps
import numpy as np
import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.camera_files import write_cameras
from pixloc_ros.io.colmap import ColmapModel, read_colmap_model, write_colmap_model
from pixloc_ros.io.trajectory import write_benchmark_poses
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.build.refinement import RefineOptions
from pixloc_sim.recordings import SimulationOptions, simulate

METRES, DEGREES = 0.03, 0.5
DISTURBED = {"none": (0, 0), "each keyframe": (1, 0), "mount": (0, 1), "both": (1, 1)}
"""Times METRES and DEGREES: of each keyframe for itself, of all in the camera frame."""


def main() -> int:
    parser = common.parser(__doc__, "out/refined", ("kitti01", "kitti07", "strecha_entry"))
    parser.add_argument("--world", action="store_true", help="also a simulated drive, whose truth is exact")
    parser.add_argument("--priors", default="medium", help="small, medium (default), large or none")
    parser.add_argument("--disturbed", nargs="+", default=list(DISTURBED), choices=DISTURBED, help="only these")
    args = parser.parse_args()
    args.disturbed = ["none", *(name for name in args.disturbed if name != "none")]  # what the others are compared with
    extractor, results = load_extractor(args.weights), {}
    for scene in [*common.scenes_of(args), *([simulated_scene(args.output / "simulated")] if args.world else [])]:
        results[scene.name] = evaluate(scene, extractor, args)
        common.save(args, "refined", results, tables(results))
    return common.finish(args, tables(results))


def simulated_scene(folder: Path) -> common.Scene:
    """The simulated mapping drive; every third of its images is localized among the others."""
    world = folder / "world"
    if not world.is_dir():
        simulate(world, SimulationOptions())
    model = read_colmap_model(world / "map")
    queries = np.arange(len(model.names)) % 3 == 1
    write_poses(folder / "map", model, se3.inverse(model.camera_from_map), np.flatnonzero(~queries))
    names = [model.names[k] for k in np.flatnonzero(queries)]
    poses = dict(zip(names, model.camera_from_map[queries]))
    cameras = {name: model.cameras[int(model.camera_ids[model.names.index(name)])] for name in names}
    depths = {}
    for k in np.flatnonzero(queries):
        points = model.xyz[model.observation_point[model.observation_image == k]]
        depths[model.names[k]] = float(se3.transform(model.camera_from_map[k], torch.from_numpy(points))[:, 2].median())
    off = errors(0.1 * torch.tensor([depths[name] for name in names]), 5.0, len(names))
    priors = dict(zip(names, off @ torch.stack(list(poses.values()))))
    (folder / "queries").mkdir(parents=True, exist_ok=True)
    write_cameras(folder / "queries" / "cameras.txt", cameras)
    write_benchmark_poses(folder / "queries" / "truth.txt", poses)
    write_benchmark_poses(folder / "queries" / "priors_medium.txt", priors)
    (folder / "queries" / "scale.json").write_text(json.dumps(depths))
    (folder / "scene.json").write_text(json.dumps({"metric": True}))
    return common.Scene(folder, world / "images")


def evaluate(scene: common.Scene, extractor: Extractor, args) -> dict[str, dict]:
    """Figures of each disturbance, as it is and refined."""
    model, results = read_colmap_model(scene.folder / "map", need_points=False), {}
    poses = se3.inverse(model.camera_from_map)
    truth, everything = dict(zip(model.names, poses)), np.arange(len(model.names))
    for name in args.disturbed:
        each, mount = DISTURBED[name]
        folder = args.output / scene.name / name.replace(" ", "_")
        write_poses(folder, model, disturbed(poses, each, mount), everything)
        for refine in (None, RefineOptions(METRES, math.radians(DEGREES))):
            began = time.monotonic()
            map_, report = build_map_from_colmap(folder, scene.images, extractor, refine=refine)
            seconds = time.monotonic() - began
            path = args.output / scene.name / f"{folder.name}{'_refined' if refine else ''}.pixmap"
            map_.save(path)
            figures = localize(scene, Map.open(path), truth, extractor, args.priors)
            notes = [note for note in report.notes if "poses" in note or "mount" in note]
            results[f"{name}{', refined' if refine else ''}"] = figures | {"seconds": seconds, "notes": notes}
    return results


def disturbed(poses: torch.Tensor, each: float, mount: float) -> torch.Tensor:
    """Poses [K, 4, 4] off by METRES and DEGREES times a factor, each for itself and all alike."""
    return poses @ errors(each * METRES, each * DEGREES, len(poses)) @ errors(mount * METRES, mount * DEGREES, 1)


def errors(metres: float | torch.Tensor, degrees: float, count: int) -> torch.Tensor:
    """Small motions [count, 4, 4] of this size in random directions, the same every time."""
    random = torch.Generator().manual_seed(1)
    shift, turn = torch.nn.functional.normalize(torch.randn(2, count, 3, generator=random, dtype=torch.float64), dim=-1)
    metres = torch.as_tensor(metres, dtype=torch.float64).expand(count)[:, None]
    return se3.se3_exp(torch.cat((metres * shift, math.radians(degrees) * turn), -1))


def write_poses(folder: Path, model: ColmapModel, map_from_camera: torch.Tensor, which: np.ndarray) -> None:
    """Some of the model's images with other poses, and without points."""
    none = {"point_ids": np.empty(0, np.int64), "xyz": np.empty((0, 3)), "error_px": np.empty(0)}
    none |= {"observation_image": np.empty(0, np.int64), "observation_point": np.empty(0, np.int64)}
    images = {"image_ids": model.image_ids[which], "camera_ids": model.camera_ids[which]}
    images |= {"names": [model.names[k] for k in which], "camera_from_map": se3.inverse(map_from_camera[which])}
    poses = ColmapModel(cameras=model.cameras, **images, **none, observation_px=np.empty((0, 2)))
    write_colmap_model(folder, poses, np.empty((0, 3), np.uint8))


def localize(scene: common.Scene, map_: Map, truth: dict[str, torch.Tensor], extractor: Extractor, priors: str) -> dict:
    """Errors of the queries against the truth, and in the map."""
    right = torch.stack([truth[name] for name in map_.keyframe_names])
    everything = truth | {name: se3.inverse(pose) for name, pose in scene.truth.items()}
    names = sorted(everything)
    path = drive_maps.Truth(names, np.stack([everything[name].numpy() for name in names]), np.empty(0))
    turned = torch.eye(4, dtype=torch.float64)
    turned[:3, :3] = se3.so3_exp(se3.so3_log(map_.map_from_keyframe[:, :3, :3].mT @ right[:, :3, :3]).mean(0))
    keyframes = (map_.map_from_keyframe @ turned).numpy(), path.rows(map_)
    found = {r.name: r.camera_from_map for r in scene.localize(Localizer(map_, extractor), priors)}
    absolute, inside = [], []
    for name, pose in found.items():
        absolute.append(scene.error(name, pose))
        if pose is not None:
            place = drive_maps.window(*keyframes, path, names.index(name))
            pose = drive_maps.moved(se3.inverse(turned) @ pose.double(), *place)
        inside.append(scene.error(name, pose))
    distance, angle = se3.pose_difference(right, map_.map_from_keyframe)
    return {
        "queries": len(found),
        "against the truth": common.medians(np.array(absolute)),
        "in the map": common.medians(np.array(inside)),
        "recall in the map": common.recall(np.array(inside), 0.5, 0.01),
        "keyframes_off": [float(distance.median()), math.degrees(float(angle.median()))],
        "epipolar_px": drive_maps.epipolar_px(scene, found),
    }


def tables(results: dict[str, dict]) -> dict[str, str]:
    """One, with the ratios to the undisturbed map that is not refined."""
    rows, keys = [], ("median_distance", "median_deg")
    for scene, result in results.items():
        for name, r in result.items():
            figures = [format_number(v) for v in r["keyframes_off"]]
            for kind in ("against the truth", "in the map"):
                figures += [format_number(r[kind][key]) for key in keys]
                pairs = [(r[kind][key], result["none"][kind][key]) for key in keys]
                figures.append(" / ".join("–" if value is None else f"{value / base:.2f}" for value, base in pairs))
            figures += [f"{100 * r['recall in the map']:.0f}", format_number(r["epipolar_px"])]
            rows.append((scene, name, *figures, f"{r['seconds']:.0f}"))
    head = (
        "scene | poses disturbed | keyframes off, m | deg | queries, median m | deg | times undisturbed | in the map, m | deg "
        "| times undisturbed | R@0.5°/1 % | off epipolar lines, px | s"
    )
    return {"refined": markdown_table(head, rows)}


if __name__ == "__main__":
    run_script(main)

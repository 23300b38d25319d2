#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of drives without anybody's poses, as in docs/evidence/maps.md: images and wheels of the scenes' bags, their truth unread.

For each drive, from all its images: how many keyframes get a pose; how far they are from the truth after a similarity alignment;
how wrong the scale is, and what is said of its uncertainty; seconds until the poses are there and until the map is. --plain puts
plain COLMAP (pycolmap: SIFT, sequential matching, incremental mapper, known camera) of the same images next to it.

Then a map of every third image, as the COLMAP model's has them, and the scene's queries localized in both from medium priors. The
drive's map is aligned to the truth within 5 m of the path on each side of a query: a drive's drift is not the localizer's error.

    experiments/drive_maps.py ../shared/data -o out/drive_maps
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.queries import localize_queries
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.drive import build_map_from_drive
from pixloc_ros.mapping.build.drive_frames import DriveBag

DRIVES = ("kitti01", "kitti07", "tum_fr1_rpy")
WINDOW_M = 5.0
LEVELS = ((0.5, 0.01), (2.0, 0.05))
"""Degrees, share of the depth."""
PATHS = (
    "drive | way, m | keyframes posed | RMSE, cm | median, cm | rotation, deg | scale off, % | said, ± % | to poses, s | map, s"
)
QUERIES = "scene | map | keyframes | median deg | median cm | R@0.5°/1 % | R@2°/5 %"


def main() -> int:
    parser = common.parser(__doc__, "out/drive_maps", DRIVES)
    parser.add_argument("--plain", action="store_true", help="also plain COLMAP (minutes)")
    parser.add_argument("--without-odometry", action="store_true", help="also the drives from images alone")
    args = parser.parse_args()
    extractor, results = load_extractor(args.weights), {}
    for scene in common.scenes_of(args):
        results[scene.name] = evaluate(scene, extractor, args)
        common.save(args, "drive_maps", results, tables(results))
    return common.finish(args, tables(results))


@dataclass(frozen=True)
class Truth:
    """map_from_camera [N, 4, 4] of all images of a scene in the order of time, and their stamps in the bag."""

    names: list[str]
    poses: np.ndarray
    stamps: np.ndarray

    @classmethod
    def of(cls, scene: common.Scene) -> Truth:
        model = read_colmap_model(scene.folder / "map")
        poses = {name: se3.inverse(pose) for name, pose in scene.truth.items()}
        poses |= dict(zip(model.names, se3.inverse(model.camera_from_map)))
        with BagReader(scene.drive, BagOptions(truth="none")) as bag:
            stamps = np.array(sorted(set(bag.image_stamps())), np.int64)
        names = sorted(poses)
        return cls(names, np.stack([poses[name].numpy() for name in names]), stamps)

    def at(self, map_: Map) -> np.ndarray:
        """Of a map's keyframes."""
        return self.poses[np.searchsorted(self.stamps, map_.keyframe_stamp_ns)]


def evaluate(scene: common.Scene, extractor: Extractor, args) -> dict[str, object]:
    """Everything about one scene; its maps go to the output folder."""
    truth, folder = Truth.of(scene), args.output / scene.name
    result: dict[str, object] = {"paths": {}, "queries": {}}
    for kind in ("images and wheels", *(["images alone"] if args.without_odometry else [])):
        map_, report, seconds = drive_map(scene, extractor, folder, 1, kind == "images and wheels")
        figures = path_figures(map_.map_from_keyframe.numpy(), truth.at(map_))
        figures |= {
            "posed": report.posed,
            "said_scale": report.scale_uncertainty,
            "to_poses_s": report.structure_s,
            "map_s": seconds,
        }
        result["paths"][kind] = figures
    if args.plain:
        result["paths"]["plain COLMAP"] = plain_colmap(scene, truth)
    drive = drive_map(scene, extractor, folder, common.MAP_STRIDE, True)[0]
    result["queries"]["drive"] = query_figures(scene, drive, extractor, truth)
    result["queries"]["COLMAP model"] = query_figures(scene, scene.build_map(extractor), extractor, None)
    return result


def drive_map(scene: common.Scene, extractor: Extractor, folder: Path, every: int, odometry: bool):
    """Map, report and seconds."""
    begin, options = time.monotonic(), BagOptions(truth="none", odometry=None if odometry else "none")
    with (
        DriveBag(scene.drive, options, every) as frames,
        tempfile.TemporaryDirectory() as work,
        show_progress(scene.name) as progress,
    ):
        map_, report = build_map_from_drive(frames, extractor, WorkFolder(Path(work) / "work", {}), progress=progress)
    map_.save(folder / f"every_{every}{'' if odometry else '_images'}.pixmap")
    return map_, report, round(time.monotonic() - begin, 1)


def similarity(found: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift that bring centres [K, 3] nearest to others."""
    a, b = found - found.mean(0), truth - truth.mean(0)
    u, s, v = np.linalg.svd(b.T @ a)
    signs = np.array((1.0, 1.0, np.linalg.det(u @ v)))
    scale, rotation = float((s * signs).sum() / (a**2).sum()), u * signs @ v
    return scale, rotation, truth.mean(0) - scale * rotation @ found.mean(0)


def path_figures(found: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    """How far poses [K, 4, 4] are from the truth's after a similarity alignment."""
    scale, rotation, shift = similarity(found[:, :3, 3], truth[:, :3, 3])
    off = np.linalg.norm(scale * found[:, :3, 3] @ rotation.T + shift - truth[:, :3, 3], axis=1)
    turned = torch.from_numpy((rotation @ found[:, :3, :3]).transpose(0, 2, 1) @ truth[:, :3, :3])
    return {
        "way_m": float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()),
        "rmse_m": float(np.sqrt((off**2).mean())),
        "median_m": float(np.median(off)),
        "median_deg": float(np.degrees(se3.rotation_angle(turned).median())),
        "scale_off": 1 / scale - 1,
    }


def plain_colmap(scene: common.Scene, truth: Truth) -> dict[str, object]:
    """The same of plain COLMAP."""
    import pycolmap

    camera, times = scene.queries[0].camera, [time.monotonic()]
    model, params = camera.to_colmap()
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "database.db")
        reader = pycolmap.ImageReaderOptions(camera_model=model, camera_params=",".join(map(str, params)))
        pycolmap.extract_features(database, str(scene.images), camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader)
        pycolmap.match_sequential(database)
        options = pycolmap.IncrementalPipelineOptions(
            ba_refine_focal_length=False, ba_refine_extra_params=False, extract_colors=False
        )
        models = pycolmap.incremental_mapping(database, str(scene.images), folder, options)
        times.append(time.monotonic())
    best = max(models.values(), key=lambda model: model.num_reg_images())
    poses = {
        i.name: np.linalg.inv(np.vstack((i.cam_from_world().matrix(), (0, 0, 0, 1)))) for i in best.images.values() if i.has_pose
    }
    rows = [k for k, name in enumerate(truth.names) if name in poses]
    figures = path_figures(np.stack([poses[truth.names[k]] for k in rows]), truth.poses[rows])
    seconds = round(times[1] - times[0], 1)
    return figures | {
        "posed": (len(rows), len(truth.names)),
        "scale_off": None,
        "said_scale": None,
        "to_poses_s": seconds,
        "map_s": None,
    }


# ---- localization in such a map


def query_figures(scene: common.Scene, map_: Map, extractor: Extractor, truth: Truth | None) -> dict[str, object]:
    """Queries localized from medium priors; truth: of a drive's map, which is then aligned to it around each query."""
    localizer, priors, around = Localizer(map_, extractor), scene.priors("medium"), {}
    if truth is not None:
        around = {query.name: window(map_, truth, truth.names.index(query.name)) for query in scene.queries}
        priors = {name: moved(pose, *inverted(*around[name])) for name, pose in priors.items()}
    errors = []
    for result in localize_queries(localizer, scene.queries, priors):
        pose = result.camera_from_map
        if pose is not None and truth is not None:
            pose = moved(pose, *around[result.name])
        errors.append(scene.error(result.name, pose))
    errors = np.array(errors)
    return {
        "keyframes": len(map_.keyframe_names),
        **common.medians(errors),
        "recall": [common.recall(errors, *v) for v in LEVELS],
    }


def window(map_: Map, truth: Truth, k: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift from the map to the truth around its k-th image. Rotations of keyframes are used, too: a straight
    path does not say how it is rolled."""
    found, right = map_.map_from_keyframe.numpy(), truth.at(map_)
    way = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(truth.poses[:, :3, 3], axis=0), axis=1))))
    apart = np.abs(way[np.searchsorted(truth.stamps, map_.keyframe_stamp_ns)] - way[k])
    near = np.flatnonzero(apart <= max(WINDOW_M, np.sort(apart)[min(2, len(apart) - 1)]))
    u, _, v = np.linalg.svd((right[near, :3, :3] @ found[near, :3, :3].transpose(0, 2, 1)).sum(0))
    rotation = u @ np.diag((1.0, 1.0, np.linalg.det(u @ v))) @ v
    a, b = ((poses[near, :3, 3] - poses[near, :3, 3].mean(0)) for poses in (found, right))
    scale = float(np.sqrt((b**2).sum() / (a**2).sum()))
    return scale, rotation, right[near, :3, 3].mean(0) - scale * rotation @ found[near, :3, 3].mean(0)


def inverted(scale: float, rotation: np.ndarray, shift: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    return 1 / scale, rotation.T, -rotation.T @ shift / scale


def moved(camera_from_a: torch.Tensor, scale: float, rotation: np.ndarray, shift: np.ndarray) -> torch.Tensor:
    """camera_from_b of a similarity from a to b."""
    a_from_camera = se3.inverse(camera_from_a.double())
    b_from_camera = torch.eye(4, dtype=torch.float64)
    b_from_camera[:3, :3] = torch.from_numpy(rotation) @ a_from_camera[:3, :3]
    b_from_camera[:3, 3] = scale * torch.from_numpy(rotation) @ a_from_camera[:3, 3] + torch.from_numpy(shift)
    return se3.inverse(b_from_camera)


def tables(results: dict[str, dict]) -> dict[str, str]:
    """Two: the drives' paths, and queries."""
    paths, queries = [], []

    def shown(value, factor=1.0):
        return "–" if value is None else format_number(factor * value)

    for scene, result in results.items():
        for kind, p in result["paths"].items():
            row = (p["way_m"], 1), (p["rmse_m"], 100), (p["median_m"], 100), (p["median_deg"], 1), (p["scale_off"], 100)
            row = [shown(*cell) for cell in (*row, (p["said_scale"], 100), (p["to_poses_s"], 1), (p["map_s"], 1))]
            paths.append((f"{scene}, {kind}", row[0], "{} of {}".format(*p["posed"]), *row[1:]))
        for kind, q in result["queries"].items():
            shares = [f"{100 * share:.0f}" for share in q["recall"]]
            queries.append((scene, kind, q["keyframes"], shown(q["median_deg"]), shown(q["median_distance"], 100), *shares))
    return {"drive paths": markdown_table(PATHS, paths), "drive queries": markdown_table(QUERIES, queries)}


if __name__ == "__main__":
    run_script(main)

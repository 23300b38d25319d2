#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of drives without anybody's poses, as in docs/evidence/maps.md: images and wheels of the scenes' bags, their truth unread.

For each drive, from all its images: how many keyframes get a pose, and how many of all images, the others localized in the map;
how far all are from the truth after a similarity alignment; how wrong the scale is, and what is said of its uncertainty; seconds
until the keyframes' poses are there and until the map is. --plain puts plain COLMAP (pycolmap: SIFT, sequential matching,
incremental mapper, known camera) of the same images next to it.

Then a map of every third image, as the COLMAP model's has them, and the scene's queries localized in both from medium priors. A
map is aligned to the truth within 5 m of the path on each side of a query: a drive's drift is not the localizer's error.

The truth is not exact from image to image, and the COLMAP model's map has its errors, too. So the same results are also compared
with structure from motion of all images together (a drive's map with every image as a keyframe), aligned in the same way. What
decides between the two is how far matches of queries lie from the epipolar lines of the poses: images that no map was made of.

--paths finds the keyframes' poses and makes no map: minutes instead of an hour, and errors are those of the keyframes.
--laps adds two laps of the simulated workshop, rendered once into the output folder: a loop, so that what is left between its end
and its start is seen (the error of the last keyframe's pose in the frame of the first one).

    experiments/drive_maps.py ../shared/data -o out/drive_maps
    experiments/drive_maps.py ../shared/data -o out/drive_maps --scenes --laps
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import common
import cv2
import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.datasets.odometry import ERRORS
from pixloc_ros.evaluation.drive_poses import DrivePoses, localize_drive
from pixloc_ros.evaluation.queries import localize_queries
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bag_writer import RecordedDrive, encode_image, write_drive_bag
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.io.files import replacing_folder
from pixloc_ros.io.images import load_grey
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.drive import DriveOptions, DriveReport, DriveSolver, build_map_from_drive
from pixloc_ros.mapping.build.drive_frames import DriveBag
from pixloc_ros.mapping.build.keyframes import KeyframeFiles, KeyframeOptions
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, SolvedKeyframes, points_of_posed_frames
from pixloc_sim.drives import START_NS, SimulatedDrive, camera_mount, wheel_odometry
from pixloc_sim.drives import DriveOptions as PathOptions
from pixloc_sim.recordings import MAPPING_LIGHT, MAPPING_SENSOR, SimulationOptions
from pixloc_sim.rendering import Renderer
from pixloc_sim.world import build_world

DRIVES = ("kitti01", "kitti07", "tum_fr1_rpy")
WINDOW_M = 5.0
LEVELS = ((0.5, 0.01), (2.0, 0.05))
"""Degrees, share of the depth."""
PATHS = (
    "drive | way, m | keyframes posed | images posed | RMSE, cm | median, cm | rotation, deg | end to start, % of the way | "
    "scale off, % | said, ± % | to poses, s | of the processor, s | map, s"
)
QUERIES = (
    "scene | poses of the queries | keyframes | to the truth: median deg | cm | R@0.5°/1 % | R@2°/5 % | "
    "to structure from motion: median deg | cm | off epipolar lines, px"
)
LAPS, LAPS_M_S, LAPS_HZ = 2, 0.8, 5.0
_LAPS_SIZE, _LAPS_TEXEL = (320, 240), 0.008
_KEYFRAMES = KeyframeOptions()
_APART, _RATIO, _LEAST_MATCHES = 4, 0.8, 30
"""Queries between the two of a pair; SIFT's nearest by next, and the fewest matches of a pair."""


def main() -> int:
    parser = common.parser(__doc__, "out/drive_maps", DRIVES)
    parser.add_argument("--plain", action="store_true", help="also plain COLMAP (minutes)")
    parser.add_argument("--without-odometry", action="store_true", help="also the drives from images alone")
    parser.add_argument("--laps", action="store_true", help="also two laps of the simulated workshop")
    parser.add_argument("--paths", action="store_true", help="only the keyframes' poses: no map, no queries")
    args = parser.parse_args()
    extractor, results = load_extractor(args.weights), {}
    for scene in common.scenes_of(args):
        results[scene.name] = evaluate(scene, extractor, args)
        common.save(args, "drive_maps", results, tables(results))
    if args.laps:
        results["two laps"] = evaluate_laps(args.output / "laps", extractor, args)
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

    def rows(self, map_: Map) -> np.ndarray:
        """Which images a map's keyframes are, int64 [K]: by name in the COLMAP model's map, by stamp in a drive's."""
        if map_.keyframe_names[0] in self.names:
            return np.array([self.names.index(name) for name in map_.keyframe_names])
        return np.searchsorted(self.stamps, map_.keyframe_stamp_ns)


def evaluate(scene: common.Scene, extractor: Extractor, args) -> dict[str, object]:
    """Everything about one scene; its maps go to the output folder."""
    truth, folder = Truth.of(scene), args.output / scene.name
    result: dict[str, object] = {"paths": {}, "queries": {}}
    for kind in ("images and wheels", *(["images alone"] if args.without_odometry else [])):
        result["paths"][kind] = drive_figures(scene, extractor, args, truth, kind == "images and wheels")
    if args.plain:
        result["paths"]["plain COLMAP"] = plain_colmap(scene.images, scene.queries[0].camera, truth)
    if args.paths:
        return result
    drive = drive_map(scene, extractor, folder, common.MAP_STRIDE)[0]
    together = drive_map(scene, extractor, folder, keyframes=KeyframeOptions(shift=1e-6, still=(0.0, 0.0)))[0]
    references = truth, replace(truth, poses=together.map_from_keyframe.numpy()[np.argsort(truth.rows(together))])
    maps = {"in the drive's map": drive, "in the COLMAP model's map": scene.build_map(extractor)}
    result["queries"] = {kind: query_figures(scene, map_, extractor, *references) for kind, map_ in maps.items()}
    result["queries"]["the truth"] = truth_figures(scene, *references)
    return result


def drive_figures(
    scene: common.Scene, extractor: Extractor, args, truth: Truth, odometry: bool, closed: bool = False
) -> dict[str, object]:
    """How good the path of a drive's map is. closed: it is a loop."""
    map_s, images_posed = None, None
    if args.paths:
        with DriveBag(scene.drive, BagOptions(truth="none", odometry=None if odometry else "none")) as frames:
            stamps, poses, found = keyframe_poses(frames, scene.name, extractor)
        keyframes = stamps, poses
    else:
        map_, report, map_s, every = drive_map(scene, extractor, args.output / scene.name, odometry=odometry, all_poses=True)
        found, keyframes = vars(report), (map_.keyframe_stamp_ns, map_.map_from_keyframe.numpy())
        stamps, poses = every.stamps[every.found], every.map_from_camera[every.found].numpy()
        images_posed = int(every.found.sum()), len(truth.names)
    figures = path_figures(poses, truth.poses[np.searchsorted(truth.stamps, stamps)])
    ends = np.searchsorted(truth.stamps, keyframes[0][[0, -1]])
    left = closing_error(keyframes[1][[0, -1]], truth.poses[ends])
    return figures | {
        "closed": left / figures["way_m"] if closed else None,
        "posed": found["posed"],
        "images_posed": images_posed,
        "said_scale": found["scale_uncertainty"],
        "to_poses_s": found["structure_s"],
        "to_poses_cpu_s": found["structure_cpu_s"],
        "map_s": map_s,
    }


class _Enough(Exception):
    """The poses are there."""


def keyframe_poses(frames: DriveBag, name: str, extractor: Extractor) -> tuple[np.ndarray, np.ndarray, dict]:
    """Stamps [K] and poses [K, 4, 4] of the keyframes, and what `DriveReport` adds: no map is made."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary, show_progress(name) as progress:
        work = WorkFolder(Path(temporary) / "work", {})
        posed = PosedMapOptions(keyframes=_KEYFRAMES if frames.has_odometry else KeyframeOptions(still=(0.0, 0.0)))
        solver = DriveSolver(frames, extractor, work, DriveOptions(posed), progress)

        def solve(images: KeyframeFiles, names: list[str]) -> SolvedKeyframes:
            solved = solver(images, names)
            stamps = np.array([int(Path(name).stem) for name in names], np.int64)
            found.update(stamps=stamps[solved.keyframe], poses=solved.map_from_camera.numpy())
            raise _Enough

        with contextlib.suppress(_Enough):
            points_of_posed_frames(frames, work, posed, name, progress, solve)
    return found["stamps"], found["poses"], solver.found


def closing_error(found: np.ndarray, truth: np.ndarray) -> float:
    """How far the last of two poses [2, 4, 4] is from where it should be in the frame of the first."""
    last, right = (np.linalg.inv(p[0]) @ p[1] for p in (found, truth))
    return float(np.linalg.norm(last[:3, 3] - right[:3, 3]))


def evaluate_laps(folder: Path, extractor: Extractor, args) -> dict[str, object]:
    """The path of two laps of the simulated workshop, with wheels as the scenes' bags have them."""
    scene, (camera, truth) = common.Scene(folder), laps(folder)
    paths = {"images and wheels": drive_figures(scene, extractor, args, truth, True, closed=True)}
    if args.plain:
        paths["plain COLMAP"] = plain_colmap(folder / "images", camera, truth)
    return {"paths": paths, "queries": {}}


def laps(folder: Path) -> tuple[Camera, Truth]:
    """Camera and truth of the laps; their bag and their images are rendered unless they are there."""
    camera = SimulationOptions(width=_LAPS_SIZE[0], height=_LAPS_SIZE[1]).make_camera()
    drive = SimulatedDrive(PathOptions(LAPS * SimulatedDrive(PathOptions(speed=LAPS_M_S)).duration_s, LAPS_M_S))
    seconds, mount = np.arange(0.05, drive.duration_s, 1 / LAPS_HZ), camera_mount()
    stamps = START_NS + np.rint(seconds * 1e9).astype(np.int64)
    names = [f"{number:06d}.jpg" for number in range(len(stamps))]
    if not (folder / "drive").is_dir():
        renderer = Renderer(build_world(0, _LAPS_TEXEL), replace(MAPPING_LIGHT, spacing=30 * _LAPS_TEXEL))

        def rendered(number: int) -> tuple[int, np.ndarray]:
            radiance, _ = renderer.radiance(camera, drive.at(seconds[number]) @ mount)
            return int(stamps[number]), encode_image(MAPPING_SENSOR.develop(radiance, np.random.default_rng([1, number])), "jpeg")

        with ThreadPoolExecutor(2) as threads, replacing_folder(folder / "images") as images:
            images.mkdir(parents=True)
            frames = list(threads.map(rendered, range(len(stamps))))
            for name, (_, image) in zip(names, frames):
                (images / name).write_bytes(image.tobytes())
        with replacing_folder(folder / "drive") as bag:
            write_drive_bag(bag, frames, RecordedDrive("jpeg", camera, mount, wheel_odometry(drive, ERRORS, 0), None))
    return camera, Truth(names, (drive.at(seconds) @ mount).numpy(), stamps)


def drive_map(
    scene: common.Scene,
    extractor: Extractor,
    folder: Path,
    every: int = 1,
    odometry: bool = True,
    all_poses: bool = False,
    keyframes: KeyframeOptions = _KEYFRAMES,
) -> tuple[Map, DriveReport, float, DrivePoses | None]:
    """Map of each N-th image, report, seconds, and the poses of all images where asked for."""
    begin, options = time.monotonic(), BagOptions(truth="none", odometry=None if odometry else "none")
    with (
        DriveBag(scene.drive, options, every) as frames,
        tempfile.TemporaryDirectory() as temporary,
        show_progress(scene.name) as progress,
    ):
        work = WorkFolder(Path(temporary) / "work", {})
        how = DriveOptions(PosedMapOptions(keyframes=keyframes))
        map_, report = build_map_from_drive(frames, extractor, work, how, progress=progress)
        seconds = round(time.monotonic() - begin, 1)
        poses = localize_drive(map_, frames, extractor, work, progress=progress) if all_poses else None
    which = f"{'' if odometry else '_images'}{'' if keyframes is _KEYFRAMES else '_together'}"
    map_.save(folder / f"every_{every}{which}.pixmap")
    return map_, report, seconds, poses


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


def plain_colmap(images: Path, camera: Camera, truth: Truth) -> dict[str, object]:
    """The same of plain COLMAP, on a folder of images."""
    import pycolmap

    times, processor = [time.monotonic()], time.process_time()
    model, params = camera.to_colmap()
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "database.db")
        reader = pycolmap.ImageReaderOptions(camera_model=model, camera_params=",".join(map(str, params)))
        pycolmap.extract_features(database, str(images), camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader)
        pycolmap.match_sequential(database)
        options = pycolmap.IncrementalPipelineOptions(
            ba_refine_focal_length=False, ba_refine_extra_params=False, extract_colors=False
        )
        models = pycolmap.incremental_mapping(database, str(images), folder, options)
        times.append(time.monotonic())
        processor = time.process_time() - processor
    best = max(models.values(), key=lambda model: model.num_reg_images())
    poses = {
        i.name: np.linalg.inv(np.vstack((i.cam_from_world().matrix(), (0, 0, 0, 1)))) for i in best.images.values() if i.has_pose
    }
    rows = [k for k, name in enumerate(truth.names) if name in poses]
    figures = path_figures(np.stack([poses[truth.names[k]] for k in rows]), truth.poses[rows])
    seconds = round(times[1] - times[0], 1)
    return figures | {
        "closed": None,
        "posed": None,
        "images_posed": (len(rows), len(truth.names)),
        "scale_off": None,
        "said_scale": None,
        "to_poses_s": seconds,
        "to_poses_cpu_s": round(processor, 1),
        "map_s": None,
    }


# ---- localization in such a map


def query_figures(scene: common.Scene, map_: Map, extractor: Extractor, truth: Truth, together: Truth) -> dict[str, object]:
    """Queries localized from medium priors, in a map that is aligned around each; together: structure from motion's poses."""
    keyframes = map_.map_from_keyframe.numpy(), truth.rows(map_)
    place = {query.name: window(*keyframes, truth, truth.names.index(query.name)) for query in scene.queries}
    priors = {name: moved(pose, *inverted(*place[name])) for name, pose in scene.priors("medium").items()}
    poses = {r.name: r.camera_from_map for r in localize_queries(Localizer(map_, extractor), scene.queries, priors)}
    return {"keyframes": len(map_.keyframe_names), **figures_of(scene, poses, keyframes, truth, together)}


def truth_figures(scene: common.Scene, truth: Truth, together: Truth) -> dict[str, object]:
    """The same of the queries' truth itself."""
    everywhere = truth.poses, np.arange(len(truth.names))
    itself = {"keyframes": None, "median_deg": None, "median_distance": None, "recall": None}
    return figures_of(scene, scene.truth, everywhere, truth, together) | itself


def figures_of(scene: common.Scene, poses: dict, keyframes: tuple, truth: Truth, together: Truth) -> dict[str, object]:
    """How far camera_from_map of queries (None where not found) are from truth and structure from motion.

    keyframes: What is aligned to both, map_from_camera [K, 4, 4] and which images they are [K].
    """
    errors = [[], []]
    for name, pose in poses.items():
        k = truth.names.index(name)
        for found, reference in zip(errors, (truth, together)):
            aligned = None if pose is None else moved(pose, *window(*keyframes, reference, k))
            depth, right = scene.depths[name], torch.from_numpy(reference.poses[k])
            if aligned is None:
                found.append((np.inf,) * 3)
                continue
            distance, angle = se3.pose_difference(right, se3.inverse(aligned))
            found.append((np.degrees(float(angle)), float(distance), float(distance) / depth))
    to_truth, to_structure = np.array(errors)
    return {
        **common.medians(to_truth),
        "recall": [common.recall(to_truth, *v) for v in LEVELS],
        "structure": common.medians(to_structure),
        "epipolar_px": epipolar_px(scene, poses),
    }


def epipolar_px(scene: common.Scene, poses: dict[str, torch.Tensor | None]) -> float | None:
    """How far matches of queries a few apart lie from the epipolar lines of their poses, median of medians; None: no pairs.

    The matches are those that one fundamental matrix holds: the poses have no say in them.
    """
    off, found = [], [query for query in scene.queries if poses[query.name] is not None]
    sift, matcher = cv2.SIFT_create(2000), cv2.BFMatcher()
    seen = [sift.detectAndCompute(load_grey(query.path, query.camera), None) for query in found]
    for a, b in zip(range(len(found)), range(_APART, len(found))):
        near = matcher.knnMatch(seen[a][1], seen[b][1], k=2)
        pairs = [(m.queryIdx, m.trainIdx) for m, n in near if m.distance < _RATIO * n.distance]
        if len(pairs) < _LEAST_MATCHES:
            continue
        pixels = [np.array([seen[k][0][row[n]].pt for row in pairs]) for n, k in enumerate((a, b))]
        inside = cv2.findFundamentalMat(*pixels, cv2.USAC_MAGSAC, 1.0, 0.999, 10000)[1]
        if inside is None or inside.sum() < _LEAST_MATCHES:
            continue
        one, other = (found[k].camera.unproject(torch.from_numpy(p[inside[:, 0] > 0]))[0].numpy() for k, p in zip((a, b), pixels))
        pose = (poses[found[b].name] @ se3.inverse(poses[found[a].name])).numpy()
        essential = np.cross(np.eye(3), pose[:3, 3]).T @ pose[:3, :3]
        lines, back = one @ essential.T, other @ essential
        distance = np.abs((lines * other).sum(1)) / np.sqrt((lines[:, :2] ** 2).sum(1) / 2 + (back[:, :2] ** 2).sum(1) / 2)
        off.append(float(np.median(distance)) * float(found[a].camera.params[0]))
    return float(np.median(off)) if off else None


def window(found: np.ndarray, rows: np.ndarray, truth: Truth, k: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift from poses [K, 4, 4] of the images `rows` to the truth around its k-th image. Rotations are used,
    too: a straight path does not say how it is rolled."""
    right = truth.poses[rows]
    way = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(truth.poses[:, :3, 3], axis=0), axis=1))))
    apart = np.abs(way[rows] - way[k])
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
            row = (p["way_m"], 1), (p["rmse_m"], 100), (p["median_m"], 100), (p["median_deg"], 1), (p["closed"], 100)
            row = *row, (p["scale_off"], 100), (p["said_scale"], 100), (p["to_poses_s"], 1), (p["to_poses_cpu_s"], 1)
            row = [shown(*cell) for cell in (*row, (p["map_s"], 1))]
            posed = ["–" if v is None else "{} of {}".format(*v) for v in (p["posed"], p["images_posed"])]
            paths.append((f"{scene}, {kind}", row[0], *posed, *row[1:]))
        for kind, q in result["queries"].items():
            cells = [q["keyframes"] or "–", shown(q["median_deg"]), shown(q["median_distance"], 100)]
            cells += [f"{100 * share:.0f}" for share in q["recall"]] if q["recall"] else ["–"] * len(LEVELS)
            cells += [shown(q["structure"]["median_deg"]), shown(q["structure"]["median_distance"], 100), shown(q["epipolar_px"])]
            queries.append((scene, kind, *cells))
    return {"drive paths": markdown_table(PATHS, paths), "drive queries": markdown_table(QUERIES, queries)}


if __name__ == "__main__":
    run_script(main)

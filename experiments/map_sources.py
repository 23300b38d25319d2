#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of one drive made in several ways, and how exact they are: the table of docs/evidence/maps.md.

For each scene with drive/ and queries/, maps of the same keyframes (the images of map/), each scored with the
same queries:

- the scene's COLMAP model: its points were triangulated from all images, the queries' among them, where poses are adjusted
  together with them;
- the bag, points from all its images, too, the queries' keyframes then taken out;
- COLMAP's own features, matches and triangulation with the map images and their poses alone (pycolmap);
- the bag, opened at the map's images alone; and the same with keyframes chosen as `pixloc map bag` does by default.

The second is to be compared with the first, the last two with the third: they know the same. Results of a scene and map are
kept in the output folder.

    experiments/map_sources.py ../shared/data -o out/sources --docs docs/evidence/maps.md
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import common
import numpy as np

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.files import write_text
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.build.building import PosedImages, build_map
from pixloc_ros.mapping.build.keyframes import KeyframeOptions
from pixloc_ros.mapping.build.matching import require_pycolmap
from pixloc_ros.mapping.build.posed_bag import PosedBag, PosedBagOptions
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames

MODEL, BAG_ALL = "COLMAP model, points from all images", "bag, points from all images"
COLMAP, BAG, BAG_CHOSEN = "COLMAP, map images only", "bag, map images only", "bag, map images only, default keyframes"
BASELINE = {MODEL: None, BAG_ALL: MODEL, COLMAP: None, BAG: COLMAP, BAG_CHOSEN: COLMAP}
"""What each is compared with."""
PRIORS = ("small", "medium")
EVERY_FRAME = KeyframeOptions(shift=1e-6)
SAME_POSE_M = 1e-3
NOT_FOUND_MM = 1e3
"""Counts in the mean for a query that was not found, or is further off."""


def main() -> int:
    parser = common.parser(__doc__, "out/sources")
    parser.add_argument("--only", nargs="+", choices=list(BASELINE), default=(), help="make these alone, again if need be")
    parser.add_argument(
        "--every", type=int, default=common.MAP_STRIDE, metavar="N", help="the map's images: each N-th (default 3)"
    )
    args = parser.parse_args()
    extractor, results = load_extractor(args.weights), {}
    for scene in (scene for scene in common.scenes_of(args) if scene.drive.is_dir()):
        results[scene.name] = {}
        for number, label in enumerate(BASELINE):
            path = args.output / scene.name / f"{number}.json"
            if label in args.only or not (path.is_file() or args.only):
                with show_progress(f"{scene.name}: {label}") as progress:
                    map_ = make(label, scene, path.with_suffix(".work"), extractor, args.every, progress)
                figures = {"map": label, "network": extractor.fingerprint} | measure(map_, scene, extractor)
                write_text(path, json.dumps(figures, indent=1) + "\n")
            if path.is_file():
                results[scene.name][label] = json.loads(path.read_text())
                if results[scene.name][label]["network"] != extractor.fingerprint:
                    raise InputError(f"{path} was made with other weights: give another --output")
    common.save(args, "sources", results, {"sources": report(results)})
    return common.finish(args, {"sources": report(results)})


def make(label: str, scene: common.Scene, work: Path, extractor: Extractor, every: int, progress) -> Map:
    """One of the maps of a scene."""
    if label in (MODEL, COLMAP):
        model = scene.folder / "map" if label == MODEL else triangulated_by_colmap(scene.folder, work.with_name("colmap"))
        return build_map_from_colmap(model, scene.folder / "images", extractor, progress=progress)[0]
    chosen = KeyframeOptions() if label == BAG_CHOSEN else EVERY_FRAME
    folder = WorkFolder(work, {"keyframes": str(chosen)})
    with PosedBag(scene.drive, PosedBagOptions(every=1 if label == BAG_ALL else every, depth="none")) as frames:
        source = points_of_posed_frames(frames, folder, PosedMapOptions(keyframes=chosen), scene.name, progress).source
    if label == BAG_ALL:
        source = without_queries(source, scene)
    map_ = build_map(source, extractor, progress=progress)[0]
    folder.remove()
    return map_


def without_queries(source: PosedImages, scene: common.Scene) -> PosedImages:
    """The same images and points, as if the queries' images had seen none: the map then has no keyframe of them."""
    centres = np.stack([se3.inverse(pose)[:3, 3].numpy() for pose in scene.truth.values()])
    away = np.linalg.norm(source.map_from_camera[:, None, :3, 3].numpy() - centres, axis=2).min(1)
    kept = (away > SAME_POSE_M)[source.observation_image]
    return replace(source, observation_image=source.observation_image[kept], observation_point=source.observation_point[kept])


def triangulated_by_colmap(scene: Path, output: Path) -> Path:
    """COLMAP's points of the map images with the poses and camera of the scene's model; the model's folder."""
    pycolmap = require_pycolmap()
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    given = pycolmap.Reconstruction(str(scene / "map"))
    camera = next(iter(given.cameras.values()))
    poses = {image.name: image.cam_from_world() for image in given.images.values()}
    output.mkdir(parents=True, exist_ok=True)
    path = output / "database.db"
    path.unlink(missing_ok=True)
    reader = pycolmap.ImageReaderOptions(camera_model=camera.model.name, camera_params=",".join(map(str, camera.params)))
    pycolmap.extract_features(
        str(path),
        str(scene / "images"),
        image_names=sorted(poses),
        device=pycolmap.Device.cpu,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
    )
    pycolmap.match_exhaustive(str(path), device=pycolmap.Device.cpu)
    database, model = pycolmap.Database.open(str(path)), pycolmap.Reconstruction()
    for known in database.read_all_cameras():
        model.add_camera_with_trivial_rig(known)
    for image in database.read_all_images():
        points = [pycolmap.Point2D(keypoint[:2]) for keypoint in database.read_keypoints(image.image_id)]
        model.add_image_with_trivial_frame(
            pycolmap.Image(image.name, points2D=points, camera_id=image.camera_id, image_id=image.image_id), poses[image.name]
        )
    database.close()
    pycolmap.triangulate_points(model, str(path), str(scene / "images"), str(output)).write(str(output))
    return output


def measure(map_: Map, scene: common.Scene, extractor: Extractor) -> dict:
    """What the map holds, medians of the queries' errors by prior, and the geometric mean of the distances."""
    keyframes, points = len(map_.keyframe_names), len(map_.xyz)
    result = {"keyframes": keyframes, "points": points, "track_length": len(map_.observation_point) / points}
    localizer = Localizer(map_, extractor)
    for prior in PRIORS:
        errors = scene.errors(scene.localize(localizer, prior)) * (1, 1e3, 100)
        result[prior] = dict(zip(("deg", "mm", "pct_depth"), np.median(errors, axis=0).tolist()))
        result[prior]["mean_mm"] = float(np.exp(np.log(np.clip(errors[:, 1], 1e-3, NOT_FOUND_MM)).mean()))
        result[prior]["recall"] = common.recall(errors, 0.5, 1.0)
    return result


def report(results: dict[str, dict[str, dict]]) -> str:
    """One row for each map."""
    rows = []
    for scene, maps in results.items():
        for label, row in maps.items():
            cells = [scene, label, row["keyframes"], row["points"], f"{row['track_length']:.1f}"]
            for prior in PRIORS:
                deg, mm, share, recall = (row[prior][key] for key in ("deg", "mm", "pct_depth", "recall"))
                cells += [f"{deg:.4f} / {mm:.1f} / {share:.3f}", f"{100 * recall:.0f}"]
            against = maps.get(BASELINE[label] or "")
            changes = [[row[prior][key] / against[prior][key] - 1 for key in ("mm", "mean_mm")] for prior in PRIORS if against]
            rows.append([*cells, ", ".join(f"{100 * median:+.0f} % ({100 * mean:+.0f} %)" for median, mean in changes)])
    head = (
        "scene | map | keyframes | points | keyframes a point | small priors: median deg / mm / % of depth | R | medium priors "
        "| R | against the map it is compared with: median mm (geometric mean)"
    )
    return markdown_table(head, rows)


if __name__ == "__main__":
    run_script(main)

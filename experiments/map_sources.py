#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of one drive made in several ways, and how exact they are: the table of docs/evidence/maps.md.

For each scene with drive/, map/, images/ and queries/, maps of the same keyframes (the images of map/), each scored with the
same queries:

- the scene's COLMAP model: its points were triangulated from all images, the queries' among them, where poses are adjusted
  together with them;
- the bag, points from all its images likewise, the queries' keyframes then taken out;
- COLMAP's own features, matches and triangulation with the map images and their poses alone (pycolmap);
- the bag, opened at the map's images alone; and the same with keyframes chosen as `pixloc map bag` does by default.

The second is to be compared with the first, the two last ones with the third: they know the same. Results of a scene and map are
kept in the output's folder.

    experiments/map_sources.py ../shared/data -o out/sources
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import localize
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.files import write_text
from pixloc_ros.io.trajectory import read_benchmark_poses
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.build.building import PosedImages, build_map
from pixloc_ros.mapping.build.keyframes import KeyframeOptions
from pixloc_ros.mapping.build.posed_bag import PosedBag, PosedBagOptions
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames
from pixloc_ros.mapping.build.triangulation import require_pycolmap

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/sources"))
    parser.add_argument("--scenes", nargs="+", help="names; default: all with a drive")
    parser.add_argument("--only", nargs="+", choices=list(BASELINE), help="make these alone, again if need be")
    parser.add_argument("--every", type=int, default=3, metavar="N", help="the map's images are each N-th (default 3)")
    parser.add_argument("--weights", default="compact")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="also put the table between <!-- sources: begin --> and <!-- sources: end --> there",
    )
    args = parser.parse_args()
    names = args.scenes or sorted(path.parent.name for path in args.data.glob("*/drive"))
    extractor = load_extractor(args.weights)
    results = {}
    for name in names:
        results[name] = {}
        for label in BASELINE:
            path = args.output / name / f"{list(BASELINE).index(label)}.json"
            if args.only and label not in args.only and not path.is_file():
                continue
            if not path.is_file() or (args.only and label in args.only):
                map_ = make(label, args.data / name, args.output / name, extractor, args.every)
                write_text(
                    path,
                    json.dumps(
                        {"map": label, "network": extractor.fingerprint}
                        | measure(map_, args.data / name, extractor, f"{name}: {label}"),
                        indent=1,
                    )
                    + "\n",
                )
            results[name][label] = json.loads(path.read_text())
            if results[name][label]["network"] != extractor.fingerprint:
                raise InputError(f"{path} was made with other weights: give another --output")
    table = markdown(results)
    write_text(args.output / "sources.md", table)
    if args.docs:
        write_section(args.docs, "sources", table)
    print(table)
    return 0


def make(label: str, scene: Path, output: Path, extractor: Extractor, every: int) -> Map:
    """One of the maps of a scene."""
    with show_progress(f"{scene.name}: {label}") as progress:
        if label == MODEL:
            return build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)[0]
        if label == COLMAP:
            model = triangulated_by_colmap(scene, output / "colmap")
            return build_map_from_colmap(model, scene / "images", extractor, progress=progress)[0]
        chosen = KeyframeOptions() if label == BAG_CHOSEN else EVERY_FRAME
        work = WorkFolder(output / f"{list(BASELINE).index(label)}.work", {"keyframes": str(chosen)})
        options = PosedBagOptions(every=1 if label == BAG_ALL else every, depth="none")
        with PosedBag(scene / "drive", options) as frames:
            source = points_of_posed_frames(frames, work, PosedMapOptions(keyframes=chosen), scene.name, progress).source
        if label == BAG_ALL:
            source = without_queries(source, scene)
        map_ = build_map(source, extractor, progress=progress)[0]
        work.remove()
        return map_


def without_queries(source: PosedImages, scene: Path) -> PosedImages:
    """The same images and points, as if the queries' images had seen none: the map then has no keyframe of them."""
    truth = read_benchmark_poses(scene / "queries" / "truth.txt").values()
    centres = np.stack([se3.inverse(pose)[:3, 3].numpy() for pose in truth])
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


def measure(map_: Map, scene: Path, extractor: Extractor, label: str) -> dict:
    """What the map holds, medians of the queries' errors by prior, and the geometric mean of the distances."""
    truth = read_benchmark_poses(scene / "queries" / "truth.txt")
    depth = json.loads((scene / "queries" / "scale.json").read_text())
    queries = localize.read_queries(scene / "images", scene / "queries" / "cameras.txt")
    localizer = Localizer(map_, extractor)
    result = {
        "keyframes": len(map_.keyframe_names),
        "points": len(map_.xyz),
        "track_length": len(map_.observation_point) / len(map_.xyz),
    }
    for prior in PRIORS:
        priors = read_benchmark_poses(scene / "queries" / f"priors_{prior}.txt")
        errors = []
        with show_progress(f"{label}, {prior} priors") as progress:
            found = localize.localize_queries(localizer, queries, priors, progress)
        for query in found:
            if query.camera_from_map is None:
                errors.append([np.inf] * 3)
                continue
            away, turned = se3.pose_difference(se3.inverse(truth[query.name]), se3.inverse(query.camera_from_map))
            errors.append([np.degrees(float(turned)), 1e3 * float(away), 100 * float(away) / depth[query.name]])
        result[prior] = dict(zip(("deg", "mm", "pct_depth"), np.median(errors, axis=0).tolist()))
        away_mm = np.clip([mm for _, mm, _ in errors], 1e-3, NOT_FOUND_MM)
        result[prior]["mean_mm"] = float(np.exp(np.log(away_mm).mean()))
        result[prior]["recall"] = float(np.mean([deg <= 0.5 and pct <= 1 for deg, _, pct in errors]))
    return result


def markdown(results: dict[str, dict[str, dict]]) -> str:
    """One row a map."""
    lines = [
        "| scene | map | keyframes | points | keyframes a point | small priors: median deg / mm / % of depth | R | "
        "medium priors | R | against the map it is compared with: median mm (geometric mean) |",
        "|---" * 10 + "|",
    ]
    for scene, rows in results.items():
        for label, row in rows.items():
            against = rows.get(BASELINE[label] or "")
            change = (
                ""
                if against is None
                else ", ".join(
                    f"{_change(row, against, prior, 'mm')} ({_change(row, against, prior, 'mean_mm')})" for prior in PRIORS
                )
            )
            cells = [scene, label, row["keyframes"], row["points"], f"{row['track_length']:.1f}"]
            for prior in PRIORS:
                deg, mm, share, recall = (row[prior][key] for key in ("deg", "mm", "pct_depth", "recall"))
                cells += [f"{deg:.4f} / {mm:.1f} / {share:.3f}", f"{100 * recall:.0f}"]
            lines.append("| " + " | ".join(map(str, [*cells, change])) + " |")
    return "\n".join(lines) + "\n"


def _change(row: dict, against: dict, prior: str, key: str) -> str:
    return f"{100 * (row[prior][key] / against[prior][key] - 1):+.0f} %"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"map_sources: error: {error}", file=sys.stderr)
        sys.exit(2)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""pycolmap's mappers in a process of its own, so that a crash of the library is an error with a reason.

    python3 -m pixloc_ros.mapping.build.mapper FOLDER

FOLDER holds database.db and mapper.json. The models are written there; every image that is posed prints a line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...geometry.cameras import Camera
from .building import Progress, unique_cameras
from .matching import require_pycolmap
from .two_view import PairFinder, colmap_camera

_KINDS, _TURNING = ("global", "incremental"), 0.1
"""In the order they are tried: the global one is faster and drifts less. Where more than a share of the pairs has no parallax, as
of a camera that mostly turns, their directions say too little for it, and the other begins."""
_ENOUGH = 0.9


@dataclass(frozen=True)
class MapperOptions:
    """What the mapper is to do.

    Attributes:
        refine_camera: Whether focal length and distortion are refined.
        max_error_px: Largest reprojection error.
        threads: At work.
    """

    refine_camera: bool
    max_error_px: float
    threads: int = -1


@dataclass(frozen=True, eq=False)
class MapperModel:
    """What came out.

    Attributes:
        image: int64 [n], numbers of the images that have a pose, rising.
        map_from_camera: float64 [n, 4, 4], up to scale.
        cameras: Of all images, refined where asked.
        xyz: float64 [P, 3].
        error_px: Mean reprojection error.
    """

    image: np.ndarray
    map_from_camera: np.ndarray
    cameras: list[Camera]
    xyz: np.ndarray
    error_px: float


def run_mapper(finder: PairFinder, options: MapperOptions, progress: Progress | None) -> MapperModel:
    """The largest model of the images. Raises `InputError`: both mappers crash or make no model."""
    folder, best, trouble = finder.matcher.work.path("mapper"), None, []
    turning = np.mean([not pair.has_parallax for pair in finder.pairs.values() if pair.is_link])
    for kind in _KINDS if turning < _TURNING else _KINDS[::-1]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write_database(finder, folder / "database.db", options.refine_camera)
        (folder / "mapper.json").write_text(json.dumps(asdict(options) | {"kind": kind}))
        code = _run(folder, finder.count, progress)
        if code:
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            said = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
            trouble.append(f"the {kind} mapper crashed ({what}{': ' + said[-1] if said else ''})")
            continue
        model = _read(finder, folder)
        if model is None:
            trouble.append(f"the {kind} mapper finds no two images to begin with")
        elif best is None or len(model.image) > len(best.image):
            best = model
        if best is not None and len(best.image) >= _ENOUGH * finder.count:
            break
    shutil.rmtree(folder, ignore_errors=True)
    if best is None:
        raise InputError(
            f"structure from motion fails: {'; '.join(trouble)} (pycolmap {require_pycolmap().__version__}). Drive slower, in "
            "more light, with fewer turns on the spot"
        )
    return best


def _run(folder: Path, count: int, progress: Progress | None) -> int:
    """The exit code of the process; it ends with this one."""
    root = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", __name__, str(folder)]
    with (folder / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
        try:
            for posed, _ in enumerate(process.stdout, 1):
                if progress:
                    progress(min(posed, count), count, "structure from motion")
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _write_database(finder: PairFinder, path: Path, refined: bool) -> None:
    pycolmap, matcher = require_pycolmap(), finder.matcher
    cameras, camera_of = unique_cameras(matcher.images.cameras)
    database = pycolmap.Database.open(str(path))
    for number, camera in enumerate(cameras, 1):
        camera = colmap_camera(camera, number, finder.known_focal, refined)
        database.write_camera(camera, use_camera_id=True)
        rig = pycolmap.Rig(rig_id=number)
        rig.add_ref_sensor(camera.sensor_id)
        database.write_rig(rig, use_rig_id=True)
    for k in range(finder.count):
        image = pycolmap.Image(f"{k:06d}", camera_id=camera_of[k] + 1, image_id=k + 1)
        frame = pycolmap.Frame()
        frame.frame_id, frame.rig_id = k + 1, camera_of[k] + 1
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        image.frame_id = k + 1
        database.write_image(image, use_image_id=True)
        database.write_keypoints(k + 1, (matcher.features(k)[0] + 0.5).astype(np.float32))
    known = pycolmap.TwoViewGeometryConfiguration
    for (a, b), pair in sorted(finder.pairs.items()):
        if pair.is_link:
            geometry = pycolmap.TwoViewGeometry()
            calibrated = known.CALIBRATED if finder.known_focal else known.UNCALIBRATED
            geometry.config = calibrated if pair.has_parallax else known.PLANAR_OR_PANORAMIC
            geometry.inlier_matches = pair.matches.astype(np.uint32)
            database.write_matches(a + 1, b + 1, pair.matches.astype(np.uint32))
            database.write_two_view_geometry(a + 1, b + 1, geometry)
    database.close()


def _read(finder: PairFinder, folder: Path) -> MapperModel | None:
    """The largest model in the folder."""
    pycolmap = require_pycolmap()
    models = [pycolmap.Reconstruction(str(path)) for path in sorted(folder.iterdir()) if path.is_dir()]
    models = [model for model in models if model.num_reg_images() > 1]
    if not models:
        return None
    model = max(models, key=lambda model: model.num_reg_images())
    posed = {int(image.name): image for image in model.images.values() if image.has_pose}
    order = sorted(posed)
    poses = np.stack([np.linalg.inv(np.vstack((posed[k].cam_from_world().matrix(), (0, 0, 0, 1)))) for k in order])
    refined = {n: Camera.from_colmap(c.model.name, c.width, c.height, c.params.tolist()) for n, c in model.cameras.items()}
    _, camera_of = unique_cameras(finder.matcher.images.cameras)
    cameras = [refined.get(camera_of[k] + 1, camera) for k, camera in enumerate(finder.matcher.images.cameras)]
    xyz = np.array([point.xyz for point in model.points3D.values()], float).reshape(-1, 3)
    return MapperModel(np.array(order, np.int64), poses, cameras, xyz, float(model.compute_mean_reprojection_error()))


def main(folder: Path) -> int:
    """What the process does."""
    pycolmap, asked = require_pycolmap(), json.loads((folder / "mapper.json").read_text())
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value if hasattr(pycolmap.logging, "ERROR") else 2
    how = (str(folder / "database.db"), str(folder), str(folder))
    if asked["kind"] == "global":
        options = pycolmap.GlobalPipelineOptions()
        adjustment = options.mapper.bundle_adjustment
        adjustment.refine_focal_length = adjustment.refine_extra_params = asked["refine_camera"]
        options.num_threads, options.random_seed = asked["threads"], 0
        pycolmap.global_mapping(*how, options)
    else:
        options = pycolmap.IncrementalPipelineOptions()
        options.ba_refine_focal_length = options.ba_refine_extra_params = asked["refine_camera"]
        options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = asked["refine_camera"]
        options.mapper.init_min_tri_angle = 8.0  # a drive goes forward: 16° takes a long way
        options.mapper.filter_max_reproj_error = asked["max_error_px"]
        options.extract_colors, options.min_model_size = False, 3
        options.num_threads, options.random_seed = asked["threads"], 0
        pycolmap.incremental_mapping(*how, options, next_image_callback=lambda: print(flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

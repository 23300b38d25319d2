# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps from COLMAP models and their images."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import InputError, none_left
from ...features import Extractor
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.colmap import ColmapModel, read_colmap_model
from ...io.files import find_file
from ...io.images import load_grey
from ...io.work_folder import WorkFolder
from ..map_file import Map
from .building import BuildReport, PosedImages, Progress, build_map
from .keyframes import KeyframeFiles
from .matching import require_pycolmap
from .observations import Observations, reprojection_errors
from .triangulation import triangulate

_LEAST_GOOD_SHARE = 0.5
"""Of the observations: below it poses, cameras or 2D points are odd."""


def build_map_from_colmap(
    model: Path,
    images: Path,
    extractor: Extractor,
    min_track_length: int = 2,
    max_error_px: float = 4.0,
    working_side: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> tuple[Map, BuildReport]:
    """Map of a COLMAP model and its images. Images that cannot be used are left out and reported.

    A model whose points have no tracks, or that has no points, gets points by triangulation with its poses (`triangulate`).

    Args:
        model: Folder of the model.
        images: Folder that its image names are relative to.
        extractor: Makes the features.
        min_track_length: Points seen by fewer images are left out.
        max_error_px: Single observations that lie further from where their point projects are left out.
        working_side: As of `build_map`.
        name: The map's, the model's folder by default.
        progress: As of `build_map`.
        work: As of `build_map`.

    Raises:
        InputError: As `read_colmap_model`, `triangulate` and `build_map`, or no point is left.
    """
    reconstruction, images = read_colmap_model(model, need_points=False), Path(images)
    if not images.is_dir():
        raise InputError(f"no folder {images}: give the folder that the model's image names are relative to")
    names, seen = reconstruction.names, (reconstruction.observation_image, reconstruction.observation_point)
    paths = [find_file(images, image_name) for image_name in names]
    cameras = [reconstruction.cameras[number] for number in reconstruction.camera_ids.tolist()]
    poses, stamps = se3.inverse(reconstruction.camera_from_map), np.full(len(names), -1, np.int64)
    name = name or Path(model).resolve().name
    source = PosedImages(name, paths, names, cameras, poses, stamps, reconstruction.xyz, *seen)
    left_out, notes = dict(reconstruction.left_out), []
    if len(reconstruction.observation_point):
        image, point, note = _good_observations(reconstruction, source.cameras, min_track_length, max_error_px, model)
        source, notes = replace(source, observation_image=image, observation_point=point), [note] if note else []
    else:
        try:
            source = _with_triangulated_points(source, left_out, work, progress)
        except InputError as error:
            raise InputError(f"no point of {model} has a track that images show, and {error}") from None
        notes = [f"no point of {model} has a track that images show: points were triangulated with its poses"]
    map_, report = build_map(source, extractor, working_side, progress, work)
    return map_, replace(report, left_out=report.left_out | left_out, notes=tuple(notes))


def _with_triangulated_points(
    source: PosedImages, left_out: dict[str, str], work: WorkFolder | None, progress: Progress | None
) -> PosedImages:
    """The images with points of their own; those that cannot be read go to `left_out`."""
    require_pycolmap()
    usable = []
    for k in np.argsort(source.names, kind="stable").tolist():  # names mostly follow time, ids do not
        try:
            load_grey(source.paths[k], source.cameras[k])
            usable.append(k)
        except InputError as error:
            left_out[source.names[k]] = str(error)
    if len(usable) < 2:
        raise none_left(f"of {len(source.names)} images {len(usable)} can be used", left_out)
    paths, cameras = ([values[k] for k in usable] for values in (source.paths, source.cameras))
    with tempfile.TemporaryDirectory() as folder:
        files = KeyframeFiles(paths, cameras, source.map_from_camera[usable])
        found = triangulate(files, work or WorkFolder(Path(folder) / "work", {}), progress=progress)
    image = np.array(usable)[found.observation_image]
    return replace(source, xyz=found.xyz, observation_image=image, observation_point=found.observation_point)


def _good_observations(
    model: ColmapModel, cameras: list[Camera], min_track_length: int, max_error_px: float, folder: Path
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Image and point of each observation to use, each pair once; and what is odd about them. Raises `InputError`: none."""
    seen = Observations(model.observation_image, model.observation_point, model.observation_px)
    error = reprojection_errors(model.xyz, cameras, model.camera_from_map, seen)
    good = seen.only(error <= max_error_px)
    share = len(good.point) / len(seen.point)
    odd = (
        f"{100 * share:.0f} % of the observations of {folder} lie within {max_error_px:g} pixels of where their point projects "
        f"(median error {np.median(error):.1f} pixels)"
    )
    if not len(good.point):
        raise InputError(f"{odd}: its poses, cameras, points and 2D points do not belong together, export the model again")
    point, image = np.unique(np.stack((good.point, good.image)), axis=1)
    length = np.bincount(point, minlength=len(model.xyz))
    enough = length[point] >= min_track_length
    if not enough.any():
        raise InputError(
            f"{folder} has no point that {min_track_length} images see within {max_error_px:g} pixels, the longest track has "
            f"{length.max()}: give --min-track-length {length.max()}"
        )
    return image[enough], point[enough], odd if share < _LEAST_GOOD_SHARE else None

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
from ...io.colmap import read_colmap_model
from ...io.files import find_file
from ...io.images import load_grey
from ...io.work_folder import WorkFolder
from ..map_file import Map
from .building import BuildReport, PosedImages, Progress, build_map
from .keyframes import KeyframeFiles
from .matching import require_pycolmap
from .observations import Observations, reprojection_errors
from .refinement import RefineOptions, refine_poses
from .triangulation import triangulate

_USUAL_ERROR_PX, _USUAL_GOOD_SHARE, _LEAST_GOOD_SHARE = 4.0, 0.5, 0.1
"""A model is odd where fewer observations than the first share lie near their projection, nonsense below the second."""


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
    refine: RefineOptions | None = None,
) -> tuple[Map, BuildReport]:
    """Map of a COLMAP model and its images. Images that cannot be used are left out and reported.

    A model without points or tracks, or whose tracks are wrong, gets points by triangulation with its poses (`triangulate`), and
    so does one whose poses are refined.

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
        refine: Poses are refined first; how well they are known.

    Raises:
        InputError: As `read_colmap_model`, `refine_poses`, `triangulate` and `build_map`, or no point is left.
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
    left_out, why, notes = dict(reconstruction.left_out), reconstruction.trackless, []
    if refine is not None:
        source, notes = _with_triangulated_points(source, left_out, work, progress, refine)
        map_, report = build_map(source, extractor, working_side, progress, work)
        return map_, replace(report, left_out=report.left_out | left_out, notes=(*notes, *report.notes))
    if not why:
        observed = Observations(*seen, reconstruction.observation_px)
        error = reprojection_errors(reconstruction.xyz, cameras, reconstruction.camera_from_map, observed)
        share = float((error <= max(max_error_px, _USUAL_ERROR_PX)).mean())
        odd = (
            f"{100 * share:.0f} % of the observations of {model} lie where their points project (median error "
            f"{np.median(error):.1f} pixels): poses, cameras, points and 2D points hardly belong together"
        )
        why = odd if share < _LEAST_GOOD_SHARE else ""
        notes = [odd] if share < _USUAL_GOOD_SHARE else []
    if why:
        try:
            source, _ = _with_triangulated_points(source, left_out, work, progress)
        except InputError as failure:
            raise InputError(f"{why}; and points cannot be triangulated anew: {failure}") from None
        notes = [f"{why}: points were triangulated anew with its poses"]
    else:
        image, point = _long_tracks(observed.only(error <= max_error_px), min_track_length, max_error_px, model)
        source = replace(source, observation_image=image, observation_point=point)
    map_, report = build_map(source, extractor, working_side, progress, work)
    return map_, replace(report, left_out=report.left_out | left_out, notes=(*notes, *report.notes))


def _with_triangulated_points(
    source: PosedImages,
    left_out: dict[str, str],
    work: WorkFolder | None,
    progress: Progress | None,
    refine: RefineOptions | None = None,
) -> tuple[PosedImages, tuple[str, ...]]:
    """The images with points of their own and, where asked, with refined poses; those that cannot be read go to `left_out`; what
    is to be said of the poses."""
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
    poses, notes = source.map_from_camera.clone(), ()
    with tempfile.TemporaryDirectory() as folder:
        files, work = KeyframeFiles(paths, cameras, poses[usable]), work or WorkFolder(Path(folder) / "work", {})
        if refine is not None:
            refined = refine_poses(files, work, refine, progress=progress)
            files, notes = replace(files, map_from_camera=refined.map_from_camera), refined.notes
            poses[usable] = refined.map_from_camera
        found = triangulate(files, work, progress=progress)
    image = np.array(usable)[found.observation_image]
    fields = {"observation_image": image, "observation_point": found.observation_point}
    return replace(source, map_from_camera=poses, xyz=found.xyz, **fields), notes


def _long_tracks(good: Observations, min_track_length: int, max_error_px: float, model: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image and point of each observation to use, each pair once. Raises `InputError`: none."""
    point, image = np.unique(np.stack((good.point, good.image)), axis=1)
    length = np.bincount(point, minlength=1)
    enough = length[point] >= min_track_length
    if not enough.any():
        raise InputError(
            f"{model} has no point that {min_track_length} images see within {max_error_px:g} pixels, the longest track has "
            f"{length.max()}: " + (f"give --min-track-length {length.max()}" if length.max() else "give a larger --max-error")
        )
    return image[enough], point[enough]

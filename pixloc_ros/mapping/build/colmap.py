# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps from COLMAP models and their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import InputError
from ...features import Extractor
from ...geometry import se3
from ...io.colmap import ColmapModel, read_colmap_model
from ...io.files import find_file
from ...io.work_folder import WorkFolder
from ..map_file import Map
from .building import BuildReport, PosedImages, Progress, build_map
from .observations import Observations, reprojection_errors


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
    """Map of a COLMAP model and its images.

    Args:
        model: Folder of the model.
        images: Folder that its image names are relative to. Images that are missing are left out and reported.
        extractor: Makes the features.
        min_track_length: Points seen by fewer images are left out.
        max_error_px: Single observations that lie further from where their point projects are left out.
        working_side: As of `build_map`.
        name: The map's, the model's folder by default.
        progress: As of `build_map`.
        work: As of `build_map`.

    Raises:
        InputError: As `read_colmap_model` and `build_map`, or no point is left.
    """
    reconstruction, images = read_colmap_model(model), Path(images)
    if not images.is_dir():
        raise InputError(f"no folder {images}: give the folder that the model's image names are relative to")
    cameras = [reconstruction.cameras[camera] for camera in reconstruction.camera_ids.tolist()]
    image, point = _good_observations(reconstruction, cameras, min_track_length, max_error_px)
    if len(point) == 0:
        raise InputError(
            f"{model} has no point that {min_track_length} images see within {max_error_px:g} pixels: "
            "lower the least track length or check the reconstruction"
        )
    source = PosedImages(
        name=name or Path(model).resolve().name,
        paths=[find_file(images, image_name) for image_name in reconstruction.names],
        names=reconstruction.names,
        cameras=cameras,
        map_from_camera=se3.inverse(reconstruction.camera_from_map),
        stamp_ns=np.full(len(cameras), -1, np.int64),
        xyz=reconstruction.xyz,
        observation_image=image,
        observation_point=point,
    )
    return build_map(source, extractor, working_side, progress, work)


def _good_observations(
    model: ColmapModel, cameras: list, min_track_length: int, max_error_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image and point of each observation to use, each pair once."""
    seen = Observations(model.observation_image, model.observation_point, model.observation_px)
    good = seen.only(reprojection_errors(model.xyz, cameras, model.camera_from_map, seen) <= max_error_px)
    point, image = np.unique(np.stack((good.point, good.image)), axis=1)
    enough = np.bincount(point, minlength=len(model.xyz))[point] >= min_track_length
    return image[enough], point[enough]

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Extended CMU Seasons (Sattler et al., CVPR 2018; Badino et al., 2011).

`intrinsics.txt`, a line per camera, `c0 OPENCV WIDTH HEIGHT PARAMS...`; in `sliceN/`: `database/` and `sparse/` (COLMAP), the
reference condition's images and model; `query/`, images of other conditions; `test-images-sliceN.txt`, or in training slices
`camera-poses/*.txt`, the poses of about half of them, `NAME qw qx qy qz cx cy cz`: the rotation of camera_from_map and the
camera's CENTRE. `sfm_superpoint+superglue/` (hloc's model) goes first where it is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import InputError
from ..geometry.cameras import Camera
from ..io.camera_files import read_cameras, read_names
from . import image_set
from .image_set import ImageSet
from .recording import need_folder

_MODELS = ("sfm_superpoint+superglue/model", "sfm_superpoint+superglue", "sparse")


def open_cmu(slice_: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """A slice; training slices come with the truth of their queries. Raises `InputError` where files are missing or malformed."""
    slice_ = need_folder(slice_, "a slice of Extended CMU Seasons, with database, query and sparse")
    name, images, truth = slice_.resolve().name, slice_ / "query", {}
    listed, lists = slice_ / f"test-images-{name}.txt", image_set.query_lists(slice_, queries)
    if lists:
        asked = image_set.read_query_lists(lists, images)
    elif listed.is_file():
        asked = image_set.queries_of(cmu_cameras(slice_, read_names(listed)), images)
    else:
        truth = cmu_poses(slice_)
        if not truth:
            raise InputError(f"{slice_} has neither {listed.name} nor camera-poses of images in query/: unpack the whole slice")
        asked = image_set.queries_of(cmu_cameras(slice_, truth), images)
    source = image_set.model_source(slice_, slice_ / "database", asked, name, model, _MODELS)
    files = image_set.existing(source.model, pairs, queries)
    return ImageSet("cmu", name, images, asked, source, truth, image_set.read_pairs(pairs), files)


def cmu_poses(slice_: Path) -> dict[str, torch.Tensor]:
    """camera_from_map [4, 4] of the images in query/, by name; the lists cover images that are kept back as well. Raises
    `InputError`."""
    poses: dict[str, torch.Tensor] = {}
    for path in sorted((slice_ / "camera-poses").glob("*.txt")):
        poses |= image_set.read_centred_poses(path, "Extended CMU Seasons comes with it")
    return {name: pose for name, pose in poses.items() if (slice_ / "query" / name).is_file()}


def cmu_cameras(slice_: Path, names: Iterable[str]) -> dict[str, Camera]:
    """Cameras by image. Names are like img_00119_c1_1303398474779487us.jpg: their third part is the camera's. Raises
    `InputError`."""
    path = slice_.parent / "intrinsics.txt"
    intrinsics, cameras = read_cameras(path), {}
    for name in names:
        kind = (name.split("_") + ["", "", ""])[2]
        if kind not in intrinsics:
            raise InputError(f"{path} has no camera '{kind}' for image {name}: check the files")
        cameras[name] = intrinsics[kind]
    return cameras

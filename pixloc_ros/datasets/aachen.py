# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Aachen Day-Night, version 1.0 or 1.1 (Sattler et al., CVPR 2018), in the layout that hloc and PixLoc use.

`images_upright/` (or `images/images_upright/`) with `db/` and `query/`; `queries/*_time_queries_with_intrinsics.txt`;
`3D-models/aachen_v_1_1/` (COLMAP), or of version 1.0 `3D-models/aachen_cvpr2018_db.nvm` and `database_intrinsics.txt`.
`sfm_superpoint+superglue/` (hloc's model) goes first where it is there.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..io.camera_files import read_cameras
from . import image_set
from .image_set import ImageSet
from .recording import need_folder

_IMAGES = ("images_upright", "images/images_upright", "images")
_MODELS = ("sfm_superpoint+superglue", "3D-models/aachen_v_1_1")


def open_aachen(root: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """The whole set. Raises `InputError` where files are missing or malformed."""
    root = need_folder(root, "Aachen Day-Night, with images_upright, queries and 3D-models")
    images = next((root / folder for folder in _IMAGES if (root / folder).is_dir()), None)
    if images is None:
        raise InputError(f"{root} has none of {', '.join(_IMAGES)}: unpack images_upright/db and query there")
    lists = image_set.query_lists(root, queries)
    if not lists:
        raise InputError(f"{root} has no queries/*_queries_with_intrinsics.txt: unpack the set's queries, or give --queries")
    asked, intrinsics = image_set.read_query_lists(lists, images), root / "3D-models" / "database_intrinsics.txt"
    nvm = "3D-models/aachen_cvpr2018_db.nvm"
    source = image_set.model_source(root, images, asked, "aachen", model, _MODELS, nvm, lambda: read_cameras(intrinsics))
    files = image_set.existing(source.model, pairs, queries)
    return ImageSet("aachen", "aachen", images, asked, source, {}, image_set.read_pairs(pairs), files)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""RobotCar Seasons (Sattler et al., CVPR 2018; Maddern et al., IJRR 2017), in the layout that hloc and PixLoc use.

`images/CONDITION/{left,rear,right}/*.jpg`, reference images in `images/overcast-reference/`; `intrinsics/SIDE_intrinsics.txt`
(`fx 400.0`, ...); `3D-models/all-merged/all.nvm`, which names the images .png. `sfm_superpoint+superglue/` (hloc's model) and
lists `*queries_with_intrinsics.txt` go first where they are there.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..geometry.cameras import Camera
from ..io.images import load_image
from ..io.text import parse_numbers, read_rows
from . import image_set
from .image_set import ImageSet
from .recording import need_folder

_SIDES = ("left", "rear", "right")
_REFERENCE = "overcast-reference"


def open_robotcar(root: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """All conditions whose images are there. Raises `InputError` where files are missing or malformed."""
    root = need_folder(root, "RobotCar Seasons, with images, intrinsics and 3D-models")
    images = need_folder(root / "images", "RobotCar Seasons with its images unpacked")
    lists = image_set.query_lists(root, queries)
    sides = {} if lists else _cameras(root, images)
    if lists:
        asked = image_set.read_query_lists(lists, images)
    else:
        paths = sorted(path for side in sides for path in images.glob(f"*/{side}/*.jpg") if path.parts[-3] != _REFERENCE)
        if not paths:
            raise InputError(f"{images} has no CONDITION/rear/*.jpg: unpack the conditions to localize")
        asked = image_set.queries_of({path.relative_to(images).as_posix(): sides[path.parent.name] for path in paths}, images)
    folders, nvm = ("sfm_superpoint+superglue",), "3D-models/all-merged/all.nvm"
    source = image_set.model_source(root, images, asked, "robotcar", model, folders, nvm, lambda: sides or _cameras(root, images))
    files = image_set.existing(source.model, pairs, queries)
    return ImageSet("robotcar", "robotcar", images, asked, source, {}, image_set.read_pairs(pairs), files, folders=1)


def _cameras(root: Path, images: Path) -> dict[str, Camera]:
    """The cameras by side, of those that have images. Files hold lines `fx 400.0`, `fy`, `cx`, `cy`, in COLMAP's pixels."""
    cameras = {}
    for side in _SIDES:
        example = next(images.glob(f"*/{side}/*.jpg"), None)
        if example is None:
            continue
        path = root / "intrinsics" / f"{side}_intrinsics.txt"
        rows = {words[0]: (where, words[1:]) for where, words in read_rows(path, "RobotCar Seasons has it")}
        values = [parse_numbers(*rows.get(key, ("", []))) for key in ("fx", "fy", "cx", "cy")]
        if any(len(value) != 1 for value in values):
            raise InputError(f"{path} must have lines 'fx 400', 'fy ...', 'cx ...', 'cy ...': RobotCar Seasons has it")
        height, width = load_image(example).shape[:2]
        cameras[side] = Camera.from_colmap("PINHOLE", width, height, [value for (value,) in values])
    return cameras

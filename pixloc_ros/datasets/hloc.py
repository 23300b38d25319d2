# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The sets of the visual-localization benchmark (Sattler et al., CVPR 2018) in the layouts that hloc and PixLoc use.

- Aachen Day-Night: `images_upright/` (or `images/images_upright/`) with `db/` and `query/`;
  `queries/*_time_queries_with_intrinsics.txt`; `3D-models/aachen_v_1_1/` (COLMAP), or of version 1.0
  `3D-models/aachen_cvpr2018_db.nvm` and `database_intrinsics.txt`.
- Extended CMU Seasons, `sliceN/`: `database/`, `query/`, `sparse/` (COLMAP), `test-images-sliceN.txt`, or `camera-poses/` with
  the truth of training slices; `intrinsics.txt` beside the slice.
- RobotCar Seasons: `images/CONDITION/{left,rear,right}/*.jpg`, reference images in `images/overcast-reference/`;
  `intrinsics/SIDE_intrinsics.txt` (`fx 400.0`, ...); `3D-models/all-merged/all.nvm`, which names the images .png.

Everywhere `sfm_superpoint+superglue/` (hloc's model) goes first where it is there, and lists `*queries_with_intrinsics.txt` go
before what the set's own files say. The benchmark wants lines of a file name and a pose, for RobotCar with the camera's folder
before the name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..evaluation.localize import Query
from ..geometry.cameras import Camera
from ..io.camera_files import read_cameras
from ..io.images import load_image
from ..training.public_data import cmu_intrinsics, cmu_poses
from .image_set import (
    ImageSet,
    MapBuilder,
    base_name,
    camera_and_base_name,
    colmap_builder,
    nvm_builder,
    queries_of,
    read_pairs,
    read_query_lists,
)
from .nvm import read_nvm
from .recording import need_folder

_SIDES = ("left", "rear", "right")
_REFERENCE = "overcast-reference"


def open_aachen(root: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """Aachen Day-Night, version 1.0 or 1.1. Raises InputError where files are missing or malformed."""
    root = need_folder(root, "Aachen Day-Night, with images_upright, queries and 3D-models")
    images = _first(root, ("images_upright", "images/images_upright", "images"), "images_upright/db and query")
    asked = read_query_lists([queries] if queries else _lists(root), images)
    build, made_from = _builder(
        root,
        images,
        asked,
        "aachen",
        model,
        ("sfm_superpoint+superglue", "3D-models/aachen_v_1_1"),
        "3D-models/aachen_cvpr2018_db.nvm",
        lambda: read_cameras(root / "3D-models" / "database_intrinsics.txt"),
    )
    return ImageSet(
        "aachen",
        "aachen",
        build,
        images,
        asked,
        base_name,
        f"the model {made_from}",
        {},
        read_pairs(pairs) if pairs else {},
        _files(made_from, pairs, queries),
    )


def open_cmu(slice_: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """A slice of Extended CMU Seasons; training slices come with the truth of their queries. Raises InputError where files are
    missing or malformed."""
    slice_ = need_folder(slice_, "a slice of Extended CMU Seasons, with database, query and sparse")
    name = slice_.resolve().name
    images, truth = slice_ / "query", {}
    listed = slice_ / f"test-images-{name}.txt"
    lists = [queries] if queries else _lists(slice_, required=False)
    if lists:
        asked = read_query_lists(lists, images)
    elif listed.is_file():
        asked = queries_of(_cmu_cameras(slice_, listed.read_text(encoding="utf-8").split(), listed), images)
    else:
        files = sorted((slice_ / "camera-poses").glob("*.txt"))
        truth = {image: pose for path in files for _, image, pose in cmu_poses(path) if (images / image).is_file()}
        if not truth:
            raise InputError(f"{slice_} has neither {listed.name} nor camera-poses of images in query/: unpack the whole slice")
        asked = queries_of(_cmu_cameras(slice_, list(truth), slice_ / "camera-poses"), images)
    build, made_from = _builder(
        slice_, slice_ / "database", asked, name, model, ("sfm_superpoint+superglue/model", "sfm_superpoint+superglue", "sparse")
    )
    return ImageSet(
        "cmu",
        name,
        build,
        images,
        asked,
        base_name,
        f"the model {made_from}",
        truth,
        read_pairs(pairs) if pairs else {},
        _files(made_from, pairs, queries),
    )


def open_robotcar(root: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """RobotCar Seasons, all conditions whose images are there. Raises InputError where files are missing or malformed."""
    root = need_folder(root, "RobotCar Seasons, with images, intrinsics and 3D-models")
    images = need_folder(root / "images", "RobotCar Seasons with its images unpacked")
    lists = [queries] if queries else _lists(root, required=False)
    sides = {} if lists else _robotcar_cameras(root, images)
    if lists:
        asked = read_query_lists(lists, images)
    else:
        paths = sorted(path for side in sides for path in images.glob(f"*/{side}/*.jpg") if path.parts[-3] != _REFERENCE)
        if not paths:
            raise InputError(f"{images} has no CONDITION/rear/*.jpg: unpack the conditions to localize")
        asked = queries_of({path.relative_to(images).as_posix(): sides[path.parent.name] for path in paths}, images)
    build, made_from = _builder(
        root,
        images,
        asked,
        "robotcar",
        model,
        ("sfm_superpoint+superglue",),
        "3D-models/all-merged/all.nvm",
        lambda: sides or _robotcar_cameras(root, images),
    )
    return ImageSet(
        "robotcar",
        "robotcar",
        build,
        images,
        asked,
        camera_and_base_name,
        f"the model {made_from}",
        {},
        read_pairs(pairs) if pairs else {},
        _files(made_from, pairs, queries),
    )


def _builder(
    root: Path,
    images: Path,
    asked: list[Query],
    name: str,
    model: Path | None,
    folders: tuple[str, ...],
    nvm: str | None = None,
    cameras: Callable[[], dict[str, Camera]] = dict,
) -> tuple[MapBuilder, Path]:
    """The map of the COLMAP model given, or of the first that is there; else of VisualSFM's. And which it is."""
    model = model or next(
        (root / folder for folder in folders for suffix in (".bin", ".txt") if (root / folder / f"images{suffix}").is_file()),
        None,
    )
    if model is not None:
        return colmap_builder(model, images, asked, name), model
    if nvm is not None and (root / nvm).is_file():
        return _nvm_map(root / nvm, images, cameras(), name), root / nvm
    raise InputError(f"{root} has no model ({', '.join((*folders, *([nvm] if nvm else [])))}): give --model")


def _nvm_map(path: Path, images: Path, cameras: dict[str, Camera], name: str) -> MapBuilder:
    """Map of the images that are there. cameras: by image, or by the name of the folder that an image lies in."""
    nvm = read_nvm(path)
    chosen = {}
    for k, image in enumerate(nvm.names):
        file = next((file for file in (image, str(PurePosixPath(image).with_suffix(".jpg"))) if (images / file).is_file()), None)
        camera = cameras.get(image) or cameras.get(PurePosixPath(image).parent.name)
        if file is not None and camera is not None:
            chosen[k] = images / file, file, camera
    if not chosen:
        raise InputError(
            f"no image of {path} is in {images} with known intrinsics, for example {nvm.names[0]}: unpack the reference images"
        )
    return nvm_builder(nvm, chosen, name)


def _first(root: Path, folders: tuple[str, ...], what: str) -> Path:
    found = next((root / folder for folder in folders if (root / folder).is_dir()), None)
    if found is None:
        raise InputError(f"{root} has none of {', '.join(folders)}: unpack {what} there")
    return found


def _lists(root: Path, required: bool = True) -> list[Path]:
    for folder in (root / "queries", root):
        found = sorted(folder.glob("*queries_with_intrinsics.txt"))
        if found:
            return found
    if required:
        raise InputError(f"{root} has no queries/*_queries_with_intrinsics.txt: unpack the set's queries, or give --queries")
    return []


def _files(*paths: Path | None) -> tuple[Path, ...]:
    return tuple(path for path in paths if path is not None)


def _cmu_cameras(slice_: Path, names: list[str], where: Path) -> dict[str, Camera]:
    """Names are like img_00119_c1_1303398474779487us.jpg: their third part is the camera's."""
    intrinsics = cmu_intrinsics(slice_.parent / "intrinsics.txt")
    cameras = {}
    for name in names:
        kind = (name.split("_") + ["", "", ""])[2]
        if kind not in intrinsics:
            raise InputError(f"{where}: no camera '{kind}' in intrinsics.txt for image {name}: check the files")
        cameras[name] = intrinsics[kind]
    return cameras


def _robotcar_cameras(root: Path, images: Path) -> dict[str, Camera]:
    """The cameras by side, of those that have images. Files hold lines `fx 400.0`, `fy`, `cx`, `cy`, in COLMAP's pixels."""
    cameras = {}
    for side in _SIDES:
        example = next(images.glob(f"*/{side}/*.jpg"), None)
        if example is None:
            continue
        path = root / "intrinsics" / f"{side}_intrinsics.txt"
        try:
            fx, fy, cx, cy = (float(line.split()[1]) for line in path.read_text(encoding="utf-8").splitlines()[:4])
        except (OSError, ValueError, IndexError, UnicodeDecodeError):
            raise InputError(f"{path} must have lines 'fx 400', 'fy ...', 'cx ...', 'cy ...': RobotCar Seasons has it") from None
        height, width = load_image(example).shape[:2]
        cameras[side] = Camera.from_colmap("PINHOLE", width, height, [fx, fy, cx, cy])
    return cameras

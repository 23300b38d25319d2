# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Benchmarks of single images, in the layouts that hloc and PixLoc use: Aachen, Cambridge Landmarks, CMU and RobotCar Seasons.

`sfm_superpoint+superglue/` (hloc's model) goes before a set's own model where it is there, and so do lists
`*queries_with_intrinsics.txt`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import torch

from ..errors import InputError
from ..geometry.cameras import Camera
from ..io.camera_files import read_cameras, read_names
from ..io.text import parse_numbers, read_rows
from . import image_set
from .image_set import ImageSet, MapSource
from .nvm import NvmModel, nvm_camera, read_nvm
from .recording import image_size, need_folder

_HLOC = "sfm_superpoint+superglue"


def open_aachen(root: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """Aachen Day-Night, version 1.0 or 1.1 (Sattler et al., CVPR 2018).

    `images_upright/` (or `images/images_upright/`) with `db/` and `query/`; `queries/*_time_queries_with_intrinsics.txt`;
    `3D-models/aachen_v_1_1/` (COLMAP), or of version 1.0 `3D-models/aachen_cvpr2018_db.nvm` and `database_intrinsics.txt`.

    Raises `InputError` where files are missing or malformed.
    """
    root = need_folder(root, "Aachen Day-Night, with images_upright, queries and 3D-models")
    folders = "images_upright", "images/images_upright", "images"
    images = next((root / folder for folder in folders if (root / folder).is_dir()), None)
    if images is None:
        raise InputError(f"{root} has none of {', '.join(folders)}: unpack images_upright/db and query there")
    lists = image_set.query_lists(root, queries)
    if not lists:
        raise InputError(f"{root} has no queries/*_queries_with_intrinsics.txt: unpack the set's queries, or give --queries")
    asked, intrinsics = image_set.read_query_lists(lists, images), root / "3D-models" / "database_intrinsics.txt"
    nvm = "3D-models/aachen_cvpr2018_db.nvm"
    source = image_set.model_source(
        root, images, asked, "aachen", model, (_HLOC, "3D-models/aachen_v_1_1"), nvm, lambda: read_cameras(intrinsics)
    )
    files = image_set.existing(source.model, pairs, queries)
    return ImageSet("aachen", "aachen", images, asked, source, {}, image_set.read_pairs(pairs), files)


def open_cambridge(scene: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """A scene of Cambridge Landmarks (Kendall et al., ICCV 2015).

    A folder per scene: `seq1/frame00001.png`; `dataset_train.txt`, `dataset_test.txt`: three lines of heading, then
    `file X Y Z W P Q R`, the camera's CENTRE and the quaternion (w first) of camera_from_map, as VisualSFM has them;
    `reconstruction.nvm`, VisualSFM's model of training and test images together, which names the images .jpg and holds their
    focal lengths.

    The map is made of VisualSFM's points that the training images see, or of a COLMAP model in the same frame.

    Args:
        scene: The folder.
        model: A COLMAP model.
        pairs: Retrieval results.
        queries: A list with intrinsics, instead of VisualSFM's.

    Raises:
        InputError: Files are missing or malformed.
    """
    scene = need_folder(scene, "a scene of Cambridge Landmarks, with dataset_train.txt and seq1")
    name, path = scene.resolve().name, scene / "reconstruction.nvm"
    train, truth = (_cambridge_poses(scene / f"dataset_{part}.txt") for part in ("train", "test"))
    if model is None or queries is None:
        nvm = read_nvm(path)
        cameras = _cambridge_cameras(scene, nvm, {*train, *truth})
    if queries is not None:
        asked = image_set.read_query_lists([queries], scene)
        unknown = next((query.name for query in asked if query.name not in truth), None)
        if unknown:
            raise InputError(f"{queries} names {unknown}, which {scene / 'dataset_test.txt'} does not: use lists of one scene")
    else:
        lacking = [image for image in truth if image not in cameras]
        if lacking:
            count = f"{path} lacks {len(lacking)} test images, the first is {lacking[0]}"
            raise InputError(f"{count}: give --queries with their intrinsics")
        asked = image_set.queries_of({image: cameras[image][1] for image in truth}, scene)
    if model is not None:
        source = image_set.colmap_source(model, scene, asked, name)
    else:
        there = [image for image in train if image in cameras and (scene / image).is_file()]
        chosen = {cameras[image][0]: (scene / image, image, cameras[image][1]) for image in there}
        made_from = f"reconstruction.nvm, the {len(chosen)} training images and the points that two of them see"
        source = MapSource(image_set.nvm_builder(nvm, chosen, name), made_from, path)
    files = image_set.existing(scene / "dataset_train.txt", scene / "dataset_test.txt", path, model, pairs, queries)
    return ImageSet("cambridge", name, scene, asked, source, truth, image_set.read_pairs(pairs), files, folders=1)


def _cambridge_poses(path: Path) -> dict[str, torch.Tensor]:
    poses = image_set.read_centred_poses(path, "every scene of Cambridge Landmarks has it", centre_first=True, skip=3)
    if not poses:
        raise InputError(f"{path} holds no pose after its three lines of heading: unpack the scene again")
    return poses


def _cambridge_cameras(scene: Path, nvm: NvmModel, names: set[str]) -> dict[str, tuple[int, Camera]]:
    """Index in the model and camera of the images of these names. Images of one folder have one size."""
    by_stem = {PurePosixPath(name).with_suffix(""): name for name in names}
    sizes: dict[str, tuple[int, int]] = {}
    cameras = {}
    for k, name in enumerate(nvm.names):
        image = by_stem.get(PurePosixPath(name).with_suffix(""))
        if image is None:
            continue
        folder = image.rpartition("/")[0]
        if folder not in sizes:
            files = [scene / name for name in sorted(names) if name.startswith(f"{folder}/") and (scene / name).is_file()]
            if not files:
                raise InputError(f"no image of {scene / folder} is there: unpack the whole scene")
            sizes[folder] = image_size(files)
        cameras[image] = k, nvm_camera(float(nvm.focal_px[k]), float(nvm.radial[k]), *sizes[folder])
    if not cameras:
        raise InputError(f"no image of {scene / 'reconstruction.nvm'} is in the lists of {scene}: they are of different scenes")
    return cameras


def open_cmu(slice_: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """A slice of Extended CMU Seasons (Sattler et al., CVPR 2018; Badino et al., 2011).

    `intrinsics.txt`, a line per camera, `c0 OPENCV WIDTH HEIGHT PARAMS...`; in `sliceN/`: `database/` and `sparse/` (COLMAP), the
    reference condition's images and model; `query/`, images of other conditions; `test-images-sliceN.txt`, or in training slices
    `camera-poses/*.txt`, the poses of about half of them, `NAME qw qx qy qz cx cy cz`: the rotation of camera_from_map and the
    camera's CENTRE.

    Training slices come with the truth of their queries. Raises `InputError` where files are missing or malformed.
    """
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
    source = image_set.model_source(slice_, slice_ / "database", asked, name, model, (f"{_HLOC}/model", _HLOC, "sparse"))
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


def open_robotcar(root: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """RobotCar Seasons (Sattler et al., CVPR 2018; Maddern et al., IJRR 2017).

    `images/CONDITION/{left,rear,right}/*.jpg`, reference images in `images/overcast-reference/`; `intrinsics/SIDE_intrinsics.txt`
    (`fx 400.0`, ...); `3D-models/all-merged/all.nvm`, which names the images .png.

    All conditions whose images are there. Raises `InputError` where files are missing or malformed.
    """
    root = need_folder(root, "RobotCar Seasons, with images, intrinsics and 3D-models")
    images = need_folder(root / "images", "RobotCar Seasons with its images unpacked")
    lists = image_set.query_lists(root, queries)
    sides = {} if lists else _robotcar_cameras(root, images)
    if lists:
        asked = image_set.read_query_lists(lists, images)
    else:
        paths = sorted(
            path for side in sides for path in images.glob(f"*/{side}/*.jpg") if path.parts[-3] != "overcast-reference"
        )
        if not paths:
            raise InputError(f"{images} has no CONDITION/rear/*.jpg: unpack the conditions to localize")
        asked = image_set.queries_of({path.relative_to(images).as_posix(): sides[path.parent.name] for path in paths}, images)
    nvm = "3D-models/all-merged/all.nvm"
    source = image_set.model_source(
        root, images, asked, "robotcar", model, (_HLOC,), nvm, lambda: sides or _robotcar_cameras(root, images)
    )
    files = image_set.existing(source.model, pairs, queries)
    return ImageSet("robotcar", "robotcar", images, asked, source, {}, image_set.read_pairs(pairs), files, folders=1)


def _robotcar_cameras(root: Path, images: Path) -> dict[str, Camera]:
    """The cameras by side, of those that have images. Files hold lines `fx 400.0`, `fy`, `cx`, `cy`, in COLMAP's pixels."""
    cameras = {}
    for side in ("left", "rear", "right"):
        files = sorted(images.glob(f"*/{side}/*.jpg"))
        if not files:
            continue
        path = root / "intrinsics" / f"{side}_intrinsics.txt"
        rows = {words[0]: (where, words[1:]) for where, words in read_rows(path, "RobotCar Seasons has it")}
        values = [parse_numbers(*rows.get(key, ("", []))) for key in ("fx", "fy", "cx", "cy")]
        if any(len(value) != 1 for value in values):
            raise InputError(f"{path} must have lines 'fx 400', 'fy ...', 'cx ...', 'cy ...': RobotCar Seasons has it")
        cameras[side] = Camera.from_colmap("PINHOLE", *image_size(files), [value for (value,) in values])
    return cameras

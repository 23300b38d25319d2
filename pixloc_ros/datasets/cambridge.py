# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Cambridge Landmarks (Kendall et al., ICCV 2015).

A folder per scene: `seq1/frame00001.png`; `dataset_train.txt`, `dataset_test.txt`: three lines of heading, then `file X Y Z W P Q
R`, the camera's CENTRE and the quaternion (w first) of camera_from_map, as VisualSFM has them; `reconstruction.nvm`, VisualSFM's
model of training and test images together, which names the images .jpg and holds their focal lengths.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from ..errors import InputError
from ..geometry.cameras import Camera
from ..io.images import load_image
from . import image_set
from .image_set import ImageSet, MapSource
from .nvm import NvmModel, nvm_camera, read_nvm
from .recording import need_folder


def open_cambridge(scene: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """A scene. The map is made of VisualSFM's points that the training images see, or of a COLMAP model in the same frame.

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
    train, truth = (_poses(scene / f"dataset_{part}.txt") for part in ("train", "test"))
    if model is None or queries is None:
        nvm = read_nvm(path)
        cameras = _cameras(scene, nvm, {*train, *truth})
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


def _poses(path: Path) -> dict[str, torch.Tensor]:
    poses = image_set.read_centred_poses(path, "every scene of Cambridge Landmarks has it", centre_first=True, skip=3)
    if not poses:
        raise InputError(f"{path} holds no pose after its three lines of heading: unpack the scene again")
    return poses


def _cameras(scene: Path, nvm: NvmModel, names: set[str]) -> dict[str, tuple[int, Camera]]:
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
            files = (scene / name for name in sorted(names) if name.startswith(f"{folder}/"))
            example = next((file for file in files if file.is_file()), None)
            if example is None:
                raise InputError(f"no image of {scene / folder} is there: unpack the whole scene")
            sizes[folder] = load_image(example).shape[1::-1]
        cameras[image] = k, nvm_camera(float(nvm.focal_px[k]), float(nvm.radial[k]), *sizes[folder])
    if not cameras:
        raise InputError(f"no image of {scene / 'reconstruction.nvm'} is in the lists of {scene}: they are of different scenes")
    return cameras

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
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.images import load_image
from .image_set import ImageSet, camera_and_base_name, colmap_builder, nvm_builder, queries_of, read_pairs, read_query_lists
from .nvm import NvmModel, nvm_camera, read_nvm
from .recording import need_folder


def open_cambridge(scene: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None) -> ImageSet:
    """A scene. The map is made of VisualSFM's points that the training images see, or of a COLMAP model in the same frame.

    pairs: retrieval results. queries: a list with intrinsics, instead of VisualSFM's. Raises InputError where files are missing
    or malformed.
    """
    scene = need_folder(scene, "a scene of Cambridge Landmarks, with dataset_train.txt and seq1")
    name = scene.resolve().name
    train, truth = read_cambridge_poses(scene / "dataset_train.txt"), read_cambridge_poses(scene / "dataset_test.txt")
    nvm = None
    if model is None or queries is None:
        nvm = read_nvm(scene / "reconstruction.nvm")
        cameras = _cameras(scene, nvm, set(train) | set(truth))
    if queries is not None:
        asked = read_query_lists([queries], scene)
        unknown = next((query.name for query in asked if query.name not in truth), None)
        if unknown:
            raise InputError(f"{queries} names {unknown}, which {scene / 'dataset_test.txt'} does not")
    else:
        lacking = [image for image in truth if image not in cameras]
        if lacking:
            raise InputError(
                f"{scene / 'reconstruction.nvm'} lacks {len(lacking)} test images, the first is {lacking[0]}: give "
                "--queries with their intrinsics"
            )
        asked = queries_of({image: cameras[image][1] for image in truth}, scene)
    if model is not None:
        build, made_from = colmap_builder(model, scene, asked, name), f"the COLMAP model {model}"
    else:
        chosen = {
            cameras[image][0]: (scene / image, image, cameras[image][1])
            for image in train
            if image in cameras and (scene / image).is_file()
        }
        build = nvm_builder(nvm, chosen, name)
        made_from = f"reconstruction.nvm, the {len(chosen)} training images and the points that two of them see"
    files = [scene / "dataset_train.txt", scene / "dataset_test.txt", scene / "reconstruction.nvm", model, pairs, queries]
    return ImageSet(
        "cambridge",
        name,
        build,
        scene,
        asked,
        camera_and_base_name,
        made_from,
        truth,
        read_pairs(pairs) if pairs else {},
        tuple(path for path in files if path is not None),
    )


def read_cambridge_poses(path: Path) -> dict[str, torch.Tensor]:
    """camera_from_map [4, 4] by image. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {path} ({getattr(error, 'strerror', None) or 'it is no text file'}): every scene of "
            "Cambridge Landmarks has it"
        ) from None
    poses = {}
    for number, line in enumerate(lines[3:], 4):
        words = line.split()
        if not words:
            continue
        try:
            values = torch.tensor([float(word) for word in words[1:]], dtype=torch.float64)
        except ValueError:
            values = torch.empty(0)
        if len(values) != 7 or not bool(torch.isfinite(values).all()) or not 0.9 < float(values[3:].norm()) < 1.1:
            raise InputError(f"{path}:{number} is no pose: lines are 'file X Y Z W P Q R' with a unit quaternion")
        rotation = se3.rotation_from_quaternion(values[[4, 5, 6, 3]] / values[3:].norm())
        poses[words[0]] = se3.from_rotation_translation(rotation, -rotation @ values[:3])
    if not poses:
        raise InputError(f"{path} holds no pose after its three lines of heading")
    return poses


def _cameras(scene: Path, nvm: NvmModel, names: set[str]) -> dict[str, tuple[int, Camera]]:
    """Index in the model and camera of the images of these names. Images of one folder have one size."""
    by_stem = {str(PurePosixPath(name).with_suffix("")): name for name in names}
    sizes: dict[str, tuple[int, int]] = {}
    cameras = {}
    for k, name in enumerate(nvm.names):
        image = by_stem.get(str(PurePosixPath(name).with_suffix("")))
        if image is None:
            continue
        folder = image.rpartition("/")[0]
        if folder not in sizes:
            example = next(
                (scene / name for name in sorted(names) if name.startswith(f"{folder}/") and (scene / name).is_file()), None
            )
            if example is None:
                raise InputError(f"no image of {scene / folder} is there: unpack the whole scene")
            sizes[folder] = load_image(example).shape[1::-1]
        cameras[image] = k, nvm_camera(float(nvm.focal_px[k]), float(nvm.radial[k]), *sizes[folder])
    if not cameras:
        raise InputError(f"no image of {scene / 'reconstruction.nvm'} is in the lists of {scene}: they are of different scenes")
    return cameras

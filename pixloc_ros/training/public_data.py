# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs out of recorded drives and of public data sets in the layout that they come in.

MegaDepth (Li and Snavely, CVPR 2018): a folder per scene with `images/` and a COLMAP model, in `sparse/manhattan/N/` as in
MegaDepth_v1_SfM, or in `sparse/` as in Undistorted_SfM, which is what COLMAP's undistorter makes of it.

Extended CMU Seasons (Sattler et al., CVPR 2018): `intrinsics.txt`, a line per camera, `c0 OPENCV WIDTH HEIGHT PARAMS...`; in
`sliceN/`: `database/` and `sparse/`, the reference condition's images and model; `query/`, images of other conditions;
`camera-poses/*.txt`, the poses of about half of them, `NAME qw qx qy qz cx cy cz`: the rotation of camera_from_map and the
camera's CENTRE.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.colmap import read_colmap_model
from ..io.work_folder import WorkFolder
from ..mapping.build.posed_bag import PosedBag, PosedBagOptions, bag_identity
from ..mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames
from .pairs import BadSample, Pair, View
from .scenes import ColmapPairs, SharedPointPairs

_OPEN_SCENES = 8
_LONGEST_BASELINE, _LARGEST_TURN_RAD = 7.0, float(np.radians(30.0))
"""Between a database image and a query of CMU Seasons, metres (PixLoc's) and radians."""


class BagPairs(SharedPointPairs):
    """Pairs of a rosbag with images and poses: keyframes and points as `pixloc map bag` finds them, kept in `work`.

    pose_topic: as `PosedBagOptions.poses`, empty to detect. Raises InputError as `PosedBag`, `points_of_posed_frames` and
    `ScenePairs` do.
    """

    def __init__(self, bag: Path, pose_topic: str, work: Path, view: View, held_out: bool) -> None:
        options = PosedBagOptions(poses=pose_topic or None)
        with PosedBag(bag, options) as frames:
            key = {"bag": bag_identity(bag), "poses": pose_topic, "options": PosedMapOptions().to_json()}
            drive = points_of_posed_frames(frames, WorkFolder(work, key)).source
        super().__init__(
            bag,
            drive.paths,
            drive.cameras,
            se3.inverse(drive.map_from_camera),
            drive.xyz,
            drive.observation_image,
            drive.observation_point,
            view,
            held_out,
        )
        self.name = bag.stem


class MegaDepthPairs:
    """Pairs of MegaDepth; a scene is opened when it is first drawn, the latest few stay open.

    scenes: names of folders, all that hold a model by default. Scenes without two images that share enough count as bad
    samples. Raises InputError where the folder holds no scene, or one that is named is missing.
    """

    def __init__(self, folder: Path, scenes: tuple[str, ...], view: View, held_out: bool) -> None:
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: give MegaDepth_v1_SfM or Undistorted_SfM")
        names = scenes or sorted(path.name for path in folder.iterdir() if path.is_dir())
        self._models = [(folder / name, model) for name in names for model in _megadepth_models(folder / name)]
        missing = [name for name in scenes if not _megadepth_models(folder / name)]
        if missing or not self._models:
            raise InputError(
                f"{folder} holds no scene {missing[0] if missing else 'at all'} with images and sparse: give "
                "MegaDepth_v1_SfM or Undistorted_SfM and names of its folders"
            )
        self._view, self._held_out = view, held_out
        self._open: OrderedDict[int, ColmapPairs | None] = OrderedDict()

    def draw(self, rng: np.random.Generator) -> Pair:
        """Raises BadSample where the scene drawn gives nothing, and as `ScenePairs.draw` does."""
        number = int(rng.integers(len(self._models)))
        if number not in self._open:
            scene, model = self._models[number]
            try:
                self._open[number] = ColmapPairs(model, scene / "images", self._view, self._held_out)
                self._open[number].name = scene.name
            except InputError:
                self._open[number] = None
            if len(self._open) > _OPEN_SCENES:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        pairs = self._open[number]
        if pairs is None:
            raise BadSample("MegaDepth scene without usable pairs")
        return pairs.draw(rng)


def _megadepth_models(scene: Path) -> list[Path]:
    """The folders of a scene's COLMAP models."""
    candidates = [scene / "sparse", *sorted((scene / "sparse" / "manhattan").glob("*"))]
    return [path for path in candidates if any((path / f"images{suffix}").is_file() for suffix in (".bin", ".txt"))]


class CmuPairs(SharedPointPairs):
    """Pairs of a slice of Extended CMU Seasons: two database images, or a database image and a query of another condition.

    slice_: the folder `sliceN`, `intrinsics.txt` beside it. Raises InputError where files are missing or malformed, and as
    `read_colmap_model` and `ScenePairs` do.
    """

    def __init__(self, slice_: Path, view: View, held_out: bool) -> None:
        database = read_colmap_model(slice_ / "sparse")
        intrinsics = cmu_intrinsics(slice_.parent / "intrinsics.txt")
        names, poses, cameras = [], [], []
        for path in sorted((slice_ / "camera-poses").glob("*.txt")):
            for where, name, camera_from_map in cmu_poses(path):
                kind = (name.split("_") + ["", "", ""])[2]
                if kind not in intrinsics:
                    raise InputError(f"{where}: no camera '{kind}' in intrinsics.txt for image {name}: check the file")
                if (slice_ / "query" / name).is_file():  # the list covers images that are kept back as well
                    names.append(name)
                    poses.append(camera_from_map)
                    cameras.append(intrinsics[kind])
        if not names:
            raise InputError(f"{slice_} has no query image with a pose in camera-poses/: unpack the whole slice")
        camera_from_map = torch.cat((database.camera_from_map, torch.stack(poses)))
        map_from_camera = se3.inverse(camera_from_map)
        distance = torch.cdist(map_from_camera[:, :3, 3], map_from_camera[:, :3, 3])
        trace = torch.einsum("aij,bij->ab", map_from_camera[:, :3, :3], map_from_camera[:, :3, :3])
        angle = torch.arccos(((trace - 1) / 2).clamp(-1, 1))
        near = ((distance < _LONGEST_BASELINE) & (angle < _LARGEST_TURN_RAD)).numpy()
        near[:, : len(database.names)] = False  # database images are paired by the points they share
        super().__init__(
            slice_,
            [slice_ / "database" / n for n in database.names] + [slice_ / "query" / n for n in names],
            [database.cameras[k] for k in database.camera_ids.tolist()] + cameras,
            camera_from_map,
            database.xyz,
            database.observation_image,
            database.observation_point,
            view,
            held_out,
            near,
        )
        self.name = slice_.resolve().name


def cmu_intrinsics(path: Path) -> dict[str, Camera]:
    """The cameras of CMU Seasons by name (c0, c1). Raises InputError."""
    cameras = {}
    for where, words in _lines(path):
        try:
            cameras[words[0]] = Camera.parse_colmap_line(" ".join(words[1:]))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return cameras


def cmu_poses(path: Path) -> list[tuple[str, str, torch.Tensor]]:
    """(file:line, image name, camera_from_map [4, 4])."""
    poses = []
    for where, words in _lines(path):
        try:
            values = torch.tensor([float(word) for word in words[1:]], dtype=torch.float64)
        except ValueError:
            values = torch.empty(0)
        if len(values) != 7 or not bool(torch.isfinite(values).all()) or abs(float(values[:4].norm()) - 1) > 0.01:
            raise InputError(f"{where} is no pose: lines are NAME qw qx qy qz cx cy cz with a unit quaternion")
        rotation = se3.rotation_from_quaternion(values[[1, 2, 3, 0]] / values[:4].norm())
        poses.append((where, words[0], se3.from_rotation_translation(rotation, -rotation @ values[4:])))
    return poses


def _lines(path: Path) -> list[tuple[str, list[str]]]:
    """("file:line", words) of the lines that say something."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): Extended CMU Seasons comes with it") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file: Extended CMU Seasons comes with it, copy it again") from None
    lines = ((f"{path}:{number}", line.split("#", 1)[0].split()) for number, line in enumerate(text.splitlines(), 1))
    return [(where, words) for where, words in lines if words]

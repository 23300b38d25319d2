# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs out of recorded drives and of public data sets in the layout that they come in.

MegaDepth (Li and Snavely, CVPR 2018): a folder per scene with `images/` and a COLMAP model, in `sparse/manhattan/N/` as in
MegaDepth_v1_SfM, or in `sparse/` as in Undistorted_SfM, which is what COLMAP's undistorter makes of it.
Extended CMU Seasons: as `datasets.cmu` has it.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from ..datasets.cmu import cmu_cameras, cmu_poses
from ..errors import InputError
from ..geometry import se3
from ..io.colmap import read_colmap_model
from ..io.work_folder import WorkFolder
from ..mapping.build.posed_bag import PosedBag, PosedBagOptions, bag_identity
from ..mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames
from .pairs import BadSample, Pair, PairShape
from .scenes import ColmapPairs, SceneImages, SharedPointPairs, SharedPoints

_OPEN_SCENES = 8
_LONGEST_BASELINE, _LARGEST_TURN_RAD = 7.0, float(np.radians(30.0))
"""Between a database image and a query of CMU Seasons, metres (PixLoc's) and radians."""


class BagPairs(SharedPointPairs):
    """Pairs of a rosbag with images and poses: keyframes and points as `pixloc map bag` finds them, kept in `work`.

    Args:
        bag: The recording.
        pose_topic: As `PosedBagOptions.poses`; empty to detect.
        work: Folder for the keyframes.
        view: What the network sees.
        held_out: As `ScenePairs` takes it.

    Raises:
        InputError: As `PosedBag`, `points_of_posed_frames` and `ScenePairs` do.
    """

    def __init__(self, bag: Path, pose_topic: str, work: Path, view: PairShape, held_out: bool) -> None:
        options = PosedBagOptions(poses=pose_topic or None)
        with PosedBag(bag, options) as frames:
            key = {"bag": bag_identity(bag), "poses": pose_topic, "options": PosedMapOptions().to_json()}
            drive = points_of_posed_frames(frames, WorkFolder(work, key)).source
        images = SceneImages(bag, drive.paths, drive.cameras, se3.inverse(drive.map_from_camera))
        points = SharedPoints(drive.xyz, drive.observation_image, drive.observation_point)
        super().__init__(images, points, view, held_out)
        self.name = bag.stem


class MegaDepthPairs:
    """Pairs of MegaDepth; a scene is opened when it is first drawn, the latest few stay open.

    Scenes without two images that share enough count as bad samples.

    Args:
        folder: MegaDepth_v1_SfM or Undistorted_SfM.
        scenes: Names of folders in it; all that hold a model by default.
        view: What the network sees.
        held_out: As `ScenePairs` takes it.

    Raises:
        InputError: The folder holds no scene, or one that is named is missing.
    """

    def __init__(self, folder: Path, scenes: tuple[str, ...], view: PairShape, held_out: bool) -> None:
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

    Args:
        slice_: The folder `sliceN`, with `intrinsics.txt` next to it.
        view: What the network sees.
        held_out: As `ScenePairs` takes it.

    Raises:
        InputError: Files are missing or malformed, and as `read_colmap_model` and `ScenePairs` do.
    """

    def __init__(self, slice_: Path, view: PairShape, held_out: bool) -> None:
        database = read_colmap_model(slice_ / "sparse")
        queries = cmu_poses(slice_)
        if not queries:
            raise InputError(f"{slice_} has no query image with a pose in camera-poses/: unpack the whole slice")
        camera_from_map = torch.cat((database.camera_from_map, torch.stack(list(queries.values()))))
        map_from_camera = se3.inverse(camera_from_map)
        distance = torch.cdist(map_from_camera[:, :3, 3], map_from_camera[:, :3, 3])
        trace = torch.einsum("aij,bij->ab", map_from_camera[:, :3, :3], map_from_camera[:, :3, :3])
        angle = torch.arccos(((trace - 1) / 2).clamp(-1, 1))
        near = ((distance < _LONGEST_BASELINE) & (angle < _LARGEST_TURN_RAD)).numpy()
        near[:, : len(database.names)] = False  # database images are paired by the points they share
        paths = [slice_ / "database" / n for n in database.names] + [slice_ / "query" / n for n in queries]
        cameras = [database.cameras[k] for k in database.camera_ids.tolist()] + list(cmu_cameras(slice_, queries).values())
        points = SharedPoints(database.xyz, database.observation_image, database.observation_point)
        super().__init__(SceneImages(slice_, paths, cameras, camera_from_map), points, view, held_out, near)
        self.name = slice_.resolve().name

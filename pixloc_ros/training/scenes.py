# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs out of posed images of real scenes: COLMAP models, RGB-D sequences, recorded drives and public data sets.

MegaDepth (Li and Snavely, CVPR 2018): a folder per scene with `images/` and a COLMAP model, in `sparse/manhattan/N/` as in
MegaDepth_v1_SfM, or in `sparse/` as in Undistorted_SfM, which is what COLMAP's undistorter makes of it.
Extended CMU Seasons: as `datasets.image_benchmarks` has it.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

from ..datasets.image_benchmarks import cmu_cameras, cmu_poses
from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.colmap import ColmapModel, read_colmap_model
from ..io.depth import EDGE_STEP, lift, without_edges
from ..io.files import find_file
from ..io.images import load_grey
from ..io.tum import load_depth, read_camera, read_rgbd_sequence
from ..io.work_folder import WorkFolder
from ..mapping.build.building import PosedImages
from ..mapping.build.posed_bag import PosedBag, PosedBagOptions, bag_identity
from ..mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames
from ..mapping.build.rgbd import find_depth_scale
from .pairs import BadSample, Pair, PairShape, fit_view, spread_corners

HELD_OUT_SHARE = 10
"""One image in this many is kept for validation."""

_LEAST_POINTS = 32
_LEAST_SHARED = 0.25
_LEAST_OVERLAP = 0.3  # of the reference's points, in the query
_LARGEST_TURN_RAD = np.radians(25.0)
_LARGEST_SHIFT = 0.4  # of the depth
_OPEN_SCENES = 8
_CMU_BASELINE, _CMU_TURN_RAD = 7.0, float(np.radians(30.0))
"""Between a database image and a query of CMU Seasons, metres (PixLoc's) and radians."""


class SceneImages(NamedTuple):
    """Posed images of one scene.

    Attributes:
        folder: Where they are from.
        name: Of the scene.
        paths: Of the images [K].
        cameras: [K].
        camera_from_map: float64 [K, 4, 4].
    """

    folder: Path
    name: str
    paths: list[Path]
    cameras: list[Camera]
    camera_from_map: torch.Tensor


class ScenePairs:
    """Draws pairs of images of one scene. Candidates are fixed at the start; points are found when a pair is drawn.

    Args:
        images: Of the scene.
        near: bool [K, K], which images (rows) may be references of which queries (columns).
        view: What the network sees.
        held_out: Draw only pairs whose query is kept for validation, else only those of which neither image is.

    Raises:
        InputError: No pair is left, or images are missing.
    """

    def __init__(self, images: SceneImages, near: np.ndarray, view: PairShape, held_out: bool) -> None:
        folder, self.name, paths, self.cameras, self.camera_from_map = images
        missing = [path for path in paths if not path.is_file()]
        if missing:
            count = f"{len(missing)} of {len(paths)} images are missing"
            raise InputError(f"{folder}: {count}, for example {missing[0]}: check the folder")
        self.paths, self.view = paths, view
        kept_back = np.array([zlib.crc32(path.name.encode()) % HELD_OUT_SHARE == 0 for path in paths])
        usable = near & ~np.eye(len(near), dtype=bool) & ~kept_back[:, None]
        usable &= (kept_back if held_out else ~kept_back)[None]
        self.candidates = np.argwhere(usable)
        if len(self.candidates) == 0:
            raise InputError(f"{folder}: no two images share enough to train on: remove it from the training configuration")

    def points(self, image: int, rng: np.random.Generator) -> torch.Tensor:
        """Points [n, 3], in its camera's frame, that an image sees."""
        raise NotImplementedError

    def hidden(self, image: int, xyz: torch.Tensor) -> torch.Tensor:
        """bool [n], which points [n, 3], in its camera's frame, an image is known not to show though they are in front of it."""
        return torch.zeros(len(xyz), dtype=torch.bool)

    def draw(self, rng: np.random.Generator) -> Pair:
        """Raises BadSample where the views cut out share too little, InputError where an image cannot be read."""
        a, b = (int(k) for k in self.candidates[rng.integers(len(self.candidates))])
        (reference, reference_camera), (query, query_camera) = (
            fit_view(load_grey(self.paths[k]), self.cameras[k], self.view, rng) for k in (a, b)
        )
        xyz = self.points(a, rng)
        pixels, valid = reference_camera.project(xyz)
        seen = torch.nonzero(valid & reference_camera.in_image(pixels))[:, 0]
        query_from_reference = self.camera_from_map[b] @ se3.inverse(self.camera_from_map[a])
        seen = seen[~self.hidden(b, se3.transform(query_from_reference, xyz[seen]))]
        if len(seen) < _LEAST_POINTS:
            raise BadSample("few points")
        xyz = xyz[seen[torch.from_numpy(rng.permutation(len(seen))[: self.view.points])]]
        pixels, valid = query_camera.project(se3.transform(query_from_reference, xyz))
        if int((valid & query_camera.in_image(pixels)).sum()) < _LEAST_OVERLAP * len(xyz):
            raise BadSample("little overlap")
        name = f"{self.name}/{self.paths[a].name}-{self.paths[b].name}"
        return Pair(reference, query, reference_camera, query_camera, xyz, query_from_reference, name)


class SharedPointPairs(ScenePairs):
    """Pairs of images that share at least a quarter of the reference's points.

    Args:
        images: Of the scene.
        points: That they see: `xyz` float64 [P, 3] in the map frame, `observation_image` and `observation_point` int64 [M].
        view: What the network sees.
        held_out: As `ScenePairs` takes it.
        near: More pairs than those, bool [K, K]; references among them must see points.

    Raises:
        InputError: As `ScenePairs` does.
    """

    def __init__(
        self,
        images: SceneImages,
        points: ColmapModel | PosedImages,
        view: PairShape,
        held_out: bool,
        near: np.ndarray | None = None,
    ):
        entries = points.observation_image, points.observation_point
        size = len(images.paths), len(points.xyz)
        self.sees = scipy.sparse.csr_matrix((np.ones(len(points.observation_point)), entries), size)
        self.sees.data[:] = 1  # a point may be observed twice in an image
        self.xyz = torch.from_numpy(points.xyz)
        shared = (self.sees @ self.sees.T).toarray()
        enough = shared >= np.maximum(_LEAST_POINTS, _LEAST_SHARED * shared.diagonal()[:, None])
        if near is not None:
            enough |= near & (shared.diagonal() >= _LEAST_POINTS)[:, None]
        super().__init__(images, enough, view, held_out)

    def points(self, image: int, rng: np.random.Generator) -> torch.Tensor:
        observed = torch.from_numpy(self.sees[[image]].indices.astype(np.int64))
        return se3.transform(self.camera_from_map[image], self.xyz[observed])


class ColmapPairs(SharedPointPairs):
    """Pairs of a COLMAP model. Raises InputError as `read_colmap_model` and `ScenePairs` do."""

    def __init__(self, model: Path, images: Path, view: PairShape, held_out: bool, name: str = "") -> None:
        scene = read_colmap_model(model)
        paths, name = [find_file(images, image) for image in scene.names], name or model.resolve().parent.name
        cameras = [scene.cameras[k] for k in scene.camera_ids.tolist()]
        super().__init__(SceneImages(model, name, paths, cameras, scene.camera_from_map), scene, view, held_out)


class RgbdPairs(ScenePairs):
    """Pairs of an RGB-D sequence (format: `io.tum`): frames near each other, points at corners with sound depth.

    Points that the query's depth contradicts, as something is before them or has moved, are left out.

    Args:
        sequence: The folder.
        view: What the network sees.
        held_out: As `ScenePairs` takes it.
        depth_scale: Units of its depth images per metre; 0 where images and poses tell it.
        apart_s: Least seconds between the two images: with it, pairs come from different drives of one sequence.

    Raises:
        InputError: As `read_rgbd_sequence`, `load_depth` and `ScenePairs` do.
    """

    def __init__(self, sequence: Path, view: PairShape, held_out: bool, depth_scale: float = 0.0, apart_s: float = 0.0) -> None:
        self.frames, self.camera = read_rgbd_sequence(sequence), read_camera(sequence)
        self.depth_scale = depth_scale or find_depth_scale(self.frames, self.camera)
        poses = torch.stack([frame.map_from_camera for frame in self.frames])
        some = [load_depth(frame, self.camera, self.depth_scale) for frame in self.frames[::10]]
        depth = float(np.median([np.median(image[image > 0]) for image in some if (image > 0).any()]))
        distance, angle = se3.pose_difference(poses[:, None], poses[None])
        near = ((distance < _LARGEST_SHIFT * depth) & (angle < _LARGEST_TURN_RAD)).numpy()
        seconds = np.array([frame.stamp_ns for frame in self.frames]) * 1e-9
        near &= np.abs(seconds[:, None] - seconds) >= apart_s
        paths, cameras = [frame.image for frame in self.frames], [self.camera] * len(self.frames)
        name = sequence.resolve().parent.name
        super().__init__(SceneImages(sequence, name, paths, cameras, se3.inverse(poses)), near, view, held_out)

    def points(self, image: int, rng: np.random.Generator) -> torch.Tensor:
        sound = without_edges(load_depth(self.frames[image], self.camera, self.depth_scale))
        pixels = spread_corners(load_grey(self.paths[image]), 4 * self.view.points, rng, (sound > 0).astype(np.uint8))
        column, row = pixels.round().astype(int).T
        return lift(self.camera, pixels, sound[row, column])

    def hidden(self, image: int, xyz: torch.Tensor) -> torch.Tensor:
        pixels, valid = self.camera.project(xyz)
        inside = valid & self.camera.in_image(pixels)
        column, row = pixels[inside].round().long().T
        depth = torch.from_numpy(load_depth(self.frames[image], self.camera, self.depth_scale))[row, column]
        z = xyz[inside, 2]
        hidden = torch.zeros(len(xyz), dtype=torch.bool)
        hidden[inside] = (depth > 0) & ((depth - z).abs() > EDGE_STEP * z)
        return hidden


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
        images = SceneImages(bag, bag.stem, drive.paths, drive.cameras, se3.inverse(drive.map_from_camera))
        super().__init__(images, drive, view, held_out)


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
                self._open[number] = ColmapPairs(model, scene / "images", self._view, self._held_out, scene.name)
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
        near = ((distance < _CMU_BASELINE) & (angle < _CMU_TURN_RAD)).numpy()
        near[:, : len(database.names)] = False  # database images are paired by the points they share
        paths = [slice_ / "database" / n for n in database.names] + [slice_ / "query" / n for n in queries]
        cameras = [database.cameras[k] for k in database.camera_ids.tolist()] + list(cmu_cameras(slice_, queries).values())
        images = SceneImages(slice_, slice_.resolve().name, paths, cameras, camera_from_map)
        super().__init__(images, database, view, held_out, near)

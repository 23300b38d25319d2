# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs out of posed images of real scenes: COLMAP models and RGB-D sequences."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.colmap import read_colmap_model
from ..io.depth import lift, without_edges
from ..io.files import find_file
from ..io.images import load_grey
from ..io.tum import load_depth, read_camera, read_rgbd_sequence
from ..mapping.build.rgbd import find_depth_scale
from .pairs import BadSample, Pair, PairShape, fit_view, spread_corners

HELD_OUT_SHARE = 10
"""One image in this many is kept for validation."""

_LEAST_POINTS = 32
_LEAST_SHARED = 0.25
_LEAST_OVERLAP = 0.3  # of the reference's points, in the query
_LARGEST_TURN_RAD = np.radians(25.0)
_LARGEST_SHIFT = 0.4  # of the depth


class SceneImages(NamedTuple):
    """Posed images of one scene.

    Attributes:
        folder: Where they are from.
        paths: Of the images [K].
        cameras: [K].
        camera_from_map: float64 [K, 4, 4].
    """

    folder: Path
    paths: list[Path]
    cameras: list[Camera]
    camera_from_map: torch.Tensor


class SharedPoints(NamedTuple):
    """Which points images see.

    Attributes:
        xyz: float64 [P, 3], map frame.
        observation_image: int64 [M].
        observation_point: int64 [M].
    """

    xyz: np.ndarray
    observation_image: np.ndarray
    observation_point: np.ndarray


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
        folder, paths, self.cameras, self.camera_from_map = images
        missing = [path for path in paths if not path.is_file()]
        if missing:
            count = f"{len(missing)} of {len(paths)} images are missing"
            raise InputError(f"{folder}: {count}, for example {missing[0]}: check the folder")
        self.name, self.paths, self.view = folder.resolve().parent.name, paths, view
        kept_back = np.array([zlib.crc32(path.name.encode()) % HELD_OUT_SHARE == 0 for path in paths])
        usable = near & ~np.eye(len(near), dtype=bool) & ~kept_back[:, None]
        usable &= (kept_back if held_out else ~kept_back)[None]
        self.candidates = np.argwhere(usable)
        if len(self.candidates) == 0:
            raise InputError(f"{folder}: no two images share enough to train on: remove it from the training configuration")

    def points(self, image: int, rng: np.random.Generator) -> torch.Tensor:
        """Points [n, 3], in its camera's frame, that an image sees."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator) -> Pair:
        """Raises BadSample where the views cut out share too little, InputError where an image cannot be read."""
        a, b = (int(k) for k in self.candidates[rng.integers(len(self.candidates))])
        return self.pair(a, b, rng)

    def cut_out(self, image: int, rng: np.random.Generator) -> tuple[np.ndarray, Camera]:
        """A random view of an image, and its camera."""
        return fit_view(load_grey(self.paths[image]), self.cameras[image], self.view, rng)

    def pair(self, a: int, b: int, rng: np.random.Generator) -> Pair:
        """The pair of reference a and query b; raises as `draw`."""
        (reference, reference_camera), (query, query_camera) = (self.cut_out(k, rng) for k in (a, b))
        xyz = self.points(a, rng)
        pixels, valid = reference_camera.project(xyz)
        seen = torch.nonzero(valid & reference_camera.in_image(pixels))[:, 0]
        if len(seen) < _LEAST_POINTS:
            raise BadSample("few points")
        xyz = xyz[seen[torch.from_numpy(rng.permutation(len(seen))[: self.view.points])]]
        query_from_reference = self.camera_from_map[b] @ se3.inverse(self.camera_from_map[a])
        pixels, valid = query_camera.project(se3.transform(query_from_reference, xyz))
        if int((valid & query_camera.in_image(pixels)).sum()) < _LEAST_OVERLAP * len(xyz):
            raise BadSample("little overlap")
        name = f"{self.name}/{self.paths[a].name}-{self.paths[b].name}"
        return Pair(reference, query, reference_camera, query_camera, xyz, query_from_reference, name)


class SharedPointPairs(ScenePairs):
    """Pairs of images that share at least a quarter of the reference's points.

    Args:
        images: Of the scene.
        points: That they see.
        view: What the network sees.
        held_out: As `ScenePairs` takes it.
        near: More pairs than those, bool [K, K]; references among them must see points.

    Raises:
        InputError: As `ScenePairs` does.
    """

    def __init__(
        self, images: SceneImages, points: SharedPoints, view: PairShape, held_out: bool, near: np.ndarray | None = None
    ) -> None:
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

    def __init__(self, model: Path, images: Path, view: PairShape, held_out: bool) -> None:
        scene = read_colmap_model(model)
        paths = [find_file(images, name) for name in scene.names]
        cameras = [scene.cameras[k] for k in scene.camera_ids.tolist()]
        points = SharedPoints(scene.xyz, scene.observation_image, scene.observation_point)
        super().__init__(SceneImages(model, paths, cameras, scene.camera_from_map), points, view, held_out)


class RgbdPairs(ScenePairs):
    """Pairs of an RGB-D sequence (format: `io.tum`): frames near each other, points at corners with sound depth.

    Raises InputError as `read_rgbd_sequence`, `load_depth` and `ScenePairs` do.
    """

    def __init__(self, sequence: Path, view: PairShape, held_out: bool, depth_scale: float = 0.0) -> None:
        self.frames, self.camera = read_rgbd_sequence(sequence), read_camera(sequence)
        self.depth_scale = depth_scale or find_depth_scale(self.frames, self.camera)
        poses = torch.stack([frame.map_from_camera for frame in self.frames])
        some = [load_depth(frame, self.camera, self.depth_scale) for frame in self.frames[::10]]
        depth = float(np.median([np.median(image[image > 0]) for image in some if (image > 0).any()]))
        distance, angle = se3.pose_difference(poses[:, None], poses[None])
        near = ((distance < _LARGEST_SHIFT * depth) & (angle < _LARGEST_TURN_RAD)).numpy()
        paths, cameras = [frame.image for frame in self.frames], [self.camera] * len(self.frames)
        super().__init__(SceneImages(sequence, paths, cameras, se3.inverse(poses)), near, view, held_out)

    def points(self, image: int, rng: np.random.Generator) -> torch.Tensor:
        sound = without_edges(load_depth(self.frames[image], self.camera, self.depth_scale))
        pixels = spread_corners(load_grey(self.paths[image]), 4 * self.view.points, rng, (sound > 0).astype(np.uint8))
        column, row = pixels.round().astype(int).T
        return lift(self.camera, pixels, sound[row, column])

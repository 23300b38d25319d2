# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs out of posed images of real scenes: COLMAP models and RGB-D sequences."""
from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import scipy.sparse
import torch

from ..errors import InputError
from ..features.images import load_image
from ..geometry import se3
from ..geometry.cameras import Camera
from ..mapping.colmap import read_colmap_model
from ..mapping.rgbd import find_depth_scale, load_depth, lift, read_camera, read_rgbd_sequence, without_edges
from .pairs import BadSample, Pair, View, fit_view, spread_corners

HELD_OUT_SHARE = 10
"""One image in this many is kept for validation."""

_LEAST_POINTS = 32
_LEAST_OVERLAP = 0.3  # of the reference's points, in the query
_LARGEST_TURN_RAD = np.radians(25.0)
_LARGEST_SHIFT = 0.4  # of the depth


class ScenePairs:
    """Draws pairs of images of one scene. Candidates are fixed at the start; points are found when a pair is drawn.

    paths: of the images. camera_from_map [K, 4, 4]. candidates: int64 [n, 2], reference and query. points: gives the points
    [n, 3], in its camera's frame, that the image of an index sees.
    """

    def __init__(self, name: str, paths: list[Path], cameras: list[Camera], camera_from_map: torch.Tensor,
                 candidates: np.ndarray, points: Callable[[int, np.random.Generator], torch.Tensor], view: View) -> None:
        self.name, self.paths, self.cameras, self.camera_from_map = name, paths, cameras, camera_from_map
        self.candidates, self.points, self.view = candidates, points, view

    def draw(self, rng: np.random.Generator) -> Pair:
        """Raises BadSample where the views cut out share too little, InputError where an image cannot be read."""
        a, b = (int(k) for k in self.candidates[rng.integers(len(self.candidates))])
        (reference, reference_camera), (query, query_camera) = (
            fit_view(_load_grey(self.paths[k]), self.cameras[k], self.view, rng) for k in (a, b))
        xyz = self.points(a, rng)
        pixels, valid = reference_camera.project(xyz)
        seen = torch.nonzero(valid & reference_camera.in_image(pixels))[:, 0]
        if len(seen) < _LEAST_POINTS:
            raise BadSample("few points")
        xyz = xyz[seen[torch.from_numpy(rng.permutation(len(seen))[:self.view.points])]]
        query_from_reference = self.camera_from_map[b] @ se3.inverse(self.camera_from_map[a])
        pixels, valid = query_camera.project(se3.transform(query_from_reference, xyz))
        if int((valid & query_camera.in_image(pixels)).sum()) < _LEAST_OVERLAP * len(xyz):
            raise BadSample("little overlap")
        return Pair(reference, query, reference_camera, query_camera, xyz, query_from_reference,
                    f"{self.name}/{self.paths[a].name}-{self.paths[b].name}")


def colmap_pairs(model: Path, images: Path, view: View, held_out: bool) -> ScenePairs:
    """Pairs of a COLMAP model: images that share at least a quarter of the reference's points.

    held_out: those whose query is kept for validation, else those of which neither image is. Raises InputError as
    `read_colmap_model` does, and where no two images share enough points or images are missing.
    """
    scene = read_colmap_model(model)
    paths = [images / name for name in scene.names]
    _require_files(paths, f"the images of {model}")
    sees = scipy.sparse.csr_matrix(
        (np.ones(len(scene.observation_point)), (scene.observation_image, scene.observation_point)),
        (len(paths), len(scene.xyz)), dtype=np.float64)
    sees.data[:] = 1  # a point may be observed twice in an image
    shared = (sees @ sees.T).toarray()
    near = shared >= np.maximum(_LEAST_POINTS, 0.25 * shared.diagonal()[:, None])
    candidates = _candidates(near, paths, held_out, str(model))
    xyz = torch.from_numpy(scene.xyz)

    def points(image: int, _: np.random.Generator) -> torch.Tensor:
        return se3.transform(scene.camera_from_map[image], xyz[torch.from_numpy(sees[image].indices.astype(np.int64))])

    cameras = [scene.cameras[k] for k in scene.camera_ids.tolist()]
    return ScenePairs(Path(model).parent.name, paths, cameras, scene.camera_from_map, candidates, points, view)


def rgbd_pairs(sequence: Path, view: View, held_out: bool) -> ScenePairs:
    """Pairs of an RGB-D sequence (format: `mapping.rgbd`): frames near each other, points at corners with sound depth."""
    frames = read_rgbd_sequence(sequence)
    camera = read_camera(sequence)
    paths = [frame.image for frame in frames]
    _require_files(paths + [frame.depth for frame in frames], f"the images of {sequence}")
    scale = find_depth_scale(frames, camera).value
    poses = torch.stack([frame.map_from_camera for frame in frames])
    depth = float(np.median([np.median(d[d > 0]) for d in (load_depth(f, camera, scale) for f in frames[::10]) if (d > 0).any()]))
    distance, angle = se3.pose_difference(poses[:, None], poses[None])
    near = ((distance < _LARGEST_SHIFT * depth) & (angle < _LARGEST_TURN_RAD)).numpy()
    candidates = _candidates(near, paths, held_out, str(sequence))

    def points(image: int, rng: np.random.Generator) -> torch.Tensor:
        sound = without_edges(load_depth(frames[image], camera, scale))
        pixels = spread_corners(_load_grey(paths[image]), 4 * view.points, rng, (sound > 0).astype(np.uint8))
        column, row = pixels.round().astype(int).T
        return lift(camera, pixels, sound[row, column])

    return ScenePairs(Path(sequence).parent.name, paths, [camera] * len(paths), se3.inverse(poses), candidates, points, view)


def _candidates(near: np.ndarray, paths: list[Path], held_out: bool, scene: str) -> np.ndarray:
    """Reference and query of all usable pairs, int64 [n, 2]."""
    kept_back = np.array([zlib.crc32(path.name.encode()) % HELD_OUT_SHARE == 0 for path in paths])
    usable = near & ~np.eye(len(near), dtype=bool) & ~kept_back[:, None] & (kept_back if held_out else ~kept_back)[None]
    candidates = np.argwhere(usable)
    if len(candidates) == 0:
        raise InputError(f"{scene}: no two images share enough to train on: take it off the training configuration")
    return candidates


def _require_files(paths: list[Path], what: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{what}: {len(missing)} of {len(paths)} are missing, for example {missing[0]}: check the folder")


def _load_grey(path: Path) -> np.ndarray:
    image = load_image(path)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

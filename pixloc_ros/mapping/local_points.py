# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The map points that a camera near a given pose should see, with the features seen from most alike."""
from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..alignment.types import ReferencePoints
from ..errors import InputError
from ..geometry.cameras import Camera
from .map_file import Map

_CACHED_VIEWS = 256
_SAMPLES = 48
_COVERAGE_GRID = (8, 6)
_SHORT_TRACK_QUALITY = 0.5


@dataclass(frozen=True)
class LocalPointOptions:
    """keyframes: how many are used. candidates: how many near the prior are looked at. margin: share of the image's size by
    which it is enlarged on each side, since the prior is not exact. angle_rad, roll_rad, octaves: difference of viewing
    direction, of rotation about it, and of scale (log2 of the ratio of distances) at which an observation counts 1/e."""

    keyframes: int = 3
    candidates: int = 20
    margin: float = 0.05
    angle_rad: float = math.radians(25.0)
    roll_rad: float = math.radians(25.0)
    octaves: float = 0.7

    def __post_init__(self) -> None:
        if not 1 <= self.keyframes <= self.candidates or not self.margin >= 0 or not min(
                self.angle_rad, self.roll_rad, self.octaves) > 0:
            raise InputError("local points: keyframes must be 1 to candidates, margin not negative, angles and octaves positive")


@dataclass(frozen=True)
class LocalPoints:
    """points: N of them, xyz float32 relative to `origin`, along the map's axes. origin: float64 [3] in the map frame.
    point_ids: int64 [N], indices into the map's points. keyframe_ids: int64 [k], the keyframes used, best first."""

    points: ReferencePoints
    origin: torch.Tensor
    point_ids: torch.Tensor
    keyframe_ids: torch.Tensor


@dataclass(frozen=True)
class _Observations:
    """Observations of one or more keyframes.

    rows: in the map. points: indices of map points. offsets: float32 [n, 3] from the origin that it says where it is made.
    rays: float32 [n, 3], unit, from the keyframe to the point. scale: log2 of focal length over distance. quality: float32
    [n] of the point. weight: float32 [n], of the keyframe.
    """

    rows: np.ndarray
    points: np.ndarray
    offsets: np.ndarray
    rays: np.ndarray
    scale: np.ndarray
    quality: np.ndarray
    weight: np.ndarray

    def take(self, which: np.ndarray) -> _Observations:
        return _Observations(*(getattr(self, name)[which] for name in _Observations.__dataclass_fields__))

    def seen_from(self, shift: np.ndarray, weight: float) -> _Observations:
        """The same with offsets from another origin, which is at -shift."""
        return _Observations(self.rows, self.points, self.offsets + shift.astype(np.float32), self.rays, self.scale,
                             self.quality, np.full(len(self.rows), weight, np.float32))

    @staticmethod
    def join(parts: list[_Observations]) -> _Observations:
        return _Observations(*(np.concatenate([getattr(part, name) for part in parts])
                               for name in _Observations.__dataclass_fields__))


class LocalPointSelector:
    """Chooses keyframes and points for a prior pose. Deterministic; the cost does not grow with the map.

    Keyframes are indexed by centre and viewing direction, the latter scaled with the map's typical depth. Of the nearest
    ones, those are taken that together see most of what the camera should see, from alike: points are projected, and each
    counts by how much viewing direction, roll and scale differ. So on a road a keyframe behind the camera serves as far as
    it sees the same things, and of keyframes taken in one place those that look the same way do.
    """

    def __init__(self, map_: Map, options: LocalPointOptions = LocalPointOptions()) -> None:
        self._map, self._options = map_, options
        pose = map_.map_from_keyframe.numpy()
        self._centres, self._rotations = pose[:, :3, 3].copy(), pose[:, :3, :3].copy()
        depth = map_.keyframe_depth[map_.keyframe_depth > 0]
        self._depth = float(np.median(depth)) if depth.size else 1.0
        self._focal = np.array([float(camera.params[:2].mean()) for camera in map_.cameras])
        self._tree = cKDTree(self._keys(self._centres, self._rotations))
        self._views: OrderedDict[int, _Observations] = OrderedDict()

    def select(self, map_from_camera: torch.Tensor, camera: Camera, max_points: int = 512) -> LocalPoints:
        """Points for a camera near `map_from_camera` (float64 [4, 4]): at most `max_points`, none where the map has none.

        camera: of the image that will be aligned. Raises InputError where the map's file is damaged.
        """
        pose = map_from_camera.numpy()
        centre, rotation = pose[:3, 3], pose[:3, :3]
        keyframes = self._nearest(centre, rotation)
        roll = self._roll_weight(keyframes, rotation)
        views = [self._view(k).seen_from(self._centres[k] - centre, weight) for k, weight in zip(keyframes, roll)]
        chosen = self._choose(views, rotation, camera)
        seen, pixels = self._project(_Observations.join([views[k] for k in chosen] or views[:1]), rotation, camera)
        best = _best_of_each_point(seen)
        seen, pixels = seen.take(best), pixels[best]
        keep = np.sort(_spread(pixels, seen.weight * seen.quality, camera, max_points))
        return self._gather(seen.take(keep), centre, np.array(keyframes)[chosen])

    def _keys(self, centres: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        return np.concatenate((centres, self._depth * rotations[..., :, 2]), axis=-1)

    def _nearest(self, centre: np.ndarray, rotation: np.ndarray) -> list[int]:
        count = min(self._options.candidates, len(self._centres))
        _, keyframes = self._tree.query(self._keys(centre, rotation), k=[*range(1, count + 1)])
        return keyframes.tolist()

    def _roll_weight(self, keyframes: list[int], rotation: np.ndarray) -> np.ndarray:
        relative = rotation.T @ self._rotations[keyframes]
        roll = np.arctan2(relative[:, 1, 0] - relative[:, 0, 1], relative[:, 0, 0] + relative[:, 1, 1])
        return np.exp(-(roll / self._options.roll_rad) ** 2)

    def _view(self, keyframe: int) -> _Observations:
        """A keyframe's observations, offsets from its own centre; kept for the frames that follow."""
        view = self._views.pop(keyframe, None)
        if view is None:
            rows = self._map.observations(keyframe)
            points = self._map.observation_point[rows].astype(np.int64)
            if points.size and not 0 <= points.min() <= points.max() < len(self._map.xyz):
                raise InputError(f"map '{self._map.name}' is damaged: check it with 'pixloc map info --verify', build it again")
            offsets = (self._map.xyz[points] - self._centres[keyframe]).astype(np.float32)
            distance = np.maximum(np.linalg.norm(offsets, axis=1), np.float32(1e-6))
            # A short track says little about its point: its quality is drawn towards the middle.
            pairs = self._map.track_length[points] - 1
            quality = (self._map.quality[points] * pairs + _SHORT_TRACK_QUALITY) / (pairs + 1)
            scale = np.log2(self._focal[self._map.keyframe_camera[keyframe]] / distance)
            view = _Observations(np.arange(rows.start, rows.stop), points, offsets, offsets / distance[:, None],
                                 scale.astype(np.float32), quality.astype(np.float32), np.ones(len(points), np.float32))
        self._views[keyframe] = view
        if len(self._views) > _CACHED_VIEWS:
            self._views.popitem(last=False)
        return view

    def _project(self, observations: _Observations, rotation: np.ndarray, camera: Camera) -> tuple[_Observations, np.ndarray]:
        """Those that fall into the enlarged image, with their weights, and their pixels [n, 2]."""
        pixels, valid = camera.project(torch.from_numpy(observations.offsets @ rotation.astype(np.float32)))
        pixels, margin = pixels.numpy(), self._options.margin * np.array([camera.width, camera.height])
        inside = valid.numpy() & ((pixels > -margin) & (pixels < margin + [camera.width, camera.height])).all(1)
        which = np.flatnonzero(inside)
        seen = observations.take(which)
        distance = np.maximum(np.linalg.norm(seen.offsets, axis=1), np.float32(1e-6))
        cosine = np.einsum("nd,nd->n", seen.rays, seen.offsets) / distance
        octaves = np.log2(np.float32(camera.params[:2].mean()) / distance) - seen.scale
        # 2 (1 - cos) is the squared angle, as far as this matters.
        seen.weight[:] *= np.exp(2 * (cosine - 1) / self._options.angle_rad ** 2 - (octaves / self._options.octaves) ** 2)
        return seen, pixels[which]

    def _choose(self, views: list[_Observations], rotation: np.ndarray, camera: Camera) -> list[int]:
        """Positions in `views` of the keyframes to use, best first.

        What a sample of their points is worth is summed per cell of the image; the square root of a cell's sum counts, so
        that a keyframe that fills an empty part of the image wins over one more of the same.
        """
        steps = [max(1, len(view.rows) // _SAMPLES) for view in views]
        sample = _Observations.join([view.take(slice(None, None, step)) for view, step in zip(views, steps)])
        owner = np.repeat(np.arange(len(views)), [len(range(0, len(view.rows), step)) for view, step in zip(views, steps)])
        numbered = _Observations(np.arange(len(owner)), *(getattr(sample, name) for name in list(
            _Observations.__dataclass_fields__)[1:]))
        seen, pixels = self._project(numbered, rotation, camera)
        owner = owner[seen.rows]
        columns, rows = _COVERAGE_GRID
        cell = _cell(pixels, camera, columns, rows)
        worth = np.bincount(owner * (columns * rows) + cell, seen.weight * np.array(steps)[owner],
                            len(views) * columns * rows).reshape(len(views), -1)
        chosen: list[int] = []
        total = np.zeros(columns * rows)
        for _ in range(self._options.keyframes):
            gain = np.sqrt(total + worth).sum(1) - np.sqrt(total).sum()
            gain[chosen] = 0.0
            best = int(gain.argmax())
            if gain[best] <= 0.0:
                break
            chosen.append(best)
            total += worth[best]
        return chosen

    def _gather(self, seen: _Observations, centre: np.ndarray, keyframes: np.ndarray) -> LocalPoints:
        """Descriptors of the chosen observations, the only time that the map's big tensors are read."""
        map_ = self._map
        xyz = torch.from_numpy(map_.xyz[seen.points] - centre).float()
        descriptors = tuple(torch.from_numpy(level[seen.rows]).float() for level in map_.descriptors)
        confidences = tuple(None if level is None else torch.from_numpy(level[seen.rows]).float() for level in map_.confidences)
        return LocalPoints(ReferencePoints(xyz, descriptors, confidences), torch.from_numpy(centre.copy()),
                           torch.from_numpy(seen.points), torch.from_numpy(keyframes.astype(np.int64)))


def _best_of_each_point(seen: _Observations) -> np.ndarray:
    """Positions of each point's observation of largest weight; the first one where they are equal."""
    order = np.lexsort((-seen.weight, seen.points))
    points = seen.points[order]
    first = np.ones(len(order), bool)
    first[1:] = points[1:] != points[:-1]
    return order[first]


def _cell(pixels: np.ndarray, camera: Camera, columns: int, rows: int) -> np.ndarray:
    """Number of the grid cell of each pixel; pixels outside belong to the cell at the border."""
    scaled = (pixels + 0.5) * [columns / camera.width, rows / camera.height]
    scaled = np.clip(scaled, 0, [columns - 1, rows - 1]).astype(np.int64)
    return scaled[:, 1] * columns + scaled[:, 0]


def _spread(pixels: np.ndarray, score: np.ndarray, camera: Camera, count: int) -> np.ndarray:
    """Positions of `count` pixels: the best of each grid cell, then each second best, and so on."""
    if len(pixels) <= count:
        return np.arange(len(pixels))
    columns = max(1, round(math.sqrt(count * camera.width / camera.height)))
    cell = _cell(pixels, camera, columns, max(1, round(count / columns)))
    order = np.lexsort((-score, cell))
    ordered = cell[order]
    start = np.searchsorted(ordered, ordered)
    rank = np.arange(len(order)) - start
    return order[np.lexsort((-score[order], rank))[:count]]

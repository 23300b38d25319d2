# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The map points that a camera near a given pose should see, with the features of the most similar view."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..alignment.types import ReferencePoints
from ..errors import InputError
from ..features.pyramid import FeaturePyramid
from ..geometry.cameras import Camera
from ..geometry.projection import camera_numbers
from . import selection
from .map_file import Map, decode_descriptors
from .retrieval import PooledFeatures

_CACHED_VIEWS = 256
_SAMPLES = 48
_COVERAGE_GRID = (8, 6)
_SHORT_TRACK_QUALITY = 0.5
SESSION_GAP_NS = 600 * 10**9
"""Keyframes further apart in time are of different sessions, which may show a place in different light, or changed."""
_LOOK = 0.006
"""Difference of two sessions' likeness to an image at which the less similar one counts 1/e."""


@dataclass(frozen=True)
class LocalPointOptions:
    """How points are chosen.

    Attributes:
        keyframes: How many are used.
        candidates: How many near the prior are considered.
        margin: Share of the image's size by which it is enlarged on each side, since the prior is not exact.
        angle_rad: Difference of viewing direction at which an observation counts 1/e.
        roll_rad: The same of the rotation about it.
        octaves: The same of scale, log2 of the ratio of distances.
    """

    keyframes: int = 3
    candidates: int = 20
    margin: float = 0.05
    angle_rad: float = math.radians(25.0)
    roll_rad: float = math.radians(25.0)
    octaves: float = 0.7

    def __post_init__(self) -> None:
        positive = min(self.angle_rad, self.roll_rad, self.octaves) > 0
        if not (1 <= self.keyframes <= self.candidates and self.margin >= 0 and positive):
            raise InputError("local points: keyframes must be 1 to candidates, margin not negative, angles and octaves positive")


@dataclass(frozen=True)
class LocalPoints:
    """Points for one camera.

    Attributes:
        points: N of them, xyz float32 relative to `origin`, along the map's axes.
        origin: float64 [3] in the map frame.
        point_ids: int64 [N], indices into the map's points.
        keyframe_ids: int64 [k], the keyframes used, best first.
    """

    points: ReferencePoints
    origin: torch.Tensor
    point_ids: torch.Tensor
    keyframe_ids: torch.Tensor

    def median_depth(self, map_from_camera: torch.Tensor) -> float:
        """Median distance of the points along the optical axis of a camera, float64 [4, 4]."""
        offsets = self.points.xyz.cpu().numpy() + (self.origin - map_from_camera[:3, 3]).numpy()
        return float(np.median(offsets @ map_from_camera[:3, 2].numpy()))


@dataclass(frozen=True)
class _View:
    """A keyframe's observations, n of them.

    Attributes:
        first_row: Of its observations in the map.
        centre: float64 [3], of the keyframe.
        points: int64 [n], rising.
        offsets: float32 [n, 3] from the centre, along the map's axes.
        rays: float32 [n, 3], their directions.
        scales: float32 [n], log2 of focal length over distance.
        quality: float32 [n], of the points.
    """

    first_row: int
    centre: np.ndarray
    points: np.ndarray
    offsets: np.ndarray
    rays: np.ndarray
    scales: np.ndarray
    quality: np.ndarray


class LocalPointSelector:
    """Chooses keyframes and points for a prior pose. Deterministic; the cost does not grow with the map.

    Keyframes are indexed by centre and viewing direction, the latter scaled with the map's typical depth. Of the nearest ones,
    those are taken that together see most of what the camera should see, from a similar view: points are projected, and each
    counts by how much viewing direction, roll and scale differ. So on a road a keyframe behind the camera serves as far as it
    sees the same things, and of keyframes taken in one place those that look the same way do.
    """

    def __init__(self, map_: Map, options: LocalPointOptions = LocalPointOptions()) -> None:
        self._map, self._options = map_, options
        pose = map_.map_from_keyframe.numpy()
        self._centres, self._rotations = pose[:, :3, 3].copy(), pose[:, :3, :3].copy()
        depth = map_.keyframe_depth[map_.keyframe_depth > 0]
        self._depth = float(np.median(depth)) if depth.size else 1.0
        self._focal = np.array([float(camera.params[:2].mean()) for camera in map_.cameras])
        self._tree = cKDTree(self._keys(self._centres, self._rotations))
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._session = _sessions(map_.keyframe_stamp_ns)
        looks = self._session.any() and map_.global_descriptor_name == PooledFeatures.name
        self._looks = map_.global_descriptors.astype(np.float32) if looks else None
        # The first frame must not wait for the compiler.
        self.select(map_.map_from_keyframe[0], map_.cameras[map_.keyframe_camera[0]])

    def describe(self, image: np.ndarray, pyramid: FeaturePyramid) -> np.ndarray | None:
        """What `select` needs to know of an image to choose among sessions; None where the map has only one."""
        return None if self._looks is None else PooledFeatures().describe(image, pyramid)

    def select(
        self, map_from_camera: torch.Tensor, camera: Camera, max_points: int = 512, description: np.ndarray | None = None
    ) -> LocalPoints:
        """Points for a camera near a pose.

        Args:
            map_from_camera: float64 [4, 4].
            camera: Of the image that will be aligned.
            max_points: At most so many are given, none where the map has none there.
            description: Of the image (`describe`); None: all sessions count the same.

        Raises:
            InputError: The map's file is damaged.
        """
        pose, options = map_from_camera.numpy(), self._options
        rotation, centre = pose[:3, :3], pose[:3, 3].copy()
        viewer = viewer_at(map_from_camera, camera, options)
        count = min(options.candidates, len(self._centres))
        candidates = self._tree.query(self._keys(centre, rotation), k=[*range(1, count + 1)])[1]
        worth = self._roll_weights(candidates, viewer) * self._look_weights(candidates, description)
        chosen = self._choose(candidates, worth, viewer, centre)
        keyframes = candidates[chosen]
        views = [self._view(k) for k in keyframes]
        starts = np.cumsum([0] + [len(view.points) for view in views])
        pixels, weights = np.empty((starts[-1], 2)), np.zeros(starts[-1])
        for view, share, first, last in zip(views, worth[chosen], starts, starts[1:]):
            _weigh(viewer, centre, view, 1, pixels[first:last], weights[first:last])
            weights[first:last] *= share
        points = _concatenate([view.points for view in views], np.int64)
        best = selection.best_of_each_point(points, starts, weights)
        scores = weights[best] * _concatenate([view.quality for view in views], np.float32)[best]
        best = best[selection.spread(pixels[best], scores, viewer.size, max_points)]
        first_rows = np.repeat([view.first_row - start for view, start in zip(views, starts)], np.diff(starts))
        return self._gather(points[best], (first_rows.astype(np.int64) + np.arange(starts[-1]))[best], centre, keyframes)

    def _keys(self, centres: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        return np.concatenate((centres, self._depth * rotations[..., :, 2]), axis=-1)

    def _roll_weights(self, keyframes: np.ndarray, viewer: selection.Viewer) -> np.ndarray:
        relative = viewer.camera_from_map @ self._rotations[keyframes]
        roll = np.arctan2(relative[:, 1, 0] - relative[:, 0, 1], relative[:, 0, 0] + relative[:, 1, 1])
        return np.exp(-((roll / self._options.roll_rad) ** 2))

    def _look_weights(self, keyframes: np.ndarray, description: np.ndarray | None) -> np.ndarray:
        """By how much the session of each looks like the image; a session is as similar as its most similar keyframe."""
        if self._looks is None or description is None:
            return np.ones(len(keyframes))
        sessions, number = np.unique(self._session[keyframes], return_inverse=True)
        likeness = np.full(len(sessions), -np.inf)
        np.maximum.at(likeness, number, self._looks[keyframes] @ description)
        return np.exp((likeness - likeness.max()) / _LOOK)[number]

    def _view(self, keyframe: int) -> _View:
        """Kept for the frames that follow."""
        view = self._views.pop(keyframe, None)
        if view is None:
            map_ = self._map
            rows = map_.observations(keyframe)
            points = map_.observation_point[rows].astype(np.int64)
            if points.size and not (points[0] >= 0 and points[-1] < len(map_.xyz) and (np.diff(points) > 0).all()):
                raise InputError(f"map '{map_.name}' is damaged: check it with 'pixloc map check', build it again")
            centre = self._centres[keyframe]
            offsets = (map_.xyz[points] - centre).astype(np.float32)
            distance = np.maximum(np.linalg.norm(offsets, axis=1), np.finfo(np.float32).tiny)
            # A short track says little about its point: its quality is drawn towards the middle.
            pairs = map_.track_length[points] - 1
            quality = (map_.quality[points] * pairs + _SHORT_TRACK_QUALITY) / (pairs + 1)
            scales = np.log2(self._focal[map_.keyframe_camera[keyframe]] / distance)
            rays, scales, quality = offsets / distance[:, None], scales.astype(np.float32), quality.astype(np.float32)
            view = _View(rows.start, centre, points, offsets, rays, scales, quality)
        self._views[keyframe] = view
        if len(self._views) > _CACHED_VIEWS:
            self._views.popitem(last=False)
        return view

    def _choose(self, candidates: np.ndarray, shares: np.ndarray, viewer: selection.Viewer, centre: np.ndarray) -> list[int]:
        """Positions in `candidates` of the keyframes to use, best first; shares [n] weigh what each sees.

        What a sample of their points is worth is summed per cell of the image. The square root of a cell's sum counts, so that a
        keyframe that fills an empty part of the image wins over one more of the same.
        """
        columns, rows = _COVERAGE_GRID
        worth = np.zeros((len(candidates), columns * rows))
        pixels, weights = np.empty((2 * _SAMPLES, 2)), np.empty(2 * _SAMPLES)
        for k, (keyframe, share) in enumerate(zip(candidates, shares)):
            view = self._view(keyframe)
            step = max(1, len(view.points) // _SAMPLES)
            count = _weigh(viewer, centre, view, step, pixels, weights)
            selection.add_worth(pixels, weights[:count], step * share, viewer.size, columns, rows, worth[k])
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

    def _gather(self, points: np.ndarray, rows: np.ndarray, centre: np.ndarray, keyframes: np.ndarray) -> LocalPoints:
        """Descriptors of the chosen observations: all that is read of the map's big tensors."""
        map_ = self._map
        xyz = torch.from_numpy((map_.xyz[points] - centre).astype(np.float32))
        descriptors = tuple(torch.from_numpy(decode_descriptors(level.take(rows, 0))) for level in map_.descriptors)
        confidences = tuple(None if level is None else torch.from_numpy(level[rows]).float() for level in map_.confidences)
        return LocalPoints(
            ReferencePoints(xyz, descriptors, confidences),
            torch.from_numpy(centre),
            torch.from_numpy(points),
            torch.from_numpy(keyframes.astype(np.int64)),
        )


def viewer_at(map_from_camera: torch.Tensor, camera: Camera, options: LocalPointOptions) -> selection.Viewer:
    """The camera at a pose, float64 [4, 4], that points are chosen for."""
    size = camera.width, camera.height
    return selection.Viewer(
        camera_numbers(camera),
        size,
        options.margin * np.array(size, float),
        np.ascontiguousarray(map_from_camera.numpy()[:3, :3].T),
        math.log2(float(camera.params[:2].mean())),
        options.angle_rad,
        options.octaves,
    )


def _sessions(stamps_ns: np.ndarray) -> np.ndarray:
    """Number of each keyframe's session, int64 [K]; those without a stamp are one."""
    order = np.argsort(stamps_ns, kind="stable")
    numbers = np.zeros(len(stamps_ns), np.int64)
    numbers[order[1:]] = np.cumsum(np.diff(np.asarray(stamps_ns)[order]) > SESSION_GAP_NS)
    return numbers


def _weigh(viewer: selection.Viewer, centre: np.ndarray, view: _View, step: int, pixels: np.ndarray, weights: np.ndarray) -> int:
    return selection.weigh(viewer, view.centre - centre, view.offsets, view.rays, view.scales, step, pixels, weights)


def _concatenate(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)

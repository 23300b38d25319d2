# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Points of keyframes with depth images."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.depth import EDGE_STEP
from .observations import Observations, Views, project
from .patch_tracks import SurfacePatches, cut_patches, neighbours, patch_pixels, refine_points, track_patches

_CORNERS, _CORNER_DISTANCE_PX, _CORNER_QUALITY = 700, 7.0, 0.01
_DEPTH_AGREEMENT = 0.03  # of the depth
_NEIGHBOURS = 30
_DEPTH_SIGMA = 0.02  # of measured depth, as a share


@dataclass(frozen=True, eq=False)
class DepthKeyframe:
    """A chosen image.

    Attributes:
        map_from_camera: float64 [4, 4].
        grey: uint8 [H, W].
        depth: float32 [H, W] metres, 0 where unknown or at an edge (`without_edges`).
    """

    map_from_camera: torch.Tensor
    grey: np.ndarray
    depth: np.ndarray


def find_points(keyframes: list[DepthKeyframe], camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [P, 3] in the map, and the keyframe and point of every observation.

    Each keyframe is filled up with corners where it does not yet see a point found before, so that a corner of the room is one
    point, not one per keyframe. Then every point is searched for in the keyframes around the one that it was found in.
    """
    poses = torch.stack([keyframe.map_from_camera for keyframe in keyframes])
    depth = float(np.median([np.median(k.depth[k.depth > 0]) for k in keyframes if (k.depth > 0).any()] or [1.0]))
    near = neighbours(poses, depth, _NEIGHBOURS)
    found: list[SurfacePatches] = []
    for k, keyframe in enumerate(keyframes):
        earlier = [found[n].xyz for n in near[k] if n < k]
        mask = (keyframe.depth > 0).astype(np.uint8)
        room = _CORNERS
        if earlier:
            pixels, seen = _visible(np.concatenate(earlier), keyframe, camera)
            for x, y in pixels[seen].round().astype(int):
                cv2.circle(mask, (int(x), int(y)), int(_CORNER_DISTANCE_PX), 0, -1)
            room -= int(seen.sum())
        found.append(_corners(keyframe, camera, mask, room))
    start = np.cumsum([0] + [len(patches.xyz) for patches in found])
    patches = SurfacePatches.concatenate(found)
    images, points, observed = [], [], []
    for k, keyframe in enumerate(keyframes):
        candidates = np.concatenate([np.arange(start[n], start[n + 1]) for n in near[k]])
        candidates = candidates[_visible(patches.xyz[candidates], keyframe, camera)[1]]
        pixels, tracked = track_patches(patches, candidates, keyframe.grey, camera, keyframe.map_from_camera)
        points.append(candidates[tracked])
        observed.append(pixels[tracked])
        images.append(np.full(int(tracked.sum()), k, np.int64))
    seen = Observations(*map(np.concatenate, (images, points, observed)))
    return refine_points(patches.xyz, Views([camera] * len(poses), poses), seen, _DEPTH_SIGMA), seen.image, seen.point


def _corners(keyframe: DepthKeyframe, camera: Camera, mask: np.ndarray, count: int) -> SurfacePatches:
    """Patches around corners of the image inside the mask, at most `count`."""
    corners = None
    if count > 0:
        corners = cv2.goodFeaturesToTrack(keyframe.grey, count, _CORNER_QUALITY, _CORNER_DISTANCE_PX, mask=mask)
    # Whole pixels: depth belongs to them.
    pixels = np.empty((0, 2)) if corners is None else corners[:, 0].round().astype(np.float64)
    column, row = pixels.astype(int).T
    centre = keyframe.depth[row, column][:, None]
    column, row = np.moveaxis(np.clip(patch_pixels(pixels), 0, [camera.width - 1, camera.height - 1]).astype(int), -1, 0)
    depth = keyframe.depth[row, column]
    # Where the patch reaches over an edge, the depth of its middle is used.
    depth = np.where(np.abs(depth - centre) < EDGE_STEP * centre, depth, centre)
    return cut_patches(keyframe.grey, camera, keyframe.map_from_camera, pixels, depth)


def _visible(xyz: np.ndarray, keyframe: DepthKeyframe, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 2] of map points in a keyframe, and where its depth agrees with theirs."""
    pixels, seen, expected = project(camera, se3.inverse(keyframe.map_from_camera), xyz)
    seen = seen & camera.in_image(torch.from_numpy(pixels)).numpy()
    column, row = pixels[seen].round().astype(int).T
    measured, expected = keyframe.depth[row, column], expected[seen]
    seen[seen] = (measured > 0) & (np.abs(measured - expected) < _DEPTH_AGREEMENT * expected)
    return pixels, seen

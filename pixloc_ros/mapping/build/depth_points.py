# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Points of keyframes with depth images, and the unit of depth images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ...errors import InputError
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.depth import EDGE_STEP
from ...io.work_folder import WorkFolder
from .keyframes import KeyframeFiles
from .matching import Matcher, MatchingOptions
from .observations import Observations, Views, project
from .patch_tracks import SurfacePatches, cut_patches, neighbours, patch_pixels, refine_points, track_patches

_CORNERS, _CORNER_DISTANCE_PX, _CORNER_QUALITY = 700, 7.0, 0.01
_DEPTH_AGREEMENT = 0.03  # of the depth
_NEIGHBOURS = 30
_DEPTH_SIGMA = 0.02  # of measured depth, as a share
_SCALE_PAIRS, _SCALE_FEATURES, _SCALE_ANGLE_DEG, _SCALE_TURN_RAD = 12, 800, 2.0, np.radians(25.0)
_FEWEST_MATCHES, _AGREEMENT, _LEAST_AGREEING, _FEWEST_AGREEING = 50, 0.1, 0.5, 0.35


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
        pixels, tracked = track_patches(patches.only(candidates), keyframe.grey, camera, keyframe.map_from_camera)
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


# ---- the unit of depth images


def measured_depth_scale(images: KeyframeFiles, depth: Callable[[int], np.ndarray]) -> float | None:
    """Units of depth images per metre: the median ratio between the depth of points and that by their places in two images.

    Args:
        images: Of any number; some are used.
        depth: Gives the depth image [H, W] of an image by its number, 0 where unknown.

    Returns:
        None where fewer than 50 points are seen from two places, or fewer than half of the ratios are within 10 % of the median.

    Raises:
        InputError: No image can be read, or no depth image (single ones are passed over), none holds depth, or fewer than 35 %
            of the ratios are within 10 % of the median: that is no depth, whatever its unit.
    """
    ratios, failed, empty = [], None, True
    with tempfile.TemporaryDirectory() as folder:
        matcher = Matcher(images, WorkFolder(Path(folder) / "work", {}), MatchingOptions(features=_SCALE_FEATURES))
        for a, b in _pairs_from_apart(images.map_from_camera):
            try:
                matches, raw = matcher.matches(a, b, None), depth(b)
            except InputError as error:
                failed = error
                continue
            pixels, rays, _ = matcher.features(b)
            column, row = pixels[matches[:, 1]].round().astype(int).T
            distance = matcher.distances(a, b, matches, _SCALE_ANGLE_DEG)
            found = raw[row, column] / (distance * rays[matches[:, 1], 2])
            ratios.append(found[found > 0])
            empty &= not (raw > 0).any()
    if not ratios and failed:
        raise failed
    if ratios and empty:
        raise InputError("the depth images hold no depth, all is 0: record them again")
    ratio = np.concatenate([np.empty(0), *ratios])
    if len(ratio) < _FEWEST_MATCHES:
        return None
    median = float(np.median(ratio))
    share = float(np.mean(np.abs(ratio / median - 1) < _AGREEMENT))
    if share < _FEWEST_AGREEING:
        raise InputError(
            f"only {share:.0%} of the points that two images see have the depth that images and poses say, whatever its unit: "
            "check that depth is distance (no disparity) and aligned with the images, and that the poses are the camera's, with "
            "quaternions qx qy qz qw"
        )
    return median if share >= _LEAST_AGREEING else None


def _pairs_from_apart(poses: torch.Tensor) -> list[tuple[int, int]]:
    """Pairs of images that look the same way from places as far apart as possible."""
    distance, angle = se3.pose_difference(poses[:, None], poses[None])
    distance = torch.where(angle < _SCALE_TURN_RAD, distance, torch.zeros_like(distance)).triu(1)
    value, order = distance.flatten().sort(descending=True, stable=True)
    # Not the farthest pairs, which may share no view, but the middle of those that are some way apart.
    usable = order[value > 0.25 * float(value[0])] if float(value[0]) > 0 else order[:0]
    usable = usable[:: max(1, len(usable) // _SCALE_PAIRS)][:_SCALE_PAIRS]
    return [divmod(int(k), len(poses)) for k in usable]

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps from posed RGB-D sequences in the layout of `io.tum`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ...errors import InputError
from ...features import Extractor
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.depth import without_edges
from ...io.images import load_grey
from ...io.tum import RgbdFrame, load_depth, read_camera, read_rgbd_sequence
from ..map_file import Map
from .building import BuildReport, PosedImages, Progress, build_map
from .depth_points import DepthKeyframe, find_points
from .patch_tracks import cut_patches, patch_likeness, patch_pixels

DEPTH_SCALES = (5000.0, 1000.0)
"""What depth images are written with: TUM's benchmark, and millimetres."""
_KEYFRAME_ROTATION_RAD = np.radians(6.0)
_KEYFRAME_TRANSLATION = 0.06  # of the median depth
_SCALE_PAIRS, _SCALE_CORNERS, _SCALE_MARGIN = 24, 150, 0.03
_NEAREST_DEPTH_M = 0.4  # structured-light and time-of-flight cameras measure nothing nearer


@dataclass(frozen=True)
class DepthScale:
    """Units of the depth images per metre, and how it is known, for people."""

    value: float
    reason: str


def build_map_from_rgbd(
    sequence: Path,
    extractor: Extractor,
    camera: Camera | None = None,
    depth_scale: float | None = None,
    working_side: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> tuple[Map, BuildReport, DepthScale]:
    """Map of a posed RGB-D sequence.

    Keyframes are taken where the camera has moved, the sharpest image of each stretch. Points are corners with sound depth away
    from edges of the depth (`find_points`).

    Args:
        sequence: Folder of the sequence.
        extractor: Makes the features.
        camera: Of the colour images, by default that of camera.txt in the folder.
        depth_scale: Units of the depth images per metre, by default what `find_depth_scale` finds.
        working_side: As of `build_map`.
        name: The map's, the folder's by default.
        progress: As of `build_map`.

    Raises:
        InputError: As `read_rgbd_sequence` and `build_map`, or depth and colour images have different sizes.
    """
    sequence = Path(sequence)
    frames = read_rgbd_sequence(sequence)
    camera = read_camera(sequence) if camera is None else camera
    present = [frame for frame in frames if frame.image.is_file() and frame.depth.is_file()]
    missing = tuple(frame.image.name for frame in frames if not (frame.image.is_file() and frame.depth.is_file()))
    if not present:
        raise InputError(
            f"none of the {len(frames)} images of {sequence} was found, for example {frames[0].image}: "
            "keep the folders that rgb.txt and depth.txt name"
        )
    scale = find_depth_scale(present, camera) if depth_scale is None else DepthScale(float(depth_scale), "as given")
    if not (np.isfinite(scale.value) and scale.value > 0):
        raise InputError(f"depth scale {scale.value:g}: give the depth images' units per metre, for example 1000 for millimetres")
    chosen, keyframes = _choose_keyframes(present, camera, scale.value, progress)
    xyz, image, point = find_points(keyframes, camera)
    source = PosedImages(
        name=name or sequence.resolve().name,
        paths=[frame.image for frame in chosen],
        names=[frame.image.name for frame in chosen],
        cameras=[camera] * len(keyframes),
        map_from_camera=torch.stack([frame.map_from_camera for frame in chosen]),
        stamp_ns=np.array([frame.stamp_ns for frame in chosen], np.int64),
        xyz=xyz,
        observation_image=image,
        observation_point=point,
    )
    map_, report = build_map(source, extractor, working_side, progress)
    return map_, replace(report, missing=missing + report.missing), scale


def _choose_keyframes(
    frames: list[RgbdFrame], camera: Camera, scale: float, progress: Progress | None
) -> tuple[list[RgbdFrame], list[DepthKeyframe]]:
    """One frame per stretch of little motion, that of the sharpest image, and what was read of it."""
    chosen: list[tuple[RgbdFrame, DepthKeyframe]] = []
    first: torch.Tensor | None = None
    best_sharpness, reach = 0.0, 0.0
    for k, frame in enumerate(frames):
        if progress:
            progress(k, len(frames), f"depth of {frame.image.name}")
        grey, new = load_grey(frame.image, camera), True
        sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
        if first is not None:
            distance, angle = se3.pose_difference(first, frame.map_from_camera)
            new = float(angle) >= _KEYFRAME_ROTATION_RAD or float(distance) >= reach
            if not new and sharpness <= best_sharpness:
                continue
        best_sharpness, depth = sharpness, without_edges(load_depth(frame, camera, scale))
        if new:
            first, known = frame.map_from_camera, depth[depth > 0]
            reach = _KEYFRAME_TRANSLATION * float(np.median(known)) if known.size else 0.0
        else:
            chosen.pop()
        chosen.append((frame, DepthKeyframe(frame.map_from_camera, grey, depth)))
    return [frame for frame, _ in chosen], [keyframe for _, keyframe in chosen]


# ---- depth scale


def find_depth_scale(frames: list[RgbdFrame], camera: Camera) -> DepthScale:
    """Which of the usual scales makes the images agree: 5000 (TUM's benchmark) or 1000 (millimetres).

    Patches around corners are moved from one image to another with the depth of either scale. The scale is taken under which they
    look more similar (mean normalised cross-correlation). Where the camera only turns, every scale agrees: then it is TUM's,
    unless that puts the scene nearer than depth cameras can see.
    """
    pairs = _scale_pairs(frames)
    likeness = np.zeros(len(DEPTH_SCALES))
    for a, b in pairs:
        likeness += [_likeness(frames[a], frames[b], camera, scale) for scale in DEPTH_SCALES]
    likeness /= max(len(pairs), 1)
    best = int(likeness.argmax())
    if likeness[best] - likeness.min() >= _SCALE_MARGIN:
        return DepthScale(
            DEPTH_SCALES[best],
            f"found: patches of neighbouring images agree to {likeness[best]:.2f} with it, "
            f"to {likeness[1 - best]:.2f} with {DEPTH_SCALES[1 - best]:.0f}",
        )
    raw = load_depth(frames[0], camera, 1.0)
    median = float(np.median(raw[raw > 0])) if (raw > 0).any() else 0.0
    scale = DEPTH_SCALES[0] if median / DEPTH_SCALES[0] >= _NEAREST_DEPTH_M else DEPTH_SCALES[1]
    reason = f"assumed: the camera hardly moves, median depth {median / scale:.2f} m; set --depth-scale to be sure"
    return DepthScale(scale, reason)


def _scale_pairs(frames: list[RgbdFrame]) -> list[tuple[int, int]]:
    """Pairs of frames that look the same way from places as far apart as possible."""
    chosen = list(range(0, len(frames), max(1, len(frames) // 60)))
    poses = torch.stack([frames[k].map_from_camera for k in chosen])
    distance, angle = se3.pose_difference(poses[:, None], poses[None])
    distance = torch.where((angle < np.radians(25.0)), distance, torch.zeros_like(distance)).triu(1)
    value, order = distance.flatten().sort(descending=True, stable=True)
    # Not the farthest pairs, which may share no view, but the middle of those that are some way apart.
    usable = order[value > 0.25 * float(value[0])] if float(value[0]) > 0 else order[:0]
    usable = usable[:: max(1, len(usable) // _SCALE_PAIRS)][:_SCALE_PAIRS]
    return [(chosen[int(k) // len(chosen)], chosen[int(k) % len(chosen)]) for k in usable]


def _likeness(a: RgbdFrame, b: RgbdFrame, camera: Camera, scale: float) -> float:
    """Mean normalised cross-correlation of patches of image a with where depth puts them in image b; 0 where none is seen."""
    grey, depth = load_grey(a.image, camera), without_edges(load_depth(a, camera, scale))
    corners = cv2.goodFeaturesToTrack(grey, _SCALE_CORNERS, 0.01, 10, mask=(depth > 0).astype(np.uint8))
    if corners is None:
        return 0.0
    pixels = corners[:, 0].round().astype(np.float64)
    column, row = pixels.astype(int).T
    around = np.repeat(depth[row, column][:, None], patch_pixels(pixels).shape[1], 1)
    patches = cut_patches(grey, camera, a.map_from_camera, pixels, around)
    likeness, inside = patch_likeness(patches, load_grey(b.image, camera), camera, b.map_from_camera)
    return float(likeness[inside].mean()) if inside.any() else 0.0

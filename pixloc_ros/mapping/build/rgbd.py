# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps from posed RGB-D sequences in the layout of `io.tum`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ...errors import InputError, none_left
from ...features import Extractor
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.depth import without_edges
from ...io.images import load_grey
from ...io.tum import RgbdFrame, load_depth, read_camera, read_rgbd_sequence
from ...io.work_folder import WorkFolder
from ..map_file import Map
from .building import BuildReport, PosedImages, Progress, build_map
from .depth_points import DepthKeyframe, find_points, measured_depth_scale
from .keyframes import KeyframeFiles
from .refinement import RefineOptions, refine_poses

DEPTH_SCALES = {1000.0: "millimetres", 5000.0: "TUM", 4000.0: "L515", 256.0: "KITTI", 10000.0: "0.1 mm", 100.0: "centimetres"}
"""What depth images are usually written with: units per metre, and whose they are."""
_KEYFRAME_ROTATION_RAD = np.radians(6.0)
_KEYFRAME_TRANSLATION = 0.06  # of the median depth
_SCALE_FRAMES, _USUAL_TOLERANCE, _GIVEN_TOLERANCE = 60, 0.05, 0.15


def build_map_from_rgbd(
    sequence: Path,
    extractor: Extractor,
    camera: Camera | None = None,
    depth_scale: float | None = None,
    working_side: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    refine: RefineOptions | None = None,
) -> tuple[Map, BuildReport]:
    """Map of a posed RGB-D sequence.

    Keyframes are taken where the camera has moved, the sharpest image of each stretch. Points are corners with sound depth away
    from edges of the depth (`find_points`). Frames whose image or depth image cannot be used are left out and reported.

    Args:
        sequence: Folder of the sequence.
        extractor: Makes the features.
        camera: Of the colour images, by default that of camera.txt in the folder.
        depth_scale: Units of the depth images per metre, by default what `find_depth_scale` finds.
        working_side: As of `build_map`.
        name: The map's, the folder's by default.
        progress: As of `build_map`.
        refine: Poses are refined first; how well they are known.

    Raises:
        InputError: As `read_rgbd_sequence` and `build_map`, or no frame can be used.
    """
    sequence = Path(sequence)
    left_out: dict[str, str] = {}
    frames = read_rgbd_sequence(sequence, left_out)
    camera = read_camera(sequence) if camera is None else camera
    left_out |= {f.image.name: f"no file {path}" for f in frames for path in (f.depth, f.image) if not path.is_file()}
    present = [frame for frame in frames if frame.image.name not in left_out]
    if not present:
        raise none_left(f"none of the {len(frames)} images of {sequence} was found: keep the folders its lists name", left_out)
    if depth_scale is None:
        scale = find_depth_scale(present, camera)
        note = f"depth scale {scale:g} units per metre, found: two views of a point agree with it"
    else:
        scale = float(depth_scale)
        if not (np.isfinite(scale) and scale > 0):
            raise InputError(f"depth scale {scale:g}: give the depth images' units per metre, for example 1000 for millimetres")
        note = f"depth scale {scale:g} units per metre, as given"
    chosen, keyframes = _choose_keyframes(present, camera, scale, left_out, progress)
    if depth_scale is not None:
        measured = _measured_scale(chosen, camera)
        if measured is not None and not _agree(measured, scale, _GIVEN_TOLERANCE):
            note += f", but images and poses say about {measured:.4g}: check --depth-scale"
    paths, cameras = [frame.image for frame in chosen], [camera] * len(chosen)
    poses, notes = torch.stack([frame.map_from_camera for frame in chosen]), (note,)
    if refine is not None:
        with tempfile.TemporaryDirectory() as folder:
            files, work = KeyframeFiles(paths, cameras, poses), WorkFolder(Path(folder) / "work", {})
            refined = refine_poses(files, work, refine, progress=progress)
        poses, notes = refined.map_from_camera, (note, *refined.notes)
        keyframes = [replace(keyframe, map_from_camera=pose) for keyframe, pose in zip(keyframes, poses)]
    xyz, image, point = find_points(keyframes, camera)
    stamps = np.array([f.stamp_ns for f in chosen], np.int64)
    name, names = name or sequence.resolve().name, [path.name for path in paths]
    source = PosedImages(name, paths, names, cameras, poses, stamps, xyz, image, point)
    map_, report = build_map(source, extractor, working_side, progress)
    return map_, replace(report, left_out=left_out | report.left_out, notes=(*notes, *report.notes))


def _choose_keyframes(
    frames: list[RgbdFrame], camera: Camera, scale: float, left_out: dict[str, str], progress: Progress | None
) -> tuple[list[RgbdFrame], list[DepthKeyframe]]:
    """One frame per stretch of little motion, that of the sharpest image, and what was read of it. Frames that cannot be used go
    to `left_out`."""
    chosen: list[tuple[RgbdFrame, DepthKeyframe]] = []
    first: torch.Tensor | None = None
    best_sharpness, reach = 0.0, 0.0
    for k, frame in enumerate(frames):
        if progress:
            progress(k, len(frames), f"depth of {frame.image.name}")
        try:
            grey, new = load_grey(frame.image, camera), True
            metres = load_depth(frame, camera, scale)
        except InputError as error:
            left_out[frame.image.name] = str(error)
            continue
        sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
        if first is not None:
            distance, angle = se3.pose_difference(first, frame.map_from_camera)
            new = float(angle) >= _KEYFRAME_ROTATION_RAD or float(distance) >= reach
            if not new and sharpness <= best_sharpness:
                continue
        best_sharpness, depth = sharpness, without_edges(metres)
        if new:
            first, known = frame.map_from_camera, depth[depth > 0]
            reach = _KEYFRAME_TRANSLATION * float(np.median(known)) if known.size else 0.0
        else:
            chosen.pop()
        chosen.append((frame, DepthKeyframe(frame.map_from_camera, grey, depth)))
    if not chosen:
        raise none_left(f"none of the {len(frames)} images can be used", left_out)
    return [frame for frame, _ in chosen], [keyframe for _, keyframe in chosen]


# ---- depth scale


def find_depth_scale(frames: list[RgbdFrame], camera: Camera) -> float:
    """Units of the depth images per metre, where images and poses say that it is one of the usual ones.

    Raises:
        InputError: They say nothing, as where the camera only turns, or another scale.
    """
    measured = _measured_scale(frames, camera)
    usual = ", ".join(f"{scale:g} {what}" for scale, what in DEPTH_SCALES.items())
    if measured is None:
        raise InputError(
            "images and poses do not tell the unit of the depth images, as the camera hardly moves sideways or little is seen "
            f"twice: give the depth scale (--depth-scale), units per metre ({usual})"
        )
    nearest = min(DEPTH_SCALES, key=lambda scale: abs(np.log(measured / scale)))
    if not _agree(measured, nearest, _USUAL_TOLERANCE):
        raise InputError(
            f"the depth images have about {measured:.4g} units per metre by images and poses, which is none of the usual scales "
            f"({usual}): give the right depth scale (--depth-scale)"
        )
    return nearest


def _agree(a: float, b: float, tolerance: float) -> bool:
    return bool(abs(np.log(a / b)) < np.log1p(tolerance))


def _measured_scale(frames: list[RgbdFrame], camera: Camera) -> float | None:
    chosen = frames[:: max(1, len(frames) // _SCALE_FRAMES)]
    poses = torch.stack([frame.map_from_camera for frame in chosen])
    images = KeyframeFiles([frame.image for frame in chosen], [camera] * len(chosen), poses)
    return measured_depth_scale(images, lambda k: load_depth(chosen[k], camera, 1.0))

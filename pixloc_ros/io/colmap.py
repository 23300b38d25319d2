# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""COLMAP models: read as text or binary of every version from 3.0 to 4.x, and written as text.

Formats: COLMAP's documentation, "Output Format". Since 3.12 a model may also hold rigs and frames, whose poses then count (an
image's pose is that of its camera in the rig times that of the rig in the frame). COLMAP's pixel (0, 0) is the corner of the
top-left pixel. The half pixel is taken off and added here, in cameras (`Camera.from_colmap`) and in observations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, none_left
from ..geometry import se3
from ..geometry.cameras import Camera
from .colmap_files import PARSERS, PARTS, ColmapImages, ColmapPoints, Frames, Rigs
from .files import replacing


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """A sparse reconstruction of K images, P points and M observations.

    Attributes:
        cameras: By COLMAP's id.
        image_ids: int64 [K].
        names: [K], file names relative to the folder of the images.
        camera_ids: int64 [K].
        camera_from_map: float64 [K, 4, 4].
        point_ids: int64 [P].
        xyz: float64 [P, 3], map frame.
        error_px: float64 [P], mean reprojection error, -1 where COLMAP has none.
        observation_image: int64 [M], indices (not ids) of images.
        observation_point: int64 [M], indices (not ids) of points, rising.
        observation_px: float64 [M, 2].
        left_out: Why images of the files are not among the K, by their names.
        trackless: Why there is no observation; empty where there are some.
    """

    cameras: dict[int, Camera]
    image_ids: np.ndarray
    names: list[str]
    camera_ids: np.ndarray
    camera_from_map: torch.Tensor
    point_ids: np.ndarray
    xyz: np.ndarray
    error_px: np.ndarray
    observation_image: np.ndarray
    observation_point: np.ndarray
    observation_px: np.ndarray
    left_out: dict[str, str] = field(default_factory=dict)
    trackless: str = ""


def read_colmap_model(folder: Path, need_points: bool = True) -> ColmapModel:
    """Read the folder of a model; the binary files where both kinds are there.

    Images without a usable pose or camera are left out, and points that are not finite have no observation.

    Args:
        folder: Of the model.
        need_points: Whether a model without points, or whose tracks are wrong, is refused; else it has no observations.

    Raises:
        InputError: Files are missing, cut short or malformed, hold no usable image or no point, or points refer to images or
            observations that are not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of a COLMAP model (cameras, images, points3D as .bin or .txt)")
    for suffix, parsers in PARSERS.items():  # noqa: B007
        files = [folder / f"{part}{suffix}" for part in (*PARTS, "rigs", "frames")]
        if all(file.is_file() for file in files[:3]):
            break
    else:
        raise _missing(folder)
    cameras, images, points = (parse(file) for parse, file in zip(parsers[:3], files))
    rigs, frames = (
        (parse(file) for parse, file in zip(parsers[3:], files[3:])) if all(f.is_file() for f in files[3:]) else ({}, [])
    )

    if len(images.ids) == 0:
        raise InputError(f"{files[1]} holds no image: the COLMAP reconstruction is empty, run the mapper again")
    if len(points.ids) == 0 and need_points:
        raise InputError(f"{files[2]} holds no point: triangulate the model first (colmap point_triangulator)")
    camera_from_map = _image_poses(images, rigs, frames, files[3])
    sound, left_out = torch.isfinite(camera_from_map).flatten(1).all(1).numpy(), {}
    for k, (name, number) in enumerate(zip(images.names, images.cameras.tolist())):
        camera = cameras.get(number, f"{files[1]} refers to camera {number}, which {files[0].name} lacks")
        if not isinstance(camera, Camera):
            left_out[name] = str(camera)
        elif not sound[k]:
            left_out[name] = "its pose is not finite or has a zero quaternion"
    if len(left_out) == len(images.names):
        raise none_left(f"no image of {files[1]} can be used", left_out)
    trackless = ""
    try:
        image, keypoint = _resolve_tracks(images, points, files[1].name, files[2])
    except InputError as error:
        if need_points:
            raise
        image, keypoint, trackless = np.empty(0, np.int64), np.empty(0, np.int64), str(error)
    usable = np.array([name not in left_out for name in images.names])
    point = np.repeat(np.arange(len(points.ids)), points.lengths)[: len(image)]
    seen = usable[image] & np.isfinite(points.xyz).all(1)[point]
    return ColmapModel(
        cameras={number: camera for number, camera in cameras.items() if isinstance(camera, Camera)},
        image_ids=images.ids[usable],
        names=[name for name in images.names if name not in left_out],
        camera_ids=images.cameras[usable],
        camera_from_map=camera_from_map[torch.from_numpy(usable)],
        point_ids=points.ids,
        xyz=points.xyz,
        error_px=points.error,
        observation_image=(np.cumsum(usable) - 1)[image[seen]],
        observation_point=point[seen],
        observation_px=images.keypoints[keypoint[seen]] - 0.5,
        left_out=left_out,
        trackless=trackless or ("" if seen.any() else f"no point of {folder} has a track that images show"),
    )


def write_colmap_model(folder: Path, model: ColmapModel, rgb: np.ndarray) -> None:
    """Write cameras.txt, images.txt and points3D.txt.

    Args:
        folder: Made where it does not exist.
        model: What to write.
        rgb: uint8 [P, 3], the points' colours.

    Raises:
        InputError: The folder cannot be written.
    """
    lines = ["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"]
    for number, camera in model.cameras.items():
        name, params = camera.to_colmap()
        lines.append(f"{number} {name} {camera.width} {camera.height} {' '.join(map(repr, params))}")
    _write_lines(folder / "cameras.txt", lines)

    by_image = np.argsort(model.observation_image, kind="stable")
    starts = np.searchsorted(model.observation_image[by_image], np.arange(len(model.names) + 1))
    quaternions = se3.quaternion_from_rotation(model.camera_from_map[:, :3, :3])[:, [3, 0, 1, 2]]
    poses = torch.cat((quaternions, model.camera_from_map[:, :3, 3]), 1).tolist()
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", "# POINTS2D[] as X Y POINT3D_ID"]
    for k, name in enumerate(model.names):
        rows = by_image[starts[k] : starts[k + 1]]
        seen = zip((model.observation_px[rows] + 0.5).tolist(), model.point_ids[model.observation_point[rows]].tolist())
        lines.append(f"{model.image_ids[k]} {' '.join(map(repr, poses[k]))} {model.camera_ids[k]} {name}")
        lines.append(" ".join(f"{x:.4f} {y:.4f} {point}" for (x, y), point in seen))
    _write_lines(folder / "images.txt", lines)

    keypoint = np.empty(len(by_image), np.int64)
    keypoint[by_image] = np.arange(len(by_image)) - np.repeat(starts[:-1], np.diff(starts))
    image_ids = model.image_ids[model.observation_image].tolist()
    elements = [f"{image} {number}" for image, number in zip(image_ids, keypoint.tolist())]
    starts = np.searchsorted(model.observation_point, np.arange(len(model.xyz) + 1))
    lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK[] as IMAGE_ID POINT2D_IDX"]
    for p, (number, xyz, colour) in enumerate(zip(model.point_ids.tolist(), model.xyz.tolist(), rgb.tolist())):
        numbers = " ".join(map(repr, (*xyz, *colour)))
        lines.append(f"{number} {numbers} {model.error_px[p]:.4f} {' '.join(elements[starts[p] : starts[p + 1]])}")
    _write_lines(folder / "points3D.txt", lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def _missing(folder: Path) -> InputError:
    for suffix in PARSERS:
        lacking = [f"{part}{suffix}" for part in PARTS if not (folder / f"{part}{suffix}").is_file()]
        if len(lacking) < len(PARTS):
            return InputError(f"{folder} lacks {', '.join(lacking)}: export the whole COLMAP model again")
    nested = sorted(p.parent for pattern in ("*/cameras.*", "*/*/cameras.*") for p in folder.glob(pattern) if p.suffix in PARSERS)
    hint = f"did you mean {nested[0]}?" if nested else "it must hold cameras, images and points3D as .bin or .txt"
    return InputError(f"{folder} is not a COLMAP model: {hint}")


def _resolve_tracks(
    images: ColmapImages, points: ColmapPoints, images_name: str, points_file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Index of the image and of the keypoint among all keypoints, int64 [M] each; none where no image holds a keypoint."""
    if not len(images.keypoints):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    image_id, keypoint = points.track.T
    by_id = np.argsort(images.ids, kind="stable")
    image = by_id[np.minimum(np.searchsorted(images.ids[by_id], image_id), len(by_id) - 1)]
    missing = images.ids[image] != image_id
    if missing.any():
        raise InputError(
            f"{points_file} refers to image {image_id[missing][0]}, which {images_name} does not hold: "
            "export the whole model again"
        )
    count = np.diff(images.starts)[image]
    missing = (keypoint < 0) | (keypoint >= count)
    if missing.any():
        row = np.flatnonzero(missing)[0]
        raise InputError(
            f"{points_file} refers to observation {keypoint[row]} of image {image_id[row]}, which has {count[row]}: "
            "export the whole model again"
        )
    return image, images.starts[image] + keypoint


def _image_poses(images: ColmapImages, rigs: Rigs, frames: Frames, rigs_file: Path) -> torch.Tensor:
    """camera_from_map of every image, from the frames where the model has them, as COLMAP does; NaN where that is no pose."""
    camera_from_map = _transforms(images.poses)
    row = {image: k for k, image in enumerate(images.ids.tolist())}
    for rig, pose, data in frames:
        for camera, image in data:
            if image not in row:
                continue
            if (rig, camera) not in rigs:
                raise InputError(f"{rigs_file} has no pose of camera {camera} in rig {rig}: calibrate the rig first")
            camera_from_rig, rig_from_map = _transforms(np.stack((rigs[rig, camera], pose)))
            camera_from_map[row[image]] = camera_from_rig @ rig_from_map
    return camera_from_map


def _transforms(poses: np.ndarray) -> torch.Tensor:
    """[N, 7] (qw, qx, qy, qz, tx, ty, tz) to [N, 4, 4]; NaN for a zero quaternion."""
    values = torch.from_numpy(np.ascontiguousarray(poses, np.float64))
    quaternion = values[:, [1, 2, 3, 0]]
    quaternion = quaternion / quaternion.norm(dim=1, keepdim=True)
    return se3.from_rotation_translation(se3.rotation_from_quaternion(quaternion), values[:, 4:])

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""COLMAP models: read as text or binary of every version from 3.0 to 4.x, and written as text.

Formats: COLMAP's documentation, "Output Format". Since 3.12 a model may also hold rigs and frames, whose poses then count (an
image's pose is that of its camera in the rig times that of the rig in the frame). COLMAP's pixel (0, 0) is the corner of the
top-left pixel. The half pixel is taken off and added here, in cameras (`Camera.from_colmap`) and in observations.
"""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from .files import replacing
from .text import read_text

_MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
    ("SIMPLE_FISHEYE", 3),
    ("FISHEYE", 4),
    ("EUCM", 6),
    ("EQUIRECTANGULAR", 2),
)
"""COLMAP's camera models by the number that binary files use, and how many parameters they have."""
_PARTS = ("cameras", "images", "points3D")
_CAMERA_SENSOR = 0

_IMAGE_HEAD = np.dtype([("id", "<u4"), ("pose", "<f8", 7), ("camera", "<u4")])
_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
_TRACK_ELEMENT = np.dtype([("image", "<u4"), ("keypoint", "<u4")])
_SENSOR = np.dtype([("type", "<i4"), ("id", "<u4")])
_FRAME_HEAD = np.dtype([("id", "<u4"), ("rig", "<u4"), ("pose", "<f8", 7), ("count", "<u4")])
_DATA_ID = np.dtype([("type", "<i4"), ("sensor", "<u4"), ("data", "<u8")])


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


class _Images(NamedTuple):
    """The contents of images.*. Poses are [K, 7] (qw, qx, qy, qz, tx, ty, tz), keypoints [n, 2]; `starts` [K + 1] says where each
    image's keypoints begin."""

    ids: np.ndarray
    poses: np.ndarray
    cameras: np.ndarray
    names: list[str]
    keypoints: np.ndarray
    starts: np.ndarray


class _Points(NamedTuple):
    """The contents of points3D.*. Tracks are int64 [M, 2] (image id, number of its keypoint), `lengths` [P] how long each is."""

    ids: np.ndarray
    xyz: np.ndarray
    error: np.ndarray
    track: np.ndarray
    lengths: np.ndarray


_Rigs = dict[tuple[int, int], np.ndarray]  # (rig, camera) to the pose of the camera in the rig, where that is known
_Frames = list[tuple[int, np.ndarray, list[tuple[int, int]]]]  # rig, its pose, [(camera, image)]
_AT_ORIGIN = np.array([1.0, 0, 0, 0, 0, 0, 0])


def read_colmap_model(folder: Path) -> ColmapModel:
    """Read the folder of a model; the binary files where both kinds are there.

    Raises:
        InputError: Files are missing, cut short or malformed, hold no image or no point, use an unknown camera model, refer to
            something that is not there, or hold numbers that are not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of a COLMAP model (cameras, images, points3D as .bin or .txt)")
    for suffix, parsers in _PARSERS.items():  # noqa: B007
        files = [folder / f"{part}{suffix}" for part in (*_PARTS, "rigs", "frames")]
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
    if len(points.ids) == 0:
        raise InputError(f"{files[2]} holds no point: triangulate the model first (colmap point_triangulator)")
    unknown = set(images.cameras.tolist()) - set(cameras)
    if unknown:
        raise InputError(f"{files[1]} refers to camera {min(unknown)}, which {files[0].name} lacks: export the model again")
    camera_from_map = _image_poses(images, rigs, frames, files[3])
    if not np.isfinite(points.xyz).all():
        bad = points.ids[~np.isfinite(points.xyz).all(1)][0]
        raise InputError(f"{files[2]}: point {bad} is not finite: filter the model and export it again")
    image, keypoint = _resolve_tracks(images, points, files[1].name, files[2])
    observations = image, np.repeat(np.arange(len(points.ids)), points.lengths), images.keypoints[keypoint] - 0.5
    return ColmapModel(cameras, images.ids, images.names, images.cameras, camera_from_map, *points[:3], *observations)


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
    for suffix in _PARSERS:
        lacking = [f"{part}{suffix}" for part in _PARTS if not (folder / f"{part}{suffix}").is_file()]
        if len(lacking) < len(_PARTS):
            return InputError(f"{folder} lacks {', '.join(lacking)}: export the whole COLMAP model again")
    nested = sorted(
        p.parent for pattern in ("*/cameras.*", "*/*/cameras.*") for p in folder.glob(pattern) if p.suffix in _PARSERS
    )
    hint = f"did you mean {nested[0]}?" if nested else "it must hold cameras, images and points3D as .bin or .txt"
    return InputError(f"{folder} is not a COLMAP model: {hint}")


def _resolve_tracks(images: _Images, points: _Points, images_name: str, points_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Index of the image and of the keypoint among all keypoints, int64 [M] each."""
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


def _image_poses(images: _Images, rigs: _Rigs, frames: _Frames, rigs_file: Path) -> torch.Tensor:
    """camera_from_map of every image, from the frames where the model has them, as COLMAP does."""
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
    sound = torch.isfinite(camera_from_map).flatten(1).all(1)
    if not bool(sound.all()):
        name = images.names[int(torch.nonzero(~sound)[0])]
        raise InputError(
            f"{rigs_file.parent}: the pose of image '{name}' is not finite or has a zero quaternion: remove the image"
        )
    return camera_from_map


def _transforms(poses: np.ndarray) -> torch.Tensor:
    """[N, 7] (qw, qx, qy, qz, tx, ty, tz) to [N, 4, 4]; NaN for a zero quaternion."""
    values = torch.from_numpy(np.ascontiguousarray(poses, np.float64))
    quaternion = values[:, [1, 2, 3, 0]]
    quaternion = quaternion / quaternion.norm(dim=1, keepdim=True)
    return se3.from_rotation_translation(se3.rotation_from_quaternion(quaternion), values[:, 4:])


def _camera(path: Path, camera_id: int, model: str, width: int, height: int, params: list[float]) -> Camera:
    try:
        return Camera.from_colmap(model, width, height, params)
    except InputError as error:
        raise InputError(f"{path}: camera {camera_id}: {error}") from None


# ---- binary files


class _Bytes:
    """A little-endian binary file, read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.position = path, path.read_bytes(), 0

    def cut_short(self) -> InputError:
        return InputError(f"{self.path} is cut short at byte {len(self.data)}: copy or export the COLMAP model again")

    def take(self, dtype: np.dtype | str, count: int = 1) -> np.ndarray:
        dtype, start = np.dtype(dtype), self.position
        self.position += count * dtype.itemsize
        if self.position > len(self.data):
            raise self.cut_short()
        return np.ndarray((count,), dtype, self.data, start)

    def number(self, dtype: str = "<u8") -> int:
        return int(self.take(dtype)[0])

    def text(self) -> str:
        """Up to the next zero byte."""
        start, end = self.position, self.data.find(b"\0", self.position)
        if end < 0:
            raise self.cut_short()
        self.position = end + 1
        return os.fsdecode(self.data[start:end])

    def finish(self) -> None:
        if self.position != len(self.data):
            raise InputError(
                f"{self.path} has {len(self.data) - self.position} bytes too many: it is not a COLMAP file of a known version, "
                "export the model as text"
            )


def _binary_cameras(path: Path) -> dict[int, Camera]:
    file, cameras = _Bytes(path), {}
    for _ in range(file.number()):
        camera_id, model, width, height = file.number("<u4"), file.number("<i4"), file.number(), file.number()
        if not 0 <= model < len(_MODELS):
            raise InputError(f"{path}: camera {camera_id} has the unknown model number {model}: undistort the images with COLMAP")
        name, parameters = _MODELS[model]
        params = file.take("<f8", parameters).tolist()
        cameras[camera_id] = _camera(path, camera_id, name, width, height, params)
    file.finish()
    return cameras


def _binary_images(path: Path) -> _Images:
    file = _Bytes(path)
    heads, names, keypoints = [np.empty(0, _IMAGE_HEAD)], [], [np.empty((0, 2))]
    for _ in range(file.number()):
        heads.append(file.take(_IMAGE_HEAD))
        names.append(file.text())
        keypoints.append(file.take(_KEYPOINT, file.number())["xy"])
    file.finish()
    head, starts = np.concatenate(heads), np.cumsum([len(xy) for xy in keypoints])
    ids, cameras = (head[name].astype(np.int64) for name in ("id", "camera"))
    return _Images(ids, head["pose"], cameras, names, np.concatenate(keypoints), starts)


def _binary_points(path: Path) -> _Points:
    """Walks over the lengths of the tracks, then gathers all points and tracks at once."""
    file = _Bytes(path)
    count, size = file.number(), len(file.data)
    if count * _POINT.itemsize > size - file.position:
        raise file.cut_short()
    starts, position = np.empty(count, np.int64), file.position
    read_length, length_at = struct.Struct("<Q").unpack_from, _POINT.fields["length"][1]
    for k in range(count):
        # The length of the track before may be any 64-bit number.
        if position + _POINT.itemsize > size:
            raise file.cut_short()
        starts[k] = position
        position += _POINT.itemsize + read_length(file.data, position + length_at)[0] * _TRACK_ELEMENT.itemsize
    if position > size:
        raise file.cut_short()
    file.position = position
    file.finish()
    data, in_track = np.frombuffer(file.data, np.uint8), np.ones(size, bool)
    heads = starts[:, None] + np.arange(_POINT.itemsize)
    points = data[heads].view(_POINT)[:, 0]
    in_track[:8] = in_track[heads] = False
    track = data[in_track].view(_TRACK_ELEMENT)
    ids, lengths = (points[name].astype(np.int64) for name in ("id", "length"))
    track = np.stack((track["image"], track["keypoint"]), 1).astype(np.int64)
    return _Points(ids, np.ascontiguousarray(points["xyz"]), np.ascontiguousarray(points["error"]), track, lengths)


def _binary_rigs(path: Path) -> _Rigs:
    file, poses = _Bytes(path), {}
    for _ in range(file.number()):
        rig, sensors = file.number("<u4"), file.number("<u4")
        for k in range(sensors):
            sensor = file.take(_SENSOR)[0]
            pose = _AT_ORIGIN if k == 0 else file.take("<f8", 7) if file.number("u1") else None
            if sensor["type"] == _CAMERA_SENSOR and pose is not None:
                poses[rig, int(sensor["id"])] = pose
    file.finish()
    return poses


def _binary_frames(path: Path) -> _Frames:
    file, frames = _Bytes(path), []
    for _ in range(file.number()):
        head = file.take(_FRAME_HEAD)[0]
        data = file.take(_DATA_ID, int(head["count"]))
        data = data[data["type"] == _CAMERA_SENSOR]
        frames.append((int(head["rig"]), head["pose"], list(zip(data["sensor"].tolist(), data["data"].tolist()))))
    file.finish()
    return frames


# ---- text files


def _lines(path: Path, blank: bool = False) -> list[tuple[int, str]]:
    """Numbered lines without the comments and, unless wanted, the blank ones."""
    lines = enumerate(read_text(path, "export the COLMAP model again", "surrogateescape").split("\n"), 1)
    return [(number, line) for number, line in lines if not line.startswith("#") and (blank or line.strip())]


def _malformed(path: Path, number: int, expected: str) -> InputError:
    return InputError(f"{path}, line {number}: expected {expected}: export the COLMAP model again")


def _numbers(path: Path, lines: list[tuple[int, str]], expected: str, head: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of the lines one after another, float64, and how many each line has: `head`, and groups after them."""
    counts = np.array([len(line.split()) for _, line in lines], np.int64)
    values = _parse("\n".join(line for _, line in lines))
    wrong = (counts < head) | ((counts - head) % group != 0)
    if values is None or len(values) != counts.sum():
        parsed = [_parse(line) for _, line in lines]
        wrong = np.array([v is None or len(v) != count for v, count in zip(parsed, counts)])
        values = np.concatenate([np.empty(0), *(v for v in parsed if v is not None)])
    if wrong.any():
        raise _malformed(path, lines[int(wrong.argmax())][0], expected)
    return values, counts


def _parse(text: str) -> np.ndarray | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, np.float64, sep=" ") if text.strip() else np.empty(0)
        except (DeprecationWarning, ValueError):
            return None


def _text_cameras(path: Path) -> dict[int, Camera]:
    cameras = {}
    for number, line in _lines(path):
        words = line.split()
        try:
            camera_id, width, height = int(words[0]), int(words[2]), int(words[3])
            params = [float(word) for word in words[4:]]
        except (IndexError, ValueError):
            raise _malformed(path, number, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS...") from None
        cameras[camera_id] = _camera(path, camera_id, words[1], width, height, params)
    return cameras


def _text_images(path: Path) -> _Images:
    heads, names, keypoint_lines = [], [], []
    lines = iter(_lines(path, blank=True))
    for number, line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        values = _parse(" ".join(words[:9]))
        if len(words) < 10 or values is None or len(values) != 9:
            raise _malformed(path, number, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
        heads.append(values)
        names.append(words[9].rstrip())
        keypoint_lines.append(next(lines, (number + 1, "")))
    head = np.array(heads).reshape(-1, 9)
    values, counts = _numbers(path, keypoint_lines, "X Y POINT3D_ID of each observation", 0, 3)
    ids, cameras = head[:, 0].astype(np.int64), head[:, 8].astype(np.int64)
    return _Images(ids, head[:, 1:8], cameras, names, values.reshape(-1, 3)[:, :2], np.cumsum([0, *counts // 3]))


def _text_points(path: Path) -> _Points:
    lines = _lines(path)
    expected = "POINT3D_ID X Y Z R G B ERROR and IMAGE_ID POINT2D_IDX of each observation"
    values, counts = _numbers(path, lines, expected, 8, 2)
    heads = np.cumsum([0, *counts])[:-1, None] + np.arange(8)
    head, in_track = values[heads].reshape(-1, 8), np.ones(len(values), bool)
    in_track[heads] = False
    track = values[in_track].astype(np.int64).reshape(-1, 2)
    return _Points(head[:, 0].astype(np.int64), head[:, 1:4].copy(), head[:, 7].copy(), track, (counts - 8) // 2)


def _text_rigs(path: Path) -> _Rigs:
    poses = {}
    for number, line in _lines(path):
        words = iter(line.split())
        try:
            for rig in words:
                for k in range(int(next(words))):
                    kind, camera, pose = next(words), int(next(words)), _AT_ORIGIN
                    if k > 0:
                        pose = np.array([float(next(words)) for _ in range(7)]) if int(next(words)) else None
                    if kind == "CAMERA" and pose is not None:
                        poses[int(rig), camera] = pose
        except (StopIteration, ValueError):
            raise _malformed(path, number, "RIG_ID NUM_SENSORS and the sensors") from None
    return poses


def _text_frames(path: Path) -> _Frames:
    frames = []
    for number, line in _lines(path):
        words = line.split()
        try:
            rig, pose, count = int(words[1]), np.array([float(word) for word in words[2:9]]), int(words[9])
            data = [(words[k], int(words[k + 1]), int(words[k + 2])) for k in range(10, 10 + 3 * count, 3)]
        except (IndexError, ValueError):
            raise _malformed(path, number, "FRAME_ID RIG_ID RIG_FROM_WORLD NUM_DATA_IDS and the ids") from None
        frames.append((rig, pose, [(camera, image) for kind, camera, image in data if kind == "CAMERA"]))
    return frames


_PARSERS = {
    ".bin": (_binary_cameras, _binary_images, _binary_points, _binary_rigs, _binary_frames),
    ".txt": (_text_cameras, _text_images, _text_points, _text_rigs, _text_frames),
}

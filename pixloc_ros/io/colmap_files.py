# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The files of COLMAP models, as they are: binary and text."""

from __future__ import annotations

import os
import struct
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..geometry.cameras import Camera
from .text import read_text

PARTS = ("cameras", "images", "points3D")
"""Names of the files that every model has."""
MODELS = (
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
_CAMERA_SENSOR = 0

_IMAGE_HEAD = np.dtype([("id", "<u4"), ("pose", "<f8", 7), ("camera", "<u4")])
_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
_TRACK_ELEMENT = np.dtype([("image", "<u4"), ("keypoint", "<u4")])
_SENSOR = np.dtype([("type", "<i4"), ("id", "<u4")])
_FRAME_HEAD = np.dtype([("id", "<u4"), ("rig", "<u4"), ("pose", "<f8", 7), ("count", "<u4")])
_DATA_ID = np.dtype([("type", "<i4"), ("sensor", "<u4"), ("data", "<u8")])


class ColmapImages(NamedTuple):
    """The contents of images.*. Poses are [K, 7] (qw, qx, qy, qz, tx, ty, tz), keypoints [n, 2]; `starts` [K + 1] says where each
    image's keypoints begin."""

    ids: np.ndarray
    poses: np.ndarray
    cameras: np.ndarray
    names: list[str]
    keypoints: np.ndarray
    starts: np.ndarray


class ColmapPoints(NamedTuple):
    """The contents of points3D.*. Tracks are int64 [M, 2] (image id, number of its keypoint), `lengths` [P] how long each is."""

    ids: np.ndarray
    xyz: np.ndarray
    error: np.ndarray
    track: np.ndarray
    lengths: np.ndarray


Rigs = dict[tuple[int, int], np.ndarray]  # (rig, camera) to the pose of the camera in the rig, where that is known
Frames = list[tuple[int, np.ndarray, list[tuple[int, int]]]]  # rig, its pose, [(camera, image)]
_AT_ORIGIN = np.array([1.0, 0, 0, 0, 0, 0, 0])


def _camera(path: Path, camera_id: int, model: str, width: int, height: int, params: list[float]) -> Camera | InputError:
    """The camera, or the error it gives: it spoils the images that use it, not the model."""
    try:
        return Camera.from_colmap(model, width, height, params)
    except InputError as error:
        return InputError(f"{path}: camera {camera_id}: {error}")


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


def _binary_cameras(path: Path) -> dict[int, Camera | InputError]:
    file, cameras = _Bytes(path), {}
    for _ in range(file.number()):
        camera_id, model, width, height = file.number("<u4"), file.number("<i4"), file.number(), file.number()
        if not 0 <= model < len(MODELS):
            raise InputError(f"{path}: camera {camera_id} has the unknown model number {model}: undistort the images with COLMAP")
        name, parameters = MODELS[model]
        params = file.take("<f8", parameters).tolist()
        cameras[camera_id] = _camera(path, camera_id, name, width, height, params)
    file.finish()
    return cameras


def _binary_images(path: Path) -> ColmapImages:
    file = _Bytes(path)
    heads, names, keypoints = [np.empty(0, _IMAGE_HEAD)], [], [np.empty((0, 2))]
    for _ in range(file.number()):
        heads.append(file.take(_IMAGE_HEAD))
        names.append(file.text())
        keypoints.append(file.take(_KEYPOINT, file.number())["xy"])
    file.finish()
    head, starts = np.concatenate(heads), np.cumsum([len(xy) for xy in keypoints])
    ids, cameras = (head[name].astype(np.int64) for name in ("id", "camera"))
    return ColmapImages(ids, head["pose"], cameras, names, np.concatenate(keypoints), starts)


def _binary_points(path: Path) -> ColmapPoints:
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
    return ColmapPoints(ids, np.ascontiguousarray(points["xyz"]), np.ascontiguousarray(points["error"]), track, lengths)


def _binary_rigs(path: Path) -> Rigs:
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


def _binary_frames(path: Path) -> Frames:
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
    values, counts = array("d"), []
    for number, line in lines:
        words = line.split()
        try:
            values.extend(map(float, words))
        except ValueError:
            raise _malformed(path, number, expected) from None
        if len(words) < head or (len(words) - head) % group:
            raise _malformed(path, number, expected)
        counts.append(len(words))
    return np.array(values), np.array(counts, np.int64)


def _text_cameras(path: Path) -> dict[int, Camera | InputError]:
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


def _text_images(path: Path) -> ColmapImages:
    heads, names, keypoint_lines = [], [], []
    lines = iter(_lines(path, blank=True))
    for number, line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        expected = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
        if len(words) < 10:
            raise _malformed(path, number, expected)
        values, _ = _numbers(path, [(number, " ".join(words[:9]))], expected, 9, 1)
        heads.append(values)
        names.append(words[9].rstrip())
        keypoint_lines.append(next(lines, (number + 1, "")))
    head = np.array(heads).reshape(-1, 9)
    values, counts = _numbers(
        path, keypoint_lines, "X Y POINT3D_ID of each observation (the second line of an image, which may be empty)", 0, 3
    )
    ids, cameras = head[:, 0].astype(np.int64), head[:, 8].astype(np.int64)
    return ColmapImages(ids, head[:, 1:8], cameras, names, values.reshape(-1, 3)[:, :2], np.cumsum([0, *counts // 3]))


def _text_points(path: Path) -> ColmapPoints:
    lines = _lines(path)
    expected = "POINT3D_ID X Y Z R G B ERROR and IMAGE_ID POINT2D_IDX of each observation"
    values, counts = _numbers(path, lines, expected, 8, 2)
    heads = np.cumsum([0, *counts])[:-1, None] + np.arange(8)
    head, in_track = values[heads].reshape(-1, 8), np.ones(len(values), bool)
    in_track[heads] = False
    track = values[in_track].astype(np.int64).reshape(-1, 2)
    return ColmapPoints(head[:, 0].astype(np.int64), head[:, 1:4].copy(), head[:, 7].copy(), track, (counts - 8) // 2)


def _text_rigs(path: Path) -> Rigs:
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


def _text_frames(path: Path) -> Frames:
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


PARSERS = {
    ".bin": (_binary_cameras, _binary_images, _binary_points, _binary_rigs, _binary_frames),
    ".txt": (_text_cameras, _text_images, _text_points, _text_rigs, _text_frames),
}
"""By suffix, what reads cameras, images, points, rigs and frames."""

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""COLMAP models, text and binary, of every version from 3.0 to 4.x, and maps made from them.

Formats: COLMAP's documentation, "Output Format"; since 3.12 a model may also hold rigs and frames, whose poses then
count (an image's pose is that of its camera in the rig times that of the rig in the frame). COLMAP's pixel (0, 0) is
the corner of the top-left pixel: the half pixel is taken off here, in cameras (`Camera.from_colmap`) and in
observations.
"""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...features import Extractor
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.work_folder import WorkFolder
from ..map_file import Map
from .building import BuildReport, PosedImages, Progress, build_map

_MODELS = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
    "SIMPLE_DIVISION",
    "DIVISION",
    "SIMPLE_FISHEYE",
    "FISHEYE",
    "EUCM",
    "EQUIRECTANGULAR",
)
"""COLMAP's camera models by the number that binary files use."""
_PARAMETER_COUNTS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16, 4, 5, 3, 4, 6, 2)
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
    """A sparse reconstruction.

    cameras: by COLMAP's id. image_ids: int64 [K]. names: [K]. camera_ids: int64 [K]. camera_from_map: float64 [K, 4,
    4]. point_ids: int64 [P]. xyz: float64 [P, 3]. error_px: float64 [P], mean reprojection error, -1 where COLMAP has
    none. observation_image, observation_point: int64 [M], indices (not ids), by point. observation_px: float64 [M,
    2].
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


@dataclass
class _Raw:
    """The contents of a model's files, ids not yet resolved. Poses are (qw, qx, qy, qz, tx, ty, tz).

    keypoints_start: int64 [K + 1]. track_start: int64 [P + 1]. sensor_poses: (rig, camera) to pose, None for the
    origin. frames: (rig, pose, [(camera, image)]).
    """

    cameras: dict[int, Camera]
    image_ids: np.ndarray
    image_poses: np.ndarray
    image_cameras: np.ndarray
    names: list[str]
    keypoints: np.ndarray
    keypoints_start: np.ndarray
    point_ids: np.ndarray
    xyz: np.ndarray
    error: np.ndarray
    track_images: np.ndarray
    track_keypoints: np.ndarray
    track_start: np.ndarray
    sensor_poses: dict[tuple[int, int], np.ndarray | None]
    frames: list[tuple[int, np.ndarray, list[tuple[int, int]]]]


def read_colmap_model(folder: Path) -> ColmapModel:
    """Read a model's folder, binary files first where both kinds are there.

    Raises InputError where files are missing, cut short or malformed, hold no image or no point, use an unknown
    camera model, refer to what is not there, or hold numbers that are not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of a COLMAP model (cameras, images, points3D as .bin or .txt)")
    for suffix in (".bin", ".txt"):
        if all((folder / f"{part}{suffix}").is_file() for part in _PARTS):
            break
    else:
        raise _missing(folder)
    raw = (_read_binary if suffix == ".bin" else _read_text)(folder)
    return _resolve(raw, folder, suffix)


def build_map_from_colmap(
    model: Path,
    images: Path,
    extractor: Extractor,
    min_track_length: int = 2,
    max_error_px: float = 4.0,
    working_side: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> tuple[Map, BuildReport]:
    """Map of a COLMAP model and its images.

    Points seen by fewer than `min_track_length` images are left out, as are single observations that lie more than
    `max_error_px` from where the point projects. name: the map's, the model's folder by default. Images that are
    missing are left out and reported. work: as of `build_map`. Raises InputError as `read_colmap_model` and `build_map` do.
    """
    reconstruction = read_colmap_model(model)
    images = Path(images)
    if not images.is_dir():
        raise InputError(f"no folder {images}: give the folder that the model's image names are relative to")
    image, point = _good_observations(reconstruction, min_track_length, max_error_px)
    if len(point) == 0:
        raise InputError(
            f"{model} has no point that {min_track_length} images see within {max_error_px:g} pixels: "
            "lower the least track length or check the reconstruction"
        )
    source = PosedImages(
        name or Path(model).resolve().name,
        [images / image_name for image_name in reconstruction.names],
        reconstruction.names,
        [reconstruction.cameras[camera] for camera in reconstruction.camera_ids.tolist()],
        se3.inverse(reconstruction.camera_from_map),
        np.full(len(reconstruction.names), -1, np.int64),
        reconstruction.xyz,
        image,
        point,
    )
    return build_map(source, extractor, working_side, progress, work)


def _good_observations(model: ColmapModel, min_track_length: int, max_error_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Image and point of each observation to use, each pair once."""
    error = np.full(len(model.observation_point), np.inf)
    order = np.argsort(model.observation_image, kind="stable")
    bounds = np.searchsorted(model.observation_image[order], np.arange(len(model.names) + 1))
    for k, camera in enumerate(model.camera_ids.tolist()):
        rows = order[bounds[k] : bounds[k + 1]]
        xyz = se3.transform(model.camera_from_map[k], torch.from_numpy(model.xyz[model.observation_point[rows]]))
        pixels, valid = model.cameras[camera].project(xyz)
        distance = np.linalg.norm(pixels.numpy() - model.observation_px[rows], axis=1)
        error[rows] = np.where(valid.numpy(), distance, np.inf)
    good = error <= max_error_px
    pairs = np.unique(np.stack((model.observation_point[good], model.observation_image[good])), axis=1)
    length = np.bincount(pairs[0], minlength=len(model.xyz))
    pairs = pairs[:, length[pairs[0]] >= min_track_length]
    return pairs[1], pairs[0]


def _missing(folder: Path) -> InputError:
    present = [suffix for suffix in (".bin", ".txt") if any((folder / f"{part}{suffix}").is_file() for part in _PARTS)]
    if present:
        lacking = [f"{part}{present[0]}" for part in _PARTS if not (folder / f"{part}{present[0]}").is_file()]
        return InputError(f"{folder} lacks {', '.join(lacking)}: export the whole COLMAP model again")
    nested = sorted(
        path.parent
        for pattern in ("*/cameras.*", "*/*/cameras.*")
        for path in folder.glob(pattern)
        if path.suffix in (".bin", ".txt")
    )
    hint = f"did you mean {nested[0]}?" if nested else "it must hold cameras, images and points3D as .bin or .txt"
    return InputError(f"{folder} is not a COLMAP model: {hint}")


# ---- ids to indices


def _resolve(raw: _Raw, folder: Path, suffix: str) -> ColmapModel:
    images_file, points_file = folder / f"images{suffix}", folder / f"points3D{suffix}"
    if len(raw.image_ids) == 0:
        raise InputError(f"{images_file} holds no image: the COLMAP reconstruction is empty, run the mapper again")
    if len(raw.point_ids) == 0:
        raise InputError(f"{points_file} holds no point: triangulate the model first (colmap point_triangulator)")
    unknown = set(raw.image_cameras.tolist()) - set(raw.cameras)
    if unknown:
        raise InputError(f"{images_file} refers to camera {min(unknown)}, which cameras{suffix} lacks: export the model again")
    camera_from_map = _image_poses(raw, folder, suffix)
    if not np.isfinite(raw.xyz).all():
        bad = raw.point_ids[~np.isfinite(raw.xyz).all(1)][0]
        raise InputError(f"{points_file}: point {bad} is not finite: filter the model and export it again")

    by_id = np.argsort(raw.image_ids, kind="stable")
    place = np.searchsorted(raw.image_ids[by_id], raw.track_images)
    image = by_id[np.minimum(place, len(by_id) - 1)]
    missing = raw.image_ids[image] != raw.track_images
    if missing.any():
        raise InputError(
            f"{points_file} refers to image {raw.track_images[missing][0]}, which {images_file.name} does not hold: "
            "export the whole model again"
        )
    count = np.diff(raw.keypoints_start)
    missing = (raw.track_keypoints < 0) | (raw.track_keypoints >= count[image])
    if missing.any():
        row = np.flatnonzero(missing)[0]
        raise InputError(
            f"{points_file} refers to observation {raw.track_keypoints[row]} of image {raw.track_images[row]}, "
            f"which has {count[image[row]]}: export the whole model again"
        )
    keypoints = raw.keypoints[raw.keypoints_start[image] + raw.track_keypoints]
    return ColmapModel(
        raw.cameras,
        raw.image_ids,
        raw.names,
        raw.image_cameras,
        camera_from_map,
        raw.point_ids,
        raw.xyz,
        raw.error,
        image,
        np.repeat(np.arange(len(raw.point_ids)), np.diff(raw.track_start)),
        keypoints - 0.5,
    )


def _image_poses(raw: _Raw, folder: Path, suffix: str) -> torch.Tensor:
    """camera_from_map of every image, from the frames where the model has them, like COLMAP does."""
    camera_from_map = _transforms(raw.image_poses)
    row = {image: k for k, image in enumerate(raw.image_ids.tolist())}
    for rig, pose, data in raw.frames:
        rig_from_map = _transforms(pose[None])[0]
        for camera, image in data:
            if image not in row:
                continue
            sensor = raw.sensor_poses.get((rig, camera), _UNPOSED)
            if sensor is _UNPOSED:
                raise InputError(
                    f"{folder / f'rigs{suffix}'} gives camera {camera} of rig {rig} no pose: calibrate the rig first"
                )
            camera_from_map[row[image]] = rig_from_map if sensor is None else _transforms(sensor[None])[0] @ rig_from_map
    sound = torch.isfinite(camera_from_map).flatten(1).all(1)
    if not bool(sound.all()):
        name = raw.names[int(torch.nonzero(~sound)[0])]
        raise InputError(f"{folder}: the pose of image '{name}' is not finite or has a zero quaternion: remove the image")
    return camera_from_map


_UNPOSED = np.zeros(0)


def _transforms(poses: np.ndarray) -> torch.Tensor:
    """[N, 7] (qw, qx, qy, qz, tx, ty, tz) to [N, 4, 4]; NaN for a zero quaternion."""
    values = torch.from_numpy(np.ascontiguousarray(poses, np.float64))
    quaternion = values[:, [1, 2, 3, 0]]
    quaternion = quaternion / quaternion.norm(dim=1, keepdim=True)
    return se3.from_rotation_translation(se3.rotation_from_quaternion(quaternion), values[:, 4:])


# ---- binary files


class _Bytes:
    """A little-endian binary file, read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = np.fromfile(path, np.uint8)
        self.position = 0

    def cut_short(self) -> InputError:
        return InputError(f"{self.path} is cut short at byte {len(self.data)}: copy or export the COLMAP model again")

    def take(self, dtype: np.dtype | str, count: int = 1) -> np.ndarray:
        dtype = np.dtype(dtype)
        end = self.position + count * dtype.itemsize
        if end > len(self.data):
            raise self.cut_short()
        values = self.data[self.position : end].view(dtype)
        self.position = end
        return values

    def number(self, dtype: str = "<u8") -> int:
        return int(self.take(dtype)[0])

    def text(self) -> str:
        """Up to the next zero byte."""
        chunk = 256
        while True:
            zeros = np.flatnonzero(self.data[self.position : self.position + chunk] == 0)
            if zeros.size:
                break
            if self.position + chunk >= len(self.data):
                raise self.cut_short()
            chunk *= 4
        value = os.fsdecode(self.data[self.position : self.position + zeros[0]].tobytes())
        self.position += int(zeros[0]) + 1
        return value

    def finish(self) -> None:
        if self.position != len(self.data):
            raise InputError(
                f"{self.path} has {len(self.data) - self.position} bytes too many: it is not a COLMAP file "
                "of a known version, export the model as text"
            )


def _read_binary(folder: Path) -> _Raw:
    cameras = _binary_cameras(folder / "cameras.bin")
    ids, poses, camera_ids, names, keypoints, keypoints_start = _binary_images(folder / "images.bin")
    points, track, track_start = _binary_points(folder / "points3D.bin")
    rigs_file, frames_file = folder / "rigs.bin", folder / "frames.bin"
    with_rigs = rigs_file.is_file() and frames_file.is_file()
    return _Raw(
        cameras,
        ids,
        poses,
        camera_ids,
        names,
        keypoints,
        keypoints_start,
        points["id"].astype(np.int64),
        np.ascontiguousarray(points["xyz"]),
        np.ascontiguousarray(points["error"]),
        track["image"].astype(np.int64),
        track["keypoint"].astype(np.int64),
        track_start,
        _binary_rigs(rigs_file) if with_rigs else {},
        _binary_frames(frames_file) if with_rigs else [],
    )


def _binary_cameras(path: Path) -> dict[int, Camera]:
    file = _Bytes(path)
    cameras = {}
    for _ in range(file.number()):
        camera_id, model = file.number("<u4"), file.number("<i4")
        width, height = file.number(), file.number()
        if not 0 <= model < len(_MODELS):
            raise InputError(f"{path}: camera {camera_id} has the unknown model number {model}: undistort the images with COLMAP")
        params = file.take("<f8", _PARAMETER_COUNTS[model]).tolist()
        cameras[camera_id] = _camera(path, camera_id, _MODELS[model], width, height, params)
    file.finish()
    return cameras


def _camera(path: Path, camera_id: int, model: str, width: int, height: int, params: list[float]) -> Camera:
    try:
        return Camera.from_colmap(model, width, height, params)
    except InputError as error:
        raise InputError(f"{path}: camera {camera_id}: {error}") from None


def _binary_images(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], np.ndarray, np.ndarray]:
    file = _Bytes(path)
    heads, names, keypoints, start = [], [], [], [0]
    for _ in range(file.number()):
        heads.append(file.take(_IMAGE_HEAD))
        names.append(file.text())
        keypoints.append(file.take(_KEYPOINT, file.number())["xy"])
        start.append(start[-1] + len(keypoints[-1]))
    file.finish()
    head = np.concatenate(heads) if heads else np.empty(0, _IMAGE_HEAD)
    xy = np.concatenate(keypoints) if keypoints else np.empty((0, 2))
    return head["id"].astype(np.int64), head["pose"], head["camera"].astype(np.int64), names, xy, np.array(start)


def _binary_points(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, track elements, and where each point's track starts. Walks over the lengths, then gathers all at
    once."""
    file = _Bytes(path)
    count = file.number()
    data, position, size = file.data, file.position, len(file.data)
    if count * _POINT.itemsize > size - position:
        raise file.cut_short()
    starts = np.empty(count + 1, np.int64)
    length_at, read_length, view = _POINT.fields["length"][1], struct.Struct("<Q").unpack_from, memoryview(data)
    for k in range(count):
        # The length of the track before may be any 64-bit number.
        if position + _POINT.itemsize > size:
            raise file.cut_short()
        starts[k] = position
        position += _POINT.itemsize + read_length(view, position + length_at)[0] * _TRACK_ELEMENT.itemsize
    if position > size:
        raise file.cut_short()
    starts[count] = position
    file.position = position
    file.finish()
    points = data[starts[:-1, None] + np.arange(_POINT.itemsize)].view(_POINT)[:, 0]
    in_track = np.ones(size, bool)
    in_track[:8] = False
    in_track[starts[:-1, None] + np.arange(_POINT.itemsize)] = False
    track = data[in_track].view(_TRACK_ELEMENT)
    return points, track, np.concatenate(([0], np.cumsum(points["length"].astype(np.int64))))


def _binary_rigs(path: Path) -> dict[tuple[int, int], np.ndarray | None]:
    file = _Bytes(path)
    poses: dict[tuple[int, int], np.ndarray | None] = {}
    for _ in range(file.number()):
        rig, sensors = file.number("<u4"), file.number("<u4")
        for k in range(sensors):
            sensor = file.take(_SENSOR)[0]
            pose = None if k == 0 else file.take("<f8", 7) if file.number("u1") else _UNPOSED
            if sensor["type"] == _CAMERA_SENSOR:
                poses[rig, int(sensor["id"])] = pose
    file.finish()
    return poses


def _binary_frames(path: Path) -> list[tuple[int, np.ndarray, list[tuple[int, int]]]]:
    file = _Bytes(path)
    frames = []
    for _ in range(file.number()):
        head = file.take(_FRAME_HEAD)[0]
        data = file.take(_DATA_ID, int(head["count"]))
        data = data[data["type"] == _CAMERA_SENSOR]
        frames.append((int(head["rig"]), head["pose"], list(zip(data["sensor"].tolist(), data["data"].tolist()))))
    file.finish()
    return frames


# ---- text files


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines without the comments."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    return [(k, line) for k, line in enumerate(text.split("\n"), 1) if not line.startswith("#")]


def _malformed(path: Path, number: int, expected: str) -> InputError:
    return InputError(f"{path}, line {number}: expected {expected}: export the COLMAP model again")


def _numbers(path: Path, lines: list[tuple[int, str]], expected: str) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of the lines one after another, float64, and how many each line has."""
    counts = np.array([len(line.split()) for _, line in lines], np.int64)
    values = _parse("\n".join(line for _, line in lines))
    if values is None or len(values) != counts.sum():
        for (number, line), count in zip(lines, counts):
            values = _parse(line)
            if values is None or len(values) != count:
                raise _malformed(path, number, expected)
    return values, counts


def _parse(text: str) -> np.ndarray | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, np.float64, sep=" ") if text.strip() else np.empty(0)
        except (DeprecationWarning, ValueError):
            return None


def _read_text(folder: Path) -> _Raw:
    cameras = _text_cameras(folder / "cameras.txt")
    ids, poses, camera_ids, names, keypoints, keypoints_start = _text_images(folder / "images.txt")
    point_ids, xyz, error, track, track_start = _text_points(folder / "points3D.txt")
    rigs_file, frames_file = folder / "rigs.txt", folder / "frames.txt"
    with_rigs = rigs_file.is_file() and frames_file.is_file()
    return _Raw(
        cameras,
        ids,
        poses,
        camera_ids,
        names,
        keypoints,
        keypoints_start,
        point_ids,
        xyz,
        error,
        track[:, 0],
        track[:, 1],
        track_start,
        _text_rigs(rigs_file) if with_rigs else {},
        _text_frames(frames_file) if with_rigs else [],
    )


def _text_cameras(path: Path) -> dict[int, Camera]:
    cameras = {}
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        try:
            camera_id, width, height = int(words[0]), int(words[2]), int(words[3])
            params = [float(word) for word in words[4:]]
        except (IndexError, ValueError):
            raise _malformed(path, number, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS...") from None
        cameras[camera_id] = _camera(path, camera_id, words[1], width, height, params)
    return cameras


def _text_images(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], np.ndarray, np.ndarray]:
    heads, names, keypoint_lines = [], [], []
    lines = iter(_lines(path))
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
    values, counts = _numbers(path, keypoint_lines, "X Y POINT3D_ID of each observation")
    odd = np.flatnonzero(counts % 3)
    if odd.size:
        raise _malformed(path, keypoint_lines[odd[0]][0], "X Y POINT3D_ID of each observation")
    start = np.concatenate(([0], np.cumsum(counts // 3)))
    return (head[:, 0].astype(np.int64), head[:, 1:8], head[:, 8].astype(np.int64), names, values.reshape(-1, 3)[:, :2], start)


def _text_points(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    expected = "POINT3D_ID X Y Z R G B ERROR and IMAGE_ID POINT2D_IDX of each observation"
    lines = [(number, line) for number, line in _lines(path) if line.strip()]
    values, counts = _numbers(path, lines, expected)
    odd = np.flatnonzero((counts < 8) | (counts % 2 == 1))
    if odd.size:
        raise _malformed(path, lines[odd[0]][0], expected)
    start = np.concatenate(([0], np.cumsum(counts)))[:-1]
    head = values[start[:, None] + np.arange(8)] if len(lines) else np.empty((0, 8))
    in_track = np.ones(len(values), bool)
    in_track[start[:, None] + np.arange(8)] = False
    track = values[in_track].astype(np.int64).reshape(-1, 2)
    return (
        head[:, 0].astype(np.int64),
        head[:, 1:4].copy(),
        head[:, 7].copy(),
        track,
        np.concatenate(([0], np.cumsum((counts - 8) // 2))),
    )


def _text_rigs(path: Path) -> dict[tuple[int, int], np.ndarray | None]:
    poses: dict[tuple[int, int], np.ndarray | None] = {}
    for number, line in _lines(path):
        words = iter(line.split())
        try:
            for rig in words:
                for k in range(int(next(words))):
                    kind, camera = next(words), int(next(words))
                    pose = None
                    if k > 0:
                        has_pose = int(next(words))
                        pose = np.array([float(next(words)) for _ in range(7)]) if has_pose else _UNPOSED
                    if kind == "CAMERA":
                        poses[int(rig), camera] = pose
        except (StopIteration, ValueError):
            raise _malformed(path, number, "RIG_ID NUM_SENSORS and the sensors") from None
    return poses


def _text_frames(path: Path) -> list[tuple[int, np.ndarray, list[tuple[int, int]]]]:
    frames = []
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        try:
            rig, pose, count = int(words[1]), np.array([float(word) for word in words[2:9]]), int(words[9])
            data = [(words[k], int(words[k + 1]), int(words[k + 2])) for k in range(10, 10 + 3 * count, 3)]
        except (IndexError, ValueError):
            raise _malformed(path, number, "FRAME_ID RIG_ID RIG_FROM_WORLD NUM_DATA_IDS and the ids") from None
        frames.append((rig, pose, [(camera, image) for kind, camera, image in data if kind == "CAMERA"]))
    return frames

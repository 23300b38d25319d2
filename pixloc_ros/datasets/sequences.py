# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Sequences of the TUM RGB-D, EuRoC MAV and KITTI odometry benchmarks, each a folder of files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.files import find_file
from ..io.text import read_lines, read_table, read_text
from ..io.trajectory import Trajectory, parse_pose, read_tum
from ..io.tum import read_camera, read_stamped_files
from .recording import BASE_FROM_OPTICAL, EPOCH_NS, Recording, aligned_depth_files, image_size, need_folder, picture_files, rigid

_TUM_CALIBRATION = {
    1: (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    2: (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    3: (535.4, 539.2, 320.1, 247.6),
}
"""fx fy cx cy k1 k2 p1 p2 k3 of the colour cameras, from the benchmark's page on file formats (OpenCV's convention)."""
_EUROC = "EuRoC's sequences in the ASL layout have it"
_EUROC_MODELS = {"radial-tangential": "plumb_bob", "equidistant": "equidistant"}
KITTI_CAMERAS = ("image_0", "image_1", "image_2", "image_3")
_KITTI = "the KITTI odometry benchmark has it"


def read_tum_sequence(folder: Path, camera: Camera | None = None, depth_scale: float = 5000.0) -> Recording:
    """A sequence of the TUM RGB-D benchmark (Sturm et al., IROS 2012). Its base is the colour camera.

    A folder per sequence in the layout of `io.tum`; poses are the colour camera's in the world of the motion capture, depth has
    5000 units per metre. Calibration comes with the name: freiburg1, 2, 3 (the last is rectified).

    Args:
        folder: With rgb.txt, depth.txt and groundtruth.txt.
        camera: By default that of `camera.txt` in the folder, or of its name.
        depth_scale: Units per metre.

    Raises:
        InputError: Lists are missing or malformed, nothing fits together, or the camera is not known.
    """
    folder = need_folder(folder, "a sequence of the TUM RGB-D benchmark, with rgb.txt, depth.txt and groundtruth.txt")
    camera = camera or tum_camera(folder)
    images_list, depth_list, poses = lists = tuple(folder / f"{name}.txt" for name in ("rgb", "depth", "groundtruth"))
    truth = read_tum(poses, more=True)
    truth = replace(truth, map_from_body=truth.map_from_body @ se3.inverse(BASE_FROM_OPTICAL))
    images, depths = read_stamped_files(images_list), read_stamped_files(depth_list)
    depth = aligned_depth_files(images, depths, truth, BASE_FROM_OPTICAL, camera, depth_scale)
    pictures = picture_files(folder.name, images, depth)
    return Recording(folder.resolve().name, camera, pictures, truth, BASE_FROM_OPTICAL, files=lists)


def tum_camera(folder: Path) -> Camera:
    """The camera of a sequence, from `camera.txt` or from the folder's name. Raises `InputError`: neither says."""
    if (folder / "camera.txt").is_file():
        return read_camera(folder)
    found = re.search(r"(?:freiburg|fr)([123])", folder.resolve().name)
    if not found:
        raise InputError(f'{folder}: the name says none of freiburg1, 2, 3: give --camera "MODEL WIDTH HEIGHT PARAMS..."')
    params = _TUM_CALIBRATION[int(found.group(1))]
    return Camera("plumb_bob" if len(params) > 4 else "pinhole", 640, 480, torch.tensor(params, dtype=torch.float64))


def read_euroc_sequence(folder: Path, camera_name: str = "cam0") -> Recording:
    """A sequence of the EuRoC MAV data sets in the ASL layout (Burri et al., IJRR 2016).

    A folder per sequence with `mav0/`: `cam0/sensor.yaml` (T_BS = body_from_camera, resolution, intrinsics fu fv cu cv, radial-
    tangential distortion k1 k2 p1 p2), `cam0/data.csv` (`stamp [ns], file`), `cam0/data/`; `state_groundtruth_estimate0/data.csv`
    (`stamp [ns], p x y z, q w x y z, ...`: the body, which is the IMU, in the world).

    Its base is the body of the set (the IMU's axes). Raises `InputError` where files are missing or malformed.
    """
    folder = need_folder(folder, "a sequence of EuRoC MAV in the ASL layout, with mav0/cam0 and state_groundtruth_estimate0")
    mav = folder / "mav0" if (folder / "mav0").is_dir() else folder
    sensor, images, truth = files = (
        mav / camera_name / "sensor.yaml",
        mav / camera_name / "data.csv",
        mav / "state_groundtruth_estimate0" / "data.csv",
    )
    camera, body_from_camera = _read_sensor(sensor)
    paths = {stamp: find_file(mav / camera_name / "data", row[0]) for stamp, row in _read_csv(images, 1)}
    poses = Trajectory.from_poses(
        (stamp, parse_pose([*row[:3], *row[4:7], row[3]], f"{truth}: the row of {stamp}")) for stamp, row in _read_csv(truth, 7)
    )
    return Recording(folder.resolve().name, camera, picture_files(folder.name, paths), poses, body_from_camera, files=files)


def _read_sensor(path: Path) -> tuple[Camera, torch.Tensor]:
    # Some copies begin with OpenCV's %YAML:1.0, which is no YAML.
    text = "\n".join(line for line in read_text(path, _EUROC).splitlines() if not line.startswith("%YAML"))
    try:
        sensor = YAML(typ="safe", pure=True).load(text)
        width, height = (int(value) for value in sensor["resolution"])
        fx, fy, cx, cy = (float(value) for value in sensor["intrinsics"])
        distortion = [float(value) for value in sensor["distortion_coefficients"]]
        models = sensor["camera_model"], sensor["distortion_model"]
        pose = np.array(sensor["T_BS"]["data"], np.float64)
    except (YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a camera's sensor.yaml of EuRoC ({type(error).__name__}: {error}): {_EUROC}") from None
    if models[0] != "pinhole" or models[1] not in _EUROC_MODELS:
        raise InputError(f"{path}: camera model {models[0]} with {models[1]} distortion is not supported: undistort the images")
    camera = Camera.from_camera_info(_EUROC_MODELS[models[1]], width, height, [fx, 0, cx, 0, fy, cy, 0, 0, 1], distortion)
    return camera, rigid(pose, f"{path}: T_BS")


def _read_csv(path: Path, values: int) -> list[tuple[int, list[str]]]:
    """(stamp_ns, words after it) of the rows; each has at least `values` of them. Raises `InputError`."""
    rows = []
    for where, line in read_lines(path, _EUROC):
        stamp, *words = (word.strip() for word in line.split(","))
        try:
            rows.append((int(np.int64(int(stamp))), words))
        except (ValueError, OverflowError):
            raise InputError(f"{where}: every row must begin with a stamp in nanoseconds: copy the file again") from None
    if not rows or min(len(words) for _, words in rows) < values:
        raise InputError(f"{path} needs rows of a stamp and {values} values: copy the file again")
    return rows


def read_kitti_sequence(root: Path, number: str, camera_name: str = "image_0") -> Recording:
    """A sequence of the KITTI odometry benchmark (Geiger et al., CVPR 2012). Its base is camera 0 in the axes of REP-103.

    `sequences/NN/`: `image_0/` (left grey) to `image_3/` (right colour), rectified; `calib.txt` with `P0:` to `P3:`, 3x4
    projection matrices of the four cameras, row by row, from the axes of camera 0; `times.txt`, seconds from the start.
    `poses/NN.txt`: 3x4 rows, where camera 0 was in the axes that it had at the start (x right, y down, z forward).

    The map is turned to z up: its x axis is the way camera 0 looked at the start, so it leans by what that camera did.

    Args:
        root: The benchmark's folder.
        number: "07".
        camera_name: One of `KITTI_CAMERAS`.

    Raises:
        InputError: Something is missing, malformed, or has no ground truth (11 to 21).
    """
    root = need_folder(root, "the KITTI odometry benchmark's folder, with sequences/ and poses/")
    folder = need_folder(root / "sequences" / number, "one of the sequences, for example --sequence 07")
    if camera_name not in KITTI_CAMERAS:
        raise InputError(f"no camera {camera_name}: use one of {', '.join(KITTI_CAMERAS)}")
    times_file, poses_file, calibration = files = folder / "times.txt", root / "poses" / f"{number}.txt", folder / "calib.txt"
    if not poses_file.is_file():
        raise InputError(f"no {poses_file}: only sequences 00 to 10 come with ground truth")
    times, rows = read_table(times_file, 1, _KITTI)[:, 0], read_table(poses_file, 12, _KITTI)
    if len(times) != len(rows) or not len(times):
        raise InputError(f"{times_file} has {len(times)} lines but {poses_file} has {len(rows)}: they are of different sequences")
    stamps = [EPOCH_NS + round(time * 1e9) for time in times.tolist()]
    optical_from_base = se3.inverse(BASE_FROM_OPTICAL)
    truth = Trajectory.from_poses(
        (stamp, BASE_FROM_OPTICAL @ rigid(row, poses_file) @ optical_from_base) for stamp, row in zip(stamps, rows)
    )
    images = {stamp: folder / camera_name / f"{k:06d}.png" for k, stamp in enumerate(stamps)}
    pictures = picture_files(f"{root.name} {number}", images)
    size = image_size(images[stamp] for stamp in pictures.stamps_ns.tolist())
    camera, camera0_from_camera = _calibration(calibration, KITTI_CAMERAS.index(camera_name), size)
    return Recording(number, camera, pictures, truth, BASE_FROM_OPTICAL @ camera0_from_camera, files=files)


def _calibration(path: Path, index: int, size: tuple[int, int]) -> tuple[Camera, torch.Tensor]:
    """The camera of images of that width and height, and camera0_from_camera."""
    rows = dict(line.split(":", 1) for _, line in read_lines(path, _KITTI) if ":" in line)
    try:
        projection = np.array([float(word) for word in rows[f"P{index}"].split()]).reshape(3, 4)
    except (KeyError, ValueError):
        raise InputError(f"{path} has no line 'P{index}:' with 12 numbers: use the benchmark's calib.txt") from None
    # P = K [I | t]: a point in camera 0 moved by t is in this camera.
    offset = np.linalg.solve(projection[:, :3], projection[:, 3])
    camera0_from_camera = torch.eye(4, dtype=torch.float64)
    camera0_from_camera[:3, 3] = -torch.from_numpy(offset)
    return Camera.from_camera_info("", *size, projection[:, :3].ravel().tolist(), []), camera0_from_camera

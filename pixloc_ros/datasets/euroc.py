# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""EuRoC MAV data sets in the ASL layout (Burri et al., IJRR 2016).

A folder per sequence with `mav0/`: `cam0/sensor.yaml` (T_BS = body_from_camera, resolution, intrinsics fu fv cu cv, radial-
tangential distortion k1 k2 p1 p2), `cam0/data.csv` (`stamp [ns], file`), `cam0/data/`; `state_groundtruth_estimate0/data.csv`
(`stamp [ns], p x y z, q w x y z, ...`: the body, which is the IMU, in the world).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..errors import InputError
from ..geometry.cameras import Camera
from ..io.files import find_file
from ..io.text import read_lines, read_text
from ..io.trajectory import Trajectory, parse_pose
from .recording import Recording, need_folder, picture_files, rigid

_REMEDY = "EuRoC's sequences in the ASL layout have it"
_MODELS = {"radial-tangential": "plumb_bob", "equidistant": "equidistant"}


def read_euroc_sequence(folder: Path, camera_name: str = "cam0") -> Recording:
    """A sequence; its base is the body of the set (the IMU's axes). Raises `InputError` where files are missing or malformed."""
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
    text = "\n".join(line for line in read_text(path, _REMEDY).splitlines() if not line.startswith("%YAML"))
    try:
        sensor = YAML(typ="safe", pure=True).load(text)
        width, height = (int(value) for value in sensor["resolution"])
        fx, fy, cx, cy = (float(value) for value in sensor["intrinsics"])
        distortion = [float(value) for value in sensor["distortion_coefficients"]]
        models = sensor["camera_model"], sensor["distortion_model"]
        pose = np.array(sensor["T_BS"]["data"], np.float64)
    except (YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a camera's sensor.yaml of EuRoC ({type(error).__name__}: {error}): {_REMEDY}") from None
    if models[0] != "pinhole" or models[1] not in _MODELS:
        raise InputError(f"{path}: camera model {models[0]} with {models[1]} distortion is not supported: undistort the images")
    camera = Camera.from_camera_info(_MODELS[models[1]], width, height, [fx, 0, cx, 0, fy, cy, 0, 0, 1], distortion)
    return camera, rigid(pose, f"{path}: T_BS")


def _read_csv(path: Path, values: int) -> list[tuple[int, list[str]]]:
    """(stamp_ns, words after it) of the rows; each has at least `values` of them. Raises `InputError`."""
    rows = []
    for where, line in read_lines(path, _REMEDY):
        stamp, *words = (word.strip() for word in line.split(","))
        try:
            rows.append((int(np.int64(int(stamp))), words))
        except (ValueError, OverflowError):
            raise InputError(f"{where}: every row must begin with a stamp in nanoseconds: copy the file again") from None
    if not rows or min(len(words) for _, words in rows) < values:
        raise InputError(f"{path} needs rows of a stamp and {values} values: copy the file again")
    return rows

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""EuRoC MAV data sets in the ASL layout (Burri et al., IJRR 2016).

A folder per sequence with `mav0/`: `cam0/sensor.yaml` (T_BS = body_from_camera, resolution, intrinsics fu fv cu cv, radial-
tangential distortion k1 k2 p1 p2), `cam0/data.csv` (`stamp [ns], file`), `cam0/data/`; `state_groundtruth_estimate0/data.csv`
(`stamp [ns], p x y z, q w x y z, ...`: the body, which is the IMU, in the world).
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.trajectory import Trajectory
from .recording import Recording, need_folder, picture_files, rigid


def read_euroc_sequence(folder: Path, camera_name: str = "cam0") -> Recording:
    """A sequence; its base is the body of the set (the IMU's axes). Raises InputError where files are missing or malformed."""
    folder = need_folder(folder, "a sequence of EuRoC MAV in the ASL layout, with mav0/cam0 and state_groundtruth_estimate0")
    mav = folder / "mav0" if (folder / "mav0").is_dir() else folder
    camera, body_from_camera = _read_sensor(mav / camera_name / "sensor.yaml")
    images = {stamp: mav / camera_name / "data" / row[0] for stamp, row in _read_csv(mav / camera_name / "data.csv", 1)}
    truth_file = mav / "state_groundtruth_estimate0" / "data.csv"
    truth = Trajectory.from_poses((stamp, _pose(row, truth_file, stamp)) for stamp, row in _read_csv(truth_file, 7))
    stamps_ns, encoding, pictures, left_out = picture_files(folder.name, images)
    files = (mav / camera_name / "data.csv", mav / camera_name / "sensor.yaml", truth_file)
    return Recording(
        folder.resolve().name, camera, stamps_ns, encoding, truth, body_from_camera, pictures, None, False, files, left_out
    )


def _read_sensor(path: Path) -> tuple[Camera, torch.Tensor]:
    try:
        # Some copies begin with OpenCV's %YAML:1.0, which is no YAML.
        text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("%YAML"))
        sensor = YAML(typ="safe", pure=True).load(text)
        width, height = (int(value) for value in sensor["resolution"])
        intrinsics = [float(value) for value in sensor["intrinsics"]]
        distortion = [float(value) for value in sensor["distortion_coefficients"]]
        models = sensor["camera_model"], sensor["distortion_model"]
        pose = np.array(sensor["T_BS"]["data"], np.float64)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): EuRoC's sequences in the ASL layout have it") from None
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a camera's sensor.yaml of EuRoC ({type(error).__name__}: {error})") from None
    names = {"radial-tangential": "plumb_bob", "equidistant": "equidistant"}
    if models[0] != "pinhole" or models[1] not in names:
        raise InputError(f"{path}: camera model {models[0]} with {models[1]} distortion is not supported: undistort the images")
    k = [intrinsics[0], 0, intrinsics[2], 0, intrinsics[1], intrinsics[3], 0, 0, 1]
    return Camera.from_camera_info(names[models[1]], width, height, k, distortion), rigid(pose, f"{path}: T_BS")


def _read_csv(path: Path, values: int) -> list[tuple[int, list[str]]]:
    """(stamp_ns, words after it) of the rows; each has at least `values` of them. Raises InputError."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [[word.strip() for word in row] for row in csv.reader(file) if row and not row[0].lstrip().startswith("#")]
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): EuRoC's sequences in the ASL layout have it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None
    try:
        stamped = [(int(np.int64(int(row[0]))), row[1:]) for row in rows]
    except (ValueError, OverflowError):
        raise InputError(f"{path}: every row must begin with a stamp in nanoseconds") from None
    if not stamped or min(len(row) for _, row in stamped) < values:
        raise InputError(f"{path} needs rows of a stamp and {values} values: copy the file again")
    return stamped


def _pose(row: list[str], path: Path, stamp_ns: int) -> torch.Tensor:
    try:
        values = torch.tensor([float(word) for word in row[:7]], dtype=torch.float64)
    except ValueError:
        values = torch.full((7,), float("nan"), dtype=torch.float64)
    length = values[3:].norm()
    if not bool(torch.isfinite(values).all()) or abs(float(length) - 1) > 0.01:
        raise InputError(f"{path}: the row of {stamp_ns} is no pose: write x y z and a unit quaternion w x y z")
    return se3.from_rotation_translation(se3.rotation_from_quaternion(values[[4, 5, 6, 3]] / length), values[:3])

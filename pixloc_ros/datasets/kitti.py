# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""KITTI odometry benchmark (Geiger et al., CVPR 2012).

`sequences/NN/`: `image_0/` (left grey) to `image_3/` (right colour), rectified; `calib.txt` with `P0:` to `P3:`, 3x4 projection
matrices of the four cameras, row by row, from the axes of camera 0; `times.txt`, seconds from the start, one a line.
`poses/NN.txt`: 3x4 rows, where camera 0 was in the axes that it had at the start (x right, y down, z forward).

The map is turned to z up: its x axis is the way camera 0 looked at the start, so it leans by what that camera did.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.images import load_image
from ..io.text import read_lines, read_table
from ..io.trajectory import Trajectory
from .recording import BASE_FROM_OPTICAL, EPOCH_NS, Recording, need_folder, picture_files, rigid

CAMERAS = ("image_0", "image_1", "image_2", "image_3")
_REMEDY = "the KITTI odometry benchmark has it"


def read_kitti_sequence(root: Path, number: str, camera_name: str = "image_0") -> Recording:
    """A sequence; its base is camera 0 in the axes of REP-103.

    Args:
        root: The benchmark's folder.
        number: "07".
        camera_name: One of `CAMERAS`.

    Raises:
        InputError: Something is missing, malformed, or has no ground truth (11 to 21).
    """
    root = need_folder(root, "the KITTI odometry benchmark's folder, with sequences/ and poses/")
    folder = need_folder(root / "sequences" / number, "one of the sequences, for example --sequence 07")
    if camera_name not in CAMERAS:
        raise InputError(f"no camera {camera_name}: use one of {', '.join(CAMERAS)}")
    times_file, poses_file, calibration = files = folder / "times.txt", root / "poses" / f"{number}.txt", folder / "calib.txt"
    if not poses_file.is_file():
        raise InputError(f"no {poses_file}: only sequences 00 to 10 come with ground truth")
    times, rows = read_table(times_file, 1, _REMEDY)[:, 0], read_table(poses_file, 12, _REMEDY)
    if len(times) != len(rows) or not len(times):
        raise InputError(f"{times_file} has {len(times)} lines but {poses_file} has {len(rows)}: they are of different sequences")
    stamps = [EPOCH_NS + round(time * 1e9) for time in times.tolist()]
    optical_from_base = se3.inverse(BASE_FROM_OPTICAL)
    truth = Trajectory.from_poses(
        (stamp, BASE_FROM_OPTICAL @ rigid(row, poses_file) @ optical_from_base) for stamp, row in zip(stamps, rows)
    )
    images = {stamp: folder / camera_name / f"{k:06d}.png" for k, stamp in enumerate(stamps)}
    pictures = picture_files(f"{root.name} {number}", images)
    camera, camera0_from_camera = _calibration(calibration, CAMERAS.index(camera_name), images[int(pictures.stamps_ns[0])])
    return Recording(number, camera, pictures, truth, BASE_FROM_OPTICAL @ camera0_from_camera, files=files)


def _calibration(path: Path, index: int, image: Path) -> tuple[Camera, torch.Tensor]:
    """The camera, of the image's size, and camera0_from_camera."""
    rows = dict(line.split(":", 1) for _, line in read_lines(path, _REMEDY) if ":" in line)
    try:
        projection = np.array([float(word) for word in rows[f"P{index}"].split()]).reshape(3, 4)
    except (KeyError, ValueError):
        raise InputError(f"{path} has no line 'P{index}:' with 12 numbers: use the benchmark's calib.txt") from None
    height, width = load_image(image).shape[:2]
    # P = K [I | t]: a point in camera 0 moved by t is in this camera.
    offset = np.linalg.solve(projection[:, :3], projection[:, 3])
    camera0_from_camera = torch.eye(4, dtype=torch.float64)
    camera0_from_camera[:3, 3] = -torch.from_numpy(offset)
    return Camera.from_camera_info("", width, height, projection[:, :3].ravel().tolist(), []), camera0_from_camera

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D benchmark (Sturm et al., IROS 2012).

A folder per sequence in the layout of `io.tum`; poses are the colour camera's in the world of the motion capture, depth has 5000
units per metre. Calibration comes with the name: freiburg1, 2, 3 (the last is rectified).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.trajectory import read_tum
from ..io.tum import read_camera, read_stamped_files
from .recording import BASE_FROM_OPTICAL, Recording, aligned_depth_files, need_folder, picture_files

DEPTH_SCALE = 5000.0
_CALIBRATION = {
    1: (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    2: (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    3: (535.4, 539.2, 320.1, 247.6),
}
"""fx fy cx cy k1 k2 p1 p2 k3 of the colour cameras, from the benchmark's page on file formats (OpenCV's convention)."""


def read_tum_sequence(folder: Path, camera: Camera | None = None, depth_scale: float = DEPTH_SCALE) -> Recording:
    """A sequence; its base is the colour camera.

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
    params = _CALIBRATION[int(found.group(1))]
    return Camera("plumb_bob" if len(params) > 4 else "pinhole", 640, 480, torch.tensor(params, dtype=torch.float64))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""VisualSFM's reconstructions (`NVM_V3`).

A line per image: `file focal qw qx qy qz cx cy cz r 0`: rotation of camera_from_map (x right, y down, z forward), the camera's
CENTRE, and one number of radial distortion that takes it away: a point measured at m from the principal point (which is the
image's centre), in focal lengths, belongs to the ray m (1 + r |m|²). A line per point: `x y z r g b n` and n times `image feature
x y`. Where points were measured is not read: features are taken where points project to.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera


@dataclass(frozen=True, eq=False)
class NvmModel:
    """A model.

    Attributes:
        names: With slashes, without a leading "./".
        focal_px: float64 [K].
        radial: float64 [K].
        camera_from_map: float64 [K, 4, 4].
        xyz: float64 [P, 3].
        observation_image: int64 [M].
        observation_point: int64 [M], each pair once.
    """

    names: list[str]
    focal_px: np.ndarray
    radial: np.ndarray
    camera_from_map: torch.Tensor
    xyz: np.ndarray
    observation_image: np.ndarray
    observation_point: np.ndarray


def read_nvm(path: Path) -> NvmModel:
    """The first model of a file. Raises InputError where it is no NVM_V3 file, is cut short, or holds no image or point."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            names, values, xyz, image, point = _read(path, (line for line in file if line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise InputError(f"cannot read {path} ({reason}): unpack the set again") from None
    if not len(values) or not len(image) or image.min() < 0 or image.max() >= len(values):
        raise InputError(f"{path} holds no image, no point, or points seen by images that it lacks: unpack it again")
    quaternion = torch.from_numpy(values[:, [2, 3, 4, 1]].copy())
    norm = quaternion.norm(dim=1, keepdim=True)
    if float(norm.min()) == 0:
        raise InputError(f"{path}: image {names[int(norm.argmin())]} has a zero quaternion: remove it")
    rotation = se3.rotation_from_quaternion(quaternion / norm)
    centre = torch.from_numpy(values[:, 5:8].copy())
    pairs = np.unique(np.stack((point, image)), axis=1)
    camera_from_map = se3.from_rotation_translation(rotation, -(rotation @ centre.unsqueeze(-1)).squeeze(-1))
    return NvmModel(names, values[:, 0].copy(), values[:, 8].copy(), camera_from_map, xyz, pairs[1], pairs[0])


def _read(path: Path, lines: Iterator[str]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names, the 9 numbers after each [K, 9], points [P, 3], and the image and point of each observation [M]; line by line, as
    files of cities hold millions of points."""
    if not next(lines, "").startswith("NVM_V3"):
        raise InputError(f"{path} does not begin with NVM_V3: give a reconstruction of VisualSFM")
    names, values, xyz, seen_by, counts = [], array("d"), array("d"), array("q"), array("q")
    try:
        for _ in range(int(next(lines))):
            line = next(lines)
            name, *numbers = line.rsplit(maxsplit=10) if len(line.split()) > 11 else line.split()  # names may hold blanks
            names.append(name.replace("\\", "/").removeprefix("./"))
            values.extend([float(word) for word in numbers[:9]])
        for _ in range(int(next(lines))):
            words = next(lines).split()
            xyz.extend([float(word) for word in words[:3]])
            counts.append(int(words[6]))
            seen_by.extend([int(word) for word in words[7 : 7 + 4 * counts[-1] : 4]])
        images, points = np.array(values).reshape(len(names), 9), np.array(xyz).reshape(len(counts), 3)
        point = np.repeat(np.arange(len(points)), np.array(counts, np.int64))
        if len(seen_by) != len(point) or not np.isfinite(images).all() or not np.isfinite(points).all():
            raise ValueError("numbers are missing")
    except (StopIteration, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{path} is cut short or malformed ({error or 'it ends early'}): unpack it again") from None
    return names, images, points, np.array(seen_by, np.int64), point


def nvm_camera(focal_px: float, radial: float, width: int, height: int) -> Camera:
    """The camera of an image. VisualSFM's distortion runs from the image to the ray; the camera's, which runs the other way, is
    fitted to it out to the corner. Raises InputError for numbers that make no camera."""
    if not focal_px > 0:
        raise InputError(f"a focal length of {focal_px:g} pixels: the reconstruction's cameras must have one")
    centre = [(width - 1) / 2, (height - 1) / 2]
    if not radial:
        return Camera("pinhole", width, height, torch.tensor([focal_px, focal_px, *centre], dtype=torch.float64))
    measured = np.linspace(0.02, 1.0, 50) * np.hypot(width, height) / 2 / focal_px
    ray = measured * (1 + radial * measured**2)
    if (np.diff(ray) <= 0).any():
        raise InputError(f"radial distortion {radial:g} folds an image of {width}x{height}: check the reconstruction")
    # measured / ray = 1 + k1 ray² + k2 ray⁴
    k = np.linalg.lstsq(np.stack((ray**3, ray**5), 1), measured - ray, rcond=None)[0]
    return Camera("radial", width, height, torch.tensor([focal_px, focal_px, *centre, *k], dtype=torch.float64))

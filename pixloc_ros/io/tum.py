# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Posed RGB-D sequences in the layout of the TUM RGB-D benchmark (Sturm et al., IROS 2012).

A folder with rgb.txt and depth.txt (`stamp filename`), groundtruth.txt (`stamp tx ty tz qx qy qz qw`, the camera's pose in the
map, optical axes) and camera.txt (`MODEL WIDTH HEIGHT PARAMS...`, one line as in COLMAP's cameras.txt). Depth images are 16-bit
PNG, aligned with the colour images, in units of 1 / scale metres; 0 is no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from .depth import MAX_DEPTH_OFFSET_NS, move_depth
from .files import find_file
from .text import read_lines
from .trajectory import Trajectory, read_stamped_list, read_tum

SAME_INSTANT_NS = 1_000_000
"""Depth that is no further away in time is taken as it is."""
_LONGEST_POSE_GAP_NS = 100_000_000


@dataclass(frozen=True, eq=False)
class RgbdFrame:
    """One colour image with its depth image and pose.

    Attributes:
        stamp_ns: Of the colour image.
        image: File.
        depth: File.
        map_from_camera: float64 [4, 4], at the colour image's stamp.
        map_from_depth_camera: float64 [4, 4], at the depth image's stamp.
        same_instant: Whether the two stamps are one.
    """

    stamp_ns: int
    image: Path
    depth: Path
    map_from_camera: torch.Tensor
    map_from_depth_camera: torch.Tensor
    same_instant: bool


def read_rgbd_sequence(sequence: Path, left_out: dict[str, str] | None = None) -> list[RgbdFrame]:
    """Colour images that have a depth image and a pose within 20 ms, in time order.

    Poses are interpolated between their neighbours in time, or taken from the nearest one where those lie far apart.

    Args:
        sequence: The folder.
        left_out: Gets why images and poses are left out, by name; without it, a pose that is none is an error.

    Raises:
        InputError: A list is missing or malformed, a pose is not a number, or nothing fits together.
    """
    sequence = Path(sequence)
    if not sequence.is_dir():
        raise InputError(f"no folder {sequence}: give a folder with rgb.txt, depth.txt and groundtruth.txt")
    rgb, depth = (read_stamped_files(sequence / f"{kind}.txt") for kind in ("rgb", "depth"))
    trajectory, depth_stamps = (
        read_tum(sequence / "groundtruth.txt", more=True, left_out=left_out),
        np.array(list(depth), np.int64),
    )
    if not len(trajectory):
        raise InputError(f"{sequence / 'groundtruth.txt'} is empty: record the sequence again")
    frames = []
    for stamp, image in rgb.items():
        depth_stamp = int(depth_stamps[nearest_stamp(depth_stamps, stamp)])
        image_pose, depth_pose = (_pose_at(trajectory, instant) for instant in (stamp, depth_stamp))
        if abs(depth_stamp - stamp) <= MAX_DEPTH_OFFSET_NS and image_pose is not None and depth_pose is not None:
            same = abs(stamp - depth_stamp) < SAME_INSTANT_NS
            frames.append(RgbdFrame(stamp, image, depth[depth_stamp], image_pose, depth_pose, same))
        elif left_out is not None:
            left_out[image.name] = "no depth image and pose within 20 ms"
    if not frames:
        raise InputError(
            f"{sequence}: no colour image has a depth image and a pose within 20 ms: check that rgb.txt, depth.txt and "
            "groundtruth.txt use the same clock"
        )
    return frames


def read_stamped_files(path: Path) -> dict[int, Path]:
    """Lines `stamp file`, names relative to the list's folder → files by stamp, in the order of time. Raises `InputError`."""
    stamps, names = read_stamped_list(path)
    files = (find_file(path.parent, name) for name in names)  # a name may hold blanks; else more words may follow it
    files = (file if file.exists() else find_file(path.parent, name.split()[0]) for file, name in zip(files, names))
    return dict(zip(stamps.tolist(), files))


def read_camera(sequence: Path) -> Camera:
    """The camera of camera.txt in a sequence's folder. Raises `InputError` where the file is missing or malformed."""
    path = sequence / "camera.txt"
    if not path.is_file():
        raise InputError(f'no camera for {sequence}: give --camera "MODEL WIDTH HEIGHT PARAMS..." or write that line to {path}')
    lines = [line for _, line in read_lines(path, "write the one camera as MODEL WIDTH HEIGHT PARAMS...")]
    if len(lines) != 1:
        raise InputError(f"{path} has {len(lines)} lines: write the one camera as MODEL WIDTH HEIGHT PARAMS...")
    return Camera.parse_colmap_line(lines[0])


def load_depth(frame: RgbdFrame, camera: Camera, scale: float) -> np.ndarray:
    """Depth as the colour camera saw it at its own stamp.

    Args:
        frame: Names the file.
        camera: Of the colour image.
        scale: Units per metre.

    Returns:
        float32 [H, W] metres, 0 where unknown.

    Raises:
        InputError: The file is not a depth image, or has another size than the camera.
    """
    raw = cv2.imread(str(frame.depth), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        raise InputError(f"{frame.depth} is not a 16-bit depth image: replace the file or remove it from depth.txt")
    if raw.shape != (camera.height, camera.width):
        raise InputError(
            f"{frame.depth} is {raw.shape[1]}x{raw.shape[0]} but the camera is {camera.width}x{camera.height}: "
            "depth must be aligned with the colour images"
        )
    depth = (raw / np.float32(scale)).astype(np.float32)
    if frame.same_instant:
        return depth
    return move_depth(depth, se3.inverse(frame.map_from_camera) @ frame.map_from_depth_camera, camera)


def nearest_stamp(stamps: np.ndarray, stamp: int) -> int:
    """Index of the one nearest to `stamp` among rising stamps."""
    k = int(np.searchsorted(stamps, stamp))
    return min((i for i in (k - 1, k) if 0 <= i < len(stamps)), key=lambda i: abs(int(stamps[i]) - stamp))


def _pose_at(trajectory: Trajectory, stamp: int) -> torch.Tensor | None:
    """The pose at an instant, None where the nearest is more than 20 ms away."""
    stamps, poses = trajectory.stamps_ns, trajectory.map_from_body
    k = nearest_stamp(stamps, stamp)
    if abs(int(stamps[k]) - stamp) > MAX_DEPTH_OFFSET_NS:
        return None
    after = int(np.searchsorted(stamps, stamp))
    if stamps[k] == stamp or not 0 < after < len(stamps) or stamps[after] - stamps[after - 1] > _LONGEST_POSE_GAP_NS:
        return poses[k]
    fraction = (stamp - int(stamps[after - 1])) / int(stamps[after] - stamps[after - 1])
    return se3.interpolate(poses[after - 1], poses[after], fraction)

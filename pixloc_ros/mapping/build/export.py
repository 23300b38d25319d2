# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps for other programs: COLMAP's text format, and PLY."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...geometry import se3
from ...io.files import write_bytes
from ..map_file import Map
from ..statistics import keyframe_pixels


def export_colmap(map_: Map, folder: Path) -> None:
    """Write cameras.txt, images.txt and points3D.txt: the shrunk images' cameras; observations where points project; as
    colour the points' quality. Raises InputError where the folder cannot be written."""
    pixels = [keyframe_pixels(map_, k)[0] + 0.5 for k in range(len(map_.keyframe_names))]  # COLMAP's pixel corner
    write_bytes(folder / "cameras.txt", b"".join(_camera_lines(map_)))
    write_bytes(folder / "images.txt", b"".join(_image_lines(map_, pixels)))
    write_bytes(folder / "points3D.txt", b"".join(_point_lines(map_)))


def export_ply(map_: Map, path: Path) -> None:
    """Write the points, grey by quality, and the keyframes' centres, red, as a binary PLY."""
    centres = map_.map_from_keyframe[:, :3, 3].numpy()
    vertices = np.empty(len(map_.xyz) + len(centres), [("xyz", "<f8", 3), ("rgb", "u1", 3)])
    vertices["xyz"] = np.concatenate((map_.xyz, centres))
    vertices["rgb"][: len(map_.xyz)] = _grey(map_)[:, None]
    vertices["rgb"][len(map_.xyz) :] = (255, 0, 0)
    fields = [f"property double {axis}" for axis in "xyz"] + [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *fields, "end_header", ""]
    write_bytes(path, "\n".join(header).encode() + vertices.tobytes())


def _camera_lines(map_: Map) -> Iterator[bytes]:
    yield b"# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]\n"
    for number, camera in enumerate(map_.cameras, 1):
        model, params = camera.to_colmap()
        yield f"{number} {model} {camera.width} {camera.height} {' '.join(map(repr, params))}\n".encode()


def _image_lines(map_: Map, pixels: list[np.ndarray]) -> Iterator[bytes]:
    yield b"# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then POINTS2D[] as X Y POINT3D_ID\n"
    camera_from_map = se3.inverse(map_.map_from_keyframe)
    quaternions = se3.quaternion_from_rotation(camera_from_map[:, :3, :3])[:, [3, 0, 1, 2]]
    for k, name in enumerate(map_.keyframe_names):
        numbers = " ".join(map(repr, quaternions[k].tolist() + camera_from_map[k, :3, 3].tolist()))
        seen = zip(pixels[k].tolist(), map_.observation_point[map_.observations(k)].tolist())
        yield f"{k + 1} {numbers} {map_.keyframe_camera[k] + 1} {name}\n".encode()
        yield (" ".join(f"{x:.4f} {y:.4f} {point + 1}" for (x, y), point in seen) + "\n").encode()


def _point_lines(map_: Map) -> Iterator[bytes]:
    yield b"# POINT3D_ID X Y Z R G B ERROR TRACK[] as IMAGE_ID POINT2D_IDX\n"
    keyframe = np.repeat(np.arange(len(map_.keyframe_names)), np.diff(map_.observation_offsets))
    row = np.arange(len(keyframe)) - map_.observation_offsets[keyframe]
    order = np.argsort(map_.observation_point, kind="stable")
    start = np.searchsorted(map_.observation_point[order], np.arange(len(map_.xyz) + 1))
    grey = _grey(map_).tolist()
    for p, xyz in enumerate(map_.xyz.tolist()):
        rows = order[start[p] : start[p + 1]]
        track = " ".join(f"{k + 1} {r}" for k, r in zip(keyframe[rows].tolist(), row[rows].tolist()))
        yield f"{p + 1} {' '.join(map(repr, xyz))} {grey[p]} {grey[p]} {grey[p]} 0 {track}\n".encode()


def _grey(map_: Map) -> np.ndarray:
    return np.round(55 + 200 * np.clip(map_.quality, 0, 1)).astype(np.uint8)

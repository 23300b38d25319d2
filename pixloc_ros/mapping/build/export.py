# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps for other programs: COLMAP's text format, and PLY."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...geometry import se3
from ...io.colmap import ColmapModel, write_colmap_model
from ...io.files import write_bytes
from ..map_file import Map
from ..statistics import keyframe_of_observations, keyframe_pixels


def export_colmap(map_: Map, folder: Path) -> None:
    """Write a COLMAP model as text: the shrunk images' cameras, observations where points project, the quality as grey.

    Raises:
        InputError: The folder cannot be written.
    """
    keyframes, points = len(map_.keyframe_names), len(map_.xyz)
    by_point = np.argsort(map_.observation_point, kind="stable")
    pixels = np.concatenate([keyframe_pixels(map_, k)[0] for k in range(keyframes)])
    model = ColmapModel(
        cameras=dict(enumerate(map_.cameras, 1)),
        image_ids=np.arange(1, keyframes + 1),
        names=map_.keyframe_names,
        camera_ids=map_.keyframe_camera + 1,
        camera_from_map=se3.inverse(map_.map_from_keyframe),
        point_ids=np.arange(1, points + 1),
        xyz=map_.xyz,
        error_px=np.zeros(points),
        observation_image=keyframe_of_observations(map_)[by_point],
        observation_point=map_.observation_point[by_point],
        observation_px=pixels[by_point],
    )
    write_colmap_model(folder, model, np.repeat(_grey(map_)[:, None], 3, 1))


def export_ply(map_: Map, path: Path) -> None:
    """Write a binary PLY: the points, grey by quality, and the keyframes' centres in red. Raises `InputError` where it cannot."""
    centres = map_.map_from_keyframe[:, :3, 3].numpy()
    vertices = np.empty(len(map_.xyz) + len(centres), [("xyz", "<f8", 3), ("rgb", "u1", 3)])
    vertices["xyz"] = np.concatenate((map_.xyz, centres))
    vertices["rgb"][: len(map_.xyz)] = _grey(map_)[:, None]
    vertices["rgb"][len(map_.xyz) :] = (255, 0, 0)
    fields = [f"property double {axis}" for axis in "xyz"] + [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *fields, "end_header", ""]
    write_bytes(path, "\n".join(header).encode() + vertices.tobytes())


def _grey(map_: Map) -> np.ndarray:
    return np.round(55 + 200 * np.clip(map_.quality, 0, 1)).astype(np.uint8)

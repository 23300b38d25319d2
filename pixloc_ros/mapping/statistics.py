# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Where the points of a map are seen in its keyframes."""

from __future__ import annotations

import numpy as np
import torch

from ..geometry import se3
from ..geometry.cameras import Camera
from .map_file import Map

_COVERAGE_GRID = (8, 6)


def keyframe_of_observations(map_: Map) -> np.ndarray:
    """Index of the keyframe of each observation, int64 [M]."""
    return np.repeat(np.arange(len(map_.keyframe_names)), np.diff(map_.observation_offsets))


def keyframe_pixels(map_: Map, keyframe: int) -> tuple[np.ndarray, np.ndarray, Camera]:
    """Where a keyframe's points project.

    Returns:
        Pixels float64 [n, 2] of its (shrunk) image; bool [n], whether the projection is valid and inside; its camera.
    """
    camera = map_.cameras[int(map_.keyframe_camera[keyframe])]
    xyz = torch.from_numpy(map_.xyz[map_.observation_point[map_.observations(keyframe)]])
    pixels, valid = camera.project(se3.transform(se3.inverse(map_.map_from_keyframe[keyframe]), xyz))
    return pixels.numpy(), (valid & camera.in_image(pixels)).numpy(), camera


def coverage(map_: Map, keyframe: int) -> float:
    """Share of the cells of an 8x6 grid over a keyframe's image that hold a point."""
    pixels, _, camera = keyframe_pixels(map_, keyframe)
    columns, rows = _COVERAGE_GRID
    cell = np.floor((pixels + 0.5) / [camera.width / columns, camera.height / rows]).astype(int)
    return len(np.unique(np.clip(cell, 0, [columns - 1, rows - 1]), axis=0)) / (columns * rows)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Makers of maps: from COLMAP models, RGB-D sequences, posed images and drives without poses; what is done with maps."""

from .colmap import build_map_from_colmap
from .drive import build_map_from_drive
from .posed_bag import build_map_from_bag
from .posed_frames import build_map_from_posed_frames
from .rgbd import build_map_from_rgbd

__all__ = [
    "build_map_from_bag",
    "build_map_from_colmap",
    "build_map_from_drive",
    "build_map_from_posed_frames",
    "build_map_from_rgbd",
]

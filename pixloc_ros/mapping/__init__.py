# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps: their file, how they are made, and the points of a map near a pose."""

from .build.colmap import build_map_from_colmap
from .build.rgbd import build_map_from_rgbd
from .local_points import LocalPointOptions, LocalPoints, LocalPointSelector
from .map_file import Map

__all__ = ["LocalPointOptions", "LocalPointSelector", "LocalPoints", "Map", "build_map_from_colmap", "build_map_from_rgbd"]

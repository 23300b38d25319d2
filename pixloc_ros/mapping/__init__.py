# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps: their file, and the points of a map near a pose. `mapping.build` makes them."""

from .local_points import LocalPointOptions, LocalPoints, LocalPointSelector
from .map_file import Map

__all__ = ["LocalPointOptions", "LocalPointSelector", "LocalPoints", "Map"]

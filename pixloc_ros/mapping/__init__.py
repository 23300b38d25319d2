# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps: their file, how they are made, and the points of a map near a pose."""

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Public data sets in the layouts they come in: readers, and what makes a map and a drive or a list of queries of them.

Sets recorded over time (`tum`, `seven_scenes`, `euroc`, `kitti`, `openloris`) are read as a `Recording`; sets of single images
(`cambridge`, `aachen`, `cmu`, `robotcar`) as an `ImageSet`. Nothing is downloaded.
"""

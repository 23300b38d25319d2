# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""For pip (bare machines, development). colcon builds the package from CMakeLists.txt."""

from setuptools import setup

setup()

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Camera localization against a prior map by feature alignment (PixLoc), for ROS 2.

Everything outside `pixloc_ros.node` runs without ROS. The generated messages (`pixloc_ros.msg`) are built by colcon into
another folder under the same package name, hence the extended path.
"""
import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Camera localization against a prior map by feature alignment (PixLoc), for ROS 2.

Everything outside `pixloc_ros.node` runs without ROS. The generated messages (`pixloc_ros.msg`) are built by colcon into
another folder under the same package name, hence the extended path.
"""

import os
import pkgutil

# Threads that spin while they wait take the cores from the rest of the robot: with one busy neighbour on two cores the network
# took three times as long. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"

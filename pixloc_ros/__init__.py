# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Camera localization against a prior map by feature alignment (PixLoc), for ROS 2.

    import pixloc_ros as pixloc

    localizer = pixloc.Localizer.open("site.pixmap")
    found = localizer.locate("image.jpg", pixloc.Camera.parse_colmap_line("PINHOLE 640 480 520 520 320 240"))

The names below are loaded when they are first used. Everything outside `pixloc_ros.node` and `pixloc_ros.rig` runs without ROS.
The generated messages (`pixloc_ros.msg`) are built by colcon into another folder under the same package name, hence the
extended path.
"""

import importlib
import os
import pkgutil

# Threads that spin while they wait take the cores from the rest of the robot: with one busy neighbour on two cores the network
# took three times as long. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"

_EXPORTS = {
    "Localizer": "localization",
    "Location": "localization",
    "PriorStd": "tracking.prior_std",
    "Map": "mapping.map_file",
    "Tracker": "tracking.tracker",
    "TrackState": "tracking.types",
    "CameraFrame": "io.frames",
    "Camera": "geometry.cameras",
    "Execution": "features",
    "load_extractor": "features",
    "align": "alignment",
    "build_map_from_colmap": "mapping.build",
    "build_map_from_rgbd": "mapping.build",
    "build_map_from_bag": "mapping.build",
    "InputError": "errors",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    """The exported name, loaded now: `import pixloc_ros` alone loads neither torch nor anything else that is slow."""
    if name not in _EXPORTS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Makes the repository's `.venv` a ROS 2 environment that needs no `source`.

`make setup` copies this module into the environment's site-packages next to a `.pth` line that imports it, so it runs
at every start of that Python. The dynamic linker reads LD_LIBRARY_PATH only when a process starts: where it lacks the
wheels' libraries, the interpreter is started again, once, in the same process. (The wheels' own hook does the same, but
knows nothing of the overlay, and trusts a marker that a child of another environment inherits.)
"""

import os
import sys
from pathlib import Path

ENVIRONMENT = Path(sys.prefix)
ROOT = ENVIRONMENT.parent
OVERLAY = ROOT / "build" / "overlay" / "install"
SITE_PACKAGES = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
RESTARTED = "_PIXLOC_ROS_RESTARTED"  # holds the id of the process that has been started again


def library_folders() -> "list[Path]":
    """Where the shared libraries of the overlay and of the wheels lie."""
    return [OVERLAY / "lib", ENVIRONMENT / "lib", *sorted((ENVIRONMENT / SITE_PACKAGES).glob("ros_*.libs"))]


def _prepend(ours: "list[Path]", current: str) -> str:
    names = [str(path) for path in ours]
    return os.pathsep.join(names + [entry for entry in current.split(os.pathsep) if entry and entry not in names])


def ros_environment(current: "dict[str, str]") -> "dict[str, str]":
    """`current` with the wheels and the overlay in front of whatever ROS installation it names. Idempotent."""
    new = dict(current)
    new["LD_LIBRARY_PATH"] = _prepend(library_folders(), current.get("LD_LIBRARY_PATH", ""))
    new["AMENT_PREFIX_PATH"] = _prepend([OVERLAY, ENVIRONMENT], current.get("AMENT_PREFIX_PATH", ""))
    if current.get("PYTHONPATH"):
        # A sourced installation's rclpy would come before the wheels' and load the wrong libraries.
        new["PYTHONPATH"] = os.pathsep.join(
            entry for entry in current["PYTHONPATH"].split(os.pathsep) if not os.path.isdir(os.path.join(entry, "rclpy"))
        )
    new["RMW_IMPLEMENTATION"] = "rmw_fastrtps_cpp"  # the only one among the wheels
    if "FASTRTPS_DEFAULT_PROFILES_FILE" not in current:
        new.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds.xml"))
    new["_ROS_WHEELS_BOOTSTRAP_COMPLETE"] = "1"  # the wheels' own hook has nothing left to do
    return new


def activate() -> None:
    """Put the ROS environment in force for this process and its children."""
    new = ros_environment(dict(os.environ))
    known = set(os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    needs_restart = not known.issuperset(map(str, library_folders()))  # in whatever order: OpenCV adds its own in front
    if needs_restart and os.environ.get(RESTARTED) != str(os.getpid()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**new, RESTARTED: str(os.getpid())})
    os.environ.update(new)
    messages = str(OVERLAY / SITE_PACKAGES)
    if messages not in sys.path:
        sys.path.append(messages)


activate()

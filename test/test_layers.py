# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Dependencies point one way (docs/design.md), and ROS stays at the edge."""

import ast
import gc
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pixloc_ros"
FLOORS = [
    {"cli", "node"},
    {"evaluation", "visualization", "simulation", "training"},
    {"tracking"},
    {"mapping"},
    {"alignment"},
    {"features"},
    {"geometry"},
]
ROS = {
    "rclpy",
    "tf2_ros",
    "cv_bridge",
    "sensor_msgs",
    "geometry_msgs",
    "nav_msgs",
    "std_msgs",
    "diagnostic_msgs",
    "rosgraph_msgs",
    "tf2_msgs",
    "builtin_interfaces",
    "launch",
    "launch_ros",
}


def imports(file):
    """(absolute module, names) of every import in a file, relative ones resolved."""
    gc.disable()  # a finalizer that runs while Python 3.11 builds a tree can break it (python/cpython#106905)
    tree = ast.parse(file.read_text())
    gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(file.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level]) if node.level else []
            module = ".".join(base + (node.module.split(".") if node.module else []))
            yield from ([module] if module != "pixloc_ros" else [f"pixloc_ros.{alias.name}" for alias in node.names])


def test_modules_import_only_from_their_floor_and_below():
    floor = {folder: level for level, folders in enumerate(FLOORS) for folder in folders}
    wrong, seen = [], 0
    for file in sorted(PACKAGE.rglob("*.py")):
        folder = file.relative_to(PACKAGE).parts[0]
        for module in imports(file):
            parts = module.split(".")
            if parts[0] == "pixloc_ros" and len(parts) > 1 and folder in floor and parts[1] in floor:
                seen += 1
                if floor[parts[1]] < floor[folder]:
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
    assert seen > 20 and not wrong, wrong


def test_only_the_node_imports_ros():
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.relative_to(PACKAGE).parts[0] != "node"
        for module in imports(file)
        if module.split(".")[0] in ROS or module.startswith("pixloc_ros.msg")
    ]
    assert not wrong, wrong

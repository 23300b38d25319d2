# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The floor plan of docs/design.md: dependencies point down, ROS stays in two folders, nothing grows without bound."""

import ast
import gc
import re
import subprocess
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pixloc_ros"
FLOORS = """cli; rig; node; report datasets training; evaluation; localization; tracking; mapping; alignment; features; io;
    geometry jobs; errors"""
ROS_FOLDERS = {"node", "rig"}
ROS = re.compile(r"(rclpy|tf2_ros|cv_bridge|launch|launch_ros|builtin_interfaces|\w+_msgs|pixloc_ros\.(msg|srv))(\.|$)")
MOST_LINES, MOST_ARGUMENTS = 450, 12


def python_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() if listed.returncode == 0 else [p.relative_to(ROOT) for p in PACKAGE.rglob("*.py")]
    return [ROOT / name for name in names if (ROOT / name).exists()]


@cache
def tree(file: Path) -> ast.Module:
    gc.disable()  # a finalizer that runs while Python 3.11 builds a tree can break it (python/cpython#106905)
    parsed = ast.parse(file.read_text())
    gc.enable()
    return parsed


def imports(file: Path):
    """Absolute modules that a file of the package imports, relative ones resolved; `from package import module` names both."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(file.relative_to(ROOT).with_suffix("").parts[: -node.level]) if node.level else []
            module = ".".join(base + (node.module.split(".") if node.module else []))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """First part of a module's name within the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pixloc_ros" and len(parts) > 1 else None


def folder(module: str) -> str | None:
    """The folder, or the module of the package's root, that holds a module; None for what is none of ours."""
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        return module
    if not path.with_suffix(".py").is_file():
        return None
    return module.rpartition(".")[0] if path.parent != PACKAGE else module


def test_modules_import_only_from_their_floor_and_below():
    level = {name: number for number, names in enumerate(FLOORS.split(";")) for name in names.split()}
    wrong, seen = [], 0
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue  # the door, lazy
        assert own in level, f"{own} has no floor"
        for module in imports(file):
            seen += room(module) in level
            if level.get(room(module), len(level)) < level[own]:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
            if module.split(".")[0] in ("pixloc_sim", "experiments") and own != "cli":
                wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
    assert seen > 200 and not wrong, wrong


def test_folders_do_not_import_one_another_in_circles():
    graph: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        own = folder(".".join(file.relative_to(ROOT).with_suffix("").parts))
        others = {folder(module) for module in imports(file) if room(module)} - {None, own, "pixloc_ros"}
        graph.setdefault(own, set()).update(others)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"folders import one another in a circle: {' → '.join(error.args[1])}")


def test_only_node_and_rig_import_ros():
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.relative_to(PACKAGE).parts[0] not in ROS_FOLDERS
        for module in imports(file)
        if ROS.match(module)
    ]
    assert not wrong, wrong


def test_no_file_is_too_long():
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in python_files()}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_no_function_takes_too_many_arguments():
    wrong = []
    for file in python_files():
        for node in ast.walk(tree(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                count = len([x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")])
                if count > MOST_ARGUMENTS:
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {count} arguments")
    assert not wrong, wrong


def test_one_line_length():
    lengths = re.findall(r"^line-length = (\d+)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(lengths) == 1 and f"{lengths[0]} columns" in (ROOT / "CONTRIBUTING.md").read_text()

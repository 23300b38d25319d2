# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The parameters of `localization_node`: parameters.json is the source of declarations, checks, config file and documentation.

Names are those of Nav2 (nav2_amcl) if it has one. This module imports no ROS.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One node parameter.

    Attributes:
        name: its name; a dot separates groups.
        default: its type is the parameter's type.
        description: for people, in Markdown.
        bounds: inclusive range of a number.
        choices: allowed strings.
        live: may be changed while the node runs; all others only before it is configured.
    """

    name: str
    default: Value
    description: str
    bounds: Sequence[float] | None = None
    choices: Sequence[str] | None = None
    live: bool = False

    @property
    def type_name(self) -> str:
        """As ROS calls it: bool, int, double or string."""
        return {bool: "bool", int: "int", float: "double", str: "string"}[type(self.default)]

    @property
    def constraint(self) -> str:
        """Allowed values, for people; empty if all are."""
        if self.bounds:
            return f"{self.bounds[0]:g} to {self.bounds[1]:g}"
        return ", ".join(self.choices or ())

    def check(self, value: Value) -> None:
        """Raises InputError if the value is of another type or out of range."""
        if type(value) is not type(self.default):
            raise InputError(f"parameter {self.name} is {value!r}: give a {self.type_name}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"parameter {self.name} is {value}: give a finite number")
        if self.bounds and not self.bounds[0] <= value <= self.bounds[1]:
            raise InputError(f"parameter {self.name} is {value}: give {self.constraint}")
        if self.choices and value not in self.choices:
            raise InputError(f"parameter {self.name} is '{value}': give one of {self.constraint}")


PARAMETERS = tuple(Parameter(**entry) for entry in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}

FRAME_QUEUE_LIMIT = 200
"""Images that wait at most with process_all_frames; the oldest is dropped beyond that."""


def check_values(values: dict[str, Value]) -> None:
    """Checks new values of declared parameters, alone and together. Raises InputError."""
    for name, value in values.items():
        BY_NAME[name].check(value)
        if name.endswith(("frame_id", "_topic")) and not value and name not in ("camera_frame_id", "imu_topic"):
            raise InputError(f"parameter {name} is empty: give a name, for example '{BY_NAME[name].default}'")
        if name.endswith("frame_id") and value.startswith("/"):
            raise InputError(f"parameter {name} is '{value}': tf2 frame names have no leading slash")
    if camera_namespaces(values.get("cameras", "")) != ("",) and values.get("camera_frame_id"):
        raise InputError("camera_frame_id is of one camera: leave it empty with cameras, whose images name their frames")
    frames = [values.get(f"{name}_frame_id") for name in ("global", "odom", "base")]
    if None not in frames and len(set(frames)) < 3:
        raise InputError(f"global_frame_id, odom_frame_id and base_frame_id are {', '.join(frames)}: give three different names")


def switch(name: str, text: str) -> bool | None:
    """A launch argument that is on or off, as YAML and ROS read it; None if it is empty. Raises InputError."""
    for value, words in ((True, "true yes on 1 y"), (False, "false no off 0 n")):
        if text.strip().lower() in words.split():
            return value
    if text.strip():
        raise InputError(f"launch argument {name} is '{text}': give true or false")
    return None


def existing_file(name: str, text: str) -> str:
    """A launch argument that names a file. Raises InputError if there is none: the nodes would start without it."""
    if not Path(text).is_file():
        raise InputError(f"launch argument {name}: there is no file {text}")
    return text


def unknown_arguments(given: Iterable[str], declared: Iterable[str]) -> list[str]:
    """What to say of launch arguments that have no effect, as they seem to be misspelt or are parameters of the node only.

    Names that are like none are those of other launch files.
    """
    said = []
    for name in sorted(set(given) - set(declared)):
        close = difflib.get_close_matches(name, list(declared), 1, 0.85)
        if name in BY_NAME:
            said.append(f"launch argument {name} has no effect: set this parameter in the params_file")
        elif close:
            said.append(f"launch argument {name} has no effect: is it meant to be {close[0]}?")
    return said


def image_subscription_topic(image_topic: str, image_transport: str) -> str:
    """The topic that carries the images: image_transport appends the name of a transport to the base topic."""
    if image_transport == "raw" or PurePosixPath(image_topic).name == "compressed":
        return image_topic
    return f"{image_topic}/compressed"


def camera_namespaces(cameras: str) -> tuple[str, ...]:
    """Those in the parameter `cameras`, in their order; one empty one if there is only the one camera. Raises InputError."""
    names = tuple(name.strip().rstrip("/") for name in cameras.split(",") if name.strip(" /"))
    for name in names:
        if not re.fullmatch(r"/?[A-Za-z]\w*(/[A-Za-z]\w*)*", name):
            raise InputError(f"parameter cameras: '{name}' is no namespace: give names with commas between them, as front,left")
    if len({name.strip("/") for name in names}) < len(names):
        raise InputError(f"parameter cameras is '{cameras}': a camera is named twice")
    return names or ("",)


def camera_topic(topic: str, namespace: str) -> str:
    """The topic of one of several cameras: of the parameter's value only the last part counts, below the camera's namespace."""
    return f"{namespace}/{PurePosixPath(topic.removesuffix('/compressed')).name}" if namespace else topic


def markdown_table() -> str:
    """The table in docs/reference.md."""
    rows = ["| name | type | default | allowed | live | meaning |", "|---|---|---|---|---|---|"]
    for p in PARAMETERS:
        rows.append(
            f"| `{p.name}` | {p.type_name} | {_default(p)} | {p.constraint} | {'yes' if p.live else ''} | {p.description} |"
        )
    return "\n".join(rows) + "\n"


def config_yaml() -> str:
    """config/localization.yaml: every parameter with its default and its meaning."""
    lines = [
        "# Parameters of localization_node with their defaults.",
        "# Written by `python -m pixloc_ros.node.parameters`; a test compares it with the declarations.",
        "/**:",
        "  ros__parameters:",
    ]
    group = ""
    for p in PARAMETERS:
        prefix, _, leaf = p.name.rpartition(".")
        if prefix and prefix != group:
            lines.append(f"    {prefix}:")
        group = prefix
        indent = "      " if prefix else "    "
        text = p.description.replace("`", "") + (f" Allowed: {p.constraint}." if p.constraint else "")
        lines.extend(f"{indent}# {line}" for line in textwrap.wrap(text, 100))
        lines.append(f"{indent}{leaf}: {_default(p)}")
    return "\n".join(lines) + "\n"


def _default(p: Parameter) -> str:
    return f'"{p.default}"' if isinstance(p.default, str) else str(p.default).lower()


TABLE_BEGIN, TABLE_END = "<!-- parameters: begin -->\n", "<!-- parameters: end -->\n"


def write_generated(root: Path) -> None:
    """Writes config/localization.yaml and the table in docs/reference.md (between its two markers) under the repo's root."""
    (root / "config" / "localization.yaml").write_text(config_yaml(), encoding="utf-8")
    page = root / "docs" / "reference.md"
    before, rest = page.read_text(encoding="utf-8").split(TABLE_BEGIN)
    after = rest.split(TABLE_END)[1]
    page.write_text(before + TABLE_BEGIN + markdown_table() + TABLE_END + after, encoding="utf-8")


if __name__ == "__main__":
    write_generated(Path(__file__).resolve().parents[2])

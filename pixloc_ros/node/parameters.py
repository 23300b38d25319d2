# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The parameters of `localization_node` in one table: declarations, validation, config file and documentation follow.

Names are Nav2's (nav2_amcl) where it has one. This module imports no ROS.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One node parameter.

    default: its type is the parameter's type. bounds: inclusive range of a number. choices: allowed strings.
    live: may be changed while the node runs; all others only before it is configured.
    """

    name: str
    default: Value
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] | None = None
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
        """Raises InputError where the value is of another type or out of range."""
        if type(value) is not type(self.default):
            raise InputError(f"parameter {self.name} is {value!r}: give a {self.type_name}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"parameter {self.name} is {value}: give a finite number")
        if self.bounds and not self.bounds[0] <= value <= self.bounds[1]:
            raise InputError(f"parameter {self.name} is {value}: give {self.constraint}")
        if self.choices and value not in self.choices:
            raise InputError(f"parameter {self.name} is '{value}': give one of {self.constraint}")


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("map", "", "Map file (.pixmap) that `pixloc map` made."),
    Parameter(
        "weights",
        "compact",
        "Feature network: `compact` (shipped) or the path of a weights file. It must be the one that the map was made with.",
    ),
    Parameter(
        "autostart", True, "Be active at once. Switch it off where a lifecycle manager (Nav2) configures and activates the node."
    ),
    # inputs
    Parameter("image_topic", "camera/image_raw", "Images of the camera."),
    Parameter(
        "image_transport",
        "raw",
        "`raw`: sensor_msgs/Image on image_topic. `compressed`: sensor_msgs/CompressedImage on image_topic/compressed.",
        choices=("raw", "compressed"),
    ),
    Parameter(
        "image_reliability",
        "best_effort",
        "QoS of the image subscription. `best_effort` connects to every publisher; "
        "`reliable` loses nothing but needs a reliable publisher.",
        choices=("best_effort", "reliable"),
    ),
    Parameter("camera_info_topic", "camera/camera_info", "Calibration of that camera."),
    Parameter(
        "time_offset",
        0.0,
        "Seconds added to the stamps of the images, and to nothing else: negative for a camera whose driver stamps late. Poses, "
        "TF and status carry the corrected stamp. The diagnostics tell which value fits the odometry.",
        bounds=(-1.0, 1.0),
        live=True,
    ),
    Parameter(
        "odom_source",
        "topic",
        "Where the odometry comes from: `topic` (odom_topic), `tf` (odom_frame_id -> "
        "base_frame_id), `none`: there is none, and the node publishes map -> base_link.",
        choices=("topic", "tf", "none"),
    ),
    Parameter("odom_topic", "odom", "nav_msgs/Odometry of base_frame_id in odom_frame_id."),
    # frames and TF
    Parameter("global_frame_id", "map", "Name of the map's frame."),
    Parameter("odom_frame_id", "odom", "Name of the odometry's frame."),
    Parameter("base_frame_id", "base_link", "Name of the robot's frame, whose pose is estimated."),
    Parameter("camera_frame_id", "", "Optical frame of the camera; empty: the frame_id of the images."),
    Parameter(
        "publish_tf",
        True,
        "Publish the transform map -> odom (map -> base_link if odom_source is `none`). Switch it "
        "off where a filter publishes it.",
        live=True,
    ),
    Parameter(
        "transform_tolerance",
        0.1,
        "Seconds by which the published transform is dated into the future, so that it holds until the next one.",
        bounds=(0.0, 5.0),
        live=True,
    ),
    Parameter(
        "tf_publish_rate", 30.0, "How often (Hz) is looked whether the transform has to be published again.", bounds=(1.0, 200.0)
    ),
    # start
    Parameter(
        "set_initial_pose",
        False,
        "Start from the pose in initial_pose.*, also after time has jumped back, instead of waiting for /initialpose.",
    ),
    Parameter("initial_pose.x", 0.0, "Start: metres in the map."),
    Parameter("initial_pose.y", 0.0, "Start: metres in the map."),
    Parameter("initial_pose.z", 0.0, "Start: metres in the map."),
    Parameter("initial_pose.roll", 0.0, "Start: radians about x, applied first."),
    Parameter("initial_pose.pitch", 0.0, "Start: radians about y, applied second."),
    Parameter("initial_pose.yaw", 0.0, "Start: radians about z, applied last."),
    Parameter(
        "initial_pose.position_stddev",
        0.3,
        "Standard deviation (m, per axis) of the start; also of an /initialpose whose covariance is zero.",
        bounds=(1e-3, 100.0),
    ),
    Parameter(
        "initial_pose.rotation_stddev",
        0.05,
        "Standard deviation (rad, per axis) of the start; also of an /initialpose whose covariance is zero.",
        bounds=(1e-4, 3.2),
    ),
    Parameter(
        "relocalization",
        True,
        "Look for the pose in the whole map: at the start until there is a first pose, and whenever it is lost.",
    ),
    Parameter(
        "last_pose_file",
        "",
        "File that keeps the last pose. Where it holds one in this map, the node starts from it, unless "
        "set_initial_pose is set. Empty: none.",
    ),
    Parameter(
        "fix_topic",
        "fix",
        "sensor_msgs/NavSatFix: where to look for the first pose, in a map with a georeference (`pixloc map georeference`).",
    ),
    # processing
    Parameter(
        "preset",
        "balanced",
        "How much is spent on an image: fewer points and smaller images, or more points and more iterations "
        "(docs/evidence/performance.md has what each costs and how exact it is).",
        choices=("fast", "balanced", "accurate"),
    ),
    Parameter("max_points", 0, "Map points used per image: more is more exact and slower. 0: the preset's.", bounds=(0, 8192)),
    Parameter(
        "backend",
        "auto",
        "What runs the network: `onnxruntime` and `openvino` (CPU, compact network) need that Python package and onnx; `auto`: "
        "ONNX Runtime where it can be used, else torch. The diagnostics name it.",
        choices=("auto", "torch", "onnxruntime", "openvino"),
    ),
    Parameter("device", "cpu", "Where the network and the optimizer run, as torch calls it: `cpu`, `cuda`, `cuda:1`."),
    Parameter(
        "precision",
        "float32",
        "Of the network's convolutions: less than float32 pays where the processor is made for it.",
        choices=("float32", "bfloat16", "float16"),
    ),
    Parameter("threads", 0, "CPU threads of the network and the optimizer; 0: as many as there are cores.", bounds=(0, 256)),
    Parameter(
        "odometry_wait_s",
        0.1,
        "Longest time (s) that an image waits for the odometry, the calibration and the transforms of its stamp.",
        bounds=(0.0, 5.0),
        live=True,
    ),
    Parameter(
        "process_all_frames",
        False,
        "Process every image in order (for replays at a rate the machine can follow) instead of only the newest one.",
    ),
    Parameter(
        "input_timeout_s", 2.0, "Diagnostics warn when an input has been silent for this long (s).", bounds=(0.1, 60.0), live=True
    ),
)
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}

FRAME_QUEUE_LIMIT = 200
"""Images that wait at most with process_all_frames; the oldest is dropped beyond that."""


def check_values(values: dict[str, Value]) -> None:
    """Checks new values of declared parameters, alone and together. Raises InputError."""
    for name, value in values.items():
        BY_NAME[name].check(value)
        if name.endswith(("frame_id", "_topic")) and not value and name != "camera_frame_id":
            raise InputError(f"parameter {name} is empty: give a name, for example '{BY_NAME[name].default}'")
        if name.endswith("frame_id") and value.startswith("/"):
            raise InputError(f"parameter {name} is '{value}': tf2 frame names have no leading slash")
    frames = [values.get(f"{name}_frame_id") for name in ("global", "odom", "base")]
    if None not in frames and len(set(frames)) < 3:
        raise InputError(f"global_frame_id, odom_frame_id and base_frame_id are {', '.join(frames)}: give three different names")


def image_subscription_topic(image_topic: str, image_transport: str) -> str:
    """The topic that carries the images: image_transport appends the name of a transport to the base topic."""
    if image_transport == "raw" or PurePosixPath(image_topic).name == "compressed":
        return image_topic
    return f"{image_topic}/compressed"


def markdown_table(parameters: Iterable[Parameter] = PARAMETERS) -> str:
    """The table in docs/reference.md."""
    rows = ["| name | type | default | allowed | live | meaning |", "|---|---|---|---|---|---|"]
    for p in parameters:
        default = f'"{p.default}"' if isinstance(p.default, str) else str(p.default).lower()
        rows.append(f"| `{p.name}` | {p.type_name} | {default} | {p.constraint} | {'yes' if p.live else ''} | {p.description} |")
    return "\n".join(rows) + "\n"


def config_yaml(parameters: Iterable[Parameter] = PARAMETERS) -> str:
    """config/localization.yaml: every parameter with its default and its meaning."""
    lines = [
        "# Parameters of localization_node with their defaults.",
        "# Written by `python -m pixloc_ros.node.parameters`; a test compares it with the declarations.",
        "/**:",
        "  ros__parameters:",
    ]
    group = ""
    for p in parameters:
        prefix, _, leaf = p.name.rpartition(".")
        if prefix and prefix != group:
            lines.append(f"    {prefix}:")
        group = prefix
        indent = "      " if prefix else "    "
        lines.extend(f"{indent}# {line}" for line in _wrap(p))
        value = f'"{p.default}"' if isinstance(p.default, str) else str(p.default).lower()
        lines.append(f"{indent}{leaf}: {value}")
    return "\n".join(lines) + "\n"


def _wrap(parameter: Parameter) -> list[str]:
    text = parameter.description.replace("`", "")
    if parameter.constraint:
        text += f" Allowed: {parameter.constraint}."
    return textwrap.wrap(text, 100)


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

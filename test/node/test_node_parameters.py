# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One table of parameters: the node, its config file, its documentation and its launch file agree with it."""

import os
import runpy
import sys
import types
from pathlib import Path

import pytest
import yaml

from pixloc_ros.errors import InputError
from pixloc_ros.node import parameters
from pixloc_ros.node.parameters import (
    BY_NAME,
    PARAMETERS,
    camera_namespaces,
    camera_topic,
    check_values,
    image_subscription_topic,
)
from pixloc_ros.tracking.frame_aligner import DEFAULT, PRESETS

ROOT = Path(__file__).resolve().parents[2]


def test_table_is_sound():
    assert len(BY_NAME) == len(PARAMETERS)
    check_values({p.name: p.default for p in PARAMETERS})
    for p in PARAMETERS:
        assert p.description.endswith("."), p.name
    assert BY_NAME["preset"].choices == list(PRESETS) and BY_NAME["preset"].default == DEFAULT


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("transform_tolerance", -0.1, "give 0 to 5"),
        ("transform_tolerance", float("nan"), "give a finite number"),
        ("transform_tolerance", 1, "give a double"),
        ("preset", "exact", "one of fast, balanced, accurate"),
        ("base_frame_id", "", "empty"),
        ("base_frame_id", "/base_link", "no leading slash"),
        ("odom_frame_id", "map", "three different names"),
        ("cameras", "front, le ft", "'le ft' is no namespace"),
        ("cameras", "/front,left,front/", "named twice"),
    ],
)
def test_bad_values_are_refused(name, value, text):
    with pytest.raises(InputError, match=text):
        check_values({p.name: p.default for p in PARAMETERS} | {name: value})


def test_image_topics():
    assert image_subscription_topic("camera/image_raw", "raw") == "camera/image_raw"
    assert image_subscription_topic("camera/image_raw", "compressed") == "camera/image_raw/compressed"
    assert image_subscription_topic("camera/image_raw/compressed", "compressed") == "camera/image_raw/compressed"


def test_topics_of_several_cameras():
    assert camera_namespaces(" , ") == ("",) and camera_namespaces("front, /rig/left/") == ("front", "/rig/left")
    assert camera_topic("camera/image_raw", "") == "camera/image_raw"
    assert camera_topic("camera/image_raw/compressed", "/rig/left") == "/rig/left/image_raw"
    with pytest.raises(InputError, match="camera_frame_id is of one camera"):
        check_values({"cameras": "front", "camera_frame_id": "front_optical"})


def flat(values: dict, prefix: str = "") -> dict:
    result = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def test_config_file_is_current():
    text = (ROOT / "config" / "localization.yaml").read_text(encoding="utf-8")
    assert text == parameters.config_yaml(), "run: python -m pixloc_ros.node.parameters"
    values = flat(yaml.safe_load(text)["/**"]["ros__parameters"])
    assert values == {p.name: p.default for p in PARAMETERS}
    for name, value in values.items():
        BY_NAME[name].check(value)


def test_documentation_is_current():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    table = page.split(parameters.TABLE_BEGIN)[1].split(parameters.TABLE_END)[0]
    assert table == parameters.markdown_table(), "run: python -m pixloc_ros.node.parameters"


# ---- launch file, run against stand-ins for `launch` and `launch_ros`


class Values(dict):
    """Stand-in for launch's context: what the arguments are."""

    @property
    def launch_configurations(self) -> dict:
        return self


@pytest.fixture
def launch_file(monkeypatch):
    """Gives the nodes that the launch file starts, the arguments that it declares, and their values."""

    def made(*positional, **named):
        return types.SimpleNamespace(positional=positional, **named)

    kinds = "LaunchDescription DeclareLaunchArgument OpaqueFunction Node GroupAction IncludeLaunchDescription LogInfo"
    kinds = dict.fromkeys(f"{kinds} PythonLaunchDescriptionSource".split(), made)
    fake = types.SimpleNamespace(
        **kinds,
        LaunchConfiguration=lambda name: types.SimpleNamespace(perform=lambda values: values[name]),
        ParameterValue=lambda value, value_type: value_type(value),
        get_package_share_directory=lambda name: str(ROOT),
    )
    modules = "launch launch.actions launch.launch_description_sources launch.substitutions launch_ros launch_ros.actions"
    for name in (*modules.split(), "launch_ros.parameter_descriptions", "ament_index_python.packages"):
        monkeypatch.setitem(sys.modules, name, fake)
    launched = runpy.run_path(str(ROOT / "launch" / "localization.launch.py"))

    def launch(**given):
        *arguments, opaque = launched["generate_launch_description"]().positional[0]
        declared = {argument.positional[0]: argument for argument in arguments}
        values = Values({name: argument.default_value for name, argument in declared.items()} | given)
        return opaque.function(values), declared, values

    return launch


def test_launch_passes_only_declared_parameters(launch_file):
    (node,), declared, _ = launch_file()
    assert node.package == "pixloc_ros" and node.executable == "localization_node"
    params_file, overrides = node.parameters
    assert Path(params_file).samefile(ROOT / "config" / "localization.yaml")
    assert overrides == {}, "an argument that is not given must not overrule the file"
    nav2 = {"namespace", "params_file", "use_sim_time", "use_respawn", "use_rviz", "log_level"}
    wanted = {name: BY_NAME[name].default for name in set(declared) - nav2}
    given = {name: value if isinstance(value, bool) else value or "x" for name, value in wanted.items()}
    (node,), *_ = launch_file(use_sim_time="true", **{name: str(value) for name, value in given.items()})
    overrides = node.parameters[1]
    assert overrides.pop("use_sim_time") is True
    assert overrides == given
    check_values(overrides | {"camera_frame_id": ""})  # which is of one camera, and cameras are named


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("1", True), ("On", True), ("FALSE", False), ("off", False), ("0", False)]
)
def test_launch_reads_switches_as_yaml_does(launch_file, text, value):
    switches = {"use_sim_time", "publish_tf", "autostart", "set_initial_pose"}
    (node, *rest), *_ = launch_file(use_respawn=text, use_rviz=text, **dict.fromkeys(switches, text))
    assert node.parameters[1] == dict.fromkeys(switches, value) and node.respawn is value and len(rest) == value
    for name in (*switches, "use_respawn", "use_rviz"):
        with pytest.raises(InputError, match=f"launch argument {name} is 'maybe': give true or false"):
            launch_file(**{name: "maybe"})


def test_launch_refuses_files_that_are_not_there(launch_file):
    with pytest.raises(InputError, match="launch argument params_file: there is no file nowhere.yaml"):
        launch_file(params_file="nowhere.yaml")


def test_launch_tells_of_arguments_without_effect(launch_file):
    """Those of other launch files are none of its business."""
    (_, *said), *_ = launch_file(image_topik="x", transform_tolerance="1.0", ekf_params_file="x", nav2_params_file="x", grid="x")
    first, second = (info.msg for info in said)
    assert "image_topik has no effect: is it meant to be image_topic?" in first
    assert "transform_tolerance has no effect: set this parameter in the params_file" in second


def test_fusion_is_on_the_clock_of_its_files_unless_one_is_given(launch_file):
    del launch_file  # the stand-ins for launch are in place
    *_, opaque = runpy.run_path(str(ROOT / "launch" / "fusion.launch.py"))["generate_launch_description"]().positional[0]
    for text, expected in (("", []), ("yes", [{"use_sim_time": True}])):
        file = str(ROOT / "config" / "ekf.yaml")
        (ekf,) = opaque.function({"use_sim_time": text, "ekf_params_file": file, "namespace": ""})
        assert ekf.executable == "ekf_node" and ekf.parameters[1:] == expected


def test_launch_arguments_are_nav2s(launch_file):
    (node,), declared, _ = launch_file()
    assert {"namespace", "params_file", "use_sim_time", "log_level", "use_respawn", "map"} <= set(declared)
    assert all(argument.description for argument in declared.values())
    assert ("/tf", "tf") in node.remappings and ("/tf_static", "tf_static") in node.remappings
    (_, rviz), *_ = launch_file(use_rviz="true")
    assert rviz.package == "rviz2" and Path(rviz.arguments[1]).is_file()


@pytest.mark.parametrize(
    ("given", "switches", "suited"),
    [
        ({}, "false true false", "true"),
        ({"use_sim_time": "yes", "autostart": "0", "use_respawn": "1", "params_file": "mine.yaml"}, "true false true", ""),
    ],
)
def test_nav2_launch_has_a_map_server_the_node_and_navigation(launch_file, tmp_path, given, switches, suited):
    """Nav2 gets true and false however they are written; what is for Nav2 in the node does not overrule a params_file."""
    del launch_file  # the stand-ins for launch are in place
    (grid := tmp_path / "site.yaml").touch()
    entities = runpy.run_path(str(ROOT / "launch" / "nav2_camera.launch.py"))["generate_launch_description"]().positional[0]
    *declared, suit, localization, nav2 = entities
    values = Values({d.positional[0]: getattr(d, "default_value", "") for d in declared} | given)
    values |= {"grid": str(grid), "nav2_params_file": str(grid)}
    assert suit.function(values) == [] and values["planar"] == values["amcl_interface"] == suited
    *nodes, navigation = nav2.function(values)
    nodes = {node.executable: node.parameters for node in nodes}
    assert nodes["map_server"][0] == {"yaml_filename": str(grid)}
    names = ["map_server"] if "autostart" not in given else ["map_server", "localization_node"]
    assert nodes["lifecycle_manager"][0] == {"autostart": "autostart" not in given, "node_names": names}
    (localization,), (navigation,) = (group.positional[0] for group in (localization, navigation))
    assert Path(localization.positional[0].positional[0]).name == "localization.launch.py" and not localization.launch_arguments
    assert Path(navigation.positional[0].positional[0]).name == "navigation_launch.py"
    wanted = dict(zip(("use_sim_time", "autostart", "use_respawn"), switches.split()))
    assert dict(navigation.launch_arguments) == wanted | {"namespace": "", "params_file": str(grid)}


def test_launch_starts_the_node_with_its_arguments(monkeypatch):
    """Through ROS's own launch system: on ROS machines, in a sourced workspace. Wheels have none."""
    pytest.importorskip("launch_ros.actions", reason="ROS's launch system is not installed")
    from ament_index_python.packages import get_package_share_directory
    from launch.actions import EmitEvent, IncludeLaunchDescription, RegisterEventHandler, TimerAction
    from launch.event_handlers import OnProcessExit, OnProcessIO
    from launch.events import Shutdown
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    from launch import LaunchDescription, LaunchService

    monkeypatch.setenv("ROS_DOMAIN_ID", os.environ.get("ROS_DOMAIN_ID", str(1 + os.getpid() % 100)))
    said, codes = [], []

    def heard(event):
        said.append(event.text.decode(errors="replace"))
        # What the node says of a map that is not there ends the test: the arguments have arrived, and it stays up.
        return [EmitEvent(event=Shutdown())] if "no map file nowhere.pixmap" in "".join(said) else None

    file = str(Path(get_package_share_directory("pixloc_ros"), "launch", "localization.launch.py"))
    arguments = {"map": "nowhere.pixmap", "namespace": "robot1", "use_sim_time": "false"}
    service = LaunchService()
    service.include_launch_description(
        LaunchDescription(
            [
                RegisterEventHandler(OnProcessIO(on_stdout=heard, on_stderr=heard)),
                RegisterEventHandler(OnProcessExit(on_exit=lambda event, _: codes.append(event.returncode))),
                TimerAction(period=90.0, actions=[EmitEvent(event=Shutdown(reason="too late"))]),
                IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=arguments.items()),
            ]
        )
    )
    assert service.run() == 0, "".join(said)
    assert "robot1.localization_node]: map: no map file nowhere.pixmap" in "".join(said)
    assert len(codes) == 1  # launch has it stopped

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Nav2 with the camera in AMCL's place: localization_node, map_server, and Nav2's planner and controller (docs/nav2.md).

    ros2 launch pixloc_ros nav2_camera.launch.py map:=site.pixmap grid:=site.yaml image_topic:=/camera/image_raw

Takes the arguments of localization.launch.py. Needs nav2_bringup, nav2_map_server and nav2_lifecycle_manager.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from pixloc_ros.node.parameters import existing_file, switch

SWITCH_ARGUMENTS = {
    "use_sim_time": "true: take the time from /clock",
    "autostart": "false: nothing becomes active before the lifecycle managers are told to start (Nav2's panel in RViz)",
    "use_respawn": "Start nodes again if they end",
    "planar": "map -> odom in x, y and heading only; without params_file: true",
    "amcl_interface": "Also amcl_pose and the services of amcl; without params_file: true",
}
NAV2_SWITCHES = {"use_sim_time": "false", "autostart": "true", "use_respawn": "false"}


def include(file: Path, **arguments) -> GroupAction:
    """A group of its own: both files have a params_file, and arguments of one must not reach the other."""
    return GroupAction([IncludeLaunchDescription(PythonLaunchDescriptionSource(str(file)), launch_arguments=arguments.items())])


def suit_nav2(context):
    """What Nav2 expects of a localizer, unless an argument or the params_file says otherwise."""
    values = context.launch_configurations
    for name in ("planar", "amcl_interface"):
        if not values.get("params_file"):
            values[name] = values[name] or "true"
    return []


def nav2(context):
    """Map server, planner and controller. Nav2 reads switches as true and false only."""

    def given(name):
        return LaunchConfiguration(name).perform(context)

    switches = {name: switch(name, given(name) or default) for name, default in NAV2_SWITCHES.items()}
    autostart, sim_time = switches["autostart"], {"use_sim_time": switches["use_sim_time"]}
    common = {"namespace": given("namespace"), "output": "screen"}
    server = {"yaml_filename": existing_file("grid", given("grid"))}
    # localization_node starts by itself, unless all wait for the manager.
    manager = {"autostart": autostart, "node_names": ["map_server", *([] if autostart else ["localization_node"])]}
    # RViz's Nav2 panel looks for a manager of this name.
    nodes = (
        ("nav2_map_server", "map_server", "map_server", server),
        ("nav2_lifecycle_manager", "lifecycle_manager", "lifecycle_manager_localization", manager),
    )
    navigation = include(
        Path(get_package_share_directory("nav2_bringup"), "launch", "navigation_launch.py"),
        namespace=given("namespace"),
        params_file=existing_file("nav2_params_file", given("nav2_params_file")),
        **{name: str(value).lower() for name, value in switches.items()},
    )
    started = [
        Node(package=package, executable=executable, name=name, parameters=[parameters, sim_time], **common)
        for package, executable, name, parameters in nodes
    ]
    return [*started, navigation]


def generate_launch_description():
    nav2_file = Path(get_package_share_directory("nav2_bringup"), "params", "nav2_params.yaml")
    table = {"namespace": ("", "Namespace of the robot"), "nav2_params_file": (str(nav2_file), "Parameters of Nav2")}
    table |= {name: ("", text) for name, text in SWITCH_ARGUMENTS.items()}
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in table.items()]
    declared.append(DeclareLaunchArgument("grid", description="Occupancy grid (.yaml) in the same frame as the .pixmap"))
    localization = include(Path(get_package_share_directory("pixloc_ros"), "launch", "localization.launch.py"))
    return LaunchDescription([*declared, OpaqueFunction(function=suit_nav2), localization, OpaqueFunction(function=nav2)])

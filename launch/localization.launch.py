# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Starts localization_node. Arguments are named as in Nav2's localization_launch.py.

    ros2 launch pixloc_ros localization.launch.py map:=site.pixmap

Parameters come from params_file; an argument of the same name that is not empty overrules it.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

# Launch argument and node parameter have the same name.
PARAMETER_ARGUMENTS = {
    "map": "Map file (.pixmap)",
    "image_topic": "Images of the camera",
    "image_transport": "raw or compressed",
    "camera_info_topic": "Calibration of the camera",
    "odom_topic": "Odometry of the robot",
    "odom_source": "topic, tf or none",
    "base_frame_id": "Frame of the robot",
    "odom_frame_id": "Frame of the odometry",
}
SWITCH_ARGUMENTS = {
    "autostart": "true: active at once; false: a lifecycle manager configures and activates the node",
    "planar": "true: map -> odom in x, y and heading only, for 2D costmaps",
    "publish_tf": "false: a filter publishes map -> odom (fusion.launch.py)",
}
CONFIG = Path(get_package_share_directory("pixloc_ros"), "config")
OTHER_ARGUMENTS = {
    "namespace": ("", "Namespace of the robot"),
    "params_file": (str(CONFIG / "localization.yaml"), "Parameters of the node"),
    "use_sim_time": ("false", "Take the time from /clock"),
    "use_respawn": ("false", "Start the node again if it ends"),
    "use_rviz": ("false", "Show it in RViz"),
    "log_level": ("info", "Level of the log"),
}


def localization_node(context):
    """The node, with those arguments that were given."""

    def given(name):
        return LaunchConfiguration(name).perform(context)

    overrides = {name: ParameterValue(given(name), value_type=str) for name in PARAMETER_ARGUMENTS if given(name)}
    overrides |= {name: given(name).lower() == "true" for name in SWITCH_ARGUMENTS if given(name)}
    overrides["use_sim_time"] = given("use_sim_time").lower() == "true"
    common = {"namespace": LaunchConfiguration("namespace"), "remappings": [("/tf", "tf"), ("/tf_static", "tf_static")]}
    node = Node(
        package="pixloc_ros",
        executable="localization_node",
        name="localization_node",
        parameters=[LaunchConfiguration("params_file"), overrides],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        respawn=given("use_respawn").lower() == "true",
        respawn_delay=2.0,
        output="screen",
        **common,
    )
    if given("use_rviz").lower() != "true":
        return [node]
    arguments, parameters = ["-d", str(CONFIG / "localization.rviz")], [{"use_sim_time": overrides["use_sim_time"]}]
    return [node, Node(package="rviz2", executable="rviz2", arguments=arguments, parameters=parameters, **common)]


def generate_launch_description():
    table = OTHER_ARGUMENTS | {name: ("", text) for name, text in (PARAMETER_ARGUMENTS | SWITCH_ARGUMENTS).items()}
    arguments = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in table.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=localization_node)])

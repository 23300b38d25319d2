# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Starts localization_node. Arguments are named as in Nav2's localization_launch.py.

    ros2 launch pixloc_ros localization.launch.py map:=site.pixmap

Parameters come from params_file; an argument of the same name that is not empty overrules it.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription
from pixloc_ros.node.parameters import existing_file, switch, unknown_arguments

# Launch argument and node parameter have the same name.
PARAMETER_ARGUMENTS = {
    "map": "Map file (.pixmap)",
    "image_topic": "Images of the camera",
    "image_transport": "raw or compressed",
    "image_reliability": "best_effort or reliable",
    "camera_info_topic": "Calibration of the camera",
    "cameras": "Several cameras: namespaces of their topics, as front,left",
    "odom_topic": "Odometry of the robot",
    "odom_source": "topic, tf or none",
    "base_frame_id": "Frame of the robot",
    "odom_frame_id": "Frame of the odometry",
    "global_frame_id": "Frame of the map",
    "camera_frame_id": "Optical frame of the camera, if it is not the images' frame_id",
    "last_pose_file": "File that keeps the last pose for the next start",
    "preset": "fast, balanced or accurate",
}
SWITCH_ARGUMENTS = {
    "autostart": "true: active at once; false: a lifecycle manager configures and activates the node",
    "set_initial_pose": "true: start from initial_pose.* of the params_file",
    "amcl_interface": "true: also amcl_pose and the services of amcl",
    "planar": "true: map -> odom in x, y and heading only, for 2D costmaps",
    "publish_tf": "false: a filter publishes map -> odom (fusion.launch.py)",
    "use_sim_time": "true: take the time from /clock",
}
CONFIG = Path(get_package_share_directory("pixloc_ros"), "config")
OTHER_ARGUMENTS = {
    "namespace": ("", "Namespace of the robot"),
    "params_file": (str(CONFIG / "localization.yaml"), "Parameters of the node"),
    "use_respawn": ("false", "Start the node again if it ends"),
    "use_rviz": ("false", "Show it in RViz"),
    "log_level": ("info", "Level of the log"),
}
ARGUMENTS = OTHER_ARGUMENTS | {name: ("", text) for name, text in (PARAMETER_ARGUMENTS | SWITCH_ARGUMENTS).items()}


def localization_node(context):
    """The node, with those arguments that were given."""

    def given(name):
        return LaunchConfiguration(name).perform(context)

    overrides = {name: ParameterValue(given(name), value_type=str) for name in PARAMETER_ARGUMENTS if given(name)}
    switches = {name: switch(name, given(name)) for name in (*SWITCH_ARGUMENTS, "use_respawn", "use_rviz")}
    overrides |= {name: switches[name] for name in SWITCH_ARGUMENTS if switches[name] is not None}
    common = {"namespace": LaunchConfiguration("namespace"), "remappings": [("/tf", "tf"), ("/tf_static", "tf_static")]}
    node = Node(
        package="pixloc_ros",
        executable="localization_node",
        name="localization_node",
        parameters=[existing_file("params_file", given("params_file")), overrides],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        respawn=bool(switches["use_respawn"]),
        respawn_delay=2.0,
        output="screen",
        **common,
    )
    said = [LogInfo(msg=text) for text in unknown_arguments(context.launch_configurations, ARGUMENTS)]
    if not switches["use_rviz"]:
        return [node, *said]
    arguments, parameters = ["-d", str(CONFIG / "localization.rviz")], [{"use_sim_time": bool(switches["use_sim_time"])}]
    return [node, Node(package="rviz2", executable="rviz2", arguments=arguments, parameters=parameters, **common), *said]


def generate_launch_description():
    arguments = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in ARGUMENTS.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=localization_node)])

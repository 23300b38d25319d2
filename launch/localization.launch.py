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
    "publish_tf": "false: a filter publishes map -> odom (fusion.launch.py)",
}


def localization_node(context):
    """The node, with those arguments that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in PARAMETER_ARGUMENTS}
    use_sim_time = LaunchConfiguration("use_sim_time").perform(context)
    overrides = {name: ParameterValue(value, value_type=str) for name, value in given.items() if value}
    switches = {name: LaunchConfiguration(name).perform(context) for name in SWITCH_ARGUMENTS}
    overrides |= {name: value.lower() == "true" for name, value in switches.items() if value}
    overrides["use_sim_time"] = use_sim_time.lower() == "true"
    nodes = [
        Node(
            package="pixloc_ros",
            executable="localization_node",
            name="localization_node",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), overrides],
            remappings=[("/tf", "tf"), ("/tf_static", "tf_static")],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            respawn=LaunchConfiguration("use_respawn").perform(context).lower() == "true",
            respawn_delay=2.0,
            output="screen",
        )
    ]
    if LaunchConfiguration("use_rviz").perform(context).lower() == "true":
        rviz = Node(
            package="rviz2",
            executable="rviz2",
            namespace=LaunchConfiguration("namespace"),
            arguments=["-d", str(Path(get_package_share_directory("pixloc_ros"), "config", "localization.rviz"))],
            parameters=[{"use_sim_time": overrides["use_sim_time"]}],
            remappings=[("/tf", "tf"), ("/tf_static", "tf_static")],
        )
        nodes.append(rviz)
    return nodes


def generate_launch_description():
    default_params = str(Path(get_package_share_directory("pixloc_ros"), "config", "localization.yaml"))
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the robot"),
        DeclareLaunchArgument("params_file", default_value=default_params, description="Parameters of the node"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="Take the time from /clock"),
        DeclareLaunchArgument("use_respawn", default_value="false", description="Start the node again if it ends"),
        DeclareLaunchArgument("use_rviz", default_value="false", description="Show it in RViz"),
        DeclareLaunchArgument("log_level", default_value="info", description="Level of the log"),
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value="", description=description)
        for name, description in (PARAMETER_ARGUMENTS | SWITCH_ARGUMENTS).items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=localization_node)])

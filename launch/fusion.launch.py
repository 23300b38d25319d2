# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Starts localization_node and robot_localization's filter, which fuses its pose with the wheel odometry (docs/nav2.md).

    ros2 launch pixloc_ros fusion.launch.py map:=site.pixmap

Takes the arguments of localization.launch.py, and ekf_params_file. The filter publishes map -> odom.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription


def generate_launch_description():
    share = Path(get_package_share_directory("pixloc_ros"))
    use_sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the robot"),
            DeclareLaunchArgument("use_sim_time", default_value="false", description="Take the time from /clock"),
            DeclareLaunchArgument(
                "ekf_params_file", default_value=str(share / "config" / "ekf.yaml"), description="Parameters of the filter"
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share / "launch" / "localization.launch.py")),
                launch_arguments={"publish_tf": "false"}.items(),
            ),
            Node(
                package="robot_localization",
                executable="ekf_node",
                name="ekf_filter_node",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("ekf_params_file"), {"use_sim_time": use_sim_time}],
                remappings=[("/tf", "tf"), ("/tf_static", "tf_static"), ("odometry/filtered", "odometry/fused")],
                output="screen",
            ),
        ]
    )

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Starts localization_node and robot_localization's filter, which fuses its pose with the wheel odometry (docs/nav2.md).

    ros2 launch pixloc_ros fusion.launch.py map:=site.pixmap

Takes the arguments of localization.launch.py, and ekf_params_file. The filter publishes map -> odom.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from pixloc_ros.node.parameters import existing_file, switch


def ekf_node(context):
    """The filter, with the file and on the clock that were given."""
    use_sim_time = switch("use_sim_time", LaunchConfiguration("use_sim_time").perform(context))
    file = existing_file("ekf_params_file", LaunchConfiguration("ekf_params_file").perform(context))
    ekf = Node(
        package="robot_localization",
        executable="ekf_node",
        name="ekf_filter_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[file, *([] if use_sim_time is None else [{"use_sim_time": use_sim_time}])],
        remappings=[("/tf", "tf"), ("/tf_static", "tf_static"), ("odometry/filtered", "odometry/fused")],
        # Some versions crash while simulated time is near 0 (docs/nav2.md).
        respawn=True,
        respawn_delay=2.0,
        output="screen",
    )
    return [ekf]


def generate_launch_description():
    share = Path(get_package_share_directory("pixloc_ros"))
    arguments = {
        "namespace": ("", "Namespace of the robot"),
        "use_sim_time": ("", "true: take the time from /clock"),
        "ekf_params_file": (str(share / "config" / "ekf.yaml"), "Parameters of the filter"),
    }
    localization = PythonLaunchDescriptionSource(str(share / "launch" / "localization.launch.py"))
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in arguments.items()]
    included = IncludeLaunchDescription(localization, launch_arguments={"publish_tf": "false"}.items())
    return LaunchDescription([*declared, included, OpaqueFunction(function=ekf_node)])

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Nav2 with the camera in AMCL's place: localization_node, map_server, and Nav2's planner and controller (docs/nav2.md).

    ros2 launch pixloc_ros nav2_camera.launch.py map:=site.pixmap grid:=site.yaml image_topic:=/camera/image_raw

Takes the arguments of localization.launch.py. Needs nav2_bringup, nav2_map_server and nav2_lifecycle_manager.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription


def generate_launch_description():
    nav2 = Path(get_package_share_directory("nav2_bringup"))
    localization = Path(get_package_share_directory("pixloc_ros"), "launch", "localization.launch.py")
    declared = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the robot"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="Take the time from /clock"),
        DeclareLaunchArgument("grid", description="Occupancy grid (.yaml) in the same frame as the .pixmap"),
        DeclareLaunchArgument("planar", default_value="true", description="map -> odom in x, y and heading only"),
        DeclareLaunchArgument(
            "nav2_params_file", default_value=str(nav2 / "params" / "nav2_params.yaml"), description="Parameters of Nav2"
        ),
    ]
    sim_time = {"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)}
    common = {"namespace": LaunchConfiguration("namespace"), "output": "screen"}
    map_server = Node(
        package="nav2_map_server",
        executable="map_server",
        name="map_server",
        parameters=[{"yaml_filename": LaunchConfiguration("grid")}, sim_time],
        **common,
    )
    manager = Node(
        package="nav2_lifecycle_manager",
        executable="lifecycle_manager",
        name="lifecycle_manager_map",
        parameters=[{"autostart": True, "node_names": ["map_server"]}, sim_time],
        **common,
    )

    def include(file: Path, **arguments) -> GroupAction:
        # A group of its own: both files have a params_file, and arguments of one must not reach the other.
        return GroupAction(
            [IncludeLaunchDescription(PythonLaunchDescriptionSource(str(file)), launch_arguments=arguments.items())]
        )

    navigation = include(
        nav2 / "launch" / "navigation_launch.py",
        namespace=LaunchConfiguration("namespace"),
        use_sim_time=LaunchConfiguration("use_sim_time"),
        params_file=LaunchConfiguration("nav2_params_file"),
    )
    return LaunchDescription([*declared, map_server, manager, include(localization), navigation])

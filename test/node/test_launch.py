# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The launch file through ROS's own launch system: on ROS machines, in a sourced workspace. Wheels have no launch system."""

import os

import pytest

pytest.importorskip("launch_ros.actions", reason="ROS's launch system is not installed")


def test_launch_starts_the_node_with_its_arguments(monkeypatch):
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

    file = os.path.join(get_package_share_directory("pixloc_ros"), "launch", "localization.launch.py")
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

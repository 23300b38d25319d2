# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Inputs that fail while all else goes on, over real DDS: what the node says, and what it no longer publishes."""

import pytest
from node_harness import START_NS, having, odometry_message, odometry_pose, running, stamp_of, start_pose
from pixloc_ros.msg import LocalizationStatus

from pixloc_ros.geometry import se3

TRACKING, DEGRADED, LOST = LocalizationStatus.TRACKING, LocalizationStatus.DEGRADED, LocalizationStatus.LOST


def drive(robot, numbers, odometry=lambda message: message, image=True) -> None:
    """Images `numbers` with odometry at 50 Hz, each message changed on its way."""
    for number in numbers:
        while robot.odometry_ns < stamp_of(number):
            robot.odometry_ns += 20_000_000
            robot.odometry.publish(odometry(odometry_message(robot.odometry_ns)))
        if image:
            robot.see(number)
            assert robot.status_of(stamp_of(number)).state == TRACKING


def test_an_empty_twist_is_said_and_the_velocity_taken_from_the_poses():
    no_twist = (("twist.twist.linear.x", 0.0), ("twist.twist.angular.z", 0.0))
    with running(**start_pose()) as (_, robot):
        drive(robot, range(40), lambda message: having(message, *no_twist))
        robot.diagnosed("odometry: the odometry's linear and angular twist is zero although its poses move")
        robot.wait(lambda: len(robot.odometries) == 40)
        twist = robot.odometries[-1].twist
        end_s = (stamp_of(39) - START_NS) * 1e-9
        moved = se3.se3_log(se3.inverse(odometry_pose(end_s - 0.1)) @ odometry_pose(end_s)).numpy() / 0.1
        assert twist.twist.linear.x == pytest.approx(moved[0], rel=0.05)
        assert twist.twist.angular.z == pytest.approx(moved[5], rel=0.05)
        assert twist.covariance[0] > 0
        drive(robot, range(40, 54))
        robot.wait(lambda: robot.levels["odometry"] == b"\0")

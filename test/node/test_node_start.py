# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the node starts from where nobody gives a pose: the last pose of its file, a satellite fix; over real DDS. And what its
start leaves Python's collector to do."""

import gc
import math

import numpy as np
import torch
from node_harness import FakeLocalizer, initial_pose_message, pose_of, running, stamp_of
from pixloc_ros.msg import LocalizationStatus
from sensor_msgs.msg import NavSatFix, NavSatStatus

from pixloc_ros.geometry import se3
from pixloc_ros.mapping.georeference import Georeference
from pixloc_ros.tracking.last_pose import LastPose, load_last_pose, save_last_pose

TRACKING, INITIALIZING = LocalizationStatus.TRACKING, LocalizationStatus.INITIALIZING
PLACE = np.array([48.1, 11.5, 520.0])


def last_pose(number: int, map_name: str = FakeLocalizer.map_name) -> LastPose:
    return LastPose(map_name, stamp_of(number), pose_of(number), 1e-3 * torch.eye(6, dtype=torch.float64))


def test_the_last_pose_is_kept_and_started_from(tmp_path):
    path = tmp_path / "state" / "pose.json"
    with running(last_pose_file=str(path)) as (_, robot):
        assert robot.step(0).state == INITIALIZING
        robot.initial_pose.publish(initial_pose_message(1))
        robot.wait(lambda: robot.initial_pose.wait_for_all_acked() or True)
        robot.wait(lambda: robot.step(len(robot.statuses)).state == TRACKING)
        robot.wait(path.is_file)
    kept = load_last_pose(path, FakeLocalizer.map_name)
    number = round((kept.stamp_ns - stamp_of(0)) / (stamp_of(1) - stamp_of(0)))
    assert float(se3.pose_difference(kept.map_from_base, pose_of(number))[0]) < 0.05
    save_last_pose(path, last_pose(0))
    with running(last_pose_file=str(path)) as (_, robot):
        assert robot.step(0).state == TRACKING


def test_the_last_pose_of_another_map_is_not_started_from(tmp_path):
    path = tmp_path / "pose.json"
    save_last_pose(path, last_pose(0, "other.pixmap"))
    with running(last_pose_file=str(path)) as (_, robot):
        assert robot.step(0).state == INITIALIZING


def test_a_fix_says_where_to_look():
    class Placed(FakeLocalizer):
        """Its map is turned so that the fix's unknown heading, taken as east, is the robot's."""

        georeference = Georeference(*PLACE, se3.inverse(pose_of(0)))

    def fix(**changes) -> NavSatFix:
        message = NavSatFix(latitude=PLACE[0], longitude=PLACE[1], altitude=PLACE[2])
        message.status.status = NavSatStatus.STATUS_FIX
        message.position_covariance = [1.0, 0, 0, 0, 1.0, 0, 0, 0, 4.0]
        message.position_covariance_type = NavSatFix.COVARIANCE_TYPE_DIAGONAL_KNOWN
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    with running(open_localizer=Placed) as (_, robot):
        fixes = robot.node.create_publisher(NavSatFix, "fix", 5)
        robot.wait(lambda: fixes.get_subscription_count() > 0)
        assert robot.step(0).state == INITIALIZING
        fixes.publish(fix(position_covariance_type=NavSatFix.COVARIANCE_TYPE_UNKNOWN))
        robot.diagnosed("/fix has no usable position_covariance")
        fixes.publish(fix(latitude=math.nan))
        fixes.publish(fix())
        robot.wait(lambda: robot.step(len(robot.statuses)).state == TRACKING)


def test_the_collector_leaves_alone_what_was_loaded():
    gc.unfreeze()
    with running():
        assert len(gc.get_objects()) < gc.get_freeze_count()

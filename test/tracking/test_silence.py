# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A camera that stops while odometry goes on."""

import pytest
import torch
from test_tracker import DEGRADED, LOST, TRACKING, Robot, odom_from_base, stamp

from pixloc_ros.tracking.types import TrackState


def watched(robot: Robot, seconds: float, step_s: float = 0.1, odometry: bool = True) -> list[TrackState]:
    """States while odometry goes on without images."""
    states = []
    for _ in range(round(seconds / step_s)):
        robot.t += step_s
        if odometry:
            robot.tracker.add_odometry(stamp(robot.t), odom_from_base(robot.t))
        robot.tracker.watch(stamp(robot.t))
        states.append(robot.tracker.state)
    return states


def test_a_camera_that_stops_ends_dead_reckoning_and_images_bring_it_back():
    robot = Robot().tracking()
    states = watched(robot, 7.0)
    assert states[8] is TRACKING and states[12] is DEGRADED and states[-1] is LOST
    assert states == sorted(states)
    found = robot.see()  # as good an image as one that confirms an initial pose
    assert found.state is TRACKING and "the first image after 7.1 s" in found.message


def test_after_a_gap_a_doubtful_image_or_one_of_another_place_is_confirmed_first():
    for inliers, offset in ((0.35, 0.0), (0.9, 6.0)):
        robot = Robot().tracking()
        robot.localizer.reach_m = 10.0
        watched(robot, 7.0)
        away = torch.eye(4, dtype=torch.float64)
        away[0, 3] = offset
        found = [robot.see(offset=away, inlier_fraction=inliers) for _ in range(12)]
        assert found[0].state is not TRACKING and found[0].map_from_base is None
        assert TRACKING in [result.state for result in found]


@pytest.mark.parametrize("seconds", [0.5, 2.0, 7.0])
def test_a_gap_ends_in_the_same_state_whether_somebody_watched_or_not(seconds):
    live, offline = Robot().tracking(), Robot().tracking()
    watched(live, seconds)
    for _ in range(round(seconds / 0.1)):
        offline.t += 0.1
        offline.tracker.add_odometry(stamp(offline.t), odom_from_base(offline.t))
    for _ in range(4):
        a, b = live.see(), offline.see()
        assert (a.state, a.message) == (b.state, b.message)
        assert (a.map_from_base is None) == (b.map_from_base is None)
        assert a.map_from_base is None or torch.equal(a.map_from_base, b.map_from_base)


def test_dead_reckoning_on_bad_odometry_ends_sooner():
    robot = Robot().tracking()
    robot.see(depth=2.0)
    robot.tracker.odometry.noise_factors = (10.0, 10.0)
    assert watched(robot, 2.0)[-1] is LOST


def test_a_camera_that_gives_an_image_every_two_seconds_is_not_dead():
    robot = Robot(odometry=False, max_degraded_s=10.0)
    robot.localizer.reach_m = 10.0
    robot.initialize()
    for _ in range(6):
        assert robot.see(2.0).state is TRACKING
    assert watched(robot, 5.0, odometry=False)[-1] is TRACKING
    assert watched(robot, 6.0, odometry=False)[-1] is LOST

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What an image teaches is learned after its pose was given, once, whether anybody asks for it or not."""

import numpy as np
import pytest
import torch
from test_calibration_check import LensRobot
from test_learned_noise import PERIOD_NS, START_NS, dead_reckoned, truth
from test_mount_check import OPTICAL, TRACKING, Ride, Z, mounted
from test_tracker import CAMERA, NumberedAligner

from pixloc_ros.errors import InputError
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import TrackResult


class Wheels:
    """A tracker on a drive whose odometry is bad."""

    def __init__(self, images: int = 40) -> None:
        self.poses = truth(images)
        self.odometry = dead_reckoned(self.poses, 0.1, 0.02)
        self.tracker = Tracker(NumberedAligner(self.poses))
        self.tracker.initialize(self.poses[0], None, START_NS)

    def see(self, number: int) -> TrackResult:
        stamp_ns = START_NS + number * PERIOD_NS
        self.tracker.add_odometry(stamp_ns, self.odometry[number])
        frame = CameraFrame(stamp_ns, np.full((6, 8), number, np.uint8), CAMERA)
        return self.tracker.track(frame, torch.eye(4, dtype=torch.float64))

    @property
    def learned(self) -> tuple:
        return (*self.tracker.odometry.noise_factors, self.tracker.odometry.way_factor)


def test_poses_and_what_is_learned_are_the_same_whoever_asks():
    asked, left = Wheels(), Wheels()
    for number in range(40):
        one, other = asked.see(number), left.see(number)
        asked.tracker.learn()
        assert one.state is other.state and torch.equal(one.map_from_base, other.map_from_base)
        assert torch.equal(one.covariance, other.covariance)
        if number % 10 == 9:
            assert asked.tracker.check_odometry() == left.tracker.check_odometry()
            assert asked.learned == left.learned
    assert asked.learned != (1.0, 1.0, 1.0)


@pytest.mark.parametrize("then", ["learn", "check_odometry", "check_calibration", "reset"])
def test_an_image_is_learned_from_once_and_after_its_pose(then):
    wheels = Wheels()
    for number in range(5):
        wheels.see(number)
        wheels.tracker.learn()
    before = wheels.learned
    wheels.see(5)
    assert wheels.learned == before
    getattr(wheels.tracker, then)()
    after = wheels.learned
    assert after != before
    wheels.tracker.learn()
    assert wheels.learned == after


def test_a_refused_pose_changes_nothing():
    wheels = Wheels()
    for number in range(5):
        wheels.see(number)
    before = wheels.learned
    with pytest.raises(InputError):
        wheels.tracker.initialize(torch.zeros(4, 4, dtype=torch.float64), None, START_NS)
    assert wheels.learned == before


def test_a_focal_length_is_corrected_though_nobody_asks():
    robot = LensRobot().tracking()
    robot.says = 0.02, 1e-4
    robot.tracker.check_calibration, align = lambda: None, robot.localizer.localize_prepared
    focal_lengths = []

    def localize_prepared(image, *arguments):
        focal_lengths.append(float(image.camera.params[0]))
        return align(image, *arguments)

    robot.localizer.localize_prepared = localize_prepared
    for _ in range(10):
        robot.see()
    assert focal_lengths[-1] > 1.01 * focal_lengths[0]


def test_a_mount_is_objected_to_with_the_next_image():
    ride = Ride(OPTICAL, mounted(OPTICAL, Z, 15), speed=1.0).start(cold=False)
    check = ride.tracker.mount_check
    while not check.problem:
        assert ride.drive(1)[0].state is TRACKING and ride.step < 60
        ride.tracker.learn()
    assert ride.drive(1)[0].state is not TRACKING

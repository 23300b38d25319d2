# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A mount that is turned: no pose is given as TRACKING, and the message says how it is turned. Right mounts lose nothing."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from test_tracker import CAMERA, IMAGE, INITIALIZING, LOST, RELOCALIZING, TRACKING, alignment, check_contract, stamp

from pixloc_ros.geometry import se3
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.tracking.covariances import isotropic
from pixloc_ros.tracking.mount_check import MountCheck
from pixloc_ros.tracking.tracker import Tracker

X, Y, Z = np.eye(3)
OPTICAL = torch.tensor([[0, 0, 1, 0.3], [-1, 0, 0, 0.05], [0, -1, 0, 0.6], [0, 0, 0, 1]], dtype=torch.float64)
NOISE = 0.002, 0.0005


def turned(axis, degrees: float) -> torch.Tensor:
    rotation = se3.so3_exp(torch.from_numpy(np.asarray(axis, float) * math.radians(degrees)))
    return se3.from_rotation_translation(rotation, torch.zeros(3, dtype=torch.float64))


def mounted(right: torch.Tensor, axis, degrees: float) -> torch.Tensor:
    """A mount turned about an axis of the base, at its place."""
    mount = right.clone()
    mount[:3, :3] = turned(axis, degrees)[:3, :3] @ right[:3, :3]
    return mount


BODY = OPTICAL.clone()
BODY[:3, :3] = torch.eye(3)
# Upright cameras that look four ways: the map's z is up.
KEYFRAMES = torch.stack([turned(Z, 90 * k) @ OPTICAL for k in range(4)])


class Ride:
    """A robot on a path that bends both ways, whose camera sits elsewhere than is said. The images show where the camera is."""

    def __init__(
        self, right: torch.Tensor, said: torch.Tensor, mode: str = "level", tilt: torch.Tensor | None = None, speed: float = 0.5
    ) -> None:
        self.right, self.said, self.speed = right, said, speed
        self.map_from_odom = turned(Z, 70) if tilt is None else turned(Z, 70) @ tilt
        self.rng, self.step = np.random.default_rng(0), 0
        self.path = [torch.eye(4, dtype=torch.float64)]
        self.tracker = Tracker(self, pose_search=self, mount_check=MountCheck(mode, KEYFRAMES))

    def odom_from_base(self, step: int) -> torch.Tensor:
        while len(self.path) <= step:
            twist = [0.1 * self.speed, 0, 0, 0, 0, 0.1 * self.speed * math.sin((len(self.path) - 1) / 5)]
            self.path.append(self.path[-1] @ se3.se3_exp(torch.tensor(twist, dtype=torch.float64)))
        return self.path[step]

    @property
    def map_from_base(self) -> torch.Tensor:
        return self.map_from_odom @ self.odom_from_base(self.step)

    def _found(self):
        noise = self.rng.normal(size=6) * np.repeat(NOISE, 3)
        pose = self.map_from_base @ self.right @ se3.se3_exp(torch.from_numpy(noise))
        return alignment(pose, 0.8)

    def prepare(self, image, camera):
        return image

    def localize_prepared(self, image, map_from_camera, prior_covariance=None, last=0.0):
        found = self._found()
        away, angle = se3.pose_difference(map_from_camera, found.map_from_camera)
        return found if float(away) < 0.5 and float(angle) < 0.6 else alignment(map_from_camera, 0.02)

    def search(self, frame, base_from_camera, turn=0, prior=None, known=(), finalists=None):
        found = self._found()
        near = [other for other in known if float(se3.pose_difference(other, found.map_from_camera)[0]) < 0.1]
        return [] if near else [found]

    def drive(self, images: int, odometry: bool = True) -> list:
        results = []
        for _ in range(images):
            self.step += 1
            t = 0.1 * self.step
            if odometry:
                self.tracker.add_odometry(stamp(t), self.odom_from_base(self.step))
            results.append(self.tracker.track(CameraFrame(stamp(t), IMAGE, CAMERA), self.said))
            check_contract(results[-1])
        return results

    def start(self, cold: bool, error: torch.Tensor | None = None) -> Ride:
        self.tracker.add_odometry(stamp(0), self.odom_from_base(0))
        if not cold:
            pose = self.map_from_base if error is None else self.map_from_base @ error
            self.tracker.initialize(pose, isotropic(0.3, 0.05), stamp(0))
        return self


WRONG = {
    "optical": (OPTICAL, BODY, 120, "camera_link given for camera_optical"),
    "twice optical": (OPTICAL, OPTICAL @ se3.inverse(BODY) @ OPTICAL, 120, "camera_optical given for camera_link"),
    "upside down": (mounted(OPTICAL, X, 180), OPTICAL, 180, "upside down"),
    "roll": (OPTICAL, mounted(OPTICAL, X, 90), 90, "about (1, 0, 0)"),
    "pitch": (OPTICAL, mounted(OPTICAL, Y, 90), 90, "about (0, 1, 0)"),
    "yaw": (OPTICAL, mounted(OPTICAL, Z, -90), 90, "about (0, 0, -1)"),
    "backwards": (OPTICAL, mounted(OPTICAL, Z, 180), 180, "about (0, 0, 1)"),
    "30 about anything": (OPTICAL, mounted(OPTICAL, (0.6, 0.48, 0.64), 30), 30, "about (0.6, 0.5, 0.6)"),
    "yaw 30": (OPTICAL, mounted(OPTICAL, Z, 30), 30, "about (0, 0, 1)"),
}


@pytest.mark.parametrize("cold", [False, True], ids=["given", "cold"])
@pytest.mark.parametrize("name", WRONG)
def test_a_turned_mount_is_never_tracked_and_said(name, cold):
    right, said, degrees, words = WRONG[name]
    results = Ride(right, said).start(cold).drive(20)
    assert {r.state for r in results} <= {INITIALIZING, LOST, RELOCALIZING}
    angle = int(re.search(r"base_from_camera seems turned by (\d+)°", results[-1].message)[1])
    assert abs(angle - degrees) <= 3 and words in results[-1].message, results[-1].message


@pytest.mark.parametrize("name", ["optical", "upside down", "roll", "pitch"])
def test_a_robot_on_its_side_needs_neither_motion_nor_a_pose(name):
    right, said, degrees, words = WRONG[name]
    results = Ride(right, said, speed=0.0).start(cold=True).drive(6, odometry=False)
    assert all(r.state is not TRACKING for r in results)
    assert f"turned by {degrees}°" in results[-1].message and words in results[-1].message


@pytest.mark.parametrize("degrees", [7, 15])
@pytest.mark.parametrize("axis", [X, Y, Z], ids=["roll", "pitch", "yaw"])
def test_a_small_turn_is_found_while_driving(axis, degrees):
    results = Ride(OPTICAL, mounted(OPTICAL, axis, degrees), speed=1.0).start(cold=False).drive(60)
    assert results[-1].state in (LOST, RELOCALIZING)
    assert abs(int(re.search(r"turned by (\d+)°", results[-1].message)[1]) - degrees) <= 1


def test_what_is_not_sure_is_remarked_and_tracked():
    ride = Ride(OPTICAL, mounted(OPTICAL, Z, 7), speed=1.0).start(cold=False)
    while not (remark := ride.tracker.mount_check.suspicion):
        assert ride.drive(1)[0].state is TRACKING
    assert re.search(r"turned by [678]° about \(.*, 1\)", remark) and "it seems" in remark
    while ride.drive(1)[0].state is TRACKING:
        assert ride.step < 60
    assert not ride.tracker.mount_check.suspicion and ride.tracker.mount_check.problem


def test_the_rotation_that_is_named_fits():
    ride = Ride(OPTICAL, mounted(OPTICAL, Z, 40)).start(cold=True)
    message = ride.drive(30)[-1].message
    angle, axis = re.search(r"by (\d+)° about \((.*?)\)", message).groups()
    ride.said = mounted(ride.said, np.array(axis.split(","), float), -float(angle))
    assert ride.drive(6)[-1].state is TRACKING  # another mount: what was found of the first is forgotten


SIDEWAYS = {
    "yaw": (Z, 90, "8.° off its x axis, to the right"),
    "pitch": (Y, -24, "2.° off its x axis, down"),
    "right": (Z, 0, ""),
}


@pytest.mark.parametrize("axis, degrees, words", SIDEWAYS.values(), ids=SIDEWAYS)
def test_without_odometry_a_cold_start_says_that_nothing_verifies_the_mount_and_what_is_odd(axis, degrees, words):
    ride = Ride(OPTICAL, mounted(OPTICAL, axis, -degrees), speed=1.0)
    check = ride.tracker.mount_check
    assert not check.unverified
    assert ride.drive(6, odometry=False)[-1].state is TRACKING
    assert "not verified: there is no odometry" in check.unverified and not check.suspicion
    ride.drive(100, odometry=False)
    assert re.search(words, check.suspicion) and bool(words) == bool(check.suspicion)
    ride.said = OPTICAL  # corrected
    ride.drive(100, odometry=False)
    assert not check.suspicion


@pytest.mark.parametrize("odometry", [False, True])
def test_a_pose_that_was_given_or_motion_verifies_the_mount(odometry):
    ride = Ride(OPTICAL, OPTICAL).start(cold=odometry)
    ride.speed = 0.0
    assert ride.drive(6, odometry)[-1].state is TRACKING
    assert bool(ride.tracker.mount_check.unverified) == odometry  # it stands still
    ride.speed = 1.0
    ride.drive(10, odometry)
    assert not ride.tracker.mount_check.unverified


RIGHT = {
    "forward": OPTICAL,
    "down": mounted(OPTICAL, Y, 90),
    "up": mounted(OPTICAL, Y, -90),
    "backward": mounted(OPTICAL, Z, 180),
    "upside down": mounted(OPTICAL, X, 180),
}


@pytest.mark.parametrize("cold", [False, True], ids=["given", "cold"])
@pytest.mark.parametrize("mount", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("tilt", [turned(Y, -20), turned(X, 0)], ids=["ramp", "level"])
def test_right_mounts_are_tracked_as_soon_as_ever(mount, tilt, cold):
    results = Ride(mount, mount, tilt=tilt).start(cold).drive(20)
    assert [r.state is TRACKING for r in results] == [k >= 2 or not cold for k in range(20)]


@pytest.mark.parametrize("said", ["motion", "off", "given"])
def test_a_robot_that_is_not_level_says_so(said):
    mode = "level" if said == "given" else said
    results = Ride(OPTICAL, OPTICAL, mode, tilt=turned(X, 60)).start(cold=said != "given").drive(20)
    assert results[3].state is TRACKING and results[-1].state is TRACKING


def test_motion_proves_the_mount_of_a_robot_that_flies_on_its_side():
    results = Ride(OPTICAL, OPTICAL, tilt=turned(X, 60), speed=1.0).start(cold=True).drive(80)
    assert results[0].state is INITIALIZING and "tilted by 60°" in results[0].message and "mount_check" in results[0].message
    assert results[-1].state is TRACKING


def test_a_given_heading_that_is_wrong_is_corrected_by_driving_or_by_another_pose():
    ride = Ride(OPTICAL, OPTICAL, speed=0.0).start(cold=False, error=turned(Z, 60))
    standing = ride.drive(6)[-1]
    assert standing.state is INITIALIZING and "60° about (0, 0, 1)" in standing.message and "drive on" in standing.message
    ride.tracker.initialize(ride.map_from_base, isotropic(0.3, 0.05), stamp(0.1 * ride.step))
    assert ride.drive(1)[0].state is TRACKING
    moving = Ride(OPTICAL, OPTICAL).start(cold=False, error=turned(Z, 60)).drive(40)
    assert moving[-1].state is TRACKING
    torch.testing.assert_close(moving[-1].map_from_base[:3, :3], ride_pose(40)[:3, :3], atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["yaw", "backwards"])
def test_without_odometry_only_another_pose_answers_one_that_was_contradicted(name):
    """The given pose grows vaguer with every image and stays where it was: that does not make it agree."""
    right, said, degrees, _ = WRONG[name]
    ride = Ride(right, said, speed=1.0).start(cold=False)
    results = ride.drive(80, odometry=False)
    assert all(r.state is not TRACKING for r in results)
    assert f"turned by {degrees}°" in results[-1].message and "drive on" not in results[-1].message
    ride.tracker.initialize(ride.map_from_base @ right @ se3.inverse(said), isotropic(0.3, 0.05), stamp(0.1 * ride.step))
    assert ride.drive(1, odometry=False)[0].state is TRACKING


def ride_pose(step: int) -> torch.Tensor:
    ride = Ride(OPTICAL, OPTICAL)
    ride.step = step
    return ride.map_from_base

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Inputs that fail while all else goes on, over real DDS: what the node says, and what it no longer publishes."""

import re
import time
import types

import pytest
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from node_harness import (
    BASE_FROM_CAMERA,
    PERIOD_NS,
    START_NS,
    FakeLocalizer,
    camera_info,
    grey_image,
    having,
    odometry_message,
    odometry_pose,
    running,
    stamp_of,
    start_pose,
)
from pixloc_ros.msg import LocalizationStatus
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from pixloc_ros.geometry import se3
from pixloc_ros.node.conversions import stamp_from_ns, stamp_to_ns, transform_stamped
from pixloc_ros.rig.robot import image_message
from pixloc_ros.tracking.mount_check import MountCheck
from pixloc_ros.tracking.tracker import Tracker

TRACKING, DEGRADED, LOST = LocalizationStatus.TRACKING, LocalizationStatus.DEGRADED, LocalizationStatus.LOST
INITIALIZING = LocalizationStatus.INITIALIZING


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


def run_blind(robot, seconds: float) -> None:
    """Odometry and its TF in real time, without images."""
    end_ns = robot.odometry_ns + round(seconds * 1e9)
    while robot.odometry_ns < end_ns:
        robot.drive_to(robot.odometry_ns + 20_000_000)
        time.sleep(0.02)


def found_again(robot, number: int) -> bool:
    """Images from `number` on until one gives a pose."""
    return any(robot.step(n).state == TRACKING for n in range(number, number + 4))


@pytest.mark.parametrize("keep", [False, True])
def test_a_dead_camera_ends_the_transform(keep):
    """Odometry goes on: after a while state, diagnostics and TF tell, and images bring the pose back."""
    with running(max_dead_reckoning_s=2.0, publish_tf_when_lost=keep, **start_pose()) as (_, robot):
        for number in range(3):
            assert robot.step(number).state == TRACKING
        run_blind(robot, 1.6)
        assert robot.wait(lambda: robot.statuses[-1].state == DEGRADED)
        newest_ns = robot.odometry_ns
        robot.wait(lambda: stamp_to_ns(robot.transforms[-1].header.stamp) > newest_ns)
        run_blind(robot, 1.0)
        text = robot.diagnosed("localization: lost: no image could be used for")
        assert "on /camera/image_raw (before at " in text and "it has a publisher: check that it publishes" in text
        robot.wait(lambda: robot.levels["localization"] == b"\2")
        assert robot.statuses[-1].state == LOST
        newest_ns = robot.odometry_ns
        run_blind(robot, 0.5)
        time.sleep(0.2)
        assert (stamp_to_ns(robot.transforms[-1].header.stamp) > newest_ns + 100_000_000) is keep
        assert robot.wait(lambda: robot.levels["image"] == b"\2")
        assert found_again(robot, (robot.odometry_ns - START_NS) // PERIOD_NS + 1)


def test_images_that_cannot_be_used_are_as_good_as_none():
    with running(max_dead_reckoning_s=1.5, **start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING
        end = time.monotonic() + 20.0
        number = 0
        while robot.statuses[-1].state != LOST:
            assert time.monotonic() < end
            number += 1
            robot.drive_to(stamp_of(number))
            robot.image.publish(having(image_message(grey_image(1), stamp_of(number)), ("encoding", "jpegish")))
            time.sleep(0.05)
        robot.diagnosed("images come on /camera/image_raw, but none can be used: see the diagnostics")


def test_a_camera_without_odometry_that_stops():
    with running(odom_source="none", max_dead_reckoning_s=1.5, **start_pose()) as (_, robot):
        for number in range(3):
            robot.see(number)
            assert robot.status_of(stamp_of(number)).state == TRACKING
        robot.diagnosed("localization: lost: no image could be used for")


class Searching(FakeLocalizer):
    """Finds the pose in the whole map."""

    def tracker(self, options=None, relocalization=True):
        def search(frame, base_from_camera, *_):
            return [self.aligner.localize_prepared(frame.prepared, base_from_camera)]

        return Tracker(self.aligner, options, types.SimpleNamespace(search=search))


def test_a_healthy_start_warns_of_nothing_and_tells_how_far_it_is(capfd):
    """Images come before the camera's mount and calibration, and nobody gives a pose."""
    with running(open_localizer=Searching, ready=False) as (node, robot):
        for number in range(3):
            robot.drive_to(stamp_of(number))
            robot.see(number)
            assert robot.status_of(stamp_of(number)).state == INITIALIZING
        robot.describe_camera()
        robot.wait(lambda: all(camera.is_calibrated for camera in node._worker.inputs.cameras.values()))
        assert found_again(robot, 3)
        robot.wait(lambda: robot.levels["localization"] == b"\0")
        assert set(robot.levels.values()) == {b"\0"}, robot.texts[-7:]
    said = capfd.readouterr().err
    assert "[WARN]" not in said and "[ERROR]" not in said, said
    steps = "map: loading fake.pixmap", "map: loaded fake.pixmap in", "active", "listening to /camera", "TRACKING: pose found at"
    for text in steps:
        assert text in said
    assert "initialpose" not in " ".join(robot.texts) + said


@pytest.mark.parametrize(
    ("parameters", "published", "text"),
    [
        ({}, CompressedImage, "but /camera/image_raw/compressed has: set image_transport to compressed"),
        ({"transport": "compressed"}, Image, "but /camera/image_raw has: set image_transport to raw"),
    ],
)
def test_the_sibling_topic_that_has_the_images_is_named(parameters, published, text):
    with running(connect=False, input_timeout_s=0.2, **parameters) as (_, robot):
        robot.node.destroy_publisher(robot.image)
        topic = "camera/image_raw/compressed" if published is CompressedImage else "camera/image_raw"
        robot.node.create_publisher(published, topic, 1)
        robot.diagnosed(f"it has no publisher, {text}")


def test_late_odometry_is_measured():
    """The advice is a number; one image without odometry at the end of a recording is no reason for any."""
    with running(odometry_wait_s=0.05, **start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING
        for number in range(1, 8):
            robot.drive_to(stamp_of(number) - 20_000_000)
            robot.see(number)
            robot.status_of(stamp_of(number))
            time.sleep(0.25)
        text = robot.diagnosed("odometry: the odometry of an image's time comes 0.")
        late_s, advised_s = (float(word) for word in re.findall(r"0\.\d+", text))
        assert 0.25 <= late_s < advised_s < 2.0
    with running(odometry_wait_s=0.05, **start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING
        robot.see(1)
        robot.status_of(stamp_of(1))
        time.sleep(1.2)
        assert not [text for text in robot.texts if "odometry_wait_s" in text]


def test_a_recording_that_is_over_is_no_fault():
    """Simulated time stands still: nobody expects images."""
    with running(use_sim_time=True, max_dead_reckoning_s=0.5, **start_pose()) as (_, robot):
        clock = robot.node.create_publisher(Clock, "/clock", 10)
        robot.wait(clock.get_subscription_count)
        for number in range(4):
            clock.publish(Clock(clock=stamp_from_ns(stamp_of(number))))
            assert robot.step(number).state == TRACKING
        robot.texts.clear()
        time.sleep(5.0)
        assert robot.texts and not [text for text in robot.texts if "nothing" in text or "lost" in text], robot.texts


class CheckedLocalizer(FakeLocalizer):
    """Its tracker checks the mount, as that of `pixloc_ros.Localizer` does."""

    def tracker(self, options=None, relocalization=True):
        return Tracker(self.aligner, options, mount_check=MountCheck("level", BASE_FROM_CAMERA[None]))


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (BASE_FROM_CAMERA[:3, :3].T, "turned by 120° about .*: is camera_link given for camera_optical"),
        (torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64), r"turned by 90° about \(0, 0, 1\)"),
    ],
    ids=["body frame", "yaw"],
)
def test_a_turned_mount_is_never_tracked_and_named_until_it_is_corrected(turn, words):
    mount = BASE_FROM_CAMERA.clone()
    mount[:3, :3] = turn @ mount[:3, :3]
    with running(open_localizer=CheckedLocalizer, ready=False, **start_pose()) as (node, robot):
        robot.info.publish(camera_info())
        robot.static_tf.sendTransform(transform_stamped("base_link", "camera_optical", 0, mount))
        robot.wait(lambda: all(camera.is_calibrated for camera in node._worker.inputs.cameras.values()))
        statuses = [robot.step(number) for number in range(12)]
        assert all(status.state != TRACKING for status in statuses) and not robot.poses and not robot.transforms
        assert re.search(words, statuses[-1].message), statuses[-1].message
        assert re.search(words, robot.diagnosed("transforms: base_from_camera seems turned"))
        robot.wait(lambda: robot.levels["transforms"] == DiagnosticStatus.ERROR)
        robot.describe_camera()
        time.sleep(0.2)
        robot.give_pose(12)
        assert robot.step(12).state == TRACKING
        robot.wait(lambda: robot.levels["transforms"] == DiagnosticStatus.OK)

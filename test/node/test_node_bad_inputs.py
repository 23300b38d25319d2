# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The node over real DDS: broken, missing, late and contradicting inputs, and time that jumps."""

import math
import re
import time

import node_harness
import pytest
import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from node_harness import camera_info, close, grey_image, having, odometry_message, pose_of, running, stamp_of, start_pose
from pixloc_ros.msg import LocalizationStatus
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from pixloc_ros.node import conversions
from pixloc_ros.rig.robot import image_message

TRACKING, DEGRADED, INITIALIZING = LocalizationStatus.TRACKING, LocalizationStatus.DEGRADED, LocalizationStatus.INITIALIZING


def test_bad_images_are_rejected_and_reported_and_the_node_goes_on():
    with running(**start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING

        bad = (
            ("image encoding 'jpegish' is not supported", [("encoding", "jpegish")]),
            ("rows of 64 make 3072", [("data", b"\0" * 100)]),
            ("images are 64x24 but /camera/camera_info says 64x48", [("height", 24), ("data", b"\0" * 24 * 64)]),
            ("no transform base_link -> elsewhere", [("header.frame_id", "elsewhere")]),
            ("images have no frame_id", [("header.frame_id", "")]),
        )
        for number, (text, changes) in enumerate(bad, 1):
            robot.drive_to(stamp_of(number))
            robot.image.publish(having(image_message(grey_image(number), stamp_of(number)), *changes))
            status = robot.status_of(stamp_of(number))
            assert text in status.message and math.isnan(status.cost) and status.frames_rejected == number, status
            robot.diagnosed(text)
        before = len(robot.statuses)
        robot.see(0)  # the same image again
        robot.wait(lambda: len(robot.statuses) == before + 1)
        assert "older than the last one" in robot.statuses[-1].message
        robot.see(8, 0)
        robot.diagnosed("images have no time stamp")
        status = robot.step(9)
        assert status.state == TRACKING and status.message == ""
        assert status.frames_received == status.frames_processed + status.frames_rejected == 9
        assert len(robot.statuses) == 9
        robot.wait(lambda: robot.levels["image"] == b"\0")


def test_garbage_jpeg():
    with running("compressed", **start_pose()) as (_, robot):
        message = image_message(grey_image(0), stamp_of(0))
        robot.drive_to(stamp_of(0))
        robot.image.publish(CompressedImage(header=message.header, format="jpeg", data=b"\xff\xd8" + bytes(38)))
        assert "cannot be decoded" in robot.status_of(stamp_of(0)).message
        robot.diagnosed("image: a compressed image of 40 bytes cannot be decoded")
        assert robot.step(1).state == TRACKING


def test_bad_calibration():
    with running(ready=False, odometry_wait_s=0.02, **start_pose()) as (_, robot):
        robot.drive_to(stamp_of(0))
        robot.see(0)
        assert "no CameraInfo on /camera/camera_info yet" in robot.status_of(stamp_of(0)).message
        bad = {"d has 3 numbers but plumb_bob takes 5": ("d", [0.1] * 3), "k is zero, the camera": ("k", [0.0] * 9)}
        for number, (text, change) in enumerate(bad.items(), 1):
            robot.info.publish(having(camera_info(), change))
            robot.diagnosed(text)
            robot.see(number)
            assert "cannot be used" in robot.status_of(stamp_of(number)).message
        robot.info.publish(camera_info())
        time.sleep(0.1)
        robot.see(5)
        assert "no transform base_link -> camera_optical" in robot.status_of(stamp_of(5)).message
        robot.diagnosed("static_transform_publisher --frame-id base_link --child-frame-id camera_optical")
        robot.describe_camera()
        time.sleep(0.1)
        assert robot.step(6).state == TRACKING


def test_bad_odometry():
    with running(**start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING
        for text, change in (
            ("/odom: the pose holds NaN or infinite numbers", ("pose.pose.position.y", math.inf)),
            ("/odom: the pose has a quaternion of length", ("pose.pose.orientation.w", 7.0)),
            ("set base_frame_id to 'base_footprint'", ("child_frame_id", "base_footprint")),
        ):
            robot.odometry.publish(having(odometry_message(stamp_of(1)), change))
            robot.diagnosed(text)
        robot.odometry.publish(odometry_message(stamp_of(0) - 30_000_000))
        robot.diagnosed("older than the last: ignored")
        robot.odometry_ns = stamp_of(1)
        robot.odometry.publish(having(odometry_message(stamp_of(1)), ("twist.twist.angular.z", math.nan)))
        assert robot.step(1).state == TRACKING
        # Odometry is late: poses go on for as long as the tracker can guess, and when it comes it is said how late.
        robot.see(2)
        robot.status_of(stamp_of(2))
        assert robot.step(3).state == TRACKING
        robot.diagnosed("the odometry of an image's time comes 0.")


def test_late_images_and_wrong_wheels_are_reported_until_fixed(monkeypatch):
    """Images every 0.3 s of a robot that turns to and fro, stamped 80 ms late; its odometry goes 1.2 times as far."""
    monkeypatch.setattr(node_harness, "PERIOD_NS", 300_000_000)

    def motion(way: float, seconds: float) -> torch.Tensor:
        turn = 0.5 * math.sin(1.3 * seconds)
        return conversions.matrix_from_euler((way * 0.4 * seconds, way * 0.1 * math.sin(0.7 * seconds), 0.0), 0.0, 0.0, turn)

    monkeypatch.setattr(node_harness, "true_pose", lambda seconds: motion(1.0, seconds))
    monkeypatch.setattr(node_harness, "odometry_pose", lambda seconds: motion(1.2, seconds))
    with running(odometry_wait_s=1.0) as (node, robot):
        robot.give_pose(0)
        late_ns = 80_000_000

        def see(number: int, stamp_ns: int) -> None:
            robot.drive_to(stamp_ns)
            robot.see(number, stamp_of(number) + late_ns)
            assert robot.status_of(stamp_ns).state == TRACKING

        for number in range(28):
            see(number, stamp_of(number) + late_ns)
        text = robot.diagnosed("odometry: images are stamped 0.0")
        offset = float(re.search(r"set time_offset to (-0\.0\d\d), or", text)[1])
        assert offset == pytest.approx(-0.08, abs=0.015)
        robot.diagnosed("the odometry's way is 1.2")
        assert robot.levels["odometry"] == b"\1"
        values = robot.wait(lambda: robot.values["odometry"] if "+-" in robot.values["odometry"]["way_ratio"] else None)
        assert float(values["time_offset_s"].split()[0]) == pytest.approx(offset, abs=0.005)
        # What it says, done: the poses are right at their stamps, and what was found of the late stamps is forgotten.
        assert node.set_parameters([Parameter("time_offset", value=-0.08)])[0].successful
        for number in range(28, 55):
            see(number, stamp_of(number))

        def fixed() -> bool:  # the last message of before may still be there
            text = robot.values["odometry"]["time_offset_s"]
            return "+-" in text and abs(float(text.split()[0])) < 0.015

        robot.wait(fixed)
        robot.wait(lambda: "stamped" not in robot.texts[-1] and not any("stamped" in text for text in robot.texts[-7:]))


def test_time_going_back_starts_again():
    with running(**start_pose()) as (_, robot):
        for number in (40, 41, 42):
            # Image 40 is far from the initial pose, which is taken as valid there all the same; the fake knows better.
            robot.step(number)
        robot.odometry_ns = stamp_of(0) - 40_000_000
        robot.buffer.clear()
        robot.drive_to(stamp_of(0) - 20_000_000)
        robot.diagnosed("odometry stamps went back by")
        for number in range(3):
            status = robot.step(number)
            assert status.state == TRACKING, status
        assert close(robot.pose(-1), pose_of(2))
        # The other order: images first.
        robot.odometry_ns = stamp_of(0) - 4_000_000_000
        early = stamp_of(0) - 3_000_000_000
        robot.see(0, early)
        robot.diagnosed("image stamps went back by")
        assert robot.status_of(early).state in (INITIALIZING, TRACKING)


def test_clock_going_back_starts_again():
    with running(use_sim_time=True, **start_pose()) as (_, robot):
        clock = robot.node.create_publisher(Clock, "/clock", 10)
        robot.wait(clock.get_subscription_count)
        clock.publish(Clock(clock=conversions.stamp_from_ns(stamp_of(30))))
        assert robot.step(0).state == TRACKING
        clock.publish(Clock(clock=conversions.stamp_from_ns(stamp_of(0))))
        robot.diagnosed("the clock went back")
        assert robot.step(1).state == TRACKING
        assert robot.statuses[-1].prior_source == "initial_pose"


def test_others_that_publish_the_same_are_noticed():
    """Another source of map -> odom (AMCL, a filter), and another localizer of this name; not what the node sends itself."""
    with running(**start_pose()) as (node, robot):
        robot.step(0)
        robot.step(1)
        robot.wait(lambda: robot.transforms)
        time.sleep(1.2)
        assert not any("something else publishes" in text or "publish our" in text for text in robot.texts)
        other = robot.node.create_publisher(PoseWithCovarianceStamped, "localization_node/pose", 1)
        message = conversions.transform_stamped("map", "odom", stamp_of(1), torch.eye(4, dtype=torch.float64))
        robot.tf.sendTransform(message)
        robot.diagnosed("transforms: something else publishes map -> odom")
        assert robot.levels["transforms"] == b"\2"
        robot.diagnosed("1 more publish our ~/pose")
        robot.node.destroy_publisher(other)


def test_an_image_from_the_future_is_refused_and_nothing_starts_again():
    with running(**start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING
        for future, reference in ((stamp_of(1) + 5_000_000_000, "odometry"), (time.time_ns() + 5_000_000_000, "clock")):
            robot.see(1, future)
            assert f"ahead of the {reference}" in robot.status_of(future).message
            time.sleep(0.6)  # no odometry any more
        status = robot.step(2)
        assert status.state == TRACKING and status.prior_source == "odometry", "the pose was forgotten"


def test_silent_inputs_are_reported_but_one_calibration_message_is_enough():
    with running(ready=False, input_timeout_s=0.2, **start_pose()) as (_, robot):
        robot.diagnosed("image: nothing yet on /camera/image_raw, it has a publisher")
        robot.diagnosed("odometry: nothing yet on /odom")
        robot.describe_camera()
        robot.wait(lambda: robot.levels["calibration"] == b"\0")
        assert robot.step(0).state == TRACKING
        robot.texts.clear()
        robot.diagnosed("odometry: nothing for")
        assert not any("calibration: nothing" in text for text in robot.texts)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The node over real DDS, with an aligner that knows the answer: topics, TF, waiting."""

import math
import re
import time

import pytest
import torch
from nav_msgs.msg import Odometry
from node_harness import BASE_FROM_CAMERA, FakeLocalizer, close, odometry_pose, pose_of, running, stamp_of, start_pose
from pixloc_ros.msg import LocalizationStatus
from rclpy.parameter import Parameter

from pixloc_ros.geometry import se3
from pixloc_ros.node import conversions
from pixloc_ros.node.conversions import stamp_to_ns

TRACKING, DEGRADED, INITIALIZING = LocalizationStatus.TRACKING, LocalizationStatus.DEGRADED, LocalizationStatus.INITIALIZING


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_drive(transport):
    """Poses are the true ones, TF agrees with them, every image is accounted for, the velocity is the odometry's."""
    with running(transport, **start_pose()) as (_, robot):
        for number in range(25):
            status = robot.step(number)
            assert status.state == TRACKING and status.message == "", (number, status)
            stamp = stamp_of(number)
            robot.wait(lambda n=stamp: any(stamp_to_ns(t.header.stamp) == n for t in robot.transforms))
            # The lookup that users do when a pose comes; odometry at the stamp is there, so it must not fail.
            chain = robot.looked_up("map", "camera_optical", stamp)
            published, header = robot.pose(number), robot.poses[number].header
            assert stamp_to_ns(header.stamp) == stamp and header.frame_id == "map"
            assert close(chain, published @ BASE_FROM_CAMERA)
            assert close(published, pose_of(number), 1e-9)
        robot.wait(lambda: len(robot.odometries) == 25)
        assert len(robot.statuses) == 25 and robot.statuses[-1].frames_processed == 25
        assert robot.statuses[-1].prior_source == "odometry" and 0 < robot.statuses[-1].prior_distance_m < 0.05
        assert robot.odometries[-1].child_frame_id == "base_link" and robot.odometries[-1].twist.twist.linear.x == 1.2
        assert robot.odometries[-1].pose.covariance[0] > 0
        for status in robot.statuses:
            parts = [status.queue_ms, status.decode_ms, status.wait_ms, status.publish_ms]
            assert min(parts) >= 0 and sum(parts[1:]) <= status.frame_ms + 1e-3
        # Future dating: each image's transform is also dated by the tolerance.
        stamps = {stamp_to_ns(t.header.stamp) for t in robot.transforms}
        assert {stamp_of(n) + 100_000_000 for n in range(25)} <= stamps
        assert {(t.header.frame_id, t.child_frame_id) for t in robot.transforms} == {("map", "odom")}
        # No extrapolation at the stamp of any odometry, although no image comes for a while.
        for later in range(1, 21):
            robot.drive_to(stamp + later * 40_000_000)
            robot.looked_up("map", "base_link", stamp + later * 40_000_000)


def test_nothing_before_the_first_pose_then_initial_pose_of_the_past():
    with running() as (_, robot):
        for number in range(3):
            assert robot.step(number).state == INITIALIZING
        robot.diagnosed("initial pose: there is no pose to start from")
        assert not robot.poses and not robot.transforms
        no_rotation = (("pose.pose.orientation.w", 0.0), ("pose.pose.orientation.z", 0.0))
        for text, changes in (
            ("holds NaN", [("pose.pose.position.x", math.nan)]),
            ("has a quaternion of length", no_rotation),
            ("is in frame 'odom'", [("header.frame_id", "odom")]),
        ):
            robot.give_pose(2, None, *changes)
            robot.diagnosed(f"the initial pose {text}")
        assert robot.step(3).state == INITIALIZING
        # Valid at image 2, given when the robot is at image 20, more than a metre further.
        robot.drive_to(stamp_of(20))
        robot.give_pose(2, stamp_of(2))
        status = robot.step(20)
        assert status.state == TRACKING and status.prior_source == "initial_pose"
        assert status.prior_distance_m < 0.1, "the initial pose was not moved along with the odometry"
        assert torch.linalg.vector_norm(pose_of(20)[:3, 3] - pose_of(2)[:3, 3]) > 1.0


def test_a_time_offset_moves_the_images_and_nothing_else():
    """Images stamped 80 ms late: poses, TF and status are those of the corrected stamps; the offset changes while it runs."""
    late_ns = 80_000_000
    with running(time_offset=-0.08, odometry_wait_s=2.0, **start_pose()) as (node, robot):

        def seen(number: int, late_ns: int) -> LocalizationStatus:
            robot.see(number, stamp_of(number) + late_ns)
            robot.drive_to(stamp_of(number))  # no further than the corrected stamp: nothing more may be waited for
            status = robot.status_of(stamp_of(number))
            assert status.state == TRACKING and status.message == "", status
            assert status.prior_distance_m < 0.05
            return status

        for number in range(4):
            seen(number, late_ns)
            robot.pose(number)
            assert stamp_to_ns(robot.poses[number].header.stamp) == stamp_of(number)
            assert close(robot.looked_up("map", "base_link", stamp_of(number)), pose_of(number))
        # The driver is fixed; what would be too early now is not.
        assert node.set_parameters([Parameter("time_offset", value=2.0)])[0].successful is False
        assert node.set_parameters([Parameter("time_offset", value=0.03)])[0].successful
        for number in range(4, 6):
            seen(number, -30_000_000)
        robot.see(None, 0)  # one without a stamp has none with the offset either
        robot.diagnosed("images have no time stamp")
        # The corrected stamp tells what is ahead of the odometry.
        robot.drive_to(stamp_of(6))
        robot.wait(lambda: node._worker.inputs.newest_ns == robot.odometry_ns)
        future = robot.odometry_ns + 990_000_000
        robot.see(6, future)
        robot.diagnosed("an image is dated 1.020 s ahead of the odometry")


@pytest.mark.parametrize(
    ("axis", "off_m", "lag", "end", "child", "text"),
    [
        (1, 0.0, 0, 26, "base_link", ""),
        (1, 2.0, 0, 26, "base_link", "published map -> base_link is 2.00 m and 0.0 degrees away from .* rejection threshold"),
        (1, 2.0, 3, 26, "base_link", "published map -> base_link is 2.00 m"),
        (2, 2.0, 0, 26, "base_link", "published map -> base_link is 2.00 m .* height or tilt; for a filter with two_d_mode"),
        (1, 0.0, 0, 4, "base_link", "nothing publishes map -> base_link at the images' times any more"),
        (1, 0.0, 0, 26, "imu", "/fused: is about imu in map, not about base_link in map: set filter_topic"),
    ],
)
def test_a_filter_is_compared_with_the_images(axis, off_m, lag, end, child, text):
    """Something else publishes map -> odom: right, off with a covariance of a centimetre, some images late, or not for long."""
    with running(publish_tf=False, filter_topic="fused", **start_pose()) as (node, robot):
        fused = robot.node.create_publisher(Odometry, "fused", 10)
        robot.wait(fused.get_subscription_count)
        for number in range(30):
            if lag <= number < end + lag:
                pose, stamp_ns = pose_of(number - lag), stamp_of(number - lag)
                pose[axis, 3] += off_m
                odom = odometry_pose((stamp_ns - stamp_of(0)) * 1e-9)
                robot.tf.sendTransform(conversions.transform_stamped("map", "odom", stamp_ns, pose @ se3.inverse(odom)))
                message = Odometry(pose=conversions.pose_with_covariance(pose, 1e-4 * torch.eye(6, dtype=torch.float64)))
                message.header.frame_id, message.child_frame_id = "map", child
                fused.publish(message)
                robot.drive_to(stamp_of(number))
                robot.wait(lambda ns=stamp_ns: node._worker.inputs.transforms.map_from_base(ns) is not None)
            assert robot.step(number).state == TRACKING
        if text:
            robot.wait(lambda: any(re.search(f"transforms: .*{text}", said) for said in robot.texts))
        assert text or robot.levels["transforms"] == b"\0"


def test_planar_publishes_a_flat_transform_and_reports_the_rest():
    """The robot of these tests drives uphill: 0.3 m above the floor and more."""
    with running(planar=True, relocalization=False, **start_pose()) as (node, robot):
        for number in range(3):
            assert robot.step(number).state == TRACKING
        chain, pose = robot.looked_up("map", "base_link", stamp_of(2)), pose_of(2)
        flat = robot.looked_up("map", "odom", stamp_of(2))
        assert close(chain[:2, 3], pose[:2, 3]) and flat[2].tolist() == pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-9)
        assert math.atan2(chain[1, 0], chain[0, 0]) == pytest.approx(math.atan2(pose[1, 0], pose[0, 0]), abs=1e-6)
        assert close(robot.pose(2), pose, 1e-9)
        robot.diagnosed("localization: planar: the images see the robot")
        node._worker.relocalize()
        assert robot.step(3, image=None).state == INITIALIZING
        robot.wait(lambda: "planar" not in robot.texts[-1])


def test_lost_is_silent():
    """Images that fit nothing: dead reckoning for a while, then no pose, no TF, and diagnostics that say so."""
    with running(**start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING
        assert robot.step(1, image=None).state == DEGRADED
        robot.wait(lambda: len(robot.poses) == 2)
        variances = [p.pose.covariance[0] for p in robot.poses]
        assert variances[1] > variances[0]
        number = 1
        while (status := robot.step(number := number + 10, image=None)).state == DEGRADED:
            assert number < 150
        assert status.state == LocalizationStatus.LOST
        robot.diagnosed("no pose is published")
        robot.wait(lambda: robot.levels["localization"] == b"\2")
        poses, transforms = len(robot.poses), len(robot.transforms)
        robot.step(number + 1, image=None)
        robot.drive_to(stamp_of(number + 10))
        time.sleep(0.2)
        assert len(robot.poses) == poses and len(robot.transforms) == transforms


def test_without_odometry():
    with running(odom_source="none", **start_pose()) as (_, robot):
        for number in range(8):
            robot.see(number)
            assert robot.status_of(stamp_of(number)).state == TRACKING
            assert close(robot.looked_up("map", "camera_optical", stamp_of(number)), pose_of(number) @ BASE_FROM_CAMERA)
        assert {(t.header.frame_id, t.child_frame_id) for t in robot.transforms} == {("map", "base_link")}
        robot.wait(lambda: len(robot.odometries) == 8)
        velocity = robot.odometries[-1].twist.twist
        expected = se3.se3_log(se3.inverse(pose_of(6)) @ pose_of(7)) / 0.05
        assert velocity.linear.x == pytest.approx(float(expected[0]), abs=1e-6)
        assert velocity.angular.z == pytest.approx(float(expected[5]), abs=1e-6)


def test_odometry_from_tf():
    with running(odom_source="tf", **start_pose()) as (_, robot):
        for number in range(6):
            robot.drive_to(stamp_of(number) + 10_000_000)
            robot.see(number)
            status = robot.status_of(stamp_of(number))
            assert status.state == TRACKING and status.prior_source in ("initial_pose", "odometry")
            assert close(robot.looked_up("map", "base_link", stamp_of(number)), pose_of(number))


def test_publish_tf_off_and_live_parameters():
    with running(publish_tf=False, **start_pose()) as (node, robot):
        robot.step(0)
        robot.step(1)
        robot.wait(lambda: len(robot.poses) == 2)
        assert not robot.transforms
        refused = node.set_parameters([Parameter("transform_tolerance", value=-1.0), Parameter("map", value="other")])
        assert not refused[0].successful and not refused[1].successful
        assert node.set_parameters([Parameter("publish_tf", value=True)])[0].successful
        assert node.set_parameters([Parameter("transform_tolerance", value=0.3)])[0].successful
        robot.step(2)
        robot.wait(lambda: {stamp_to_ns(t.header.stamp) for t in robot.transforms} >= {stamp_of(2) + 300_000_000})


class SlowLocalizer(FakeLocalizer):
    """Takes a tenth of a second for an image."""

    def answer(self, found):
        time.sleep(0.1)
        return found


def test_only_the_newest_image_is_processed_and_drops_are_reported():
    with running(open_localizer=SlowLocalizer, **start_pose()) as (_, robot):
        robot.drive_to(stamp_of(12))
        for number in range(12):
            robot.see(number)
            time.sleep(0.02)
        robot.wait(lambda: len(robot.statuses) == 12)
        final = max(robot.statuses, key=lambda s: s.frames_processed)
        assert final.frames_received == 12 and final.frames_dropped >= 5
        assert final.frames_processed + final.frames_dropped == 12
        stamps = sorted(stamp_to_ns(s.header.stamp) for s in robot.statuses)
        assert stamps == [stamp_of(n) for n in range(12)], "one status per image"
        processed = [s for s in robot.statuses if not s.message.startswith("dropped")]
        assert stamp_to_ns(processed[-1].header.stamp) == stamp_of(11), "the newest image is always processed"
        for number in range(12, 40):  # less than half of them can be aligned
            robot.drive_to(stamp_of(number))
            robot.see(number)
            time.sleep(0.01)
        assert "set preset to fast" in robot.diagnosed("faster than they can be aligned")
    with running(open_localizer=SlowLocalizer, process_all_frames=True, **start_pose()) as (_, robot):
        robot.drive_to(stamp_of(6))
        for number in range(6):
            robot.see(number)
        robot.wait(lambda: len(robot.poses) == 6)

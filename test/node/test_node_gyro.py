# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The node with an IMU."""

import math

import numpy as np
import torch
from geometry_msgs.msg import Vector3
from node_harness import PERIOD_NS, START_NS, running, stamp_of, start_pose, true_pose
from pixloc_ros.msg import LocalizationStatus
from sensor_msgs.msg import Imu
from std_msgs.msg import Header

from pixloc_ros.geometry import se3
from pixloc_ros.node import conversions

TRACKING = LocalizationStatus.TRACKING


def test_an_imu_tells_how_the_base_turns():
    """It lies on its side, its place comes late, and its bias is found by the images."""
    bias, side = np.array((0.02, 0.0, -0.03)), conversions.matrix_from_euler((0.1, 0, 0), math.pi / 2, 0, 0)

    def read(number: int) -> None:
        for stamp_ns in range(stamp_of(number) - PERIOD_NS + 10_000_000, stamp_of(number) + 10_000_001, 10_000_000):
            seconds = (stamp_ns - START_NS) * 1e-9
            step = true_pose(seconds - 0.001)[:3, :3].mT @ true_pose(seconds + 0.001)[:3, :3]
            rate = side[:3, :3].mT.numpy() @ (se3.so3_log(step).numpy() / 0.002) + bias
            message = Imu(header=Header(stamp=conversions.stamp_from_ns(stamp_ns), frame_id="imu_link"))
            message.angular_velocity = Vector3(**dict(zip("xyz", rate.tolist())))
            force = side[:3, :3].mT @ true_pose(seconds)[:3, :3].mT @ torch.tensor([0.0, 0.0, 9.81], dtype=torch.float64)
            message.linear_acceleration = Vector3(**dict(zip("xyz", force.tolist())))
            imu.publish(message)

    with running(imu_topic="imu", odom_source="none", **start_pose()) as (node, robot):
        imu = robot.node.create_publisher(Imu, "imu", 400)
        robot.wait(imu.get_subscription_count)
        read(0)
        assert robot.step(0).state == TRACKING
        robot.diagnosed("no transform leads to 'imu_link'")
        robot.static_tf.sendTransform(conversions.transform_stamped("base_link", "imu_link", 0, side))
        gyro = node._worker._assembly.tracker.gyro
        for number in range(1, 40):
            read(number)
            assert robot.step(number).state == TRACKING
        robot.wait(lambda: "bias" in robot.values["odometry"].get("gyro", ""))
        assert gyro.trusted and not gyro.warnings()
        np.testing.assert_allclose(gyro.gravity.map_up, (0, 0, 1), atol=0.05)
        assert np.abs(gyro.bias - side[:3, :3].numpy() @ bias).max() < 0.01

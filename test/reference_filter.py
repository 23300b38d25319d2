# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A small filter of wheel odometry and delayed poses, to judge what is published by: an error-state Kalman filter on SE(3).

The error is (translation, rotation) in the base's axes: true = estimate · exp(error).
"""

from __future__ import annotations

from bisect import bisect_right

import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node

from pixloc_ros.geometry import se3
from pixloc_ros.node import conversions
from pixloc_ros.node.conversions import stamp_to_ns


class ReferenceFilter:
    """odometry_std: metres per metre and radians per radian or metre travelled that the wheels are wrong by."""

    def __init__(self, odometry_std: tuple[float, float] = (0.05, 0.03)) -> None:
        self.odometry_std = odometry_std
        self.odometry: list[tuple[int, torch.Tensor]] = []
        self.stamps: list[int] = []
        self.states: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Estimate and covariance at each odometry stamp since the first pose."""

    def add_odometry(self, stamp_ns: int, odom_from_base: torch.Tensor) -> None:
        self.odometry.append((stamp_ns, odom_from_base))
        if self.states:
            self._propagate(len(self.odometry) - 1)

    def add_pose(self, stamp_ns: int, map_from_base: torch.Tensor, covariance: torch.Tensor) -> None:
        """A measurement of the past: the filter goes back to it, and takes in again what came since."""
        index = bisect_right([stamp for stamp, _ in self.odometry], stamp_ns) - 1
        if index < 0:
            return
        # The wheels' motion from the last odometry before the image to the image is small: a hold is good enough here.
        if not self.states:
            self.stamps, self.states = [self.odometry[index][0]], [(map_from_base, covariance)]
        else:
            at = bisect_right(self.stamps, self.odometry[index][0]) - 1
            if at < 0:
                return
            del self.stamps[at + 1 :], self.states[at + 1 :]
            estimate, spread = self.states[at]
            gain = spread @ torch.linalg.inv(spread + covariance)
            error = gain @ se3.se3_log(se3.inverse(estimate) @ map_from_base)
            rest = torch.eye(6, dtype=torch.float64) - gain
            self.states[at] = (estimate @ se3.se3_exp(error), rest @ spread @ rest.T + gain @ covariance @ gain.T)
        for later in range(index + 1, len(self.odometry)):
            self._propagate(later)

    def _propagate(self, index: int) -> None:
        (_, before), (stamp_ns, after) = self.odometry[index - 1], self.odometry[index]
        motion = se3.inverse(before) @ after
        moved, turned = motion[:3, 3].norm(), se3.se3_log(motion)[3:].norm()
        translation, rotation = self.odometry_std
        noise = torch.diag(torch.tensor([(translation * moved + 1e-5) ** 2] * 3, dtype=torch.float64))
        noise = torch.block_diag(noise, (rotation * (turned + moved) + 1e-5) ** 2 * torch.eye(3, dtype=torch.float64))
        estimate, spread = self.states[-1]
        adjoint = se3.adjoint(se3.inverse(motion))
        self.stamps.append(stamp_ns)
        self.states.append((estimate @ motion, adjoint @ spread @ adjoint.T + noise))


class FilterNode:
    """The filter on topics, and what it and the poses alone said at each odometry message as it came."""

    def __init__(self, node: Node, odometry_topic: str, pose_topic: str) -> None:
        self.filter = ReferenceFilter()
        self.fused: list[tuple[int, torch.Tensor]] = []
        self.held: list[tuple[int, torch.Tensor]] = []
        self._pose: torch.Tensor | None = None
        node.create_subscription(Odometry, odometry_topic, self._on_odometry, 500)
        node.create_subscription(PoseWithCovarianceStamped, pose_topic, self._on_pose, 100)

    def _on_odometry(self, message: Odometry) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        self.filter.add_odometry(stamp_ns, conversions.pose_to_matrix(message.pose.pose, "odometry"))
        if self._pose is not None:
            self.fused.append((stamp_ns, self.filter.states[-1][0]))
            self.held.append((stamp_ns, self._pose))

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        self._pose = conversions.pose_to_matrix(message.pose.pose, "pose")
        covariance = conversions.covariance_from_message(message.pose.covariance, self._pose, "pose")
        self.filter.add_pose(stamp_to_ns(message.header.stamp), self._pose, covariance)

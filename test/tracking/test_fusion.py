# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The published poses as a measurement in a filter with wheel odometry, over real DDS, with a camera that fails at times."""

from bisect import bisect_right

import numpy as np
import pytest
import torch
import yaml
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from node_harness import isolate
from rclpy.node import Node

from pixloc_ros.evaluation.offline import first_pose
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS, odometry_in_map
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.node import conversions
from pixloc_ros.node.conversions import stamp_to_ns
from pixloc_ros.rig.node_process import spinning_node
from pixloc_ros.rig.replay import ReplayOptions, replay
from pixloc_sim.recordings import SimulationOptions, simulate

BLACKOUT_S = (3.0, 5.5)


class ReferenceFilter:
    """A small filter of wheel odometry and delayed poses: an error-state Kalman filter on SE(3).

    The error is (translation, rotation) in the base's axes: true = estimate · exp(error). odometry_std: the wheels' error in
    metres per metre, and in radians per radian or metre travelled.
    """

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
    """The filter on topics, and its estimate and the last pose at each odometry message."""

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


class BlindBag(BagReader):
    """A bag whose camera is silent for a while."""

    def raw_messages(self, topics):
        first_ns = None
        for message in super().raw_messages(topics):
            first_ns = first_ns or message.time_ns
            if message.topic != self.image_topic or not BLACKOUT_S[0] <= (message.time_ns - first_ns) * 1e-9 <= BLACKOUT_S[1]:
                yield message


def test_filter_weighs_by_covariance_and_handles_delay():
    """Straight on at 1 m/s with wheels that say 1.1 m/s: a late, exact pose corrects the past and all that came since."""
    filter_ = ReferenceFilter()

    def at(x):
        return conversions.matrix_from_euler((x, 0.0, 0.0), 0.0, 0.0, 0.0)

    exact, vague = 1e-8 * torch.eye(6, dtype=torch.float64), 1e4 * torch.eye(6, dtype=torch.float64)
    for step in range(101):
        filter_.add_odometry(step * 20_000_000, at(1.1 * step * 0.02))
        if step == 10:
            filter_.add_pose(5 * 20_000_000, at(0.1), exact)
        if step == 100:
            filter_.add_pose(50 * 20_000_000, at(1.0), exact)
    assert float(filter_.states[-1][0][0, 3]) == pytest.approx(1.0 + 1.1, abs=1e-3)
    before = filter_.states[-1][0].clone()
    filter_.add_pose(100 * 20_000_000, at(50.0), vague)
    assert torch.allclose(filter_.states[-1][0], before, atol=1e-3)


def test_fused_beats_each_alone(tmp_path):
    isolate()
    scene = tmp_path / "scene"
    simulate(scene, SimulationOptions(seconds=8.0, rate_hz=8.0, width=320, height=240, texel=0.02, seed=3))
    build_map_from_colmap(scene / "map", scene / "images", load_extractor())[0].save(tmp_path / "site.pixmap")
    with BlindBag(scene / "drive") as bag, spinning_node("reference_filter") as node:
        truth, odometry = bag.truth(), bag.odometry()
        filter_node = FilterNode(node, bag.odometry_topic, "localization_node/pose")
        start = first_pose(bag, truth, None)
        replay(tmp_path / "site.pixmap", bag, *start, tmp_path / "node.log", ReplayOptions(rate=0.5, all_frames=True))
    alone = odometry_in_map(odometry, truth)

    def error(stamps, poses):
        true, known = truth.at(stamps, TRUTH_GAP_NS)
        distances, angles = se3.pose_difference(true[known], torch.stack(poses)[known])
        return np.sqrt(np.mean(distances.numpy() ** 2)), np.sqrt(np.mean(angles.numpy() ** 2))

    stamps = [stamp for stamp, _ in filter_node.fused]
    assert len(stamps) > 200
    fused = error(stamps, [pose for _, pose in filter_node.fused])
    held = error(stamps, [pose for _, pose in filter_node.held])
    wheels, known = alone.at(stamps, TRUTH_GAP_NS)
    assert known.all()
    wheels = error(stamps, list(wheels))
    assert fused[0] < 0.7 * min(held[0], wheels[0]), (fused, held, wheels)
    assert fused[1] < min(held[1], wheels[1]), (fused, held, wheels)


def test_filter_configuration_takes_what_the_node_publishes(request):
    """config/ekf.yaml: the right topics, velocities of the wheels and the pose of the localizer, lagged data smoothed."""
    text = (request.config.rootpath / "config" / "ekf.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)["/**/ekf_filter_node"]["ros__parameters"]
    assert values["smooth_lagged_data"] and values["history_length"] >= 0.5
    assert values["world_frame"] == values["map_frame"] == "map" and values["publish_tf"]
    assert values["pose0"] == "localization_node/pose" and values["odom0"] == "odom"
    pose, wheels = values["pose0_config"], values["odom0_config"]
    assert len(pose) == len(wheels) == 15 and pose[:6] == [True] * 6 and not any(pose[6:])
    assert not any(wheels[:6]), "the odometry's own position drifts: only its velocities"
    assert [i for i, used in enumerate(wheels) if used] == [6, 7, 11]
    assert np.shape(values["process_noise_covariance"]) == (225,)

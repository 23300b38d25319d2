# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The published poses as a measurement in a filter with wheel odometry, over real DDS, with a camera that fails at times."""

import numpy as np
import pytest
import torch
import yaml
from fusion import WHEEL_STD, PoseFilter
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from node_harness import isolate
from rclpy.node import Node
from scenes import simulated_scene

from pixloc_ros.evaluation.offline import first_pose
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS, odometry_in_map
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.node import conversions
from pixloc_ros.node.conversions import stamp_to_ns
from pixloc_ros.rig.node_process import spinning_node
from pixloc_ros.rig.replay import ReplayOptions, replay

BLACKOUT_S = (3.0, 5.5)


class FilterNode:
    """The filter on topics, and its estimate and the last pose at each odometry message."""

    def __init__(self, node: Node, odometry_topic: str, pose_topic: str, parameters: dict) -> None:
        self.filter = PoseFilter(parameters)
        self.fused: list[tuple[int, torch.Tensor]] = []
        self.held: list[tuple[int, torch.Tensor]] = []
        self._pose: torch.Tensor | None = None
        node.create_subscription(Odometry, odometry_topic, self._on_odometry, 500)
        node.create_subscription(PoseWithCovarianceStamped, pose_topic, self._on_pose, 100)

    def _on_odometry(self, message: Odometry) -> None:
        stamp_ns, linear, angular = stamp_to_ns(message.header.stamp), message.twist.twist.linear, message.twist.twist.angular
        velocity = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        self.filter.add_velocity(stamp_ns, velocity, np.diag([WHEEL_STD[0] ** 2] * 3 + [WHEEL_STD[1] ** 2] * 3))
        if self._pose is not None:
            self.fused.append((stamp_ns, self.filter.map_from_base))
            self.held.append((stamp_ns, self._pose))

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        self._pose = conversions.pose_to_matrix(message.pose.pose, "pose")
        covariance = torch.tensor(message.pose.covariance, dtype=torch.float64).reshape(6, 6)
        self.filter.add_pose(stamp_to_ns(message.header.stamp), self._pose, covariance)


class BlindBag(BagReader):
    """A bag whose camera is silent for a while."""

    def raw_messages(self, topics):
        first_ns = None
        for message in super().raw_messages(topics):
            first_ns = first_ns or message.time_ns
            if message.topic != self.image_topic or not BLACKOUT_S[0] <= (message.time_ns - first_ns) * 1e-9 <= BLACKOUT_S[1]:
                yield message


@pytest.fixture
def parameters(request):
    """Of the filter, as shipped."""
    text = (request.config.rootpath / "config" / "ekf.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["/**/ekf_filter_node"]["ros__parameters"]


def at(x: float) -> torch.Tensor:
    return conversions.matrix_from_euler((x, 0.0, 0.0), 0.0, 0.0, 0.0)


def drive_straight(filter_: PoseFilter, begin_m: float, steps: range, silent: range = range(0), velocity: float = 1.0) -> None:
    """50 Hz, wheels that report a velocity, a pose of 1 cm for each 5th step that arrives 2 steps late."""
    covariance = 1e-4 * torch.eye(6, dtype=torch.float64)
    for step in steps:
        filter_.add_velocity(step * 20_000_000, np.array([velocity, 0, 0, 0, 0, 0.0]), 1e-4 * np.eye(6))
        if step % 5 == 2 and step >= 12 and step not in silent:
            filter_.add_pose((step - 2) * 20_000_000, at(begin_m + (step - 2) * 0.02), covariance)


def test_filter_weighs_by_covariance_and_handles_delay(parameters):
    """Straight on at 1 m/s with wheels that say 1.1 m/s: a late, exact pose corrects the past and all that came since."""
    filter_ = PoseFilter(parameters)
    exact, vague = 1e-8 * torch.eye(6, dtype=torch.float64), 1e4 * torch.eye(6, dtype=torch.float64)
    for step in range(101):
        filter_.add_velocity(step * 20_000_000, np.array([1.1, 0, 0, 0, 0, 0]), 1e-6 * np.eye(6))
        if step == 60:
            filter_.add_pose(50 * 20_000_000, at(1.0), exact)
    assert float(filter_.map_from_base[0, 3]) == pytest.approx(1.0 + 1.1, abs=0.01)
    before = filter_.map_from_base
    filter_.add_pose(100 * 20_000_000, at(50.0), vague)
    assert torch.allclose(filter_.map_from_base, before, atol=0.01)


@pytest.mark.parametrize("gate", [None, 12.0, 5.0], ids=["as shipped", "gate of 12", "gate of 5"])
def test_filter_follows_from_the_middle_of_the_map_and_after_a_dropout(parameters, gate):
    filter_ = PoseFilter(parameters, gate)
    drive_straight(filter_, 54.0, range(400), silent=range(150, 250))
    assert float(filter_.map_from_base[0, 3]) == pytest.approx(54.0 + 399 * 0.02, abs=0.03) and filter_.refused == 0


def test_filter_returns_after_wheels_that_reported_no_velocity(parameters):
    filter_ = PoseFilter(parameters)
    drive_straight(filter_, 54.0, range(200))
    drive_straight(filter_, 54.0, range(200, 300), silent=range(200, 300), velocity=0.0)
    drive_straight(filter_, 54.0, range(300, 400))
    assert float(filter_.map_from_base[0, 3]) == pytest.approx(54.0 + 399 * 0.02, abs=0.03)


def test_a_gate_without_an_uncertain_start_refuses_for_ever(parameters):
    """Why the configuration has `initial_estimate_covariance`: without it the filter believes in the map's origin."""
    del parameters["initial_estimate_covariance"]
    filter_ = PoseFilter(parameters, gate=12.0)
    drive_straight(filter_, 54.0, range(400))
    assert filter_.refused > 50 and float(filter_.map_from_base[0, 3]) < 10.0


def test_fused_beats_each_alone(tmp_path_factory, tmp_path, parameters):
    isolate()
    scene = simulated_scene(tmp_path_factory, seconds=8.0, rate_hz=8.0, seed=3)
    with BlindBag(scene.drive) as bag, spinning_node("reference_filter") as node:
        truth, odometry = bag.truth(), bag.odometry()
        filter_node = FilterNode(node, bag.odometry_topic, "localization_node/pose", parameters)
        start = first_pose(bag, truth, None)
        replay(scene.map, bag, *start, tmp_path / "node.log", ReplayOptions(rate=0.5, all_frames=True))
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


def test_filter_configuration_takes_what_the_node_publishes(parameters):
    """config/ekf.yaml: the right topics, velocities of the wheels and the pose of the localizer, lagged data smoothed."""
    values = parameters
    assert values["smooth_lagged_data"] and values["history_length"] >= 0.5
    assert values["world_frame"] == values["map_frame"] == "map" and values["publish_tf"]
    assert values["pose0"] == "localization_node/pose" and values["odom0"] == "odom"
    pose, wheels = values["pose0_config"], values["odom0_config"]
    assert len(pose) == len(wheels) == 15 and pose[:6] == [True] * 6 and not any(pose[6:])
    assert not any(wheels[:6]), "the odometry's own position drifts: only its velocities"
    assert [i for i, used in enumerate(wheels) if used] == [6, 7, 11]
    assert np.shape(values["process_noise_covariance"]) == (225,)

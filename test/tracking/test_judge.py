# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is believed of an aligned image: gates, covariances, contradictions."""

import math

import numpy as np
import pytest
import torch
from test_tracker import BASE_FROM_CAMERA, DEGRADED, EYE6, TRACKING, Robot, check_contract, map_from_base, shifted, stamp

from pixloc_ros.geometry import se3
from pixloc_ros.tracking.covariances import mahalanobis, not_better_than, not_worse_than
from pixloc_ros.tracking.judge import FrozenCamera
from pixloc_ros.tracking.odometry import OdometryBuffer
from pixloc_ros.tracking.options import QualityGates


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ({"success": False, "reason": "diverged"}, "diverged"),
        ({"inlier_fraction": 0.1}, "10% of the visible points"),
        ({"visible_fraction": 0.1}, "30 of 300 map points"),
        ({"points_used": 32}, "26 of 32 map points"),
        ({"cost": 2.0}, "cost 2 is above 1"),
        ({"cost": math.nan}, "cost"),
        ({"covariance": torch.full((6, 6), math.inf, dtype=torch.float64)}, "not finite"),
    ],
)
def test_each_gate_degrades_and_says_why(answer, word):
    robot = Robot(gates=QualityGates(max_cost=1.0)).tracking()
    result = robot.see(**answer)
    check_contract(result)
    assert result.state is DEGRADED and word in result.message and "dead reckoning" in result.message
    torch.testing.assert_close(result.map_from_base, map_from_base(robot.t), atol=1e-6, rtol=0)
    result = robot.see()
    assert result.state is TRACKING and result.message == ""


def test_one_contradicting_image_does_not_move_the_robot():
    robot = Robot().tracking()
    result = robot.see(offset=shifted(0.45))
    check_contract(result)
    assert result.state is DEGRADED and "contradicts the odometry prior" in result.message
    assert result.prior_distance_m == pytest.approx(0.45, abs=1e-6)
    torch.testing.assert_close(result.map_from_base, map_from_base(robot.t), atol=1e-6, rtol=0)
    assert robot.see().state is TRACKING


def test_consistent_contradiction_is_believed():
    robot = Robot(confirm_frames=3).tracking()
    slipped = shifted(0.45)
    # What odometry says after a slip stays consistent: the displacement is the same in the map.
    truth = [robot.see(offset=slipped) for _ in range(3)]
    assert [r.state for r in truth] == [DEGRADED, DEGRADED, TRACKING]
    torch.testing.assert_close(truth[-1].map_from_base, map_from_base(robot.t) @ slipped, atol=1e-9, rtol=0)
    assert robot.see(offset=slipped).state is TRACKING


def test_scattered_contradictions_are_never_believed():
    robot = Robot(confirm_frames=3, max_degraded_s=100.0).tracking()
    for i in range(8):
        assert robot.see(offset=shifted(0.45 if i % 2 else -0.45)).state is DEGRADED


def test_a_long_drive_with_honest_noise_is_never_refused():
    generator = torch.Generator().manual_seed(0)
    robot = Robot().tracking()
    for _ in range(60):
        noise = torch.randn(6, generator=generator, dtype=torch.float64) * torch.tensor([0.01] * 3 + [0.002] * 3)
        result = robot.see(offset=se3.se3_exp(noise))
        assert result.state is TRACKING
        assert result.covariance[0, 0].sqrt() >= 0.01 - 1e-9


def test_directions_the_image_does_not_determine_keep_the_priors_variance():
    robot = Robot().tracking()
    # In camera axes: depth (z) unknown, which is forward (x) for the base.
    loose = torch.diag(torch.tensor([1e-6, 1e-6, 1e6, 1e-8, 1e-8, 1e-8], dtype=torch.float64))
    result = robot.see(covariance=loose)
    assert result.state is TRACKING
    forward = result.covariance[0, 0]
    assert forward == pytest.approx(float(result.prior.covariance[0, 0]), rel=0.05)
    assert result.covariance[1, 1].sqrt() == pytest.approx(0.01, rel=0.05)
    assert robot.see(covariance=loose).covariance[0, 0] > forward  # and it grows while nothing is learned


@pytest.mark.parametrize(("depth", "translation_floor"), [(float("inf"), 0.03), (100.0, 0.03), (2.0, 2.0 * 0.004)])
def test_the_image_s_covariance_is_taken_to_the_base_and_what_it_cannot_know_is_added(depth, translation_floor):
    """Where things are near, the floor in metres is no larger than what the rotation's floor makes of it at their depth."""
    robot = Robot(translation_floor=0.03, rotation_floor=0.004)
    robot.initialize()
    covariance = torch.diag(torch.tensor([1e-4, 4e-4, 9e-4, 1e-6, 4e-6, 9e-6], dtype=torch.float64))
    found = robot.see(covariance=covariance, depth=depth).covariance
    expected = se3.transform_covariance(covariance, BASE_FROM_CAMERA)
    expected = expected + torch.diag(torch.tensor([translation_floor**2] * 3 + [0.004**2] * 3, dtype=torch.float64))
    torch.testing.assert_close(found, expected)


def test_the_next_prior_counts_on_less_than_is_published():
    """It has a floor of its own; of the points that agree neither asks, since the judge's covariance does."""
    published, priors = [], []
    for inlier_fraction in (1.0, 0.5):
        robot = Robot(translation_floor=1e-3, rotation_floor=1e-4, prior_translation_floor=0.05, prior_rotation_floor=0.01)
        robot.initialize()
        published.append(robot.see(covariance=4e-3 * EYE6, inlier_fraction=inlier_fraction).covariance)
        priors.append(robot.see(0.001).prior.covariance)
    torch.testing.assert_close(published[0], published[1])
    torch.testing.assert_close(priors[0], priors[1])
    robot.see(covariance=1e-8 * EYE6)
    prior = robot.see(0.001).prior.covariance
    assert float(prior.diagonal()[:3].min().sqrt()) > 0.0499 and float(prior.diagonal()[3:].min().sqrt()) > 0.00999


def test_covariance_clamps():
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        roots = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
        a, b = roots @ roots.mT + 1e-3 * EYE6
        for bounded, sign in ((not_worse_than(a, b), -1), (not_better_than(a, b), 1)):
            for other in (a, b):
                assert float((sign * torch.linalg.eigvalsh(bounded - other)).min()) > -1e-9
        torch.testing.assert_close(not_worse_than(a, 1e6 * EYE6), a)
        torch.testing.assert_close(not_better_than(a, 1e-9 * EYE6), a)


def test_innovation_counts_both_uncertainties():
    pose = map_from_base(1.0)
    assert mahalanobis(pose, 0.04**2 * EYE6, pose @ shifted(0.1), 0.03**2 * EYE6) == pytest.approx(2.0)


@pytest.mark.parametrize("sigmas, inliers, believed", [(9, 0.6, True), (9, 0.3, False), (40, 0.9, False)])
def test_a_sure_image_is_believed_over_slipping_wheels(sigmas, inliers, believed):
    """Beyond the usual gate only with many inliers, and never far beyond."""
    robot = Robot().tracking()
    before = robot.see()
    spread = float((before.prior.covariance[1, 1] + 0.01**2).sqrt())
    sideways = torch.tensor([0, sigmas * spread, 0, 0, 0, 0], dtype=torch.float64)
    result = robot.see(offset=se3.se3_exp(sideways), inlier_fraction=inliers)
    assert (result.state is TRACKING) == believed
    truth = map_from_base(robot.t) @ se3.se3_exp(sideways)
    assert (se3.pose_difference(result.map_from_base, truth)[0] < 1e-6) == believed


def test_a_camera_that_repeats_its_picture_is_noticed_once_the_robot_moves():
    camera = FrozenCamera()
    picture = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)
    buffer = OdometryBuffer()
    for n in range(50):
        buffer.add(stamp(0.02 * n), shifted(0.5 * max(0.0, 0.02 * n - 0.4)))
    at = [buffer.lookup(stamp(t)) for t in (0.1, 0.2, 0.3, 0.42, 0.5, 0.6)]
    assert [camera.repeats(picture, sample) for sample in at[:4]] == [False] * 4, "the robot stood still"
    assert camera.repeats(picture, at[4]) and camera.repeats(picture.copy(), at[5])
    assert not camera.repeats(picture, None), "nothing is known of the motion"
    # The same view again, with a sensor's noise.
    other = picture ^ (np.random.default_rng(1).random(picture.shape) < 0.05).astype(np.uint8)
    assert not camera.repeats(other, at[5])
    assert not FrozenCamera().repeats(picture, at[2], at[0]) and FrozenCamera().repeats(picture, at[5], at[0]), (
        "the image that showed it first was not looked at"
    )

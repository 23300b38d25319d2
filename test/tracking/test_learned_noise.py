# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far odometry is trusted: learned from images that move smoothly, never from images that scatter."""

import math
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import pytest
import torch
from test_tracker import CAMERA, NumberedAligner

from pixloc_ros.geometry import se3
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.tracking.learned_noise import LearnedNoise, LearnedNoiseOptions
from pixloc_ros.tracking.motion_prior import KnownPose, MotionOptions
from pixloc_ros.tracking.odometry import OdometryBuffer
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import TrackState

START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 100_000_000
COVARIANCE = torch.diag(torch.tensor([0.005**2] * 3 + [0.001**2] * 3, dtype=torch.float64))


def truth(images: int) -> torch.Tensor:
    """map_from_base at 10 Hz, 0.8 m/s, turning to and fro."""
    pose, poses = torch.eye(4, dtype=torch.float64), []
    for number in range(images):
        poses.append(pose)
        turn = 0.05 * math.sin(0.08 * number)
        pose = pose @ se3.se3_exp(torch.tensor([0.08, 0, 0, 0, 0, turn], dtype=torch.float64))
    return torch.stack(poses)


def dead_reckoned(poses: torch.Tensor, std: float, turn_std: float, seed: int = 0) -> torch.Tensor:
    """odom_from_base with so much noise (m, rad) in x, y and yaw of each step."""
    steps = se3.inverse(torch.cat((poses[:1], poses[:-1]))) @ poses
    noise = torch.zeros(len(poses), 6, dtype=torch.float64)
    noise[:, [0, 1, 5]] = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(poses), 3)) * (std, std, turn_std))
    return torch.stack(list(accumulate(steps @ se3.se3_exp(noise), torch.matmul)))


def after_each_image(poses: torch.Tensor, odometry: torch.Tensor, covariance: torch.Tensor) -> Iterator[OdometryBuffer]:
    """The same buffer, with what it has learned so far."""
    buffer = OdometryBuffer()
    learned = LearnedNoise(buffer, MotionOptions())
    for number, (pose, odom_from_base) in enumerate(zip(poses, odometry)):
        stamp_ns = START_NS + number * PERIOD_NS
        buffer.add(stamp_ns, odom_from_base)
        learned.add(KnownPose(stamp_ns, pose, covariance, buffer.lookup(stamp_ns)))
        yield buffer


def factors(poses: torch.Tensor, odometry: torch.Tensor, covariance: torch.Tensor = COVARIANCE) -> list[tuple[float, float]]:
    """The factors after each image."""
    return [buffer.noise_factors for buffer in after_each_image(poses, odometry, covariance)]


def learned_buffer(poses: torch.Tensor, odometry: torch.Tensor, covariance: torch.Tensor) -> OdometryBuffer:
    """After the last image."""
    return list(after_each_image(poses, odometry, covariance))[-1]


def test_usual_odometry_is_taken_at_its_word():
    """5 % of the way, as `OdometryNoise` has it."""
    poses = truth(400)
    assert 0.5 < np.mean(factors(poses, dead_reckoned(poses, 0.004, 0.001))) < 1.05


@pytest.mark.parametrize("covariance, low, high", [(1e-2 * COVARIANCE, 0.3, 0.5), (100 * COVARIANCE, 1.0, 1.0)])
def test_odometry_better_than_usual_is_trusted_more_where_images_can_tell(covariance, low, high):
    """A tenth of the usual noise, seen by images far more exact than that, and by images far less exact."""
    poses = truth(300)
    found = factors(poses, dead_reckoned(poses, 0.0004, 0.0001), covariance)[-1]
    assert all(low <= factor <= high for factor in found)


@pytest.mark.parametrize("scale", [0.9, 0.97, 1.0, 1.04])
def test_the_wheels_metre_is_learned_and_motions_are_corrected(scale):
    poses = truth(300)
    steps = se3.inverse(torch.cat((poses[:1], poses[:-1]))) @ poses
    steps[:, :3, 3] /= scale
    odometry = torch.stack(list(accumulate(steps, torch.matmul)))
    buffer = learned_buffer(poses, odometry, COVARIANCE)
    assert buffer.way_factor == pytest.approx(scale, abs=0.005)
    ends = [buffer.lookup(START_NS + number * PERIOD_NS) for number in (298, 299)]
    motion, _ = buffer.motion_between(*ends)
    truly = se3.inverse(poses[298]) @ poses[299]
    assert float((motion - truly)[:3, 3].norm()) < 0.006 * float(truly[:3, 3].norm())


def test_a_robot_that_stands_still_teaches_nothing_of_its_metre():
    poses = torch.eye(4, dtype=torch.float64).repeat(20, 1, 1)
    assert learned_buffer(poses, poses, COVARIANCE).way_factor == 1.0


def test_noise_is_not_taken_for_a_long_metre():
    """Odometry of which half is noise: its way is too long by a tenth, which no wheel is."""
    poses = truth(300)
    assert learned_buffer(poses, dead_reckoned(poses, 0.04, 0.001), COVARIANCE).way_factor == pytest.approx(1, abs=0.03)


def test_trust_is_lost_fast_and_won_back_slowly():
    poses = truth(300)
    odometry = dead_reckoned(poses, 0.004, 0.001)
    bad = dead_reckoned(poses[:101], 0.1, 0.06)
    odometry = torch.cat((bad[:100], bad[100] @ se3.inverse(odometry[100]) @ odometry[100:]))
    history = np.array(factors(poses, odometry))
    assert (history[20] > 3).all(), "after two seconds"
    assert (history[40:100] > 3).all() and (history <= LearnedNoiseOptions().most).all()
    assert (history[110] > 2).all(), "not forgotten after a second"
    assert (history[-1] < 1.1).all()


def test_wheels_that_slip_do_not_discredit_the_gyroscope():
    poses = truth(80)
    translation, rotation = factors(poses, dead_reckoned(poses, 0.15, 0.0005))[-1]
    assert translation > 3 and rotation < 1.2


def test_images_that_scatter_teach_nothing():
    """Good odometry, and poses half a metre to and fro: it is the images that are wrong."""
    poses = truth(100)
    scattered = poses.clone()
    scattered[:, 0, 3] += 0.4 * torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], 100))
    assert np.max(factors(scattered, dead_reckoned(poses, 0.004, 0.001))) < 1.5


def test_gaps_and_missing_odometry_teach_nothing():
    buffer = OdometryBuffer()
    learned = LearnedNoise(buffer, MotionOptions())
    for number, pose in enumerate(truth(20)):
        learned.add(KnownPose(START_NS + number * PERIOD_NS, pose, COVARIANCE, None))
    for number in range(20):  # a second apart: nothing tells whether the camera moved smoothly
        stamp_ns = START_NS + number * 10 * PERIOD_NS
        buffer.add(stamp_ns, torch.eye(4, dtype=torch.float64))
        moved = se3.se3_exp(torch.tensor([number * 0.5, 0, 0, 0, 0, 0], dtype=torch.float64))
        learned.add(KnownPose(stamp_ns, moved, COVARIANCE, buffer.lookup(stamp_ns)))
    assert buffer.noise_factors == (1.0, 1.0)


def test_motions_get_the_noise_that_was_learned():
    buffer = OdometryBuffer()
    for number, pose in enumerate(truth(10)):
        buffer.add(START_NS + number * PERIOD_NS, pose)
    ends = [buffer.lookup(START_NS + number * PERIOD_NS) for number in (0, 9)]
    _, usual = buffer.motion_between(*ends)
    buffer.noise_factors = (3.0, 2.0)
    _, wider = buffer.motion_between(*ends)
    expected = torch.tensor([9.0] * 3 + [4.0] * 3, dtype=torch.float64)
    torch.testing.assert_close(wider.diagonal() / usual.diagonal(), expected)


def states(inliers: float, learns: bool, monkeypatch) -> list[TrackState]:
    """Of a drive of which odometry tells next to nothing: it errs by 10 cm and 3° in steps of 8 cm."""
    poses = truth(150)
    odometry = dead_reckoned(poses, 0.1, 0.05)
    tracker = Tracker(NumberedAligner(poses, inliers, reach_m=0.7))
    if not learns:
        monkeypatch.setattr(LearnedNoise, "add", lambda self, pose: None)
    tracker.initialize(poses[0], None, START_NS)
    result = []
    for number in range(len(poses)):
        stamp_ns = START_NS + number * PERIOD_NS
        tracker.add_odometry(stamp_ns, odometry[number])
        frame = CameraFrame(stamp_ns, np.full((6, 8), number, np.uint8), CAMERA)
        result.append(tracker.track(frame, torch.eye(4, dtype=torch.float64)).state)
    return result


@pytest.mark.parametrize("learns", [True, False])
def test_a_robot_with_bad_odometry_is_not_lost(learns, monkeypatch):
    tracked = np.mean([state is TrackState.TRACKING for state in states(0.8, learns, monkeypatch)])
    assert tracked > 0.85 if learns else tracked < 0.6


def test_the_velocity_of_images_and_how_far_it_may_be_off():
    noise = LearnedNoise(OdometryBuffer(), MotionOptions())
    twist = torch.tensor([0.8, 0.0, 0.0, 0.0, 0.0, 0.3], dtype=torch.float64)
    assert noise.velocity(0) is None
    rng = np.random.default_rng(0)
    for k in range(60):
        error = torch.from_numpy(rng.normal(0, 0.001, 6))
        pose = se3.se3_exp(0.1 * k * twist) @ se3.se3_exp(error)
        noise.add(KnownPose(k * PERIOD_NS, pose, COVARIANCE))
    velocity, variances = noise.velocity(6_000_000_000)
    torch.testing.assert_close(velocity, twist, atol=0.05, rtol=0)
    assert (np.sqrt(variances) < 0.08).all() and (np.sqrt(variances) > 0.01).all()
    assert noise.velocity(8_000_000_000) is None
    noise.interrupt()
    assert noise.velocity(6_000_000_000) is None

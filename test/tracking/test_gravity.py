# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Up as an accelerometer reads it: learned in the map, a check of poses, a hold on roll and pitch."""

import math

import numpy as np
import pytest
import torch

from pixloc_ros.geometry import se3
from pixloc_ros.tracking.covariances import isotropic
from pixloc_ros.tracking.gravity import STANDARD_GRAVITY, Gravity
from pixloc_ros.tracking.types import MotionPrior

START, STEP_NS = 1_700_000_000_000_000_000, 10_000_000
LEANING = se3.so3_exp(torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64))  # the map is not level


def turned(roll=0.0, pitch=0.0, yaw=0.0):
    """map_from_base [4, 4] of a body with these angles about its own axes, first yaw."""
    axes = torch.eye(3, dtype=torch.float64)
    rotation = LEANING @ se3.so3_exp(yaw * axes[2]) @ se3.so3_exp(pitch * axes[1]) @ se3.so3_exp(roll * axes[0])
    return se3.from_rotation_translation(rotation, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


def attitude(seconds):
    """A hand that shakes a camera while it turns round."""
    return turned(0.3 * math.sin(2.1 * seconds), 0.2 * math.sin(3.0 * seconds), 0.8 * seconds)


def driven(seconds=12.0, mount=None, pushes=0.0, poses=True):
    """An accelerometer after so long, with a pose ten times a second, and its last stamp."""
    rng, gravity = np.random.default_rng(0), Gravity()
    for k in range(int(seconds * 100)):
        stamp, t = START + k * STEP_NS, k * 0.01
        now, then = attitude(t)[:3, :3], attitude(t + 0.01)[:3, :3]
        up = (now.T @ LEANING)[:, 2].numpy()
        push = pushes * math.sin(1.7 * t) * np.array((1.0, 0.0, 0.0))
        force = STANDARD_GRAVITY * up + push + rng.normal(0, 0.05, 3)
        rate = se3.so3_log(now.T @ then).numpy() / 0.01
        gravity.add(stamp, force if mount is None else mount @ force, rate if mount is None else mount @ rate)
        if poses and k % 10 == 5:
            gravity.learn(stamp, attitude(t))
    return gravity, stamp, attitude(t)


def test_up_is_learned_in_a_map_that_leans():
    gravity, stamp, pose = driven(pushes=0.7)
    np.testing.assert_allclose(gravity.map_up, LEANING[:, 2].numpy(), atol=0.03)
    np.testing.assert_allclose(gravity.up(stamp), (pose[:3, :3].T @ LEANING)[:, 2].numpy(), atol=0.08)
    assert gravity.std < math.radians(4) and not gravity.problem


@pytest.mark.parametrize(
    ("roll", "pitch", "yaw", "wrong"), [(0, 0, 2.0, False), (0.1, 0, 0, False), (0.6, 0, 1, True), (0, 3, 0, True)]
)
def test_poses_that_lean_are_refused_and_turned_ones_are_not(roll, pitch, yaw, wrong):
    gravity, stamp, pose = driven()
    about_up = se3.so3_exp(yaw * LEANING[:, 2])
    found = pose.clone()
    axes = torch.eye(3, dtype=torch.float64)
    found[:3, :3] = about_up @ pose[:3, :3] @ se3.so3_exp(pitch * axes[1]) @ se3.so3_exp(roll * axes[0])
    assert ("against gravity" in gravity.against(stamp, found)) == wrong


def test_roll_and_pitch_are_held_where_nothing_knows_better():
    gravity, stamp, pose = driven()
    error = torch.tensor([0.1, 0.0, 0.0, 0.3, -0.25, 0.4], dtype=torch.float64)
    prior = MotionPrior(pose @ se3.se3_exp(error), isotropic(0.2, 0.3), "static", 0.5)
    held = gravity.upright(prior, stamp)
    up = held.map_from_base[:3, :3].numpy().T @ LEANING[:, 2].numpy()
    here = pose[:3, :3].numpy().T @ LEANING[:, 2].numpy()
    assert float(np.linalg.norm(up - here)) < 0.05
    stds = held.covariance.diagonal()[3:].sqrt()
    assert float(stds.min()) < 0.06 and float(stds.max()) > 0.2  # nothing is known of the turn about the vertical
    assert bool(torch.linalg.eigvalsh(prior.covariance - held.covariance).min() > -1e-9)


def test_a_prior_that_knows_better_is_left_alone():
    gravity, stamp, pose = driven()
    prior = MotionPrior(pose, isotropic(0.01, 0.002), "odometry", 0.1)
    assert gravity.upright(prior, stamp) is prior


def test_what_reads_no_gravity_is_said_and_not_used():
    mount = se3.so3_exp(torch.tensor([1.2, 0.0, 0.0], dtype=torch.float64)).numpy()
    gravity, stamp, pose = driven(mount=mount)
    assert gravity.map_up is None and "check the IMU's transform" in gravity.problem
    assert not gravity.against(stamp, pose @ se3.se3_exp(torch.tensor([0, 0, 0, 3.0, 0, 0], dtype=torch.float64)))


def test_nothing_is_said_before_anything_is_known():
    gravity, stamp, pose = driven(poses=False)
    prior = MotionPrior(pose, isotropic(1.0, 1.0), "static", 1.0)
    assert gravity.map_up is None and gravity.upright(prior, stamp) is prior and not gravity.against(stamp, pose)
    assert Gravity().up(START) is None
    gravity.add(stamp + 1, np.full(3, np.nan), np.zeros(3))
    assert gravity.up(stamp) is not None and gravity.up(stamp + 1_000_000_000) is None

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A gyro in the motion prior: bias, trust, wrong mounts and clocks, holes."""

import numpy as np
import pytest
import torch

from pixloc_ros.geometry import se3
from pixloc_ros.tracking.covariances import isotropic
from pixloc_ros.tracking.gyro import Gyro
from pixloc_ros.tracking.motion_prior import KnownPose, MotionOptions, predict
from pixloc_ros.tracking.odometry import OdometryBuffer, OdometryOptions
from pixloc_sim.sensors import ImuErrors, imu_readings

START = 1_700_000_000_000_000_000
BIAS = (0.03, -0.02, 0.05)
STD = (0.003, 0.001)


def poses(time):
    """map_from_base of a hand that shakes a camera."""
    time = np.asarray(time, float)
    turn = np.stack((0.4 * np.sin(5 * time), 0.3 * np.sin(3.3 * time + 1), 0.8 * np.sin(2.1 * time)), -1)
    place = np.stack((0.5 * time, 0.1 * np.sin(4 * time), 0.05 * np.cos(3 * time)), -1)
    return se3.from_rotation_translation(se3.so3_exp(torch.from_numpy(turn)), torch.from_numpy(place))


def known(time, rng=None):
    """What an image shows at a time, in seconds."""
    error = np.zeros(6) if rng is None else rng.normal(size=6) * np.repeat(STD, 3)
    return KnownPose(START + round(time * 1e9), se3.retract(poses(time), torch.from_numpy(error)), isotropic(*STD))


def driven(seconds=8.0, mount=None, late_s=0.0, unit=1.0):
    """A gyro after so long, with images ten times a second."""
    rng, gyro = np.random.default_rng(0), Gyro(MotionOptions())
    stamps = START + np.arange(0, round(seconds * 1e9) + 200_000_000, 5_000_000)
    read = imu_readings(poses, stamps, START, torch.eye(4, dtype=torch.float64), 0, ImuErrors(bias=BIAS))
    rates = unit * (read.rates if mount is None else read.rates @ mount.numpy())
    images = iter(np.arange(0.1, seconds, 0.1))
    image = next(images)
    for stamp, rate in zip(stamps.tolist(), rates):
        gyro.add(stamp, rate)
        if image is not None and stamp - START > (image + 0.02) * 1e9:
            gyro.learn(known(image - late_s, rng) if not late_s else KnownPose(
                START + round(image * 1e9), known(image - late_s, rng).map_from_base, isotropic(*STD)
            ))  # fmt: skip
            gyro.findings()
            image = next(images, None)
    return gyro


def test_bias_is_learned_and_turns_are_right():
    gyro = driven()
    np.testing.assert_allclose(gyro.bias, BIAS, atol=0.006)
    assert gyro.trusted and not gyro.warnings()
    turn, covariance = gyro.turn(START + 7_800_000_000, START + 8_037_000_000)
    truth = poses(7.8)[:3, :3].mT @ poses(8.037)[:3, :3]
    assert float(se3.rotation_angle(truth.mT @ turn)) < 0.004
    assert 0.0005 < float(covariance.diagonal().max()) ** 0.5 < 0.02


@pytest.mark.parametrize("kind", ["mount", "unit"])
def test_a_gyro_that_reads_something_else_is_not_believed(kind):
    turned = se3.so3_exp(torch.tensor([0.0, 0.0, 1.5], dtype=torch.float64))
    gyro = driven(mount=turned) if kind == "mount" else driven(unit=57.3)
    assert not gyro.trusted and gyro.turn(START + 7_800_000_000, START + 8_000_000_000) is None
    assert ("the gyro's axes are turned by" in gyro.problem) == (kind == "mount")
    assert ("check the IMU's transform" if kind == "mount" else "degrees a second") in gyro.warnings()[0]


def test_another_clock_is_found():
    found = driven(seconds=20.0, late_s=0.06).findings()
    assert found.time_offset_s == pytest.approx(-0.06, abs=0.02) and "clocks" in found.wrong


def test_holes_and_clocks_set_back():
    gyro = Gyro(MotionOptions())
    gyro.trusted = True
    for stamp in (*range(0, 500, 10), *range(900, 1200, 10)):
        gyro.add(START + stamp * 1_000_000, np.array((0.0, 0.0, 1.0)))
    gyro.add(START, np.array((np.nan, 0, 0)))
    assert gyro.turn(START + 400_000_000, START + 1_000_000_000) is None
    turn, _ = gyro.turn(START + 950_000_000, START + 1_050_000_000)
    np.testing.assert_allclose(se3.so3_log(turn).numpy(), (0, 0, 0.1), atol=1e-9)
    gyro.add(START - 5_000_000_000, np.array((0.0, 0.0, 1.0)))
    assert gyro.turn(START + 950_000_000, START + 1_050_000_000) is None


def test_the_prior_turns_with_the_gyro_and_moves_on():
    gyro, buffer = driven(), OdometryBuffer(OdometryOptions())
    before, last, end = known(7.8), known(7.9), START + 8_000_000_000
    plain = predict(last, before, end, None, buffer, MotionOptions())
    with_gyro = predict(last, before, end, None, buffer, MotionOptions(), gyro.turn)
    truth = poses(8.0)
    off = [float(se3.pose_difference(prior.map_from_base, truth)[1]) for prior in (plain, with_gyro)]
    assert off[1] < 0.004 < off[0]
    std = [float(prior.covariance.diagonal()[3:].max()) ** 0.5 for prior in (plain, with_gyro)]
    assert std[1] < 0.2 * std[0]
    assert bool((torch.linalg.eigvalsh(with_gyro.covariance) > 0).all())
    assert with_gyro.source == "constant velocity"
    assert float(se3.pose_difference(with_gyro.map_from_base, truth)[0]) < 0.03

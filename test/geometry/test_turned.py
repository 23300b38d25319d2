# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Angular velocities become rotations."""

import numpy as np
import torch

from pixloc_ros.geometry import se3
from pixloc_ros.geometry.gyro import turned


def test_a_changing_rate_is_integrated():
    stamps = 1_700_000_000_000_000_000 + np.arange(0, 2_000_000_000, 5_000_000)
    time = (stamps - stamps[0]) * 1e-9
    poses = se3.so3_exp(torch.from_numpy(np.stack((0.3 * np.sin(time), 0.5 * time, 0.2 * time**2), 1)))
    step = 1e-4
    around = [
        se3.so3_exp(torch.from_numpy(np.stack((0.3 * np.sin(t), 0.5 * t, 0.2 * t**2), 1))) for t in (time - step, time + step)
    ]
    rates = se3.so3_log(around[0].mT @ around[1]).numpy() / (2 * step)
    at = stamps[[0, 100, 101, 399]]
    found, known = turned(stamps, rates, at, 10_000_000)
    assert known.all()
    truth = poses[[0, 100, 101]].mT @ poses[[100, 101, 399]]
    assert float(se3.rotation_angle(truth.mT @ torch.from_numpy(found)).max()) < 1e-4


def test_between_readings_and_over_gaps():
    stamps, rates = np.array([0, 10, 20, 50, 60]) * 1_000_000, np.tile((0.0, 0.0, 1.0), (5, 1))
    found, known = turned(stamps, rates, np.array([-5, 3, 17, 25, 52, 58, 70]) * 1_000_000, 10_000_000)
    assert known.tolist() == [False, True, False, False, True, False]
    turn = se3.so3_log(torch.from_numpy(found)).numpy()[:, 2]
    np.testing.assert_allclose(turn[known], (0.014, 0.006), atol=1e-12)
    assert (turn[~known] == 0).all()

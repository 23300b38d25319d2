# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What an IMU and a satellite receiver on a moving body read, with the errors of cheap ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pixloc_ros.geometry import se3
from pixloc_ros.io.bag_writer import RecordedFixes, RecordedImu

GRAVITY = 9.80665
_HALF_S = 0.01
_DEGREE_M = 111_200.0

Poses = Callable[[np.ndarray], torch.Tensor]
"""Called with times [N] in seconds, gives world_from_base float64 [N, 4, 4], z up."""


@dataclass(frozen=True)
class ImuErrors:
    """Of an IMU for a few euros.

    Attributes:
        bias: rad/s, of each axis of the gyro.
        noise: rad/s, standard deviation of a reading.
        walk: rad/s, standard deviation by which the bias changes in a second.
        force_bias: m/s², of each axis of the accelerometer.
        force_noise: m/s², standard deviation of a reading.
    """

    bias: tuple[float, float, float] = (0.006, -0.009, 0.012)
    noise: float = 0.003
    walk: float = 0.00005
    force_bias: tuple[float, float, float] = (0.04, -0.03, 0.02)
    force_noise: float = 0.05


@dataclass(frozen=True)
class FixErrors:
    """Of a satellite receiver.

    Attributes:
        std: Metres, east, north, up, as it says itself.
        drift_s: How long its errors last, seconds.
        wrong: Share of fixes that are wrong altogether (reflections) without saying so.
        wrong_m: By how much, standard deviation.
        origin: Latitude, longitude, altitude of the world's frame, whose axes are east, north, up.
    """

    std: tuple[float, float, float] = (0.5, 0.5, 1.0)
    drift_s: float = 5.0
    wrong: float = 0.05
    wrong_m: float = 15.0
    origin: tuple[float, float, float] = (48.1374, 11.5755, 520.0)


def imu_readings(
    poses: Poses, stamps_ns: np.ndarray, start_ns: int, base_from_imu: torch.Tensor, seed: int, errors: ImuErrors = ImuErrors()
) -> RecordedImu:
    """What an IMU reads at stamps, rising, of a drive that began at `start_ns`."""
    rng, time = np.random.default_rng([seed, 31]), (stamps_ns - start_ns) * 1e-9
    before, now, after = (poses(time + step) @ base_from_imu for step in (-_HALF_S, 0.0, _HALF_S))
    rates = se3.so3_log(before[:, :3, :3].mT @ after[:, :3, :3]).numpy() / (2 * _HALF_S)
    force = (before[:, :3, 3] - 2 * now[:, :3, 3] + after[:, :3, 3]).numpy() / _HALF_S**2 + (0.0, 0.0, GRAVITY)
    forces = np.einsum("nji,nj->ni", now[:, :3, :3].numpy(), force)
    seconds = np.diff(time, prepend=time[0])
    walk = np.cumsum(rng.normal(size=rates.shape) * errors.walk * np.sqrt(seconds)[:, None], axis=0)
    rates = rates + errors.bias + walk + rng.normal(size=rates.shape) * errors.noise
    forces = forces + errors.force_bias + rng.normal(size=forces.shape) * errors.force_noise
    return RecordedImu(stamps_ns, rates, forces, base_from_imu)


def satellite_fixes(
    poses: Poses, stamps_ns: np.ndarray, start_ns: int, antenna: np.ndarray, seed: int, errors: FixErrors = FixErrors()
) -> RecordedFixes:
    """Fixes at stamps, rising, of an antenna at a place [3] in the base's frame."""
    rng, time = np.random.default_rng([seed, 37]), (stamps_ns - start_ns) * 1e-9
    place = se3.transform(poses(time), torch.from_numpy(np.asarray(antenna, float))[None, None])[:, 0].numpy()
    error, kept = np.zeros_like(place), np.exp(-np.diff(time, prepend=time[0]) / errors.drift_s)
    error[0] = rng.normal(size=3)
    for k in range(1, len(error)):
        error[k] = kept[k] * error[k - 1] + np.sqrt(1 - kept[k] ** 2) * rng.normal(size=3)
    place = place + error * errors.std
    wrong = rng.random(len(place)) < errors.wrong
    place[wrong] += rng.normal(size=(int(wrong.sum()), 3)) * errors.wrong_m
    latitude, longitude, altitude = errors.origin
    # Near the origin the earth is flat enough: a kilometre away this is a few centimetres off.
    east_m = _DEGREE_M * np.cos(np.radians(latitude))
    fixes = np.stack((latitude + place[:, 1] / _DEGREE_M, longitude + place[:, 0] / east_m, altitude + place[:, 2]), 1)
    return RecordedFixes(stamps_ns, fixes, np.asarray(errors.std, float), np.asarray(antenna, float))

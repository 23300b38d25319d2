# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives of a wheeled robot: smooth paths, exact poses at any time, and what its wheels make of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from pixloc_ros.datasets.odometry import OdometryErrors, with_covariances
from pixloc_ros.geometry import se3
from pixloc_ros.io.frames import Odometry

START_NS = 1_700_000_000_000_000_000
"""Stamp at which drives begin; any fixed time in the past does."""

_EAST = ((0.0, 0.0), (1.45, -1.55), (3.0, -2.2), (4.5, -1.55), (4.75, 0.1), (4.35, 1.75), (3.0, 2.35), (1.5, 1.55))
_WEST = ((0.0, 0.0), (-1.45, -1.55), (-3.0, -2.2), (-4.5, -1.5), (-4.8, 0.0), (-4.45, 1.6), (-3.0, 2.3), (-1.5, 1.6))
WAYPOINTS = np.array(_EAST + _WEST)
"""A figure of eight around the two islands of the workshop, through the opening between its rooms (map frame, m)."""
_OPTICAL_FROM_BASE = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
_STEP_S = 0.002


CAMERAS = {"front": 0.0, "left": np.pi / 2, "right": -np.pi / 2, "back": np.pi}
"""Directions in which a robot with several cameras looks, radians about the vertical."""


def camera_mount(forward: float = 0.22, up: float = 0.62, pitch_up: float = 0.05, yaw: float = 0.0) -> torch.Tensor:
    """base_from_camera, float64 [4, 4]: base axes as in REP-103, optical camera axes as in REP-103's suffix rule.

    Args:
        forward: Place of the camera on the base (m), in the direction in which it looks.
        up: As `forward`.
        pitch_up: Radians above the horizontal.
        yaw: Direction in which it looks, radians about the vertical.
    """
    tilt = se3.so3_exp(torch.tensor([0.0, -pitch_up, 0.0], dtype=torch.float64))
    turn = se3.so3_exp(torch.tensor([0.0, 0.0, yaw], dtype=torch.float64))
    rotation = tilt @ torch.from_numpy(_OPTICAL_FROM_BASE.T.copy())
    place = torch.tensor([forward, 0.0, up], dtype=torch.float64)
    return se3.from_rotation_translation(turn @ rotation, turn @ place)


@dataclass(frozen=True)
class DriveOptions:
    """How a drive goes.

    Attributes:
        duration_s: None for one round.
        speed: Limit (m/s).
        turn_rate: Limit (rad/s).
        acceleration: Limit (m/s²).
        wander: How far the way points are moved at random (m).
        start: Where on the path it begins (m).
        shake: Standard deviation of the body's pitch and roll (rad), as wheels and floor cause it; its height moves by a third of
            a metre per radian of that.
        seed: Of all chance.
    """

    duration_s: float | None = None
    speed: float = 0.8
    turn_rate: float = 0.9
    acceleration: float = 0.7
    wander: float = 0.0
    start: float = 0.0
    shake: float = 0.002
    seed: int = 0


class SimulatedDrive:
    """A drive along a closed smooth path: the base never moves sideways, its axes follow the path's tangent.

    Args:
        options: How it goes.
        waypoints: float64 [N, 2], another round than the workshop's (m).

    Attributes:
        duration_s: Of the whole drive.
        length: Of the whole drive (m).
    """

    def __init__(self, options: DriveOptions, waypoints: np.ndarray | None = None) -> None:
        rng = np.random.default_rng([options.seed, 17])
        points = (WAYPOINTS if waypoints is None else waypoints).copy()
        wander = rng.uniform(-1, 1, points.shape) * options.wander
        if waypoints is None:
            wander[8] = wander[0]  # both passages of the opening
        points += wander
        closed = np.vstack((points, points[:1]))
        chord = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))))
        path = CubicSpline(chord, closed, bc_type="periodic")
        fine = np.linspace(0.0, chord[-1], 20001)
        xy, first, second = path(fine), path(fine, 1), path(fine, 2)
        pace = np.linalg.norm(first, axis=1)
        along = np.concatenate(([0.0], np.cumsum((pace[1:] + pace[:-1]) / 2 * np.diff(fine))))
        curvature = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / pace**3
        self.path_length = float(along[-1])
        yaw = np.unwrap(np.arctan2(first[:, 1], first[:, 0]))
        turn = float(yaw[-1] - yaw[0])

        limit = np.minimum(options.speed, options.turn_rate / np.maximum(np.abs(curvature), 1e-6))
        rounds = 1 if options.duration_s is None else int(options.duration_s * options.speed / self.path_length) + 2
        station = np.linspace(0.0, self.path_length * rounds, 4000 * rounds + 1)
        allowed = np.interp((options.start + station) % self.path_length, along, limit)
        spacing = station[1]
        # Speed from rest, limited by acceleration forwards and by braking backwards.
        squared = np.minimum(allowed, options.speed) ** 2
        squared[0] = 0.04**2
        gain = 2 * options.acceleration * station
        squared = np.minimum.accumulate(squared - gain) + gain
        squared = np.minimum.accumulate((squared + gain)[::-1])[::-1] - gain
        speed = np.sqrt(squared)
        time = np.concatenate(([0.0], np.cumsum(2 * spacing / (speed[1:] + speed[:-1]))))
        self.duration_s = float(time[-1]) if options.duration_s is None else float(options.duration_s)

        # Half a second more at both ends, so that exposures and interpolation stay inside.
        self._time = np.arange(-0.5, self.duration_s + 0.5, _STEP_S)
        driven = np.interp(self._time, time, station)
        self.length = float(np.interp(self.duration_s, time, station))
        place = options.start + driven
        whole, part = np.floor(place / self.path_length), place % self.path_length
        self._x, self._y = np.interp(part, along, xy[:, 0]), np.interp(part, along, xy[:, 1])
        self._yaw = np.interp(part, along, yaw) + whole * turn
        self._shake = [_sway(rng, self._time, options.shake) for _ in range(2)]
        self._shake.append(_sway(rng, self._time, options.shake / 3.0))

    def at(self, time_s: np.ndarray | float) -> torch.Tensor:
        """map_from_base at times since the start (s, any shape [...]): float64 [..., 4, 4]."""
        time_s = np.asarray(time_s, float)
        yaw, x, y, roll, pitch, z = (np.interp(time_s, self._time, v) for v in (self._yaw, self._x, self._y, *self._shake))
        zero = np.zeros_like(yaw)
        heading = se3.so3_exp(torch.from_numpy(np.stack((zero, zero, yaw), -1)))
        tilt = se3.so3_exp(torch.from_numpy(np.stack((roll, pitch, zero), -1)))
        return se3.from_rotation_translation(heading @ tilt, torch.from_numpy(np.stack((x, y, z), -1)))

    def planar(self, time_s: np.ndarray) -> np.ndarray:
        """x, y, yaw (continuous) at times [N]: float64 [N, 3]."""
        return np.stack([np.interp(time_s, self._time, values) for values in (self._x, self._y, self._yaw)], -1)


def _sway(rng: np.random.Generator, time: np.ndarray, deviation: float) -> np.ndarray:
    """A few sines of random frequency and phase, of the standard deviation wanted."""
    frequency, phase = rng.uniform(0.3, 4.0, 6), rng.uniform(0, 2 * np.pi, 6)
    return deviation / np.sqrt(3.0) * np.sin(2 * np.pi * frequency * time[:, None] + phase).sum(1)


def wheel_odometry(
    drive: SimulatedDrive, errors: OdometryErrors, seed: int, start_ns: int = START_NS, rate_hz: float = 50.0
) -> Odometry:
    """Dead reckoning from the wheels of a drive: planar, from the identity."""
    rng = np.random.default_rng([seed, 23])
    period_ns = round(1e9 / rate_hz)
    offsets_ns = np.arange(int(drive.duration_s * 1e9) // period_ns + 1, dtype=np.int64) * period_ns
    true = drive.planar(offsets_ns * 1e-9)
    step = np.diff(true, axis=0)
    middle = true[:-1, 2] + step[:, 2] / 2
    distance = step[:, 0] * np.cos(middle) + step[:, 1] * np.sin(middle)
    slip, slip_yaw = _slip_bursts(rng, len(step), rate_hz, errors)
    read = distance * (errors.scale + slip) + rng.normal(size=len(step)) * errors.noise * np.sqrt(np.abs(distance))
    turned = step[:, 2] * errors.yaw_scale + distance * (errors.yaw_per_metre + slip_yaw)
    turned += rng.normal(size=len(step)) * errors.noise * np.sqrt(np.abs(step[:, 2]))

    yaw = np.concatenate(([0.0], np.cumsum(turned)))
    heading = yaw[:-1] + turned / 2
    place = np.zeros((len(yaw), 3))
    place[1:, :2] = np.cumsum(read[:, None] * np.stack((np.cos(heading), np.sin(heading)), 1), 0)
    rotation = se3.so3_exp(torch.from_numpy(yaw[:, None] * (0.0, 0.0, 1.0)))
    return with_covariances(start_ns + offsets_ns, se3.from_rotation_translation(rotation, torch.from_numpy(place)))


def _slip_bursts(rng: np.random.Generator, count: int, rate_hz: float, errors: OdometryErrors) -> tuple[np.ndarray, np.ndarray]:
    """False distance (share of the way) and false turning (rad/m) of every step [count]."""
    slip, yaw = np.zeros(count), np.zeros(count)
    for _ in range(rng.poisson(errors.slips_per_minute * count / rate_hz / 60.0)):
        start, length = int(rng.integers(0, count)), int(rng.uniform(0.2, 0.7) * rate_hz)
        slip[start : start + length] = rng.uniform(0.3, 1.0) * errors.slip
        yaw[start : start + length] = rng.uniform(-1.0, 1.0) * errors.slip_yaw
    return slip, yaw

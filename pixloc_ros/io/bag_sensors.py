# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a bag's IMU and its satellite receiver read (sensor_msgs Imu and NavSatFix), in the axes of the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..geometry import se3
from . import messages
from .bags import BagReader

IMU, FIX = "sensor_msgs/msg/Imu", "sensor_msgs/msg/NavSatFix"
_FIX_STD_M = {0: 3.0, 1: 1.5, 2: 0.5}
"""Of a fix that says nothing of its covariance, by its status: plain, with augmentation by satellites, by ground stations."""
_UP_FACTOR, _LEAST_STD_M = 2.0, 0.01


@dataclass(frozen=True, eq=False)
class ImuReadings:
    """Readings over time.

    Attributes:
        topic: Where they come from.
        stamps_ns: int64 [N], rising.
        rates: float64 [N, 3] rad/s, in the camera's axes.
        forces: float64 [N, 3], what the accelerometer reads in the camera's axes, which at rest points up; None without one.
        camera_from_imu: float64 [3, 3].
    """

    topic: str
    stamps_ns: np.ndarray
    rates: np.ndarray
    forces: np.ndarray | None
    camera_from_imu: np.ndarray


@dataclass(frozen=True, eq=False)
class Fixes:
    """Places on the earth over time.

    Attributes:
        topic: Where they come from.
        stamps_ns: int64 [N], rising.
        places: float64 [N, 3] latitude, longitude (degrees), altitude (metres).
        std: float64 [N, 3] metres, east, north, up.
        antenna: float64 [3], its place in the camera's frame, metres.
        without: How many messages more have no fix.
    """

    topic: str
    stamps_ns: np.ndarray
    places: np.ndarray
    std: np.ndarray
    antenna: np.ndarray
    without: int


def find_sensor(bag: BagReader, kind: str, asked: str | None) -> tuple[ImuReadings | Fixes | None, str]:
    """What a sensor of a kind (`IMU`, `FIX`) read, and what is to be said where one that nobody asked for cannot be used.

    Raises:
        InputError: The topic asked for cannot be used.
    """
    try:
        topic = sensor_topic(bag, kind, asked)
        return (None if topic is None else (read_imu if kind == IMU else read_fixes)(bag, topic)), ""
    except InputError as error:
        if asked is not None:
            raise
        return None, f"{'the IMU is' if kind == IMU else 'satellite fixes are'} left out: {error}"


def sensor_topic(bag: BagReader, kind: str, asked: str | None) -> str | None:
    """The topic asked for, or the only one of a kind (`IMU`, `FIX`); None where there is none, or "none" is asked for.

    Raises:
        InputError: Not the only one, or not of that kind.
    """
    option, there = ("--imu-topic" if kind == IMU else "--fix-topic"), bag.topics_of_type(kind)
    if asked == "none" or (asked is None and not there):
        return None
    if asked is not None and asked not in there:
        raise InputError(f"no {kind.split('/')[-1]} topic {asked} in {bag.path}: it has {', '.join(there) or 'none'}")
    if asked is None and len(there) > 1:
        raise InputError(f"it has several {kind.split('/')[-1]} topics ({', '.join(there)}): choose with {option}, or 'none'")
    return asked or there[0]


def imu_topic(bag: BagReader, asked: str | None) -> str | None:
    """As `sensor_topic`, but None where nobody asked for one and there are several."""
    several = asked is None and len(bag.topics_of_type(IMU)) > 1
    return None if several else sensor_topic(bag, IMU, asked)


def read_imu(bag: BagReader, topic: str) -> ImuReadings:
    """All readings of a topic. Raises `InputError`: there are none, or no transform leads to the IMU."""
    stamps, rates, forces, frame, first = [], [], [], None, None
    for _, message in bag.messages([topic]):
        first = first or message
        rate = _xyz(message.angular_velocity)
        if message.angular_velocity_covariance[0] != -1 and np.isfinite(rate).all() and messages.message_stamp(message):
            frame = frame or messages.frame_name(message.header.frame_id)
            stamps.append(messages.message_stamp(message))
            rates.append(rate)
            known = message.linear_acceleration_covariance[0] != -1
            forces.append(_xyz(message.linear_acceleration) if known else np.zeros(3))
    if len(stamps) < 2:
        why = "no messages" if first is None else "no angular velocities"
        raise InputError(f"{topic} in {bag.path} holds {why}: leave it out with --imu-topic none")
    turn = _camera_from(bag, frame, topic, "--imu-topic")[:3, :3]
    stamps, rows = np.unique(np.array(stamps, np.int64), return_index=True)
    rates, forces = np.array(rates)[rows], np.array(forces)[rows]
    usable = np.isfinite(forces).all() and bool(forces.any())
    return ImuReadings(topic, stamps, rates @ turn.T, forces @ turn.T if usable else None, turn)


def read_fixes(bag: BagReader, topic: str) -> Fixes:
    """All fixes of a topic. Raises `InputError`: there are none, or no transform leads to the antenna."""
    stamps, places, stds, frame, without = [], [], [], None, 0
    for _, message in bag.messages([topic]):
        place = np.array((message.latitude, message.longitude, message.altitude), float)
        there = abs(place[0]) <= 90 and abs(place[1]) <= 360  # False for NaN, too
        if message.status.status < 0 or not there or not messages.message_stamp(message):
            without += 1
            continue
        frame = messages.frame_name(message.header.frame_id) if frame is None else frame
        stamps.append(messages.message_stamp(message))
        places.append(place)
        stds.append(_fix_std(message))
    if not stamps:
        raise InputError(f"{topic} in {bag.path} holds no fix: leave it out with --fix-topic none")
    antenna = _camera_from(bag, frame, topic, "--fix-topic")[:3, 3]
    stamps, rows = np.unique(np.array(stamps, np.int64), return_index=True)
    places, std = np.array(places)[rows], np.array(stds)[rows]
    flat = ~np.isfinite(places[:, 2])  # a receiver that knows no height
    places[flat, 2], std[flat, 2] = 0.0, 1e6
    return Fixes(topic, stamps, places, std, antenna, without)


def _fix_std(message) -> np.ndarray:
    variance = np.asarray(message.position_covariance, float).reshape(3, 3).diagonal()
    if message.position_covariance_type != 0 and np.isfinite(variance).all() and (variance > 0).all():
        return np.maximum(np.sqrt(variance), _LEAST_STD_M)
    metres = _FIX_STD_M.get(int(message.status.status), _FIX_STD_M[0])
    return np.array((metres, metres, _UP_FACTOR * metres))


def _camera_from(bag: BagReader, frame: str | None, topic: str, option: str) -> np.ndarray:
    """camera_from_sensor float64 [4, 4]."""
    try:
        if bag.options.base_from_camera is not None and bool(bag.base_from_camera.isfinite().all()):
            return (se3.inverse(bag.base_from_camera) @ bag.transforms.static(bag.base_frame, frame or "")).numpy()
        return bag.transforms.static(bag.camera_frame, frame or "").numpy()
    except InputError:
        raise InputError(
            f"no static transform leads from the camera to {frame or 'the unnamed frame'} of {topic}: publish the sensor's place "
            f"on /tf_static, or leave it out with {option} none"
        ) from None


def _xyz(vector) -> np.ndarray:
    return np.array((vector.x, vector.y, vector.z), float)

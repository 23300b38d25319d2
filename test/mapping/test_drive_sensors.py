# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Gyro, accelerometer and satellite fixes in maps of drives without poses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter
from drive_scene import FOCAL, HEIGHT, START, STEP, WIDTH, similarity, view
from drive_scene import pose_at as straight_at

from pixloc_ros.cli.main import main
from pixloc_ros.geometry import se3
from pixloc_ros.mapping import Map
from pixloc_sim.sensors import FixErrors, ImuErrors, imu_readings, satellite_fixes

pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
COUNT = 12
ON_ITS_SIDE = se3.from_rotation_translation(
    se3.so3_exp(torch.tensor([1.2, -0.7, 0.4], dtype=torch.float64)), torch.tensor([0.1, 0.0, 0.2], dtype=torch.float64)
)
ANTENNA = np.array((-0.3, 0.1, 0.8))
EXACT = FixErrors(std=(0.01, 0.01, 0.02), wrong=0.0)
DEGREES_PER_IMAGE = 3.0


def pose_at(k, count=COUNT):
    """map_from_camera of the k-th image: along a wall, the robot turning to and fro."""
    sway, turn = 0.15 * np.sin(2 * np.pi * k / 9), np.eye(4)
    turn[:2, :2] = ((np.cos(sway), -np.sin(sway)), (np.sin(sway), np.cos(sway)))
    pose = straight_at(k, count).copy()
    pose[:3, :3], pose[0, 3] = turn[:3, :3] @ pose[:3, :3], -2.6 + 5.2 * k / (count - 1)
    return pose


def bases(time):
    """world_from_base at times [N]: along the wall, an image each tenth of a second."""
    poses = np.stack([pose_at(10 * float(t), COUNT) for t in np.ravel(time)])
    return torch.from_numpy(poses @ np.linalg.inv(BASE_FROM_CAMERA))


def readings(bias=(0.006, -0.009, 0.012)):
    errors = ImuErrors(bias=bias)
    return imu_readings(bases, START + np.arange(-5, 125) * 10_000_000, START, ON_ITS_SIDE, 0, errors)


def write(path, wheels=None, imu=None, fixes=None, static=("imu_link", "gnss_link"), mount=True):
    """A bag of the drive. wheels: odom_from_base by number of the image."""
    with BagWriter(path) as bag:
        if mount:
            bag.transform("/tf_static", START, "base_link", "camera_optical", BASE_FROM_CAMERA)
        for k in range(COUNT):
            stamp = START + k * STEP
            bag.info(stamp, WIDTH, HEIGHT, FOCAL)
            bag.image(stamp, view(pose_at(k, COUNT)), WIDTH, HEIGHT)
            if wheels is not None:
                bag.odometry(stamp, wheels[k])
        parent, parent_from_base = "base_link", np.eye(4)
        if not mount:  # the IMU is part of the camera, as of some
            parent, parent_from_base = "camera_optical", np.linalg.inv(BASE_FROM_CAMERA)
        if imu is not None:
            if "imu_link" in static:
                bag.transform("/tf_static", START, parent, "imu_link", parent_from_base @ imu.base_from_imu.numpy())
            for stamp, rates, forces in zip(imu.stamps_ns.tolist(), imu.rates, imu.forces):
                bag.put(stamp, "/imu/data", bag.imu(stamp, "imu_link", rates, forces))
        if fixes is not None:
            place = np.eye(4)
            place[:3, 3] = fixes.antenna
            if "gnss_link" in static:
                bag.transform("/tf_static", START, parent, "gnss_link", parent_from_base @ place)
            for n, (stamp, fix) in enumerate(zip(fixes.stamps_ns.tolist(), fixes.places)):
                covariance, status = (None, -1) if n == 3 else (np.diag(fixes.std**2), 0)
                bag.put(stamp, "/gnss/fix", bag.fix(stamp, "gnss_link", fix, covariance, status))
    return path


def make(tmp_path, *words):
    """The map and its report."""
    output, report = tmp_path / "site.pixmap", tmp_path / "site.json"
    assert main(["map", "bag", *map(str, words), "--poses", "images", "-o", str(output), "--report", str(report)]) == 0
    return Map.open(output), json.loads(report.read_text())


def off(map_):
    """Scale, and root mean square distance after a similarity, to the truth."""
    numbers = (map_.keyframe_stamp_ns - START) // STEP
    truth = np.stack([pose_at(k, COUNT)[:3, 3] for k in numbers])
    return similarity(map_.map_from_keyframe[:, :3, 3].numpy(), truth)


def turning_wheels():
    """Wheels that claim three degrees more at each image: as with one flat tyre."""
    truth, bias, poses = bases(np.arange(COUNT) * 0.1).numpy(), np.eye(4), [np.eye(4)]
    angle = np.radians(DEGREES_PER_IMAGE)
    bias[:2, :2] = ((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle)))
    for one, other in zip(truth, truth[1:]):
        poses.append(poses[-1] @ np.linalg.inv(one) @ other @ bias)
    return poses


def tilt(map_):
    """Radians between the map's z axis and the truth's."""
    numbers = (map_.keyframe_stamp_ns - START) // STEP
    up = [pose.numpy()[:3, :3] @ pose_at(k, COUNT)[2, :3] for k, pose in zip(numbers, map_.map_from_keyframe)]
    return float(np.linalg.norm(np.mean(up, axis=0)[:2]))


def test_a_gyro_corrects_wheels_that_turn_wrongly(tmp_path):
    wheels, imu = turning_wheels(), readings((0.02, -0.03, 0.05))
    map_, report = make(tmp_path, write(tmp_path / "bag", wheels, imu))
    scale, rmse = off(map_)
    gyro = next(line for line in report["sensors"] if line.startswith("gyro"))
    bias = [float(word) for word in gyro.split("bias ")[1].split()[:3]]
    np.testing.assert_allclose(np.radians(bias), (0.02, -0.03, 0.05), atol=0.01)
    assert rmse < 0.01 and abs(scale - 1) < 0.02
    assert report["posed"][0] == report["posed"][1]
    assert "gyro of /imu/data" in (tmp_path / "site.html").read_text()
    assert tilt(map_) < np.radians(1.5)


def test_right_wheels_are_left_alone(tmp_path):
    _, report = make(tmp_path, write(tmp_path / "bag", bases(np.arange(COUNT) * 0.1).numpy()))
    assert not [note for note in report["notes"] if "odometry" in note]


def test_fixes_give_scale_and_georeference_without_wheels(tmp_path, capsys):
    fixes = satellite_fixes(bases, START + np.arange(12) * STEP, START, ANTENNA, 0, EXACT)
    fixes.places[5] += (0.0001, 0.0, 0.0)  # 11 m, with the same small covariance
    map_, report = make(tmp_path, write(tmp_path / "bag", None, None, fixes))
    scale, rmse = off(map_)
    assert rmse < 0.015 and abs(scale - 1) < 0.02
    assert "satellite" in report["scale"] and 0 < report["scale_uncertainty"] < 0.05
    line = next(line for line in report["sensors"] if line.startswith("fixes"))
    assert "10 used, 1 rejected, 1 messages without a fix" in line
    assert line in capsys.readouterr().out
    # The truth's frame is that of east, north, up at the origin of the fixes.
    place = map_.georeference
    east_north_up = place.enu_from_map @ map_.map_from_keyframe[0]
    numbers = (map_.keyframe_stamp_ns - START) // STEP
    truth = pose_at(int(numbers[0]), COUNT)
    middle = place.enu_from_fix(np.array([EXACT.origin]))[0]
    np.testing.assert_allclose(east_north_up[:3, 3].numpy() - middle, truth[:3, 3], atol=0.05)
    np.testing.assert_allclose(east_north_up[:3, :3].numpy(), truth[:3, :3], atol=0.08)  # the base leans at first


def test_gravity_gives_the_z_axis_where_no_base_does(tmp_path):
    map_, report = make(tmp_path, write(tmp_path / "bag", None, readings(), mount=False))
    assert tilt(map_) < np.radians(2.5)  # it speeds up by half of gravity for the whole second
    assert any(line.startswith("z axis") for line in report["sensors"])
    assert report["scale_uncertainty"] is None and off(map_)[1] < 0.01


@pytest.mark.parametrize("wrong", ["turned", "degrees"])
def test_a_gyro_that_contradicts_the_images_is_left_out(tmp_path, wrong):
    imu = readings()
    if wrong == "turned":
        turn = se3.so3_exp(torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64))
        imu = replace(imu, base_from_imu=imu.base_from_imu @ se3.from_rotation_translation(turn, torch.zeros(3).double()))
    else:
        imu = replace(imu, rates=np.degrees(imu.rates))
    map_, report = make(tmp_path, write(tmp_path / "bag", bases(np.arange(COUNT) * 0.1).numpy(), imu))
    (line,) = report["sensors"]
    assert "left out" in line and ("check the IMU's transform" in line) == (wrong == "turned")
    assert ("degrees a second" in line) == (wrong == "degrees")
    assert off(map_)[1] < 0.01


def test_sensors_without_a_place_are_named(tmp_path, capsys):
    wheels = bases(np.arange(COUNT) * 0.1).numpy()
    bag = write(tmp_path / "bag", wheels, readings(), static=())
    map_, report = make(tmp_path, bag)
    assert report["sensors"] == []
    assert any("imu_link" in note and "/tf_static" in note for note in report["notes"])
    (tmp_path / "plain").mkdir()
    plain, _ = make(tmp_path / "plain", write(tmp_path / "none", wheels))
    assert torch.equal(map_.map_from_keyframe, plain.map_from_keyframe) and np.array_equal(map_.xyz, plain.xyz)
    output = ["-o", str(tmp_path / "other.pixmap")]
    for topic, said in (("/imu/data", "no static transform leads"), ("/imu", "it has /imu/data")):
        assert main(["map", "bag", str(bag), "--poses", "images", *output, "--imu-topic", topic]) == 2
        assert said in capsys.readouterr().err

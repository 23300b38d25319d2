# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Messages to the core's types and back, covariances against sampling."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.image_format import bytes_per_pixel, decode_raw
from pixloc_ros.node import conversions

TANGENT = st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6)


def random_covariance(seed: int, scale: float) -> torch.Tensor:
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return scale**2 * (root @ root.mT + 0.1 * torch.eye(6, dtype=torch.float64))


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_round_trip(stamp_ns):
    stamp = conversions.stamp_from_ns(stamp_ns)
    assert conversions.stamp_to_ns(stamp) == stamp_ns and stamp.sec == stamp_ns // 10**9


@given(TANGENT)
@example([0.0] * 3 + [math.pi, 0.0, 0.0])
@example([0.0] * 4 + [math.pi, 0.0])
@example([0.0] * 5 + [math.pi])
def test_poses_round_trip(xi):
    pose = se3.se3_exp(torch.tensor(xi, dtype=torch.float64))
    message = conversions.matrix_to_pose(pose)
    q = message.orientation
    assert math.hypot(q.x, q.y, q.z, q.w) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(conversions.pose_to_matrix(message, "pose"), pose, atol=1e-12, rtol=0)
    stamped = conversions.transform_stamped("a", "b", 5, pose)
    assert torch.allclose(conversions.transform_to_matrix(stamped.transform, "t"), pose, atol=1e-12, rtol=0)


@given(st.floats(-3, 3), st.floats(-1.5, 1.5), st.floats(-3, 3))
def test_euler_angles_turn_about_fixed_axes(roll, pitch, yaw):
    turn = lambda axis, angle: se3.so3_exp(angle * torch.eye(3, dtype=torch.float64)[axis])  # noqa: E731
    expected = turn(2, yaw) @ turn(1, pitch) @ turn(0, roll)
    pose = conversions.matrix_from_euler((1.0, 2.0, 3.0), roll, pitch, yaw)
    assert torch.allclose(pose[:3, :3], expected, atol=1e-12, rtol=0)
    assert pose[:3, 3].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("seed", [0, 1])
def test_covariance_agrees_with_sampling(seed):
    """Poses sampled in the base frame, measured the way REP-103 says: position, and rotation about the map's axes."""
    generator = torch.Generator().manual_seed(seed)
    pose = se3.se3_exp(2.0 * torch.randn(6, dtype=torch.float64, generator=generator))
    covariance = random_covariance(seed, 0.003)
    noise = torch.randn(200_000, 6, dtype=torch.float64, generator=generator) @ torch.linalg.cholesky(covariance).mT
    samples = pose @ se3.se3_exp(noise)
    position = samples[:, :3, 3] - pose[:3, 3]
    rotation = se3.so3_log(samples[:, :3, :3] @ pose[:3, :3].mT)
    measured = torch.cov(torch.cat((position, rotation), -1).mT)
    message = torch.tensor(conversions.covariance_to_message(covariance, pose)).reshape(6, 6)
    scale = message.diagonal().sqrt()
    assert (((measured - message) / (scale[:, None] * scale)).abs() < 0.02).all()


@given(TANGENT, st.integers(0, 100))
def test_covariances_round_trip(xi, seed):
    pose, covariance = se3.se3_exp(torch.tensor(xi, dtype=torch.float64)), random_covariance(seed, 0.1)
    message = conversions.pose_with_covariance(pose, covariance)
    again = conversions.covariance_from_message(message.covariance, pose, "pose")
    assert torch.allclose(again, covariance, atol=1e-12, rtol=1e-9)


def test_bad_covariances_are_named():
    identity = torch.eye(4, dtype=torch.float64)
    assert conversions.covariance_from_message(np.zeros(36), identity, "X") is None
    for numbers, text in (
        (np.full(36, np.nan), "NaN"),
        (np.diag([-1.0] * 6).ravel(), "not symmetric and positive"),
        (np.triu(np.ones((6, 6))).ravel(), "not symmetric and positive"),
    ):
        with pytest.raises(InputError, match=f"X has a covariance .*{text}"):
            conversions.covariance_from_message(numbers, identity, "X")


def test_camera_of_a_binned_region():
    info = CameraInfo(
        width=640, height=480, distortion_model="plumb_bob", d=[0.0] * 5, binning_x=2, binning_y=2,
        k=[500.0, 0.0, 319.5, 0.0, 500.0, 239.5, 0.0, 0.0, 1.0],
        roi=RegionOfInterest(x_offset=100, y_offset=40, width=400, height=300),
    )  # fmt: skip
    camera = conversions.camera_from_info(info)
    assert (camera.width, camera.height) == (200, 150)
    # c' = (c - offset + 0.5) / 2 - 0.5
    assert camera.params.tolist() == pytest.approx([250.0, 250.0, 109.5, 99.5])


@pytest.mark.parametrize("encoding", ["mono8", "mono16", "rgb8", "bgr8", "bgra8", "rgb16", "bayer_gbrg8", "yuv422", "yuyv"])
@pytest.mark.parametrize("padding", [0, 5, 12])
@pytest.mark.parametrize("is_bigendian", [0, 1])
def test_images_through_cv_bridge_are_what_the_bag_reader_sees(encoding, padding, is_bigendian):
    height, width = 12, 16
    step = width * bytes_per_pixel(encoding) + padding
    data = np.random.default_rng(0).integers(0, 255, step * height, np.uint8).tobytes()
    message = Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=is_bigendian, data=data)
    pixels = conversions.decode_image(message)
    assert np.array_equal(pixels, decode_raw(data, height, width, encoding, step, bool(is_bigendian)))
    assert pixels.dtype == np.uint8 and pixels.shape[:2] == (height, width)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which of K, D, R and P belongs to the images of a topic."""

from types import SimpleNamespace

import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.io.calibration import RAW, RECTIFIED, RECTIFIED_K, read_calibration

K = [500.0, 0, 319.5, 0, 500, 239.5, 0, 0, 1]
D = [-0.28, 0.09, 0.0005, -0.0004, 0.0]
P = [430.0, 0, 320.0, 0, 0, 431, 240, 0, 0, 0, 1, 0]
P_OF_K = [500.0, 0, 319.5, 0, 0, 500, 239.5, 0, 0, 0, 1, 0]
R = [1.0, 0, 0, 0, 1, 0, 0, 0, 1]
NONE = [0.0] * 5


def info(k=K, d=D, p=P, r=R, model="plumb_bob", upper=False, binning=0, region=(0, 0, 0, 0)):
    roi = SimpleNamespace(**dict(zip(("x_offset", "y_offset", "width", "height"), region)))
    values = {name.upper() if upper else name: value for name, value in zip("kdrp", (k, d, r, p))}
    rest = {"width": 640, "height": 480, "distortion_model": model, "binning_x": binning, "binning_y": binning, "roi": roi}
    return SimpleNamespace(**values, **rest)


RAW_K, PINHOLE_P, PINHOLE_K = ("plumb_bob", 500.0), ("pinhole", 430.0), ("pinhole", 500.0)
GUESSED = [("pinhole", 438.3), ("pinhole", 406.6)]  # OpenCV's new camera matrices of K and D
FISHEYE = [("pinhole", 458.6), ("pinhole", 425.1), ("equidistant", 500.0)]


@pytest.mark.parametrize("upper", [False, True], ids=["ROS 2", "ROS 1"])
@pytest.mark.parametrize(
    "given, topic, camera, taken, others",
    [
        ({}, "/cam/image_raw", RAW_K, RAW, [PINHOLE_P]),
        ({}, "/cam/image_rect_color/compressed", PINHOLE_P, RECTIFIED, [RAW_K]),
        ({}, "/stereo/left_rectified/image", PINHOLE_P, RECTIFIED, [RAW_K]),
        ({}, "/cam/image", RAW_K, RAW, [PINHOLE_P]),
        ({"p": P_OF_K}, "/cam/image_raw", RAW_K, RAW, [PINHOLE_K]),
        ({"p": P_OF_K}, "/cam/image_rect", PINHOLE_K, RECTIFIED, [RAW_K]),
        ({"p": P_OF_K, "d": NONE}, "/cam/image_rect", PINHOLE_K, RAW, []),
        ({"p": [0.0] * 12}, "/cam/image_raw", RAW_K, RAW, []),
        ({"p": [0.0] * 12}, "/cam/image_rect", PINHOLE_K, RECTIFIED_K, [*GUESSED, RAW_K]),
        ({"p": []}, "/cam/image", RAW_K, RAW, [PINHOLE_K, *GUESSED]),
        ({"p": [], "model": "equidistant", "d": [-0.02, 0.003, -0.002, 0.001]}, "/cam/rect", PINHOLE_K, RECTIFIED_K, FISHEYE),
        ({"p": [], "d": [1e-7, 0.0, 0.0, 0.0, 0.0]}, "/cam/image_rect", ("plumb_bob", 500.0), RAW, []),
        ({"p": []}, "/cam/image_raw", RAW_K, RAW, []),
        ({"k": [0.0] * 9}, "/cam/image_rect", PINHOLE_P, RECTIFIED, []),
        ({"k": [0.0] * 9, "d": NONE}, "/cam/image", PINHOLE_P, RECTIFIED, []),
        ({"model": "a lens nobody knows"}, "/cam/image_rect", PINHOLE_P, RECTIFIED, []),
    ],
)
def test_the_reading_and_the_others(given, topic, camera, taken, others, upper):
    found = read_calibration(info(upper=upper, **given), topic)
    assert (found.camera.model, round(float(found.camera.params[0]), 1)) == camera and found.taken == taken
    assert [(other.camera.model, round(float(other.camera.params[0]), 1)) for other in found.others] == others
    assert (bool(found.others) and "raw" not in topic) <= bool(found.note)


def test_p_follows_binning_and_region_too():
    found = read_calibration(info(binning=2, region=(100, 40, 400, 300)), "/cam/image_rect").camera
    assert (found.width, found.height) == (200, 150)
    expected = torch.tensor([215.0, 215.5, (320 - 100 + 0.5) / 2 - 0.5, (240 - 40 + 0.5) / 2 - 0.5], dtype=torch.float64)
    torch.testing.assert_close(found.params, expected)


@pytest.mark.parametrize(
    "given, topic, text",
    [
        ({"k": [0.0] * 9, "p": [0.0] * 12}, "/cam/image_rect", "k is zero"),
        ({"model": "a lens nobody knows"}, "/cam/image_raw", "distortion_model"),
        ({"p": [float("nan"), *P[1:]]}, "/cam/image_rect", "NaN"),
    ],
)
def test_what_makes_no_camera_is_said(given, topic, text):
    with pytest.raises(InputError, match=text):
        read_calibration(info(**given), topic)


def test_a_rectification_that_turns_the_camera_is_said():
    turned = [0.9998, 0, 0.02, 0, 1, 0, -0.02, 0, 0.9998]
    assert "R turns it by 1.1°" in read_calibration(info(r=turned), "/cam/image_rect").note

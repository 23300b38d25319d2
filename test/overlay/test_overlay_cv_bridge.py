# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""cv_bridge as the node uses it. Holds for the overlay as for a distribution's own cv_bridge."""

import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

cv_bridge = pytest.importorskip("cv_bridge")
from cv_bridge import CvBridge, CvBridgeError  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

BRIDGE = CvBridge()
PASSTHROUGH = {
    "mono8": ("u1", 1), "mono16": ("u2", 1), "rgb8": ("u1", 3), "bgr8": ("u1", 3), "rgba8": ("u1", 4), "bgra8": ("u1", 4),
    "rgb16": ("u2", 3), "bayer_rggb8": ("u1", 1), "bayer_gbrg16": ("u2", 1), "yuv422": ("u1", 2), "yuv422_yuy2": ("u1", 2),
    "8UC1": ("u1", 1), "8UC3": ("u1", 3), "16UC1": ("u2", 1), "16SC2": ("i2", 2), "32FC1": ("f4", 1), "64FC3": ("f8", 3),
}  # fmt: skip


def random_pixels(dtype, channels, height=6, width=8, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 250, (height, width, channels)).astype(dtype) * np.dtype(dtype).itemsize
    return pixels[:, :, 0] if channels == 1 else pixels


def message(pixels, encoding, padding=0, big_endian=False) -> Image:
    """Bytes laid out here, without the bridge."""
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<")))
    rows = rows.view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    data, (height, width) = array.array("B", rows.tobytes()), pixels.shape[:2]
    return Image(
        height=height, width=width, encoding=encoding, is_bigendian=int(big_endian), step=rows.shape[1], data=data
    )  # fmt: skip


@pytest.mark.parametrize("encoding", PASSTHROUGH)
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("padding", [0, 3, 8])
def test_pixels_as_they_are(encoding, big_endian, padding):
    pixels = random_pixels(*PASSTHROUGH[encoding])
    found = BRIDGE.imgmsg_to_cv2(message(pixels, encoding, padding, big_endian), desired_encoding="passthrough")
    assert found.dtype == pixels.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels)


@settings(max_examples=60)
@given(st.sampled_from(sorted(PASSTHROUGH)), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_there_and_back(encoding, height, width, big_endian, seed):
    pixels = random_pixels(*PASSTHROUGH[encoding], height, width, seed)
    sent = pixels.astype(pixels.dtype.newbyteorder(">")) if big_endian else pixels
    there = BRIDGE.cv2_to_imgmsg(sent, encoding=encoding)
    assert (there.height, there.width, there.encoding) == (height, width, encoding)
    assert there.step * height == len(there.data)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(there), pixels)


def test_part_of_an_array_and_passthrough_encoding():
    pixels = random_pixels("u1", 3, 20, 30)[2:9:2, 5:11]
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(pixels, "bgr8")), pixels)
    assert BRIDGE.cv2_to_imgmsg(random_pixels("u2", 1)).encoding == "16UC1"


@pytest.mark.parametrize("change", [{"height": 7}, {"step": 10}, {"encoding": "rgb8"}, {"encoding": "mono7"}, {"encoding": ""}])
def test_messages_that_do_not_fit_together(change):
    sent = message(random_pixels("u1", 1), "mono8")
    for name, value in change.items():
        setattr(sent, name, value)
    with pytest.raises(CvBridgeError):
        BRIDGE.imgmsg_to_cv2(sent)


def test_arrays_that_do_not_fit():
    with pytest.raises(TypeError, match="numpy"):
        BRIDGE.cv2_to_imgmsg([[1, 2]])
    colour = random_pixels("u1", 3)
    for pixels, encoding in ((colour, "mono8"), (colour, "bgr16"), (colour[:, :, 0], "rgb8"), (colour > 0, "passthrough")):
        with pytest.raises(CvBridgeError):
            BRIDGE.cv2_to_imgmsg(pixels, encoding)

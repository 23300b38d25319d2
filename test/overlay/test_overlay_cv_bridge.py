# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""cv_bridge as the node uses it, against independent conversions."""

import array

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

cv_bridge = pytest.importorskip("cv_bridge")
from cv_bridge import CvBridge, CvBridgeError  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

BRIDGE = CvBridge()
PASSTHROUGH = {
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "rgb8": (np.uint8, 3),
    "bgr8": (np.uint8, 3),
    "rgba8": (np.uint8, 4),
    "bgra8": (np.uint8, 4),
    "rgb16": (np.uint16, 3),
    "bayer_rggb8": (np.uint8, 1),
    "bayer_gbrg16": (np.uint16, 1),
    "yuv422": (np.uint8, 2),
    "yuv422_yuy2": (np.uint8, 2),
    "8UC1": (np.uint8, 1),
    "8UC3": (np.uint8, 3),
    "16UC1": (np.uint16, 1),
    "16SC2": (np.int16, 2),
    "32FC1": (np.float32, 1),
    "64FC3": (np.float64, 3),
}


def random_pixels(dtype, channels, height=6, width=8, seed=0):
    bits = np.random.default_rng(seed).integers(0, 256, (height, width, channels, np.dtype(dtype).itemsize), np.uint8)
    pixels = bits.view(dtype)[..., 0]
    if np.dtype(dtype).kind == "f":
        pixels = np.random.default_rng(seed).normal(size=pixels.shape).astype(dtype)
    return pixels[:, :, 0] if channels == 1 else pixels


def message(pixels, encoding, padding=0, big_endian=False) -> Image:
    """Bytes laid out here, without the bridge."""
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<")))
    rows = rows.view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    return Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )


@pytest.mark.parametrize("encoding", PASSTHROUGH)
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("padding", [0, 3, 8])
def test_pixels_as_they_are(encoding, big_endian, padding):
    pixels = random_pixels(*PASSTHROUGH[encoding])
    found = BRIDGE.imgmsg_to_cv2(message(pixels, encoding, padding, big_endian))
    assert found.dtype == pixels.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels)


@settings(max_examples=60)
@given(st.sampled_from(sorted(PASSTHROUGH)), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_there_and_back(encoding, height, width, big_endian, seed):
    pixels = random_pixels(*PASSTHROUGH[encoding], height, width, seed)
    sent = pixels.astype(pixels.dtype.newbyteorder(">")) if big_endian else pixels
    there = BRIDGE.cv2_to_imgmsg(sent, encoding)
    assert (there.height, there.width, there.encoding) == (height, width, encoding)
    assert there.step * height == len(there.data)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(there), pixels)


def test_header_and_passthrough_encoding():
    header = Header(frame_id="camera")
    header.stamp.sec = 7
    sent = BRIDGE.cv2_to_imgmsg(random_pixels(np.uint16, 1), header=header)
    assert sent.header == header and sent.encoding == "16UC1"
    assert BRIDGE.cv2_to_imgmsg(random_pixels(np.float32, 3)).encoding == "32FC3"


def test_a_part_of_an_array():
    pixels = random_pixels(np.uint8, 3, 20, 30)[2:9:2, 5:11]
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(pixels, "bgr8")), pixels)


# ---- colours

BGR = random_pixels(np.uint8, 3, 8, 10, seed=3)
ALPHA = np.full((8, 10, 1), 255, np.uint8)
GREY = np.clip(np.rint(BGR @ np.array([0.114, 0.587, 0.299])), 0, 255)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("bgr8", BGR),
        ("rgb8", BGR[:, :, ::-1]),
        ("bgra8", np.concatenate([BGR, ALPHA], 2)),
        ("rgba8", np.concatenate([BGR[:, :, ::-1], ALPHA], 2)),
    ],
)
def test_colours(encoding, pixels):
    sent = message(pixels, encoding)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(sent, "bgr8"), BGR)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(sent, "rgb8"), BGR[:, :, ::-1])
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(sent, "bgra8"), np.concatenate([BGR, ALPHA], 2))
    np.testing.assert_allclose(BRIDGE.imgmsg_to_cv2(sent, "mono8"), GREY, atol=1)
    np.testing.assert_allclose(BRIDGE.imgmsg_to_cv2(sent, "mono16"), GREY * 257, atol=257)


def test_grey_of_sixteen_bits():
    pixels = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message(pixels, "mono16"), "mono8"), [[0, 0, 1, 128, 255]])
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message(pixels, "mono16"), "rgb8")[0, 3], [128] * 3)
    small = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message(small, "mono8"), "mono16"), [[0, 257, 65535]])


# ROS names a Bayer pattern by its upper left corner, row by row.
PATTERNS = {"rggb": "RG/GB", "bggr": "BG/GR", "gbrg": "GB/RG", "grbg": "GR/BG"}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer(pattern, bits):
    """A plain colour seen through the pattern comes back as that colour."""
    scale = 257 if bits == 16 else 1
    color = {"R": 200, "G": 120, "B": 40}
    cell = np.array([[color[letter] for letter in row] for row in PATTERNS[pattern].split("/")])
    pixels = (np.tile(cell, (4, 5)) * scale).astype(np.uint16 if bits == 16 else np.uint8)
    sent = message(pixels, f"bayer_{pattern}{bits}", padding=2 * bits // 8)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(sent, "bgr8")[2:-2, 2:-2], np.full((4, 6, 3), (40, 120, 200)))
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(sent, "rgb8")[2:-2, 2:-2], np.full((4, 6, 3), (200, 120, 40)))
    grey = 0.299 * 200 + 0.587 * 120 + 0.114 * 40
    np.testing.assert_allclose(BRIDGE.imgmsg_to_cv2(sent, "mono8")[2:-2, 2:-2], np.full((4, 6), grey), atol=1)


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv(encoding):
    """BT.601 with luma from 16 to 235, colour shared by two neighbours."""
    y, u, v = 120, 90, 200
    pair = [[y, u], [y, v]] if encoding in ("yuv422_yuy2", "yuyv") else [[u, y], [v, y]]
    sent = message(np.tile(np.array(pair, np.uint8), (4, 3, 1)), encoding, padding=4)
    blue, green, red = (
        1.164 * (y - 16) + 2.018 * (u - 128),
        1.164 * (y - 16) - 0.813 * (v - 128) - 0.391 * (u - 128),
        1.164 * (y - 16) + 1.596 * (v - 128),
    )
    np.testing.assert_allclose(BRIDGE.imgmsg_to_cv2(sent, "bgr8"), np.full((4, 6, 3), (blue, green, red)), atol=1)
    np.testing.assert_allclose(BRIDGE.imgmsg_to_cv2(sent, "rgb8"), np.full((4, 6, 3), (red, green, blue)), atol=1)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(sent, "mono8"), np.full((4, 6), y))


# ---- compressed


@pytest.mark.parametrize("file_format", ["png", "bmp", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_compressed_without_loss(file_format, channels):
    pixels = random_pixels(np.uint8, channels)
    sent = BRIDGE.cv2_to_compressed_imgmsg(pixels, file_format)
    assert sent.format == file_format
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(sent), pixels)


def test_compressed_jpeg_and_colours():
    smooth = cv2.GaussianBlur(cv2.resize(BGR, (80, 64)), (0, 0), 8)
    sent = BRIDGE.cv2_to_compressed_imgmsg(smooth)
    assert sent.format == "jpg" and len(sent.data) < smooth.nbytes / 4
    assert np.abs(BRIDGE.compressed_imgmsg_to_cv2(sent).astype(int) - smooth).max() < 12
    rgb = BRIDGE.compressed_imgmsg_to_cv2(sent, "rgb8")
    np.testing.assert_array_equal(rgb[:, :, ::-1], BRIDGE.compressed_imgmsg_to_cv2(sent, "bgr8"))
    grey = BRIDGE.cv2_to_compressed_imgmsg(smooth[:, :, 0])
    assert BRIDGE.compressed_imgmsg_to_cv2(grey, "bgr8").shape == smooth.shape


def test_compressed_sixteen_bits():
    pixels = random_pixels(np.uint16, 1)
    sent = BRIDGE.cv2_to_compressed_imgmsg(pixels, "png")
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(sent), pixels)
    assert BRIDGE.compressed_imgmsg_to_cv2(sent, "mono8").dtype == np.uint8


# ---- what cannot be converted


@pytest.mark.parametrize(
    ("encoding", "wish"),
    [("8UC1", "bgr8"), ("32FC1", "mono8"), ("bgr8", "8UC1"), ("mono8", "no-such"), ("mono8", "bayer_rggb8"), ("bgr8", "yuv422")],
)
def test_senseless_wishes(encoding, wish):
    with pytest.raises(CvBridgeError):
        BRIDGE.imgmsg_to_cv2(message(random_pixels(*PASSTHROUGH[encoding]), encoding), wish)


def test_messages_that_do_not_fit_together():
    for change in ({"height": 7}, {"step": 10}, {"encoding": "rgb8"}, {"encoding": "mono7"}, {"encoding": ""}):
        sent = message(random_pixels(np.uint8, 1), "mono8")
        for name, value in change.items():
            setattr(sent, name, value)
        with pytest.raises(CvBridgeError):
            BRIDGE.imgmsg_to_cv2(sent)
    for data in (b"", b"not an image", bytes(BRIDGE.cv2_to_compressed_imgmsg(BGR).data)[:20]):
        with pytest.raises(CvBridgeError):
            BRIDGE.compressed_imgmsg_to_cv2(CompressedImage(format="jpeg", data=data))


def test_arrays_that_do_not_fit():
    with pytest.raises(TypeError, match="numpy"):
        BRIDGE.cv2_to_imgmsg([[1, 2]])
    for pixels, encoding in ((BGR, "mono8"), (BGR, "bgr16"), (BGR[:, :, 0], "rgb8")):
        with pytest.raises(CvBridgeError):
            BRIDGE.cv2_to_imgmsg(pixels, encoding)
    with pytest.raises(CvBridgeError):
        BRIDGE.cv2_to_imgmsg(np.zeros((2, 2), bool))
    with pytest.raises(CvBridgeError):
        BRIDGE.cv2_to_compressed_imgmsg(BGR, "gif89")


def test_types_of_encodings():
    assert BRIDGE.encoding_to_dtype_with_channels("bgr8") == ("uint8", 3)
    assert BRIDGE.encoding_to_dtype_with_channels("32FC2") == ("float32", 2)
    assert BRIDGE.encoding_to_dtype_with_channels("16U") == ("uint16", 1)
    assert BRIDGE.dtype_with_channels_to_cvtype2("uint16", 3) == "16UC3"
    assert BRIDGE.encoding_to_cvtype2("bayer_rggb8") == "8UC1"

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixloc_ros.errors import InputError
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io import image_format
from pixloc_ros.io.image_format import check_layout, decode_compressed, decode_raw
from pixloc_ros.io.images import exif_remark, fit_to_working_size, load_image

H, W = 6, 8
PALETTE = bytes.fromhex(  # a red and a blue pixel
    "89504e470d0a1a0a0000000d4948445200000002000000010803000000c3fc8fb800000006504c5445ff00000000ff6ca1fd8e0000000b49444154789c6360"
    "60040000040002bf7a3f4a0000000049454e44ae426082"
)
COLOUR = np.array([200, 120, 40], np.uint8)  # red, green, blue


def with_orientation(jpeg: bytes, orientation: int, order: str = "big") -> bytes:
    """The JPEG file with an EXIF tag, behind another one."""
    numbers = ((0x10F, 2, 0, 0), (0x112, 3, 1, orientation))
    entries = b"".join(
        b"".join(v.to_bytes(n, order) for v, n in ((tag, 2), (kind, 2), (count, 4), (value, 2), (0, 2)))
        for tag, kind, count, value in numbers
    )
    head = b"".join(v.to_bytes(n, order) for v, n in ((42, 2), (8, 4), (len(numbers), 2)))
    exif = b"Exif\0\0" + (b"II" if order == "little" else b"MM") + head + entries + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def packed(pixels: np.ndarray, padding: int) -> tuple[bytes, int]:
    """Rows with some bytes of padding → (data, step)."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return rows.tobytes(), rows.shape[1]


def decode(pixels, encoding, padding=0, big=False, size=(H, W)):
    data, step = packed(pixels, padding)
    return decode_raw(data, *size, encoding, step, big)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("encoding", "order"),
    [
        ("rgb8", (0, 1, 2)),
        ("bgr8", (2, 1, 0)),
        ("8UC3", (2, 1, 0)),
        ("rgba8", (0, 1, 2, 0)),
        ("bgra8", (2, 1, 0, 0)),
        ("8UC4", (2, 1, 0, 0)),
    ],
)
def test_colour_orders(encoding, order, padding):
    image = decode(np.tile(COLOUR[list(order)], (H, W, 1)), encoding, padding)
    assert image.dtype == np.uint8 and image.shape == (H, W, 3)
    assert (image == COLOUR).all()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_of_any_depth_and_byte_order(bits, padding, big):
    grey = np.linspace(0, 255, H * W).astype(np.uint16).reshape(H, W)
    pixels = (grey << (bits - 8)).astype(">u2" if big else "<u2") if bits > 8 else grey.astype(np.uint8)
    for encoding in ("mono16", "16UC1") if bits > 8 else ("mono8", "8UC1"):
        assert np.abs(decode(pixels, encoding, padding, big).astype(int) - grey).max() <= 1


def test_hot_pixel_does_not_darken_a_12_bit_image():
    pixels = np.full((240, 320), 3000, np.uint16)
    pixels[0, 0] = 65535
    image = decode(pixels, "mono16", size=(240, 320))
    assert image[5, 5] == 3000 >> 4 and image[0, 0] == 255


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer_patterns(pattern, bits):
    mosaic = np.empty((16, 16), np.uint8)
    for position, letter in enumerate(pattern):
        mosaic[position // 2 :: 2, position % 2 :: 2] = COLOUR["rgb".index(letter)]
    if bits == 16:
        mosaic = mosaic.astype(np.uint16) << 8
    image = decode(mosaic, f"bayer_{pattern}{bits}", size=(16, 16))
    assert (image[2:-2, 2:-2] == COLOUR).all()


@pytest.mark.parametrize(("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")])
def test_yuv422(encoding, order):
    # Video range and BT.601 chroma, as YUV cameras send them.
    r, g, b = COLOUR / 255.0
    y = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    u = 128 - 37.797 * r - 74.203 * g + 112 * b
    v = 128 + 112 * r - 93.786 * g - 18.214 * b
    values = {"y": y, "u": u, "v": v}
    row = np.tile(np.array([round(values[c]) for c in order], np.uint8), W // 2)
    image = decode(np.tile(row, (H, 1)), encoding, padding=2)
    assert np.abs(image.astype(int) - COLOUR).max() <= 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((H, W, "32FC1", 4 * W, 0, 4 * W * H), "encoding '32FC1' is not supported"),
        ((0, W, "mono8", W, 0, 0), "8x0 is empty"),
        ((H, W, "rgb8", W, 0, W * H), "step is 8 bytes but a row of 8 rgb8 pixels takes 24"),
        ((H, W, "mono8", W, 0, W * H - 1), "data is 47 bytes but 6 rows of 8 make 48"),
        ((H, W, "mono8", W, 0, W * H + 1), "data is 49 bytes"),
        ((H, 7, "yuv422", 14, 0, 14 * H), "cannot be 7x6"),
        ((5, W, "bayer_rggb8", W, 0, 5 * W), "cannot be 8x5"),
    ],
)
def test_bad_layouts_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        check_layout(*fields)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(image_format._FORMATS)),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_whatever_passes_the_check_decodes(encoding, height, width, padding, big, seed):
    height, width = 2 * height, 2 * width
    pixel = image_format._FORMATS[encoding]
    step = width * pixel.channels * pixel.itemsize + padding
    data = np.random.default_rng(seed).integers(0, 256, step * height, dtype=np.uint8)
    image = decode_raw(data, height, width, encoding, step, big)
    assert image.dtype == np.uint8 and image.shape[:2] == (height, width)
    assert image.ndim == (2 if pixel.to_rgb is None and pixel.channels == 1 else 3)


def test_compressed():
    rgb = np.tile(COLOUR, (32, 32, 1))
    _, jpeg = cv2.imencode(".jpg", rgb[..., ::-1])
    assert np.abs(decode_compressed(jpeg.tobytes()).astype(int) - COLOUR).max() <= 3
    _, png = cv2.imencode(".png", rgb[..., 0])
    assert (decode_compressed(png) == 200).all() and decode_compressed(png).ndim == 2
    _, png16 = cv2.imencode(".png", np.full((8, 8), 2000, np.uint16))
    assert (decode_compressed(png16) == 2000 >> 3).all()
    _, alpha = cv2.imencode(".png", np.dstack((rgb[..., ::-1], rgb[..., 0])))
    assert (decode_compressed(alpha) == COLOUR).all()
    for bad in (b"", b"no image", jpeg.tobytes()[:20]):
        with pytest.raises(InputError, match="cannot be decoded"):
            decode_compressed(bad)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_files_are_read_as_messages(tmp_path, suffix, channels, bits):
    """Grey, grey with alpha, colour, colour with alpha; sensors of 10, 12 and 14 bits fill part of 16."""
    expected = np.tile(np.arange(256, dtype=np.uint8), (64, 1))[:, ::-1]
    values = expected.astype(np.uint16) << (bits - 8) if bits > 8 else expected
    alpha = np.full_like(values, np.iinfo(values.dtype).max)
    image = {1: [values], 2: [values] * 3 + [alpha], 3: [values] * 3, 4: [values] * 3 + [alpha]}[channels]
    path = tmp_path / f"image{suffix}"
    assert cv2.imwrite(str(path), np.stack(image, -1).squeeze())
    found = load_image(path)
    assert found.dtype == np.uint8 and np.array_equal(found if found.ndim == 2 else found[..., 1], expected)
    if suffix == ".png":
        assert np.array_equal(found, decode_compressed(path.read_bytes()))
    if channels == 1 and bits > 8:
        assert np.array_equal(found, decode_raw(values.tobytes(), 64, 256, "mono16", 512, False))


def test_palettes_and_pictures_that_are_none(tmp_path):
    data = np.frombuffer(PALETTE, np.uint8)
    data.tofile(tmp_path / "palette.png")
    assert load_image(tmp_path / "palette.png").tolist() == decode_compressed(PALETTE).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    cv2.imwrite(str(tmp_path / "float.tiff"), np.zeros((8, 8), np.float32))
    (tmp_path / "empty.png").touch()
    for name, message in (("float.tiff", "float32 pixels"), ("empty.png", "not a readable image")):
        with pytest.raises(InputError, match=message):
            load_image(tmp_path / name)
    camera = Camera("pinhole", 128, 96, torch.tensor([100.0, 100, 64, 48], dtype=torch.float64))
    with pytest.raises(InputError, match="turned by 90°.*orientation tags"):
        fit_to_working_size(np.zeros((128, 96), np.uint8), camera, 128)


@pytest.mark.parametrize("orientation, how", [(1, ""), (2, "to be mirrored"), (3, "by 180°"), (6, "by 90° to the right")])
@pytest.mark.parametrize("order", ["little", "big"])
def test_images_that_exif_turns_are_named(tmp_path, orientation, how, order):
    (tmp_path / "plain.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((H, W), np.uint8))[1].tobytes())
    (tmp_path / "b.png").write_bytes(cv2.imencode(".png", np.zeros((H, W), np.uint8))[1].tobytes())
    (tmp_path / "turned.jpg").write_bytes(with_orientation((tmp_path / "plain.jpg").read_bytes(), orientation, order))
    assert load_image(tmp_path / "turned.jpg").shape == (H, W)  # as stored
    remark = exif_remark({path.name: path for path in [*tmp_path.iterdir(), tmp_path / "missing.jpg"]})
    assert (f"1 of 4 images have an EXIF tag that says how to turn them (turned.jpg: {how})" in remark) if how else not remark

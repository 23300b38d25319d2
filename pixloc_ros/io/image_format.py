# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The pixel formats of sensor_msgs/Image and CompressedImage, checked and turned into 8-bit grey or RGB.

Converters trust `step`, `encoding` and `is_bigendian` and read past the data, shear the picture or swap bytes where these
are wrong. So the layout is checked first, by the node (before cv_bridge) as well as by the bag reader (instead of it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class _Format:
    """channels as stored, bytes of each, and OpenCV's conversion to RGB (None: grey, or RGB already)."""

    channels: int
    itemsize: int
    to_rgb: int | None = None
    even_width: bool = False
    even_height: bool = False


def _formats() -> dict[str, _Format]:
    formats = {}
    for itemsize, bits in ((1, 8), (2, 16)):
        formats[f"mono{bits}"] = formats[f"{bits}UC1"] = _Format(1, itemsize)
        formats[f"rgb{bits}"] = _Format(3, itemsize)
        formats[f"bgr{bits}"] = formats[f"{bits}UC3"] = _Format(3, itemsize, cv2.COLOR_BGR2RGB)
        formats[f"rgba{bits}"] = _Format(4, itemsize, cv2.COLOR_RGBA2RGB)
        formats[f"bgra{bits}"] = formats[f"{bits}UC4"] = _Format(4, itemsize, cv2.COLOR_BGRA2RGB)
        # OpenCV names a pattern by its second row, ROS by its first.
        for pattern, code in (
            ("rggb", cv2.COLOR_BayerBG2RGB),
            ("bggr", cv2.COLOR_BayerRG2RGB),
            ("gbrg", cv2.COLOR_BayerGR2RGB),
            ("grbg", cv2.COLOR_BayerGB2RGB),
        ):
            formats[f"bayer_{pattern}{bits}"] = _Format(1, itemsize, code, even_width=True, even_height=True)
    for name, code in (
        ("yuv422", cv2.COLOR_YUV2RGB_UYVY),
        ("uyvy", cv2.COLOR_YUV2RGB_UYVY),
        ("yuv422_yuy2", cv2.COLOR_YUV2RGB_YUY2),
        ("yuyv", cv2.COLOR_YUV2RGB_YUY2),
    ):
        formats[name] = _Format(2, 1, code, even_width=True)
    return formats


_FORMATS = _formats()

MAX_PIXELS = 2**25
"""Of a compressed image: a kilobyte of JPEG can claim to be 30000x30000, for which OpenCV would take gigabytes."""
_HEADER_BYTES = 2**18
"""How far into a JPEG its size is looked for: a thumbnail and a colour profile may come before."""
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF_MARKER, _ORIENTATION_TAG = 0xE1, 0x112


def check_layout(height: int, width: int, encoding: str, step: int, is_bigendian: bool, data_length: int) -> None:
    """Raise `InputError` unless a sensor_msgs/Image with these fields can be read without guessing.

    step and data_length are in bytes; rows may be padded. `is_bigendian` is free: 16-bit pixels of either order are read.
    """
    pixel = _FORMATS.get(encoding)
    if pixel is None:
        raise InputError(f"image encoding '{encoding}' is not supported: publish one of {', '.join(sorted(_FORMATS))}")
    if height <= 0 or width <= 0:
        raise InputError(f"image size {width}x{height} is empty: check the camera driver")
    if (pixel.even_width and width % 2) or (pixel.even_height and height % 2):
        raise InputError(f"a {encoding} image cannot be {width}x{height}, its pixels come in pairs: check the camera driver")
    row = width * pixel.channels * pixel.itemsize
    if step < row:
        raise InputError(
            f"image step is {step} bytes but a row of {width} {encoding} pixels takes {row}: "
            "set step to the bytes of a row, padding included"
        )
    if data_length != step * height:
        raise InputError(
            f"image data is {data_length} bytes but {height} rows of {step} make {step * height}: "
            "the message is cut short or its height or step is wrong"
        )


def bytes_per_pixel(encoding: str) -> int:
    """Of an encoding that `check_layout` lets pass."""
    pixel = _FORMATS[encoding]
    return pixel.channels * pixel.itemsize


def decode_raw(
    data: np.ndarray | bytes | memoryview, height: int, width: int, encoding: str, step: int, is_bigendian: bool
) -> np.ndarray:
    """The pixels of a sensor_msgs/Image → uint8 [height, width] for grey encodings, [height, width, 3] RGB for the others.

    16-bit values are scaled down by `to_8_bits`. Raises `InputError` as `check_layout` does.
    """
    flat = np.frombuffer(data, np.uint8) if not isinstance(data, np.ndarray) else data.view(np.uint8).reshape(-1)
    check_layout(height, width, encoding, step, is_bigendian, flat.size)
    pixel = _FORMATS[encoding]
    row = width * pixel.channels * pixel.itemsize
    pixels = np.ascontiguousarray(flat.reshape(height, step)[:, :row])
    if pixel.itemsize == 2:
        pixels = pixels.view(">u2" if is_bigendian else "<u2")
    if pixel.channels > 1:
        pixels = pixels.reshape(height, width, pixel.channels)
    return to_grey_or_rgb(pixels, encoding)


def to_grey_or_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """Pixels in one of the encodings that `check_layout` lets pass → what `decode_raw` returns.

    Args:
        pixels: uint8 or uint16 of either byte order, [H, W] or [H, W, channels].
    """
    to_rgb = _FORMATS[encoding].to_rgb
    if pixels.dtype.itemsize == 2:
        pixels = to_8_bits(pixels)
    return pixels if to_rgb is None else cv2.cvtColor(pixels, to_rgb)


def decode_compressed(data: bytes | np.ndarray | memoryview) -> np.ndarray:
    """JPEG or PNG → uint8 [H, W] for grey files, [H, W, 3] RGB for colour ones.

    Orientation tags are not obeyed: the calibration belongs to the sensor's rows and columns. Raises `InputError` for data
    that is no image.
    """
    flat = np.frombuffer(data, np.uint8)
    width, height = _claimed_size(memoryview(flat))
    if width * height > MAX_PIXELS:
        raise InputError(
            f"a compressed image of {flat.size} bytes claims to be {width}x{height}: more than {MAX_PIXELS} pixels are not read"
        )
    image = decode_file(flat) if width * height else None
    if image is None:
        raise InputError(f"a compressed image of {flat.size} bytes cannot be decoded: it is cut short, or not JPEG or PNG")
    return image


def decode_file(data: np.ndarray) -> np.ndarray | None:
    """The bytes uint8 [N] of an image file of any kind that OpenCV reads → as `decode_compressed`; None where they are none.

    Alpha is dropped. Raises `InputError` for pixels that are neither of 8 nor of 16 bits.
    """
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        return None
    if image.dtype == np.uint16:
        image = to_8_bits(image)
    if image.dtype != np.uint8:
        raise InputError(f"an image holds {image.dtype} pixels: make it of 8 or 16 bits")
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _claimed_size(data: memoryview | bytes) -> tuple[int, int]:
    """Width and height by the header of a JPEG or PNG file; zeros where it is neither, or a PNG that is cut short."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        at = 8
        while at < len(data) and data[at - 8 : at - 4] != b"IEND":
            # Decoders take memory for a chunk's length before they see that the file is shorter.
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at > len(data):
            return 0, 0
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:2] != b"\xff\xd8":
        return 0, 0
    frames = (part for marker, part in _jpeg_segments(data) if marker in _FRAME_MARKERS)
    frame = next(frames, bytes(9))
    return int.from_bytes(frame[7:9], "big"), int.from_bytes(frame[5:7], "big")


def _jpeg_segments(data: memoryview | bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes, marker and length before the others, of the segments at the head of a JPEG file."""
    data = bytes(data[:_HEADER_BYTES])
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:  # filling between segments, which decoders skip
            at += 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9
        if not alone:
            yield marker, data[at : at + max(2 + length, 9)]
        # 0xFF before a marker may be repeated: the next one counts.
        at += (1 if marker == 0xFF else 2) if alone else 2 + length


def exif_orientation(data: bytes) -> int:
    """How a JPEG file, of which the head will do, is to be turned or mirrored: 1 (as it is) to 8, as EXIF counts."""
    if data[:2] == b"\xff\xd8":
        for marker, part in _jpeg_segments(data):
            if marker == _EXIF_MARKER and part[4:10] == b"Exif\0\0":
                tiff = part[10:]
                order = "little" if tiff[:2] == b"II" else "big"
                at = int.from_bytes(tiff[4:8], order)
                count = int.from_bytes(tiff[at : at + 2], order)
                entries = (tiff[at + 2 + 12 * k :][:12] for k in range(min(count, len(tiff) // 12)))
                values = (int.from_bytes(e[8:10], order) for e in entries if int.from_bytes(e[:2], order) == _ORIENTATION_TAG)
                return next((value for value in values if 1 <= value <= 8), 1)
    return 1


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """uint16 → uint8 of the same shape by dropping low bits, as many as the picture can spare.

    "16-bit" cameras fill 10, 12, 14 or 16 bits and no field of the message says how many, so the brightest half per cent
    decides; a few hot pixels saturate instead of darkening the rest.
    """
    # Steps of five visit every colour of a mosaic and of interleaved channels.
    some = values[::5, ::5] if values.ndim == 2 else values[::5, ::5, :3]  # alpha is full whatever the sensor fills
    bright = int(np.percentile(some, 99.5, method="higher"))
    return np.minimum(values >> max(bright.bit_length() - 8, 0), 255).astype(np.uint8)

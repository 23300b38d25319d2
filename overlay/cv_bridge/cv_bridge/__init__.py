# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The part of cv_bridge's public Python interface that pixloc_ros uses: images to arrays and back, colours as they are."""

import array
import re
import sys

import numpy as np
from sensor_msgs.msg import Image

_DEPTHS = dict(zip(("8U", "8S", "16U", "16S", "32S", "32F", "64F"), ("u1", "i1", "u2", "i2", "i4", "f4", "f8")))
_GENERIC = re.compile(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([0-9]+))?")
_COLOR = re.compile(r"(mono|rgba|bgra|rgb|bgr|bayer_rggb|bayer_bggr|bayer_gbrg|bayer_grbg)(8|16)")
_CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
_YUV = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")


class CvBridgeError(TypeError):
    """The image cannot be converted."""


def _layout(encoding: str) -> tuple[np.dtype, int]:
    """Number type and channels of an encoding. Raises CvBridgeError for unknown encodings."""
    if match := _GENERIC.fullmatch(encoding):
        return np.dtype(_DEPTHS[match.group(1)]), int(match.group(2) or 1)
    if match := _COLOR.fullmatch(encoding):
        return np.dtype(f"u{int(match.group(2)) // 8}"), _CHANNELS.get(match.group(1), 1)
    if encoding in _YUV:
        return np.dtype(np.uint8), 2
    raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")


class CvBridge:
    """Converts between sensor_msgs images and numpy arrays as OpenCV lays them out ([H, W] or [H, W, channels])."""

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """The pixels as they are, in the machine's byte order; shares the message's memory if possible.

        Raises:
            CvBridgeError: the message's data are too short, its encoding is unknown, or another encoding is desired.
        """
        if desired_encoding not in ("passthrough", img_msg.encoding):
            raise CvBridgeError(f"this cv_bridge does not convert [{img_msg.encoding}] to [{desired_encoding}]")
        dtype, channels = _layout(img_msg.encoding)
        dtype = dtype.newbyteorder(">" if img_msg.is_bigendian else "<")
        height, width, step = img_msg.height, img_msg.width, img_msg.step
        if step < width * channels * dtype.itemsize or len(img_msg.data) < step * height:
            raise CvBridgeError(f"{width}x{height} {img_msg.encoding}, step {step}: does not fit in {len(img_msg.data)} bytes")
        strides = (step, channels * dtype.itemsize, dtype.itemsize)
        image = np.ndarray((height, width, channels), dtype, img_msg.data, strides=strides)
        return np.ascontiguousarray(image[:, :, 0] if channels == 1 else image, dtype.newbyteorder("="))

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough") -> Image:
        """A message with the array's pixels as they are; 'passthrough' names the encoding by its type ('8UC3').

        Raises:
            TypeError: cvim is no array.
            CvBridgeError: the encoding does not fit the array.
        """
        if not isinstance(cvim, np.ndarray):
            raise TypeError("Your input type is not a numpy array")
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        dtype = cvim.dtype.newbyteorder("=")
        cv_type = next((f"{depth}C{channels}" for depth, code in _DEPTHS.items() if dtype == np.dtype(code)), None)
        if cv_type is None or encoding != "passthrough" and _layout(encoding) != (dtype, channels):
            raise CvBridgeError(f"encoding specified as {encoding}, but image has incompatible type {cv_type or cvim.dtype}")
        data = array.array("B")  # a uint8[] field takes this without a look at every byte: a hundred times faster than bytes
        data.frombytes(memoryview(np.ascontiguousarray(cvim)).cast("B"))
        return Image(
            height=cvim.shape[0],
            width=cvim.shape[1],
            encoding=cv_type if encoding == "passthrough" else encoding,
            is_bigendian=int(cvim.dtype.byteorder == ">" or (cvim.dtype.byteorder == "=" and sys.byteorder == "big")),
            step=cvim.shape[1] * channels * cvim.itemsize,
            data=data,
        )

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Image messages from and to OpenCV's arrays."""

from __future__ import annotations

import array
import re
import sys

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

_DEPTHS = {
    "8U": np.uint8,
    "8S": np.int8,
    "16U": np.uint16,
    "16S": np.int16,
    "32S": np.int32,
    "32F": np.float32,
    "64F": np.float64,
}
_GENERIC = re.compile(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([0-9]+))?")
_COLOR = re.compile(r"(mono|rgba|bgra|rgb|bgr|bayer_rggb|bayer_bggr|bayer_gbrg|bayer_grbg)(8|16)")
_YUV = {"yuv422": "UYVY", "uyvy": "UYVY", "yuv422_yuy2": "YUY2", "yuyv": "YUY2"}
_CHANNELS = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
# OpenCV names a Bayer pattern by the second row's second and third pixel.
_BAYER = {"bayer_rggb": "BayerBG", "bayer_bggr": "BayerRG", "bayer_gbrg": "BayerGR", "bayer_grbg": "BayerGB"}
_FILE_FORMATS = (
    "bmp", "dib", "jpeg", "jpg", "jpe", "jp2", "png", "pbm", "pgm", "ppm", "sr", "ras", "tiff", "tif", "webp",
)  # fmt: skip


class CvBridgeError(TypeError):
    """The image cannot be converted."""


def _color_family(encoding: str) -> str | None:
    """'mono', 'rgb', ..., 'bayer_rggb', ..., 'UYVY', 'YUY2'; None for encodings that do not speak of colour."""
    match = _COLOR.fullmatch(encoding)
    return match.group(1) if match else _YUV.get(encoding)


def _conversion_code(source: str, target: str) -> int:
    """OpenCV's constant that turns one colour family into another. CvBridgeError where there is none."""
    opencv_name = {"mono": "GRAY"}.get(target, target.upper())
    if source in _BAYER:
        name = f"COLOR_{_BAYER[source]}2{opencv_name}"
    elif source in _YUV.values():
        name = f"COLOR_YUV2{opencv_name}_{source}"
    else:
        name = f"COLOR_{ {'mono': 'GRAY'}.get(source, source.upper()) }2{opencv_name}".replace(" ", "")
    if target not in _CHANNELS or not hasattr(cv2, name):
        raise CvBridgeError(f"Unsupported conversion from [{source}] to [{target}]")
    return getattr(cv2, name)


class CvBridge:
    """Converts between sensor_msgs images and numpy arrays as OpenCV lays them out ([H, W] or [H, W, channels])."""

    def encoding_to_dtype_with_channels(self, encoding: str) -> tuple[str, int]:
        """('uint8', 3) for bgr8, and so on. CvBridgeError for unknown encodings."""
        match = _GENERIC.fullmatch(encoding)
        if match:
            return np.dtype(_DEPTHS[match.group(1)]).name, int(match.group(2) or 1)
        match = _COLOR.fullmatch(encoding)
        if match:
            return f"uint{match.group(2)}", _CHANNELS.get(match.group(1), 1)
        if encoding in _YUV:
            return "uint8", 2
        raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")

    def dtype_with_channels_to_cvtype2(self, dtype: np.dtype, n_channels: int) -> str:
        """'8UC3' for uint8 and 3, and so on. CvBridgeError for types OpenCV has not."""
        for name, numpy_type in _DEPTHS.items():
            if np.dtype(dtype).newbyteorder("=") == numpy_type:
                return f"{name}C{n_channels}"
        raise CvBridgeError(f"no image encoding holds arrays of {np.dtype(dtype)}")

    def encoding_to_cvtype2(self, encoding: str) -> str:
        """'8UC3' for bgr8, and so on."""
        return self.dtype_with_channels_to_cvtype2(*self.encoding_to_dtype_with_channels(encoding))

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """[H, W] or [H, W, channels], in the machine's byte order; shares the message's memory where it can.

        'passthrough' keeps the pixels as they are. Else: colours, grey, Bayer patterns and YUV 4:2:2 into colours or
        grey, 8 from and to 16 bits scaled. CvBridgeError for other wishes and for messages whose data are too short.
        """
        dtype_name, channels = self.encoding_to_dtype_with_channels(img_msg.encoding)
        dtype = np.dtype(dtype_name).newbyteorder(">" if img_msg.is_bigendian else "<")
        height, width, step = img_msg.height, img_msg.width, img_msg.step
        if step < width * channels * dtype.itemsize or len(img_msg.data) < step * height:
            raise CvBridgeError(f"{width}x{height} {img_msg.encoding}, step {step}: does not fit in {len(img_msg.data)} bytes")
        strides = (step, channels * dtype.itemsize, dtype.itemsize)
        image = np.ndarray((height, width, channels), dtype, img_msg.data, strides=strides)
        if channels == 1:
            image = image[:, :, 0]
        image = np.ascontiguousarray(image, dtype.newbyteorder("="))
        if desired_encoding == "passthrough":
            return image
        return self._convert(image, img_msg.encoding, desired_encoding)

    def compressed_imgmsg_to_cv2(self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough") -> np.ndarray:
        """As imgmsg_to_cv2; 'passthrough' gives grey, BGR or BGRA as the file has it.

        CvBridgeError where it cannot be decoded.
        """
        data = np.frombuffer(cmprs_img_msg.data, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if image is None:
            raise CvBridgeError(f"cannot decode {data.size} bytes of '{cmprs_img_msg.format}'")
        if desired_encoding == "passthrough":
            return image
        family = "mono" if image.ndim == 2 else {3: "bgr", 4: "bgra"}[image.shape[2]]
        return self._convert(image, f"{family}{image.dtype.itemsize * 8}", desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """A message with the array's pixels as they are. 'passthrough' names them by type ('8UC3').

        TypeError where cvim is no array; CvBridgeError where the encoding does not fit it.
        """
        if not isinstance(cvim, np.ndarray):
            raise TypeError("Your input type is not a numpy array")
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        cv_type = self.dtype_with_channels_to_cvtype2(cvim.dtype, channels)
        if encoding != "passthrough" and self.encoding_to_cvtype2(encoding) != cv_type:
            raise CvBridgeError(f"encoding specified as {encoding}, but image has incompatible type {cv_type}")
        message = Image()
        if header is not None:
            message.header = header
        message.height, message.width = cvim.shape[:2]
        message.encoding = cv_type if encoding == "passthrough" else encoding
        order = cvim.dtype.byteorder
        message.is_bigendian = int(order == ">" or (order == "=" and sys.byteorder == "big"))
        message.step = message.width * channels * cvim.dtype.itemsize
        message.data = _as_field(cvim)
        return message

    def cv2_to_compressed_imgmsg(self, cvim: np.ndarray, dst_format: str = "jpg") -> CompressedImage:
        """A message with the image as a file in memory. CvBridgeError where OpenCV cannot write the format."""
        if not isinstance(cvim, np.ndarray):
            raise TypeError("Your input type is not a numpy array")
        if dst_format not in _FILE_FORMATS:
            raise CvBridgeError(f"OpenCV does not write '{dst_format}': use one of {', '.join(_FILE_FORMATS)}")
        try:
            written, data = cv2.imencode(f".{dst_format}", cvim)
        except cv2.error as error:
            raise CvBridgeError(str(error)) from error
        if not written:
            raise CvBridgeError(f"OpenCV cannot write this image as '{dst_format}'")
        return CompressedImage(format=dst_format, data=_as_field(data))

    def _convert(self, image: np.ndarray, source: str, target: str) -> np.ndarray:
        dtype_name, channels = self.encoding_to_dtype_with_channels(target)
        source_family, target_family = _color_family(source), _color_family(target)
        if source_family is None and target_family is not None:
            raise CvBridgeError(f"[{source}] is not a color format. but [{target}] is. The conversion does not make sense")
        if source_family and target_family and source_family != target_family:
            image = cv2.cvtColor(image, _conversion_code(source_family, target_family))
        elif channels != (1 if image.ndim == 2 else image.shape[2]):
            raise CvBridgeError(f"[{source}] and [{target}] do not have the same number of channels")
        return _convert_depth(image, np.dtype(dtype_name))


def _convert_depth(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Another number type: the full ranges of 8 and 16 bits are mapped onto each other, other values are clipped."""
    if image.dtype == dtype:
        return image
    if image.dtype == np.uint16 and dtype == np.uint8:
        return cv2.convertScaleAbs(image, alpha=255.0 / 65535.0)
    if image.dtype == np.uint8 and dtype == np.uint16:
        return image.astype(np.uint16) * 257
    if dtype.kind == "f":
        return image.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(image), limits.min, limits.max).astype(dtype)


def _as_field(pixels: np.ndarray) -> array.array:
    """What a uint8[] field takes without looking at every byte: a hundred times faster than an array or bytes."""
    data = array.array("B")
    data.frombytes(memoryview(np.ascontiguousarray(pixels)).cast("B"))
    return data

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Image messages to pixels and back, by cv_bridge if it can be trusted."""

from __future__ import annotations

import numpy as np
from cv_bridge import CvBridge, CvBridgeError
from sensor_msgs.msg import CompressedImage, Image

from ..io.image_format import bytes_per_pixel, check_layout, decode_compressed, decode_raw, to_grey_or_rgb

_BRIDGE = CvBridge()


def decode_image(message: Image | CompressedImage) -> np.ndarray:
    """Pixels of a message: uint8 [H, W] for grey encodings, [H, W, 3] RGB for the others.

    Raises:
        InputError: it is no image, cut short, or its encoding is not supported.
    """
    if isinstance(message, CompressedImage):
        return decode_compressed(memoryview(message.data))
    m = message
    check_layout(m.height, m.width, m.encoding, m.step, bool(m.is_bigendian), len(m.data))
    try:
        # cv_bridge fails on swapped bytes with NumPy 2, and shears rows whose padding is no whole number of pixels.
        if not m.is_bigendian and m.step % bytes_per_pixel(m.encoding) == 0:
            return to_grey_or_rgb(_BRIDGE.imgmsg_to_cv2(m, desired_encoding="passthrough"), m.encoding)
    except CvBridgeError:
        pass  # an encoding that this version of cv_bridge does not know
    return decode_raw(memoryview(m.data), m.height, m.width, m.encoding, m.step, bool(m.is_bigendian))


def rgb_message(pixels: np.ndarray) -> Image:
    """uint8 [H, W, 3] RGB as a message, its header left empty."""
    return _BRIDGE.cv2_to_imgmsg(pixels, encoding="rgb8")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Depth images: decoded from messages, paired with images, lifted to points, and moved to another pose."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera

FARTHEST_M = 65.535
"""Depth that is further away is not believed."""
MAX_DEPTH_OFFSET_NS = 20_000_000
"""A depth image belongs to a colour image that is no further away in time."""
_EDGE_WINDOW_PX = 7
EDGE_STEP = 0.04
"""Share of the depth that counts as an edge within the window."""
_COMPRESSED_DEPTH_HEADER = 12


def lift(camera: Camera, pixels: np.ndarray, depth: np.ndarray) -> torch.Tensor:
    """Points [N, 3] in the camera frame at pixels [N, 2] with depth along the optical axis [N]."""
    rays, _ = camera.unproject(torch.from_numpy(np.asarray(pixels, np.float64)))
    return rays * (torch.from_numpy(np.asarray(depth, np.float64)) / rays[:, 2])[:, None]


def move_depth(
    depth: np.ndarray, camera_from_depth_camera: torch.Tensor, camera: Camera, depth_camera: Camera | None = None
) -> np.ndarray:
    """A depth image as another camera saw it from another pose; the nearest surface wins.

    Args:
        depth: float32 [h, w] metres, 0 where unknown.
        camera_from_depth_camera: float64 [4, 4].
        camera: The other camera.
        depth_camera: That of the depth image, the same by default.

    Returns:
        float32 [H, W] metres, 0 where unknown.
    """
    rows, columns = np.nonzero(depth)
    pixels = np.stack((columns, rows), 1)
    points = se3.transform(camera_from_depth_camera, lift(depth_camera or camera, pixels, depth[rows, columns]))
    pixels, valid = camera.project(points)
    valid &= camera.in_image(pixels)
    column, row = pixels[valid].round().long().numpy().T
    z = points[valid, 2].numpy().astype(np.float32)
    moved = np.full((camera.height, camera.width), np.inf, np.float32)
    np.minimum.at(moved, (row, column), z)
    return np.where(np.isfinite(moved), moved, 0).astype(np.float32)


def without_edges(depth: np.ndarray) -> np.ndarray:
    """Depth float32 [H, W] with 0 wherever the window around holds an edge or a pixel without depth."""
    window = np.ones((_EDGE_WINDOW_PX, _EDGE_WINDOW_PX), np.uint8)
    low, high = cv2.erode(depth, window), cv2.dilate(depth, window)
    return np.where((low > 0) & (high - low < EDGE_STEP * depth), depth, 0).astype(np.float32)


def with_depth(frames: Iterable) -> Iterator[tuple[object, tuple[int, object] | None]]:
    """Pair each image with the depth message nearest to its stamp.

    Args:
        frames: In the order of their stamps, images (anything with a `stamp_ns`) and depth messages (stamp_ns, message).

    Yields:
        The image and the depth message, or None where that is more than 20 ms away.
    """
    waiting: deque = deque()
    depths: deque[tuple[int, object]] = deque(maxlen=8)

    def nearest(stamp_ns: int) -> tuple[int, object] | None:
        best = min(depths, key=lambda depth: abs(depth[0] - stamp_ns), default=None)
        return best if best is not None and abs(best[0] - stamp_ns) <= MAX_DEPTH_OFFSET_NS else None

    for item in frames:
        is_depth = isinstance(item, tuple)
        (depths if is_depth else waiting).append(item)
        newest = item[0] if is_depth else item.stamp_ns
        # A message of the same stamp may still come.
        while waiting and waiting[0].stamp_ns < newest:
            stamp_ns = waiting[0].stamp_ns
            if newest - stamp_ns <= MAX_DEPTH_OFFSET_NS and not (depths and depths[-1][0] >= stamp_ns):
                break
            yield waiting.popleft(), nearest(stamp_ns)
    for frame in waiting:
        yield frame, nearest(frame.stamp_ns)


def decode_depth(message, scale: float | None = None) -> np.ndarray:
    """Depth of a sensor_msgs Image or of a CompressedImage of the compressed_depth transport.

    Args:
        message: Of one of the types.
        scale: Units per metre; None for 1000 of 16UC1 and 1 of 32FC1 (REP-118).

    Returns:
        float32 [H, W] metres, 0 where unknown.

    Raises:
        InputError: The message holds something else, or most of it is farther than depth cameras see.
    """
    values, usual = _raw_depth(message) if hasattr(message, "encoding") else _compressed_depth(message)
    metres = values * np.float32(1 / (scale or usual))
    known = metres[np.isfinite(metres) & (metres > 0)]
    if known.size and (median := float(np.median(known))) > FARTHEST_M:
        raise InputError(
            f"depth images have a median of {median:.0f} m at {scale or usual:g} units per metre: give --depth-scale, "
            "for example 1000 for millimetres"
        )
    return np.where(np.isfinite(metres) & (metres > 0) & (metres <= FARTHEST_M), metres, 0).astype(np.float32)


def _raw_depth(message) -> tuple[np.ndarray, float]:
    """The numbers of an Image, float32, and their usual units per metre."""
    kinds = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
    if message.encoding not in kinds:
        raise InputError(f"depth images have encoding {message.encoding}: 16UC1 or 32FC1 is needed")
    kind = np.dtype((">" if message.is_bigendian else "<") + kinds[message.encoding])
    data = np.ascontiguousarray(message.data).view(np.uint8)
    if message.step < message.width * kind.itemsize or len(data) < message.step * message.height:
        raise InputError("a depth image is shorter than its size says: record the topic again")
    rows = data[: message.step * message.height].reshape(message.height, message.step)
    values = np.ascontiguousarray(rows[:, : message.width * kind.itemsize]).view(kind)
    return values.astype(np.float32), 1000.0 if kind.itemsize == 2 else 1.0


def _compressed_depth(message) -> tuple[np.ndarray, float]:
    """compressed_depth_image_transport: twelve bytes (format, two numbers), then a PNG; floats as a / (value - b)."""
    data = bytes(np.ascontiguousarray(message.data).view(np.uint8))
    png = np.frombuffer(data[_COMPRESSED_DEPTH_HEADER:], np.uint8)
    image = cv2.imdecode(png, cv2.IMREAD_UNCHANGED) if len(png) else None
    if "compressedDepth" not in message.format or image is None or image.dtype != np.uint16 or image.ndim != 2:
        raise InputError(f"depth images of format '{message.format}' cannot be read: record the raw depth topic")
    if message.format.split(";")[0].strip() != "32FC1":
        return image.astype(np.float32), 1000.0
    a, b = struct.unpack_from("<ff", data, 4)
    return np.where(image > 0, np.float32(a) / np.where(image > 0, image - np.float32(b), 1), 0), 1.0

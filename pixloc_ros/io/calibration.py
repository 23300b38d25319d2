# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which calibration belongs to an image: K, D, R and P of a CameraInfo and the name of the image's topic, read together.

K and D are of the raw image, P is of the rectified one, and image_proc passes all of them on beside both. Drivers also leave P
empty, copy K into it, or fill in R and P only. Where the two readings differ, the topic's name decides, and whoever has a map can
ask which of them aligns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry.cameras import Camera

SAME_PX = 0.5
"""Two readings that put no pixel further apart are one."""
_TURNED_RAD = math.radians(0.2)
RAW, RECTIFIED, RECTIFIED_K = "K and D (raw images)", "P (rectified images)", "K without D (rectified images)"


@dataclass(frozen=True, eq=False)
class Calibration:
    """The camera of an image.

    Attributes:
        camera: As it is read.
        taken: Which numbers that are, in words.
        other: The other reading, where there is one that differs.
        other_taken: Which numbers that would be.
        note: What is not sure about it; empty where all is clear.
    """

    camera: Camera
    taken: str
    other: Camera | None = None
    other_taken: str = ""
    note: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """The note, if there is one."""
        return (self.note,) if self.note else ()


def read_calibration(info, image_topic: str) -> Calibration:
    """The calibration in a CameraInfo (any object with its fields, of ROS 1 or 2), binning and region of interest applied.

    Raises:
        InputError: No camera can be read from it.
    """
    k, d, r, p = (_numbers(info, name) for name in "kdrp")
    is_rectified, is_raw = "rect" in image_topic.lower(), "raw" in image_topic.lower()
    raw = rectified = None
    taken = RECTIFIED
    if len(p) == 12 and p[0] and p[5]:
        rectified = _camera(info, "", [*p[:3], *p[4:7], 0.0, 0.0, 1.0], [])
    elif is_rectified and any(d):
        rectified, taken = _camera(info, "", k, []), RECTIFIED_K
    if rectified is None or (len(k) == 9 and k[0] and k[4]):
        try:
            raw = _camera(info, info.distortion_model if hasattr(info, "distortion_model") else "", k, d)
        except InputError:
            if rectified is None or not is_rectified:  # the lens of raw images does not matter for rectified ones
                raise
    if raw is None:
        note = "" if is_rectified else "k of the CameraInfo is zero: images are taken for rectified ones, with p"
        return Calibration(rectified, taken, note=note + _turned(r, taken))
    if rectified is None or _same(raw, rectified):
        return Calibration(raw, RAW)
    if is_rectified:
        empty = "; P is empty: publish it, for K is that of the raw images" if taken == RECTIFIED_K else ""
        note = f"{image_topic} by its name is rectified: {taken} of its calibration is used{empty}"
        return Calibration(rectified, taken, raw, RAW, note + _turned(r, taken))
    note = "" if is_raw else f"nothing says whether {image_topic} is rectified: {RAW} of its calibration are used, not {taken}"
    return Calibration(raw, RAW, rectified, taken, note)


def try_calibration(info, image_topic: str) -> Calibration | InputError:
    """The calibration, or the error it gives: a bad one spoils the frames that follow it, not the whole bag."""
    try:
        return read_calibration(info, image_topic)
    except InputError as error:
        return error


def _numbers(info, name: str) -> list[float]:
    return np.asarray(getattr(info, name, getattr(info, name.upper(), ())), float).ravel().tolist()


def _camera(info, model: str, k: list[float], d: list[float]) -> Camera:
    roi = info.roi
    region = roi.x_offset, roi.y_offset, roi.width, roi.height
    return Camera.from_camera_info(model, info.width, info.height, k, d, info.binning_x, info.binning_y, region)


def _same(one: Camera, other: Camera) -> bool:
    """Whether both see the same in every pixel, nearly."""
    x, y = torch.meshgrid(
        torch.linspace(0, one.width - 1, 9).double(), torch.linspace(0, one.height - 1, 9).double(), indexing="xy"
    )
    pixels = torch.stack((x, y), -1).reshape(-1, 2)
    rays, known = one.unproject(pixels)
    there, valid = other.project(rays)
    return bool((known & valid).all()) and float((there - pixels).abs().max()) < SAME_PX


def _turned(r: list[float], taken: str) -> str:
    """What to say of a rectification that turns the camera."""
    if taken != RECTIFIED or len(r) != 9 or not any(r):
        return ""
    angle = math.acos(min(max((r[0] + r[4] + r[8] - 1) / 2, -1.0), 1.0))
    if angle < _TURNED_RAD:
        return ""
    return (
        f"; R turns it by {math.degrees(angle):.1f}° against the raw camera: the image's frame must be that of the rectified one"
    )

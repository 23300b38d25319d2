# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which calibration belongs to an image: K, D, R and P of a CameraInfo and the name of the image's topic, read together.

K and D are of the raw image, P is of the rectified one, and image_proc passes all of them on beside both. Drivers also leave P
empty, copy K into it, or fill in R and P only. Where the readings differ, the topic's name decides, and whoever has a map can ask
which of them aligns. An empty P is usually one of three: K, or OpenCV's of K and D, without black edges or with all pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry.cameras import Camera

SAME_PX = 0.5
"""Two readings that put no pixel further apart are one."""
_TURNED_RAD = math.radians(0.2)
RAW, RECTIFIED, RECTIFIED_K = "K and D (raw images)", "P (rectified images)", "K without D (rectified images)"
FILLED, WHOLE = (f"OpenCV's P of K and D with alpha {alpha} (rectified images)" for alpha in (0, 1))


@dataclass(frozen=True, eq=False)
class Reading:
    """A camera, and in words which numbers of the CameraInfo it is."""

    camera: Camera
    taken: str


@dataclass(frozen=True, eq=False)
class Calibration(Reading):
    """The camera of an image, as it is read.

    Attributes:
        others: The other readings, where there are some that differ.
        note: What is not sure about it; empty where all is clear.
    """

    others: tuple[Reading, ...] = ()
    note: str = ""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """All of them, the one that is taken first."""
        return self, *self.others

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
    model = getattr(info, "distortion_model", "")
    has_k, has_p = len(k) == 9 and bool(k[0] and k[4]), len(p) == 12 and bool(p[0] and p[5])
    rectified, raw = [], None
    if has_p:
        rectified = [Reading(_camera(info, "", [*p[:3], *p[4:7], 0.0, 0.0, 1.0], []), RECTIFIED)]
    elif any(d) and has_k and not is_raw:
        rectified = [Reading(_camera(info, "", matrix, []), taken) for matrix, taken in _likely_p(info, model, k, d)]
    if has_k or not rectified:
        try:
            raw = Reading(_camera(info, model, k, d), RAW)
        except InputError:
            if not rectified or not is_rectified:  # the lens of raw images does not matter for rectified ones
                raise
    # What the name says comes first, but K and D before a P that is equal to them.
    named_first = is_rectified and (raw is None or not rectified or not _same(raw.camera, rectified[0].camera))
    raws = [] if raw is None else [raw]
    first, *others = _distinct([*rectified, *raws] if named_first else [*raws, *rectified])
    note = ""
    if raw is None and not is_rectified:
        note = "k of the CameraInfo is zero: images are taken for rectified ones, with p"
    elif others and is_rectified:
        empty = "" if has_p else "; P is empty, so this is a guess: publish it"
        note = f"{image_topic} by its name is rectified: {first.taken} of its calibration is used{empty}"
    elif others and not is_raw:
        note = f"nothing says whether {image_topic} is rectified: {RAW} of its calibration are used, not {others[0].taken}"
    if is_rectified or raw is None:
        note += _turned(r, first.taken)
    return Calibration(first.camera, first.taken, tuple(others), note)


def try_calibration(info, image_topic: str) -> Calibration | InputError:
    """The calibration, or the error it gives: a bad one spoils the frames that follow it, not the whole bag."""
    try:
        return read_calibration(info, image_topic)
    except InputError as error:
        return error


def _likely_p(info, model: str, k: list[float], d: list[float]) -> list[tuple[list[float], str]]:
    """Camera matrices [9] of images that were rectified without saying by which P, the likeliest first, and their names."""
    size, matrix, found = (info.width, info.height), np.reshape(k, (3, 3)), [(k, RECTIFIED_K)]
    for share, taken in ((0.0, FILLED), (1.0, WHOLE)):
        try:
            if model in ("equidistant", "fisheye"):
                fisheye = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify
                new = fisheye(matrix, np.array(d[:4]), size, np.eye(3), balance=share)
            else:
                new, _ = cv2.getOptimalNewCameraMatrix(matrix, np.array(d), size, share)
        except cv2.error:  # numbers that are no lens
            continue
        if np.isfinite(new).all() and new[0, 0] > 0 and new[1, 1] > 0:
            found.append((new.ravel().tolist(), taken))
    return found


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


def _distinct(readings: list[Reading]) -> list[Reading]:
    """Without those that an earlier one is equal to."""
    kept: list[Reading] = []
    for one in readings:
        if not any(_same(one.camera, other.camera) for other in kept):
            kept.append(one)
    return kept


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

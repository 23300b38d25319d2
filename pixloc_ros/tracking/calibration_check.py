# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether the camera's focal length fits what it sees, over many images; and what to use in its place where it does not.

Nothing else in a localizer notices: a focal length that is wrong by a per cent gives poses that fit their images well, are
consistent with one another, and are wrong by as many per cent of the depth.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..alignment.focal_length import FocalLength
from ..geometry import se3
from ..geometry.cameras import Camera
from .types import FrameAlignment, PreparedImage

Estimate = Callable[[PreparedImage, FrameAlignment], FocalLength | None]


@dataclass(frozen=True)
class CalibrationCheckOptions:
    """When images are looked at, and what counts as wrong.

    Attributes:
        every_s: No more than one image in so many seconds is looked at,
        first_images: except for these.
        min_moved_depths: An image counts only from elsewhere: moved by this share of the depth since the last,
        min_turned_rad: or turned by this.
        images: The newest that count.
        least_images: How many there must be.
        usual_scatter: By how many of its own standard deviations an image is usually off,
        usual_images: which counts like so many images.
        least_error: A smaller error than this share is left alone,
        sigmas: and one that is not so many standard errors from none.
        far_off: More than this in a single image speaks against its pose.
        most_error: A larger one is reported but not corrected.
        max_std: An image that tells the focal length less well does not count.
    """

    every_s: float = 1.0
    first_images: int = 8
    min_moved_depths: float = 0.01
    min_turned_rad: float = 0.03
    images: int = 30
    least_images: int = 2
    usual_scatter: float = 5.0
    usual_images: float = 4.0
    least_error: float = 0.003
    sigmas: float = 4.0
    far_off: float = 0.05
    most_error: float = 0.1
    max_std: float = 0.05


@dataclass(frozen=True)
class CalibrationReport:
    """What the images say of the focal length.

    Attributes:
        focal_ratio: The right focal length over the one given.
        std: Its standard error.
        images: How many told it.
        wrong: Whether the ratio differs from 1 surely and enough.
        corrected: Whether images are aligned with the right one meanwhile.
    """

    focal_ratio: float
    std: float
    images: int
    wrong: bool
    corrected: bool

    @property
    def log_correction(self) -> float:
        """Logarithm of what focal lengths are multiplied by."""
        return math.log(self.focal_ratio) if self.corrected else 0.0

    @property
    def message(self) -> str:
        """What to do about it; empty where nothing is wrong."""
        if not self.wrong:
            return ""
        error, side = abs(1 / self.focal_ratio - 1), "short" if self.focal_ratio > 1 else "long"
        meanwhile = "is corrected here meanwhile" if self.corrected else "is too much to be corrected here, so poses are wrong"
        return (
            f"the calibration's focal length is some {error:.1%} too {side} for the map and {meanwhile}: calibrate the "
            "camera with its distortion, or publish rectified images"
        )


class CalibrationCheck:
    """Collects what single images tell. estimate: of one aligned image, `FrameAligner.focal_length`."""

    def __init__(self, estimate: Estimate, options: CalibrationCheckOptions = CalibrationCheckOptions()) -> None:
        self._estimate, self.options = estimate, options
        self._camera: Camera | None = None
        self._forget()

    @property
    def report(self) -> CalibrationReport | None:
        """None until enough images were looked at."""
        return self._report

    def corrected(self, prepared: PreparedImage) -> PreparedImage:
        """The image with the focal length that fits; itself where its own does."""
        if self._camera is not None and not _same(self._camera, prepared.camera):
            self._forget()
        self._camera = prepared.camera
        self._applied = 0.0 if self._report is None else self._report.log_correction
        if not self._applied:
            return prepared
        params = prepared.camera.params.clone()
        params[:2] *= math.exp(self._applied)
        return replace(prepared, camera=replace(prepared.camera, params=params))

    @property
    def hopeless(self) -> bool:
        """Whether the focal length is surely too far off to be corrected: no pose is right then."""
        return self._report is not None and self._report.wrong and not self._report.corrected

    def contradicts(self, prepared: PreparedImage, alignment: FrameAlignment) -> bool:
        """Whether an image, as `corrected` gave it, says that its focal length is far off: for one that little but its own
        quality speaks for. What it says counts as that of any other."""
        found = self._look(prepared, alignment)
        scatter = self.options.sigmas * self.options.usual_scatter
        return self.hopeless or (found is not None and abs(found.log_ratio) > max(self.options.far_off, scatter * found.std))

    def add(self, stamp_ns: int, prepared: PreparedImage, alignment: FrameAlignment) -> float:
        """Look at an image, as `corrected` gave it, whose alignment is believed, if it is time: some milliseconds. Returns by how
        much the next image's focal length will be another (logarithm of the ratio)."""
        if not self._wanted(stamp_ns, alignment):
            return 0.0
        self._last = stamp_ns, alignment.map_from_camera
        if self._look(prepared, alignment) is None or self._report is None:
            return 0.0
        return self._report.log_correction - self._applied

    def _look(self, prepared: PreparedImage, alignment: FrameAlignment) -> FocalLength | None:
        found = self._estimate(prepared, alignment)
        if found is None or not found.std <= self.options.max_std:
            return None
        self._found.append((found.log_ratio + self._applied, found.std))
        self._report = self._combined()
        return found

    def _wanted(self, stamp_ns: int, alignment: FrameAlignment) -> bool:
        if self._last is None:
            return True
        options, (last_ns, last_pose) = self.options, self._last
        if len(self._found) >= options.first_images and 0 <= (stamp_ns - last_ns) * 1e-9 < options.every_s:
            return False
        moved, turned = (float(v) for v in se3.pose_difference(last_pose, alignment.map_from_camera))
        return moved >= options.min_moved_depths * alignment.depth or turned >= options.min_turned_rad

    def _combined(self) -> CalibrationReport | None:
        options = self.options
        if len(self._found) < options.least_images:
            return None
        values, stds = np.array(self._found).T
        weights = stds**-2.0
        mean = float(weights @ values / weights.sum())
        # An image's own noise is not all: the map's errors scatter what images say by several times as much. By how much, the
        # images tell once they are many; before, what is usual counts as so many more.
        scattered = float(weights @ (values - mean) ** 2) + options.usual_images * options.usual_scatter**2
        std = math.sqrt(max(scattered / (len(values) - 1 + options.usual_images), 1.0) / weights.sum())
        # What is corrected stays so until the error is clearly smaller: poses would jump to and fro.
        least = options.least_error * (0.5 if self._report is not None and self._report.wrong else 1.0)
        wrong = abs(mean) > max(least, options.sigmas * std)
        return CalibrationReport(math.exp(mean), std, len(values), wrong, wrong and abs(mean) < options.most_error)

    def _forget(self) -> None:
        self._found: deque[tuple[float, float]] = deque(maxlen=self.options.images)
        self._last: tuple[int, torch.Tensor] | None = None
        self._report: CalibrationReport | None = None
        self._applied = 0.0


def _same(one: Camera, other: Camera) -> bool:
    return one is other or (
        one.model == other.model
        and one.width == other.width
        and one.height == other.height
        and torch.equal(one.params, other.params)
    )

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which reading of a calibration fits the images: all are tried on the first images, and the one by which clearly more points
agree with the map is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..geometry.cameras import Camera
from ..io.calibration import RECTIFIED_K, Calibration
from .frame_aligner import FrameAligner
from .relocalization import Relocalizer
from .types import MotionPrior, PreparedFrame

_IMAGES = 6
"""So many images decide,"""
_CLEAR, _CLEAR_AT_ONCE = 0.02, 0.1
"""by a difference of the share of points that agree; from one image on by the second, unless the first reading is a guess."""
_FLOOR = 0.32
"""An image that no reading explains tells nothing."""
_TRIES, _RETRY = 10, 20
"""After so many such images, only one in so many is tried."""


class CalibrationChoice:
    """Takes the reading that fits. For one thread.

    Attributes:
        note: What was found, empty where the reading by name fits or nothing was asked.
    """

    def __init__(self, aligner: FrameAligner, pose_search: Relocalizer | None) -> None:
        self._aligner, self._pose_search = aligner, pose_search
        self._calibration: Calibration | None = None
        self._restart()

    def _restart(self) -> None:
        self._qualities: list[list[float]] = []
        self._images, self._taken, self._decided, self.note = 0, 0, False, ""

    def chosen(self, frame: PreparedFrame, base_from_camera: torch.Tensor, prior: MotionPrior | None) -> PreparedFrame:
        """The frame with the camera that fits. prior: where the base should be, None where nothing is known."""
        calibration = frame.calibration
        if calibration is None or not calibration.others:
            return frame
        if self._calibration is None or not _equal(self._calibration, calibration):
            self._calibration = calibration
            self._restart()
        frames = [frame, *(_with_camera(frame, other.camera) for other in calibration.others)]
        if not self._decided:
            self._weigh(frames, base_from_camera, prior)
        return frames[self._taken]

    def _weigh(self, frames: list[PreparedFrame], base_from_camera: torch.Tensor, prior: MotionPrior | None) -> None:
        self._images += 1
        if not self._qualities and self._images > _TRIES and self._images % _RETRY:
            return
        qualities = [self._quality(one, base_from_camera, prior) for one in frames]
        if max(qualities) < _FLOOR and self._pose_search is not None:
            qualities = [self._found(one, base_from_camera) for one in frames]
        if max(qualities) < _FLOOR:
            if not self._qualities and self._images >= _TRIES:
                first, *others = (one.taken for one in self._calibration.readings)
                self.note = f"neither {first} nor {' nor '.join(others)} fits: {first} kept"
            return
        self._qualities.append(qualities)
        gains = np.array(self._qualities) - np.array(self._qualities)[:, :1]
        best = int(gains.mean(0).argmax())
        gain, error = float(gains[:, best].mean()), gains[:, best].std() / len(gains) ** 0.5
        at_once = _CLEAR if self._calibration.taken == RECTIFIED_K else _CLEAR_AT_ONCE
        clear = gain > (max(_CLEAR, 2 * error) if len(gains) > 2 else at_once)
        self._taken = best if clear else 0
        self._decided = len(gains) >= _IMAGES
        self.note = self._said(gain) if self._taken else ""

    def _said(self, more: float) -> str:
        taken, first = self._calibration.readings[self._taken].taken, self._calibration.taken
        return (
            f"the images fit {taken} of the CameraInfo better than {first} ({more:+.0%} of the points agree): that is taken; "
            "publish the calibration that belongs to the images"
        )

    def _quality(self, frame: PreparedFrame, base_from_camera: torch.Tensor, prior: MotionPrior | None) -> float:
        if prior is None:
            return 0.0
        found = self._aligner.localize_prepared(frame.prepared, prior.map_from_base @ base_from_camera)
        return found.inlier_fraction * found.success

    def _found(self, frame: PreparedFrame, base_from_camera: torch.Tensor) -> float:
        found = self._pose_search.search(frame, base_from_camera, self._images - 1, finalists=1)
        return max((one.inlier_fraction * one.success for one in found), default=0.0)


def _with_camera(frame: PreparedFrame, camera: Camera) -> PreparedFrame:
    """The frame with another camera of the same images; features do not depend on it."""
    width, height = frame.prepared.camera.width, frame.prepared.camera.height
    scaled = camera.scaled(width / camera.width, height / camera.height, width, height)
    return replace(frame, camera=camera, prepared=replace(frame.prepared, camera=scaled))


def _equal(one: Calibration, other: Calibration) -> bool:
    if one is other:
        return True
    pairs = list(zip(one.readings, other.readings))
    return len(one.others) == len(other.others) and all(
        a.camera.model == b.camera.model and torch.equal(a.camera.params, b.camera.params) for a, b in pairs
    )

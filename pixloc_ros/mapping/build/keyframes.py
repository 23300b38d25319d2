# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which images with poses become keyframes: one for every stretch over which the picture stays much the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ...errors import InputError
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.calibration import Calibration
from ...io.files import find_file
from ...io.images import load_grey

_SMALL_SIDE_PX = 320
_CORNERS, _FEWEST_CORNERS = 300, 20
_CORNER_QUALITY, _CORNER_DISTANCE_PX = 0.01, 6.0
_FLOW = {"winSize": (15, 15), "maxLevel": 3}
_FLOW_RETURN_PX = 1.0


@dataclass(frozen=True, eq=False)
class PosedFrame:
    """One image with its pose.

    Attributes:
        stamp_ns: Time of acquisition.
        image: uint8 [H, W] or [H, W, 3] RGB, of the camera's size.
        camera: Its calibration.
        map_from_camera: float64 [4, 4].
        depth: float32 [H, W] metres along the optical axis, 0 where unknown, as this camera saw it at this stamp; None without a
            depth camera.
        calibration: That `camera` is from, where there may be another reading of it.
        name: Of the image; its stamp unless given.
    """

    stamp_ns: int
    image: np.ndarray
    camera: Camera
    map_from_camera: torch.Tensor
    depth: np.ndarray | None = None
    calibration: Calibration | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class KeyframeFiles:
    """Images of keyframes, as files.

    Attributes:
        paths: [K].
        cameras: [K].
        map_from_camera: float64 [K, 4, 4].
        masks: An image file, or a folder of those named like the keyframes, white where points may be; None for everywhere.
    """

    paths: list[Path]
    cameras: list[Camera]
    map_from_camera: torch.Tensor
    masks: Path | None = None

    def __post_init__(self) -> None:
        if self.masks is not None and not Path(self.masks).exists():
            raise InputError(f"no mask {self.masks}: give an image, or a folder of images named like the keyframes")

    def grey(self, k: int) -> np.ndarray:
        """uint8 [H, W]. Raises `InputError` as `load_grey`."""
        return load_grey(self.paths[k], self.cameras[k])

    def mask(self, k: int) -> np.ndarray | None:
        """bool [H, W], where points may be; None where there is no mask for this image. Raises `InputError`: it is unusable."""
        if self.masks is None:
            return None
        path, camera = find_file(self.masks, self.paths[k].name) if self.masks.is_dir() else self.masks, self.cameras[k]
        if not path.is_file():
            return None
        mask = load_grey(path)
        if mask.shape != (camera.height, camera.width):
            size = f"{mask.shape[1]}x{mask.shape[0]} but the images are {camera.width}x{camera.height}"
            raise InputError(f"the mask {path} is {size}: make it of their size")
        return mask > 127


@dataclass(frozen=True)
class KeyframeOptions:
    """Which frames one keyframe stands for: those that, since the first of them, are within these limits.

    Attributes:
        shift: By how much the picture has shifted at most, as a share of its width (median of tracked corners).
        overlap: Least share of the corners that are still in sight.
        turn_rad: By how much the camera has turned at most.
        still: Metres and radians. A camera that has moved by less stands still, whatever moves before it.
    """

    shift: float = 0.03
    overlap: float = 0.6
    turn_rad: float = float(np.radians(10.0))
    still: tuple[float, float] = (0.01, float(np.radians(0.2)))

    def __post_init__(self) -> None:
        if not (0 < self.shift < 1 and 0 < self.overlap < 1 and self.turn_rad > 0 and min(self.still) >= 0):
            raise InputError("keyframes: shift and overlap must lie between 0 and 1, the turn must be above 0")


class KeyframeSelector:
    """Takes frames in the order of time and gives back those to keep: the sharpest of each stretch.

    What is chosen in a stretch depends on its frames alone, so work can begin again at any stretch's first frame.

    Attributes:
        blank: Frames without corners, which cannot become keyframes.
    """

    def __init__(self, options: KeyframeOptions = KeyframeOptions(), blank: int = 0) -> None:
        self._options = options
        self._stretch: _Stretch | None = None
        self.blank = blank

    def feed(self, frame: PosedFrame) -> PosedFrame | None:
        """The keyframe of the stretch that this frame puts an end to, if it does."""
        grey = _small_grey(frame.image)
        if self._stretch is not None and self._stretch.covers(frame, grey, self._options):
            return None
        done = self.finish()
        corners = cv2.goodFeaturesToTrack(grey, _CORNERS, _CORNER_QUALITY, _CORNER_DISTANCE_PX)
        if corners is None or len(corners) < _FEWEST_CORNERS:
            self.blank += 1
        else:
            self._stretch = _Stretch(frame, grey, corners)
        return done

    def finish(self) -> PosedFrame | None:
        """The keyframe of the stretch under way, when no frame follows."""
        stretch, self._stretch = self._stretch, None
        return stretch.sharpest if stretch is not None else None


class _Stretch:
    def __init__(self, frame: PosedFrame, grey: np.ndarray, corners: np.ndarray) -> None:
        self.sharpest, self._sharpness = frame, _sharpness(grey)
        self._first_pose, self._previous = frame.map_from_camera, grey
        self._start = self._corners = corners
        self._count = len(corners)

    def covers(self, frame: PosedFrame, grey: np.ndarray, options: KeyframeOptions) -> bool:
        """Whether a frame belongs to the stretch; it is taken in if so."""
        distance, angle = (float(v) for v in se3.pose_difference(self._first_pose, frame.map_from_camera))
        if grey.shape != self._previous.shape or angle > options.turn_rad:
            return False
        if distance >= options.still[0] or angle >= options.still[1]:
            self._track(grey)
            if len(self._corners) < max(options.overlap * self._count, 1):
                return False
            moved = np.linalg.norm((self._corners - self._start)[:, 0], axis=1)
            if np.median(moved) > options.shift * grey.shape[1]:
                return False
        sharpness = _sharpness(grey)
        if sharpness > self._sharpness:
            self.sharpest, self._sharpness = frame, sharpness
        return True

    def _track(self, grey: np.ndarray) -> None:
        """Follow the corners into the next frame and back; those that do not return are lost."""
        if len(self._corners):
            there, found, _ = cv2.calcOpticalFlowPyrLK(self._previous, grey, self._corners, None, **_FLOW)
            back, returned, _ = cv2.calcOpticalFlowPyrLK(grey, self._previous, there, None, **_FLOW)
            size = np.array(grey.shape[::-1])
            kept = (found & returned)[:, 0].astype(bool)
            kept &= np.linalg.norm((back - self._corners)[:, 0], axis=1) < _FLOW_RETURN_PX
            kept &= ((there[:, 0] >= 0) & (there[:, 0] < size)).all(1)
            self._start, self._corners = self._start[kept], there[kept]
        self._previous = grey


def _small_grey(image: np.ndarray) -> np.ndarray:
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = _SMALL_SIDE_PX / max(grey.shape)
    return cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey


def _sharpness(grey: np.ndarray) -> float:
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())

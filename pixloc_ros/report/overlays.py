# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The map's points drawn where a pose puts them in an image."""

from collections.abc import Mapping

import cv2
import numpy as np
import torch

from ..alignment.types import AlignmentResult
from ..geometry.cameras import Camera
from ..io.frames import CameraFrame
from ..tracking.frame_aligner import FrameAligner

AGREES, DISAGREES = (86, 180, 233), (213, 94, 0)
"""RGB of points whose features agree with the image's, and of the others: Okabe and Ito's sky blue and vermilion, which
everybody can tell apart, by brightness too."""
_WIDTH = 960
_SUBPIXEL_BITS = 4


def draw_overlay(localizer: FrameAligner, frame: CameraFrame, map_from_camera: torch.Tensor) -> np.ndarray | None:
    """The image with the map's points at their reprojections → uint8 [H, W, 3] RGB, 960 pixels wide.

    map_from_camera: float64 [4, 4], the pose to show. The image is aligned once more from there, to know which points agree, with
    the reading of its calibration by which most of them do; None where that fails.
    """
    cameras = [frame.camera] if frame.calibration is None else [one.camera for one in frame.calibration.readings]
    prepared = [localizer.prepare(frame.image, camera) for camera in cameras]
    aligned = [localizer.localize_prepared(one, map_from_camera) for one in prepared]
    best = max(aligned, key=lambda one: one.inlier_fraction * one.success)
    return draw_alignment(frame.image, prepared[0].camera, best.details) if best.success else None


def draw_alignment(image: np.ndarray, working: Camera, result: AlignmentResult, rows: slice = slice(None)) -> np.ndarray:
    """What an alignment says of the image it used → uint8 [H, W, 3] RGB, 960 pixels wide.

    Args:
        image: uint8 [H, W] or [H, W, 3] RGB.
        working: The camera of the size at which it was aligned.
        result: The alignment.
        rows: Of its points, those of this image: an alignment may be of several cameras.
    """
    scale = _WIDTH / image.shape[1]
    canvas = _canvas(image, scale)
    # Pixel centres are at whole numbers on every scale.
    pixels = (result.pixels[rows].numpy() + 0.5) * (_WIDTH / working.width) - 0.5
    visible, agrees = result.visible[rows].numpy(), result.inliers[rows].numpy()
    for wanted, colour in ((visible & ~agrees, DISAGREES), (visible & agrees, AGREES)):
        for x, y in np.round(pixels[wanted] * 2**_SUBPIXEL_BITS).astype(int).tolist():
            cv2.circle(canvas, (x, y), 4 << _SUBPIXEL_BITS, (15, 23, 42), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
            cv2.circle(canvas, (x, y), 5 << (_SUBPIXEL_BITS - 1), colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def side_by_side(images: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray | None]) -> np.ndarray:
    """The images of several cameras, two in a row and named → uint8 [H, W, 3] RGB, 960 pixels wide.

    Args:
        images: As the cameras took them, by name.
        drawn: What is shown instead, by name; None: the image, with a word that it was not aligned.
    """
    tiles = []
    for name, image in images.items():
        tile, text = drawn[name], name
        if tile is None:
            tile, text = _canvas(image, _WIDTH / image.shape[1]), f"{name}: not aligned"
        half = (_WIDTH // 2, round(tile.shape[0] / 2))
        tile = cv2.resize(tile, half, interpolation=cv2.INTER_AREA)
        for colour, thickness in (((15, 23, 42), 6), ((255, 255, 255), 2)):
            cv2.putText(tile, text, (10, 32), cv2.FONT_HERSHEY_SIMPLEX, 1.0, colour, thickness, cv2.LINE_AA)
        tiles.append(tile)
    rows = []
    for pair in (tiles[k : k + 2] for k in range(0, len(tiles), 2)):
        row = np.full((max(tile.shape[0] for tile in pair), _WIDTH, 3), 255, np.uint8)
        for k, tile in enumerate(pair):
            row[: tile.shape[0], k * _WIDTH // 2 : (k + 1) * _WIDTH // 2] = tile
        rows.append(row)
    return np.concatenate(rows)


def _canvas(image: np.ndarray, scale: float) -> np.ndarray:
    rgb = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    size = (_WIDTH, round(image.shape[0] * scale))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)

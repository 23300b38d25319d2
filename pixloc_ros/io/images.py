# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Reading images and bringing them, with their camera, to the size the network works at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..geometry.cameras import Camera
from .image_format import decode_file, exif_orientation

SMALLEST_SIDE_PX = 64
"""Smaller images hold too few cells of the robust levels to say anything, also when they are enlarged."""

_HEAD_BYTES = 2**16
_ORIENTATIONS = {3: "by 180°", 6: "by 90° to the right", 8: "by 90° to the left"}


def check_image_size(width: int, height: int) -> None:
    """Raise InputError where an image as it came, before any resizing, is too small for the networks."""
    if min(width, height) < SMALLEST_SIDE_PX:
        raise InputError(f"the image is {width}x{height}: the network needs at least {SMALLEST_SIDE_PX} pixels along each side")


def load_image(path: Path) -> np.ndarray:
    """An image file as uint8 [H, W] (grey file) or [H, W, 3] RGB, as a message with the same content is read (`decode_file`).

    Orientation tags are not obeyed. Raises InputError where it is missing or not an image.
    """
    if not Path(path).is_file():
        raise InputError(f"no image {path}: check the images folder")
    try:
        image = decode_file(np.fromfile(path, np.uint8))
    except (InputError, OSError, cv2.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if image is None:
        raise InputError(f"{path} is not a readable image: replace the file or take it off the list")
    return image


def exif_remark(paths: Mapping[str, Path]) -> str:
    """What to know of image files, given by name, that their EXIF tags call turned or mirrored; empty where none is."""
    turned = {}
    for name, path in paths.items():
        try:
            with Path(path).open("rb") as file:
                orientation = exif_orientation(file.read(_HEAD_BYTES))
        except OSError:  # said by who reads all of it
            continue
        if orientation != 1:
            turned[name] = _ORIENTATIONS.get(orientation, "to be mirrored")
    if not turned:
        return ""
    name, how = next(iter(turned.items()))
    return (
        f"{len(turned)} of {len(paths)} images have an EXIF tag that says how to turn them ({name}: {how}), which is not obeyed: "
        "poses and calibration must be those of the pixels as they are stored; where they are not, store the images upright with "
        "'mogrify -auto-orient'"
    )


def to_grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of an image uint8 [H, W] or RGB [H, W, 3]."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def load_grey(path: Path, camera: Camera | None = None) -> np.ndarray:
    """An image file as uint8 [H, W]. Raises `InputError` where it cannot be read or has another size than its camera."""
    image = load_image(path)
    if camera is not None and image.shape[:2] != (camera.height, camera.width):
        size = f"{image.shape[1]}x{image.shape[0]} but the camera is {camera.width}x{camera.height}"
        raise InputError(f"{path} is {size}: give the camera of these images")
    return to_grey(image)


def fit_to_working_size(
    image: np.ndarray, camera: Camera, working_side: int, focal_px: float | None = None
) -> tuple[np.ndarray, Camera]:
    """Resize an image and its camera for the network.

    The longer side is shrunk to the working side; smaller images stay as they are. With a focal length, the image is brought to
    that instead (enlarged twice at most, never above the working side), so that the same thing has the same size in pixels in
    the map and in the query.

    Args:
        image: uint8 [H, W(, 3)], of the camera's size.
        camera: Its calibration.
        working_side: Pixels.
        focal_px: The mean focal length of the map's images.

    Raises:
        InputError: The image has another size than its camera, or fewer than 64 pixels along a side.
    """
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        swapped = (height, width) == (camera.width, camera.height)
        turned = ", turned by 90° (orientation tags of files are not obeyed)" if swapped else ""
        raise InputError(
            f"the image is {width}x{height} but its camera says {camera.width}x{camera.height}{turned}: "
            "give the calibration of this resolution"
        )
    scale = working_side / max(width, height)
    if focal_px is None:
        scale = min(scale, 1.0)
    else:
        focal = float(camera.params[..., :2].mean())
        scale = min(scale, focal_px / focal, 2.0)
    check_image_size(width, height)
    size = (round(width * scale), round(height * scale))
    if size == (width, height):
        return image, camera
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return (cv2.resize(image, size, interpolation=interpolation), camera.scaled(size[0] / width, size[1] / height, *size))

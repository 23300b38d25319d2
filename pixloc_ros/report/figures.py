# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the pictures have in common: colours that the colour-blind tell apart, images with pixel axes, files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .plots import STYLE, plt

__all__ = [
    "ANSWER",
    "DISTANCES",
    "PRIOR",
    "SHARES",
    "STYLE",
    "TRUTH",
    "check_suffix",
    "encode",
    "level_colours",
    "level_name",
    "plt",
    "show_image",
]

PRIOR, ANSWER, TRUTH = "#E69F00", "#0072B2", "#000000"
"""Okabe and Ito's orange and blue, and black: where an alignment starts, where it ends, where it should."""
DISTANCES, SHARES = "viridis_r", "cividis"
"""Colour maps of feature distances and of shares from 0 to 1; both rise evenly in brightness."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_DPI = 130


def level_name(stride: float) -> str:
    """A level for people."""
    return f"stride {stride:g} px"


def level_colours(count: int) -> list[tuple[float, ...]]:
    """A colour per level, coarse to fine, dark to bright; any number of levels."""
    return [tuple(colour) for colour in plt.get_cmap("plasma")(np.linspace(0.0, 0.82, max(count, 1)))]


def show_image(axes: plt.Axes, image: np.ndarray, width: int, height: int, dimmed: float = 0.0) -> None:
    """An image, uint8 [H, W] or [H, W, 3], with the pixel axes of a size that need not be its own. dimmed: 0 (as it is) to 1
    (white), for things drawn on top."""
    shown = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
    if dimmed:
        grey = shown.mean(-1, keepdims=True).repeat(3, -1)
        shown = (grey * (1 - dimmed) + 255 * dimmed).astype(np.uint8)
    axes.imshow(shown, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.grid(False)
    axes.tick_params(labelsize=7)


def encode(figure: plt.Figure, suffix: str, dpi: float = _DPI) -> bytes:
    """The figure as a file of that kind (".png", ".jpg", ".webp"); the figure is closed."""
    buffer = io.BytesIO()
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(suffix, suffix[1:])
    options = {} if kind == "png" else {"pil_kwargs": {"quality": 82}}
    figure.savefig(buffer, format=kind, dpi=dpi, **options)
    plt.close(figure)
    return buffer.getvalue()


def check_suffix(path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise InputError where a file of that name cannot be written: before the work, not after."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} must end in {' or '.join(suffixes)}: the ending says what kind of file is written")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the picture's file")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What all plots and pictures have in common: style, colours that the colour-blind tell apart (Okabe and Ito), files."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from ..errors import InputError

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

BLUE, VERMILION, GREEN, PINK, SKY, ORANGE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"
INK, GREY, DARK_GREY, LIGHT_GREY = "#1f2937", "#6b7280", "#374151", "#c3c9d2"
PRIOR, ANSWER, TRUTH = ORANGE, BLUE, BLACK
"""Where an alignment starts, where it ends, where it should."""
RUN_COLOURS = (BLUE, VERMILION, GREEN, PINK, SKY, "#7a5c00", "#5b2a86")
"""Of runs side by side; further ones take them again with another line."""
RUN_LINES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
SERIES = (
    (BLUE, "o", "-"),
    (VERMILION, "s", (0, (4, 2))),
    (GREEN, "^", (0, (1, 1))),
    (PINK, "D", (0, (5, 1, 1, 1))),
    (ORANGE, "v", "-"),
    (SKY, "P", (0, (4, 2))),
    (BLACK, "X", (0, (1, 1))),
)
"""Colour, marker and dashes of curves: the latter two tell them apart without any colour."""
STATE_COLOURS = {"INITIALIZING": "#a3a9b3", "TRACKING": GREEN, "DEGRADED": "#F0E442", "RELOCALIZING": SKY, "LOST": VERMILION}
DISTANCES, SHARES = "viridis_r", "cividis"
"""Colour maps of feature distances and of shares from 0 to 1; both rise evenly in brightness."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": DARK_GREY,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.axisbelow": True,
}
PLOT_DPI, PICTURE_DPI = 144, 130
styled = plt.rc_context(STYLE)
"""Decorator: a function draws in the common style."""


def run_style(index: int) -> dict[str, object]:
    """Colour and line of the index-th run."""
    return {"color": RUN_COLOURS[index % len(RUN_COLOURS)], "linestyle": RUN_LINES[index // len(RUN_COLOURS) % len(RUN_LINES)]}


def rgb(colour: str) -> tuple[int, int, int]:
    """A colour written #rrggbb, 0 to 255 each."""
    return tuple(bytes.fromhex(colour[1:]))


def level_name(stride: float) -> str:
    """A level for people."""
    return f"stride {stride:g} px"


def level_colours(count: int) -> list[tuple[float, ...]]:
    """A colour per level, coarse to fine, dark to bright; any number of levels."""
    return [tuple(colour) for colour in plt.get_cmap("plasma")(np.linspace(0.0, 0.82, max(count, 1)))]


def note(axes: plt.Axes, text: str, at: tuple[float, float], offset: tuple[float, float] = (0, 0), **look) -> None:
    """Small text next to a place, moved by so many points. look: as of `Axes.annotate`."""
    axes.annotate(text, at, **{"xytext": offset, "textcoords": "offset points", "fontsize": 9, **look})


def show_image(axes: plt.Axes, image: np.ndarray, width: int, height: int, dimmed: float = 0.0) -> None:
    """Show an image with the pixel axes of a size that need not be its own.

    Args:
        axes: Where to.
        image: uint8 [H, W] or [H, W, 3].
        width: Of the pixel axes.
        height: Of the pixel axes.
        dimmed: 0 (as it is) to 1 (white), for things drawn on top.
    """
    shown = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
    if dimmed:
        grey = shown.mean(-1, keepdims=True).repeat(3, -1)
        shown = (grey * (1 - dimmed) + 255 * dimmed).astype(np.uint8)
    axes.imshow(shown, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.grid(False)
    axes.tick_params(labelsize=7)


def encode(figure: plt.Figure, suffix: str = ".png", dpi: float = PICTURE_DPI) -> bytes:
    """The figure as a file of that kind (".png", ".jpg", ".webp"); the figure is closed."""
    buffer = io.BytesIO()
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(suffix, suffix[1:])
    options = {"compress_level": 4} if kind == "png" else {"quality": 82}
    figure.savefig(buffer, format=kind, dpi=dpi, pil_kwargs=options)
    plt.close(figure)
    return buffer.getvalue()


def png(figure: plt.Figure) -> bytes:
    """The figure as a PNG file of a page; the figure is closed."""
    return encode(figure, dpi=PLOT_DPI)


def check_suffix(path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise InputError where a file of that name cannot be written: before the work, not after."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} must end in {' or '.join(suffixes)}: the ending says what kind of file is written")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the picture's file")

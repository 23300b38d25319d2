# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What all plots have in common: style, colours that the colour-blind tell apart (Okabe and Ito), PNG files."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

TRUTH, ESTIMATE, ODOMETRY, POINTS, BAD = "#1f2937", "#0072B2", "#E69F00", "#c3c9d2", "#D55E00"
RUN_COLOURS = (ESTIMATE, "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7a5c00", "#5b2a86")
"""Of runs side by side; further ones take them again with another line."""
RUN_LINES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
STATE_COLOURS = {
    "INITIALIZING": "#a3a9b3",
    "TRACKING": "#009E73",
    "DEGRADED": "#F0E442",
    "RELOCALIZING": "#56B4E9",
    "LOST": "#D55E00",
}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
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
_DPI = 144


def run_style(index: int) -> dict[str, object]:
    """Colour and line of the index-th run."""
    return {"color": RUN_COLOURS[index % len(RUN_COLOURS)], "linestyle": RUN_LINES[index // len(RUN_COLOURS) % len(RUN_LINES)]}


def png(figure: plt.Figure) -> bytes:
    """The figure as a PNG file; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, pil_kwargs={"compress_level": 4})
    plt.close(figure)
    return buffer.getvalue()

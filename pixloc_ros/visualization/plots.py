# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Plots of a drive as PNG images."""
from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np

from ..evaluation.trajectory import Trajectory

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

TRUTH, ESTIMATE, ODOMETRY, POINTS, BAD = "#111827", "#2563eb", "#ea7317", "#b6bec9", "#dc2626"
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9ca3af", "axes.labelcolor": "#374151",
    "axes.grid": True, "grid.color": "#e5e7eb", "grid.linewidth": 0.8, "xtick.color": "#4b5563", "ytick.color": "#4b5563",
    "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white", "axes.axisbelow": True,
}
_DPI = 144
_MOST_POINTS = 40_000


def plot_paths(points: np.ndarray, keyframes: np.ndarray, truth: Trajectory, estimate: Trajectory,
               odometry: Trajectory) -> bytes:
    """The drive from above (map x to the right, y up). points [P, 3], keyframes [K, 3]: of the map. Trajectories may be empty."""
    tracks = [_positions(t) for t in (truth, estimate) if len(t)]
    extent = np.concatenate(tracks + [_positions(odometry)]) if tracks or len(odometry) else keyframes
    low, high = extent[:, :2].min(0), extent[:, :2].max(0)
    margin = max(0.12 * float((high - low).max()), 0.5)
    width, height = high - low + 2 * margin
    # A street is long and thin: let the page's width decide, within reason.
    size = (9.0, float(np.clip(9.0 * height / width, 3.2, 6.5)))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        shown = points[:: max(1, len(points) // _MOST_POINTS)]
        axes.scatter(shown[:, 0], shown[:, 1], s=1.2, c=POINTS, alpha=0.8, linewidths=0, label="map points")
        axes.scatter(keyframes[:, 0], keyframes[:, 1], s=14, marker="x", c="#6b7280", linewidths=0.8, label="map images")
        for track, colour, style, weight, label in ((odometry, ODOMETRY, (0, (4, 2)), 1.6, "odometry alone"),
                                                    (truth, TRUTH, "-", 3.4, "truth")):
            if len(track):
                xyz = _positions(track)
                axes.plot(xyz[:, 0], xyz[:, 1], color=colour, linestyle=style, linewidth=weight, label=label,
                          alpha=0.9 if label != "truth" else 0.45)
        if len(estimate):
            xyz = _positions(estimate)
            axes.plot(xyz[:, 0], xyz[:, 1], color=ESTIMATE, linewidth=1.2, marker="o", markersize=2.2, label="pixloc")
            axes.plot(*xyz[0, :2], marker="o", color="white", markeredgecolor=ESTIMATE, markersize=8, markeredgewidth=1.6,
                      label="start", linestyle="none")
        axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin), xlabel="x (m)",
                 ylabel="y (m)", aspect="equal", title="From above")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.5)
        return png(figure)


def plot_errors(seconds: np.ndarray, translation_m: np.ndarray, rotation_deg: np.ndarray, odometry_m: np.ndarray,
                odometry_deg: np.ndarray, gaps: Sequence[tuple[float, float]]) -> bytes:
    """Errors over time, on logarithmic scales. All arrays float64 [N], NaN where unknown. gaps: (from, to) without a pose."""
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(2, 1, figsize=(9.0, 4.6), sharex=True, layout="constrained")
        for axes, ours, alone, unit, title in ((rows[0], translation_m, odometry_m, "m", "Translation error"),
                                               (rows[1], rotation_deg, odometry_deg, "deg", "Rotation error")):
            for begin, end in gaps:
                axes.axvspan(begin, end, color=BAD, alpha=0.12, linewidth=0)
            if np.isfinite(alone).any():
                axes.plot(seconds, np.maximum(alone, 1e-4), color=ODOMETRY, linewidth=1.4, linestyle=(0, (4, 2)),
                          label="odometry alone")
            axes.plot(seconds, np.maximum(ours, 1e-4), color=ESTIMATE, linewidth=1.0, marker="o", markersize=2.4,
                      label="pixloc")
            axes.set(yscale="log", ylabel=unit, title=title)
        rows[1].set_xlabel("seconds")
        rows[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
        return png(figure)


def plot_times(milliseconds: np.ndarray, label: str, limit_ms: float | None = None) -> bytes:
    """Histogram of times [N] with its percentiles. limit_ms: the time between two images."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9.0, 2.6), layout="constrained")
        p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99))
        end = max(float(np.percentile(milliseconds, 99.5)), p50 * 1.5)
        axes.hist(np.minimum(milliseconds, end), bins=60, range=(0, end), color=ESTIMATE, alpha=0.8)
        for value, name in ((p50, "p50"), (p95, "p95"), (p99, "p99")):
            axes.axvline(value, color=TRUTH, linewidth=1)
            axes.annotate(f"{name} {value:.0f}", (value, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -10),
                          textcoords="offset points", fontsize=8.5)
        if limit_ms is not None and limit_ms < end:
            axes.axvline(limit_ms, color=BAD, linewidth=1, linestyle=":")
            axes.annotate("next image", (limit_ms, 0.55), xycoords=("data", "axes fraction"), xytext=(3, 0),
                          textcoords="offset points", fontsize=8.5, color=BAD)
        axes.set(xlabel="ms", ylabel="images", title=label, xlim=(0, end))
        return png(figure)


def _positions(track: Trajectory) -> np.ndarray:
    return track.map_from_body[:, :3, 3].numpy()


def png(figure: plt.Figure) -> bytes:
    """The figure as a PNG file; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    plt.close(figure)
    return buffer.getvalue()

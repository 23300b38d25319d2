# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The robustness suite as plots and a page: accuracy against severity, a small plot per kind, a curve per method."""

from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

from .. import __version__
from ..evaluation.degradation import KINDS
from ..evaluation.suite import HOLDS, HOW_TO_READ_CELLS, ODOMETRY, OURS, RIGHT, Results, cell_rows, how_to_read, summary_rows
from ..evaluation.tables import format_number
from .page import Card, Page, Picture
from .style import RUN_COLOURS, plt, png, styled

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_ALONE = {"color": "#4b5563", "linestyle": (0, (1.2, 1.6)), "linewidth": 1.6, "zorder": 1}
_FIGURES = (
    ("Right poses (%)", lambda cell: 100 * cell["recall"][RIGHT]),
    ("Median error (cm)", lambda cell: _cm(cell["translation_error_median_m"])),
    ("Tracked images (%)", lambda cell: None if cell["method"] == ODOMETRY else 100 * cell["tracked_fraction"]),
    (
        "False tracks (%)",
        lambda cell: None if cell["method"] == ODOMETRY else 100 * cell["false_tracked_frames"] / max(cell["frames"], 1),
    ),
)
MEANING = {
    "blur": "A straight streak of that many pixels, in a new direction in each image.",
    "dark": "Grey values halve with each stop, shadows lose more, and noise grows: a night that exposure cannot make up for.",
    "noise": "Standard deviation of Gaussian noise, of 255 grey levels.",
    "compression": "JPEG; 98 is quality 2.",
    "occlusion": "Textured blocks in new places in each image.",
    "drops": "Images that never come, at random. Only those that come are scored.",
    "odometry": "A random walk on top of the recorded odometry, in x, y and yaw: so many cm after a metre, so many hundredths of "
    "a radian after a radian of turning.",
    "calibration": "The camera's focal length is given as too long; the map is right.",
    "time": "The images' stamps are too late. Poses are judged at these stamps, so the way driven meanwhile counts.",
}


@styled
def plot_overview(results: Results, columns: int = 3) -> bytes:
    """PNG: the share of right poses against severity, a plot per kind measured."""
    kinds = results.measured_kinds
    columns = min(columns, len(kinds))
    rows = -(-len(kinds) // columns)
    size = (3.25 * columns + 0.4, 2.15 * rows + 0.55)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axes, kind in zip(grid.flat, kinds):
        _draw(axes, results, kind, _FIGURES[0][1])
        axes.set(title=KINDS[kind].title, xlabel=KINDS[kind].unit, ylim=(-3, 104))
        axes.axhline(100 * HOLDS, color="#9ca3af", linewidth=0.8, linestyle=(0, (6, 3)), zorder=0)
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    for row in grid:
        row[0].set_ylabel(_FIGURES[0][0])
    _legend(figure, results, columns)
    return png(figure)


@styled
@plt.rc_context({"axes.titlesize": 10})
def plot_kind(results: Results, kind: str) -> bytes:
    """PNG of one kind: right poses, median error, tracked images, false tracks."""
    figure, grid = plt.subplots(2, 2, figsize=(6.4, 4.6), sharex=True, layout="constrained")
    for axes, (title, value) in zip(grid.flat, _FIGURES):
        values = _draw(axes, results, kind, value)
        axes.set_title(title)
        if "%" not in title:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda v, _: format_number(float(v), 2))
            axes.yaxis.set_minor_formatter(lambda v, _: "")
        elif title.startswith("False"):
            axes.set_ylim(-0.03 * max(5.0, *values, 0), max(5.0, 1.1 * max(values, default=0)))
        else:
            axes.set_ylim(-3, 104)
    for axes in grid[1]:
        axes.set_xlabel(KINDS[kind].unit)
    _legend(figure, results, 4)
    return png(figure)


def _draw(axes: plt.Axes, results: Results, kind: str, value) -> list[float]:
    """Curves of all methods → the values drawn. Severities stand at even distances, since they grow in uneven steps."""
    curves = {method: results.curve(method, kind) for method in results.methods}
    severities = sorted({cell["severity"] for curve in curves.values() for cell in curve})
    drawn = []
    for number, (method, curve) in enumerate(curves.items()):
        values = [value(cell) for cell in curve]
        y = np.array([np.nan if v is None else v for v in values], float)
        if np.isfinite(y).any():
            axes.plot([severities.index(cell["severity"]) for cell in curve], y, clip_on=False, **_look(method, number))
            drawn += y[np.isfinite(y)].tolist()
    axes.set_xticks(range(len(severities)), [f"{severity:g}" for severity in severities])
    return drawn


def _look(method: str, number: int) -> dict[str, object]:
    if method == ODOMETRY:
        return _ALONE
    look = {"color": RUN_COLOURS[number % len(RUN_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 4.5}
    ours = method == OURS
    return {**look, "linewidth": 2.0 if ours else 1.5, "linestyle": "-" if ours else (0, (4, 1.5)), "zorder": 3 if ours else 2}


def _legend(figure: plt.Figure, results: Results, columns: int) -> None:
    lines = [Line2D([], [], label=method, **_look(method, number)) for number, method in enumerate(results.methods)]
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), max(2, columns + 1)))


def _cm(metres: float | None) -> float | None:
    return None if metres is None else max(100 * metres, 1e-3)


def suite_page(results: Results, notes: Sequence[str] = ()) -> str:
    """The page: what holds up to where, a plot per kind, every cell."""
    about = results.about
    page = Page(
        f"Robustness of {about['name']}",
        f"{about['bag']}, map {about['map']}: the same drive made worse in "
        f"{len(results.measured_kinds)} ways, {len(results.cells)} runs.",
        f"pixloc {__version__}, seed {about['seed']}",
    )
    page.cards(_cards(results))
    page.notes(notes)
    kinds = results.measured_kinds
    if kinds:
        page.heading("What holds up to where")
        page.plot(
            plot_overview(results),
            plot_overview(results, 1),
            "right poses against severity",
            f"{how_to_read(results.scored)} Dashed: {100 * HOLDS:.0f} %. The leftmost point of each curve is the drive "
            "as recorded.",
        )
        page.table(summary_rows(results))
        page.heading("Kind by kind")
        page.pictures([Picture(plot_kind(results, kind), KINDS[kind].title, MEANING[kind]) for kind in kinds])
    page.heading("All figures")
    page.table(cell_rows(results))
    page.text(HOW_TO_READ_CELLS)
    return page.html()


def _cards(results: Results) -> list[Card]:
    ours = [cell for cell in results.cells if cell["method"] == OURS]
    recorded = next((cell for cell in ours if cell["severity"] == 0), None)
    if recorded is None:
        return []
    false, images = sum(cell["false_tracked_frames"] for cell in ours), sum(cell["frames"] for cell in ours)
    median = _cm(recorded["translation_error_median_m"])
    return [
        Card(f"{100 * recorded['recall'][RIGHT]:.0f} %", "right as recorded", f"of {recorded['frames']} images"),
        Card("–" if median is None else f"{format_number(median, 2)} cm", "median error as recorded", "in the map frame"),
        Card(
            f"{100 * sum(c['recall'][RIGHT] * c['frames'] for c in ours) / max(images, 1):.0f} %",
            "right over all runs",
            f"of {images} images",
        ),
        Card(str(false), "false tracks", f"over all runs, of {images} images", bad=false > 0),
    ]

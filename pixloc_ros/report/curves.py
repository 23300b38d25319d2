# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Plots of measured and learned numbers: convergence basins, what probabilities are worth, what the optimizer learned."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter

from ..alignment import LearnedDamping, LevelWeights
from ..alignment.level_weights import CUES, LARGEST_CUE, OUTPUTS, outputs_of
from ..evaluation.reliability import calibration_error, reliability
from .style import DARK_GREY, GREY, SERIES, level_colours, level_name, note, plt, png, styled

CAMERA_AXES = ("right\nt_x", "down\nt_y", "forward\nt_z", "about right\nR_x", "about down\nR_y", "about forward\nR_z")
UNTRAINED = 10**-0.5
"""The factor where nothing was learned (theta = 0)."""
_CUE_UNITS = (0.1, 1.0, 0.1, 500.0, 0.1)
"""What a cue of 0 means: a squared residual, cells, a squared residual, points, a squared slope per cell."""
_LEAST_SHOWN_DEG = 1e-3
_LEGEND_CHARACTERS = 130
_STARTS = {
    "rotation": ("Turned", "initial rotation error (°)"),
    "translation": ("Shifted", "initial distance (% of depth)"),
    "together": ("Turned and shifted", "initial rotation error (°), with 0 to {farthest:g} % of depth"),
}
"""Title and axis of each kind of start of a basin."""


@styled
def plot_basins(basins: Sequence[Mapping[str, object]]) -> bytes:
    """PNG of one or more basins, each as `evaluation.basin.Basin.to_json`: a column per kind of start.

    Above the share of successes, below the median error of the poses found in degrees; gaps are steps at which half of the
    starts or more found no pose.
    """
    first = basins[0]
    kinds, limits = tuple(first["curves"]), first["success_limits"]
    figure, rows = plt.subplots(
        2, len(kinds), figsize=(11.0, 5.6), sharex="col", sharey="row", layout="constrained", squeeze=False
    )
    for kind, (top, bottom) in zip(kinds, rows.T):
        for number, basin in enumerate(basins):
            colour, marker, dashes = SERIES[number % len(SERIES)]
            steps = basin["curves"][kind]["steps"]
            x = [100 * step["initial_depth"] if kind == "translation" else step["initial_deg"] for step in steps]
            look = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1.6, "markersize": 4.5}
            medians = [np.nan if step["median_deg"] is None else max(step["median_deg"], _LEAST_SHOWN_DEG) for step in steps]
            top.plot(x, [100 * step["success"] for step in steps], label=str(basin["label"]), clip_on=False, **look)
            bottom.plot(x, medians, **look)
        title, label = _STARTS[kind]
        top.set(title=title, ylim=(0, 103))
        bottom.axhline(limits["deg"], color=GREY, linewidth=1, linestyle=":")
        bottom.set(yscale="log", xlabel=label.format(farthest=100 * first["options"]["translation"]))
    rows[0, 0].set_ylabel(f"starts that end within\n{limits['deg']:g}° and {100 * limits['depth']:g} % of depth (%)")
    rows[1, 0].set_ylabel("median final rotation error (°)")
    note(rows[1, 0], "limit of success", (0, limits["deg"]), (2, 3), fontsize=8, color=GREY)
    if len(basins) > 1 or first["label"]:
        handles, labels = rows[0, 0].get_legend_handles_labels()
        columns = max(1, min(len(labels), 4, _LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return png(figure)


@styled
def plot_reliability(judged: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """PNG of how often poses are right against how likely they were said to be, in ten bins; below, how many fall into each.

    judged: By name, probabilities float64 [N], and whether each was right, bool [N].
    """
    ratios, edges = {"height_ratios": (3, 1)}, np.linspace(0, 1, 11)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(4.8, 4.6), sharex=True, layout="constrained", gridspec_kw=ratios)
    top.plot((0, 1), (0, 1), color=DARK_GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    for place, text, side in (((0.98, 0.03), "surer than right", "right"), ((0.02, 0.95), "less sure than right", "left")):
        note(top, text, place, color=DARK_GREY, ha=side)
    for number, (name, (probabilities, right)) in enumerate(judged.items()):
        colour, marker, dashes = SERIES[number % len(SERIES)]
        likely, share, counts = reliability(probabilities, right)
        # As far as so few tell: one standard deviation, of a share that one more right and one more wrong one would give.
        smooth = (share * counts + 1) / (counts + 2)
        std = np.sqrt(smooth * (1 - smooth) / (counts + 2))
        error = calibration_error(probabilities, right)
        label = f"{name}{': ' if name else ''}calibration error {error:.3f}, {len(right)} poses"
        look = {"color": colour, "marker": marker, "markersize": 5, "linestyle": dashes, "linewidth": 1.4, "elinewidth": 0.9}
        top.errorbar(likely, share, (np.minimum(std, share), np.minimum(std, 1 - share)), label=label, clip_on=False, **look)
        bottom.stairs(np.histogram(probabilities, edges)[0], edges, color=colour, linestyle=dashes, linewidth=1.4)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right poses")
    bottom.set(yscale="log", ylim=(0.7, None), ylabel="poses", xlabel="probability that the pose is right")
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    figure.legend(loc="outside upper left", fontsize=9)
    return png(figure)


@torch.no_grad()
@styled
def plot_learned(damping: LearnedDamping | None, weights: LevelWeights | None, strides: Sequence[int]) -> bytes:
    """A PNG of what the optimizer learned: the damping of each degree of freedom of the camera, a bar a level; and what is
    believed on each level against each cue, the others being 0."""
    parts = [part for part in ((_bars, damping, 3.6), (_slopes, weights, 9.0)) if part[1] is not None]
    figure = plt.figure(figsize=(12.0, sum(height for _, _, height in parts)), layout="constrained")
    areas = figure.subfigures(len(parts), 1, height_ratios=[height for _, _, height in parts], squeeze=False)
    for (draw, learned, _), area in zip(parts, areas.flat):
        draw(area, learned, strides)
    return png(figure)


def _bars(figure: SubFigure, damping: LearnedDamping, strides: Sequence[int]) -> None:
    width, axes = 0.8 / len(strides), figure.subplots()
    for level, (stride, colour) in enumerate(zip(strides, level_colours(len(strides)))):
        places = np.arange(6) + (level - (len(strides) - 1) / 2) * width
        axes.bar(places, damping(level).cpu().numpy(), width, color=colour, label=level_name(stride))
    axes.axhline(UNTRAINED, color="#4b5563", linewidth=1, linestyle=":", label=f"untrained, {UNTRAINED:.2f}")
    axes.set(yscale="log", ylabel="damping λ (no unit)", title="Learned damping: where it is large, motion is held back")
    axes.set_xticks(range(6), CAMERA_AXES)
    axes.set_xlabel("translation along and rotation about the camera's axes")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside right upper", fontsize=8.5)


def _slopes(figure: SubFigure, weights: LevelWeights, strides: Sequence[int]) -> None:
    """A row per output, a column per cue, in the unit of what it is the logarithm of."""
    plots = figure.subplots(len(OUTPUTS), len(CUES), sharex="col", sharey="row")
    steps = torch.linspace(-LARGEST_CUE, LARGEST_CUE, 60, dtype=torch.float64)
    for column, (cue, unit) in enumerate(zip(CUES, _CUE_UNITS, strict=True)):
        cues = torch.zeros(len(steps), len(CUES), dtype=torch.float64)
        cues[:, column] = steps
        for table, stride, colour in zip(weights.table.double().cpu(), strides, level_colours(len(strides))):
            for row, values in enumerate(outputs_of(table, cues).T):
                plots[row, column].loglog(unit * 10**steps, values, color=colour, linewidth=1.5, label=level_name(stride))
        plots[-1, column].set_xlabel(textwrap.fill(cue, 18), fontsize=8)
    for row, output in enumerate(OUTPUTS):
        plots[row, 0].set_ylabel(output.replace(", ", ",\n"), fontsize=8)
    figure.suptitle("What is believed on each level")
    figure.legend(*plots[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8.5)

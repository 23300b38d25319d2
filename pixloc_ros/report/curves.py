# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Plots of measured and learned numbers: convergence basins, and the damping that a network brings along."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..alignment.damping import CUES, LearnedDamping, TemporalPrior, typical_cues
from .style import GREY, SERIES, level_colours, level_name, note, plt, png, styled

AXES = ("forward", "left", "up", "roll", "pitch", "yaw")
CAMERA_AXES = ("right\nt_x", "down\nt_y", "forward\nt_z", "about right\nR_x", "about down\nR_y", "about forward\nR_z")
UNTRAINED = 10**-0.5
"""The factor where nothing was learned (theta = 0)."""
_SWEEPS = (
    ("moved forwards, share of the depth", ("moved x",), 1e-3, 0.3),
    ("turned, degrees", ("turned z",), 1e-3, 0.2),
    ("prior uncertain by,\nshare of the depth and radians", tuple(name for name in CUES if name.startswith("unsure")), 1e-4, 0.1),
)
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


@torch.no_grad()
@styled
def plot_constant_damping(damping: LearnedDamping, strides: Sequence[int]) -> bytes:
    """A PNG: the factor of each degree of freedom of the camera, a bar a level."""
    width = 0.8 / len(strides)
    figure, axes = plt.subplots(figsize=(9.0, 3.6), layout="constrained")
    for level, (stride, colour) in enumerate(zip(strides, level_colours(len(strides)))):
        places = np.arange(6) + (level - (len(strides) - 1) / 2) * width
        axes.bar(places, damping(level).cpu().numpy(), width, color=colour, label=level_name(stride))
    axes.axhline(UNTRAINED, color="#4b5563", linewidth=1, linestyle=":", label=f"untrained, {UNTRAINED:.2f}")
    axes.set(yscale="log", ylabel="damping λ (no unit)", title="Learned damping: where it is large, motion is held back")
    axes.set_xticks(range(6), CAMERA_AXES)
    axes.set_xlabel("translation along and rotation about the camera's axes")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside right upper", fontsize=8.5)
    return png(figure)


@torch.no_grad()
@styled
def plot_temporal_prior(prior: TemporalPrior, strides: Sequence[int]) -> bytes:
    """A PNG: a row per level, per sweep of a cue (the others typical) one plot of the damping and one of the trust."""
    size = (6 * len(_SWEEPS), 2.3 * len(strides))
    figure, plots = plt.subplots(len(strides), 2 * len(_SWEEPS), figsize=size, sharex="col", squeeze=False, layout="constrained")
    for column, (title, cues, low, high) in enumerate(_SWEEPS):
        x = np.geomspace(low, high, 60)
        values = typical_cues().repeat(len(x), 1)
        for name in cues:
            values[:, CUES.index(name)] = torch.from_numpy(np.log10(x) + 2).float().clamp(-2, 2)
        shown = np.degrees(x) if "degrees" in title else x
        for row, stride in enumerate(strides):
            for k, (name, result) in enumerate(zip(("damping λ", "trust in the prior"), prior.predict(values))):
                axes, curves = plots[row, 2 * column + k], result.expand(len(x), -1, -1)[:, row].numpy()
                lines = [
                    axes.loglog(shown, curve, color=colour, linestyle=dashes, linewidth=1.5)[0]
                    for curve, (colour, _, dashes) in zip(curves.T, SERIES)
                ]
                axes.yaxis.set_minor_formatter(plt.NullFormatter())
                if row == 0:
                    axes.set_title(name)
                if row == len(strides) - 1:
                    axes.set_xlabel(title, fontsize=8)
                if column == k == 0:
                    axes.set_ylabel(level_name(stride))
    figure.legend(lines, AXES, loc="outside upper center", ncols=6, frameon=False)
    return png(figure)

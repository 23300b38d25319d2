# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The learned damping as a plot: PixLoc's constants, and how a temporal prior depends on what it is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..alignment.damping import CUES, LearnedDamping, TemporalPrior, typical_cues
from .basin import SERIES
from .figures import level_colours, level_name
from .plots import STYLE, plt, png

AXES = ("forward", "left", "up", "roll", "pitch", "yaw")
CAMERA_AXES = ("right\nt_x", "down\nt_y", "forward\nt_z", "about right\nR_x", "about down\nR_y", "about forward\nR_z")
UNTRAINED = 10**-0.5
"""The factor where nothing was learned (theta = 0)."""
_SWEEPS = (
    ("moved forwards, share of the depth", ("moved x",), 1e-3, 0.3),
    ("turned, degrees", ("turned z",), 1e-3, 0.2),
    ("prior uncertain by,\nshare of the depth and radians", tuple(name for name in CUES if name.startswith("unsure")), 1e-4, 0.1),
)


@torch.no_grad()
def plot_constant_damping(damping: LearnedDamping, strides: Sequence[int]) -> bytes:
    """A PNG: the factor of each degree of freedom of the camera, a bar a level."""
    factors = np.array([damping(level).cpu().numpy() for level in range(len(strides))])
    width = 0.8 / len(strides)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9.0, 3.6), layout="constrained")
        for level, (values, stride, colour) in enumerate(zip(factors, strides, level_colours(len(strides)))):
            places = np.arange(6) + (level - (len(strides) - 1) / 2) * width
            axes.bar(places, values, width, color=colour, label=level_name(stride))
        axes.axhline(UNTRAINED, color="#4b5563", linewidth=1, linestyle=":", label=f"untrained, {UNTRAINED:.2f}")
        axes.set(yscale="log", ylabel="damping λ (no unit)", title="Learned damping: where it is large, motion is held back")
        axes.set_xticks(range(6), CAMERA_AXES)
        axes.set_xlabel("translation along and rotation about the camera's axes")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside right upper", fontsize=8.5)
        return png(figure)


@torch.no_grad()
def plot_temporal_prior(prior: TemporalPrior, strides: Sequence[int]) -> bytes:
    """A PNG: a row per level, per sweep of a cue (the others typical) one plot of the damping and one of the trust."""
    with plt.rc_context(STYLE):
        figure, plots = plt.subplots(
            len(strides),
            2 * len(_SWEEPS),
            figsize=(4 * len(_SWEEPS) * 1.5, 2.3 * len(strides)),
            sharex="col",
            squeeze=False,
            layout="constrained",
        )
        for column, (title, cues, low, high) in enumerate(_SWEEPS):
            x = np.geomspace(low, high, 60)
            values = typical_cues().repeat(len(x), 1)
            for name in cues:
                values[:, CUES.index(name)] = torch.from_numpy(np.log10(x) + 2).float().clamp(-2, 2)
            shown = np.degrees(x) if "degrees" in title else x
            for row, stride in enumerate(strides):
                for k, (name, result) in enumerate(zip(("damping λ", "trust in the prior"), prior.predict(values))):
                    axes = plots[row, 2 * column + k]
                    curves = result.expand(len(x), -1, -1)[:, row].numpy()
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

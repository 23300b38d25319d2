# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How a temporal prior depends on what it is told: damping and trust against speed, turn and uncertainty."""
from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch

from ..features.damping import CUES, TemporalPrior, typical_cues

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)

AXES = ("forward", "left", "up", "roll", "pitch", "yaw")
_SWEEPS = (("moved forwards, share of the depth", ("moved x",), 1e-3, 0.3), ("turned, degrees", ("turned z",), 1e-3, 0.2),
           ("prior uncertain by, share of the depth and radians",
            tuple(name for name in CUES if name.startswith("unsure")), 1e-4, 0.1))


@torch.no_grad()
def plot_temporal_prior(prior: TemporalPrior, strides: Sequence[int]) -> bytes:
    """A PNG: a row per level, per sweep of a cue (the others typical) one plot of the damping and one of the trust."""
    figure, plots = plt.subplots(len(strides), 2 * len(_SWEEPS), figsize=(4 * len(_SWEEPS) * 1.5, 2.3 * len(strides)),
                                 sharex="col", squeeze=False, layout="constrained")
    for column, (title, cues, low, high) in enumerate(_SWEEPS):
        x = np.geomspace(low, high, 60)
        values = typical_cues().repeat(len(x), 1)
        for name in cues:
            values[:, CUES.index(name)] = torch.from_numpy(np.log10(x) + 2).float().clamp(-2, 2)
        shown = np.degrees(x) if "degrees" in title else x
        for row, stride in enumerate(strides):
            for k, (name, result) in enumerate(zip(("damping", "trust"), prior.predict(values))):
                axes = plots[row, 2 * column + k]
                lines = axes.loglog(shown, result.expand(len(x), -1, -1)[:, row].numpy())
                axes.grid(alpha=0.3)
                if row == 0:
                    axes.set_title(name)
                if row == len(strides) - 1:
                    axes.set_xlabel(title, fontsize=8)
                if column == k == 0:
                    axes.set_ylabel(f"stride {stride}")
    figure.legend(lines, AXES, loc="outside upper center", ncols=6, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return buffer.getvalue()

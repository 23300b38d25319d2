# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How an alignment went, level by level: cost, and the share of points that agree."""

from __future__ import annotations

import numpy as np

from .aligned_image import AlignedImage
from .figures import STYLE, encode, level_colours, level_name, plt


def plot_levels(aligned: AlignedImage, suffix: str = ".png") -> bytes:
    """Two plots: cost over the steps of every level, and the share of the visible points that agree at its start and end."""
    path = aligned.path()
    colours = level_colours(len(aligned.strides))
    starts = [k for k, step in enumerate(path) if step.step == 0]
    runs = [path[first:last] for first, last in zip(starts, [*starts[1:], len(path)])]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 3.4), layout="constrained")
        first = 0
        for run in runs:
            at = np.arange(first, first + len(run))
            left.plot(at, [step.cost for step in run], color=colours[run[0].level], marker="o", markersize=4, linewidth=1.6)
            first += len(run)
        left.set(xlabel="step", ylabel="mean robust cost", title="Cost")
        left.set_ylim(bottom=0)
        left.xaxis.get_major_locator().set_params(integer=True)
        for k, run in enumerate(runs):
            agree = [_agree(aligned, step) for step in (run[0], run[-1])]
            colour = colours[run[0].level]
            right.plot((k - 0.18, k + 0.18), agree, color=colour, marker="o", markersize=6, linewidth=2)
            right.annotate(f"{agree[1]:.0f} %", (k + 0.18, agree[1]), xytext=(4, 3), textcoords="offset points", fontsize=8.5)
        right.set(
            ylim=(0, 105),
            xlim=(-0.6, len(runs) - 0.2),
            ylabel="points in view that agree (%)",
            title="Agreement from the start to the end of each level",
        )
        right.set_xticks(range(len(runs)), [f"{level_name(run[0].stride)}\n{len(run) - 1} steps" for run in runs], fontsize=8)
        for k, stride in enumerate(aligned.strides):
            left.plot([], [], color=colours[k], marker="o", label=level_name(stride))
        left.legend(fontsize=8, ncols=2)
        return encode(figure, suffix)


def _agree(aligned: AlignedImage, step) -> float:
    seen = aligned.agreement(step.map_from_camera, step.level)
    return 100 * seen.agrees.sum() / max(seen.visible.sum(), 1)

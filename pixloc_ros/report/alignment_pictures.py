# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pictures of one alignment: the map's points over the image before and after it, level by level, and the cost around a pose."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.collections import LineCollection

from ..errors import InputError
from ..evaluation.tables import format_number
from ..geometry import se3
from .aligned_image import AlignedImage, PathStep, PointAgreement, difference_text
from .overlays import AGREES, DISAGREES
from .style import ANSWER, BLUE, DISTANCES, SHARES, TRUTH, encode, level_colours, level_name, note, plt, show_image, styled

COLOURS = {
    "residual": "feature distance to the map, {level} (0: the same)",
    "inliers": "",
    "confidence": "confidence of map and image, {level}",
    "weight": "weight after the robust loss, {level}",
}
"""What the points may be coloured by, and the label of the colour bar."""
AXES = ("x, forward", "y, left", "z, up", "roll about x", "pitch about y", "yaw about z")
FARTHEST = 1.2
"""Feature distance of the darkest colour: unit vectors that have nothing in common are 1.4 apart."""
_WIDTH_IN = 12.6
_SAMPLES = 41
_SHARE_OF_DEPTH, _TURN_RAD = 0.15, np.radians(8.0)
_MARKERS = ((0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


@styled
def plot_reprojections(aligned: AlignedImage, colour: str = "residual", level: int = -1, suffix: str = ".png") -> bytes:
    """A picture of two panels: before, with the way to the answer as a line from each point; after, with rings where the truth
    puts the points, if it is known.

    Args:
        aligned: What is drawn.
        colour: One of `COLOURS`.
        level: Of the residuals and weights (-1: the finest).
        suffix: Kind of file.

    Raises:
        InputError: There is no such colour or level.
    """
    if colour not in COLOURS:
        raise InputError(f"points cannot be coloured by '{colour}': choose {', '.join(COLOURS)}")
    if not -1 <= level < len(aligned.strides):
        names = ", ".join(f"{k} ({level_name(stride)})" for k, stride in enumerate(aligned.strides))
        raise InputError(f"no feature level {level}: choose {names}")
    before, after = aligned.agreement(aligned.prior, level), aligned.agreement(aligned.answer.map_from_camera, level)
    camera, name = aligned.prepared.camera, level_name(aligned.strides[level])
    size = (_WIDTH_IN, (_WIDTH_IN - 1.6) / 2 * camera.height / camera.width + 1.3)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharex=True, sharey=True, layout="constrained")
    for axes, seen in ((left, before), (right, after)):
        show_image(axes, aligned.image, camera.width, camera.height, 0.25)
        shades = _points(axes, seen, colour)
        axes.set_xlabel("x (px of the working image)")
    left.set_ylabel("y (px)")
    both = before.visible & after.visible
    ways = np.stack((before.pixels[both], after.pixels[both]), 1)
    left.add_collection(LineCollection(ways, colors=ANSWER, linewidths=0.8, alpha=0.75, zorder=2))
    moved = np.linalg.norm(ways[:, 0] - ways[:, 1], axis=1)
    reached = "no point stays in view"
    if len(moved):
        reached = f"points move by {format_number(np.median(moved), 2)} px (median) to the blue ends"
    # An orange that can be read on white.
    left.set_title(f"Before, at the prior: {before.summary(name)}\n{reached}", fontsize=9.5, color="#8a5a00")
    away = f"moved by {difference_text(aligned.prior, aligned.answer.map_from_camera)}"
    title = f"After the alignment: {after.summary(name)}\n{away}{_truth(right, aligned, after)}"
    right.set_title(title, fontsize=9.5, color=ANSWER)
    if shades is not None:
        figure.colorbar(shades, ax=(left, right), label=COLOURS[colour].format(level=name), shrink=0.95, pad=0.01)
    else:
        for text, dot in (("looks as in the map", AGREES), ("does not", DISAGREES)):
            right.scatter([], [], color=np.array(dot) / 255, edgecolors="black", linewidths=0.4, label=text)
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.85)
    figure.suptitle(aligned.title, fontsize=11, x=0.01, ha="left")
    return encode(figure, suffix)


def _points(axes: plt.Axes, seen: PointAgreement, colour: str):
    """Draws the visible points; what a colour bar needs, None where the colours are but two."""
    look = {"s": 15, "linewidths": 0.35, "edgecolors": "black", "zorder": 3}
    if colour == "inliers":
        for chosen, dot in ((~seen.agrees, DISAGREES), (seen.agrees, AGREES)):
            axes.scatter(*seen.pixels[seen.visible & chosen].T, color=np.array(dot) / 255, **look)
        return None
    if colour == "residual":
        values, look = seen.distance, look | {"cmap": DISTANCES, "vmin": 0, "vmax": FARTHEST}
    else:
        values = seen.confidence if colour == "confidence" else seen.weight
        look |= {"cmap": SHARES, "vmin": 0, "vmax": 1}
    return axes.scatter(*seen.pixels[seen.visible].T, c=values[seen.visible], **look)


def _truth(axes: plt.Axes, aligned: AlignedImage, after: PointAgreement) -> str:
    """Draws where the points truly are, and says how far the answer is from there; nothing where that is not known."""
    if aligned.truth is None:
        return ""
    away, true = difference_text(aligned.truth, aligned.answer.map_from_camera), aligned.agreement(aligned.truth)
    both = true.visible & after.visible
    if not both.any():
        return f"; off by {away}"
    off = np.median(np.linalg.norm(true.pixels[both] - after.pixels[both], axis=1))
    if off > 1.0:
        ring = {"s": 34, "facecolors": "none", "edgecolors": TRUTH, "linewidths": 0.7, "zorder": 2}
        axes.scatter(*true.pixels[true.visible].T, label="where the truth puts them", **ring)
    return f"; off the truth by {away}, {format_number(off, 2)} px (median)"


@styled
def plot_levels(aligned: AlignedImage) -> bytes:
    """A PNG of two plots: cost over the steps of every level, and the share of the visible points that agree at its start and
    end."""
    colours = level_colours(len(aligned.strides))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 3.4), layout="constrained")
    runs = runs_of(aligned.path())
    for k, run in enumerate(runs):
        steps = [step for _, step in run]
        look = {"color": colours[steps[0].level], "marker": "o"}
        left.plot([at for at, _ in run], [step.cost for step in steps], markersize=4, linewidth=1.6, **look)
        ends = (aligned.agreement(step.map_from_camera, step.level) for step in (steps[0], steps[-1]))
        agree = [100 * seen.agrees.sum() / max(seen.visible.sum(), 1) for seen in ends]
        right.plot((k - 0.18, k + 0.18), agree, markersize=6, linewidth=2, **look)
        note(right, f"{agree[1]:.0f} %", (k + 0.18, agree[1]), (4, 3), fontsize=8.5)
    left.set(xlabel="step", ylabel="mean robust cost", title="Cost")
    left.set_ylim(bottom=0)
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(ylim=(0, 105), xlim=(-0.6, len(runs) - 0.2), ylabel="points in view that agree (%)")
    right.set_title("Agreement from the start to the end of each level")
    names = [f"{level_name(run[0][1].stride)}\n{len(run) - 1} steps" for run in runs]
    right.set_xticks(range(len(runs)), names, fontsize=8)
    for colour, stride in zip(colours, aligned.strides):
        left.plot([], [], color=colour, marker="o", label=level_name(stride))
    left.legend(fontsize=8, ncols=2)
    return encode(figure)


def runs_of(path: list[PathStep]) -> list[list[tuple[int, PathStep]]]:
    """Numbered steps, level by level."""
    runs: list[list[tuple[int, PathStep]]] = []
    for number, step in enumerate(path):
        if step.step == 0:
            runs.append([])
        runs[-1].append((number, step))
    return runs


def slice_costs(
    aligned: AlignedImage, map_from_base: torch.Tensor, base_from_camera: torch.Tensor, metres: float, radians: float
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets float64 [6, S], metres and radians along the axes of `AXES`, and costs float64 [6, levels, S] there; NaN where too
    few points are in view."""
    ramp = torch.linspace(-1, 1, _SAMPLES, dtype=torch.float64)
    offsets = torch.stack([ramp * (metres if axis < 3 else radians) for axis in range(6)])
    costs = np.empty((6, len(aligned.strides), _SAMPLES))
    for axis in range(6):
        tangents = torch.zeros(_SAMPLES, 6, dtype=torch.float64)
        tangents[:, axis] = offsets[axis]
        poses = map_from_base @ se3.se3_exp(tangents) @ base_from_camera
        for level in range(len(aligned.strides)):
            costs[axis, level] = aligned.costs(poses, level)
    return offsets.numpy(), costs


@styled
def plot_cost_slices(
    aligned: AlignedImage,
    map_from_camera: torch.Tensor,
    base_from_camera: torch.Tensor,
    others: Mapping[str, tuple[torch.Tensor, str]],
) -> bytes:
    """A PNG of six plots around a pose that was found, each along one axis of the robot's base, with one curve a level.

    Args:
        aligned: What is drawn.
        map_from_camera: The pose, float64 [4, 4].
        base_from_camera: The mount, float64 [4, 4].
        others: Further poses by name, with a colour, marked where they lie along each axis.
    """
    map_from_base = map_from_camera @ se3.inverse(base_from_camera)
    marks = {
        name: (se3.se3_log(se3.inverse(map_from_base) @ pose @ se3.inverse(base_from_camera)).numpy(), colour)
        for name, (pose, colour) in others.items()
    }
    furthest = np.max([np.zeros(6), *(1.15 * np.abs(offset) for offset, _ in marks.values())], 0)
    metres = min(max(_SHARE_OF_DEPTH * aligned.depth, furthest[:3].max()), aligned.depth)
    radians = min(max(_TURN_RAD, furthest[3:].max()), np.pi / 4)
    offsets, costs = slice_costs(aligned, map_from_base, base_from_camera, metres, radians)
    figure, grid = plt.subplots(2, 3, figsize=(12.0, 5.6), sharey=True, layout="constrained")
    for axis, axes in enumerate(grid.flat):
        unit, factor = ("m", 1.0) if axis < 3 else ("°", 180 / np.pi)
        at = offsets[axis] * factor
        for stride, curve, colour in zip(aligned.strides, costs[axis], level_colours(len(aligned.strides))):
            axes.plot(at, curve, color=colour, linewidth=1.6, label=level_name(stride))
        axes.axvline(0, color=BLUE, linewidth=1.2, label="found")
        for (name, (offset, colour)), dashes in zip(marks.items(), _MARKERS):
            axes.axvline(offset[axis] * factor, color=colour, linewidth=1.6, linestyle=dashes, label=name)
        axes.set(xlabel=f"{AXES[axis]} ({unit})", xlim=(at[0], at[-1]))
    for row in grid:
        row[0].set_ylabel("mean robust cost")
    grid[0, 0].set_ylim(bottom=0)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return encode(figure)

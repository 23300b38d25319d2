# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The cost around a pose: slices along each axis of the robot's base, one curve a level."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..geometry import se3
from .aligned_image import AlignedImage
from .figures import STYLE, encode, level_colours, level_name, plt

AXES = ("x, forward", "y, left", "z, up", "roll about x", "pitch about y", "yaw about z")
_SAMPLES = 41
_SHARE_OF_DEPTH, _TURN_RAD = 0.15, np.radians(8.0)
_MARKERS = ((0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


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


def plot_cost_slices(
    aligned: AlignedImage,
    map_from_camera: torch.Tensor,
    base_from_camera: torch.Tensor,
    centre: str,
    others: Mapping[str, tuple[torch.Tensor, str]],
    suffix: str = ".png",
) -> bytes:
    """Six plots around a pose (map_from_camera; `centre` names it), each along one axis of the base. others: further poses by
    name, with a colour, marked where they lie along each axis."""
    map_from_base = map_from_camera @ se3.inverse(base_from_camera)
    marks = {
        name: (se3.se3_log(se3.inverse(map_from_base) @ pose @ se3.inverse(base_from_camera)).numpy(), colour)
        for name, (pose, colour) in others.items()
    }
    furthest = np.max([np.zeros(6), *(1.15 * np.abs(offset) for offset, _ in marks.values())], 0)
    metres = min(max(_SHARE_OF_DEPTH * aligned.depth, furthest[:3].max()), aligned.depth)
    radians = min(max(_TURN_RAD, furthest[3:].max()), np.pi / 4)
    offsets, costs = slice_costs(aligned, map_from_base, base_from_camera, metres, radians)
    colours = level_colours(len(aligned.strides))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 3, figsize=(12.0, 5.6), sharey=True, layout="constrained")
        for axis, axes in enumerate(grid.flat):
            unit, factor = ("m", 1.0) if axis < 3 else ("°", 180 / np.pi)
            for level, colour in enumerate(colours):
                axes.plot(
                    offsets[axis] * factor,
                    costs[axis, level],
                    color=colour,
                    linewidth=1.6,
                    label=level_name(aligned.strides[level]),
                )
            axes.axvline(0, color="#0072B2", linewidth=1.2, label=centre)
            for (name, (offset, colour)), dashes in zip(marks.items(), _MARKERS):
                axes.axvline(offset[axis] * factor, color=colour, linewidth=1.6, linestyle=dashes, label=name)
            axes.set(xlabel=f"{AXES[axis]} ({unit})", xlim=(offsets[axis][0] * factor, offsets[axis][-1] * factor))
        for row in grid:
            row[0].set_ylabel("mean robust cost")
        grid[0, 0].set_ylim(bottom=0)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return encode(figure, suffix)

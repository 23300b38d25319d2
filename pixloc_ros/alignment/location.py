# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How exactly points are where they project to: more like what the image shows there than like what it shows a little aside.

Another floor of a building looks the same from far and near, so its points are recognised; but its posters, furniture and shadows
are not in the same place to a pixel. By other light all points disagree more, and stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch

from ..features.pyramid import FeatureLevel
from ..features.sampling import sample_level
from ..geometry.single import FAST_JIT, INLINE_JIT
from .types import View

ASIDE = 4.0
"""Cells of the finest level, to both sides along each of `_AXES`."""
LOOK_POINTS = 512
"""Of each view, about so many points are looked at, evenly chosen."""
_AXES = np.array(((1.0, 0.0), (0.0, 1.0), (math.sqrt(0.5), math.sqrt(0.5)), (math.sqrt(0.5), -math.sqrt(0.5))))


def located(views: Sequence[View], pixels: torch.Tensor, visible: torch.Tensor, backend: str = "") -> float:
    """Share, 0 to 1, of comparisons that visible points win on the finest level; about a half where nothing is right.

    It is that of the axis along which most are won: along its streaks a blurred image is the same.

    Args:
        views: Unbatched; their points stand one view after the other.
        pixels: [N, 2], where they project to.
        visible: bool [N], which of them count.
        backend: "compiled" or "torch"; by default the first where features are on the CPU.
    """
    won, compared, first = np.zeros(len(_AXES)), 0, 0
    on_cpu = all(view.pyramid.levels[-1].features.device.type == "cpu" for view in views)
    count = _won_compiled if (backend or ("compiled" if on_cpu else "torch")) == "compiled" else _won_tensors
    for view in views:
        part = slice(first, first + len(view.points), max(len(view.points) // LOOK_POINTS, 1))
        first += len(view.points)
        which = torch.nonzero(visible[part])[:, 0]
        descriptors = view.points.descriptors[-1][:: part.step][which.to(view.points.descriptors[-1].device)]
        won += count(view.pyramid.levels[-1], descriptors, pixels[part][which])
        compared += 2 * len(which)
    return float(won.max() / max(compared, 1))


def _won_tensors(level: FeatureLevel, descriptors: torch.Tensor, pixels: torch.Tensor) -> np.ndarray:
    """How many comparisons [axes] points of descriptors [M, C] win that project to pixels [M, 2]."""
    rows, columns = level.features.shape[-2:]
    device = level.features.device
    sides = torch.from_numpy(ASIDE * np.concatenate((np.zeros((1, 2)), _AXES, -_AXES))).float().to(device)[:, None]
    cells = (pixels.to(device).float() + 0.5) / level.stride - 0.5 + sides
    cells = torch.minimum(cells.clamp(min=0), torch.tensor((columns - 1.0, rows - 1.0), device=device))
    values = sample_level(level, ((cells + 0.5) * level.stride - 0.5).reshape(1, -1, 2))[0][0]
    far = (values.reshape(len(sides), len(pixels), level.channels) - descriptors.to(device)).square().sum(-1)
    return (far[:1] < far[1:]).sum(-1).reshape(2, -1).sum(0).cpu().numpy()


def _won_compiled(level: FeatureLevel, descriptors: torch.Tensor, pixels: torch.Tensor) -> np.ndarray:
    arrays = level.features[0].permute(1, 2, 0), descriptors
    features, values = (np.ascontiguousarray(array.detach().numpy(), np.float32) for array in arrays)
    return _count(features, values, float(level.stride), np.ascontiguousarray(pixels.numpy(), np.float64))


@numba.njit(**INLINE_JIT)
def _distance(features, descriptor, x, y):
    """Squared, of a descriptor [C] to features [H, W, C] between cells, which end at the border."""
    x, y = min(max(x, 0.0), features.shape[1] - 1.0), min(max(y, 0.0), features.shape[0] - 1.0)
    column, row, one = int(x), int(y), np.float32(1.0)
    right, below = min(column + 1, features.shape[1] - 1), min(row + 1, features.shape[0] - 1)
    a, b, total = np.float32(x - column), np.float32(y - row), np.float32(0.0)
    for c in range(features.shape[2]):
        top = (one - a) * features[row, column, c] + a * features[row, right, c]
        low = (one - a) * features[below, column, c] + a * features[below, right, c]
        total += ((one - b) * top + b * low - descriptor[c]) ** 2
    return total


@numba.njit(**FAST_JIT)
def _count(features, descriptors, stride, pixels):
    won = np.zeros(len(_AXES))
    for i in range(len(pixels)):
        x, y = (pixels[i, 0] + 0.5) / stride - 0.5, (pixels[i, 1] + 0.5) / stride - 0.5
        own = _distance(features, descriptors[i], x, y)
        for k in range(len(_AXES)):
            dx, dy = ASIDE * _AXES[k, 0], ASIDE * _AXES[k, 1]
            won[k] += int(own < _distance(features, descriptors[i], x + dx, y + dy))
            won[k] += int(own < _distance(features, descriptors[i], x - dx, y - dy))
    return won

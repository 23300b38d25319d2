# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How many points are recognised: what the image shows where they project to is more like them than like another point.

It says more of a pose than how large the residuals are: in the dark or in another light all of them grow, but a point stays more
like itself than like others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch

from ..features.sampling import sample_level
from ..geometry.single import INLINE_JIT
from .types import View

LOOK_POINTS = 128
"""Of each view, about so many points are looked at, evenly chosen."""
OTHERS = (1 / 3, 2 / 3)
"""Each is compared with the points that stand so much of the list behind it."""


def recognised(views: Sequence[View], pixels: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Shares [B, levels], 0 to 1: of visible points, compared with others of `OTHERS`; about a half where nothing is right.

    Args:
        views: Their points stand one view after the other.
        pixels: [B, N, 2], where they project to.
        visible: bool [B, N], which of them count.
    """
    levels, first = len(views[0].pyramid.levels), 0
    seen, known = visible.new_zeros(len(visible)).float(), [visible.new_zeros(len(visible)).float()] * levels
    for view in views:
        count = len(view.points)
        step = max(count // LOOK_POINTS, 1)
        part = slice(first, first + count, step)
        counts, first = visible[:, part], first + count
        seen = seen + len(OTHERS) * counts.sum(-1)
        for k, level in enumerate(view.pyramid.levels):
            values = sample_level(level, pixels[:, part])[0]
            own, *others = (
                (values - view.points.descriptors[k].roll(-int(share * count), -2)[..., ::step, :]).square().sum(-1)
                for share in (0.0, *OTHERS)
            )
            known[k] = known[k] + sum(((own < other) & counts).sum(-1) for other in others)
    return torch.stack(known, -1) / seen.clamp(min=1)[:, None]


@numba.njit(**INLINE_JIT)
def recognised_compiled(views, strides, pixels, visible, shares):
    """Fill in the shares [levels] of one pose, from pixels [N, 2] and visible [N]."""
    for level in range(len(strides)):
        seen = known = first = 0
        for view in views:
            features, descriptors = view.features[level], view.descriptors[level]
            rows, columns, channels = features.shape
            count, one = view.xyz.shape[0], np.float32(1.0)
            for i in range(0, count, max(count // LOOK_POINTS, 1)):
                if not visible[first + i]:
                    continue
                cell_x = min(max((pixels[first + i, 0] + 0.5) / strides[level] - 0.5, 0.0), columns - 1.0)
                cell_y = min(max((pixels[first + i, 1] + 0.5) / strides[level] - 0.5, 0.0), rows - 1.0)
                column, row = int(cell_x), int(cell_y)
                right, below = min(column + 1, columns - 1), min(row + 1, rows - 1)
                a, b = np.float32(cell_x - column), np.float32(cell_y - row)
                j, k = (i + int(OTHERS[0] * count)) % count, (i + int(OTHERS[1] * count)) % count
                own = second = third = np.float32(0.0)
                for c in range(channels):
                    top = (one - a) * features[row, column, c] + a * features[row, right, c]
                    low = (one - a) * features[below, column, c] + a * features[below, right, c]
                    value = (one - b) * top + b * low
                    own += (value - descriptors[i, c]) ** 2
                    second += (value - descriptors[j, c]) ** 2
                    third += (value - descriptors[k, c]) ** 2
                seen += 2
                known += int(own < second) + int(own < third)
            first += count
        shares[level] = known / max(seen, 1)

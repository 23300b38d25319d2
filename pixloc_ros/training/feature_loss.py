# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Losses on the features themselves, which say more about a changed image than the pose that an alignment ends at.

Points and poses are the supervision here, too: they say which cell of the query shows a point. Contrast is InfoNCE (van den
Oord et al., 2018) over all cells of one level, as in S2DNet (Germain et al., ECCV 2020). Imitation is distillation from the
network that training started with, which is shown the image before it was changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import InputError
from ..features.pyramid import FeatureLevel

_NEAR_CELLS = 1.5


@dataclass(frozen=True)
class FeatureLossOptions:
    """How much which loss counts. Weights are given per level, coarse to fine; levels beyond them have none.

    Attributes:
        poses: The loss of poses. 0: nothing is aligned in training.
        contrast: The cell that shows a point should be nearer to its descriptor than all other cells.
        temperature: Of the contrast's softmax over cosines; less asks for more difference.
        imitation: 1 - cosine between features of the changed image and the start's features of the unchanged one.
    """

    poses: float = 1.0
    contrast: tuple[float, ...] = ()
    temperature: float = 0.07
    imitation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if min((self.poses, *self.contrast, *self.imitation)) < 0 or not self.temperature > 0:
            raise InputError("features: weights must not be negative, and temperature must be above 0")
        if not self.poses + sum(self.contrast) + sum(self.imitation):
            raise InputError("features: all weights are 0: nothing would be learned")


class Contrast(NamedTuple):
    """Loss [B]; and for people, detached: the mean distance in pixels [B] from the nearest cell to the right one, and whether
    most are within 1.5 cells, bool [B]."""

    loss: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor


def contrast(
    descriptors: torch.Tensor, level: FeatureLevel, pixels: torch.Tensor, counted: torch.Tensor, temperature: float
) -> Contrast:
    """How surely points are recognised among all cells of a level.

    Args:
        descriptors: [B, N, C], of unit length.
        level: Of the queries, batch B, features of unit length.
        pixels: [B, N, 2], where the points are in the queries. A place between cells is shared among the four around it.
        counted: bool [B, N], which points are there.
        temperature: Of the softmax.
    """
    height, width = level.features.shape[-2:]
    cosines = descriptors @ level.features.flatten(2)
    surprise = -torch.log_softmax(cosines / temperature, -1)
    cells = (pixels.to(surprise.dtype) + 0.5) / level.stride - 0.5
    corner = cells.floor()
    total = torch.zeros_like(surprise[..., 0])
    for right, below in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = corner + cells.new_tensor([right, below])
        share = (1 - (cells - cell).abs()).clamp(min=0).prod(-1)
        column, row = cell[..., 0].clamp(0, width - 1), cell[..., 1].clamp(0, height - 1)
        total = total + share * surprise.gather(-1, (row * width + column).long()[..., None])[..., 0]
    count = counted.sum(-1).clamp(min=1)
    nearest = cosines.detach().argmax(-1)
    found = torch.stack((nearest % width, nearest.div(width, rounding_mode="floor")), -1)
    away = (found - cells).norm(dim=-1)
    near = ((away < _NEAR_CELLS) & counted).sum(-1) * 2 > count
    return Contrast((total * counted).sum(-1) / count, (away * counted).sum(-1) / count * level.stride, near)


def imitation(level: FeatureLevel, start: FeatureLevel) -> torch.Tensor:
    """[B], mean of 1 - cosine over the cells; features of both have unit length."""
    return 1 - (level.features * start.features).sum(1).mean((-2, -1))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is believed while an image is aligned: each level's robust scale and residual variance, the coarser levels, and the prior.

Six numbers a level, each log-linear in five cues. They are learned from poses only, together, by what the optimizer that runs
makes of them (`training.alignment_weights`), and live in the weights file; `LevelWeights.constant` serves where none
were learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import InputError

OUTPUTS = ("robust scale", "residual variance", "hold, translation", "hold, rotation", "trust, translation", "trust, rotation")
"""The robust loss's scale and the squared residual that counts as one sigma of one point, both in squared feature units; factors
on the information that the coarser levels gave, where the level starts, and on that of prior factors."""
CUES = ("residuals at the start", "expected error", "residuals of the coarser level", "points", "slopes of the image")
"""Mean log10 of the squared residuals where the level starts, and where the level before ended (0 at the first), both plus 1;
log10 of the error that prior and coarser levels let expect, in cells; log10 of the number of visible points over 500; log10 of
the mean squared slope of the image's features where the points are seen, per cell, plus 1: blur flattens it, other light hardly
does. An image before this one speaks through the prior's covariance; its residuals as a further cue taught nothing."""
LOG10_LEAST = (-3.0, -3.0, -4.0, -4.0, -4.0, -4.0)
LOG10_MOST = (1.0, 3.0, 1.0, 1.0, 1.0, 1.0)
"""Where the outputs are cut off."""
RESIDUAL_FLOOR = 1e-3
"""Added to squared residuals, and to the mean squared slope, before their logarithm."""
LOOK_POINTS = 256
"""Where there are many points, every so many-th is looked at for the cues, so that about so many are."""
LARGEST_CUE = 2.0
AGREES = 0.1
"""A point whose squared residual is smaller agrees with the map: the quadratic zone of the robust loss at a scale of 0.05,
whatever the level's own scale is."""
TENSORS = "levels."
_NAME = TENSORS + "weights"


@dataclass(frozen=True)
class LevelWeights:
    """Attributes: table: float32 [levels, 6 outputs, 1 + 5 cues], log10 of each output: a constant and a slope per cue."""

    table: torch.Tensor

    @classmethod
    def constant(cls, levels: int, scale: float = 0.05, variance: float = 0.05, hold: float = 0.0, trust: float = 1.0):
        """The same for all levels and images."""
        table = torch.zeros(levels, len(OUTPUTS), 1 + len(CUES))
        for row, value in enumerate((scale, variance, hold, hold, trust, trust)):
            table[:, row, 0] = math.log10(max(value, 10 ** LOG10_LEAST[row]))
        return cls(table)

    @classmethod
    def of(cls, companions: Mapping[str, torch.Tensor], levels: int, source: str) -> LevelWeights | None:
        """Those that a weights file holds (see `features.weights.Weights`); None where it holds none.

        Raises InputError where they do not fit the levels, or are not finite; source is named in it.
        """
        table = companions.get(_NAME)
        if table is None:
            return None
        wanted = (levels, len(OUTPUTS), 1 + len(CUES))
        if tuple(table.shape) != wanted or not bool(table.isfinite().all()):
            raise InputError(f"{source}: '{_NAME}' must hold finite numbers, {'x'.join(map(str, wanted))}: train it again")
        return cls(table.float())

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a weights file keeps."""
        return {_NAME: self.table.clone()}


def mean_log_residual(squared: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The cue [...] of squared residuals [..., N]: the mean of their log10 over the valid points, plus 1."""
    return ((squared + RESIDUAL_FLOOR).log10() * valid).nan_to_num(0.0).sum(-1) / valid.sum(-1).clamp(min=1) + 1


def log_mean_slope(squared_slopes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The cue [...] of squared slopes per cell [..., N]: the log10 of their mean over the valid points, plus 1."""
    mean = torch.where(valid, squared_slopes, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)
    return (mean + RESIDUAL_FLOOR).log10() + 1


def end_statistics(squared: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a level's end, from [..., N]: the mean log residual, and the share of the visible points that agree; [...] each."""
    agree = ((squared < AGREES) & valid).sum(-1) / valid.sum(-1).clamp(min=1)
    return mean_log_residual(squared, valid), agree


def outputs_of(table: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
    """The outputs [B, 6] of one level's table [6, 6] for cues [B, 5], float64."""
    power = table[:, 0] + cues.clamp(-LARGEST_CUE, LARGEST_CUE) @ table[:, 1:].mT
    columns = zip(power.unbind(-1), LOG10_LEAST, LOG10_MOST)  # numbers: a tensor of them would make the host wait for a GPU
    return 10 ** torch.stack([column.clamp(least, most) for column, least, most in columns], -1)

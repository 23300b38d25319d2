# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The damping of the optimizer, learned per level and degree of freedom: PixLoc's motion prior."""
from __future__ import annotations

import torch
from torch import nn

LOG10_RANGE = (-6.0, 5.0)


class LearnedDamping(nn.Module):
    """lambda = 10^(-6 + 11 sigmoid(theta)), one theta in R^6 for each level (PixLoc, section 4.2 of the paper).

    Order (translation, rotation) along the query camera's axes. theta = 0 gives 0.32.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(levels, 6))

    def forward(self, level: int) -> torch.Tensor:
        """Factors [6] of the Hessian's diagonal for a level (0 is the coarsest)."""
        low, high = LOG10_RANGE
        return 10 ** (low + (high - low) * torch.sigmoid(self.theta[level]))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Robust losses of squared residuals, and their weights (first derivative)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError

KINDS = ("cauchy", "geman_mcclure", "squared")


@dataclass(frozen=True)
class RobustLoss:
    """loss(x) of a squared residual x; near zero it is x itself.

    Attributes:
        kind: "cauchy": 2 s log(1 + x / 2s), PixLoc's choice (Barron's general loss with shape 0, s = 0.1²);
            "geman_mcclure": x / (1 + x / 2s), bounded, so that an outlier's pull vanishes; or "squared": x.
        scale: s, in squared feature units, one number or one for each residual. A residual of x = 2s has half the weight (a
            quarter for geman_mcclure).
    """

    kind: str = "cauchy"
    scale: float | torch.Tensor = 0.01

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not (isinstance(self.scale, torch.Tensor) or self.scale > 0):
            raise InputError(f"robust loss '{self.kind}' with scale {self.scale}: choose {', '.join(KINDS)}, scale above 0")

    def __call__(self, squared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and weight, shaped as the squared residuals."""
        if self.kind == "squared":
            return squared, torch.ones_like(squared)
        z = squared / (2 * self.scale)
        if self.kind == "cauchy":
            return 2 * self.scale * torch.log1p(z), 1 / (1 + z)
        # x / (1 + z): the derivative is 1 / (1 + z)².
        return squared / (1 + z), (1 + z) ** -2

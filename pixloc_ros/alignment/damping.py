# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The damping of the optimizer's steps, learned per level and degree of freedom of the camera: PixLoc's motion prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError
from ..features import Extractor

LOG10_RANGE = (-6.0, 5.0)
TENSORS = "damping."
"""What the names of the damping's tensors in a weights file begin with."""
DIAGONAL_FLOOR = 1e-9
"""Least that is added to the Hessian's diagonal, as a share of the trace of its part for the translation, or the rotation. These
have different units: the one for the translation is that of the map, which may be anything."""
NEVER_SINGULAR = 1e-30
"""Added to that, so that a Hessian of zeros, of a pose that sees nothing, has a step of zero, and a gradient that is a number."""
ADAPTIVE_START = 1e-2
"""Factor of the adaptive strategy where nothing was learned; a step that lowers the cost divides it by 10, another multiplies
it."""
ADAPTIVE_DOWN, ADAPTIVE_UP = 0.1, 10.0
ADAPTIVE_LEAST, ADAPTIVE_MOST = 1e-7, 1e4
PAPER_START = 10**-0.5
"""Factor of the paper's strategy where nothing was learned: that of theta = 0."""
LEAST_SHARED_VIEW = 0.5
"""A step that pushes more than this share of the visible points out of the image is refused."""


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


@dataclass(frozen=True)
class Damping:
    """Damping of one level.

    Attributes:
        factors: Of the Hessian's diagonal, float64 [1, 6] or [B, 6].
    """

    factors: torch.Tensor

    def step(self, hessian: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
        """The damped step [B, 6], factors times a scale [B, 1]; zero where the system is not positive definite.

        The host waits for no device here.
        """
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        traces = diagonal.unflatten(-1, (2, 3)).sum(-1, keepdim=True).expand(-1, 2, 3).flatten(-2)
        least = DIAGONAL_FLOOR * traces + NEVER_SINGULAR
        damped = hessian + torch.diag_embed(torch.maximum(diagonal * (self.factors * scale), least))
        factor, failed = torch.linalg.cholesky_ex(damped)
        step = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        return torch.where((failed == 0)[:, None] & torch.isfinite(step), step, torch.zeros_like(step))


def level_dampings(learned: LearnedDamping | None, levels: int, constant: float, device: torch.device) -> list[Damping]:
    """Damping of each level of a pyramid: the learned one, or None: the same constant factor everywhere."""
    if learned is None:
        return [Damping(torch.full((1, 6), constant, dtype=torch.float64, device=device))] * levels
    return [Damping(learned(k).double()[None]) for k in range(levels)]


def damping_tensors(damping: LearnedDamping) -> dict[str, torch.Tensor]:
    """What a weights file keeps of it, among `features.weights.Weights.companions`."""
    return {TENSORS + name: value.detach().clone() for name, value in damping.state_dict().items()}


def damping_of(extractor: Extractor) -> LearnedDamping | None:
    """The damping that was learned together with an extractor's features, on its device; None where none was.

    Raises InputError where its tensors do not fit the extractor's levels.
    """
    damping = damping_from(extractor.companions, len(extractor.strides), f"weights '{extractor.name}'")
    return None if damping is None else damping.to(extractor.execution.device)


def damping_from(companions: Mapping[str, torch.Tensor], levels: int, source: str) -> LearnedDamping | None:
    """The damping that a weights file holds; None where it holds none.

    Args:
        companions: As of `features.weights.Weights`.
        levels: Of the network's pyramid.
        source: Named in the error.

    Raises:
        InputError: The tensors are of other shapes or not finite.
    """
    tensors = {name.removeprefix(TENSORS): value for name, value in companions.items() if name.startswith(TENSORS)}
    if not tensors:
        return None
    damping = LearnedDamping(levels)
    wanted = {name: tuple(value.shape) for name, value in damping.state_dict().items()}
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted or not all(
        bool(value.isfinite().all()) for value in tensors.values()
    ):
        shapes = ", ".join(f"'{TENSORS}{name}' {'x'.join(map(str, shape))}" for name, shape in wanted.items())
        raise InputError(f"{source}: the damping must hold finite numbers, {shapes}: import or train it again")
    damping.load_state_dict(tensors)
    return damping.requires_grad_(False)

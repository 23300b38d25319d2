# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The prior factor: a Gaussian on the pose as one more term of the cost (docs/evidence/temporal_prior.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..geometry import se3


@dataclass(frozen=True)
class PriorFactor:
    """A Gaussian prior on the pose that takes part in the optimisation.

    Attributes:
        camera_from_map: [..., 4, 4], the predicted pose; of a rig, rig_from_map.
        information: [..., 6, 6], (translation, rotation) of a left perturbation of camera_from_map, i.e. along the camera's
            axes.
    """

    camera_from_map: torch.Tensor
    information: torch.Tensor

    def normal_equations(self, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hessian [B, 6, 6], gradient [B, 6] and cost [B] at a pose [B, 4, 4], in double precision."""
        # Left perturbation: log(exp(d) T prior^-1) = d + log(T prior^-1) to first order.
        error = se3.se3_log(pose.double() @ se3.inverse(self.camera_from_map.double()))
        pull = (self.information @ error[..., None])[..., 0]
        return self.information, pull, (pull * error).sum(-1)


def level_factors(
    factors: Sequence[PriorFactor],
    trust: torch.Tensor | None,
    camera_from_base: torch.Tensor,
    levels: int,
    feature_variance: float,
) -> list[tuple[PriorFactor, ...]]:
    """The factors of each level as the optimizer adds them: information in units of the squared feature residual.

    Args:
        factors: Batched.
        trust: Multiplies the information, [..., levels, 6] along the axes of the base; None for 1.
        camera_from_base: [..., 4, 4].
        levels: Of the pyramid.
        feature_variance: Squared feature residual that counts as one sigma.
    """
    information = [factor.information.double() for factor in factors]
    of_levels = [information] * levels
    if trust is not None and factors:
        axes, back = se3.adjoint(camera_from_base), se3.adjoint(se3.inverse(camera_from_base))
        along = [axes.mT @ each @ axes for each in information]
        roots = [root[..., None] for root in trust.double().sqrt().unbind(-2)]
        of_levels = [[back.mT @ (root * each * root.mT) @ back for each in along] for root in roots]
    return [
        tuple(PriorFactor(factor.camera_from_map, each * feature_variance) for factor, each in zip(factors, level))
        for level in of_levels
    ]

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The prior factor: a Gaussian on the pose as one more term of the cost (docs/evidence/temporal_prior.md)."""

from __future__ import annotations

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

    def scaled(self, translation: torch.Tensor, rotation: torch.Tensor) -> PriorFactor:
        """With its standard deviations divided by the roots of two factors, [B] each."""
        root = torch.stack((translation,) * 3 + (rotation,) * 3, -1).sqrt()
        return PriorFactor(self.camera_from_map, root[..., None] * self.information * root[..., None, :])

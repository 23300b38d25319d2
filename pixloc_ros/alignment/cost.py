# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The featuremetric cost of one level around a pose: normal equations from value and slopes of the query's features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..features.pyramid import FeatureLevel
from ..features.sampling import sample_level_with_slopes
from ..geometry.cameras import Camera
from .robust import RobustLoss


@dataclass(frozen=True)
class Linearization:
    """The cost sum_i c_i loss(|r_i|²) / 2 around a pose, perturbed on the left by (translation, rotation).

    hessian [B, 6, 6] (Gauss-Newton) and gradient [B, 6]; per point [B, N]: squared residual, loss, confidence c_i
    (reference times query), valid; pixel_jacobian [B, N, 2, 6]; pixels [B, N, 2]; slope_products [B, N, 2, 3]: the slopes of the
    features along the image's x and y times the residual, and times one another, weighted as in the cost.
    """

    hessian: torch.Tensor
    gradient: torch.Tensor
    squared: torch.Tensor
    loss: torch.Tensor
    confidence: torch.Tensor
    valid: torch.Tensor
    pixels: torch.Tensor
    pixel_jacobian: torch.Tensor
    slope_products: torch.Tensor

    def mean_cost(self, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Confidence-weighted mean loss [B] over the valid points (of `mask`)."""
        weight = self.confidence * (self.valid if mask is None else mask)
        return (weight * self.loss).sum(-1) / weight.sum(-1).clamp(min=1e-9)


def normal_equations(slope_products: torch.Tensor, pixel_jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Newton Hessian [B, K, K] and gradient [B, K] for what moves the pixels by pixel_jacobian [B, N, 2, K]."""
    left = pixel_jacobian.mT @ slope_products
    gradient = left[..., 0].sum(-2)
    batch, _, _, count = pixel_jacobian.shape
    hessian = left[..., 1:].transpose(-3, -2).reshape(batch, count, -1) @ pixel_jacobian.reshape(batch, -1, count)
    return hessian, gradient


def linearize(
    level: FeatureLevel,
    image_size: tuple[int, int],
    camera: Camera,
    xyz: torch.Tensor,
    descriptors: torch.Tensor,
    confidences: torch.Tensor | None,
    mask: torch.Tensor | None,
    camera_from_map: torch.Tensor,
    loss: RobustLoss,
    border_cells: float,
) -> Linearization:
    """Residuals r_i = F(project(T p_i)) - f_i and their normal equations (PixLoc, equations 2 to 6).

    xyz [B, N, 3], descriptors [B, N, C], confidences [B, N] or None, mask bool [B, N] or None (which points exist),
    camera_from_map [B, 4, 4]; batches of size 1 are broadcast. Points count where they are in front of the camera, in the
    valid range of its distortion, and `border_cells` cells inside the image.
    """
    pose = camera_from_map.to(xyz.dtype)
    points = xyz @ pose[..., :3, :3].mT + pose[..., None, :3, 3]
    pixels, valid, project_jacobian = camera.project_with_jacobian(points)
    border = border_cells * level.stride - 0.5
    x, y = pixels.unbind(-1)
    right, bottom = (side - 1 - border for side in image_size)
    values, query_confidence, inside = sample_level_with_slopes(level, pixels)
    # Numbers of the host as they are: a tensor of them would have to be copied to the device, and waited for.
    valid = valid & inside & (x >= border) & (x <= right) & (y >= border) & (y <= bottom)
    if mask is not None:
        valid = valid & mask

    residual = values[..., 0, :] - descriptors
    stacked = torch.cat((residual[..., None, :], values[..., 1:, :]), -2)
    products = stacked @ stacked.mT
    squared = products[..., 0, 0]
    costs, weight = loss(squared)
    confidence = torch.ones_like(squared)
    for factor in (confidences, query_confidence):
        if factor is not None:
            confidence = confidence * factor
    weight = weight * confidence * valid

    # d(pixel)/d(pose) = J_project [I | -[p]x]
    rotation_part = torch.cross(points[..., None, :].expand_as(project_jacobian), project_jacobian, dim=-1)
    pixel_jacobian = torch.cat((project_jacobian, rotation_part), -1)
    # Points that do not count may hold NaN or infinity; zero times those would spoil the sums.
    pixel_jacobian = torch.where(valid[..., None, None], pixel_jacobian, torch.zeros_like(pixel_jacobian))
    weighted = weight[..., None, None] * products[..., 1:, :]
    hessian, gradient = normal_equations(weighted, pixel_jacobian)
    return Linearization(hessian, gradient, squared, costs, confidence, valid, pixels, pixel_jacobian, weighted)

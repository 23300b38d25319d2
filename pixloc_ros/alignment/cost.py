# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The featuremetric cost of one level around a pose: normal equations from value and slopes of the query's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from ..features.sampling import sample_level_with_slopes
from ..geometry import se3
from .robust import RobustLoss
from .types import View, map_tensors


@dataclass(frozen=True)
class Linearization:
    """The cost sum_i c_i loss(|r_i|²) / 2 around a pose, perturbed on the left by (translation, rotation).

    Attributes:
        hessian: [B, 6, 6] (Gauss-Newton).
        gradient: [B, 6].
        squared: [B, N] squared residuals.
        loss: [B, N] of these.
        confidence: [B, N], c_i: reference times query.
        valid: bool [B, N], which points count.
        pixels: [B, N, 2].
        pixel_jacobian: [B, N, 2, 6], derivative of the pixels by the perturbation.
        slope_products: [B, N, 2, 3], the slopes of the features along the image's x and y times the residual, and times one
            another, weighted as in the cost.
        squared_slopes: [B, N], squared slopes of the features per cell, along x and y together.
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
    squared_slopes: torch.Tensor

    def mean_cost(self, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Confidence-weighted mean loss [B] over the valid points (of `mask`)."""
        weight = self.confidence * (self.valid if mask is None else mask)
        return (weight * self.loss).sum(-1) / weight.sum(-1).clamp(min=1e-9)


def normal_equations(slope_products: torch.Tensor, pixel_jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Newton Hessian [B, K, K] and gradient [B, K] for what moves the pixels by pixel_jacobian [B, N, 2, K]."""
    left = pixel_jacobian.mT @ slope_products
    gradient = left[..., 0].sum(-2)
    by_direction = left[..., 1:].transpose(-3, -2).flatten(-2)
    hessian = by_direction @ pixel_jacobian.flatten(-3, -2)
    return hessian, gradient


def linearize(view: View, level: int, camera_from_map: torch.Tensor, loss: RobustLoss, border_cells: float) -> Linearization:
    """Residuals r_i = F(project(T p_i)) - f_i of one view and their normal equations (PixLoc, equations 2 to 6).

    Points count where they are in front of the camera, in the valid range of its distortion, and inside the image.

    Args:
        view: Batched; batches of size 1 are broadcast.
        level: Of its pyramid.
        camera_from_map: [B, 4, 4], the pose that is perturbed; of a rig, rig_from_map.
        loss: Of the squared residuals.
        border_cells: How far inside the image points must be.
    """
    features, points = view.pyramid.levels[level], view.points
    pose = camera_from_map.to(points.xyz.dtype)
    xyz = points.xyz @ pose[..., :3, :3].mT + pose[..., None, :3, 3]
    if view.camera_from_rig is None:
        pixels, valid, point_jacobian = view.camera.project_with_jacobian(xyz)
    else:
        place = view.camera_from_rig.to(xyz.dtype)
        pixels, valid, point_jacobian = view.camera.project_with_jacobian(se3.transform(place, xyz))
        point_jacobian = point_jacobian @ place[..., None, :3, :3]
    border = border_cells * features.stride - 0.5
    x, y = pixels.unbind(-1)
    right, bottom = (side - 1 - border for side in view.pyramid.image_size)
    values, query_confidence, inside = sample_level_with_slopes(features, pixels)
    # Numbers of the host as they are: a tensor of them would have to be copied to the device, and waited for.
    valid = valid & inside & (x >= border) & (x <= right) & (y >= border) & (y <= bottom)
    if view.mask is not None:
        valid = valid & view.mask

    residual = values[..., 0, :] - points.descriptors[level]
    stacked = torch.cat((residual[..., None, :], values[..., 1:, :]), -2)
    products = stacked @ stacked.mT
    squared = products[..., 0, 0]
    costs, weight = loss(squared)
    confidence = torch.ones_like(squared)
    for factor in (points.confidences[level], query_confidence):
        if factor is not None:
            confidence = confidence * factor
    weight = weight * confidence * valid

    # d(pixel)/d(pose) = J_point [I | -[p]x]
    rotation_part = torch.cross(xyz[..., None, :].expand_as(point_jacobian), point_jacobian, dim=-1)
    pixel_jacobian = torch.cat((point_jacobian, rotation_part), -1)
    # Points that do not count may hold NaN or infinity; zero times those would spoil the sums.
    pixel_jacobian = torch.where(valid[..., None, None], pixel_jacobian, torch.zeros_like(pixel_jacobian))
    weighted = weight[..., None, None] * products[..., 1:, :]
    hessian, gradient = normal_equations(weighted, pixel_jacobian)
    slopes = (products[..., 1, 1] + products[..., 2, 2]) * features.stride**2
    return Linearization(hessian, gradient, squared, costs, confidence, valid, pixels, pixel_jacobian, weighted, slopes)


def linearize_views(
    views: Sequence[View], level: int, rig_from_map: torch.Tensor, loss: RobustLoss, border_cells: float
) -> Linearization:
    """The sum of the views' costs (see `linearize`): normal equations are added, points stand one view after the other."""
    return sum_of([linearize(view, level, rig_from_map, loss, border_cells) for view in views])


def every(view: View, step: int) -> View:
    """The view with every step-th point alone."""
    if step == 1:
        return view
    points, mask = map_tensors(view.points, lambda tensor: tensor[:, ::step]), view.mask
    return replace(view, points=points, mask=None if mask is None else mask[:, ::step])


def sum_of(parts: Sequence[Linearization]) -> Linearization:
    """Of several views."""
    if len(parts) == 1:
        return parts[0]
    hessian, gradient = sum(part.hessian for part in parts), sum(part.gradient for part in parts)
    per_point = [torch.cat([getattr(part, field.name) for part in parts], 1) for field in fields(Linearization)[2:]]
    return Linearization(hessian, gradient, *per_point)

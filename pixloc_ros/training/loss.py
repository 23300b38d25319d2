# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""PixLoc's training loss: where the estimated pose puts the points, against where the true pose puts them.

Poses are the only supervision (PixLoc, section 4.3; cvg/pixloc, two_view_refiner.py).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..alignment.types import LevelTrace
from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera


@dataclass(frozen=True)
class LossOptions:
    """scale_px: up to about this distance the loss is quadratic, beyond it linear; PixLoc's is 2, less asks for more exactness.
    success_px: a level succeeded where its error is below this times its stride. limit_px: losses above it are cut off, so
    that hopeless pairs do not pull. min_points: pairs with fewer are dropped. balance_levels: an error of one cell counts the
    same at every level, the finest level as without; otherwise, as in PixLoc, a pixel does, and coarse levels outweigh fine
    ones.
    """

    scale_px: float = 2.0
    success_px: float = 3.0
    limit_px: float = 50.0
    min_points: int = 10
    balance_levels: bool = False

    def __post_init__(self) -> None:
        if not (self.scale_px > 0 and self.success_px > 0 and self.limit_px > 0) or self.min_points < 1:
            raise InputError("loss: scale_px, success_px and limit_px must be above 0, min_points at least 1")


@dataclass(frozen=True)
class PairLoss:
    """Per pair: loss [B] in pixels (0 for dropped pairs); kept, bool [B]; and for people, detached, per level coarse to
    fine: errors [B, L], the mean reprojection error in pixels; success, bool [B, L]."""

    loss: torch.Tensor
    kept: torch.Tensor
    errors: torch.Tensor
    success: torch.Tensor


def robust_pixels(squared: torch.Tensor, scale_px: float) -> torch.Tensor:
    """Robust error in pixels of squared distances in pixels: x / 2c near zero, sqrt(x) - c far away.

    Barron's general loss with shape 1 and scale c, divided by 2c: c = 2 is PixLoc's `scaled_barron(1, 2) / 4`.
    """
    return scale_px * (torch.sqrt(squared / scale_px ** 2 + 1) - 1)


def squared_distances(camera: Camera, xyz: torch.Tensor, truth: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
    """Squared distance [B, N], in pixels², between the projections of points under two poses.

    xyz [B, N, 3] in the reference's frame; truth, estimate: query_from_reference [B, 4, 4].
    """
    expected, _ = camera.project(se3.transform(truth, xyz))
    pixels, _ = camera.project(se3.transform(estimate, xyz))
    return ((pixels - expected) ** 2).sum(-1)


def _masked_mean(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def pair_loss(traces: tuple[LevelTrace, ...], camera: Camera, xyz: torch.Tensor, mask: torch.Tensor, truth: torch.Tensor,
              initial: torch.Tensor, options: LossOptions = LossOptions()) -> PairLoss:
    """Loss of a batch of pairs after alignment.

    traces: of `align` with the paper's strategy, poses [B, steps, 4, 4]. camera: of the query, batched or single. xyz
    [B, N, 3] float, mask bool [B, N]: points in the reference camera's frame. truth, initial: query_from_reference [B, 4, 4].

    Points count that are in the image from both the true and the initial pose. A level contributes where the level before it
    succeeded: one that was given a hopeless start has nothing to learn.
    """
    xyz = xyz.to(truth.dtype)
    counted = mask
    for pose in (truth, initial):
        pixels, valid = camera.project(se3.transform(pose, xyz))
        counted = counted & valid & camera.in_image(pixels)
    kept = counted.sum(-1) >= options.min_points
    total = torch.zeros_like(truth[:, 0, 0])
    reached = kept
    errors, success = [], []
    for trace in traces:
        squared = squared_distances(camera, xyz, truth, trace.camera_from_map[:, -1].to(truth.dtype))
        ratio = trace.stride / traces[-1].stride if options.balance_levels else 1.0
        robust = _masked_mean(robust_pixels(squared / ratio ** 2, options.scale_px), counted)
        share = robust.clamp(max=options.limit_px / ratio) / len(traces)
        total = total + torch.where(reached, share, torch.zeros_like(share))
        error = _masked_mean(squared.detach().sqrt(), counted)
        solved = error < options.success_px * trace.stride
        reached = kept & solved
        errors.append(error)
        success.append(solved)
    return PairLoss(total, kept, torch.stack(errors, -1), torch.stack(success, -1))

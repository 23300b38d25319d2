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

SHAPES = ("linear", "log")


@dataclass(frozen=True)
class LossOptions:
    """How errors of pairs become a loss.

    Attributes:
        shape: "linear" or "log", how the loss of a point grows beyond the scale, up to which it is quadratic.
        scale_px: PixLoc's is 2; less asks for more exactness.
        scale_cells: A scale for each level, coarse to fine, in its cells, instead: losses are then in units of the scale, so
            that a level that has reached what the next one needs teaches little more.
        every_iteration: The mean over the poses after all iterations of a level counts, not only the last one.
        success_px: A level succeeded where its error is below this times its stride.
        limit: Losses above it are cut off, so that hopeless pairs do not pull; null: none are.
        min_points: Pairs with fewer are dropped.
    """

    shape: str = "linear"
    scale_px: float = 2.0
    scale_cells: tuple[float, ...] = ()
    every_iteration: bool = False
    success_px: float = 3.0
    limit: float | None = 50.0
    min_points: int = 10

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(f"loss: shape '{self.shape}' is unknown: choose one of {', '.join(SHAPES)}")
        if not (min(self.scale_px, self.success_px, *self.scale_cells) > 0 and (self.limit is None or self.limit > 0)) or (
            self.min_points < 1
        ):
            raise InputError("loss: scale_px, scale_cells, success_px and limit must be above 0, min_points at least 1")


@dataclass(frozen=True)
class PairLoss:
    """Loss of a batch of pairs; errors and success are for people and detached.

    Attributes:
        loss: [B], in pixels or units of the scale; 0 for dropped pairs.
        kept: bool [B].
        errors: [B, L], per level coarse to fine, the mean reprojection error in pixels.
        success: bool [B, L].
    """

    loss: torch.Tensor
    kept: torch.Tensor
    errors: torch.Tensor
    success: torch.Tensor


def robust_error(squared: torch.Tensor, scale: float, shape: str = "linear") -> torch.Tensor:
    """Robust error of squared distances, in their unit: x / 2c near zero; far away sqrt(x) - c, or c / 2 log(x / c²).

    "linear" is Barron's general loss with shape 1 and scale c, divided by 2c: with c = 2 px PixLoc's `scaled_barron(1, 2) / 4`.
    """
    ratio = squared / scale**2
    return scale * (torch.sqrt(ratio + 1) - 1 if shape == "linear" else 0.5 * torch.log1p(ratio))


def squared_distances(camera: Camera, xyz: torch.Tensor, truth: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
    """Squared distances between the projections of points under two poses.

    Args:
        camera: Of the query.
        xyz: [B, N, 3] in the reference's frame.
        truth: query_from_reference [B, 4, 4].
        estimate: query_from_reference [B, 4, 4].

    Returns:
        [B, N], in pixels².
    """
    expected, _ = camera.project(se3.transform(truth, xyz))
    pixels, _ = camera.project(se3.transform(estimate, xyz))
    return ((pixels - expected) ** 2).sum(-1)


def _masked_mean(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def pair_loss(
    traces: tuple[LevelTrace, ...],
    camera: Camera,
    xyz: torch.Tensor,
    mask: torch.Tensor,
    truth: torch.Tensor,
    initial: torch.Tensor,
    options: LossOptions = LossOptions(),
) -> PairLoss:
    """Loss of a batch of pairs after alignment.

    Points count that are in the image from both the true and the initial pose. A level contributes where the level before it
    succeeded: one that was given a hopeless start has nothing to learn.

    Args:
        traces: Of `align`, poses [B, steps, 4, 4].
        camera: Of the query, batched or single.
        xyz: [B, N, 3], points in the reference camera's frame.
        mask: bool [B, N].
        truth: query_from_reference [B, 4, 4].
        initial: query_from_reference [B, 4, 4].
        options: How errors become a loss.

    Raises:
        InputError: The options have scales for another number of levels.
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
    if 0 < len(options.scale_cells) < len(traces):
        raise InputError(f"loss: {len(options.scale_cells)} scale_cells for {len(traces)} levels: give one for each")
    for k, trace in enumerate(traces):
        # Errors in pixels, or in units of the level's scale.
        unit, scale = (trace.stride * options.scale_cells[k], 1.0) if options.scale_cells else (1.0, options.scale_px)
        poses = trace.camera_from_map[:, 1 if options.every_iteration else -1 :].to(truth.dtype)
        squared = torch.stack([squared_distances(camera, xyz, truth, pose) for pose in poses.unbind(1)])
        robust = _masked_mean(robust_error(squared / unit**2, scale, options.shape), counted).mean(0)
        share = (robust if options.limit is None else robust.clamp(max=options.limit)) / len(traces)
        total = total + torch.where(reached, share, torch.zeros_like(share))
        error = _masked_mean(squared[-1].detach().sqrt(), counted)
        solved = error < options.success_px * trace.stride
        reached = kept & solved
        errors.append(error)
        success.append(solved)
    return PairLoss(total, kept, torch.stack(errors, -1), torch.stack(success, -1))

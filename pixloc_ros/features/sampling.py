# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Values and slopes of a feature level at image points, differentiable in the features.

Slopes are those of PixLoc's optimizer: the central difference of two bilinear samples one cell to either side (not the
derivative of the bilinear patch, which jumps at cell borders). Both are linear in a 4x4 block of cells around the point, so
one gather and one small matrix product give value and slopes together.
"""

from dataclasses import replace

import torch

from .pyramid import FeatureLevel


def _cells(level: FeatureLevel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Level coordinates [B, N, 2] of image pixels, and which of them lie on the level's cells.

    Within half a cell of the border the coordinate is held at the outermost cell centre: on a level of stride 64 that rim is
    a good part of the image.
    """
    cells = (pixels + 0.5) / level.stride - 0.5
    height, width = level.features.shape[-2:]
    x, y = cells.unbind(-1)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    held = torch.stack((x.clamp(0, width - 1), y.clamp(0, height - 1)), -1)
    return torch.where(inside[..., None], held, torch.zeros_like(cells)), inside


def _gather(values: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """values [Bf, C, H, W] at every crossing of columns [B, N, K] and rows [B, N, L] -> [B, N, L * K, C]."""
    count, channels, height, width = values.shape
    batch, points = columns.shape[:2]
    flat = values.permute(0, 2, 3, 1).reshape(count * height * width, channels)
    index = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    if count > 1:
        index = index + torch.arange(count, device=index.device).view(-1, 1, 1, 1) * (height * width)
    return flat.index_select(0, index.reshape(-1)).view(batch, points, columns.shape[-1] * rows.shape[-1], channels)


def sample_level(level: FeatureLevel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Bilinear values at image pixels.

    Args:
        level: A level of batch size 1 serves every batch of pixels.
        pixels: [B, N, 2].

    Returns:
        Values [B, N, C], confidence [B, N] (None where the level has none) and inside, bool [B, N]: values outside are those
        of cell (0, 0) and mean nothing.
    """
    cells, inside = _cells(level, pixels)
    corner = cells.detach().floor()
    a, b = (cells - corner).unbind(-1)
    columns, rows = (corner[..., k, None].long() + torch.arange(2, device=cells.device) for k in (0, 1))
    weights = (torch.stack((1 - b, b), -1)[..., :, None] * torch.stack((1 - a, a), -1)[..., None, :]).flatten(-2)
    values = (weights[..., None, :] @ _gather(level.features, columns, rows)).squeeze(-2)
    return values, _sample_confidence(level, columns, rows, weights), inside


def sample_reference(level: FeatureLevel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """What a map keeps of a reference image: as `sample_level`, but values of unit length.

    They come to unit length after the interpolation. The paper's network interpolates what was not of unit length before, so
    that of the cells around a point those with long features count more.
    """
    if level.lengths is not None:
        level = replace(level, features=level.features * level.lengths[:, None])
    values, confidence, inside = sample_level(level, pixels)
    return torch.nn.functional.normalize(values, dim=-1), confidence, inside


def sample_level_with_slopes(level: FeatureLevel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Bilinear values and their slopes per image pixel; cells beyond the border repeat the border.

    Args:
        level: As of `sample_level`.
        pixels: [B, N, 2].

    Returns:
        [B, N, 3, C] (value, d/dx, d/dy), confidence [B, N] or None, and inside, bool [B, N].
    """
    cells, inside = _cells(level, pixels)
    corner = cells.floor()
    a, b = (cells - corner).unbind(-1)
    offsets = torch.arange(-1, 3, device=cells.device)
    columns, rows = (corner[..., k, None].long() + offsets for k in (0, 1))
    zero = torch.zeros_like(a)
    half = 0.5 / level.stride

    def stencils(f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = torch.stack((zero, 1 - f, f, zero), -1)
        slope = torch.stack((f - 1, -f, 1 - f, f), -1) * half
        return value, slope

    (value_x, slope_x), (value_y, slope_y) = stencils(a), stencils(b)
    along_x = torch.stack((value_x, slope_x, value_x), -2)
    along_y = torch.stack((value_y, value_y, slope_y), -2)
    weights = (along_y[..., :, None] * along_x[..., None, :]).flatten(-2)
    values = weights @ _gather(level.features, columns, rows)
    return values, _sample_confidence(level, columns, rows, weights[..., 0, :]), inside


def _sample_confidence(
    level: FeatureLevel, columns: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor | None:
    if level.confidence is None:
        return None
    return (weights * _gather(level.confidence[:, None], columns, rows).squeeze(-1)).sum(-1)

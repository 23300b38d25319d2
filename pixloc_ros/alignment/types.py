# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What an alignment is given and what it returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


def to_device(value: T, device: torch.device) -> T:
    """The same with all tensors on a device: of a tensor, a tuple, or a dataclass of such."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(to_device(item, device) for item in value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{field.name: to_device(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        )
    return value


@dataclass(frozen=True)
class ReferencePoints:
    """Map points with the features that the reference images saw there.

    xyz: [..., N, 3] metres, in the frame the poses are asked in (float32 near its origin).
    descriptors: per level, coarse to fine, float32 [..., N, C_level], unit length.
    confidences: per level float32 [..., N] in (0, 1], or None for all ones.
    """

    xyz: torch.Tensor
    descriptors: tuple[torch.Tensor, ...]
    confidences: tuple[torch.Tensor | None, ...]

    def __len__(self) -> int:
        return self.xyz.shape[-2]


@dataclass(frozen=True)
class PriorFactor:
    """A Gaussian prior on the camera's pose that takes part in the optimisation (design.md, "The learned temporal prior").

    camera_from_map: [..., 4, 4] the predicted pose.
    information: [..., 6, 6], (translation, rotation) of a left perturbation of camera_from_map, i.e. along the camera's axes.
    """

    camera_from_map: torch.Tensor
    information: torch.Tensor


@dataclass(frozen=True)
class LevelTrace:
    """How one level went: costs [..., iterations + 1] (mean robust cost after each step), poses likewise, number of steps."""

    stride: float
    costs: torch.Tensor
    camera_from_map: torch.Tensor
    iterations: int


@dataclass(frozen=True)
class AlignmentResult:
    """Pose and everything needed to judge and draw it. Leading dimensions are those of the initial poses.

    camera_from_map: [..., 4, 4].
    converged: bool [...]; False where fewer than `min_points` were visible or the solution is not finite.
    hessian: [..., 6, 6] of the level whose pose stands at the solution, left perturbation (translation, rotation), camera axes,
        without damping and prior factor: the information the image gave, up to a scale.
    cost: [...] mean robust cost per visible point of that level.
    visible: bool [..., N] points that project validly into the image at the solution.
    inliers: bool [..., N] visible points whose residual is within the robust loss's quadratic zone, at the level that
        `AlignmentOptions.finest_share` names.
    pixels: [..., N, 2] reprojections in the image at the solution.
    trace: per level, coarse to fine.
    reason: one word: "converged", "iterations" (ran out), "points" (too few), "diverged".
    """

    camera_from_map: torch.Tensor
    converged: torch.Tensor
    hessian: torch.Tensor
    cost: torch.Tensor
    visible: torch.Tensor
    inliers: torch.Tensor
    pixels: torch.Tensor
    trace: tuple[LevelTrace, ...]
    reason: str

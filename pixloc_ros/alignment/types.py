# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What an alignment is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..features.pyramid import FeaturePyramid
from ..geometry.cameras import Camera

T = TypeVar("T")


def map_tensors(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """The same with all tensors changed: of a tensor, a tuple, or a dataclass of such."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple([map_tensors(item, change) for item in value])
    names = getattr(value, "__dataclass_fields__", None)
    return value if names is None else type(value)(*[map_tensors(getattr(value, name), change) for name in names])


def to_device(value: T, device: torch.device) -> T:
    """The same with all tensors on a device (see `map_tensors`)."""
    return map_tensors(value, lambda tensor: tensor.to(device))


def batched(value: T) -> T:
    """The same with all tensors as a batch of one (see `map_tensors`)."""
    return map_tensors(value, lambda tensor: tensor[None])


@dataclass(frozen=True)
class ReferencePoints:
    """Map points with the features that the reference images saw there.

    Attributes:
        xyz: [..., N, 3] metres, in the frame the poses are asked in (float32 near its origin).
        descriptors: Per level, coarse to fine, float32 [..., N, C_level], unit length.
        confidences: Per level float32 [..., N] in (0, 1], or None for all ones.
    """

    xyz: torch.Tensor
    descriptors: tuple[torch.Tensor, ...]
    confidences: tuple[torch.Tensor | None, ...]

    def __len__(self) -> int:
        return self.xyz.shape[-2]


@dataclass(frozen=True)
class View:
    """What one camera of a rig sees: a term of the cost. One camera is a rig of one.

    Attributes:
        pyramid: Features of its image, batch size B or 1.
        camera: Of the pyramid's image size.
        points: Map points [N, 3] or [B, N, 3] that it should see.
        mask: bool [B, N], which points exist (padding in training); None for all.
        camera_from_rig: Its place, [4, 4], in the frame whose pose is asked for; None where that is the camera's.
    """

    pyramid: FeaturePyramid
    camera: Camera
    points: ReferencePoints
    mask: torch.Tensor | None = None
    camera_from_rig: torch.Tensor | None = None


@dataclass(frozen=True)
class LevelTrace:
    """How one level went.

    Attributes:
        stride: Image pixels per cell.
        costs: [..., iterations + 1], mean robust cost after each step.
        camera_from_map: [..., iterations + 1, 4, 4], likewise.
        iterations: Number of steps.
        outputs: [..., 6] of `LevelWeights`: what was believed on this level.
        residual: [...], mean log10 of the squared residuals at the end, plus 1.
        agreement: [...], share of the visible points that agree there (`level_weights.AGREES`).
        slopes: [...], log10 of the mean squared slope of the image's features there, per cell, plus 1.
        recognised: [...], share of comparisons in which a visible point is recognised at the final pose (`recognition`).
    """

    stride: float
    costs: torch.Tensor
    camera_from_map: torch.Tensor
    iterations: int
    outputs: torch.Tensor
    residual: torch.Tensor
    agreement: torch.Tensor
    slopes: torch.Tensor
    recognised: torch.Tensor


@dataclass(frozen=True)
class AlignmentResult:
    """Pose and everything needed to judge and draw it. Leading dimensions are those of the initial poses.

    Points are those of all views, one view after the other.

    Attributes:
        camera_from_map: [..., 4, 4]; of a rig, rig_from_map.
        converged: bool [...]; False where fewer than `min_points` were visible or the solution is not finite.
        information: [..., 6, 6] that the image gave at all levels, without prior factors: inverse covariance of a left
            perturbation (translation, rotation), camera axes.
        cost: [...] mean robust cost per visible point of the finest level.
        visible: bool [..., N], points that project validly into the image at the solution.
        inliers: bool [..., N], visible points that agree (`level_weights.AGREES`) at the level that
            `AlignmentOptions.inlier_level` names.
        pixels: [..., N, 2] reprojections in the image at the solution.
        trace: Per level, coarse to fine.
        reason: One word: "converged", "iterations" (ran out), "points" (too few), "diverged".
    """

    camera_from_map: torch.Tensor
    converged: torch.Tensor
    information: torch.Tensor
    cost: torch.Tensor
    visible: torch.Tensor
    inliers: torch.Tensor
    pixels: torch.Tensor
    trace: tuple[LevelTrace, ...]
    reason: str


def why_ended(finished: bool, alive: bool, trace: Sequence[LevelTrace], iterations: int) -> str:
    """`AlignmentResult.reason` of a batch."""
    if not finished:
        return "diverged" if alive else "points"
    return "converged" if all(level.iterations < iterations for level in trace) else "iterations"

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From a batch of pairs to the loss: features of both images, unrolled alignment, reprojection error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from ..alignment import (
    AlignmentOptions,
    AlignmentResult,
    LearnedDamping,
    MotionCues,
    PriorFactor,
    ReferencePoints,
    TemporalPrior,
    View,
    align,
)
from ..alignment.types import map_tensors
from ..features.pyramid import FeaturePyramid
from ..features.sampling import sample_reference
from ..geometry import se3
from ..tracking.covariances import isotropic, not_better_than
from ..tracking.frame_aligner import hessian_covariance
from ..tracking.options import QualityGates, TrackerOptions
from .loss import LossOptions, PairLoss, pair_loss
from .pairs import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """Where the alignment of a batch begins, query_from_reference float64 [B, 4, 4], and what holds it there."""

    initial: torch.Tensor
    prior: PriorFactor | None = None
    cues: MotionCues | None = None


class PairRefiner(nn.Module):
    """The network and the damping, with what training does with them.

    Args:
        network: float32 [B, 1, H, W] (three channels where it says so) to a FeaturePyramid, as in `features.extractor`.
    """

    def __init__(self, network: nn.Module, damping: LearnedDamping, alignment: AlignmentOptions, loss: LossOptions) -> None:
        super().__init__()
        self.network, self.damping = network, damping
        self.alignment, self.loss = alignment, loss

    def forward(self, batch: Batch, strides: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """The fields of `PairLoss`, as a plain tuple (what DistributedDataParallel understands)."""
        loss, _ = self.refine(batch, strides)
        return loss.loss, loss.kept, loss.errors, loss.success

    def refine(self, batch: Batch, strides: tuple[int, ...]) -> tuple[PairLoss, AlignmentResult]:
        """Align every pair.

        Args:
            strides: Which of the network's sets of levels to use. In training the last levels are left out where nothing about
                them is learned.
        """
        points, mask, query = self.features(batch, strides)
        start = self.start(batch, points, mask, strides)
        if torch.is_grad_enabled() and not any(p.requires_grad for p in self.damping.parameters()):
            taught = [k for k, level in enumerate(query.levels, 1) if level.features.requires_grad]
            some = slice(max(taught, default=None))
            points = replace(points, descriptors=points.descriptors[some], confidences=points.confidences[some])
            query = replace(query, levels=query.levels[some])
        view = View(query, batch.query_camera, points, mask)
        result = align(view, start.initial, self.alignment, self.damping, start.prior, start.cues)
        loss = pair_loss(result.trace, batch.query_camera, batch.xyz, mask, batch.query_from_reference, start.initial, self.loss)
        return loss, result

    @torch.no_grad()
    def start(self, batch: Batch, points: ReferencePoints, mask: torch.Tensor, strides: tuple[int, ...]) -> Start:
        """The wrong pose of a pair; of a frame that follows another, what odometry predicts from where the running system
        finds that one."""
        if batch.steps is None or not isinstance(self.damping, TemporalPrior):
            return Start(batch.initial)
        steps = batch.steps
        previous = self._pyramid(steps.previous, strides)
        camera_from_base = se3.inverse(steps.base_from_camera)
        options = replace(AlignmentOptions(), loss=self.alignment.loss)
        floors, gates = TrackerOptions(), QualityGates()
        poses, covariances, inliers = [], [], []
        for b in range(len(batch)):
            step, image = member(steps, b), member(previous, slice(b, b + 1))
            view = View(image, step.previous_camera, member(points, b), mask[b : b + 1])
            pose, covariance = step.previous_start, step.previous_covariance
            found = align(view, pose, options)
            share = float(found.inliers.sum() / found.visible.sum().clamp(min=1))
            if bool(found.converged) and share >= gates.min_inlier_fraction:
                pose = found.camera_from_map.double()
                measured = hessian_covariance(found.hessian.double(), float(found.cost))
                if bool(measured.isfinite().all()):
                    covariance = not_better_than(
                        se3.transform_covariance(measured / share**2, step.base_from_camera),
                        isotropic(floors.prior_translation_floor, floors.prior_rotation_floor),
                    )
            poses.append(se3.inverse(pose) @ camera_from_base[b])
            covariances.append(covariance)
            inliers.append(share)
        predicted = torch.stack(poses) @ steps.odometry
        covariance = se3.transform_covariance(torch.stack(covariances), se3.inverse(steps.odometry)) + steps.covariance
        initial = camera_from_base @ se3.inverse(predicted)
        depths = torch.where(mask, se3.transform(initial, batch.xyz.double())[..., 2], torch.nan).nanmedian(-1).values
        shares, depths = torch.tensor(inliers).double(), depths.abs().clamp(min=torch.finfo(depths.dtype).tiny)
        cues = MotionCues.of(steps.seconds, se3.se3_log(steps.odometry), covariance, shares, depths, camera_from_base)
        information = torch.linalg.inv(se3.transform_covariance(covariance, camera_from_base))
        return Start(initial, PriorFactor(initial, information), cues)

    def features(self, batch: Batch, strides: tuple[int, ...]) -> tuple[ReferencePoints, torch.Tensor, FeaturePyramid]:
        """Descriptors of the points where the reference sees them, as maps store them; which points exist, bool [B, N];
        and the query's pyramid. Both images go through the network together."""
        pyramid = self._pyramid(torch.cat((batch.reference, batch.query)), strides)
        reference, query = (member(pyramid, some) for some in (slice(len(batch)), slice(len(batch), None)))
        pixels, valid = batch.reference_camera.project(batch.xyz)
        mask = batch.mask & valid & batch.reference_camera.in_image(pixels)
        descriptors, confidences = [], []
        for level in reference.levels:
            values, confidence, inside = sample_reference(level, pixels)
            mask = mask & inside
            descriptors.append(values)
            confidences.append(confidence)
        return ReferencePoints(batch.xyz, tuple(descriptors), tuple(confidences)), mask, query

    def _pyramid(self, images: torch.Tensor, strides: tuple[int, ...]) -> FeaturePyramid:
        network = self.network if tuple(self.network.strides) == strides else self.network.with_strides(strides)
        if not network.takes_grey:
            images = images.expand(-1, 3, -1, -1)
        return network(images.contiguous(memory_format=torch.channels_last))


def member(value: T, which: int | slice) -> T:
    """One of a batch, or some, of a camera, points, a pyramid or whatever else `map_tensors` takes."""
    return map_tensors(value, lambda tensor: tensor[which])

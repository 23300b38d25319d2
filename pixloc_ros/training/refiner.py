# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From a batch of pairs to the loss: features of both images, unrolled alignment, reprojection error."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from ..alignment import AlignmentOptions, AlignmentResult, LearnedDamping, ReferencePoints, View, align
from ..alignment.types import map_tensors
from ..features.pyramid import FeaturePyramid
from ..features.sampling import sample_reference
from .loss import LossOptions, PairLoss, pair_loss
from .pairs import Batch

T = TypeVar("T")


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
        if torch.is_grad_enabled() and not any(p.requires_grad for p in self.damping.parameters()):
            taught = [k for k, level in enumerate(query.levels, 1) if level.features.requires_grad]
            some = slice(max(taught, default=None))
            points = replace(points, descriptors=points.descriptors[some], confidences=points.confidences[some])
            query = replace(query, levels=query.levels[some])
        view = View(query, batch.query_camera, points, mask)
        result = align(view, batch.initial, self.alignment, self.damping)
        loss = pair_loss(result.trace, batch.query_camera, batch.xyz, mask, batch.query_from_reference, batch.initial, self.loss)
        return loss, result

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

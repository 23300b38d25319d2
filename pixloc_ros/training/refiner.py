# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From a batch of pairs to the loss: features of both images, unrolled alignment, reprojection error."""
from __future__ import annotations

import torch
from torch import nn

from ..alignment import AlignmentOptions, AlignmentResult, LearnedDamping, ReferencePoints, align
from ..features.pyramid import FeatureLevel, FeaturePyramid
from ..features.sampling import sample_level
from .loss import LossOptions, PairLoss, pair_loss
from .pairs import Batch


class PairRefiner(nn.Module):
    """The network and the damping, with what training does with them.

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
        """Align every pair. strides: which of the network's sets of levels to use."""
        points, mask, query = self.features(batch, strides)
        result = align(query, batch.query_camera, points, batch.initial, self.alignment, self.damping, mask=mask)
        loss = pair_loss(result.trace, batch.query_camera, batch.xyz, mask, batch.query_from_reference, batch.initial,
                         self.loss)
        return loss, result

    def features(self, batch: Batch, strides: tuple[int, ...]) -> tuple[ReferencePoints, torch.Tensor, FeaturePyramid]:
        """Descriptors of the points where the reference sees them, as maps store them; which points exist, bool [B, N];
        and the query's pyramid. Both images go through the network together."""
        network = self.network if tuple(self.network.strides) == strides else self.network.with_strides(strides)
        images = torch.cat((batch.reference, batch.query))
        if not network.takes_grey:
            images = images.expand(-1, 3, -1, -1)
        pyramid = network(images.contiguous(memory_format=torch.channels_last))
        count = len(batch)
        reference, query = image_subset(pyramid, slice(0, count)), image_subset(pyramid, slice(count, None))
        pixels, valid = batch.reference_camera.project(batch.xyz)
        mask = batch.mask & valid & batch.reference_camera.in_image(pixels)
        descriptors, confidences = [], []
        for level in reference.levels:
            values, confidence, inside = sample_level(level, pixels)
            mask = mask & inside
            descriptors.append(nn.functional.normalize(values, dim=-1))
            confidences.append(confidence)
        return ReferencePoints(batch.xyz, tuple(descriptors), tuple(confidences)), mask, query


def image_subset(pyramid: FeaturePyramid, which: slice) -> FeaturePyramid:
    """Some images of a batch."""
    levels = (FeatureLevel(level.features[which], None if level.confidence is None else level.confidence[which], level.stride)
              for level in pyramid.levels)
    return FeaturePyramid(tuple(levels), pyramid.image_size)

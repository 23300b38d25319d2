# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From a batch of pairs to the loss: features of both images, then unrolled alignment and reprojection error, or losses on the
features."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from ..alignment import AlignmentOptions, AlignmentResult, LearnedDamping, ReferencePoints, View, align
from ..alignment.types import map_tensors
from ..features.pyramid import FeaturePyramid
from ..features.sampling import sample_reference
from ..geometry import se3
from .feature_loss import FeatureLossOptions, contrast, imitation
from .loss import LossOptions, PairLoss, pair_loss
from .pairs import Batch

T = TypeVar("T")


class PairRefiner(nn.Module):
    """The network and the damping, with what training does with them.

    Args:
        network: float32 [B, 1, H, W] (three channels where it says so) to a FeaturePyramid, as in `features.extractor`.
    """

    def __init__(
        self,
        network: nn.Module,
        damping: LearnedDamping,
        alignment: AlignmentOptions,
        loss: LossOptions,
        feature_loss: FeatureLossOptions | None = None,
    ) -> None:
        super().__init__()
        self.network, self.damping = network, damping
        self.alignment, self.loss, self.feature_loss = alignment, loss, feature_loss or FeatureLossOptions()

    def forward(self, batch: Batch, strides: tuple[int, ...], start: FeaturePyramid | None = None) -> tuple[torch.Tensor, ...]:
        """The fields of `PairLoss`, as a plain tuple (what DistributedDataParallel understands).

        Args:
            start: What the start makes of the unchanged images (its `pyramid` of `Batch.clean`), for the imitation.
        """
        options, pyramid = self.feature_loss, self.pyramid(torch.cat((batch.reference, batch.query)), strides)
        features = points, mask, query = self._features(batch, pyramid)
        if options.poses:
            loss, _ = self._refine(batch, *features)
            loss = replace(loss, loss=options.poses * loss.loss)
        else:
            nothing = mask.new_zeros(len(batch), max(1, len(options.contrast)))
            kept = mask.sum(-1) >= self.loss.min_points
            loss = PairLoss(torch.zeros(len(batch)), kept, nothing.double(), nothing)
        total = loss.loss
        pixels, valid = batch.query_camera.project(se3.transform(batch.query_from_reference, batch.xyz.double()))
        seen = mask & valid & batch.query_camera.in_image(pixels)
        for k, weight in enumerate(options.contrast):
            places = contrast(points.descriptors[k], query.levels[k], pixels, seen, options.temperature)
            total = total + weight * places.loss * loss.kept
            if not options.poses:
                loss.errors[:, k], loss.success[:, k] = places.error, places.success
        if options.imitation:
            if start is None:
                raise ValueError("imitation needs what the start makes of the unchanged images")
            for level, aim, weight in zip(pyramid.levels, start.levels, options.imitation):
                total = total + weight * imitation(level, aim).reshape(2, -1).mean(0) * loss.kept
        return total, loss.kept, loss.errors, loss.success

    def refine(self, batch: Batch, strides: tuple[int, ...]) -> tuple[PairLoss, AlignmentResult]:
        """Align every pair.

        Args:
            strides: Which of the network's sets of levels to use. In training the last levels are left out where nothing about
                them is learned.
        """
        return self._refine(batch, *self.features(batch, strides))

    def _refine(
        self, batch: Batch, points: ReferencePoints, mask: torch.Tensor, query: FeaturePyramid
    ) -> tuple[PairLoss, AlignmentResult]:
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
        return self._features(batch, self.pyramid(torch.cat((batch.reference, batch.query)), strides))

    @staticmethod
    def _features(batch: Batch, pyramid: FeaturePyramid) -> tuple[ReferencePoints, torch.Tensor, FeaturePyramid]:
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

    def pyramid(self, images: torch.Tensor, strides: tuple[int, ...]) -> FeaturePyramid:
        """Features of float32 [B, 1, H, W], grey levels, with one of the network's sets of levels."""
        network = self.network if tuple(self.network.strides) == strides else self.network.with_strides(strides)
        if not network.takes_grey:
            images = images.expand(-1, 3, -1, -1)
        return network(images.contiguous(memory_format=torch.channels_last))


def member(value: T, which: int | slice) -> T:
    """One of a batch, or some, of a camera, points, a pyramid or whatever else `map_tensors` takes."""
    return map_tensors(value, lambda tensor: tensor[which])

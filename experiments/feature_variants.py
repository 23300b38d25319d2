# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Extractors for comparisons, behind the interface of the running system's: raw intensities, and networks with parts left out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from pixloc_ros.alignment.damping import LOG10_RANGE, LearnedDamping, damping_tensors
from pixloc_ros.alignment.damping import TENSORS as DAMPING
from pixloc_ros.alignment.level_weights import TENSORS as WEIGHTS
from pixloc_ros.features import Extractor
from pixloc_ros.features.compact import pad_to_multiple
from pixloc_ros.features.pyramid import FeatureLevel, FeaturePyramid
from pixloc_ros.tracking.alignment_judge import TENSORS as JUDGE

INTENSITY_STRIDES = (16, 8, 4, 2, 1)
PATCH = 5
NOISE_GREY = 2.0
"""Contrast, in grey levels, below which a patch counts as blank."""


class IntensityNetwork(nn.Module):
    """No network: each cell holds the 5x5 patch of the image around it, shrunk to the level's resolution by averaging and
    blurred, its mean subtracted and brought to unit length. So alignment becomes the classical direct method.

    The last channel is constant: in patches without contrast it takes the unit length, and noise is not blown up.
    """

    takes_grey = True
    strides = INTENSITY_STRIDES
    channels = (PATCH * PATCH + 1,) * len(INTENSITY_STRIDES)

    def suited_to(self, width: int, height: int) -> IntensityNetwork:
        return self

    def with_strides(self, strides: tuple[int, ...]) -> IntensityNetwork:
        return self

    def forward(self, grey: torch.Tensor) -> FeaturePyramid:
        """grey: float32 [B, 1, H, W], 0 to 255."""
        height, width = grey.shape[-2:]
        grey = pad_to_multiple(grey, max(INTENSITY_STRIDES))
        return FeaturePyramid(tuple(self._level(grey, stride) for stride in INTENSITY_STRIDES), (width, height))

    def _level(self, grey: torch.Tensor, stride: int) -> FeatureLevel:
        small = F.avg_pool2d(grey, stride) if stride > 1 else grey
        binomial = small.new_tensor((1.0, 2.0, 1.0)) / 4
        small = F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), torch.outer(binomial, binomial)[None, None])
        margin = PATCH // 2
        batch, _, rows, columns = small.shape
        patches = F.unfold(F.pad(small, (margin,) * 4, mode="replicate"), PATCH).view(batch, -1, rows, columns)
        patches = patches - patches.mean(1, keepdim=True)
        patches = torch.cat((patches, torch.full_like(small, NOISE_GREY * PATCH)), 1)
        return FeatureLevel(F.normalize(patches.contiguous(memory_format=torch.channels_last), dim=1), None, float(stride))


def intensity_extractor() -> Extractor:
    """Ready to make maps of and to localize with."""
    return Extractor(IntensityNetwork(), "intensity", "intensity patches")


class ReducedNetwork(nn.Module):
    """A network without its finest levels (levels: so many are kept, coarse to fine) or without its confidences, so that every
    point counts the same."""

    def __init__(self, network: nn.Module, levels: int, confidences: bool = True) -> None:
        super().__init__()
        self.network, self.levels, self.confidences = network, levels, confidences
        self.takes_grey = network.takes_grey
        self.strides, self.channels = tuple(network.strides[:levels]), tuple(network.channels[:levels])

    def suited_to(self, width: int, height: int) -> ReducedNetwork:
        return ReducedNetwork(self.network.suited_to(width, height), self.levels, self.confidences)

    def with_strides(self, strides: tuple[int, ...]) -> ReducedNetwork:
        whole = self.network.with_strides((*strides, *self.network.strides[self.levels :]))
        return ReducedNetwork(whole, self.levels, self.confidences)

    def forward(self, image: torch.Tensor) -> FeaturePyramid:
        pyramid = self.network(image)
        levels = pyramid.levels[: self.levels]
        if not self.confidences:
            levels = tuple(replace(level, confidence=None) for level in levels)
        return FeaturePyramid(tuple(levels), pyramid.image_size)


def reduced_extractor(
    extractor: Extractor, levels: int = 0, confidences: bool = True, damping: bool = True, weights: bool = True
) -> Extractor:
    """An extractor without some parts (see `ReducedNetwork`; 0: all levels), its learned damping, or its weights and judge.

    Maps of differently reduced features do not fit each other; what the optimizer learned makes no difference to a map.
    """
    complete = levels in (0, len(extractor.strides))
    dropped = (() if damping else (DAMPING,)) + (() if weights else (WEIGHTS, JUDGE))
    learned = extractor.companions.items() if complete else ()
    kept = {name: value for name, value in learned if not name.startswith(dropped)}
    if complete and confidences:
        return Extractor(extractor.network, extractor.name, extractor.fingerprint, extractor.execution, kept)
    network = ReducedNetwork(extractor.network, levels or len(extractor.strides), confidences)
    parts = f"{extractor.fingerprint} levels={network.levels} confidences={confidences}"
    return Extractor(network, f"{extractor.name}, reduced", hashlib.sha256(parts.encode()).hexdigest()[:16], companions=kept)


def with_damping(extractor: Extractor, factor: float) -> Extractor:
    """An extractor whose damping has the same factor for every level and degree of freedom, as if that had been learned."""
    damping, (low, high) = LearnedDamping(len(extractor.strides)), LOG10_RANGE
    share = (math.log10(factor) - low) / (high - low)
    with torch.no_grad():
        damping.theta += math.log(share / (1 - share))
    companions = damping_tensors(damping)
    return Extractor(extractor.network, extractor.name, extractor.fingerprint, extractor.execution, companions)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Extractors for comparisons, behind the interface of the running system's: raw intensities, and networks with parts left out."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn
from torch.nn import functional as F

from pixloc_ros.features import Extractor
from pixloc_ros.features.compact import pad_to_multiple
from pixloc_ros.features.pyramid import FeatureLevel, FeaturePyramid

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
    """A network without some of its parts.

    levels: so many are kept, coarse to fine (0: all). confidences: keep them, else every point counts the same. full_size:
    compute the robust levels from the image at full size, whatever it is, where the network would shrink it.
    """

    def __init__(self, network: nn.Module, levels: int = 0, confidences: bool = True, full_size: bool = False) -> None:
        super().__init__()
        self.levels, self.confidences, self.full_size = levels or len(network.strides), confidences, full_size
        self.network = self._scaled(network)

    def _scaled(self, network: nn.Module) -> nn.Module:
        return network.suited_to(64, 64) if self.full_size else network

    @property
    def takes_grey(self) -> bool:
        return self.network.takes_grey

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.network.strides[: self.levels])

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.network.channels[: self.levels])

    def suited_to(self, width: int, height: int) -> ReducedNetwork:
        return self._around(self._scaled(self.network.suited_to(width, height)))

    def with_strides(self, strides: tuple[int, ...]) -> ReducedNetwork:
        return self._around(self.network.with_strides((*strides, *self.network.strides[self.levels :])))

    def _around(self, network: nn.Module) -> ReducedNetwork:
        reduced = copy.copy(self)
        reduced._modules = {"network": network}
        return reduced

    def forward(self, image: torch.Tensor) -> FeaturePyramid:
        pyramid = self.network(image)
        levels = pyramid.levels[: self.levels]
        if not self.confidences:
            levels = tuple(FeatureLevel(level.features, None, level.stride) for level in levels)
        return FeaturePyramid(tuple(levels), pyramid.image_size)


def reduced_extractor(
    extractor: Extractor, levels: int = 0, confidences: bool = True, full_size: bool = False, damping: bool = True
) -> Extractor:
    """An extractor without some parts (see `ReducedNetwork`), or without its learned damping. Maps of differently reduced
    features do not fit each other; the damping makes no difference to a map."""
    levels = levels or len(extractor.strides)
    complete = levels == len(extractor.strides)
    kept = extractor.companions if damping and complete else {}
    if complete and confidences and not full_size:
        return Extractor(extractor.network, extractor.name, extractor.fingerprint, extractor.execution, kept)
    network = ReducedNetwork(extractor.network, levels, confidences, full_size)
    parts = f"{extractor.fingerprint} levels={levels} confidences={confidences} full_size={full_size}"
    return Extractor(network, f"{extractor.name}, reduced", hashlib.sha256(parts.encode()).hexdigest()[:16], companions=kept)

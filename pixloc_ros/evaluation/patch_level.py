# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A network whose finest level is raw intensity patches: what a learned finest level has to beat."""
from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn

from ..features import Extractor
from ..features.pyramid import FeaturePyramid
from .feature_variants import PATCH, IntensityNetwork

STRIDE = 2


class PatchedNetwork(nn.Module):
    """A network for grey images with its finest level replaced by `IntensityNetwork`'s level of stride 2."""

    takes_grey = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.patches = network, IntensityNetwork()

    @property
    def strides(self) -> tuple[int, ...]:
        return (*self.network.strides[:-1], STRIDE)

    @property
    def channels(self) -> tuple[int, ...]:
        return (*self.network.channels[:-1], PATCH * PATCH + 1)

    def suited_to(self, width: int, height: int) -> PatchedNetwork:
        return self._around(self.network.suited_to(width, height))

    def with_strides(self, strides: tuple[int, ...]) -> PatchedNetwork:
        return self._around(self.network.with_strides((*strides[:-1], self.network.strides[-1])))

    def _around(self, network: nn.Module) -> PatchedNetwork:
        patched = copy.copy(self)
        patched._modules = {**self._modules, "network": network}
        return patched

    def forward(self, grey: torch.Tensor) -> FeaturePyramid:
        pyramid, patches = self.network(grey), self.patches(grey)
        (finest,) = (level for level in patches.levels if level.stride == STRIDE)
        return FeaturePyramid((*pyramid.levels[:-1], finest), pyramid.image_size)


def patched_extractor(extractor: Extractor) -> Extractor:
    """An extractor for grey images with intensity patches for its finest level, and no learned damping."""
    fingerprint = hashlib.sha256(f"{extractor.fingerprint} patches".encode()).hexdigest()[:16]
    return Extractor(PatchedNetwork(extractor.network), f"{extractor.name}, patches", fingerprint)

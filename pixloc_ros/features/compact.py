# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The compact network: an image to a feature pyramid on a CPU.

The encoder has the layer sizes of XFeat's backbone (Potje et al., CVPR 2024), so that its public weights can start it.
Batch normalisation is folded into the convolutions: every layer is a biased convolution, most of them followed by a ReLU.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from .patches import CHANNELS as PATCH_CHANNELS
from .patches import patch_features
from .pyramid import FeatureLevel, FeaturePyramid

DEEP_SIDE_PX = 240
"""About how long the shorter side of the image is that the robust levels are computed from."""


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU(inplace=True))


class CompactNetwork(nn.Module):
    """Grey image to five levels of 64, 64, 24, 8, 8 channels, coarse to fine.

    The three robust levels are learned and come from the image shrunk by `deep_scale` (strides 32, 8, 4 times that). The two
    exact ones, strides 2 and 1, are intensity patches (`patches`) of the image shrunk by 2 and as it is: near the solution
    features need not be clever, only sharp.
    confidences: whether each robust level has a confidence head; the encoder as it was pretrained has none.
    """

    channels = (64, 64, 24, PATCH_CHANNELS, PATCH_CHANNELS)
    robust = 3
    """How many of the levels are learned."""
    takes_grey = True

    def __init__(self, deep_scale: int = 1, confidences: bool = False) -> None:
        super().__init__()
        self.deep_scale = deep_scale
        heads = (nn.Conv2d(channels, 1, 1) for channels in self.channels[: self.robust])
        self.confidence = nn.ModuleList(heads) if confidences else None
        self.skip = nn.Conv2d(1, 24, 1)
        self.stem = nn.Sequential(_conv(1, 4), _conv(4, 8, 2), _conv(8, 8))
        self.block1 = _conv(8, 24, 2)
        self.block2 = nn.Sequential(_conv(24, 24), _conv(24, 24))
        self.block3 = nn.Sequential(_conv(24, 64, 2), _conv(64, 64), _conv(64, 64, kernel=1))
        self.block4 = nn.Sequential(_conv(64, 64, 2), _conv(64, 64), _conv(64, 64))
        self.block5 = nn.Sequential(_conv(64, 128, 2), _conv(128, 128), _conv(128, 128), _conv(128, 64, kernel=1))
        self.fusion = nn.Sequential(_conv(64, 64), _conv(64, 64), nn.Conv2d(64, 64, 1))

    @classmethod
    def for_weights(cls, state: dict[str, torch.Tensor]) -> CompactNetwork:
        """A network with the heads that a state dict has."""
        return cls(confidences=any(name.startswith("confidence.") for name in state))

    @property
    def strides(self) -> tuple[int, ...]:
        return (32 * self.deep_scale, 8 * self.deep_scale, 4 * self.deep_scale, 2, 1)

    def suited_to(self, width: int, height: int) -> CompactNetwork:
        """The same network, its robust levels at a size that costs about the same whatever the image's.

        Which one serves is a property of a map, since features of different scales must not be compared.
        """
        return self._at(max(1, round(min(width, height) / DEEP_SIDE_PX)))

    def with_strides(self, strides: tuple[int, ...]) -> CompactNetwork:
        """The same network with the strides of a map. Raises InputError where it has no such levels."""
        network = self._at(max(1, strides[0] // 32))
        if network.strides != tuple(strides):
            raise InputError(f"the network has no levels of strides {', '.join(map(str, strides))}: build the map again")
        return network

    def _at(self, deep_scale: int) -> CompactNetwork:
        network = copy.copy(self)  # shares the parameters
        network.deep_scale = deep_scale
        return network

    @property
    def multiple(self) -> int:
        """Of which width and height are made multiples."""
        return 32 * self.deep_scale

    def forward(self, grey: torch.Tensor) -> FeaturePyramid:
        """grey: float32 [B, 1, H, W], any affine range (each image is normalised to zero mean and unit variance)."""
        height, width = grey.shape[-2:]
        full = F.instance_norm(pad_to_multiple(grey, self.multiple))
        levels, confidences = self.robust_levels(F.avg_pool2d(full, self.deep_scale) if self.deep_scale > 1 else full)
        levels = [F.normalize(level.contiguous(memory_format=torch.channels_last), dim=1) for level in levels]
        levels += patch_features(F.avg_pool2d(full, 2)), patch_features(full)
        return FeaturePyramid(
            tuple(map(FeatureLevel, levels, (*confidences, None, None), map(float, self.strides))), (width, height)
        )

    def robust_levels(self, small: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
        """All that is learned: levels [B, C, H, W] before they are brought to unit length, and confidences [B, H, W].

        small: normalised image [B, 1, H, W] shrunk by `deep_scale`, H and W multiples of 32.
        """
        x4 = self.block2(self.block1(self.stem(small)) + self.skip(F.avg_pool2d(small, 4)))
        x8 = self.block3(x4)
        x16 = self.block4(x8)
        x32 = self.block5(x16)
        size = x8.shape[-2:]
        fused = x8 + F.interpolate(x16, size, mode="bilinear") + F.interpolate(x32, size, mode="bilinear")
        levels = (x32, self.fusion(fused), x4)
        if self.confidence is None:
            return levels, (None,) * len(levels)
        return levels, tuple(torch.sigmoid(head(level)[:, 0]) for head, level in zip(self.confidence, levels))


def pad_sizes(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Rows and columns to add (negative: to take away) to come to the nearest multiples."""
    return tuple(max(multiple, (n + multiple // 2) // multiple * multiple) - n for n in (height, width))


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Bring height and width to the nearest multiple by cropping or repeating the last rows and columns.

    The strides stay exact and no pixel is resampled, unlike with a resize. At most half a multiple is lost or added.
    """
    rows, columns = pad_sizes(*image.shape[-2:], multiple)
    image = image[..., : image.shape[-2] + min(rows, 0), : image.shape[-1] + min(columns, 0)]
    return F.pad(image, (0, max(columns, 0), 0, max(rows, 0)), mode="replicate")

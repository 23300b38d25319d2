# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The compact network: an image to a feature pyramid on a CPU.

The encoder has the layer sizes of XFeat's backbone (Potje et al., CVPR 2024), so that its public weights can start it.
Batch normalisation is folded into the convolutions: every layer is a biased convolution, most of them followed by a ReLU.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .pyramid import FeatureLevel, FeaturePyramid

PADDING_MULTIPLE = 32


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU(inplace=True))


class CompactNetwork(nn.Module):
    """Grey image to four levels, coarse to fine: strides 32, 8, 4, 2 with 64, 64, 24, 8 channels.

    The finest is an early layer of the encoder: near the solution it need not be clever, only sharp. No confidences yet:
    the encoder is used as it was pretrained.
    """

    strides = (32, 8, 4, 2)
    channels = (64, 64, 24, 8)

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Conv2d(1, 24, 1)
        self.block1 = nn.Sequential(_conv(1, 4), _conv(4, 8, 2), _conv(8, 8), _conv(8, 24, 2))
        self.block2 = nn.Sequential(_conv(24, 24), _conv(24, 24))
        self.block3 = nn.Sequential(_conv(24, 64, 2), _conv(64, 64), _conv(64, 64, kernel=1))
        self.block4 = nn.Sequential(_conv(64, 64, 2), _conv(64, 64), _conv(64, 64))
        self.block5 = nn.Sequential(_conv(64, 128, 2), _conv(128, 128), _conv(128, 128), _conv(128, 64, kernel=1))
        self.fusion = nn.Sequential(_conv(64, 64), _conv(64, 64), nn.Conv2d(64, 64, 1))

    def forward(self, grey: torch.Tensor) -> FeaturePyramid:
        """grey: float32 [B, 1, H, W], any affine range (each image is normalised to zero mean and unit variance)."""
        height, width = grey.shape[-2:]
        x = pad_to_multiple(grey)
        x = F.instance_norm(x)
        x2 = self.block1[:3](x)
        x4 = self.block2(self.block1[3](x2) + self.skip(F.avg_pool2d(x, 4)))
        x8 = self.block3(x4)
        x16 = self.block4(x8)
        x32 = self.block5(x16)
        size = x8.shape[-2:]
        fused = x8 + F.interpolate(x16, size, mode="bilinear") + F.interpolate(x32, size, mode="bilinear")
        levels = (x32, self.fusion(fused), x4, x2)
        return FeaturePyramid(
            tuple(FeatureLevel(F.normalize(level.contiguous(memory_format=torch.channels_last), dim=1), None, float(stride))
                  for level, stride in zip(levels, self.strides)), (width, height))


def pad_to_multiple(image: torch.Tensor, multiple: int = PADDING_MULTIPLE) -> torch.Tensor:
    """Bring height and width to the nearest multiple by cropping or repeating the last rows and columns.

    The strides stay exact and no pixel is resampled, unlike with a resize. At most half a multiple is lost or added.
    """
    height, width = image.shape[-2:]
    rows, columns = (max(multiple, (n + multiple // 2) // multiple * multiple) - n for n in (height, width))
    return image if rows == columns == 0 else F.pad(image, (0, columns, 0, rows), mode="replicate") \
        if rows >= 0 and columns >= 0 else _crop_then_pad(image, rows, columns)


def _crop_then_pad(image: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    image = image[..., :image.shape[-2] + min(rows, 0), :image.shape[-1] + min(columns, 0)]
    return F.pad(image, (0, max(columns, 0), 0, max(rows, 0)), mode="replicate")

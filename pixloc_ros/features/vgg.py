# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The network of the PixLoc paper (Sarlin et al., CVPR 2021): a U-Net with a VGG encoder and a light decoder.

Layer for layer the one whose checkpoints its authors published (`checkpoint_import`), in our own structure and names.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from .pyramid import FeatureLevel, FeaturePyramid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STAGE_CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""VGG's depth to the number of 3x3 convolutions in each stage, at strides 1, 2, 4, 8, 16."""
DECODER_CHANNELS = (64, 64, 64, 32)


class _DecoderBlock(nn.Module):
    """Coarse map doubled and joined with the encoder's map of that stride."""

    def __init__(self, coarse: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(coarse + skip, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        doubled = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        # Pooling drops the last row or column of an odd size. Cropping there keeps cell (0, 0) and the stride exact.
        skip = skip[..., : doubled.shape[-2], : doubled.shape[-1]]
        return F.relu(self.norm(self.conv(torch.cat((doubled, skip), 1))), inplace=True)


class VggNetwork(nn.Module):
    """RGB image to three levels with confidences, coarse to fine: strides 16, 4, 1 with 128, 128, 32 channels.

    depth: 16 or 19. Sizes that are no multiple of 16 lose up to 15 pixels at the right and the bottom, on every level.
    Parameters: 21.02 million (19), 15.71 million (16).
    """

    strides = (16, 4, 1)
    channels = (128, 128, 32)
    takes_grey = False

    def __init__(self, depth: int) -> None:
        super().__init__()
        inputs = (3, *STAGE_CHANNELS[:-1])
        self.encoder = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(before if k == 0 else channels, channels, 3, padding=1) for k in range(count))
            for before, channels, count in zip(inputs, STAGE_CHANNELS, CONVOLUTIONS[depth])
        )
        coarse = (STAGE_CHANNELS[-1], *DECODER_CHANNELS[:-1])
        self.decoder = nn.ModuleList(
            _DecoderBlock(*sizes) for sizes in zip(coarse, reversed(STAGE_CHANNELS[:-1]), DECODER_CHANNELS)
        )
        # The bottleneck, the decoder's map at stride 4 and its last one.
        sources = (STAGE_CHANNELS[-1], DECODER_CHANNELS[1], DECODER_CHANNELS[3])
        self.feature_heads = nn.ModuleList(nn.Conv2d(*sizes, 1) for sizes in zip(sources, self.channels))
        self.uncertainty_heads = nn.ModuleList(nn.Conv2d(source, 1, 1) for source in sources)
        # Buffers, so that they follow the network to its device; not weights, so they are not stored.
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def suited_to(self, width: int, height: int) -> VggNetwork:
        """Itself: its levels do not depend on the image's size."""
        return self

    def with_strides(self, strides: tuple[int, ...]) -> VggNetwork:
        """Itself. Raises InputError where a map's strides are others."""
        if tuple(strides) != self.strides:
            raise InputError(f"the network has no levels of strides {', '.join(map(str, strides))}: build the map anew")
        return self

    def forward(self, rgb: torch.Tensor) -> FeaturePyramid:
        """rgb: float32 [B, 3, H, W], 0 to 255; at least 16 pixels along each side."""
        height, width = rgb.shape[-2:]
        x = ((rgb - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        skips = []
        for k, stage in enumerate(self.encoder):
            if k > 0:
                x = F.max_pool2d(x, 2)
            for convolution in stage:
                x = F.relu(convolution(x), inplace=True)
            skips.append(x)
        decoded = [skips.pop()]
        for block in self.decoder:
            decoded.append(block(decoded[-1], skips.pop()))
        sources = (decoded[0], decoded[2], decoded[4])
        heads = [head(source) for source, head in zip(sources, self.feature_heads)]
        features = [F.normalize(values, dim=1).contiguous(memory_format=torch.channels_last) for values in heads]
        lengths = [torch.linalg.vector_norm(values, dim=1) for values in heads]
        confidences = [torch.sigmoid(-head(source))[:, 0] for source, head in zip(sources, self.uncertainty_heads)]
        levels = map(FeatureLevel, features, confidences, map(float, self.strides), lengths)
        return FeaturePyramid(tuple(levels), (width, height))

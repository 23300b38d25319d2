# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Dense features of an image at several levels, and their values at points.

Level coordinates follow the project's pixel convention: the centre of the top-left cell is (0, 0), and an image pixel p
lies at (p + 0.5) / stride - 0.5 on a level of that stride.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FeatureLevel:
    """One level of a pyramid.

    Attributes:
        features: float32 [B, C, H, W], unit length over C, in channels-last memory so that the values of a cell lie together.
        confidence: float32 [B, H, W] in (0, 1], or None where the network has none (all ones).
        stride: Image pixels per cell, the same along x and y.
        lengths: float32 [B, H, W], of the features before they were brought to unit length, where a reference's are interpolated
            as they were then (`sampling.sample_reference`); None where unit ones are.
    """

    features: torch.Tensor
    confidence: torch.Tensor | None
    stride: float
    lengths: torch.Tensor | None = None

    @property
    def channels(self) -> int:
        """C."""
        return self.features.shape[1]


@dataclass(frozen=True)
class FeaturePyramid:
    """The levels of a batch of images, coarse to fine, and the size of the images they were computed from.

    Cells may reach past the image (padding) or stop short of it (cropping); `image_size` bounds what may be used.

    Attributes:
        levels: Coarse to fine.
        image_size: (width, height) in pixels.
    """

    levels: tuple[FeatureLevel, ...]
    image_size: tuple[int, int]

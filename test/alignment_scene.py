# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A small scene of smooth features whose pose is known, for tests of the alignment."""

import torch

from pixloc_ros.alignment import LevelWeights, ReferencePoints
from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera

SIZE = (256, 192)
CAMERA = Camera.from_colmap("PINHOLE", *SIZE, [200.0, 210.0, 128.5, 96.5])


def smooth_level(stride, channels, seed, dtype=torch.float64, wavelength_cells=12.0):
    """Features made of random plane waves: smooth, distinct everywhere, of unit length."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE[1] // stride, SIZE[0] // stride
    y, x = torch.meshgrid(torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype), indexing="ij")
    direction = torch.randn(channels, 2, generator=generator, dtype=dtype)
    frequency = direction / direction.norm(dim=1, keepdim=True) * 2 * torch.pi / wavelength_cells
    phase = torch.rand(channels, 1, 1, generator=generator, dtype=dtype) * 2 * torch.pi
    waves = (frequency[:, 0, None, None] * x + frequency[:, 1, None, None] * y + phase).sin()
    return FeatureLevel(torch.nn.functional.normalize(waves, dim=0)[None], None, float(stride))


def scene(dtype=torch.float64, points=120, seed=0):
    """A pyramid, points in front of the camera with the descriptors they have there, and the true pose."""
    generator = torch.Generator().manual_seed(seed)
    pyramid = FeaturePyramid((smooth_level(16, 8, 1, dtype), smooth_level(4, 8, 2, dtype)), SIZE)
    pixels = torch.rand(points, 2, generator=generator, dtype=dtype) * torch.tensor([216.0, 152.0], dtype=dtype) + 20
    depth = 2 + 4 * torch.rand(points, 1, generator=generator, dtype=dtype)
    rays, _ = CAMERA.to(dtype).unproject(pixels)
    truth = se3.se3_exp(torch.tensor([0.3, -0.2, 0.5, 0.2, -0.1, 0.3], dtype=dtype))
    xyz = se3.transform(se3.inverse(truth), rays / rays[:, 2:] * depth)
    descriptors = tuple(sample_level(level, pixels[None])[0][0] for level in pyramid.levels)
    return pyramid, ReferencePoints(xyz, descriptors, (None, None)), truth


def perturbed(truth, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xi = torch.randn(6, generator=generator, dtype=truth.dtype)
    xi = xi / xi.norm() * torch.tensor([0.15, 0.15, 0.15, 0.05, 0.05, 0.05], dtype=truth.dtype) * scale
    return se3.retract(truth, xi)


BASE = se3.se3_exp(torch.tensor([0.1, 0.4, -0.3, 1.1, -1.2, 1.3], dtype=torch.float64))
"""camera_from_base"""


def level_weights(levels=2, seed=0):
    """Some state that training might reach: all constants different, all cues used."""
    generator = torch.Generator().manual_seed(seed)
    constants = LevelWeights.constant(levels, 0.05, 0.1, 0.2, 0.7).table
    return LevelWeights(constants + 0.2 * torch.randn(constants.shape, generator=generator))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.features.extractor import Extractor
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.features.vgg import VggNetwork


def random_network(depth, seed=0):
    """Random weights that keep the signal's size, so that every layer matters; normalisation that does something."""
    torch.manual_seed(seed)
    network = VggNetwork(depth)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor, mean, std in ((module.weight, 1, 0.2), (module.bias, 0, 0.2), (module.running_mean, 0, 0.3)):
                torch.nn.init.normal_(tensor, mean, std)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    for head in network.uncertainty_heads:
        torch.nn.init.normal_(head.weight, std=0.02)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return random_network(16)


def image_of(height, width, seed=0):
    """Smooth colours, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = np.random.default_rng(seed).uniform(0.02, 0.3, (6, 2))
    values = sum(np.sin(a * x + b * y + k)[..., None] * np.roll((1.0, 0.3, -0.6), k) for k, (a, b) in enumerate(waves))
    return np.uint8(np.clip(127 + 40 * values, 0, 255))


def as_input(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 95), (79, 111)])
def test_levels_of_odd_sizes_lose_less_than_sixteen_pixels(network, height, width):
    pyramid = network(as_input(image_of(height, width)))
    assert pyramid.image_size == (width, height)
    for level, stride, channels in zip(pyramid.levels, network.strides, network.channels, strict=True):
        cells = (height // 16 * 16 // stride, width // 16 * 16 // stride)
        assert level.features.shape == (1, channels, *cells) and level.confidence.shape == (1, *cells)
        assert level.features.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(level.features.norm(dim=1), torch.ones(1, *cells))
        assert level.confidence.min() > 0 and level.confidence.max() < 1


def test_cells_are_where_the_pixel_convention_puts_them(network):
    """With kernels that are their own mirror image, a mirrored picture has mirrored features at every image pixel. Any
    other place of the cells than (p + 0.5) / stride - 0.5 would not be symmetric."""
    mirrored = random_network(16, seed=3)
    for module in mirrored.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    image = image_of(64, 96)
    pixels = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor((80.0, 48.0)) + 7.5
    opposite = torch.stack((95 - pixels[..., 0], pixels[..., 1]), -1)
    one, two = (mirrored(as_input(np.ascontiguousarray(i))) for i in (image, image[:, ::-1]))
    for a, b in zip(one.levels, two.levels):
        value_a, confidence_a, inside_a = sample_level(a, pixels)
        value_b, confidence_b, inside_b = sample_level(b, opposite)
        assert inside_a.all() and inside_b.all()
        torch.testing.assert_close(value_a, value_b, atol=1e-4, rtol=0)
        torch.testing.assert_close(confidence_a, confidence_b, atol=1e-4, rtol=0)


def test_extractor_takes_colour_and_grey(network):
    extractor = Extractor(network, "test", "0")
    image = image_of(64, 80)
    expected = network(as_input(image))
    grey = np.ascontiguousarray(image[..., 1])
    for given, wanted in ((image, expected), (grey, network(as_input(np.repeat(grey[..., None], 3, 2))))):
        for a, b in zip(extractor.extract(given).levels, wanted.levels):
            torch.testing.assert_close(a.features, b.features, atol=1e-5, rtol=0)
    assert not torch.allclose(expected.levels[0].features, extractor.extract(grey).levels[0].features, atol=1e-3)


def test_levels_are_the_same_for_every_map(network):
    assert network.suited_to(4000, 3000) is network and network.with_strides([16, 4, 1]) is network
    with pytest.raises(InputError, match="32, 8"):
        network.with_strides((32, 8))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from pixloc_ros.alignment.cost import linearize
from pixloc_ros.alignment.robust import RobustLoss
from pixloc_ros.alignment.types import ReferencePoints, View
from pixloc_ros.errors import InputError
from pixloc_ros.features import FeaturePyramid
from pixloc_ros.features.extractor import Extractor
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.features.vgg import VggNetwork
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera


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


@pytest.mark.parametrize(("depth", "parameters"), [(19, 21_022_083), (16, 15_712_387)])
def test_number_of_parameters_is_that_of_the_paper(depth, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in VggNetwork(depth).parameters()) == parameters


# The same network in NumPy and double precision, written from its description.


def conv(x, layer):
    weight = layer.weight.double().numpy()
    size = weight.shape[-1]
    height, width = x.shape[1:]
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    out = sum(np.tensordot(weight[:, :, i, j], x[:, i : i + height, j : j + width], 1) for i in range(size) for j in range(size))
    return out if layer.bias is None else out + layer.bias.double().numpy()[:, None, None]


def pool(x):
    channels, height, width = x.shape
    return x[:, : height // 2 * 2, : width // 2 * 2].reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))


def doubling(size):
    """Rows of linear interpolation at the centres of half cells, the border repeated: [2 size, size]."""
    at = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))


def decode(x, skip, block):
    up = np.einsum("iy,cyx,jx->cij", doubling(x.shape[1]), x, doubling(x.shape[2]))
    y = conv(np.concatenate((up, skip[:, : up.shape[1], : up.shape[2]])), block.conv)
    mean, variance, gain, shift = (
        t.double().numpy()[:, None, None]
        for t in (block.norm.running_mean, block.norm.running_var, block.norm.weight, block.norm.bias)
    )
    return np.maximum(0, (y - mean) / np.sqrt(variance + 1e-5) * gain + shift)


def reference_levels(network, image):
    """[(unit features [C, H, W], confidence [H, W])], coarse to fine."""
    x = (image / 255.0 - np.array((0.485, 0.456, 0.406))) / np.array((0.229, 0.224, 0.225))
    x = x.transpose(2, 0, 1)
    maps = []
    for k, stage in enumerate(network.encoder):
        x = pool(x) if k else x
        for layer in stage:
            x = np.maximum(0, conv(x, layer))
        maps.append(x)
    d8 = decode(maps[4], maps[3], network.decoder[0])
    d4 = decode(d8, maps[2], network.decoder[1])
    d2 = decode(d4, maps[1], network.decoder[2])
    d1 = decode(d2, maps[0], network.decoder[3])
    for source, feature, uncertainty in zip((maps[4], d4, d1), network.feature_heads, network.uncertainty_heads):
        values = conv(source, feature)
        yield values / np.linalg.norm(values, axis=0), 1 / (1 + np.exp(conv(source, uncertainty)[0]))


@pytest.mark.parametrize(("depth", "height", "width"), [(16, 32, 48), (19, 39, 53)])
def test_network_computes_what_its_description_says(depth, height, width):
    network, image = random_network(depth), image_of(height, width)
    pyramid = network(as_input(image))
    assert pyramid.image_size == (width, height)
    expected = reference_levels(network, image)
    for level, stride, (features, confidence) in zip(pyramid.levels, (16, 4, 1), expected, strict=True):
        assert level.stride == stride
        np.testing.assert_allclose(level.features[0], features, atol=1e-4)
        np.testing.assert_allclose(level.confidence[0], confidence, atol=1e-4)
        assert confidence.std() > 1e-3 and features.std(axis=(1, 2)).mean() > 1e-3, "the comparison would mean nothing"


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


def test_normal_equations_on_its_features_follow_the_paper(network):
    """PixLoc's residual, weights, Jacobian and normal equations, point by point in plain loops: bilinear values,
    central differences one cell to either side, Cauchy loss of scale 0.1, weight = rho' times both confidences."""
    pyramid = network(as_input(image_of(96, 128)))
    camera = Camera.from_colmap("PINHOLE", 128, 96, [110.0, 112.0, 64.5, 47.7])
    fx, fy, cx, cy = 110.0, 112.0, 64.0, 47.2  # COLMAP's corner convention taken off
    rng = np.random.default_rng(0)
    pixels = rng.uniform((40, 40), (88, 56), (30, 2))
    depth = rng.uniform(2, 5, 30)
    xyz = np.column_stack(((pixels - (cx, cy)) / (fx, fy) * depth[:, None], depth))
    pose = se3.se3_exp(torch.tensor((0.02, -0.03, 0.04, 0.01, -0.015, 0.02), dtype=torch.float64))
    for level in pyramid.levels:
        features, confidences = level.features[0].double().numpy(), level.confidence[0].double().numpy()

        def bilinear(values, cell):
            x, y = np.floor(cell).astype(int)
            a, b = cell - (x, y)
            return (
                (1 - a) * (1 - b) * values[..., y, x]
                + a * (1 - b) * values[..., y, x + 1]
                + (1 - a) * b * values[..., y + 1, x]
                + a * b * values[..., y + 1, x + 1]
            )

        hessian, gradient = np.zeros((6, 6)), np.zeros(6)
        descriptors, weights = np.zeros((30, level.channels)), rng.uniform(0.2, 1, 30)
        for i in range(30):
            reference = bilinear(features, (pixels[i] + 0.5) / level.stride - 0.5)
            descriptors[i] = reference / np.linalg.norm(reference)
            x, y, z = point = pose[:3, :3].numpy() @ xyz[i] + pose[:3, 3].numpy()
            cell = (np.array((fx * x / z + cx, fy * y / z + cy)) + 0.5) / level.stride - 0.5
            residual = bilinear(features, cell) - descriptors[i]
            slopes = np.stack([(bilinear(features, cell + step) - bilinear(features, cell - step)) / 2 for step in np.eye(2)], 1)
            project = np.array(((fx / z, 0, -fx * x / z**2), (0, fy / z, -fy * y / z**2))) / level.stride
            cross = np.array(((0, -point[2], point[1]), (point[2], 0, -point[0]), (-point[1], point[0], 0)))
            jacobian = slopes @ project @ np.hstack((np.eye(3), -cross))
            weight = weights[i] * bilinear(confidences, cell) * 2 / (residual @ residual / 0.01 + 2)
            hessian += weight * jacobian.T @ jacobian
            gradient += weight * jacobian.T @ residual
        at, descriptors, weights = (torch.from_numpy(a).float()[None] for a in (xyz, descriptors, weights))
        view = View(FeaturePyramid((level,), pyramid.image_size), camera, ReferencePoints(at, (descriptors,), (weights,)))
        ours = linearize(view, 0, pose[None], RobustLoss("cauchy", 0.01), 0.0)
        assert ours.valid.all() and np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(ours.hessian[0], hessian, atol=1e-4 * np.abs(hessian).max())
        np.testing.assert_allclose(ours.gradient[0], gradient, atol=1e-4 * np.abs(gradient).max())

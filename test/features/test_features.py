# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_scene import invented_photo

from pixloc_ros.errors import InputError
from pixloc_ros.features import FeatureLevel, load_extractor
from pixloc_ros.features.compact import CompactNetwork, pad_to_multiple
from pixloc_ros.features.patches import BLANK_CONTRAST, patch_features, patch_features_compiled
from pixloc_ros.features.sampling import sample_level, sample_level_with_slopes
from pixloc_ros.features.weights import Weights, resolve_weights


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("compact")


def level_of(values, stride, confidence=None):
    return FeatureLevel(values, confidence, stride)


def affine_level(stride, height=12, width=15):
    """Features that are 2x - 3y + 1 and x + 5y in image pixels, exactly reproduced by bilinear interpolation."""
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij")
    x, y = (x + 0.5) * stride - 0.5, (y + 0.5) * stride - 0.5
    return level_of(torch.stack((2 * x - 3 * y + 1, x + 5 * y))[None], stride)


def test_sampling_agrees_with_grid_sample_and_its_central_differences():
    torch.manual_seed(0)
    values = torch.randn(2, 5, 9, 11, dtype=torch.float64)
    cells = 1 + torch.rand(2, 40, 2, dtype=torch.float64) * torch.tensor([7.99, 5.99])

    def reference(at):
        grid = at / torch.tensor([10.0, 8.0]) * 2 - 1
        return torch.nn.functional.grid_sample(values, grid[:, None], align_corners=True)[:, :, 0].mT

    stride = 4.0
    ours, _, inside = sample_level_with_slopes(level_of(values, stride), (cells + 0.5) * stride - 0.5)
    step = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(ours[:, :, 0], reference(cells))
    for axis in (0, 1):
        slope = (reference(cells + step[axis]) - reference(cells - step[axis])) / (2 * stride)
        torch.testing.assert_close(ours[:, :, 1 + axis], slope)
    assert inside.all()


def test_points_outside_the_level_are_marked_and_its_rim_repeats_the_outermost_cells():
    level = affine_level(4.0)
    pixels = torch.tensor(
        [[[1.5, 1.5], [-0.5, 10.0], [59.5, 47.5], [-0.6, 10.0], [59.6, 10.0], [float("nan"), 3.0], [1e30, -1e30]]],
        dtype=torch.float64,
    )
    for sample in (sample_level, sample_level_with_slopes):
        assert sample(level, pixels)[2].tolist() == [[True, True, True, False, False, False, False]]
    on_rim, _, _ = sample_level(level, pixels[:, 1:3])
    outermost, _, _ = sample_level(level, torch.tensor([[[1.5, 10.0], [57.5, 45.5]]], dtype=torch.float64))
    torch.testing.assert_close(on_rim, outermost)


def test_sampling_differentiates_in_features_and_confidence():
    torch.manual_seed(1)
    values = torch.randn(1, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    confidence = torch.rand(1, 6, 7, dtype=torch.float64, requires_grad=True)
    pixels = torch.rand(1, 5, 2, dtype=torch.float64) * 20 + 2
    assert torch.autograd.gradcheck(lambda v, c: sample_level_with_slopes(level_of(v, 4.0, c), pixels)[:2], (values, confidence))


@settings(max_examples=25)
@given(st.integers(20, 100), st.integers(20, 100))
def test_padding_keeps_pixels_and_reaches_the_multiple(height, width):
    image = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    padded = pad_to_multiple(image, 64)
    rows, columns = (min(a, b) for a, b in zip(padded.shape[-2:], (height, width)))
    assert padded.shape[-2] % 64 == padded.shape[-1] % 64 == 0
    assert max(abs(padded.shape[-2] - height), abs(padded.shape[-1] - width)) <= max(32, 64 - min(height, width))
    assert torch.equal(padded[..., :rows, :columns], image[..., :rows, :columns])


@pytest.mark.parametrize("strides", [(32, 8, 4, 2, 1), (64, 16, 8, 2, 1)])
def test_pyramid_has_unit_features_at_the_declared_strides(extractor, strides):
    extractor = extractor.with_strides(strides)
    image = np.random.default_rng(0).integers(0, 255, (200, 328, 3), np.uint8)
    pyramid = extractor.extract(image)
    assert pyramid.image_size == (328, 200) and extractor.strides == strides
    for level, stride, channels in zip(pyramid.levels, extractor.strides, extractor.channels):
        assert level.stride == stride and level.channels == channels
        assert abs(level.features.shape[-1] * stride - 328) <= 32 and abs(level.features.shape[-2] * stride - 200) <= 32
        torch.testing.assert_close(level.features.norm(dim=1), torch.ones(level.features[:, 0].shape))


def test_levels_are_chosen_by_the_size_of_the_image(extractor):
    for size, coarsest in (((640, 193), 32), ((640, 480), 64), ((360, 640), 64), ((1280, 720), 96)):
        assert extractor.suited_to(*size).strides[0] == coarsest
    assert extractor.suited_to(640, 480).fingerprint == extractor.fingerprint
    with pytest.raises(InputError, match="build the map again"):
        extractor.with_strides((48, 8, 4, 2, 1))


@pytest.mark.parametrize("strides", [(32, 8, 4, 2, 1), (64, 16, 8, 2, 1)])
def test_features_move_with_the_image(extractor, strides):
    """Shifting the picture by the coarsest stride shifts the features by whole cells."""
    extractor, step = extractor.with_strides(strides), strides[0]
    scene = np.random.default_rng(0).integers(0, 255, (96, 144), np.uint8).repeat(8, 0).repeat(8, 1)
    one, two = extractor.extract(scene[:640, :1024]), extractor.extract(scene[step : 640 + step, step : 1024 + step])
    for a, b, border in zip(one.levels, two.levels, (4, 9, 6, 8)):
        shift = int(step / a.stride)
        left = a.features[..., shift + border : -border, shift + border : -border]
        right = b.features[..., border : -border - shift, border : -border - shift]
        assert left.numel() > 0 and (left * right).sum(1).mean() > 0.97, a.stride


@pytest.mark.parametrize(
    "image",
    [np.zeros((480, 640)), np.zeros((480, 640, 4), np.uint8), np.zeros((0, 0), np.uint8), np.zeros((40, 400), np.uint8), None],
)
def test_unfit_images_are_refused(extractor, image):
    with pytest.raises(InputError):
        extractor.extract(image)


def test_weights_files_that_cannot_be_used_say_why(tmp_path):
    shipped = resolve_weights("compact")
    cut, foreign, other, short = (
        tmp_path / name for name in ("cut.safetensors", "foreign.safetensors", "other.safetensors", "short.safetensors")
    )
    cut.write_bytes(shipped.read_bytes()[:100_000])
    foreign.write_bytes(b"PK\x03\x04 not weights at all")
    Weights({"a": torch.zeros(1)}, {"architecture": "unheard-of"}).save(other)
    weights = Weights.open(shipped)
    Weights(dict(list(weights.network.items())[:-1]), weights.card).save(short)
    for file, word in ((cut, "readable"), (foreign, "readable"), (other, "unheard-of"), (short, "fit"), ("nowhere", "compact")):
        with pytest.raises(InputError, match=word) as error:
            load_extractor(file)
        assert "\n" not in str(error.value)


def test_fingerprint_depends_on_the_weights(tmp_path, extractor):
    weights = Weights.open("compact")
    weights.save(tmp_path / "same.safetensors")
    assert load_extractor(tmp_path / "same.safetensors").fingerprint == extractor.fingerprint
    weights.network["fusion.2.bias"] = weights.network["fusion.2.bias"] + 1e-3
    weights.save(tmp_path / "changed.safetensors")
    assert load_extractor(tmp_path / "changed.safetensors").fingerprint != extractor.fingerprint


def test_card_of_the_shipped_weights_gives_credit():
    card = Weights.open("compact").card
    assert {"architecture", "initial_weights", "licence", "training_data"} <= card.keys()
    assert sum(p.numel() for p in CompactNetwork().parameters()) < 1_000_000


def test_patch_features_are_the_normalised_patch():
    """The few coefficients that are kept hold nearly all of the blurred 5x5 patch without its mean, scaled to unit length."""
    torch.manual_seed(0)
    image = 10 * torch.nn.functional.avg_pool2d(torch.rand(1, 1, 204, 204), 7, 1)
    blur = torch.tensor([0.25, 0.5, 0.25])
    patches = torch.nn.functional.unfold(torch.nn.functional.conv2d(image, torch.outer(blur, blur)[None, None]), 5)[0]
    patches = patches - patches.mean(0)
    features = patch_features(image)[0, :, 3:-3, 3:-3].flatten(1)
    torch.testing.assert_close(features.norm(dim=0), torch.ones_like(features[0]))
    coefficients = features[:-1] / features[-1] * BLANK_CONTRAST
    assert bool((coefficients.norm(dim=0) <= 1.001 * patches.norm(dim=0)).all())
    assert float(coefficients.square().sum()) > 0.9 * float(patches.square().sum())
    kept, all_ = (torch.cdist(x.T, x.T) for x in (coefficients[:, ::37], patches[:, ::37]))
    assert bool((kept <= all_ + 1e-3).all()) and float(kept.sum()) > 0.9 * float(all_.sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.floats(0, 100), st.integers(0, 2**32 - 1))
def test_compiled_patch_features_are_the_same(height, width, contrast, seed):
    image = (contrast * np.random.default_rng(seed).standard_normal((height, width))).astype(np.float32)
    expected = patch_features(torch.from_numpy(image).double()[None, None])[0].permute(1, 2, 0)
    found = torch.from_numpy(patch_features_compiled(image)).double()
    torch.testing.assert_close(found, expected, atol=2e-6 * (1 + contrast), rtol=0)


def test_features_do_not_change_with_exposure(extractor):
    photo = invented_photo(3, 160, 128)
    darker = (photo.astype(np.float32) * 0.5 + 20).astype(np.uint8)
    one, other = (extractor.extract(image).levels[-1].features for image in (photo, darker))
    assert float((one - other).norm(dim=1).median()) < 0.05

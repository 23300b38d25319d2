# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Extractors for comparisons: what they leave out is gone, and what they keep is unchanged."""

import math

import numpy as np
import pytest
import torch
from feature_variants import intensity_extractor, reduced_extractor
from hypothesis import given, settings
from hypothesis import strategies as st
from training_scene import invented_photo

from pixloc_ros.alignment import ReferencePoints, View, align
from pixloc_ros.alignment.damping import LearnedDamping, damping_of, damping_tensors
from pixloc_ros.errors import InputError
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.compact import CompactNetwork
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera

PHOTO = invented_photo(1, 320, 240)


@pytest.fixture(scope="module")
def full():
    return load_extractor("compact")


@given(st.integers(64, 200), st.integers(64, 200))
@settings(max_examples=10)
def test_intensity_levels_have_the_shape_the_interface_asks_for(width, height):
    extractor = intensity_extractor()
    pyramid = extractor.extract(invented_photo(0, width, height))
    assert pyramid.image_size == (width, height)
    for level, stride, channels in zip(pyramid.levels, extractor.strides, extractor.channels, strict=True):
        assert level.stride == stride and level.channels == channels
        assert level.features.shape[-2] * stride == (height + 8) // 16 * 16
        assert level.features.shape[-1] * stride == (width + 8) // 16 * 16
        torch.testing.assert_close(level.features.norm(dim=1), torch.ones_like(level.features[:, 0]))


def test_intensities_do_not_see_brightness_and_hardly_see_contrast():
    extractor = intensity_extractor()
    image = (PHOTO * 0.7).astype(np.uint8)
    plain, brighter, softer = (extractor.extract(i).levels[1].features for i in (image, image + 60, (image // 2)))
    torch.testing.assert_close(plain, brighter)
    assert float((plain * softer).sum(1).median()) > 0.97
    blank = extractor.extract(np.full((64, 64), 100, np.uint8)).levels[0].features
    torch.testing.assert_close(blank[:, -1], torch.ones_like(blank[:, -1]))


def test_intensities_align_an_image_with_itself():
    """Points of a plane, a wrong start, the same image: back to the truth to a hundredth of a degree."""
    extractor = intensity_extractor()
    pyramid = extractor.extract(PHOTO)
    camera = Camera("pinhole", 320, 240, torch.tensor([300.0, 300.0, 159.5, 119.5]))
    pixels = torch.cartesian_prod(torch.arange(20.0, 300, 12), torch.arange(20.0, 220, 12))
    rays, _ = camera.unproject(pixels)
    xyz = (rays / rays[:, 2:] * 2.0).float()
    points = ReferencePoints(
        xyz, tuple(sample_level(level, pixels[None])[0][0] for level in pyramid.levels), (None,) * len(pyramid.levels)
    )
    start = se3.se3_exp(torch.tensor([0.05, -0.04, 0.03, 0.01, 0.02, 0.03], dtype=torch.float64))
    result = align(View(pyramid, camera, points), start)
    distance, angle = se3.pose_difference(torch.eye(4, dtype=torch.float64), result.camera_from_map.double())
    assert math.degrees(float(angle)) < 0.01 and float(distance) < 1e-3


@pytest.mark.parametrize("levels", [3, 4])
def test_without_the_finest_levels(full, levels):
    extractor = reduced_extractor(full, levels)
    assert extractor.strides == full.strides[:levels] and extractor.channels == full.channels[:levels]
    for level, same in zip(extractor.extract(PHOTO).levels, full.extract(PHOTO).levels):
        torch.testing.assert_close(level.features, same.features, atol=2e-5, rtol=0)
    # What a map was made with is found again.
    for size in ((640, 480), (320, 240)):
        strides = extractor.suited_to(*size).strides
        assert strides == full.suited_to(*size).strides[:levels] and extractor.with_strides(strides).strides == strides
    with pytest.raises(InputError):
        extractor.with_strides((5, 3))


def test_robust_levels_of_the_full_image(full):
    extractor = reduced_extractor(full, full_size=True).suited_to(640, 480)
    assert extractor.strides == full.suited_to(64, 64).strides != full.suited_to(640, 480).strides
    assert extractor.with_strides(extractor.strides).strides == extractor.strides


def test_without_confidences_and_damping():
    torch.manual_seed(0)
    network = CompactNetwork(confidences=True)
    extractor = Extractor(network, "x", "0123", companions=damping_tensors(LearnedDamping(len(network.strides))))
    levels = extractor.extract(PHOTO).levels
    assert all(level.confidence is not None for level in levels[: network.robust])
    assert all(level.confidence is None for level in levels[network.robust :])
    without = reduced_extractor(extractor, confidences=False)
    for level, same in zip(without.extract(PHOTO).levels, extractor.extract(PHOTO).levels):
        assert level.confidence is None
        torch.testing.assert_close(level.features, same.features, atol=2e-5, rtol=0)
    assert damping_of(without) is not None
    fixed = reduced_extractor(extractor, damping=False)
    assert damping_of(fixed) is None and fixed.fingerprint == extractor.fingerprint


def test_maps_of_different_parts_do_not_fit(full):
    kinds = [
        full,
        reduced_extractor(full, 3),
        reduced_extractor(full, confidences=False),
        reduced_extractor(full, full_size=True),
        intensity_extractor(),
    ]
    assert len({extractor.fingerprint for extractor in kinds}) == len(kinds)

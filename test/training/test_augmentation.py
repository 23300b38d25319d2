# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Changes of images keep their place and shape."""

import numpy as np
import pytest
from training_scene import invented_photo

from pixloc_ros.errors import InputError
from pixloc_ros.training import augmentation
from pixloc_ros.training.augmentation import AugmentationOptions, augment


def motion_blur(x, rng):
    return augmentation._motion_blur(x, rng, 50.0)


def occlusion(x, rng):
    return augmentation._occlusion(x, rng, 0.6)


BLURS = [augmentation._defocus, motion_blur, augmentation._half_resolution]
NAMES = "light dark shadow vignetting noise change relight tone turned night"
CHANGES = [getattr(augmentation, f"_{name}") for name in NAMES.split()] + [occlusion, *BLURS]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_keep_shape_and_stay_finite(change):
    image = invented_photo(1, 128, 96).astype(np.float32)
    for seed in range(5):
        changed = change(image, np.random.default_rng(seed))
        assert changed.shape == image.shape and np.isfinite(changed).all()
    assert not np.array_equal(changed, image)


@pytest.mark.parametrize("change", BLURS)
def test_blurs_do_not_move_the_image(change):
    rows, columns = np.mgrid[:96, :128].astype(np.float32)
    dot = 255 * np.exp(-((columns - 61.3) ** 2 + (rows - 44.8) ** 2) / (2 * 4.0**2))
    for seed in range(20):
        x = change(dot, np.random.default_rng(seed))
        assert (x * columns).sum() / x.sum() == pytest.approx(61.3, abs=0.02)
        assert (x * rows).sum() / x.sum() == pytest.approx(44.8, abs=0.02)


def test_augmentation_is_repeatable_and_differs_between_the_two_images():
    image = invented_photo(2, 128, 96)
    options = AugmentationOptions(clean=0.0)
    first, again = (augment(image, np.random.default_rng(3), options) for _ in range(2))
    assert np.array_equal(first, again) and first.dtype == np.uint8
    rng = np.random.default_rng(3)
    assert not np.array_equal(augment(image, rng, options), augment(image, rng, options))
    for bad in ({"blur": 1.5}, {"blur_px": 1.0}):
        with pytest.raises(InputError, match="shares.*blur_px at least 2"):
            AugmentationOptions(**bad)

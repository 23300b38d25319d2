# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import torch
from training_scene import invented_photo

from pixloc_ros.evaluation.feature_variants import intensity_extractor
from pixloc_ros.evaluation.patch_level import patched_extractor
from pixloc_ros.features import load_extractor


def test_only_the_finest_level_is_replaced():
    photo, whole = invented_photo(1, 320, 240), load_extractor("compact")
    patched = patched_extractor(whole)
    assert patched.fingerprint != whole.fingerprint
    for size in ((320, 240), (640, 480)):
        strides = patched.suited_to(*size).strides
        assert strides[:-1] == whole.suited_to(*size).strides[:-1] and patched.with_strides(strides).strides == strides
    levels, same = patched.extract(photo).levels, whole.extract(photo).levels
    for level, other in zip(levels[:-1], same[:-1], strict=True):
        torch.testing.assert_close(level.features, other.features)
    intensities = intensity_extractor()
    torch.testing.assert_close(levels[-1].features, intensities.extract(photo).levels[intensities.strides.index(2)].features)
    assert levels[-1].stride == 2

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far off a rough pose may be: read, turned into a covariance, and used by the alignment."""

import math
import re

import numpy as np
import pytest

from pixloc_ros.errors import InputError
from pixloc_ros.tracking.prior_std import PriorStd


@pytest.mark.parametrize(
    "words, std",
    [
        ("5 10%", PriorStd(5.0, depth_share=0.1)),
        ("0.5 0.3m", PriorStd(0.5, metres=0.3)),
        ("1e1 150%", PriorStd(10.0, depth_share=1.5)),
    ],
)
def test_words(words, std):
    assert PriorStd.parse(words.split(), "x") == std


@pytest.mark.parametrize(
    "words, message",
    [
        ("5 10", "'10' has no unit: write 10% (of the depth) or 10m (metres)"),
        ("5 30cm", "write degrees and 10% or 0.3m"),
        ("5 m", "write degrees and 10% or 0.3m"),
        ("five 10%", "write degrees and 10% or 0.3m"),
        ("10% 5", "'5' has no unit"),
        ("0 10%", "above 0 and at most 180"),
        ("-5 10%", "above 0 and at most 180"),
        ("181 10%", "above 0 and at most 180"),
        ("nan 10%", "above 0 and at most 180"),
        ("5 0%", "the distance above 0"),
        ("5 infm", "the distance above 0"),
        ("5 -0.3m", "the distance above 0"),
    ],
)
def test_words_that_say_nothing(words, message):
    with pytest.raises(InputError, match="--prior-std: .*" + re.escape(message)):
        PriorStd.parse(words.split(), "--prior-std")


def test_one_kind_of_distance():
    for both in ({}, {"depth_share": 0.1, "metres": 0.3}):
        with pytest.raises(InputError, match="one of depth_share and metres"):
            PriorStd(5.0, **both)


def test_a_fixed_distance_in_a_random_direction():
    """A third of its square along each axis."""
    shifts = np.random.default_rng(0).standard_normal((20000, 3))
    shifts *= 0.1 * 2.0 / np.linalg.norm(shifts, axis=1, keepdims=True)
    covariance = PriorStd(5.0, depth_share=0.1).covariance(2.0)
    np.testing.assert_allclose(covariance[:3, :3], np.cov(shifts.T), atol=3e-4)
    assert float(covariance[5, 5]) == pytest.approx(math.radians(5) ** 2 / 3)
    assert float(PriorStd(5.0, metres=0.3).covariance(2.0)[0, 0]) == pytest.approx(0.03)

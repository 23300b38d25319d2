# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the cold start's table counts."""

import cold_start
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom


@given(of=st.integers(1, 5000), share=st.floats(0, 1))
@settings(max_examples=40)
def test_the_bound_of_a_share_is_the_one_under_which_so_few_are_seen_in_a_twentieth_of_cases(of, share):
    count = int(share * of)
    most = cold_start.largest_share(count, of)
    assert count / of <= most <= 1
    if count < of:
        assert binom.cdf(count, of, most) == pytest.approx(0.05, rel=1e-6)


def test_no_confident_error_in_n_images_is_the_rule_of_three():
    counts = {"queries": 100, "confident_and_wrong": 0, "foreign": 2900, "foreign_confident": 0}
    scene = {"metric": True, "keyframes": 5, "within": [1, 1], "confident": 1, "ms_p50": 20, "ms_p95": 30, **counts}
    assert "Confident and wrong: 0 of 3000 images; with 95 % certainty fewer than 0.1 %" in cold_start.report({"a": scene})
    one = cold_start.report({"a": {**scene, "foreign_confident": 1}})
    assert "1 of 3000 images; with 95 % certainty fewer than 0.16 %" in one
    assert cold_start.limits_kept(0.5, 0.2, 9.0, True) == [False, True]
    assert cold_start.limits_kept(0.5, 9.0, 0.009, False) == [True, True]

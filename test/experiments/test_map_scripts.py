# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the scripts that measure maps and cold starts compute themselves: descriptors, limits, tables, which images count."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_helpers import look_at, pinhole
from scipy.stats import binom

from pixloc_ros.geometry import se3
from pixloc_ros.io.trajectory import write_benchmark_poses
from pixloc_ros.mapping.build.building import PosedImages

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import cold_start  # noqa: E402  (scripts, not modules of the package)
import common  # noqa: E402
import map_sources  # noqa: E402
import matched_features  # noqa: E402


@given(seed=st.integers(0, 2**31), count=st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_vlad_is_of_unit_length_and_knows_no_order(seed, count):
    rng = np.random.default_rng(seed)
    words, descriptors = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(count, 6)).astype(np.float32)
    described = matched_features.vlad(descriptors, words)
    assert described.shape == (24,) and np.linalg.norm(described) == pytest.approx(1, abs=1e-5)
    assert np.allclose(described, matched_features.vlad(descriptors[rng.permutation(count)], words), atol=1e-5)
    one = matched_features.vlad(descriptors[:1], words).reshape(4, 6)
    nearest = np.linalg.norm(words - descriptors[0], axis=1).argmin()
    assert np.flatnonzero(np.abs(one).sum(1)).tolist() == [nearest]
    offset = descriptors[0] - words[nearest]
    assert np.allclose(one[nearest], offset / np.linalg.norm(offset), atol=1e-5)


def test_vlad_finds_the_image_of_the_same_features():
    rng = np.random.default_rng(0)
    refs = [SimpleNamespace(desc=rng.normal(size=(300, 16)) + rng.normal(size=16)) for _ in range(6)]
    words = matched_features.learn_words(refs)
    described = np.stack([matched_features.vlad(ref.desc, words) for ref in refs])
    for k, ref in enumerate(refs):
        half = matched_features.vlad(ref.desc[::2] + 0.1 * rng.normal(size=(150, 16)), words)
        assert (described @ half).argmax() == k
    assert not matched_features.vlad(np.empty((0, 16)), words).any()


def test_ours_and_the_rival_are_counted_on_the_same_queries():
    result = {
        "metric": True,
        "cpu_s": 0.05,
        "per_query": {
            "a": {"within": [True, True], "confident": True},
            "b": {"within": [False, True], "confident": False},
            "c": {"within": [False, False], "confident": True},
        },
        "rival": [
            {"query": "a", "pose": True, "deg": 0.2, "trans": 0.05, "rel": 9.0, "inliers": 200, "cpu_s": 2.0},
            {"query": "b", "pose": True, "deg": 0.2, "trans": 3.0, "rel": 0.0, "inliers": 40, "cpu_s": 4.0},
            {"query": "elsewhere", "pose": False, "deg": None, "trans": None, "rel": None, "inliers": 0, "cpu_s": 4.0},
        ],
    }
    ours, theirs = cold_start.compare({"street": result}).strip().splitlines()[-2:]
    assert ours == "| street | pixloc_ros | 2 | 50.0 % | 100.0 % | 50.0 % | 0 | 0.05 |"
    assert theirs == "| street | ALIKED + LightGlue + PnP | 2 | 50.0 % | 50.0 % | 100.0 % | 1 | 3.00 |"
    assert cold_start.compare({"street": {**result, "rival": []}}) == ""
    assert cold_start.limits_kept(0.5, 0.2, 9.0, True) == [False, True]
    assert cold_start.limits_kept(0.5, 9.0, 0.009, False) == [True, True]


@given(of=st.integers(1, 5000), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_bound_of_a_share_is_the_one_under_which_so_few_are_seen_in_a_twentieth_of_cases(of, share):
    count = int(share * of)
    most = cold_start.largest_share(count, of)
    assert count / of <= most <= 1
    if count < of:
        assert binom.cdf(count, of, most) == pytest.approx(0.05, rel=1e-6)


def test_no_confident_error_in_n_images_is_the_rule_of_three():
    scene = {
        "metric": True,
        "keyframes": 5,
        "queries": 100,
        "within": [1.0, 1.0],
        "confident": 1.0,
        "confident_and_wrong": 0,
        "foreign": 2900,
        "foreign_confident": 0,
        "ms_p50": 20.0,
        "ms_p95": 30.0,
    }
    assert "Confident and wrong: 0 of 3000 images; with 95 % certainty fewer than 0.1 %" in cold_start.report({"a": scene})
    one = cold_start.report({"a": {**scene, "foreign_confident": 1}})
    assert "1 of 3000 images; with 95 % certainty fewer than 0.16 %" in one


def test_keyframes_of_queries_are_taken_out(tmp_path):
    poses = torch.stack([look_at((0.3 * k, -2.0, 1.0), (0.3 * k, 0.0, 1.0)) for k in range(4)])
    (tmp_path / "queries").mkdir()
    write_benchmark_poses(tmp_path / "queries" / "truth.txt", {f"{k}": se3.inverse(poses[k]) for k in (1, 2)})
    image, point = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    source = PosedImages("x", [], list("abcd"), [pinhole()] * 4, poses, np.arange(4), np.zeros((3, 3)), image, point)
    kept = map_sources.without_queries(source, common.Scene(tmp_path))
    assert np.unique(kept.observation_image).tolist() == [0, 3] and kept.observation_point.tolist() == [0, 1, 2, 0, 1, 2]


def test_maps_are_compared_with_those_that_know_the_same():
    def row(mm):
        errors = {"deg": 0.02, "mm": mm, "mean_mm": 2 * mm, "pct_depth": 0.03, "recall": 1.0}
        return {"keyframes": 3, "points": 10, "track_length": 2.0, "small": errors, "medium": errors}

    lines = (
        map_sources.report(
            {
                "a": {
                    map_sources.MODEL: row(10.0),
                    map_sources.BAG_ALL: row(9.0),
                    map_sources.COLMAP: row(20.0),
                    map_sources.BAG: row(22.0),
                }
            }
        )
        .strip()
        .splitlines()
    )
    assert [line.rsplit("|", 2)[1].strip() for line in lines[2:]] == [
        "",
        "-10 % (-10 %), -10 % (-10 %)",
        "",
        "+10 % (+10 %), +10 % (+10 %)",
    ]

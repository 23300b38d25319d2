# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The bookkeeping of the commands behind docs/evidence/reliability.md: curves, rates, calibration figures, soak, pages."""

import common
import faults
import gates_roc
import input_checks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import decoded

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.tracking.options import TrackerOptions


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_area_under_the_curve_is_the_chance_that_right_looks_better(pairs):
    goodness, right = np.array([g for g, _ in pairs], float), np.array([r for _, r in pairs])
    area = gates_roc.area_under_roc(goodness, right)
    if right.all() or not right.any():
        assert np.isnan(area)
        return
    better = goodness[right][:, None] - goodness[~right]
    assert area == pytest.approx(np.mean((better > 0) + 0.5 * (better == 0)))


def sample(probability=0.985, innovation=1.0, error_m=0.01, held=True, prior="honest", usable=True):
    return gates_roc.Sample("drive", "as recorded", prior, held, usable, probability, 0.5, 0.5, innovation, error_m, 0.1)


def test_gates_are_the_tracker_s_and_are_counted_by_truth():
    elsewhere, unusable = sample(0.01, error_m=9.0, prior="elsewhere"), sample(0.6, usable=False, error_m=9.0)
    samples = [sample(), sample(0.1), sample(error_m=3.0), elsewhere, unusable, sample(held=False)]
    text = gates_roc.report(samples)
    row = next(line for line in text.splitlines() if line.startswith("| both"))
    assert "33.33 % (1 of 3)" in row and "50.00 % (1 of 2)" in row
    decoded(gates_roc.reliability_diagram(samples))
    names = " ".join(name for name, *_ in gates_roc.gates_in_use())
    gates = TrackerOptions().gates
    for least in (gates.min_probability, gates.min_probability_search, gates.sure_probability):
        assert f"≥ {least:g}" in names
    assert "| as recorded | 1 of 2 | 1 of 3 |" in text


def test_a_soak_counts_faults_and_compares_settled_memory():
    names, memory_mb = ("black images", "odometry stops"), [400.0, 450.0, *[500.0] * 16, *[505.0] * 3]
    rounds = [faults.Run(names[k % 2], recovered_s=0.1 * k, tracked=100, images=135) for k in range(20)]
    ended = {"minutes": 10.0, "rate_hz": 15.0, "exit_code": 0, "problem": ""}
    figures = faults.summary(rounds, memory_mb, 2) | ended
    assert figures["injected"] == 20 and figures["by_fault"]["black images"]["injected"] == 10
    assert figures["growth_percent"] == pytest.approx(1.0) and figures["worst_recovery_s"] == pytest.approx(1.9)
    assert figures["memory_mb"] == {"start": 400.0, "after_warm_up": 500.0, "end": 505.0, "most": 505.0}
    assert faults.is_good(figures) and "+1.0 %" in faults.soak_table(figures)
    assert not faults.is_good(figures | {"exit_code": -11}) and not faults.is_good(figures | {"problem": "ended"})
    assert not faults.is_good(faults.summary(rounds, [*memory_mb[:-2], 520.0, 520.0], 2) | ended)
    missed = faults.summary([*rounds, faults.Run("black images", recovered_s=None)], memory_mb, 2) | ended
    assert not faults.is_good(missed) and missed["by_fault"]["black images"]["missed"] == 1


def test_wrong_wheels_measure_a_wrong_way_and_a_wrong_turning():
    motion = se3.se3_exp(torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0, 0.2], dtype=torch.float64))
    true = [torch.eye(4, dtype=torch.float64)]
    for _ in range(3):
        true.append(true[-1] @ motion)
    measure = input_checks.wheels(way=1.4, turning=0.8)()
    measured = [measure(k, pose) for k, pose in enumerate(true)]
    for before, after in zip(measured, measured[1:]):
        distance, angle = se3.pose_difference(before, after)
        assert float(distance) == pytest.approx(1.4 * float(motion[:3, 3].norm())) and float(angle) == pytest.approx(0.8 * 0.2)


def test_what_is_no_scene_is_refused(tmp_path):
    args = common.parser("doc", "out", drives=True).parse_args([str(tmp_path), "--scenes", "nowhere"])
    with pytest.raises(InputError, match="nowhere is no scene"):
        common.scenes_of(args)
    assert common.scenes_of(common.parser("doc", "out").parse_args([str(tmp_path)])) == []

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import metrics
from pixloc_ros.evaluation.trajectory import Trajectory, write_tum
from pixloc_ros.geometry import se3


def straight(n: int, step: float = 0.5) -> Trajectory:
    pose = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    pose[:, 0, 3] = torch.arange(n) * step
    return Trajectory(np.arange(n, dtype=np.int64) * 100_000_000, pose)


def random_walk(n: int, seed: int) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    pose = torch.eye(4, dtype=torch.float64)
    rows = []
    for _ in range(n):
        step = torch.randn(6, dtype=torch.float64, generator=generator) * .05
        step[0] += .3
        pose = pose @ se3.se3_exp(step)
        rows.append(pose)
    return Trajectory(np.arange(n, dtype=np.int64) * 100_000_000 + 10**18, torch.stack(rows))


def test_constant_offset_in_the_map_is_not_aligned_away():
    reference = straight(11)
    offset = se3.se3_exp(torch.tensor([0, 0.3, 0, 0, 0, 0], dtype=torch.float64))
    result = metrics.evaluate(reference, Trajectory(reference.stamps_ns, offset @ reference.map_from_body))
    for key in ("median", "p95", "max", "rmse"):
        assert result[f"translation_error_{key}_m"] == pytest.approx(.3)
        assert result[f"rotation_error_{key}_deg"] == pytest.approx(0, abs=1e-9)
    assert result["relative_translation_error_max_m"] == pytest.approx(0, abs=1e-12)
    assert result["recall"] == {"0.05m_1deg": 0, "0.25m_2deg": 0, "0.5m_5deg": 1, "5m_10deg": 1}


def test_turn_about_the_body_is_rotation_only():
    reference = random_walk(20, 1)
    turn = se3.se3_exp(torch.tensor([0, 0, 0, 0, 0, np.radians(3.0)], dtype=torch.float64))
    result = metrics.evaluate(reference, Trajectory(reference.stamps_ns, reference.map_from_body @ turn))
    assert result["translation_error_max_m"] == pytest.approx(0, abs=1e-12)
    assert result["rotation_error_median_deg"] == pytest.approx(3.0)
    assert result["rotation_error_rmse_deg"] == pytest.approx(3.0)


def test_scale_error_shows_per_metre():
    reference = straight(21)
    stretched = reference.map_from_body.clone()
    stretched[:, 0, 3] *= 1.02
    result = metrics.evaluate(reference, Trajectory(reference.stamps_ns, stretched), step_m=2.0)
    assert result["relative_stretches"] == 17
    assert result["relative_translation_error_median_m"] == pytest.approx(.04)
    assert result["translation_error_max_m"] == pytest.approx(.2)
    assert result["translation_error_rmse_m"] == pytest.approx(.01 * np.sqrt(np.mean(np.arange(21) ** 2)))


def test_missing_frames_fail_the_recall_but_not_the_median():
    reference = straight(10)
    result = metrics.evaluate(reference, Trajectory(reference.stamps_ns[:4], reference.map_from_body[:4]))
    assert (result["frames"], result["estimated_frames"], result["estimated_fraction"]) == (10, 4, .4)
    assert set(result["recall"].values()) == {.4}
    assert result["translation_error_max_m"] == 0


def test_nothing_estimated():
    reference = straight(3)
    empty = Trajectory.from_poses([])
    summary = metrics.summarize(metrics.absolute_errors(reference, empty))
    assert summary["estimated_fraction"] == 0 and summary["translation_error_median_m"] is None
    assert set(summary["recall"].values()) == {0.0}
    json.dumps(summary, allow_nan=False)
    with pytest.raises(InputError, match="no stamp"):
        metrics.evaluate(reference, Trajectory(reference.stamps_ns + 10**12, reference.map_from_body))


def test_association_is_one_to_one_and_nearest_first():
    reference = np.array([0, 10, 20, 30])
    assert metrics.associate(reference, np.array([1, 11, 22, 50]), 5).tolist() == [0, 1, 2, -1]
    assert metrics.associate(reference, np.array([6]), 10).tolist() == [-1, 0, -1, -1]
    assert metrics.associate(reference, np.array([]), 5).tolist() == [-1] * 4
    assert metrics.associate(np.array([0, 4]), np.array([3]), 5).tolist() == [-1, 0]


def test_nees_of_errors_drawn_from_the_covariance_is_six():
    generator = torch.Generator().manual_seed(3)
    n = 4000
    reference = straight(n, .1)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator) * .01
    noise = torch.randn(n, 6, dtype=torch.float64, generator=generator) @ root.T
    # truth = estimate · exp(error)
    guess = reference.map_from_body @ se3.inverse(se3.se3_exp(noise))
    covariance = (root @ root.T).repeat(n, 1, 1)
    summary = metrics.summarize(metrics.absolute_errors(reference, Trajectory(reference.stamps_ns, guess, covariance)))
    assert summary["nees_mean"] == pytest.approx(6, rel=.05)
    assert summary["nees_inside_95"] == pytest.approx(.95, abs=.012)


def test_same_figures_as_evo(tmp_path):
    """evo is a tool to compare with, called as a program; it is not needed otherwise."""
    if shutil.which("evo_ape") is None:
        pytest.skip("evo is not installed")
    reference, estimate = random_walk(60, 1), random_walk(60, 1)
    noise = se3.se3_exp(torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * .02)
    estimate = Trajectory(estimate.stamps_ns, estimate.map_from_body @ noise)
    for name, track in (("a", reference), ("b", estimate)):
        write_tum(tmp_path / f"{name}.tum", track)
    ours = metrics.evaluate(reference, estimate)
    for relation, key, unit in (("trans_part", "translation_error", "m"), ("angle_deg", "rotation_error", "deg")):
        text = subprocess.run(["evo_ape", "tum", "a.tum", "b.tum", "-r", relation], cwd=tmp_path, capture_output=True,
                              text=True, check=True).stdout
        theirs = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
        for name in ("median", "max", "rmse"):
            assert ours[f"{key}_{name}_{unit}"] == pytest.approx(float(theirs[name]), abs=2e-6)

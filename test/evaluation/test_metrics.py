# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import metrics
from pixloc_ros.evaluation.metrics import Step
from pixloc_ros.geometry import se3
from pixloc_ros.io.trajectory import Trajectory


def straight(n: int, step: float = 0.5) -> Trajectory:
    pose = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    pose[:, 0, 3] = torch.arange(n) * step
    return Trajectory(np.arange(n, dtype=np.int64) * 100_000_000, pose)


def random_walk(n: int, seed: int, forward: float = 0.3, turning: float = 0.05) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    pose, rows = torch.eye(4, dtype=torch.float64), []
    for _ in range(n):
        step = torch.randn(6, dtype=torch.float64, generator=generator) * turning
        step[0] += forward
        pose = pose @ se3.se3_exp(step)
        rows.append(pose)
    return Trajectory(np.arange(n, dtype=np.int64) * 100_000_000 + 1_700_000_000 * 10**9, torch.stack(rows))


def figures(reference: Trajectory, estimate: Trajectory, step: Step = Step(1.0)) -> dict:  # noqa: B008
    result = metrics.trajectory_figures(reference, estimate, step)
    json.dumps(result, allow_nan=False)
    return result


def test_constant_offset_in_the_map_is_not_aligned_away():
    reference = straight(11)
    offset = se3.se3_exp(torch.tensor([0, 0.3, 0, 0, 0, 0], dtype=torch.float64))
    turned = se3.se3_exp(torch.tensor([0, 0, 0, 0, 0, np.radians(3.0)], dtype=torch.float64))
    result = figures(reference, Trajectory(reference.stamps_ns, offset @ reference.map_from_body @ turned))
    for key in ("median", "p95", "max", "rmse"):
        assert result[f"translation_error_{key}_m"] == pytest.approx(0.3)
        assert result[f"rotation_error_{key}_deg"] == pytest.approx(3.0)
    moved = figures(reference, Trajectory(reference.stamps_ns, offset @ reference.map_from_body))
    assert moved["relative_translation_error_max_m"] == pytest.approx(0, abs=1e-12)
    assert "aligned_translation_error_rmse_m" not in result  # a straight line does not say how it is turned
    assert result["recall"] == {"0.05m_1deg": 0, "0.25m_2deg": 0, "0.5m_5deg": 1, "5m_10deg": 1}


def test_missing_frames_fail_the_recall_but_not_the_median():
    reference = straight(10)
    result = figures(reference, Trajectory(reference.stamps_ns[:4], reference.map_from_body[:4]))
    assert (result["frames"], result["estimated_frames"], result["estimated_fraction"]) == (10, 4, 0.4)
    assert set(result["recall"].values()) == {0.4}
    assert result["translation_error_max_m"] == 0


def test_nothing_estimated():
    reference = straight(3)
    empty = Trajectory.from_poses([])
    summary = metrics.error_figures(metrics.absolute_errors(reference, empty))
    assert summary["estimated_fraction"] == 0 and summary["translation_error_median_m"] is None
    assert set(summary["recall"].values()) == {0.0}
    result = figures(reference, Trajectory(reference.stamps_ns + 10**12, reference.map_from_body))
    assert result["relative_stretches"] == 0 and result["relative_translation_error_median_m"] is None
    assert "aligned_translation_error_rmse_m" not in result


def test_alignment_takes_a_rigid_motion_away_and_no_scale():
    reference = random_walk(60, 4)
    motion = se3.se3_exp(torch.tensor([3.0, -2, 1, 0.4, -0.3, 0.9], dtype=torch.float64))
    moved = Trajectory(reference.stamps_ns, motion @ reference.map_from_body)
    assert torch.allclose(metrics.umeyama(reference, moved), se3.inverse(motion), atol=1e-10)
    result = figures(reference, moved)
    assert result["translation_error_rmse_m"] > 1 and result["aligned_translation_error_max_m"] < 1e-9
    assert result["aligned_rotation_error_max_deg"] < 1e-6
    assert result["map_offset_deg"] == pytest.approx(np.degrees(np.linalg.norm((0.4, -0.3, 0.9))))
    middle = moved.map_from_body[:, :3, 3].mean(0)
    assert result["map_offset_m"] == pytest.approx(float((reference.map_from_body[:, :3, 3].mean(0) - middle).norm()))
    stretched = reference.map_from_body.clone()
    stretched[:, :3, 3] *= 1.1
    assert figures(reference, Trajectory(reference.stamps_ns, stretched))["aligned_translation_error_rmse_m"] > 0.1


def test_usual_step_tells_cars_from_robots():
    assert str(metrics.usual_step(straight(20, 0.1), True)) == "1 m"  # 1 m/s
    assert str(metrics.usual_step(straight(20, 1.0), True)) == "10 m"  # 10 m/s
    assert str(metrics.usual_step(straight(20, 1.0), False)) == "10 m"
    assert str(metrics.usual_step(straight(1), True)) == "1 m"
    for bad in ((0, "m"), (-1, "m"), (1.5, "poses"), (1, "s"), (float("nan"), "m")):
        with pytest.raises(InputError, match="relative errors"):
            Step(*bad)


def test_association_is_one_to_one_and_nearest_first():
    reference = np.array([0, 10, 20, 30])
    assert metrics.associate(reference, np.array([1, 11, 22, 50]), 5).tolist() == [0, 1, 2, -1]
    assert metrics.associate(reference, np.array([6]), 10).tolist() == [-1, 0, -1, -1]
    assert metrics.associate(reference, np.array([]), 5).tolist() == [-1] * 4
    assert metrics.associate(np.array([0, 4]), np.array([3]), 5).tolist() == [-1, 0]


def test_nees_of_errors_drawn_from_the_covariance_is_six():
    generator = torch.Generator().manual_seed(3)
    n = 4000
    reference = straight(n, 0.1)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator) * 0.01
    noise = torch.randn(n, 6, dtype=torch.float64, generator=generator) @ root.T
    # truth = estimate · exp(error)
    guess = reference.map_from_body @ se3.inverse(se3.se3_exp(noise))
    covariance = (root @ root.T).repeat(n, 1, 1)
    summary = metrics.error_figures(metrics.absolute_errors(reference, Trajectory(reference.stamps_ns, guess, covariance)))
    assert summary["nees_mean"] == pytest.approx(6, rel=0.05)
    assert summary["nees_inside_95"] == pytest.approx(0.95, abs=0.012)


def test_covariances_that_cannot_be_inverted_give_no_nees():
    reference = straight(4)
    covariance = torch.eye(6, dtype=torch.float64).repeat(4, 1, 1)
    covariance[1], covariance[2] = 0.0, torch.nan
    moved = reference.map_from_body.clone()
    moved[:, 0, 3] += 2.0
    errors = metrics.absolute_errors(reference, Trajectory(reference.stamps_ns, moved, covariance))
    assert np.isnan(errors.nees).tolist() == [False, True, True, False]
    assert metrics.error_figures(errors)["nees_mean"] == pytest.approx(4.0)

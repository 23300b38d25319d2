# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Losses on features: closed forms, numeric derivatives, and a run that learns from them."""

import json
import math

import pytest
import torch
from torch.nn import functional as F
from training_scene import write_photos

from pixloc_ros.errors import InputError
from pixloc_ros.features.pyramid import FeatureLevel
from pixloc_ros.training.config import read_config
from pixloc_ros.training.feature_loss import FeatureLossOptions, contrast, imitation
from pixloc_ros.training.trainer import Trainer

STRIDE = 8


def one_hot_level(height: int = 3, width: int = 4) -> FeatureLevel:
    """Every cell has a descriptor of its own, at right angles to the others."""
    return FeatureLevel(torch.eye(height * width).reshape(1, height * width, height, width), None, float(STRIDE))


def middle_of(row: float, column: float) -> torch.Tensor:
    """[1, 1, 2], pixels."""
    return torch.tensor([[[(column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5]]])


def test_contrast_of_one_point_in_closed_form():
    level, counted = one_hot_level(), torch.ones(1, 1, dtype=torch.bool)
    descriptor = torch.eye(12)[None, 6:7]  # cell (1, 2)
    right = contrast(descriptor, level, middle_of(1, 2), counted, 0.5)
    everything = math.log(math.exp(2) + 11)
    assert right.loss.item() == pytest.approx(everything - 2) and right.error.item() == 0 and right.success.all()
    between = contrast(descriptor, level, middle_of(1, 2.25), counted, 0.5)
    assert between.loss.item() == pytest.approx(everything - 0.75 * 2) and between.error.item() == pytest.approx(2)
    wrong = contrast(descriptor, level, middle_of(1, 0), counted, 0.5)
    assert wrong.loss.item() == pytest.approx(everything) and wrong.error.item() == pytest.approx(16) and not wrong.success.any()
    nothing = contrast(descriptor, level, middle_of(1, 0), ~counted, 0.5)
    assert nothing.loss.item() == 0


def test_gradients_of_the_losses():
    torch.manual_seed(0)
    raw = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    given = F.normalize(torch.randn(2, 3, 5, dtype=torch.float64), dim=-1)
    pixels = torch.rand(2, 3, 2, dtype=torch.float64) * torch.tensor([47.0, 31.0])
    counted = torch.tensor([[True, True, False], [True, True, True]])
    start = FeatureLevel(F.normalize(torch.randn(2, 5, 4, 6, dtype=torch.float64), dim=1), None, 8.0)

    def losses(raw):
        level = FeatureLevel(F.normalize(raw, dim=1), None, 8.0)
        return contrast(given, level, pixels, counted, 0.1).loss, imitation(level, start)

    assert torch.autograd.gradcheck(losses, raw)


def test_imitation_is_0_for_the_start_s_own_features():
    level = FeatureLevel(F.normalize(torch.randn(2, 5, 4, 6), dim=1), None, 8.0)
    assert imitation(level, level) == pytest.approx(torch.zeros(2), abs=1e-6)
    opposite = FeatureLevel(-level.features, None, 8.0)
    assert imitation(level, opposite) == pytest.approx(2 * torch.ones(2))


@pytest.mark.parametrize("bad", [{"poses": 0.0}, {"contrast": (-1.0,)}, {"temperature": 0.0}])
def test_weights_that_mean_nothing_are_refused(bad):
    with pytest.raises(InputError, match="features:"):
        FeatureLossOptions(**bad)


@pytest.mark.parametrize("poses", [0.0, 1.0])
def test_a_run_learns_to_recognise_places(tmp_path, poses):
    write_photos(tmp_path / "photos")
    config = {
        "data": [{"kind": "photos", "folders": ["photos"]}],
        "network": {"architecture": "compact", "confidences": False, "learn_damping": False},
        "view": {"width": 128, "height": 96, "points": 64},
        "features": {"poses": poses, "contrast": [0.5, 1.0], "imitation": [1.0, 1.0, 1.0]},
        "augmentation": {"clean": 0.0, "turned": 1.0, "reference_share": 0.0},
        "run": {"steps": 12, "batch": 2, "warmup": 0, "learning_rate": 0.001, "validation_pairs": 2, "workers": 0},
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    trainer = Trainer(read_config(tmp_path / "run.json"), tmp_path / "run", say=lambda line: None)
    batch = trainer.training.batch([(9, k) for k in range(4)], (2.0, 0.03))

    def loss() -> float:
        with torch.no_grad():
            strides = trainer.strides[0]
            return float(trainer.refiner(batch, strides, trainer.start.pyramid(batch.clean, strides))[0].mean())

    assert not torch.equal(batch.clean[4:], batch.query)
    before = loss()
    trainer.run()
    assert loss() < 0.95 * before
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([step for step in steps if step["kind"] == "step" and step["error_px"] >= 0]) == 12


@pytest.mark.parametrize(
    ("features", "network", "said"),
    [
        ({"contrast": [1.0] * 9}, {"learn_damping": False}, "no more weights"),
        ({"imitation": [1.0] * 9}, {"learn_damping": False}, "no more weights"),
        ({"poses": 0, "contrast": [1.0]}, {}, "learn_damping"),
    ],
)
def test_losses_that_the_network_cannot_have_are_refused(tmp_path, features, network, said):
    write_photos(tmp_path / "photos")
    config = {
        "data": [{"kind": "photos", "folders": ["photos"]}],
        "network": {"start": "compact"} | network,
        "features": features,
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        Trainer(read_config(tmp_path / "run.json"), tmp_path / "run", say=lambda line: None)

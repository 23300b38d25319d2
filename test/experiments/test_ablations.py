# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The ablations: cells measured for real on a small scene, and kept; rows without weights; reduced and intensity features."""

import json
import math
import sys

import ablations
import common
import numpy as np
import pytest
import torch
from feature_variants import intensity_extractor, reduced_extractor, with_damping
from training_scene import invented_photo

from pixloc_ros.alignment.damping import LearnedDamping, damping_of, damping_tensors
from pixloc_ros.errors import InputError
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.compact import CompactNetwork
from pixloc_ros.features.weights import Weights

PHOTO = invented_photo(1, 320, 240)


def run(data, monkeypatch, capsys, *words):
    command = ["ablations", data / "data", "-o", data / "out", "--scenes", "plane", "--group", "parts", *words]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    assert ablations.main() == 0
    return capsys.readouterr()


def test_cells_are_measured_once_and_written_into_the_tables(data, monkeypatch, capsys):
    document, cells = data / "results.md", data / "out" / "cells" / "plane" / "intensity"
    document.write_text("before\n<!-- ablations parts: begin -->\nold\n<!-- ablations parts: end -->\nafter\n")
    call = ("--rows", "intensity", "--columns", "small", "blurred", "half", "basin", "--basin-queries", "1")
    assert "intensity: small, blurred, half, basin" in run(data, monkeypatch, capsys, *call, "--docs", document).err
    cell = json.loads((cells / "small.json").read_text())
    assert cell["within"] == 1.0 and cell["queries"] == 2 and cell["median_deg"] < 0.5
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| raw intensities" in text and "/ 100 |" in text and text.count("| – ") >= 4
    assert (data / "out" / "basin_plane.png").is_file()
    # Nothing is left to do; another setting would be.
    assert "intensity:" not in run(data, monkeypatch, capsys, *call).err
    with pytest.raises(InputError, match="ablations parts: begin --> and .* put these two lines into it"):
        run(data, monkeypatch, capsys, *call, "--docs", data / "other.md")
    (cells / "blurred.json").unlink()
    assert "intensity: blurred\n" in run(data, monkeypatch, capsys, *call).err
    monkeypatch.setitem(ablations.GROUPS["parts"], "intensity", ablations.Row("x", "intensity", ablations._loss("squared", 0.1)))
    assert "intensity: small, blurred, half, basin\n" in run(data, monkeypatch, capsys, *call).err


def test_rows_without_weights_are_skipped_with_a_word(data, monkeypatch, capsys):
    shipped, frozen = Weights.open("compact"), data / "frozen.safetensors"
    Weights(shipped.network, {key: value for key, value in shipped.card.items() if key != "start"}).save(frozen)
    said = run(data, monkeypatch, capsys, "--rows", "trained", "--columns", "small", "--weights", frozen).err
    assert "trained: skipped, no weights 'trained': give --trained" in said


def test_a_missing_pose_is_infinitely_wrong():
    errors = np.array([[0.1, 0.01, 0.001], [math.inf] * 3, [0.3, 0.03, 0.02]])
    assert common.recall(errors, 0.5, 0.01) == pytest.approx(1 / 3) and common.medians(errors)["median_deg"] == 0.3
    assert common.medians(errors[:2])["median_deg"] is None
    lost = {"within": 0.0, **common.medians(errors[1:2])}
    assert ablations.cells_of({"dark": lost}, True, False)[4] == "0 (lost / lost)"


# ---- features


def test_intensities_do_not_see_brightness_and_hardly_see_contrast():
    extractor, image = intensity_extractor(), (PHOTO * 0.7).astype(np.uint8)
    for level, stride, channels in zip(extractor.extract(PHOTO).levels, extractor.strides, extractor.channels, strict=True):
        assert level.features.shape[1:] == (channels, 240 // stride, 320 // stride)
        torch.testing.assert_close(level.features.norm(dim=1), torch.ones_like(level.features[:, 0]))
    plain, brighter, softer = (extractor.extract(i).levels[1].features for i in (image, image + 60, (image // 2)))
    torch.testing.assert_close(plain, brighter)
    assert float((plain * softer).sum(1).median()) > 0.97
    blank = extractor.extract(np.full((64, 64), 100, np.uint8)).levels[0].features
    torch.testing.assert_close(blank[:, -1], torch.ones_like(blank[:, -1]))


def test_without_the_finest_levels():
    full = load_extractor("compact")
    extractor = reduced_extractor(full, 3)
    assert extractor.strides == full.strides[:3] and extractor.channels == full.channels[:3]
    for level, same in zip(extractor.extract(PHOTO).levels, full.extract(PHOTO).levels):
        torch.testing.assert_close(level.features, same.features, atol=2e-5, rtol=0)
    strides = extractor.suited_to(640, 480).strides  # what a map was made with is found again
    assert strides == full.suited_to(640, 480).strides[:3] and extractor.with_strides(strides).strides == strides
    with pytest.raises(InputError):
        extractor.with_strides((5, 3))
    kinds = [full, extractor, reduced_extractor(full, 4), reduced_extractor(full, confidences=False), intensity_extractor()]
    assert len({kind.fingerprint for kind in kinds}) == len(kinds)


def test_without_confidences_and_damping():
    torch.manual_seed(0)
    network = CompactNetwork(confidences=True)
    extractor = Extractor(network, "x", "0123", companions=damping_tensors(LearnedDamping(len(network.strides))))
    without = reduced_extractor(extractor, confidences=False)
    for level, same in zip(without.extract(PHOTO).levels, extractor.extract(PHOTO).levels):
        assert level.confidence is None
        torch.testing.assert_close(level.features, same.features, atol=2e-5, rtol=0)
    fixed = reduced_extractor(extractor, damping=False)
    assert damping_of(fixed) is None is not damping_of(without) and fixed.fingerprint == extractor.fingerprint
    by_hand = damping_of(with_damping(extractor, 1e-2))
    torch.testing.assert_close(by_hand(2), torch.full((6,), 1e-2), rtol=1e-5, atol=0)

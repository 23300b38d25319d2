# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The ablations' bookkeeping: cells that are kept, rows without weights, tables; and one cell measured for real."""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import look_at, pinhole, plane_view, texture

from pixloc_ros.errors import InputError
from pixloc_ros.features.weights import Weights
from pixloc_ros.geometry import se3
from pixloc_ros.io.trajectory import Trajectory, write_benchmark_poses, write_tum
from pixloc_sim.sparse_model import Keyframe, build_sparse_model, write_colmap_text

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import ablations  # noqa: E402  (a script, not a module of the package)

CAMERA = pinhole(320, 240, 260.0)


@pytest.fixture
def data(tmp_path):
    """A scene of a textured plane as the shared data has it, and what the harness would export of it."""
    scene, picture = tmp_path / "data" / "plane", texture()
    export = tmp_path / "out" / "export" / "plane"
    for folder in (scene / "images", scene / "queries", *(export / v for v in ("clean", "blur"))):
        folder.mkdir(parents=True)
    frames = []
    for k, x in enumerate((-0.6, 0.0, 0.6)):
        pose = look_at((x, -1.2, 2.0), (x, 0.0, 0.0))
        image, depth = plane_view(pose, CAMERA, picture)
        cv2.imwrite(str(scene / "images" / f"{k}.png"), image)
        frames.append(Keyframe(f"{k}.png", 0, np.stack([image] * 3, -1), depth.astype(np.float32), pose))
    write_colmap_text(scene / "map", build_sparse_model(frames, CAMERA, np.random.default_rng(0), 0.1), frames, CAMERA)
    truth = [look_at((x, -1.15, 2.0), (x, 0.02, 0.0)) for x in (-0.3, 0.35)]
    for k, pose in enumerate(truth):
        image, _ = plane_view(pose, CAMERA, picture)
        cv2.imwrite(str(export / "clean" / f"q{k}.png"), image)
        cv2.imwrite(str(export / "blur" / f"q{k}.png"), cv2.blur(image, (5, 5)))
    for variant in ("clean", "blur"):
        (export / variant / "camera.txt").write_text("PINHOLE 320 240 260 260 160 120\n")
    (export / "lists.json").write_text(json.dumps({"queries": [{"name": f"q{k}.jpg"} for k in range(2)]}))
    write_tum(export / "truth.txt", Trajectory.from_poses(list(enumerate(truth))))
    for level, size in enumerate((0.02, 0.05, 0.1)):
        wrong = se3.se3_exp(torch.tensor([size, -size, 0, 0, size, 0], dtype=torch.float64))
        write_tum(export / f"prior_{level}.txt", Trajectory.from_poses([(k, pose @ wrong) for k, pose in enumerate(truth)]))
    write_benchmark_poses(scene / "queries" / "truth.txt", {f"q{k}.jpg": se3.inverse(pose) for k, pose in enumerate(truth)})
    (scene / "queries" / "scale.json").write_text(json.dumps({"q0.jpg": 2.3, "q1.jpg": 2.3}))
    (scene / "scene.json").write_text(json.dumps({"metric": True}))
    return tmp_path


def run(data, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(
        sys, "argv", ["ablations", str(data / "data"), "-o", str(data / "out"), "--scenes", "plane", *map(str, arguments)]
    )
    code = ablations.main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_cells_are_measured_once_and_written_into_the_tables(data, monkeypatch, capsys):
    document = data / "results.md"
    document.write_text("before\n<!-- ablations parts: begin -->\nold\n<!-- ablations parts: end -->\nafter\n")
    call = ("--group", "parts", "--rows", "intensity", "--columns", "small", "blurred", "basin", "--basin-queries", "1")
    code, out, err = run(data, monkeypatch, capsys, *call, "--docs", document)
    assert code == 0 and "intensity: small, blurred, basin" in err
    cell = json.loads((data / "out" / "cells" / "plane" / "intensity" / "small.json").read_text())
    assert len(cell["errors"]) == 2 and all(error[0] < 0.5 and error[2] < 0.01 for error in cell["errors"])
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| raw intensities" in text and "/ 100 |" in text and text.count("| – ") >= 4
    assert (data / "out" / "basin_plane.png").is_file()
    # Nothing is left to do; another setting would be.
    assert "intensity" not in run(data, monkeypatch, capsys, *call)[2]
    (data / "out" / "cells" / "plane" / "intensity" / "blurred.json").unlink()
    assert "intensity: blurred\n" in run(data, monkeypatch, capsys, *call)[2]
    changed = ablations.Row("intensity", "x", "intensity", ablations._loss("squared", 0.1))
    monkeypatch.setitem(ablations.GROUPS, "parts", (changed,))
    assert "intensity: small, blurred, basin\n" in run(data, monkeypatch, capsys, *call)[2]


def test_rows_without_weights_are_skipped_with_a_word(data, monkeypatch, capsys):
    shipped, frozen = Weights.open("compact"), data / "frozen.safetensors"
    Weights(shipped.network, {key: value for key, value in shipped.card.items() if key != "start"}).save(frozen)
    call = ("--group", "parts", "--rows", "trained", "--columns", "small", "--shipped", frozen)
    code, out, err = run(data, monkeypatch, capsys, *call)
    assert code == 0 and "trained: skipped, no weights 'trained': give --trained" in err
    with pytest.raises(InputError, match="no row 'nonsense'"):
        run(data, monkeypatch, capsys, "--rows", "nonsense")


def test_rivals_are_in_the_same_tables_and_must_have_the_same_queries(data, monkeypatch, capsys):
    summary = {"n": 2, "recall": [0, 0.5, 1], "med_deg": 0.1234, "med_trans": 0.0567, "med_rel": 0.02}
    result = {"peers": {"klt": {"summary": {"clean@0": summary}}, "pixloc_ros": {"summary": {"clean@0": summary}}}}
    (data / "out" / "plane.json").write_text(json.dumps(result))
    assert set(ablations.rival_rows("plane", data / "out")) == {"*klt*"}
    call = ("--group", "parts", "--rows", "intensity", "--columns", "small", "--rivals", data / "out")
    assert "| *klt* | 0.123 / 5.67 / 50 |" in run(data, monkeypatch, capsys, *call)[1]
    summary["n"] = 3
    (data / "out" / "plane.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="same --max-queries"):
        run(data, monkeypatch, capsys, *call)


def test_a_missing_pose_is_infinitely_wrong():
    found = ablations.summarize([[0.1, 0.01, 0.001], None, [0.3, 0.03, 0.02]])
    assert found["within"] == pytest.approx(1 / 3) and found["median_deg"] == pytest.approx(0.3)
    assert ablations.summarize([[0.1, 0.01, 0.001], None])["median_deg"] is None
    assert ablations.cells_of({"dark": ablations.summarize([None])}, True, False)[4] == "0 (lost / lost)"


def test_a_cell_from_before_a_setting_existed_counts_as_measured_with_its_default(tmp_path):
    settings = ablations.flat({"options": {"max_points": 1024, "new": {"choice": 0.5}}, "patches": False, "column": "small"})
    assert settings == {"options.max_points": "1024", "options.new.choice": "0.5", "patches": "False", "column": "small"}
    row, path = ablations.Row("", "", ""), tmp_path / "cell.json"
    now = ablations.flat(ablations.dataclasses.asdict(row))
    path.write_text(json.dumps({"settings": {k: v for k, v in now.items() if k != "options.max_points"}}))
    assert ablations.read_cell(path, now) is not None
    assert ablations.read_cell(path, {**now, "options.max_points": "512"}) is None
    path.write_text(json.dumps({"settings": {**now, "options.max_points": "512"}}))
    assert ablations.read_cell(path, now) is None and ablations.read_cell(tmp_path / "none.json", now) is None


def test_the_prior_factor_has_the_covariance_of_the_priors():
    """A fixed distance in a random direction: a third of its square along each axis."""
    rng = np.random.default_rng(0)
    shifts = rng.standard_normal((20000, 3))
    shifts *= 0.1 * 2.0 / np.linalg.norm(shifts, axis=1, keepdims=True)
    covariance = ablations.prior_covariance(1, 2.0)
    np.testing.assert_allclose(covariance[:3, :3], np.cov(shifts.T), atol=3e-4)
    assert float(covariance[5, 5]) == pytest.approx(math.radians(5) ** 2 / 3)

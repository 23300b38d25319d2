# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Figures of `pixloc evaluate` against those of evo on the same files, to 1e-6. evo is called as a program and never imported."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_metrics import random_walk

from pixloc_ros.cli.main import main
from pixloc_ros.geometry import se3
from pixloc_ros.io.trajectory import Trajectory, write_tum

NAMES = ("mean", "median", "max", "rmse")


def program(name: str) -> str:
    """Where `make setup` puts it, or on the path."""
    beside = Path(sys.prefix) / "evo" / "bin" / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip("evo is not installed")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A walk of 40 m through space and an estimate of it: noisy, moved as a whole, poses missing, stamps a little off."""
    path = tmp_path_factory.mktemp("evo")
    reference, generator = random_walk(200, 5, 0.2, 0.08), torch.Generator().manual_seed(6)
    offset = se3.se3_exp(torch.tensor([0.3, -0.2, 0.1, 0.02, 0.01, -0.03], dtype=torch.float64))
    noise = se3.se3_exp(torch.randn(200, 6, dtype=torch.float64, generator=generator) * 0.02)
    estimate = offset @ reference.map_from_body @ noise
    kept = np.array([i for i in range(200) if i % 7 and not 60 < i < 75])
    write_tum(path / "truth.tum", reference)
    write_tum(path / "estimate.tum", Trajectory(reference.stamps_ns[kept] + 3_000_000, estimate[kept]))
    for name, poses in (("truth", reference.map_from_body), ("estimate", estimate)):
        np.savetxt(path / f"{name}.kitti", poses[:, :3].reshape(-1, 12).numpy(), fmt="%.12g")
    return path


def evo(folder: Path, jobs: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Statistics of several evo commands, all at once."""
    running = {}
    for name, words in jobs.items():
        home = folder / "homes" / name  # one each: evo writes its settings there at its first start
        home.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"HOME": str(home), "MPLBACKEND": "agg"}
        command = [program(words[0]), *words[1:], "--no_warnings", "--save_results", f"{name}.zip"]
        running[name] = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    statistics = {}
    for name, process in running.items():
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        with zipfile.ZipFile(folder / f"{name}.zip") as archive:
            statistics[name] = json.loads(archive.read("stats.json"))
    return statistics


def ours(capsys, *arguments: str) -> dict[str, float]:
    assert main(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["runs"][0]


def check(figures: dict[str, float], theirs: dict[str, float], key: str) -> None:
    for name in NAMES:
        assert figures[key.format(name)] == pytest.approx(theirs[name], abs=1e-6, rel=0), (key, name)
        assert theirs[name] > 1e-3, "errors that are zero compare nothing"


@pytest.mark.parametrize(("relation", "key"), [("trans_part", "translation_error_{}_m"), ("angle_deg", "rotation_error_{}_deg")])
def test_tum(folder, capsys, relation, key):
    ape = ["evo_ape", "tum", "truth.tum", "estimate.tum", "-r", relation]
    rpe = ["evo_rpe", *ape[1:], "--all_pairs", "--pairs_from_reference", "--delta"]
    metres, poses = [*rpe, "1", "--delta_unit", "m"], [*rpe, "10", "--delta_unit", "f"]
    theirs = evo(folder, {"ape": ape, "aligned": [*ape, "--align"], "metres": metres, "poses": poses})
    arguments = ("--truth", str(folder / "truth.tum"), str(folder / "estimate.tum"))
    figures = ours(capsys, *arguments)
    assert figures["relative_step"] == "1 m"
    check(figures, theirs["ape"], key)
    check(figures, theirs["aligned"], f"aligned_{key}")
    check(figures, theirs["metres"], f"relative_{key}")
    check(ours(capsys, *arguments, "--step", "10poses"), theirs["poses"], f"relative_{key}")


def test_kitti(folder, capsys):
    theirs = evo(folder, {"kitti": ["evo_ape", "kitti", "truth.kitti", "estimate.kitti", "-r", "trans_part"]})
    figures = ours(capsys, "--truth", str(folder / "truth.kitti"), str(folder / "estimate.kitti"))
    check(figures, theirs["kitti"], "translation_error_{}_m")

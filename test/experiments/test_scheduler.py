# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Experiments and the suite on a dask cluster give what they give here."""

import json
import sys

import evaluate_scenes
import pytest
from scenes import simulated_scene

from pixloc_ros.cli.main import main as pixloc

distributed = pytest.importorskip("distributed", reason="a cluster needs dask.distributed")


def test_scenes_on_workers_give_the_same_figures(data, monkeypatch):
    def figures(folder, *more):
        words = [str(data / "data"), "-o", str(data / folder), "--priors", "small", *more]
        monkeypatch.setattr(sys, "argv", ["evaluate_scenes.py", *words])
        assert evaluate_scenes.main() == 0
        plane = json.loads((data / folder / "scenes.json").read_text())["plane"]
        return {key: value for key, value in plane["small"].items() if not key.startswith("ms")}

    here = figures("here")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        assert figures("there", "--scheduler", cluster.scheduler_address) == here
    assert here["queries"] == 2


def test_the_suite_on_workers_measures_the_same_cells(tmp_path, tmp_path_factory, capsys):
    scene = simulated_scene(tmp_path_factory)

    def cells(folder, *more):
        words = ["suite", "--map", scene.map, scene.drive, "--kinds", "blur", "--severities", "5", "-o", tmp_path / folder, *more]
        assert pixloc([str(word) for word in words]) == 0
        found = json.loads((tmp_path / folder / "suite.json").read_text())["cells"]
        timing = ("seconds", "frame_ms_p50")
        return sorted(({k: v for k, v in one.items() if k not in timing} for one in found), key=str)

    here = cells("here")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        assert cells("there", "--scheduler", cluster.scheduler_address) == here
    assert len(here) == 4

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Experiments on a dask cluster give what they give here."""

import json
import sys

import evaluate_scenes
import pytest

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

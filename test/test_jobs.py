# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Independent jobs, here and on a real dask cluster of two worker processes."""

import os
import signal
import sys
import time

import pytest

from pixloc_ros import jobs
from pixloc_ros.errors import InputError
from pixloc_ros.jobs import require_visible, run_jobs

distributed = pytest.importorskip("distributed", reason="a cluster needs dask.distributed")


def local_cluster(workers):
    return distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as made:
        yield made.scheduler_address


def squared(number):
    return number**2


def killing_once(path):
    """The square of 3, the second time."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 9


def killing(_):
    os.kill(os.getpid(), signal.SIGKILL)


def refusing(number):
    raise InputError(f"{number} is no good: give another")


def failing(_):
    raise AttributeError("a mistake of ours")


@pytest.mark.parametrize("where", ["here", "cluster"])
def test_results_come_with_their_numbers(where, request):
    scheduler = request.getfixturevalue("cluster") if where == "cluster" else None
    assert sorted(run_jobs(squared, range(5), scheduler)) == [(n, n**2) for n in range(5)]
    assert list(run_jobs(squared, [], scheduler)) == []
    with pytest.raises(InputError, match="7 is no good"):
        list(run_jobs(refusing, [7], scheduler))
    with pytest.raises(AttributeError, match="of ours"):
        list(run_jobs(failing, [1], scheduler))


def test_a_killed_worker_costs_its_job_only_time(cluster, tmp_path):
    assert list(run_jobs(killing_once, [tmp_path / "killed"], cluster)) == [(0, 9)]


def test_a_job_that_ends_every_worker_is_an_error(cluster):
    with pytest.raises(InputError, match="ended 4 workers one after the other"):
        list(run_jobs(killing, [0], cluster))


def test_workers_have_the_same_version(cluster, monkeypatch):
    monkeypatch.setattr(jobs, "__version__", "99.0")
    with pytest.raises(InputError, match="has pixloc_ros .*, not 99.0: install the same"):
        list(run_jobs(squared, [1], cluster))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "", "smoke://here:1"])
def test_a_scheduler_that_does_not_answer_is_an_error(address, monkeypatch):
    monkeypatch.setattr(jobs, "_CONNECT_S", 0.5)
    with pytest.raises(InputError, match="no dask scheduler answers at .*dask worker"):
        list(run_jobs(squared, [1], address))


def test_a_scheduler_without_workers_is_an_error(monkeypatch):
    monkeypatch.setattr(jobs, "_WORKERS_S", 0.2)
    with local_cluster(0) as empty, pytest.raises(InputError, match="has no workers"):
        list(run_jobs(squared, [1], empty.scheduler_address))


def test_a_scheduler_that_goes_away_is_an_error(monkeypatch):
    monkeypatch.setattr(jobs, "_LOOK_S", 0.5)
    monkeypatch.setattr(jobs, "_WORKERS_S", 1.0)
    with local_cluster(1) as leaving:
        results = run_jobs(time.sleep, [0, 60], leaving.scheduler_address)
        next(results)
    with pytest.raises(InputError, match="is lost|no workers"):
        list(results)


def test_dask_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pixloc_ros\[cluster\]"):
        list(run_jobs(squared, [1], "tcp://127.0.0.1:8786"))


def test_a_file_that_a_machine_does_not_see_is_named(tmp_path):
    require_visible(tmp_path)
    with pytest.raises(InputError, match="does not see .*bag: put it where all machines see it"):
        require_visible(tmp_path, tmp_path / "bag")

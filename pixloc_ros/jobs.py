# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Independent jobs: one after the other in this process, or on the workers of a dask.distributed cluster.

Dask sends functions, jobs and results as pickles: whoever reaches the scheduler can run code on the workers and here. It must be
one that is trusted, in a closed network or with TLS (an address tls://, certificates as in dask's configuration). Files that jobs
leave behind lie in folders that all machines see.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError
from pathlib import Path
from typing import Any

from . import __version__
from .errors import InputError

_CONNECT_S, _WORKERS_S, _LOOK_S = 20.0, 60.0, 10.0
"""How long to wait for the scheduler and for a first worker; how often to look whether any worker is left."""
_ONE_AT_A_TIME = threading.Lock()
_HOW = "start 'dask scheduler', and 'dask worker ADDRESS --nthreads 1' on each machine"


def run_jobs(function: Callable[[Any], Any], jobs: Sequence[Any], scheduler: str | None = None) -> Iterator[tuple[int, Any]]:
    """Numbers of jobs and what the function makes of them, in the order in which they are done.

    Dask gives a job to another worker where one dies.

    Args:
        function: Workers import it by its name, or it is that of a script.
        jobs: Paths in them are absolute, as workers run elsewhere.
        scheduler: Address of dask's, "tcp://HOST:8786"; None: here, in the order of the jobs.

    Raises:
        InputError: Of the function, or the cluster cannot be used.
    """
    if scheduler is None:
        yield from ((number, function(job)) for number, job in enumerate(jobs))
        return
    with _cluster(scheduler) as client:
        from distributed import wait

        tasks = [client.submit(_run, __version__, function, job, pure=False) for job in jobs]
        left = {task: number for number, task in enumerate(tasks)}
        while left:
            try:
                done = wait(list(left), timeout=_LOOK_S, return_when=FIRST_COMPLETED).done
            except TimeoutError:
                _require_worker(client, scheduler)
                continue
            for task in done:
                yield left.pop(task), task.result()


def require_visible(*paths: Path) -> None:
    """Raises `InputError` in a job that does not see files that all machines must see."""
    for path in paths:
        if not path.exists():
            raise InputError(f"{socket.gethostname()} does not see {path}: put it where all machines see it, by the same name")


# ---- the cluster


@contextlib.contextmanager
def _cluster(address: str):
    """A client of the scheduler. Raises `InputError` for whatever is wrong with it, and with its workers while it is used."""
    try:
        from distributed import Client, KilledWorker
        from distributed.comm import CommClosedError, get_address_host_port
    except ImportError:
        raise InputError("--scheduler needs dask.distributed: pip install 'pixloc_ros[cluster]'") from None
    try:
        get_address_host_port(address, strict=True)
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"no dask scheduler answers at {address} ({error}): {_HOW}, and give its address") from error
    try:
        _require_worker(client, address)
        client.run(_require_version, __version__)
        yield client
    except KilledWorker as error:
        count = error.allowed_failures + 1
        raise InputError(
            f"a job ended {count} workers one after the other ({error.last_worker}): give them more memory"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise InputError(f"the connection to the dask scheduler at {address} is lost: give the command again to go on") from error
    except (ModuleNotFoundError, RuntimeError) as error:
        missing = (getattr(error, "name", None) or "").startswith("pixloc_ros")
        if not missing and "deserialization" not in str(error):
            raise
        why = error.__cause__ or error
        raise InputError(f"scheduler and workers at {address} need pixloc_ros {__version__}, as it is here ({why})") from error
    finally:
        client.close(timeout=_CONNECT_S)


def _require_worker(client, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=_WORKERS_S)
    except TimeoutError:
        raise InputError(f"the dask scheduler at {address} has no workers: {_HOW}") from None


def _require_version(version: str) -> None:
    if version != __version__:
        raise InputError(f"{socket.gethostname()} has pixloc_ros {__version__}, not {version}: install the same everywhere")


def _run(version: str, function: Callable[[Any], Any], job: Any) -> Any:
    """On a worker. It may have several threads; the jobs use all cores by themselves."""
    _require_version(version)
    with _ONE_AT_A_TIME:
        return function(job)

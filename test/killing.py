# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Commands that are killed: children of a small process that has everything imported and has run nothing yet, so that killing one
is quick and the fork leaves no thread behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def run_alone(script: str, folder: Path) -> None:
    """A test's own file as such a process, with a folder as its argument."""
    path = os.pathsep.join(str(Path(script).parents[k]) for k in (1, 2))
    done = subprocess.run(
        [sys.executable, script, str(folder)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr


def in_child(work: Callable[[], int]) -> int:
    """How a child that works ended: what that returns, 99 where it raises, or the signal's number below zero."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

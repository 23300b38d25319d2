# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Progress on the terminal."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[..., None]]:
    """A function (done, of, note="") that keeps one line on stderr up to date; silent where that is no terminal."""
    shown = 0.0

    def report(done: int, of: int, note: str = "") -> None:
        nonlocal shown
        if time.monotonic() - shown < 0.1 and done < of:
            return
        shown = time.monotonic()
        line = f"{what} {done}/{of} {note}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    terminal = sys.stderr.isatty()
    try:
        yield report if terminal else lambda done, of, note="": None
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

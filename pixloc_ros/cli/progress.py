# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Progress on the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[..., None]]:
    """A function (done, of, note="") that keeps one line on stderr up to date; silent where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, of, note="": None
        return
    shown = 0.0

    def report(done: int, of: int, note: str = "") -> None:
        nonlocal shown
        if time.monotonic() - shown < 0.1 and done < of:
            return
        shown = time.monotonic()
        sys.stderr.write(f"\r\033[K{what} {done}/{of} {note}"[:100])
        sys.stderr.flush()

    try:
        yield report
    finally:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()

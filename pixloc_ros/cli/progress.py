# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the terminal tells of long work: how far it is, and what was left out of it."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping

_SHOWN = 20
"""Reasons, at most."""


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[..., None]]:
    """A function (done, of, note="") that keeps one line on stderr up to date; silent where that is no terminal."""
    shown, said = 0.0, None

    def report(done: int, of: int, note: str = "") -> None:
        nonlocal shown, said
        if time.monotonic() - shown < 0.1 and done < of and note == said:
            return
        shown, said = time.monotonic(), note
        line = f"{what} {done}/{of} {note}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    terminal = sys.stderr.isatty()
    try:
        yield report if terminal else lambda done, of, note="": None
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def tell_reasons(what: str, reasons: Mapping[str, str], more: str) -> None:
    """Prints which images `what` happened to and why. reasons: by name; more: the option that lists all of them."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    for reason, some in list(names.items())[:_SHOWN]:
        shown = ", ".join(some[:3]) + (", ..." if len(some) > 3 else "")
        print(f"{what} {shown if len(some) == 1 else f'{len(some)} images ({shown})'}: {reason}")
    if len(names) > _SHOWN:
        print(f"{what} {sum(map(len, list(names.values())[_SHOWN:]))} more: {more} lists all of them")

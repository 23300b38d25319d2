# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Tables that commands write into Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from ..io.files import write_text


def around_section(page: Path, name: str) -> tuple[str, str]:
    """What stands before and after the section between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page, these
    lines included. Raises InputError where the page cannot be read or lacks one of the two lines."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    try:
        before, rest = page.read_text(encoding="utf-8").split(begin)
        _, after = rest.split(end)
    except (OSError, ValueError):
        raise InputError(f"{page} has no section between {begin.strip()} and {end}: put these two lines into it") from None
    return before + begin, end + after


def write_section(page: Path, name: str, text: str) -> None:
    """Replace a section of a page (`around_section`); it is unchanged where that raises."""
    before, after = around_section(page, name)
    write_text(page, f"{before}{text.strip()}\n{after}")


def markdown_table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """A table of a Markdown page.

    Args:
        head: Names of the columns, separated by `" | "`.
        rows: Cells of each row; they are written by `str`.
    """
    columns = head.count(" | ") + 1
    return "\n".join((f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows))) + "\n"

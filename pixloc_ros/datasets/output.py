# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The folder that a data set becomes: made next to its place, put there when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import InputError
from ..io.files import write_text
from ..io.work_folder import WorkFolder
from .licences import licence_note

SUMMARY = "dataset.json"


class OutputFolder:
    """`folder` under way in `folder.work/`: what is done stays there, so that the same command goes on after a kill.

    Args:
        folder: The one to make.
        key: What the result depends on, as JSON can hold it.
        say: Called with a line for people where earlier work goes on.

    Raises:
        InputError: The folder exists already, or the work cannot be written.
    """

    def __init__(self, folder: Path, key: dict, say: Callable[[str], None]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} exists: give another folder, or remove it to make it again")
        self.work = WorkFolder(self.folder.with_name(f"{self.folder.name}.work"), key)
        self.work.path("result").mkdir(exist_ok=True)
        if self.work.resumed:
            say(f"going on with what is in {self.work.folder}")

    def path(self, name: str) -> Path:
        """Where a file of the result is or will be."""
        return self.work.path("result") / name

    def finish(self, summary: dict, readme: str) -> None:
        """Write the summary and the README, and put the folder where it belongs."""
        write_text(self.path("README.md"), readme)
        write_text(self.path(SUMMARY), json.dumps(summary, indent=2) + "\n")
        if self.folder.exists():
            self.folder.rmdir()
        os.replace(self.path(""), self.folder)
        self.work.remove()


def identity(paths: Iterable[Path]) -> list:
    """What distinguishes files from others, or from themselves changed; of a folder, its entries' number and its own time."""
    return [
        [str(path.resolve()), path.stat().st_mtime_ns, sum(1 for _ in path.iterdir()) if path.is_dir() else path.stat().st_size]
        for path in paths
        if path.exists()
    ]


def readme_text(
    set_name: str, title: str, table: Iterable[tuple[str, str]], notes: Iterable[str], commands: Iterable[str]
) -> str:
    """A README: what the files are, how they came about, what to do next, and the terms of the data."""
    rows = "\n".join(f"| `{file}` | {what} |" for file, what in table)
    points = "\n".join(f"- {note}" for note in notes)
    lines = "\n".join(commands)
    return (
        f"# {title}\n\n| file | what |\n|---|---|\n{rows}\n\n{points}\n\nNext:\n\n```bash\n{lines}\n```\n\n"
        f"{licence_note(set_name)}\n"
    )

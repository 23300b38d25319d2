# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Lists of images and their cameras: `NAME MODEL WIDTH HEIGHT PARAMS...`, models and pixels as in COLMAP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..geometry.cameras import Camera
from .colmap_files import MODELS
from .files import without_comments, write_text
from .text import is_number, may_be_comment, read_named_rows, read_text


def _split_camera(line: str) -> tuple[str, str] | None:
    """The name, and the camera's words, which begin with the last name of a model."""
    words = list(re.finditer(r"\S+", line))
    while len(words) > 1 and is_number(words[-1].group()):
        words.pop()
    at = words[-1].start() if len(words) > 1 and words[-1].group() in dict(MODELS) else 0
    return (line[:at].rstrip(), line[at:]) if at else None


def read_cameras(path: str | Path, left_out: dict[str, str] | None = None) -> dict[str, Camera]:
    """Cameras by the name of the image, which may hold blanks and begin with "#": a line that was commented out gives a name that
    no image has (`files.without_comments`).

    Args:
        path: The file.
        left_out: Gets why a camera cannot be used, by name, as long as others can be; None: one is enough to refuse the file.

    Raises:
        InputError: The file cannot be read, is malformed, empty, or names an image twice.
    """
    cameras: dict[str, Camera] = {}
    problems: dict[str, str] = {}
    for where, name, text in read_named_rows(path, _split_camera):
        try:
            if name in cameras:
                raise InputError(f"a second camera for '{name}': keep one")
            if not text:
                raise InputError(f"no camera behind '{name}': write NAME MODEL WIDTH HEIGHT PARAMS... with blanks between")
            cameras[name] = Camera.parse_colmap_line(text)
        except InputError as error:
            if not may_be_comment(name):
                problems.setdefault(name, f"{where}: {error}")
    cameras = {name: camera for name, camera in cameras.items() if name not in problems}
    if problems and (left_out is None or not cameras):
        raise InputError(next(iter(problems.values())))
    if not cameras:
        raise InputError(f"{path} names no camera: write lines NAME MODEL WIDTH HEIGHT PARAMS...")
    if left_out is not None:
        left_out.update(problems)
    return cameras


def write_cameras(path: str | Path, cameras: Mapping[str, Camera]) -> None:
    """Write cameras by the name of the image, in the order given. Raises `InputError`."""
    write_text(path, "".join(f"{name} {camera.to_colmap_line()}\n" for name, camera in cameras.items()))


def read_names(path: str | Path) -> list[str]:
    """Names of images next to the file, one a line; one that begins with "#" must be there. Raises `InputError`: the file cannot
    be read or is empty."""
    lines = (line.strip() for line in read_text(path).split("\n"))
    names = without_comments(Path(path).parent, filter(None, lines))
    if not names:
        raise InputError(f"{path} names no image: write one file name a line")
    return names

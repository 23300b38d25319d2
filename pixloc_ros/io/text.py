# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Reading of text files that people and other programs write: UTF-8 with or without byte order marks, blank lines, comments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from ..errors import InputError

_COMMENT = re.compile(r"\s#.*")
_FILE_NAME = re.compile(r"\.[A-Za-z]\w{2,4}$")


def read_text(path: str | Path, remedy: str = "check the path", errors: str = "strict") -> str:
    """The content of a text file, with "\\n" after every line and without byte order marks.

    Args:
        path: The file.
        remedy: What to do where it cannot be read.
        errors: How bytes that are not UTF-8 are treated, as `bytes.decode` takes it.

    Raises:
        InputError: The file cannot be read or is not text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): {remedy}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\0" in data[:2] and data.count(b"\0") > len(data) // 4):
        raise InputError(f"{path} is UTF-16 text, as some editors save it: save it as UTF-8")
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: {remedy}, or save it as UTF-8") from None
    # Marks come from editors, and between files that were joined.
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")


def read_lines(path: str | Path, remedy: str = "check the path", skip: int = 0) -> Iterator[tuple[str, str]]:
    """("file:line", text) of the lines that are neither empty nor comments, which begin with #.

    Args:
        path: The file.
        remedy: What to do where it cannot be read.
        skip: Lines of heading to leave out.

    Raises:
        InputError: As `read_text`.
    """
    for number, line in enumerate(read_text(path, remedy).splitlines()[skip:], skip + 1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield f"{path}:{number}", line


def read_rows(path: str | Path, remedy: str = "check the path", skip: int = 0) -> Iterator[tuple[str, list[str]]]:
    """("file:line", words) as `read_lines`; a comment may also stand behind the words."""
    return ((where, _COMMENT.sub("", line).split()) for where, line in read_lines(path, remedy, skip))


def read_named_rows(
    path: str | Path, split: Callable[[str], tuple[str, str] | None], remedy: str = "check the path"
) -> Iterator[tuple[str, str, str]]:
    """("file:line", name, rest) of lines that begin with the name of a file, which may hold blanks and "#".

    Lines that begin with "#" are comments unless they are such lines. Where a blank follows "#", the name must end like a file's,
    and the line may still be one that was commented out: who reads it must know whether there is such a file (`may_be_comment`).

    Args:
        path: The file.
        split: Gives name and rest of a line, None where it is no such line: then its first word is the name.
        remedy: What to do where the file cannot be read.

    Raises:
        InputError: As `read_text`.
    """
    for number, line in enumerate(read_text(path, remedy).split("\n"), 1):
        line = line.strip()
        parts = split(line) or split(_COMMENT.sub("", line))
        if parts is None and not line.startswith("#"):
            parts = tuple((_COMMENT.sub("", line).split(maxsplit=1) + [""])[:2]) if line else None
        if parts is not None and (not may_be_comment(line) or _FILE_NAME.search(parts[0])):
            yield f"{path}:{number}", *parts


def may_be_comment(name: str) -> bool:
    """Whether a name that `read_named_rows` gives, or its line, may be a line that was commented out."""
    return name[:1] == "#" and name[1:2].isspace()


def is_number(word: str) -> bool:
    """Whether a word is a number, NaN and infinity too."""
    try:
        float(word)
        return True
    except ValueError:
        return False


def read_table(path: str | Path, columns: int, remedy: str = "check the path") -> np.ndarray:
    """Lines of so many numbers, float64 [N, columns]. Raises `InputError`: the file cannot be read or is malformed."""
    rows = []
    for where, words in read_rows(path, remedy):
        if len(words) != columns:
            raise InputError(f"{where}: {len(words)} words instead of {columns} numbers: copy the file again")
        rows.append(parse_numbers(where, words))
    return np.array(rows, np.float64).reshape(-1, columns)


def parse_numbers(where: str, words: Iterable[str], remedy: str = "remove the line") -> list[float]:
    """The numbers that words say. Raises `InputError` naming `where`: they are not numbers or not finite."""
    words = list(words)
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise InputError(f"{where}: '{' '.join(words)}' are not all numbers") from None
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{where}: NaN or infinite numbers: {remedy}")
    return values


def parse_stamp(where: str, word: str) -> int:
    """Nanoseconds of a word that says seconds, exactly. Raises `InputError` naming `where`."""
    try:
        stamp_ns = int((Decimal(word) * 10**9).to_integral_value())
        np.int64(stamp_ns)
    except (InvalidOperation, ValueError, OverflowError):
        raise InputError(f"{where}: the stamp '{word}' is not a time: write seconds") from None
    return stamp_ns

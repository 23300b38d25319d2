# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and files found by names that other systems wrote."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ..errors import InputError

_Value = TypeVar("_Value")


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(f"cannot write {path} ({reason}): choose a place that is writable and has room")


@contextlib.contextmanager
def replacing(path: str | Path, mode: int = 0o644, sync: bool = True) -> Iterator[Path]:
    """Give a temporary file that takes the place of `path` when the block ends; readers see the old file or the new one.

    The temporary file lies in the same folder, which is made, and keeps the suffix. Nobody can guess its name, so that nobody
    can put a link there before, and only its owner may read it until the block ends.

    Args:
        path: The file to write.
        mode: Its permissions.
        sync: Whether to wait until the content is on the disk, so that it survives a loss of power.

    Raises:
        InputError: The file cannot be written.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        yield Path(temporary)
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # gone after the rename
                os.unlink(temporary)


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Give a place for a folder of the same name, not made yet, which takes the place of `path` when the block ends.

    Raises:
        InputError: The folder cannot be written.
    """
    path, around = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield around / path.name
        if path.exists():
            shutil.rmtree(path)
        os.replace(around / path.name, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if around is not None:
            shutil.rmtree(around, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file with `replacing`."""
    with replacing(path, mode) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, mode: int = 0o644) -> None:
    """Write a UTF-8 file with `replacing`."""
    write_bytes(path, text.encode(), mode)


def plain_name(name: str) -> str:
    """What the names of one file have in common on all systems: slashes for backslashes, no "./", one case, composed letters."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./")).casefold()


def find_files(folder: str | Path, names: Iterable[str], what: str, remedy: str) -> dict[str, Path]:
    """`find_file` of each name. Raises InputError where files are missing, with how many of what, and the remedy."""
    found = {name: find_file(folder, name) for name in names}
    missing = [name for name, path in found.items() if not path.is_file()]
    if missing:
        raise InputError(f"{len(missing)} of {len(found)} {what} are not in {folder}, the first is {missing[0]}: {remedy}")
    return found


def without_comments(folder: str | Path, names: Iterable[str]) -> list[str]:
    """The names in a list of files but those that begin with "#" and name no file in the folder: their lines are comments."""
    return [name for name in names if not name.startswith("#") or find_file(folder, name).is_file()]


def find_file(folder: str | Path, name: str) -> Path:
    """The file that a list from another system names: with backslashes, in another case or with letters composed differently.

    Returns:
        The file; where nothing fits or several files differ by case only, the path that the name says.
    """
    folder, name = Path(folder), name.strip()
    if (folder / name).exists():
        return folder / name
    path = folder
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        if not (path / part).exists():
            plain = plain_name(part)
            found = [entry for entry in path.iterdir() if plain_name(entry.name) == plain] if path.is_dir() else []
            part = found[0].name if len(found) == 1 else part
        path /= part
    return path


def match_names(wanted: Iterable[str], known: Mapping[str, _Value]) -> dict[str, _Value]:
    """What is known of each wanted name of a file; names that only differ between systems are the same (`plain_name`).

    Names that nothing or several things fit are left out.
    """
    plain: dict[str, list[str]] = {}
    for name in known:
        plain.setdefault(plain_name(name), []).append(name)
    fits = {name: [name] if name in known else plain.get(plain_name(name), []) for name in wanted}
    return {name: known[found[0]] for name, found in fits.items() if len(found) == 1}

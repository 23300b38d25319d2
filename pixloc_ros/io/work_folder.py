# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Results of long work, kept as files, so that work that was killed goes on where it was."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import InputError
from .files import replacing

KEY = "work.json"


class WorkFolder:
    """A folder of arrays and images that belong to one piece of work. Every file is whole or absent.

    Args:
        folder: Emptied where it holds other work.
        key: What the results depend on, as JSON can hold it.

    Attributes:
        resumed: Whether results of the same work were there.

    Raises:
        InputError: The folder holds something else or cannot be written.
    """

    def __init__(self, folder: Path, key: dict) -> None:
        self.folder = Path(folder)
        text = json.dumps(key, sort_keys=True, indent=1)
        try:
            self.resumed = self._holds(text)
            if not self.resumed:
                if self.folder.exists():
                    shutil.rmtree(self.folder)
                self.folder.mkdir(parents=True)
                self.write(KEY, lambda path: path.write_text(text))
        except OSError as error:
            raise InputError(
                f"cannot use the work folder {self.folder} ({error.strerror}): give a place that is writable and has room"
            ) from error

    def _holds(self, text: str) -> bool:
        if not self.folder.is_dir():
            return False
        key = self.folder / KEY
        if not key.is_file():
            if any(self.folder.iterdir()):
                raise InputError(f"{self.folder} holds other files: move it away or give another output")
            return False
        return key.read_text() == text

    def path(self, name: str) -> Path:
        """Where a file is or will be."""
        return self.folder / name

    def write(self, name: str, save: Callable[[Path], object]) -> Path:
        """Have a file written whole: `save` gets a name of the same suffix, which is then renamed."""
        path = self.folder / name
        with replacing(path, sync=False) as temporary:
            save(temporary)
        return path

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays under a name, made unless they are there."""
        path = self.folder / f"{name}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return {key: file[key] for key in file.files}
            except (OSError, ValueError, zipfile.BadZipFile):
                pass  # damaged by other means than a kill: make it again
        values = make()
        self.write(path.relative_to(self.folder).as_posix(), lambda temporary: np.savez(temporary, **values))
        return values

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array in a file, which need not fit into memory; it lasts as long as it is used."""
        path = self.folder / f"{name}.npy"
        path.unlink(missing_ok=True)
        return np.lib.format.open_memmap(path, "w+", dtype, shape)

    def remove(self) -> None:
        """When the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

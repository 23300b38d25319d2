# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Files of named tensors in the safetensors format: maps, weights, checkpoints.

The format (https://github.com/huggingface/safetensors): the header's length as eight bytes, little-endian; the header, JSON
of name to dtype, shape and place, with `__metadata__` for texts; then the tensors, without gaps. Nothing is executed or
unpickled. Reading and writing it take a page of code; the library has no package in the distributions that ROS 2 Humble, Jazzy
and Kilted run on.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from .files import replacing

_LONGEST_HEADER = 100_000_000  # the library's bound
_ALIGNMENT = 64
_METADATA = "__metadata__"
_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "I64": "<i8", "F32": "<f4", "I32": "<i4", "F16": "<f2", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorFileError(ValueError):
    """A file that is not in the format (`foreign`), or that is damaged. The message says why, without the file's name."""

    def __init__(self, why: str, foreign: bool = False) -> None:
        super().__init__(why)
        self.foreign = foreign


class TensorFile:
    """A file mapped into memory. Opening reads the header alone and checks all of it; a tensor's values are read when used.

    Attributes:
        metadata: Texts by name.
        arrays: Read-only views of the file by name, in the order of the file.

    Raises:
        TensorFileError: The file is not in the format, or damaged.
        OSError: The file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise TensorFileError("it is shorter than any header", foreign=True)
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table, self._start = self._table()
        self.metadata = _metadata(table.pop(_METADATA, {}))
        self.arrays = dict(self._views(table))

    def _table(self) -> tuple[dict, int]:
        (length,) = struct.unpack("<Q", self._mapping[:8])
        if length > _LONGEST_HEADER or self._mapping[8:9] != b"{":
            raise TensorFileError("it has no header", foreign=True)
        if 8 + length > len(self._mapping):
            raise TensorFileError("it ends within its header")
        try:
            table = json.loads(self._mapping[8 : 8 + length].decode(), object_pairs_hook=_without_repetitions)
        except TensorFileError:
            raise
        except (ValueError, RecursionError):
            raise TensorFileError("its header is not JSON", foreign=True) from None
        return table, 8 + length

    def _views(self, table: dict) -> Iterator[tuple[str, np.ndarray]]:
        size = len(self._mapping) - self._start
        end = 0
        for name, (first, last, dtype, shape) in sorted(
            ((name, _entry(name, entry)) for name, entry in table.items()), key=lambda item: item[1][:2]
        ):
            if first != end:
                raise TensorFileError(f"the entry of {name!r} in its header makes no sense: gaps or overlaps")
            if last > size:
                raise TensorFileError(f"it is cut short: {size} bytes of data where {name!r} ends at {last}")
            try:
                array = np.frombuffer(self._mapping, dtype, math.prod(shape), self._start + first).reshape(shape)
            except (ValueError, OverflowError):  # an empty tensor of a shape beyond numpy's bounds
                raise TensorFileError(f"the entry of {name!r} in its header makes no sense: its shape") from None
            end = last
            yield name, array
        if end != size:
            raise TensorFileError("it is longer than its header says")


def _without_repetitions(pairs: list[tuple[str, object]]) -> dict:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise TensorFileError("its header names something twice")
    return table


def _metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise TensorFileError("its metadata are not texts")
    return metadata


def _entry(name: str, entry: object) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """First and last byte, dtype and shape of a tensor, which fit each other."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2 and isinstance(dtype, str)):
        raise TensorFileError(f"the entry of {name!r} in its header makes no sense")
    if dtype not in _DTYPES:
        raise TensorFileError(f"{name!r} is of type {dtype!r}, which is not read here")
    first, last = offsets
    if last - first != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise TensorFileError(f"the entry of {name!r} in its header makes no sense: its size does not fit its shape")
    return first, last, _DTYPES[dtype], tuple(shape)


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a file with `replacing`. Same content, same bytes.

    Raises:
        InputError: The file cannot be written.
        ValueError: The format does not know a dtype.
    """
    # Widest items first, so that every tensor is aligned to its items.
    tensors = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header = _header(tensors, metadata)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        for tensor in tensors.values():
            file.write(tensor_bytes(tensor))


def tensor_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array as they stand in the file, without a copy."""
    return memoryview(array.reshape(-1).view(np.uint8))


def _header(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {_METADATA: dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{name!r} is of type {tensor.dtype}, which is not written here")
        table[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a file, in memory, and its metadata. Raises as TensorFile does."""
    file = TensorFile(path)
    return {name: torch.from_numpy(array.copy()) for name, array in file.arrays.items()}, file.metadata


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """`write_arrays` of tensors from any device, in plain memory order."""
    write_arrays(path, {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}, metadata)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Tensor files against the safetensors library, and against hostile headers."""

import json
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixloc_ros.errors import InputError
from pixloc_ros.io.tensor_file import TensorFile, TensorFileError, load_tensors, save_tensors, write_arrays

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "u1", "?"]
ARRAYS = st.dictionaries(
    st.text(max_size=12).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4))),
    max_size=5,
)
TEXTS = st.dictionaries(st.text(), st.text())


def equal(ours: dict, theirs: dict) -> bool:
    return set(ours) == set(theirs) and all(
        a.dtype == theirs[name].dtype and a.shape == theirs[name].shape and a.tobytes() == theirs[name].tobytes()
        for name, a in ours.items()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tensors")


@settings(max_examples=100, deadline=None)
@given(arrays=ARRAYS, metadata=TEXTS)
def test_the_library_reads_what_we_write(folder, arrays, metadata):
    library = pytest.importorskip("safetensors")
    path = folder / "ours.safetensors"
    write_arrays(path, arrays, metadata)
    with library.safe_open(str(path), framework="np") as file:
        theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        assert (file.metadata() or {}) == metadata
    assert equal(arrays, theirs)
    opened = TensorFile(path)
    assert equal(arrays, opened.arrays) and opened.metadata == metadata
    assert all(not array.flags.writeable and array.ctypes.data % array.itemsize == 0 for array in opened.arrays.values())


@settings(max_examples=100, deadline=None)
@given(arrays=ARRAYS, metadata=TEXTS)
def test_we_read_what_the_library_writes(folder, arrays, metadata):
    library = pytest.importorskip("safetensors.numpy")
    path = folder / "theirs.safetensors"
    library.save_file(arrays, str(path), metadata or None)  # 0.8.0 writes no JSON for an empty dictionary and no tensors
    opened = TensorFile(path)
    assert equal(arrays, opened.arrays) and opened.metadata == metadata


def test_tensors_of_torch(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    tensors = {
        "weight": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).T,
        "half": torch.randn(5).half(),
        "step": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "gradient": torch.randn(2, requires_grad=True),
        "nothing": torch.zeros(0, 3),
    }
    save_tensors(tmp_path / "ours", tensors, {"card": "{}"})
    for found in (load_tensors(tmp_path / "ours")[0], library.load_file(str(tmp_path / "ours"))):
        assert set(found) == set(tensors)
        assert all(t.dtype == tensors[n].dtype and torch.equal(t, tensors[n]) for n, t in found.items())
    loaded, metadata = load_tensors(tmp_path / "ours")
    loaded["step"] += 1  # the program's own memory, not the file
    assert metadata == {"card": "{}"} and load_tensors(tmp_path / "ours")[0]["step"] == 7


def test_types_that_are_not_in_the_format(tmp_path):
    with pytest.raises(ValueError, match="complex128"):
        write_arrays(tmp_path / "file", {"a": np.zeros(2, complex)}, {})
    with pytest.raises(ValueError, match="object"):
        write_arrays(tmp_path / "file", {"a": np.array([{}])}, {})
    assert not os.listdir(tmp_path)


def test_nothing_is_left_behind_where_writing_fails(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_arrays(tmp_path / "taken", {"a": np.zeros(2)}, {})
    assert os.listdir(tmp_path) == ["taken"]


def file_of(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(first, last, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": [last - first] if shape is None else shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "header, data, message",
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "overlap"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "overlap"),
        ({"a": entry(0, 2), "b": entry(4, 6)}, 6, "gaps"),
        ({"a": entry(1, 4)}, 4, "gaps"),
        ({"a": entry(0, 4)}, 3, "cut short"),
        ({"a": entry(0, 4)}, 5, "longer"),
        ({"a": entry(4, 0, [])}, 4, "makes no sense"),
        ({"a": entry(0, 4, [2])}, 4, "size"),
        ({"a": entry(0, 4, [-2, -2])}, 4, "makes no sense"),
        ({"a": entry(0, 4, [4.0])}, 4, "makes no sense"),
        ({"a": entry(0, 1, [True])}, 1, "makes no sense"),
        ({"a": entry(0, 4, ["4"])}, 4, "makes no sense"),
        ({"a": entry(0, 4, 4)}, 4, "makes no sense"),
        ({"a": entry(0, 4, [2**62, 4, 2**62])}, 4, "size"),
        ({"a": entry(0, 0, [0, 2**70])}, 0, "makes no sense"),
        ({"a": entry(0, 0, [0] + [2**40] * 3)}, 0, "makes no sense"),
        ({"a": entry(0, 0, [0] * 200)}, 0, "makes no sense"),
        ({"a": entry(0, 4) | {"dtype": "BF16"}}, 4, "BF16"),
        ({"a": entry(0, 4) | {"dtype": ["U8"]}}, 4, "makes no sense"),
        ({"a": entry(0, 4) | {"data_offsets": [0]}}, 4, "makes no sense"),
        ({"a": entry(0, 4) | {"data_offsets": [0, 10**400]}}, 4, "size"),
        ({"a": None}, 0, "makes no sense"),
        ({"a": {}}, 0, "makes no sense"),
        ({"__metadata__": {"card": 5}}, 0, "metadata"),
        ({"__metadata__": ["card"]}, 0, "metadata"),
        (b'{"a": 1, "a": 1}', 0, "twice"),
        (b'{"__metadata__": {"a": "1", "a": "2"}}', 0, "twice"),
        (b'{"a": NaN}', 0, "makes no sense"),
        (b'{"\\ud800": 5}', 0, "makes no sense"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "JSON"),
        (b'{"a": "\xff"}', 0, "JSON"),
        ("{}".encode("utf-16-le"), 0, "JSON"),
        (b'{"a": ' + b"[" * 100_000, 0, "JSON"),
        (b"[]", 0, "no header"),
        (b" {}", 0, "no header"),
        (b"{} x", 0, "JSON"),
    ],
)
def test_hostile_headers(tmp_path, header, data, message):
    path = file_of(tmp_path / "hostile", header, bytes(data))
    with pytest.raises(TensorFileError, match=message) as error:
        TensorFile(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("length", [3, 10_000, 10**8, 10**8 + 1, 2**63, 2**64 - 1])
def test_lengths_of_the_header_beyond_the_file(tmp_path, length):
    with pytest.raises(TensorFileError):
        TensorFile(file_of(tmp_path / "hostile", b"{}", length=length))


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 0), b"\x89PNG\r\n\x1a\n" * 40])
def test_other_files(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(TensorFileError) as error:
        TensorFile(tmp_path / "other")
    assert error.value.foreign


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_byte_raises_no_other_error(folder, data):
    path = folder / "whole.safetensors"
    if not path.exists():
        write_arrays(path, {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 4), np.int32)}, {"card": "x"})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    changed = folder / "changed.safetensors"
    changed.write_bytes(content)
    try:
        TensorFile(changed)
    except TensorFileError as error:
        assert "\n" not in str(error)

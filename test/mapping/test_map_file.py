# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import os
import struct
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_helpers import FakeExtractor, look_at, numbers_map, pinhole

from pixloc_ros.errors import InputError
from pixloc_ros.io.tensor_file import write_arrays
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.map_file import describe_camera


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "confidences"])
def map_(request):
    poses = torch.stack([look_at((0.3 * k, -4.0, 0.1), (0.3 * k, 0.0, 0.0)) for k in range(5)])
    xyz = np.random.default_rng(1).uniform((-2, -0.5, -1), (3, 0.5, 1), (300, 3))
    return numbers_map(poses, xyz, pinhole(), confidence=request.param)


@pytest.fixture(scope="module")
def file(map_, tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "site.pixmap"
    map_.save(path)
    return path


def same(a: Map, b: Map) -> bool:
    def plain(value):
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        return describe_camera(value) if hasattr(value, "params") else value.tolist() if hasattr(value, "tolist") else value

    return all(plain(getattr(a, field.name)) == plain(getattr(b, field.name)) for field in fields(Map))


def test_what_is_saved_is_opened(map_, file):
    for verify in (False, True):
        opened = Map.open(file, verify)
        assert same(map_, opened)
        assert opened.descriptors[0].dtype == np.float16 and opened.xyz.dtype == np.float64


def test_big_arrays_are_views_of_the_file(file):
    opened = Map.open(file)
    for array in (opened.xyz, opened.observation_point, *opened.descriptors):
        assert not array.flags.owndata and not array.flags.writeable
        assert array.ctypes.data % array.itemsize == 0


def test_the_same_map_gives_the_same_bytes(map_, file, tmp_path):
    map_.save(tmp_path / "again.pixmap")
    Map.open(file).save(tmp_path / "reopened.pixmap")
    assert (tmp_path / "again.pixmap").read_bytes() == file.read_bytes() == (tmp_path / "reopened.pixmap").read_bytes()


def test_safetensors_reads_it(map_, file):
    with pytest.importorskip("safetensors").safe_open(str(file), framework="np") as tensors:
        assert np.array_equal(tensors.get_tensor("point.xyz"), map_.xyz)
        assert np.array_equal(tensors.get_tensor("observation.descriptor.1"), map_.descriptors[1])


def test_saving_replaces_at_once_and_leaves_nothing_behind(map_, tmp_path):
    path = tmp_path / "new" / "site.pixmap"
    map_.save(path)
    before = Map.open(path)
    map_.save(path)
    assert os.listdir(path.parent) == ["site.pixmap"]
    assert same(before, map_), "a map that is open survives its file's replacement"
    assert path.stat().st_mode & 0o777 == 0o644


def test_save_to_an_impossible_place(map_, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        map_.save(tmp_path / "file" / "site.pixmap")


def test_another_network_is_refused_by_name(map_):
    extractor = FakeExtractor()
    map_.require_extractor(extractor)
    extractor.name, extractor.fingerprint = "other", "ffff"
    with pytest.raises(InputError, match="'fake'.*'other'"):
        map_.require_extractor(extractor)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_cut_is_noticed(file, data):
    content = file.read_bytes()
    path = file.with_name("cut.pixmap")
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError) as error:
        Map.open(path)
    assert "\n" not in str(error.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_noticed_by_verify_or_harmless(map_, file, data):
    content = bytearray(file.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    # Half of the flips in the header, which is short.
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(content) - 1)))
    content[place] ^= data.draw(st.integers(1, 255))
    path = file.with_name("flipped.pixmap")
    path.write_bytes(content)
    try:
        assert same(Map.open(path, verify=True), map_)
        assert place < header, "a changed tensor was not noticed"
    except InputError:
        pass
    with contextlib.suppress(InputError):
        Map.open(path)


@pytest.mark.parametrize(
    "content, message",
    [
        *((c, "is not a pixloc map") for c in (b"", b"short", b"\x89PNG\r\n\x1a\n" * 40, b"\0" * 1000)),
        (struct.pack("<Q", 20) + b"{" * 40, "is not a pixloc map"),
        ("longer", "longer"),
        ("weights", "another safetensors file"),
        ("missing", "no map file"),
        ("folder", "cannot read"),
    ],
)
def test_files_that_are_not_maps(file, tmp_path, content, message):
    path = tmp_path / "foreign.pixmap"
    if content == "longer":
        path.write_bytes(file.read_bytes() + b"\0")
    elif content == "weights":
        write_arrays(path, {"a": np.zeros(3)}, {})
    elif content == "folder":
        path.mkdir()
    elif content != "missing":
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Map.open(path)


def _rewritten(file, tmp_path, change):
    """The file with its header and its description changed, checksums made to fit."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + length])
    description = json.loads(table["__metadata__"]["map"])
    change(table, description)
    text = json.dumps(description, sort_keys=True)
    table["__metadata__"] |= {"map": text, "map_crc32": str(zlib.crc32(text.encode()))}
    header = json.dumps(table).encode()
    path = tmp_path / "rewritten.pixmap"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, d: t["__metadata__"].update(version="3"), "format version 3"),
        (lambda t, d: t.pop("point.xyz"), "gaps or overlaps"),
        (lambda t, d: t.update(points=t.pop("point.xyz")), "lacks tensors"),
        (lambda t, d: t["point.xyz"].update(dtype="F32"), "makes no sense"),
        (lambda t, d: t["point.xyz"].update(shape=[-300, -3]), "makes no sense"),
        (lambda t, d: t["point.xyz"].update(shape=[900, 1]), "does not fit|makes no sense"),
        (lambda t, d: t["point.xyz"].update(data_offsets="everywhere"), "makes no sense"),
        (lambda t, d: d["extractor"].update(channels=[8, 4]), "does not fit"),
        (lambda t, d: d["keyframe_names"].pop(), "does not fit"),
        (lambda t, d: d.update(cameras=[]), "cameras that it does not hold"),
        (lambda t, d: d["cameras"][0].update(model="fancy"), "unknown"),
        (lambda t, d: d.pop("extractor"), "damaged"),
        (lambda t, d: d.update(cameras=5), "damaged"),
    ],
)
def test_consistent_nonsense_is_refused(file, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        Map.open(_rewritten(file, tmp_path, change))


def test_poses_that_are_no_poses(map_, tmp_path):
    for value in (float("nan"), 7.0):
        poses = map_.map_from_keyframe.clone()
        poses[1, 0, 0] = value
        replace(map_, map_from_keyframe=poses).save(tmp_path / "bad.pixmap")
        with pytest.raises(InputError, match="keyframe"):
            Map.open(tmp_path / "bad.pixmap")
    offsets = map_.observation_offsets.copy()
    offsets[1], offsets[2] = offsets[2], offsets[1]
    replace(map_, observation_offsets=offsets).save(tmp_path / "bad.pixmap")
    with pytest.raises(InputError, match="offsets"):
        Map.open(tmp_path / "bad.pixmap")

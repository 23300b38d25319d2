# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Depth images of messages."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixloc_ros.errors import InputError
from pixloc_ros.io.depth import decode_depth, with_depth


@given(seed=st.integers(0, 2**31), encoding=st.sampled_from(["16UC1", "32FC1"]), padding=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_depth_images_of_both_encodings(seed, encoding, padding):
    rng = np.random.default_rng(seed)
    metres = np.where(rng.random((5, 7)) < 0.8, rng.integers(1, 60_000, (5, 7)) / 1000, 0)
    values = (metres * 1000).round().astype("<u2") if encoding == "16UC1" else metres.astype("<f4")
    data = np.pad(values.view(np.uint8).reshape(5, -1), ((0, 0), (0, padding)))
    message = SimpleNamespace(encoding=encoding, height=5, width=7, step=data.shape[1], is_bigendian=0, data=data.ravel())
    assert np.allclose(decode_depth(message), metres, atol=1e-5)
    message.data = message.data[:-4]
    with pytest.raises(InputError, match="shorter than its size says"):
        decode_depth(message)


def test_compressed_depth_and_nonsense():
    units = np.array([[0, 1500], [2500, 3]], np.uint16)
    data = np.frombuffer(bytes(12) + cv2.imencode(".png", units)[1].tobytes(), np.uint8)
    assert np.allclose(decode_depth(SimpleNamespace(format="16UC1; compressedDepth png", data=data)), units / 1000)
    with pytest.raises(InputError, match="cannot be read"):
        decode_depth(SimpleNamespace(format="16UC1; jpeg compressed", data=data))


def test_each_image_gets_the_nearest_depth():
    image, ms = (lambda stamp_ms: SimpleNamespace(stamp_ns=stamp_ms * ms)), 1_000_000
    items = [image(0), (5 * ms, "a"), (95 * ms, "b"), image(100), (101 * ms, "c"), image(200), image(300)]
    assert [depth and depth[1] for _, depth in with_depth(items)] == ["a", "c", None, None]

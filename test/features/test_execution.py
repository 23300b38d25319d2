# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Ways to run the network: all give the same features and the same poses."""

import importlib.util

import numpy as np
import pytest
import torch
from feature_variants import intensity_extractor
from training_scene import invented_photo

from pixloc_ros.errors import InputError
from pixloc_ros.features import Execution, Extractor, load_extractor
from pixloc_ros.features.compact import CompactNetwork

PHOTO = invented_photo(1, 328, 250)
GRAPHS = ["onnxruntime", "openvino"]


def needs(backend):
    for name in ("onnx", backend) if backend in GRAPHS else ():
        pytest.importorskip(name)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "confidences"])
def network(request):
    torch.manual_seed(0)
    network = CompactNetwork(confidences=request.param)
    network.load_state_dict(load_extractor("compact").network.state_dict(), strict=False)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("deep_scale", [1, 2, 3])
@pytest.mark.parametrize("backend", ["torch", *GRAPHS])
def test_every_backend_computes_the_networks_features(network, backend, deep_scale):
    needs(backend)
    network = network._at(deep_scale)
    extractor = Extractor(network, "test", "0", execution=Execution(backend))
    assert extractor.backend == backend
    for image in (PHOTO, np.ascontiguousarray(PHOTO[:200, :300]), np.full((128, 160), 7, np.uint8)):
        expected = network(torch.from_numpy(image)[None, None].float())
        pyramid = extractor.extract(image)
        assert pyramid.image_size == expected.image_size == (image.shape[1], image.shape[0])
        for level, same in zip(pyramid.levels, expected.levels, strict=True):
            assert level.stride == same.stride and level.features.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(level.features, same.features, atol=1e-4, rtol=0)
            if same.confidence is None:
                assert level.confidence is None
            else:
                torch.testing.assert_close(level.confidence, same.confidence, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["torch", *GRAPHS])
def test_results_are_not_overwritten_by_the_next_image(backend):
    needs(backend)
    extractor = load_extractor("compact", Execution(backend))
    first = extractor.extract(PHOTO)
    kept = [level.features.clone() for level in first.levels]
    extractor.extract(255 - PHOTO)
    assert all(torch.equal(level.features, before) for level, before in zip(first.levels, kept))


def test_memory_of_features_is_used_again_when_nobody_holds_them():
    extractor, photos = load_extractor("compact", Execution("torch")), [invented_photo(k, 96, 64) for k in range(6)]

    def places(pyramid):
        return {level.features.data_ptr() for level in pyramid.levels[-2:]}

    held = [extractor.extract(photo) for photo in photos[:3]]
    level, kept = held[0].levels[-1].features[0, 1:, ::2], held[0].levels[-1].features.clone()
    used = set.union(*map(places, held))
    assert len(used) == 6
    freed = places(held.pop())
    del held[0]  # of which a part of a level is still held
    for photo in photos[3:]:
        pyramid = extractor.extract(photo)
        assert places(pyramid) & freed and torch.equal(level, kept[0, 1:, ::2])
        del pyramid


def test_bfloat16_changes_features_by_its_rounding_only():
    low, full = (load_extractor("compact", Execution("torch", precision=p)).extract(PHOTO) for p in ("bfloat16", "float32"))
    for k, (level, same) in enumerate(zip(low.levels, full.levels, strict=True)):
        assert level.features.dtype == torch.float32
        alike = (level.features * same.features).sum(1)
        assert float(alike.median()) > 0.999
        assert torch.equal(level.features, same.features) == (k >= CompactNetwork.robust)  # patches are no convolutions


def test_auto_takes_onnxruntime_where_it_is_and_torch_elsewhere(monkeypatch):
    network = load_extractor("compact").network
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert Execution().backend_for(network) == "onnxruntime"
    assert Execution(precision="bfloat16").backend_for(network) == "torch"
    assert Execution().backend_for(intensity_extractor().network) == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Execution().backend_for(network) == "torch"
    with pytest.raises(InputError, match="pip"):
        Execution("onnxruntime")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"backend": "caffe"}, "choose one of"),
        ({"precision": "int4"}, "choose one of"),
        ({"device": "abacus"}, "cpu or cuda"),
        ({"backend": "onnxruntime", "device": "meta"}, "runs on the CPU"),
        ({"backend": "onnxruntime", "precision": "bfloat16"}, "float32"),
    ],
)
def test_ways_to_run_that_are_not_say_why(settings, word):
    with pytest.raises(InputError, match=word):
        Execution(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(InputError, match="no GPU"):
        Execution(device="cuda")


def test_a_graph_is_for_the_compact_network_only():
    needs("onnxruntime")
    with pytest.raises(InputError, match="compact"):
        Extractor(intensity_extractor().network, "x", "0", execution=Execution("onnxruntime"))

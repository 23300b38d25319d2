# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Invented photos, a configuration small enough to train in a test, and draws from a data source."""

import json

import cv2
import numpy as np
import pytest
import torch

from pixloc_ros.training.pairs import BadSample

SMALL = {"width": 128, "height": 96, "points": 64}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(source, attempts, seed=0):
    """The pairs of so many draws that are usable, and why the others are not."""
    rng, pairs, bad = np.random.default_rng(seed), [], []
    for _ in range(attempts):
        try:
            pairs.append(source.draw(rng))
        except BadSample as error:
            bad.append(str(error))
    return pairs, bad


def invented_photo(seed, width=200, height=150):
    """Grey uint8 [height, width] with structure at all scales: noise in octaves, and polygons with sharp edges."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for cells in (3, 6, 12, 25, 50):
        noise = rng.normal(size=(cells, cells)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 40 / cells**0.5
    for _ in range(12):
        corners = (rng.uniform(0, 1, 2) * (width, height) + rng.normal(size=(4, 2)) * 0.12 * height).astype(np.int32)
        cv2.fillPoly(image, [cv2.convexHull(corners)], float(rng.uniform(-80, 80)), cv2.LINE_AA)
    return np.clip(image + 128, 0, 255).astype(np.uint8)


def write_photos(folder, count=12):
    """Photos as PNG files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        cv2.imwrite(str(folder / f"photo{seed}.png"), invented_photo(seed))
    return folder


def write_config(folder, **run):
    """A training configuration over invented photos."""
    write_photos(folder / "photos", 30)
    values = {
        "network": {"start": "compact"},
        "view": SMALL,
        "data": [{"kind": "photos", "folders": ["photos"]}],
        "alignment": {"iterations": 3},
        "initial_error": {"rotation_deg": [2, 4], "translation": [0.02, 0.06], "steps": 4},
        "run": {"steps": 4, "batch": 2, "validation_pairs": 2, "validate_every": 100, "workers": 0, **run},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Correspondences of a pair of images whose right places are known."""

import cv2
import numpy as np
import pytest
import recognised_places

from pixloc_ros.errors import InputError
from pixloc_ros.features import load_extractor


@pytest.fixture
def pair(tmp_path):
    """A picture, and the same moved by 16 pixels to the right, with its correspondences."""
    rng = np.random.default_rng(0)
    wide = cv2.resize(rng.uniform(0, 255, (24, 34)).astype(np.float32), (680, 480), interpolation=cv2.INTER_CUBIC)
    wide += cv2.resize(rng.uniform(-60, 60, (120, 170)).astype(np.float32), (680, 480), interpolation=cv2.INTER_CUBIC)
    wide = np.clip(wide, 0, 255).astype(np.uint8)
    folder = tmp_path / "FAMILY" / "place"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "01.png"), wide[:, 16:656])
    cv2.imwrite(str(folder / "02.png"), wide[:, :640])
    places = np.column_stack((rng.uniform(60, 560, 30), rng.uniform(60, 420, 30)))
    np.savetxt(folder / "corrs.txt", np.column_stack((places, places + (16, 0))))
    return folder


def test_the_same_picture_is_recognised_at_every_place(pair):
    found = recognised_places.score(pair, load_extractor("compact"))
    assert set(found) == {"32", "8"}
    within_px, within_cells, median_px = found["8"]
    assert within_px > 0.9 and within_cells > 0.9 and median_px < 6
    table = recognised_places.table({"compact": {"FAMILY/place": found}})
    assert "FAMILY" in table and "mean of families" in table


def test_a_pair_without_its_second_image_is_named(pair):
    (pair / "02.png").unlink()
    with pytest.raises(InputError, match="place holds 1 images"):
        recognised_places.score(pair, load_extractor("compact"))

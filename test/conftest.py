# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
# Scripts that tests import, and what tests of one room share with those of another.
sys.path[:0] = map(str, (ROOT / "experiments", *(room for room in (ROOT / "test").iterdir() if room.is_dir())))
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes beside the repo; tests that want it are skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data")
    return SHARED_DATA


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """`scenes.Scene`: a simulated data set, its map, the map's images and a drive."""
    from scenes import simulated_scene

    return simulated_scene(tmp_path_factory)


settings.register_profile("pixloc", deadline=None)  # the first call of torch takes long; hangs show in the test's own time
settings.load_profile("pixloc")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes beside the repo; tests that want it are skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data")
    return SHARED_DATA

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from pixloc_ros.errors import InputError
from pixloc_ros.io.work_folder import WorkFolder


def test_other_work_is_not_mixed_in(tmp_path):
    first = WorkFolder(tmp_path / "w", {"bag": "a"})
    first.arrays("x", lambda: {"v": np.arange(3)})
    assert WorkFolder(tmp_path / "w", {"bag": "a"}).resumed
    assert WorkFolder(tmp_path / "w", {"bag": "a"}).arrays("x", lambda: pytest.fail("made again"))["v"].tolist() == [0, 1, 2]
    other = WorkFolder(tmp_path / "w", {"bag": "b"})
    assert not other.resumed and other.arrays("x", lambda: {"v": np.ones(1)})["v"].tolist() == [1]
    other.path("x.npz").write_bytes(b"half a file")
    assert other.arrays("x", lambda: {"v": np.zeros(1)})["v"].tolist() == [0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        WorkFolder(tmp_path / "mine", {})
    assert (tmp_path / "mine" / "thesis.txt").exists()

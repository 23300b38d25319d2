# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The long drive that is rendered, and how the stages of its map are told apart."""

import long_drive
import numpy as np
import pytest

from pixloc_ros.io.bags import BagOptions, BagReader


def test_a_drive_is_rendered_in_parts_that_stay(tmp_path):
    drive = long_drive.LongDrive(0.05, 80, 64)
    bag = drive.write(tmp_path, 1)
    (part,) = (tmp_path / "rendered").glob("*.npz")
    made = part.stat().st_mtime_ns
    assert drive.write(tmp_path, 1) == bag and part.stat().st_mtime_ns == made
    with BagReader(bag, BagOptions()) as reader:
        assert reader.truth_topic is None and len(reader.odometry()) > 100
        stamps = [frame.stamp_ns for frame in reader.frames()]
    np.testing.assert_array_equal(stamps, drive.stamps())
    assert len(drive.truth()) == len(stamps) == 30


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("", None),
        ("\r\033[Kmap 3/20 features\r\033[Kmap 0/4 adjusting poses and points", "adjusting poses and points"),
        ("\r\033[Kmap 3/20 1700000003600000000.png", "features of the map"),
        ("\r\033[Kmap 3/20 features\r\033[Ksomething else", "features"),
    ],
)
def test_the_line_of_progress_tells_the_stage(text, stage):
    assert long_drive.stage_of(text) == stage

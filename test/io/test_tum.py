# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""RGB-D sequences: stamps, association and what is wrong with them."""

import numpy as np
import pytest
from mapping_helpers import SEQUENCE_START, sequence_pose, write_sequence

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.tum import load_depth, read_camera, read_rgbd_sequence

START = SEQUENCE_START


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    return write_sequence(tmp_path_factory.mktemp("tum") / "plane", np.arange(0, 3, 0.25))


@pytest.fixture
def copy(sequence, tmp_path):
    """The sequence with its own lists, so that they can be spoilt."""
    for name in ("rgb", "depth", "groundtruth", "camera"):
        (tmp_path / f"{name}.txt").write_text((sequence / f"{name}.txt").read_text())
        if (sequence / name).is_dir():
            (tmp_path / name).symlink_to(sequence / name)
    return tmp_path


def test_stamps_are_exact_and_poses_interpolated(sequence):
    frames = read_rgbd_sequence(sequence)
    assert [frame.stamp_ns for frame in frames] == [START * 10**9 + k * 250_000_000 for k in range(12)]
    for k, frame in enumerate(frames):
        distance, angle = se3.pose_difference(frame.map_from_camera, sequence_pose(0.25 * k))
        assert distance < 1e-4 and angle < 1e-4


def test_association_within_20_ms(copy):
    text = (copy / "depth.txt").read_text().replace(f"{START + 1}.000000", f"{START + 1}.019000")
    (copy / "depth.txt").write_text(text.replace(f"{START + 2}.000000", f"{START + 2}.021000"))
    lines = (copy / "groundtruth.txt").read_text().splitlines()
    kept = [line for line in lines if line.startswith("#") or abs(float(line.split()[0]) - START - 1.5) > 0.0211]
    (copy / "groundtruth.txt").write_text("\n".join(reversed(kept)))  # in any order
    stamps = {frame.stamp_ns - START * 10**9 for frame in read_rgbd_sequence(copy)}
    assert 1_000_000_000 in stamps and not stamps & {1_500_000_000, 2_000_000_000} and len(stamps) == 10


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("rgb", None, "cannot read .*rgb.txt"),
        ("rgb", lambda text: "# nothing\n", "rgb.txt is empty"),
        ("depth", lambda text: text.replace(f"{START}.000000", "noon"), "depth.txt:2: the stamp 'noon' is not a time"),
        ("depth", lambda text: text.replace(f"{START}.000000", "inf"), "depth.txt:2: the stamp 'inf' is not a time"),
        ("depth", lambda text: text.replace(" depth/0.000.png", ""), "depth.txt:2: 1 words where 2 are needed"),
        ("groundtruth", lambda text: text.replace("1.600000000", "nan"), "holds no pose: all its lines are NaN"),
        ("groundtruth", lambda text: text.replace("1.600000000", "one"), "are not all numbers"),
        ("groundtruth", lambda text: text.replace(str(START)[:5], "12050"), "use the same clock"),
        ("groundtruth", lambda text: text.replace(str(START)[:5], "99999"), "is not a time"),
        ("camera", None, "give --camera"),
        ("camera", lambda text: text + text, "camera.txt has 2 lines"),
        ("camera", lambda text: "PINHOLE 320 240 1\n", "takes 4 numbers"),
        ("camera", lambda text: "PINHOLE 640 480 500 500 320 240\n", "is 320x240 but the camera is 640x480"),
        ("images", None, "not a 16-bit depth image"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(copy, sequence, name, change, message):
    path = copy / f"{name}.txt"
    if name == "images":
        (copy / "depth").unlink()
        (copy / "depth").symlink_to(sequence / "rgb")
    elif change is None:
        path.unlink()
    else:
        assert change(path.read_text()) != path.read_text()
        path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as error:
        load_depth(read_rgbd_sequence(copy)[0], read_camera(copy), 5000)
    assert "\n" not in str(error.value)

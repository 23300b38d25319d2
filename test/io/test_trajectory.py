# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io import trajectory as tr
from pixloc_ros.io.trajectory import Trajectory

tangents = st.lists(st.lists(st.floats(-3, 3), min_size=6, max_size=6), min_size=1, max_size=5)


def poses(xi) -> torch.Tensor:
    return se3.se3_exp(torch.tensor(xi, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(tangents, st.integers(0, 2_000_000_000 * 10**9))
def test_tum_round_trip(tmp_path_factory, xi, first):
    path = tmp_path_factory.mktemp("tum") / "a.tum"
    stamps = first + np.arange(len(xi), dtype=np.int64) * 33_333_333
    tr.write_tum(path, Trajectory(stamps, poses(xi)))
    back = tr.read_tum(path)
    assert back.stamps_ns.tolist() == stamps.tolist()
    assert torch.allclose(back.map_from_body, poses(xi), atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(tangents)
def test_benchmark_round_trip(tmp_path_factory, xi):
    path = tmp_path_factory.mktemp("poses") / "poses.txt"
    named = {f"{name} {i}.jpg": pose for i, (name, pose) in enumerate(zip(("seq/a", "#b  7", "ü 1 2 3", "c #", "d"), poses(xi)))}
    tr.write_benchmark_poses(path, named)
    back = tr.read_benchmark_poses(path)
    assert list(back) == list(named)
    assert all(torch.allclose(back[name], named[name], atol=1e-10) for name in named)


def test_benchmark_line_means_what_the_benchmark_says(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text(f"a.jpg {math.sqrt(0.5)} 0 0 {math.sqrt(0.5)} 1 2 3\n")  # 90° about z
    camera_from_map = tr.read_benchmark_poses(path)["a.jpg"]
    assert torch.allclose(
        camera_from_map @ torch.tensor([1.0, 0, 0, 1], dtype=torch.float64), torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3", "3 words instead of 8"),
        ("1 0 0 0 0 0 0 x", "not all numbers"),
        ("1 inf 0 0 0 0 0 1", "NaN or infinite"),
        ("one 0 0 0 0 0 0 1", "stamp 'one'"),
        ("nan 0 0 0 0 0 0 1", "stamp 'nan'"),
        ("1 0 0 0 0 0 0 2", "length 2"),
    ],
)
def test_malformed_tum_lines_are_named(tmp_path, line, message):
    path = tmp_path / "bad.tum"
    path.write_text(f"# comment\n0.5 0 0 0 0 0 0 1\n\n{line}\n")
    with pytest.raises(InputError, match=f"bad.tum:4: .*{message}"):
        tr.read_tum(path)


@pytest.mark.parametrize("none", ["nan nan nan nan nan nan nan", "0 0 0 0 0 0 0"])
def test_lines_without_a_pose(tmp_path, none):
    path, missing = tmp_path / "poses", []
    path.write_text(f"1 {none}\n2 0 0 0 0 0 0 1\n")
    track = tr.read_tum(path)
    assert tr.pose_format(path) == "tum" and track.stamps_ns.tolist() == [2 * 10**9] and track.missing == 1
    path.write_text(f"a.jpg {none}\nb.jpg 1 0 0 0 0 0 0\n")
    assert list(tr.read_benchmark_poses(path, missing)) == ["b.jpg"] and missing == ["a.jpg"]
    assert list(tr.read_benchmark_poses(path)) == ["b.jpg"]
    path.write_text("1 0 0 nan 0 1 0 0 0 0 1 0\n")
    with pytest.raises(InputError, match="poses:1: NaN.* TUM"):
        tr.read_kitti(path)


def test_rough_poses_may_say_how_far_off_they_are(tmp_path):
    path, stds = tmp_path / "priors.txt", {}
    pose = "1 0 0 0 1 2 3"
    path.write_text(f"a 1.jpg {pose}\n#b.jpg {pose} 5 10%\nmy 2 c.jpg {pose} 2.5 0.3m # gps\nd.jpg {pose} # 5 m\n")
    poses = tr.read_benchmark_poses(path, stds=stds)
    assert list(poses) == ["a 1.jpg", "#b.jpg", "my 2 c.jpg", "d.jpg"]
    assert all(found[:3, 3].tolist() == [1, 2, 3] for found in poses.values())
    assert stds == {"#b.jpg": (f"{path}:2", ["5", "10%"]), "my 2 c.jpg": (f"{path}:3", ["2.5", "0.3m"])}
    with pytest.raises(InputError, match=r"priors.txt:3: .* 8: write"):  # only priors have them
        tr.read_benchmark_poses(path)


@pytest.mark.parametrize("more", ["5 0.1", "5"])
@pytest.mark.parametrize("stds", [None, {}])
def test_numbers_behind_a_pose_are_not_taken_for_its_own(tmp_path, more, stds):
    """Of the identity, the rest would pass for a line that says that there is no pose."""
    path = tmp_path / "priors.txt"
    path.write_text(f"a.jpg 1 0 0 0 0 0 0 {more}\n")
    with pytest.raises(InputError, match=r"priors.txt:1: [89] numbers instead of 7 .* have a unit: '5 10%'"):
        tr.read_benchmark_poses(path, stds=stds)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        tr.read_tum(tmp_path / "none.tum")
    (tmp_path / "binary").write_bytes(b"1 \x80")
    with pytest.raises(InputError, match="not UTF-8 text"):
        tr.read_tum(tmp_path / "binary")
    (tmp_path / "twice").write_text("a 1 0 0 0 0 0 0\na 1 0 0 0 0 0 0\n")
    with pytest.raises(InputError, match="twice:2: a second pose"):
        tr.read_benchmark_poses(tmp_path / "twice")


def test_of_lines_in_any_order_the_last_of_each_stamp_counts(tmp_path):
    path = tmp_path / "run.tum"
    path.write_text("2 5 0 0 0 0 0 1\n1,4,0,0,0,0,0,1\n2 6 0 0 0 0 0 1 # again\n")
    track = tr.read_tum(path)
    assert track.stamps_ns.tolist() == [10**9, 2 * 10**9] and track.map_from_body[:, 0, 3].tolist() == [4, 6]
    assert track.repeated == 1
    path.write_text("5 b c.png\n3,a.png\n")
    stamps, rest = tr.read_stamped_list(path)
    assert stamps.tolist() == [3 * 10**9, 5 * 10**9] and rest == ["a.png", "b c.png"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1.5 1 2 3 0 0 0 1", "tum"),
        ("1.5, 1,2,3,0,0,0,1", "tum"),
        ("1 0 0 1 0 1 0 2 0 0 1 3", "kitti"),
        ("a.jpg 1 0 0 0 1 2 3", "benchmark"),
        ("my photo 3.jpg 1 0 0 0 1 2 3", "benchmark"),
        ("one two 3 four 5.jpg 1 0 0 0 1 2 3", "benchmark"),
        ("#7 of 9.jpg 1 0 0 0 1 2 3", "benchmark"),
        ("1,5 1 2 3 0 0 0 1", "the stamp '1,5' is not a time"),
        ("timestamp tx ty tz qx qy qz qw", "a heading must begin with #"),
        ("1 2 3 0 0 0 1 4 9", "no line of poses"),
        ("2024-05-01 10:00:00 1 2 3 0 0 0", "no line of poses"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_format_of_poses_is_no_guess(tmp_path, line, kind, mark):
    path = tmp_path / "poses.txt"
    path.write_text(f"{mark}# a comment of 1 2 3 4 5 6 7\n\n{line} # why\n")
    if " " in kind:
        with pytest.raises(InputError, match=kind):
            assert tr.pose_format(path) == "benchmark" and tr.read_benchmark_poses(path)
    else:
        assert tr.pose_format(path) == kind
        if kind == "benchmark":
            assert list(tr.read_benchmark_poses(path)) == [line.removesuffix(" 1 0 0 0 1 2 3")]


def test_interpolation_holds_between_neighbours_only():
    xi = torch.zeros(3, 6, dtype=torch.float64)
    xi[:, 0] = torch.tensor([0.0, 1.0, 2.0])
    xi[:, 5] = torch.tensor([0.0, 0.2, 0.4])
    track = Trajectory(np.array([0, 100, 1000]), se3.from_rotation_translation(se3.so3_exp(xi[:, 3:]), xi[:, :3]))
    found, inside = track.at(np.array([-1, 0, 50, 100, 101, 1000, 1001]), max_gap_ns=100)
    assert inside.tolist() == [False, True, True, True, False, True, False]
    assert found[2, 0, 3] == pytest.approx(0.5)
    assert float(se3.rotation_angle(found[2, :3, :3])) == pytest.approx(0.1)
    assert Trajectory.from_poses([]).at(np.array([1]), 5)[1].tolist() == [False]


def test_order_and_repeats():
    a, b = poses([[0.0] * 6, [1.0] * 6])
    track = Trajectory.from_poses([(5, a), (3, a), (5, b)])
    assert track.stamps_ns.tolist() == [3, 5]
    assert torch.equal(track.map_from_body[1], b)
    with pytest.raises(InputError, match="must increase"):
        Trajectory(np.array([2, 2]), torch.stack((a, b)))

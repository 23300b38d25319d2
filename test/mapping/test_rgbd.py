# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import re

import cv2
import numpy as np
import pytest
from mapping_helpers import SEQUENCE_CAMERA, SEQUENCE_START, FakeExtractor, look_at, sequence_pose, visible, write_sequence
from scipy.spatial import cKDTree

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.io.tum import read_rgbd_sequence
from pixloc_ros.mapping.build import build_map_from_rgbd
from pixloc_ros.mapping.build.rgbd import find_depth_scale


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    return write_sequence(tmp_path_factory.mktemp("tum") / "plane", np.arange(0, 3, 0.25))


@pytest.fixture(scope="module")
def built(sequence):
    return build_map_from_rgbd(sequence, FakeExtractor(), working_side=320)


def test_points_lie_on_the_surface_and_are_seen_from_several_places(built):
    map_, report = built
    assert not report.left_out
    assert np.quantile(np.abs(map_.xyz[:, 2]), [0.5, 0.95]) == pytest.approx([0, 0], abs=8e-3)
    assert len(map_.xyz) > 300 and map_.track_length.mean() > 3
    assert map_.keyframe_names[0] == "0.000.png" and (np.diff(map_.keyframe_stamp_ns) > 0).all()
    assert map_.quality[map_.track_length > 2].mean() > 0.8
    # Corners are at least 7 pixels apart, about 0.05 m here: a corner of the scene is one point.
    assert np.quantile(cKDTree(map_.xyz).query(map_.xyz, k=2)[0][:, 1], 0.05) > 0.02
    for k, pose in enumerate(map_.map_from_keyframe):
        assert visible(SEQUENCE_CAMERA, pose, map_.xyz[map_.observation_point[map_.observations(k)]])[1].all()


def test_points_seen_from_several_places_correct_the_depth(tmp_path):
    """Depth that is 2 % too large puts the plane 3 to 4 cm too low."""
    folder = write_sequence(tmp_path / "biased", np.arange(0, 2, 0.25), bias=1.02)
    map_, _ = build_map_from_rgbd(folder, FakeExtractor(), depth_scale=5000)
    several = map_.track_length >= 3
    assert several.sum() > 100
    assert np.median(np.abs(map_.xyz[several, 2])) < 0.012
    assert np.median(np.abs(map_.xyz[map_.track_length == 1, 2])) > 0.03


def test_still_frames_make_one_keyframe(tmp_path):
    folder = write_sequence(tmp_path / "still", np.arange(0, 0.5, 0.1), pose=lambda seconds: sequence_pose(0.02 * seconds))
    map_, _ = build_map_from_rgbd(folder, FakeExtractor(), depth_scale=5000)
    assert len(map_.keyframe_names) == 1


def turn(seconds):
    return look_at((0, -0.5, 1.6), (0.5 * seconds - 0.5, 0.2, 0))


@pytest.mark.parametrize("scale", [1000.0, 5000.0, 4000.0, 256.0])
def test_the_depth_scale_is_the_usual_one_that_two_views_of_a_point_agree_with(tmp_path, scale):
    folder = write_sequence(tmp_path / "a", np.arange(0, 1.8, 0.3), scale=scale)
    assert find_depth_scale(read_rgbd_sequence(folder), SEQUENCE_CAMERA) == scale
    map_, report = build_map_from_rgbd(folder, FakeExtractor(), depth_scale=2 * scale)
    assert "as given, but images and poses say about" in report.notes[0]
    assert map_.keyframe_depth.max() < 1.5, "what the user says counts"


def test_a_depth_scale_that_is_not_usual_or_that_nothing_tells_is_asked_for(tmp_path):
    sequence = read_rgbd_sequence(write_sequence(tmp_path / "odd", np.arange(0, 1.8, 0.3), scale=2500.0))
    with pytest.raises(InputError, match="about 2[45].. units per metre .*--depth-scale"):
        find_depth_scale(sequence, SEQUENCE_CAMERA)
    folder = write_sequence(tmp_path / "turn", np.arange(0, 1.8, 0.3), pose=turn)
    with pytest.raises(InputError, match="give the depth scale .--depth-scale., units per metre .1000 millimetres"):
        build_map_from_rgbd(folder, FakeExtractor())
    assert "as given" in build_map_from_rgbd(folder, FakeExtractor(), depth_scale=5000)[1].notes[0]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda depth: np.where(depth > 0, 3e7 / np.maximum(depth, 1), 0), "only .*% of the points .*no disparity"),
        (np.zeros_like, "hold no depth, all is 0"),
    ],
)
@pytest.mark.parametrize("scale", [None, 5000.0])
def test_depth_that_is_none_whatever_its_unit_is_refused(tmp_path, alter, message, scale):
    folder = write_sequence(tmp_path / "a", np.arange(0, 1.8, 0.3))
    for path in (folder / "depth").iterdir():
        cv2.imwrite(str(path), alter(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).astype(np.uint16))
    with pytest.raises(InputError, match=message):
        build_map_from_rgbd(folder, FakeExtractor(), depth_scale=scale)


def test_a_pose_that_is_none_and_images_without_one_are_left_out_and_named(tmp_path):
    folder = write_sequence(tmp_path / "a", np.arange(0, 1.8, 0.3), pose_rate=20)
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    bad = next(k for k, line in enumerate(lines) if line.startswith(f"{SEQUENCE_START}.9"))
    lines[bad] = " ".join([lines[bad].split()[0], *["nan"] * 7])
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    map_, report = build_map_from_rgbd(folder, FakeExtractor())
    assert re.search("groundtruth.txt:.* NaN", " ".join(report.left_out.values())) and "0.900.png" in report.left_out
    assert "0.900.png" not in map_.keyframe_names and "0.600.png" in map_.keyframe_names


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_one_bad_image_or_depth_image_is_left_out_and_named(tmp_path, kind):
    folder = write_sequence(tmp_path / "a", np.arange(0, 1.8, 0.3))
    names = sorted(path.name for path in (folder / kind).iterdir())
    cv2.imwrite(str(folder / kind / names[1]), np.zeros((60, 80), np.uint8 if kind == "rgb" else np.uint16))
    (folder / kind / names[3]).write_text("no image")
    (folder / kind / names[4]).unlink()
    map_, report = build_map_from_rgbd(folder, FakeExtractor())
    assert sorted(report.left_out) == [names[1], names[3], names[4]] and not set(map_.keyframe_names) & set(report.left_out)
    for name in names:
        (folder / kind / name).write_text("no image")
    with pytest.raises(InputError, match=f"none of the 6 images can be used .{names[0]}: .*; and 3 more"):
        build_map_from_rgbd(folder, FakeExtractor(), depth_scale=5000)
    with pytest.raises(InputError, match=f"{kind}/.*png is not a"):
        build_map_from_rgbd(folder, FakeExtractor())


def test_depth_of_another_instant_is_moved_to_the_image(tmp_path):
    """A slanted view that turns fast: 15 ms are several pixels."""

    def fast(seconds):
        return look_at((1.5 * seconds - 1, -1.2, 1.5), (3 * seconds - 1.5, 0.3, 0))

    folder = write_sequence(tmp_path / "late", np.arange(0, 1, 0.125), depth_delay=0.015, pose=fast, pose_rate=200)
    map_, _ = build_map_from_rgbd(folder, FakeExtractor(), depth_scale=5000)
    assert np.abs(map_.xyz[:, 2]).mean() < 8e-3
    assert map_.track_length.mean() > 1.5


def test_missing_images_are_reported(sequence, tmp_path):
    for name in ("rgb", "depth"):
        (tmp_path / name).symlink_to(sequence / name)
    for name in ("rgb", "depth", "groundtruth", "camera"):
        text = (sequence / f"{name}.txt").read_text()
        (tmp_path / f"{name}.txt").write_text(text.replace("rgb/1.250.png", "rgb/lost.png"))
    map_, report = build_map_from_rgbd(tmp_path, FakeExtractor(), depth_scale=5000)
    assert list(report.left_out) == ["lost.png"] and "lost.png" not in map_.keyframe_names
    (tmp_path / "rgb").unlink()
    with pytest.raises(InputError, match="none of the 12 images .* no file .*; and 9 more"):
        build_map_from_rgbd(tmp_path, FakeExtractor())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_depth_scale_is_positive(sequence, scale):
    with pytest.raises(InputError, match="depth scale"):
        build_map_from_rgbd(sequence, FakeExtractor(), depth_scale=scale)


def test_command_line(sequence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pixloc_ros.load_extractor", lambda weights: FakeExtractor())
    command = ["map", "rgbd", "--sequence", str(sequence), "-o", str(tmp_path / "room.pixmap")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "depth scale 5000 units per metre, found" in out and "room.pixmap: " in out
    assert main([*command, "--camera", "PINHOLE wide"]) == 2
    assert "MODEL WIDTH HEIGHT" in capsys.readouterr().err


def test_shared_sequence(shared_data):
    """Its depth is in millimetres."""
    sequence = shared_data / "tum_fr1_rpy" / "tum"
    assert len(read_rgbd_sequence(sequence)) == 40
    map_, report = build_map_from_rgbd(sequence, FakeExtractor(), working_side=320)
    assert report.notes[0].startswith("depth scale 1000 units per metre, found") and not report.left_out
    assert len(map_.keyframe_names) > 30 and 0.5 < np.median(map_.keyframe_depth) < 2.0

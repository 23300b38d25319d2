# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import FakeExtractor, look_at, pinhole, plane_images, visible

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.colmap import ColmapModel, write_colmap_model
from pixloc_ros.mapping.build import build_map_from_colmap


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A plane: four views, 200 points. The first point's first observation is 10 pixels off, the last point is seen once."""
    return write_model(tmp_path_factory.mktemp("plane"), pinhole())


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    """The same with images that features are found in."""
    return write_model(tmp_path_factory.mktemp("large"), pinhole(320, 240, 260.0))


def write_model(folder, camera):
    count = 200
    poses = torch.stack([look_at((0.3 * k - 0.5, -1.0, 2.5), (0, 0, 0)) for k in range(4)])
    xyz = np.random.default_rng(0).uniform((-0.5, -0.4, 0), (0.5, 0.4, 0), (count, 3))
    plane_images(folder / "images", poses, camera, xyz)
    pixels = np.stack([visible(camera, pose, xyz)[0] for pose in poses], 1)
    pixels[0, 0, 0] += 10.0
    point, image = (indices.ravel()[: 4 * count - 3] for indices in np.indices((count, 4)))
    ids, point_ids = np.arange(1, 5), np.arange(count)
    cameras, names, errors = {1: camera}, [f"{k}.png" for k in range(4)], np.full(count, 0.1)
    observations = image, point, pixels[point, image]
    model = ColmapModel(cameras, ids, names, np.ones(4, int), se3.inverse(poses), point_ids, xyz, errors, *observations)
    write_colmap_model(folder, model, np.zeros((count, 3), np.uint8))
    return folder


def test_map_of_a_model(model):
    map_, report = build_map_from_colmap(model, model / "images", FakeExtractor(), name="plane")
    assert (report.left_out, report.outside, report.notes, map_.name) == ({}, 0, (), "plane")
    assert len(map_.xyz) == 199 and map_.keyframe_stamp_ns.tolist() == [-1] * 4
    assert map_.track_length[0] == 3 and (map_.track_length[1:] == 4).all()
    assert map_.quality.mean() > 0.8, "the same place looks the same in all views"


def test_track_length_and_error_limits(model):
    map_, _ = build_map_from_colmap(model, model / "images", FakeExtractor(), min_track_length=1, max_error_px=20)
    assert len(map_.xyz) == 200 and map_.track_length[0] == 4
    with pytest.raises(InputError, match="no point that 5 images see .* give --min-track-length 4"):
        build_map_from_colmap(model, model / "images", FakeExtractor(), min_track_length=5)
    with pytest.raises(InputError, match="no folder"):
        build_map_from_colmap(model, model / "pictures", FakeExtractor())


def spoilt(model, folder, **changes):
    """The model again with the text of its files changed."""
    folder.mkdir()
    for part in ("cameras", "images", "points3D"):
        text = (model / f"{part}.txt").read_text()
        (folder / f"{part}.txt").write_text(changes.get(part, lambda text: text)(text))
    return folder


def line_with(text, start, *words):
    """The text with words (index, new one) of the line of that beginning changed."""
    lines = text.split("\n")
    row = next(k for k, line in enumerate(lines) if line.startswith(start))
    parts = lines[row].split()
    for k, word in words:
        parts[k] = word
    return "\n".join([*lines[:row], " ".join(parts), *lines[row + 1 :]])


def bad_image(path):
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (80, 60)))


@pytest.mark.parametrize(
    "image, changes, reason",
    [
        (bad_image, {}, "80x60 but its camera says 160x120"),
        (lambda path: path.write_bytes(b"no image"), {}, "not a readable image"),
        (lambda path: path.unlink(), {}, "no image .*1.png"),
        (None, {"images": lambda text: line_with(text, "2 ", (5, "nan"))}, "not finite"),
        (None, {"images": lambda text: line_with(text, "2 ", *((k, "0") for k in range(1, 5)))}, "zero quaternion"),
        (None, {"images": lambda text: line_with(text, "2 ", (8, "9"))}, "refers to camera 9"),
        (
            None,
            {"cameras": lambda text: text + "9 WARPED 160 120 1\n", "images": lambda text: line_with(text, "2 ", (8, "9"))},
            "camera 9: .*'WARPED' is not supported",
        ),
    ],
)
def test_one_bad_image_pose_or_camera_is_left_out_and_named(model, tmp_path, image, changes, reason, capsys, monkeypatch):
    monkeypatch.setattr("pixloc_ros.load_extractor", lambda weights: FakeExtractor())
    folder = spoilt(model, tmp_path / "model", **changes)
    images, report = shutil.copytree(model / "images", tmp_path / "images"), tmp_path / "report.json"
    if image:
        image(images / "1.png")
    command = ["map", "colmap", "--model", str(folder), "--images", str(images), "-o", str(tmp_path / "m.pixmap")]
    assert main([*command, "--report", str(report)]) == 0
    assert re.search(f"left out 1.png: .*{reason}", capsys.readouterr().out)
    told = json.loads(report.read_text())
    assert told["keyframes"] == 3 and list(told["left_out"]) == ["1.png"]


def test_what_no_image_uses_does_not_matter(model, tmp_path):
    folder = spoilt(
        model, tmp_path / "m", cameras=lambda t: t + "9 WARPED 1 1 1\n", points3D=lambda t: t + "999 nan 0 0 0 0 0 1 1 0 2 0\n"
    )
    map_, report = build_map_from_colmap(folder, model / "images", FakeExtractor())
    assert len(map_.xyz) == 199 and not report.left_out


def without_tracks(text):
    return "\n".join(line if line.startswith("#") else " ".join(line.split()[:8]) for line in text.splitlines()) + "\n"


def without_keypoints(text):
    return "\n".join("" if k % 2 and not line.startswith("#") else line for k, line in enumerate(text.split("\n")[2:])) + "\n"


def keypoints_of_another_size(text):
    lines = text.split("\n")
    for row in range(3, len(lines), 2):
        words = lines[row].split()
        lines[row] = " ".join(word if k % 3 == 2 else f"{3 * float(word):.2f}" for k, word in enumerate(words))
    return "\n".join(lines)


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="no pycolmap")
@pytest.mark.parametrize(
    "changes",
    [
        {"points3D": without_tracks},
        {"points3D": without_tracks, "images": without_keypoints},
        {"images": without_keypoints},
        {"points3D": lambda text: "", "images": without_keypoints},
        {"images": keypoints_of_another_size},
        {"points3D": lambda text: line_with(text, "3 ", (9, "5000"))},
        {"points3D": lambda text: line_with(text, "3 ", (8, "7"))},
    ],
)
def test_points_without_tracks_or_with_wrong_ones_are_triangulated_anew(large_model, tmp_path, changes):
    folder, images = spoilt(large_model, tmp_path / "m", **changes), shutil.copytree(large_model / "images", tmp_path / "images")
    bad_image(images / "0.png")
    map_, report = build_map_from_colmap(folder, images, FakeExtractor())
    assert "triangulated" in report.notes[0] and list(report.left_out) == ["0.png"]
    assert len(map_.xyz) > 100 and np.median(np.abs(map_.xyz[:, 2])) < 0.02 and map_.track_length.mean() > 2


def test_command_line(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pixloc_ros.load_extractor", lambda weights: FakeExtractor())
    out = tmp_path / "plane.pixmap"
    command = ["map", "colmap", "--model", str(model), "--images"]
    assert main([*command, str(model / "images"), "-o", str(out)]) == 0
    assert "4 keyframes, 199 points, 795 observations" in capsys.readouterr().out
    assert main(["map", "info", str(out), "--json"]) == 0
    assert '"keyframes": 4' in capsys.readouterr().out
    assert main([*command, str(tmp_path), "-o", str(tmp_path / "none.pixmap")]) == 2
    assert "none of the 4 images can be used (0.png: no image" in capsys.readouterr().err
    assert not (tmp_path / "none.pixmap").exists()
    out.write_bytes(out.read_bytes()[:-1])
    assert main(["map", "info", str(out)]) == 2
    error = capsys.readouterr().err
    assert "cut short" in error and error.count("\n") == 1 and out.exists()

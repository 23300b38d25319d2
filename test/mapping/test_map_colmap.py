# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
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
    folder, camera, count = tmp_path_factory.mktemp("plane"), pinhole(), 200
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
    assert (report.missing, report.empty, report.outside, map_.name) == ((), (), 0, "plane")
    assert len(map_.xyz) == 199 and map_.keyframe_stamp_ns.tolist() == [-1] * 4
    assert map_.track_length[0] == 3 and (map_.track_length[1:] == 4).all()
    assert map_.quality.mean() > 0.8, "the same place looks the same in all views"


def test_track_length_and_error_limits(model):
    map_, _ = build_map_from_colmap(model, model / "images", FakeExtractor(), min_track_length=1, max_error_px=20)
    assert len(map_.xyz) == 200 and map_.track_length[0] == 4
    with pytest.raises(InputError, match="no point that 5 images see"):
        build_map_from_colmap(model, model / "images", FakeExtractor(), min_track_length=5)
    with pytest.raises(InputError, match="no folder"):
        build_map_from_colmap(model, model / "pictures", FakeExtractor())


def test_command_line(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pixloc_ros.features.load_extractor", lambda weights: FakeExtractor())
    out = tmp_path / "plane.pixmap"
    command = ["map", "colmap", "--model", str(model), "--images"]
    assert main([*command, str(model / "images"), "-o", str(out)]) == 0
    assert "4 keyframes, 199 points, 795 observations" in capsys.readouterr().out
    assert main(["map", "info", str(out), "--json"]) == 0
    assert '"keyframes": 4' in capsys.readouterr().out
    assert main([*command, str(tmp_path), "-o", str(tmp_path / "none.pixmap")]) == 2
    assert "none of the 4 images could be read" in capsys.readouterr().err
    assert not (tmp_path / "none.pixmap").exists()
    out.write_bytes(out.read_bytes()[:-1])
    assert main(["map", "info", str(out)]) == 2
    error = capsys.readouterr().err
    assert "cut short" in error and error.count("\n") == 1 and out.exists()

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The convergence basin: a localizer with a basin of known size, the real one on a textured plane, and the command."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import FakeExtractor, look_at, pinhole, plane_view, texture
from scenes import plane_map

from pixloc_ros.cli import main as cli
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.basin import BasinOptions, BasinQuery, format_basin, measure_basin, median_depth, read_basin
from pixloc_ros.geometry import se3
from pixloc_ros.io.trajectory import write_benchmark_poses
from pixloc_ros.report.curves import plot_basins
from pixloc_ros.tracking.types import FrameAlignment

TRUTH = look_at((0.5, -1.0, 2.0), (0.2, 0.3, 0.0))
CAMERA = pinhole()
IMAGE = np.zeros((120, 160), np.uint8)
DEPTH = 2.5


class KnownBasin:
    """Finds the pose up to a residual rotation where the start is near enough, else stays, or finds none at all."""

    def __init__(self, degrees=17.0, share=0.2, finds=True):
        self.degrees, self.share, self.finds, self.prepared, self.starts = degrees, share, finds, 0, []

    def prepare(self, image, camera):
        self.prepared += 1
        return image

    def localize_prepared(self, image, start):
        self.starts.append(start)
        distance, angle = se3.pose_difference(TRUTH, start)
        near = math.degrees(float(angle)) < self.degrees and float(distance) < self.share * DEPTH
        left = se3.se3_exp(torch.tensor([0, 0, 0, 0, 0, math.radians(0.1)], dtype=torch.float64))
        return FrameAlignment(
            TRUTH @ left if near else start, torch.eye(6, dtype=torch.float64), near or self.finds, "", 0.1, 0.5, 1.0, 100, 5
        )


def query(name="a.png"):
    return BasinQuery(name, IMAGE, CAMERA, TRUTH, DEPTH)


def test_a_basin_of_known_size():
    localizer = KnownBasin()
    basin = measure_basin(localizer, [query()], BasinOptions(40.0, 0.5, 8))
    assert localizer.prepared == 1 and len(localizer.starts) == 3 * 9
    turned, shifted, both = (basin.curves[kind] for kind in ("rotation", "translation", "together"))
    assert all(curve.success.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0] for curve in (turned, shifted, both))
    assert turned.final_deg[3, 0] == pytest.approx(0.1) and turned.final_deg[4, 0] == pytest.approx(20.0)
    assert shifted.final_depth[5, 0] == pytest.approx(5 / 16)
    # From 1 at step 3 to 0 at step 4.
    assert turned.radius(0.9) == pytest.approx(3.1 / 8) and turned.radius(0.5) == pytest.approx(3.5 / 8)
    assert turned.radius(0.9) * 40 == pytest.approx(15.5)


def test_starts_have_the_sizes_asked_for():
    localizer = KnownBasin()
    options = BasinOptions(30.0, 0.3, 3, directions=2)
    measure_basin(localizer, [query()], options)
    sizes = [
        (math.degrees(float(angle)), float(distance) / DEPTH)
        for distance, angle in (se3.pose_difference(TRUTH, start) for start in localizer.starts)
    ]
    expected = [size for _ in range(2) for kind in ("rotation", "translation", "together") for size in zip(*options.sizes(kind))]
    np.testing.assert_allclose(sizes, expected, atol=1e-5)


def test_directions_are_fixed_by_seed_and_name():
    def starts(seed=0, name="a.png", steps=4):
        localizer = KnownBasin()
        measure_basin(localizer, [query(name)], BasinOptions(steps=steps, seed=seed))
        return torch.stack(localizer.starts)

    assert torch.equal(starts(), starts())
    assert not torch.allclose(starts(), starts(seed=1)) and not torch.allclose(starts(), starts(name="b.png"))
    # Finer steps lie on the same rays.
    assert torch.allclose(starts(steps=8)[0:9:2], starts(steps=4)[:5])


def test_no_pose_counts_as_failure_and_leaves_no_median():
    basin = measure_basin(KnownBasin(finds=False), [query()], BasinOptions(steps=4), "x").to_json()
    last = basin["curves"]["rotation"]["steps"][-1]
    assert last["success"] == 0 and last["median_deg"] is None
    assert json.loads(json.dumps(basin, allow_nan=False)) == basin
    assert "–" in format_basin(basin)
    assert plot_basins([basin] * 9).startswith(b"\x89PNG")


def test_a_curve_that_never_falls_and_one_that_starts_low():
    wide = measure_basin(KnownBasin(999, 999), [query()], BasinOptions(steps=2)).to_json()["curves"]["together"]["radius"]["90%"]
    assert wide == {"deg": 40.0, "depth": 0.5, "reached_end": True}
    none = measure_basin(KnownBasin(0, 0), [query()], BasinOptions(steps=2)).to_json()["curves"]["rotation"]["radius"]["50%"]
    # The start of size zero is the truth itself, where even this one stays.
    assert none["deg"] == pytest.approx(10.0) and not none["reached_end"]


def test_bad_options_and_no_query_are_refused():
    for name, values in (("rotation_deg", (0, 181)), ("translation", (0, math.inf)), ("steps", (0,)), ("directions", (0,))):
        for value in values:
            with pytest.raises(InputError, match="basin"):
                BasinOptions(**{name: value})
    with pytest.raises(InputError, match="at least one"):
        measure_basin(KnownBasin(), [])


class FakeExtractorWithStrides(FakeExtractor):
    def with_strides(self, strides):
        return self


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """Map of a textured plane, images around it and two queries: folder with map, images, cameras.txt, truth.txt."""
    folder, truth = tmp_path_factory.mktemp("plane"), {}
    poses = torch.stack([look_at((x, -1.2, 2.0), (x, 0.0, 0.0)) for x in (-0.9, -0.3, 0.3, 0.9)])
    map_ = plane_map(folder, FakeExtractorWithStrides(), CAMERA, poses)
    for k, x in enumerate((-0.5, 0.4)):
        pose = look_at((x, -1.1, 2.0), (x, 0.05, 0.0))
        cv2.imwrite(str(folder / f"query{k}.png"), plane_view(pose, CAMERA, texture())[0])
        truth[f"query{k}.png"] = se3.inverse(pose)
    write_benchmark_poses(folder / "truth.txt", truth)
    model, numbers = CAMERA.to_colmap()
    line = " ".join(map(str, (model, CAMERA.width, CAMERA.height, *numbers)))
    (folder / "cameras.txt").write_text("".join(f"{name} {line}\n" for name in truth))
    map_.save(folder / "plane.pixmap")
    return folder, map_, truth


def test_the_command_writes_figures_and_a_plot(plane, tmp_path, monkeypatch, capsys):
    folder, map_, truth = plane
    assert median_depth(map_, se3.inverse(truth["query0.png"]), CAMERA) == pytest.approx(2.28, abs=0.3)
    with pytest.raises(InputError, match="no points"):
        median_depth(map_, look_at((0.0, 0.0, 2.0), (0.0, 10.0, 5.0)), CAMERA)
    monkeypatch.setattr("pixloc_ros.localization.load_extractor", lambda *_: FakeExtractorWithStrides())
    options = {"map": "plane.pixmap", "images": "", "cameras": "cameras.txt", "truth": "truth.txt"}
    inputs = [word for name, file in options.items() for word in (f"--{name}", str(folder / file))]

    def basin_of(output, *more) -> int:
        call = ["basin", *inputs, "-o", tmp_path / output, "--steps", "2", "--max-images", "1", *more]
        return cli.main([str(word) for word in call])

    assert basin_of("one") == 0
    assert "90% succeed up to" in capsys.readouterr().out
    basin = read_basin(tmp_path / "one" / "basin.json")
    near, *_, far = (step["success"] for step in basin["curves"]["together"]["steps"])
    assert basin["queries"] == 1 and len(basin["curves"]["rotation"]["steps"]) == 3 and near == 1 > far
    assert basin_of("two", "--strategy", "paper", "--beside", tmp_path / "one" / "basin.json") == 0
    assert (tmp_path / "two" / "basin.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    (tmp_path / "broken.json").write_text("{}")
    assert basin_of("two", "--beside", tmp_path / "broken.json") == 2
    assert "pixloc basin" in capsys.readouterr().err

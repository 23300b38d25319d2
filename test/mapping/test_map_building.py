# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch
from mapping_helpers import FakeExtractor, look_at, pinhole, plane_images

from pixloc_ros.errors import InputError
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.geometry import se3
from pixloc_ros.io.images import fit_to_working_size, load_image
from pixloc_ros.mapping.build.building import build_map

CAMERA = pinhole(320, 240, 250.0)
POSES = torch.stack([look_at((0.2 * k - 0.4, -1.5, 2.5), (0, 0, 0)) for k in range(5)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return plane_images(
        tmp_path_factory.mktemp("i"), POSES, CAMERA, np.random.default_rng(0).uniform((-2, -2, 0), (2, 2, 0), (400, 3))
    )


@pytest.mark.parametrize("confidence", [False, True])
def test_descriptors_are_the_features_where_the_points_project(source, confidence):
    extractor, calls = FakeExtractor(confidence), []
    map_, report = build_map(source, extractor, progress=lambda *call: calls.append(call))
    assert not report.left_out and report.outside > 0
    assert calls[0] == (0, 5, "0.png") and calls[-1][:2] == (5, 5)
    assert map_.keyframe_names == source.names and map_.keyframe_stamp_ns.tolist() == [0, 100, 200, 300, 400]
    assert len(map_.cameras) == 1 and (map_.cameras[0].width, map_.cameras[0].height) == (160, 120)
    assert len(map_.observation_point) == len(source.observation_point) - report.outside
    for k in (0, 3):
        image, camera = fit_to_working_size(load_image(source.paths[k]), CAMERA, extractor.working_side)
        pyramid, rows = extractor.extract(image), map_.observations(k)
        points = map_.observation_point[rows]
        assert (np.diff(points) > 0).all()
        inside = se3.transform(se3.inverse(POSES[k]), torch.from_numpy(map_.xyz[points]))
        assert map_.keyframe_depth[k] == pytest.approx(float(inside[:, 2].median()), rel=1e-5)
        pixels, _ = camera.project(inside)
        for level in range(2):
            values, conf, within = sample_level(pyramid.levels[level], pixels[None].float())
            assert bool(within.all())
            wanted = torch.nn.functional.normalize(values[0], dim=-1).numpy()
            assert np.abs(map_.descriptors[level][rows].astype(np.float32) - wanted).max() < 1e-3
            if confidence:
                assert np.abs(map_.confidences[level][rows].astype(np.float32) - conf[0].numpy()).max() < 1e-3
            else:
                assert map_.confidences[level] is None


def test_statistics_and_the_same_input_gives_the_same_map(source, tmp_path):
    map_, again = (build_map(source, FakeExtractor())[0] for _ in range(2))
    map_.save(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(map_.track_length, np.bincount(map_.observation_point)) and map_.track_length.min() >= 1
    point = int(np.flatnonzero(map_.track_length == 4)[0])
    d = map_.descriptors[-1][map_.observation_point == point].astype(np.float64)
    cosines = [d[i] @ d[j] for i in range(4) for j in range(i)]
    assert map_.quality[point] == pytest.approx(max(np.mean(cosines), 0), abs=5e-3)
    assert (map_.quality[map_.track_length == 1] == 0).all()
    assert np.allclose(np.linalg.norm(map_.global_descriptors.astype(float), axis=1), 1, atol=2e-3)


def test_images_that_give_nothing_are_left_out_and_reported(source, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    keep = source.observation_image != 2
    paths = [source.paths[0], tmp_path / "gone.png", *source.paths[2:4], tmp_path / "broken.png"]
    image, point = source.observation_image[keep], source.observation_point[keep]
    map_, report = build_map(replace(source, paths=paths, observation_image=image, observation_point=point), FakeExtractor())
    assert sorted(report.left_out) == ["1.png", "2.png", "4.png"] and "no point" in report.left_out["2.png"]
    assert map_.keyframe_names == ["0.png", "3.png"]
    assert torch.equal(map_.map_from_keyframe, POSES[[0, 3]])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: {"paths": [s.paths[0].with_name("gone.png")] * 5}, "none of the 5 images"),
        (lambda s: {"cameras": [pinhole(640, 480)] * 5}, "320x240"),
        (lambda s: {"xyz": s.xyz + [0, 0, 50.0]}, "no image sees a point"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(source, change, message):
    with pytest.raises(InputError, match=message):
        build_map(replace(source, **change(source)), FakeExtractor())

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import FakeExtractor, look_at, pinhole, plane_view, texture

from pixloc_ros.errors import InputError
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.geometry import se3
from pixloc_ros.io.images import fit_to_working_size, load_image
from pixloc_ros.mapping.build.building import PosedImages, build_map

CAMERA = pinhole(320, 240, 250.0)
POSES = torch.stack([look_at((0.2 * k - 0.4, -1.5, 2.5), (0, 0, 0)) for k in range(5)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Five views of a plane, 320x240, and points on it seen wherever they project (some at the images' borders)."""
    folder = tmp_path_factory.mktemp("images")
    picture = texture()
    xyz = np.random.default_rng(0).uniform((-2, -2, 0), (2, 2, 0), (400, 3))
    paths, image, point = [], [], []
    for k, pose in enumerate(POSES):
        paths.append(folder / f"{k}.png")
        cv2.imwrite(str(paths[-1]), plane_view(pose, CAMERA, picture)[0])
        pixels, valid = CAMERA.project(se3.transform(se3.inverse(pose), torch.from_numpy(xyz)))
        seen = np.flatnonzero((valid & CAMERA.in_image(pixels)).numpy())[::-1]
        image.append(np.full(len(seen), k))
        point.append(seen)
    return PosedImages(
        "plane",
        paths,
        [p.name for p in paths],
        [CAMERA] * 5,
        POSES,
        np.arange(5) * 100,
        xyz,
        np.concatenate(image),
        np.concatenate(point),
    )


@pytest.mark.parametrize("confidence", [False, True])
def test_descriptors_are_the_features_where_the_points_project(source, confidence):
    extractor = FakeExtractor(confidence)
    calls = []
    map_, report = build_map(source, extractor, progress=lambda *call: calls.append(call))
    assert report.missing == report.empty == () and report.outside > 0
    assert calls[0] == (0, 5, "0.png") and calls[-1][:2] == (5, 5)
    assert map_.keyframe_names == source.names and map_.keyframe_stamp_ns.tolist() == [0, 100, 200, 300, 400]
    assert len(map_.cameras) == 1 and (map_.cameras[0].width, map_.cameras[0].height) == (160, 120)
    assert len(map_.observation_point) == len(source.observation_point) - report.outside
    for k in (0, 3):
        image, camera = fit_to_working_size(load_image(source.paths[k]), CAMERA, extractor.working_side)
        pyramid, rows = extractor.extract(image), map_.observations(k)
        points = map_.observation_point[rows]
        assert (np.diff(points) > 0).all()
        pixels, _ = camera.project(se3.transform(se3.inverse(POSES[k]), torch.from_numpy(map_.xyz[points])))
        for level in range(2):
            values, conf, inside = sample_level(pyramid.levels[level], pixels[None].float())
            assert bool(inside.all())
            wanted = torch.nn.functional.normalize(values[0], dim=-1).numpy()
            assert np.abs(map_.descriptors[level][rows].astype(np.float32) - wanted).max() < 1e-3
            if confidence:
                assert np.abs(map_.confidences[level][rows].astype(np.float32) - conf[0].numpy()).max() < 1e-3
            else:
                assert map_.confidences[level] is None


def test_statistics(source):
    map_, _ = build_map(source, FakeExtractor())
    assert np.array_equal(map_.track_length, np.bincount(map_.observation_point)) and map_.track_length.min() >= 1
    point = int(np.flatnonzero(map_.track_length == 4)[0])
    d = map_.descriptors[-1][map_.observation_point == point].astype(np.float64)
    cosines = [d[i] @ d[j] for i in range(4) for j in range(i)]
    assert map_.quality[point] == pytest.approx(max(np.mean(cosines), 0), abs=5e-3)
    assert (map_.quality[map_.track_length == 1] == 0).all()
    k = 2
    z = se3.transform(se3.inverse(POSES[k]), torch.from_numpy(map_.xyz[map_.observation_point[map_.observations(k)]]))[:, 2]
    assert map_.keyframe_depth[k] == pytest.approx(float(z.median()), rel=1e-5)
    assert np.allclose(np.linalg.norm(map_.global_descriptors.astype(float), axis=1), 1, atol=2e-3)


def test_the_same_input_gives_the_same_map(source, tmp_path):
    for name in ("a", "b"):
        build_map(source, FakeExtractor())[0].save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _with(source, **changes):
    return PosedImages(**({name: getattr(source, name) for name in PosedImages.__dataclass_fields__} | changes))


def test_missing_and_broken_images_are_left_out_and_told(source, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    paths = [source.paths[0], tmp_path / "gone.png", *source.paths[2:4], tmp_path / "broken.png"]
    map_, report = build_map(_with(source, paths=paths), FakeExtractor())
    assert report.missing == ("1.png", "4.png") and map_.keyframe_names == ["0.png", "2.png", "3.png"]
    assert torch.equal(map_.map_from_keyframe, POSES[[0, 2, 3]])
    with pytest.raises(InputError, match="none of the 5 images"):
        build_map(_with(source, paths=[tmp_path / "gone.png"] * 5), FakeExtractor())


def test_images_without_points_are_left_out(source):
    keep = source.observation_image != 1
    map_, report = build_map(
        _with(source, observation_image=source.observation_image[keep], observation_point=source.observation_point[keep]),
        FakeExtractor(),
    )
    assert report.empty == ("1.png",) and len(map_.keyframe_names) == 4


def test_image_of_another_size_than_its_camera(source):
    with pytest.raises(InputError, match="320x240"):
        build_map(_with(source, cameras=[pinhole(640, 480)] * 5), FakeExtractor())


def test_nothing_in_sight(source):
    with pytest.raises(InputError, match="no image sees a point"):
        build_map(_with(source, xyz=source.xyz + [0, 0, 50.0]), FakeExtractor())

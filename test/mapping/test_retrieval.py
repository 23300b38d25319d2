# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Keyframes by what they look like, and poses found in the whole map, with the real network on small textured squares."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import look_at, numbers_map, pinhole, plane_view, texture, visible

from pixloc_ros.errors import InputError
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.mapping.build.building import PosedImages, build_map
from pixloc_ros.mapping.retrieval import KeyframeIndex, PooledFeatures
from pixloc_ros.tracking.frame_aligner import FrameAligner
from pixloc_ros.tracking.prior_std import PriorStd
from pixloc_ros.tracking.relocalization import RelocalizationOptions, Relocalizer
from pixloc_ros.tracking.types import MotionPrior, PreparedFrame

CAMERA = pinhole(320, 240, 260.0)
EYE = torch.eye(4, dtype=torch.float64)
SHIFT = np.array([100.0, 0, 0])
"""Between one textured square and the next."""


def picture(room: int, x: float) -> int:
    """Seed of the texture: the first square and the last look the same where x is negative."""
    return 0 if room == 2 and x < 0 else room


def view(room: int, x: float, y: float = 0.0, height: float = 3.0, seed: int | None = None):
    """Image and pose of a camera above a square."""
    pose = look_at((x, y - 0.6, height), (x, y, 0.0))
    image, _ = plane_view(pose, CAMERA, texture(seed=room if seed is None else seed))
    pose[:3, 3] += torch.from_numpy(room * SHIFT)
    return image, pose


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A map of three squares."""
    folder = tmp_path_factory.mktemp("squares")
    points = np.pad(np.random.default_rng(3).uniform((-2.4, -1.8), (2.4, 1.8), (700, 2)), ((0, 0), (0, 1)))
    xyz = np.concatenate([points + room * SHIFT for room in range(3)])
    places = [(room, x) for room in range(3) for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    images, poses = zip(*(view(room, x, seed=picture(room, x)) for room, x in places))
    paths = [folder / f"{room}_{x}.png" for room, x in places]
    for path, image in zip(paths, images):
        cv2.imwrite(str(path), image)
    of_room = np.repeat(np.arange(3), 700)
    sees = [visible(CAMERA, pose, xyz)[1] & (of_room == room) for pose, (room, _) in zip(poses, places)]
    names, cameras, stamps = [path.name for path in paths], [CAMERA] * len(paths), np.full(len(paths), -1, np.int64)
    source = PosedImages("squares", paths, names, cameras, torch.stack(poses), stamps, xyz, *np.nonzero(sees))
    return FrameAligner(build_map(source, load_extractor())[0], load_extractor())


def frame(localizer, image) -> CameraFrame:
    return PreparedFrame(0, image, CAMERA, localizer.prepare(image, CAMERA))


def test_pose_is_found_without_a_prior(scene):
    search = Relocalizer(scene)
    for room, x in ((0, 0.75), (1, -0.3), (1, 0.8), (2, 0.6)):
        image, pose = view(room, x, y=0.1, height=2.8)
        best = search.search(frame(scene, image), EYE)[0]
        away, turned = se3.pose_difference(pose, best.map_from_camera)
        assert float(away) < 0.05 and float(turned) < 0.02 and best.inlier_fraction > 0.4, (room, x)


def test_places_that_look_the_same_are_both_found(scene):
    image, _ = view(0, -0.8)
    search = Relocalizer(scene)
    found = search.search(frame(scene, image), EYE)
    rooms = {round(float(a.map_from_camera[0, 3]) / SHIFT[0]) for a in found if a.inlier_fraction > 0.4}
    assert rooms == {0, 2}
    # A place that is followed already is not found again.
    again = search.search(frame(scene, image), EYE, known=[found[0].map_from_camera])
    good = [a for a in again if a.inlier_fraction > 0.4]
    assert good and all(float(se3.pose_difference(a.map_from_camera, found[0].map_from_camera)[0]) > 1 for a in good)
    assert not any(search.same_place(a.map_from_camera, found[0].map_from_camera) for a in again)


def test_around_a_prior_the_image_is_found_and_what_it_does_not_look_like_is_dropped(scene):
    image, pose = view(1, 0.3, y=0.1, height=2.8)
    prepared, search = scene.prepare(image, CAMERA), Relocalizer(scene)
    std = torch.tensor([0.5, 0.5, 0.5, 0.15, 0.15, 0.15], dtype=torch.float64)
    prior = pose @ se3.se3_exp(1.2 * std * torch.tensor([1, -1, 1, 1, -1, 1]))
    wrong = scene.localize_prepared(prepared, pose @ se3.se3_exp(2 * std), PriorStd(0.5, 0.01))
    assert wrong.success and float(se3.pose_difference(wrong.map_from_camera, pose)[0]) > 0.5
    found = search.likeliest(prepared, prior, torch.diag(std**2), [wrong])
    away, turned = se3.pose_difference(pose, found[0].map_from_camera)
    assert float(away) < 0.05 and float(turned) < 0.02 and not any(one is wrong for one in found)


@pytest.mark.parametrize("room", (0, 2))
def test_a_vague_prior_says_where_to_look(scene, room):
    """Two rooms look the same: the first hypotheses are those near the prior."""
    image, pose = view(room, -0.8, seed=0)
    std = torch.tensor([3.0, 3.0, 0.5, 0.2, 0.2, 2.0], dtype=torch.float64)
    prior = MotionPrior(pose @ se3.se3_exp(0.7 * std), torch.diag(std**2), "initial pose", 0.0)
    search = Relocalizer(scene, RelocalizationOptions(hypotheses=2, seeds=1, finalists=1))
    found = search.search(frame(scene, image), EYE, prior=prior)
    assert float(se3.pose_difference(found[0].map_from_camera, pose)[0]) < 0.05


def test_an_image_of_nowhere_is_not_found(scene):
    for seed in (11, 12, 13):
        image, _ = view(0, 0.0, seed=seed)
        nowhere, search = frame(scene, image), Relocalizer(scene)
        assert all(a.inlier_fraction < 0.2 for turn in range(2) for a in search.search(nowhere, EYE, turn))


def test_same_input_same_poses(scene):
    image, _ = view(1, 0.3)
    one, other = (Relocalizer(scene).search(frame(scene, image), EYE) for _ in range(2))
    assert [a.map_from_camera.tolist() for a in one] == [a.map_from_camera.tolist() for a in other]


def index_map(descriptors: np.ndarray, **changes):
    poses = torch.stack([look_at((4.0 * k, -4.0, 0.1), (4.0 * k, 0.0, 0.0)) for k in range(len(descriptors))])
    xyz = np.random.default_rng(1).uniform((-2, -0.5, -1), (4.0 * len(descriptors), 0.5, 1), (900, 3))
    return replace(numbers_map(poses, xyz, pinhole()), global_descriptors=descriptors.astype(np.float16), **changes)


def test_most_similar_is_sorted_and_may_be_restricted():
    rng = np.random.default_rng(0)
    descriptors = rng.normal(size=(40, 8))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    map_ = index_map(descriptors)
    index = KeyframeIndex(map_)
    query = descriptors[7].astype(np.float32)
    expected = np.argsort(-(map_.global_descriptors.astype(np.float32) @ query), kind="stable")
    np.testing.assert_array_equal(index.most_similar(query, 5), expected[:5])
    np.testing.assert_array_equal(index.most_similar(query, 100), expected)
    among = np.zeros(40, bool)
    among[[3, 9, 20]] = True
    np.testing.assert_array_equal(index.most_similar(query, 5, among), expected[np.isin(expected, [3, 9, 20])])
    assert len(index.most_similar(query, 5, np.zeros(40, bool))) == 0


def test_places_take_turns():
    # Keyframes 4 m apart that see 2.5 m to either side: neighbours share points, those further apart do not.
    map_ = index_map(np.ones((12, 8)) / 8**0.5)
    order = KeyframeIndex(map_).by_place(np.array([0, 1, 2, 8, 9, 5]))
    np.testing.assert_array_equal(order, [0, 8, 5, 1, 9, 2])


def test_another_descriptor_is_refused_by_name():
    class Other(PooledFeatures):
        name = "other"

    map_ = index_map(np.ones((3, 8)) / 8**0.5)
    with pytest.raises(InputError, match="'other'"):
        KeyframeIndex(map_, Other())
    assert KeyframeIndex(replace(map_, global_descriptor_name="other"), Other()).descriptor.name == "other"

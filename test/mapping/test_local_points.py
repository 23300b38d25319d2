# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_helpers import look_at, numbers_map, pinhole

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.mapping import LocalPointOptions, LocalPointSelector, Map, selection
from pixloc_ros.mapping.map_file import POOLED_FEATURES

CAMERA = pinhole()


@pytest.fixture(scope="module")
def road():
    """Keyframes every 2 m along x, points on the walls of a street, seen up to 25 m ahead."""
    poses = torch.stack([look_at((2.0 * k, 0, 0), (2.0 * k + 1, 0, 0)) for k in range(40)])
    generator = np.random.default_rng(0)
    xyz = generator.uniform((0, -1, -2), (110, 1, 3), (6000, 3))
    xyz[:, 1] = np.where(xyz[:, 1] < 0, -5, 5)
    return numbers_map(poses, xyz, CAMERA, farthest=25.0, confidence=True)


@pytest.fixture(scope="module")
def selector(road):
    return LocalPointSelector(road)


def test_what_is_given_is_what_the_map_holds(road, selector):
    prior = look_at((20.5, 0.2, 0.1), (30, 0, 0))
    local = selector.select(prior, CAMERA, 200)
    ids = local.point_ids.numpy()
    assert len(local.points) == 200 == len(set(ids.tolist()))
    assert np.allclose(local.points.xyz.numpy() + local.origin.numpy(), road.xyz[ids], atol=1e-4)
    assert local.points.xyz.dtype == torch.float32 and local.origin.dtype == torch.float64
    for level, descriptors in enumerate(local.points.descriptors):
        assert descriptors.dtype == torch.float32
        for row, point in enumerate(ids[:20]):
            owners = np.flatnonzero(road.observation_point == point)
            equal = (road.descriptors[level][owners].astype(np.float32) == descriptors[row].numpy()).all(1)
            assert equal.sum() == 1
            owner = owners[equal][0]
            assert road.confidences[level][owner] == local.points.confidences[level][row]
            keyframe = np.searchsorted(road.observation_offsets, owner, side="right") - 1
            assert keyframe in local.keyframe_ids.numpy()


def test_on_a_road_near_keyframes_that_look_ahead_are_used(selector):
    for x in (10.3, 31.0, 55.9):
        keyframes = selector.select(look_at((x, 0.3, 0), (x + 9, 0, 0)), CAMERA).keyframe_ids.numpy()
        assert len(keyframes) == 3
        # Not one far ahead, which misses what is near, nor far behind, which sees it small.
        assert (np.abs(2.0 * keyframes - x) < 8).all()


def test_points_fall_into_the_enlarged_image(road, selector):
    prior = look_at((33.3, -1, 0.4), (40, 1, 0))
    xyz = torch.from_numpy(road.xyz[selector.select(prior, CAMERA).point_ids.numpy()])
    pixels, valid = CAMERA.project(se3.transform(se3.inverse(prior), xyz))
    size = torch.tensor([CAMERA.width, CAMERA.height])
    assert bool(valid.all()) and bool(((pixels + 0.05 * size + 1e-3 >= 0) & (pixels - 1.05 * size + 1 <= 1e-3)).all())


def test_of_keyframes_in_one_place_those_that_look_the_same_way_are_used():
    angles = np.radians(np.arange(0, 360, 10.0))
    poses = torch.stack([look_at((0.01 * k % 0.05, 0, 0), (np.cos(a), np.sin(a), 0)) for k, a in enumerate(angles)])
    xyz = np.random.default_rng(0).normal(size=(4000, 3))
    xyz *= 3 / np.linalg.norm(xyz, axis=1, keepdims=True)
    selector = LocalPointSelector(numbers_map(poses, xyz, CAMERA))
    for heading in (3.0, 91.0, 244.0):
        a = np.radians(heading)
        keyframes = selector.select(look_at((0, 0, 0.02), (np.cos(a), np.sin(a), 0)), CAMERA).keyframe_ids.numpy()
        difference = (10.0 * keyframes - heading + 180) % 360 - 180
        assert (np.abs(difference) <= 35).all() and difference.min() <= 0 <= difference.max() and abs(difference[0]) <= 10


def test_a_camera_rolled_over_prefers_keyframes_that_are_rolled_too():
    upright, rolled = look_at((0, -4, 0), (0, 0, 0)), look_at((0.1, -4, 0), (0, 0, 0), up=(1, 0, 0.01))
    xyz = np.random.default_rng(0).uniform((-1, -0.2, -1), (1, 0.2, 1), (500, 3))
    selector = LocalPointSelector(numbers_map(torch.stack((upright, rolled)), xyz, CAMERA), LocalPointOptions(keyframes=1))
    assert selector.select(look_at((0.05, -4, 0), (0, 0, 0)), CAMERA).keyframe_ids.tolist() == [0]
    assert selector.select(look_at((0.05, -4, 0), (0, 0, 0), up=(1, 0, 0)), CAMERA).keyframe_ids.tolist() == [1]


def test_the_observation_of_the_most_similar_view_is_used():
    """Two keyframes see the same points, one as the camera does and one from twice as near and from the side."""
    poses = torch.stack((look_at((1.5, -1.5, 0), (0, 0, 0)), look_at((0, -4, 0), (0, 0, 0))))
    xyz = np.random.default_rng(0).uniform((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2), (60, 3))
    map_ = numbers_map(poses, xyz, CAMERA)
    local = LocalPointSelector(map_, LocalPointOptions(keyframes=2)).select(look_at((0.1, -4, 0), (0, 0, 0)), CAMERA)
    assert len(local.points) == 60
    mine = map_.observations(1)
    assert np.array_equal(map_.descriptors[0][mine].astype(np.float32), local.points.descriptors[0].numpy())


def test_of_two_sessions_the_one_that_looks_like_the_image_is_used():
    """Two keyframes from one place, of different looks: by day, and a day later."""
    poses = look_at((0, -4, 0), (0, 0, 0)).repeat(2, 1, 1)
    xyz = np.random.default_rng(0).uniform((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2), (60, 3))
    map_ = numbers_map(poses, xyz, CAMERA)
    looks = np.zeros_like(map_.global_descriptors)
    looks[0, 0] = looks[1, 1] = 1.0
    days = np.array([0, 86_400 * 10**9])
    map_ = replace(map_, global_descriptors=looks, keyframe_stamp_ns=days, global_descriptor_name=POOLED_FEATURES)
    selector, camera = LocalPointSelector(map_, LocalPointOptions(keyframes=2)), look_at((0, -4, 0), (0, 0, 0))
    for number in range(2):
        local = selector.select(camera, CAMERA, description=looks[number].astype(np.float32))
        own = map_.descriptors[0][map_.observations(number)].astype(np.float32)
        assert np.array_equal(own, local.points.descriptors[0].numpy())
    one = LocalPointSelector(replace(map_, keyframe_stamp_ns=np.zeros_like(days)))
    assert one.describe(None, None) is None, "one session: the image is not asked"


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 600), limit=st.integers(1, 300))
def test_the_budget_is_spread_over_the_image(seed, count, limit):
    generator = np.random.default_rng(seed)
    pixels = generator.normal((80, 60), (40, 20), (count, 2))
    scores = generator.uniform(0.01, 1.0, count)
    chosen = selection.spread(pixels, scores, (160, 120), limit)
    assert len(chosen) == min(count, limit) and (np.diff(chosen) > 0).all()
    columns = max(1, round((limit * 160 / 120) ** 0.5))
    rows = max(1, round(limit / columns))
    cells = np.clip((pixels + 0.5) * (columns, rows) // (160, 120), 0, (columns - 1, rows - 1)) @ (1, columns)
    taken = np.zeros(count, bool)
    taken[chosen] = True
    most, least = 0, count
    for cell in np.unique(cells):
        inside = cells == cell
        most = max(most, taken[inside].sum())
        if not taken[inside].all():
            least = min(least, taken[inside].sum())
            if taken[inside].any():
                assert scores[inside & taken].min() >= scores[inside & ~taken].max() - 2e-5
    assert most <= least + 1, "a cell got a second point before another got its first"


def test_nothing_to_see(selector):
    local = selector.select(look_at((50, 0, 100), (50, 1, 200)), CAMERA)
    assert len(local.points) == 0 and len(local.point_ids) == 0 and len(local.keyframe_ids) == 0
    assert [d.shape for d in local.points.descriptors] == [(0, 8), (0, 8)]


def test_history_does_not_matter(road, selector, monkeypatch):
    prior = look_at((42.1, 0.1, 0), (50, 0, 0))
    first = LocalPointSelector(road).select(prior, CAMERA)
    monkeypatch.setattr("pixloc_ros.mapping.local_points._CACHED_VIEWS", 5)
    used = LocalPointSelector(road)
    for x in range(0, 70, 3):
        used.select(look_at((x, 0, 0), (x + 1, 0.1, 0)), CAMERA)
    again = used.select(prior, CAMERA)
    assert len(used._views) <= 5
    assert torch.equal(first.point_ids, again.point_ids) and torch.equal(first.points.xyz, again.points.xyz)
    assert all(torch.equal(a, b) for a, b in zip(first.points.descriptors, again.points.descriptors))


def test_far_from_the_map_origin_nothing_is_lost(road):
    shift = np.array([5.1e5, 5.4e6, 300.0])
    poses = road.map_from_keyframe.clone()
    poses[:, :3, 3] += torch.from_numpy(shift)
    far = LocalPointSelector(replace(road, map_from_keyframe=poses, xyz=road.xyz + shift))
    prior = look_at((20.5, 0.2, 0.1), (30, 0, 0))
    near = LocalPointSelector(road).select(prior, CAMERA)
    prior[:3, 3] += torch.from_numpy(shift)
    local = far.select(prior, CAMERA)
    assert torch.equal(local.point_ids, near.point_ids)
    assert torch.allclose(local.points.xyz, near.points.xyz, atol=1e-5)


def test_fisheye_camera(selector):
    camera = Camera("equidistant", 160, 120, torch.tensor([60.0, 60, 79.5, 59.5, 0.01, 0, 0, 0], dtype=torch.float64))
    assert len(selector.select(look_at((30.0, 0, 0), (40, 0, 0)), camera).points) == 512


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-20, 130), y=st.floats(-6, 6), heading=st.floats(-3.1, 3.1), pitch=st.floats(-1, 1), count=st.integers(1, 700))
def test_any_prior_gives_a_sound_answer(selector, x, y, heading, pitch, count):
    local = selector.select(look_at((x, y, 0), (x + np.cos(heading), y + np.sin(heading), pitch)), CAMERA, count)
    assert len(local.points) <= count and len(local.points) == len(set(local.point_ids.tolist()))
    assert bool(torch.isfinite(local.points.xyz).all()) and len(local.keyframe_ids) <= 3


def test_damaged_point_numbers_are_noticed(road):
    points = road.observation_point.copy()
    points[road.observations(20)][-1] = len(road.xyz)
    damaged: Map = replace(road, observation_point=points)
    with pytest.raises(InputError, match="damaged"):
        LocalPointSelector(damaged).select(look_at((40.0, 0, 0), (50, 0, 0)), CAMERA)


@pytest.mark.parametrize(
    "wrong", [{"keyframes": 0}, {"keyframes": 30}, {"margin": -0.1}, {"octaves": 0.0}, {"angle_rad": float("nan")}]
)
def test_options_are_checked(wrong):
    with pytest.raises(InputError):
        LocalPointOptions(**wrong)


@pytest.mark.parametrize("unit", [10.0**k for k in range(-6, 7)])
def test_the_unit_of_length_of_a_map_does_not_matter(road, selector, unit):
    """The same points of the same keyframes, whose features are the same."""
    pose = road.map_from_keyframe.clone()
    pose[:, :3, 3] *= unit
    scaled = LocalPointSelector(
        replace(road, map_from_keyframe=pose, xyz=road.xyz * unit, keyframe_depth=road.keyframe_depth * np.float32(unit))
    )
    for x in (10.3, 31.1, 55.9):
        expected = selector.select(look_at((x, 0.3, 0.1), (x + 9, 0, 0)), CAMERA, 200)
        prior = look_at((x, 0.3, 0.1), (x + 9, 0, 0))
        prior[:3, 3] *= unit
        found = scaled.select(prior, CAMERA, 200)
        assert found.keyframe_ids.tolist() == expected.keyframe_ids.tolist()
        assert np.isin(found.point_ids, expected.point_ids).mean() > 0.99  # weights are compared in single precision
        torch.testing.assert_close(found.points.xyz / np.float32(unit), expected.points.xyz, rtol=1e-5, atol=1e-4)

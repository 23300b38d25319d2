# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment with measured motions: it finds poses, points and scale, and leaves wrong loops out."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from mapping_helpers import look_at
from scipy.sparse import bsr_array, csr_array

from pixloc_ros.mapping.build.adjustment import BlockBand, Bundle, Links, Rays, adjust, errors_px, link_errors, triangulated
from pixloc_ros.mapping.build.odometry_structure import WHEELS, scale_uncertainty

COUNT, POINTS, FOCAL = 12, 150, 400.0


@pytest.fixture(scope="module")
def world():
    """True bundle and what its cameras see of it."""
    generator = np.random.default_rng(0)
    poses = np.stack([look_at((0.3 * k, 0.02 * k**2, 0.0), (0.3 * k + 0.2, 5.0, 0.1)).numpy() for k in range(COUNT)])
    poses = np.linalg.inv(poses[0]) @ poses
    xyz = generator.uniform((-3, -2, 3), (6, 2, 9), (POINTS, 3))
    image, point = np.nonzero(generator.random((COUNT, POINTS)) < 0.6)
    inside = np.einsum("nji,nj->ni", poses[image, :3, :3], xyz[point] - poses[image, :3, 3])
    ray = inside / np.linalg.norm(inside, axis=1, keepdims=True)
    return Bundle(poses, xyz), Rays(image, point, ray, np.full(len(image), FOCAL), np.arange(len(image)))


def motions(poses, std=0.02):
    first = np.arange(COUNT - 1)
    relative = np.linalg.inv(poses[:-1]) @ poses[1:]
    return Links(first, first + 1, relative, np.full(COUNT - 1, std), np.full(COUNT - 1, 0.05), np.zeros(COUNT - 1, bool))


def drifted(poses, share=0.02, turn=0.01):
    """The chain of its motions, each too long and turned."""
    bias = np.eye(4)
    bias[[0, 2], [0, 2]], bias[0, 2], bias[2, 0] = np.cos(turn), np.sin(turn), -np.sin(turn)
    result = [poses[0]]
    for a, b in zip(poses[:-1], poses[1:]):
        step = np.linalg.inv(a) @ b
        step[:3, 3] *= 1 + share
        result.append(result[-1] @ step @ bias)
    return np.stack(result)


def test_rays_and_motions_give_poses_and_points(world):
    truth, rays = world
    start = drifted(truth.poses, 0.0, 0.008)
    xyz, angle = triangulated(start, rays, POINTS)
    found = adjust(Bundle(start, xyz), rays, motions(truth.poses), 5.0, 40)
    np.testing.assert_allclose(found.poses, truth.poses, atol=1e-4)
    error = errors_px(found, rays)
    behind = np.isinf(error)  # a bad start puts a point behind a camera now and then: it counts nothing
    assert behind.mean() < 0.02 and error[~behind].max() < 0.01
    assert (angle > 0).all()


def test_the_motions_scale_is_taken(world):
    truth, rays = world
    start = drifted(truth.poses)
    found = adjust(Bundle(start, triangulated(start, rays, POINTS)[0]), rays, motions(start), 5.0, 40)
    assert np.linalg.norm(found.poses[-1, :3, 3]) / np.linalg.norm(truth.poses[-1, :3, 3]) == pytest.approx(1.02, abs=0.002)
    assert errors_px(found, rays).max() < 0.5


def test_observations_and_motions_are_weighed_by_their_standard_deviations(world):
    """Motions that are too long and too short in turn, against exact observations."""
    truth, rays = world
    wrong = motions(truth.poses)
    wrong = replace(wrong, first_from_second=wrong.first_from_second.copy())
    wrong.first_from_second[::2, :3, 3] *= 1.1
    wrong.first_from_second[1::2, :3, 3] *= 0.9
    found = adjust(truth, rays, wrong, 100.0, 20, 3.0).poses
    vaguer = replace(wrong, translation_std=3 * wrong.translation_std, rotation_std=3 * wrong.rotation_std)
    scaled = adjust(truth, rays, vaguer, 100.0, 20, 9.0).poses
    as_one = adjust(truth, rays, wrong, 100.0, 20).poses
    np.testing.assert_allclose(found, scaled, atol=1e-4, err_msg="only ratios of standard deviations count")
    steps = lambda poses: np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)  # noqa: E731
    uneven, even = (np.std(steps(poses) / steps(truth.poses)) for poses in (found, as_one))
    assert uneven > 3 * even, "vague observations leave the motions more say"


def test_mismatches_count_little(world):
    truth, rays = world
    wrong = rays.ray.copy()
    wrong[::20] = wrong[::20][:, [1, 0, 2]]
    rays = Rays(rays.image, rays.point, wrong, rays.focal_px, rays.feature)
    found = adjust(truth, rays, motions(truth.poses), 1.0, 20)
    np.testing.assert_allclose(found.poses, truth.poses, atol=2e-3)


@pytest.mark.parametrize("right", [True, False])
def test_a_loop_bends_the_path_unless_it_is_wrong(world, right):
    truth, rays = world
    start, loop = drifted(truth.poses, 0.0, 0.005), np.linalg.inv(truth.poses[0]) @ truth.poses[-1]
    if not right:
        loop = loop.copy()
        loop[:3, 3] += 50.0
    one = np.ones(1)
    closing = Links(np.array([0]), np.array([COUNT - 1]), loop[None], 0.01 * one, 0.002 * one, np.ones(1, bool))
    graph = Links.join([motions(start, 0.01), closing])
    bent = adjust(Bundle(start, np.zeros((0, 3))), rays.only(np.zeros(0, np.int64)), graph, 1.0, 30)
    off = np.linalg.norm(link_errors(bent, closing))
    before, after = (np.linalg.norm(b.poses[-1, :3, 3] - truth.poses[-1, :3, 3]) for b in (Bundle(start, None), bent))
    assert (off < 6.0) == right
    assert after < 0.2 * before if right else after < 2 * before


def test_a_scale_is_less_sure_where_the_base_moves_further_than_its_camera():
    yaw = np.linspace(0, 1, COUNT)
    poses, base_from_camera = np.tile(np.eye(4), (COUNT, 1, 1)), np.eye(4)
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 1, 0], poses[:, 1, 1] = np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)
    poses[:, 2, 3] = np.linspace(0, 0.25, COUNT)
    assert scale_uncertainty(0.0, poses, base_from_camera) == pytest.approx(WHEELS)
    base_from_camera[0, 3] = 1.0  # it turns around a camera that hardly moves
    assert scale_uncertainty(0.0, poses, base_from_camera) == pytest.approx(WHEELS * np.hypot(1, 0.25) / 0.25, rel=0.01)


def laps(count, times, reach=2):
    """A matrix of 6x6 blocks: keyframes of `times` laps, each tied to those near it in all laps."""
    rng, lap = np.random.default_rng(0), count // times
    pairs = [(k, t * lap + (k + d) % lap) for k in range(count) for t in range(times) for d in range(-reach, reach + 1)]
    row, column = np.array([pair for pair in pairs if pair[0] > pair[1]]).T
    blocks, dense = rng.normal(size=(len(row), 6, 6)), np.zeros((count, 6, count, 6))
    dense[row, :, column] = blocks
    dense[column, :, row] += blocks.transpose(0, 2, 1)
    matrix = dense.reshape(6 * count, 6 * count)
    return matrix + 60 * np.sqrt(times) * np.eye(6 * count)


def as_band(dense):
    """The matrix [6 K, 6 K] in a band, its poses in another order."""
    blocks = bsr_array(dense, blocksize=(6, 6))
    pattern = csr_array((np.ones(len(blocks.indices)), blocks.indices, blocks.indptr))
    band = BlockBand(pattern)
    band.add(np.repeat(np.arange(len(dense) // 6), np.diff(blocks.indptr)), blocks.indices, blocks.data)
    return band


def test_a_band_is_solved_as_a_dense_matrix_is():
    dense, right = laps(60, 4), np.random.default_rng(1).normal(size=360)
    np.testing.assert_allclose(as_band(dense).matrix().toarray(), dense)
    np.testing.assert_allclose(as_band(dense).solve(right), np.linalg.solve(dense, right), atol=1e-10)
    np.testing.assert_allclose(as_band(np.eye(6)).solve(right[:6]), right[:6])
    twice, one = as_band(dense), np.array((3, 3))
    twice.add(one, one, np.stack((np.eye(6), 2 * np.eye(6))))
    np.testing.assert_allclose((twice.matrix().toarray() - dense)[18:24, 18:24], 3 * np.eye(6), atol=1e-9)
    with pytest.raises(np.linalg.LinAlgError):
        as_band(dense - 1000 * np.eye(360)).solve(right)


def test_many_laps_take_no_more_memory_than_their_band():
    band = as_band(laps(400, 20))
    tracemalloc.start()
    band.solve(np.ones(2400))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert band._band.nbytes < 0.7 * 8 * 2400**2 and peak < 0.1 * band._band.nbytes

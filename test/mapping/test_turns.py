# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How the camera turned between keyframes, by what they match."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mapping_helpers import pinhole

from pixloc_ros.geometry import se3
from pixloc_ros.mapping.build.odometry_structure import turned_by_images
from pixloc_ros.mapping.build.turns import ImageTurns, rotation_vectors, with_turns
from pixloc_ros.mapping.build.two_view import Pair

pytest.importorskip("pycolmap", reason="essential matrices are pycolmap's")
CAMERA = pinhole(640, 480, 500.0)


def pose(turn, place):
    rotation = se3.so3_exp(torch.tensor(turn, dtype=torch.float64))
    return se3.from_rotation_translation(rotation, torch.tensor(place, dtype=torch.float64)).numpy()


def finder_of(poses, xyz, noise_px=0.3, parallax_px=5.0):
    """What `PairFinder` has after all features of points [P, 3] were matched between poses that follow each other."""
    rng, views = np.random.default_rng(0), []
    for map_from_camera in poses:
        inside = (xyz - map_from_camera[:3, 3]) @ map_from_camera[:3, :3]
        pixels = inside[:, :2] / inside[:, 2:] * 500.0 + CAMERA.params[2:].numpy() + rng.normal(0, noise_px, (len(xyz), 2))
        rays, _ = CAMERA.unproject(torch.from_numpy(pixels))
        views.append((pixels, torch.nn.functional.normalize(rays, dim=-1).numpy()))
    matches = np.stack((np.arange(len(xyz)),) * 2, 1).astype(np.int32)
    pairs = {(k, k + 1): Pair(matches, 20.0, parallax_px, len(xyz)) for k in range(len(poses) - 1)}
    matcher = SimpleNamespace(images=SimpleNamespace(cameras=[CAMERA] * len(poses)), features=lambda k: views[k])
    return SimpleNamespace(count=len(poses), pairs=pairs, matcher=matcher)


def points(count, depth):
    """Before the camera, float64 [count, 3]; depth: nearest and furthest."""
    rng = np.random.default_rng(1)
    z = rng.uniform(*depth, count)
    return np.stack((rng.uniform(-0.4, 0.4, count) * z, rng.uniform(-0.3, 0.3, count) * z, z), 1)


@pytest.mark.parametrize("scene", ["a place", "nearly a wall", "a wall", "no parallax"])
def test_turns_of_images(scene):
    poses = np.stack([pose((0.01 * k, 0.06 * k, 0.0), (0.1 * k, 0.0, 0.1 * k)) for k in range(4)])
    depth = {"nearly a wall": (6.0, 6.6), "a wall": (6.0, 6.0)}.get(scene, (3.0, 10.0))
    turns = ImageTurns.of(finder_of(poses, points(400, depth), parallax_px=0.1 if scene == "no parallax" else 5.0))
    assert turns.first.tolist() == [0, 1, 2] and turns.sure.tolist() == [scene == "a place"] * 3
    nearer_deg = np.degrees(np.linalg.norm(turns.off_rad(poses), axis=1)).max()
    assert nearer_deg < (1.0 if scene == "a wall" else 0.25)
    other = poses.copy()
    other[2:] = poses[1] @ pose((0.0, 0.0, 0.4), (0.0, 0.0, 0.0)) @ np.linalg.inv(poses[1]) @ poses[2:]
    assert len(turns.contradicted_by(poses)) == 0
    assert turns.contradicted_by(other).tolist() == [1] * (scene == "a place")


def turned_wheels(poses, base_from_camera, per_metre, share):
    """What wheels say of a drive, who turn so much more a metre (radians), and by a share of each turn."""
    bases = poses @ np.linalg.inv(base_from_camera)
    steps = np.linalg.inv(bases[:-1]) @ bases[1:]
    turn = rotation_vectors(steps[:, :3, :3])
    turn = share * turn + np.linalg.norm(steps[:, :3, 3], axis=1)[:, None] * (0.0, 0.0, per_metre)
    steps[:, :3, :3] = steps[:, :3, :3] @ se3.so3_exp(torch.from_numpy(turn)).numpy()
    return np.stack(list(itertools.accumulate(steps, np.matmul, initial=bases[0]))) @ base_from_camera


@pytest.mark.parametrize(
    "wrong", [(0.03, 0.0), (0.0, -1.0), (0.0, 0.3), (0.0, 0.0)], ids=["flat tyre", "no turns", "gear", "right"]
)
@pytest.mark.parametrize("scene", ["a place", "a wall"])
def test_wheels_that_turn_wrongly_take_the_turns_of_images(scene, wrong):
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = np.array(((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))  # looks ahead
    base_from_camera[:3, 3] = 0.3, 0.1, 1.0
    turn = np.cumsum(np.r_[0.0, np.full(11, 0.05)])
    bases = np.stack([pose((0.0, 0.0, a), (6 * np.sin(a), 6 * (1 - np.cos(a)), 0.0)) for a in turn])
    poses = bases @ base_from_camera
    xyz = points(3000, (6.0, 25.0)) if scene == "a place" else points(3000, (20.0, 20.0))
    xyz = (xyz * (2.0, 1.0, 1.0)) @ poses[5, :3, :3].T + poses[5, :3, 3]
    wheels = turned_wheels(poses, base_from_camera, *wrong)
    made, said = turned_by_images(wheels, ImageTurns.of(finder_of(poses, xyz)), base_from_camera)
    if scene == "a wall" or not any(wrong):
        assert made is wheels and said == ""
    else:
        assert "look after wheels" in said
        off = np.linalg.inv(poses[0] @ np.linalg.inv(made[0]) @ made[-1]) @ poses[-1]
        assert np.linalg.norm(off[:3, 3]) < 0.1 and np.linalg.norm(rotation_vectors(off[None, :3, :3])) < np.radians(1.0)


def test_few_matches_contradict_nothing():
    poses = np.stack([pose((0.0, 0.06 * k, 0.0), (0.1 * k, 0.0, 0.0)) for k in range(3)])
    turns = ImageTurns.of(finder_of(poses, points(40, (3.0, 10.0))))
    assert len(turns.first) == 2 and not turns.sure.any()
    assert len(turns.contradicted_by(np.broadcast_to(np.eye(4), (3, 4, 4)) @ pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))) == 0


def test_turned_wheels_go_along_the_arc():
    base_from_camera = pose((0.3, -0.2, 0.1), (0.4, 0.1, 1.2))
    # The base drives an arc; wheels that do not feel the turn say that it goes straight.
    turn, radius = 0.02 * np.arange(5), 10.0
    arc = np.stack([pose((0.0, 0.0, a), (radius * np.sin(a), radius * (1 - np.cos(a)), 0.0)) for a in turn])
    straight = np.stack([pose((0.0, 0.0, 0.0), (radius * a, 0.0, 0.0)) for a in turn])
    truth, wheels = arc @ base_from_camera, straight @ base_from_camera
    steps = np.linalg.inv(truth[:-1]) @ truth[1:]
    made = with_turns(wheels, np.arange(4), steps[:, :3, :3], base_from_camera)
    np.testing.assert_allclose(made[:, :3, 3], truth[:, :3, 3], atol=1e-4)
    assert np.abs(rotation_vectors(made[:, :3, :3].transpose(0, 2, 1) @ truth[:, :3, :3])).max() < 1e-9

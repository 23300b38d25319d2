# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses that are off, adjusted: from observations alone, and from the images of a bag."""

import math
import re

import numpy as np
import pytest
import torch
from mapping_helpers import FakeExtractor, pinhole
from posed_bag_writing import pose_at, write_bag

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.observations import Observations, Views, project
from pixloc_ros.mapping.build.posed_bag import PosedBag
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames
from pixloc_ros.mapping.build.refinement import Refinement, RefineOptions, adjusted

pytest.importorskip("pycolmap")
CAMERA = pinhole(640, 480, 500.0)


def errors(count, metres, degrees, seed=0):
    """Small motions [count, 4, 4] in random directions."""
    random = torch.Generator().manual_seed(seed)
    shift, turn = torch.nn.functional.normalize(torch.randn(2, count, 3, generator=random, dtype=torch.float64), dim=-1)
    return se3.se3_exp(torch.cat((metres * shift, math.radians(degrees) * turn), -1))


@pytest.fixture(scope="module")
def drive():
    """Poses along bends to both sides, points before them, and what each pose sees of these, to 0.3 pixels."""
    random, count = np.random.default_rng(0), 24
    heading = 0.8 * torch.sin(torch.linspace(0, 2 * np.pi, count, dtype=torch.float64))
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = se3.so3_exp(torch.stack((torch.zeros(count), heading, torch.zeros(count)), 1).double())
    poses[1:, :3, 3] = torch.cumsum(0.8 * poses[:-1, :3, 2], 0)
    xyz = np.stack([random.uniform(*limits, 900) for limits in ((-8, 25), (-3, 3), (2, 40))], 1)
    image, point, pixel = [], [], []
    for k, pose in enumerate(poses):
        pixels, valid, depth = project(CAMERA, se3.inverse(pose), xyz)
        seen = np.flatnonzero(valid & (depth > 0.5) & CAMERA.in_image(torch.from_numpy(pixels)).numpy())
        image.append(np.full(len(seen), k))
        point.append(seen)
        pixel.append(pixels[seen] + 0.3 * random.normal(size=(len(seen), 2)))
    return poses, xyz, Observations(*(np.concatenate(each) for each in (image, point, pixel)))


ROUNDS = ((5.0, 20.0), (1.0, 4.0))


def refined(drive, given, **changed):
    _, xyz, seen = drive
    start = xyz + np.random.default_rng(1).normal(size=xyz.shape) * 0.1
    seen = seen._replace(**changed)
    return adjusted(Views([CAMERA] * len(given), given), start, seen, given.numpy(), RefineOptions(), ROUNDS)


def mount(metres, degrees):
    """Turned about, and shifted along, the camera's right axis."""
    return se3.se3_exp(torch.tensor([metres, 0, 0, math.radians(degrees), 0, 0], dtype=torch.float64))


@pytest.mark.parametrize(("metres", "degrees"), [(0.0, 0.0), (0.0, 1.0), (0.05, 0.0)])
def test_adjusted_poses_agree_and_a_wrong_mount_is_found(drive, metres, degrees):
    truth = drive[0]
    given = truth @ errors(len(truth), 0.03, 0.5) @ mount(metres, degrees)
    found = refined(drive, given)
    assert found.error_px < 0.4
    distance, angle = (values.numpy() for values in se3.pose_difference(truth, torch.from_numpy(found.poses)))
    # Where the camera is turned, too, 18 m of path tell less of how the whole lies.
    assert np.median(distance) < 0.02 and np.degrees(np.median(angle)) < (0.3 if degrees else 0.15)
    right = np.array([-math.radians(degrees), 0, 0, -metres, 0, 0])  # the right camera in the given one's frame
    off = found.mount - right
    assert off @ found.mount_information @ off < 22.5  # 99.9 %, six degrees of freedom
    said = " ".join(said_of(truth, found))
    assert ("is turned by" in said) == (degrees > 0) and ("sits" in said) == (metres > 0)
    own = np.sqrt(3) * found.stds
    assert 0.015 < own[0] <= 0.03 + 1e-9 and 0.35 < np.degrees(own[1]) <= 0.5 + 1e-9


def said_of(given, found):
    of_mount = (found.mount, found.mount_information, found.stds)
    return Refinement(given, np.zeros((len(given), 2)), *of_mount, found.kept, found.error_px).notes


def test_right_poses_stay(drive):
    truth = drive[0]
    found = refined(drive, truth)
    distance, angle = se3.pose_difference(truth, torch.from_numpy(found.poses))
    assert distance.max() < 2e-3 and math.degrees(angle.max()) < 0.02
    assert len(said_of(truth, found)) == 1 and not len(found.kept)


def test_a_turned_camera_is_named_as_base_from_camera_is_to_be_corrected(drive):
    """The right mount is the given one times the rotation that is said."""
    truth, _, _ = drive
    wrong = se3.se3_exp(torch.tensor([0, 0, 0, 0, np.radians(0.8), 0], dtype=torch.float64))
    said = said_of(truth, refined(drive, truth @ wrong))[1]
    x, y, z = (float(number) for number in re.findall(r"(-?[0-9.]+)°", said)[1:4])
    assert abs(x) < 0.1 and -0.85 < y < -0.7 and abs(z) < 0.1


def test_wrong_matches_are_left_out_and_what_is_never_seen_twice_is_refused(drive):
    truth, xyz, seen = drive
    wrong = np.random.default_rng(2).random(len(seen.point)) < 0.1
    given = truth @ errors(len(truth), 0.03, 0.5)
    pixel = np.where(wrong[:, None], seen.pixel + 40.0, seen.pixel)
    found, clean = refined(drive, given, pixel=pixel), refined(drive, given)
    assert np.abs(found.poses - clean.poses).max() < 3e-3
    views = Views([CAMERA] * len(truth), given)
    _, once = np.unique(seen.point, return_index=True)
    with pytest.raises(InputError, match="too few points are shared"):
        adjusted(views, xyz, seen.only(once), given.numpy(), RefineOptions(), ROUNDS)


def test_unknown_images_keep_the_given_pose_on_the_right_mount(drive):
    truth, xyz, seen = drive
    given, blind = truth @ errors(len(truth), 0.03, 0.5) @ mount(0.0, 1.0), 7
    rows = seen.image != blind
    views = Views([CAMERA] * len(truth), given)
    found = adjusted(views, xyz, seen.only(rows), given.numpy(), RefineOptions(), ROUNDS)
    assert found.kept.tolist() == [blind]
    correction = torch.linalg.inv(given[blind]) @ torch.from_numpy(found.poses[blind])
    assert np.abs(se3.so3_log(correction[:3, :3]).numpy() - found.mount[:3]).max() < 1e-6


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("refined") / "drive")


def disturbed(frames, metres, degrees):
    """The frames of a bag, each with a pose of its own that is off."""
    off = errors(16, metres, degrees, seed=3)

    def source(wanted):
        for k, frame in enumerate(frames(wanted)):
            object.__setattr__(frame, "map_from_camera", frame.map_from_camera @ off[k])
            yield frame

    return source


def as_a_whole(poses, true):
    """true_from_map of poses [K, 4, 4] laid onto the true ones: by their directions, then by their centres."""
    u, _, v = torch.linalg.svd((true[:, :3, :3] @ poses[:, :3, :3].mT).sum(0))
    return se3.from_rotation_translation(u @ v, true[:, :3, 3].mean(0) - u @ v @ poses[:, :3, 3].mean(0))


def test_a_map_of_disturbed_poses_is_refined(bag, tmp_path):
    """On the plane z = 0."""
    sources = {}
    for refine in (None, RefineOptions(0.02, math.radians(0.5))):
        with PosedBag(bag) as frames:
            how = PosedMapOptions(refine=refine)
            work = WorkFolder(tmp_path / str(refine is None), {})
            sources[refine is not None] = points_of_posed_frames(disturbed(frames, 0.02, 0.5), work, how)
    off = {}
    for refined, posed in sources.items():
        true = torch.stack(
            [torch.from_numpy(pose_at((stamp - 1_700_000_000_000_000_000) / 1e9)) for stamp in posed.source.stamp_ns]
        )
        poses = posed.source.map_from_camera
        distance, angle = se3.pose_difference(true, as_a_whole(poses, true) @ poses)
        off[refined] = float(distance.median()), float(angle.median())
    assert off[True][0] < 0.5 * off[False][0] and off[True][1] < 0.5 * off[False][1]
    assert len(sources[True].source.observation_point) > len(sources[False].source.observation_point)
    assert "poses were refined: moved by" in sources[True].notes[0]


def test_command_says_what_moved_and_refuses_what_contradicts_itself(bag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pixloc_ros.load_extractor", lambda weights: FakeExtractor())
    command = ["map", "bag", str(bag), "-o", str(tmp_path / "m.pixmap")]
    assert main([*command, "--pose-std", "1", "0.1"]) == 2 and "give --refine, too" in capsys.readouterr().err
    assert main([*command, "--refine", "--poses", "images"]) == 2 and "leave it out" in capsys.readouterr().err
    assert main([*command, "--refine"]) == 0
    assert "poses were refined: moved by" in capsys.readouterr().out and len(Map.open(tmp_path / "m.pixmap").xyz) > 200

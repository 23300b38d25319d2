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
from pixloc_ros.mapping.build.bundle_adjustment import AdjustmentOptions, adjust
from pixloc_ros.mapping.build.observations import Observations, Views, project
from pixloc_ros.mapping.build.posed_bag import PosedBag
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames
from pixloc_ros.mapping.build.refinement import Refinement, RefineOptions, rigid_back

pytest.importorskip("pycolmap")
CAMERA = pinhole(640, 480, 500.0)


def errors(count, metres, degrees, seed=0):
    """Small motions [count, 4, 4] in random directions."""
    random = torch.Generator().manual_seed(seed)
    shift, turn = torch.nn.functional.normalize(torch.randn(2, count, 3, generator=random, dtype=torch.float64), dim=-1)
    return se3.se3_exp(torch.cat((metres * shift, math.radians(degrees) * turn), -1))


@pytest.fixture(scope="module")
def drive():
    """Poses along a bend, points before them, and what each pose sees of these, to 0.3 pixels."""
    random, count = np.random.default_rng(0), 24
    heading = torch.linspace(0, 0.9, count, dtype=torch.float64)
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


@pytest.mark.parametrize("mount_deg", [0.0, 1.0])
def test_adjusted_poses_agree_and_a_wrong_mount_is_found(drive, mount_deg):
    truth, xyz, seen = drive
    mount = errors(1, 0.0, mount_deg, seed=5)
    given = truth @ errors(len(truth), 0.03, 0.5) @ mount
    start = xyz + np.random.default_rng(1).normal(size=xyz.shape) * 0.1
    options = RefineOptions()
    views = Views([CAMERA] * len(truth), given)
    how = AdjustmentOptions(options.position_std / 3**0.5, (20.0, 4.0, 3.0), (5.0, 1.0, 1.0))
    found = adjust(views, start, seen, how)
    assert found.kept.mean() > 0.98 and np.median(found.error_px) < 0.4
    given_from_adjusted, turn, information = rigid_back(given, found.map_from_camera, options)
    distance, angle = (values.numpy() for values in se3.pose_difference(truth, given_from_adjusted @ found.map_from_camera))
    # Where the camera is turned, too, 18 m of path tell less of how the whole lies.
    assert np.median(distance) < 0.015 and np.degrees(np.median(angle)) < (0.3 if mount_deg else 0.1)
    off = turn - se3.so3_log(mount[0, :3, :3]).numpy()
    assert off @ information @ off < 16.3  # 99.9 %
    assert (turn @ information @ turn > 16.3) == (mount_deg > 0)


def test_a_turned_camera_is_named_as_base_from_camera_is_to_be_corrected(drive):
    """The right mount is the given one times the rotation that is said."""
    truth, _, _ = drive
    wrong = se3.se3_exp(torch.tensor([0, 0, 0, 0, np.radians(0.8), 0], dtype=torch.float64))
    _, turn, _ = rigid_back(truth @ wrong, truth, RefineOptions())
    said = Refinement(truth, np.zeros((24, 2)), turn, np.empty(0, np.int64), 0.1).notes[1]
    x, y, z = (float(number) for number in re.findall(r"(-?[0-9.]+)°", said)[1:4])
    assert abs(x) < 0.1 and -0.85 < y < -0.7 and abs(z) < 0.1


def test_wrong_matches_are_left_out_and_what_is_never_seen_twice_is_refused(drive):
    truth, xyz, seen = drive
    wrong = np.random.default_rng(2).random(len(seen.point)) < 0.1
    pixel = np.where(wrong[:, None], seen.pixel + 40.0, seen.pixel)
    views = Views([CAMERA] * len(truth), truth @ errors(len(truth), 0.03, 0.5))
    how = AdjustmentOptions(0.02, (20.0, 4.0, 3.0), (5.0, 1.0, 1.0))
    found = adjust(views, xyz, Observations(seen.image, seen.point, pixel), how)
    assert not found.kept[wrong].any() and found.kept[~wrong].mean() > 0.95
    free = adjust(views, xyz, seen, AdjustmentOptions())  # the first image stays
    assert torch.allclose(free.map_from_camera[0], views.map_from_camera[0], atol=1e-6)
    _, once = np.unique(seen.point, return_index=True)
    with pytest.raises(InputError, match="another one sees"):
        adjust(views, xyz, seen.only(once), how)


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
        back, _, _ = rigid_back(true, posed.source.map_from_camera, RefineOptions())
        distance, angle = se3.pose_difference(true, back @ posed.source.map_from_camera)
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

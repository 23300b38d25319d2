# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The rivals: PnP in closed scenes, and the pose of a clean simulated image from a wrong prior."""

import cv2
import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import rivals
from pixloc_ros.evaluation.degradation import Degradation, degraded
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.mapping import Map

LENSES = {
    "pinhole": (500.0, 510, 320, 240),
    "plumb_bob": (500.0, 510, 320, 240, -0.2, 0.05, 0.001, 0, 0),
    "equidistant": (300.0, 300, 320, 240, 0.02, 0.001, 0, 0),
}
CAMERAS = {model: Camera(model, 640, 480, torch.tensor(lens, dtype=torch.float64)) for model, lens in LENSES.items()}


def a_view(camera, count=300, noise_px=0.0, outliers=0, seed=0):
    """(map_from_camera, pixels, points): points in front of a camera far from the map's origin."""
    rng = np.random.default_rng(seed)
    pose = se3.se3_exp(torch.tensor([400.0, -250, 30, 0.3, -0.2, 0.9], dtype=torch.float64))
    pixels = torch.from_numpy(rng.uniform((20, 20), (620, 460), (count, 2)))
    rays, _ = camera.unproject(pixels)
    points = se3.transform(pose, rays * torch.from_numpy(rng.uniform(2, 15, (count, 1)))).numpy()
    pixels = pixels.numpy() + noise_px * rng.standard_normal((count, 2))
    pixels[:outliers] = rng.uniform((0, 0), (640, 480), (outliers, 2))
    return pose, pixels, points


@pytest.mark.parametrize("model", CAMERAS)
def test_pnp_is_exact_with_every_lens_despite_wrong_matches(model):
    pose, pixels, points = a_view(CAMERAS[model], outliers=120)
    prior = pose @ se3.se3_exp(torch.tensor([0.3, 0.2, -0.1, 0.05, 0.1, 0], dtype=torch.float64))
    found, covariance, inliers, matches = rivals.solve_pnp(pixels, points, CAMERAS[model], prior)
    metres, radians = se3.pose_difference(pose, found)
    assert float(metres) < 1e-6 and float(radians) < 1e-7
    assert 180 <= inliers < 190 and matches == 300
    assert bool((torch.linalg.eigvalsh(covariance) > 0).all())


def test_the_covariance_is_that_of_the_noise():
    nees = []
    for seed in range(40):
        pose, pixels, points = a_view(CAMERAS["pinhole"], 150, 0.3, seed=seed)
        found, covariance, _, _ = rivals.solve_pnp(pixels, points, CAMERAS["pinhole"], pose)
        error = se3.se3_log(se3.inverse(found) @ pose)
        nees.append(float(error @ torch.linalg.solve(covariance, error)) / 0.3**2)  # it counts on a whole pixel
    assert 4.5 < np.mean(nees) < 7.8


def test_too_few_or_nonsensical_matches_make_no_pose():
    pose, pixels, points = a_view(CAMERAS["pinhole"], 11)
    assert rivals.solve_pnp(pixels, points, CAMERAS["pinhole"], pose) is None
    assert rivals.solve_pnp(np.empty((0, 2)), np.empty((0, 3)), CAMERAS["pinhole"], pose) is None
    _, pixels, points = a_view(CAMERAS["pinhole"], 40, outliers=40)
    assert rivals.solve_pnp(pixels, points, CAMERAS["pinhole"], pose) is None
    assert rivals.solve_pnp(np.ones((40, 2)), np.ones((40, 3)), CAMERAS["pinhole"], pose) is None


def frames(scene, degradation=None):
    """(frame, map_from_camera) of the simulated drive."""
    with BagReader(scene.drive) as bag:
        truth = bag.truth()
        drive = bag if degradation is None else degraded(bag, degradation, clear_s=0.0)
        poses = dict(zip(truth.stamps_ns.tolist(), truth.map_from_body))
        return [(f, poses[f.stamp_ns] @ bag.base_from_camera) for f in drive.events() if isinstance(f, CameraFrame)]


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_finds_the_pose_of_a_clean_image_and_none_of_a_grey_one(scene, name):
    rival = rivals.RIVALS[name][1](Map.open(scene.map), scene.images)
    for k, (frame, true) in enumerate(frames(scene)[::4]):
        wrong = torch.tensor([0.06, -0.05, 0.03, 0.02, -0.03, 0.01], dtype=torch.float64) * (-1) ** k
        result = rival.localize_prepared(rival.prepare(frame.image, frame.camera), true @ se3.se3_exp(wrong))
        metres, radians = (float(v) for v in se3.pose_difference(true, result.map_from_camera))
        # Of the start's 0.037 rad. What ORB finds differs with the instructions of the processor: 0.0066 with AVX2.
        assert result.success and metres < 0.03 and radians < 0.008, (name, k, metres, radians)
        assert 0 < result.inlier_fraction <= 1 and result.points_used >= 12
    nothing = rival.localize_prepared(rival.prepare(np.full_like(frame.image, 90), frame.camera), true)
    assert not nothing.success and torch.equal(nothing.map_from_camera, true)


def test_images_of_another_size_are_tracked_too(scene):
    rival = rivals.KltPnp(Map.open(scene.map), scene.images)
    frame, true = frames(scene, Degradation("calibration", 0.5))[3]
    result = rival.localize_prepared(rival.prepare(frame.image, frame.camera), true)
    assert result.success and float(se3.pose_difference(true, result.map_from_camera)[0]) < 0.1
    half = cv2.resize(frame.image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    camera = frames(scene)[3][0].camera.scaled(0.5, 0.5, half.shape[1], half.shape[0])
    result = rival.localize_prepared(rival.prepare(half, camera), true)
    assert result.success and float(se3.pose_difference(true, result.map_from_camera)[0]) < 0.05


def test_missing_images_are_named(scene, tmp_path):
    with pytest.raises(InputError, match="--images"):
        rivals.OrbPnp(Map.open(scene.map), tmp_path)

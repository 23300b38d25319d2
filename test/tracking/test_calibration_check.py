# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Wrong focal lengths are seen: in one image of a small scene, and over many images by what a drive collects."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from alignment_scene import CAMERA, SIZE, perturbed, scene
from test_tracker import DEGRADED, TRACKING, Robot, odom_from_base, stamp

from pixloc_ros.alignment import AlignmentOptions, View, align
from pixloc_ros.alignment.cost import linearize
from pixloc_ros.alignment.focal_length import FocalLength, _system, _with_focal, estimate_focal_length
from pixloc_ros.alignment.robust import RobustLoss
from pixloc_ros.alignment.types import batched
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.tracking.calibration_check import CalibrationCheck, CalibrationCheckOptions
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import PreparedImage

OPTIONS = AlignmentOptions(iterations=60, stop_cells=1e-4)


@pytest.mark.parametrize("ratio", [0.95, 0.98, 1.0, 1.03])
def test_one_image_tells_the_focal_length(ratio):
    """Points at several depths: the focal length given is 1 / ratio of the right one."""
    pyramid, points, truth = scene(points=200)
    given = _with_focal(CAMERA, -math.log(ratio))
    found = align(View(pyramid, given, points), truth, OPTIONS)
    estimate = estimate_focal_length(View(pyramid, given, points), found.camera_from_map, OPTIONS)
    assert abs(math.exp(estimate.log_ratio) - ratio) < 2e-3


@pytest.mark.parametrize(
    "camera", [CAMERA, Camera.from_colmap("OPENCV_FISHEYE", *SIZE, [200.0, 210.0, 128.5, 96.5, 0.02, -0.01, 1e-3, 1e-4])]
)
def test_the_column_of_the_focal_length_is_the_derivative(camera):
    pyramid, points, truth = scene()
    pose = perturbed(truth, 0.1)[None]

    def at(ratio):
        scaled = _with_focal(camera, ratio)
        view = View(pyramid, scaled, batched(points))
        return linearize(view, 1, pose, RobustLoss("squared", 1.0), 0.0), scaled

    step = 1e-5
    (ahead, _), (behind, _), (now, scaled) = at(step), at(-step), at(0.0)
    both = now.valid & ahead.valid & behind.valid
    assert both.sum() > 100
    moved = (ahead.pixels - behind.pixels)[both] / (2 * step)
    torch.testing.assert_close(moved, (now.pixels - camera.params[2:4])[both], rtol=1e-6, atol=1e-6)
    hessian, _ = _system(now, scaled, 0.0, 0.0)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-9)
    np.testing.assert_allclose(hessian[:6, :6], now.hessian[0].numpy(), rtol=1e-9)


def test_points_at_one_depth_tell_nothing():
    pyramid, points, truth = scene(points=200)
    seen = se3.transform(truth, points.xyz)
    flat = se3.transform(se3.inverse(truth), seen / seen[:, 2:] * 4.0)
    estimate = estimate_focal_length(View(pyramid, CAMERA, replace(points, xyz=flat)), truth, OPTIONS)
    other = estimate_focal_length(View(pyramid, CAMERA, points), truth, OPTIONS)
    assert estimate is None or estimate.std > 5 * other.std


class Drive:
    """A check that is told what each image says of its own camera; one image every second and half a metre."""

    def __init__(self, **options):
        self.says, self.images, self.looked = (0.0, 0.0), 0, 0
        self.check = CalibrationCheck(self.estimate, CalibrationCheckOptions(**options))

    def estimate(self, prepared, alignment):
        """The image is always of a camera with log_ratio to CAMERA, whatever focal length it comes with."""
        self.looked += 1
        given = float(prepared.camera.params[0] / CAMERA.params[0])
        return FocalLength(self.says[0] - math.log(given), self.says[1])

    def see(self, log_ratio, std=0.002, camera=CAMERA, step_m=0.5, step_s=1.0):
        self.says = log_ratio, std
        self.images += 1
        pose = se3.se3_exp(torch.tensor([step_m * self.images, 0, 0, 0, 0, 0], dtype=torch.float64))
        self.used = self.check.corrected(PreparedImage(None, camera, {}))
        self.check.add(round(self.images * step_s * 1e9), self.used, SimpleNamespace(map_from_camera=pose, depth=10.0))
        return self.check.report


def test_a_wrong_focal_length_is_corrected_and_reported_with_what_to_do():
    drive, noise = Drive(), np.random.default_rng(0)
    for _ in range(2):
        report = drive.see(0.05 + noise.normal(0, 0.002))
        assert drive.used.camera is CAMERA
    assert report.wrong
    for _ in range(40):
        report = drive.see(0.05 + noise.normal(0, 0.002))
        # What is found in corrected images is the same again: the error does not come back, nor is it corrected twice.
        assert report.wrong and report.corrected and abs(math.log(report.focal_ratio) - 0.05) < 0.005
    assert report.images == 30 and report.std < 0.001
    torch.testing.assert_close(drive.used.camera.params[:2], CAMERA.params[:2] * math.exp(0.05), rtol=2e-3, atol=0)
    torch.testing.assert_close(drive.used.camera.params[2:], CAMERA.params[2:])
    assert "4.9% too short" in report.message and "calibrate the camera" in report.message


def test_honest_noise_and_small_errors_are_left_alone():
    noise = np.random.default_rng(1)
    for truth in (0.0, 0.002):
        drive = Drive()
        for _ in range(60):
            report = drive.see(truth + noise.normal(0, 0.01), std=0.01)
            assert drive.used.camera is CAMERA
        assert not report.wrong and report.message == "" and report.images == 30


def test_scattered_estimates_are_no_evidence_however_sure_each_is():
    drive, noise = Drive(), np.random.default_rng(2)
    for _ in range(10):
        report = drive.see(0.02 + noise.normal(0, 0.05), std=0.001)
    assert report.std > 0.01 and not report.wrong


def test_an_error_beyond_belief_is_reported_but_not_corrected():
    drive = Drive()
    for _ in range(10):
        report = drive.see(0.2)
    assert report.wrong and not report.corrected and drive.used.camera is CAMERA and "poses are wrong" in report.message


def test_images_too_soon_too_near_or_unsure_do_not_count():
    soon, near, unsure = Drive(), Drive(), Drive()
    for _ in range(20):
        soon.see(0.0, step_s=0.02)
        assert near.see(0.05, step_m=0.001) is None
        assert unsure.see(0.05, std=0.2) is None
    assert soon.looked == 8 and near.looked == 1 and unsure.looked == 20


def test_another_calibration_begins_anew():
    drive = Drive()
    for _ in range(10):
        drive.see(0.05)
    assert drive.used.camera is not CAMERA
    calibrated = _with_focal(CAMERA, 0.05)
    assert drive.see(0.05, camera=calibrated) is None and drive.used.camera is calibrated
    for _ in range(10):
        report = drive.see(0.05, camera=calibrated)
    assert not report.wrong


class LensRobot(Robot):
    """A robot whose images say of the focal length what `says` holds: (log_ratio, std)."""

    def __init__(self) -> None:
        super().__init__()
        self.says = 0.0, 1e-4
        self.localizer.prepare = lambda image, camera: PreparedImage(None, camera, {})
        check = CalibrationCheck(lambda prepared, alignment: FocalLength(*self.says))
        self.tracker = Tracker(self.localizer, self.tracker.options, calibration_check=check)
        self.tracker.add_odometry(stamp(0), odom_from_base(0))

    def see(self, *arguments, **answer):
        result = super().see(*arguments, **{"depth": 5.0, **answer})
        self.report = self.tracker.check_calibration()
        return result


def test_through_a_lens_beyond_correction_nothing_is_believed():
    robot = LensRobot().tracking()
    robot.says = 0.26, 1e-4
    results = [robot.see() for _ in range(40)]
    assert robot.report.wrong and not robot.report.corrected
    assert results[-1].state is not TRACKING and any("focal length" in result.message for result in results)


@pytest.mark.parametrize("says, believed", [((0.26, 1e-3), False), ((0.0, 1e-4), True)])
def test_after_a_gap_an_image_is_believed_through_the_right_lens_only(says, believed):
    """Dead reckoning has made the prior vague: what agrees with it must not be the view through another lens."""
    robot = LensRobot().tracking()
    for _ in range(3):
        assert robot.see(inlier_fraction=0.05).state is DEGRADED
    robot.says = says
    assert [robot.see().state is TRACKING for _ in range(3)] == [believed] * 3

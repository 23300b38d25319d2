# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The door: what a newcomer types after `import pixloc_ros as pixloc`."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

import pixloc_ros as pixloc
from pixloc_ros.evaluation.basin import median_depth
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.tracking.prior_std import WIDE_PRIOR

# A process of its own: in this one other tests have compiled everything already.
DRIVE = """
import sys
import torch
from numba.core.registry import CPUDispatcher
from pixloc_ros.io.bags import BagReader
from pixloc_ros.evaluation.offline import initial_covariance
from pixloc_ros import Localizer
from pixloc_ros.tracking.types import TrackState
from pixloc_ros.io.frames import CameraFrame


def compiled():
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("pixloc_ros")]
    functions = [value for module in modules for value in vars(module).values() if isinstance(value, CPUDispatcher)]
    return {(function.__module__, function.__name__, signature) for function in functions for signature in function.signatures}


with torch.inference_mode(), BagReader(sys.argv[2]) as bag:
    localizer = Localizer.open(sys.argv[1])
    localizer.warm_up()
    before = compiled()
    tracker = localizer.tracker()
    truth = bag.truth()
    tracker.initialize(truth.map_from_body[0], initial_covariance(), int(truth.stamps_ns[0]))
    states = []
    for event in bag.events():
        if not isinstance(event, CameraFrame):
            tracker.add_odometry(event.stamp_ns, event.odom_from_base, event.twist_covariance)
            continue
        if len(states) == 4:
            tracker.relocalize()
        states.append(tracker.track(event, bag.base_from_camera).state)
assert TrackState.TRACKING in states[:4] and TrackState.RELOCALIZING in states and states[-1] is TrackState.TRACKING, states
assert before and compiled() == before, compiled() - before
"""


@pytest.fixture(scope="module")
def drive(scene):
    """(map file, bag) of a short simulated drive."""
    return scene.map, scene.drive


@pytest.fixture(scope="module")
def localizer(drive):
    return pixloc.Localizer.open(str(drive[0]), weights="compact", preset="balanced")


@pytest.fixture(scope="module")
def frame(drive):
    """An image of the drive, and its true map_from_camera."""
    with BagReader(drive[1]) as bag:
        frame = next(bag.frames(lambda stamp: True))
        (pose,), _ = bag.truth().at(np.array([frame.stamp_ns]), 250_000_000)
        return frame, pose @ bag.base_from_camera


def test_the_import_is_light():
    code = "import sys, pixloc_ros; print(sorted({'torch', 'cv2', 'numba', 'rclpy'} & set(sys.modules)), dir(pixloc_ros))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.startswith("[] [") and all(name in found for name in ("Localizer", "build_map_from_colmap", "align"))


def test_every_name_is_there():
    assert all(getattr(pixloc, name) is not None for name in pixloc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Localiser'"):
        pixloc.Localiser  # noqa: B018


def test_one_image_is_located_with_and_without_a_prior(localizer, frame, tmp_path):
    frame, truth = frame
    rough = truth @ se3.se3_exp(torch.tensor([0.05, 0.0, 0.0, 0.0, 0.02, 0.0], dtype=torch.float64))
    held = localizer.locate(frame.image, frame.camera, rough.numpy(), 0.01 * np.eye(6))
    cv2.imwrite(str(tmp_path / "image.png"), frame.image[..., ::-1])
    free = localizer.locate(tmp_path / "image.png", frame.camera)
    for found in (localizer.locate(frame.image, frame.camera, prior=rough), held, free):
        assert found.success and not found.reason and not found.doubtful and 0.4 < found.quality <= 1
        metres, radians = se3.pose_difference(truth, found.map_from_camera)
        assert metres < 0.02 and radians < 0.01
        assert found.covariance.shape == (6, 6) and torch.isfinite(found.covariance).all()


def test_a_prior_holds_the_pose_as_far_as_it_is_said_to_be_right(localizer, frame):
    frame, truth = frame
    rough = truth @ se3.se3_exp(torch.tensor([0.05, 0.0, 0.0, 0.0, 0.02, 0.0], dtype=torch.float64))

    def moved(std):
        return float(se3.pose_difference(rough, localizer.locate(frame.image, frame.camera, rough, std).map_from_camera)[0])

    assert moved(pixloc.PriorStd(0.001, metres=1e-5)) < 0.002 and moved(pixloc.PriorStd(0.001, depth_share=1e-6)) < 0.002
    assert moved(pixloc.PriorStd(5, metres=0.3)) > 0.04
    # Nothing said: a wide factor, not none.
    unsaid = localizer.locate(frame.image, frame.camera, rough).map_from_camera
    wide = localizer.locate(frame.image, frame.camera, rough, WIDE_PRIOR).map_from_camera
    free = localizer.aligner.localize(frame.image, frame.camera, rough).map_from_camera
    assert torch.equal(unsaid, wide) and not torch.equal(unsaid, free)


def test_a_share_of_the_depth_is_of_the_points_that_the_prior_sees(localizer, frame):
    frame, truth = frame
    depth = median_depth(localizer.map, truth, frame.camera)
    poses = [
        localizer.locate(frame.image, frame.camera, truth, std).map_from_camera
        for std in (pixloc.PriorStd(2, depth_share=0.01), pixloc.PriorStd(2, metres=0.01 * depth))
    ]
    assert torch.allclose(*poses, atol=1e-9)


@pytest.mark.parametrize(
    "turn, words",
    [
        (
            torch.tensor([[0, -1, 0], [0, 0, -1], [1, 0, 0]]),
            "120° about (0.6, -0.6, 0.6): is camera_link given for camera_optical?",
        ),
        (torch.diag(torch.tensor([-1, 1, -1])), "180° about (0, 1, 0)"),
    ],
)
def test_a_prior_with_other_axes_is_said(localizer, frame, turn, words):
    frame, truth = frame
    prior = truth.clone()
    prior[:3, :3] = truth[:3, :3] @ turn.double()
    found = localizer.locate(frame.image, frame.camera, prior)
    assert not found.success and f"the prior seems turned by {words}" in found.reason


def test_what_cannot_be_located_says_why(localizer, frame):
    frame, truth = frame
    noise = np.random.default_rng(0).integers(0, 255, frame.image.shape, np.uint8)
    for found in (localizer.locate(noise, frame.camera, truth), localizer.locate(noise, frame.camera)):
        assert not found.success and found.reason in ("few points agree with the map", "nothing in the map looks like it")
    away = truth.clone()
    away[:3, 3] += 1e4
    found = localizer.locate(frame.image, frame.camera, away)
    assert not found.success and found.map_from_camera is None and found.quality == 0 and "no map points" in found.reason


def test_a_drive_is_tracked(localizer, drive):
    with BagReader(drive[1]) as bag:
        tracker, results = localizer.tracker(), []
        for event in bag.events():
            if isinstance(event, pixloc.CameraFrame):
                results.append(tracker.track(event, bag.base_from_camera))
                assert tracker.check_calibration() is None or not tracker.check_calibration().wrong
            else:
                tracker.add_odometry(event.stamp_ns, event.odom_from_base, event.twist_covariance)
    assert results[-1].state is pixloc.TrackState.TRACKING
    assert localizer.tracker().can_relocalize and not localizer.tracker(relocalization=False).can_relocalize


def test_a_map_of_a_bag(drive):
    pytest.importorskip("pycolmap")
    map_, report = pixloc.build_map_from_bag(drive[1], pixloc.load_extractor())
    assert len(map_.keyframe_names) == report.keyframes >= 2 and len(map_.xyz) > 50


def test_wrong_inputs_are_told_in_one_line(localizer, drive, frame):
    frame, truth = frame
    for call, message in (
        (lambda: pixloc.Localizer.open("none.pixmap"), "none.pixmap"),
        (lambda: pixloc.Localizer.open(drive[0], weights="none"), "no weights 'none'"),
        (
            lambda: pixloc.Localizer.open(drive[0], preset="exact"),
            "preset 'exact' is unknown: choose one of fast, balanced, accurate",
        ),
        (lambda: localizer.locate("none.png", frame.camera), "none.png"),
        (lambda: localizer.locate(frame.image[1:], frame.camera), "x"),
        (lambda: localizer.locate(frame.image, frame.camera, np.eye(3)), "prior"),
        (lambda: localizer.locate(frame.image, frame.camera, prior_covariance=np.eye(6)), "needs a prior"),
        (lambda: localizer.locate(frame.image, frame.camera, truth, np.eye(3)), "positive definite"),
        (lambda: localizer.locate(frame.image, frame.camera, truth, np.zeros((6, 6))), "positive definite"),
        (lambda: localizer.locate(frame.image, frame.camera, truth, np.full((6, 6), np.nan)), "positive definite"),
    ):
        with pytest.raises(pixloc.InputError, match=message):
            call()


def test_max_points_and_options_of_ones_own(drive):
    fast = pixloc.Localizer.open(drive[0], preset="fast", max_points=100)
    assert fast.aligner.options.max_points == 100 and fast.aligner.options.image_scale == 0.75
    assert fast.map_name == "site.pixmap" and fast.network.startswith("compact by ")


def test_no_image_waits_for_the_compiler(drive):
    """Tracked from a pose, and found in the whole map, after the warm-up: nothing new is compiled."""
    run = subprocess.run([sys.executable, "-c", DRIVE, *map(str, drive)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr

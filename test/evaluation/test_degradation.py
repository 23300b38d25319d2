# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives made worse: what changes and by how much, what does not, and that it is the same every time."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_scene import invented_photo

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.degradation import CONDITIONS, KINDS, Degradation, degraded
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.frames import CameraFrame, OdometryMessage, UnusableFrame
from pixloc_ros.io.trajectory import Trajectory

IMAGE = invented_photo(0, 320, 240)
CAMERA = Camera("plumb_bob", 320, 240, torch.tensor([300.0, 310, 160, 120, -0.1, 0.01, 0.001, 0.002, 0], dtype=torch.float64))
T0 = 10**18
IMAGE_KINDS = [name for name, kind in KINDS.items() if kind.image]


def a_bag(seconds=8, rate=10, image=IMAGE, step=None):
    """A stand-in: frames, and odometry at the same stamps; step: motion of the base in between."""
    events, poses, pose = [], [], torch.eye(4, dtype=torch.float64)
    for k in range(seconds * rate):
        stamp_ns = T0 + k * 10**9 // rate
        events += [OdometryMessage(stamp_ns, pose), CameraFrame(stamp_ns, image, CAMERA)]
        poses.append((stamp_ns, pose))
        pose = pose if step is None else pose @ step
    return SimpleNamespace(
        events=lambda: iter(events),
        image_count=seconds * rate,
        odometry_topic="/odom",
        image_stamps=lambda: (e.stamp_ns for e in events if isinstance(e, CameraFrame)),
        odometry=lambda: Trajectory.from_poses(poses),
    )


def frames(condition, seed=0, **bag):
    return [e for e in degraded(a_bag(**bag), condition, seed).events() if isinstance(e, CameraFrame)]


def images(condition, seed=0):
    return [e.image for e in frames(condition, seed)]


def image_of(kind, severity, image=IMAGE, seed=0):
    return degraded(a_bag(), Degradation(kind, severity), seed).change.image(image, T0 + 3 * 10**9)


def difference(a, b):
    return np.abs(a.astype(float) - b).mean()


# ---- named conditions


@pytest.mark.parametrize("condition", CONDITIONS)
def test_images_change_after_the_first_second_and_nothing_else_does(condition):
    bag = degraded(a_bag(), condition)
    assert bag.odometry_topic == "/odom" and bag.image_count == (20 if condition == "every fourth image" else 80)
    events = list(bag.events())
    assert sum(isinstance(e, OdometryMessage) for e in events) == 80
    found, again = images(condition), images(condition)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert all(i.shape == IMAGE.shape and i.dtype == np.uint8 for i in found)
    changed = [not np.array_equal(i, IMAGE) for i in found]
    assert not any(changed[:2])
    if condition in ("blurred", "dark", "occluded"):
        assert not any(changed[:10]) and all(changed[10:])
        assert not np.array_equal(found[20], images(condition, seed=1)[20])


def test_blank_images_come_in_bursts():
    blank = [abs(i.astype(float).mean() - 128) < 1 and i.std() < 5 for i in images("blank bursts")]
    assert blank[10:18] == [True] * 8 and blank[18:35] == [False] * 17 and blank[35:43] == [True] * 8


# ---- all kinds


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_at_severity_0(kind):
    bag = a_bag(step=se3.se3_exp(torch.tensor([0.1, 0, 0, 0, 0, 0.01], dtype=torch.float64)))
    same = degraded(bag, Degradation(kind, 0))
    assert all(a is b for a, b in zip(same.events(), bag.events(), strict=True))
    assert list(same.image_stamps()) == list(bag.image_stamps()) and same.image_count == bag.image_count
    assert torch.equal(same.odometry().map_from_body, bag.odometry().map_from_body)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_more_is_worse_and_the_same_every_time(kind):
    colour = np.stack((IMAGE, 255 - IMAGE, IMAGE // 2), -1)
    for image in (IMAGE, colour):
        before = image.copy()
        results = [image_of(kind, severity, image) for severity in KINDS[kind].severities]
        away = [difference(result, image) for result in results]
        assert away == sorted(away) and away[0] > 0 and away[-1] > 1.5 * away[0]
        assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
        assert np.array_equal(results[1], image_of(kind, KINDS[kind].severities[1], image))
        assert np.array_equal(image, before)


def test_blur_lowers_the_gradients_along_one_straight_streak():
    energy = [float((cv2.Laplacian(image_of("blur", s) if s else IMAGE, cv2.CV_64F) ** 2).mean()) for s in (0, 5, 15, 30, 45)]
    assert all(b < 0.9 * a for a, b in zip(energy, energy[1:]))
    point = np.zeros((101, 101), np.uint8)
    point[50, 50] = 255
    for length in (5, 15, 30):
        blurred = image_of("blur", length, point)
        rows, columns = np.nonzero(blurred)
        assert abs(np.hypot(np.ptp(rows), np.ptp(columns)) - length) < 1.5
        moments = cv2.moments(blurred)
        assert abs(moments["m10"] / moments["m00"] - 50) < 0.3 and abs(moments["m01"] / moments["m00"] - 50) < 0.3


def test_darkness_noise_and_occlusion_are_as_strong_as_they_say():
    white, grey = np.full((240, 320), 255, np.uint8), np.full((240, 320), 128, np.uint8)
    for stops in KINDS["dark"].severities:
        assert image_of("dark", stops, white).mean() == pytest.approx(255 / 2**stops, rel=0.02)
    for sigma in (10, 20):
        assert image_of("noise", sigma, grey).std() == pytest.approx(sigma, rel=0.03)
        assert image_of("noise", sigma, grey).mean() == pytest.approx(128, abs=0.3)
    before = None
    for percent in KINDS["occlusion"].severities:
        covered = image_of("occlusion", percent) != IMAGE
        assert percent / 100 - 0.02 < covered.mean() < percent / 100 + 0.17
        assert before is None or covered[before].mean() > 0.98
        before = covered


def test_dropped_frames_are_as_many_as_told_and_stay_dropped():
    kept = {}
    for percent in (0, *KINDS["drops"].severities):
        bag = degraded(a_bag(seconds=101), Degradation("drops", percent))
        stamps = [e.stamp_ns for e in bag.events() if isinstance(e, CameraFrame)]
        assert stamps == list(bag.image_stamps()) and len(stamps) == bag.image_count
        assert stamps[:10] == [T0 + k * 10**8 for k in range(10)]
        assert (len(stamps) - 10) / 1000 == pytest.approx(1 - percent / 100, abs=0.04)
        kept[percent] = set(stamps)
    assert kept[95] < kept[90] < kept[75] < kept[50] < kept[0]
    assert sum(isinstance(e, OdometryMessage) for e in bag.events()) == 1010


def test_a_calibration_error_stretches_the_focal_length_alone():
    for frame in frames(Degradation("calibration", 5)):
        wrong = frame.camera
        torch.testing.assert_close(wrong.params[:2], CAMERA.params[:2] * 1.05, rtol=1e-12, atol=0)
        assert torch.equal(wrong.params[2:], CAMERA.params[2:]) and wrong.model == CAMERA.model and wrong.width == 320
        assert frame.image is IMAGE


@given(st.integers(1, 400))
def test_a_time_offset_moves_the_images_stamps_exactly_and_keeps_the_order(milliseconds):
    bag = degraded(a_bag(), Degradation("time", milliseconds))
    events = list(bag.events())
    later = [e.stamp_ns for e in events if isinstance(e, CameraFrame)]
    assert later == [T0 + k * 10**8 + milliseconds * 10**6 for k in range(80)] == list(bag.image_stamps())
    assert [e.stamp_ns for e in events if isinstance(e, OdometryMessage)] == [T0 + k * 10**8 for k in range(80)]
    order = [(e.stamp_ns, isinstance(e, CameraFrame)) for e in events]
    assert order == sorted(order)


def test_a_broken_image_is_late_or_missing_like_any_other():
    bag = a_bag()
    bag.events = lambda: iter([UnusableFrame(T0, "torn"), OdometryMessage(T0 + 5 * 10**6, torch.eye(4, dtype=torch.float64))])
    late = list(degraded(bag, Degradation("time", 10)).events())
    assert [type(e) for e in late] == [OdometryMessage, UnusableFrame] and late[1].stamp_ns == T0 + 10**7
    assert len(list(degraded(bag, Degradation("blur", 5)).events())) == 2


def test_odometry_noise_grows_as_a_random_walk_with_way_and_turn():
    def errors(axis, percent, steps=2000):
        """Errors (x, y, yaw) over each metre, or radian, of a drive: ten steps of a tenth along or about an axis."""
        step = se3.se3_exp(torch.eye(6, dtype=torch.float64)[axis] / 10)
        bag = a_bag(seconds=steps // 10, step=step)
        true = bag.odometry().map_from_body
        noisy = degraded(bag, Degradation("odometry", percent)).odometry().map_from_body
        begin, end = slice(0, -10, 10), slice(10, None, 10)
        motions = [se3.inverse(poses[begin]) @ poses[end] for poses in (true, noisy)]
        return se3.se3_log(se3.inverse(motions[0]) @ motions[1]).numpy()[:, [0, 1, 5]]

    after_a_metre, after_a_radian = errors(0, 20), errors(5, 20)
    assert after_a_metre.std(0)[:2] == pytest.approx([0.2, 0.2], rel=0.15) and np.allclose(after_a_metre[:, 2], 0, atol=1e-9)
    assert after_a_radian.std(0)[2] == pytest.approx(0.2, rel=0.15) and np.allclose(after_a_radian[:, :2], 0, atol=1e-9)
    assert np.abs(after_a_metre.mean(0)).max() < 0.05
    # The same dice at every severity.
    np.testing.assert_allclose(errors(0, 5, 100), after_a_metre[:9] / 4, atol=1e-9)


def test_odometry_noise_is_the_same_in_the_stream_and_leaves_images_and_standstill_alone():
    moving = a_bag(step=se3.se3_exp(torch.tensor([0.1, 0, 0, 0, 0, 0.02], dtype=torch.float64)))
    bag = degraded(moving, Degradation("odometry", 20))
    streamed = [e.odom_from_base for e in bag.events() if isinstance(e, OdometryMessage)]
    torch.testing.assert_close(torch.stack(streamed), bag.odometry().map_from_body, rtol=0, atol=0)
    assert all(e.image is IMAGE for e in bag.events() if isinstance(e, CameraFrame))
    assert float(se3.pose_difference(streamed[-1], moving.odometry().map_from_body[-1])[0]) > 0.05
    still = degraded(a_bag(), Degradation("odometry", 20)).odometry().map_from_body
    assert torch.equal(still, torch.eye(4, dtype=torch.float64).expand_as(still))


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match="nominal"):
        degraded(a_bag(), "fog")
    with pytest.raises(InputError, match="choose of blur, dark"):
        Degradation("fog", 1)
    for kind, severity in (("occlusion", 95), ("blur", -1), ("noise", float("nan")), ("drops", 100)):
        with pytest.raises(InputError, match="makes no sense"):
            Degradation(kind, severity)
    assert str(Degradation("blur", 5)) == "5 px of blur" and str(Degradation("compression", 98)) == "JPEG quality 2"
    assert str(Degradation("time", 0)) == "as recorded"

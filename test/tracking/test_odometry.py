# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The odometry buffer and the motion prior made from it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixloc_ros.geometry import se3
from pixloc_ros.tracking.motion_prior import KnownPose, MotionOptions, predict
from pixloc_ros.tracking.odometry import OdometryBuffer, OdometryNoise, OdometryOptions, OdometryUnavailable

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def planar(x: float, y: float, yaw: float) -> torch.Tensor:
    return se3.from_rotation_translation(
        se3.so3_exp(torch.tensor([0.0, 0.0, yaw], dtype=torch.float64)), torch.tensor([x, y, 0.0], dtype=torch.float64)
    )


def stamp(seconds: float) -> int:
    return START + round(seconds * SECOND)


def driven(rate: int = 50, seconds: float = 2.0, speed: float = 1.0, turn: float = 0.5, **options) -> OdometryBuffer:
    """A buffer filled by a drive along an arc, the body twist constant."""
    buffer = OdometryBuffer(OdometryOptions(**options))
    for i in range(round(seconds * rate) + 1):
        assert buffer.add(stamp(i / rate), arc(i / rate, speed, turn)).accepted
    return buffer


def arc(t: float, speed: float = 1.0, turn: float = 0.5) -> torch.Tensor:
    return se3.se3_exp(torch.tensor([speed * t, 0, 0, 0, 0, turn * t], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 2))
def test_lookup_interpolates_on_the_path(t):
    sample = driven().lookup(stamp(t))
    assert sample.stamp_ns == stamp(t) and sample.extrapolated_s == 0.0
    distance, angle = se3.pose_difference(sample.odom_from_base, arc(t))
    assert distance < 1e-4 and angle < 1e-6  # the chord of a 20 ms step
    assert sample.distance_m == pytest.approx(t, abs=1e-3)
    assert sample.turn_rad == pytest.approx(0.5 * t, abs=1e-6)


def test_short_extrapolation_is_marked_and_long_one_refused():
    buffer = driven()
    assert torch.equal(buffer.lookup(stamp(1.0)).odom_from_base, arc(1.0))
    assert buffer.covers(stamp(2.0)) and not buffer.covers(stamp(2.01))
    sample = buffer.lookup(stamp(2.08))
    assert sample.extrapolated_s == pytest.approx(0.08)
    distance, angle = se3.pose_difference(sample.odom_from_base, arc(2.08))
    assert distance < 3e-3 and angle < 1e-6
    assert buffer.age_s(stamp(2.08)) == pytest.approx(0.08)
    with pytest.raises(OdometryUnavailable, match=r"0\.110 s older than the image"):
        buffer.lookup(stamp(2.11))
    with pytest.raises(OdometryUnavailable, match="begins"):
        buffer.lookup(stamp(-0.001))


def test_an_empty_or_single_buffer_tells_no_motion():
    buffer = OdometryBuffer()
    assert math.isinf(buffer.age_s(START)) and not buffer.covers(START)
    with pytest.raises(OdometryUnavailable, match="no odometry"):
        buffer.lookup(START)
    buffer.add(START, torch.eye(4, dtype=torch.float64))
    assert buffer.lookup(START).distance_m == 0.0
    with pytest.raises(OdometryUnavailable, match="single"):
        buffer.lookup(START + 1)


def test_a_hole_is_not_bridged():
    buffer = OdometryBuffer(OdometryOptions(max_gap_s=0.5))
    buffer.add(stamp(0), planar(0, 0, 0))
    buffer.add(stamp(0.6), planar(0.3, 0, 0))
    with pytest.raises(OdometryUnavailable, match=r"hole of 0\.600 s"):
        buffer.lookup(stamp(0.3))
    assert buffer.lookup(stamp(0.6)).distance_m == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("pose", "word"),
    [
        (torch.full((4, 4), math.nan), "NaN"),
        (planar(math.inf, 0, 0), "infinite"),
        (2 * torch.eye(4), "rotation"),
        (torch.eye(3), "4x4"),
    ],
)
def test_bad_poses_are_refused_and_change_nothing(pose, word):
    buffer = driven()
    report = buffer.add(stamp(2.02), pose)
    assert not report.accepted and not report.reset and word in report.message
    assert buffer.newest_stamp_ns == stamp(2.0)


def test_late_and_repeated_samples_are_refused():
    buffer = driven()
    for t in (2.0, 1.99, 1.01):
        report = buffer.add(stamp(t), arc(t))
        assert not report.accepted and "not newer" in report.message
    assert buffer.newest_stamp_ns == stamp(2.0) and len(buffer) == 101


@pytest.mark.parametrize(
    ("seconds", "pose", "word"), [(0.5, arc(0.5), "back in time by 1.500 s"), (2.02, planar(30, 0, 0), "jumped")]
)
def test_a_clock_that_goes_back_or_a_pose_that_jumps_empties_the_buffer(seconds, pose, word):
    buffer = driven()
    before = buffer.lookup(stamp(2.0))
    report = buffer.add(stamp(seconds), pose)
    assert report.accepted and report.reset and word in report.message and len(buffer) == 1
    with pytest.raises(OdometryUnavailable, match="reset"):
        buffer.motion_between(before, buffer.lookup(stamp(seconds)))


def test_the_window_bounds_the_length_but_not_the_memory_of_the_path():
    buffer = driven(seconds=1.0, window_s=0.5)
    first = buffer.lookup(stamp(0.6))
    for i in range(51, 1000):
        buffer.add(stamp(i / 50), arc(i / 50))
        assert len(buffer) <= 27
    with pytest.raises(OdometryUnavailable, match="begins"):
        buffer.lookup(stamp(1.0))
    last = buffer.lookup(stamp(19.5))
    motion, covariance = buffer.motion_between(first, last)  # first left the window long ago
    torch.testing.assert_close(motion, se3.inverse(arc(0.6)) @ arc(19.5), atol=1e-4, rtol=0)
    assert covariance[0, 0] > (0.05 * 18.9) ** 2
    assert buffer.lookup(stamp(999 / 50 - 0.5)).extrapolated_s == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-2 * SECOND, 2 * SECOND), min_size=1, max_size=40), st.integers(0, 4 * SECOND))
def test_whatever_arrives_the_buffer_stays_ordered_and_lookups_are_sane(steps, ahead):
    buffer = OdometryBuffer(OdometryOptions(window_s=3.0))
    now = START
    for step in steps:
        now += step
        newest = buffer.newest_stamp_ns
        report = buffer.add(now, planar(now % 7 * 0.01, 0, 0))
        assert report.accepted or (newest is not None and now <= newest)
        assert report.accepted or report.message
        stamps = [sample.stamp_ns for sample in buffer._samples]
        assert stamps == sorted(set(stamps))
        assert len(stamps) < 3 or stamps[-1] - stamps[1] <= 3 * SECOND
        distances = [sample.distance_m for sample in buffer._samples]
        assert distances == sorted(distances)
    try:
        sample = buffer.lookup(START + ahead)
    except OdometryUnavailable as unavailable:
        assert str(unavailable)
    else:
        assert sample.stamp_ns == START + ahead and torch.isfinite(sample.odom_from_base).all()
        assert sample.extrapolated_s <= 0.1


def test_motion_and_its_noise():
    noise = OdometryNoise(0.1, 0.0, 0.0, 0.2, 0.0, 0.0)
    buffer = driven(speed=1.0, turn=0.5, noise=noise)
    start, end = buffer.lookup(stamp(0.5)), buffer.lookup(stamp(1.5))
    motion, covariance = buffer.motion_between(start, end)
    torch.testing.assert_close(motion, arc(1.0), atol=1e-6, rtol=0)
    rotation_std = 0.2 * 0.5
    assert covariance[5, 5].sqrt() == pytest.approx(rotation_std, rel=1e-3)
    assert covariance[0, 0].sqrt() == pytest.approx(math.hypot(0.1, 0.5 * rotation_std), rel=1e-3)
    back, covariance_back = buffer.motion_between(end, start)
    torch.testing.assert_close(back, se3.inverse(motion))
    torch.testing.assert_close(covariance_back, covariance)
    still, covariance = buffer.motion_between(end, end)
    torch.testing.assert_close(still, torch.eye(4, dtype=torch.float64))
    assert not covariance.any()


def test_reported_velocity_variance_counts_unless_it_is_a_placeholder():
    quiet = OdometryNoise(0, 0, 0, 0, 0, 0)
    buffer = OdometryBuffer(OdometryOptions(noise=quiet))
    reported = torch.diag(torch.tensor([0.04, 0.01, 1e6, -1.0, math.nan, 0.09]))
    for i in range(3):
        buffer.add(stamp(i * 0.5), torch.eye(4, dtype=torch.float64), reported)
    _, covariance = buffer.motion_between(buffer.lookup(stamp(0)), buffer.lookup(stamp(0.5)))
    expected = torch.tensor([0.04, 0.01, 0, 0, 0, 0.09], dtype=torch.float64) * 0.25
    torch.testing.assert_close(covariance, torch.diag(expected), atol=1e-9, rtol=1e-6)


def test_extrapolation_costs_certainty():
    buffer = driven()
    start = buffer.lookup(stamp(1.0))
    _, sure = buffer.motion_between(start, buffer.lookup(stamp(2.0)))
    _, guessed = buffer.motion_between(start, buffer.lookup(stamp(2.1)))
    assert guessed[0, 0] > sure[0, 0] + 0.9 * (0.5 * 3.0 * 0.1**2) ** 2


# ---- the prior


def known(t: float, pose: torch.Tensor, odometry=None, std: float = 0.01) -> KnownPose:
    return KnownPose(stamp(t), pose, std**2 * torch.eye(6, dtype=torch.float64), odometry)


def test_prior_from_odometry_moves_the_pose_and_its_covariance():
    buffer = driven(noise=OdometryNoise(0, 0, 0, 0, 0, 0))
    map_from_odom = planar(5, 3, 2)
    start = known(0.5, map_from_odom @ arc(0.5), buffer.lookup(stamp(0.5)), std=0.1)
    prior = predict(start, None, stamp(1.5), buffer.lookup(stamp(1.5)), buffer, MotionOptions())
    assert prior.source == "odometry" and prior.age_s == pytest.approx(1.0)
    torch.testing.assert_close(prior.map_from_base, map_from_odom @ arc(1.5), atol=1e-6, rtol=0)
    # A wrong heading at the start displaces the end sideways by the way travelled.
    generator = torch.Generator().manual_seed(0)
    errors = 1e-4 * torch.randn(20000, 6, generator=generator, dtype=torch.float64)
    moved = start.map_from_base @ se3.se3_exp(errors) @ se3.inverse(arc(0.5)) @ arc(1.5)
    end = se3.se3_log(se3.inverse(prior.map_from_base) @ moved)
    torch.testing.assert_close(prior.covariance, end.mT @ end / 20000 * 1e6, atol=6e-4, rtol=0)


def test_prior_without_odometry_keeps_the_velocity():
    buffer = OdometryBuffer()
    before, last = known(0.0, arc(0.0)), known(0.2, arc(0.2))
    prior = predict(last, before, stamp(0.5), None, buffer, MotionOptions())
    assert prior.source == "constant velocity"
    torch.testing.assert_close(prior.map_from_base, arc(0.5), atol=1e-9, rtol=0)
    assert prior.covariance[0, 0].sqrt() > 0.5 * 3.0 * 0.3**2


@pytest.mark.parametrize(("seconds", "turn_rate"), [(0.2, 0.0), (0.2, 1.5), (0.3, 0.5), (0.1, 0.5)])
@pytest.mark.parametrize("before_std", [0.01, 0.002])
def test_prior_from_the_velocity_is_as_uncertain_as_the_two_poses_make_it(seconds, turn_rate, before_std):
    """The mean squared error, in standard deviations, is then the number of degrees of freedom, 6."""
    options = MotionOptions(acceleration=0.0, angular_acceleration=0.0)
    times, count = (0.0, 0.2, 0.2 + seconds), 400
    truth = [arc(t, turn=turn_rate) for t in times]
    generator = torch.Generator().manual_seed(0)
    squared = []
    for _ in range(count):
        noise = torch.randn(2, 6, generator=generator, dtype=torch.float64) * torch.tensor([[before_std], [0.01]])
        start, last = (
            known(t, pose @ se3.se3_exp(e), std=std) for t, pose, e, std in zip(times, truth, noise, (before_std, 0.01))
        )
        prior = predict(last, start, stamp(times[2]), None, OdometryBuffer(), options)
        assert prior.source == "constant velocity"
        error = se3.se3_log(se3.inverse(prior.map_from_base) @ truth[2])
        squared.append(float(error @ torch.linalg.solve(prior.covariance, error)))
    # Of 400 sums of 6 squares the mean has a standard deviation of 0.17.
    assert np.mean(squared) == pytest.approx(6.0, abs=0.55)


@pytest.mark.parametrize(("before_s", "now_s"), [(None, 0.3), (-0.6, 0.3), (0.0, 0.9), (0.0, 0.1)])
def test_prior_stays_where_it_was_when_the_velocity_says_nothing(before_s, now_s):
    before = None if before_s is None else known(before_s, arc(before_s))
    prior = predict(known(0.2, arc(0.2)), before, stamp(now_s), None, OdometryBuffer(), MotionOptions())
    assert prior.source == "static"
    torch.testing.assert_close(prior.map_from_base, arc(0.2))
    assert prior.covariance[0, 0].sqrt() == pytest.approx(math.hypot(0.01, abs(now_s - 0.2)), rel=1e-6)


def test_prior_falls_back_when_the_odometry_was_reset():
    buffer = driven()
    start = known(1.9, arc(1.9), buffer.lookup(stamp(1.9)))
    buffer.add(stamp(2.02), planar(100, 0, 0))
    prior = predict(start, None, stamp(2.02), buffer.lookup(stamp(2.02)), buffer, MotionOptions())
    assert prior.source == "static"
    torch.testing.assert_close(prior.map_from_base, arc(1.9))


FORWARD, TURNING, NOTHING = np.array([1.0, 0, 0, 0, 0, 0]), np.array([1.0, 0, 0, 0, 0, 0.5]), np.zeros(6)


@pytest.mark.parametrize(
    ("speed", "turn", "twist", "empty", "text"),
    [
        (1.0, 0.5, NOTHING, (True, True), "linear and angular twist is zero although its poses move"),
        (1.0, 0.5, FORWARD, (False, True), "angular twist is zero"),
        (1.0, 0.5, TURNING, (False, False), ""),
        (1.0, 0.0, FORWARD, (False, False), ""),
        (0.05, 0.05, NOTHING, (False, False), ""),  # what a standing robot's odometry may drift by
        (0.0, 0.0, NOTHING, (False, False), ""),
        (0.0, 0.0, TURNING, (False, False), "poses stand still while its twist moves"),
        (1.0, 0.5, np.full(6, np.nan), (False, False), ""),
        (1.0, 0.5, None, (False, False), ""),
    ],
)
def test_twists_that_do_not_fit_the_poses(speed, turn, twist, empty, text):
    buffer, covariance = OdometryBuffer(), 0.04 * torch.eye(6, dtype=torch.float64)
    for i in range(101):
        buffer.add(stamp(i / 50), arc(i / 50, speed, turn), covariance, twist)
    assert (
        buffer.twist_check.empty == empty
        and text in buffer.twist_check.problem
        and bool(text) == bool(buffer.twist_check.problem)
    )
    velocity, _ = buffer.velocity()
    assert velocity.tolist() == pytest.approx([speed, 0, 0, 0, 0, turn], abs=1e-6)
    known = [0.0 if part else 0.04 for part in empty]
    assert buffer.lookup(stamp(2.0)).twist_variance.tolist() == pytest.approx(np.repeat(known, 3).tolist())


def test_an_empty_twist_is_remembered_while_the_robot_stands_until_a_driver_fills_it_in():
    buffer = OdometryBuffer()
    for i in range(400):
        driver = TURNING if i >= 300 else NOTHING
        buffer.add(stamp(i / 50), arc(min(i, 100) / 50 + max(i - 300, 0) / 50), None, driver)
        assert (buffer.twist_check.empty == (True, True)) == (i == 299) or i not in (299, 399)
    assert buffer.twist_check.problem == ""

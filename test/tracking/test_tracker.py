# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tracker's states and gates, driven by an aligner with given answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.tracking.alignment_judge import STATISTICS, AlignmentJudge
from pixloc_ros.tracking.options import TrackerOptions
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import FrameAlignment, TrackState

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
CAMERA = Camera("pinhole", 8, 6, torch.tensor([5.0, 5.0, 3.5, 2.5], dtype=torch.float64))
IMAGE = np.zeros((6, 8), np.uint8)
# The camera looks along the robot's x axis, ahead of and above its centre.
BASE_FROM_CAMERA = torch.tensor([[0, 0, 1, 0.2], [-1, 0, 0, 0], [0, -1, 0, 0.5], [0, 0, 0, 1]], dtype=torch.float64)
EYE6 = torch.eye(6, dtype=torch.float64)
JUDGE = AlignmentJudge.by_hand()
INITIALIZING, TRACKING, DEGRADED, LOST, RELOCALIZING = TrackState


def likely(inliers):
    """What the judge by hand says of a share of points that agree."""
    statistics = np.zeros(1 + len(STATISTICS))
    statistics[STATISTICS.index("agreement, level 3")] = np.log10(inliers + 0.02)
    return JUDGE.probability(statistics)


def stamp(seconds: float) -> int:
    return START + round(seconds * SECOND)


def shifted(x: float, y: float = 0.0, yaw: float = 0.0) -> torch.Tensor:
    return se3.from_rotation_translation(
        se3.so3_exp(torch.tensor([0, 0, yaw], dtype=torch.float64)), torch.tensor([x, y, 0], dtype=torch.float64)
    )


MAP_FROM_ODOM = shifted(4.0, -2.0, 1.0)


def odom_from_base(t: float) -> torch.Tensor:
    return se3.se3_exp(torch.tensor([0.5 * t, 0, 0, 0, 0, 0.3 * t], dtype=torch.float64))


def map_from_base(t: float) -> torch.Tensor:
    return MAP_FROM_ODOM @ odom_from_base(t)


def alignment(map_from_camera: torch.Tensor, inliers: float = 0.9, success: bool = True, cost: float = 0.01) -> FrameAlignment:
    """One that determines the pose well, judged by hand."""
    quality = cost, inliers, 0.8, 300, 5
    probability = likely(inliers)
    return FrameAlignment(map_from_camera, 1e-6 * EYE6, success, "converged", *quality, probability=probability)


class NumberedAligner:
    """Reads the number of an image from its pixels and answers with its pose of the camera, where the start is near enough."""

    def __init__(self, map_from_camera: torch.Tensor, inliers: float = 0.9, reach_m: float = math.inf) -> None:
        self.poses, self.inliers, self.reach_m = map_from_camera, inliers, reach_m

    def prepare(self, image, camera):
        return image

    def localize_prepared(self, image, map_from_camera, prior_covariance=None, motion=None):
        pose = self.poses[int(image[0, 0])]
        found = float(se3.pose_difference(pose, map_from_camera)[0]) < self.reach_m
        return alignment(pose if found else map_from_camera, self.inliers, found)


class FakeLocalizer:
    """Finds the pose it is given, if its start is near enough; remembers what it was asked."""

    def __init__(self) -> None:
        self.answer = alignment(map_from_base(0))
        self.reach_m = 0.5
        self.starts: list[torch.Tensor] = []
        self.covariances: list[torch.Tensor | None] = []

    def prepare(self, image, camera):
        return image

    def localize_prepared(self, image, map_from_camera, prior_covariance=None, motion=None):
        self.starts.append(map_from_camera @ se3.inverse(BASE_FROM_CAMERA))
        self.covariances.append(prior_covariance)
        if se3.pose_difference(self.starts[-1], self.answer.map_from_camera)[0] > self.reach_m:
            return replace(self.answer, success=False, reason="points", map_from_camera=map_from_camera)
        return replace(self.answer, map_from_camera=self.answer.map_from_camera @ BASE_FROM_CAMERA)


class Robot:
    """A tracker on its drive. `see` is one image in which the robot is where it should be, unless given otherwise."""

    def __init__(self, odometry: bool = True, **options) -> None:
        self.localizer = FakeLocalizer()
        floors = {"translation_floor": 0.01, "rotation_floor": 0.002}
        options = {**floors, **{f"prior_{name}": value for name, value in floors.items()}, **options}
        self.tracker = Tracker(self.localizer, TrackerOptions(**options))
        self.odometry = odometry
        self.t = 0.0
        if odometry:
            self.tracker.add_odometry(stamp(0), odom_from_base(0))

    def initialize(self, error: torch.Tensor | None = None) -> None:
        pose = map_from_base(self.t) if error is None else map_from_base(self.t) @ error
        self.tracker.initialize(pose, None, stamp(self.t))

    def see(self, step: float = 0.1, offset: torch.Tensor | None = None, **answer):
        for _ in range(max(1, round(step / 0.05))):
            self.t += step / max(1, round(step / 0.05))
            if self.odometry:
                self.tracker.add_odometry(stamp(self.t), odom_from_base(self.t))
        truth = map_from_base(self.t) if offset is None else map_from_base(self.t) @ offset
        usual = self.localizer.answer
        if "inlier_fraction" in answer:
            answer = {"probability": likely(answer["inlier_fraction"]), **answer}
        self.localizer.answer = replace(usual, map_from_camera=truth, **answer)
        result = self.tracker.track(CameraFrame(stamp(self.t), IMAGE, CAMERA), BASE_FROM_CAMERA)
        self.localizer.answer = usual
        return result

    def tracking(self) -> "Robot":
        self.initialize()
        for _ in range(3):
            assert self.see().state is TRACKING
        return self


BAD = {"inlier_fraction": 0.05}


def check_contract(result) -> None:
    """What holds of every result, whatever happened."""
    published = result.map_from_base is not None
    assert published == (result.covariance is not None)
    if published:
        assert result.state in (TRACKING, DEGRADED)
        se3.check_pose(result.map_from_base)
        assert float(torch.linalg.eigvalsh(result.covariance)[0]) > 0
    else:
        assert result.message and result.map_from_odom is None
    if result.state is DEGRADED:
        assert result.message
    assert result.timings_ms["total"] >= 0


def test_nothing_is_published_before_an_initial_pose():
    robot = Robot()
    result = robot.see()
    check_contract(result)
    assert result.state is INITIALIZING and "initial pose" in result.message
    assert not robot.localizer.starts and not robot.tracker.has_pose


def test_tracking_publishes_the_aligned_pose_and_a_consistent_map_from_odom():
    robot = Robot()
    robot.initialize(shifted(0.2, 0.1, 0.05))
    first = robot.see()
    assert first.state is TRACKING and first.prior.source == "initial pose" and first.message == ""
    second = robot.see()
    assert second.prior.source == "odometry" and second.prior.age_s == pytest.approx(0.1)
    for result, t in ((first, 0.1), (second, 0.2)):
        check_contract(result)
        torch.testing.assert_close(result.map_from_base, map_from_base(t), atol=1e-9, rtol=0)
        torch.testing.assert_close(result.map_from_odom @ odom_from_base(t), result.map_from_base, atol=1e-9, rtol=0)
    torch.testing.assert_close(second.prior.map_from_base, map_from_base(0.2), atol=1e-6, rtol=0)
    assert first.prior_distance_m == pytest.approx(math.hypot(0.2, 0.1), abs=0.02)
    assert second.prior_distance_m < 1e-6 and second.prior_rotation_rad < 1e-6


def test_the_localizer_is_given_the_prior_in_the_camera_frame():
    robot = Robot().tracking()
    result = robot.see()
    torch.testing.assert_close(robot.localizer.starts[-1], result.prior.map_from_base)
    expected = se3.transform_covariance(result.prior.covariance, se3.inverse(BASE_FROM_CAMERA))
    torch.testing.assert_close(robot.localizer.covariances[-1], expected)


def test_dead_reckoning_grows_unsure_then_ends_in_time():
    robot = Robot(max_degraded_s=2.0).tracking()
    tracked = robot.see()
    last = tracked.covariance
    began = robot.t
    while (result := robot.see(**BAD)).state is DEGRADED:
        check_contract(result)
        assert float(torch.linalg.eigvalsh(result.covariance - last)[0]) > -1e-12
        torch.testing.assert_close(result.map_from_odom, tracked.map_from_odom, atol=1e-6, rtol=0)
        last = result.covariance
    assert robot.t - began == pytest.approx(2.1)
    assert last[0, 0] > 4 * tracked.covariance[0, 0]
    check_contract(result)
    assert result.state is LOST


@pytest.mark.parametrize(("depth", "limit"), [(2.0, 0.25), (10.0, 1.0), (float("inf"), None)])
def test_dead_reckoning_ends_where_it_is_too_unsure_for_what_the_camera_saw(depth, limit):
    robot = Robot(max_degraded_s=60.0).tracking()
    robot.see(depth=depth)
    before, result = 0.0, robot.see(**BAD)
    for _ in range(400):
        if result.state is not DEGRADED:
            break
        before = math.sqrt(float(result.covariance.diagonal()[:3].max()))
        result = robot.see(**BAD)
    if limit is None:
        assert result.state is DEGRADED
    else:
        assert result.state is LOST and 0.9 * limit < before <= limit


def test_without_odometry_velocity_is_used_and_guessing_ends_soon():
    robot = Robot(odometry=False, max_degraded_blind_s=0.35)
    robot.initialize()
    robot.see()
    robot.see()
    result = robot.see()
    assert result.state is TRACKING and result.prior.source == "constant velocity" and result.map_from_odom is None
    assert result.message == ""
    torch.testing.assert_close(result.prior.map_from_base, map_from_base(robot.t), atol=1e-6, rtol=0)
    states = [robot.see(**BAD) for _ in range(4)]
    assert [r.state for r in states] == [DEGRADED, DEGRADED, DEGRADED, LOST]
    assert "guessing without odometry" in states[0].message and states[0].map_from_odom is None


def test_missing_odometry_is_reported_while_tracking_goes_on():
    robot = Robot().tracking()
    robot.odometry = False
    result = robot.see(step=0.2)
    assert result.state is TRACKING and result.prior.source == "constant velocity"
    assert "odometry is 0.200 s older" in result.message and result.map_from_odom is None
    robot.odometry = True
    robot.see()
    result = robot.see()
    assert result.state is TRACKING and result.prior.source == "odometry" and result.message == ""


def test_late_odometry_still_connects_two_images():
    robot = Robot(odometry=False)
    robot.initialize()
    robot.see(step=0.1)
    for i in range(21):
        robot.tracker.add_odometry(stamp(i * 0.05), odom_from_base(i * 0.05))
    assert robot.see(step=0.1).prior.source == "odometry"


def lost_robot(**options) -> Robot:
    robot = Robot(max_degraded_s=0.2, **options).tracking()
    while robot.see(**BAD).state is not LOST:
        pass
    return robot


def test_lost_relocalizes_after_confirmation_only():
    robot = lost_robot(confirm_frames=3)
    result = robot.see(**BAD)
    check_contract(result)
    assert result.state is RELOCALIZING
    for count in (1, 2):
        result = robot.see()
        check_contract(result)
        assert result.state is RELOCALIZING and f"confirmed by {count} of 3" in result.message
    result = robot.see()
    check_contract(result)
    assert result.state is TRACKING
    torch.testing.assert_close(result.map_from_base, map_from_base(robot.t), atol=1e-9, rtol=0)


def test_relocalization_confirmation_starts_over_when_images_disagree():
    robot = lost_robot(confirm_frames=3)
    assert "1 of 3" in robot.see().message
    assert "2 of 3" in robot.see().message
    assert "5%" in robot.see(**BAD).message
    assert "1 of 3" in robot.see().message
    assert "1 of 3" in robot.see(offset=shifted(0.4)).message  # elsewhere: a new candidate
    assert robot.tracker.state is RELOCALIZING


def test_search_looks_around_the_prior():
    robot = lost_robot()
    robot.localizer.reach_m = 0.35
    offset = shifted(0.0, 0.5)  # the robot slipped sideways, out of reach of the prior itself
    states = []
    for _ in range(40):
        states.append(robot.see(offset=offset).state)
        if states[-1] is TRACKING:
            break
    assert states[-1] is TRACKING
    # No prior holds the alignment while it searches.
    assert all(covariance is None for covariance in robot.localizer.covariances[-len(states) :])
    starts = torch.stack(robot.localizer.starts[-len(states) :])
    assert len(torch.unique(starts.round(decimals=3), dim=0)) == len(states)


def test_search_is_given_up_and_an_initial_pose_helps():
    robot = lost_robot(max_search_s=1.0)
    states = [robot.see(**BAD).state for _ in range(12)]
    assert states[0] is RELOCALIZING and states[-1] is LOST and not robot.tracker.has_pose
    asked = len(robot.localizer.starts)
    result = robot.see()
    check_contract(result)
    assert result.state is LOST and "initial pose" in result.message and len(robot.localizer.starts) == asked
    robot.initialize()
    assert robot.tracker.state is INITIALIZING
    assert robot.see().state is TRACKING


def test_initial_pose_is_searched_then_given_up():
    robot = Robot(max_search_s=1.0)
    robot.initialize()
    results = [robot.see(**BAD) for _ in range(12)]
    for result in results:
        check_contract(result)
    assert results[5].state is INITIALIZING and results[-1].state is LOST
    assert "initial pose" in next(r for r in results if r.state is LOST).message


def test_initial_pose_replaces_a_wrong_track():
    robot = Robot().tracking()
    robot.tracker.initialize(shifted(50, 50), None, stamp(robot.t))
    assert robot.tracker.state is INITIALIZING
    check_contract(robot.see())
    assert robot.tracker.state is INITIALIZING  # the images say otherwise: out of reach


@pytest.mark.parametrize("back_s", [0.0, 0.1, 0.9])
def test_images_that_are_not_newer_are_refused(back_s):
    robot = Robot().tracking()
    asked = len(robot.localizer.starts)
    frame = CameraFrame(stamp(robot.t - back_s), IMAGE, CAMERA)
    result = robot.tracker.track(frame, BASE_FROM_CAMERA)
    check_contract(result)
    assert result.map_from_base is None and "not newer" in result.message
    assert len(robot.localizer.starts) == asked and robot.tracker.state is TRACKING
    assert robot.see().state is TRACKING


def test_time_that_jumps_back_resets():
    robot = Robot()
    robot.t = 100.0
    robot.tracking()
    robot.t = 0.0
    result = robot.see()
    check_contract(result)
    assert result.state is INITIALIZING and "back by 100" in result.message
    assert not robot.tracker.has_pose
    robot.initialize()
    assert robot.see().state is TRACKING
    assert robot.see().prior.source == "odometry"


def test_unusable_input_is_refused_and_changes_nothing():
    robot = Robot().tracking()
    frame = CameraFrame(stamp(robot.t + 0.1), IMAGE, CAMERA)
    with pytest.raises(InputError, match="base_from_camera"):
        robot.tracker.track(frame, math.nan * shifted(0))
    for pose, covariance, word in (
        (2 * shifted(0), None, "initial pose"),
        (shifted(0), -EYE6, "covariance"),
        (shifted(0), math.nan * EYE6, "covariance"),
    ):
        with pytest.raises(InputError, match=word):
            robot.tracker.initialize(pose, covariance, stamp(0))

    def refuse(*_):
        raise InputError("image is smaller than the network's stride")

    answering, robot.localizer.prepare = robot.localizer.prepare, refuse
    with pytest.raises(InputError, match="smaller"):
        robot.tracker.track(frame, BASE_FROM_CAMERA)
    robot.localizer.prepare = answering
    assert robot.tracker.state is TRACKING
    assert robot.see().state is TRACKING


def test_initial_pose_newer_than_the_image_is_used():
    robot = Robot()
    robot.t = 0.3
    robot.tracker.add_odometry(stamp(0.3), odom_from_base(0.3))
    robot.initialize()
    robot.t = 0.0
    result = robot.see(step=0.2)
    assert result.state is TRACKING
    torch.testing.assert_close(result.prior.map_from_base, map_from_base(0.2), atol=0.01, rtol=0)


def test_reset_forgets_the_pose():
    robot = Robot().tracking()
    robot.tracker.reset()
    assert robot.see().state is INITIALIZING and not robot.tracker.has_pose


EVENTS = ["good", "bad", "slip", "no odometry", "odometry", "late", "initialize", "reset", "odometry jump", "pause"]
ALLOWED = {
    INITIALIZING: {TRACKING, LOST},
    TRACKING: {DEGRADED, LOST},
    DEGRADED: {TRACKING, LOST},
    LOST: {RELOCALIZING, TRACKING},
    RELOCALIZING: {TRACKING, LOST},
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), min_size=5, max_size=40), st.integers(1, 3))
def test_any_history_keeps_the_contract_and_repeats_exactly(events, confirm_frames):
    def play():
        robot = Robot(max_degraded_s=0.4, max_search_s=0.8, confirm_frames=confirm_frames)
        robot.initialize()
        between = {
            "no odometry": lambda: setattr(robot, "odometry", False),
            "odometry": lambda: setattr(robot, "odometry", True),
            "initialize": robot.initialize,
            "reset": robot.tracker.reset,
            "odometry jump": lambda: robot.tracker.add_odometry(stamp(robot.t + 0.01), shifted(500, 500)),
        }
        poses = []
        for event in events:
            before = robot.tracker.state
            if event in between:
                between[event]()
                continue
            if event == "late":
                result = robot.tracker.track(CameraFrame(stamp(robot.t - 0.05), IMAGE, CAMERA), BASE_FROM_CAMERA)
            else:
                answer = {"bad": BAD, "slip": {"offset": shifted(0.4)}}.get(event, {})
                result = robot.see(step=0.7 if event == "pause" else 0.1, **answer)
            check_contract(result)
            assert result.state is before or result.state in ALLOWED[before]
            poses.append((result.state, result.message, result.map_from_base, result.covariance))
        return poses

    for first, second in zip(play(), play(), strict=True):
        assert first[:2] == second[:2]
        assert first[2] is None or torch.equal(first[2], second[2]) and torch.equal(first[3], second[3])

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Finding the pose without a prior: retrieval on small maps, and the tracker's states with a search that is told what to find."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_tracker import BASE_FROM_CAMERA, CAMERA, IMAGE, Robot, alignment, check_contract, map_from_base, shifted, stamp

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.tracking.relocalization import _finished, spread
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import MotionPrior, TrackState

INITIALIZING, TRACKING, DEGRADED, LOST, RELOCALIZING = TrackState


class FakeSearch:
    """Finds the base at the poses it is told, unless they are followed already."""

    def __init__(self) -> None:
        self.places: list[tuple[torch.Tensor, float]] = []
        self.turns: list[int] = []
        self.priors: list[MotionPrior | None] = []

    def search(self, frame, base_from_camera, turn=0, prior=None, known=(), finalists=None):
        self.turns.append(turn)
        self.priors.append(prior)
        poses = [(pose @ base_from_camera, inliers) for pose, inliers in self.places]
        return [
            alignment(pose, inliers)
            for pose, inliers in poses
            if all(float(se3.pose_difference(pose, other)[0]) > 0.1 for other in known)
        ][:finalists]


class LostRobot(Robot):
    """A robot whose tracker has a search. places: offsets of map_from_base, with inlier fractions, that the image shows."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.search = FakeSearch()
        self.tracker = Tracker(self, self.tracker.options, self.search)
        self.tracker.add_odometry(stamp(0), map_from_base(0))
        self.places = [(shifted(0), 0.9)]

    # The localizer: finds the nearest place within reach of its start.
    def prepare(self, image, camera):
        return image

    def localize_prepared(self, image, map_from_camera, prior_covariance=None, last=0.0):
        truth = map_from_base(self.t)
        start = map_from_camera @ se3.inverse(BASE_FROM_CAMERA)
        for offset, inliers in self.places:
            if float(se3.pose_difference(start, offset @ truth)[0]) < 0.5:
                return alignment(offset @ truth @ BASE_FROM_CAMERA, inliers)
        return alignment(map_from_camera, 0.02, cost=0.5)

    def tracking(self) -> "LostRobot":
        self.tracker.initialize(map_from_base(0), None, stamp(0))
        assert self.drive(HERE).state is TRACKING
        return self

    def drive(self, *places: tuple[torch.Tensor, float], step: float = 0.1):
        """One image later, in which these places are seen (offset of the map, inlier fraction)."""
        self.t += step
        if self.odometry:
            self.tracker.add_odometry(stamp(self.t), map_from_base(self.t))
        self.places = list(places)
        self.search.places = [(offset @ map_from_base(self.t), inliers) for offset, inliers in places]
        result = self.tracker.track(CameraFrame(stamp(self.t), IMAGE, CAMERA), BASE_FROM_CAMERA)
        check_contract(result)
        return result


HERE, ALIAS = (shifted(0), 0.8), (shifted(30, 5), 0.75)


def test_cold_start_believes_after_confirmation():
    robot = LostRobot(confirm_frames=3)
    results = [robot.drive(HERE) for _ in range(3)]
    assert [r.state for r in results] == [INITIALIZING, INITIALIZING, TRACKING]
    assert "confirmed by 2 of 3" in results[1].message and results[2].message == ""
    torch.testing.assert_close(results[2].map_from_base, map_from_base(robot.t), atol=1e-9, rtol=0)
    # Then it tracks with odometry, and looks nowhere else.
    searched = len(robot.search.turns)
    assert robot.drive(HERE).prior.source == "odometry" and len(robot.search.turns) == searched


@pytest.mark.parametrize("speed", [0.5, 8.0])
def test_cold_start_without_odometry_learns_the_velocity_first(speed):
    robot = LostRobot()
    robot.odometry = False
    robot.tracker.odometry.clear()
    states = [robot.drive((shifted(0.1 * k * speed), 0.8)).state for k in range(7)]
    assert states[0] is INITIALIZING and states[-3:] == [TRACKING] * 3


def test_each_image_looks_further_down_the_list():
    robot = LostRobot()
    for _ in range(4):
        assert robot.drive().state is INITIALIZING
    assert robot.search.turns == [0, 1, 2, 3]


def test_places_that_look_alike_are_not_believed_until_they_differ():
    robot = LostRobot()
    for _ in range(8):
        result = robot.drive(HERE, ALIAS)
        assert result.state is INITIALIZING
    assert "2 places look the same" in result.message
    # One image that shows only one of them (the other may just have been blurred) does not settle it.
    assert robot.drive(ALIAS).state is INITIALIZING
    assert robot.drive(HERE, ALIAS).state is INITIALIZING
    results = [robot.drive(HERE) for _ in range(3)]  # driven on to where the other place looks different
    assert [r.state for r in results] == [INITIALIZING, INITIALIZING, TRACKING]
    result = results[-1]
    torch.testing.assert_close(result.map_from_base, map_from_base(robot.t), atol=1e-9, rtol=0)


def test_an_initial_pose_tells_places_that_look_alike_apart():
    robot = LostRobot()
    robot.tracker.initialize(shifted(0.8) @ map_from_base(0), None, stamp(0))
    robot.drive(HERE, ALIAS)
    for _ in range(6):
        result = robot.drive(HERE, ALIAS)
    assert result.state is TRACKING
    torch.testing.assert_close(result.map_from_base, map_from_base(robot.t), atol=1e-6, rtol=0)


def test_a_wrong_initial_pose_is_overruled_and_said():
    robot = LostRobot()
    robot.tracker.initialize(shifted(8, 3) @ map_from_base(0), None, stamp(0))
    results = [robot.drive(HERE) for _ in range(4)]
    first = next(r for r in results if r.state is TRACKING)
    assert first is results[2] and "m away from the initial pose" in first.message
    torch.testing.assert_close(first.map_from_base, map_from_base(robot.t - 0.1), atol=1e-9, rtol=0)
    assert results[3].message == ""


def test_a_doubtful_image_near_the_initial_pose_must_be_confirmed():
    robot = LostRobot()
    robot.tracker.initialize(map_from_base(0), None, stamp(0))
    assert [robot.drive((shifted(0), 0.36)).state for _ in range(3)] == [INITIALIZING, INITIALIZING, TRACKING]


def test_a_carried_robot_falls_silent_at_once_and_is_found():
    robot = LostRobot().tracking()
    results = [robot.drive(ALIAS) for _ in range(3)]
    assert [r.state for r in results] == [LOST, RELOCALIZING, TRACKING]
    torch.testing.assert_close(results[-1].map_from_base, ALIAS[0] @ map_from_base(robot.t), atol=1e-9, rtol=0)


def test_a_covered_lens_is_dead_reckoned_then_found_again():
    robot = LostRobot(max_degraded_s=0.35).tracking()
    states = [robot.drive().state for _ in range(6)]
    assert states == [DEGRADED, DEGRADED, DEGRADED, LOST, RELOCALIZING, RELOCALIZING]
    assert [robot.drive(HERE).state for _ in range(3)][-1] is TRACKING


def test_a_doubtful_place_elsewhere_does_not_silence_dead_reckoning():
    robot = LostRobot().tracking()
    assert robot.drive((ALIAS[0], 0.36)).state is DEGRADED
    assert robot.drive(HERE).state is TRACKING
    # Two images that agree with one another there do.
    assert [robot.drive((ALIAS[0], 0.36)).state for _ in range(2)] == [DEGRADED, LOST]


def test_the_search_never_gives_up():
    robot = LostRobot(max_search_s=0.5, max_degraded_s=0.1).tracking()
    states = [robot.drive() for _ in range(14)]
    assert states[-1].state is RELOCALIZING and not robot.tracker.has_pose and robot.tracker.can_relocalize
    assert any("searching the whole map" in r.message for r in states)
    assert robot.search.priors[-1] is None
    assert [robot.drive(ALIAS).state for _ in range(3)][-1] is TRACKING


def test_relocalize_on_request():
    robot = LostRobot().tracking()
    robot.tracker.relocalize()
    assert robot.tracker.state is RELOCALIZING
    assert [robot.drive(ALIAS).state for _ in range(3)] == [RELOCALIZING, RELOCALIZING, TRACKING]
    with pytest.raises(InputError, match="initial pose"):
        Robot().tracker.relocalize()


def test_the_work_of_an_image_is_bounded():
    robot = LostRobot()
    asked = []
    original = robot.localize_prepared

    def counted(*arguments, **keywords):
        asked[-1] += 1
        return original(*arguments, **keywords)

    robot.localize_prepared = counted
    places = [(shifted(10.0 * k), 0.7) for k in range(8)]
    for _ in range(10):
        asked.append(0)
        robot.drive(*places)
    assert max(asked) <= robot.tracker.options.max_candidates


def test_seeds_are_spread_over_the_covariance():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 1e-6, 1e-6, 1e-6, 0.25], dtype=torch.float64))
    pose = shifted(3, -1, 0.7)
    poses = torch.cat([spread(pose, covariance, 8, turn) for turn in range(40)])
    torch.testing.assert_close(poses[0], pose)
    errors = se3.se3_log(se3.inverse(pose) @ poses)
    assert len(torch.unique(errors[:, 0].round(decimals=6))) > 300
    torch.testing.assert_close(errors.var(0), covariance.diagonal(), rtol=0.2, atol=1e-5)


def test_spread_of_a_singular_covariance():
    prior = MotionPrior(shifted(0), torch.zeros((6, 6), dtype=torch.float64), "initial pose", 0.0)
    poses = spread(prior.map_from_base, prior.covariance, 4, 1)
    assert torch.equal(poses, prior.map_from_base.expand(4, 4, 4)) and math.isfinite(float(poses.sum()))


@pytest.mark.parametrize("clear, aligned", [(True, 2), (False, 3)])
def test_next_to_a_clear_pose_only_what_explains_nearly_as_much_is_aligned(clear, aligned):
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.arange(4)
    fields = {"success": True, "probability": 0.99, "inlier_fraction": 0.9, "visible_fraction": 1.0, "points_used": 100}
    finish = lambda pose: SimpleNamespace(map_from_camera=pose, **fields)  # noqa: E731
    found = _finished(poses, np.array([0.5, 1.0, 0.9, 0.4]), finish, torch.equal, (), 3, lambda _: clear)
    assert [float(one.map_from_camera[0, 3]) for one in found] == [1.0, 2.0, 0.0][:aligned]

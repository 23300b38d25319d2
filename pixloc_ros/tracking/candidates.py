# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses that look good but are not believed yet: followed over the images until one of them is confirmed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..geometry import se3
from .judge import FrameContext, Look, distance, is_torn
from .motion_prior import KnownPose
from .options import TrackerOptions
from .types import MotionPrior


@dataclass(frozen=True, eq=False)
class Candidate:
    """A good alignment that is not believed yet.

    Attributes:
        look: The last that showed it.
        before: The pose at the look before.
        count: Images in a row that agreed with it; 0 where the last one did not show it.
        searched: Whether the search found it, not the alignment around the prior.
        missed: Images in a row that did not show it.
    """

    look: Look
    before: KnownPose | None
    count: int
    searched: bool
    missed: int = 0

    @property
    def pose(self) -> KnownPose:
        return self.look.pose


class Candidates:
    """The candidates of a tracker, the most confirmed first. predict: prior of a pose and the one before it, at a view."""

    def __init__(
        self, options: TrackerOptions, predict: Callable[[KnownPose, KnownPose | None, FrameContext], MotionPrior]
    ) -> None:
        self._options, self._predict = options, predict
        self._all: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._all)

    @property
    def most_confirmed(self) -> int:
        """Images that agreed with the best candidate; 0 where there is none."""
        return max((candidate.count for candidate in self._all), default=0)

    def why_not(self) -> str:
        """Why none of them is believed, in words."""
        count, needed = self.most_confirmed, self._options.confirm_frames
        if count >= needed:
            return f"{len(self)} places look the same: drive on, or give an initial pose"
        return f"a pose was found, confirmed by {count} of {needed} images"

    def clear(self) -> None:
        self._all = []

    def expected(self, view: FrameContext) -> list[tuple[Candidate, MotionPrior]]:
        """Where each should be at the time of a view."""
        return [(candidate, self._predict(candidate.pose, candidate.before, view)) for candidate in self._all]

    def follow(self, looks: list[Look], view: FrameContext) -> None:
        """Keeps the candidates that the image still shows, adds what else it may show, and keeps, for as many images as a
        confirmation takes, those that it does not show: one blurred image must not settle which of two places that look the same
        is the right one."""
        left, followed, missed, limit = list(looks), [], [], self._options.gates.max_innovation
        for candidate, expected in self.expected(view):
            distances = [distance(expected, look.pose) for look in left]
            if not distances or min(distances) > limit:
                # Unless another candidate has come to the same place.
                if not any(self._same_place(expected, found.pose) for found in followed):
                    missed.append(replace(candidate, count=0, missed=candidate.missed + 1))
                continue
            look = left[int(np.argmin(distances))]
            followed.append(Candidate(look, candidate.pose, candidate.count + 1, candidate.searched))
            left = [other for other, away in zip(left, distances) if away > limit]
        for look in left:
            if any(self._same_place(look.pose, found.pose) for found in followed):
                continue
            # Without odometry the first step of a candidate tells its velocity.
            origin = self._moved_from(look.pose, missed) if view.odometry is None else None
            if origin is not None:
                missed.remove(origin)
            followed.append(Candidate(look, None if origin is None else origin.pose, 1, look.searched))
        followed += [candidate for candidate in missed if candidate.missed < self._options.confirm_frames]
        followed.sort(key=lambda candidate: (-candidate.count, -candidate.look.inliers))
        self._all = followed[: self._options.max_candidates]

    def winner(self, prior: MotionPrior | None) -> Candidate | None:
        """The candidate to believe: confirmed often enough, and no other place explains the images as well. A place near the
        prior need not fear places far from it."""
        gates = self._options.gates

        def near(candidate: Candidate) -> bool:
            return prior is not None and distance(prior, candidate.pose) <= gates.max_innovation

        for candidate in self._all:
            if candidate.count < self._options.confirm_frames:
                continue
            least = gates.rival_inlier_fraction * candidate.look.inliers
            rivals = (c for c in self._all if c.look.inliers > least and not self._same_place(c.pose, candidate.pose))
            if all(near(candidate) and not near(rival) for rival in rivals):
                return candidate
        return None

    def show_another_place(self) -> bool:
        """Whether the images surely show a place that is not around the prior: two in a row, or one that is sure and whole."""
        sure = self._options.gates.sure_probability
        return any(
            c.searched and (c.count > 1 or c.count and c.look.probability >= sure and not is_torn(c.look.alignment))
            for c in self._all
        )

    def _moved_from(self, pose: KnownPose, candidates: list[Candidate]) -> Candidate | None:
        """The candidate that may be this pose one step later, by the greatest speeds that are believed of a robot."""
        limits = self._options.odometry
        for candidate in candidates:
            away, turned = se3.pose_difference(candidate.pose.map_from_base, pose.map_from_base)
            seconds = (pose.stamp_ns - candidate.pose.stamp_ns) * 1e-9
            if float(away) <= limits.max_speed * seconds and float(turned) <= limits.max_turn_rate * seconds:
                return candidate
        return None

    def _same_place(self, one: KnownPose | MotionPrior, other: KnownPose) -> bool:
        """Whether two poses are too near to one another to be two places."""
        away, turned = se3.pose_difference(one.map_from_base, other.map_from_base)
        return float(away) < self._options.search_translation / 4 and float(turned) < self._options.search_rotation / 4

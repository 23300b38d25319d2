# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is believed of an aligned image: gates on its quality, and on its distance from the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..geometry import se3
from .checks.calibration import CalibrationCheck
from .covariances import isotropic, mahalanobis, not_better_than
from .motion_prior import KnownPose
from .odometry import OdometrySample
from .types import FrameAlignment, MotionPrior, PreparedFrame, TrackState


@dataclass(frozen=True)
class QualityGates:
    """What an aligned image must satisfy to be believed.

    On real sequences wrong alignments had at most 0.19 inliers (98 % of them below 0.15), right ones 0.19 and more in blurred
    images, and 0.4 and more in sharp ones.

    Attributes:
        min_visible_fraction: Least share of the map points asked for that project into the image.
        min_visible_points: Least number of them.
        min_inlier_fraction: Least share of the visible points whose features agree.
        min_inlier_fraction_search: The same where no prior holds the pose, or against it.
        max_cost: Largest mean robust cost.
        max_innovation: Largest Mahalanobis distance to the prior, six degrees of freedom (5.3 is passed by 99.99 % of honest
            Gaussian errors).
        sure_inlier_fraction: With so many inliers the image is believed further away,
        max_innovation_sure: up to here: slipping wheels are more common than a wrong alignment that looks so good.
        rival_inlier_fraction: Where another place has more than this share of a place's inliers, neither is believed.
        min_inlier_fraction_untrusted: Least inliers where odometry, which holds the pose less then, was found to err
        max_trusted_factor: more than this many times as much as usual.
    """

    min_visible_fraction: float = 0.2
    min_visible_points: int = 30
    min_inlier_fraction: float = 0.15
    min_inlier_fraction_search: float = 0.32
    max_cost: float = float("inf")
    max_innovation: float = 5.3
    sure_inlier_fraction: float = 0.4
    max_innovation_sure: float = 16.0
    rival_inlier_fraction: float = 0.6
    min_inlier_fraction_untrusted: float = 0.2
    max_trusted_factor: float = 2.0

    def least_inliers(self, free: bool, noise_factor: float) -> float:
        """Share of the visible points that must agree. free: no prior held the pose; noise_factor: `MotionPrior.noise_factor`."""
        least = self.min_inlier_fraction_search if free else self.min_inlier_fraction
        return max(least, self.min_inlier_fraction_untrusted) if noise_factor > self.max_trusted_factor else least

    def innovation_limit(self, sure: bool, noise_factor: float) -> float:
        """Standard deviations that a pose may be from its prior: further where so many points agree that it is sure. What
        odometry was found to err by is in the prior already."""
        return max(self.max_innovation, self.max_innovation_sure / math.sqrt(noise_factor)) if sure else self.max_innovation


@dataclass(frozen=True, eq=False)
class View:
    """What is known of an image before it is aligned.

    Attributes:
        frame: The image with its features.
        base_from_camera: float64 [4, 4].
        camera_from_base: Its inverse.
        odometry: At the image's stamp, None where there is none.
        prior: Where the robot should be, None where nothing is known.
        noise_factor: By how much odometry was found to err more than usual.
    """

    frame: PreparedFrame
    base_from_camera: torch.Tensor
    camera_from_base: torch.Tensor
    odometry: OdometrySample | None
    prior: MotionPrior | None
    noise_factor: float

    @property
    def stamp_ns(self) -> int:
        return self.frame.stamp_ns


@dataclass(frozen=True, eq=False)
class Look:
    """One alignment of an image, judged.

    Attributes:
        alignment: The alignment.
        pose: Of the base, None where `problem` says what is wrong with it.
        problem: Empty for a good one.
        searched: Whether it was found by the search, not around the prior or a candidate.
    """

    alignment: FrameAlignment
    pose: KnownPose | None
    problem: str
    searched: bool = False

    @property
    def inliers(self) -> float:
        return self.alignment.inlier_fraction


def distance(prior: MotionPrior, pose: KnownPose) -> float:
    """From a prior to a pose found, in standard deviations of both together."""
    return mahalanobis(prior.map_from_base, prior.covariance, pose.map_from_base, pose.covariance)


class Judge:
    """Judges alignments.

    Attributes:
        gates: The limits.
        calibration_check: What the images say of the focal length; None: nobody asks.
    """

    def __init__(
        self,
        gates: QualityGates,
        floor: tuple[float, float],
        prior_floor: tuple[float, float],
        calibration_check: CalibrationCheck | None = None,
    ) -> None:
        """floor, prior_floor: standard deviations (m, rad) as of `TrackerOptions`, published and for the next prior."""
        self.gates, self.calibration_check = gates, calibration_check
        self._floor, self._prior_floor = floor, isotropic(*prior_floor)

    @property
    def hopeless(self) -> bool:
        """Whether no pose is right, since the focal length is too far off."""
        return self.calibration_check is not None and self.calibration_check.hopeless

    def floored(self, covariance: torch.Tensor) -> torch.Tensor:
        """Covariance for the next prior: at least the floor's variance in every direction."""
        return not_better_than(covariance, self._prior_floor)

    def look(self, view: View, alignment: FrameAlignment, free: bool, searched: bool = False) -> Look:
        """An alignment of the view, judged. free: no prior was believed on the way there, so more points must agree."""
        problem = self._quality_problem(alignment, self.gates.least_inliers(free, view.noise_factor))
        if problem:
            return Look(alignment, None, problem, searched)
        image = se3.transform_covariance(alignment.covariance, view.base_from_camera)
        depth, (translation, rotation) = abs(alignment.depth), self._floor
        published = image + isotropic(min(translation, rotation * depth), rotation)
        # What the next image will be judged by is wider where few points agreed.
        cautious = self.floored(image / max(alignment.inlier_fraction, 0.1) ** 2)
        pose = alignment.map_from_camera @ view.camera_from_base
        return Look(alignment, KnownPose(view.stamp_ns, pose, cautious, view.odometry, published, depth), "", searched)

    def agrees(self, look: Look, view: View, state: TrackState) -> bool:
        """Whether a look is believed at once, since it is where the prior says."""
        prior, gates = view.prior, self.gates
        if look.pose is None or prior is None or state in (TrackState.LOST, TrackState.RELOCALIZING):
            return False
        sure = look.inliers >= gates.sure_inlier_fraction
        if state is TrackState.INITIALIZING and not sure:
            return False
        if distance(prior, look.pose) > gates.innovation_limit(sure and not look.searched, prior.noise_factor):
            return False
        if state is TrackState.DEGRADED:
            # A prior that has grown vague lets in what another lens shows.
            return not self.wrong_lens(look, view)
        return not self.hopeless

    def wrong_lens(self, look: Look, view: View) -> bool:
        """Whether the image says that only another focal length explains the look."""
        check = self.calibration_check
        return check is not None and check.contradicts(view.frame.prepared, look.alignment)

    def _quality_problem(self, alignment: FrameAlignment, least_inliers: float) -> str:
        gates = self.gates
        if not alignment.success:
            return f"alignment failed ({alignment.reason})"
        if not all(np.isfinite(values.numpy()).all() for values in (alignment.map_from_camera, alignment.covariance)):
            return "alignment gave a pose that is not finite"
        visible = alignment.visible_fraction * alignment.points_used
        if alignment.visible_fraction < gates.min_visible_fraction or visible < gates.min_visible_points:
            return f"only {visible:.0f} of {alignment.points_used} map points are in the image"
        if alignment.inlier_fraction < least_inliers:
            return f"only {alignment.inlier_fraction:.0%} of the visible points agree with the map"
        if not alignment.cost <= gates.max_cost:
            return f"cost {alignment.cost:.3g} is above {gates.max_cost:.3g}"
        return ""

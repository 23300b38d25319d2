# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Limits of the tracker, and the gates that an image must pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from .learned_noise import LearnedNoiseOptions
from .motion_prior import MotionOptions
from .odometry import OdometryOptions
from .types import MotionPrior


@dataclass(frozen=True)
class QualityGates:
    """What an aligned image must satisfy to be believed. Probabilities are those of `AlignmentJudge`.

    Attributes:
        min_visible_fraction: Least share of the map points asked for that project into the image.
        min_visible_points: Least number of them.
        min_inlier_fraction: Least share of the visible points whose features agree, whatever the judge says.
        min_probability: Least probability that the pose is right.
        min_probability_search: The same where no prior holds the pose, or against it.
        min_located: There, least share of points that are where they project to (`alignment.location`): where a building's floors
            look the same, they are recognised on each, but not in the same place to some pixels.
        max_cost: Largest mean robust cost.
        max_innovation: Largest Mahalanobis distance to the prior, six degrees of freedom (5.3 is passed by 99.99 % of honest
            Gaussian errors).
        sure_probability: An image as sure as this is believed further away,
        max_innovation_sure: up to here: slipping wheels are more common than a wrong alignment that looks so good.
        rival_inlier_fraction: Where another place has more than this share of a place's inliers, neither is believed.
        min_probability_untrusted: Least probability where odometry, which holds the pose less then, was found to err
        max_trusted_factor: more than this many times as much as usual.
    """

    min_visible_fraction: float = 0.2
    min_visible_points: int = 30
    min_inlier_fraction: float = 0.0125
    min_probability: float = 0.85
    min_probability_search: float = 0.95
    min_located: float = 0.68
    max_cost: float = float("inf")
    max_innovation: float = 5.3
    sure_probability: float = 0.98
    max_innovation_sure: float = 16.0
    rival_inlier_fraction: float = 0.6
    min_probability_untrusted: float = 0.92
    max_trusted_factor: float = 2.0

    def least_probability(self, free: bool, noise_factor: float = 1.0) -> float:
        """Of a pose to be believed. free: no prior held it; noise_factor: `MotionPrior.noise_factor`."""
        least = self.min_probability_search if free else self.min_probability
        return max(least, self.min_probability_untrusted) if noise_factor > self.max_trusted_factor else least

    def innovation_limit(self, sure: bool, noise_factor: float) -> float:
        """Standard deviations that a pose may be from its prior: further where so many points agree that it is sure. What
        odometry was found to err by is in the prior already."""
        return max(self.max_innovation, self.max_innovation_sure / math.sqrt(noise_factor)) if sure else self.max_innovation


@dataclass(frozen=True)
class TrackerOptions:
    """Limits of the tracker; metres, seconds, radians.

    Attributes:
        gates: What an aligned image must satisfy.
        odometry: How odometry is kept, and how far it errs.
        motion: What is believed of a robot without odometry.
        learning: How fast the images teach what odometry is worth.
        max_degraded_s: How long dead reckoning on odometry is published.
        max_degraded_std: How unsure it may become: a standard deviation in metres, or
        max_degraded_depths: a share of the depth of what was last seen, if that is more: beyond it an alignment could hardly
            start from there, while a car may go further than an indoor robot.
        max_degraded_blind_s: How long dead reckoning is published without odometry.
        max_search_s: How long an initial or lost pose is a hint where to look.
        confirm_frames: Images that must agree before a pose that contradicts the prior, or one found again, is believed.
        max_candidates: Such poses followed at a time.
        max_cameras: Of a robot with more, so many are used for a frame, by turns.
        translation_floor: Standard deviation of what the image does not know of (errors of map and calibration), added to what
            the image claims for the covariance that is published. Near things bound it, so that it moves their pixels no
            further than `rotation_floor` does (chosen on the validation drives, docs/evidence).
        rotation_floor: The same for the rotation.
        prior_translation_floor: Least standard deviation that the next image's prior and the gates count on; wider, since blur
            and rolling shutter make images contradict each other more than either claims.
        prior_rotation_floor: The same for the rotation.
        search_translation: How far from the prior the search goes at most.
        search_rotation: The same for the rotation.
        initial_translation_std: Of an initial pose that comes without covariance.
        initial_rotation_std: The same for the rotation.
        jump_back_s: An image older than the last by more is a jump of the clock and resets the tracker.
    """

    gates: QualityGates = field(default_factory=QualityGates)
    odometry: OdometryOptions = field(default_factory=OdometryOptions)
    motion: MotionOptions = field(default_factory=MotionOptions)
    learning: LearnedNoiseOptions = field(default_factory=LearnedNoiseOptions)
    max_degraded_s: float = 5.0
    max_degraded_std: float = 0.25
    max_degraded_depths: float = 0.1
    max_degraded_blind_s: float = 0.5
    max_search_s: float = 60.0
    confirm_frames: int = 3
    max_candidates: int = 3
    max_cameras: int = 4
    translation_floor: float = 0.002
    rotation_floor: float = 0.00033
    prior_translation_floor: float = 0.005
    prior_rotation_floor: float = 0.001
    search_translation: float = 2.0
    search_rotation: float = 0.5
    initial_translation_std: float = 0.5
    initial_rotation_std: float = 0.26
    jump_back_s: float = 1.0

    def may_dead_reckon(self, prior: MotionPrior, depth: float, blind_s: float) -> bool:
        """Whether a prior is good enough to be given as the pose.

        Args:
            prior: From the last pose.
            depth: Of what was last seen, m.
            blind_s: How long without odometry.
        """
        if prior.source != "odometry":
            return prior.age_s <= blind_s
        return prior.age_s <= self.max_degraded_s and self.may_publish(prior.covariance, depth)

    def may_publish(self, covariance: torch.Tensor, depth: float) -> bool:
        """Whether a pose found by dead reckoning is known well enough. depth: of what was last seen, m."""
        std = math.sqrt(float(covariance.diagonal()[:3].max()))
        return std <= max(self.max_degraded_std, self.max_degraded_depths * depth)

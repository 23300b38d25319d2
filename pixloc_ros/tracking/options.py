# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Limits of the tracker."""

from __future__ import annotations

from dataclasses import dataclass, field

from .judge import QualityGates
from .motion_prior import MotionOptions
from .odometry import OdometryOptions


@dataclass(frozen=True)
class TrackerOptions:
    """Limits of the tracker; metres, seconds, radians.

    Attributes:
        gates: What an aligned image must satisfy.
        odometry: How odometry is kept, and how far it errs.
        motion: What is believed of a robot without odometry.
        max_degraded_s: How long dead reckoning on odometry is published.
        max_degraded_std: How unsure it may become: a standard deviation in metres, or
        max_degraded_depths: a share of the depth of what was last seen, if that is more: beyond it an alignment could hardly
            start from there, while a car may go further than an indoor robot.
        max_degraded_blind_s: How long dead reckoning is published without odometry.
        max_search_s: How long an initial or lost pose is a hint where to look.
        confirm_frames: Images that must agree before a pose that contradicts the prior, or one found again, is believed.
        max_candidates: Such poses followed at a time.
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
    max_degraded_s: float = 5.0
    max_degraded_std: float = 0.25
    max_degraded_depths: float = 0.1
    max_degraded_blind_s: float = 0.5
    max_search_s: float = 60.0
    confirm_frames: int = 3
    max_candidates: int = 3
    translation_floor: float = 0.002
    rotation_floor: float = 0.00033
    prior_translation_floor: float = 0.005
    prior_rotation_floor: float = 0.001
    search_translation: float = 2.0
    search_rotation: float = 0.5
    initial_translation_std: float = 0.5
    initial_rotation_std: float = 0.26
    jump_back_s: float = 1.0

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What flows through tracking: a frame in, a result out."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import torch

from ..features.pyramid import FeaturePyramid
from ..geometry.cameras import Camera
from ..io.frames import CameraFrame
from ..mapping.local_points import LocalPoints


class TrackState(enum.IntEnum):
    """Same numbers as the constants in msg/LocalizationStatus.msg."""

    INITIALIZING = 0
    TRACKING = 1
    DEGRADED = 2
    LOST = 3
    RELOCALIZING = 4


@dataclass(frozen=True)
class PreparedImage:
    """What an image gives before anything is known of its pose: features, and the camera of the size they were computed at."""

    pyramid: FeaturePyramid
    camera: Camera
    timings_ms: dict[str, float]
    """Stages "prepare", "features"."""


@dataclass(frozen=True)
class PreparedFrame(CameraFrame):
    """A frame whose features were computed already (`Tracker.prepare`)."""

    prepared: PreparedImage

    @classmethod
    def of(cls, frame: CameraFrame, prepared: PreparedImage) -> PreparedFrame:
        return cls(frame.stamp_ns, frame.image, frame.camera, prepared)


@dataclass(frozen=True)
class MotionPrior:
    """Where the robot should be before the image is looked at.

    map_from_base: float64 [4, 4].
    covariance: float64 [6, 6], (translation, rotation) in the base frame: true = map_from_base · exp(error).
    source: "odometry", "constant velocity", "static" or "initial pose"; age_s: since the pose it starts from, and motion
    float64 [4, 4], what was added to that pose. noise_factor: by how much odometry was found to err more than its model says.
    """

    map_from_base: torch.Tensor
    covariance: torch.Tensor
    source: str
    age_s: float
    motion: torch.Tensor | None = None
    noise_factor: float = 1.0


@dataclass(frozen=True)
class FrameMotion:
    """What a learned prior (`alignment.TemporalPrior`) wants to know: the prior, the share of points that agreed in the
    last image (0.5 where there was none), and base_from_camera float64 [4, 4]."""

    prior: MotionPrior
    inlier_fraction: float
    base_from_camera: torch.Tensor


@dataclass(frozen=True)
class FrameAlignment:
    """One image against the map from one prior: what `FrameAligner.localize` returns.

    map_from_camera: float64 [4, 4]; covariance: float64 [6, 6] (translation, rotation), camera frame, right perturbation
    (true = map_from_camera · exp(error)), from the Hessian.
    inlier_fraction: inliers / visible; visible_fraction: visible / points asked for.
    success: False where the optimizer had too few points or no finite solution; `reason` says why in a few words.
    depth: median distance of the visible points along the optical axis; infinite where it is not known.
    """

    map_from_camera: torch.Tensor
    covariance: torch.Tensor
    success: bool
    reason: str
    cost: float
    inlier_fraction: float
    visible_fraction: float
    points_used: int
    iterations: int
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Stages "prepare", "features", "gather", "alignment"."""
    details: object | None = None
    """The `AlignmentResult`, for pictures."""
    points: LocalPoints | None = None
    """The map points that `details` speaks of."""
    depth: float = float("inf")


@dataclass(frozen=True)
class TrackResult:
    """What the tracker says of one frame.

    map_from_base, covariance (base frame, right perturbation): None unless the state is TRACKING or DEGRADED, and None for
    an image that was refused because it was not newer than the last.
    prior_distance_m, prior_rotation_rad: from the prior to the aligned pose; NaN where there is none.
    map_from_odom: None where there is no odometry or no pose.
    message: empty when all is well, else what is wrong and what to do.
    """

    stamp_ns: int
    state: TrackState
    map_from_base: torch.Tensor | None
    covariance: torch.Tensor | None
    map_from_odom: torch.Tensor | None
    prior: MotionPrior | None
    prior_distance_m: float
    prior_rotation_rad: float
    alignment: FrameAlignment | None
    timings_ms: dict[str, float]
    message: str

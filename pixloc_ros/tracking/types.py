# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What flows through tracking: a frame in, a result out."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
import torch

from ..features.pyramid import FeaturePyramid
from ..geometry import se3
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
    """What an image gives before anything is known of its pose.

    Attributes:
        pyramid: Its features.
        camera: Of the size they were computed at.
        timings_ms: Stages "prepare", "features".
        description: float32 [G], by which the session of a map is chosen (`LocalPointSelector.describe`).
    """

    pyramid: FeaturePyramid
    camera: Camera
    timings_ms: dict[str, float]
    description: np.ndarray | None = None


@dataclass(frozen=True)
class PreparedFrame(CameraFrame):
    """A frame whose features were computed already (`Tracker.prepare`), and those of `others`: None for an image that cannot be
    used."""

    prepared: PreparedImage
    others_prepared: tuple[PreparedImage | None, ...] = ()

    @classmethod
    def of(cls, frame: CameraFrame, prepared: PreparedImage, others: tuple[PreparedImage | None, ...] = ()) -> PreparedFrame:
        named = {"calibration": frame.calibration, "name": frame.name, "others": frame.others, "shown_ns": frame.shown_ns}
        return cls(frame.stamp_ns, frame.image, frame.camera, prepared, others, **named)


@dataclass(frozen=True)
class RigView:
    """An image of one camera of a rig. The rig's frame is that of one of its cameras, at one time.

    Attributes:
        name: Of the camera.
        prepared: The image.
        camera_from_rig: float64 [4, 4]; None for the camera whose frame is the rig's.
        covariance: float64 [6, 6] of the rig's motion between its time and the image's (rig's frame, right perturbation); None
            for an image of that time.
    """

    name: str
    prepared: PreparedImage
    camera_from_rig: torch.Tensor | None = None
    covariance: torch.Tensor | None = None

    def map_from_camera(self, map_from_rig: torch.Tensor) -> torch.Tensor:
        """Its pose for one of the rig, both [4, 4]."""
        return map_from_rig if self.camera_from_rig is None else map_from_rig @ se3.inverse(self.camera_from_rig)


@dataclass(frozen=True)
class AlignedView:
    """What an alignment says of one of its views.

    Attributes:
        view: The view.
        points: The map points that it should see.
        first: Row of the first of them in the `AlignmentResult`, which holds the views one after the other.
        visible: How many of them are in the image at the solution.
        inliers: How many of these agree.
    """

    view: RigView
    points: LocalPoints
    first: int
    visible: int
    inliers: int

    @property
    def rows(self) -> slice:
        """Of its points in the `AlignmentResult`."""
        return slice(self.first, self.first + len(self.points.points))


@dataclass(frozen=True)
class MotionPrior:
    """Where the robot should be before the image is looked at.

    Attributes:
        map_from_base: float64 [4, 4].
        covariance: float64 [6, 6], (translation, rotation) in the base frame: true = map_from_base · exp(error).
        published: The covariance that others get; the same if it is not given.
        source: "odometry", "constant velocity", "static" or "initial pose".
        age_s: Since the pose it starts from.
        motion: What was added to that pose, float64 [4, 4].
        noise_factor: By how much odometry was found to err more than its model says.
    """

    map_from_base: torch.Tensor
    covariance: torch.Tensor
    source: str
    age_s: float
    motion: torch.Tensor | None = None
    noise_factor: float = 1.0
    published: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.published is None:
            object.__setattr__(self, "published", self.covariance)


@dataclass(frozen=True)
class FrameAlignment:
    """One image against the map from one prior: what `FrameAligner.localize` returns.

    Attributes:
        map_from_camera: float64 [4, 4]; of several cameras, map_from_rig.
        covariance: float64 [6, 6] (translation, rotation), camera frame, right perturbation (true = map_from_camera ·
            exp(error)), what the image tells on all levels; infinite where it does not determine the pose.
        success: False where the optimizer had too few points or no finite solution.
        reason: Why, in a few words.
        cost: Mean robust cost.
        inlier_fraction: Inliers / visible points.
        visible_fraction: Visible points / points asked for.
        points_used: Points asked for.
        iterations: Steps on all levels.
        timings_ms: Stages "prepare", "features", "gather", "alignment".
        details: The `AlignmentResult`, for pictures.
        views: What `details` says of each camera.
        depth: Median distance of the visible points along the optical axis; infinite where it is not known.
        probability: That the pose is right (`alignment_judge.RIGHT`).
        elsewhere: Factor on the covariance that others get (`alignment_judge.AlignmentJudge`).
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
    details: object | None = None
    views: tuple[AlignedView, ...] = ()
    depth: float = float("inf")
    probability: float = 0.0
    elsewhere: float = 1.0

    @property
    def published(self) -> torch.Tensor:
        """The covariance that others get."""
        return self.covariance * self.elsewhere

    @classmethod
    def failed(cls, start: torch.Tensor, reason: str, points_used: int, timings_ms: dict[str, float]) -> FrameAlignment:
        """No pose was found from a start."""
        unknown = torch.full((6, 6), torch.inf, dtype=torch.float64)
        return cls(start, unknown, False, reason, float("inf"), 0.0, 0.0, points_used, 0, timings_ms)


@dataclass(frozen=True)
class TrackResult:
    """What the tracker says of one frame.

    Attributes:
        stamp_ns: Of the frame.
        state: After it.
        map_from_base: None unless the state is TRACKING or DEGRADED, and for an image that was refused because it was not newer
            than the last.
        covariance: Of that pose (base frame, right perturbation).
        map_from_odom: None where there is no odometry or no pose.
        prior: What was expected.
        prior_distance_m: From the prior to the aligned pose; NaN where there is none.
        prior_rotation_rad: The same for the rotation.
        alignment: The one that was believed, or looked best.
        timings_ms: Its stages, and "total".
        message: Empty when all is well, else what is wrong and what to do.
        camera: What the image was aligned with: the reading of its calibration that fits.
        cameras: Of several cameras, what is wrong with each by its name; empty for one that is used.
    """

    stamp_ns: int
    state: TrackState
    map_from_base: torch.Tensor | None = None
    covariance: torch.Tensor | None = None
    map_from_odom: torch.Tensor | None = None
    prior: MotionPrior | None = None
    prior_distance_m: float = float("nan")
    prior_rotation_rad: float = float("nan")
    alignment: FrameAlignment | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    message: str = ""
    camera: Camera | None = None
    cameras: dict[str, str] = field(default_factory=dict)

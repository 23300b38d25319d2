# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tracker: odometry and images in, one judged pose per image out. The same object live, offline and in benchmarks.

States (numbers in `TrackState`); a pose is given only in TRACKING and DEGRADED::

    INITIALIZING  no pose yet; once an initial pose is given, images are aligned around it
      → TRACKING      the image agreed with the map and with the prior
    TRACKING      → DEGRADED  an image failed a gate: the pose is dead reckoning, its covariance grows
    DEGRADED      → TRACKING  an image passed again;   → LOST  dead reckoning went on for too long or too far
    LOST          → RELOCALIZING  with the next image
    RELOCALIZING  → TRACKING  `confirm_frames` images in a row agreed with the map and with each other;
                  → LOST      nothing found for `max_search_s`: only a new initial pose helps

An image whose quality is good but which contradicts the prior is a candidate: it is believed only after the images that
follow confirm it, so one wrong alignment never moves the robot and a robot that was carried is still found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from .covariances import isotropic, mahalanobis, not_better_than, not_worse_than
from .motion_prior import KnownPose, MotionOptions, predict
from .odometry import OdometryBuffer, OdometryOptions, OdometryReport, OdometrySample, OdometryUnavailable
from .types import CameraFrame, FrameAlignment, MotionPrior, PreparedImage, TrackResult, TrackState


class Localizer(Protocol):
    """What the tracker needs of `FrameLocalizer`."""

    def prepare(self, image: np.ndarray, camera: Camera) -> PreparedImage: ...

    def localize_prepared(
        self, prepared: PreparedImage, map_from_camera: torch.Tensor, prior_covariance: torch.Tensor | None = None
    ) -> FrameAlignment: ...


@dataclass(frozen=True)
class QualityGates:
    """What an aligned image must satisfy to be believed.

    min_visible_fraction, min_visible_points: map points that project into the image. min_inlier_fraction: of those, the
    ones whose features agree; min_inlier_fraction_search: likewise while no prior holds the pose. max_cost: mean robust
    cost. max_innovation: Mahalanobis distance to the prior, six degrees of freedom (5.3 is passed by 99.99 % of honest
    Gaussian errors). sure_inlier_fraction, max_innovation_sure: with so many inliers the image is believed further away:
    slipping wheels are commoner than a wrong alignment that looks so good.

    On real sequences wrong alignments had at most 0.19 inliers (98 % of them below 0.15), right ones 0.19 and more, in
    blurred images, and 0.4 and more in sharp ones.
    """

    min_visible_fraction: float = 0.2
    min_visible_points: int = 30
    min_inlier_fraction: float = 0.15
    min_inlier_fraction_search: float = 0.25
    max_cost: float = float("inf")
    max_innovation: float = 5.3
    sure_inlier_fraction: float = 0.4
    max_innovation_sure: float = 16.0


@dataclass(frozen=True)
class TrackerOptions:
    """Limits of the tracker; metres, seconds, radians.

    max_degraded_s, max_degraded_m: how long and far dead reckoning on odometry is published; without odometry only
    max_degraded_blind_s. max_search_s: how long an initial or lost pose is searched. confirm_frames: images that must
    agree before a pose that contradicts the prior, or one found again, is believed. translation_floor, rotation_floor:
    standard deviations below which no covariance goes (map and calibration are not perfect). covariance_scale:
    multiplies what the image alone claims. search_translation, search_rotation: how far from the prior the search goes
    at most. initial_translation_std, initial_rotation_std: of an initial pose that comes without covariance.
    jump_back_s: an image older than the last by more is a jump of the clock and resets the tracker.
    """

    gates: QualityGates = field(default_factory=QualityGates)
    odometry: OdometryOptions = field(default_factory=OdometryOptions)
    motion: MotionOptions = field(default_factory=MotionOptions)
    max_degraded_s: float = 5.0
    max_degraded_m: float = 5.0
    max_degraded_blind_s: float = 0.5
    max_search_s: float = 60.0
    confirm_frames: int = 3
    translation_floor: float = 0.005
    rotation_floor: float = 0.001
    covariance_scale: float = 1.0
    search_translation: float = 2.0
    search_rotation: float = 0.5
    initial_translation_std: float = 0.5
    initial_rotation_std: float = 0.26
    jump_back_s: float = 1.0


# Where to look around a prior: steps in x, y, yaw of the base; one start per image, in this order, round and round.
_SEARCH = ((0, 0, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0),
           (0, 0, 2), (0, 0, -2), (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1), (2, 0, 0), (-2, 0, 0))  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    """A good alignment that is not believed yet, and how many images in a row agreed with it."""

    pose: KnownPose
    count: int


class Tracker:
    """Keeps a robot's pose in a map. Deterministic: the same calls give the same results.

    `track` and the setters belong to one thread; `add_odometry` may be called from another.
    """

    def __init__(self, localizer: Localizer, options: TrackerOptions | None = None) -> None:
        self.options = options or TrackerOptions()
        self.odometry = OdometryBuffer(self.options.odometry)
        self._localizer = localizer
        self.state = TrackState.INITIALIZING
        self._last_stamp_ns: int | None = None
        self._forget_pose()

    @property
    def has_pose(self) -> bool:
        """Whether there is a pose to start from: False after a reset, until `initialize`, and when the search was given
        up."""
        return self._known is not None

    @property
    def _searching(self) -> bool:
        return self.state not in (TrackState.TRACKING, TrackState.DEGRADED)

    # ---- what comes in

    def initialize(self, map_from_base: torch.Tensor, covariance: torch.Tensor | None, stamp_ns: int) -> None:
        """Start (again) from a pose somebody knows, valid at stamp_ns: float64 [4, 4], covariance [6, 6] or None.

        covariance: (translation, rotation) in the base frame, body perturbation; zeros mean unknown like None does.
        Raises InputError if either is not usable; the tracker is unchanged then.
        """
        se3.check_pose(map_from_base, "initial pose")
        default = isotropic(self.options.initial_translation_std, self.options.initial_rotation_std)
        if covariance is None or not bool(covariance.any()):
            covariance = default
        elif not bool(torch.isfinite(covariance).all()) or float(torch.linalg.eigvalsh(covariance.double())[0]) < -1e-9:
            raise InputError("initial pose covariance is NaN or not positive: give variances, or zeros for unknown")
        self.reset()
        covariance = self._floored(covariance.double())
        self._known = KnownPose(int(stamp_ns), map_from_base.double().clone(), covariance)
        self._initial = True

    def add_odometry(
        self, stamp_ns: int, odom_from_base: torch.Tensor, twist_covariance: torch.Tensor | None = None
    ) -> OdometryReport:
        """Keep one odometry sample (see `OdometryBuffer.add`)."""
        return self.odometry.add(stamp_ns, odom_from_base, twist_covariance)

    def reset(self) -> None:
        """Forget the pose, not the odometry: INITIALIZING until `initialize`."""
        self.state = TrackState.INITIALIZING
        self._forget_pose()

    def set_map(self, localizer: Localizer) -> None:
        """Go on with another map (the localizer made for it): poses in the old one mean nothing, so the tracker is
        reset."""
        self._localizer = localizer
        self.reset()

    # ---- one image

    def prepare(self, frame: CameraFrame) -> CameraFrame:
        """The frame with its features, which need no prior: worth calling while odometry is awaited. Nothing is done while
        there is no pose to start from. Raises InputError for an image or camera that cannot be used."""
        if self._known is None or frame.prepared is not None:
            return frame
        return replace(frame, prepared=self._localizer.prepare(frame.image, frame.camera))

    @torch.no_grad()
    def track(self, frame: CameraFrame, base_from_camera: torch.Tensor) -> TrackResult:
        """Pose of the base when the image was taken.

        base_from_camera: float64 [4, 4]. Images must come in the order of their stamps: others are refused (no pose,
        state unchanged), and one far in the past resets the tracker. Raises InputError, and changes nothing, for an
        image or camera that cannot be used.
        """
        began = time.perf_counter()
        refusal = self._refuse(frame.stamp_ns)
        if refusal:
            return self._result(frame.stamp_ns, began, message=refusal)
        se3.check_pose(base_from_camera, "base_from_camera")
        if self._known is None:
            self._last_stamp_ns = frame.stamp_ns
            lost = "lost and given up" if self.state is TrackState.LOST else "no pose to start from"
            return self._result(frame.stamp_ns, began, message=f"{lost}: give an initial pose")

        odometry, odometry_problem = self._odometry_at(frame.stamp_ns)
        if self._known.odometry is None or self._known.odometry.extrapolated_s:
            # Odometry that was late for that image, or an initial pose, may be here by now.
            known_odometry, _ = self._odometry_at(self._known.stamp_ns)
            self._known = replace(self._known, odometry=known_odometry or self._known.odometry)
        prior = self._predict(self._known, self._before, frame.stamp_ns, odometry)
        start, start_covariance = self._start(prior, frame.stamp_ns, odometry)
        camera_from_base = se3.inverse(base_from_camera)
        if start_covariance is not None:
            start_covariance = se3.transform_covariance(start_covariance, camera_from_base)
        prepared = self.prepare(frame).prepared
        alignment = self._localizer.localize_prepared(prepared, start @ base_from_camera, start_covariance)
        self._last_stamp_ns = frame.stamp_ns
        if self._searching:
            self._attempts += 1

        problem = self._quality_problem(alignment)
        distance = rotation = float("nan")
        if not problem:
            pose = alignment.map_from_camera @ camera_from_base
            distance, rotation = (float(v) for v in se3.pose_difference(prior.map_from_base, pose))
            measured = self._measured_covariance(alignment, base_from_camera)
            found = KnownPose(frame.stamp_ns, pose, measured, odometry)
            problem = self._consistency_problem(found, prior, alignment.inlier_fraction)
        else:
            self._candidate = None
        if problem:
            self._fail(frame.stamp_ns, prior, odometry)
            if self.state is TrackState.DEGRADED:
                problem += ": dead reckoning" if odometry else ": guessing without odometry"
            elif self.state is TrackState.LOST and self._known is None:
                problem += f": nothing found for {self.options.max_search_s:g} s, give an initial pose"
        elif odometry_problem and len(self.odometry):
            problem = odometry_problem
        covariance = prior.covariance
        map_from_base = prior.map_from_base
        if self.state is TrackState.TRACKING:
            map_from_base, covariance = self._known.map_from_base, self._known.covariance
        return self._result(
            frame.stamp_ns, began, prior, alignment, map_from_base, covariance, odometry, distance, rotation, problem
        )

    # ---- steps of track

    def _refuse(self, stamp_ns: int) -> str:
        if self._last_stamp_ns is None or stamp_ns > self._last_stamp_ns:
            return ""
        back_s = (self._last_stamp_ns - stamp_ns) * 1e-9
        if back_s <= self.options.jump_back_s:
            return f"image is not newer than the last one ({back_s:.3f} s before it): ignored"
        self.reset()
        if self.odometry.age_s(stamp_ns) < -self.options.jump_back_s:
            self.odometry.clear()
        self._last_stamp_ns = stamp_ns
        return f"time went back by {back_s:.3f} s: the pose is forgotten, give an initial pose"

    def _odometry_at(self, stamp_ns: int) -> tuple[OdometrySample | None, str]:
        try:
            return self.odometry.lookup(stamp_ns), ""
        except OdometryUnavailable as unavailable:
            return None, str(unavailable)

    def _predict(
        self, known: KnownPose, before: KnownPose | None, stamp_ns: int, odometry: OdometrySample | None
    ) -> MotionPrior:
        prior = predict(known, before, stamp_ns, odometry, self.odometry, self.options.motion)
        if self._initial and known is self._known:
            return MotionPrior(prior.map_from_base, prior.covariance, "initial pose", prior.age_s)
        return prior

    def _start(
        self, prior: MotionPrior, stamp_ns: int, odometry: OdometrySample | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where the alignment starts, and the covariance that holds it there (None while searching: nothing should)."""
        if not self._searching:
            return prior.map_from_base, prior.covariance
        if self._candidate is not None:
            return self._predict(self._candidate.pose, None, stamp_ns, odometry).map_from_base, None
        x, y, yaw = _SEARCH[self._attempts % len(_SEARCH)]
        std = np.sqrt(prior.covariance.numpy().diagonal())
        # At least a quarter of the way: whoever is lost should not trust the covariance that led there.
        reach_m, reach_rad = self.options.search_translation, self.options.search_rotation
        translation = std[:2].clip(reach_m / 4, reach_m / 2)
        rotation = std[5].clip(reach_rad / 4, reach_rad / 2)
        offset = np.array([x * translation[0], y * translation[1], 0.0, 0.0, 0.0, yaw * rotation])
        return prior.map_from_base @ se3.se3_exp(torch.from_numpy(offset)), None

    def _quality_problem(self, alignment: FrameAlignment) -> str:
        gates = self.options.gates
        if not alignment.success:
            return f"alignment failed ({alignment.reason})"
        numbers = alignment.map_from_camera.numpy(), alignment.covariance.numpy()
        if not all(np.isfinite(values).all() for values in numbers):
            return "alignment gave a pose that is not finite"
        visible = alignment.visible_fraction * alignment.points_used
        if alignment.visible_fraction < gates.min_visible_fraction or visible < gates.min_visible_points:
            return f"only {visible:.0f} of {alignment.points_used} map points are in the image"
        enough = gates.min_inlier_fraction_search if self._searching else gates.min_inlier_fraction
        if alignment.inlier_fraction < enough:
            return f"only {alignment.inlier_fraction:.0%} of the visible points agree with the map"
        if not alignment.cost <= gates.max_cost:
            return f"cost {alignment.cost:.3g} is above {gates.max_cost:.3g}"
        return ""

    def _measured_covariance(self, alignment: FrameAlignment, base_from_camera: torch.Tensor) -> torch.Tensor:
        """What the image alone says, base frame: inflated where few points agree, floored where it claims too much."""
        inflation = self.options.covariance_scale / max(alignment.inlier_fraction, 0.1) ** 2
        return self._floored(se3.transform_covariance(inflation * alignment.covariance, base_from_camera))

    def _consistency_problem(self, found: KnownPose, prior: MotionPrior, inlier_fraction: float) -> str:
        """Believe the pose found (return "") or say why not yet. Keeps the candidate."""
        gates = self.options.gates
        limit = gates.max_innovation
        innovation = mahalanobis(prior.map_from_base, prior.covariance, found.map_from_base, found.covariance)
        lost = self.state in (TrackState.LOST, TrackState.RELOCALIZING)
        if innovation <= limit and not lost:
            self._accept(found, prior)
            return ""
        if innovation <= gates.max_innovation_sure and inlier_fraction >= gates.sure_inlier_fraction and not lost:
            self._accept(found, None)
            return ""
        count = 1
        if self._candidate is not None:
            expected = self._predict(self._candidate.pose, None, found.stamp_ns, found.odometry)
            away = mahalanobis(expected.map_from_base, expected.covariance, found.map_from_base, found.covariance)
            if away <= limit:
                count += self._candidate.count
        if count >= self.options.confirm_frames:
            self._accept(found, None)
            return ""
        self._candidate = _Candidate(found, count)
        if lost:
            return f"a pose was found, confirmed by {count} of {self.options.confirm_frames} images"
        return f"the image contradicts the {prior.source} prior ({innovation:.1f} standard deviations)"

    def _accept(self, found: KnownPose, prior: MotionPrior | None) -> None:
        covariance = found.covariance
        if prior is not None:
            covariance = self._floored(not_worse_than(covariance, prior.covariance))
        # Poses on both sides of a jump tell no velocity.
        self._before = None if self._initial or prior is None else self._known
        self._known = KnownPose(found.stamp_ns, found.map_from_base, covariance, found.odometry)
        self._initial = False
        self._candidate = None
        self._attempts = 0
        self._searching_since_ns = None
        self.state = TrackState.TRACKING

    def _fail(self, stamp_ns: int, prior: MotionPrior, odometry: OdometrySample | None) -> None:
        if not self._searching and self._may_dead_reckon(stamp_ns, prior, odometry):
            self.state = TrackState.DEGRADED
            return
        if self._searching_since_ns is None:
            self._searching_since_ns = stamp_ns
        if not self._searching:
            self.state = TrackState.LOST
        elif (stamp_ns - self._searching_since_ns) * 1e-9 > self.options.max_search_s:
            self._forget_pose()
            self.state = TrackState.LOST
        elif self.state is TrackState.LOST:
            self.state = TrackState.RELOCALIZING

    def _may_dead_reckon(self, stamp_ns: int, prior: MotionPrior, odometry: OdometrySample | None) -> bool:
        age_s = (stamp_ns - self._known.stamp_ns) * 1e-9
        if prior.source != "odometry":
            return age_s <= self.options.max_degraded_blind_s
        path_m = odometry.distance_m - self._known.odometry.distance_m
        return age_s <= self.options.max_degraded_s and path_m <= self.options.max_degraded_m

    def _floored(self, covariance: torch.Tensor) -> torch.Tensor:
        """Covariance with the floor as least variance in every direction: what a perfect measurement would still
        have."""
        return not_better_than(covariance, isotropic(self.options.translation_floor, self.options.rotation_floor))

    def _forget_pose(self) -> None:
        self._known: KnownPose | None = None
        self._before: KnownPose | None = None
        self._candidate: _Candidate | None = None
        self._initial = False
        self._attempts = 0
        self._searching_since_ns: int | None = None

    def _result(
        self,
        stamp_ns: int,
        began: float,
        prior: MotionPrior | None = None,
        alignment: FrameAlignment | None = None,
        map_from_base: torch.Tensor | None = None,
        covariance: torch.Tensor | None = None,
        odometry: OdometrySample | None = None,
        distance: float = float("nan"),
        rotation: float = float("nan"),
        message: str = "",
    ) -> TrackResult:
        if self._searching:
            map_from_base = covariance = None
        map_from_odom = None
        if map_from_base is not None and odometry is not None:
            map_from_odom = map_from_base @ se3.inverse(odometry.odom_from_base)
        timings_ms = dict(alignment.timings_ms) if alignment is not None else {}
        timings_ms["total"] = (time.perf_counter() - began) * 1e3
        return TrackResult(
            stamp_ns, self.state, map_from_base, covariance, map_from_odom, prior, distance, rotation, alignment,
            timings_ms, message,
        )  # fmt: skip

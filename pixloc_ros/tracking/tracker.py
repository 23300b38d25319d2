# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tracker: odometry and images in, one judged pose per image out. The same object live, offline and in benchmarks.

States (numbers in `TrackState`); a pose is given only in TRACKING and DEGRADED::

    INITIALIZING  no pose yet: images are aligned around an initial pose, and looked for in the whole map
      → TRACKING      an image agreed well with the map near the initial pose, or `confirm_frames` images elsewhere
    TRACKING      → DEGRADED  an image failed a gate: the pose is dead reckoning, its covariance grows
    DEGRADED      → TRACKING  an image passed again
                  → LOST      dead reckoning went on for too long or too far, or the image surely shows another place
    LOST          → RELOCALIZING  with the next image
    RELOCALIZING  → TRACKING  `confirm_frames` images in a row agreed with the map and with odometry in one place, and no
                              other place explains them as well

An image whose quality is good but which contradicts the prior is a candidate: it is believed only after the images that
follow confirm it, so one wrong alignment never moves the robot and a robot that was carried is still found. Several candidates
are followed side by side; where two places look alike, none is believed until the robot has moved to where they differ.

Poses far from the prior come from a `PoseSearch` (`relocalization.Relocalizer`). Without one only the surroundings of the prior
are searched, for `max_search_s`; then only a new initial pose helps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.frames import CameraFrame
from .checks.calibration import CalibrationCheck, CalibrationReport
from .checks.frozen_camera import FrozenCamera
from .checks.odometry import OdometryCheck, OdometryFindings
from .covariances import isotropic, mahalanobis, not_better_than, not_worse_than
from .learned_noise import LearnedNoise
from .motion_prior import KnownPose, MotionOptions, predict
from .odometry import OdometryBuffer, OdometryOptions, OdometryReport, OdometrySample, OdometryUnavailable
from .types import FrameAlignment, FrameMotion, MotionPrior, PreparedFrame, PreparedImage, TrackResult, TrackState


class Aligner(Protocol):
    """What the tracker needs of `FrameAligner`."""

    def prepare(self, image: np.ndarray, camera: Camera) -> PreparedImage: ...

    def localize_prepared(
        self, prepared: PreparedImage, map_from_camera: torch.Tensor, prior_covariance: torch.Tensor | None = None,
        motion: FrameMotion | None = None,
    ) -> FrameAlignment: ...  # fmt: skip


class PoseSearch(Protocol):
    """What the tracker needs of `Relocalizer`."""

    def search(
        self,
        frame: PreparedFrame,
        base_from_camera: torch.Tensor,
        turn: int = 0,
        prior: MotionPrior | None = None,
        known: Sequence[torch.Tensor] = (),
        finalists: int | None = None,
    ) -> list[FrameAlignment]: ...


@dataclass(frozen=True)
class QualityGates:
    """What an aligned image must satisfy to be believed.

    min_visible_fraction, min_visible_points: map points that project into the image. min_inlier_fraction: of those, the
    ones whose features agree; min_inlier_fraction_search: likewise where no prior holds the pose, or against it. max_cost: mean
    robust cost. max_innovation: Mahalanobis distance to the prior, six degrees of freedom (5.3 is passed by 99.99 % of
    honest Gaussian errors). sure_inlier_fraction, max_innovation_sure: with so many inliers the image is believed further away:
    slipping wheels are commoner than a wrong alignment that looks so good. rival_inlier_fraction: where another place has more
    than this share of a place's inliers, neither is believed. min_inlier_fraction_untrusted: least where odometry was found to
    err more than max_trusted_factor times as much as usual: it holds the pose less.

    On real sequences wrong alignments had at most 0.19 inliers (98 % of them below 0.15), right ones 0.19 and more, in
    blurred images, and 0.4 and more in sharp ones.
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


@dataclass(frozen=True)
class TrackerOptions:
    """Limits of the tracker; metres, seconds, radians.

    max_degraded_s: how long dead reckoning on odometry is published; without odometry only max_degraded_blind_s.
    max_degraded_std, max_degraded_depths: and how unsure it may become: a standard deviation in metres, or, if that is more, as
    a share of the depth of what was last seen: beyond it an alignment could hardly start from there, while a car may go
    further than an indoor robot. max_search_s: how long an initial or lost pose is a hint where to look. confirm_frames: images
    that must agree before a pose that contradicts the prior, or one found again, is believed. max_candidates: such poses
    followed at a time. translation_floor, rotation_floor:
    standard deviations of what the image does not know of: errors of map and calibration. They are added to what the image
    claims for the covariance that is published; near things bound the translation's, so that it moves their pixels no further
    than the rotation's does (chosen on the validation drives, docs/evidence/reliability.md).
    prior_translation_floor, prior_rotation_floor: the least standard deviations that the next image's prior and the
    gates count on; wider, since blur and rolling shutter make images contradict each other more than either claims.
    search_translation, search_rotation: how far from the prior the search goes
    at most. initial_translation_std, initial_rotation_std: of an initial pose that comes without covariance.
    jump_back_s: an image older than the last by more is a jump of the clock and resets the tracker.
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


# Where to look around a prior: steps in x, y, yaw of the base; one start per image, in this order, round and round.
_SEARCH = ((0, 0, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0),
           (0, 0, 2), (0, 0, -2), (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1), (2, 0, 0), (-2, 0, 0))  # fmt: skip


@dataclass(frozen=True)
class _Look:
    """One alignment of the image, judged. pose: None where `problem` says what is wrong with it."""

    alignment: FrameAlignment
    pose: KnownPose | None
    problem: str
    searched: bool = False


@dataclass(frozen=True)
class _View:
    """What is known of an image before it is aligned. frame: with its features."""

    frame: PreparedFrame
    base_from_camera: torch.Tensor
    camera_from_base: torch.Tensor
    odometry: OdometrySample | None


@dataclass(frozen=True)
class _Candidate:
    """A good alignment that is not believed yet. count: images in a row that agreed with it; before: the pose at the one before
    the last. missed: images in a row that did not show it. searched: found by the search, not around the prior."""

    pose: KnownPose
    before: KnownPose | None
    count: int
    inlier_fraction: float
    searched: bool
    missed: int = 0


class Tracker:
    """Keeps a robot's pose in a map. Deterministic: the same calls give the same results.

    `track` and the setters belong to one thread; `add_odometry` may be called from another.
    """

    def __init__(
        self, aligner: Aligner, options: TrackerOptions | None = None, pose_search: PoseSearch | None = None,
        calibration_check: CalibrationCheck | None = None,
    ) -> None:  # fmt: skip
        self.options = options or TrackerOptions()
        self.pose_search = pose_search
        self._calibration_check = calibration_check
        self._unchecked: tuple[int, PreparedImage, FrameAlignment] | None = None
        self.odometry = OdometryBuffer(self.options.odometry)
        self._odometry_check = OdometryCheck(self.odometry)
        self._learned_noise = LearnedNoise(self.odometry, self.options.motion)
        self.aligner = aligner
        self._frozen_camera = FrozenCamera()
        self.state = TrackState.INITIALIZING
        self._last_stamp_ns: int | None = None
        self._forget_pose()

    @property
    def has_pose(self) -> bool:
        """Whether there is a pose to start from: False after a reset, until `initialize` or until one is found, and when the
        search around the last one was given up."""
        return self._known is not None

    @property
    def can_relocalize(self) -> bool:
        """Whether poses are looked for in the whole map."""
        return self.pose_search is not None

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

    def relocalize(self) -> None:
        """Forget the pose and look for it in the whole map, from the next image on: RELOCALIZING until one is believed.

        Raises InputError where the tracker was made without a search.
        """
        if self.pose_search is None:
            raise InputError("nothing can look for the pose in the whole map: give an initial pose")
        self.reset()
        self.state = TrackState.RELOCALIZING

    def set_map(self, aligner: Aligner, pose_search: PoseSearch | None = None) -> None:
        """Go on with another map (aligner and search made for it): poses in the old one mean nothing, so the tracker is
        reset."""
        self.aligner = aligner
        self.pose_search = pose_search
        self.reset()
        self._odometry_check.restart()

    # ---- one image

    def prepare(self, frame: CameraFrame) -> CameraFrame:
        """The frame with its features, which need no prior: worth calling while odometry is awaited. Nothing is done while
        there is neither a pose to start from nor a search. Raises InputError for an image or camera that cannot be used."""
        if (self._known is None and self.pose_search is None) or isinstance(frame, PreparedFrame):
            return frame
        return PreparedFrame.of(frame, self.aligner.prepare(frame.image, frame.camera))

    def check_odometry(self) -> OdometryFindings:
        """What the images so far say of the odometry: on another clock, of another scale? Half a millisecond on average, three at
        most: call it after every image, when the pose has been handed on."""
        return self._odometry_check.findings()

    def restart_odometry_check(self) -> None:
        """Forget what was found: the stamps are others from now on."""
        self._odometry_check.restart()

    def check_calibration(self) -> CalibrationReport | None:
        """What the images so far say of the camera's calibration; None while they say too little.

        Looks at the image tracked last, where its turn has come: some milliseconds, so call it when the pose has been handed on.
        A focal length that is found to be wrong is corrected from the next image on.
        """
        if self._unchecked is not None:
            change = abs(self._calibration_check.add(*self._unchecked))
            self._unchecked = None
            if change and self._known is not None and math.isfinite(self._known.depth):
                # The last pose was found with the other focal length: it is off by so much of the depth.
                shift = isotropic(change * self._known.depth, change)
                self._known = replace(self._known, covariance=self._known.covariance + shift)
        return None if self._calibration_check is None else self._calibration_check.report

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
        if self._known is None and self.pose_search is None:
            self._last_stamp_ns = frame.stamp_ns
            lost = "lost and given up" if self.state is TrackState.LOST else "no pose to start from"
            return self._result(frame.stamp_ns, began, message=f"{lost}: give an initial pose")

        odometry, odometry_problem = self._odometry_at(frame.stamp_ns)
        prior = self._prior(frame.stamp_ns, odometry)
        frame = self.prepare(frame)
        if self._calibration_check is not None:
            frame = replace(frame, prepared=self._calibration_check.corrected(frame.prepared))
        view = _View(frame, base_from_camera, se3.inverse(base_from_camera), odometry)
        looks: list[_Look] = []
        believed = None
        frozen = self._frozen_camera.repeats(frame.image, odometry)
        if not frozen and prior is not None and not (self._searching and self._candidates):
            motion = FrameMotion(prior, self._last_inliers, base_from_camera)
            looks.append(self._look(view, *self._start(prior), self._searching, motion))
            believed = looks[0] if self._agrees(looks[0], prior, frame.prepared) else None
        if believed is None and not frozen:
            looks += self._look_elsewhere(view, prior)
            believed = next((look for look in looks if self._agrees(look, prior, frame.prepared)), None)
        self._last_stamp_ns = frame.stamp_ns

        if believed is not None:
            jumped = _distance(prior, believed.pose) > self.options.gates.max_innovation
            problem = ""
            self._accept(believed.pose, None if jumped else prior)
        else:
            problem, believed = self._wait_for_confirmation(looks, prior, frame.stamp_ns, odometry, frame.prepared)
        if frozen:
            problem = "the camera repeats a picture although the robot moves: start its driver again"
        shown = believed or max(looks, key=lambda look: look.alignment.inlier_fraction * look.alignment.success, default=None)
        self._last_inliers = 0.5 if shown is None else shown.alignment.inlier_fraction
        # A sure pose also where it is not believed: odometry on another clock may be what it contradicts.
        sure = believed is not None or self._last_inliers >= self.options.gates.sure_inlier_fraction
        if shown is not None and shown.pose is not None and sure:
            self._odometry_check.add(frame.stamp_ns, shown.pose.map_from_base)
            self._learned_noise.add(shown.pose)
        self._unchecked = None
        if self.state is TrackState.TRACKING:
            if self._calibration_check is not None:
                self._unchecked = frame.stamp_ns, frame.prepared, believed.alignment
            map_from_base, covariance = self._known.map_from_base, self._known.published
            if not problem and odometry_problem and len(self.odometry):
                problem = odometry_problem
        else:
            map_from_base, covariance = (None, None) if prior is None else (prior.map_from_base, prior.covariance)
        return self._result(
            frame.stamp_ns, began, prior, None if shown is None else shown.alignment, map_from_base, covariance, odometry,
            None if shown is None else shown.pose, problem,
        )  # fmt: skip

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

    def _prior(self, stamp_ns: int, odometry: OdometrySample | None) -> MotionPrior | None:
        """From the last known pose; None where there is none."""
        if self._known is None:
            return None
        if self._known.odometry is None or self._known.odometry.extrapolated_s:
            # Odometry that was late for that image, or an initial pose, may be here by now.
            known_odometry, _ = self._odometry_at(self._known.stamp_ns)
            self._known = replace(self._known, odometry=known_odometry or self._known.odometry)
        prior = self._predict(self._known, self._before, stamp_ns, odometry)
        if self._initial:
            prior = MotionPrior(prior.map_from_base, prior.covariance, "initial pose", prior.age_s)
        return replace(prior, noise_factor=max(self.odometry.noise_factors))

    def _predict(self, known: KnownPose, before: KnownPose | None, stamp_ns: int, odometry: OdometrySample | None) -> MotionPrior:
        return predict(known, before, stamp_ns, odometry, self.odometry, self.options.motion)

    def _start(self, prior: MotionPrior) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where the alignment starts, and the covariance that holds it there (None while searching: nothing should)."""
        if not self._searching:
            return prior.map_from_base, prior.covariance
        x, y, yaw = _SEARCH[self._attempts % len(_SEARCH)]
        self._attempts += 1
        std = np.sqrt(prior.covariance.numpy().diagonal())
        # At least a quarter of the way: whoever is lost should not trust the covariance that led there.
        reach_m, reach_rad = self.options.search_translation, self.options.search_rotation
        translation = std[:2].clip(reach_m / 4, reach_m / 2)
        rotation = std[5].clip(reach_rad / 4, reach_rad / 2)
        offset = np.array([x * translation[0], y * translation[1], 0.0, 0.0, 0.0, yaw * rotation])
        return prior.map_from_base @ se3.se3_exp(torch.from_numpy(offset)), None

    def _look(
        self, view: _View, map_from_base: torch.Tensor, covariance: torch.Tensor | None, free: bool,
        motion: FrameMotion | None = None,
    ) -> _Look:  # fmt: skip
        """The image aligned from a pose of the base. free: no prior was believed on the way there, so more must agree."""
        if covariance is not None:
            covariance = se3.transform_covariance(covariance, view.camera_from_base)
        start = map_from_base @ view.base_from_camera
        return self._judged(view, self.aligner.localize_prepared(view.frame.prepared, start, covariance, motion), free)

    def _judged(self, view: _View, alignment: FrameAlignment, free: bool) -> _Look:
        problem = self._quality_problem(alignment, free)
        if problem:
            return _Look(alignment, None, problem)
        pose = alignment.map_from_camera @ view.camera_from_base
        image = se3.transform_covariance(alignment.covariance, view.base_from_camera)
        rotation = self.options.rotation_floor
        published = image + isotropic(min(self.options.translation_floor, rotation * abs(alignment.depth)), rotation)
        # What the next image will be judged by is wider where few points agreed.
        cautious = self._floored(image / max(alignment.inlier_fraction, 0.1) ** 2)
        known = KnownPose(view.frame.stamp_ns, pose, cautious, view.odometry, published, abs(alignment.depth))
        return _Look(alignment, known, "")

    def _look_elsewhere(self, view: _View, prior: MotionPrior | None) -> list[_Look]:
        """Where the candidates should be by now, and what the search finds besides: a bounded number of alignments."""
        expected = [
            self._predict(candidate.pose, candidate.before, view.frame.stamp_ns, view.odometry).map_from_base
            for candidate in self._candidates
        ]
        # What was found around the prior is found there again.
        looks = [
            self._look(view, pose, None, True)
            for candidate, pose in zip(self._candidates, expected)
            if self._searching or candidate.searched
        ]
        if self.pose_search is not None:
            found = self.pose_search.search(
                view.frame, view.base_from_camera, self._turn, prior if self._searching else None,
                [pose @ view.base_from_camera for pose in expected], None if self._searching and not looks else 1,
            )  # fmt: skip
            self._turn += 1
            looks += [replace(self._judged(view, alignment, True), searched=True) for alignment in found]
        return looks

    def _quality_problem(self, alignment: FrameAlignment, free: bool) -> str:
        gates = self.options.gates
        if not alignment.success:
            return f"alignment failed ({alignment.reason})"
        numbers = alignment.map_from_camera.numpy(), alignment.covariance.numpy()
        if not all(np.isfinite(values).all() for values in numbers):
            return "alignment gave a pose that is not finite"
        visible = alignment.visible_fraction * alignment.points_used
        if alignment.visible_fraction < gates.min_visible_fraction or visible < gates.min_visible_points:
            return f"only {visible:.0f} of {alignment.points_used} map points are in the image"
        if alignment.inlier_fraction < gates.least_inliers(free, max(self.odometry.noise_factors)):
            return f"only {alignment.inlier_fraction:.0%} of the visible points agree with the map"
        if not alignment.cost <= gates.max_cost:
            return f"cost {alignment.cost:.3g} is above {gates.max_cost:.3g}"
        return ""

    def _agrees(self, look: _Look, prior: MotionPrior | None, prepared: PreparedImage) -> bool:
        """Whether a look is believed at once, since it is where the prior says."""
        gates = self.options.gates
        if look.pose is None or prior is None or self.state in (TrackState.LOST, TrackState.RELOCALIZING):
            return False
        sure = look.alignment.inlier_fraction >= gates.sure_inlier_fraction
        if self.state is TrackState.INITIALIZING and not sure:
            return False
        limit = gates.innovation_limit(sure and not look.searched, prior.noise_factor)
        if _distance(prior, look.pose) > limit:
            return False
        if self.state is TrackState.DEGRADED:
            # A prior that has grown vague lets in what another lens shows.
            return not self._wrong_lens(prepared, look)
        return self._calibration_check is None or not self._calibration_check.hopeless

    def _wrong_lens(self, prepared: PreparedImage, look: _Look) -> bool:
        return self._calibration_check is not None and self._calibration_check.contradicts(prepared, look.alignment)

    def _wait_for_confirmation(
        self, looks: list[_Look], prior: MotionPrior | None, stamp_ns: int, odometry: OdometrySample | None,
        prepared: PreparedImage,
    ) -> tuple[str, _Look | None]:  # fmt: skip
        """No look is where the prior says: follow the candidates, and believe one that was confirmed often enough.

        Returns what is wrong (empty: nothing) and the look that is believed after all.
        """
        # Against the prior an image must be as good as one without: a wrong calibration can be consistent with itself.
        least = self.options.gates.min_inlier_fraction_search
        good = [look for look in looks if look.pose is not None and look.alignment.inlier_fraction >= least]
        followed = self._follow(good, stamp_ns, odometry)
        self._candidates = [candidate for candidate, _ in followed]
        winner = self._winner(prior)
        wrong_lens = False
        if winner is not None:
            look = next(look for candidate, look in followed if candidate is winner)
            # Through another lens a place looks like another place, consistently: only the focal length itself tells.
            wrong_lens = self._wrong_lens(prepared, look)
        if winner is not None and not wrong_lens:
            problem = ""
            if self._initial and prior is not None:
                away = float(se3.pose_difference(prior.map_from_base, winner.pose.map_from_base)[0])
                if _distance(prior, winner.pose) > self.options.gates.max_innovation:
                    problem = f"found {away:.1f} m away from the initial pose that was given"
            self._accept(winner.pose, None)
            return problem, look
        sure = self.options.gates.sure_inlier_fraction
        elsewhere = any(c.searched and (c.count > 1 or c.count and c.inlier_fraction >= sure) for c in self._candidates)
        self._fail(stamp_ns, prior, elsewhere)
        if wrong_lens:
            return "a pose was found that only another focal length explains: check the calibration", None
        return self._problem(looks, prior, odometry), None

    def _problem(self, looks: list[_Look], prior: MotionPrior | None, odometry: OdometrySample | None) -> str:
        """Why no pose is believed, in words."""
        options = self.options
        count = max((candidate.count for candidate in self._candidates), default=0)
        if count and (self._searching or prior is None):
            if count >= options.confirm_frames:
                return f"{len(self._candidates)} places look the same: drive on, or give an initial pose"
            return f"a pose was found, confirmed by {count} of {options.confirm_frames} images"
        if not looks:
            problem = "no keyframe looks like the image"
        elif looks[0].pose is not None and self._calibration_check is not None and self._calibration_check.hopeless:
            problem = self._calibration_check.report.message
        elif looks[0].pose is not None and prior is not None:
            away = _distance(prior, looks[0].pose)
            problem = f"the image contradicts the {prior.source} prior ({away:.1f} standard deviations)"
        else:
            problem = looks[0].problem
        if self.state is TrackState.DEGRADED:
            return problem + (": dead reckoning" if odometry else ": guessing without odometry")
        if self._known is None and prior is not None:
            problem += f": nothing found for {options.max_search_s:g} s"
            return problem + (", looking in the whole map" if self.can_relocalize else ", give an initial pose")
        return problem

    def _follow(
        self, looks: list[_Look], stamp_ns: int, odometry: OdometrySample | None
    ) -> list[tuple[_Candidate, _Look | None]]:
        """The candidates that the image still shows, with the looks that say so; new ones for what else it may show; and, for
        as many images as a confirmation takes, those that it does not show: one blurred image must not settle which of two
        places that look alike is the right one."""
        limit = self.options.gates.max_innovation
        left = list(looks)
        followed: list[tuple[_Candidate, _Look | None]] = []
        missed: list[_Candidate] = []
        for candidate in self._candidates:
            expected = self._predict(candidate.pose, candidate.before, stamp_ns, odometry)
            distances = [_distance(expected, look.pose) for look in left]
            if not distances or min(distances) > limit:
                # Unless another candidate has come to the same place.
                if not any(self._same_place(expected, found.pose) for found, _ in followed):
                    missed.append(replace(candidate, count=0, missed=candidate.missed + 1))
                continue
            look = left[int(np.argmin(distances))]
            inliers = look.alignment.inlier_fraction
            found = _Candidate(look.pose, candidate.pose, candidate.count + 1, inliers, candidate.searched)
            followed.append((found, look))
            left = [other for other, distance in zip(left, distances) if distance > limit]
        for look in left:
            if any(self._same_place(look.pose, found.pose) for found, _ in followed):
                continue
            # Without odometry the first step of a candidate tells its velocity.
            origin = self._moved_from(look.pose, missed) if odometry is None else None
            if origin is not None:
                missed.remove(origin)
            before = None if origin is None else origin.pose
            followed.append((_Candidate(look.pose, before, 1, look.alignment.inlier_fraction, look.searched), look))
        followed += [(candidate, None) for candidate in missed if candidate.missed < self.options.confirm_frames]
        followed.sort(key=lambda pair: (-pair[0].count, -pair[0].inlier_fraction))
        return followed[: self.options.max_candidates]

    def _moved_from(self, pose: KnownPose, candidates: list[_Candidate]) -> _Candidate | None:
        """The candidate that may be this pose one step later, by the greatest speeds that are believed of a robot."""
        limits = self.options.odometry
        for candidate in candidates:
            away, turned = se3.pose_difference(candidate.pose.map_from_base, pose.map_from_base)
            seconds = (pose.stamp_ns - candidate.pose.stamp_ns) * 1e-9
            if float(away) <= limits.max_speed * seconds and float(turned) <= limits.max_turn_rate * seconds:
                return candidate
        return None

    def _same_place(self, one: KnownPose | MotionPrior, other: KnownPose) -> bool:
        """Whether two poses are too near to one another to be two places."""
        away, turned = se3.pose_difference(one.map_from_base, other.map_from_base)
        return float(away) < self.options.search_translation / 4 and float(turned) < self.options.search_rotation / 4

    def _winner(self, prior: MotionPrior | None) -> _Candidate | None:
        """The candidate to believe: confirmed often enough, and no other place explains the images as well. A place near the
        prior need not fear places far from it."""
        gates = self.options.gates

        def near(candidate: _Candidate) -> bool:
            return prior is not None and _distance(prior, candidate.pose) <= gates.max_innovation

        confirmed = [candidate for candidate in self._candidates if candidate.count >= self.options.confirm_frames]
        for candidate in confirmed:
            least = gates.rival_inlier_fraction * candidate.inlier_fraction
            rivals = (
                c for c in self._candidates if c.inlier_fraction > least and not self._same_place(c.pose, candidate.pose)
            )  # fmt: skip
            if all(near(candidate) and not near(rival) for rival in rivals):
                return candidate
        return None

    def _accept(self, found: KnownPose, prior: MotionPrior | None) -> None:
        covariance, published = found.covariance, found.published
        if prior is not None:
            covariance = self._floored(not_worse_than(covariance, prior.covariance))
            published = not_worse_than(published, prior.covariance)
        # Poses on both sides of a jump tell no velocity.
        self._before = None if self._initial or prior is None else self._known
        self._known = replace(found, covariance=covariance, published=published)
        self._initial = False
        self._end_search()
        self.state = TrackState.TRACKING

    def _fail(self, stamp_ns: int, prior: MotionPrior | None, elsewhere: bool) -> None:
        """No pose is believed. elsewhere: the image surely shows another place, so that dead reckoning is not believed."""
        if not self._searching and not elsewhere and self._may_dead_reckon(stamp_ns, prior):
            self.state = TrackState.DEGRADED
            return
        if self._searching_since_ns is None:
            self._searching_since_ns = stamp_ns
        if not self._searching:
            self.state = TrackState.LOST
        elif self._known is not None and (stamp_ns - self._searching_since_ns) * 1e-9 > self.options.max_search_s:
            candidates, turn = self._candidates, self._turn
            self._forget_pose()
            self._candidates, self._turn = candidates, turn
            self.state = TrackState.LOST
        elif self.state is TrackState.LOST:
            self.state = TrackState.RELOCALIZING

    def _may_dead_reckon(self, stamp_ns: int, prior: MotionPrior) -> bool:
        age_s = (stamp_ns - self._known.stamp_ns) * 1e-9
        if prior.source != "odometry":
            return age_s <= self.options.max_degraded_blind_s
        std = math.sqrt(float(prior.covariance.diagonal()[:3].max()))
        least, share = self.options.max_degraded_std, self.options.max_degraded_depths
        return age_s <= self.options.max_degraded_s and std <= max(least, share * self._known.depth)

    def _floored(self, covariance: torch.Tensor) -> torch.Tensor:
        """Covariance for the next prior: at least the floor's variance in every direction."""
        return not_better_than(covariance, isotropic(self.options.prior_translation_floor, self.options.prior_rotation_floor))

    def _forget_pose(self) -> None:
        self._known: KnownPose | None = None
        self._before: KnownPose | None = None
        self._odometry_check.interrupt()
        self._learned_noise.interrupt()
        self._initial = False
        self._end_search()

    def _end_search(self) -> None:
        self._candidates: list[_Candidate] = []
        self._attempts = 0
        self._turn = 0
        self._last_inliers = 0.5
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
        found: KnownPose | None = None,
        message: str = "",
    ) -> TrackResult:
        distance = rotation = float("nan")
        if prior is not None and found is not None:
            distance, rotation = (float(v) for v in se3.pose_difference(prior.map_from_base, found.map_from_base))
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


def _distance(prior: MotionPrior, pose: KnownPose) -> float:
    """Distance from a prior to a pose found, in standard deviations of both together."""
    return mahalanobis(prior.map_from_base, prior.covariance, pose.map_from_base, pose.covariance)

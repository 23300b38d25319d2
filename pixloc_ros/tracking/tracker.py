# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tracker: odometry and images in, one judged pose per image out. The same object live, offline and in benchmarks.

States (numbers in `TrackState`); a pose is given only in TRACKING and DEGRADED::

    INITIALIZING  no pose yet: images are aligned around an initial pose, and searched for in the whole map
      → TRACKING      an image agreed well with the map near the initial pose, or `confirm_frames` images elsewhere
    TRACKING      → DEGRADED  an image failed a gate: the pose is dead reckoning by recent images or odometry
                              or no image came for a second and three times the usual interval
    DEGRADED      → TRACKING  an image passed again
                  → LOST      dead reckoning went on for too long or too far, or the image surely shows another place
    LOST          → RELOCALIZING  with the next image
    RELOCALIZING  → TRACKING  `confirm_frames` images in a row agreed with the map and with odometry in one place, and no
                              other place explains them as well

An image whose quality is good but which contradicts the prior is a candidate: it is believed only after the images that
follow confirm it, so one wrong alignment never moves the robot and a robot that was carried is still found. Several candidates
are followed side by side; where two places look the same, none is believed until the robot has moved to where they differ.

Poses far from the prior come from a `Relocalizer`. Without one only the surroundings of the prior are searched, for
`max_search_s`; then only a new initial pose helps. No pose is believed that says that the camera is mounted another way.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..io.frames import CameraFrame
from .calibration_check import CalibrationCheck, CalibrationReport
from .calibration_choice import CalibrationChoice
from .camera_rig import CameraRig
from .candidates import Candidates
from .covariances import given_covariance, not_worse_than
from .frame_aligner import FrameAligner
from .gyro import Gyro
from .judge import FrameContext, Judge, Look, distance
from .learned_noise import LearnedNoise
from .motion_prior import KnownPose, motion_near, predict
from .mount_check import MountCheck
from .odometry import OdometryBuffer, OdometryReport, OdometrySample
from .odometry_check import OdometryCheck, OdometryFindings
from .options import TrackerOptions
from .recent_frames import RecentFrames
from .relocalization import Relocalizer, start_around
from .silence import ImageGap
from .types import MotionPrior, PreparedFrame, TrackResult, TrackState


class Tracker:
    """Keeps a robot's pose in a map. Deterministic: the same calls give the same results.

    What images teach is learned after their poses were given (`learn`). For one thread; another may call `add_odometry`.

    Attributes:
        aligner: Aligns one image from one prior.
        pose_search: Finds poses in the whole map; None: only around the last pose.
        odometry: What is kept of it.
        gyro: What is kept of its readings, which may be added from another thread, too.
        options: The limits.
        mount_check: What speaks against base_from_camera.
        calibration_choice: Which of two readings of a calibration is used.
        rig: Aligns one camera, or several.
        state: After the last image.
    """

    def __init__(
        self,
        aligner: FrameAligner,
        options: TrackerOptions | None = None,
        pose_search: Relocalizer | None = None,
        calibration_check: CalibrationCheck | None = None,
        mount_check: MountCheck | None = None,
        between_frames: bool = False,
    ) -> None:
        """From parts; `Localizer.tracker` puts the usual ones together."""
        self.aligner, self.pose_search = aligner, pose_search
        self.options = options = options or TrackerOptions()
        self.odometry, self.gyro = OdometryBuffer(options.odometry), Gyro(options.motion, options.learning)
        self._motion = self.odometry, options.motion, self.gyro.turn
        self._judge, self.rig = Judge(options, calibration_check), CameraRig(aligner, pose_search, options, self.odometry)
        self._candidates = Candidates(options, self._predict)
        self._recent = RecentFrames(aligner, self._judge, self._moved, options.may_publish) if between_frames else None
        self._calibration_check = calibration_check
        self.mount_check, self.calibration_choice = mount_check or MountCheck("off"), CalibrationChoice(aligner, pose_search)
        self._learned_noise = LearnedNoise(self.odometry, options.motion, options.learning)
        self._unlearned: tuple[FrameContext, Look | None, Look | None] | None = None
        self._odometry_check, self._gap = OdometryCheck(self.odometry), ImageGap()
        self.reset()

    @property
    def has_pose(self) -> bool:
        """Whether there is a pose to start from: one was given or found since the last reset, and its search not given up."""
        return self._known is not None

    @property
    def can_relocalize(self) -> bool:
        """Whether poses are searched for in the whole map."""
        return self.pose_search is not None

    @property
    def _searching(self) -> bool:
        return self.state not in (TrackState.TRACKING, TrackState.DEGRADED)

    # ---- what comes in

    def initialize(self, map_from_base: torch.Tensor, covariance: torch.Tensor | None, stamp_ns: int) -> None:
        """Starts (again) from a known pose.

        Args:
            map_from_base: float64 [4, 4].
            covariance: [6, 6] (translation, rotation) in the base frame, body perturbation; None or zeros: unknown.
            stamp_ns: When the pose is valid.

        Raises:
            InputError: The pose or its covariance is not usable; the tracker is unchanged then.
        """
        se3.check_pose(map_from_base, "initial pose")
        covariance = given_covariance(covariance, self.options.initial_translation_std, self.options.initial_rotation_std)
        self.reset()
        self.mount_check.expect(map_from_base)
        self._known = KnownPose(int(stamp_ns), map_from_base.double().clone(), self._judge.floored(covariance))
        self._initial = True

    def add_odometry(
        self,
        stamp_ns: int,
        odom_from_base: torch.Tensor,
        twist_covariance: torch.Tensor | None = None,
        twist: np.ndarray | None = None,
    ) -> OdometryReport:
        """Keeps one odometry sample (see `OdometryBuffer.add`)."""
        return self.odometry.add(stamp_ns, odom_from_base, twist_covariance, twist)

    def reset(self) -> None:
        """Forgets the pose, not the odometry: INITIALIZING until `initialize`."""
        self.learn()
        self.state = TrackState.INITIALIZING
        self._forget_pose()
        self._end_search()

    def relocalize(self) -> None:
        """Forgets the pose and searches for it in the whole map, from the next image on: RELOCALIZING until one is believed.

        Raises:
            InputError: The tracker was made without a search.
        """
        if self.pose_search is None:
            raise InputError("nothing can look for the pose in the whole map: give an initial pose")
        self.reset()
        self.state = TrackState.RELOCALIZING

    # ---- what is found out about odometry, gyro, mounts, cameras and calibration

    @torch.no_grad()
    def learn(self) -> None:
        """Learns from the image tracked last, for those that follow: some milliseconds now and then, so call it when the pose has
        been handed on. Where nobody did, the next image waits for it; poses are the same."""
        if self._unlearned is None:
            return
        (view, shown, believed), self._unlearned = self._unlearned, None
        # A sure pose also where it is not believed: odometry on another clock may be what it contradicts.
        sure = believed is not None or (shown is not None and shown.probability >= self.options.gates.sure_probability)
        if shown is not None and shown.pose is not None and sure:
            self._odometry_check.add(view.stamp_ns, shown.pose.map_from_base)
            self._learned_noise.add(shown.pose)
            self.gyro.learn(shown.pose)
        self.mount_check.learn()
        self.rig.learn(view.views, believed and believed.alignment)
        if believed is None:
            return
        if self._recent:
            self._recent.saw(view, believed.alignment, self._known)
        seen = view.stamp_ns, view.frame.prepared, believed.alignment
        if self._calibration_check is not None and (change := self._calibration_check.add(*seen)):
            self._known = self._known.refocused(abs(change))

    def check_odometry(self) -> OdometryFindings:
        """What the images so far say of the odometry: on another clock, of another scale? For after every image, as `learn`."""
        self.learn()
        return self._odometry_check.findings()

    def restart_odometry_check(self) -> None:
        """Forgets what was found: the stamps are others from now on."""
        self.learn()
        self._odometry_check.restart()

    def check_calibration(self) -> CalibrationReport | None:
        """What the images so far say of the focal length, which is corrected if it is wrong; None while they say too little."""
        self.learn()
        return None if self._calibration_check is None else self._calibration_check.report

    # ---- one image

    def prepare(self, frame: CameraFrame) -> CameraFrame:
        """The frame with its features, which need no prior: worth calling while odometry is awaited. Nothing is done while
        there is neither a pose to start from nor a search. Raises InputError for an image or camera that cannot be used."""
        if (self._known is None and self.pose_search is None) or isinstance(frame, PreparedFrame):
            return frame
        return self.rig.prepare(frame)

    @torch.no_grad()
    def watch(self, stamp_ns: int) -> float:
        """Tells the time while no image can be tracked: DEGRADED, then LOST. `track` does so too: after a gap the state is the
        same whether somebody watched or not. Returns how long no image came, in seconds; 0 while that is no longer than usual."""
        self.learn()
        silent_s = self._gap.seconds(stamp_ns)
        if silent_s and not self._searching:
            odometry, _ = self.odometry.find(stamp_ns)
            prior = predict(self._known, self._before, stamp_ns, odometry, *self._motion)
            goes_on = self.options.may_dead_reckon(prior, self._known.depth, self.options.max_degraded_s)
            self.state, self._unseen = (TrackState.DEGRADED, False) if goes_on else (TrackState.LOST, True)
        return silent_s

    @torch.no_grad()
    def track(self, frame: CameraFrame, base_from_camera: torch.Tensor) -> TrackResult:
        """Pose of the base when an image was taken.

        Images must come in the order of their stamps: others are refused (no pose, state unchanged), and one far in the past
        resets the tracker.

        Args:
            frame: The image.
            base_from_camera: float64 [4, 4].

        Raises:
            InputError: The image or camera cannot be used; nothing is changed.
        """
        began = time.perf_counter()
        silent_s = self.watch(frame.stamp_ns)
        problem = self._refuse(frame.stamp_ns)
        if not problem:
            se3.check_pose(base_from_camera, "base_from_camera")
            if self._known is None and self.pose_search is None:
                self._gap.saw(frame.stamp_ns)
                lost = "lost and given up" if self.state is TrackState.LOST else "no pose to start from"
                problem = f"{lost}: give an initial pose"
        if problem:
            total_ms = {"total": (time.perf_counter() - began) * 1e3}
            return TrackResult(frame.stamp_ns, self.state, timings_ms=total_ms, message=problem)

        odometry, odometry_problem = self.odometry.find(frame.stamp_ns)
        view = self._view(frame, base_from_camera, odometry)
        looks, believed = self._look(view) if view.views else ([], None)
        self._gap.saw(frame.stamp_ns)
        best = believed or max(looks, key=lambda look: look.inliers * look.alignment.success, default=None)
        objection = self.mount_check.judge(best, view, not self._searching)
        if believed and not objection:
            jumped = distance(view.prior, believed.pose) > self.options.gates.max_innovation
            before = self._known if view.prior.source == "static" else None  # then the step tells the velocity
            self._accept(believed.pose, None if jumped else view.prior, before)
        else:
            problem, believed = self._wait_for_confirmation(looks, view, objection)
        if not view.views:
            problem = "the camera repeats a picture although the robot moves: start its driver again"
        self._unlearned = view, believed or best, believed
        if self.state is TrackState.TRACKING and not problem and len(self.odometry):
            problem = odometry_problem
        if silent_s:
            problem = f"the first image after {silent_s:.1f} s" + (f": {problem}" if problem else "")
        return self._result(view, believed or best, began, problem)

    # ---- steps of track

    def _refuse(self, stamp_ns: int) -> str:
        if self._gap.last_ns is None or stamp_ns > self._gap.last_ns:
            return ""
        back_s = (self._gap.last_ns - stamp_ns) * 1e-9
        if back_s <= self.options.jump_back_s:
            return f"image is not newer than the last one ({back_s:.3f} s before it): ignored"
        self.reset()
        self._gap.restart()
        if self.odometry.age_s(stamp_ns) < -self.options.jump_back_s:
            self.odometry.clear()
        self._gap.saw(stamp_ns)
        return f"time went back by {back_s:.3f} s: the pose is forgotten, give an initial pose"

    def _view(self, frame: CameraFrame, base_from_camera: torch.Tensor, odometry: OdometrySample | None) -> FrameContext:
        """The image with its features and its prior, from the last known pose."""
        noise_factor = max(1.0, *self.odometry.noise_factors)
        bare = FrameContext(frame, base_from_camera, se3.inverse(base_from_camera), odometry, None, noise_factor)
        prior = None
        if self._known is not None:
            if self._known.odometry is None or self._known.odometry.extrapolated_s:
                # Odometry that was late for that image, or an initial pose, may be here by now.
                known_odometry, _ = self.odometry.find(self._known.stamp_ns)
                self._known = replace(self._known, odometry=known_odometry or self._known.odometry)
            prior = replace(self._predict(self._known, self._before, bare), noise_factor=noise_factor)
            if self._initial:
                prior = replace(prior, source="initial pose", motion=None)
        frame = self.calibration_choice.chosen(self.prepare(frame), base_from_camera, prior)
        if self._calibration_check is not None:
            frame = replace(frame, prepared=self._calibration_check.corrected(frame.prepared))
        view = replace(bare, frame=frame, prior=prior, gravity=self.gyro.gravity)
        return replace(view, views=self.rig.views(view, self._motion_to))

    def _motion_to(self, stamp_ns: int, view: FrameContext) -> tuple[torch.Tensor, torch.Tensor]:
        known = view.stamp_ns, view.prior, view.odometry, stamp_ns, self.odometry.find(stamp_ns)[0]
        return motion_near(*known, *self._motion, self._learned_noise.velocity(view.stamp_ns))

    def _moved(self, known: KnownPose, before: KnownPose | None, view: FrameContext) -> MotionPrior:
        return predict(known, before, view.stamp_ns, view.odometry, *self._motion)

    def _predict(self, known: KnownPose, before: KnownPose | None, view: FrameContext) -> MotionPrior:
        return self.gyro.gravity.upright(self._moved(known, before, view), view.stamp_ns)

    def _look(self, view: FrameContext) -> tuple[list[Look], Look | None]:
        """All looks at the image, and the one that is believed at once: around the prior and, unless that will do, elsewhere."""
        looks: list[Look] = []
        # Lost for want of images, not by one: the prior counts as much as a pose that somebody gives.
        state = TrackState.INITIALIZING if self._unseen else self.state
        if view.prior is not None and not (self._searching and len(self._candidates)):
            start, held = view.prior.map_from_base, view.prior.covariance
            if self._searching:
                # Nothing should hold the pose where it was lost.
                reach = self.options.search_translation, self.options.search_rotation
                start, held = start_around(view.prior, self._attempts, *reach), None
                self._attempts += 1
            looks.append(self._align(view, start, held))
            if self._judge.agrees(looks[0], view, state):
                return looks, looks[0]
        looks += self._look_elsewhere(view)
        return looks, next((look for look in looks if self._judge.agrees(look, view, state)), None)

    def _align(self, view: FrameContext, map_from_base: torch.Tensor, held: torch.Tensor | None = None) -> Look:
        """The image aligned from a pose of the base. held: covariance of the prior that holds it; None: no prior is believed."""
        covariance = None if held is None else se3.transform_covariance(held, view.camera_from_base)
        start = map_from_base @ view.base_from_camera
        alignment = self.rig.localize(view.views, start, covariance)
        return self._judge.look(view, alignment, held is None)

    def _look_elsewhere(self, view: FrameContext) -> list[Look]:
        """Where the candidates should be by now, and what else the search finds: a bounded number of alignments."""
        expected = self._candidates.expected(view)
        # What was found around the prior is found there again.
        looks = [self._align(view, pose.map_from_base) for one, pose in expected if self._searching or one.searched]
        if self.pose_search is not None:
            known = [pose.map_from_base @ view.base_from_camera for _, pose in expected]
            prior, finalists = view.prior if self._searching else None, None if self._searching and not looks else 1
            found = self.rig.search(view, self._turn, prior, known, finalists)
            self._turn += 1
            looks += [self._judge.look(view, alignment, True, searched=True) for alignment in found]
        return looks

    def _wait_for_confirmation(self, looks: list[Look], view: FrameContext, objection: str) -> tuple[str, Look | None]:
        """No look can be believed yet: follow the candidates, and believe one that was confirmed often enough. Returns what is
        wrong (empty: nothing) and the look that is believed after all."""
        gates, prior = self.options.gates, view.prior
        # Against the prior an image must be as good as one without: a wrong calibration can be consistent with itself.
        self._candidates.follow([k for k in looks if k.pose is not None and k.probability >= gates.min_probability_search], view)
        winner = self._candidates.winner(prior)
        if winner is not None:
            objection = self.mount_check.against(winner.look, view)
        wrong_mount = bool(objection)  # and through another lens a place looks like another, consistently
        if winner is not None and self._judge.wrong_lens(winner.look, view):
            objection = "a pose was found that only another focal length explains: check the calibration"
        if winner is not None and not objection:
            problem = ""
            if self._initial and prior is not None and distance(prior, winner.pose) > gates.max_innovation:
                away = float(se3.pose_difference(prior.map_from_base, winner.pose.map_from_base)[0])
                problem = f"found {away:.1f} m away from the initial pose that was given"
            self._accept(winner.pose, None, winner.before)
            return problem, winner.look
        self._fail(view, wrong_mount)
        return objection or self._problem(looks, view), None

    def _problem(self, looks: list[Look], view: FrameContext) -> str:
        """Why no pose is believed, in words."""
        options, prior = self.options, view.prior
        if self._candidates.most_confirmed and (self._searching or prior is None):
            return self._candidates.why_not()
        problem = self._judge.why_not(looks[0], prior) if looks else "no keyframe looks like the image"
        if self.state is TrackState.DEGRADED:
            how = "dead reckoning" if view.odometry else "guessing without odometry"
            return f"{problem}: {'following recent images' if self._known.stamp_ns == view.stamp_ns else how}"
        if self._known is None and prior is not None:
            problem += f": nothing found for {options.max_search_s:g} s"
            return problem + (", searching the whole map" if self.can_relocalize else ", give an initial pose")
        return problem

    def _accept(self, found: KnownPose, prior: MotionPrior | None, before: KnownPose | None = None) -> None:
        """A pose is believed. prior: what it was expected to be, None where it is somewhere else; before: one that led there."""
        # Poses on both sides of a jump tell no velocity.
        self._before = before if self._initial or prior is None else self._known
        self._known = found
        if prior is not None:
            covariance = self._judge.floored(not_worse_than(found.covariance, prior.covariance))
            self._known = replace(found, covariance=covariance, published=not_worse_than(found.published, prior.published))
        self._initial = False
        self._end_search()
        self.state = TrackState.TRACKING

    def _fail(self, view: FrameContext, wrong_mount: bool) -> None:
        """No pose is believed: dead reckoning, as long as that may go on and the images do not surely show another place."""
        elsewhere = self._searching or wrong_mount or self._candidates.show_another_place()
        if not elsewhere and self._dead_reckons(view):
            self.state = TrackState.DEGRADED
            return
        self._searching_since_ns = self._searching_since_ns or view.stamp_ns
        if not self._searching:
            self.state = TrackState.LOST
        elif self._known is not None and (view.stamp_ns - self._searching_since_ns) * 1e-9 > self.options.max_search_s:
            self._forget_pose()
            self._attempts, self._searching_since_ns = 0, None
            self.state = TrackState.LOST
        elif self.state is TrackState.LOST:
            self.state = TrackState.RELOCALIZING

    def _dead_reckons(self, view: FrameContext) -> bool:
        """Whether recent frames tell the pose, which is the last one known then, or the prior is good enough to be given."""
        found = self._recent and self._recent.follow(view, self.rig.exact(view.views), self._known, self._before)
        if found:
            self._known, self._before = found
        return bool(found) or self.options.may_dead_reckon(view.prior, self._known.depth, self.options.max_degraded_blind_s)

    def _forget_pose(self) -> None:
        self._known: KnownPose | None = None
        self._before: KnownPose | None = None
        self._initial = False
        for one in (self._odometry_check, self._learned_noise, self.gyro):
            one.interrupt()

    def _end_search(self) -> None:
        self._candidates.clear()
        self._attempts = self._turn = 0
        self._unseen = False
        self._searching_since_ns: int | None = None

    def _result(self, view: FrameContext, shown: Look | None, began: float, message: str) -> TrackResult:
        map_from_base = covariance = map_from_odom = None
        if self.state is TrackState.TRACKING:
            map_from_base, covariance = self._known.map_from_base, self._known.published
        elif self.state is TrackState.DEGRADED:
            pose = self._known if self._known.stamp_ns == view.stamp_ns else view.prior
            map_from_base, covariance = pose.map_from_base, pose.published
        if map_from_base is not None and view.odometry is not None:
            map_from_odom = map_from_base @ se3.inverse(view.odometry.odom_from_base)
        away = (math.nan, math.nan)
        if view.prior and shown and shown.pose:
            away = tuple(map(float, se3.pose_difference(view.prior.map_from_base, shown.pose.map_from_base)))
        alignment = shown and shown.alignment
        timings_ms = {**(alignment.timings_ms if alignment else {}), "total": (time.perf_counter() - began) * 1e3}
        found = map_from_base, covariance, map_from_odom, view.prior, *away, alignment, timings_ms, message
        return TrackResult(view.stamp_ns, self.state, *found, view.frame.camera, self.rig.problems)

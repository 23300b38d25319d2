# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The cameras of a robot together: one alignment over the views of all, without those that contradict the others.

A camera that is covered, hangs, or is mounted another way than TF says is noticed by itself: at the pose that the others agree
on, few of its points do. It is left out and named, and looked at again, one such camera an image, until it fits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..io.frames import CameraFrame
from .calibration_check import CalibrationCheck
from .covariances import mahalanobis
from .frame_aligner import FrameAligner
from .judge import FrameContext, FrozenCamera
from .odometry import OdometryBuffer
from .options import TrackerOptions
from .prior_std import PriorStd
from .relocalization import Relocalizer
from .types import FrameAlignment, MotionPrior, PreparedFrame, PreparedImage, RigView

_ODD_SHARE, _LEAST_VISIBLE = 0.5, 20
"""A view with less than this share of the best view's agreement contradicts it; one with fewer points says nothing."""
_MISSES, _HITS = 3, 3
"""So many images in a row leave a camera out, and take it in again."""
_LASTING = 15
"""A problem that lasted so many images is worth a remark."""
_PLACED_M, _PLACED_RAD = 0.003, 0.0005
"""Standard deviations up to which the motion between two images is known as well as an image tells."""
_PROBE = PriorStd(8.0, depth_share=0.1)
"""How far off the mount of a camera that is left out may be, to be measured."""
_SHARED = PriorStd(5.0, depth_share=0.1)
"""How far off a pose found by one camera may be, when all look from there."""
_MEASURED = 9
FROZEN = "it repeats a picture although the robot moves: start its driver again"
MotionTo = Callable[[int, FrameContext], tuple[torch.Tensor, torch.Tensor]]
"""Motion [4, 4] of the base from a frame to another stamp, and its covariance [6, 6] (body perturbation)."""
BLIND = "it shows nothing of the map: covered, before a bare wall, or mounted another way than TF says"
UNUSABLE = "its image cannot be used"


@dataclass
class _Camera:
    """What is remembered of one camera: images in a row that contradicted or fitted the others; whether it is left out; what is
    wrong with it, and for how many images; by how much its mount was off, degrees and metres; the stamp of its last image; what
    its images say of its focal length, while another camera leads."""

    calibration: CalibrationCheck
    frozen: FrozenCamera = field(default_factory=FrozenCamera)
    misses: int = 0
    hits: int = 0
    left_out: bool = False
    problem: str = ""
    lasted: int = 0
    offsets: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MEASURED))
    seen_ns: int | None = None


class CameraRig:
    """Aligns the images of one or more cameras, and remembers which cameras are of use. For one thread.

    Attributes:
        said: What was ever wrong with a camera, by name.
    """

    def __init__(
        self, aligner: FrameAligner, pose_search: Relocalizer | None, options: TrackerOptions, odometry: OdometryBuffer
    ) -> None:
        self._aligner, self._pose_search, self._gates, self._most = aligner, pose_search, options.gates, options.max_cameras
        self._odometry = odometry
        self._cameras: dict[str, _Camera] = {}
        self._round = 0
        self._turn, self._cores = 0, ThreadPoolExecutor(max(torch.get_num_threads() - 1, 1), "camera")
        self.said: dict[str, str] = {}

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with each camera, by name; empty for one that is used. Nothing for a single camera."""
        return {name: camera.problem for name, camera in self._cameras.items()} if len(self._cameras) > 1 else {}

    @property
    def calibrations(self) -> dict[str, str]:
        """What is wrong with the calibration of each camera that does not lead, by name; empty where it fits."""
        reports = {name: camera.calibration.report for name, camera in self._cameras.items()}
        return {name: report.message if report else "" for name, report in reports.items()}

    def prepare(self, frame: CameraFrame) -> PreparedFrame:
        """The frame with the features of its images, each on a core of its own. Of more than are used at once its own stays, and
        the others take turns. Raises InputError where its own image cannot be used."""
        if len(frame.others) >= self._most:
            begin, self._round = self._round % len(frame.others), self._round + self._most - 1
            frame = replace(frame, others=(frame.others[begin:] + frame.others[:begin])[: self._most - 1])
        others = [self._cores.submit(self._aligner.prepare, one.frame.image, one.frame.camera) for one in frame.others]
        try:
            own = self._aligner.prepare(frame.image, frame.camera)
        finally:
            wait(others)
        return PreparedFrame.of(frame, own, tuple(map(_usable, others)))

    def views(self, context: FrameContext, motion_to: MotionTo) -> tuple[RigView, ...]:
        """What of a frame can be aligned, none where all cameras hang. The rig's frame is that of the frame's own camera."""
        frame, views = context.frame, []
        if not self._hangs(frame, context):
            views.append(RigView(frame.name, frame.prepared))
        for mounted, prepared in zip(frame.others, frame.others_prepared):
            one, place = mounted.frame, mounted.base_from_camera
            if prepared is None:
                self._of(one.name).problem = UNUSABLE
            elif not self._hangs(one, context):
                covariance = None
                if one.stamp_ns != frame.stamp_ns:
                    motion, noise = motion_to(one.stamp_ns, context)
                    # base · motion · exp(n) = base · exp(Ad(motion) n) · motion
                    covariance = se3.transform_covariance(noise, context.camera_from_base @ motion)
                    place = motion @ place
                prepared = self._of(one.name).calibration.corrected(prepared)
                views.append(RigView(one.name, prepared, se3.inverse(place) @ context.base_from_camera, covariance))
        return tuple(views)

    def _of(self, name: str) -> _Camera:
        if name not in self._cameras:
            self._cameras[name] = _Camera(CalibrationCheck(lambda *image: self._aligner.focal_length(*image)))
        return self._cameras[name]

    def _hangs(self, frame: CameraFrame, context: FrameContext) -> bool:
        camera = self._of(frame.name)
        if frame.stamp_ns == camera.seen_ns:  # an image in two frames repeats nothing
            return camera.problem == FROZEN
        camera.seen_ns = frame.stamp_ns
        shown = None if frame.shown_ns is None else self._odometry.find(frame.shown_ns)[0]
        hangs = camera.frozen.repeats(frame.image, context.odometry, shown)
        if hangs or camera.problem in (FROZEN, UNUSABLE):
            camera.problem = FROZEN if hangs else ""
        return hangs

    # ---- alignment

    def localize(
        self, views: Sequence[RigView], map_from_rig: torch.Tensor, covariance: torch.Tensor | PriorStd | None
    ) -> FrameAlignment:
        """The views aligned from a pose [4, 4] of the rig, as `FrameAligner.localize_prepared`; those that contradict the others
        are not among the alignment's.

        Images of another time take part where the motion until then is known as well as an image tells, and where the rest does
        not tell enough.
        """
        used = self.used(views)
        exact = [view for view in used if _is_placed(view)]
        found = self._together(exact, map_from_rig, covariance) if exact else None
        if found is not None and (len(exact) == len(used) or found.probability >= self._gates.min_probability):
            return found
        every = self._together(used, map_from_rig, covariance)
        if not every.success or (found is not None and found.probability >= every.probability):
            return found or every
        off = [view.covariance for view in (one.view for one in every.views) if view.covariance is not None]
        return replace(every, covariance=every.covariance + torch.stack(off).mean(0)) if off else every

    def used(self, views: Sequence[RigView]) -> list[RigView]:
        """Those of cameras that are not left out; all where none else is there."""
        return [view for view in views if not self._left_out(view.name)] or list(views)

    def exact(self, views: Sequence[RigView]) -> list[RigView]:
        """Of those used, the ones whose place is known as well as an image tells; all where none is."""
        used = self.used(views)
        return [view for view in used if _is_placed(view)] or used

    def _together(
        self, used: Sequence[RigView], map_from_rig: torch.Tensor, covariance: torch.Tensor | PriorStd | None
    ) -> FrameAlignment:
        found = self._align(used, map_from_rig, covariance)
        if len(used) == 1:
            return found
        odd = _odd(found)
        if odd:
            again = self._align([view for view in used if view.name not in odd], map_from_rig, covariance)
            found = again if again.success and again.probability >= min(found.probability, self._gates.min_probability) else found
        if found.probability < self._gates.min_probability:
            found = self._majority(used, map_from_rig, covariance) or found
        return found

    def _left_out(self, name: str) -> bool:
        return name in self._cameras and self._cameras[name].left_out

    def _align(self, views: Sequence[RigView], *arguments) -> FrameAlignment:
        if len(views) > 1 or views[0].camera_from_rig is not None:
            return self._aligner.localize_prepared(views, *arguments)
        found = self._aligner.localize_prepared(views[0].prepared, *arguments)
        return replace(found, views=tuple(replace(one, view=views[0]) for one in found.views))

    def _majority(
        self, views: Sequence[RigView], map_from_rig: torch.Tensor, covariance: torch.Tensor | PriorStd | None
    ) -> FrameAlignment | None:
        """What most cameras agree on that are right by themselves; of as many, those nearest to the prior."""
        alone = [(view, self._align([view], map_from_rig, covariance)) for view in views]
        good = [(view, found) for view, found in alone if found.probability >= self._gates.min_probability]
        if not good:
            return None

        def agrees(one: FrameAlignment, other: FrameAlignment) -> bool:
            pose = other.map_from_camera
            return mahalanobis(one.map_from_camera, one.covariance, pose, other.covariance) <= self._gates.max_innovation

        groups = [[view for view, other in good if agrees(found, other)] for _, found in good]
        away = [float(se3.pose_difference(map_from_rig, found.map_from_camera)[0]) for _, found in good]
        best = min(range(len(good)), key=lambda k: (-len(groups[k]), away[k]))
        if len(groups[best]) == 1:
            return good[best][1]
        return self._align(groups[best], map_from_rig, covariance, good[best][1].map_from_camera)

    def search(
        self, context: FrameContext, turn: int, prior: MotionPrior | None, known: Sequence[torch.Tensor], finalists: int | None
    ) -> list[FrameAlignment]:
        """`Relocalizer.search` by one camera after the other, turn by turn; what it finds is aligned with all of them.

        known: map_from_rig poses that are already followed.
        """
        frame, views = context.frame, context.views
        if not frame.others:
            return self._pose_search.search(frame, context.base_from_camera, turn, prior, known, finalists)
        used = self.used(views)
        view = used[turn % len(used)]
        mounted = {frame.name: frame} | {one.frame.name: one.frame for one in frame.others}
        rig_from_camera = view.map_from_camera(torch.eye(4, dtype=torch.float64))
        found = self._pose_search.search(
            PreparedFrame.of(mounted[view.name], view.prepared),
            context.base_from_camera @ rig_from_camera,
            turn // len(used),
            prior,
            [view.map_from_camera(pose) for pose in known],
            finalists,
        )
        starts = [one.map_from_camera @ se3.inverse(rig_from_camera) for one in found if one.success]
        return [self.localize(views, start, _SHARED) for start in starts]

    # ---- what is learned

    def learn(self, views: Sequence[RigView], believed: FrameAlignment | None) -> None:
        """Keeps which cameras fitted an image that is believed, and looks at one of those that had no part in it."""
        if len(self._cameras) < 2:
            return
        for name, camera in self._cameras.items():
            camera.lasted = camera.lasted + 1 if camera.problem else 0
            if camera.lasted >= _LASTING:
                self.said[name] = camera.problem
        if believed is None:
            return
        used = {one.view.name for one in believed.views}
        exact = any(_is_placed(one.view) for one in believed.views)
        waiting, others = [], []
        for view in views:
            if view.name in used:
                self._fits(view.name)
                others += [view] if view.camera_from_rig is not None else []
            elif self._left_out(view.name) or (exact and not _is_placed(view)):
                waiting.append(view)
            else:
                self._contradicts(view.name, BLIND)
        self._turn += 1
        if others:
            self._check_calibration(others[self._turn % len(others)], believed)
        if waiting:
            self._probe(waiting[self._turn % len(waiting)], believed)

    def _check_calibration(self, view: RigView, alignment: FrameAlignment) -> None:
        camera = self._cameras[view.name]
        camera.calibration.add(camera.seen_ns, view.prepared, alignment)

    def _fits(self, name: str) -> None:
        camera = self._cameras[name]
        camera.misses, camera.hits = 0, camera.hits + 1
        if camera.hits >= _HITS:
            camera.left_out, camera.problem = False, ""
            camera.offsets.clear()

    def _contradicts(self, name: str, problem: str) -> None:
        camera = self._cameras[name]
        camera.misses, camera.hits = camera.misses + 1, 0
        camera.left_out = camera.left_out or camera.misses >= _MISSES
        if camera.left_out:
            camera.problem = problem

    def _probe(self, view: RigView, believed: FrameAlignment) -> None:
        """Whether a camera that had no part fits, and what is wrong with it."""
        alone = self._align([view], believed.map_from_camera, _PROBE)
        if alone.probability < self._gates.min_probability:
            self._contradicts(view.name, BLIND)
            return
        self._check_calibration(view, alone)
        here, there = believed.map_from_camera, alone.map_from_camera
        covariance = alone.covariance if view.covariance is None else alone.covariance + view.covariance
        if mahalanobis(here, believed.covariance, there, covariance) <= self._gates.max_innovation:
            self._fits(view.name)
            return
        offsets, away = self._cameras[view.name].offsets, se3.pose_difference(*map(view.map_from_camera, (here, there)))
        metres, radians = map(float, away)
        offsets.append((math.degrees(radians), metres))
        degrees, metres = np.median(np.array(offsets), axis=0)
        self._contradicts(
            view.name, f"it is mounted {degrees:.1f}° and {100 * metres:.0f} cm from where TF says: check base_from_camera"
        )


def _usable(prepared: Future[PreparedImage]) -> PreparedImage | None:
    """None for an image that cannot be used."""
    try:
        return prepared.result()
    except InputError:
        return None


def _is_placed(view: RigView) -> bool:
    """Whether it is known where the camera was at the time of the image, compared with what an image tells."""
    if view.covariance is None:
        return True
    variances = view.covariance.diagonal()
    return float(variances[:3].sum()) <= _PLACED_M**2 and float(variances[3:].sum()) <= _PLACED_RAD**2


def _odd(alignment: FrameAlignment) -> list[str]:
    """Names of the views of which far fewer points agree than of the best one."""
    shares = {one.view.name: one.inliers / one.visible for one in alignment.views if one.visible >= _LEAST_VISIBLE}
    best = max(shares.values(), default=0.0)
    return [name for name, share in shares.items() if share < _ODD_SHARE * best]

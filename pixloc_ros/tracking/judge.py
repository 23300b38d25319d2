# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is believed of an image: gates on the quality of its alignment and on its distance from the prior, and whether the image
is torn or the camera hangs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from ..alignment import View
from ..alignment.location import located
from ..geometry import se3
from .calibration_check import CalibrationCheck
from .covariances import isotropic, mahalanobis, not_better_than
from .gravity import Gravity
from .motion_prior import KnownPose
from .odometry import OdometrySample
from .options import TrackerOptions
from .types import FrameAlignment, MotionPrior, PreparedFrame, RigView, TrackState

MOVED_M, MOVED_RAD = 0.02, 0.01
"""A robot that stands still in a simulator gives equal pictures too; one that has moved by this much does not."""

_ROWS = 8
"""Every so many rows are compared."""
_TORN, _TORN_PART, _TORN_POINTS = 0.5, 0.08, 15
"""Of two parts of a torn image, one has less than this share of the other's agreement; and the least part that is looked at, of
all points and in points. Right poses as far from their priors have 0.6 and more on drives whose wheels slip."""


@dataclass(frozen=True, eq=False)
class FrameContext:
    """What is known of an image before it is aligned.

    Attributes:
        frame: The image with its features.
        base_from_camera: float64 [4, 4].
        camera_from_base: Its inverse.
        odometry: At the image's stamp, None where there is none.
        prior: Where the robot should be, None where nothing is known.
        noise_factor: By how much odometry was found to err more than usual.
        views: What is aligned: the image, and those of the robot's other cameras.
        gravity: What an accelerometer reads.
    """

    frame: PreparedFrame
    base_from_camera: torch.Tensor
    camera_from_base: torch.Tensor
    odometry: OdometrySample | None
    prior: MotionPrior | None
    noise_factor: float
    views: tuple[RigView, ...] = ()
    gravity: Gravity | None = None

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

    @property
    def probability(self) -> float:
        return self.alignment.probability


def distance(prior: MotionPrior, pose: KnownPose) -> float:
    """From a prior to a pose found, in standard deviations of both together."""
    return mahalanobis(prior.map_from_base, prior.covariance, pose.map_from_base, pose.covariance)


def is_torn(alignment: FrameAlignment) -> bool:
    """Whether the upper or the lower rows of an image agree with the map much less than the rest: a pose that fits one part of
    an image whose parts were shifted, as a few wrong bytes of a JPEG or a transfer that is interrupted do, looks as sure."""
    result = alignment.details
    if result is None:
        return False
    visible, agrees, rows = result.visible.cpu().numpy(), result.inliers.cpu().numpy(), result.pixels[..., 1].cpu().numpy()
    parts = [view.rows for view in alignment.views] or [slice(None)]
    return any(_is_torn(agrees[part][visible[part]], rows[part][visible[part]]) for part in parts)


def _is_torn(agrees: np.ndarray, rows: np.ndarray) -> bool:
    """agrees: bool [N], of the visible points of an image; rows: [N], where they are."""
    agrees = agrees[np.argsort(rows)]
    count, least = len(agrees), max(_TORN_POINTS, round(_TORN_PART * len(agrees)))
    above = np.arange(least, count - least + 1)  # points in the upper rows
    if not len(above):
        return False
    agree_above = np.cumsum(agrees)[above - 1]
    upper, lower = agree_above / above, (agrees.sum() - agree_above) / (count - above)
    less, more = np.sort(np.stack((upper, lower))[:, np.abs(upper - lower).argmax()])
    return bool(less < _TORN * more)


def located_share(alignment: FrameAlignment) -> float:
    """Share of the points that are where they project to (`alignment.location`); 1 where an alignment shows no points."""
    result = alignment.details
    if result is None:
        return 1.0
    views = [View(one.view.prepared.pyramid, one.view.prepared.camera, one.points.points) for one in alignment.views]
    return located(views, result.pixels, result.visible)


class Judge:
    """Judges alignments.

    Attributes:
        gates: The limits.
        calibration_check: What the images say of the focal length; None: nobody asks.
    """

    def __init__(self, options: TrackerOptions, calibration_check: CalibrationCheck | None = None) -> None:
        self.gates, self.calibration_check = options.gates, calibration_check
        self._floor = options.translation_floor, options.rotation_floor
        self._prior_floor = isotropic(options.prior_translation_floor, options.prior_rotation_floor)

    @property
    def hopeless(self) -> bool:
        """Whether no pose is right, since the focal length is too far off."""
        return self.calibration_check is not None and self.calibration_check.hopeless

    def floored(self, covariance: torch.Tensor) -> torch.Tensor:
        """Covariance for the next prior: at least the floor's variance in every direction."""
        return not_better_than(covariance, self._prior_floor)

    def look(self, view: FrameContext, alignment: FrameAlignment, free: bool, searched: bool = False) -> Look:
        """An alignment of the view, judged. free: no prior was believed on the way there, so more points must agree."""
        problem = self._quality_problem(alignment, self.gates.least_probability(free, view.noise_factor))
        if free and not problem and (share := located_share(alignment)) < self.gates.min_located:
            problem = f"only {share:.0%} of the map points are where they should be to some pixels: another place looks similar"
        if problem:
            return Look(alignment, None, problem, searched)
        image = se3.transform_covariance(alignment.covariance, view.base_from_camera)
        depth, (translation, rotation) = abs(alignment.depth), self._floor
        published = image * alignment.elsewhere + isotropic(min(translation, rotation * depth), rotation)
        pose = alignment.map_from_camera @ view.camera_from_base
        return Look(alignment, KnownPose(view.stamp_ns, pose, self.floored(image), view.odometry, published, depth), "", searched)

    def agrees(self, look: Look, view: FrameContext, state: TrackState) -> bool:
        """Whether a look is believed at once, since it is where the prior says."""
        prior, gates = view.prior, self.gates
        if look.pose is None or prior is None or state in (TrackState.LOST, TrackState.RELOCALIZING):
            return False
        sure, away = look.probability >= gates.sure_probability, distance(prior, look.pose)
        if state is TrackState.INITIALIZING and not sure:
            return False
        if away > gates.innovation_limit(sure and not look.searched, prior.noise_factor):
            return False
        if away > gates.max_innovation and is_torn(look.alignment):
            return False
        if state is TrackState.DEGRADED:
            # A prior that has grown vague lets in what another lens shows.
            return not self.wrong_lens(look, view)
        return not self.hopeless

    def why_not(self, look: Look, prior: MotionPrior | None) -> str:
        """Why a look is not believed, in words."""
        if look.pose is not None and self.hopeless:
            return self.calibration_check.report.message
        if look.pose is None or prior is None:
            return look.problem
        torn = ", as it is torn across: check the camera's cable and driver" if is_torn(look.alignment) else ""
        away = distance(prior, look.pose)
        return f"the image contradicts the {prior.source} prior ({away:.1f} standard deviations){torn}"

    def wrong_lens(self, look: Look, view: FrameContext) -> bool:
        """Whether the image says that only another focal length explains the look."""
        check = self.calibration_check
        return check is not None and check.contradicts(view.frame.prepared, look.alignment)

    def _quality_problem(self, alignment: FrameAlignment, least_probability: float) -> str:
        gates = self.gates
        if not alignment.success:
            return f"alignment failed ({alignment.reason})"
        if not all(np.isfinite(values.numpy()).all() for values in (alignment.map_from_camera, alignment.covariance)):
            return "alignment gave a pose that is not finite"
        visible = alignment.visible_fraction * alignment.points_used
        if alignment.visible_fraction < gates.min_visible_fraction or visible < gates.min_visible_points:
            return f"only {visible:.0f} of {alignment.points_used} map points are in the image"
        if alignment.probability < least_probability or alignment.inlier_fraction < gates.min_inlier_fraction:
            agree = f"{alignment.inlier_fraction:.0%} of the visible points agree with the map"
            return f"only {agree}: the pose is right with a probability of {alignment.probability:.0%}"
        if not alignment.cost <= gates.max_cost:
            return f"cost {alignment.cost:.3g} is above {gates.max_cost:.3g}"
        return ""


class FrozenCamera:
    """Notices a camera that gives its last picture again and again, with new stamps.

    Compares each image with the one before it, to the bit: a real camera's noise never gives the same rows twice.
    """

    def __init__(self) -> None:
        self._digest: int | None = None
        self._since: OdometrySample | None = None

    def repeats(self, image: np.ndarray, odometry: OdometrySample | None, shown: OdometrySample | None = None) -> bool:
        """Whether the camera shows what it showed before, although odometry says that the robot has moved since.

        image: uint8, any shape. odometry: at the image's stamp; without it nothing can be said. shown: at the first of the images
        in a row that show this, where that one was not looked at.
        """
        digest = zlib.crc32(np.ascontiguousarray(image[::_ROWS]))
        if digest != self._digest:
            self._digest, self._since = digest, shown or odometry
        since = self._since
        if odometry is None or since is None or odometry.epoch != since.epoch:
            return False
        if image.min() == image.max():  # black or white: equal without hanging
            return False
        moved_m, turned_rad = odometry.distance_m - since.distance_m, odometry.turn_rad - since.turn_rad
        return moved_m > MOVED_M or turned_rad > MOVED_RAD

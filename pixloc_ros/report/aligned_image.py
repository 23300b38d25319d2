# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One image aligned with the map, and what pictures of it need: where the map's points lie and how well they agree, at any
pose and level, and the way the pose took."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..alignment.cost import Linearization, linearize
from ..alignment.level_weights import AGREES
from ..alignment.robust import RobustLoss
from ..alignment.types import View, batched
from ..errors import InputError
from ..evaluation.tables import format_number
from ..geometry import se3
from ..geometry.cameras import Camera
from ..mapping.local_points import LocalPoints
from ..tracking.frame_aligner import FrameAligner
from ..tracking.prior_std import PriorStd
from ..tracking.types import FrameAlignment, PreparedImage

_POSES_AT_ONCE = 16
"""Poses evaluated in one batch: some hundred megabytes of features for a thousand points."""


@dataclass(frozen=True)
class PointAgreement:
    """How the map's points look from one pose at one level.

    Attributes:
        pixels: Of the working image, float64 [N, 2].
        visible: bool [N].
        distance: Between the image's and the map's unit features, float64 [N]: 0 for the same, 2 for opposite ones.
        confidence: 0 to 1 [N].
        weight: Of the robust loss, 0 to 1 [N].
        agrees: bool [N], the optimizer's inliers.
        cost: Mean robust cost.
    """

    pixels: np.ndarray
    visible: np.ndarray
    distance: np.ndarray
    confidence: np.ndarray
    weight: np.ndarray
    agrees: np.ndarray
    cost: float

    def summary(self, level: str = "") -> str:
        """How many agree, for people. level: its name."""
        visible = int(self.visible.sum())
        share = 100 * self.agrees.sum() / max(visible, 1)
        return f"{share:.0f} % of {visible} points agree" + (f", {level}" if level else "")


@dataclass(frozen=True)
class PathStep:
    """One pose on the way.

    Attributes:
        level: 0 is the coarsest.
        stride: Of the level, in pixels.
        step: Its number on that level (0: where it starts).
        cost: There.
        map_from_camera: float64 [4, 4].
    """

    level: int
    stride: float
    step: int
    cost: float
    map_from_camera: torch.Tensor


@dataclass(frozen=True)
class AlignedImage:
    """An image, where it was thought to be, and how it was aligned from there.

    Attributes:
        title: What it is, for people.
        image: uint8 [H, W] or [H, W, 3] RGB.
        prepared: Its features and working camera.
        prior: map_from_camera float64 [4, 4], where the alignment started.
        passes: The alignments, the second after the points were chosen again; the last is the answer.
        localizer: What aligned it.
        truth: map_from_camera, None where unknown.
    """

    title: str
    image: np.ndarray
    prepared: PreparedImage
    prior: torch.Tensor
    passes: tuple[FrameAlignment, ...]
    localizer: FrameAligner
    truth: torch.Tensor | None = None

    @property
    def answer(self) -> FrameAlignment:
        return self.passes[-1]

    @property
    def points(self) -> LocalPoints:
        """What the last pass was aligned with."""
        return self.answer.views[0].points

    @property
    def strides(self) -> tuple[float, ...]:
        return tuple(level.stride for level in self.prepared.pyramid.levels)

    @property
    def depth(self) -> float:
        """Median depth in metres of the points in view, from the answer."""
        z = se3.transform(se3.inverse(self.answer.map_from_camera), self.xyz)[:, 2]
        seen = z[self.answer.details.visible & (z > 0)]
        return float(seen.median()) if len(seen) else 1.0

    @property
    def xyz(self) -> torch.Tensor:
        """float64 [N, 3], map frame."""
        return self.points.points.xyz.double() + self.points.origin

    def agreement(self, map_from_camera: torch.Tensor, level: int = -1) -> PointAgreement:
        """The points seen from a pose, on a level (-1: the finest)."""
        now = self._linearize(map_from_camera[None], level)
        squared, valid = now.squared[0].double().clamp(min=0), now.valid[0]
        return PointAgreement(
            now.pixels[0].double().numpy(),
            valid.numpy(),
            squared.sqrt().numpy(),
            now.confidence[0].double().numpy(),
            self._loss(level)(squared)[1].numpy(),
            (valid & (squared < AGREES)).numpy(),
            float(now.mean_cost()[0]),
        )

    def costs(self, map_from_camera: torch.Tensor, level: int) -> np.ndarray:
        """Mean robust cost [P] at each of some poses [P, 4, 4]; NaN where fewer than half of the answer's points are in view."""
        costs = []
        least = max(int(self.answer.details.visible.sum()) / 2, self.localizer.options.alignment.min_points)
        for chunk in map_from_camera.split(_POSES_AT_ONCE):
            now = self._linearize(chunk, level)
            costs.append(torch.where(now.valid.sum(-1) >= least, now.mean_cost().double(), torch.nan))
        return torch.cat(costs).numpy()

    def path(self) -> list[PathStep]:
        """Every pose of every level and pass, in the order they were taken."""
        steps = []
        for alignment in self.passes:
            map_from_local = _translation(alignment.views[0].points.origin)
            for k, trace in enumerate(alignment.details.trace):
                for i in range(trace.iterations + 1):
                    pose = map_from_local @ se3.inverse(trace.camera_from_map[i].double())
                    steps.append(PathStep(k, trace.stride, i, float(trace.costs[i]), pose))
        return steps

    @torch.inference_mode()
    def _loss(self, level: int) -> RobustLoss:
        """As the answer was found with on a level."""
        return replace(self.localizer.options.alignment.loss, scale=float(self.answer.details.trace[level].outputs[0]))

    def _linearize(self, map_from_camera: torch.Tensor, level: int) -> Linearization:
        options = self.localizer.options.alignment
        camera_from_local = se3.inverse(map_from_camera) @ _translation(self.points.origin)
        view = View(self.prepared.pyramid, self.prepared.camera, batched(self.points.points))
        return linearize(view, level, camera_from_local, self._loss(level), options.border_cells)


def align_image(
    localizer: FrameAligner,
    title: str,
    image: np.ndarray,
    prepared: PreparedImage,
    prior: torch.Tensor,
    covariance: torch.Tensor | PriorStd | None = None,
    truth: torch.Tensor | None = None,
) -> AlignedImage:
    """Align a prepared image and keep every step, also those of a first pass after which the points were chosen again.

    Args:
        localizer: What aligns it.
        title: What it is, for people.
        image: uint8 [H, W] or [H, W, 3] RGB.
        prepared: Its features.
        prior: map_from_camera float64 [4, 4].
        covariance: Of the prior, float64 [6, 6] in camera axes, or standard deviations; None to let nothing hold the pose.
        truth: map_from_camera, None where unknown.

    Raises:
        InputError: The alignment could not even start: nothing of the map is in view.
    """
    answer = localizer.localize_prepared(prepared, prior, covariance)
    if answer.details is None:
        raise InputError(f"{title}: {answer.reason}: no picture can be made; is the prior in the frame of this map?")
    passes = [answer]
    begins = answer.details.trace[0].camera_from_map[0].double() @ _translation(-answer.views[0].points.origin)
    if not torch.allclose(begins, se3.inverse(prior), atol=1e-5):
        once = FrameAligner(localizer.map, localizer.extractor, replace(localizer.options, reselect_share=math.inf))
        passes.insert(0, once.localize_prepared(prepared, prior, covariance))
    return AlignedImage(title, image, prepared, prior, tuple(passes), localizer, truth)


def moved_off(map_from_camera: torch.Tensor, degrees: float, metres: float, seed: int = 0) -> torch.Tensor:
    """The pose turned about a random axis and shifted in a random direction of the camera, by as much as said."""
    rng = np.random.default_rng(seed)
    axis, way = torch.from_numpy(rng.standard_normal((2, 3)))
    turn = se3.so3_exp(axis / axis.norm() * math.radians(degrees))
    return map_from_camera @ se3.from_rotation_translation(turn, way / way.norm() * metres)


def difference_text(from_pose: torch.Tensor, to_pose: torch.Tensor) -> str:
    """How far two poses are apart, for people."""
    metres, radians = se3.pose_difference(from_pose, to_pose)
    return f"{length_text(float(metres))}, {format_number(math.degrees(float(radians)), 2)}°"


def length_text(metres: float) -> str:
    """Three digits at most, in the unit that suits."""
    for limit, factor, unit in ((0.01, 1e3, "mm"), (1.0, 1e2, "cm")):
        if abs(metres) < limit:
            return f"{format_number(metres * factor, 2)} {unit}"
    return f"{format_number(metres)} m"


def image_corners(camera: Camera) -> torch.Tensor:
    """Points float64 [4, 3] at depth one that a camera sees at the corners of its image, around it from the top left."""
    right, bottom = camera.width - 1, camera.height - 1
    rays, _ = camera.unproject(torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=torch.float64))
    return rays / rays[:, 2:].clamp(min=0.2)


def _translation(offset: torch.Tensor) -> torch.Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = offset
    return pose

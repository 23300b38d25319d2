# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One image, or those of a rig of cameras, against the map from one prior: the step that tracking, single-image localization
and benchmarks share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from ..alignment import AlignmentOptions, AlignmentResult, LevelWeights, PriorFactor, View, align, damping_of
from ..alignment.focal_length import FocalLength, estimate_focal_length
from ..errors import InputError
from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..geometry.projection import camera_numbers, median_motion
from ..io.images import fit_to_working_size
from ..mapping.local_points import LocalPoints, LocalPointSelector
from ..mapping.map_file import Map
from .alignment_judge import AlignmentJudge, statistics_of
from .prior_std import PriorStd
from .types import AlignedView, FrameAlignment, PreparedImage, RigView

MAX_PASSES = 2


class PointSelector(Protocol):
    """Chooses points that a camera near a pose should see: `LocalPointSelector`."""

    def select(
        self, map_from_camera: torch.Tensor, camera: Camera, max_points: int, description: np.ndarray | None
    ) -> LocalPoints: ...


@dataclass(frozen=True)
class AlignerOptions:
    """How a frame is aligned.

    Attributes:
        alignment: Of the optimizer.
        max_points: Map points used per frame.
        reselect_share: Where the points moved by more than this share of the image, they are chosen again for the view that was
            found (infinity: never).
        use_prior_factor: Whether a prior covariance, where one is given, takes part in the optimisation.
        image_scale: Size at which the network sees images, as a share of that of the map's.
    """

    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    max_points: int = 1024
    reselect_share: float = 0.02
    use_prior_factor: bool = True
    image_scale: float = 1.0


DEFAULT = "balanced"
PRESETS: dict[str, AlignerOptions] = {
    # The network costs most: three quarters of the size halve it, and double the error.
    "fast": AlignerOptions(max_points=512, image_scale=0.75, reselect_share=0.05),
    DEFAULT: AlignerOptions(),
    "accurate": AlignerOptions(AlignmentOptions(stop_cells=0.02, iterations=40), max_points=2048, reselect_share=0.01),
}
"""Named sets of options; docs/evidence/performance.md has what each costs and how exact it is."""


def preset_options(name: str = DEFAULT) -> AlignerOptions:
    """The options of that name. Raises InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"preset '{name}' is unknown: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


class FrameAligner:
    """Aligns images with a map. Holds no state between frames except caches: the same input gives the same pose.

    Attributes:
        map: The map.
        extractor: The network, with the map's levels.
        damping: Learned, None where the weights file holds none.
        weights: Learned as well.
        judge: Says what an alignment is worth.
        options: How frames are aligned.
        focal_px: To which images are scaled; None: images are only shrunk.
    """

    def __init__(self, map_: Map, extractor: Extractor, options: AlignerOptions = AlignerOptions()) -> None:
        """Raises InputError where the map was made with another network."""
        map_.require_extractor(extractor)
        self.map, self.extractor, self.options = map_, extractor.with_strides(map_.strides), options
        self.damping = damping_of(self.extractor)
        source = f"weights '{self.extractor.name}'"
        self.weights = LevelWeights.of(self.extractor.companions, len(self.extractor.strides), source)
        self.judge = AlignmentJudge.of(self.extractor.companions, source)
        self._selector = LocalPointSelector(map_)
        self.focal_px: float | None = float(np.median([float(c.params[:2].mean()) for c in map_.cameras]))

    @torch.inference_mode()
    def prepare(self, image: np.ndarray, camera: Camera) -> PreparedImage:
        """All that can be done before the prior is known: resizing and the network.

        Args:
            image: uint8 [H, W] or [H, W, 3] RGB.
            camera: Of that size.

        Raises:
            InputError: The sizes differ, or the image is too small.
        """
        clock = _Stopwatch()
        focal_px = None if self.focal_px is None else self.options.image_scale * self.focal_px
        image, camera = fit_to_working_size(image, camera, self.map.working_side, focal_px)
        clock.lap("prepare")
        pyramid = self.extractor.extract(image)
        clock.lap("features")
        return PreparedImage(pyramid, camera, clock.laps, self._selector.describe(image, pyramid))

    def localize(
        self,
        image: np.ndarray,
        camera: Camera,
        map_from_camera: torch.Tensor,
        prior_covariance: torch.Tensor | PriorStd | None = None,
    ) -> FrameAlignment:
        """Pose of an image that was taken near `map_from_camera`: `prepare`, then `localize_prepared`."""
        return self.localize_prepared(self.prepare(image, camera), map_from_camera, prior_covariance)

    @torch.inference_mode()
    def localize_prepared(
        self,
        prepared: PreparedImage | Sequence[RigView],
        map_from_camera: torch.Tensor,
        prior_covariance: torch.Tensor | PriorStd | None = None,
        start: torch.Tensor | None = None,
        selector: PointSelector | None = None,
        known: torch.Tensor | None = None,
    ) -> FrameAlignment:
        """Pose of a prepared image that was taken near `map_from_camera`, or of a rig of cameras, whose views share the points.

        Args:
            prepared: The image, or one or more views of a rig: then poses and covariance are those of the rig's frame.
            map_from_camera: The start, float64 [4, 4].
            prior_covariance: float64 [6, 6] (translation, rotation), camera frame, right perturbation, or standard deviations
                in words; None: nothing holds the pose.
            start: Where the alignment begins, if not at the prior, float64 [4, 4].
            selector: Chooses the points; None for the map's.
            known: Covariance of what is known of the pose, float64 [6, 6], where the prior is a hypothesis among others: the less
                is known, the more the image must show.
        """
        selector = selector or self._selector
        rig = (RigView("", prepared),) if isinstance(prepared, PreparedImage) else tuple(prepared)
        clock = _Stopwatch(rig[0].prepared.timings_ms)
        for view in rig[1:]:
            clock.add(view.prepared.timings_ms)
        start = map_from_camera if start is None else start
        begin = se3.inverse(start)
        for _ in range(MAX_PASSES):
            found = [(view, _points_of(view, selector, start, self.options.max_points // len(rig))) for view in rig]
            clock.lap("gather")
            count = sum(len(local.points) for _, local in found)
            if count < self.options.alignment.min_points:
                return FrameAlignment.failed(map_from_camera, "no map points near the prior", count, clock.laps)
            # A camera that should see nothing of the map has no part in it.
            found = [(view, local) for view, local in found if len(local.points)]
            if isinstance(prior_covariance, PriorStd):
                depths = [local.median_depth(view.map_from_camera(map_from_camera)) for view, local in found]
                prior_covariance = prior_covariance.covariance(float(np.median(depths)))
            # In a frame at the points' origin single precision is exact to micrometres on any map.
            map_from_local = torch.eye(4, dtype=torch.float64)
            map_from_local[:3, 3] = found[0][1].origin
            prior = None
            if prior_covariance is not None and self.options.use_prior_factor:
                # true = map_from_camera · exp(e)  <=>  camera_from_map(true) = exp(-e) · camera_from_map
                information = torch.from_numpy(np.linalg.inv(prior_covariance.numpy()))
                prior = PriorFactor(se3.inverse(map_from_camera) @ map_from_local, information)
            initial = se3.inverse(start) @ map_from_local
            views = [
                View(one.prepared.pyramid, one.prepared.camera, local.points, camera_from_rig=one.camera_from_rig)
                for one, local in found
            ]
            result = align(views, initial, self.options.alignment, self.damping, prior, self.weights)
            aligned = _aligned_views(result, found)
            moved = max(_moved_share(result, view, initial) for view in aligned)
            clock.lap("alignment")
            if not bool(result.converged) or moved < self.options.reselect_share:
                break
            # The points were chosen for a view quite different from the one found: choose and align once more from there.
            start = map_from_local @ se3.inverse(result.camera_from_map)
        visible, inliers = sum(view.visible for view in aligned), sum(view.inliers for view in aligned)
        claimed, depth = inverse_information(result.information), _depth(result, aligned)
        known = prior_covariance if known is None else known
        held = None if known is None else known.numpy()
        statistics = statistics_of(result, claimed.numpy(), (begin @ map_from_local).numpy(), depth, held)
        covariance = self.judge.covariance(claimed, statistics, depth)
        success = bool(result.converged) and bool(torch.isfinite(covariance).all())
        points = result.visible.shape[-1]
        reason = "the image shows nothing" if result.reason == "converged" and not success else result.reason
        pose = map_from_local @ se3.inverse(result.camera_from_map) if success else map_from_camera
        probability = self.judge.probability(statistics) if success else 0.0
        quality = (float(result.cost), inliers / max(visible, 1), visible / points, points)
        iterations = sum(level.iterations for level in result.trace)
        return FrameAlignment(
            pose,
            covariance,
            success,
            reason,
            *quality,
            iterations,
            clock.laps,
            result,
            aligned,
            depth,
            probability,
            self.judge.elsewhere,
        )

    def points_near(self, map_from_camera: torch.Tensor, camera: Camera, count: int) -> LocalPoints:
        """The map points that a camera near a pose [4, 4] should see, `count` at most."""
        return self._selector.select(map_from_camera, camera, count)

    def focal_length(self, prepared: PreparedImage, alignment: FrameAlignment) -> FocalLength | None:
        """The focal length that fits a prepared image best, from where its alignment ended; None where it does not tell, or was
        no view of the alignment."""
        own = next((view for view in alignment.views if view.view.prepared is prepared), None)
        if not alignment.success or own is None:
            return None
        view, camera_from_map = View(prepared.pyramid, prepared.camera, own.points.points), alignment.details.camera_from_map
        if own.view.camera_from_rig is not None:
            camera_from_map = own.view.camera_from_rig @ camera_from_map
        return estimate_focal_length(view, camera_from_map, self.options.alignment)


def inverse_information(information: torch.Tensor) -> torch.Tensor:
    """Covariance [6, 6] of a left perturbation of camera_from_map (equally a right one of map_from_camera, camera axes).

    Infinite where the information is singular: the image does not determine the pose.
    """
    try:
        return torch.from_numpy(np.linalg.inv(information.cpu().numpy()))
    except np.linalg.LinAlgError:
        return torch.full((6, 6), torch.inf, dtype=torch.float64)


def _points_of(view: RigView, selector: PointSelector, map_from_rig: torch.Tensor, count: int) -> LocalPoints:
    """The map points that a view of a rig should see, relative to the rig."""
    local = selector.select(view.map_from_camera(map_from_rig), view.prepared.camera, count, view.prepared.description)
    if view.camera_from_rig is None:
        return local
    origin = map_from_rig[:3, 3].clone()
    xyz = local.points.xyz + (local.origin - origin).float()
    return replace(local, points=replace(local.points, xyz=xyz), origin=origin)


def _aligned_views(result: AlignmentResult, found: Sequence[tuple[RigView, LocalPoints]]) -> tuple[AlignedView, ...]:
    first, aligned = 0, []
    for view, local in found:
        rows = slice(first, first + len(local.points))
        counts = int(result.visible[rows].sum()), int(result.inliers[rows].sum())
        aligned.append(AlignedView(view, local, first, *counts))
        first = rows.stop
    return tuple(aligned)


def _camera_from_local(view: AlignedView, rig_from_local: torch.Tensor) -> np.ndarray:
    place = view.view.camera_from_rig
    return np.ascontiguousarray((rig_from_local if place is None else place @ rig_from_local).numpy())


def _depth(result: AlignmentResult, views: Sequence[AlignedView]) -> float:
    """Median distance of the visible points along the optical axes of their cameras."""
    visible, depths = result.visible.cpu().numpy(), []
    for view in views:
        towards = _camera_from_local(view, result.camera_from_map)[2]
        depths.append((view.points.points.xyz.cpu().numpy() @ towards[:3] + towards[3])[visible[view.rows]])
    depths = np.concatenate(depths)
    return float(np.median(depths)) if len(depths) else float("inf")


def _moved_share(result: AlignmentResult, view: AlignedView, rig_from_local: torch.Tensor) -> float:
    """How far the visible reprojections of a view moved from the start (median), as a share of the image's longer side."""
    camera, pose = view.view.prepared.camera, _camera_from_local(view, rig_from_local)
    pixels, visible = result.pixels[view.rows].double().cpu().numpy(), result.visible[view.rows].cpu().numpy()
    moved = median_motion(camera_numbers(camera), view.points.points.xyz.cpu().numpy(), pose, pixels, visible)
    return moved / max(camera.width, camera.height)


class _Stopwatch:
    def __init__(self, laps: dict[str, float] | None = None) -> None:
        self.laps = dict(laps or {})
        self._last = time.perf_counter()

    def add(self, laps: dict[str, float]) -> None:
        """What was measured elsewhere."""
        for name, milliseconds in laps.items():
            self.laps[name] = self.laps.get(name, 0.0) + milliseconds

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.add({name: (now - self._last) * 1e3})
        self._last = now

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One image against the map from one prior: the step that tracking, single-image localization and benchmarks share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from ..alignment import AlignmentOptions, AlignmentResult, LevelWeights, PriorFactor, ReferencePoints, View, align, damping_of
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
from .types import FrameAlignment, PreparedImage

MAX_PASSES = 2


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
        prepared: PreparedImage,
        map_from_camera: torch.Tensor,
        prior_covariance: torch.Tensor | PriorStd | None = None,
        start: torch.Tensor | None = None,
    ) -> FrameAlignment:
        """Pose of a prepared image that was taken near `map_from_camera`.

        Args:
            prepared: The image.
            map_from_camera: The start, float64 [4, 4].
            prior_covariance: float64 [6, 6] (translation, rotation), camera frame, right perturbation, or standard deviations
                in words; None: nothing holds the pose.
            start: Where the alignment begins, if not at the prior, float64 [4, 4].
        """
        clock = _Stopwatch(prepared.timings_ms)
        camera, start = prepared.camera, map_from_camera if start is None else start
        begin = se3.inverse(start)
        for _ in range(MAX_PASSES):
            local = self._selector.select(start, camera, self.options.max_points, prepared.description)
            clock.lap("gather")
            if len(local.points) < self.options.alignment.min_points:
                return FrameAlignment.failed(map_from_camera, "no map points near the prior", len(local.points), clock.laps)
            if isinstance(prior_covariance, PriorStd):
                prior_covariance = prior_covariance.covariance(local.median_depth(map_from_camera))
            # In a frame at the points' origin single precision is exact to micrometres on any map.
            map_from_local = torch.eye(4, dtype=torch.float64)
            map_from_local[:3, 3] = local.origin
            prior = None
            if prior_covariance is not None and self.options.use_prior_factor:
                # true = map_from_camera · exp(e)  <=>  camera_from_map(true) = exp(-e) · camera_from_map
                information = torch.from_numpy(np.linalg.inv(prior_covariance.numpy()))
                prior = PriorFactor(se3.inverse(map_from_camera) @ map_from_local, information)
            initial = se3.inverse(start) @ map_from_local
            view = View(prepared.pyramid, camera, local.points)
            result = align(view, initial, self.options.alignment, self.damping, prior, self.weights)
            moved = _moved_px(result, local.points, camera, initial)
            clock.lap("alignment")
            if not bool(result.converged) or moved < self.options.reselect_share * max(camera.width, camera.height):
                break
            # The points were chosen for a view quite different from the one found: choose and align once more from there.
            start = map_from_local @ se3.inverse(result.camera_from_map)
        visible, inliers = int(result.visible.sum()), int(result.inliers.sum())
        claimed, depth = inverse_information(result.information), _depth(result, local.points)
        statistics = statistics_of(result, claimed.numpy(), (begin @ map_from_local).numpy(), depth)
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
            local,
            depth,
            probability,
            self.judge.elsewhere,
        )

    def points_near(self, map_from_camera: torch.Tensor, camera: Camera, count: int) -> LocalPoints:
        """The map points that a camera near a pose [4, 4] should see, `count` at most."""
        return self._selector.select(map_from_camera, camera, count)

    def focal_length(self, prepared: PreparedImage, alignment: FrameAlignment) -> FocalLength | None:
        """The focal length that fits a prepared image best, from where its alignment ended; None where it does not tell."""
        if not alignment.success:
            return None
        view = View(prepared.pyramid, prepared.camera, alignment.points.points)
        return estimate_focal_length(view, alignment.details.camera_from_map, self.options.alignment)


def inverse_information(information: torch.Tensor) -> torch.Tensor:
    """Covariance [6, 6] of a left perturbation of camera_from_map (equally a right one of map_from_camera, camera axes).

    Infinite where the information is singular: the image does not determine the pose.
    """
    try:
        return torch.from_numpy(np.linalg.inv(information.cpu().numpy()))
    except np.linalg.LinAlgError:
        return torch.full((6, 6), torch.inf, dtype=torch.float64)


def _depth(result: AlignmentResult, points: ReferencePoints) -> float:
    """Median distance of the visible points along the optical axis."""
    xyz, towards = points.xyz.cpu().numpy(), result.camera_from_map[2].cpu().numpy()
    depths = (xyz @ towards[:3] + towards[3])[result.visible.cpu().numpy()]
    return float(np.median(depths)) if len(depths) else float("inf")


def _moved_px(result: AlignmentResult, points: ReferencePoints, camera: Camera, camera_from_local: torch.Tensor) -> float:
    """How far the visible reprojections moved from the start, in pixels (median)."""
    pose = np.ascontiguousarray(camera_from_local.numpy())
    return median_motion(
        camera_numbers(camera), points.xyz.cpu().numpy(), pose, result.pixels.double().cpu().numpy(), result.visible.cpu().numpy()
    )


class _Stopwatch:
    def __init__(self, laps: dict[str, float] | None = None) -> None:
        self.laps = dict(laps or {})
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + (now - self._last) * 1e3
        self._last = now

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Where the map shows nothing of an image: its pose by the images before it, dead reckoning by camera.

Map points are described once more, by what recent frames show where they project: the same light, the same lens. Those frames
are the anchors. An image is aligned with their points as with the map's, held by its prior, so that its pose errs as theirs do
and by the alignment: where a few anchors last for long, errors do not add up from image to image. Frames that were tracked in
the map come first. Where an image agrees with none of the anchors, as when the light has changed, it is an anchor itself, where
dead reckoning puts it; from there on all is relative to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..alignment.types import ReferencePoints
from ..features.sampling import sample_reference
from ..geometry import se3
from ..geometry.cameras import Camera
from ..mapping import selection
from ..mapping.local_points import LocalPointOptions, LocalPoints, viewer_at
from .covariances import isotropic, not_worse_than
from .frame_aligner import FrameAligner
from .judge import FrameContext, Judge, distance
from .motion_prior import KnownPose
from .types import FrameAlignment, MotionPrior, RigView

_LEAST = isotropic(0.001, 0.0002)
"""Two images of a robot that stands still differ by so much."""
Predict = Callable[[KnownPose, KnownPose | None, FrameContext], MotionPrior]


@dataclass(frozen=True)
class RecentFrameOptions:
    """How recent frames are used.

    Attributes:
        tracked: How many of the frames that were tracked last are kept.
        anchors: How many frames that were not are kept beside them.
        points: Described per anchor and camera.
        fresh: A new anchor is made where of the points used, seen from a similar view, fewer are left than this share.
        preference: By how much a point of an anchor counts more than one of the next, whose pose is less well known.
        angle_rad: Difference of viewing direction at which a point of an anchor counts 1/e.
        octaves: The same of scale.
        least: Points that count less are not used.
        share: Of the points used, what an anchor must have for its errors to count.
        moves: A robot that should have moved by more, radians and shares of the depth together, does not stop
        still: within one image, so that less than this share of the motion is left.
        doubt: Factor on the covariance that the judge gives an alignment, which it learned on maps: there features are of the
            most similar view, here of one that is left behind (kitti07 and kitti01: errors are 1 to 3.4 times the claimed).
    """

    tracked: int = 3
    anchors: int = 3
    points: int = 1024
    fresh: float = 0.5
    preference: float = 1.4
    angle_rad: float = np.radians(25.0)
    octaves: float = 1.2
    least: float = 0.05
    share: float = 0.1
    moves: float = 0.003
    still: float = 0.15
    doubt: float = 8.0


@dataclass(frozen=True, eq=False)
class _Described:
    """What one camera of an anchor shows of the map: as a keyframe of a map does.

    Attributes:
        centre: float64 [3], of the camera, in the map.
        points: The points' numbers in the map, int64 [n], rising.
        offsets: float32 [n, 3] from the centre, along the map's axes.
        rays: float32 [n, 3], their directions.
        scales: float32 [n], log2 of focal length over distance.
        descriptors: Per level float32 [n, C].
        confidences: Per level float32 [n], or None.
    """

    centre: np.ndarray
    points: np.ndarray
    offsets: np.ndarray
    rays: np.ndarray
    scales: np.ndarray
    descriptors: tuple[torch.Tensor, ...]
    confidences: tuple[torch.Tensor | None, ...]


@dataclass(eq=False)
class _Anchor:
    """A frame whose pose is known well enough, described when it is needed first."""

    pose: KnownPose
    views: Sequence[RigView]
    map_from_rig: torch.Tensor
    described: list[_Described] | None = None


@dataclass(eq=False)
class _Chain:
    """Anchors of one look, the best known first, and the last two poses found with them: `KnownPose.shared` is the anchors' part
    of their covariance. full: how much the points of a new anchor are worth."""

    anchors: list[_Anchor]
    last: KnownPose
    before: KnownPose | None
    full: float = 0.0


class _Points:
    """Chooses from the anchors of a chain, as `LocalPointSelector` does from the keyframes of a map; for so many cameras, one
    after the other, maybe more than once: the last choices count."""

    def __init__(self, anchors: Sequence[_Anchor], options: RecentFrameOptions, cameras: int = 1) -> None:
        self._views = [(k, view) for k, anchor in enumerate(anchors) for view in anchor.described or ()]
        self._shares = [options.preference**-k for k in range(len(anchors))]
        self._options = options
        self._similar = LocalPointOptions(margin=0.0, angle_rad=options.angle_rad, octaves=options.octaves)
        self._chosen: deque[tuple[np.ndarray, float]] = deque(maxlen=cameras)

    @property
    def used(self) -> np.ndarray:
        """How many points were taken from each anchor, for all cameras."""
        return sum(used for used, _ in self._chosen)

    @property
    def worth(self) -> float:
        """How similar the views are that they were described from, summed over them."""
        return sum(worth for _, worth in self._chosen)

    def select(
        self, map_from_camera: torch.Tensor, camera: Camera, max_points: int, description: np.ndarray | None = None
    ) -> LocalPoints:
        """As `LocalPointSelector.select`; the description counts for nothing, as all was seen lately."""
        centre, views = map_from_camera.numpy()[:3, 3].copy(), [view for _, view in self._views]
        viewer = viewer_at(map_from_camera, camera, self._similar)
        starts = np.cumsum([0] + [len(view.points) for view in views])
        pixels, similar = np.empty((starts[-1], 2)), np.zeros(starts[-1])
        weights, anchor = np.zeros(starts[-1]), np.zeros(starts[-1], np.int64)
        for (k, view), first, last in zip(self._views, starts, starts[1:]):
            rows = slice(first, last)
            selection.weigh(viewer, view.centre - centre, view.offsets, view.rays, view.scales, 1, pixels[rows], similar[rows])
            similar[rows] *= similar[rows] >= self._options.least
            weights[rows], anchor[rows] = self._shares[k] * similar[rows], k
        points = np.concatenate([view.points for view in views])
        rows = selection.best_of_each_point(points, starts, weights)
        rows = rows[selection.spread(pixels[rows], weights[rows], viewer.size, max_points)]
        used = np.bincount(anchor[rows], minlength=len(self._shares))
        self._chosen.append((used, float(similar[rows].sum())))
        xyz = np.concatenate([view.offsets + (view.centre - centre).astype(np.float32) for view in views])[rows]
        index = torch.from_numpy(rows)
        levels = range(len(views[0].descriptors))
        descriptors = tuple(torch.cat([view.descriptors[k] for view in views])[index] for k in levels)
        confidences = tuple(
            None if views[0].confidences[k] is None else torch.cat([view.confidences[k] for view in views])[index] for k in levels
        )
        keyframes = torch.from_numpy(np.flatnonzero(used))
        reference = ReferencePoints(torch.from_numpy(xyz), descriptors, confidences)
        return LocalPoints(reference, torch.from_numpy(centre), torch.from_numpy(points[rows]), keyframes)


@dataclass
class RecentFrames:
    """Finds poses by recent frames. For one thread, one drive.

    Attributes:
        aligner: Aligns images.
        judge: Judges alignments.
        predict: Prior of a pose and the one before it, at a view.
        may_publish: Whether a pose found without the map is known well enough: of its covariance, and the depth seen last.
        options: How many frames are kept, and so on.
    """

    aligner: FrameAligner
    judge: Judge
    predict: Predict
    may_publish: Callable[[torch.Tensor, float], bool]
    options: RecentFrameOptions = field(default_factory=RecentFrameOptions)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing is known of the pose any more."""
        self._tracked: deque[_Anchor] = deque(maxlen=self.options.tracked)
        self._chains: list[_Chain] = []

    def saw(self, view: FrameContext, found: FrameAlignment, known: KnownPose) -> None:
        """A frame was found in the map: what was found without it is forgotten."""
        self._chains = []
        self._tracked.appendleft(_anchor(view, [one.view for one in found.views], known))

    def follow(
        self, view: FrameContext, views: Sequence[RigView], known: KnownPose, before: KnownPose | None
    ) -> tuple[KnownPose, KnownPose | None] | None:
        """Pose of a frame that the map does not show, with the one before it; None where recent frames do not tell, either.

        Args:
            view: The frame with its prior.
            views: Those of its views that are to be used.
            known: The last pose, from which the prior comes.
            before: The one before it.
        """
        if not views:
            return None
        if not self._chains and self._tracked:
            self._chains = [_Chain(list(self._tracked), known, before)]
        for chain in reversed(self._chains):
            found = self._along(chain, view, views)
            if found is not None:
                self._chains = self._chains[: self._chains.index(chain) + 1]
                return found if self.may_publish(found[0].covariance, known.depth) else None
        prior = view.prior
        pose = KnownPose(
            view.stamp_ns, prior.map_from_base, prior.covariance, view.odometry, prior.published, known.depth, prior.covariance
        )
        chain = _Chain([_anchor(view, views, pose)], pose, known if known.stamp_ns < pose.stamp_ns else None)
        self._chains = [*self._chains[:1], chain]
        return None

    def _along(self, chain: _Chain, view: FrameContext, views: Sequence[RigView]) -> tuple[KnownPose, KnownPose] | None:
        """The pose by the anchors of a chain."""
        for anchor in chain.anchors:
            self._describe(anchor)
        if not any(len(one.points) for anchor in chain.anchors for one in anchor.described):
            return None
        expected = self.predict(chain.last, chain.before, view)
        own = expected.covariance
        if chain.last.shared is not None:
            # What all poses of the chain have in common says nothing of the way from one to the next.
            own = own - se3.transform_covariance(chain.last.shared, se3.inverse(expected.motion)) + _LEAST
        points = _Points(chain.anchors, self.options, len(views))
        # The image claims too much: the prior must, too.
        covariance = se3.transform_covariance(own, view.camera_from_base) / self.options.doubt
        alignment = self.aligner.localize_prepared(
            views, expected.map_from_base @ view.base_from_camera, covariance, selector=points
        )
        alignment = replace(alignment, covariance=self.options.doubt * alignment.covariance)
        look = self.judge.look(view, alignment, False)
        if look.pose is None:
            return None
        gates, away = self.judge.gates, distance(replace(expected, covariance=self.judge.floored(own)), look.pose)
        if away > gates.innovation_limit(look.probability >= gates.sure_probability, view.noise_factor):
            return None
        if self._stands_still(chain.last, expected, look.pose):
            return None
        shared, published = self._shared(chain, points, look.pose)
        gained = se3.transform_covariance(alignment.covariance, view.base_from_camera), look.pose.published
        if away <= gates.max_innovation:
            gained = tuple(not_worse_than(one, own) for one in gained)
        pose = replace(look.pose, covariance=gained[0] + shared, published=gained[1] + published, shared=shared)
        before, chain.before, chain.last = chain.last, chain.last, pose
        chain.full = max(chain.full, points.worth)
        if points.worth < self.options.fresh * chain.full:
            self._extend(chain, _anchor(view, views, pose), points.used)
        return pose, before

    def _stands_still(self, last: KnownPose, expected: MotionPrior, found: KnownPose) -> bool:
        """Whether an image seems not to have moved though the robot should have: dirt on the lens, and what is carried along,
        agree from image to image as well as a place does."""

        def moved(pose: torch.Tensor) -> float:
            metres, radians = se3.pose_difference(last.map_from_base, pose)
            return float(metres) / found.depth + float(radians)

        should = moved(expected.map_from_base)
        return should > self.options.moves and moved(found.map_from_base) < self.options.still * should

    def _shared(self, chain: _Chain, points: _Points, pose: KnownPose) -> tuple[torch.Tensor, torch.Tensor]:
        """Covariances, for the next prior and for others, that a pose has from those of the anchors it was found with: of those
        that many points are from, the least well known."""
        counted = [a for a, used in zip(chain.anchors, points.used) if used >= self.options.share * points.used.sum()]
        worst = max((anchor.pose for anchor in counted), key=lambda known: float(known.covariance.trace()))
        here_from_there = se3.inverse(pose.map_from_base) @ worst.map_from_base
        return tuple(se3.transform_covariance(one, here_from_there) for one in (worst.covariance, worst.published))

    def _extend(self, chain: _Chain, anchor: _Anchor, used: np.ndarray) -> None:
        """The anchor is the last; of too many the one that is of least use is left out. used: points taken from each."""
        self._describe(anchor)
        if len(chain.anchors) >= self.options.anchors:
            del chain.anchors[int(used.argmin())]
        chain.anchors.append(anchor)
        chain.full = 0.0

    def _describe(self, anchor: _Anchor) -> None:
        if anchor.described is not None:
            return
        anchor.described = []
        for view in anchor.views:
            pose = view.map_from_camera(anchor.map_from_rig)
            local = self.aligner.points_near(pose, view.prepared.camera, self.options.points)
            anchor.described.append(_described(view, pose, local))
        anchor.views = ()


def _anchor(view: FrameContext, views: Sequence[RigView], pose: KnownPose) -> _Anchor:
    return _Anchor(pose, views, pose.map_from_base @ view.base_from_camera)


def _described(view: RigView, map_from_camera: torch.Tensor, local: LocalPoints) -> _Described:
    """What an image shows of map points."""
    camera, pose = view.prepared.camera, map_from_camera.numpy()
    offsets = local.points.xyz.double() + (local.origin - map_from_camera[:3, 3])
    pixels, valid = camera.project(offsets @ map_from_camera[:3, :3])
    valid &= camera.in_image(pixels)
    samples = [sample_reference(level, pixels[None].float()) for level in view.prepared.pyramid.levels]
    for _, _, inside in samples:
        valid = valid & inside[0]
    order = torch.argsort(local.point_ids)
    rows = order[valid[order]]
    offsets = offsets[rows].float().numpy()
    distance = np.maximum(np.linalg.norm(offsets, axis=1), np.finfo(np.float32).tiny)
    scales = np.log2(float(camera.params[:2].mean()) / distance).astype(np.float32)
    return _Described(
        pose[:3, 3].copy(),
        local.point_ids[rows].numpy(),
        offsets,
        offsets / distance[:, None],
        scales,
        tuple(values[0][rows] for values, _, _ in samples),
        tuple(None if confidence is None else confidence[0][rows] for _, confidence, _ in samples),
    )

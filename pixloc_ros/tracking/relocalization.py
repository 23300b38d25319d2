# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Where an image may have been taken when next to nothing is known: hypotheses from similar keyframes and from a vague prior,
aligned together at the coarse levels, the best of them to the end. Of a doubtful single image, poses that look most like the map
are aligned, too: around its prior, or around similar keyframes.

The work for one image is bounded, whatever the map's size: what an image does not find, the next image looks for further down
the list. Nothing here is believed: `Tracker` follows what was found over the next images first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import ndtri

from ..alignment import LevelWeights, Likeness, PriorFactor, ReferencePoints, View, align
from ..features.pyramid import FeaturePyramid
from ..geometry import se3
from ..mapping.local_points import LocalPointOptions, LocalPoints, LocalPointSelector
from ..mapping.retrieval import GlobalDescriptor, KeyframeIndex
from .frame_aligner import FrameAligner
from .prior_std import PriorStd
from .types import FrameAlignment, MotionPrior, PreparedFrame, PreparedImage

_STEPS = 1.1127756842787055 ** -np.arange(1.0, 7.0)
"""Of a sequence that fills six dimensions evenly: powers of the root of x⁷ = x + 1, as the golden ratio is of x² = x + 1."""
_GATE = 3.5
"""Standard deviations of a prior within which keyframes are looked at."""
COARSE_POINTS = LocalPointOptions(keyframes=2, candidates=4)
"""Most hypotheses are poses of keyframes: their own points and those of one neighbour do, and few keyframes are read."""
_AROUND = [(0, 0, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 2), (0, 0, -2), (1, 1, 1)]
_AROUND += [(1, -1, -1), (-1, 1, -1), (-1, -1, 1), (2, 0, 0), (-2, 0, 0)]
"""Steps in x, y, yaw of the base from a prior; one an image, in this order, round and round."""
_WIDER_POINTS = replace(COARSE_POINTS, margin=0.2)
"""Points that stand for many poses around one."""
_SAME_ANGLE = 0.1
_UNRELATED = 1.1
"""Mean log residual (`alignment.LevelTrace`) of points and image that have nothing to do with each other."""
_SAME_DEPTHS = 0.1
_HYPOTHESIS = PriorStd(20.0, depth_share=0.35)
"""How far off a hypothesis is taken to be: an image that shows little must not lead it away from where the map was seen."""
_SPREAD, _SPREAD_LEVELS, _SPREAD_FINALISTS = 32, 3, 10
"""Hypotheses around a pose, the levels that compare them, and how many of them are aligned to the end,"""
_NEAR, _HELD = PriorStd(5.0, depth_share=0.1), PriorStd(3.0, depth_share=0.06)
"""and how far off each is taken to be at the coarse levels, and after them: else all would end at what looks most like it."""
_COMPARED = 512
"""Poses around one that are compared by likeness,"""
_CLIMBS = (1, 30), (2, 6)
"""on which levels the likeliest are moved to where the image looks most like the map, and how many (the coarsest level does not
tell neighbouring places apart),"""
_LIKELIEST, _NEARBY = 3, PriorStd(1.5, depth_share=0.03)
"""how many of them are aligned, and how far off each is taken to be."""
_SIMILAR = 3
"""Keyframes around which this is done where nothing is known."""
_LIKELY = 0.8
"""Share of the likeness of the likeliest pose that another must have to be one that the image may show,"""
_A_POINT = 3.2
"""and the likeness, for each point, without which nothing is said: the true pose may be out of reach."""
_SAME_POSE = 0.04
"""Radians, and share of the depth, that poses of one image differ by at most that are one pose: things that repeat may do so at
a tenth of the depth."""


@dataclass(frozen=True)
class RelocalizationOptions:
    """Work per image.

    Attributes:
        hypotheses: Poses aligned at the coarse levels.
        pool: Similar keyframes that they are taken from, over successive images.
        seeds: Of the hypotheses, those spread over a prior's covariance, where there is a prior.
        levels: Of the features, used by the coarse alignment of a search.
        points: Map points used by it.
        finalists: Poses aligned to the end.
    """

    hypotheses: int = 10
    pool: int = 30
    seeds: int = 4
    levels: int = 2
    points: int = 192
    finalists: int = 2


class Relocalizer:
    """Finds poses of images in a map without a prior, or with a vague one. Holds no state: same input, same poses."""

    def __init__(
        self, localizer: FrameAligner, options: RelocalizationOptions | None = None, descriptor: GlobalDescriptor | None = None
    ) -> None:
        """Raises InputError where the map's keyframes are described by another descriptor."""
        self.options = options or RelocalizationOptions()
        self._localizer = localizer
        # Its own: the views of far keyframes must not drive those around the robot from the localizer's.
        self._selector = LocalPointSelector(localizer.map, COARSE_POINTS)
        self._wider = LocalPointSelector(localizer.map, _WIDER_POINTS)
        self._alignment = replace(localizer.options.alignment, inlier_level=-1)
        self._index = KeyframeIndex(localizer.map, descriptor)
        self._keyframes = localizer.map.map_from_keyframe
        depth = localizer.map.keyframe_depth
        self._depth = float(np.median(depth[depth > 0])) if (depth > 0).any() else 1.0
        self._covariance = _HYPOTHESIS.covariance(self._depth)

    def search(
        self,
        frame: PreparedFrame,
        base_from_camera: torch.Tensor,
        turn: int = 0,
        prior: MotionPrior | None = None,
        known: Sequence[torch.Tensor] = (),
        finalists: int | None = None,
        enough: Callable[[FrameAlignment], bool] = lambda _: False,
    ) -> list[FrameAlignment]:
        """Poses at which the image agrees best with the map, each found from a hypothesis of its own, best first.

        Args:
            frame: The image with its features.
            base_from_camera: float64 [4, 4].
            turn: 0 for the first image of a search, then counting up: later ones try other hypotheses.
            prior: Of the base, where there is one: keyframes near it come first, and seeds are spread over its covariance.
            known: map_from_camera poses that are already followed: hypotheses that lead there are dropped.
            finalists: Fewer or more than the options say.
            enough: Whether a pose is so good that only others that explain nearly as much are aligned.
        """
        # What an image looks like may mislead: every second turn all sessions of the map count the same.
        prepared = replace(frame.prepared, description=None) if turn % 2 else frame.prepared
        starts = self._hypotheses(frame, base_from_camera, turn, prior)
        if not len(starts):
            return []
        poses, scores = self._align_coarsely(prepared, starts, self._covariance, self.options.levels)
        finish = lambda start: self._localizer.localize_prepared(prepared, start, _HYPOTHESIS)  # noqa: E731
        finalists = self.options.finalists if finalists is None else finalists
        found = _finished(poses, scores, finish, self.same_place, known, finalists, enough)
        return [one for one in found if not any(self.same_place(one.map_from_camera, other) for other in known)]

    def around(
        self, prepared: PreparedImage, pose: torch.Tensor, covariance: torch.Tensor, known: Sequence[FrameAlignment]
    ) -> list[FrameAlignment]:
        """Other poses that a prepared image may show, best first: from hypotheses that are spread over what is known of it.

        Args:
            prepared: The image.
            pose: What is known, map_from_camera, float64 [4, 4].
            covariance: How well it is known, float64 [6, 6], camera frame.
            known: Alignments of the image that led elsewhere: at least one, and none that failed.
        """
        depth = known[0].depth
        starts = spread(pose, covariance, _SPREAD, 0)[1:]
        poses, scores = self._align_coarsely(prepared, starts, _NEAR.covariance(depth), _SPREAD_LEVELS)
        held = _HELD.covariance(depth)
        finish = lambda start: self._localizer.localize_prepared(prepared, start, held, known=covariance)  # noqa: E731
        same = lambda one, other: same_pose(one, other, depth)  # noqa: E731
        return _finished(poses, scores, finish, same, [one.map_from_camera for one in known], _SPREAD_FINALISTS)

    def likeliest(
        self, prepared: PreparedImage, pose: torch.Tensor, covariance: torch.Tensor, known: Sequence[FrameAlignment]
    ) -> list[FrameAlignment]:
        """What a prepared image may show, by how much it looks like the map: much cheaper than `around`.

        Args:
            prepared: The image.
            pose, covariance, known: As of `around`. Alignments, also those known, are left out from whose poses the image
                looks much less like the map than from another; none is left where that pose is out of reach.
        """
        place, poses, scores = self._climbed(prepared, pose, covariance, known[0].depth)
        found = self._aligned(prepared, poses, scores - _LIKELY * scores.max(), covariance, known)
        found = [one for one in (*known, *found) if one.success]
        ends = place.likeness(torch.stack([one.map_from_camera for one in found]))
        least = max(_LIKELY * max(scores.max(), ends.max()), _A_POINT * self.options.points)
        return [one for one, end in zip(found, ends) if end >= least]

    def around_similar(
        self, frame: PreparedFrame, covariance: torch.Tensor, known: Sequence[FrameAlignment]
    ) -> list[FrameAlignment]:
        """Other poses that an image may show, from those around the keyframes most like it which look most like the map. None is
        dropped for its likeness: points near a wrong keyframe would speak for it.

        Args:
            frame: The image with its features.
            covariance: How far from a keyframe it may be taken, float64 [6, 6], camera frame.
            known: As of `around`.
        """
        found, prepared = list(known), frame.prepared
        description = self._index.descriptor.describe(frame.image, prepared.pyramid)
        for keyframe in self._index.by_place(self._index.most_similar(description, self.options.pool))[:_SIMILAR].tolist():
            _, poses, scores = self._climbed(prepared, self._keyframes[keyframe], covariance, known[0].depth)
            found += self._aligned(prepared, poses, scores, covariance, found)
        return found[len(known) :]

    def _climbed(
        self, prepared: PreparedImage, pose: torch.Tensor, covariance: torch.Tensor, depth: float
    ) -> tuple[_Place, torch.Tensor, np.ndarray]:
        """The points around a pose, the poses [n, 4, 4] around it from which the image looks most like them, and how much."""
        place = _Place(prepared, self._wider.select(pose, prepared.camera, self.options.points, prepared.description))
        poses = spread(pose, covariance, _COMPARED, 0)
        best = np.argsort(-place.roughly(poses), kind="stable")
        for level, most in _CLIMBS:
            poses, scores = place.climb(poses[torch.from_numpy(best[:most])], level)
            best = _distinct(poses, scores, depth)
        return place, poses, place.likeness(poses)

    def _aligned(
        self,
        prepared: PreparedImage,
        poses: torch.Tensor,
        scores: np.ndarray,
        covariance: torch.Tensor,
        known: Sequence[FrameAlignment],
    ) -> list[FrameAlignment]:
        """The best of poses found by likeness, aligned."""
        depth = known[0].depth
        near = _NEARBY.covariance(depth)
        finish = lambda start: self._localizer.localize_prepared(prepared, start, near, known=covariance)  # noqa: E731
        same = lambda one, other: same_pose(one, other, depth)  # noqa: E731
        return _finished(poses, scores, finish, same, [one.map_from_camera for one in known], _LIKELIEST)

    def _hypotheses(
        self, frame: PreparedFrame, base_from_camera: torch.Tensor, turn: int, prior: MotionPrior | None
    ) -> torch.Tensor:
        """map_from_camera [H, 4, 4] to start from."""
        options = self.options
        description = self._index.descriptor.describe(frame.image, frame.prepared.pyramid)
        seeds = torch.empty((0, 4, 4), dtype=torch.float64)
        ranked = self._index.by_place(self._index.most_similar(description, options.pool))
        if prior is not None:
            seeds = spread(prior.map_from_base, prior.covariance, options.seeds, turn) @ base_from_camera
            near = self._index.most_similar(description, options.pool, self._near(prior, base_from_camera))
            ranked = _alternate(near, ranked)
        count = options.hypotheses - len(seeds)
        rounds, first = divmod(turn * count, max(len(ranked), 1))
        starts = self._keyframes[torch.from_numpy(np.roll(ranked, -first)[:count])]
        if rounds:  # all similar keyframes were tried: from next to them now
            starts = starts @ spread(torch.eye(4, dtype=torch.float64), self._covariance, len(starts), rounds)
        return torch.cat((seeds, starts))

    def _near(self, prior: MotionPrior, base_from_camera: torch.Tensor) -> np.ndarray:
        """bool [K]: keyframes that a camera within the prior's gate could be aligned from."""
        camera = prior.map_from_base @ base_from_camera
        std = prior.covariance.diagonal().clamp(min=0).sqrt()
        # What a keyframe may be away from the image all the same, and be a good start.
        reach_m = _GATE * float(std[:3].max()) + 0.25 * self._depth
        reach_rad = _GATE * float(std[3:].max()) + 0.5
        away, turned = se3.pose_difference(camera, self._keyframes)
        return ((away <= reach_m) & (turned <= reach_rad)).numpy()

    def _align_coarsely(
        self, prepared: PreparedImage, starts: torch.Tensor, covariance: torch.Tensor, levels: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """All hypotheses in one batch, at the coarsest levels only: poses [H, 4, 4], and how much of the image each explains.

        covariance: How far off each is taken to be [6, 6].
        """
        pyramid, camera = prepared.pyramid, prepared.camera
        levels, weights = min(levels, len(pyramid.levels)), self._localizer.weights
        locals_ = [self._selector.select(start, camera, self.options.points, prepared.description) for start in starts]
        count = max(max(len(local.points) for local in locals_), 1)
        map_from_local = torch.eye(4, dtype=torch.float64).repeat(len(starts), 1, 1)
        map_from_local[:, :3, 3] = torch.stack([local.origin for local in locals_])
        mask = torch.stack([torch.arange(count) < len(local.points) for local in locals_])

        def padded(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
            if tensors[0] is None:
                return None
            return torch.stack([torch.cat((t, t.new_zeros((count - len(t), *t.shape[1:])))) for t in tensors])

        points = ReferencePoints(
            padded([local.points.xyz for local in locals_]),
            tuple(padded([local.points.descriptors[k] for local in locals_]) for k in range(levels)),
            tuple(padded([local.points.confidences[k] for local in locals_]) for k in range(levels)),
        )
        coarse = FeaturePyramid(pyramid.levels[:levels], pyramid.image_size)
        view = View(coarse, camera, points, mask)
        initial = se3.inverse(starts) @ map_from_local
        prior = PriorFactor(initial, torch.linalg.inv(covariance).expand(len(initial), 6, 6))
        weights = None if weights is None else LevelWeights(weights.table[:levels])
        result = align(view, initial, self._alignment, self._localizer.damping, prior, weights)
        poses = map_from_local @ se3.inverse(result.camera_from_map)
        # Under change hardly a point agrees at these levels, but in the right place all disagree less.
        visible = (result.visible & mask).sum(-1) / count
        scores = torch.where(result.converged, visible * (_UNRELATED - result.trace[-1].residual), 0.0)
        return poses, scores.numpy()

    def same_place(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two poses of a camera [4, 4] are as near to one another as alignments of one image in one place end."""
        away, turned = se3.pose_difference(one, other)
        return float(away) < _SAME_DEPTHS * self._depth and float(turned) < _SAME_ANGLE


class _Place:
    """The map's points around a pose, and how much an image looks like them from others: map_from_camera [n, 4, 4] each."""

    def __init__(self, prepared: PreparedImage, local: LocalPoints) -> None:
        view, self._origin = View(prepared.pyramid, prepared.camera, local.points), local.origin
        finest = len(prepared.pyramid.levels) - 1
        self._levels = {level: Likeness(view, min(level, finest)) for level, _ in _CLIMBS}

    def roughly(self, poses: torch.Tensor) -> np.ndarray:
        """On the first level, to a cell."""
        return self._levels[_CLIMBS[0][0]].roughly(self._inwards(poses))

    def likeness(self, poses: torch.Tensor) -> np.ndarray:
        """The sum over the levels."""
        return sum(level.at(self._inwards(poses)) for level in self._levels.values())

    def climb(self, poses: torch.Tensor, level: int) -> tuple[torch.Tensor, np.ndarray]:
        """Poses nearby that the image looks more like on one level, and how much."""
        found, scores = self._levels[level].climb(self._inwards(poses))
        found = se3.inverse(found)
        found[:, :3, 3] += self._origin
        return found, scores

    def _inwards(self, poses: torch.Tensor) -> torch.Tensor:
        near = poses.clone()
        near[:, :3, 3] -= self._origin
        return se3.inverse(near)


def _distinct(poses: torch.Tensor, scores: np.ndarray, depth: float) -> np.ndarray:
    """Numbers of poses [n, 4, 4], best first, without those that are the same as a better one."""
    taken: list[int] = []
    for k in np.argsort(-scores, kind="stable").tolist():
        if not (taken and same_pose(poses[k], poses[taken], depth)):
            taken.append(k)
    return np.array(taken)


def same_pose(one: torch.Tensor, other: torch.Tensor, depth: float) -> bool:
    """Whether a pose of a camera [4, 4], which sees things `depth` away, is where the same alignment may end as one or any of
    others [..., 4, 4]."""
    away, turned = se3.pose_difference(one, other)
    return bool(((away < _SAME_POSE * depth) & (turned < _SAME_POSE)).any())


def _finished(
    poses: torch.Tensor,
    scores: np.ndarray,
    finish: Callable[[torch.Tensor], FrameAlignment],
    same: Callable[[torch.Tensor, torch.Tensor], bool],
    known: Sequence[torch.Tensor],
    most: int,
    enough: Callable[[FrameAlignment], bool] = lambda _: False,
) -> list[FrameAlignment]:
    """The best of some poses, aligned to the end, best first; none twice, none that is known, after one that is enough only what
    scores nearly as much as the best."""
    found, taken, least = [], list(known), 0.0
    for k in np.argsort(-scores, kind="stable"):
        if len(found) == most or scores[k] <= least:
            break
        if not any(same(poses[k], other) for other in taken):
            found.append(finish(poses[k]))
            taken += [poses[k], found[-1].map_from_camera]
            least = _LIKELY * scores.max() if enough(found[-1]) else least
    return sorted(found, key=lambda a: -agreement(a))


def agreement(alignment: FrameAlignment) -> float:
    """Number of points that agree, times the probability of a right pose: the more of the map is explained, the better. Negative
    where the alignment failed."""
    points = alignment.inlier_fraction * alignment.visible_fraction * alignment.points_used
    return points * alignment.probability if alignment.success else -1.0


def spread(pose: torch.Tensor, covariance: torch.Tensor, count: int, turn: int) -> torch.Tensor:
    """Poses [count, 4, 4] spread over a prior's covariance [6, 6]: the prior itself first, then evenly over a Gaussian
    (an additive recurrence, of which each turn takes the next part)."""
    numbers = np.arange(turn * count, (turn + 1) * count)
    offsets = ndtri((0.5 + numbers[:, None] * _STEPS % 1.0) % 1.0).clip(-3.0, 3.0)
    values, axes = np.linalg.eigh(covariance.numpy())
    tangents = offsets * np.sqrt(values.clip(min=0)) @ axes.T
    return pose @ se3.se3_exp(torch.from_numpy(tangents))


def start_around(prior: MotionPrior, attempt: int, reach_m: float, reach_rad: float) -> torch.Tensor:
    """map_from_base [4, 4] to start from at the attempt of that number to find a lost pose again around a prior.

    Steps are as wide as the prior is unsure, at least a quarter of the reach and at most half of it: whoever is lost should not
    trust the covariance that led there.
    """
    x, y, yaw = _AROUND[attempt % len(_AROUND)]
    std = np.sqrt(prior.covariance.numpy().diagonal())
    translation = std[:2].clip(reach_m / 4, reach_m / 2)
    rotation = std[5].clip(reach_rad / 4, reach_rad / 2)
    offset = np.array([x * translation[0], y * translation[1], 0.0, 0.0, 0.0, yaw * rotation])
    return prior.map_from_base @ se3.se3_exp(torch.from_numpy(offset))


def _alternate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One of each in turn, without repetition; then what is left of the longer one."""
    n = min(len(first), len(second))
    both = np.concatenate([np.stack((first[:n], second[:n]), 1).ravel(), first[n:], second[n:]])
    return both[np.sort(np.unique(both, return_index=True)[1])]

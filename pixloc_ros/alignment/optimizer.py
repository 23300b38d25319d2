# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Coarse-to-fine Levenberg-Marquardt alignment of map points with a query image's features.

PixLoc, section 4 of the paper, with two strategies: "paper", the fixed learned damping without step acceptance, as trained;
and "adaptive", which starts from the same damping but accepts only steps that lower the cost, and scales the damping by the
outcome. Batched over poses (hypotheses or training pairs); differentiable in features, confidences and damping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from ..errors import InputError
from ..features.pyramid import FeaturePyramid
from ..geometry import se3
from ..geometry.cameras import Camera
from . import compiled
from .cost import Linearization, linearize
from .damping import LearnedDamping, MotionCues, TemporalPrior
from .robust import RobustLoss
from .types import AlignmentResult, LevelTrace, PriorFactor, ReferencePoints, to_device

T = TypeVar("T")
STRATEGIES = ("adaptive", "paper")
BACKENDS = ("auto", "torch", "compiled")
DIAGONAL_FLOOR = 1e-6
ADAPTIVE_START = 1e-2
ADAPTIVE_RANGE = (1e-7, 1e4)
ADAPTIVE_DOWN, ADAPTIVE_UP = 0.1, 10.0
LEAST_SHARED_VIEW = 0.5
"""A step that pushes more than this share of the visible points out of the image is refused."""


@dataclass(frozen=True)
class AlignmentOptions:
    """How to align.

    strategy: "adaptive" (step acceptance) or "paper" (fixed damping). iterations: at most, per level.
    loss: robust loss of the squared feature residual. border_cells: how far inside the image a point must be, in cells.
    min_points: fewer visible points than this is a failure. stop_cells: a level ends when a step moves the reprojections by
    less than this share of a cell (root mean square). feature_variance: squared feature residual that counts as one sigma,
    which sets the image's weight against a prior factor. finest_share: the finest level is exact where images are sharp; its
    pose stands where at least this share of the points that agreed with the map at the level before agrees at it, too, else that
    level's does; inliers are counted at the level before, which tolerates blur and noise (adaptive only; 0: the finest level
    always stands, and inliers are counted there). backend: "torch" (any device, differentiable), "compiled" (one CPU
    core, adaptive only, no gradients) or "auto": compiled wherever it can be. detach_steps: for training: where a step starts
    is a constant to its gradient, so that each step is taught by itself (adaptive only).
    """

    strategy: str = "adaptive"
    iterations: int = 20
    loss: RobustLoss = field(default_factory=lambda: RobustLoss("geman_mcclure", 0.05))
    border_cells: float = 0.0
    min_points: int = 10
    stop_cells: float = 0.05
    feature_variance: float = 0.05
    finest_share: float = 0.6
    backend: str = "auto"
    detach_steps: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"alignment strategy '{self.strategy}': choose one of {', '.join(STRATEGIES)}")
        if self.backend not in BACKENDS or (self.backend == "compiled" and self.strategy != "adaptive"):
            raise InputError(
                f"alignment backend '{self.backend}' for strategy '{self.strategy}': choose one of "
                f"{', '.join(BACKENDS)}; compiled is adaptive only"
            )
        if self.iterations < 1 or self.min_points < 3 or not self.stop_cells >= 0 or not self.feature_variance > 0:
            raise InputError(
                "alignment options: iterations must be at least 1, min_points at least 3, "
                "stop_cells not negative, feature_variance above 0"
            )


@dataclass(frozen=True)
class _Trace:
    """A level's `LevelTrace` while its numbers are on the device: steps [B] that each pose took. Costs and poses may hold more
    steps than the longest took, during which nothing moved any more."""

    stride: float
    costs: torch.Tensor
    poses: torch.Tensor
    steps: torch.Tensor

    def cut(self, steps: int) -> LevelTrace:
        return LevelTrace(self.stride, self.costs[:, : steps + 1], self.poses[:, : steps + 1], steps)


class _Stop:
    """Tells the host when it may leave an iteration, without ever making it wait for a GPU.

    On a CPU it looks. From a GPU the answer is copied into pinned memory and read when it has come, some iterations later; poses
    that have stopped do not move in the meantime, so that only time depends on it. Other devices run all iterations.
    """

    def __init__(self) -> None:
        self._asked: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def __call__(self, moving: torch.Tensor) -> bool:
        """moving: bool [B]. Whether none moves any more, as far as is known."""
        if moving.is_cpu:
            return not bool(moving.any())
        if not moving.is_cuda:
            return False
        if self._asked is not None and self._asked[1].query():
            if not bool(self._asked[0]):
                return True
            self._asked = None
        if self._asked is None:
            answer, event = torch.empty((), dtype=torch.bool, pin_memory=True), torch.cuda.Event()
            answer.copy_(moving.any(), non_blocking=True)
            event.record()
            self._asked = answer, event
        return False


@dataclass(frozen=True)
class _LevelEnd:
    """Where a level ended: pose [B, 4, 4], alive [B]; hessian, cost, and per point squared residual, valid, pixels there."""

    camera_from_map: torch.Tensor
    alive: torch.Tensor
    hessian: torch.Tensor
    cost: torch.Tensor
    squared: torch.Tensor
    valid: torch.Tensor
    pixels: torch.Tensor
    trace: _Trace

    @classmethod
    def of(cls, pose: torch.Tensor, alive: torch.Tensor, now: Linearization, trace: _Trace) -> _LevelEnd:
        return cls(pose, alive, now.hessian, now.mean_cost(), now.squared, now.valid, now.pixels, trace)

    def inliers(self, loss: RobustLoss) -> torch.Tensor:
        """Visible points [B, N] whose residual is in the robust loss's quadratic zone."""
        return self.valid & (self.squared < 2 * loss.scale)


@dataclass(frozen=True)
class _Level:
    """What stays the same over the iterations of a level."""

    pyramid: FeaturePyramid
    index: int
    camera: Camera
    points: ReferencePoints
    mask: torch.Tensor | None
    options: AlignmentOptions

    def linearize(self, camera_from_map: torch.Tensor) -> Linearization:
        k = self.index
        return linearize(
            self.pyramid.levels[k],
            self.pyramid.image_size,
            self.camera,
            self.points.xyz,
            self.points.descriptors[k],
            self.points.confidences[k],
            self.mask,
            camera_from_map,
            self.options.loss,
            self.options.border_cells,
        )


def align(
    pyramid: FeaturePyramid,
    camera: Camera,
    points: ReferencePoints,
    camera_from_map: torch.Tensor,
    options: AlignmentOptions = AlignmentOptions(),
    damping: LearnedDamping | None = None,
    prior: PriorFactor | None = None,
    mask: torch.Tensor | None = None,
    cues: MotionCues | None = None,
) -> AlignmentResult:
    """Move the poses until the query's features at the projected points agree with the map's.

    pyramid: features of the query, batch size B or 1. camera: of the pyramid's image size. points: [N, 3] or [B, N, 3].
    camera_from_map: initial poses, [4, 4] or [B, 4, 4]. damping: learned factors; without it the adaptive strategy starts
    at 0.01 and the paper's runs with theta = 0. mask: bool [B, N], which points exist (padding in training). cues: what a
    `TemporalPrior` takes; where its axes are not given, those of a base at the camera are meant. The work is done where the
    pyramid is, on whatever device the rest comes and the result goes; the damping must be there.

    The result's leading dimensions are those of `camera_from_map`. Nothing is raised for a hard image: see `converged`.
    """
    home, device = camera_from_map.device, pyramid.levels[0].features.device
    if home != device:
        camera, points, camera_from_map, prior, mask, cues = to_device(
            (camera, points, camera_from_map, prior, mask, cues), device
        )
    single = camera_from_map.dim() == 2
    pose = camera_from_map[None] if single else camera_from_map
    if points.xyz.dim() == 2:
        points = ReferencePoints(
            points.xyz[None],
            tuple(d[None] for d in points.descriptors),
            tuple(c if c is None else c[None] for c in points.confidences),
        )
    if prior is not None and prior.camera_from_map.dim() == 2:
        prior = PriorFactor(prior.camera_from_map[None], prior.information[None])
    if cues is not None and cues.values.dim() == 1:
        cues = MotionCues(cues.values[None], cues.camera_from_base[None])
    if len(points.descriptors) != len(pyramid.levels):
        raise InputError(
            f"the map has {len(points.descriptors)} feature levels, the image {len(pyramid.levels)}: "
            "build the map with the same network"
        )
    dampings, priors = _learned(damping, prior, cues, len(pyramid.levels), pose.device)
    run = _align_compiled if _compiled_serves(options, pyramid, camera, points) else _align_tensors
    result = run(pyramid, camera, points, pose, options, dampings, priors, mask)
    return to_device(_first(result) if single else result, home)


def _align_tensors(
    pyramid: FeaturePyramid,
    camera: Camera,
    points: ReferencePoints,
    pose: torch.Tensor,
    options: AlignmentOptions,
    dampings: list[_Damping | None],
    priors: list[PriorFactor | None],
    mask: torch.Tensor | None,
) -> AlignmentResult:
    """Level after level on any device, differentiable; damping and prior of each level."""
    end, inliers, finished, ran = _run_levels(pyramid, camera, points, pose, options, dampings, priors, mask)
    numbers = torch.stack((*(trace.steps.amax() for trace in ran), finished.all(), end.alive.all()))
    *steps, all_finished, all_alive = numbers.tolist()  # the only time that the host waits
    traces = tuple(trace.cut(taken) for trace, taken in zip(ran, steps))
    return AlignmentResult(
        end.camera_from_map,
        finished,
        end.hessian,
        end.cost,
        end.valid,
        inliers & end.valid,
        end.pixels,
        traces,
        _reason(bool(all_finished), bool(all_alive), traces, options),
    )


def _run_levels(
    pyramid: FeaturePyramid,
    camera: Camera,
    points: ReferencePoints,
    pose: torch.Tensor,
    options: AlignmentOptions,
    dampings: list[_Damping | None],
    priors: list[PriorFactor | None],
    mask: torch.Tensor | None,
) -> tuple[_LevelEnd, torch.Tensor, torch.Tensor, list[_Trace]]:
    """Where the alignment ends, the points [B, N] that agree, which poses [B] are fit to use, and how each level went. The host
    waits for no device here."""
    alive = torch.ones(pose.shape[0], dtype=torch.bool, device=pose.device)
    run = _run_paper if options.strategy == "paper" else _run_adaptive
    traces, end = [], None
    for k in range(len(pyramid.levels)):
        level = _Level(pyramid, k, camera, points, mask, options)
        # Between levels the pose is a constant: each level's loss teaches that level only (PixLoc, section 4.3).
        coarser, end = end, run(level, pose.detach(), dampings[k], priors[k], alive)
        pose, alive = end.camera_from_map, end.alive
        traces.append(end.trace)
    inliers = end.inliers(options.loss)
    if coarser is not None and options.strategy == "adaptive" and options.finest_share > 0:
        finest, inliers = inliers, coarser.inliers(options.loss)
        blurred = finest.sum(-1) < options.finest_share * inliers.sum(-1)
        end = dataclasses.replace(_take(blurred, coarser, end), alive=alive)
    return end, inliers, torch.isfinite(end.camera_from_map).all(-1).all(-1) & alive, traces


def _reason(finished: bool, alive: bool, traces: Sequence[LevelTrace], options: AlignmentOptions) -> str:
    if not finished:
        return "diverged" if alive else "points"
    return "converged" if all(t.iterations < options.iterations for t in traces) else "iterations"


@dataclass(frozen=True)
class _Damping:
    """Factors of the Hessian's diagonal, float64 [6] or [B, 6], along the columns of axes [B, 6, 6] (None: the camera's)."""

    factors: torch.Tensor
    axes: torch.Tensor | None = None


_CAMERA_FROM_BASE = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
"""Of a base at the camera: x forward, y left, z up."""


def _learned(
    damping: LearnedDamping | None, prior: PriorFactor | None, cues: MotionCues | None, levels: int, device: torch.device
) -> tuple[list[_Damping | None], list[PriorFactor | None]]:
    """Damping and prior factor of every level."""
    if not isinstance(damping, TemporalPrior):
        return [None if damping is None else _Damping(damping(k).double()) for k in range(levels)], [prior] * levels
    factors, trust = damping.predict(None if cues is None else cues.values)
    # A body perturbation of map_from_base is, but for its sign, a left one of camera_from_map by this matrix.
    camera_from_base = _CAMERA_FROM_BASE.to(device)[None] if cues is None else cues.camera_from_base
    axes = se3.adjoint(camera_from_base)
    dampings = [_Damping(factors[..., k, :].double(), axes) for k in range(levels)]
    if prior is None:
        return dampings, [None] * levels
    root = trust.double().sqrt()
    back = se3.adjoint(se3.inverse(camera_from_base))
    along = axes.mT @ prior.information.double() @ axes
    priors = [
        PriorFactor(prior.camera_from_map, back.mT @ (root[..., k, :, None] * along * root[..., k, None, :]) @ back)
        for k in range(levels)
    ]
    return dampings, priors


def _compiled_serves(options: AlignmentOptions, pyramid: FeaturePyramid, camera: Camera, points: ReferencePoints) -> bool:
    """Whether the compiled code is to be used: wherever it can, unless told otherwise."""
    if options.strategy == "paper" or options.backend == "torch":
        return False
    tensors = [level.features for level in pyramid.levels] + [points.xyz, *points.descriptors]
    able = (
        camera.params.dim() == 1
        and all(t.is_cpu and t.dtype == torch.float32 for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )
    if options.backend == "compiled" and not able:
        raise InputError("the compiled alignment takes float32 features on the CPU, one camera, and no gradients: use torch")
    return able


def _first(result: AlignmentResult) -> AlignmentResult:
    """The only pose of a batch of one, without its batch dimension."""
    traces = tuple(LevelTrace(t.stride, t.costs[0], t.camera_from_map[0], t.iterations) for t in result.trace)
    return AlignmentResult(
        result.camera_from_map[0],
        result.converged[0],
        result.hessian[0],
        result.cost[0],
        result.visible[0],
        result.inliers[0],
        result.pixels[0],
        traces,
        result.reason,
    )


def _normal_equations(
    now: Linearization, pose: torch.Tensor, prior: PriorFactor | None, feature_variance: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hessian, gradient and the prior's share of the cost [B], all in double precision."""
    hessian, gradient = now.hessian.double(), now.gradient.double()
    if prior is None:
        return hessian, gradient, torch.zeros_like(gradient[:, 0])
    # Left perturbation: log(exp(d) T prior^-1) = d + log(T prior^-1) to first order.
    error = se3.se3_log(pose.double() @ se3.inverse(prior.camera_from_map.double()))
    information = prior.information.double() * feature_variance
    pull = (information @ error[..., None])[..., 0]
    return hessian + information, gradient + pull, (pull * error).sum(-1)


def _solve(hessian: torch.Tensor, gradient: torch.Tensor, factors: torch.Tensor, axes: torch.Tensor | None) -> torch.Tensor:
    """The damped step [B, 6]; zero where the system is not positive definite. No host synchronisation."""
    if axes is not None:
        step = _solve(axes.mT @ hessian @ axes, (axes.mT @ gradient[..., None])[..., 0], factors, None)
        return (axes @ step[..., None])[..., 0]
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    damped = hessian + torch.diag_embed((diagonal * factors).clamp(min=DIAGONAL_FLOOR))
    factor, failed = torch.linalg.cholesky_ex(damped)
    step = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    return torch.where((failed == 0)[:, None] & torch.isfinite(step), step, torch.zeros_like(step))


def _moved_cells(now: Linearization, step: torch.Tensor, stride: float) -> torch.Tensor:
    """Root mean square motion [B] of the visible reprojections under a step, in cells of the level."""
    motion = (now.pixel_jacobian @ step.to(now.pixel_jacobian.dtype)[:, None, :, None])[..., 0]
    count = now.valid.sum(-1).clamp(min=1)
    return ((motion**2).sum((-1, -2)) / count).sqrt() / stride


def _run_paper(
    level: _Level, pose: torch.Tensor, damping: _Damping | None, prior: PriorFactor | None, alive: torch.Tensor
) -> _LevelEnd:
    """Fixed damping, every step taken (PixLoc's rule); a pose stops early only outside training."""
    options, stride = level.options, level.pyramid.levels[level.index].stride
    damping = damping or _Damping(torch.full((6,), 10**-0.5, dtype=torch.float64, device=pose.device))
    training = torch.is_grad_enabled()
    now, poses, costs = level.linearize(pose), [pose], []
    costs.append(now.mean_cost())
    stop, moving, steps = _Stop(), torch.ones_like(alive), torch.zeros_like(alive, dtype=torch.long)
    for _ in range(options.iterations):
        alive = alive & (now.valid.sum(-1) >= options.min_points)
        steps = steps + moving
        hessian, gradient, _ = _normal_equations(now, pose, prior, options.feature_variance)
        step = _solve(hessian, gradient, damping.factors, damping.axes) * (alive & moving)[:, None]
        pose = se3.retract(pose, step.to(pose.dtype))
        still = _moved_cells(now, step.detach(), stride) < options.stop_cells
        now = level.linearize(pose)
        poses.append(pose)
        costs.append(now.mean_cost())
        if not training:
            moving = moving & alive & ~still
            if stop(moving):
                break
    alive = alive & (now.valid.sum(-1) >= options.min_points)
    return _LevelEnd.of(pose, alive, now, _Trace(stride, torch.stack(costs, -1), torch.stack(poses, -3), steps))


def _run_adaptive(
    level: _Level, pose: torch.Tensor, damping: _Damping | None, prior: PriorFactor | None, alive: torch.Tensor
) -> _LevelEnd:
    """Levenberg-Marquardt with step acceptance; each pose of the batch has its own damping scale."""
    options, stride = level.options, level.pyramid.levels[level.index].stride
    damping = damping or _Damping(torch.full((6,), ADAPTIVE_START, dtype=torch.float64, device=pose.device))
    scale = torch.ones(pose.shape[0], 1, dtype=torch.float64, device=pose.device)
    now = level.linearize(pose)
    poses, costs = [pose], [now.mean_cost()]
    alive = alive & (now.valid.sum(-1) >= options.min_points)
    hessian, gradient, prior_cost = _normal_equations(now, pose, prior, options.feature_variance)
    stop, moving, steps = _Stop(), alive, torch.zeros_like(alive, dtype=torch.long)
    for iteration in range(options.iterations):
        # The first is counted for all, also for poses that see too few points to take a step.
        steps = steps + (moving if iteration else torch.ones_like(moving))
        step = _solve(hessian, gradient, damping.factors * scale, damping.axes) * moving[:, None]
        candidate = se3.retract(pose, step.to(pose.dtype))
        new = level.linearize(candidate.detach() if options.detach_steps else candidate)
        new_hessian, new_gradient, new_prior_cost = _normal_equations(new, candidate, prior, options.feature_variance)
        shared = now.valid & new.valid
        enough = shared.sum(-1) >= torch.clamp(now.valid.sum(-1) * LEAST_SHARED_VIEW, min=options.min_points)
        before = (now.confidence * now.loss * shared).sum(-1) + prior_cost
        after = (now.confidence * new.loss * shared).sum(-1) + new_prior_cost
        accept = moving & enough & (after < before)
        still = _moved_cells(now, step.detach(), stride) < options.stop_cells
        pose = torch.where(accept[:, None, None], candidate, pose)
        now = _take(accept, new, now)
        hessian = torch.where(accept[:, None, None], new_hessian, hessian)
        gradient = torch.where(accept[:, None], new_gradient, gradient)
        prior_cost = torch.where(accept, new_prior_cost, prior_cost)
        scale = (scale * torch.where(accept, ADAPTIVE_DOWN, ADAPTIVE_UP)[:, None]).clamp(*ADAPTIVE_RANGE)
        poses.append(pose)
        costs.append(now.mean_cost())
        pose = pose.detach() if options.detach_steps else pose
        moving = moving & ~still
        if stop(moving):
            break
    return _LevelEnd.of(pose, alive, now, _Trace(stride, torch.stack(costs, -1), torch.stack(poses, -3), steps))


def _align_compiled(
    pyramid: FeaturePyramid,
    camera: Camera,
    points: ReferencePoints,
    pose: torch.Tensor,
    options: AlignmentOptions,
    dampings: list[_Damping | None],
    priors: list[PriorFactor | None],
    mask: torch.Tensor | None,
) -> AlignmentResult:
    """What `_align_tensors` does with `_run_adaptive`, without gradients: one CPU core a pose."""
    levels, batch, count, steps = len(pyramid.levels), pose.shape[0], points.xyz.shape[-2], options.iterations
    strides = np.array([level.stride for level in pyramid.levels])
    features = [_array(level.features.permute(0, 2, 3, 1), np.float32) for level in pyramid.levels]
    query_confidences = [_array(level.confidence, np.float32, (1, 0, 0)) for level in pyramid.levels]
    xyz, masks = _array(points.xyz, np.float32), _array(mask, np.bool_, (1, 0))
    descriptors = [_array(values, np.float32) for values in points.descriptors]
    confidences = [_array(values, np.float32, (1, 0)) for values in points.confidences]
    starts = _array(pose, np.float64)
    factors, axes = np.full((1, levels, 6), ADAPTIVE_START), np.empty((1, 0, 0))
    if dampings[0] is not None:
        factors = np.stack([_array(damping.factors, np.float64).reshape(-1, 6) for damping in dampings], 1)
        axes = _array(dampings[0].axes, np.float64, (1, 0, 0))
    information, prior_inverses = np.empty((1, 0, 6, 6)), np.eye(4)[None]
    if priors[0] is not None:
        information = np.stack([_array(prior.information, np.float64) for prior in priors], 1) * options.feature_variance
        prior_inverses = np.stack([se3.inverse(one).numpy() for one in priors[0].camera_from_map.detach().double()])

    poses, costs = np.empty((batch, levels, steps + 1, 4, 4)), np.empty((batch, levels, steps + 1))
    hessian, done = np.empty((batch, levels, 6, 6)), np.empty((batch, levels), np.int64)
    squared, pixels = np.zeros((batch, levels, count)), np.zeros((batch, levels, count, 2))
    valid = np.empty((batch, levels, count), bool)

    def run(b: int) -> tuple[int, bool]:
        def of(array: np.ndarray) -> np.ndarray:
            return array[b if len(array) > 1 else 0]

        return compiled.run_levels(
            tuple(map(of, features)),
            strides,
            tuple(map(of, query_confidences)),
            *pyramid.image_size,
            options.border_cells,
            *compiled.camera_numbers(camera),
            of(xyz),
            tuple(map(of, descriptors)),
            tuple(map(of, confidences)),
            of(masks),
            starts[b],
            compiled.LOSSES[options.loss.kind],
            options.loss.scale,
            of(prior_inverses),
            of(information),
            of(factors),
            of(axes),
            steps,
            options.min_points,
            options.stop_cells,
            options.finest_share,
            DIAGONAL_FLOOR,
            ADAPTIVE_DOWN,
            ADAPTIVE_UP,
            *ADAPTIVE_RANGE,
            LEAST_SHARED_VIEW,
            poses[b],
            costs[b],
            done[b],
            hessian[b],
            squared[b],
            valid[b],
            pixels[b],
        )

    if batch == 1:
        ends = [run(0)]
    else:
        with ThreadPoolExecutor(min(batch, torch.get_num_threads())) as pool:
            ends = list(pool.map(run, range(batch)))
    each, last = np.arange(batch), np.array([level for level, _ in ends])
    alive = np.array([alive for _, alive in ends])
    ended = done[each, last]
    found = poses[each, last, ended]
    finished = np.isfinite(found).all((1, 2)) & alive
    most = done.max(0).tolist()
    traces = [
        LevelTrace(
            level.stride,
            torch.from_numpy(costs[:, k, : most[k] + 1]),
            torch.from_numpy(poses[:, k, : most[k] + 1]).to(pose.dtype),
            most[k],
        )
        for k, level in enumerate(pyramid.levels)
    ]
    visible = valid[each, last]
    judge = max(levels - 2, 0) if options.finest_share > 0 else levels - 1
    inliers = visible & valid[:, judge] & (squared[:, judge] < 2 * options.loss.scale)
    found, finished_each, hessian, cost, visible, inliers, pixels = map(
        torch.from_numpy, (found, finished, hessian[each, last], costs[each, last, ended], visible, inliers, pixels[each, last])
    )
    return AlignmentResult(
        found.to(pose.dtype),
        finished_each,
        hessian,
        cost,
        visible,
        inliers,
        pixels,
        tuple(traces),
        _reason(bool(finished.all()), bool(alive.all()), traces, options),
    )


def _array(tensor: torch.Tensor | None, dtype: type, empty: tuple[int, ...] = ()) -> np.ndarray:
    """The tensor's memory where it has that type and order; an empty array where there is none."""
    return np.empty(empty, dtype) if tensor is None else np.ascontiguousarray(tensor.detach().numpy(), dtype)


def _take(which: torch.Tensor, new: T, old: T) -> T:
    """Batch elements of the dataclass `new` where `which`, else of `old`; what is no tensor comes from `old`."""

    def pick(a, b):
        return torch.where(which.view(-1, *(1,) * (a.dim() - 1)), a, b) if isinstance(a, torch.Tensor) else b

    return type(old)(*(pick(getattr(new, field.name), getattr(old, field.name)) for field in dataclasses.fields(old)))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Coarse-to-fine Levenberg-Marquardt alignment of map points with a query image's features.

PixLoc, section 4 of the paper, with two strategies: "paper", the fixed learned damping without step acceptance, as trained;
and "adaptive", which starts from the same damping but accepts only steps that lower the cost, and scales the damping by the
outcome. Batched over poses (hypotheses or training pairs); differentiable in features, confidences and damping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ..errors import InputError
from ..geometry import se3
from .compiled import Task, align_compiled
from .cost import Linearization, linearize_views
from .damping import (
    ADAPTIVE_DOWN,
    ADAPTIVE_LEAST,
    ADAPTIVE_MOST,
    ADAPTIVE_START,
    ADAPTIVE_UP,
    LEAST_SHARED_VIEW,
    PAPER_START,
    Damping,
    LearnedDamping,
    MotionCues,
    level_dampings,
)
from .prior import PriorFactor, level_factors
from .robust import RobustLoss
from .types import AlignmentResult, LevelTrace, View, batched, map_tensors, to_device, why_ended

T = TypeVar("T")
STRATEGIES = ("adaptive", "paper")
BACKENDS = ("auto", "torch", "compiled")


@dataclass(frozen=True)
class AlignmentOptions:
    """How to align.

    Attributes:
        strategy: "adaptive" (step acceptance) or "paper" (fixed damping).
        iterations: At most, per level.
        loss: Robust loss of the squared feature residual.
        border_cells: How far inside the image a point must be, in cells.
        min_points: Fewer visible points than this are a failure.
        stop_cells: A level ends when a step moves the reprojections by less than this share of a cell (root mean square).
        feature_variance: Squared feature residual that counts as one sigma, which sets the image's weight against a prior
            factor.
        finest_share: The finest level is exact where images are sharp. Its pose stands where at least this share of the
            points that agreed with the map at the level before agrees at it, too, else that level's pose does. Inliers are
            counted at the level before, which tolerates blur and noise (adaptive only; 0: the finest level always stands,
            and inliers are counted there).
        backend: "torch" (any device, differentiable), "compiled" (one CPU core, adaptive only, no gradients) or "auto":
            compiled wherever it can be.
        detach_steps: For training: where a step starts is a constant to its gradient, so that each step is taught by itself
            (adaptive only).
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

    views: tuple[View, ...]
    index: int
    factors: tuple[PriorFactor, ...]
    damping: Damping
    options: AlignmentOptions

    @property
    def stride(self) -> float:
        return self.views[0].pyramid.levels[self.index].stride

    def linearize(self, pose: torch.Tensor) -> Linearization:
        return linearize_views(self.views, self.index, pose, self.options.loss, self.options.border_cells)

    def system(self, now: Linearization, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sum over views and factors: Hessian, gradient and the factors' share of the cost [B], in double precision."""
        hessian, gradient = now.hessian.double(), now.gradient.double()
        cost = torch.zeros_like(gradient[:, 0])
        for factor in self.factors:
            information, pull, share = factor.normal_equations(pose)
            hessian, gradient, cost = hessian + information, gradient + pull, cost + share
        return hessian, gradient, cost

    def still(self, now: Linearization, step: torch.Tensor) -> torch.Tensor:
        """Whether a step [B] moves the visible reprojections by less than `stop_cells` (root mean square)."""
        motion = (now.pixel_jacobian @ step.detach().to(now.pixel_jacobian.dtype)[:, None, :, None])[..., 0]
        count = now.valid.sum(-1).clamp(min=1)
        return ((motion**2).sum((-1, -2)) / count).sqrt() / self.stride < self.options.stop_cells


def align(
    views: View | Sequence[View],
    camera_from_map: torch.Tensor,
    options: AlignmentOptions = AlignmentOptions(),
    damping: LearnedDamping | None = None,
    factors: PriorFactor | Sequence[PriorFactor] | None = None,
    cues: MotionCues | None = None,
) -> AlignmentResult:
    """Move the poses until the features of the images at the projected points agree with the map's.

    The cost is a sum over views and factors. The work is done where the pyramids are, on whatever device the rest comes and
    the result goes; the damping must be there. Nothing is raised for a hard image: see `converged`.

    Args:
        views: One camera, or the cameras of a rig, whose levels have the same strides.
        camera_from_map: Initial poses, [4, 4] or [B, 4, 4]; of a rig, rig_from_map.
        options: How to align.
        damping: Learned factors. Without it the adaptive strategy starts at 0.01, and the paper's runs with theta = 0.
        factors: Prior on the pose, or several; None for none.
        cues: What a `TemporalPrior` takes; where its axes are not given, those of a base at the camera are meant.

    Returns:
        The result, whose leading dimensions are those of `camera_from_map`.

    Raises:
        InputError: Views and map are not of the same network, there is no initial pose, or the compiled code is asked for
            what it cannot do.
    """
    views = (views,) if isinstance(views, View) else tuple(views)
    factors = (factors,) if isinstance(factors, PriorFactor) else tuple(factors or ())
    home, device = camera_from_map.device, views[0].pyramid.levels[0].features.device
    if home != device:
        views, camera_from_map, factors, cues = to_device((views, camera_from_map, factors, cues), device)
    strides = [level.stride for level in views[0].pyramid.levels]
    for view in views:
        if len(view.points.descriptors) != len(view.pyramid.levels):
            raise InputError(
                f"the map has {len(view.points.descriptors)} feature levels, the image {len(view.pyramid.levels)}: "
                "build the map with the same network"
            )
        if [level.stride for level in view.pyramid.levels] != strides:
            raise InputError("the images of a rig have levels of different strides: use one network at one image size")
    views = tuple(dataclasses.replace(v, points=batched(v.points)) if v.points.xyz.dim() == 2 else v for v in views)
    factors = tuple(batched(factor) if factor.camera_from_map.dim() == 2 else factor for factor in factors)
    cues = batched(cues) if cues is not None and cues.values.dim() == 1 else cues
    single = camera_from_map.dim() == 2
    pose = camera_from_map[None] if single else camera_from_map
    if not len(pose):
        raise InputError("there is no pose to start from: give at least one")
    constant = PAPER_START if options.strategy == "paper" else ADAPTIVE_START
    dampings, trust, camera_from_base = level_dampings(damping, cues, len(strides), constant, device)
    trusted = level_factors(factors, trust, camera_from_base, len(strides), options.feature_variance)
    run = align_compiled if _compiled_serves(options, views) else _align_tensors
    result = run(Task(views, pose, options, dampings, trusted))
    result = map_tensors(result, lambda tensor: tensor[0]) if single else result
    return result if home == device else to_device(result, home)


def _compiled_serves(options: AlignmentOptions, views: tuple[View, ...]) -> bool:
    """Whether the compiled code is to be used: wherever it can, unless the options say otherwise."""
    if options.strategy == "paper" or options.backend == "torch":
        return False
    tensors = [t for v in views for t in (*(level.features for level in v.pyramid.levels), v.points.xyz, *v.points.descriptors)]
    able = (
        all(view.camera.params.dim() == 1 for view in views)
        and all(t.is_cpu and t.dtype == torch.float32 for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )
    if options.backend == "compiled" and not able:
        raise InputError("the compiled alignment takes float32 features on the CPU, one camera, and no gradients: use torch")
    return able


def _align_tensors(task: Task) -> AlignmentResult:
    """Level after level on any device, differentiable."""
    end, inliers, finished, ran = _run_levels(task)
    numbers = torch.stack((*(trace.steps.amax() for trace in ran), finished.all(), end.alive.all()))
    *steps, all_finished, all_alive = numbers.tolist()  # the only time that the host waits
    traces = tuple(trace.cut(taken) for trace, taken in zip(ran, steps))
    reason = why_ended(bool(all_finished), bool(all_alive), traces, task.options.iterations)
    visible = end.valid
    return AlignmentResult(
        end.camera_from_map, finished, end.hessian, end.cost, visible, inliers & visible, end.pixels, traces, reason
    )


def _run_levels(task: Task) -> tuple[_LevelEnd, torch.Tensor, torch.Tensor, list[_Trace]]:
    """Where the alignment ends, the points [B, N] that agree, which poses [B] are fit to use, and how each level went. The host
    waits for no device here."""
    views, pose, options, dampings, factors = task
    alive = torch.ones(pose.shape[0], dtype=torch.bool, device=pose.device)
    run = _run_paper if options.strategy == "paper" else _run_adaptive
    traces, end = [], None
    for k, (damping, added) in enumerate(zip(dampings, factors, strict=True)):
        # Between levels the pose is a constant: each level's loss teaches that level only (PixLoc, section 4.3).
        coarser, end = end, run(_Level(views, k, added, damping, options), pose.detach(), alive)
        pose, alive = end.camera_from_map, end.alive
        traces.append(end.trace)
    inliers = end.inliers(options.loss)
    if coarser is not None and options.strategy == "adaptive" and options.finest_share > 0:
        finest, inliers = inliers, coarser.inliers(options.loss)
        blurred = finest.sum(-1) < options.finest_share * inliers.sum(-1)
        end = dataclasses.replace(_take(blurred, coarser, end), alive=alive)
    return end, inliers, torch.isfinite(end.camera_from_map).all(-1).all(-1) & alive, traces


def _run_paper(level: _Level, pose: torch.Tensor, alive: torch.Tensor) -> _LevelEnd:
    """Fixed damping, every step taken (PixLoc's rule); a pose stops early only outside training."""
    options, training = level.options, torch.is_grad_enabled()
    now, poses, costs = level.linearize(pose), [pose], []
    costs.append(now.mean_cost())
    stop, moving, steps = _Stop(), torch.ones_like(alive), torch.zeros_like(alive, dtype=torch.long)
    for _ in range(options.iterations):
        alive = alive & (now.valid.sum(-1) >= options.min_points)
        steps = steps + moving
        hessian, gradient, _ = level.system(now, pose)
        step = level.damping.step(hessian, gradient) * (alive & moving)[:, None]
        pose = se3.retract(pose, step.to(pose.dtype))
        still = level.still(now, step)
        now = level.linearize(pose)
        poses.append(pose)
        costs.append(now.mean_cost())
        if not training:
            moving = moving & alive & ~still
            if stop(moving):
                break
    alive = alive & (now.valid.sum(-1) >= options.min_points)
    return _LevelEnd.of(pose, alive, now, _Trace(level.stride, torch.stack(costs, -1), torch.stack(poses, -3), steps))


def _run_adaptive(level: _Level, pose: torch.Tensor, alive: torch.Tensor) -> _LevelEnd:
    """Levenberg-Marquardt with step acceptance; each pose of the batch has its own damping scale."""
    options = level.options
    scale = torch.ones(pose.shape[0], 1, dtype=torch.float64, device=pose.device)
    now = level.linearize(pose)
    poses, costs = [pose], [now.mean_cost()]
    alive = alive & (now.valid.sum(-1) >= options.min_points)
    hessian, gradient, prior_cost = level.system(now, pose)
    stop, moving, steps = _Stop(), alive, torch.zeros_like(alive, dtype=torch.long)
    for iteration in range(options.iterations):
        # The first is counted for all, also for poses that see too few points to take a step.
        steps = steps + (moving if iteration else torch.ones_like(moving))
        step = level.damping.step(hessian, gradient, scale) * moving[:, None]
        candidate = se3.retract(pose, step.to(pose.dtype))
        new = level.linearize(candidate.detach() if options.detach_steps else candidate)
        new_hessian, new_gradient, new_prior_cost = level.system(new, candidate)
        shared = now.valid & new.valid
        enough = shared.sum(-1) >= torch.clamp(now.valid.sum(-1) * LEAST_SHARED_VIEW, min=options.min_points)
        before = (now.confidence * now.loss * shared).sum(-1) + prior_cost
        after = (now.confidence * new.loss * shared).sum(-1) + new_prior_cost
        accept = moving & enough & (after < before)
        still = level.still(now, step)
        pose = torch.where(accept[:, None, None], candidate, pose)
        now = _take(accept, new, now)
        hessian = torch.where(accept[:, None, None], new_hessian, hessian)
        gradient = torch.where(accept[:, None], new_gradient, gradient)
        prior_cost = torch.where(accept, new_prior_cost, prior_cost)
        scale = (scale * torch.where(accept, ADAPTIVE_DOWN, ADAPTIVE_UP)[:, None]).clamp(ADAPTIVE_LEAST, ADAPTIVE_MOST)
        poses.append(pose)
        costs.append(now.mean_cost())
        pose = pose.detach() if options.detach_steps else pose
        moving = moving & ~still
        if stop(moving):
            break
    return _LevelEnd.of(pose, alive, now, _Trace(level.stride, torch.stack(costs, -1), torch.stack(poses, -3), steps))


def _take(which: torch.Tensor, new: T, old: T) -> T:
    """Batch elements of the dataclass `new` where `which`, else of `old`; what is no tensor comes from `old`."""

    def pick(a, b):
        return torch.where(which.view(-1, *(1,) * (a.dim() - 1)), a, b) if isinstance(a, torch.Tensor) else b

    return type(old)(*(pick(getattr(new, field.name), getattr(old, field.name)) for field in dataclasses.fields(old)))

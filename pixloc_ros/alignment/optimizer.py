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
from .cost import Linearization, every, linearize, linearize_views, sum_of
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
    level_dampings,
)
from .level_weights import (
    AGREES,
    LARGEST_CUE,
    LOOK_POINTS,
    LevelWeights,
    end_statistics,
    log_mean_slope,
    mean_log_residual,
    outputs_of,
)
from .prior import PriorFactor
from .recognition import recognised
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
        loss: Robust loss of the squared feature residual; its scale serves where no `LevelWeights` are given.
        border_cells: How far inside the image a point must be, in cells.
        min_points: Fewer visible points than this are a failure.
        stop_cells: A level ends when a step moves the reprojections by less than this share of a cell (root mean square).
        feature_variance: Squared feature residual that counts as one sigma, where no `LevelWeights` are given.
        inlier_level: At which level inliers are counted, from the end: at the one before the finest, which tolerates blur.
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
    inlier_level: int = -2
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

    def cut(self, steps: int, outputs: torch.Tensor, ends: tuple[torch.Tensor, ...]) -> LevelTrace:
        return LevelTrace(self.stride, self.costs[:, : steps + 1], self.poses[:, : steps + 1], steps, outputs, *ends)


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
    """Where a level ended: pose [B, 4, 4], alive [B]; cost, and per point squared residual, valid, pixels there, and the log mean
    slope [B]; what it and the coarser levels know of the pose [B, 6, 6]."""

    camera_from_map: torch.Tensor
    alive: torch.Tensor
    cost: torch.Tensor
    squared: torch.Tensor
    valid: torch.Tensor
    pixels: torch.Tensor
    slopes: torch.Tensor
    evidence: torch.Tensor
    trace: _Trace


@dataclass(frozen=True)
class _Level:
    """What stays the same over the iterations of a level: factors are in units of the squared feature residual (variance [B])."""

    views: tuple[View, ...]
    index: int
    damping: Damping
    options: AlignmentOptions
    loss: RobustLoss
    variance: torch.Tensor
    hold: PriorFactor
    factors: tuple[PriorFactor, ...]

    @classmethod
    def at(cls, task: Task, index: int, start: torch.Tensor, evidence: torch.Tensor, coarser: torch.Tensor):
        """The level with what is believed on it, and its outputs [B, 6], by a look at its start [B, 4, 4].

        Args:
            evidence: [B, 6, 6], what the coarser levels know.
            coarser: [B], the cue of the level before.
        """
        options, views = task.options, task.views
        steps = [max(len(view.points) // LOOK_POINTS, 1) for view in views]
        looks = [
            linearize(every(view, n), index, start, RobustLoss(options.loss.kind, 1.0), options.border_cells)
            for view, n in zip(views, steps)
        ]
        look = sum_of(looks)
        count = look.valid.sum(-1)
        seen = sum(one.valid.sum(-1) * n for one, n in zip(looks, steps))
        known = evidence + sum(factor.information.double() for factor in task.factors)
        motion = torch.einsum("bnpi,bnpj->bij", look.pixel_jacobian.double(), look.pixel_jacobian.double())
        units = torch.eye(6, dtype=torch.float64, device=start.device)
        columns = Damping(torch.zeros_like(units[:1])).step(
            known[:, None].expand(-1, 6, 6, 6).flatten(0, 1), -units.repeat(len(start), 1)
        )
        spread = (columns.unflatten(0, (-1, 6)) * motion).sum((-1, -2)).clamp(min=0) / count.clamp(min=1)
        cells = (spread.sqrt() / views[0].pyramid.levels[index].stride).clamp(min=1e-9).log10()
        expected = torch.where(known[:, 0, 0] > 0, cells, LARGEST_CUE)
        points = (seen.clamp(min=1) / 500).log10()
        start_residual = mean_log_residual(look.squared, look.valid)
        slopes = log_mean_slope(look.squared_slopes, look.valid)
        cues = torch.stack([v.double().expand(len(start)) for v in (start_residual, expected, coarser, points, slopes)], -1)
        outputs = outputs_of(task.weights.table[index].double(), cues)
        scale, variance, *factors = outputs.unbind(-1)
        hold = PriorFactor(start, evidence).scaled(*factors[:2])
        trusted = tuple(factor.scaled(*factors[2:]) for factor in task.factors)
        loss = RobustLoss(options.loss.kind, scale[:, None].to(look.squared.dtype))
        return cls(views, index, task.dampings[index], options, loss, variance, hold, trusted), outputs

    @property
    def stride(self) -> float:
        return self.views[0].pyramid.levels[self.index].stride

    def linearize(self, pose: torch.Tensor) -> Linearization:
        return linearize_views(self.views, self.index, pose, self.loss, self.options.border_cells)

    def system(self, now: Linearization, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sum over views and factors: Hessian, gradient and the factors' share of the cost [B], in double precision."""
        hessian, gradient = now.hessian.double(), now.gradient.double()
        cost = torch.zeros_like(gradient[:, 0])
        for factor in (self.hold, *self.factors):
            information, pull, share = factor.normal_equations(pose)
            hessian = hessian + self.variance[:, None, None] * information
            gradient, cost = gradient + self.variance[:, None] * pull, cost + self.variance * share
        return hessian, gradient, cost

    def end(self, pose: torch.Tensor, alive: torch.Tensor, now: Linearization, trace: _Trace) -> _LevelEnd:
        evidence = self.hold.information + now.hessian.double() / self.variance[:, None, None]
        slopes = log_mean_slope(now.squared_slopes, now.valid)
        return _LevelEnd(pose, alive, now.mean_cost(), now.squared, now.valid, now.pixels, slopes, evidence, trace)

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
    weights: LevelWeights | None = None,
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
        weights: What is believed of levels and factors; None for the options' constants.

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
        views, camera_from_map, factors, weights = to_device((views, camera_from_map, factors, weights), device)
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
    single = camera_from_map.dim() == 2
    pose = camera_from_map[None] if single else camera_from_map
    if not len(pose):
        raise InputError("there is no pose to start from: give at least one")
    levels, constant = len(strides), PAPER_START if options.strategy == "paper" else ADAPTIVE_START
    if weights is None:
        weights = to_device(LevelWeights.constant(levels, options.loss.scale, options.feature_variance), device)
    dampings = level_dampings(damping, levels, constant, device)
    run = align_compiled if _compiled_serves(options, views) else _align_tensors
    result = run(Task(views, pose, options, dampings, factors, weights, single))
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
    end, ends, finished, beliefs = _run_levels(task)
    numbers = torch.stack((*(level.trace.steps.amax() for level in ends), finished.all(), end.alive.all()))
    *steps, all_finished, all_alive = numbers.tolist()  # the only time that the host waits
    known = recognised(task.views, end.pixels, end.valid).unbind(-1)
    traces = tuple(
        level.trace.cut(taken, outputs, (*end_statistics(level.squared, level.valid), level.slopes, share))
        for level, taken, outputs, share in zip(ends, steps, beliefs, known)
    )
    reason = why_ended(bool(all_finished), bool(all_alive), traces, task.options.iterations)
    counted = ends[max(len(ends) + task.options.inlier_level, 0)]
    inliers = end.valid & counted.valid & (counted.squared < AGREES)
    found = end.camera_from_map, finished, end.evidence, end.cost, end.valid, inliers, end.pixels
    result = AlignmentResult(*found, traces, reason)
    return map_tensors(result, lambda tensor: tensor[0]) if task.single else result


def _run_levels(task: Task) -> tuple[_LevelEnd, list[_LevelEnd], torch.Tensor, list[torch.Tensor]]:
    """Where the alignment ends, where each level does, which poses [B] are fit to use, and each level's outputs [B, 6]. The host
    waits for no device here."""
    pose = task.pose
    alive = torch.ones(pose.shape[0], dtype=torch.bool, device=pose.device)
    evidence = torch.zeros(pose.shape[0], 6, 6, dtype=torch.float64, device=pose.device)
    coarser = torch.zeros(1, device=pose.device)
    run = _run_paper if task.options.strategy == "paper" else _run_adaptive
    ends, beliefs = [], []
    for k in range(len(task.dampings)):
        # Between levels the pose is a constant: each level's loss teaches that level only (PixLoc, section 4.3).
        level, outputs = _Level.at(task, k, pose.detach(), evidence, coarser)
        end = run(level, pose.detach(), alive)
        pose, alive, evidence = end.camera_from_map, end.alive, end.evidence.detach()
        coarser = mean_log_residual(end.squared, end.valid).detach()
        ends.append(end)
        beliefs.append(outputs)
    return end, ends, torch.isfinite(end.camera_from_map).all(-1).all(-1) & alive, beliefs


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
    return level.end(pose, alive, now, _Trace(level.stride, torch.stack(costs, -1), torch.stack(poses, -3), steps))


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
    return level.end(pose, alive, now, _Trace(level.stride, torch.stack(costs, -1), torch.stack(poses, -3), steps))


def _take(which: torch.Tensor, new: T, old: T) -> T:
    """Batch elements of the dataclass `new` where `which`, else of `old`; what is no tensor comes from `old`."""

    def pick(a, b):
        return torch.where(which.view(-1, *(1,) * (a.dim() - 1)), a, b) if isinstance(a, torch.Tensor) else b

    return type(old)(*(pick(getattr(new, field.name), getattr(old, field.name)) for field in dataclasses.fields(old)))

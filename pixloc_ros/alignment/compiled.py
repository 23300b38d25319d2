# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The adaptive optimizer, compiled for the CPU: what runs on a robot without a GPU.

The same arithmetic as `optimizer` with the adaptive strategy (tests compare the two), without gradients, one CPU core a pose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import torch

from ..geometry import se3
from ..geometry.projection import camera_numbers
from ..geometry.single import FAST_JIT, INLINE_JIT, difference, retract
from .compiled_cost import LOSSES, CostSettings, PointState, System, ViewArrays, linearize_views, mean_cost, turn
from .damping import (
    ADAPTIVE_DOWN,
    ADAPTIVE_LEAST,
    ADAPTIVE_MOST,
    ADAPTIVE_UP,
    DIAGONAL_FLOOR,
    LEAST_SHARED_VIEW,
    NEVER_SINGULAR,
    Damping,
)
from .prior import PriorFactor
from .types import AlignmentResult, LevelTrace, View, why_ended

if TYPE_CHECKING:
    from .optimizer import AlignmentOptions


class Task(NamedTuple):
    """What `optimizer.align` made of its arguments, on one device: all batched, with damping and factors of each level."""

    views: tuple[View, ...]
    pose: torch.Tensor
    options: AlignmentOptions
    dampings: Sequence[Damping]
    factors: Sequence[tuple[PriorFactor, ...]]


class Problem(NamedTuple):
    """An alignment of one pose.

    Attributes:
        views: The cameras of the rig.
        strides: [levels].
        factors: float64 [levels, 6] of the Hessian's diagonal.
        axes: float64 [6, 6], along whose columns the damping acts; [0, 0] for the camera's axes.
        prior_inverses: float64 [F, 4, 4], inverse poses of the prior factors.
        information: float64 [levels, F, 6, 6] of them, in units of the squared feature residual.
        cost: Robust loss and border.
        iterations: As of `AlignmentOptions`, and so on.
    """

    views: tuple[ViewArrays, ...]
    strides: np.ndarray
    factors: np.ndarray
    axes: np.ndarray
    prior_inverses: np.ndarray
    information: np.ndarray
    cost: CostSettings
    iterations: int
    min_points: int
    stop_cells: float
    finest_share: float


class LevelResults(NamedTuple):
    """What the levels fill, a row each.

    Attributes:
        poses: [levels, iterations + 1, 4, 4], after each step; the last one is repeated to the end.
        costs: [levels, iterations + 1], mean robust costs, likewise.
        done: int64 [levels], steps taken.
        hessian: [levels, 6, 6], of the views at the last pose.
        squared: [levels, N], squared residuals there, of all views' points, one view after the other.
        valid: bool [levels, N], which count there.
        pixels: [levels, N, 2], where they project to.
    """

    poses: np.ndarray
    costs: np.ndarray
    done: np.ndarray
    hessian: np.ndarray
    squared: np.ndarray
    valid: np.ndarray
    pixels: np.ndarray

    @classmethod
    def empty(cls, batch: int, levels: int, steps: int, count: int) -> LevelResults:
        """For a batch of poses, which stands in front."""
        shape = (batch, levels)
        poses, costs = np.empty((*shape, steps + 1, 4, 4)), np.empty((*shape, steps + 1))
        done, hessian = np.empty(shape, np.int64), np.empty((*shape, 6, 6))
        return cls(
            poses, costs, done, hessian, np.zeros((*shape, count)), np.empty((*shape, count), bool), np.zeros((*shape, count, 2))
        )


@numba.njit(**INLINE_JIT)
def _solve(hessian, gradient, factors, step):
    """step = -(H + diag(max(factors diag H, floor)))⁻¹ g by Cholesky; zero where the matrix is not positive definite."""
    lower = np.zeros((6, 6))
    step[:] = 0.0
    for m in range(6):
        part = m - m % 3
        trace = hessian[part, part] + hessian[part + 1, part + 1] + hessian[part + 2, part + 2]
        least = DIAGONAL_FLOOR * trace + NEVER_SINGULAR
        for n in range(m + 1):
            total = hessian[m, n]
            if m == n:
                total += max(factors[m] * hessian[m, m], least)
            for k in range(n):
                total -= lower[m, k] * lower[n, k]
            if m == n:
                if not (total > 0 and total < np.inf):
                    return
                lower[m, m] = math.sqrt(total)
            else:
                lower[m, n] = total / lower[n, n]
    for m in range(6):
        total = -gradient[m]
        for k in range(m):
            total -= lower[m, k] * step[k]
        step[m] = total / lower[m, m]
    for m in range(5, -1, -1):
        total = step[m]
        for k in range(m + 1, 6):
            total -= lower[k, m] * step[k]
        step[m] = total / lower[m, m]
    for m in range(6):
        if not math.isfinite(step[m]):
            step[:] = 0.0
            return


@numba.njit(**INLINE_JIT)
def solve(hessian, gradient, factors, axes, step):
    """The damped step, with the damping along the columns of axes [6, 6], or the camera's axes where that is empty."""
    if not axes.size:
        _solve(hessian, gradient, factors, step)
        return
    turned, pull, along = np.empty((6, 6)), np.empty(6), np.empty(6)
    turn(hessian, gradient, axes, turned, pull)
    _solve(turned, pull, factors, along)
    for m in range(6):
        step[m] = 0.0
        for k in range(6):
            step[m] += axes[m, k] * along[k]


@numba.njit(**INLINE_JIT)
def add_factors(problem, level, pose, system, hessian, gradient):
    """Fill the views' normal equations plus the prior factors'; return the factors' share of the cost."""
    for m in range(6):
        gradient[m] = system.gradient[m]
        for n in range(6):
            hessian[m, n] = system.hessian[m, n]
    error, cost = np.empty(6), 0.0
    for f in range(problem.prior_inverses.shape[0]):
        difference(pose, problem.prior_inverses[f], error)
        information = problem.information[level, f]
        for m in range(6):
            pull = 0.0
            for n in range(6):
                pull += information[m, n] * error[n]
                hessian[m, n] += information[m, n]
            gradient[m] += pull
            cost += pull * error[m]
    return cost


@numba.njit(**INLINE_JIT)
def run_level(problem, level, start, alive, results):
    """Levenberg-Marquardt with step acceptance on one level from `start` [4, 4]; no steps where it is not alive any more.

    Fills the level's row of the results. Returns the steps taken, or -1 where too few points were visible at the start.
    """
    views, stride, cost = problem.views, problem.strides[level], problem.cost
    poses, costs = results.poses[level], results.costs[level]
    points = results.squared.shape[1]
    squared, valid, pixels = results.squared[level], results.valid[level], results.pixels[level]
    now = System(results.hessian[level], np.empty(6), np.empty((6, 6)))
    at = PointState(squared, np.zeros(points), np.zeros(points), valid, pixels)
    new = System(np.empty((6, 6)), np.empty(6), np.empty((6, 6)))
    new_at = PointState(np.zeros(points), np.zeros(points), np.zeros(points), np.zeros(points, np.bool_), np.zeros((points, 2)))
    hessian, gradient, new_hessian, new_gradient = np.empty((6, 6)), np.empty(6), np.empty((6, 6)), np.empty(6)
    step, pose, candidate = np.empty(6), start.copy(), start.copy()
    count, prior_cost, scale, done = 0, 0.0, 1.0, 0
    for k in range(1 + (problem.iterations if alive else 0)):  # the first one looks at the start only
        if k > 0:
            solve(hessian, gradient, problem.factors[level] * scale, problem.axes, step)
            retract(pose, step, candidate)
        new_count = linearize_views(views, level, stride, candidate, cost, new, new_at)
        new_prior_cost = add_factors(problem, level, candidate, new, new_hessian, new_gradient)
        accept, still = k == 0, False
        if k > 0:
            before, after, shared = prior_cost, 0.0, 0
            for i in range(points):
                if at.valid[i] and new_at.valid[i]:
                    shared += 1
                    before += at.confidence[i] * at.loss[i]
                    after += at.confidence[i] * new_at.loss[i]
            moved2 = 0.0
            for m in range(6):
                for n in range(6):
                    moved2 += step[m] * now.motion[m, n] * step[n]
            still = moved2 < count * (problem.stop_cells * stride) ** 2
            accept = shared >= max(count * LEAST_SHARED_VIEW, problem.min_points) and after + new_prior_cost < before
            scale = min(max(scale * (ADAPTIVE_DOWN if accept else ADAPTIVE_UP), ADAPTIVE_LEAST), ADAPTIVE_MOST)
        if accept:
            # Element by element: the check of the shapes in `a[:] = b` takes longer to compile than the rest of the optimizer.
            count, prior_cost = new_count, new_prior_cost
            for m in range(6):
                gradient[m] = new_gradient[m]
                for n in range(6):
                    hessian[m, n] = new_hessian[m, n]
                    now.hessian[m, n], now.motion[m, n] = new.hessian[m, n], new.motion[m, n]
            for i in range(points):
                at.squared[i], at.loss[i], at.confidence[i] = new_at.squared[i], new_at.loss[i], new_at.confidence[i]
                at.valid[i], at.pixels[i, 0], at.pixels[i, 1] = new_at.valid[i], new_at.pixels[i, 0], new_at.pixels[i, 1]
        for m in range(4):
            for n in range(4):
                if accept:
                    pose[m, n] = candidate[m, n]
                poses[k, m, n] = pose[m, n]
        costs[k], done = mean_cost(at), k
        if count < problem.min_points:
            return -1
        if still:
            break
    return done


@numba.njit(**FAST_JIT)
def run_levels(problem, start, results):
    """`run_level` on one level after the other, coarse to fine, from `start` [4, 4].

    Returns the level whose end stands, and whether enough points were visible at the start of every level.
    """
    levels, limit = len(problem.strides), 2 * problem.cost.scale
    alive, pose = True, start
    for k in range(levels):
        steps = run_level(problem, k, pose, alive, results)
        alive = alive and steps >= 0
        steps = max(steps, 0)
        results.done[k] = steps
        pose = results.poses[k, steps]
        results.poses[k, steps + 1 :], results.costs[k, steps + 1 :] = pose, results.costs[k, steps]
    if levels > 1 and problem.finest_share > 0:
        inliers, finest = 0, 0
        for i in range(results.valid.shape[1]):
            inliers += results.valid[levels - 2, i] and results.squared[levels - 2, i] < limit
            finest += results.valid[levels - 1, i] and results.squared[levels - 1, i] < limit
        if finest < problem.finest_share * inliers:
            return levels - 2, alive
    return levels - 1, alive


def align_compiled(task: Task) -> AlignmentResult:
    """What `optimizer` does with tensors and the adaptive strategy, without gradients."""
    views, pose, options = task.views, task.pose, task.options
    levels, batch, steps = len(task.dampings), pose.shape[0], options.iterations
    problem_of = _problems(task)
    starts = _array(pose, np.float64)
    results = LevelResults.empty(batch, levels, steps, sum(len(view.points) for view in views))

    def run(b: int) -> tuple[int, bool]:
        return run_levels(problem_of(b), starts[b], LevelResults(*(array[b] for array in results)))

    if batch == 1:
        ends = [run(0)]
    else:
        with ThreadPoolExecutor(min(batch, torch.get_num_threads())) as pool:
            ends = list(pool.map(run, range(batch)))
    last, alive = (np.array(values) for values in zip(*ends))
    each, judge = np.arange(batch), max(levels - 2, 0) if options.finest_share > 0 else levels - 1
    ended = results.done[each, last]
    found, visible = results.poses[each, last, ended], results.valid[each, last]
    finished = np.isfinite(found).all((1, 2)) & alive
    inliers = visible & results.valid[:, judge] & (results.squared[:, judge] < 2 * options.loss.scale)
    traces = []
    for k, most in enumerate(results.done.max(0).tolist()):
        costs, poses = (torch.from_numpy(array[:, k, : most + 1]) for array in (results.costs, results.poses))
        traces.append(LevelTrace(views[0].pyramid.levels[k].stride, costs, poses.to(pose.dtype), most))
    hessian, cost, pixels = results.hessian[each, last], results.costs[each, last, ended], results.pixels[each, last]
    ends_at = map(torch.from_numpy, (finished, hessian, cost, visible, inliers, pixels))
    reason = why_ended(bool(finished.all()), bool(alive.all()), traces, steps)
    return AlignmentResult(torch.from_numpy(found).to(pose.dtype), *ends_at, tuple(traces), reason)


def _problems(task: Task) -> Callable[[int], Problem]:
    """What gives the problem of each pose of a batch: everything as arrays, with a batch dimension of B or 1 in front."""
    views, _, options, dampings, factors = task
    # The fields of ViewArrays: those with a batch dimension, then those without.
    arrays = [
        (
            (
                tuple(_array(level.features.permute(0, 2, 3, 1), np.float32) for level in view.pyramid.levels),
                tuple(_array(level.confidence, np.float32, (1, 0, 0)) for level in view.pyramid.levels),
                _array(view.points.xyz, np.float32),
                tuple(_array(values, np.float32) for values in view.points.descriptors),
                tuple(_array(values, np.float32, (1, 0)) for values in view.points.confidences),
                _array(view.mask, np.bool_, (1, 0)),
            ),
            (view.pyramid.image_size, camera_numbers(view.camera), _array(view.camera_from_rig, np.float64, (0, 0))),
        )
        for view in views
    ]
    strides = np.array([level.stride for level in views[0].pyramid.levels])
    damping = np.stack([_array(level.factors, np.float64) for level in dampings], 1)
    axes = _array(dampings[0].axes, np.float64, (1, 0, 0))
    inverses, information = np.empty((1, 0, 4, 4)), np.empty((1, len(dampings), 0, 6, 6))
    if factors[0]:
        poses = [np.stack([se3.inverse(one).numpy() for one in f.camera_from_map.detach().double()]) for f in factors[0]]
        inverses = np.stack(np.broadcast_arrays(*poses), 1)
        of_levels = [np.broadcast_arrays(*(_array(f.information, np.float64) for f in level)) for level in factors]
        information = np.stack([np.stack(level, 1) for level in of_levels], 1)
    cost = CostSettings(LOSSES[options.loss.kind], options.loss.scale, options.border_cells)
    limits = (options.iterations, options.min_points, options.stop_cells, options.finest_share)

    def problem(b: int) -> Problem:
        def of(values):
            """One pose's, of an array or a tuple of arrays."""
            return tuple(map(of, values)) if isinstance(values, tuple) else values[b if len(values) > 1 else 0]

        mine = tuple(ViewArrays(*of(batched), *alone) for batched, alone in arrays)
        return Problem(mine, strides, of(damping), of(axes), of(inverses), of(information), cost, *limits)

    return problem


def _array(tensor: torch.Tensor | None, dtype: type, empty: tuple[int, ...] = ()) -> np.ndarray:
    """The tensor's memory where it has that type and order; an empty array where there is none."""
    return np.empty(empty, dtype) if tensor is None else np.ascontiguousarray(tensor.detach().numpy(), dtype)

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
from ..geometry.single import FAST_JIT, INLINE_JIT, difference, inverse, retract
from .compiled_cost import LOSSES, CostSettings, PointState, System, ViewArrays, linearize_views, mean_cost
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
from .level_weights import AGREES, CUES, LARGEST_CUE, LOG10_LEAST, LOG10_MOST, LOOK_POINTS, OUTPUTS, RESIDUAL_FLOOR, LevelWeights
from .prior import PriorFactor
from .recognition import recognised_compiled
from .types import AlignmentResult, LevelTrace, View, why_ended

if TYPE_CHECKING:
    from .optimizer import AlignmentOptions


MOST_VIEWS = 6
"""Rigs of up to so many views are compiled as one."""
_LEAST, _MOST = np.array(LOG10_LEAST), np.array(LOG10_MOST)


class Task(NamedTuple):
    """What `optimizer.align` made of its arguments, on one device: all batched. single: Whether the result has no batch."""

    views: tuple[View, ...]
    pose: torch.Tensor
    options: AlignmentOptions
    dampings: Sequence[Damping]
    factors: Sequence[PriorFactor]
    weights: LevelWeights
    single: bool = False


class Problem(NamedTuple):
    """An alignment of one pose.

    Attributes:
        views: The cameras of the rig.
        strides: [levels].
        damping: float64 [levels, 6] factors of the Hessian's diagonal.
        prior_inverses: float64 [F, 4, 4], inverse poses of the prior factors.
        information: float64 [F, 6, 6] of them.
        weights: float64 [levels, OUTPUTS, 1 + CUES], of `LevelWeights`.
        loss: One of LOSSES.
        border: How far inside the image points must be, in cells.
        iterations: As of `AlignmentOptions`, and so on.
    """

    views: tuple[ViewArrays, ...]
    strides: np.ndarray
    damping: np.ndarray
    prior_inverses: np.ndarray
    information: np.ndarray
    weights: np.ndarray
    loss: int
    border: float
    iterations: int
    min_points: int
    stop_cells: float


class LevelResults(NamedTuple):
    """What the levels fill, a row each.

    Attributes:
        poses: [levels, iterations + 1, 4, 4], after each step; the last one is repeated to the end.
        costs: [levels, iterations + 1], mean robust costs, likewise.
        done: int64 [levels], steps taken.
        hessian: [levels, 6, 6], of the views at the last pose.
        evidence: [levels, 6, 6], what the level and the coarser ones know of the pose.
        outputs: [levels, 6], of `LevelWeights`.
        ends: [levels, 3], mean log residual, share of points that agree and log mean slope at the last pose (`level_weights`).
        recognised: [levels], share of comparisons in which a visible point is recognised at the end of all (`recognition`).
        squared: [levels, N], squared residuals there, of all views' points, one view after the other.
        valid: bool [levels, N], which count there.
        pixels: [levels, N, 2], where they project to.
    """

    poses: np.ndarray
    costs: np.ndarray
    done: np.ndarray
    hessian: np.ndarray
    evidence: np.ndarray
    outputs: np.ndarray
    ends: np.ndarray
    recognised: np.ndarray
    squared: np.ndarray
    valid: np.ndarray
    pixels: np.ndarray

    @classmethod
    def empty(cls, batch: int, levels: int, steps: int, count: int) -> LevelResults:
        """For a batch of poses, which stands in front."""
        shape = (batch, levels)
        poses, costs = np.empty((*shape, steps + 1, 4, 4)), np.empty((*shape, steps + 1))
        done, hessian = np.empty(shape, np.int64), np.zeros((*shape, 6, 6))
        squared, valid, pixels = np.zeros((*shape, count)), np.empty((*shape, count), bool), np.zeros((*shape, count, 2))
        outputs, ends = np.zeros((*shape, len(OUTPUTS))), np.zeros((*shape, 3))
        recognised = np.zeros(shape)
        return cls(poses, costs, done, hessian, np.zeros_like(hessian), outputs, ends, recognised, squared, valid, pixels)


@numba.njit(**INLINE_JIT)
def solve(hessian, gradient, factors, step):
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
def add_gaussian(information, variance, pose, inverse, hessian, gradient):
    """Add variance times a Gaussian's normal equations at a pose [4, 4]; return its share of the cost. inverse: of its mean."""
    error, cost = np.empty(6), 0.0
    difference(pose, inverse, error)
    for m in range(6):
        pull = 0.0
        for n in range(6):
            pull += variance * information[m, n] * error[n]
            hessian[m, n] += variance * information[m, n]
        gradient[m] += pull
        cost += pull * error[m]
    return cost


@numba.njit(**INLINE_JIT)
def scale_information(information, translation, rotation, scaled):
    """Fill in the information [6, 6] with its standard deviations divided by the roots of both factors."""
    for m in range(6):
        for n in range(6):
            left, right = (translation if m < 3 else rotation), (translation if n < 3 else rotation)
            scaled[m, n] = math.sqrt(left * right) * information[m, n]


@numba.njit(**INLINE_JIT)
def expected_cells(information, motion, count, stride):
    """Root mean square error of the reprojections that a Gaussian of the pose lets expect, in cells."""
    unit, column, none, total = np.zeros(6), np.empty(6), np.zeros(6), 0.0
    for m in range(6):
        unit[m] = -1.0
        solve(information, unit, none, column)
        unit[m] = 0.0
        for n in range(6):
            total += column[n] * motion[n, m]
    return math.sqrt(max(total, 0.0) / max(count, 1)) / stride


@numba.njit(**INLINE_JIT)
def end_statistics(points, slopes, ends):
    """Fill in mean log10 of the squared residuals of the valid points plus 1, the share of them that agree, and log10 of their
    mean squared slope plus 1, of the sum of these [1]; return how many there are."""
    total, agree, count = 0.0, 0, 0
    for i in range(points.squared.shape[0]):
        if points.valid[i]:
            total += math.log10(points.squared[i] + RESIDUAL_FLOOR)
            agree += points.squared[i] < AGREES
            count += 1
    ends[0], ends[1] = total / max(count, 1) + 1, agree / max(count, 1)
    ends[2] = math.log10(slopes[0] / max(count, 1) + RESIDUAL_FLOOR) + 1
    return count


@numba.njit(**INLINE_JIT)
def outputs_of(table, cues, outputs):
    """Fill in the level's outputs for its cues."""
    for m in range(outputs.shape[0]):
        power = table[m, 0]
        for n in range(cues.shape[0]):
            power += table[m, 1 + n] * min(max(cues[n], -LARGEST_CUE), LARGEST_CUE)
        outputs[m] = 10.0 ** min(max(power, _LEAST[m]), _MOST[m])


@numba.njit(**INLINE_JIT)
def run_level(problem, level, start, alive, evidence, cues, results):
    """Levenberg-Marquardt with step acceptance on one level from `start` [4, 4]; no steps where it is not alive any more.

    Fills the level's row of the results. evidence [6, 6] is what the coarser levels know, and becomes what all know so far; cues
    [5] hold the residuals of the coarser level, and then this one's. Returns the steps taken, or -1 where too few points were
    visible at the start.
    """
    views, stride = problem.views, problem.strides[level]
    poses, costs = results.poses[level], results.costs[level]
    points = results.squared.shape[1]
    squared, valid, pixels = results.squared[level], results.valid[level], results.pixels[level]
    now = System(results.hessian[level], np.empty(6), np.empty((6, 6)), np.empty(1))
    at = PointState(squared, np.zeros(points), np.zeros(points), valid, pixels)
    new = System(np.empty((6, 6)), np.empty(6), np.empty((6, 6)), np.empty(1))
    new_at = PointState(np.zeros(points), np.zeros(points), np.zeros(points), np.zeros(points, np.bool_), np.zeros((points, 2)))
    hessian, gradient, new_hessian, new_gradient = np.empty((6, 6)), np.empty(6), np.empty((6, 6)), np.empty(6)
    step, pose, candidate = np.empty(6), start.copy(), start.copy()
    hold, hold_inverse, outputs = np.empty((6, 6)), inverse(start), results.outputs[level]
    trusted = np.empty(problem.information.shape)
    # A look at the start sets what is believed on this level.
    settings = CostSettings(problem.loss, 1.0, problem.border)
    seen = linearize_views(views, level, stride, start, settings, new, new_at, LOOK_POINTS)
    count = end_statistics(new_at, new.slopes, results.ends[level])
    cues[0], cues[4] = results.ends[level, 0], results.ends[level, 2]
    for m in range(6):
        for n in range(6):
            hold[m, n] = evidence[m, n]
            for f in range(trusted.shape[0]):
                hold[m, n] += problem.information[f, m, n]
    cues[3] = math.log10(max(seen, 1) / 500)
    cues[1] = math.log10(max(expected_cells(hold, new.motion, count, stride), 1e-9)) if hold[0, 0] > 0 else LARGEST_CUE
    outputs_of(problem.weights[level], cues, outputs)
    cost, variance = CostSettings(problem.loss, outputs[0], problem.border), outputs[1]
    scale_information(evidence, outputs[2], outputs[3], hold)
    for f in range(trusted.shape[0]):
        scale_information(problem.information[f], outputs[4], outputs[5], trusted[f])
    count, prior_cost, scale, done = 0, 0.0, 1.0, 0
    for k in range(1 + (problem.iterations if alive else 0)):  # the first one looks at the start only
        if k > 0:
            solve(hessian, gradient, problem.damping[level] * scale, step)
            retract(pose, step, candidate)
        new_count = linearize_views(views, level, stride, candidate, cost, new, new_at)
        for m in range(6):
            new_gradient[m] = new.gradient[m]
            for n in range(6):
                new_hessian[m, n] = new.hessian[m, n]
        new_prior_cost = add_gaussian(hold, variance, candidate, hold_inverse, new_hessian, new_gradient)
        for f in range(trusted.shape[0]):
            known = problem.prior_inverses[f]
            new_prior_cost += add_gaussian(trusted[f], variance, candidate, known, new_hessian, new_gradient)
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
            count, prior_cost, now.slopes[0] = new_count, new_prior_cost, new.slopes[0]
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
    for m in range(6):
        for n in range(6):
            evidence[m, n] = hold[m, n] + now.hessian[m, n] / variance
            results.evidence[level, m, n] = evidence[m, n]
    end_statistics(at, now.slopes, results.ends[level])
    cues[2] = results.ends[level, 0]
    return done


@numba.njit(**FAST_JIT)
def run_levels(problem, start, results):
    """`run_level` on one level after the other, coarse to fine, from `start` [4, 4].

    Returns whether enough points were visible at the start of every level.
    """
    alive, pose, evidence, cues = True, start, np.zeros((6, 6)), np.zeros(len(CUES))
    for k in range(len(problem.strides)):
        steps = run_level(problem, k, pose, alive, evidence, cues, results)
        alive = alive and steps >= 0
        steps = max(steps, 0)
        results.done[k] = steps
        pose = results.poses[k, steps]
        results.poses[k, steps + 1 :], results.costs[k, steps + 1 :] = pose, results.costs[k, steps]
    recognised_compiled(problem.views, problem.strides, results.pixels[-1], results.valid[-1], results.recognised)
    return alive


def align_compiled(task: Task) -> AlignmentResult:
    """What `optimizer` does with tensors and the adaptive strategy, without gradients."""
    views, pose, options = task.views, task.pose, task.options
    levels, batch, steps = len(task.dampings), pose.shape[0], options.iterations
    problem_of = problems(task)
    starts = _array(pose, np.float64)
    results = LevelResults.empty(batch, levels, steps, sum(len(view.points) for view in views))

    def run(b: int) -> bool:
        return run_levels(problem_of(b), starts[b], LevelResults(*(array[b] for array in results)))

    if batch == 1:
        alive = np.array([run(0)])
    else:
        with ThreadPoolExecutor(min(batch, torch.get_num_threads())) as pool:
            alive = np.array(list(pool.map(run, range(batch))))
    each, judge = np.arange(batch), max(levels + options.inlier_level, 0)
    ended = results.done[each, -1]
    found, visible = results.poses[each, -1, ended], results.valid[:, -1]
    finished = np.isfinite(found).all((1, 2)) & alive
    inliers = visible & results.valid[:, judge] & (results.squared[:, judge] < AGREES)

    def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
        """Of all poses, or without the batch; in NumPy, as indexing and converting a tensor takes ten times as long."""
        return [torch.from_numpy(array[0, ...] if task.single else array) for array in arrays]

    traces = []
    shares = np.concatenate((results.ends, results.recognised[..., None]), -1, dtype=np.float32)
    for k, most in enumerate(results.done.max(0).tolist()):
        costs, poses = tensors(results.costs[:, k, : most + 1], results.poses[:, k, : most + 1])
        told = tensors(results.outputs[:, k], *np.moveaxis(shares[:, k], -1, 0))
        traces.append(LevelTrace(views[0].pyramid.levels[k].stride, costs, poses.to(pose.dtype), most, *told))
    cost, pixels = results.costs[each, -1, ended], results.pixels[:, -1]
    found, *ends_at = tensors(found, finished, results.evidence[:, -1], cost, visible, inliers, pixels)
    reason = why_ended(bool(finished.all()), bool(alive.all()), traces, steps)
    return AlignmentResult(found.to(pose.dtype), *ends_at, tuple(traces), reason)


def problems(task: Task) -> Callable[[int], Problem]:
    """What gives the problem of each pose of a batch: everything as arrays, with a batch dimension of B or 1 in front."""
    views, _, options, dampings, factors, weights, _ = task
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
    inverses, information = np.empty((1, 0, 4, 4)), np.empty((1, 0, 6, 6))
    if factors:
        poses = [np.stack([se3.inverse(one).numpy() for one in f.camera_from_map.detach().double()]) for f in factors]
        inverses = np.stack(np.broadcast_arrays(*poses), 1)
        information = np.stack(np.broadcast_arrays(*(_array(f.information, np.float64) for f in factors)), 1)
    table = _array(weights.table, np.float64)
    limits = (options.border_cells, options.iterations, options.min_points, options.stop_cells)

    def problem(b: int) -> Problem:
        def of(values):
            """One pose's, of an array or a tuple of arrays."""
            return tuple(map(of, values)) if isinstance(values, tuple) else values[b if len(values) > 1 else 0]

        mine = tuple(ViewArrays(*of(batched), *alone) for batched, alone in arrays)
        if len(mine) > 1:  # one compiled program serves rigs of any size that is usual
            mine += (_without_points(mine[0]),) * (MOST_VIEWS - len(mine))
        priors, loss = (of(inverses), of(information)), LOSSES[options.loss.kind]
        return Problem(mine, strides, of(damping), *priors, table, loss, *limits)

    return problem


def _without_points(view: ViewArrays) -> ViewArrays:
    """A view that adds nothing."""
    rows = {"xyz": view.xyz[:0], "descriptors": tuple(values[:0] for values in view.descriptors)}
    rows |= {"confidences": tuple(values[:0] for values in view.confidences), "mask": view.mask[:0]}
    return view._replace(**rows)


def _array(tensor: torch.Tensor | None, dtype: type, empty: tuple[int, ...] = ()) -> np.ndarray:
    """The tensor's memory where it has that type and order; an empty array where there is none."""
    return np.empty(empty, dtype) if tensor is None else np.ascontiguousarray(tensor.detach().numpy(), dtype)

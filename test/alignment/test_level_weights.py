# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is believed of levels and priors: closed forms, and what each number does to a pose."""

import math
from dataclasses import replace

import pytest
import torch
from alignment_scene import CAMERA, SIZE, level_weights, perturbed, scene

from pixloc_ros.alignment import AlignmentOptions, LevelWeights, PriorFactor, ReferencePoints, RobustLoss, View, align
from pixloc_ros.alignment.compiled import Task
from pixloc_ros.alignment.cost import linearize
from pixloc_ros.alignment.damping import level_dampings
from pixloc_ros.alignment.level_weights import CUES, LOG10_LEAST, LOG10_MOST, OUTPUTS, RESIDUAL_FLOOR, mean_log_residual
from pixloc_ros.alignment.optimizer import _Level
from pixloc_ros.errors import InputError
from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.features.sampling import sample_level, sample_level_with_slopes
from pixloc_ros.geometry import se3

BACKENDS = pytest.mark.parametrize("backend", ["torch", "compiled"])
TRUST, HOLD = slice(4, 6), slice(2, 4)


def believing(levels=2, variance=0.05, hold=1e-4, trust=1.0):
    return LevelWeights.constant(levels, 0.05, variance, hold, trust)


def gaussian(pose, metres, radians):
    return PriorFactor(pose, torch.diag(torch.tensor([metres**-2] * 3 + [radians**-2] * 3, dtype=torch.float64)))


def turned_by(one, other):
    """Metres plus radians between two poses: in this scene, depths of a few metres, both matter alike."""
    return float(sum(se3.pose_difference(one.double(), other.double())))


def affine_scene():
    """One level that is affine in the image: slopes are exact, and a squared loss makes the problem a linear one."""
    _, points, truth = scene()
    y, x = torch.meshgrid(torch.arange(48, dtype=torch.float64), torch.arange(64, dtype=torch.float64), indexing="ij")
    level = FeatureLevel(torch.stack((0.02 * x - 0.01 * y, 0.03 * y, 0.01 * x + 0.02 * y))[None], None, 4.0)
    pixels, _ = CAMERA.project(se3.transform(truth, points.xyz))
    descriptors = sample_level(level, pixels[None])[0][0]
    return View(FeaturePyramid((level,), SIZE), CAMERA, ReferencePoints(points.xyz, (descriptors,), (None,))), truth


def batched_points(view):
    """The view as `linearize` takes it."""
    points = view.points
    return replace(view, points=ReferencePoints(points.xyz[None], tuple(d[None] for d in points.descriptors), points.confidences))


def coarse_of(view):
    """Its first level alone."""
    pyramid, points = view.pyramid, view.points
    return View(FeaturePyramid(pyramid.levels[:1], SIZE), CAMERA, ReferencePoints(points.xyz, points.descriptors[:1], (None,)))


# ---- what the numbers are made of


@BACKENDS
def test_cues_are_what_their_names_say(backend):
    """Each output shows one cue: its power of ten."""
    pyramid, points, truth = scene(torch.float32)
    start = perturbed(truth.double(), 0.2)
    weights = LevelWeights(torch.zeros(2, len(OUTPUTS), 1 + len(CUES)))
    for k in range(len(CUES)):
        weights.table[:, k, 1 + k] = 1.0
    coarse, prior = LevelWeights(weights.table[:1]), gaussian(perturbed(truth.double(), 0.1, seed=5), 0.02, 0.003)
    options, view = AlignmentOptions(backend=backend), View(pyramid, CAMERA, points)
    result = align(view, start, options, None, prior, weights)
    poses = start, result.trace[0].camera_from_map[-1]
    for k, (trace, pose) in enumerate(zip(result.trace, poses)):
        look = linearize(batched_points(view), k, pose[None], RobustLoss("squared", 1.0), 0.0)
        count, found = int(look.valid.sum()), trace.outputs.double().log10()
        assert count > 80
        assert float(found[0]) == pytest.approx(float(mean_log_residual(look.squared, look.valid)), abs=1e-3)
        assert float(found[2]) == pytest.approx(0.0 if k == 0 else float(result.trace[0].residual), abs=1e-3)
        assert float(found[3]) == pytest.approx(math.log10(count / 500), abs=1e-6)
        slopes = sample_level_with_slopes(pyramid.levels[k], look.pixels)[0][0, :, 1:] * trace.stride
        mean = float(slopes.square().sum((-1, -2))[look.valid[0]].mean())
        assert float(found[4]) == pytest.approx(math.log10(mean + RESIDUAL_FLOOR) + 1, abs=1e-3)
        # What a Gaussian of the pose moves the points by: first the prior's, then with what the coarse level knows.
        known = prior.information + (k and align(coarse_of(view), start, options, None, prior, coarse).information)
        moved = look.pixel_jacobian[0].double() @ torch.linalg.cholesky(known.inverse())
        cells = (moved.square().sum() / count).sqrt() / trace.stride
        assert float(found[1]) == pytest.approx(float(cells.log10()), abs=2e-3)
    free = align(view, start, options, None, None, weights)
    assert float(free.trace[0].outputs[1]) == pytest.approx(100.0)  # nothing is known: the largest cue


@BACKENDS
def test_outputs_and_cues_are_cut_off(backend):
    pyramid, points, truth = scene(torch.float32)
    view, start = View(pyramid, CAMERA, points), perturbed(truth.double(), 0.3)
    limits = torch.tensor([LOG10_LEAST, LOG10_MOST], dtype=torch.float64)
    for sign, bound in ((-1, limits[0]), (1, limits[1])):
        weights = LevelWeights(torch.zeros(2, len(OUTPUTS), 1 + len(CUES)))
        weights.table[:, :, 2] = 30.0 * sign  # nothing is known: the largest cue
        result = align(view, start, AlignmentOptions(backend=backend), None, None, weights)
        torch.testing.assert_close(result.trace[0].outputs.double().log10(), bound, rtol=0, atol=1e-6)
        assert bool(result.camera_from_map.isfinite().all())
    weights.table[:, :, 2] = 0.25
    result = align(view, start, AlignmentOptions(backend=backend), None, None, weights)
    torch.testing.assert_close(result.trace[0].outputs.double(), torch.full((6,), 10**0.5, dtype=torch.float64))


@pytest.mark.parametrize("shape,value", [((3, 6, 6), 0.0), ((2, 6, 5), 0.0), ((2, 6), 0.0), ((2, 6, 6), math.nan)])
def test_weights_that_do_not_fit_are_refused(shape, value):
    with pytest.raises(InputError, match="file x: 'levels.weights' must hold finite numbers, 2x6x6"):
        LevelWeights.of({"levels.weights": torch.full(shape, value)}, 2, "file x")
    good = level_weights()
    assert torch.equal(LevelWeights.of(good.tensors(), 2, "file x").table, good.table)
    assert LevelWeights.of({}, 2, "file x") is None


# ---- what they do


@BACKENDS
def test_constants_without_hold_are_the_plain_optimizer(backend):
    """Every level begins anew where the one before ended; nothing given is the same as the options' constants."""
    pyramid, points, truth = scene(torch.float32)
    start = perturbed(truth.double(), 0.5)
    prior = gaussian(perturbed(truth.double(), 0.3, seed=3), 0.3, 0.1)
    options = AlignmentOptions(backend=backend, iterations=40, stop_cells=1e-4, feature_variance=0.02)
    plain = align(View(pyramid, CAMERA, points), start, options, None, prior)
    given = align(View(pyramid, CAMERA, points), start, options, None, prior, LevelWeights.constant(2, 0.05, 0.02))
    assert torch.equal(plain.camera_from_map, given.camera_from_map) and torch.equal(plain.information, given.information)
    fine = View(FeaturePyramid(pyramid.levels[1:], SIZE), CAMERA, ReferencePoints(points.xyz, points.descriptors[1:], (None,)))
    alone = align(fine, plain.trace[0].camera_from_map[-1], options, None, prior)
    assert turned_by(plain.camera_from_map, alone.camera_from_map) < 2e-5
    assert turned_by(plain.trace[0].camera_from_map[-1], alone.camera_from_map) > 1e-4


@BACKENDS
def test_hold_keeps_the_pose_where_the_coarser_level_put_it(backend):
    """On a fine level that recognises nothing, as under motion blur; only for the pose of the batch that it happens to."""
    pyramid, points, truth = scene(torch.float32)
    noise = torch.randn(points.descriptors[1].shape, generator=torch.Generator().manual_seed(0))
    both = torch.stack((points.descriptors[1], torch.nn.functional.normalize(noise, dim=-1)))
    points = ReferencePoints(points.xyz.expand(2, -1, -1), (points.descriptors[0].expand(2, -1, -1), both), (None, None))
    start = perturbed(truth.double(), 0.5).expand(2, 4, 4)
    weights, moved = believing(), {}
    weights.table[1, 1, 0] = 1.0  # a fine level's residuals tell little
    for hold in (1e-4, 10.0):
        weights.table[1, HOLD, 0] = math.log10(hold)
        options = AlignmentOptions(iterations=40, backend=backend)
        result = align(View(pyramid, CAMERA, points), start, options, None, None, weights)
        ends = result.trace[0].camera_from_map[:, -1]
        moved[hold] = [turned_by(result.camera_from_map[k], ends[k]) for k in range(2)]
    assert moved[10.0][1] < 1e-3 < 0.01 < moved[1e-4][1], moved
    assert turned_by(result.camera_from_map[0], truth) < 0.01


@BACKENDS
def test_a_prior_without_trust_plays_no_part(backend):
    pyramid, points, truth = scene(torch.float32)
    view, options = View(pyramid, CAMERA, points), AlignmentOptions(iterations=40, stop_cells=1e-3, backend=backend)
    wrong = perturbed(truth.double(), 0.5, seed=3)
    prior, ends = gaussian(wrong, 1e-3, 3e-4), {}
    for trust in (1e-4, 10.0):
        ends[trust] = align(view, wrong, options, None, prior, believing(trust=trust)).camera_from_map
    free = align(view, wrong, options, None, None, believing()).camera_from_map
    assert turned_by(ends[1e-4], free) < 0.02 * turned_by(wrong, truth)
    assert turned_by(ends[10.0], wrong) < 0.1 * turned_by(wrong, truth)


@pytest.mark.parametrize("variance", [0.002, 0.1, 5.0])
@pytest.mark.parametrize("trust", [(1.0, 1.0), (0.1, 3.0)])
def test_image_and_prior_meet_where_two_gaussians_do(variance, trust):
    """A linear problem: the information-weighted mean; and what is reported is the image's part alone."""
    view, truth = affine_scene()
    away = 1e-3 * torch.tensor([1.0, -2.0, 1.5, 0.4, 0.3, -0.5], dtype=torch.float64)
    prior = gaussian(se3.retract(truth, away), 0.02, 0.005)
    weights = believing(1, variance)
    weights.table[0, TRUST, 0] = torch.tensor(trust).log10()
    options = AlignmentOptions(iterations=60, stop_cells=1e-9, loss=RobustLoss("squared", 1.0))
    result = align(view, truth, options, None, prior, weights)
    image = linearize(batched_points(view), 0, result.camera_from_map[None], options.loss, 0.0).hessian[0] / variance
    scaled = prior.scaled(*torch.tensor(trust, dtype=torch.float64)).information
    expected = torch.linalg.solve(image + scaled, scaled @ away)
    found = se3.se3_log(result.camera_from_map @ se3.inverse(truth))
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.005 * float(away.abs().max()))
    torch.testing.assert_close(result.information, image, rtol=1e-5, atol=1e-6 * float(image.abs().max()))


@BACKENDS
def test_information_of_the_levels_adds_up(backend):
    """That of the coarse level, as much as it is held to, and that of the fine one."""
    pyramid, points, truth = scene(torch.float32)
    view, start, weights = View(pyramid, CAMERA, points), perturbed(truth.double(), 0.5)[None], level_weights(seed=3)
    weights.table[:, 1, 0], weights.table[1, HOLD, 0] = torch.tensor([-1.0, 0.5]), 0.0
    options = AlignmentOptions(backend=backend)
    whole = align(view, start, options, None, None, weights)
    first = align(coarse_of(view), start, options, None, None, LevelWeights(weights.table[:1])).information
    scale, variance, *hold = whole.trace[1].outputs.double().unbind(-1)[:4]
    held = PriorFactor(start, first).scaled(*hold).information
    loss = RobustLoss(options.loss.kind, scale[:, None].float())
    end = linearize(batched_points(view), 1, whole.camera_from_map, loss, 0.0)
    expected = held + end.hessian.double() / variance[:, None, None]
    torch.testing.assert_close(whole.information, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert 0.01 < float(held[0].trace() / expected[0].trace()) < 0.99


# ---- slopes


def test_gradient_of_the_whole_cost_against_differences():
    """Views, hold and two prior factors together, at a pose where all of them pull."""
    view, truth = affine_scene()
    view = batched_points(view)
    first, second, start, here = (perturbed(truth, 1e-3, seed)[None] for seed in range(4))
    known = 1e4 * torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))[None]
    factors, dampings = (
        (PriorFactor(first, known), PriorFactor(second, known)),
        level_dampings(None, 1, 0.01, torch.device("cpu")),
    )
    task = Task((view,), start, AlignmentOptions(), dampings, factors, level_weights(1))
    level, outputs = _Level.at(task, 0, start, known.flip(1, 2), torch.zeros(1))
    assert outputs.shape == (1, 6)

    def cost(delta):
        pose = se3.retract(here, delta[None])
        now = level.linearize(pose)
        return 0.5 * ((now.confidence * now.loss * now.valid).sum() + level.system(now, pose)[2][0])

    now = level.linearize(here)
    hessian, gradient, share = level.system(now, here)
    assert share > 0 and bool((hessian[0] != now.hessian[0].double()).any())
    step = 1e-7
    numeric = torch.stack([(cost(step * axis) - cost(-step * axis)) / (2 * step) for axis in torch.eye(6, dtype=torch.float64)])
    torch.testing.assert_close(gradient[0], numeric, rtol=1e-3, atol=1e-4 * float(numeric.abs().max()))


@pytest.mark.parametrize("strategy", ["paper", "adaptive"])
def test_every_number_is_learned_from_the_poses(strategy):
    """Except for what there is none of at the first level: coarser residuals, and hold."""
    pyramid, points, truth = scene()
    weights = LevelWeights(level_weights(seed=7).table.requires_grad_())
    starts = torch.stack([perturbed(truth, 0.3, seed=k) for k in range(2)])
    prior = gaussian(starts.flip(0), 0.1, 0.05)
    options = AlignmentOptions(strategy=strategy, iterations=3, backend="torch")
    result = align(View(pyramid, CAMERA, points), starts, options, None, prior, weights)
    sum((level.camera_from_map[:, -1] - truth).square().sum() for level in result.trace).backward()
    learned = weights.table.grad != 0
    assert bool(weights.table.grad.isfinite().all()) and bool(learned[1].all())
    expected = torch.ones(len(OUTPUTS), 1 + len(CUES), dtype=torch.bool)
    expected[HOLD] = False
    expected[:, 3] = False
    assert torch.equal(learned[0], expected)

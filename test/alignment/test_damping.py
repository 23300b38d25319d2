# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Damping and prior factors: what they hold, along which axes, and that they learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment_scene import BASE, CAMERA, SIZE, perturbed, scene, some_cues, temporal_prior

from pixloc_ros.alignment import AlignmentOptions, LearnedDamping, MotionCues, PriorFactor, TemporalPrior, View, align
from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.geometry import se3


def test_prior_factor_holds_the_pose_where_the_image_is_blank_and_yields_where_it_speaks():
    pyramid, points, truth = scene()
    prior_pose = perturbed(truth, 0.2, seed=3)
    start = perturbed(truth, 0.3, seed=4)
    weak = PriorFactor(prior_pose, torch.eye(6, dtype=torch.float64) * 1e-3)
    free = align(View(pyramid, CAMERA, points), start, AlignmentOptions(iterations=40), factors=weak)
    assert se3.pose_difference(free.camera_from_map, truth)[0] < 1e-3
    flat = FeaturePyramid(
        tuple(FeatureLevel(torch.ones_like(level.features) / 8**0.5, None, level.stride) for level in pyramid.levels), SIZE
    )
    held = align(View(flat, CAMERA, points), start, AlignmentOptions(iterations=40, stop_cells=1e-6), factors=weak)
    translation, rotation = se3.pose_difference(held.camera_from_map, prior_pose)
    assert translation < 1e-3 and rotation < 1e-3


def test_damping_freezes_the_directions_it_is_told_to():
    """PixLoc's motion prior: a large factor on one degree of freedom keeps it where it was."""
    pyramid, points, truth = scene()
    damping = LearnedDamping(2)
    torch.testing.assert_close(damping(0), torch.full((6,), 10**-0.5))
    with torch.no_grad():
        damping.theta[:, 4] = 20.0
    offset = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.02, 0.0], dtype=torch.float64)
    start = se3.retract(truth, offset)
    options = AlignmentOptions(strategy="paper", iterations=5)
    frozen = align(View(pyramid, CAMERA, points), start, options, damping=damping).camera_from_map @ se3.inverse(start)
    moved = align(View(pyramid, CAMERA, points), start, options, damping=LearnedDamping(2)).camera_from_map @ se3.inverse(start)
    assert se3.so3_log(frozen[:3, :3])[1].abs() < 1e-4 < 0.01 < se3.so3_log(moved[:3, :3])[1].abs()


@pytest.mark.parametrize("strategy", ["adaptive", "paper"])
def test_untrained_temporal_prior_is_the_learned_constant(strategy):
    """Whatever the cues: the network's last layer begins at zero, and phi = 0 takes the factor's information as it is."""
    pyramid, points, truth = scene()
    start, options = perturbed(truth), AlignmentOptions(strategy=strategy, iterations=5)
    prior = PriorFactor(perturbed(truth, seed=3), torch.eye(6, dtype=torch.float64) * 50)
    cues = MotionCues(some_cues(1).values[0], torch.eye(4, dtype=torch.float64))  # base axes that are the camera's
    temporal = align(View(pyramid, CAMERA, points), start, options, TemporalPrior(2), prior, cues=cues)
    constant = align(View(pyramid, CAMERA, points), start, options, LearnedDamping(2), prior)
    torch.testing.assert_close(temporal.camera_from_map, constant.camera_from_map, rtol=0, atol=1e-9)


def test_temporal_damping_acts_along_the_axes_of_the_base():
    """A base that cannot slide sideways: the camera it carries, turned and off-centre, moves in all its own axes."""
    pyramid, points, truth = scene()
    damping = TemporalPrior(2, conditional=False)
    with torch.no_grad():
        damping.theta[:, 1] = 20.0
    start = perturbed(truth, 0.3)
    options = AlignmentOptions(strategy="paper", iterations=1)
    cues = MotionCues(torch.zeros(14), BASE)
    result = align(View(pyramid, CAMERA, points), start, options, damping, cues=cues)
    base_from_camera = se3.inverse(BASE)
    # map_from_base before and after, in the base's own axes
    moved = se3.se3_log(base_from_camera @ start @ se3.inverse(result.camera_from_map) @ BASE)
    assert moved[1].abs() < 2e-3 * moved.abs().max(), moved
    assert (moved.abs() > 1e-4).sum() >= 5, moved


def test_trust_multiplies_the_information_along_the_axes_of_the_base():
    """One step on a blank image, by closed form: the normal equations are the prior's alone."""
    pyramid, points, truth = scene()
    flat = FeaturePyramid((FeatureLevel(torch.ones_like(pyramid.levels[0].features) / 8**0.5, None, 16.0),), SIZE)
    points = replace(points, descriptors=points.descriptors[:1], confidences=(None,))
    information = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    information = information @ information.mT + torch.eye(6, dtype=torch.float64)
    start = perturbed(truth, 0.01)
    temporal = TemporalPrior(1, conditional=False)
    with torch.no_grad():
        temporal.theta += 0.7
        temporal.phi += torch.linspace(-0.3, 0.3, 6)
    options = AlignmentOptions(strategy="paper", iterations=1, feature_variance=0.5)
    view, prior, cues = View(flat, CAMERA, points), PriorFactor(truth, information), MotionCues(torch.zeros(14), BASE)
    found = align(view, start, options, temporal, prior, cues).camera_from_map
    damping, trust = (v[0].detach().double().numpy() for v in temporal.predict())
    axes = se3.adjoint(BASE).numpy()
    matrix = axes.T @ information.numpy() @ axes * np.sqrt(trust[:, None] * trust[None]) * 0.5
    error = np.linalg.solve(axes, se3.se3_log(start @ se3.inverse(truth)).numpy())
    step = axes @ -np.linalg.solve(matrix + np.diag(np.maximum(damping * np.diag(matrix), 1e-6)), matrix @ error)
    torch.testing.assert_close(found, se3.retract(start, torch.from_numpy(step)), rtol=0, atol=1e-9)


def test_the_temporal_prior_learns_from_every_cue():
    pyramid, points, truth = scene()
    temporal = temporal_prior(seed=7)
    starts = torch.stack([perturbed(truth, seed=k) for k in range(2)])
    prior = PriorFactor(starts, torch.eye(6, dtype=torch.float64).expand(2, 6, 6) * 20)
    options = AlignmentOptions(strategy="paper", iterations=3)
    result = align(View(pyramid, CAMERA, points), starts, options, temporal, prior, some_cues(2))
    sum((t.camera_from_map[:, -1] - truth).square().sum() for t in result.trace).backward()
    for name, parameter in temporal.named_parameters():
        assert bool(parameter.grad.isfinite().all()) and bool((parameter.grad != 0).all()), name


def test_cues_do_not_depend_on_the_unit_of_length():
    generator = torch.Generator().manual_seed(0)
    motion = torch.rand(3, 6, generator=generator, dtype=torch.float64) * 0.1
    covariance = torch.diag_embed(torch.rand(3, 6, generator=generator, dtype=torch.float64) * 1e-3)
    seconds, inliers, depth = (torch.tensor(v, dtype=torch.float64) for v in ([0.1, 0.2, 5.0], [0.9, 0.5, 0.1], [2.0, 3.0, 4.0]))
    feet = torch.diag(torch.tensor([3.28] * 3 + [1.0] * 3, dtype=torch.float64))
    cues = MotionCues.of(seconds, motion, covariance, inliers, depth, BASE)
    same = MotionCues.of(seconds, motion @ feet, feet @ covariance @ feet, inliers, depth * 3.28, BASE)
    torch.testing.assert_close(cues.values, same.values)
    assert bool((cues.values.abs() <= 2).all()) and len(cues.values.unique()) > 20

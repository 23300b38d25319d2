# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Damping and prior factors: what they hold, and along which axes."""

from dataclasses import replace

import numpy as np
import torch
from alignment_scene import CAMERA, SIZE, perturbed, scene

from pixloc_ros.alignment import AlignmentOptions, LearnedDamping, LevelWeights, PriorFactor, View, align
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


def test_one_step_by_closed_form():
    """On a blank image the normal equations are the prior's alone, times the variance, with trust and damping."""
    pyramid, points, truth = scene()
    flat = FeaturePyramid((FeatureLevel(torch.ones_like(pyramid.levels[0].features) / 8**0.5, None, 16.0),), SIZE)
    points = replace(points, descriptors=points.descriptors[:1], confidences=(None,))
    information = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    information = information @ information.mT + torch.eye(6, dtype=torch.float64)
    start, damping, weights = perturbed(truth, 0.01), LearnedDamping(1), LevelWeights.constant(1, variance=0.5)
    with torch.no_grad():
        damping.theta += torch.linspace(-0.7, 0.7, 6)
    weights.table[0, 4:, 0] = torch.tensor([0.3, -0.6])
    options = AlignmentOptions(strategy="paper", iterations=1)
    found = align(View(flat, CAMERA, points), start, options, damping, PriorFactor(truth, information), weights)
    root = np.sqrt(10 ** np.repeat(weights.table[0, 4:, 0].double().numpy(), 3))
    matrix = 0.5 * root[:, None] * information.numpy() * root
    error = se3.se3_log(start @ se3.inverse(truth)).numpy()
    held = np.maximum(damping(0).detach().double().numpy() * np.diag(matrix), 1e-6)
    step = -np.linalg.solve(matrix + np.diag(held), matrix @ error)
    torch.testing.assert_close(found.camera_from_map, se3.retract(start, torch.from_numpy(step)), rtol=0, atol=1e-9)

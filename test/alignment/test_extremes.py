# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Alignment in maps of any unit of length, and of no points at all: the same numbers, or an empty result."""

import dataclasses

import pytest
import torch
from alignment_scene import CAMERA, SIZE, level_weights, perturbed, scene

from pixloc_ros.alignment import AlignmentOptions, PriorFactor, View, align
from pixloc_ros.alignment.focal_length import estimate_focal_length
from pixloc_ros.alignment.types import map_tensors
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.tracking.frame_aligner import inverse_information

BASE = se3.se3_exp(torch.tensor([0.1, 0.4, -0.3, 1.1, -1.2, 1.3], dtype=torch.float64))
"""camera_from_base"""
CAMERAS = [CAMERA, Camera.from_colmap("OPENCV_FISHEYE", *SIZE, [200.0, 210.0, 128.5, 96.5, 0.02, -0.01, 1e-3, 1e-4])]


@pytest.mark.parametrize("camera", CAMERAS, ids=["pinhole", "fisheye"])
@pytest.mark.parametrize(("strategy", "backend"), [("adaptive", "torch"), ("adaptive", "compiled"), ("paper", "torch")])
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_unit_of_length_of_a_map_does_not_matter(camera, strategy, backend, with_prior):
    """The same scene in units from a millionth to a million times as long: the same pose, in the same steps."""
    dtype = torch.float32 if backend == "compiled" else torch.float64
    pyramid, points, truth = scene(dtype)
    options = AlignmentOptions(strategy, iterations=40, stop_cells=1e-3, backend=backend)

    first = None
    for unit in (1.0, *(10.0**k for k in range(-6, 7))):
        lengths = torch.tensor([unit] * 3 + [1.0] * 3, dtype=torch.float64)
        start, prior_pose = (pose.double().clone() for pose in (perturbed(truth), perturbed(truth, 0.3, 3)))
        for pose in (start, prior_pose):
            pose[:3, 3] *= unit
        prior = weights = None
        if with_prior:
            prior = PriorFactor(prior_pose, 50 * torch.eye(6, dtype=torch.float64) / torch.outer(lengths, lengths))
            weights = level_weights(seed=4)
        view = View(pyramid, camera, dataclasses.replace(points, xyz=points.xyz * unit))
        with torch.no_grad():
            found = align(view, start, options, None, prior, weights)
        pose = found.camera_from_map.clone()
        pose[:3, 3] /= unit
        if first is None:
            first, expected = found, pose
            assert found.converged and (pose - start).abs().max() > 1e-3
        torch.testing.assert_close(pose, expected, rtol=0, atol=2e-5 if backend == "compiled" else 1e-9)
        assert found.reason == first.reason and bool(found.converged) and torch.equal(found.visible, first.visible)
        assert [level.iterations for level in found.trace] == [level.iterations for level in first.trace]
        covariance = inverse_information(found.information) / torch.outer(lengths, lengths)
        torch.testing.assert_close(covariance, inverse_information(first.information), rtol=3e-3, atol=1e-12)


@pytest.mark.parametrize(("strategy", "backend"), [("adaptive", "torch"), ("adaptive", "compiled"), ("paper", "torch")])
@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("with_prior", [False, True])
def test_without_any_point_the_result_is_empty(strategy, backend, batch, with_prior):
    pyramid, points, truth = scene(torch.float32)
    none, start = map_tensors(points, lambda tensor: tensor[:0]), truth.double()
    prior = PriorFactor(perturbed(start, 0.1), torch.eye(6, dtype=torch.float64)) if with_prior else None
    start, shape = (start, ()) if batch is None else (start.expand(batch, 4, 4), (batch,))
    options, placed = AlignmentOptions(strategy, backend=backend), View(pyramid, CAMERA, none, camera_from_rig=BASE)
    masked = View(pyramid, CAMERA, none, torch.ones(batch or 1, 0, dtype=torch.bool))
    for views in (View(pyramid, CAMERA, none), [View(pyramid, CAMERA, none), placed], masked):
        result = align(views, start, options, factors=prior)
        assert not result.converged.any() and result.reason == "points" and torch.equal(result.camera_from_map, start)
        assert result.visible.shape == result.inliers.shape == (*shape, 0) and result.pixels.shape == (*shape, 0, 2)
        assert result.information.shape == (*shape, 6, 6) and not result.information.any() and not result.cost.any()
    both = align([View(pyramid, CAMERA, points), placed], start, options)
    alone = align(View(pyramid, CAMERA, points), start, options)
    assert both.converged.all()
    torch.testing.assert_close(both.camera_from_map, alone.camera_from_map, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["adaptive", "paper"])
def test_a_pose_that_sees_nothing_leaves_the_gradient_of_the_others_alone(strategy):
    """As in a batch of the training, whose gradient would be no number otherwise."""
    pyramid, points, truth = scene()
    starts = torch.stack([perturbed(truth, 0.3), perturbed(truth, 0.3)])
    starts[1, 2, 3] -= 100
    gradients = []
    for count in (1, 2):
        descriptors = tuple(values.clone().requires_grad_() for values in points.descriptors)
        view = View(pyramid, CAMERA, dataclasses.replace(points, descriptors=descriptors))
        result = align(view, starts[:count], AlignmentOptions(strategy, iterations=3))
        result.camera_from_map.sum().backward()
        gradients.append(descriptors[1].grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_without_any_point_there_is_no_focal_length_and_no_sample():
    pyramid, points, truth = scene(torch.float32)
    none = View(pyramid, CAMERA, map_tensors(points, lambda tensor: tensor[:0]))
    assert estimate_focal_length(none, truth.double(), AlignmentOptions()) is None
    values, confidence, inside = sample_level(pyramid.levels[0], torch.empty(2, 0, 2))
    assert values.shape == (2, 0, 8) and confidence is None and inside.shape == (2, 0)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_the_unit_of_length_does_not_matter_to_the_focal_length(unit):
    pyramid, points, truth = scene(torch.float32)
    camera = dataclasses.replace(CAMERA, params=CAMERA.params * torch.tensor([1.01, 1.01, 1, 1]))
    found = []
    for factor in (1.0, unit):
        pose = truth.double().clone()
        pose[:3, 3] *= factor
        view = View(pyramid, camera, dataclasses.replace(points, xyz=points.xyz * factor))
        found.append(estimate_focal_length(view, pose, AlignmentOptions()))
    assert found[0].log_ratio == pytest.approx(-0.00995, abs=1e-4)
    assert found[1].log_ratio == pytest.approx(found[0].log_ratio, abs=1e-5)
    assert found[1].std == pytest.approx(found[0].std, rel=0.1)  # a perfect fit: of rounding only

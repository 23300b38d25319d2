# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How much an image looks like the map from a pose: most at the truth, nothing elsewhere, and the way there is uphill."""

from dataclasses import replace

import numpy as np
import torch
from alignment_scene import CAMERA, perturbed, scene

from pixloc_ros.alignment import Likeness, View
from pixloc_ros.geometry import se3

PYRAMID, POINTS, TRUTH = scene(points=200)
VIEW = View(PYRAMID, CAMERA, POINTS)


def poses(scale, count=30):
    return torch.stack([perturbed(TRUTH, scale, seed) for seed in range(count)])


def test_an_image_looks_most_like_the_map_from_where_it_was_taken():
    likeness = Likeness(VIEW, 0)
    there = likeness.at(TRUTH[None])[0]
    assert (likeness.at(poses(0.5)) < there).all()
    assert np.median(likeness.at(poses(5.0))) < there / 2


def test_the_nearest_cells_say_about_the_same():
    likeness = Likeness(VIEW, 1)
    candidates = poses(1.0)
    assert np.corrcoef(likeness.roughly(candidates), likeness.at(candidates))[0, 1] > 0.9


def test_a_climb_leads_to_the_truth_and_never_down():
    likeness, starts = Likeness(VIEW, 0), poses(0.7)
    found, scores = likeness.climb(starts)
    assert (scores >= likeness.at(starts)).all() and np.allclose(scores, likeness.at(found))
    before, after = (se3.pose_difference(TRUTH, some)[1].median() for some in (starts, found))
    assert float(after) < 0.3 * float(before)
    assert torch.equal(starts, poses(0.7))  # they are not moved


def test_a_camera_that_sees_no_point_learns_nothing():
    pose = se3.se3_exp(torch.tensor([0, 0, 0, 0, np.pi, 0], dtype=torch.float64)) @ TRUTH
    likeness = Likeness(VIEW, 0)
    assert likeness.at(pose[None])[0] == 0 == likeness.roughly(pose[None])[0]
    torch.testing.assert_close(likeness.climb(pose[None])[0][0], pose)


def test_features_that_are_no_numbers_are_no_likeness():
    levels = tuple(level.features.clone() for level in PYRAMID.levels)
    levels[0][:] = torch.nan
    broken = replace(PYRAMID, levels=(replace(PYRAMID.levels[0], features=levels[0]), PYRAMID.levels[1]))
    likeness = Likeness(replace(VIEW, pyramid=broken), 0)
    assert not (likeness.at(TRUTH[None]) > 0).any() and not (likeness.climb(TRUTH[None])[1] > 0).any()

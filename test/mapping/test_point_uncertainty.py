# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Expected reprojection errors against simulated ones, and which points are left where there are more than enough."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_helpers import look_at, pinhole, visible

from pixloc_ros.geometry import se3
from pixloc_ros.mapping.build.observations import Observations, Views, expected_error, surest_points
from pixloc_ros.mapping.build.patch_tracks import refine_points

CAMERA = pinhole()
SIGMA_PX = 0.1


def _views(*places):
    return Views([CAMERA] * len(places), torch.stack([look_at(place, (0.0, 0.0, 0.0)) for place in places]))


def _everyone_sees(images: int, points: int):
    return Observations(np.repeat(np.arange(images), points), np.tile(np.arange(points), images))


def _project(views, k, xyz):
    return visible(CAMERA, views.map_from_camera[k], xyz)[0]


@pytest.mark.parametrize("width", [0.1, 0.4, 1.5])
def test_it_is_what_noise_makes_of_triangulated_points(width):
    """One point, triangulated 3000 times; how far off it projects next to the baseline, within it, and nearer."""
    line = ((x, -4.0, 0.3) for x in np.linspace(-width, width, 6))
    views = _views(*line, (2 * width, -4.0, 0.0), (0.0, -4.0, 0.0), (0.1, -2.0, 0.0))
    count, rng = 3000, np.random.default_rng(1)
    true = np.tile([[0.2, 0.1, -0.1]], (count, 1))
    pixels = np.concatenate([_project(views, k, true) for k in range(6)]) + rng.normal(0, SIGMA_PX, (6 * count, 2))
    observed = _everyone_sees(6, count)._replace(pixel=pixels)
    found = refine_points(true, views, observed, 10.0)
    residual = np.concatenate([_project(views, k, found) for k in range(6)]) - pixels
    for view in (6, 7, 8):
        wanted = Observations(np.full(count, view), np.arange(count))
        expected = expected_error(found, views, observed, np.linalg.norm(residual, axis=1), wanted)
        seen = np.linalg.norm(_project(views, view, found) - _project(views, view, true), axis=1)
        assert np.sqrt((expected**2).mean()) == pytest.approx(np.sqrt((seen**2).mean()), rel=0.1)


def test_few_rays_and_narrow_ones_are_unsure_though_they_agree():
    """A pair of rays a degree apart that agree perfectly, ten that span 40 degrees with errors as usual, seen from the side."""
    views = _views((-0.03, -4.0, 0.0), (0.03, -4.0, 0.0), *((x, -4.0, 0.0) for x in np.linspace(-1.5, 1.5, 8)), (1.0, -4.0, 0.0))
    seen = Observations(np.array([0, 1, *range(10)]), np.array([0, 0, *[1] * 10]))
    error, wanted = np.array([0.0, 0.0, *[0.5] * 10]), Observations(np.array([10, 10]), np.arange(2))
    narrow, wide = expected_error(np.zeros((2, 3)), views, seen, error, wanted)
    assert wide < 0.3 < 3 * wide < narrow


def test_a_point_that_nobody_sees_is_unknown():
    seen, wanted = Observations(np.array([0, 1]), np.array([1, 1])), Observations(np.array([0, 0]), np.array([1, 2]))
    views = _views((-1.0, -4.0, 0.0), (1.0, -4.0, 0.0))
    expected = expected_error(np.zeros((3, 3)), views, seen, np.full(2, 0.4), wanted)
    assert np.isfinite(expected).tolist() == [False, True, False]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_it_does_not_depend_on_the_map_frame(seed):
    rng = np.random.default_rng(seed)
    views = _views(*rng.uniform((-1.5, -5, -0.5), (1.5, -3, 0.5), (4, 3)))
    xyz, seen = rng.uniform(-0.5, 0.5, (20, 3)), _everyone_sees(4, 20)
    args = seen, rng.uniform(0, 1, 80), seen
    moved = look_at(rng.normal(0, 2, 3), rng.normal(0, 2, 3))
    moved_views = Views(views.cameras, moved @ views.map_from_camera)
    there = expected_error(se3.transform(moved, torch.from_numpy(xyz)).numpy(), moved_views, *args)
    assert np.allclose(there, expected_error(xyz, views, *args), rtol=1e-6)


def test_a_poor_point_goes_only_where_there_are_better_ones():
    """Forty points crowded on the right of the image, the worst one alone on the left."""
    views, seen = _views((0.0, -4.0, 0.0), (0.1, -4.0, 0.0)), _everyone_sees(2, 41)
    rng = np.random.default_rng(0)
    xyz = np.concatenate(([[-0.8, 0.0, 0.0]], rng.uniform((0.7, 0, -0.1), (0.9, 0, 0.1), (40, 3))))
    expected = np.concatenate(([5.0], rng.permutation(np.linspace(0.1, 1.0, 40))))
    kept = surest_points(xyz, views, seen, expected, 12)
    assert kept[0] and 12 <= kept.sum() <= 24
    assert kept[expected.argmin()]
    assert surest_points(xyz, views, seen, expected, 41).all()
    unknown = np.where(np.arange(41) == 0, np.inf, expected)
    assert surest_points(xyz, views, seen, unknown, 12)[0]


def test_a_point_that_one_image_needs_stays_for_all():
    views = _views((0.0, -4.0, 0.0), (0.1, -4.0, 0.0))
    xyz = np.array([[0.01 * k, 0.0, 0.0] for k in range(5)])
    seen = Observations(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3, 4]))
    kept = surest_points(xyz, views, seen, np.array([0.1, 0.5, 0.6, 0.9, 1.0]), 1)
    assert kept.tolist() == [True, False, False, True, False]

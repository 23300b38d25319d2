# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether points are where they project to: closed forms, and compiled code against tensors."""

import numpy as np
import pytest
import torch
from alignment_scene import CAMERA

from pixloc_ros.alignment import ReferencePoints, View
from pixloc_ros.alignment.location import ASIDE, located
from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.features.sampling import sample_level

SIZE = 96, 64
BACKENDS = pytest.mark.parametrize("backend", ["compiled", "torch"])


def ramp(stride=1.0):
    """A level whose features are the coordinates of its cells."""
    rows, columns = round(SIZE[1] / stride), round(SIZE[0] / stride)
    y, x = torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    return FeatureLevel(torch.stack((x, y))[None], None, stride)


def view_of(levels, pixels, off=(0.0, 0.0)):
    """Points at pixels, whose descriptors are those of a place so many cells off."""
    cells = [(pixels + 0.5) / level.stride - 0.5 + torch.tensor(off) for level in levels]
    points = ReferencePoints(torch.zeros(len(pixels), 3), tuple(cells), (None,) * len(levels))
    return View(FeaturePyramid(tuple(levels), SIZE), CAMERA, points)


def grid(low=20.0, high=40.0):
    x = torch.linspace(low, high, 7)
    return torch.cartesian_prod(x, x)


@BACKENDS
@pytest.mark.parametrize("stride", [1.0, 2.0])
@pytest.mark.parametrize(
    "off, share",
    [
        ((0.0, 0.0), 1.0),  # in place
        ((0.6, 0.0), 1.0),  # to the right it fits better, but neither above nor below
        ((0.6, -0.6), 1.0),  # along a diagonal, but not across it
        ((1.3, 0.55), 0.5),  # one side of each axis fits better
    ],
)
def test_points_are_located_where_one_axis_tells_it(backend, stride, off, share):
    """Off by a vector d, in units of the way aside, a side at a is nearer where a d > 1/2."""
    axes = np.array(((1, 0), (0, 1), (0.5**0.5, 0.5**0.5), (0.5**0.5, -(0.5**0.5))))
    assert max(1 - 0.5 * (abs(axes @ off) > 0.5)) == share
    pixels = grid()
    view = view_of([ramp(2.0), ramp(stride)], pixels, tuple(ASIDE * part for part in off))
    assert located([view], pixels, torch.ones(len(pixels), dtype=torch.bool), backend) == share


@BACKENDS
def test_what_is_the_same_aside_is_not_located(backend):
    seen = torch.ones(49, dtype=torch.bool)
    flat, streaks = ramp(), ramp()
    flat.features[:], streaks.features[:, 1] = 0, 0
    inside, edge = grid(), grid() * torch.tensor([0.0, 1.0])
    assert located([view_at(flat, inside)], inside, seen, backend) == 0
    assert located([view_at(streaks, inside)], inside, seen, backend) == 1  # the same up and down, but not across
    assert located([view_at(streaks, edge)], edge, seen, backend) == 0.5  # beyond the border is the border


def view_at(level, pixels):
    """Points at pixels, whose descriptors are those of the level there."""
    points = ReferencePoints(torch.zeros(len(pixels), 3), (sample_level(level, pixels[None])[0][0],), (None,))
    return View(FeaturePyramid((level,), SIZE), CAMERA, points)


@BACKENDS
def test_only_points_that_are_seen_count(backend):
    pixels = grid()
    right, wrong = view_of([ramp()], pixels), view_of([ramp()], pixels, (1.3 * ASIDE, 0.55 * ASIDE))
    seen = torch.ones(2 * len(pixels), dtype=torch.bool)
    twice = torch.cat((pixels, pixels))
    assert located([right, wrong], twice, seen, backend) == pytest.approx(0.75)
    seen[len(pixels) :] = False
    assert located([right, wrong], twice, seen, backend) == 1
    assert located([right, wrong], twice, torch.zeros_like(seen), backend) == 0


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("count", [30, 1200])
def test_compiled_code_says_what_tensors_say(levels, count):
    """Two views, of points anywhere in the image, some of them not seen, of which every other one is looked at."""
    generator = torch.Generator().manual_seed(levels)
    views, pixels = [], []
    for _ in range(2):
        sizes = [(SIZE[1] // stride, SIZE[0] // stride) for stride in (4, 2, 1)[-levels:]]
        pyramid = [FeatureLevel(torch.rand(1, 6, *size, generator=generator), None, SIZE[0] / size[1]) for size in sizes]
        at = torch.rand(count, 2, generator=generator) * torch.tensor(SIZE) - 0.5
        descriptors = [sample_level(level, at[None])[0][0] for level in pyramid]
        descriptors = tuple(values + 0.2 * torch.randn(values.shape, generator=generator) for values in descriptors)
        points = ReferencePoints(torch.zeros(count, 3), descriptors, (None,) * levels)
        views.append(View(FeaturePyramid(tuple(pyramid), SIZE), CAMERA, points))
        pixels.append(at)
    seen = torch.rand(2 * count, generator=generator) < 0.7
    one, other = (located(views, torch.cat(pixels), seen, backend) for backend in ("compiled", "torch"))
    assert one == pytest.approx(other, abs=2e-3) and 0.6 < one < 1

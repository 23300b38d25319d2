# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Fixes to map coordinates by closed forms, and fits of georeferences."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_helpers import look_at, numbers_map, pinhole

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.georeference import Georeference, fit_georeference

EYE = torch.eye(4, dtype=torch.float64)
AXIS, E2 = 6378137.0, (1 / 298.257223563) * (2 - 1 / 298.257223563)


@settings(max_examples=50, deadline=None)
@given(latitude=st.floats(-80, 80), longitude=st.floats(-180, 180), altitude=st.floats(-100, 4000))
def test_small_steps_follow_the_radii_of_curvature(latitude, longitude, altitude):
    place = Georeference(latitude, longitude, altitude, EYE)
    step = 1e-5  # degrees: about a metre
    fixes = np.array([[latitude, longitude + step, altitude], [latitude + step, longitude, altitude],
                      [latitude, longitude, altitude + 1.0]])  # fmt: skip
    curvature = 1 - E2 * math.sin(math.radians(latitude)) ** 2
    meridian, across = AXIS * (1 - E2) / curvature**1.5, AXIS / math.sqrt(curvature)
    east = math.radians(step) * (across + altitude) * math.cos(math.radians(latitude))
    north = math.radians(step) * (meridian + altitude)
    np.testing.assert_allclose(place.enu_from_fix(fixes), np.diag([east, north, 1.0]), atol=2e-6)


def drive(kind: str, count: int = 40) -> np.ndarray:
    """Points of a path in a map frame, metres."""
    t = np.linspace(0, 1, count)[:, None]
    curve = 0 * t if kind == "straight" else 60 * np.sin(4 * t)
    return np.hstack((200 * t, curve, 2 * np.sin(3 * t) if kind == "hilly" else 0 * t))


@pytest.mark.parametrize(("kind", "upright"), [("bend", False), ("hilly", False), ("straight", True), ("bend", True)])
def test_a_fit_recovers_the_place(kind, upright):
    rng = np.random.default_rng(0)
    twist = [10, -20, 3, 0, 0, 2.0] if upright else [10, -20, 3, 0.3, -0.2, 2.0]
    truth = Georeference(48.1, 11.5, 520.0, se3.se3_exp(torch.tensor(twist, dtype=torch.float64)))
    xyz = drive(kind)
    enu = se3.transform(truth.enu_from_map, torch.from_numpy(xyz)).numpy() + rng.normal(size=xyz.shape) * 0.02
    enu[3] += 80.0  # a fix between tall houses
    # Degrees by Newton's method on the forward formula, which the test above holds to closed forms.
    fixes = np.tile([48.1, 11.5, 520.0], (len(enu), 1))
    for _ in range(5):
        away = enu - truth.enu_from_fix(fixes)
        fixes += away[:, [1, 0, 2]] * [1 / 111200.0, 1 / (111300.0 * math.cos(math.radians(48.1))), 1.0]
    found, errors = fit_georeference(xyz, fixes, upright)
    assert np.median(errors) < 0.1 and errors[3] > 50
    np.testing.assert_allclose(
        found.enu_from_fix(fixes[5:]), se3.transform(found.enu_from_map, torch.from_numpy(xyz[5:])), atol=0.2
    )


def test_a_straight_road_does_not_tell_the_roll():
    fixes = np.array([[48.1 + 1e-4 * k, 11.5, 500.0] for k in range(10)])
    xyz = np.array([[11.1 * k, 0.0, 0.0] for k in range(10)])
    with pytest.raises(InputError, match="--upright"):
        fit_georeference(xyz, fixes)
    with pytest.raises(InputError, match="further apart"):
        fit_georeference(np.zeros((10, 3)), np.tile([48.1, 11.5, 500.0], (10, 1)), upright=True)
    with pytest.raises(InputError, match="needs at least 3"):
        fit_georeference(xyz[:2], fixes[:2])
    with pytest.raises(InputError, match="latitude"):
        fit_georeference(xyz, fixes[:, ::-1] * 10)


@pytest.mark.parametrize(
    ("spoil", "upright"),
    [(lambda xyz: 2 * xyz, False), (lambda xyz: 2 * xyz, True), (lambda xyz: np.random.default_rng(0).permutation(xyz), False)],
)
def test_fixes_that_fit_nowhere_are_refused(spoil, upright):
    """A map that is not in metres, places of others: the best fit is not a good one."""
    xyz = drive("bend")
    fixes = np.array([48.1, 11.5, 520.0]) + xyz[:, [1, 0, 2]] * [1 / 111200.0, 1 / (111300.0 * math.cos(math.radians(48.1))), 1]
    fit_georeference(xyz, fixes, upright=True)
    with pytest.raises(InputError, match="off in the median"):
        fit_georeference(spoil(xyz), fixes, upright)


def test_a_fix_is_a_prior_with_unknown_heading():
    place = Georeference(48.1, 11.5, 520.0, se3.se3_exp(torch.tensor([5.0, 2, 1, 0, 0, 1.0], dtype=torch.float64)))
    pose, covariance = place.prior(np.array([48.1, 11.5, 521.2]), np.diag([4.0, 9.0, 25.0]), antenna_height=1.2)
    se3.check_pose(pose)
    torch.testing.assert_close(place.enu_from_map @ pose, EYE, atol=1e-6, rtol=0)  # upright, at the origin, x east
    assert covariance[0, 0] == 4 and covariance[1, 1] == 9 and covariance[5, 5] == pytest.approx(math.pi**2)
    assert float(torch.linalg.eigvalsh(covariance)[0]) > 0
    with pytest.raises(InputError, match="covariance"):
        place.prior(np.array([48.1, 11.5, 521.2]), np.zeros((3, 3)))


def test_the_command_keeps_the_georeference_in_the_map(tmp_path, capsys):
    path = tmp_path / "site.pixmap"
    centres = np.array([[12.0 * k, 3.0 * (k % 2) * k, 0.5 * k] for k in range(6)])
    poses = torch.stack([look_at(centre - [0, 4, 0], centre) for centre in centres])
    map_ = numbers_map(poses, np.random.default_rng(1).uniform(-2, 3, (300, 3)), pinhole())
    replace(map_, keyframe_names=["# 0.png", *map_.keyframe_names[1:]]).save(path)
    centres = poses[:, :3, 3].numpy()
    degrees = [1 / 111200.0, 1 / (111300.0 * math.cos(math.radians(48.1))), 1.0]
    fixes = np.array([48.1, 11.5, 520.0]) + centres[:, [1, 0, 2]] * degrees
    lines = [f"{k:04d}.png {' '.join(f'{v:.9f}' for v in fix)}" for k, fix in enumerate(fixes[:5])]
    lines.append(" ".join(f"{v:.9f}" for v in (*centres[5], *fixes[5])))
    lines[0] = lines[0].replace("0000.png", "# 0.png")  # no comment: a keyframe is called so
    (tmp_path / "gps.txt").write_text("# a comment\n# 0001.png 1 2 3\n\n" + "\n".join(lines) + "\n")
    assert main(["map", "georeference", str(path), "--fixes", str(tmp_path / "gps.txt")]) == 0
    assert "6 fixes fit" in capsys.readouterr().out
    placed = Map.open(path, verify=True).georeference
    np.testing.assert_allclose(placed.enu_from_fix(fixes), se3.transform(placed.enu_from_map, poses[:, :3, 3]), atol=0.5)
    (tmp_path / "gps.txt").write_text("nowhere.jpg 48 11 500\n")
    assert main(["map", "georeference", str(path), "--fixes", str(tmp_path / "gps.txt")]) == 2
    assert "gps.txt:1" in capsys.readouterr().err

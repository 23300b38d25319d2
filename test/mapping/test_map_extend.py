# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps that grow: which frames they take, which points they keep, and how large they may become."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mapping_helpers import look_at, numbers_map, pinhole
from scenes import simulated_scene

from pixloc_ros.cli.main import main
from pixloc_ros.cli.map_extend import parse_budget
from pixloc_ros.errors import InputError
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.care import check
from pixloc_ros.mapping.build.extend import ExtendOptions, TrackedFrame, believed, bounded, choose_frames, extend, size_in_bytes

needs_pycolmap = pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="no pycolmap")


@pytest.fixture(scope="module")
def old():
    """Ten keyframes along a line that look at random points, each of a look of its own."""
    generator = np.random.default_rng(0)
    xyz = generator.uniform((-3, -2, -0.3), (3, 2, 0.3), (400, 3))
    poses = torch.stack([look_at((0.2 * k - 1, -0.2, 2.5), (0.2 * k - 1, 0, 0)) for k in range(10)])
    map_ = numbers_map(poses, xyz, pinhole())
    return replace(map_, descriptors=looks(map_, generator))


def looks(map_: Map, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Random descriptors, the same in all observations of a point."""
    each = [unit(generator.normal(size=(len(map_.xyz), level.shape[1]))) for level in map_.descriptors]
    return tuple(level[map_.observation_point].astype(np.float16) for level in each)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_frames_are_taken_where_the_look_has_changed_or_no_keyframe_is_near(old):
    poses = [
        old.map_from_keyframe[3],
        old.map_from_keyframe[5],
        look_at((9, -0.2, 2.5), (9, 0, 0)),
        look_at((0, -0.2, 2.5), (4, 0, 0)),
    ]
    frames = [TrackedFrame(k, pose, share) for k, (pose, share) in enumerate(zip(poses, (0.95, 0.5, 0.95, 0.95)))]
    choice = choose_frames(old, frames, ExtendOptions())
    assert choice.changed == {1} and choice.unseen == {2, 3} and choice.stamps == {1, 2, 3}


@pytest.mark.parametrize("wrong_m, kept", [(0.0, [1, 2, 3, 4, 6]), (1.0, [1, 4, 6])])
def test_frames_between_sure_ones_are_believed_where_odometry_says_the_same(old, wrong_m, kept):
    """Frame 5 has no odometry; before the first sure frame and behind the last one nothing is believed."""
    frames = []
    for k, pose in enumerate(old.map_from_keyframe[:8]):
        tracked, odom = pose.clone(), old.map_from_keyframe[0].inverse() @ pose
        odom[:3, 3] *= 1.02
        tracked[1, 3] += wrong_m if k == 3 else 0.0
        frames.append(TrackedFrame(k, tracked, 0.1, k in (1, 4, 6), None if k == 5 else odom))
    assert [frame.stamp_ns for frame in believed(old, frames)] == kept


def later(old: Map, there: np.ndarray, changed: bool = False) -> Map:
    """The map seen again from the same places: points `there` with the look they have, or all in another light; what hides the
    others looks different each time."""
    generator = np.random.default_rng(1)
    descriptors = looks(old, generator) if changed else old.descriptors
    hidden = ~there[old.observation_point, None]
    descriptors = [np.where(hidden, unit(generator.normal(size=level.shape)), level) for level in descriptors]
    names = [f"later/{name}" for name in old.keyframe_names]
    stamps = old.keyframe_stamp_ns + 10**12
    return replace(
        old, keyframe_names=names, keyframe_stamp_ns=stamps, descriptors=tuple(d.astype(np.float16) for d in descriptors)
    )


def test_points_that_new_keyframes_do_not_show_go_and_those_of_another_look_stay(old):
    there = np.arange(len(old.xyz)) % 4 > 0
    often = old.track_length >= 5
    options = ExtendOptions(retire=5)
    extension = extend(old, later(old, there), ("old", "new"), options)
    assert extension.added == 10 and extension.retired > 0.8 * (often & ~there).sum()
    left = {tuple(xyz) for xyz in extension.map.xyz.round(9)}
    assert {tuple(xyz) for xyz in old.xyz[there & (old.track_length > 0)].round(9)} <= left
    assert len(left) == len(extension.map.xyz)  # an old point seen again is that point
    everything = extend(old, later(old, there), ("old", "new"), replace(options, retire=0))
    assert everything.retired == 0 and len(everything.map.xyz) == (old.track_length > 0).sum()
    night = extend(old, later(old, np.ones_like(there), changed=True), ("old", "new"), options)
    assert night.retired == 0 and night.observed > 0.8 * often.sum()
    assert np.array_equal(night.map.track_length, np.bincount(night.map.observation_point))


def test_a_bounded_map_keeps_the_newer_of_what_is_alike(old):
    twice = extend(old, later(old, np.ones(len(old.xyz), bool)), ("old", "new"), ExtendOptions()).map
    ten = bounded(twice, 10, None)
    assert len(ten.keyframe_names) == 10 and sum(name.startswith("later/") for name in ten.keyframe_names) >= 8
    most = size_in_bytes(twice) // 2
    assert size_in_bytes(bounded(twice, None, most)) <= most
    assert bounded(twice, 100, None) is twice
    with pytest.raises(InputError, match="does not hold two keyframes"):
        bounded(twice, None, 100)


@pytest.mark.parametrize(
    "text, budget", [(None, (None, None)), ("500", (500, None)), ("40MB", (None, 40_000_000)), ("1.5 MiB", (None, 1_572_864))]
)
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@needs_pycolmap
def test_a_drive_extends_a_map_and_the_old_file_stays(tmp_path_factory, tmp_path, capsys):
    scene = simulated_scene(tmp_path_factory)
    before = Path(scene.map).read_bytes()
    command = ["map", "extend", str(scene.map), str(scene.drive)]
    for words, message in (
        ([], "give -o FILE"),
        (["-o", str(scene.map)], "is the old map"),
        (["-o", str(tmp_path / "m.pixmap"), "--budget", "4 boxes"], "give a number of keyframes"),
    ):
        assert main([*command, *words]) == 2 and message in capsys.readouterr().err
    output = tmp_path / "new.pixmap"
    assert main([*command, "-o", str(output), "--changed", "1", "--keyframe-shift", "0.02"]) == 0
    said = capsys.readouterr().out
    assert "have a sure pose in the map" in said and "keyframes added" in said
    old, new = Map.open(scene.map), Map.open(output, verify=True)
    assert len(new.keyframe_names) > len(old.keyframe_names) and not any(finding.serious for finding in check(new))
    assert Path(scene.map).read_bytes() == before and not list(tmp_path.glob("*.work"))
    assert main([*command, "-o", str(output), "--changed", "1", "--keyframe-shift", "0.02", "--budget", "4"]) == 0
    assert len(Map.open(output).keyframe_names) == 4

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What keeps the map of a long drive bounded, and kill -9 in each stage of making it."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from drive_scene import START, STEP, pose_at, similarity, write_bag
from killing import in_child, run_alone

from pixloc_ros.cli.main import main
from pixloc_ros.io.trajectory import read_tum
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import drive, triangulation

pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
STAGES = (
    "keyframes/000003",
    "features/images/",
    "pairs/000005",
    "looks/000006",
    "loops/",
    "structure",
    "depth",
    "matches/000002",
)
STAGES += ("tracks", "centres", "found/000002", "encoded/000002")
"""Beginnings of names in the work folder: the command is killed when such a file is to be written."""
LAP = 12


def there_and_back(laps: int) -> list[np.ndarray]:
    """Poses of a camera that goes to and fro along a wall."""
    once = [pose_at(k, LAP) for k in range(LAP)]
    return [pose for lap in range(laps) for pose in (once if lap % 2 == 0 else once[::-1])]


def wheels(k, map_from_base):
    return map_from_base


# ---- places that were shown often enough


def ring(count: int, laps: int) -> np.ndarray:
    """Poses [laps * count, 4, 4] on a circle of a radius of 5 m, looking along it."""
    angle = np.arange(laps * count) * 2 * np.pi / count
    poses = np.tile(np.eye(4), (len(angle), 1, 1))
    poses[:, 0, 0] = poses[:, 1, 1] = np.cos(angle)
    poses[:, 1, 0], poses[:, 0, 1] = np.sin(angle), -np.sin(angle)
    poses[:, :2, 3] = 5 * np.stack((np.cos(angle), np.sin(angle)), 1)
    return poses


def test_a_place_keeps_its_first_visits():
    needed = drive.showing_something_new(ring(60, 9), np.arange(540), 0.3)
    assert needed.reshape(9, 60).sum(1).tolist() == [60] * 4 + [0] * 5


def test_other_directions_are_no_visits():
    poses = ring(60, 9)
    poses[240:, :3, :2] *= -1  # looking back from then on
    assert drive.showing_something_new(poses, np.arange(540), 0.3).sum() == 8 * 60


def test_keyframes_that_the_map_does_not_need_keep_their_poses(tmp_path, monkeypatch):
    for name, value in (("_LONG_DRIVE", 20), ("_VISITS", 1), ("_VISIT_APART", 4)):
        monkeypatch.setattr(drive, name, value)
    poses, file, report = there_and_back(3), tmp_path / "poses.tum", tmp_path / "site.json"
    bag = write_bag(tmp_path / "bag", poses, wheels)
    words = ["map", "bag", bag, "-o", tmp_path / "site.pixmap", "--poses", "images", "--all-poses", file, "--report", report]
    assert main([*map(str, words)]) == 0
    said, map_, found = json.loads(report.read_text()), Map.open(tmp_path / "site.pixmap"), read_tum(file).map_from_body.numpy()
    assert said["posed"][0] == said["posed"][1] > 1.5 * len(map_.keyframe_names)
    assert any("other visits show their places" in note for note in said["notes"])
    assert said["images_posed"][0] >= said["posed"][0]
    rows = (read_tum(file).stamps_ns - START) // STEP
    assert similarity(found[:, :3, 3], np.stack(poses)[rows, :3, 3])[1] < 0.02


def test_patches_are_cut_again_where_they_do_not_fit_into_memory(tmp_path, monkeypatch):
    bag = write_bag(tmp_path / "bag", there_and_back(1), wheels)
    for name, cached in (("one", 1), ("many", 96)):
        monkeypatch.setattr(triangulation, "_CACHED_HOMES", cached)
        assert main(["map", "bag", str(bag), "-o", str(tmp_path / f"{name}.pixmap"), "--poses", "images"]) == 0
    one, many = (Map.open(tmp_path / f"{name}.pixmap") for name in ("one", "many"))
    np.testing.assert_array_equal(one.xyz, many.xyz)
    np.testing.assert_array_equal(one.observation_point, many.observation_point)


# ---- killed


def run_killed(command: list[str], stage: str) -> int:
    """In a child process: the command, killed at a stage."""

    def write(self, name, save, original=WorkFolder.write):
        if name.startswith(stage):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, name, save)

    if stage:
        WorkFolder.write = write
    return main(command)


def run_all(folder: Path) -> None:
    """The map made at one go, and killed in every stage; what the work folder held then, and how each child ended."""
    told = {}
    for name, stages in (("whole", ("",)), ("killed", (*STAGES, ""))):
        for stage in stages:
            output = folder / name / "site.pixmap"
            command = ["map", "bag", str(folder / "bag"), "-o", str(output), "--poses", "images"]
            ended = in_child(partial(run_killed, command, stage))
            work = output.with_name("site.pixmap.work")
            told[f"{name} {stage}"] = ended, {str(p.relative_to(work)): p.stat().st_mtime_ns for p in work.rglob("*.*")}
    (folder / "told.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder that `run_all` has filled, and what it told."""
    folder = tmp_path_factory.mktemp("killed")
    write_bag(folder / "bag", there_and_back(2), wheels)
    run_alone(__file__, folder)
    return folder, json.loads((folder / "told.json").read_text())


def test_a_drive_that_is_killed_in_every_stage_gives_the_same_map(killed):
    folder, told = killed
    assert [told[f"killed {stage}"][0] for stage in STAGES] == [-signal.SIGKILL] * len(STAGES)
    assert told["killed "][0] == told["whole "][0] == 0
    assert (folder / "killed" / "site.pixmap").read_bytes() == (folder / "whole" / "site.pixmap").read_bytes()


def test_work_goes_on_where_it_was(killed):
    _, told = killed
    for before, after in zip(STAGES, STAGES[1:]):
        was, then = told[f"killed {before}"][1], told[f"killed {after}"][1]
        kept = {name for name in was if not name.startswith(("spare", "images/"))}
        assert len(then) > len(kept) and {name: then[name] for name in kept} == {name: was[name] for name in kept}, after


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))

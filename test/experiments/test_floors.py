# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Clips of floors that look the same: which images are searched for in which map, and what the table counts."""

import argparse
import json
import sys
from types import SimpleNamespace

import cv2
import floors
import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError

WANTED = argparse.Namespace(left_out=4, images=5, same=3, standing=2)


@pytest.fixture
def tower(tmp_path):
    """Two clips on one floor, one on another, of blank images, each a little brighter than the one before."""
    grey = iter(range(50, 250, 5))
    for clip, count in (("floor1/f1_hall", 9), ("floor1/f1_stairs", 2), ("floor2/f2_hall", 12)):
        (tmp_path / clip).parent.mkdir(exist_ok=True)
        for k in range(count):
            cv2.imwrite(str(tmp_path / f"{clip}_frame_{k:06d}.jpg"), np.full((90, 160, 3), next(grey), np.uint8))
    return tmp_path


def test_no_image_of_its_floor_is_among_those_of_others(tower):
    clips = floors.clips_of(tower)
    assert [(clip.floor, clip.name, len(clip.paths)) for clip in clips] == [
        ("floor1", "f1_hall", 9),
        ("floor1", "f1_stairs", 2),
        ("floor2", "f2_hall", 12),
    ]
    found = [(kind, path.name.removesuffix(".jpg")) for kind, path in floors.images_for(clips[0], clips, WANTED)]
    assert found == [
        *(("left out", f"f1_hall_frame_{k:06d}") for k in (2, 6)),
        *(("same floor", f"f1_stairs_frame_{k:06d}") for k in (0, 1)),
        *(("standing", f"f2_hall_frame_{k:06d}") for k in (0, 7)),
        *(("other floors", f"f2_hall_frame_{k:06d}") for k in (0, 7, 2, 9, 4)),
    ]


def test_a_frame_that_is_there_twice_is_not_another_clips(tower):
    folder = tower / "floor1"
    (folder / "f1_again_frame_000000.jpg").write_bytes((folder / "f1_hall_frame_000003.jpg").read_bytes())
    clips = floors.clips_of(tower)
    (hall,) = (clip for clip in clips if clip.name == "f1_hall")
    same = [path.name for kind, path in floors.images_for(hall, clips, WANTED) if kind == "same floor"]
    assert len(same) == 2 and all("stairs" in name for name in same)


def test_clips_that_give_no_map_are_listed_once_with_their_reason(tower, monkeypatch, capsys):
    words = [tower, "-o", tower / "out", "--clips", "f1_*", "--left-out", "4"]
    monkeypatch.setattr(sys, "argv", ["floors", *map(str, words)])
    assert floors.main() == 0
    assert "| f1_stairs | 2 | " in capsys.readouterr().out
    results = json.loads((tower / "out" / "floors.json").read_text())
    assert list(results["clips"]) == ["f1_hall", "f1_stairs"] and not results["found"]
    assert all(clip["reason"] for clip in results["clips"].values())
    in_map = sorted(path.name for path in (tower / "out" / "clips" / "f1_hall").iterdir())
    assert in_map == [f"f1_hall_frame_{k:06d}.jpg" for k in (0, 1, 3, 4, 5, 7, 8)]
    monkeypatch.setattr(floors, "make_map", None)  # nothing is made again
    assert floors.main() == 0


def test_a_folder_without_floors_is_refused(tmp_path):
    with pytest.raises(InputError, match="FLOOR/CLIP_frame_NUMBER.jpg"):
        floors.clips_of(tmp_path)


def test_a_frame_is_between_its_neighbours(tower):
    clip = floors.clips_of(tower)[0]
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 1.0, 3.0])
    names = [clip.paths[k].name for k in (0, 1, 3)]
    map_ = SimpleNamespace(keyframe_names=names, map_from_keyframe=poses, keyframe_depth=torch.full((3,), 5.0))

    def found(x, frame=2):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = x
        return floors.between(map_, clip, clip.paths[frame], pose.tolist())

    assert [found(x) for x in (0.4, 0.6, 2.0, 3.4, 3.6)] == [False, True, True, True, False]
    assert found(3.4, frame=8) and not found(3.6, frame=8)  # after the last keyframe


def test_the_table_counts_who_is_confident():
    sure, unsure = {"confident": True, "between": True}, {"confident": False, "between": False}
    away = {"confident": True, "between": False}
    found = {
        "left out": {"a": sure, "b": away, "c": unsure},
        "same floor": {"d": sure},
        "other floors": {str(k): unsure for k in range(300)},
        "standing": {"e": unsure},
    }
    clips = {
        "f1_hall": {"images": 9, "reason": "", "posed": [6, 7]},
        "f1_stairs": {"images": 2, "reason": "2 keyframes (so few): more"},
    }
    made = floors.tables({"clips": clips, "found": {"f1_hall": found}})
    assert "| f1_hall | 6 of 7 | 3 | 2 | 1 | 1 | 1 | 1 | 0 | 300 | 0 |" in made["floors"]
    assert "0 of 300 confident; with 95 % certainty fewer than 0.99 %" in made["floors"]
    assert "| f1_stairs | 2 | 2 keyframes |" in made["floors, clips"]
    assert "| f1_hall | 9 | a map, 6 of 7 keyframes posed |" in made["floors, clips"]

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Several drives in one map, here and on a dask cluster."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from drive_scene import CAMERA, START, STEP, pose_at, similarity, turning_at, write_bag, write_images
from mapping_helpers import look_at

from pixloc_ros.cli.main import main
from pixloc_ros.geometry import se3
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.joined_drives import Placement

pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
COUNT = 14


def first_at(k):
    return pose_at(k, COUNT)


def second_at(k):
    """Another path along the same wall: back, higher, nearer to it."""
    along = 1 - k / (COUNT - 1)
    return look_at((-1.8 + 2.8 * along, -0.2 + 0.2 * np.cos(3 * along), 0.3), (-1.3 + 2.9 * along, 4.0, 0.1)).numpy()


def opposite_at(k):
    """Along the wall behind."""
    return np.diag((-1.0, -1.0, 1.0, 1.0)) @ pose_at(k, COUNT)


PATHS = {"morning": first_at, "evening": second_at, "elsewhere": opposite_at}


def wheels(factor, turn):
    """Odometry whose steps are too long by a factor and turned by an angle each."""
    said, bias = [], np.eye(4)
    bias[:2, :2] = ((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn)))

    def odometry(k, base):
        if not said:
            said.append((base, np.eye(4)))
            return said[-1][1]
        step = np.linalg.inv(said[-1][0]) @ base
        step[:3, 3] *= factor
        said.append((base, said[-1][1] @ step @ bias))
        return said[-1][1]

    return odometry


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """All begin at the same time by their clocks."""
    folder = tmp_path_factory.mktemp("bags")
    how = {"morning": (wheels(1.01, 0.004), 1.0), "evening": (wheels(0.99, -0.006), 0.6), "elsewhere": (wheels(1.0, 0.0), 1.0)}
    return {
        name: write_bag(folder / name, [pose(k) for k in range(COUNT)], how[name][0], light=how[name][1])
        for name, pose in PATHS.items()
    }


def make(tmp_path, *words):
    """Exit code, and the map and report where one was made."""
    output, report = tmp_path / "site.pixmap", tmp_path / "site.json"
    code = main(["map", *map(str, words), "-o", str(output), "--report", str(report)])
    return (code, Map.open(output), json.loads(report.read_text())) if code == 0 else (code, None, None)


def truth_of(map_):
    """map_from_camera [K, 4, 4] of a map's keyframes, and their drives."""
    drives, names = zip(*(name.split("/") for name in map_.keyframe_names))
    numbers = [int(name.split(".")[0]) for name in names]
    numbers = [(number - START) // STEP if number >= START else number for number in numbers]
    return np.stack([PATHS[drive](k) for drive, k in zip(drives, numbers)]), np.array(drives)


@pytest.fixture(scope="module")
def morning_and_evening(tmp_path_factory, bags):
    """Folder of the map, the map and the report."""
    folder = tmp_path_factory.mktemp("both")
    return folder, *make(folder, "bag", bags["morning"], bags["evening"])[1:]


def test_two_drives_make_one_map(morning_and_evening):
    folder, map_, report = morning_and_evening
    truth, drives = truth_of(map_)
    assert all((drives == name).sum() > COUNT // 2 for name in ("morning", "evening"))
    assert ((map_.keyframe_stamp_ns - START) % STEP == 0).all() and map_.keyframe_stamp_ns.max() < START + COUNT * STEP
    # Laid on the truth by the first pose alone, the second drive is where it was, up to what wheels are wrong.
    found = map_.map_from_keyframe.numpy()
    off = np.linalg.norm((truth[0] @ np.linalg.inv(found[0]) @ found)[:, :3, 3] - truth[:, :3, 3], axis=1)
    assert off.max() < 0.06
    ((first, second, keyframes, tried, before, after),) = report["ties"]
    assert (first, second) == ("morning", "evening") and 5 <= keyframes <= tried
    assert after <= before < 0.1
    keyframe = np.repeat(np.arange(len(drives)), np.diff(map_.observation_offsets))
    seen = [{drives[k] for k in keyframe[map_.observation_point == point]} for point in range(len(map_.xyz))]
    assert np.mean([len(one) == 2 for one in seen]) > 0.2, "points are shared"
    assert "evening is tied to morning by" in (folder / "site.html").read_text()
    assert not (folder / "site.pixmap.work").exists()


def test_workers_make_the_same_map_though_one_is_killed(tmp_path, bags, morning_and_evening, monkeypatch, capsys):
    """The command is stopped, too, when the drives are to be joined, and goes on without the cluster."""
    distributed = pytest.importorskip("distributed", reason="a cluster needs dask.distributed")
    words = ("bag", bags["morning"], bags["evening"])
    drives = tmp_path / "site.pixmap.work" / "drives"
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        monkeypatch.context() as stopped,
    ):

        def kill_one():
            while not (drives / "0/keyframes").is_dir() or not (drives / "1/keyframes").is_dir():
                time.sleep(0.01)
            os.kill(cluster.workers[0].pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        broken = "pixloc_ros.mapping.build.joined_drives.build_map_from_posed_frames"
        stopped.setattr(broken, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert make(tmp_path, *words, "--scheduler", cluster.scheduler_address)[0] == 130
        killer.join()
    monkeypatch.setattr("pixloc_ros.evaluation.drive_ties._search", None)  # ties are there
    code, map_, report = make(tmp_path, *words)
    assert code == 0 and "going on with" in capsys.readouterr().out
    _, expected, same = morning_and_evening
    assert map_.keyframe_names == expected.keyframe_names
    torch.testing.assert_close(map_.map_from_keyframe, expected.map_from_keyframe)
    np.testing.assert_array_equal(map_.observation_point, expected.observation_point)
    assert report["ties"][0][:4] == same["ties"][0][:4] and report["ties"][0][4:] == pytest.approx(same["ties"][0][4:])


def test_scale_comes_from_the_drive_that_has_one(tmp_path, bags):
    """The first drive has no odometry."""
    first = write_bag(tmp_path / "morning", [first_at(k) for k in range(COUNT)])
    code, map_, report = make(tmp_path, "bag", first, bags["evening"])
    truth, _ = truth_of(map_)
    factor, rmse = similarity(map_.map_from_keyframe[:, :3, 3].numpy(), truth[:, :3, 3])
    assert rmse < 0.03 and abs(factor * 0.99 - 1) < 0.02  # the second one's wheels say 0.99
    assert report["scale"] == "from the odometry"


def test_folders_of_images(tmp_path):
    folders = [write_images(tmp_path / name, [PATHS[name](k) for k in range(COUNT)]) for name in ("morning", "evening")]
    words = ("images", *folders, "--camera", CAMERA.to_colmap_line(), "--path-length", "3.2")
    code, map_, _ = make(tmp_path, *words)
    truth, drives = truth_of(map_)
    assert similarity(map_.map_from_keyframe[:, :3, 3].numpy(), truth[:, :3, 3])[1] < 0.02
    assert (map_.keyframe_stamp_ns == -1).all()
    first = map_.map_from_keyframe[torch.from_numpy(drives == "morning"), :3, 3]
    assert float(first.diff(dim=0).norm(dim=1).sum()) == pytest.approx(3.2, rel=0.02)


def test_placements_undo_and_follow_each_other():
    generator = torch.Generator().manual_seed(0)
    twists = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    a, b, *poses = se3.se3_exp(twists)
    one, other, poses = Placement(a, 2.0), Placement(b, 0.7), torch.stack(poses)
    torch.testing.assert_close(one.after(other)(poses), one(other(poses)))
    torch.testing.assert_close(one.inverse(one(poses)), poses)


def test_a_drive_of_another_place_is_named(tmp_path, bags, capsys):
    assert make(tmp_path, "bag", bags["morning"], bags["elsewhere"])[0] == 2
    said = capsys.readouterr().err
    assert "the drive elsewhere cannot be tied" in said and "leave it out" in said
    assert not (tmp_path / "site.pixmap").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--poses", "bag"], "pixloc map merge"),
        (["--poses", "images", "--all-poses", "all.tum"], "is for one drive"),
        (["--poses", "images", "--refine"], "leave it out"),
    ],
)
def test_what_is_for_one_drive_is_refused(tmp_path, bags, more, said, capsys):
    assert make(tmp_path, "bag", bags["morning"], bags["evening"], *more)[0] == 2
    assert said in capsys.readouterr().err


def test_a_drive_that_fails_is_named(tmp_path, bags, capsys):
    bad = write_bag(tmp_path / "turning", [turning_at(k) for k in range(3)], lambda k, base: base)
    assert make(tmp_path, "bag", bad, bags["morning"])[0] == 2
    assert f"{bad}: " in capsys.readouterr().err
    assert make(tmp_path, "bag", bad, bad)[0] == 2
    assert "given twice" in capsys.readouterr().err
    assert make(tmp_path, "bag", bags["morning"], "--poses", "images", "--scheduler", "tcp://127.0.0.1:8786")[0] == 2
    assert "--scheduler is for several drives" in capsys.readouterr().err

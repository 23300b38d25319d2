# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of drives without poses: images, videos and bags through structure from motion."""

import json

import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA
from drive_scene import (
    CAMERA,
    FOCAL,
    HEIGHT,
    START,
    STEP,
    WIDTH,
    pose_at,
    similarity,
    turning_at,
    write_bag,
    write_images,
    write_video,
)

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bags import BagOptions
from pixloc_ros.io.trajectory import read_benchmark_poses, read_tum
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import mapper
from pixloc_ros.mapping.build.drive_frames import DriveBag
from pixloc_ros.mapping.build.odometry_structure import bridges

pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
COUNT = 12
LINE = CAMERA.to_colmap_line()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("drive") / "images", [pose_at(k, COUNT) for k in range(COUNT)])


def make(tmp_path, *words):
    """Exit code, and the map and report where one was made."""
    output, report = tmp_path / "site.pixmap", tmp_path / "site.json"
    code = main(["map", *map(str, words), "-o", str(output), "--report", str(report)])
    return (code, Map.open(output), json.loads(report.read_text())) if code == 0 else (code, None, None)


def check(map_, numbers, scale=None, tolerance=0.01, start=(0.0, 0.0, 0.0)):
    """Keyframes lie where the truth has them, up to a similarity of that scale (None: any)."""
    truth = np.stack([pose_at(k, COUNT)[:3, 3] for k in numbers])
    found = map_.map_from_keyframe[:, :3, 3].numpy()
    factor, rmse = similarity(found, truth)
    assert rmse < 0.01
    assert scale is None or abs(factor / scale - 1) < tolerance
    np.testing.assert_allclose(found[0], start, atol=1e-6)
    assert np.abs(found[:, 2] - start[2]).max() < 0.05 * np.ptp(found, axis=0).max()  # the drive is level


def test_images(tmp_path, images, capsys):
    code, map_, report = make(tmp_path, "images", images, "--camera", LINE, "--path-length", "6")
    numbers = [int(name.split(".")[0]) for name in map_.keyframe_names]
    assert report["posed"][0] == report["posed"][1] == len(numbers)
    assert np.linalg.norm(np.diff(map_.map_from_keyframe[:, :3, 3].numpy(), axis=0), axis=1).sum() == pytest.approx(6.0)
    check(map_, numbers)
    assert (map_.keyframe_stamp_ns == -1).all()
    assert not (tmp_path / "site.pixmap.work").exists()
    page = (tmp_path / "site.html").read_text()
    assert "keyframes posed" in page and "From above" in page
    assert "1 of 1 keyframes are found" in capsys.readouterr().out


def check_all_poses(map_, found, keyframe, truth, posed):
    """Poses map_from_camera [N, 4, 4] of all images: keyframes have the map's, the others lie on the path with them."""
    assert posed == [len(truth), len(truth)] and len(keyframe) < len(truth)
    np.testing.assert_allclose(found[keyframe], map_.map_from_keyframe.numpy(), atol=1e-6)
    assert similarity(found[:, :3, 3], truth[:, :3, 3])[1] < 0.01


def test_all_images_get_a_pose(tmp_path, capsys):
    poses = np.stack([pose_at(k, 3 * COUNT) for k in range(3 * COUNT)])
    folder, file = write_images(tmp_path / "images", poses), tmp_path / "poses.txt"
    code, map_, report = make(tmp_path, "images", folder, "--camera", LINE, "--path-length", "6", "--all-poses", file)
    found = torch.linalg.inv(torch.stack(list(read_benchmark_poses(file).values()))).numpy()
    assert list(read_benchmark_poses(file)) == [f"{k:04d}.png" for k in range(len(poses))]
    check_all_poses(map_, found, [int(name[:4]) for name in map_.keyframe_names], poses, report["images_posed"])
    assert "images posed" in (tmp_path / "site.html").read_text()
    assert f"{len(poses)} of {len(poses)} images" in capsys.readouterr().out


def test_all_images_of_a_bag_get_a_pose_also_after_a_stop(tmp_path, monkeypatch):
    poses, file = np.stack([pose_at(k, 2 * COUNT) for k in range(2 * COUNT)]), tmp_path / "poses.tum"
    bag = write_bag(tmp_path / "bag", poses)
    words = ("bag", bag, "--path-length", "3.2", "--all-poses", file)
    with monkeypatch.context() as stopped:
        stopped.setattr("pixloc_ros.cli.map_drive.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert make(tmp_path, *words)[0] == 130
    monkeypatch.setattr("pixloc_ros.evaluation.drive_poses._Between.localize", None)  # they are all there
    code, map_, report = make(tmp_path, *words)
    found = read_tum(file)
    keyframe = np.searchsorted(found.stamps_ns, map_.keyframe_stamp_ns)
    check_all_poses(map_, found.map_from_body.numpy(), keyframe, poses, report["images_posed"])


def test_all_poses_are_for_drives_without(tmp_path, capsys):
    for words, said in ((("--poses", "bag"), "leave it out"), (("--poses", "images"), "is a folder")):
        bag = tmp_path / "bag"
        if not bag.exists():
            write_bag(bag, [pose_at(k, 3) for k in range(3)])
        assert make(tmp_path, "bag", bag, *words, "--all-poses", tmp_path)[0] == 2
        assert said in capsys.readouterr().err


def test_video_without_calibration(tmp_path, capsys):
    video = write_video(tmp_path / "walk.avi", [pose_at(k, COUNT) for k in range(COUNT)])
    _, map_, report = make(tmp_path, "video", video, "--all-poses", tmp_path / "poses.tum")
    assert report["images_posed"] == [COUNT, COUNT]
    assert report["scale_uncertainty"] is None and "unknown" in report["scale"]
    assert any("the camera was refined" in note for note in report["notes"])
    assert "unknown" in capsys.readouterr().out
    assert len(map_.keyframe_names) >= COUNT // 2


def test_the_distortion_of_an_unknown_camera_is_refined(tmp_path):
    lens = Camera.from_colmap("SIMPLE_RADIAL", WIDTH, HEIGHT, (FOCAL, WIDTH / 2, HEIGHT / 2, -0.25))
    folder = write_images(tmp_path / "images", [pose_at(k, COUNT) for k in range(COUNT)], lens)
    _, map_, _ = make(tmp_path, "images", folder)
    (found,) = map_.cameras
    assert found.model == "radial" and found.params[0] == found.params[1]
    focal, bend = float(found.params[0]), float(found.params[4])  # this drive hardly tells a longer lens that bends more
    assert focal == pytest.approx(FOCAL, rel=0.15) and bend * (FOCAL / focal) ** 2 == pytest.approx(-0.25, abs=0.02)


def test_bag_without_poses_is_mapped_from_its_images(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", [pose_at(k, COUNT) for k in range(COUNT)])
    _, map_, _ = make(tmp_path, "bag", bag, "--path-length", "3.2")
    assert "from the images" in capsys.readouterr().out
    check(map_, ((map_.keyframe_stamp_ns - START) // STEP).tolist(), start=(0.2, 0.0, 0.5))


def test_odometry_gives_the_scale_and_images_correct_its_drift(tmp_path):
    said, bias = [], np.eye(4)
    bias[:2, :2] = ((np.cos(0.01), -np.sin(0.01)), (np.sin(0.01), np.cos(0.01)))

    def wheels(k, base):
        """Steps that are 2 % too long, each turned by 0.6 degrees more than it was."""
        if said:
            step = np.linalg.inv(said[-1][0]) @ base
            step[:3, 3] *= 1.02
            said.append((base, said[-1][1] @ step @ bias))
        else:
            said.append((base, base))
        return said[-1][1]

    bag = write_bag(tmp_path / "bag", [pose_at(k, COUNT) for k in range(COUNT)], wheels)
    _, map_, report = make(tmp_path, "bag", bag, "--poses", "images")
    assert "odometry" in report["scale"] and 0.02 <= report["scale_uncertainty"] < 0.05
    assert report["posed"][0] == report["posed"][1]
    check(map_, ((map_.keyframe_stamp_ns - START) // STEP).tolist(), 1 / 1.02, start=(0.2, 0.0, 0.5))


@pytest.mark.parametrize(
    ("poses", "said"),
    [
        ([turning_at(k) for k in range(10)], "only turned"),
        ([pose_at(5 * (k % 3), 16) @ np.diag((1, 1, 1, 1)) for k in range(3)], "drive further"),
    ],
    ids=["turning", "short"],
)
def test_weak_drives_are_refused(tmp_path, poses, said, capsys):
    code, _, _ = make(tmp_path, "images", write_images(tmp_path / "images", poses), "--camera", LINE)
    assert code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "site.pixmap").exists()


def test_a_crash_of_the_library_is_an_error_with_its_reason(tmp_path, images, monkeypatch, capsys):
    monkeypatch.setattr(mapper, "__name__", "os; import os; os.abort()")  # what the process runs
    code, _, _ = make(tmp_path, "images", images, "--camera", LINE)
    assert code == 2 and "crashed" in capsys.readouterr().err


def restarted(k, base):
    """Wheels whose driver starts anew at the middle of the drive."""
    middle = pose_at(COUNT, 2 * COUNT) @ np.linalg.inv(BASE_FROM_CAMERA)
    return base if k < COUNT else np.linalg.inv(middle) @ base


def test_images_bridge_odometry_that_starts_anew(tmp_path, capsys):
    poses = [pose_at(k, 2 * COUNT) for k in range(2 * COUNT)]
    _, map_, report = make(tmp_path, "bag", write_bag(tmp_path / "bag", poses, restarted), "--poses", "images")
    truth = np.stack(poses)[(map_.keyframe_stamp_ns - START) // STEP, :3, 3]
    factor, rmse = similarity(map_.map_from_keyframe[:, :3, 3].numpy(), truth)
    assert rmse < 0.01 and factor == pytest.approx(1.0, abs=0.01)
    assert report["posed"][0] == report["posed"][1]
    assert any("the odometry contradicts the images" in note for note in report["notes"])
    assert "the images bridge it" in capsys.readouterr().out


@pytest.mark.parametrize(("posed", "moves", "said"), [(5, True, "do not bridge"), (10, False, "no scale elsewhere")])
def test_bridges_that_cannot_be_are_an_error(posed, moves, said):
    odometry, poses = (np.broadcast_to(np.eye(4), (10, 4, 4)).copy() for _ in range(2))
    poses[:, 0, 3] = np.arange(10)
    odometry[:, 0, 3] = moves * np.arange(10)
    with pytest.raises(InputError, match=f"contradicts the images.*5 to 6.*{said}"):
        bridges(odometry, np.array([4]), np.arange(posed), poses[:posed])


def drifting(share, turn):
    """Odometry that is too long by a share, and turns by so much an image."""

    def odometry(k, odom_from_base):
        drifted = odom_from_base.copy()
        angle = turn * k
        drifted[:3, 3] *= 1 + share
        about_z = np.eye(4)
        about_z[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return about_z @ drifted

    return odometry


def test_several_bags_with_poses_are_refused_with_the_way_out(tmp_path, capsys):
    bags = [write_bag(tmp_path / name, [pose_at(k, COUNT) for k in range(2)]) for name in ("a", "b")]
    assert make(tmp_path, "bag", *bags, "--poses", "bag")[0] != 0
    assert "pixloc map merge" in capsys.readouterr().err


def test_odometry_that_stands_still_is_refused(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", [pose_at(k, COUNT) for k in range(COUNT)], lambda k, base: np.eye(4))
    code, _, _ = make(tmp_path, "bag", bag, "--poses", "images")
    assert code == 2 and "check that the camera moves" in capsys.readouterr().err


def test_work_goes_on_after_a_stop(tmp_path, images, monkeypatch, capsys):
    words = ("images", images, "--camera", LINE, "--path-length", "6")
    with monkeypatch.context() as stopped:
        stopped.setattr("pixloc_ros.mapping.build.posed_frames.triangulate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert make(tmp_path, *words)[0] == 130
    monkeypatch.setattr(mapper, "_run", None)  # poses are there
    code, _, report = make(tmp_path, *words)
    assert code == 0 and "going on with" in capsys.readouterr().out


@pytest.mark.parametrize(("static", "said"), [(True, "odometry from /odom"), (False, "give --base-from-camera")])
def test_odometry_needs_the_mount(tmp_path, static, said):
    bag = write_bag(tmp_path / "bag", [pose_at(k, 3) for k in range(3)], lambda k, base: base, static=static)
    with DriveBag(bag, BagOptions(truth="none")) as frames:
        assert frames.has_odometry == static and said in frames.said
        assert len(list(frames())) == 3

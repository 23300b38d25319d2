# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of robots with several cameras."""

import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scenes import simulated_scene

from pixloc_ros.cli.main import main
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import evaluate, run_figures
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagOptions
from pixloc_ros.io.frames import UnusableFrame
from pixloc_ros.io.rig_images import MAX_AGE_NS, open_bag
from pixloc_ros.io.trajectory import read_tum
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.posed_bag import PosedBag, PosedBagOptions
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, build_map_from_posed_frames, points_of_posed_frames
from pixloc_ros.mapping.build.rig_frames import RigFrames
from pixloc_ros.mapping.build.triangulation import TriangulationOptions
from pixloc_ros.report.run_report import scene_of

pytest.importorskip("pycolmap")
CAMERAS = ("front", "left", "back")
FEW = PosedMapOptions(triangulation=TriangulationOptions(features=800))


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return simulated_scene(tmp_path_factory, cameras=CAMERAS, imu=True, seconds=2.5)


class HalfSize(RigFrames):
    """With images of the left camera that are smaller than the others'."""

    def companions(self, stamps_ns):
        for frame in super().companions(stamps_ns):
            if not isinstance(frame, UnusableFrame) and frame.name.startswith("left/"):
                camera = frame.camera.scaled(0.5, 0.5, frame.camera.width // 2, frame.camera.height // 2)
                image = cv2.resize(frame.image, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
                frame = replace(frame, image=image, camera=camera, calibration=None)
            yield frame


def rig_frames(rig, kind=RigFrames, names=CAMERAS):
    return kind(names, lambda name: PosedBag(rig.drive, PosedBagOptions(camera=name)))


def errors_of(rig, map_):
    """Metres and radians [K, 2] of the keyframes' poses, map_from_base against the truth."""
    truth = read_tum(rig.folder / "drive_truth.tum")
    mounts = json.loads((rig.folder / "simulation.json").read_text())["base_from_camera"]
    at, known = truth.at(map_.keyframe_stamp_ns, 10**9)
    assert known.all()
    mounts = torch.tensor([mounts[name.split("/")[0]] for name in map_.keyframe_names], dtype=torch.float64)
    return at, map_.map_from_keyframe @ se3.inverse(mounts)


def test_keyframes_of_one_moment_are_in_the_map_together(rig, tmp_path):
    extractor, work = load_extractor(), WorkFolder(tmp_path / "work", {})
    with rig_frames(rig, HalfSize) as frames:
        map_, report = build_map_from_posed_frames(frames, extractor, work, FEW)
    stamps = {name: [] for name in CAMERAS}
    for name, stamp_ns in zip(map_.keyframe_names, map_.keyframe_stamp_ns.tolist()):
        camera, _, file = name.partition("/")
        assert file == f"{stamp_ns}.png"
        stamps[camera].append(stamp_ns)
    front = np.array(stamps["front"])
    for name in CAMERAS[1:]:
        assert len(stamps[name]) >= len(front) - 1  # none is within reach of the last one, maybe
        assert np.abs(np.array(stamps[name])[:, None] - front).min(1).max() <= MAX_AGE_NS
    truth, poses = errors_of(rig, map_)
    assert float(se3.pose_difference(truth, poses)[0].max()) < 2e-3  # each at its own stamp; interpolated
    assert sorted(camera.width for camera in map_.cameras) == [160, 320]
    assert report.points_per_keyframe[0] > 50
    localizer = Localizer(map_, extractor)
    tracker = localizer.tracker()
    with open_bag(rig.drive, BagOptions(), CAMERAS) as bag:
        run = offline.run_bag(tracker, bag)
        pictures = scene_of(evaluate(run), localizer, bag).pictures
    assert {picture.image.shape for picture in pictures} == {(720, 960, 3)}  # two rows of two
    figures = run_figures(run)
    assert figures["tracked_fraction"] == 1.0 and figures["translation_error_median_m"] < 0.01 and not tracker.rig.said


def test_poses_from_the_images_and_odometry(rig, tmp_path, capsys):
    out = tmp_path / "site.pixmap"
    assert main(["map", "bag", str(rig.drive), "-o", str(out), "--cameras", "front,left", "--poses", "images"]) == 0
    assert "cameras front, left; odometry from /odom" in capsys.readouterr().out
    map_ = Map.open(out)
    truth, poses = errors_of(rig, map_)
    poses = truth[0] @ se3.inverse(poses[0]) @ poses
    metres, radians = se3.pose_difference(truth, poses)
    assert {name.split("/")[0] for name in map_.keyframe_names} == {*CAMERAS[:2]}
    assert float(metres.median()) < 0.03 and float(radians.median()) < 0.01
    others = torch.tensor([not name.startswith("front/") for name in map_.keyframe_names])
    assert float(metres[others].max()) < 1.5 * float(metres[~others].max()) + 0.005


def test_interrupted_work_goes_on(rig, tmp_path):
    def stop(done, of, what):
        if what == at or (done == 3 and what == "keyframes of the other cameras"):
            raise KeyboardInterrupt

    work = WorkFolder(tmp_path / "work", {})
    for at in ("", "features"):
        with rig_frames(rig, names=CAMERAS[:2]) as frames, pytest.raises(KeyboardInterrupt):
            points_of_posed_frames(frames, work, progress=stop if not at else lambda *now: stop(-1, *now[1:]))
        assert work.path("companions.json").is_file() == bool(at)
    stored = [json.loads(path.read_text()) for path in sorted(work.path("companions").iterdir())]
    assert len(stored) == json.loads(work.path("companions.json").read_text())["stored"] >= 5
    assert all(one["name"] == f"left/{one['stamp_ns']}.png" and work.path(f"images/{one['name']}").is_file() for one in stored)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--cameras", "front,top"], "camera top: .* has no images below /top"),
        (["--cameras", "front,front"], "named twice"),
        (["--cameras", "front,left", "--base-frame", "nowhere"], "camera front: no static transform from nowhere"),
        (["--cameras", "front,left", "--poses", "images", "--base-frame", "nowhere"], "camera front: /odom is the odometry of"),
        (["--cameras", "front,left", "--image-topic", "/front/image_raw"], "--image-topic is for one camera"),
        (["--cameras", "front,left", "--refine"], "--refine learns one mount"),
        (["--cameras", "front,left", "--poses", "images", "--all-poses", "all.tum"], "--all-poses is for one camera"),
        (["--cameras", "front,left", "--poses", "images", "--odometry-topic", "none"], "the scale must be known"),
    ],
)
def test_what_cannot_be_done_is_said(rig, tmp_path, capsys, more, said):
    assert main(["map", "bag", str(rig.drive), "-o", str(tmp_path / "x.pixmap"), *more]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_several_bags_with_cameras_are_refused(rig, tmp_path, capsys):
    command = ["map", "bag", str(rig.drive), str(rig.folder), "-o", str(tmp_path / "x.pixmap"), "--poses", "images"]
    assert main([*command, "--cameras", "front,left"]) == 2
    assert "--cameras is for one bag" in capsys.readouterr().err

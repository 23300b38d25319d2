# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Public data sets, from excerpts in their own layouts to a map and a pose that is right: wrong conventions do not get there."""

import json

import cv2
import layouts
import numpy as np
import pytest
import torch
from layouts import KINECT, OPTICAL, START_S, Studio, check_twist, lens, pixloc, save
from scipy.spatial.transform import Rotation

from pixloc_ros.datasets import output, recording
from pixloc_ros.datasets.odometry import ERRORS, odometry_from_truth
from pixloc_ros.datasets.openloris import read_openloris_sequence
from pixloc_ros.datasets.sequences import read_euroc_sequence, read_kitti_sequence, read_tum_sequence, tum_camera
from pixloc_ros.datasets.seven_scenes import read_seven_scenes_sequence
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.trajectory import Trajectory, read_benchmark_poses, read_tum
from pixloc_ros.localization import Localizer
from pixloc_sim.drives import OdometryErrors

KINECT_DEPTH = lens("pinhole", 640, 480, 585.0, 585.0, 319.5, 239.5)
COLOUR_FROM_DEPTH = np.array(  # of LIRIS' calibration
    [
        [0.9999651801256764, 0.002676512646895034, -0.00790410123130009, -0.025558943178152542],
        [-0.00274093112813167, 0.9999630280302759, -0.0081504520778013286, 0.00010109636268061706],
        [0.0078819942130445332, 0.0081718328771890631, 0.9999355455801403, 0.0020318321729487039],
        [0, 0, 0, 1],
    ]
)
SECONDS = np.arange(12) * 0.4
SMALL = KINECT.scaled(0.5, 0.5, 320, 240)


@pytest.fixture(scope="module")
def studio():
    return Studio()


@pytest.fixture(scope="module")
def shots(studio):
    return studio.shoot(KINECT, SECONDS)


@pytest.fixture(scope="module")
def small(studio):
    return studio.shoot(SMALL, SECONDS)


def check_drive(folder, studio, map_from_world=None, start_ns=START_S * 10**9, odometry="/odom_simulated"):
    """The truth is where the camera was, and an image of the drive is found there in the map."""
    map_from_world = np.eye(4) if map_from_world is None else map_from_world
    truth = read_tum(folder / "truth.tum")
    with BagReader(folder / "drive") as bag:
        assert bag.odometry_topic == odometry and bag.truth_topic == "/ground_truth/pose"
        cameras = truth.map_from_body @ bag.base_from_camera
        frames, recorded, wheels = list(bag.frames()), bag.truth(), bag.odometry()
        check_twist([message for _, message in bag.messages([odometry])])
    assert np.array_equal([frame.stamp_ns for frame in frames], truth.stamps_ns)
    torch.testing.assert_close(recorded.map_from_body, truth.map_from_body, atol=1e-9, rtol=0)
    world = np.stack([map_from_world @ studio.pose((stamp - start_ns) * 1e-9) for stamp in truth.stamps_ns])
    distance, angle = se3.pose_difference(cameras, torch.from_numpy(world))
    assert float(distance.max()) < 2e-3 and float(angle.max()) < 1e-3
    assert wheels.stamps_ns[0] <= truth.stamps_ns[0] and wheels.stamps_ns[-1] >= truth.stamps_ns[-1]
    localizer = Localizer.open(folder / "map.pixmap")
    slip = se3.se3_exp(torch.tensor([0.05, -0.04, 0.05, 0.02, -0.03, 0.02], dtype=torch.float64))
    for k in (len(frames) // 3, 2 * len(frames) // 3):
        found = localizer.aligner.localize(frames[k].image, frames[k].camera, cameras[k] @ slip)
        distance, angle = se3.pose_difference(found.map_from_camera, cameras[k])
        assert found.success and float(distance) < 0.02 and float(angle) < np.radians(0.4), (k, distance, np.degrees(angle))
    summary = json.loads((folder / "dataset.json").read_text())
    readme = (folder / "README.md").read_text()
    assert summary["images"] == len(frames) and summary["odometry"] == odometry
    assert "pixloc track --map" in readme and ("made from the ground truth" in readme) == ("simulated" in odometry)


def check_recording(recording_, studio, camera, start_ns=START_S * 10**9, map_from_world=None, depth=True):
    """Poses, calibration and depth as read are those that were rendered."""
    assert (recording_.camera.width, recording_.camera.height) == (camera.width, camera.height)
    torch.testing.assert_close(recording_.camera.params, camera.params, atol=1e-6, rtol=0)
    stamps, bases = recording_.posed()
    poses = bases @ recording_.base_from_camera
    map_from_world = np.eye(4) if map_from_world is None else map_from_world
    worlds = [studio.pose((stamp - start_ns) * 1e-9) for stamp in stamps]
    distance, angle = se3.pose_difference(poses, torch.from_numpy(map_from_world @ np.stack(worlds)))
    assert float(distance.max()) < 2e-3 and float(angle.max()) < 1e-3
    assert recording_.pictures.has_depth == depth
    chosen = int(stamps[len(stamps) // 2])
    (picture,) = recording_.pictures.read(lambda stamp: stamp == chosen)
    if not depth:
        assert picture.depth is None
        return
    seen, exact = picture.depth(), studio.depth(camera, worlds[len(stamps) // 2])
    known = seen > 0
    assert known.mean() > 0.8 and np.median(np.abs(seen - exact)[known] / exact[known]) < 5e-4  # moved the wrong way: 1.5e-3


def test_tum(studio, tmp_path, capsys):
    camera = lens("pinhole", 640, 480, 535.4, 539.2, 320.1, 247.6)
    folder = tmp_path / "rgbd_dataset_freiburg3_workshop"
    layouts.write_tum(folder, studio, studio.shoot(camera, SECONDS))
    check_recording(read_tum_sequence(folder), studio, camera)
    assert pixloc(f"dataset tum {folder} -o {tmp_path}/out") == 0
    assert "CC BY 4.0" in capsys.readouterr().out
    check_drive(tmp_path / "out", studio)


@pytest.mark.parametrize(
    "name, fx, fy, cx, cy, distortion",
    [
        ("rgbd_dataset_freiburg1_desk", 517.3, 516.5, 318.6, 255.3, [0.2624, -0.9531, -0.0054, 0.0026, 1.1633]),
        ("fr2_xyz", 520.9, 521.0, 325.1, 249.7, [0.2312, -0.7849, -0.0033, -0.0001, 0.9172]),
    ],
)
def test_tum_calibration_is_opencvs(name, fx, fy, cx, cy, distortion, tmp_path):
    points = np.random.default_rng(0).uniform([-0.5, -0.4, 1], [0.5, 0.4, 1.2], (50, 3))
    expected, _ = cv2.projectPoints(
        points, np.zeros(3), np.zeros(3), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array(distortion)
    )
    pixels, valid = tum_camera(tmp_path / name).project(torch.from_numpy(points))
    assert bool(valid.all())
    np.testing.assert_allclose(pixels.numpy(), expected[:, 0], atol=1e-9)


def test_seven_scenes(studio, shots, tmp_path):
    scene = tmp_path / "workshop"
    layouts.write_seven_scenes(scene, shots[::2], shots[1::2], lambda pose: studio.depth(KINECT_DEPTH, pose), COLOUR_FROM_DEPTH)
    # Stamps are made up there, so poses and depth are compared by number.
    test = read_seven_scenes_sequence(scene, "seq-02")
    stamps, bases = test.posed()
    expected = torch.from_numpy(np.stack([shot.pose for shot in shots[1::2]]))
    distance, angle = se3.pose_difference(bases @ test.base_from_camera, expected)
    assert float(distance.max()) < 1e-5 and float(angle.max()) < 1e-5
    assert np.diff(stamps)[0] == pytest.approx(1e9 / 30, abs=1)
    seen = next(iter(test.pictures.read(lambda stamp: True))).depth()
    assert (seen > 0).mean() > 0.75  # the depth camera sees less: (525 / 585)²
    assert np.median(np.abs(seen - shots[1].depth)[seen > 0] / shots[1].depth[seen > 0]) < 2e-3
    assert seen.max() < 20, "65535 is no depth"
    out = tmp_path / "out"
    assert pixloc(f"dataset 7scenes {scene} -o {out}") == 0
    torch.testing.assert_close(read_tum(out / "truth.tum").map_from_body, bases, atol=1e-9, rtol=0)
    assert pixloc(f"localize --map {out}/map.pixmap --images {scene} --cameras {out}/queries.txt -o {out}/poses.txt") == 0
    truth, found = read_benchmark_poses(out / "queries_truth.txt"), read_benchmark_poses(out / "poses.txt")
    assert list(truth) == [f"seq-02/frame-{k:06d}.color.png" for k in range(len(shots[1::2]))] and list(found) == list(truth)
    distance, angle = se3.pose_difference(*(se3.inverse(torch.stack(list(poses.values()))) for poses in (truth, found)))
    assert float(distance.median()) < 0.01 and float(angle.median()) < np.radians(0.2)


def test_euroc(studio, tmp_path):
    camera = lens("plumb_bob", 376, 240, 229.3, 228.6, 183.4, 123.9, -0.2834, 0.074, 1.9e-4, 1.8e-5, 0.0)
    body_from_camera = np.eye(4)  # the IMU of the VI sensor: its x axis points up
    body_from_camera[:3] = [
        [0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975],
        [0.999557249008, 0.0149672133247, 0.025715529948, -0.064676986768],
        [-0.0257744366974, 0.00375618835797, 0.999660727178, 0.00981073058949],
    ]
    layouts.write_euroc(tmp_path / "V1_01_easy", studio.shoot(camera, SECONDS[::2]), camera, body_from_camera, studio)
    layouts.write_euroc(tmp_path / "V1_02_medium", studio.shoot(camera, SECONDS[1::2]), camera, body_from_camera, studio)
    one = read_euroc_sequence(tmp_path / "V1_02_medium")
    check_recording(one, studio, camera, depth=False)
    torch.testing.assert_close(one.base_from_camera, torch.from_numpy(body_from_camera), atol=1e-5, rtol=0)
    assert pixloc(f"dataset euroc {tmp_path}/V1_02_medium --map-sequence {tmp_path}/V1_01_easy -o {tmp_path}/out") == 0
    check_drive(tmp_path / "out", studio)


def test_kitti(studio, small, tmp_path):
    layouts.write_kitti(tmp_path / "dataset", small, SMALL)
    start = small[0].pose.copy()  # of camera 2: camera 0 stands 6 cm to the right
    start[:3, 3] += 0.06 * start[:3, 0]
    map_from_world = OPTICAL @ np.linalg.inv(start)
    one = read_kitti_sequence(tmp_path / "dataset", "07", "image_2")
    check_recording(one, studio, SMALL, recording.EPOCH_NS, map_from_world, False)
    assert pixloc(f"dataset kitti {tmp_path}/dataset --sequence 07 --camera-name image_2 --map-every 2 -o {tmp_path}/out") == 0
    check_drive(tmp_path / "out", studio, map_from_world, recording.EPOCH_NS)


def test_openloris(studio, small, tmp_path):
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = Rotation.from_quat([-0.49676, 0.49988, -0.49511, 0.50815]).as_matrix()
    base_from_camera[:3, 3] = 0.2265, -0.0511, 0.916
    layouts.write_openloris(tmp_path / "office1-1", small[::2], SMALL, base_from_camera, studio)
    layouts.write_openloris_bag(tmp_path / "office1-2.bag", small[1::2], SMALL, base_from_camera, studio)
    for path in (tmp_path / "office1-1", tmp_path / "office1-2.bag"):
        one = read_openloris_sequence(path)
        check_recording(one, studio, SMALL)
        motion = one.odometry.odom_from_base
        true = one.map_from_base.at(one.odometry.stamps_ns, 10**9)[0]
        torch.testing.assert_close(se3.inverse(motion[:1]) @ motion, se3.inverse(true[:1]) @ true, atol=2e-5, rtol=0)
        # The folder has velocities; those of the bag are zero, as drivers write that measure none.
        assert (one.odometry.twist == [0.5, 0, 0, 0, 0, 0.1]).all() == path.is_dir()
    # The map from the folder, the drive from the bag.
    assert pixloc(f"dataset openloris {tmp_path}/office1-2.bag --map-sequence {tmp_path}/office1-1 -o {tmp_path}/out") == 0
    check_drive(tmp_path / "out", studio, odometry="/odom")
    report = json.loads((tmp_path / "out" / "map_report.json").read_text())
    assert report["reprojection_px"] is None, "points must come from depth"


def test_odometry_from_truth_is_wrong_as_stated():
    stamps = np.arange(2000, dtype=np.int64) * 10_000_000
    twist = torch.tensor([0.4, 0.05, -0.02, 0.05, -0.1, 0.3], dtype=torch.float64)
    poses = se3.se3_exp(torch.from_numpy(stamps * 1e-9)[:, None] * twist)
    truth = Trajectory(stamps, poses)
    exact = odometry_from_truth(truth, 0, int(stamps[-1]), 0, OdometryErrors(1, 1, 0, 0, 0))
    at = truth.at(exact.stamps_ns, 10**9)[0]
    torch.testing.assert_close(exact.odom_from_base, se3.inverse(at[:1]) @ at, atol=1e-9, rtol=0)
    np.testing.assert_allclose(exact.twist, np.tile(twist.numpy(), (len(exact.twist), 1)), atol=1e-9)
    wrong = odometry_from_truth(truth, 0, int(stamps[-1]), 1)
    same = odometry_from_truth(truth, 0, int(stamps[-1]), 1)
    assert torch.equal(wrong.odom_from_base, same.odom_from_base)
    step = se3.se3_log(se3.inverse(wrong.odom_from_base[:-1]) @ wrong.odom_from_base[1:]).numpy()
    true = twist.numpy() / 50
    mean = true * np.repeat([ERRORS.scale, ERRORS.yaw_scale], 3)
    mean[5] += ERRORS.yaw_per_metre * np.linalg.norm(true[:3])
    deviation = ERRORS.noise * np.sqrt(np.repeat([np.linalg.norm(true[:3]), np.linalg.norm(true[3:])], 3))
    assert (np.abs(step.mean(0) - mean) < 4 * deviation / np.sqrt(len(step))).all()
    np.testing.assert_allclose(step.std(0), deviation, rtol=0.15)


def test_work_that_was_killed_goes_on_and_an_output_is_never_overwritten(small, tmp_path, monkeypatch, capsys):
    layouts.write_kitti(tmp_path / "dataset", small[:8], SMALL)
    arguments = f"dataset kitti {tmp_path}/dataset --sequence 07 --camera-name image_2 -o {tmp_path}/out"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output, "write_drive_bag", killed)
        assert pixloc(arguments) == 130
    assert not (tmp_path / "out").exists() and (tmp_path / "out.work" / "result" / "map.pixmap").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(output, "build_map_from_posed_frames", killed)  # the map is there
        assert pixloc(arguments) == 0
    assert "going on with" in capsys.readouterr().out
    assert (tmp_path / "out" / "drive").is_dir() and not (tmp_path / "out.work").exists()
    assert pixloc(arguments) == 2 and "exists" in capsys.readouterr().err


def test_broken_images_stop_neither_map_nor_drive(small, tmp_path, capsys):
    layouts.write_kitti(tmp_path / "dataset", small, SMALL)
    for number in (0, 1):  # the first of the map and the first of the drive
        path = tmp_path / "dataset" / "sequences" / "07" / "image_2" / f"{number:06d}.png"
        path.write_bytes(path.read_bytes()[:100])
    out = tmp_path / "out"
    assert pixloc(f"dataset kitti {tmp_path}/dataset --sequence 07 --camera-name image_2 --map-every 2 -o {out}") == 0
    assert "Images left out of the map: 1, such as" in (out / "README.md").read_text()
    assert pixloc(f"track --map {out}/map.pixmap {out}/drive -o {out}/run") == 0


def break_file(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_bad_input_is_told_in_one_line(small, tmp_path, capsys):
    root = tmp_path / "dataset"
    layouts.write_kitti(root, small[:4], SMALL)
    out, folder = f"-o {tmp_path}/out", root / "sequences" / "07"
    kitti = f"dataset kitti {root} {out} --camera-name image_2 --sequence"
    cases = [
        (f"dataset kitti {tmp_path}/nothing {out} --sequence 07", "no folder"),
        (f"{kitti} 11", "one of the sequences"),
        (f"{kitti} 07 --map-every 1", "--map-every 1"),
        (f"dataset kitti {root} {out} --sequence 07", "none of its 4 images"),
        (f"{kitti} 07 --camera-name image_9", "no camera image_9"),
        (f"dataset tum {folder} {out}", "freiburg1, 2, 3"),
        (f"dataset euroc {folder} {out}", "sensor.yaml"),
        (f"dataset openloris {folder} {out}", "sensors.yaml"),
        (f"dataset 7scenes {folder} {out}", "Split.txt"),
        (f"dataset 7scenes {folder} --model {folder} {out}", "go together"),
        (f"dataset euroc {folder} --map-sequence {folder} {out}", "the drive's own"),
    ]
    for arguments, words in cases:
        capsys.readouterr()
        assert pixloc(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, (arguments, error)
    for file, old, new, words in (
        (folder / "times.txt", "\n", " 1\n", "2 words instead of 1"),
        (folder / "calib.txt", "P2:", "Q2:", "no line 'P2:'"),
        (root / "poses" / "07.txt", "1.000000e+00", "nan", "NaN or infinite"),
        (root / "poses" / "07.txt", "1.000000e+00", "5.0", "holds no rotation"),
    ):
        text = file.read_text()
        break_file(file, old, new)
        assert pixloc(f"{kitti} 07") == 2 and words in capsys.readouterr().err, (file, new)
        file.write_text(text)
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_than_the_calibration_are_unusable(small, tmp_path):
    stamps = {k * 10**9: tmp_path / f"{k}.png" for k in range(3)}
    for path in stamps.values():
        save(path, small[0].image[:200])
    pictures = recording.picture_files("set", stamps)
    truth = Trajectory(pictures.stamps_ns, torch.eye(4, dtype=torch.float64).repeat(3, 1, 1))
    one = recording.Recording("set", SMALL, pictures, truth, torch.eye(4, dtype=torch.float64))
    reasons = [frame.reason for frame in recording.frames_for_map([one], False)(lambda stamp: True)]
    assert len(reasons) == 3 and all("320x200 but the calibration is for 320x240" in reason for reason in reasons)


def test_real_sequence_in_tum_layout(shared_data, tmp_path):
    """Every second of its map images against the others; its poses are good to some 0.2 degrees."""
    options = "--depth-scale 1000 --map-every 2 --keyframe-shift 0.2"
    assert pixloc(f"dataset tum {shared_data}/tum_fr1_rpy/tum {options} -o {tmp_path}/out") == 0
    truth = read_tum(tmp_path / "out" / "truth.tum")
    localizer = Localizer.open(tmp_path / "out" / "map.pixmap")
    errors = []
    with BagReader(tmp_path / "out" / "drive") as bag:
        for frame, pose in zip(bag.frames(), truth.map_from_body @ bag.base_from_camera):
            slip = se3.se3_exp(torch.tensor([0.02, -0.02, 0.02, 0.01, 0.02, 0.01], dtype=torch.float64))
            found = localizer.aligner.localize(frame.image, frame.camera, pose @ slip)
            errors.append([float(error) for error in se3.pose_difference(found.map_from_camera, pose)])
    distance, angle = np.median(errors, axis=0)
    assert distance < 0.02 and np.degrees(angle) < 0.5

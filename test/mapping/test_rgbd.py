# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import FakeExtractor, look_at, pinhole, plane_view, texture

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.tum import read_rgbd_sequence
from pixloc_ros.mapping.build import build_map_from_rgbd
from pixloc_ros.mapping.build.rgbd import find_depth_scale

CAMERA = pinhole(320, 240, 250.0)
CAMERA_LINE = "SIMPLE_PINHOLE 320 240 250 160 120"
START = 1_305_031_229


def pose_at(seconds: float) -> torch.Tensor:
    """A camera that moves sideways at 0.3 m/s above a plane, and turns about 9 degrees per second."""
    centre = np.array([0.3 * seconds - 0.6, -1.0 + 0.1 * seconds, 1.6])
    return look_at(centre, (0.6 * seconds - 1.0, 0.1, 0.0))


def write_sequence(folder, stamps, depth_delay=0.0, scale=5000.0, pose=pose_at, pose_rate=100, bias=1.0):
    picture = texture()
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    rgb, depth = ["# color images", "# timestamp filename"], ["# depth maps"]
    for seconds in stamps:
        later = seconds + depth_delay
        cv2.imwrite(str(folder / "rgb" / f"{seconds:.3f}.png"), plane_view(pose(seconds), CAMERA, picture)[0])
        metres = plane_view(pose(later), CAMERA, picture)[1]
        cv2.imwrite(str(folder / "depth" / f"{later:.3f}.png"), np.round(metres * bias * scale).astype(np.uint16))
        rgb.append(f"{START + seconds:.6f} rgb/{seconds:.3f}.png")
        depth.append(f"{START + later:.6f} depth/{later:.3f}.png")
    truth = ["# timestamp tx ty tz qx qy qz qw"]
    for seconds in np.arange(stamps[0] - 0.05, stamps[-1] + 0.1, 1 / pose_rate):
        t = pose(seconds)
        numbers = [*t[:3, 3].tolist(), *se3.quaternion_from_rotation(t[:3, :3]).tolist()]
        truth.append(f"{START + seconds:.4f} " + " ".join(f"{n:.9f}" for n in numbers))
    for name, lines in (("rgb", rgb), ("depth", depth), ("groundtruth", truth)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "camera.txt").write_text(f"# camera\n{CAMERA_LINE}\n")
    return folder


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    return write_sequence(tmp_path_factory.mktemp("tum") / "plane", np.arange(0, 3, 0.25))


@pytest.fixture
def copy(sequence, tmp_path):
    """The sequence with its own lists, so that they can be spoilt."""
    for name in ("rgb", "depth", "groundtruth", "camera"):
        (tmp_path / f"{name}.txt").write_text((sequence / f"{name}.txt").read_text())
    for name in ("rgb", "depth"):
        (tmp_path / name).symlink_to(sequence / name)
    return tmp_path


def test_stamps_are_exact_and_poses_interpolated(sequence):
    frames = read_rgbd_sequence(sequence)
    assert [frame.stamp_ns for frame in frames] == [START * 10**9 + k * 250_000_000 for k in range(12)]
    for k, frame in enumerate(frames):
        distance, angle = se3.pose_difference(frame.map_from_camera, pose_at(0.25 * k))
        assert distance < 1e-4 and angle < 1e-4


def test_association_within_20_ms(copy):
    text = (copy / "depth.txt").read_text()
    (copy / "depth.txt").write_text(
        text.replace(f"{START + 1}.000000", f"{START + 1}.019000").replace(f"{START + 2}.000000", f"{START + 2}.021000")
    )
    stamps = [frame.stamp_ns - START * 10**9 for frame in read_rgbd_sequence(copy)]
    assert 1_000_000_000 in stamps and 2_000_000_000 not in stamps and len(stamps) == 11
    lines = (copy / "groundtruth.txt").read_text().splitlines()
    kept = [line for line in lines if line.startswith("#") or abs(float(line.split()[0]) - START - 1.5) > 0.0211]
    (copy / "groundtruth.txt").write_text("\n".join(kept))
    assert 1_500_000_000 not in [frame.stamp_ns - START * 10**9 for frame in read_rgbd_sequence(copy)]


@pytest.fixture(scope="module")
def built(sequence):
    return build_map_from_rgbd(sequence, FakeExtractor(), working_side=320)


def test_points_lie_on_the_surface_and_are_seen_from_several_places(built):
    map_, report, scale = built
    assert scale.value == 5000 and report.missing == ()
    assert np.quantile(np.abs(map_.xyz[:, 2]), [0.5, 0.95]) == pytest.approx([0, 0], abs=8e-3)
    assert len(map_.xyz) > 300 and map_.track_length.mean() > 3
    assert map_.keyframe_names[0] == "0.000.png" and (np.diff(map_.keyframe_stamp_ns) > 0).all()
    assert map_.quality[map_.track_length > 2].mean() > 0.8


def test_a_corner_of_the_scene_is_one_point(built):
    from scipy.spatial import cKDTree

    xyz = built[0].xyz
    distance, _ = cKDTree(xyz).query(xyz, k=2)
    # Corners are at least 7 pixels apart, about 0.05 m here.
    assert np.quantile(distance[:, 1], 0.05) > 0.02


def test_points_seen_from_several_places_correct_the_depth(tmp_path):
    """Depth that is 2 % too large puts the plane 3 to 4 cm too low."""
    folder = write_sequence(tmp_path / "biased", np.arange(0, 2, 0.25), bias=1.02)
    map_, _, _ = build_map_from_rgbd(folder, FakeExtractor(), depth_scale=5000)
    several = map_.track_length >= 3
    assert several.sum() > 100
    assert np.median(np.abs(map_.xyz[several, 2])) < 0.012
    assert np.median(np.abs(map_.xyz[map_.track_length == 1, 2])) > 0.03


def test_every_observation_projects_into_its_keyframe(built):
    map_ = built[0]
    for k in range(len(map_.keyframe_names)):
        points = map_.observation_point[map_.observations(k)]
        pixels, valid = CAMERA.project(se3.transform(se3.inverse(map_.map_from_keyframe[k]), torch.from_numpy(map_.xyz[points])))
        assert bool((valid & CAMERA.in_image(pixels)).all())


def test_still_frames_make_one_keyframe(tmp_path):
    folder = write_sequence(tmp_path / "still", np.arange(0, 0.5, 0.1), pose=lambda seconds: pose_at(0.02 * seconds))
    map_, _, scale = build_map_from_rgbd(folder, FakeExtractor())
    assert len(map_.keyframe_names) == 1
    assert scale.value == 5000 and "assumed" in scale.reason


@pytest.mark.parametrize("scale", [1000.0, 5000.0])
def test_depth_scale_is_found(tmp_path, scale):
    folder = write_sequence(tmp_path / "a", np.arange(0, 1.5, 0.25), scale=scale)
    found = find_depth_scale(read_rgbd_sequence(folder), CAMERA)
    assert found.value == scale and "found" in found.reason
    map_, _, used = build_map_from_rgbd(folder, FakeExtractor(), depth_scale=2 * scale)
    assert used.reason == "as given"
    assert map_.keyframe_depth.max() < 1.5, "what the user says counts"


def test_depth_scale_is_assumed_where_the_camera_only_turns(tmp_path):
    def turn(seconds):
        return look_at((0, -0.5, 1.6), (0.5 * seconds - 0.5, 0.2, 0))

    for scale in (1000.0, 5000.0):
        frames = read_rgbd_sequence(write_sequence(tmp_path / str(scale), np.arange(0, 2, 0.4), scale=scale, pose=turn))
        found = find_depth_scale(frames, CAMERA)
        assert found.value == scale and "assumed" in found.reason and "--depth-scale" in found.reason


def test_depth_of_another_instant_is_moved_to_the_image(tmp_path):
    """A slanted view that turns fast: 15 ms are several pixels."""

    def fast(seconds):
        return look_at((1.5 * seconds - 1, -1.2, 1.5), (3 * seconds - 1.5, 0.3, 0))

    folder = write_sequence(tmp_path / "late", np.arange(0, 1, 0.125), depth_delay=0.015, pose=fast, pose_rate=200)
    map_, _, _ = build_map_from_rgbd(folder, FakeExtractor(), depth_scale=5000)
    assert np.abs(map_.xyz[:, 2]).mean() < 8e-3
    assert map_.track_length.mean() > 1.5


def test_missing_images_are_told(copy):
    text = (copy / "rgb.txt").read_text()
    (copy / "rgb.txt").write_text(text.replace("rgb/1.250.png", "rgb/lost.png"))
    map_, report, _ = build_map_from_rgbd(copy, FakeExtractor(), depth_scale=5000)
    assert report.missing == ("lost.png",) and "lost.png" not in map_.keyframe_names
    (copy / "rgb").unlink()
    with pytest.raises(InputError, match="none of the 12 images"):
        build_map_from_rgbd(copy, FakeExtractor())


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("rgb", None, "cannot read .*rgb.txt"),
        ("rgb", lambda text: "# nothing\n", "rgb.txt is empty"),
        ("depth", lambda text: text.replace(f"{START}.000000", "noon"), "depth.txt:2: the stamp 'noon' is not a time"),
        ("depth", lambda text: text.replace(f"{START}.000000", "inf"), "depth.txt:2: the stamp 'inf' is not a time"),
        ("depth", lambda text: text.replace(" depth/0.000.png", ""), "depth.txt:2: 1 words where 2 are needed"),
        ("groundtruth", lambda text: text.replace("1.600000000", "nan"), "NaN or infinite numbers"),
        ("groundtruth", lambda text: text.replace("1.600000000", "one"), "are not all numbers"),
        ("groundtruth", lambda text: text.replace(str(START)[:5], "12050"), "use the same clock"),
        ("groundtruth", lambda text: text.replace(str(START)[:5], "99999"), "is not a time"),
        ("camera", None, "give --camera"),
        ("camera", lambda text: text + text, "camera.txt has 2 lines"),
        ("camera", lambda text: "PINHOLE 320 240 1\n", "takes 4 numbers"),
        ("camera", lambda text: "PINHOLE 640 480 500 500 320 240\n", "is 320x240 but the camera is 640x480"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(copy, name, change, message):
    path = copy / f"{name}.txt"
    if change is None:
        path.unlink()
    else:
        assert change(path.read_text()) != path.read_text()
        path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as error:
        build_map_from_rgbd(copy, FakeExtractor())
    assert "\n" not in str(error.value)


def test_depth_that_is_no_depth(copy, sequence):
    (copy / "depth").unlink()
    (copy / "depth").symlink_to(sequence / "rgb")
    with pytest.raises(InputError, match="not a 16-bit depth image"):
        build_map_from_rgbd(copy, FakeExtractor())
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="depth scale"):
            build_map_from_rgbd(sequence, FakeExtractor(), depth_scale=scale)


def test_command_line(sequence, tmp_path, capsys, monkeypatch):
    from pixloc_ros.cli.main import main

    monkeypatch.setattr("pixloc_ros.features.load_extractor", lambda weights: FakeExtractor())
    command = ["map", "rgbd", "--sequence", str(sequence), "-o", str(tmp_path / "room.pixmap")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "depth scale 5000" in out and "room.pixmap: " in out
    assert main([*command, "--camera", "PINHOLE wide"]) == 2
    assert "MODEL WIDTH HEIGHT" in capsys.readouterr().err


def test_shared_sequence(shared_data):
    """Its depth is in millimetres."""
    sequence = shared_data / "tum_fr1_rpy" / "tum"
    frames = read_rgbd_sequence(sequence)
    assert len(frames) == 40
    map_, report, scale = build_map_from_rgbd(sequence, FakeExtractor(), working_side=320)
    assert scale.value == 1000 and "found" in scale.reason and report.missing == ()
    assert len(map_.keyframe_names) > 30 and 0.5 < np.median(map_.keyframe_depth) < 2.0

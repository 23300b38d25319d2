# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.colmap import read_colmap_model

CAMERAS = """# Camera list
1 PINHOLE 100 80 90 91 50 40
7 SIMPLE_RADIAL 64 48 50 32 24 0.01
"""
IMAGES = """# Image list
# two lines per image
5 1 0 0 0 0.5 0 2 1 a folder/first image.jpg
50.5 40.5 11 10 20.25 -1 33 44 12

9 0.7071067811865476 0 0.7071067811865476 0 1 2 3 7 second.jpg
1.5 2.5 12 5 6 11
2 2 0 0 0 0 0 0 1 empty.jpg

"""
POINTS = """# points
12 1 2 3 10 20 30 0.5 5 2 9 0
11 -1 0.5 4 255 255 255 1.25 5 0 9 1

"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "cameras.txt").write_text(CAMERAS)
    (tmp_path / "images.txt").write_text(IMAGES)
    (tmp_path / "points3D.txt").write_text(POINTS)
    return tmp_path


def check_small_model(folder):
    model = read_colmap_model(folder)
    assert model.names == ["a folder/first image.jpg", "second.jpg", "empty.jpg"]
    assert model.image_ids.tolist() == [5, 9, 2] and model.camera_ids.tolist() == [1, 7, 1]
    assert model.cameras[1].model == "pinhole" and model.cameras[1].params.tolist() == [90, 91, 49.5, 39.5]
    assert model.cameras[7].model == "radial" and model.cameras[7].params.tolist() == [50, 50, 31.5, 23.5, 0.01, 0]
    assert model.camera_from_map[0, :3, 3].tolist() == [0.5, 0, 2]
    assert torch.allclose(model.camera_from_map[1, :3, :3], torch.tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]).double())
    assert torch.equal(model.camera_from_map[2], torch.eye(4).double())
    rows = {point: k for k, point in enumerate(model.point_ids.tolist())}
    assert model.xyz[rows[12]].tolist() == [1, 2, 3] and model.error_px[rows[11]] == 1.25
    seen = {
        (int(model.point_ids[p]), int(model.image_ids[k])): xy.tolist()
        for p, k, xy in zip(model.observation_point, model.observation_image, model.observation_px)
    }
    # The half pixel between COLMAP's corner and our centre is gone.
    assert seen == {(12, 5): [32.5, 43.5], (12, 9): [1, 2], (11, 5): [50, 40], (11, 9): [4.5, 5.5]}


def test_text_model(model):
    # The blank line after the first image's observations belongs to nobody.
    (model / "images.txt").write_text(IMAGES.replace("-1 33 44 12\n\n", "-1 33 44 12\n"))
    check_small_model(model)


def write_binary(folder):
    """The model above as COLMAP writes it in binary, by the format's documentation."""
    cameras = struct.pack("<Q", 2) + struct.pack("<IiQQ4d", 1, 1, 100, 80, 90, 91, 50, 40)
    cameras += struct.pack("<IiQQ4d", 7, 2, 64, 48, 50, 32, 24, 0.01)
    images = struct.pack("<Q", 3)
    for head, name, keypoints in [
        ((5, 1, 0, 0, 0, 0.5, 0, 2, 1), b"a folder/first image.jpg", [(50.5, 40.5, 11), (10, 20.25, -1), (33, 44, 12)]),
        ((9, 0.5**0.5, 0, 0.5**0.5, 0, 1, 2, 3, 7), b"second.jpg", [(1.5, 2.5, 12), (5, 6, 11)]),
        ((2, 2, 0, 0, 0, 0, 0, 0, 1), b"empty.jpg", []),
    ]:
        images += struct.pack("<I7dI", *head) + name + b"\0" + struct.pack("<Q", len(keypoints))
        images += b"".join(struct.pack("<ddq", *keypoint) for keypoint in keypoints)
    points = struct.pack("<Q", 2) + struct.pack("<Q3d3BdQ4I", 12, 1, 2, 3, 10, 20, 30, 0.5, 2, 5, 2, 9, 0)
    points += struct.pack("<Q3d3BdQ4I", 11, -1, 0.5, 4, 255, 255, 255, 1.25, 2, 5, 0, 9, 1)
    for name, content in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.bin").write_bytes(content)


def test_binary_model_goes_before_text(model):
    write_binary(model)
    (model / "cameras.txt").write_text("nonsense")
    check_small_model(model)


@pytest.mark.parametrize("suffix", [".txt", ".bin"])
def test_rigs_and_frames_give_the_poses(model, suffix):
    """Camera 7 sits 1 m beside camera 1; the frame's pose counts, not what images say."""
    if suffix == ".txt":
        (model / "images.txt").write_text(IMAGES.replace("-1 33 44 12\n\n", "-1 33 44 12\n"))
        (model / "rigs.txt").write_text("# rigs\n3 3 CAMERA 1 CAMERA 7 1 1 0 0 0 -1 0 0 IMU 4 0\n")
        (model / "frames.txt").write_text("# frames\n8 3 1 0 0 0 10 20 30 3 CAMERA 1 5 IMU 4 77 CAMERA 7 9\n")
    else:
        write_binary(model)
        (model / "rigs.bin").write_bytes(
            struct.pack("<QII", 1, 3, 3)
            + struct.pack("<iI", 0, 1)
            + struct.pack("<iIB7d", 0, 7, 1, 1, 0, 0, 0, -1, 0, 0)
            + struct.pack("<iIB", 1, 4, 0)
        )
        (model / "frames.bin").write_bytes(
            struct.pack("<QII7dI", 1, 8, 3, 1, 0, 0, 0, 10, 20, 30, 3)
            + struct.pack("<iIQ", 0, 1, 5)
            + struct.pack("<iIQ", 1, 4, 77)
            + struct.pack("<iIQ", 0, 7, 9)
        )
    poses = read_colmap_model(model).camera_from_map
    assert poses[0, :3, 3].tolist() == [10, 20, 30] and poses[1, :3, 3].tolist() == [9, 20, 30]
    assert torch.equal(poses[1, :3, :3], torch.eye(3).double())
    assert poses[2, :3, 3].tolist() == [0, 0, 0], "an image in no frame keeps its own"


def test_camera_without_pose_in_its_rig(model):
    (model / "rigs.txt").write_text("3 2 CAMERA 1 CAMERA 7 0\n")
    (model / "frames.txt").write_text("8 3 1 0 0 0 10 20 30 2 CAMERA 1 5 CAMERA 7 9\n")
    with pytest.raises(InputError, match="no pose of camera 7 in rig 3"):
        read_colmap_model(model)


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("cameras", "1 PINHOLE 100 80", "1 PINHOLE 100 tall", "line 2: expected CAMERA_ID"),
        ("cameras", CAMERAS, "", "refers to camera 1"),
        ("images", IMAGES, "# nothing\n", "holds no image"),
        ("images", "5 1 0 0 0", "5 one 0 0 0", "line 3: expected IMAGE_ID"),
        ("images", "20.25 -1", "20.25", "line 4: expected X Y POINT3D_ID"),
        ("images", "20.25 -1", "20.25 many", "line 4: expected X Y POINT3D_ID"),
        ("points3D", POINTS, "", "holds no point"),
        ("points3D", "5 2 9 0", "6 2 9 0", "refers to image 6"),
        ("points3D", "5 2 9 0", "5 3 9 0", "refers to observation 3 of image 5, which has 3"),
        ("points3D", "5 2 9 0", "5 2 9", "line 2: expected POINT3D_ID"),
        ("points3D", "12 1 2 3", "12 1 x 3", "line 2: expected POINT3D_ID"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(model, name, old, new, message):
    path = model / f"{name}.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        read_colmap_model(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, old, new, reason",
    [
        ("cameras", "PINHOLE 100", "KALEIDOSCOPE 100", "camera 1: .*'KALEIDOSCOPE' is not supported"),
        ("cameras", "90 91 50 40", "90 91 50", "camera 1: .*takes 4 numbers, not 3"),
        ("images", "0.5 0 2 1 a", "nan 0 2 1 a", "pose is not finite"),
        ("images", "5 1 0 0 0", "5 0 0 0 0", "zero quaternion"),
    ],
)
def test_images_without_a_usable_camera_or_pose_are_left_out(model, name, old, new, reason):
    path = model / f"{name}.txt"
    path.write_text(path.read_text().replace(old, new))
    read = read_colmap_model(model)
    assert re.search(reason, read.left_out["a folder/first image.jpg"])
    assert read.names[0] == "second.jpg" and len(read.names) == len(read.image_ids) == len(read.camera_from_map) < 3
    assert read.observation_image.tolist() == [0, 0] and read.observation_px.tolist() == [[1.0, 2.0], [4.5, 5.5]]


def test_points_that_are_not_finite_are_not_observed(model):
    (model / "points3D.txt").write_text(POINTS.replace("12 1 2 3", "12 1 inf 3"))
    assert read_colmap_model(model).observation_point.tolist() == [1, 1]


def test_missing_files(model, tmp_path):
    (model / "points3D.txt").unlink()
    with pytest.raises(InputError, match="lacks points3D.txt"):
        read_colmap_model(model)
    with pytest.raises(InputError, match="no folder"):
        read_colmap_model(tmp_path / "none")
    outer = tmp_path / "outer"
    (outer / "sparse" / "0").mkdir(parents=True)
    with pytest.raises(InputError, match="not a COLMAP model: it must hold"):
        read_colmap_model(outer)
    (outer / "sparse" / "0" / "cameras.bin").touch()
    with pytest.raises(InputError, match="did you mean .*sparse/0"):
        read_colmap_model(outer)


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(["cameras", "images", "points3D"]), data=st.data())
def test_a_cut_or_damaged_binary_file_never_crashes(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("model")
    write_binary(folder)
    path = folder / f"{name}.bin"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(InputError, match="cut short"):
            read_colmap_model(folder)
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            read_colmap_model(folder)
        except InputError as error:
            assert "\n" not in str(error)


# ---- against pycolmap

SCENES = ("kitti07", "fox", "kitti01", "tum_fr1_rpy")


def compare(model, other):
    """Our model against a pycolmap.Reconstruction."""
    assert sorted(model.image_ids.tolist()) == sorted(other.images)
    pixels = {}
    for k, (image_id, name) in enumerate(zip(model.image_ids.tolist(), model.names)):
        image = other.images[image_id]
        assert name == image.name and int(model.camera_ids[k]) == image.camera_id
        assert np.allclose(model.camera_from_map[k, :3].numpy(), image.cam_from_world().matrix(), atol=1e-12)
        pixels[k] = np.array([p.xy for p in image.points2D]).reshape(-1, 2)
    for camera_id, camera in model.cameras.items():
        theirs = other.cameras[camera_id]
        assert (camera.width, camera.height) == (theirs.width, theirs.height)
        points = torch.tensor([[0.1, -0.2, 1.0], [0.3, 0.1, 2.0], [-0.2, 0.1, 0.9]], dtype=torch.float64)
        ours = camera.project(points)[0].numpy() + 0.5
        assert np.allclose(ours, [theirs.img_from_cam(p[:, None].T.numpy())[0] for p in points], atol=1e-9)
    assert sorted(model.point_ids.tolist()) == sorted(other.points3D)
    start = np.searchsorted(model.observation_point, np.arange(len(model.point_ids) + 1))
    for p, point_id in enumerate(model.point_ids.tolist()):
        point = other.points3D[point_id]
        assert np.array_equal(model.xyz[p], point.xyz) and model.error_px[p] == point.error
        rows = range(start[p], start[p + 1])
        assert [int(model.image_ids[model.observation_image[r]]) for r in rows] == [e.image_id for e in point.track.elements]
        for r, element in zip(rows, point.track.elements):
            assert np.array_equal(model.observation_px[r] + 0.5, pixels[model.observation_image[r]][element.point2D_idx])


@pytest.mark.parametrize("scene", SCENES)
def test_shared_models_against_pycolmap(shared_data, scene, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    other = pycolmap.Reconstruction(str(shared_data / scene / "map"))
    compare(read_colmap_model(shared_data / scene / "map"), other)
    other.write_binary(str(tmp_path))
    assert (tmp_path / "frames.bin").is_file()
    compare(read_colmap_model(tmp_path), other)


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_a_rig_written_by_pycolmap(tmp_path, kind):
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1,
        num_cameras_per_rig=2,
        num_frames_per_rig=4,
        num_points3D=60,
        camera_model_id=pycolmap.CameraModelId.OPENCV,
        camera_params=[300, 310, 512, 384, 0.05, -0.02, 0.001, 0.002],
    )
    model = pycolmap.synthesize_dataset(options)
    (model.write_text if kind == "text" else model.write_binary)(str(tmp_path))
    ours = read_colmap_model(tmp_path)
    compare(ours, model)
    for k in range(len(ours.names)):
        rows = ours.observation_image == k
        xyz = se3.transform(ours.camera_from_map[k], torch.from_numpy(ours.xyz[ours.observation_point[rows]]))
        pixels, valid = ours.cameras[int(ours.camera_ids[k])].project(xyz)
        assert bool(valid.all()) and np.abs(pixels.numpy() - ours.observation_px[rows]).max() < 1e-6

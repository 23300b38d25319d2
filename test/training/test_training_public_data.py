# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Training pairs from rosbags, and from MegaDepth and CMU Seasons in the layout they come in, on excerpts made here."""

import json
import shutil
import struct

import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import look_at, plane_view, texture
from posed_bag_writing import write_bag
from scipy.spatial.transform import Rotation
from training_scene import SMALL

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.training.config import build_mixture, read_config
from pixloc_ros.training.pairs import BadSample, PairShape
from pixloc_ros.training.public_data import BagPairs, CmuPairs, MegaDepthPairs

VIEW = PairShape(**SMALL)
PICTURE = texture()
XYZ = np.random.default_rng(0).uniform((-2, -2, 0), (2, 2, 0), (600, 3))
CMU_CAMERAS = {
    "c0": "OPENCV 320 240 250.5 249.5 161.0 119.0 -0.05 0.01 0.0002 0.0005",
    "c1": "OPENCV 320 240 252.0 251.0 159.0 121.0 -0.05 0.01 0.0002 -0.0005",
}


def view_of(pose, camera):
    """The plane through a camera with or without distortion."""
    return plane_view(pose, camera, PICTURE)[0]


def poses_of(count, y=-1.5):
    return [look_at((0.15 * k - 0.6, y, 2.2), (0.05 * k, 0, 0)) for k in range(count)]


def write_binary_model(folder, names, poses, cameras, camera_of):
    """cameras.bin, images.bin, points3D.bin. cameras: (COLMAP's model number, width, height, params)."""
    folder.mkdir(parents=True)
    with open(folder / "cameras.bin", "wb") as file:
        file.write(struct.pack("<Q", len(cameras)))
        for number, (model, width, height, params) in enumerate(cameras, 1):
            file.write(struct.pack("<IiQQ", number, model, width, height) + np.array(params, "<f8").tobytes())
    ours = [Camera.from_colmap({1: "PINHOLE", 2: "SIMPLE_RADIAL", 4: "OPENCV"}[m], w, h, p) for m, w, h, p in cameras]
    tracks = [[] for _ in XYZ]
    with open(folder / "images.bin", "wb") as file:
        file.write(struct.pack("<Q", len(names)))
        for k, (name, pose) in enumerate(zip(names, poses)):
            camera_from_map = se3.inverse(pose)
            pixels, valid = ours[camera_of[k]].project(se3.transform(camera_from_map, torch.from_numpy(XYZ)))
            seen = np.flatnonzero((valid & ours[camera_of[k]].in_image(pixels)).numpy())
            x, y, z, w = Rotation.from_matrix(camera_from_map[:3, :3].numpy()).as_quat()
            file.write(struct.pack("<I7dI", k + 1, w, x, y, z, *camera_from_map[:3, 3].tolist(), camera_of[k] + 1))
            file.write(name.encode() + b"\0" + struct.pack("<Q", len(seen)))
            for row, p in enumerate(seen):
                file.write(struct.pack("<ddq", *(pixels[p] + 0.5).tolist(), p + 1))
                tracks[p].append((k + 1, row))
    with open(folder / "points3D.bin", "wb") as file:
        used = [p for p in range(len(XYZ)) if tracks[p]]
        file.write(struct.pack("<Q", len(used)))
        for p in used:
            file.write(struct.pack("<Q3d3BdQ", p + 1, *XYZ[p], 9, 9, 9, 0.5, len(tracks[p])))
            file.write(b"".join(struct.pack("<II", *element) for element in tracks[p]))
    return ours


def check_pairs(source, count=12, name=None):
    """Pairs whose points look the same where they project in both images."""
    rng, drawn, likeness = np.random.default_rng(0), 0, []
    for _ in range(count):
        try:
            pair = source.draw(rng)
        except BadSample:
            continue
        drawn += 1
        assert name is None or pair.name.startswith(name)
        assert pair.reference.shape == (VIEW.height, VIEW.width) and len(pair.xyz) <= VIEW.points
        values = []
        for image, camera, xyz in (
            (pair.reference, pair.reference_camera, pair.xyz),
            (pair.query, pair.query_camera, se3.transform(pair.query_from_reference, pair.xyz)),
        ):
            pixels, valid = camera.project(xyz)
            inside = (valid & camera.in_image(pixels, 2)).numpy()
            smooth = cv2.GaussianBlur(image, (0, 0), 1.5).astype(np.float32)
            values.append((cv2.remap(smooth, pixels.numpy().astype(np.float32)[:, None], None, cv2.INTER_LINEAR)[:, 0], inside))
        both = values[0][1] & values[1][1]
        likeness.append(np.corrcoef(values[0][0][both], values[1][0][both])[0, 1])
    assert drawn > count // 3 and np.median(likeness) > 0.9
    return drawn


def write_megadepth(root, undistorted):
    """Two scenes, the second of which holds images that share nothing."""
    for number, scene in enumerate(("0015", "0204")):
        poses = poses_of(14) if number == 0 else [look_at((x, -1.5, 0.6), (x, 0, 0)) for x in (-1.6, 1.6)]
        names = [f"{k}_{scene}_o.jpg" for k in range(len(poses))]
        model = root / scene / "sparse" if undistorted else root / scene / "sparse" / "manhattan" / "0"
        camera = (1, 320, 240, (250, 250, 160, 120)) if undistorted else (2, 320, 240, (250, 160, 120, -0.05))
        ours = write_binary_model(model, names, poses, [camera], [0] * len(poses))
        (root / scene / "images").mkdir()
        for name, pose in zip(names, poses):
            cv2.imwrite(str(root / scene / "images" / name), view_of(pose, ours[0]))
    return root


def write_cmu(root):
    """One slice: ten database images, twelve queries under another light, poses of eight of them."""
    (root / "slice7" / "database").mkdir(parents=True)
    (root / "slice7" / "query").mkdir()
    (root / "slice7" / "camera-poses").mkdir()
    (root / "intrinsics.txt").write_text("# camera model\n\n" + "".join(f"{k} {v}\n" for k, v in CMU_CAMERAS.items()))
    ours = {k: Camera.parse_colmap_line(v) for k, v in CMU_CAMERAS.items()}
    params = [[float(x) for x in line.split()[3:]] for line in CMU_CAMERAS.values()]
    names = [f"img_{k:05d}_c{k % 2}_1303398475{k:06d}us.jpg" for k in range(10)]
    poses = poses_of(10)
    write_binary_model(root / "slice7" / "sparse", names, poses, [(4, 320, 240, p) for p in params], [k % 2 for k in range(10)])
    for k, (name, pose) in enumerate(zip(names, poses)):
        cv2.imwrite(str(root / "slice7" / "database" / name), view_of(pose, ours[f"c{k % 2}"]))
    lines = []
    for k, pose in enumerate(poses_of(12, y=-1.3)):
        name = f"img_{k:05d}_c{k % 2}_1283347879{k:06d}us.jpg"
        picture = cv2.convertScaleAbs(view_of(pose, ours[f"c{k % 2}"]), alpha=0.6, beta=30)
        if k < 10:
            cv2.imwrite(str(root / "slice7" / "query" / name), picture)
        if k not in (3, 5):
            x, y, z, w = Rotation.from_matrix(se3.inverse(pose)[:3, :3].numpy()).as_quat()
            lines.append(f"{name} {w} {x} {y} {z} " + " ".join(map(repr, pose[:3, 3].tolist())) + "\n")
    (root / "slice7" / "camera-poses" / "slice-7-220241134.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def cmu(tmp_path_factory):
    return write_cmu(tmp_path_factory.mktemp("cmu") / "cmu")


@pytest.mark.parametrize("undistorted", [False, True])
def test_megadepth(tmp_path, undistorted):
    root = write_megadepth(tmp_path / "MegaDepth", undistorted)
    check_pairs(MegaDepthPairs(root, ("0015",), VIEW, False), name="0015/")
    everything = MegaDepthPairs(root, (), VIEW, False)
    rng, bad = np.random.default_rng(1), []
    for _ in range(12):
        try:
            everything.draw(rng)
        except BadSample as error:
            bad.append(str(error))
    assert "MegaDepth scene without usable pairs" in bad  # counted, not fatal
    with pytest.raises(InputError, match="no scene 0099"):
        MegaDepthPairs(root, ("0015", "0099"), VIEW, False)
    with pytest.raises(InputError, match="no folder"):
        MegaDepthPairs(tmp_path / "gone", (), VIEW, False)


def test_cmu_seasons(cmu):
    root = cmu
    source = CmuPairs(root / "slice7", VIEW, False)
    assert len(source.paths) == 18  # database and queries with an image and a pose
    pairs = source.candidates
    assert (pairs[:, 0] < 10).all() and (pairs[:, 1] >= 10).any() and (pairs[:, 1] < 10).any()
    check_pairs(source, name="slice7/")
    held = CmuPairs(root / "slice7", VIEW, True).candidates
    assert not set(held[:, 1]) & set(pairs.ravel())
    # The file gives camera centres, not translations.
    first = int(np.flatnonzero(["query" in str(p) for p in source.paths])[0])
    distance, angle = se3.pose_difference(se3.inverse(source.camera_from_map[first]), poses_of(1, y=-1.3)[0])
    assert distance < 1e-9 and angle < 1e-6


CMU_POSES = "slice7/camera-poses/slice-7-220241134.txt"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: (root / "intrinsics.txt").unlink(), "cannot read"),
        (lambda root: (root / "intrinsics.txt").write_text("c0 OPENCV 320 240 1 2"), "intrinsics.txt:1"),
        (lambda root: (root / "intrinsics.txt").write_text(f"c0 {CMU_CAMERAS['c0']}\n"), "no camera 'c1'"),
        (lambda root: (root / CMU_POSES).write_text("a_b_c0_d.jpg 1 0 0 0 0 0\n"), "is no pose"),
        (lambda root: (root / CMU_POSES).write_text(""), "no query image with a pose"),
    ],
)
def test_broken_cmu_files_are_told_in_one_line(cmu, tmp_path, spoil, message):
    root = shutil.copytree(cmu, tmp_path / "cmu")
    spoil(root)
    with pytest.raises(InputError, match=message) as caught:
        CmuPairs(root / "slice7", VIEW, False)
    assert "\n" not in str(caught.value)


def test_bag_with_poses(tmp_path):
    pytest.importorskip("pycolmap")
    bag = write_bag(tmp_path / "drive", 16)
    source = BagPairs(bag, "", tmp_path / "drive.frames", VIEW, False)
    check_pairs(source, name="drive/")
    made = sorted((tmp_path / "drive.frames").rglob("*.png"))
    again = BagPairs(bag, "", tmp_path / "drive.frames", VIEW, False)  # nothing is made twice
    assert [p.stat().st_mtime_ns for p in made] == [
        p.stat().st_mtime_ns for p in sorted((tmp_path / "drive.frames").rglob("*.png"))
    ]
    a, b = (s.draw(np.random.default_rng(5)) for s in (source, again))
    assert torch.equal(a.xyz, b.xyz) and np.array_equal(a.query, b.query)


def test_configuration_names_them(cmu, tmp_path):
    write_megadepth(tmp_path / "MegaDepth", True)
    shutil.copytree(cmu, tmp_path / "cmu")
    data = [{"kind": "megadepth", "root": "MegaDepth", "scenes": ["0015"]}, {"kind": "cmu", "root": "cmu/slice7"}]
    (tmp_path / "config.json").write_text(json.dumps({"data": data, "view": SMALL}))
    batch = build_mixture(read_config(tmp_path / "config.json"), False, False).batch([(0, k) for k in range(6)], (2.0, 0.03))
    assert {name.split("/")[0] for name in batch.names} == {"0015", "slice7"}
    (tmp_path / "config.json").write_text(json.dumps({"data": [{"kind": "bag"}], "view": SMALL}))
    with pytest.raises(InputError, match="unknown or incomplete"):
        build_mixture(read_config(tmp_path / "config.json"), False, False)

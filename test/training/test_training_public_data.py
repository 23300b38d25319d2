# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Training pairs from rosbags, and from MegaDepth and CMU Seasons in the layout they come in, on excerpts made here."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from layouts import KINECT, Studio, save, write_cmu, write_colmap
from posed_bag_writing import write_bag
from training_scene import SMALL, drawn

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.training.config import build_mixture, read_config
from pixloc_ros.training.pairs import PairShape
from pixloc_ros.training.scenes import BagPairs, CmuPairs, MegaDepthPairs

VIEW = PairShape(**SMALL)


def check_pairs(source, name, count=12):
    """Pairs whose points look the same where they project in both images."""
    (pairs, _), likeness = drawn(source, count), []
    for pair in pairs:
        assert pair.name.startswith(name)
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
    assert len(pairs) > count // 3 and np.median(likeness) > 0.9


@pytest.fixture(scope="module")
def excerpts(tmp_path_factory):
    """MegaDepth with two scenes, the second of which holds images that share nothing; and a training slice of CMU Seasons."""
    root, studio = tmp_path_factory.mktemp("excerpts"), Studio()
    shots = studio.shoot(KINECT, np.arange(16) * 0.4)
    apart = [shots[0], *studio.shoot(KINECT, np.array([12.0, 24.0]))]
    for scene, model, some in (("0015", "sparse/manhattan/0", shots), ("0204", "sparse", apart)):
        names = [f"{k}_{scene}_o.jpg" for k in range(len(some))]
        for shot, name in zip(some, names):
            save(root / "MegaDepth" / scene / "images" / name, shot.image)
        write_colmap(root / "MegaDepth" / scene / model, some, names)
    write_cmu(root / "cmu" / "slice7", shots, training=True)
    return root, shots


def test_megadepth(excerpts):
    root = excerpts[0] / "MegaDepth"
    check_pairs(MegaDepthPairs(root, ("0015",), VIEW, False), "0015/")
    _, bad = drawn(MegaDepthPairs(root, (), VIEW, False), 12, 1)
    assert "MegaDepth scene without usable pairs" in bad  # counted, not fatal
    with pytest.raises(InputError, match="no scene 0099"):
        MegaDepthPairs(root, ("0015", "0099"), VIEW, False)
    with pytest.raises(InputError, match="no folder"):
        MegaDepthPairs(root / "gone", (), VIEW, False)


def test_cmu_seasons(excerpts):
    root, shots = excerpts
    source, held = (CmuPairs(root / "cmu" / "slice7", VIEW, flag) for flag in (False, True))
    assert len(source.paths) == 16  # database and queries with an image and a pose
    pairs = source.candidates
    assert (pairs[:, 0] < 8).all() and (pairs[:, 1] >= 8).any() and (pairs[:, 1] < 8).any()
    check_pairs(source, "slice7/")
    assert not set(held.candidates[:, 1]) & set(pairs.ravel())
    # The file gives camera centres, not translations.
    torch.testing.assert_close(se3.inverse(source.camera_from_map[8]), torch.from_numpy(shots[1].pose), atol=1e-6, rtol=0)


POSES = "slice7/camera-poses/slice-01-Sep-2010.txt"


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("intrinsics.txt", None, "cannot read"),
        ("intrinsics.txt", "c0 OPENCV 320 240 1 2", "intrinsics.txt:1"),
        ("intrinsics.txt", "c0 OPENCV 640 480 525 525 320 240 0 0 0 0\n", "no camera 'c1'"),
        (POSES, "a_b_c0_d.jpg 1 0 0 0 0 0\n", "is no pose"),
        (POSES, "", "no query image with a pose"),
    ],
)
def test_broken_cmu_files_are_told_in_one_line(excerpts, tmp_path, file, text, message):
    root = shutil.copytree(excerpts[0] / "cmu", tmp_path / "cmu")
    (root / file).unlink()
    if text is not None:
        (root / file).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        CmuPairs(root / "slice7", VIEW, False)
    assert "\n" not in str(caught.value)


def test_bag_with_poses(tmp_path):
    pytest.importorskip("pycolmap")
    bag, frames = write_bag(tmp_path / "drive", 16), tmp_path / "drive.frames"
    source = BagPairs(bag, "", frames, VIEW, False)
    check_pairs(source, "drive/")
    made = {path: path.stat().st_mtime_ns for path in frames.rglob("*.png")}
    again = BagPairs(bag, "", frames, VIEW, False)  # nothing is made twice
    assert made == {path: path.stat().st_mtime_ns for path in frames.rglob("*.png")}
    a, b = (s.draw(np.random.default_rng(5)) for s in (source, again))
    assert torch.equal(a.xyz, b.xyz) and np.array_equal(a.query, b.query)


def test_configuration_names_them(excerpts, tmp_path):
    root, path = excerpts[0], tmp_path / "config.json"
    data = [{"kind": "megadepth", "root": f"{root}/MegaDepth", "scenes": ["0015"]}, {"kind": "cmu", "root": f"{root}/cmu/slice7"}]
    path.write_text(json.dumps({"data": data, "view": SMALL}))
    batch = build_mixture(read_config(path), False, False).batch([(0, k) for k in range(6)], (2.0, 0.03))
    assert {name.split("/")[0] for name in batch.names} == {"0015", "slice7"}
    path.write_text(json.dumps({"data": [{"kind": "bag"}], "view": SMALL}))
    with pytest.raises(InputError, match="unknown or incomplete"):
        build_mixture(read_config(path), False, False)

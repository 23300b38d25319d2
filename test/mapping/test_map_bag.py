# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses of the images of bags, which images become keyframes, maps of them, and work that is stopped."""

import importlib.util
import json
import re

import cv2
import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA
from mapping_helpers import FakeExtractor, look_at, pinhole, texture
from posed_bag_writing import CAMERA, DEPTH_TOPIC, FOCAL, HEIGHT, PICTURE, START, STEP, WIDTH, pose_at, view, write_bag

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.frames import UnusableFrame
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.keyframes import KeyframeSelector, PosedFrame
from pixloc_ros.mapping.build.posed_bag import PosedBag, PosedBagOptions
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, build_map_from_posed_frames, points_of_posed_frames
from pixloc_ros.mapping.build.triangulation import TriangulationOptions
from pixloc_ros.mapping.map_file import keyframe_pixels

needs_pycolmap = pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="no pycolmap")


@pytest.mark.parametrize(
    "storage, poses, image, asked",
    [
        ("mcap", "truth", "raw", {}),
        ("sqlite3", "tf", "compressed", {}),
        ("ros1", "truth", "raw", {}),
        ("mcap", "slam", "raw", {"poses": "/lio/odometry"}),
        ("mcap", "path", "raw", {}),
        ("mcap", "array", "raw", {"body_frame": "camera_optical"}),
    ],
)
def test_poses_of_every_kind_are_the_cameras_at_the_images_stamps(tmp_path, storage, poses, image, asked):
    path = tmp_path / ("drive.bag" if storage == "ros1" else "drive")
    write_bag(path, 5, storage, poses, image, pose_offset_ns=37_000_000)
    with PosedBag(path, PosedBagOptions(**asked)) as frames:
        seen = list(frames())
    assert [f.stamp_ns for f in seen] == [START + k * STEP for k in range(5)]
    for k, frame in enumerate(seen):
        distance, angle = se3.pose_difference(frame.map_from_camera, torch.from_numpy(pose_at(k * STEP / 1e9)))
        assert distance < 2e-3 and angle < 2e-3  # poses between stamps are interpolated
        assert frame.image.shape == (HEIGHT, WIDTH) and frame.depth is None


def test_what_cannot_be_guessed_is_asked_for(tmp_path):
    slam = write_bag(tmp_path / "slam", 2, poses="slam")
    with pytest.raises(InputError, match="/lio/odometry would do if it does not drift"):
        PosedBag(slam)
    with pytest.raises(InputError, match="no poses on /nothing"):
        PosedBag(slam, PosedBagOptions(poses="/nothing"))
    loose = write_bag(tmp_path / "loose", 2, static=False)
    with pytest.raises(InputError, match="--base-frame"):
        PosedBag(loose)
    with PosedBag(loose, PosedBagOptions(body_from_camera=torch.from_numpy(BASE_FROM_CAMERA))) as frames:
        assert len(list(frames())) == 2


def test_images_that_are_not_wanted_or_have_no_pose_are_left_out(tmp_path):
    bag = write_bag(tmp_path / "drive")
    with PosedBag(bag, PosedBagOptions(max_gap_ns=STEP // 2)) as frames:
        assert [type(frame) for frame in frames()] == [PosedFrame] * 16  # poses at the very stamps need no neighbour
    with PosedBag(bag, PosedBagOptions(every=3)) as frames:
        assert [f.stamp_ns for f in frames(lambda stamp_ns: stamp_ns > START)] == [START + k * STEP for k in (3, 6, 9, 12, 15)]
    with PosedBag(write_bag(tmp_path / "between", pose_offset_ns=1), PosedBagOptions(max_gap_ns=STEP // 2)) as frames:
        assert [frame.reason for frame in frames()] == ["no pose at the image's time"] * 16


def select(poses, image=lambda k, pose: view(pose)[0]):
    selector = KeyframeSelector()
    frames = [PosedFrame(START + k * STEP, image(k, pose), CAMERA, torch.from_numpy(pose)) for k, pose in enumerate(poses)]
    chosen = [*map(selector.feed, frames), selector.finish()]
    return [frame for frame in chosen if frame is not None], selector


def test_keyframes_follow_the_motion_of_the_picture():
    slow, _ = select([pose_at(0.04 * k) for k in range(40)])
    fast, _ = select([pose_at(0.2 * k) for k in range(8)])
    assert abs(len(slow) - len(fast)) <= 3 and len(slow) > 4  # the same path


def test_a_camera_that_stands_still_gives_one_keyframe_whatever_moves_before_it():
    def passing(k, pose):
        image = view(pose)[0]
        image[60:180, 10 * k : 10 * k + 120] = PICTURE[:120, :120]
        return image

    assert len(select([pose_at(0)] * 15, passing)[0]) == 1


def test_the_sharpest_image_of_a_stretch_is_kept_and_blank_ones_are_counted():
    def blurred(k, pose):
        image = view(pose)[0]
        return image if k == 2 else np.full_like(image, 80) if k >= 4 else cv2.GaussianBlur(image, (0, 0), 2)

    chosen, selector = select([pose_at(0.01 * k) for k in range(7)], blurred)
    assert [f.stamp_ns for f in chosen] == [START + 2 * STEP] and selector.blank == 3


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("bags") / "drive")


def build(bag, work, *options):
    with PosedBag(bag) as frames:
        return *build_map_from_posed_frames(frames, FakeExtractor(), WorkFolder(work, {}), *options), frames


@needs_pycolmap
def test_map_by_triangulation(bag, tmp_path):
    map_, report, frames = build(bag, tmp_path / "work")
    assert frames.pose_source == "/ground_truth/pose" and report.images == 16
    assert len(map_.xyz) > 200
    # How far off the plane z = 0, as an error in pixels under the angle that the point is seen under.
    keyframe = np.repeat(np.arange(len(map_.keyframe_names)), np.diff(map_.observation_offsets))
    rays = map_.xyz[:, None] - map_.map_from_keyframe[None, :, :3, 3].numpy()
    distance = np.linalg.norm(rays, axis=2)
    rays /= distance[..., None]
    seen = [rays[p, keyframe[map_.observation_point == p]] for p in range(len(map_.xyz))]
    angle = np.array([np.arccos(np.clip(r @ r.T, -1, 1)).max() for r in seen])
    off_px = np.abs(map_.xyz[:, 2]) * angle / distance[:, 0] * FOCAL
    assert np.median(off_px) < 0.15 and np.percentile(off_px, 95) < 0.8
    assert report.reprojection_px[0] < 0.3 and report.coverage > 0.8 and report.keyframes == len(map_.keyframe_names) >= 4
    assert report.descriptor_consistency > 0.9 and not report.poor_keyframes
    stamps = [int(name.removesuffix(".png")) for name in map_.keyframe_names]
    assert stamps == map_.keyframe_stamp_ns.tolist() == sorted(stamps)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_map_from_depth(tmp_path, encoding):
    path = write_bag(tmp_path / "drive", 10, depth=encoding)
    map_, report, frames = build(path, tmp_path / "work")
    assert frames.depth_topic == "/camera/aligned_depth/image_raw" and report.reprojection_px is None
    assert len(map_.xyz) > 300 and np.percentile(np.abs(map_.xyz[:, 2]), 95) < 0.02


@pytest.mark.parametrize(
    "encoding, units, message",
    [
        ("16UC1", 4000, "(39[5-9]|40[0-4]). for integers"),
        ("16UC1", 256, "25[5-7] for integers"),
        ("32FC1", 1000, "1000 for millimetres"),
    ],
)
def test_depth_in_another_unit_is_refused_until_it_is_given(tmp_path, encoding, units, message, monkeypatch, capsys):
    monkeypatch.setattr("pixloc_ros.load_extractor", lambda weights: FakeExtractor())
    path = write_bag(tmp_path / "drive", 10, depth=encoding, depth_units=units)
    command = ["map", "bag", str(path), "-o", str(tmp_path / "m.pixmap")]
    assert main(command) == 2 and re.search(f"give --depth-scale, .*{message}", capsys.readouterr().err)
    assert main([*command, "--depth-scale", str(units)]) == 0
    assert np.percentile(np.abs(Map.open(tmp_path / "m.pixmap").xyz[:, 2]), 95) < 0.02


@needs_pycolmap
def test_of_plenty_the_surest_points_stay(bag, tmp_path):
    """On the plane z = 0. The second run finds features and matches in the work folder of the first."""
    found = []
    for surest in (0, 40):
        with PosedBag(bag) as frames:
            options = PosedMapOptions(triangulation=TriangulationOptions(surest=surest))
            found.append(points_of_posed_frames(frames, WorkFolder(tmp_path / "w", {}), options))
    (everything, fewer), reason = (posed.source for posed in found), "less sure than enough others around"
    assert reason not in found[0].rejected and found[1].rejected[reason] == len(everything.xyz) - len(fewer.xyz) > 100
    assert {tuple(point) for point in fewer.xyz} <= {tuple(point) for point in everything.xyz}
    before, after = (np.bincount(s.observation_image, minlength=len(s.paths)) for s in (everything, fewer))
    assert (after >= np.minimum(before, 40)).all()
    assert np.square(fewer.xyz[:, 2]).mean() < np.square(everything.xyz[:, 2]).mean()


@needs_pycolmap
def test_what_moves_is_left_out(tmp_path):
    thing = cv2.resize(texture(seed=5)[:300, :300], (90, 70), interpolation=cv2.INTER_AREA)

    def moving(view, k):
        """A thing that goes to and fro along the picture's own motion, so that any two views agree on a place for it."""
        left = int(115 + 110 * np.cos(0.7 * k))
        view = view.copy()
        view[90:160, left : left + 90] = thing
        return view

    busy = write_bag(tmp_path / "busy", 14, moving=moving)
    options = [PosedMapOptions(triangulation=TriangulationOptions(min_seen=share, surest=0)) for share in (0.2, 0.0)]
    maps = [build(busy, tmp_path / f"w{k}", option)[0] for k, option in enumerate(options)]
    still = build(write_bag(tmp_path / "still", 14), tmp_path / "w2", options[0])[0]
    wrong, believed, usual = (int((np.abs(m.xyz[:, 2]) > 0.2).sum()) for m in (*maps, still))
    assert believed > 30 and wrong - usual < 0.5 * (believed - usual)  # the rest is seen by too few to tell
    assert len(maps[0].xyz) > 0.5 * len(still.xyz)


@needs_pycolmap
def test_masks_keep_points_away(bag, tmp_path):
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[HEIGHT // 2 :] = 0
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    map_, _, _ = build(bag, tmp_path / "work", PosedMapOptions(mask=tmp_path / "mask.png"))
    rows = np.concatenate([keyframe_pixels(map_, k)[0][:, 1] * HEIGHT / map_.cameras[0].height for k in range(2)])
    assert len(rows) > 50 and np.mean(rows > HEIGHT / 2 + 12) < 0.35  # some are seen from other keyframes there


@needs_pycolmap
def test_one_bad_mask_is_left_out_and_named(bag, tmp_path):
    """Masks are named like the keyframes; a map of bad ones alone names the first reasons."""
    names = build(bag, tmp_path / "work")[0].keyframe_names
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(InputError, match=f"named like a keyframe, such as {names[0]}"):
        build(bag, tmp_path / "work", PosedMapOptions(mask=masks))
    cv2.imwrite(str(masks / names[1]), np.full((20, 30), 255, np.uint8))
    (masks / names[2]).write_text("no image")
    map_, report, _ = build(bag, tmp_path / "left", PosedMapOptions(mask=masks))
    assert map_.keyframe_names == [names[0], *names[3:]] and list(report.left_out) == names[1:3]
    assert "is 30x20" in report.left_out[names[1]] and "not a readable image" in report.left_out[names[2]]
    with pytest.raises(InputError, match="a map needs 2 .*the mask .* is 30x20"):
        build(bag, tmp_path / "none", PosedMapOptions(mask=masks / names[1]))


def test_a_bad_image_and_another_calibration_are_left_out_and_named(tmp_path):
    frames, broken = [], UnusableFrame(START + 3 * STEP, "it is broken")
    for k in range(14):
        pose = torch.from_numpy(pose_at(k * STEP / 1e9))
        image, metres = view(pose.numpy())
        camera = pinhole(WIDTH, HEIGHT, FOCAL + 1) if k == 5 else CAMERA
        frames.append(broken if k == 3 else PosedFrame(START + k * STEP, image, camera, pose, metres.astype(np.float32)))
    map_, report = build_map_from_posed_frames(lambda wanted: frames, FakeExtractor(), WorkFolder(tmp_path / "work", {}))
    changed = f"{START + 5 * STEP}.png"
    assert sorted(report.left_out) == [str(broken.stamp_ns), changed] and changed not in map_.keyframe_names
    assert "calibration" in report.left_out[changed] and len(map_.xyz) > 200
    with pytest.raises(InputError, match=f"0 images with a pose .*{broken.stamp_ns}: it is broken"):
        build_map_from_posed_frames(lambda wanted: [broken], FakeExtractor(), WorkFolder(tmp_path / "none", {}))


def test_a_depth_image_of_another_size_or_a_pose_that_is_none_does_not_stop_the_bag(tmp_path):
    def other(bag, k, stamp):
        """The depth image of one instant is a thumbnail, that of another is of a foreign kind."""
        if k == 2:
            bag.image(stamp, np.full((20, 30), 2000, np.uint16), 30, 20, "16UC1", topic=DEPTH_TOPIC)
        if k == 4:
            bag.image(stamp, np.zeros((HEIGHT, WIDTH, 3), np.uint8), WIDTH, HEIGHT, "rgb8", topic=DEPTH_TOPIC)
        return k in (2, 4)

    with PosedBag(write_bag(tmp_path / "drive", 8, depth="16UC1", other_depth=other, bad_pose=6)) as frames:
        seen = list(frames())
    reasons = {(frame.stamp_ns - START) // STEP: frame.reason for frame in seen if isinstance(frame, UnusableFrame)}
    assert "is 30x20 but the images are 320x240" in reasons[2] and "encoding rgb8" in reasons[4]
    assert reasons[6] == "the pose is not a number"
    assert sum(isinstance(frame, PosedFrame) for frame in seen) == 6


@needs_pycolmap
def test_a_camera_that_only_turns_is_refused(tmp_path):
    poses = [look_at((0, -1.2, 1.8), (np.tan(a), 0.2, 0)) for a in np.linspace(-0.4, 0.4, 8)]
    turn = [PosedFrame(START + k * STEP, view(pose.numpy())[0], CAMERA, pose) for k, pose in enumerate(poses)]
    with pytest.raises(InputError, match="not only turns"):
        build_map_from_posed_frames(lambda wanted: turn, FakeExtractor(), WorkFolder(tmp_path / "work", {}))
    with pytest.raises(InputError, match="a map needs 2"):
        build_map_from_posed_frames(lambda wanted: turn[:1], FakeExtractor(), WorkFolder(tmp_path / "other", {}))


@needs_pycolmap
def test_work_goes_on_where_it_was(bag, tmp_path):
    """Stopped after each step in turn, the map comes out the same to the bit, and what was done is not done again."""
    with PosedBag(bag) as frames:
        whole, report = build_map_from_posed_frames(frames, FakeExtractor(), WorkFolder(tmp_path / "whole", {"a": 1}))

    class Stopped(Exception):
        pass

    work, read = tmp_path / "work", []
    for budget in range(3, 200, 12):
        calls = iter(range(budget))

        def stop(done, total, what, calls=calls):
            if next(calls, None) is None:
                raise Stopped

        def counted(wanted):
            with PosedBag(bag) as frames:
                for frame in frames(wanted):
                    read.append(frame.stamp_ns)
                    yield frame

        try:
            map_, again = build_map_from_posed_frames(counted, FakeExtractor(), WorkFolder(work, {"a": 1}), progress=stop)
            break
        except Stopped:
            continue
    else:
        pytest.fail("never finished")
    assert again == report
    whole.save(tmp_path / "a.pixmap")
    map_.save(tmp_path / "b.pixmap")
    assert (tmp_path / "a.pixmap").read_bytes() == (tmp_path / "b.pixmap").read_bytes()
    assert read[-1] == START + 15 * STEP and len(read) < 60  # stretches under way are read again, closed ones are not


@needs_pycolmap
def test_command_reports_and_keeps_images_for_another_network(bag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pixloc_ros.load_extractor", lambda weights: FakeExtractor())
    out, images, report = tmp_path / "site.pixmap", tmp_path / "images", tmp_path / "report.json"
    command = ["map", "bag", str(bag), "-o", str(out), "--keep-images", str(images)]
    assert main([*command, "--report", str(report)]) == 0
    assert "points by triangulation" in capsys.readouterr().out
    map_, told = Map.open(out, verify=True), json.loads(report.read_text())
    assert told["images"] == 16 and told["bytes"] == out.stat().st_size and told["points"] == len(map_.xyz) > 200
    assert {"coverage", "points_per_keyframe", "reprojection_px", "descriptor_consistency"} <= set(told)
    assert sorted(p.name for p in images.iterdir()) == map_.keyframe_names and not out.with_name("site.pixmap.work").exists()
    assert main(["map", "re-encode", str(out), "--images", str(images), "-o", str(tmp_path / "again.pixmap")]) == 0
    assert np.array_equal(Map.open(tmp_path / "again.pixmap").xyz, map_.xyz)
    assert main(command) == 2 and "not empty" in capsys.readouterr().err
    assert main(["map", "bag", str(tmp_path / "gone"), "-o", str(out)]) == 2

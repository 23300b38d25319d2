# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_helpers import FakeExtractor, look_at, pinhole, plane_view, texture

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.depth import decode_depth
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.keyframes import KeyframeSelector, PosedFrame
from pixloc_ros.mapping.build.posed_bag import PosedBag, PosedBagOptions
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, build_map_from_posed_frames, points_of_posed_frames
from pixloc_ros.mapping.build.triangulation import TriangulationOptions
from pixloc_ros.mapping.statistics import keyframe_pixels

WIDTH, HEIGHT, FOCAL = 320, 240, 250.0
CAMERA = pinhole(WIDTH, HEIGHT, FOCAL)
START, STEP = 1_700_000_000_000_000_000, 100_000_000
CAMERA_FROM_BASE = np.linalg.inv(BASE_FROM_CAMERA)
PICTURE = texture()


def pose_at(seconds):
    """map_from_camera of a camera that moves sideways above a plane."""
    return look_at((0.5 * seconds - 0.8, -1.2 + 0.1 * seconds, 1.8), (0.6 * seconds - 0.9, 0.2, 0.0)).numpy()


def write_bag(
    path, count=16, storage="mcap", poses="truth", image="raw", depth=None, pose_offset_ns=0, static=True, moving=None, blank=()
):
    """A bag of views of a textured plane. poses: what tells them. depth: encoding of a depth topic. moving: called with the
    image and the frame's number, changes it."""
    with BagWriter(path, storage) as bag:
        if static:
            bag.transform("/tf_static", START, "base_link", "camera_optical", BASE_FROM_CAMERA)
        for k in range(-1, count + 1):  # poses on both sides of the images
            stamp = START + k * STEP + pose_offset_ns
            pose = pose_at((k * STEP + pose_offset_ns) / 1e9)
            base = pose @ CAMERA_FROM_BASE
            if poses == "truth":
                bag.truth(stamp, base, "/ground_truth/pose")
            elif poses == "slam":
                bag.odometry(stamp, base, "/lio/odometry", ("map", "base_link"))
            elif poses == "tf":  # map -> odom -> base_link, both moving
                drift = np.eye(4)
                drift[:3, 3] = (0.01 * k, -0.02 * k, 0.5)
                bag.transform("/tf", stamp, "map", "odom", drift)
                bag.transform("/tf", stamp, "odom", "base_link", np.linalg.inv(drift) @ base)
            elif poses == "array":
                header = bag.header(stamp, "map")
                bag.put(stamp, "/poses", bag.make("geometry_msgs/PoseArray", header, [bag.pose(pose)]))
            if not 0 <= k < count:
                continue
            stamp = START + k * STEP
            view, metres = plane_view(torch.from_numpy(pose_at(k * STEP / 1e9)), CAMERA, PICTURE)
            if k in blank:
                view = np.full_like(view, 90)
            if moving is not None:
                view = moving(view, k)
            bag.info(stamp, WIDTH, HEIGHT, FOCAL)
            if depth is not None:
                values = (metres * 1000).round().astype(np.uint16) if depth == "16UC1" else metres.astype(np.float32)
                bag.image(stamp + 1_000_000 * (k % 3), values, WIDTH, HEIGHT, depth, topic="/camera/aligned_depth/image_raw")
            if image == "raw":
                bag.image(stamp, view, WIDTH, HEIGHT)
            else:
                bag.compressed(stamp, cv2.imencode(".png", view)[1].tobytes(), "mono8; png compressed")
        if poses == "path":
            poses_ = []
            for k in range(-1, count + 1):
                poses_.append(bag.pose_stamped(START + k * STEP, "map", pose_at(k * STEP / 1e9) @ CAMERA_FROM_BASE))
            bag.put(START + count * STEP, "/slam/path", bag.make("nav_msgs/Path", bag.header(START, "map"), poses_))
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("bags") / "drive")


def build(bag, work, *options):
    with PosedBag(bag) as frames:
        return *build_map_from_posed_frames(frames, FakeExtractor(), WorkFolder(work, {}), *options), frames


# ---- poses


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
    offset = 0 if poses == "path" else 37_000_000
    write_bag(path, 5, storage, poses, image, pose_offset_ns=offset)
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
    with pytest.raises(InputError, match="--body-frame"):
        PosedBag(loose)
    with PosedBag(loose, PosedBagOptions(body_from_camera=torch.from_numpy(BASE_FROM_CAMERA))) as frames:
        assert len(list(frames())) == 2


def test_images_without_a_pose_are_left_out_and_counted(bag):
    with PosedBag(bag, PosedBagOptions(max_gap_ns=STEP // 2)) as frames:
        assert len(list(frames())) == 16 and not frames.skipped  # poses at the very stamps need no neighbour
    with PosedBag(bag, PosedBagOptions(every=3)) as frames:
        assert [f.stamp_ns for f in frames(lambda stamp_ns: stamp_ns > START)] == [START + k * STEP for k in (3, 6, 9, 12, 15)]


@given(seed=st.integers(0, 2**31), encoding=st.sampled_from(["16UC1", "32FC1"]), padding=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_depth_images_of_both_encodings(seed, encoding, padding):
    rng = np.random.default_rng(seed)
    metres = np.where(rng.random((5, 7)) < 0.8, rng.integers(1, 60_000, (5, 7)) / 1000, 0)
    values = (metres * 1000).round().astype("<u2") if encoding == "16UC1" else metres.astype("<f4")
    rows = values.view(np.uint8).reshape(5, -1)
    data = np.pad(rows, ((0, 0), (0, padding)))
    message = type("Image", (), dict(encoding=encoding, height=5, width=7, step=data.shape[1], is_bigendian=0, data=data.ravel()))
    assert np.allclose(decode_depth(message), metres, atol=1e-5)


def test_compressed_depth_and_nonsense():
    units = np.array([[0, 1500], [2500, 3]], np.uint16)
    png = cv2.imencode(".png", units)[1].tobytes()
    message = type(
        "CompressedImage", (), dict(format="16UC1; compressedDepth png", data=np.frombuffer(bytes(12) + png, np.uint8))
    )
    assert np.allclose(decode_depth(message), units / 1000)
    message.format = "16UC1; jpeg compressed"
    with pytest.raises(InputError, match="cannot be read"):
        decode_depth(message)


# ---- keyframes


def frames_of(poses_, image=None):
    for k, pose in enumerate(poses_):
        view = plane_view(torch.from_numpy(pose), CAMERA, PICTURE)[0] if image is None else image(k, pose)
        yield PosedFrame(START + k * STEP, view, CAMERA, torch.from_numpy(pose))


def select(frames):
    selector = KeyframeSelector()
    chosen = [done for frame in frames if (done := selector.feed(frame)) is not None]
    last = selector.finish()
    return chosen + ([last] if last is not None else []), selector


def test_keyframes_follow_the_motion_of_the_picture():
    slow, _ = select(frames_of([pose_at(0.04 * k) for k in range(40)]))
    fast, _ = select(frames_of([pose_at(0.2 * k) for k in range(8)]))
    assert abs(len(slow) - len(fast)) <= 3 and len(slow) > 4  # the same path


def test_a_camera_that_stands_still_gives_one_keyframe_whatever_moves_before_it():
    def passing(k, pose):
        view = plane_view(torch.from_numpy(pose), CAMERA, PICTURE)[0]
        view[60:180, 10 * k : 10 * k + 120] = PICTURE[:120, :120]
        return view

    assert len(select(frames_of([pose_at(0)] * 15, passing))[0]) == 1


def test_the_sharpest_image_of_a_stretch_is_kept_and_blank_ones_are_counted():
    def blurred(k, pose):
        view = plane_view(torch.from_numpy(pose), CAMERA, PICTURE)[0]
        return view if k == 2 else np.full_like(view, 80) if k >= 4 else cv2.GaussianBlur(view, (0, 0), 2)

    chosen, selector = select(frames_of([pose_at(0.01 * k) for k in range(7)], blurred))
    assert [f.stamp_ns for f in chosen] == [START + 2 * STEP] and selector.blank == 3


# ---- maps


def test_map_by_triangulation(bag, tmp_path):
    pytest.importorskip("pycolmap")
    map_, report, frames = build(bag, tmp_path / "work")
    assert frames.pose_source == "/ground_truth/pose" and report.images == 16
    assert len(map_.xyz) > 200
    # How far off the plane, as an error in pixels under the angle that the point is seen under.
    rays = [torch.nn.functional.normalize(torch.from_numpy(map_.xyz) - pose[:3, 3], dim=1) for pose in map_.map_from_keyframe]
    keyframe = np.repeat(np.arange(len(rays)), np.diff(map_.observation_offsets))
    angle, distance = np.zeros(len(map_.xyz)), np.full(len(map_.xyz), np.inf)
    for p in range(len(map_.xyz)):
        seen = torch.stack([rays[k][p] for k in keyframe[map_.observation_point == p]])
        angle[p] = float(torch.arccos((seen @ seen.T).clamp(max=1)).max())
        distance[p] = float((torch.from_numpy(map_.xyz[p]) - map_.map_from_keyframe[0, :3, 3]).norm())
    off_px = np.abs(map_.xyz[:, 2]) * angle / distance * FOCAL  # the plane is z = 0
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


def test_of_plenty_the_surest_points_stay(bag, tmp_path):
    """On the plane z = 0. The second run finds features and matches in the work folder of the first."""
    pytest.importorskip("pycolmap")
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


def test_what_moves_is_left_out(tmp_path):
    pytest.importorskip("pycolmap")
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


def test_masks_keep_points_away(bag, tmp_path):
    pytest.importorskip("pycolmap")
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[HEIGHT // 2 :] = 0
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    map_, _, _ = build(bag, tmp_path / "work", PosedMapOptions(mask=tmp_path / "mask.png"))
    rows = np.concatenate([keyframe_pixels(map_, k)[0][:, 1] * HEIGHT / map_.cameras[0].height for k in range(2)])
    assert len(rows) > 50 and np.mean(rows > HEIGHT / 2 + 12) < 0.35  # some are seen from other keyframes there


def test_a_camera_that_only_turns_is_told(tmp_path):
    pytest.importorskip("pycolmap")
    turn = [look_at((0, -1.2, 1.8), (np.tan(a), 0.2, 0)).numpy() for a in np.linspace(-0.4, 0.4, 8)]
    with pytest.raises(InputError, match="not only turns"):
        build_map_from_posed_frames(lambda wanted: frames_of(turn), FakeExtractor(), WorkFolder(tmp_path / "work", {}))
    with pytest.raises(InputError, match="a map needs 2"):
        build_map_from_posed_frames(lambda wanted: frames_of(turn[:1]), FakeExtractor(), WorkFolder(tmp_path / "other", {}))


# ---- work that is stopped


def test_work_goes_on_where_it_was(bag, tmp_path):
    """Stopped after each step in turn, the map comes out the same to the bit, and what was done is not done again."""
    pytest.importorskip("pycolmap")
    with PosedBag(bag) as frames:
        whole, report = build_map_from_posed_frames(frames, FakeExtractor(), WorkFolder(tmp_path / "whole", {"a": 1}))

    class Stopped(Exception):
        pass

    work, read = tmp_path / "work", []
    for budget in range(3, 200, 12):
        left = budget

        def stop(done, total, what):
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped

        with PosedBag(bag) as frames:

            def counted(wanted, frames=frames):
                for frame in frames(wanted):
                    read.append(frame.stamp_ns)
                    yield frame

            folder = WorkFolder(work, {"a": 1})
            try:
                map_, again = build_map_from_posed_frames(counted, FakeExtractor(), folder, progress=stop)
                break
            except Stopped:
                assert not (tmp_path / "out.pixmap").exists()
    else:
        pytest.fail("never finished")
    assert again == report
    whole.save(tmp_path / "a.pixmap")
    map_.save(tmp_path / "b.pixmap")
    assert (tmp_path / "a.pixmap").read_bytes() == (tmp_path / "b.pixmap").read_bytes()
    assert read[-1] == START + 15 * STEP and len(read) < 60  # stretches under way are read again, closed ones are not


def test_other_work_is_not_mixed_in(tmp_path):
    first = WorkFolder(tmp_path / "w", {"bag": "a"})
    first.arrays("x", lambda: {"v": np.arange(3)})
    assert WorkFolder(tmp_path / "w", {"bag": "a"}).resumed
    assert WorkFolder(tmp_path / "w", {"bag": "a"}).arrays("x", lambda: pytest.fail("made again"))["v"].tolist() == [0, 1, 2]
    other = WorkFolder(tmp_path / "w", {"bag": "b"})
    assert not other.resumed and other.arrays("x", lambda: {"v": np.ones(1)})["v"].tolist() == [1]
    other.path("x.npz").write_bytes(b"half a file")
    assert other.arrays("x", lambda: {"v": np.zeros(1)})["v"].tolist() == [0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        WorkFolder(tmp_path / "mine", {})
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_killed_at_any_moment_the_output_is_the_old_or_the_new_map(bag, tmp_path):
    """The command with the shipped network, killed at several moments, then left alone."""
    pytest.importorskip("pycolmap")
    out = tmp_path / "site.pixmap"
    out.write_bytes(b"the old map")
    command = [
        sys.executable,
        "-m",
        "pixloc_ros.cli.main",
        "map",
        "bag",
        str(bag),
        "-o",
        str(out),
        "--report",
        str(tmp_path / "report.json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    work = tmp_path / "site.pixmap.work"
    # What must be there before the kill: each later than the one before.
    for landmark in ("keyframes/000001.json", "matches/000001.npz", "encoded/000001.npz"):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (work / landmark).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.returncode != 0:  # it may have been faster
            assert out.read_bytes() == b"the old map" or Map.open(out, verify=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(Map.open(out, verify=True).xyz) > 200 and not work.exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 16 and report["bytes"] == out.stat().st_size
    assert {"coverage", "points_per_keyframe", "reprojection_px", "descriptor_consistency"} <= set(report)


def test_command_keeps_images_for_another_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pixloc_ros.features.load_extractor", lambda weights: FakeExtractor())
    bag = write_bag(tmp_path / "drive", 8, depth="16UC1")
    out, images = str(tmp_path / "site.pixmap"), tmp_path / "images"
    assert main(["map", "bag", str(bag), "-o", out, "--keep-images", str(images)]) == 0
    assert "depth from /camera/aligned_depth/image_raw" in capsys.readouterr().out
    assert sorted(p.name for p in images.iterdir()) == Map.open(out).keyframe_names
    assert main(["map", "re-encode", out, "--images", str(images), "-o", str(tmp_path / "again.pixmap")]) == 0
    assert np.array_equal(Map.open(tmp_path / "again.pixmap").xyz, Map.open(out).xyz)
    assert main(["map", "bag", str(bag), "-o", out, "--keep-images", str(images)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["map", "bag", str(tmp_path / "gone"), "-o", out]) == 2

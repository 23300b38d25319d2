# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import contextlib
import shutil
import sqlite3
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from pixloc_ros.errors import InputError
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.frames import CameraFrame, OdometryMessage, UnusableFrame

W, H, T0 = 80, 64, 1_700_000_000_000_000_000
MS = 1_000_000


def shifted(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


@contextlib.contextmanager
def mounted(path: Path):
    """A new bag with the camera's mount."""
    with BagWriter(path) as bag:
        bag.transform("/tf_static", T0, "base_link", "camera_optical", BASE_FROM_CAMERA)
        yield bag


def shoot(bag: BagWriter, stamp: int, value=0, time_ns=None, topic="/camera/image_raw") -> None:
    """An image with its calibration."""
    bag.info(stamp, W, H, 70.0, topic.rpartition("/")[0] + "/camera_info", time_ns=time_ns)
    bag.image(stamp, np.full((H, W), value, np.uint8), W, H, topic=topic, time_ns=time_ns)


def write_drive(path: Path, storage="mcap", static=True, truth=True, odometry=True, images=3) -> Path:
    with BagWriter(path, storage) as bag:
        if static:
            bag.transform("/tf_static", T0, "base_link", "mount", shifted(1.0))
            bag.transform("/tf_static", T0, "mount", "camera_optical", BASE_FROM_CAMERA)
        for i in range(images):
            stamp = T0 + i * 100 * MS
            # Recorded in an order in which nothing is: the image comes late, its calibration later.
            if odometry:
                for j in (1, 0):
                    bag.odometry(stamp + j * 50 * MS, shifted(i + j / 2), time_ns=stamp)
            pixels = np.full((H, W), 10 * i % 250, np.uint8)
            bag.image(stamp, pixels, W, H, time_ns=stamp + 30 * MS)
            bag.info(stamp, W, H, 70.0, time_ns=stamp + 31 * MS)
            if truth:
                bag.truth(stamp, shifted(100.0 + i))
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "ros1"])
def test_events_come_in_the_order_of_their_stamps(tmp_path, storage):
    path = write_drive(tmp_path / ("drive.bag" if storage == "ros1" else "drive"), storage)
    with BagReader(path) as bag:
        events = list(bag.events())
        again = list(bag.events())
        assert (bag.image_topic, bag.odometry_topic, bag.truth_topic) == ("/camera/image_raw", "/odom", "/ground_truth/pose")
        assert (bag.base_frame, bag.odom_frame, bag.camera_frame) == ("base_link", "odom", "camera_optical")
        expected = torch.from_numpy(shifted(1.0) @ BASE_FROM_CAMERA)
        assert torch.allclose(bag.base_from_camera, expected, atol=1e-12)
        assert bag.truth().map_from_body[:, 0, 3].tolist() == [100, 101, 102]
        assert len(bag.odometry()) == 6
        assert bag.image_count == 3 and list(bag.image_stamps()) == [T0, T0 + 100 * MS, T0 + 200 * MS]
    stamps = [e.stamp_ns for e in events]
    assert stamps == sorted(stamps) == [e.stamp_ns for e in again]
    assert [type(e) for e in events] == [OdometryMessage, CameraFrame, OdometryMessage] * 3
    frames = [e for e in events if isinstance(e, CameraFrame)]
    assert [int(f.image[0, 0]) for f in frames] == [0, 10, 20]
    assert frames[0].camera.params.tolist() == [70, 70, (W - 1) / 2, (H - 1) / 2]
    assert torch.equal(events[0].twist_covariance.diagonal(), torch.arange(1.0, 7, dtype=torch.float64))


@pytest.mark.parametrize("offset_s", [-1.0, -0.08, 0.03, 1.0])
def test_a_time_offset_moves_images_with_their_calibration_and_nothing_else(tmp_path, offset_s):
    path = write_drive(tmp_path / "drive", images=25)
    with BagReader(path) as bag:
        plain, stamps, truth, odometry = list(bag.events()), list(bag.image_stamps()), bag.truth(), bag.odometry()
    with BagReader(path, BagOptions(time_offset_s=offset_s)) as bag:
        moved = list(bag.events())
        assert list(bag.image_stamps()) == [stamp + round(offset_s * 1e9) for stamp in stamps]
        assert [f.stamp_ns for f in bag.frames()] == sorted(bag.image_stamps())
        assert np.array_equal(bag.truth().stamps_ns, truth.stamps_ns)
        assert np.array_equal(bag.odometry().stamps_ns, odometry.stamps_ns)
    assert [e.stamp_ns for e in moved] == sorted(e.stamp_ns for e in moved), "no clock was set back"
    assert all(isinstance(e, (OdometryMessage, CameraFrame)) for e in moved)  # no image without its calibration
    images = [e for e in moved if isinstance(e, CameraFrame)]
    assert [int(f.image[0, 0]) for f in images] == [int(e.image[0, 0]) for e in plain if isinstance(e, CameraFrame)]


def test_a_single_file_opens_too(tmp_path):
    path = write_drive(tmp_path / "drive")
    with BagReader(next(path.glob("*.mcap"))) as bag:
        assert len(list(bag.events())) == 9


def test_odometry_and_truth_from_tf(tmp_path):
    with mounted(tmp_path / "b") as bag:
        bag.transform("/tf_static", T0, "base_link", "marker", shifted(2.0))
        for i in range(3):
            bag.transform("/tf", T0 + i * MS, "odom", "base_link", shifted(float(i)))
            bag.transform("/tf", T0 + i * MS, "world", "marker", shifted(10.0 + i))
        shoot(bag, T0)
    with BagReader(tmp_path / "b", BagOptions(truth="tf:world:marker")) as bag:
        assert bag.odometry_topic == "tf"
        assert bag.odometry().map_from_body[:, 0, 3].tolist() == [0, 1, 2]
        assert bag.truth().map_from_body[:, 0, 3].tolist() == [8, 9, 10]


def test_no_odometry_and_no_truth(tmp_path):
    with BagReader(write_drive(tmp_path / "b", odometry=False, truth=False)) as bag:
        assert bag.odometry_topic is None and bag.truth_topic is None
        assert len(bag.truth()) == len(bag.odometry()) == 0
        assert [type(e) for e in bag.events()] == [CameraFrame] * 3


def test_missing_static_transform_names_what_is_there(tmp_path):
    path = write_drive(tmp_path / "b", static=False)
    with pytest.raises(InputError, match="no static transform from base_link .*none at all.*--base-from-camera"):
        BagReader(path)
    with BagReader(path, BagOptions(base_from_camera=torch.eye(4, dtype=torch.float64))) as bag:
        assert torch.equal(bag.base_from_camera, torch.eye(4, dtype=torch.float64))


def test_several_cameras_have_to_be_chosen(tmp_path):
    with mounted(tmp_path / "b") as bag:
        for side in ("left", "right"):
            shoot(bag, T0, topic=f"/{side}/image_raw")
        bag.image(T0, np.zeros((H, W), np.uint16), W, H, "16UC1", topic="/depth/image_raw")
    with pytest.raises(InputError, match="2 topics .*/left/image_raw, /right/image_raw; choose with --image-topic"):
        BagReader(tmp_path / "b")
    with BagReader(tmp_path / "b", BagOptions(image="/right/image_raw")) as bag:
        assert bag.camera_info_topic == "/right/camera_info"
    with pytest.raises(InputError, match="no image topic /middle"):
        BagReader(tmp_path / "b", BagOptions(image="/middle"))


def test_frames_that_cannot_be_used_are_told_not_dropped(tmp_path):
    with mounted(tmp_path / "b") as bag:
        good = cv2.imencode(".jpg", np.zeros((H, W), np.uint8))[1].tobytes()
        small = cv2.imencode(".jpg", np.zeros((H // 2, W), np.uint8))[1].tobytes()
        for i, data in enumerate((good, good[:30], small, good)):
            bag.info(T0 + i * MS, W, H, 70.0, d=(0.0, 0, 0, 0, 0, 9) if i == 3 else (0.0,) * 5)
            bag.compressed(T0 + i * MS, data)
        bag.compressed(0, good)
        bag.compressed(T0 + 4 * MS, good, frame="other_camera")
    with BagReader(tmp_path / "b") as bag:
        assert bag.image_compressed
        events = list(bag.events())
        assert bag.notes == ("images without a stamp (0): 1 left out",) and len(list(bag.image_stamps())) == 5
    assert [type(e) for e in events] == [CameraFrame, *[UnusableFrame] * 4]
    assert "its frame is 'other_camera', not 'camera_optical'" in events[4].reason
    assert "cannot be decoded" in events[1].reason
    assert "80x32 but CameraInfo says 80x64" in events[2].reason
    assert "plumb_bob" in events[3].reason


def test_clock_set_back_starts_over(tmp_path):
    with mounted(tmp_path / "b") as bag:
        shoot(bag, T0)
        for i, seconds in enumerate((0, 3, 6, 0, 3)):
            bag.odometry(T0 + seconds * 10**9, shifted(float(i)), time_ns=T0 + i)
    with BagReader(tmp_path / "b") as bag:
        stamps = [(e.stamp_ns - T0) // 10**9 for e in bag.events() if isinstance(e, OdometryMessage)]
    assert stamps == [0, 3, 6, 0, 3]


def with_channel(path: Path, language: bytes, schema: bytes, encoding: bytes, topic: bytes = b"/log") -> None:
    """An MCAP file with one more channel, /log, as converters of other tools write it, and without an index."""

    def record(kind: int, *parts: bytes) -> bytes:
        return bytes([kind]) + sum(map(len, parts)).to_bytes(8, "little") + b"".join(parts)

    def text(content: bytes) -> bytes:
        return len(content).to_bytes(4, "little") + content

    data, number, time = path.read_bytes(), (99).to_bytes(2, "little"), T0.to_bytes(8, "little")
    summary = int.from_bytes(data[-28:-20], "little")
    foreign = record(3, number, text(b"foxglove.Log"), text(language), text(schema))
    foreign += record(4, number, number if language else bytes(2), text(topic), text(encoding), text(b""))
    foreign += record(5, number, bytes(4), time, time, b'{"level": 2}')
    end = data[summary - 13 : summary]
    path.write_bytes(data[: summary - 13] + foreign + end + record(2, bytes(20)) + data[-8:])


@pytest.mark.parametrize(
    ("language", "schema", "encoding"),
    [
        (b"jsonschema", b"{}", b"json"),
        (b"protobuf", b"\x0a\xff\xfe", b"protobuf"),
        (b"flatbuffer", b"\x00\x80", b"flatbuffer"),
        (b"", b"", b"json"),
        (b"ros2msg", b"this is { no definition", b"cdr"),
    ],
)
def test_channels_of_other_tools_are_left_out(tmp_path, language, schema, encoding):
    (file,) = write_drive(tmp_path / "drive").glob("*.mcap")
    with_channel(file, language, schema, encoding)
    for path in (file, tmp_path / "drive"):
        with BagReader(path) as bag:
            assert len(list(bag.events())) == 9 and bag.image_count == 3
            left_out = [] if encoding == b"cdr" else [f"/log is left out: its messages are {encoding.decode()}, not ROS's"]
            assert list(bag.notes) == left_out
    with pytest.raises(InputError, match="no image topic /log"):
        BagReader(file, BagOptions(image="/log"))


@pytest.mark.parametrize("lacks", ["child_frame_id", "twist"])
def test_messages_whose_definition_lacks_a_field_are_left_out(tmp_path, lacks):
    (file,) = write_drive(tmp_path / "drive", "sqlite3").glob("*.db3")
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        renamed = f"replace(encoded_message_definition, ' {lacks}', ' other')"
        database.execute(
            f"UPDATE message_definitions SET encoded_message_definition = {renamed} WHERE topic_type = 'nav_msgs/msg/Odometry'"
        )
    with pytest.raises(InputError, match=f"messages on /odom cannot be read .the definition of .* lacks {lacks}"):
        BagReader(file)
    with BagReader(file, BagOptions(odometry="none")) as bag:
        assert [type(event) for event in bag.events()] == [CameraFrame] * 3


def test_of_two_types_on_a_topic_the_frequent_one_is_read(tmp_path):
    (file,) = write_drive(tmp_path / "drive").glob("*.mcap")
    with_channel(file, b"ros2msg", b"string data", b"cdr", topic=b"/camera/image_raw")
    with BagReader(file) as bag:
        assert len(list(bag.events())) == 9
        assert bag.notes == ("messages of foxglove.Log on /camera/image_raw are left out: most are of sensor_msgs/msg/Image",)


def test_compressed_recordings_without_metadata(tmp_path):
    for mode in (CompressionMode.MESSAGE, CompressionMode.FILE):
        path = tmp_path / mode.name
        bag = BagWriter(path, "sqlite3")
        bag._writer.set_compression(mode, CompressionFormat.ZSTD)
        with bag:
            bag.transform("/tf_static", T0, "base_link", "camera_optical", BASE_FROM_CAMERA)
            shoot(bag, T0)
        (path / "metadata.yaml").unlink()
    with BagReader(tmp_path / "MESSAGE") as bag:
        assert [type(e) for e in bag.events()] == [CameraFrame]
    for at in (path, path / "FILE.db3.zstd"):
        with pytest.raises(InputError, match="it is compressed: unpack it with 'zstd -d .*/FILE.db3.zstd -o .*/FILE.db3'"):
            BagReader(at)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("metadata", [None, "", "rosbag2_bagfile_information: {relative_file_paths: [gone.mcap]}", "\t: ["])
def test_a_folder_whose_metadata_is_of_no_use_is_read(tmp_path, storage, metadata):
    path = write_drive(tmp_path / "drive", storage)
    (path / "metadata.yaml").unlink()
    if metadata is not None:
        (path / "metadata.yaml").write_text(metadata)
    with BagReader(path) as bag:
        assert len(list(bag.events())) == 9 and len(bag.notes) == (metadata is not None)


def test_a_recording_in_several_files_is_read_without_those_that_are_damaged(tmp_path):
    parts = [write_drive(tmp_path / f"part{k}", images=k + 1) for k in range(3)]
    (tmp_path / "drive").mkdir()
    for number, part in zip((2, 9, 10), parts):
        (file,) = part.glob("*.mcap")
        file.rename(tmp_path / "drive" / f"drive_{number}.mcap")
    with BagReader(tmp_path / "drive") as bag:
        assert bag.image_count == 6 and bag.notes == ()
    (tmp_path / "drive" / "drive_10.mcap").write_bytes(b"")
    with BagReader(tmp_path / "drive") as bag:
        assert bag.image_count == 3 and "drive_10.mcap: it is empty" in bag.notes[0]
    (tmp_path / "drive" / "drive_9.mcap").rename(tmp_path / "drive" / "other_0.mcap")
    with pytest.raises(InputError, match="several recordings .*give the file"):
        BagReader(tmp_path / "drive")
    with pytest.raises(InputError, match=f"did you mean {tmp_path}/drive"):
        BagReader(tmp_path)


def test_what_a_killed_recorder_left_is_read(tmp_path):
    (file,) = write_drive(tmp_path / "drive", images=700).glob("*.mcap")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with BagReader(file) as bag:
        events = list(bag.events())
        assert 300 < len(events) < 2100 and "was not closed" in bag.notes[0]
    assert [e.stamp_ns for e in events] == sorted(e.stamp_ns for e in events)


def test_single_messages_that_cannot_be_read_are_left_out_and_named(tmp_path):
    path = tmp_path / "b"
    with mounted(path) as bag:
        bag.transform("/tf_static", T0, "base_link", "laser", shifted(np.nan))
        for i in range(4):
            stamp = T0 + i * 100 * MS
            bag.odometry(stamp, shifted(i))
            shoot(bag, stamp)
            bag.truth(stamp, shifted(i) * (np.nan if i == 1 else 1))
            if i == 2:
                for connection in bag._connections.values():
                    bag._writer.write(connection, stamp, b"\0\1\0\0abc")
    with BagReader(path) as bag:
        assert [type(e) for e in bag.events()] == [OdometryMessage, CameraFrame] * 4
        assert len(bag.truth()) == 3 and len(list(bag.raw_messages(["/odom", "/camera/image_raw"]))) == 8
        notes = "\n".join(bag.notes)
        for topic in ("/camera/image_raw", "/camera/camera_info", "/odom", "/tf_static", "/ground_truth/pose"):
            assert f"1 messages on {topic} cannot be read" in notes
        assert "base_link -> laser is no pose" in notes and "poses of the truth that are no numbers: 1" in notes


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="no sqlite3 program")
def test_the_remedy_for_a_damaged_sqlite3_file_saves_what_can_be_read(tmp_path):
    (file,) = write_drive(tmp_path / "drive", "sqlite3", images=100).glob("*.db3")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="malformed; is it complete. Save what can be read: sqlite3 ") as caught:
        BagReader(file)
    subprocess.run(str(caught.value).partition("read: ")[2], shell=True, check=True)
    with BagReader(file.with_stem(f"{file.stem}_whole")) as bag:
        assert bag.image_count > 20


def test_bad_bags_give_one_line(tmp_path):
    with pytest.raises(InputError, match="no bag at"):
        BagReader(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no bag at .*holds no .mcap"):
        BagReader(tmp_path / "empty")
    for content, message in ((b"nothing of the kind" * 10, "no MCAP, sqlite3 or ROS 1"), (b"", "it is empty")):
        (tmp_path / "foreign.mcap").write_bytes(content)
        with pytest.raises(InputError, match=f"cannot open the bag .*{message}"):
            BagReader(tmp_path / "foreign.mcap")
    for storage in ("mcap", "sqlite3"):
        path = write_drive(tmp_path / storage, storage)
        file = next(f for f in path.iterdir() if f.name != "metadata.yaml")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(InputError), BagReader(path) as bag:
            list(bag.events())
    with BagWriter(tmp_path / "odometry_only") as bag:
        bag.odometry(T0, np.eye(4))
    with pytest.raises(InputError, match=r"has no image topic \(Image or CompressedImage\), but /odom: record one"):
        BagReader(tmp_path / "odometry_only")


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        ([0, 0, 0], r"have no stamp \(0\)"),
        ([5, 5, 5], "are 3, but have only 1 different stamp"),
        ([0, 0, 5], "are 3, but have only 1 different stamp"),
        ([100 * MS, 200 * MS, 300 * MS], "are dated -1.* s from odometry"),
    ],
)
def test_images_that_nothing_dates_are_refused_or_dated_by_their_recording(tmp_path, stamps, message):
    with mounted(tmp_path / "b") as bag:
        for i, stamp in enumerate(stamps):
            time = T0 + i * 100 * MS
            bag.odometry(time, shifted(i))
            shoot(bag, stamp, i, time + 1)
    with pytest.raises(InputError, match=f"{message}.*--recording-time"):
        BagReader(tmp_path / "b")
    with BagReader(tmp_path / "b", BagOptions(recording_time=True)) as bag:
        frames = [e for e in bag.events() if isinstance(e, CameraFrame)]
        assert [f.stamp_ns for f in frames] == [T0 + i * 100 * MS + 1 for i in range(3)] == list(bag.image_stamps())
        raw = [m.cdr for m in bag.raw_messages([bag.image_topic])]
        assert [int.from_bytes(c[4:8], "little") * 10**9 + int.from_bytes(c[8:12], "little") for c in raw] == list(
            bag.image_stamps()
        )


def test_what_was_recorded_one_topic_after_the_other_has_one_clock_all_the_same(tmp_path):
    """As converters write it; and the first images of a simulation have no stamp yet."""
    with mounted(tmp_path / "b") as bag:
        for i in range(3):
            bag.odometry(T0 + i * 100 * MS, shifted(i), time_ns=T0 + 10**12 + i)
        for i, stamp in enumerate((0, T0, T0 + 100 * MS)):
            shoot(bag, stamp, i, T0 + 2 * 10**12 + i)
    with BagReader(tmp_path / "b") as bag:
        assert bag.odometry_topic == "/odom" and bag.image_count == 3


def test_odometry_of_another_clock_than_the_recording_is_named_as_what_to_leave_out(tmp_path):
    with mounted(tmp_path / "b") as bag:
        bag.odometry(0, shifted(0), time_ns=T0)
        for i in range(3):  # the calibration has no stamp: that does no harm
            bag.info(0, W, H, 70.0, time_ns=T0 + i * 100 * MS)
            bag.image(T0 + i * 100 * MS, np.zeros((H, W), np.uint8), W, H)
    with pytest.raises(InputError, match="dated .* s from odometry .*--odometry-topic none"):
        BagReader(tmp_path / "b")
    with BagReader(tmp_path / "b", BagOptions(odometry="none")) as bag:
        assert [e.stamp_ns for e in bag.events()] == [T0, T0 + 100 * MS, T0 + 200 * MS]


def test_static_transforms_that_are_no_poses_or_differ_are_named(tmp_path):
    with BagWriter(tmp_path / "none") as bag:
        bag.transform("/tf_static", T0, "base_link", "camera_optical", np.full((4, 4), np.nan))
        shoot(bag, T0)
    with pytest.raises(InputError, match="--base-from-camera, .*; the static transform base_link -> camera_optical is no pose"):
        BagReader(tmp_path / "none")
    with BagWriter(tmp_path / "two") as bag:
        for x in (1.0, 1.0, 2.0):
            bag.transform("/tf_static", T0, "base_link", "camera_optical", shifted(x) @ BASE_FROM_CAMERA)
        shoot(bag, T0)
    with BagReader(tmp_path / "two") as bag:
        assert torch.allclose(bag.base_from_camera, torch.from_numpy(shifted(2.0) @ BASE_FROM_CAMERA))
        assert [note for note in bag.notes if "camera_optical has several values" in note] == list(bag.notes)


@pytest.mark.parametrize("step", [0.0, 0.0004, 0.02])
def test_a_mount_that_is_published_again_and_again_is_static_where_it_does_not_change(tmp_path, step):
    with BagWriter(tmp_path / "b") as bag:
        for i in range(3):
            stamp = T0 + i * 100 * MS
            bag.transform("/tf", stamp, "base_link", "head", shifted(1.0 + i * step))
            bag.transform("/tf", stamp, "head", "camera_optical", BASE_FROM_CAMERA)
            bag.odometry(stamp, shifted(i))
            shoot(bag, stamp)
    if step > 0.01:
        with pytest.raises(InputError, match="from base_link to camera_optical changes on /tf .*--base-from-camera"):
            BagReader(tmp_path / "b")
    else:
        with BagReader(tmp_path / "b") as bag:
            assert torch.allclose(bag.base_from_camera, torch.from_numpy(shifted(1.0) @ BASE_FROM_CAMERA), atol=1e-12)


def test_raw_messages_are_cdr_whatever_the_bag(tmp_path):
    messages = {}
    for storage in ("mcap", "ros1"):
        path = write_drive(tmp_path / ("d.bag" if storage == "ros1" else "d"), storage)
        with BagReader(path) as bag:
            messages[storage] = list(bag.raw_messages(["/odom", "/camera/image_raw"]))
    assert [(m.time_ns, m.topic, m.type_name) for m in messages["mcap"]] == [
        (m.time_ns, m.topic, m.type_name) for m in messages["ros1"]
    ]
    assert len(messages["mcap"]) == 9
    assert messages["mcap"][0].cdr[:4] == messages["ros1"][0].cdr[:4] == b"\x00\x01\x00\x00"


def test_shared_bags(shared_data):
    with BagReader(shared_data / "kitti07" / "drive") as bag:
        frames = [e for e in bag.events() if isinstance(e, CameraFrame)]
        assert len(frames) == len(bag.truth()) == 160
        assert frames[0].image.shape == (193, 640)

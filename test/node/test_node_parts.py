# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Parts of the node by themselves: messages to the core's types and back, covariances against sampling, stamps of the published
transform as a tf2 listener sees them, the queue of images, the board of diagnostics."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from tf2_ros import Buffer

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.calibration import read_calibration
from pixloc_ros.io.image_format import bytes_per_pixel, decode_raw
from pixloc_ros.node import conversions
from pixloc_ros.node.camera_input import CameraInput
from pixloc_ros.node.diagnostics import ERROR, HOLD_S, OK, WARN, DiagnosticBoard
from pixloc_ros.node.planar import planar
from pixloc_ros.node.transform_schedule import TransformSchedule
from pixloc_ros.node.work_queue import ReceivedImage, WorkQueue

MS = 1_000_000
START = 10_000 * MS
TANGENT = st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6)


def random_covariance(seed: int, scale: float) -> torch.Tensor:
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return scale**2 * (root @ root.mT + 0.1 * torch.eye(6, dtype=torch.float64))


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_round_trip(stamp_ns):
    stamp = conversions.stamp_from_ns(stamp_ns)
    assert conversions.stamp_to_ns(stamp) == stamp_ns and stamp.sec == stamp_ns // 10**9


@given(TANGENT)
@example([0.0] * 3 + [math.pi, 0.0, 0.0])
@example([0.0] * 4 + [math.pi, 0.0])
@example([0.0] * 5 + [math.pi])
def test_poses_round_trip(xi):
    pose = se3.se3_exp(torch.tensor(xi, dtype=torch.float64))
    message = conversions.matrix_to_pose(pose)
    q = message.orientation
    assert math.hypot(q.x, q.y, q.z, q.w) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(conversions.pose_to_matrix(message, "pose"), pose, atol=1e-12, rtol=0)
    stamped = conversions.transform_stamped("a", "b", 5, pose)
    assert torch.allclose(conversions.transform_to_matrix(stamped.transform, "t"), pose, atol=1e-12, rtol=0)


@given(st.floats(-3, 3), st.floats(-1.5, 1.5), st.floats(-3, 3))
def test_euler_angles_turn_about_fixed_axes(roll, pitch, yaw):
    turn = lambda axis, angle: se3.so3_exp(angle * torch.eye(3, dtype=torch.float64)[axis])  # noqa: E731
    expected = turn(2, yaw) @ turn(1, pitch) @ turn(0, roll)
    pose = conversions.matrix_from_euler((1.0, 2.0, 3.0), roll, pitch, yaw)
    assert torch.allclose(pose[:3, :3], expected, atol=1e-12, rtol=0)
    assert pose[:3, 3].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("seed", [0, 1])
def test_covariance_agrees_with_sampling(seed):
    """Poses sampled in the base frame, measured the way REP-103 says: position, and rotation about the map's axes."""
    generator = torch.Generator().manual_seed(seed)
    pose = se3.se3_exp(2.0 * torch.randn(6, dtype=torch.float64, generator=generator))
    covariance = random_covariance(seed, 0.003)
    noise = torch.randn(200_000, 6, dtype=torch.float64, generator=generator) @ torch.linalg.cholesky(covariance).mT
    samples = pose @ se3.se3_exp(noise)
    position = samples[:, :3, 3] - pose[:3, 3]
    rotation = se3.so3_log(samples[:, :3, :3] @ pose[:3, :3].mT)
    measured = torch.cov(torch.cat((position, rotation), -1).mT)
    message = torch.tensor(conversions.covariance_to_message(covariance, pose)).reshape(6, 6)
    scale = message.diagonal().sqrt()
    assert (((measured - message) / (scale[:, None] * scale)).abs() < 0.02).all()


@given(TANGENT, st.integers(0, 100))
def test_covariances_round_trip(xi, seed):
    pose, covariance = se3.se3_exp(torch.tensor(xi, dtype=torch.float64)), random_covariance(seed, 0.1)
    message = conversions.pose_with_covariance(pose, covariance)
    again = conversions.covariance_from_message(message.covariance, pose, "pose")
    assert torch.allclose(again, covariance, atol=1e-12, rtol=1e-9)


def test_bad_covariances_are_named():
    identity = torch.eye(4, dtype=torch.float64)
    assert conversions.covariance_from_message(np.zeros(36), identity, "X") is None
    for numbers, text in (
        (np.full(36, np.nan), "NaN"),
        (np.diag([-1.0] * 6).ravel(), "not symmetric and positive"),
        (np.triu(np.ones((6, 6))).ravel(), "not symmetric and positive"),
    ):
        with pytest.raises(InputError, match=f"X has a covariance .*{text}"):
            conversions.covariance_from_message(numbers, identity, "X")


def test_camera_of_a_binned_region():
    info = CameraInfo(
        width=640, height=480, distortion_model="plumb_bob", d=[0.0] * 5, binning_x=2, binning_y=2,
        k=[500.0, 0.0, 319.5, 0.0, 500.0, 239.5, 0.0, 0.0, 1.0],
        roi=RegionOfInterest(x_offset=100, y_offset=40, width=400, height=300),
    )  # fmt: skip
    camera = read_calibration(info, "camera/image_raw").camera  # c' = (c - offset + 0.5) / 2 - 0.5
    assert (camera.width, camera.height, camera.params.tolist()) == (200, 150, [250.0, 250.0, 109.5, 99.5])


@pytest.mark.parametrize("encoding", ["mono8", "mono16", "rgb8", "bgr8", "bgra8", "rgb16", "bayer_gbrg8", "yuv422", "yuyv"])
@pytest.mark.parametrize("padding", [0, 5, 12])
@pytest.mark.parametrize("is_bigendian", [0, 1])
def test_images_through_cv_bridge_are_what_the_bag_reader_sees(encoding, padding, is_bigendian):
    height, width = 12, 16
    step = width * bytes_per_pixel(encoding) + padding
    data = np.random.default_rng(0).integers(0, 255, step * height, np.uint8).tobytes()
    message = Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=is_bigendian, data=data)
    pixels = conversions.decode_image(message)
    assert np.array_equal(pixels, decode_raw(data, height, width, encoding, step, bool(is_bigendian)))
    assert pixels.dtype == np.uint8 and pixels.shape[:2] == (height, width)


def transform(x: float) -> torch.Tensor:
    return conversions.matrix_from_euler((x, 0.0, 0.0), 0.0, 0.0, 0.0)


class Listener:
    """A tf2 buffer and what the schedule says."""

    def __init__(self, tolerance_ns: int) -> None:
        self.buffer, self.schedule, self.tolerance_ns = Buffer(), TransformSchedule(), tolerance_ns

    def hear(self, stamped) -> int:
        for stamp_ns, x in stamped:
            self.buffer.set_transform(conversions.transform_stamped("map", "odom", stamp_ns, transform(x)), "test")
        return len(stamped)

    def found(self, x: float, image_ns: int) -> int:
        return self.hear(self.schedule.found(x, image_ns, self.tolerance_ns))

    def due(self, newest_ns: int) -> int:
        return self.hear(self.schedule.due(newest_ns, self.tolerance_ns))

    def at(self, stamp_ns: int) -> float:
        return self.buffer.lookup_transform("map", "odom", Time(nanoseconds=stamp_ns)).transform.translation.x


# Image period equal to the tolerance as well: then stamps of successive images coincide exactly.
@pytest.mark.parametrize("period_ms", [30, 33, 50, 100, 400])
@pytest.mark.parametrize("latency_ms", [5, 60, 90])
@pytest.mark.parametrize("tolerance_ms", [0, 20, 100])
def test_every_lookup_gives_the_newest_transform(period_ms, latency_ms, tolerance_ms):
    """At any time from an image on, up to the data seen so far: no extrapolation and no older value."""
    listener = Listener(tolerance_ms * MS)
    latest, found_ns = None, None
    for now_ms in range(0, 1000, 5):
        now = START + now_ms * MS
        image_ms = now_ms - latency_ms
        if image_ms >= 0 and image_ms % period_ms == 0:
            latest, found_ns = float(image_ms), START + image_ms * MS
            listener.found(latest, found_ns)
            assert listener.at(found_ns) == latest
            assert listener.at(found_ns + tolerance_ms * MS) == latest
        if now_ms % 10 == 0:
            listener.due(now)
        if latest is not None and now_ms % 10 == 0:
            for ahead_ms in range(0, now_ms + tolerance_ms // 2 - image_ms + period_ms, 13):
                stamp = found_ns + ahead_ms * MS
                if stamp <= now + tolerance_ms // 2 * MS:
                    assert listener.at(stamp) == pytest.approx(latest, abs=1e-6), (now_ms, ahead_ms)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 150)), min_size=1, max_size=60), st.integers(0, 300))
def test_any_order_of_images_and_repeats(steps, tolerance_ms):
    listener = Listener(tolerance_ms * MS)
    now, latest = START, None
    for is_image, step_ms in steps:
        now += step_ms * MS
        if is_image:
            latest = float(now // MS)
            sent = listener.found(latest, now)
            assert sent < 60
        elif latest is not None:
            listener.due(now)
        if latest is not None:
            assert listener.at(now) == pytest.approx(latest, abs=1e-6)


def test_silence():
    schedule = TransformSchedule()
    assert schedule.due(START, 100 * MS) == []
    assert schedule.found("t", START, 100 * MS) == [(START, "t"), (START + 100 * MS, "t")]
    assert schedule.due(START + 60 * MS, 100 * MS) == [(START + 160 * MS, "t")]
    assert schedule.due(START + 60 * MS, 100 * MS) == []
    schedule.clear()
    assert schedule.due(START + 500 * MS, 100 * MS) == []


def test_since_when_a_camera_shows_a_picture():
    camera = CameraInput(None, None, "", None)
    pixels = np.random.default_rng(0).integers(0, 255, 640 * 480, np.uint8)
    picture, noisy = (Image(data=values.tobytes()) for values in (pixels, pixels ^ 1))
    shown = [camera.shown_since(message, stamp) for message, stamp in ((picture, 5), (picture, 7), (noisy, 9), (noisy, 11))]
    assert shown == [5, 5, 9, 9]
    black, small = Image(data=bytes(9)), Image(data=bytes(2))
    assert [camera.shown_since(message, stamp) for message, stamp in ((picture, 13), (black, 15), (small, 17))] == [13, 15, 17]
    assert camera.shown_since(small, 3) == 3, "a new time began"
    assert camera.shown_since(Image(), 4) == 4, "a message without content"


def test_queue_keeps_the_newest():
    queue = WorkQueue(1)
    first, second = (ReceivedImage(None, stamp, 0.0) for stamp in (1, 2))
    assert queue.put(first) is None and queue.put(second) is first
    assert queue.put(first) is first, "a latecomer does not replace a newer image"
    assert queue.take() is second
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(queue.take()))
    thread.start()
    queue.close()
    thread.join(2.0)
    assert waiting == [None]


def test_queue_of_all():
    queue = WorkQueue(3)
    frames = [ReceivedImage(None, stamp, 0.0) for stamp in range(5)]
    assert [queue.put(f) for f in frames] == [None, None, None, frames[0], frames[1]]
    assert queue.take() is frames[2] and queue.clear_frames() == frames[3:]


def test_board():
    now, log = [0.0], []
    board = DiagnosticBoard(lambda level, text: log.append(text), lambda: now[0])
    board.take_changed()
    assert {s.level for s in board.statuses("node", "")} == {OK} and not board.take_changed()
    board.report("image", "format", WARN, "bad 1")
    board.report("image", "format", WARN, "bad 2")
    board.report("image", "silent", ERROR, "worse")
    assert log == ["image: bad 1", "image: worse"], "one line per condition, not per message"
    assert board.take_changed() and not board.take_changed()
    status = next(s for s in board.statuses("node", "site") if s.name == "node: image")
    assert (status.level, status.message, status.hardware_id) == (ERROR, "worse; bad 2", "site")
    board.clear("image")
    assert not board.take_changed(), "conditions stay long enough to be seen"
    now[0] = HOLD_S + 0.1
    assert board.take_changed()
    assert {s.level for s in board.statuses("node", "")} == {OK}


@given(TANGENT, TANGENT)
def test_a_planar_transform_places_the_base_as_seen_from_above(xi, odometry_xi):
    level = lambda x: conversions.matrix_from_euler((x[0], x[1], 0.1 * x[2]), 0.1 * x[3], 0.1 * x[4], x[5])  # noqa: E731
    map_from_base, odom_from_base = level(xi), level(odometry_xi)
    found = planar(map_from_base, odom_from_base)
    placed = found.transform @ odom_from_base
    assert torch.allclose(placed[:2, 3], map_from_base[:2, 3], atol=1e-9)
    heading = [math.atan2(pose[1, 0], pose[0, 0]) for pose in (placed, map_from_base)]
    assert math.cos(heading[0] - heading[1]) == pytest.approx(1.0, abs=1e-9)
    assert found.transform[2].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert placed[2, 3] == pytest.approx(float(odom_from_base[2, 3]))


def test_a_planar_transform_says_what_it_leaves_out():
    base, floor = conversions.matrix_from_euler((3.0, 1.0, 0.02), 0.01, 0.0, 0.5), torch.eye(4, dtype=torch.float64)
    assert planar(base, floor).warning == ""
    found = planar(conversions.matrix_from_euler((3.0, 1.0, 0.5), 0.0, math.radians(10), 0.5), floor)
    assert (found.height_m, math.degrees(found.tilt_rad)) == pytest.approx((0.5, 10.0), abs=1e-6)
    assert "0.50 m above" in found.warning and "pixloc map move" in found.warning

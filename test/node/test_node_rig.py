# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The node with several cameras, over real DDS: a simulated robot whose cameras fail one way or another."""

import contextlib
import math
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from node_harness import running
from pixloc_ros.msg import LocalizationStatus
from rclpy.serialization import deserialize_message, serialize_message
from scenes import simulated_scene
from sensor_msgs.msg import CompressedImage

from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import FALSE_TRACK
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.geometry import se3
from pixloc_ros.io.bag_sensors import imu_topic
from pixloc_ros.io.bags import BagOptions
from pixloc_ros.io.rig_images import open_bag
from pixloc_ros.localization import Localizer
from pixloc_ros.node.conversions import pose_to_matrix, stamp_from_ns, stamp_to_ns
from pixloc_ros.node.diagnostics import DiagnosticBoard
from pixloc_ros.node.rig_frames import RigFrames
from pixloc_ros.node.work_queue import ReceivedImage
from pixloc_ros.rig.replay import BagPlayer
from pixloc_ros.rig.robot import initial_pose_message

TRACKING = LocalizationStatus.TRACKING
CAMERAS = ("front", "left", "back")


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """The scene, and a localizer that has compiled."""
    scene = simulated_scene(tmp_path_factory, cameras=CAMERAS, imu=True, seconds=5.0)
    localizer = Localizer.open(scene.map)
    localizer.warm_up(rig=True)
    return scene, localizer


class FaultyPlayer(BagPlayer):
    """Plays a bag whose messages another function changes. It gets the time since the first message, the topic it is played as,
    and the message; it gives those that go out: seconds of delay, topic and message."""

    def __init__(self, node, bag, fault):
        super().__init__(node, bag, lambda stamp_ns: None, imu_topic(bag, None))
        self._fault, self._began_ns = fault, None
        self._timers = []

    def _publish(self, message):
        topic = self._names.get(message.topic)
        self._began_ns = message.time_ns if self._began_ns is None else self._began_ns
        self._played_s = (message.time_ns - self._began_ns) * 1e-9
        if topic is None:
            super()._publish(message)
            return
        publishers = {publisher.topic_name: publisher for publisher in self._publishers.values()}
        for delay_s, name, cdr in self._fault(self._played_s, topic, message.cdr):
            if delay_s > 0:
                self._timers.append(threading.Timer(delay_s, publishers[name].publish, (cdr,)))
                self._timers[-1].start()
            else:  # in their order, however busy the machine is
                publishers[name].publish(cdr)

    def play_for(self, seconds, start):
        """The first seconds of the bag."""
        self._seconds = seconds
        with contextlib.suppress(StopIteration):
            self.play(1.0, start, lambda: None, self._go_on)
        for timer in self._timers:
            timer.join()

    def _go_on(self, images, count):
        if self._played_s > self._seconds:
            raise StopIteration


def fine(seconds, topic, cdr):
    return [(0.0, topic, cdr)]


def only(camera, kind, change):
    """A fault of the images or calibrations of one camera."""

    def fault(seconds, topic, cdr):
        return change(seconds, topic, cdr) if topic.startswith(f"/{camera}/{kind}") else fine(seconds, topic, cdr)

    return fault


def stopped(seconds, topic, cdr):
    return [] if 0.7 < seconds < 1.9 else fine(seconds, topic, cdr)


def late(seconds, topic, cdr):
    return [(0.1, topic, cdr)]


def smaller(seconds, topic, cdr):
    message = deserialize_message(cdr, CompressedImage)
    image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    message.data = cv2.imencode(".jpg", cv2.resize(image, (160, 120)))[1].tobytes()
    return [(0.0, topic, serialize_message(message))]


def restamped(by_s, after_s=0.0):
    def fault(seconds, topic, cdr):
        message = deserialize_message(cdr, CompressedImage)
        message.header.stamp = stamp_from_ns(stamp_to_ns(message.header.stamp) + round(by_s * 1e9) * (seconds >= after_s))
        return [(0.0, topic, serialize_message(message))]

    return fault


def nothing(seconds, topic, cdr):
    return []


def swapped(seconds, topic, cdr):
    """The images of left and back change places, as by their cables."""
    other = {"left": "back", "back": "left"}.get(topic.split("/")[1])
    if other is None or "image" not in topic:
        return fine(seconds, topic, cdr)
    message = deserialize_message(cdr, CompressedImage)
    message.header.frame_id = f"{other}_optical"
    return [(0.0, topic.replace(topic.split("/")[1], other), serialize_message(message))]


@contextlib.contextmanager
def driven(rig, fault=fine, cameras=CAMERAS, seconds=3.5, **parameters):
    """The robot after the drive. No pose is wrong, whatever the fault."""
    scene, localizer = rig
    how = {"cameras": ",".join(cameras), "odometry_wait_s": 0.2, "imu_topic": "imu/data", "process_all_frames": True}
    with (
        open_bag(scene.drive, BagOptions(), cameras) as bag,
        running("compressed", lambda *_: localizer, connect=False, **how, **parameters) as (node, robot),
    ):
        player = FaultyPlayer(robot.node, bag, fault)
        robot.wait(player.is_heard)
        truth = bag.truth()
        start_ns, pose = offline.first_pose(bag, truth, None)
        start = initial_pose_message(pose, offline.initial_covariance())
        start.header.stamp = stamp_from_ns(start_ns)
        player.play_for(seconds, start)
        robot.wait(lambda: all_done(node._worker.health.counters), 60.0)
        yield node, robot
        poses = list(robot.poses)  # the last ones may still come
        stamps_ns = [stamp_to_ns(pose.header.stamp) for pose in poses]
        assert stamps_ns == sorted(set(stamps_ns)), "time never goes back"
        true, known = truth.at(np.array(stamps_ns), TRUTH_GAP_NS)
        found = torch.stack([pose_to_matrix(message.pose.pose, "pose") for message in poses])
        metres, radians = (error.numpy()[known] for error in se3.pose_difference(true, found))
        assert len(metres) > 8 and metres.max() < FALSE_TRACK[0] and radians.max() < math.radians(FALSE_TRACK[1])
        assert np.median(metres) < 0.03 and np.median(radians) < 0.01


def all_done(counters) -> bool:
    """Whether no frame waits."""
    return counters["received"] == counters["processed"] + counters["rejected"]


def complaints(robot, cameras) -> set[str]:
    """What is said of cameras, but for what the drive's end and a busy machine bring about."""
    said = {text for text in robot.texts if text.startswith(tuple(f"camera {name}: " for name in cameras))}
    return {text for text in said if text.split(": ")[1][:7] not in ("ok", "nothing", "its ima")}


def share_tracked(robot) -> float:
    return sum(status.state == TRACKING for status in robot.statuses) / len(robot.statuses)


def test_all_cameras_give_one_pose(rig):
    with driven(rig) as (node, robot):
        assert len(robot.statuses) >= 19 and share_tracked(robot) == 1.0
        assert {status.message for status in robot.statuses} == {""}
        robot.wait(lambda: int(robot.values["camera back"]["used"]) >= 8)
        assert not complaints(robot, CAMERAS)
        assert node._worker._assembly.tracker.rig.problems == dict.fromkeys(CAMERAS, "")


def test_the_next_camera_leads_while_the_first_is_silent(rig):
    with driven(rig, only("front", "image", stopped), seconds=5.0, input_timeout_s=0.5) as (_, robot):
        assert len(robot.statuses) >= 19 and share_tracked(robot) >= 0.95
        said = robot.texts.index(robot.diagnosed("camera front: nothing for "))
        assert "camera front: ok" in robot.texts[said:]


@pytest.mark.parametrize(
    ("fault", "camera", "said"),
    [
        (only("left", "image", late), "left", "its images come 0.1"),
        (only("left", "image", smaller), "left", "images are 160x120 but /left/camera_info says 320x240"),
        (only("front", "image", smaller), "front", "images are 160x120 but /front/camera_info says 320x240"),
        (only("back", "image", restamped(0.4)), "back", "its images are dated 0."),
        (only("left", "image", restamped(-3.0, after_s=1.0)), "left", "its stamps went back by"),
        (only("front", "camera_info", nothing), "front", "no CameraInfo on /front/camera_info"),
    ],
)
def test_a_camera_that_cannot_be_used_is_named(rig, fault, camera, said):
    with driven(rig, fault) as (_, robot):
        robot.diagnosed(f"camera {camera}: {said}")
        assert share_tracked(robot) >= 0.95 and len(robot.statuses) >= 19
        assert not complaints(robot, [name for name in CAMERAS if name != camera])


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_camera_whose_clock_jumps_ahead_never_leads(camera):
    boards, refused, frames = DiagnosticBoard(lambda *_: None).of_cameras(CAMERAS), [], []
    inputs = SimpleNamespace(
        cameras={name: SimpleNamespace(board=boards[name], is_ahead=False) for name in CAMERAS},
        watch=SimpleNamespace(silent_s=lambda *_: 0.0),
        refuse=lambda rejection, name, stamp_ns: refused.append((name, rejection.name, str(rejection))),
    )
    timer = SimpleNamespace(cancel=lambda: None, reset=lambda: None)
    rig = RigFrames(SimpleNamespace(create_timer=lambda *_, **__: timer), inputs, frames.append)
    for number in range(60):
        for offset_s, name in zip((0.0, 0.01, 0.02), CAMERAS):
            true_s = 100.0 + 0.1 * number + offset_s
            stamp_s = true_s + 0.4 * (name == camera and 20 <= number < 40)
            rig.add(ReceivedImage(None, round(stamp_s * 1e9), true_s - 50.0, camera=name))
    assert {(name, why) for name, why, _ in refused} == {(camera, "ahead"), (camera, "order")}
    assert 20 < len(refused) < 30 and all("dated 0.4" in text for _, why, text in refused if why == "ahead")
    leads_ns = [frame.stamp_ns for frame in frames]
    assert leads_ns == sorted(set(leads_ns)) and len(leads_ns) >= 55
    assert all(abs(one.stamp_ns * 1e-9 - one.received_at - 50.0) < 0.01 for frame in frames for one in (frame, *frame.others))


def test_two_cameras_that_changed_places_are_named(rig):
    with driven(rig, swapped) as (_, robot):
        assert share_tracked(robot) >= 0.95
        for name in ("left", "back"):
            robot.diagnosed(f"camera {name}: left out: it ")
        assert any("camera left is left out" in status.message for status in robot.statuses)


def test_one_camera_by_its_namespace(rig):
    with driven(rig, cameras=("front",)) as (_, robot):
        assert share_tracked(robot) == 1.0

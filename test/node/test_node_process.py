# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own: a simulated drive with the real network, signals, exit codes."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from node_harness import BASE_FROM_CAMERA, camera_info, image_message, isolate
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger
from tf2_ros import StaticTransformBroadcaster

from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.live_run import chain_errors
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.node import conversions, localization_node
from pixloc_ros.rig.replay import ReplayOptions, replay
from pixloc_sim.recordings import SimulationOptions, simulate

COMMAND = [sys.executable, "-m", "pixloc_ros.node.localization_node", "--ros-args"]


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """(map file, bag) of a short simulated drive with raw colour images."""
    folder = tmp_path_factory.mktemp("drive")
    options = SimulationOptions(seconds=3.0, rate_hz=8.0, width=320, height=240, texel=0.02, encoding="bgr8")
    simulate(folder / "scene", options)
    map_, _ = build_map_from_colmap(folder / "scene" / "map", folder / "scene" / "images", load_extractor())
    map_.save(folder / "site.pixmap")
    return folder / "site.pixmap", folder / "scene" / "drive"


def test_live_and_offline_give_the_same_poses(drive, tmp_path):
    isolate()
    map_path, bag_path = drive
    with BagReader(bag_path) as bag:
        truth = bag.truth()
        run = offline.run_bag(Localizer.open(map_path).tracker(relocalization=False), bag)
        start_ns, start = offline.first_pose(bag, truth, None)
        options = ReplayOptions(rate=1.0, all_frames=True)
        recording = replay(map_path, bag, start_ns, start, tmp_path / "node.log", options)
        base_from_camera = bag.base_from_camera
    live = {pose.stamp_ns: pose.map_from_base for pose in recording.poses}
    recorded = {record.stamp_ns: record.map_from_base for record in run.records if record.map_from_base is not None}
    assert len(recorded) > 15 and live.keys() == recorded.keys()
    for stamp_ns, pose in recorded.items():
        assert torch.allclose(live[stamp_ns], pose, atol=1e-4, rtol=0), "offline and live differ"
    assert sorted(s.stamp_ns for s in recording.statuses) == sorted(recording.sent_s), "one status per image"
    poses, known = truth.at(list(live), TRUTH_GAP_NS)
    distance, angle = se3.pose_difference(poses, torch.stack(list(live.values())))
    assert known.all() and distance.median() < 0.03 and angle.median() < 0.01
    translations, rotations, missing = chain_errors(recording, base_from_camera)
    assert missing <= 1  # the last image may come after the last odometry of the bag
    assert max(translations) < 1e-6 and max(rotations) < 1e-6
    late = [lookup for lookup in recording.lookups if lookup.error]
    assert all(lookup.stamp_ns > recording.last_odometry_ns for lookup in late), late


def start(*parameters: str) -> subprocess.Popen:
    isolate()
    words = [word for parameter in parameters for word in ("-p", parameter)]
    return subprocess.Popen(COMMAND + words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_broken_map_is_told_and_the_node_stays_until_interrupted(tmp_path):
    """The node stays up and says what is wrong, on the console and in diagnostics; SIGINT ends it with code 0."""
    broken = tmp_path / "broken.pixmap"
    broken.write_bytes(os.urandom(500))
    process = start(f"map:={broken}")
    context = rclpy.Context()
    rclpy.init(context=context)
    heard = []
    node = rclpy.create_node("listener", context=context)
    node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        deadline = time.monotonic() + 30
        while not heard and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.1)
        status = next(s for s in heard[-1].status if s.name == "localization_node: map")
        assert status.level == b"\2" and "broken.pixmap" in status.message and "call ~/load_map" in status.message
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=20)[0]
        assert process.returncode == 0, output
        assert "broken.pixmap" in output and "Traceback" not in output, output
    finally:
        process.kill()
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def test_interrupted_while_it_starts(tmp_path):
    """The signal comes between the first word on the map and the first spin."""
    isolate()
    command = [*COMMAND, "-p", f"map:={tmp_path / 'none.pixmap'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any("no map file" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


def test_interrupted_while_its_services_are_made(monkeypatch):
    """The signal takes the node's handle away."""
    isolate()

    def started():
        node = rclpy.create_node("localization_node")
        rclpy.shutdown()
        node.create_service(Trigger, "relocalize", lambda *_: None)
        raise AssertionError("a node that was destroyed has made a service")

    monkeypatch.setattr(localization_node, "LocalizationNode", started)
    assert localization_node.main([]) == 0


@pytest.mark.parametrize(
    ("parameter", "text"), [("odom_source:=wheels", "one of topic, tf, none"), ("image_topic:='bad topic'", "topic")]
)
def test_bad_parameters_end_the_node_with_one_line(parameter, text):
    process = start(parameter)
    output = process.communicate(timeout=60)[0]
    lines = [line for line in output.splitlines() if line.startswith("localization_node: ")]
    assert process.returncode == 2, output
    assert len(lines) == 1 and text in lines[0] and "Traceback" not in output, output


def test_terminated_while_images_are_processed(drive):
    """Ended in the middle of its work: code 0, no traceback."""
    map_path, _ = drive
    process = start(f"map:={map_path}", "odom_source:=none", "set_initial_pose:=true")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("camera", context=context)
    try:
        images = node.create_publisher(Image, "camera/image_raw", 10)
        info = node.create_publisher(CameraInfo, "camera/camera_info", 10)
        transforms = StaticTransformBroadcaster(node)
        transforms.sendTransform(conversions.transform_stamped("base_link", "camera_optical", 0, BASE_FROM_CAMERA))
        deadline = time.monotonic() + 60
        while not images.get_subscription_count() and time.monotonic() < deadline:
            time.sleep(0.05)
        for number in range(60):
            info.publish(camera_info())
            images.publish(image_message(number % 40, (number + 1) * 10_000_000))
            time.sleep(0.02)
            if number == 50:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0, lines
        reader.join()
        assert not any("Traceback" in line for line in lines), lines
    finally:
        process.kill()
        node.destroy_node()
        context.try_shutdown()

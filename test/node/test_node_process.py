# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own: a simulated drive with the real network, signals, exit codes."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from node_harness import BASE_FROM_CAMERA, FakeLocalizer, camera_info, grey_image, isolate, running, stamp_of, start_pose
from scenes import simulated_scene
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger
from tf2_ros import StaticTransformBroadcaster

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.live_run import chain_errors
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.localization import Localizer
from pixloc_ros.node import conversions, localization_node
from pixloc_ros.rig.node_process import NodeDied, NodeProcess, spinning_node
from pixloc_ros.rig.replay import ReplayOptions, replay
from pixloc_ros.rig.robot import image_message


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """(map file, bag) of a short simulated drive with raw colour images."""
    scene = simulated_scene(tmp_path_factory, seconds=3.0, rate_hz=8.0, encoding="bgr8")
    return scene.map, scene.drive


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


def start(folder, **parameters) -> NodeProcess:
    isolate()
    return NodeProcess(parameters, folder / "node.log")


def test_a_broken_map_is_reported_and_the_node_stays_until_interrupted(tmp_path):
    """The node stays up and says what is wrong, on the console and in diagnostics; SIGINT ends it with code 0."""
    broken = tmp_path / "broken.pixmap"
    broken.write_bytes(os.urandom(500))
    with start(tmp_path, map=broken) as process, spinning_node("listener") as listener:
        heard = []
        listener.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)

        def of_map():
            return next((s for s in heard[-1].status if s.name == "localization_node: map"), None) if heard else None

        process.wait_for(lambda: of_map() is not None and of_map().level != b"\0", "did not publish diagnostics")
        status = of_map()
        assert status.level == b"\2" and "broken.pixmap" in status.message and "call ~/load_map" in status.message
        with pytest.raises(InputError, match=r"the node did not fly within 0.1 s: see its log .*node\.log"):
            process.wait_for(lambda: False, "did not fly", 0.1)
        assert process.stop() == 0, process.output()
        assert "broken.pixmap" in process.output() and "Traceback" not in process.output()


def test_a_killed_launcher_takes_its_node_along(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pixloc_ros.rig.node_process import NodeProcess\n"
        "process = NodeProcess({'map': 'none.pixmap'}, Path(sys.argv[1])); print(process.pid, flush=True); time.sleep(100)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, tmp_path / "node.log"], stdout=subprocess.PIPE)
    with launcher:
        node = int(launcher.stdout.readline())
        launcher.kill()
    deadline = time.monotonic() + 20
    while is_running(node):
        assert time.monotonic() < deadline, "the node survives its launcher"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_interrupted_while_it_starts(tmp_path):
    """The signal comes between the first message about the map and the first spin."""
    with start(tmp_path, map=tmp_path / "none.pixmap") as process:
        process.wait_for(lambda: "no map file" in process.output(), "did not report the map")
        assert process.stop() == 0, process.output()


@pytest.mark.parametrize("files", [2, 12])
def test_interrupted_while_it_compiles(files, drive, tmp_path, monkeypatch):
    """With an empty cache of compiled code; `files` of it have been written when Ctrl-C is pressed. Nothing must be killed."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    with start(tmp_path, map=drive[0]) as process:
        process.wait_for(lambda: len(list(cache.rglob("*.nb?"))) >= files, "did not compile")
        process.wait_for(lambda: "loading" in process.output(), "did not load")
        began = time.monotonic()
        code = process.stop()
        assert time.monotonic() - began < 4.0  # 2 on a robot that does nothing else meanwhile
        assert code == 0 and "Traceback" not in process.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_imports(number, tmp_path, request):
    # Tests in the background ignore Ctrl-C, and so would the node.
    request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, signal.default_int_handler)))
    with start(tmp_path) as process:
        process.wait_for(lambda: "libtorch_python" in Path(f"/proc/{process.pid}/maps").read_text(), "did not import torch")
        process.send(number)
        assert process.process.wait(20) == 0 and not process.output()


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
    ("parameter", "value", "text"), [("odom_source", "wheels", "one of topic, tf, none"), ("image_topic", "'bad topic'", "topic")]
)
def test_bad_parameters_end_the_node_with_one_line(parameter, value, text, tmp_path):
    with start(tmp_path, **{parameter: value}) as process:
        with pytest.raises(NodeDied, match=f"the node ended with code 2: localization_node: .*{text}"):
            process.wait_for(lambda: False, "did not end")
        assert process.output().count("\nlocalization_node: ") <= 1 and "Traceback" not in process.output()


def test_terminated_while_images_are_processed(drive, tmp_path):
    """Ended in the middle of its work: code 0, no traceback."""
    parameters = {"map": drive[0], "odom_source": "none", "set_initial_pose": True}
    with start(tmp_path, **parameters) as process, spinning_node("camera") as camera:
        images = camera.create_publisher(Image, "camera/image_raw", 10)
        info = camera.create_publisher(CameraInfo, "camera/camera_info", 10)
        transforms = StaticTransformBroadcaster(camera)
        transforms.sendTransform(conversions.transform_stamped("base_link", "camera_optical", 0, BASE_FROM_CAMERA))
        process.wait_for(images.get_subscription_count, "did not listen")
        for number in range(60):
            info.publish(camera_info())
            images.publish(image_message(grey_image(number % 40), (number + 1) * 10_000_000))
            time.sleep(0.02)
            if number == 50:
                process.send(signal.SIGTERM)
        assert process.process.wait(20) == 0 and "Traceback" not in process.output(), process.output()


def test_an_error_in_the_program_ends_the_node_from_its_own_thread(monkeypatch):
    class Broken(FakeLocalizer):
        def answer(self, found):
            raise ZeroDivisionError("an error in the program")

    unheard = []
    monkeypatch.setattr(threading, "excepthook", unheard.append)
    with contextlib.suppress(Exception), running(open_localizer=Broken, **start_pose()) as (node, fed):
        worker = node._worker._thread
        fed.drive_to(stamp_of(1))
        fed.see(1)
        worker.join(20.0)
        assert not worker.is_alive()
    # The harness's own thread may still spin when the node's handles go.
    assert isinstance(node.failure, ZeroDivisionError) and not worker.is_alive()
    assert worker not in [failure.thread for failure in unheard]

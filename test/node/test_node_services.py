# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The node's life cycle, services and pictures, and what it starts from if nobody gives a pose, over real DDS."""

import gc
import math
import sys
import time
import types
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Path
from node_harness import FakeLocalizer, initial_pose_message, pose_of, running, stamp_of, start_pose
from pixloc_ros.msg import LocalizationStatus
from pixloc_ros.srv import LoadMap, SetPose
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, NavSatFix, NavSatStatus
from std_msgs.msg import Header, String
from std_srvs.srv import Empty, Trigger
from visualization_msgs.msg import Marker

from pixloc_ros.alignment.types import AlignmentResult, ReferencePoints
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.mapping.georeference import Georeference
from pixloc_ros.mapping.local_points import LocalPoints
from pixloc_ros.node import conversions
from pixloc_ros.node.parameters import PARAMETERS
from pixloc_ros.tracking.last_pose import LastPose, load_last_pose, save_last_pose
from pixloc_ros.tracking.types import AlignedView, FrameAlignment, RigView

TRACKING, INITIALIZING = LocalizationStatus.TRACKING, LocalizationStatus.INITIALIZING
PLACE = np.array([48.1, 11.5, 520.0])


def call(robot, kind, name, request=None, seconds=10.0):
    """The answer of the node's service `name`."""
    client = robot.node.create_client(kind, f"localization_node/{name}")
    try:
        robot.wait(client.service_is_ready, seconds)
        future = client.call_async(request or kind.Request())
        robot.wait(future.done, seconds)
        return future.result()
    finally:
        robot.node.destroy_client(client)


def change_state(robot, transition: int) -> bool:
    return call(robot, ChangeState, "change_state", ChangeState.Request(transition=Transition(id=transition))).success


def state(robot) -> int:
    return call(robot, GetState, "get_state").current_state.id


def test_life_cycle():
    """Silent until activated, silent after deactivation; parameters can change after clean-up and count from then on."""
    with running(autostart=False, connect=False, **start_pose()) as (node, robot):
        assert state(robot) == State.PRIMARY_STATE_UNCONFIGURED
        assert node.set_parameters([Parameter("odom_frame_id", value="wheels")])[0].successful
        assert node.set_parameters([Parameter("odom_frame_id", value="odom")])[0].successful
        assert change_state(robot, Transition.TRANSITION_CONFIGURE)
        assert not robot.image.get_subscription_count()
        refused = node.set_parameters([Parameter("odom_frame_id", value="wheels")])[0]
        assert not refused.successful and "clean up first" in refused.reason
        for name in ("pause", "relocalize"):
            assert not call(robot, Trigger, name).success, f"{name}, although it does not run"
        for _ in range(2):
            assert change_state(robot, Transition.TRANSITION_ACTIVATE)
            assert state(robot) == State.PRIMARY_STATE_ACTIVE
            robot.connect(node)
            robot.odometry_ns = stamp_of(0) - 40_000_000
            robot.statuses.clear()
            robot.buffer.clear()
            assert robot.step(0).state == TRACKING and robot.step(1).state == TRACKING
            assert change_state(robot, Transition.TRANSITION_DEACTIVATE)
            robot.wait(lambda: not robot.image.get_subscription_count())
            transforms = len(robot.transforms)
            time.sleep(0.2)
            assert len(robot.transforms) == transforms
        assert change_state(robot, Transition.TRANSITION_CLEANUP)
        assert node.set_parameters([Parameter("image_transport", value="compressed")])[0].successful
        assert change_state(robot, Transition.TRANSITION_CONFIGURE)
        assert change_state(robot, Transition.TRANSITION_ACTIVATE)
        robot.wait(lambda: node.count_subscribers("camera/image_raw/compressed") and not robot.image.get_subscription_count())
        assert change_state(robot, Transition.TRANSITION_ACTIVE_SHUTDOWN)
        assert state(robot) == State.PRIMARY_STATE_FINALIZED


class SlowToOpen(FakeLocalizer):
    """Takes seconds to load, as a large map or the first start does."""

    def __init__(self, *arguments) -> None:
        time.sleep(3.0)
        super().__init__(*arguments)


def test_the_node_answers_while_it_loads():
    """A manager that configures it is answered at once; images are subscribed to when they can be used."""
    with running(open_localizer=SlowToOpen, autostart=False, connect=False) as (_, robot):
        began = time.monotonic()
        assert change_state(robot, Transition.TRANSITION_CONFIGURE) and change_state(robot, Transition.TRANSITION_ACTIVATE)
        assert time.monotonic() - began < 2.5
        robot.diagnosed("map: loading fake.pixmap")
        assert robot.levels["map"] == b"\0" and robot.odometry.get_subscription_count()
        assert not robot.image.get_subscription_count()
        robot.wait(robot.image.get_subscription_count)


def test_activation_with_an_impossible_topic_fails_and_says_why():
    with running(autostart=False, connect=False, odom_topic="bad topic") as (_, robot):
        assert change_state(robot, Transition.TRANSITION_CONFIGURE)
        assert not change_state(robot, Transition.TRANSITION_ACTIVATE)
        robot.diagnosed("fix it and try again")
        assert state(robot) == State.PRIMARY_STATE_INACTIVE


def test_pause_and_resume():
    with running(**start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING
        assert call(robot, Trigger, "pause").success
        transforms, poses = len(robot.transforms), len(robot.poses)
        for number in range(1, 6):
            assert robot.step(number).message == "dropped: paused"
        assert (len(robot.transforms), len(robot.poses)) == (transforms, poses)
        robot.diagnosed("paused")
        assert call(robot, Trigger, "resume").success
        status = robot.step(6)
        assert status.state == TRACKING and status.prior_source == "odometry"
        assert status.frames_dropped == 5 and status.frames_received == 7


def test_set_pose_and_relocalize():
    with running() as (_, robot):
        assert robot.step(0).state == INITIALIZING
        bad = initial_pose_message(1)
        bad.header.frame_id = "odom"
        answer = call(robot, SetPose, "set_pose", SetPose.Request(pose=bad))
        assert not answer.success and "is in frame 'odom'" in answer.message
        assert call(robot, SetPose, "set_pose", SetPose.Request(pose=initial_pose_message(1))).success
        assert robot.step(1).state == TRACKING
        assert call(robot, Trigger, "relocalize").success
        assert robot.step(2).state != TRACKING, "the pose was not forgotten"


class TwoMaps(FakeLocalizer):
    """Knows maps by their names."""

    def __init__(self, map_path, *_):
        if "broken" in map_path:
            raise InputError(f"{map_path} is cut short: copy it again")
        super().__init__()
        self.map_name = map_path


def test_load_map():
    with running(open_localizer=TwoMaps, map="a.pixmap", **start_pose()) as (_, robot):
        assert robot.step(0).map_name == "a.pixmap"
        answer = call(robot, LoadMap, "load_map", LoadMap.Request(map="broken.pixmap"))
        assert not answer.success and "copy it again" in answer.message
        assert robot.step(1).state == TRACKING, "the old map is no longer in use"
        assert call(robot, LoadMap, "load_map", LoadMap.Request(map="b.pixmap")).success
        robot.odometry_ns = stamp_of(2) - 40_000_000
        status = robot.step(2)
        assert status.map_name == "b.pixmap" and status.prior_source == "initial_pose"


def test_load_map_after_a_start_without_one():
    with running(open_localizer=TwoMaps, map="broken.pixmap", **start_pose()) as (_, robot):
        robot.diagnosed("map: broken.pixmap is cut short: copy it again. Fix it and call ~/load_map")
        assert robot.levels["map"] == b"\2"
        status = robot.step(0)
        assert status.state == INITIALIZING and "no map is loaded" in status.message
        assert not robot.poses and not robot.transforms
        assert not call(robot, Trigger, "relocalize").success
        assert call(robot, LoadMap, "load_map", LoadMap.Request(map="a.pixmap")).success
        robot.odometry_ns = stamp_of(1) - 40_000_000
        assert robot.step(1).state == TRACKING
        robot.wait(lambda: robot.levels["map"] == b"\0")


class Drawing(FakeLocalizer):
    """Answers with points: one that agrees, one that does not, one out of sight."""

    def answer(self, found: FrameAlignment) -> FrameAlignment:
        pixels = torch.tensor([[16.0, 8.0], [40.0, 30.0], [60.0, 40.0]])
        details = AlignmentResult(
            torch.eye(4), torch.tensor(True), torch.eye(6), torch.tensor(0.1), torch.tensor([True, True, False]),
            torch.tensor([True, False, False]), pixels, (), "converged",
        )  # fmt: skip
        points = ReferencePoints(torch.eye(3), (), ())
        local = LocalPoints(points, torch.tensor([10.0, 0.0, 0.0], dtype=torch.float64), torch.arange(3), torch.arange(1))
        return replace(found, details=details, views=(AlignedView(RigView("", None), local, 0, 2, 1),))


def test_pictures_for_subscribers(monkeypatch):
    monkeypatch.setattr("pixloc_ros.tracking.judge.located_share", lambda alignment: 1.0)  # made-up points have no features
    with running(open_localizer=Drawing, **start_pose()) as (_, robot):
        heard = {"overlay": [], "points": [], "path": []}
        assert robot.step(0).state == TRACKING
        for name, kind in (("overlay", Image), ("points", Marker), ("path", Path)):
            robot.node.create_subscription(kind, f"localization_node/{name}", heard[name].append, 10)
        robot.wait(lambda: all(robot.node.count_publishers(f"localization_node/{name}") for name in heard))
        number = 0
        while not all(heard.values()):
            assert number < 30, {name: len(messages) for name, messages in heard.items()}
            assert robot.step(number := number + 1).state == TRACKING
            time.sleep(0.02)
        overlay, marker, path = heard["overlay"][-1], heard["points"][-1], heard["path"][-1]
        assert (overlay.encoding, overlay.width, overlay.header.frame_id) == ("rgb8", 960, "camera_optical")
        assert sorted((p.x, p.y, p.z) for p in marker.points) == [(10.0, 1.0, 0.0), (11.0, 0.0, 0.0)]
        assert len({(c.r, c.g, c.b) for c in marker.colors}) == 2
        assert len(path.poses) > 1 and path.header.frame_id == "map"
        first = conversions.pose_to_matrix(path.poses[0].pose, "pose")
        assert torch.allclose(first, pose_of(0), atol=1e-9, rtol=0), "the path begins where the drive began"
        assert np.frombuffer(overlay.data, np.uint8).size == overlay.width * overlay.height * 3


def test_the_interface_is_what_page_table_and_policy_say(request):
    """docs/robot.md, the parameters' table and config/sros2_policy.xml against the running node."""
    policy = ElementTree.parse(request.config.rootpath / "config" / "sros2_policy.xml")

    def allowed(kind: str, right: str) -> set[str]:
        groups = [group for group in policy.iter(f"{kind}s") if group.get(right) == "ALLOW"]
        names = [entry.text for group in groups for entry in group.iter(kind)]
        return {"/" + name.replace("~", "localization_node") for name in names}

    page = (request.config.rootpath / "docs" / "robot.md").read_text(encoding="utf-8")
    assert all(f"`~/{name}`" in page for name in ("load_map", "set_pose", "relocalize", "pause", "resume"))
    own = {"/localization_node/" + name for name in ("pose", "odometry", "status", "path", "overlay", "points")}
    with running() as (node, robot):
        assert {p.name for p in PARAMETERS} <= set(node.list_parameters([], 3).names)
        where = node.get_name(), node.get_namespace()
        # The graph takes a moment to be complete.
        robot.wait(lambda: own <= {topic for topic, _ in node.get_publisher_names_and_types_by_node(*where)})
        robot.wait(lambda: len(node.get_service_names_and_types_by_node(*where)) >= 15)
        published = {topic for topic, _ in node.get_publisher_names_and_types_by_node(*where)}
        heard = {topic for topic, _ in node.get_subscriber_names_and_types_by_node(*where)}
        served = {service for service, _ in node.get_service_names_and_types_by_node(*where)}
    assert published <= allowed("topic", "publish"), published - allowed("topic", "publish")
    assert heard <= allowed("topic", "subscribe"), heard - allowed("topic", "subscribe")
    assert served <= allowed("service", "reply"), served - allowed("service", "reply")


def test_quality_of_service_can_be_overridden():
    """By ROS's own parameters, also when the subscription is made a second time; the pose may be latched, as amcl's is."""
    names = {"qos_overrides./camera/image_raw.subscription.reliability": "reliable"}
    names["qos_overrides./localization_node/pose.publisher.durability"] = "transient_local"
    with running(**names, **start_pose()) as (node, robot):
        (pose,) = node.get_publishers_info_by_topic("/localization_node/pose")
        assert pose.qos_profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
        for _ in range(2):
            (mine,) = robot.wait(lambda: node.get_subscriptions_info_by_topic("/camera/image_raw"))
            assert mine.qos_profile.reliability.name == "RELIABLE"
            assert change_state(robot, Transition.TRANSITION_DEACTIVATE)
            robot.wait(lambda: not node.get_subscriptions_info_by_topic("/camera/image_raw"))
            assert change_state(robot, Transition.TRANSITION_ACTIVATE)


# ---- where nobody gives a pose


def last_pose(number: int, map_name: str = FakeLocalizer.map_name) -> LastPose:
    return LastPose(map_name, stamp_of(number), pose_of(number), 1e-3 * torch.eye(6, dtype=torch.float64))


def test_the_last_pose_is_kept_and_started_from(tmp_path):
    path = tmp_path / "state" / "pose.json"
    with running(last_pose_file=str(path)) as (_, robot):
        assert robot.step(0).state == INITIALIZING
        robot.give_pose(1)
        robot.wait(lambda: robot.step(len(robot.statuses)).state == TRACKING)
        robot.wait(path.is_file)
    kept = load_last_pose(path, FakeLocalizer.map_name)
    number = round((kept.stamp_ns - stamp_of(0)) / (stamp_of(1) - stamp_of(0)))
    assert float(se3.pose_difference(kept.map_from_base, pose_of(number))[0]) < 0.05
    save_last_pose(path, last_pose(0))
    with running(last_pose_file=str(path)) as (_, robot):
        assert robot.step(0).state == TRACKING


def test_a_fix_says_where_to_look():
    class Placed(FakeLocalizer):
        """Its map is turned so that the fix's unknown heading, taken as east, is the robot's."""

        georeference = Georeference(*PLACE, se3.inverse(pose_of(0)))

    def fix(**changes) -> NavSatFix:
        message = NavSatFix(latitude=PLACE[0], longitude=PLACE[1], altitude=PLACE[2])
        message.status.status = NavSatStatus.STATUS_FIX
        message.position_covariance = [1.0, 0, 0, 0, 1.0, 0, 0, 0, 4.0]
        message.position_covariance_type = NavSatFix.COVARIANCE_TYPE_DIAGONAL_KNOWN
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    with running(open_localizer=Placed) as (_, robot):
        fixes = robot.node.create_publisher(NavSatFix, "fix", 5)
        robot.wait(lambda: fixes.get_subscription_count() > 0)
        assert robot.step(0).state == INITIALIZING
        fixes.publish(fix(position_covariance_type=NavSatFix.COVARIANCE_TYPE_UNKNOWN))
        robot.diagnosed("/fix has no usable position_covariance")
        fixes.publish(fix(latitude=math.nan))
        fixes.publish(fix())
        robot.wait(lambda: robot.step(len(robot.statuses)).state == TRACKING)


def test_the_collector_leaves_alone_what_was_loaded():
    gc.unfreeze()
    with running():
        assert len(gc.get_objects()) < gc.get_freeze_count()


# ---- in amcl's place


def test_amcls_names_and_a_pose_given_while_inactive():
    """As Nav2 uses amcl: initialpose before the activation, a latched pose for who comes later, its two services."""
    with running(autostart=False, connect=False, amcl_interface=True, tf_broadcast=False) as (node, robot):
        assert change_state(robot, Transition.TRANSITION_CONFIGURE)
        robot.wait(robot.initial_pose.get_subscription_count)
        robot.give_pose(0)
        assert change_state(robot, Transition.TRANSITION_ACTIVATE)
        robot.connect(node)
        assert robot.step(0).state == TRACKING and not robot.transforms
        latched, kept = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL), []
        robot.node.create_subscription(PoseWithCovarianceStamped, "amcl_pose", kept.append, latched)
        robot.wait(lambda: kept)
        assert kept[-1] == robot.poses[-1]
        for name in ("request_nomotion_update", "reinitialize_global_localization"):
            client = robot.node.create_client(Empty, name)
            robot.wait(client.service_is_ready)
            future = client.call_async(Empty.Request())
            robot.wait(future.done)
        assert robot.step(1).state == INITIALIZING, "the pose was to be forgotten"


@pytest.mark.parametrize("kept", [False, True])
def test_the_initial_pose_of_the_parameters_counts_once_if_asked(kept, tmp_path):
    """Later starts come from the file of the last pose, where there is one."""
    path = str(tmp_path / "pose.json") if kept else ""
    with running(always_reset_initial_pose=False, last_pose_file=path, **start_pose()) as (node, robot):
        assert robot.step(0).state == TRACKING
        robot.wait(lambda: not kept or (tmp_path / "pose.json").is_file())
        assert change_state(robot, Transition.TRANSITION_DEACTIVATE) and change_state(robot, Transition.TRANSITION_ACTIVATE)
        robot.connect(node)
        assert robot.step(1).state == (TRACKING if kept else INITIALIZING)


def test_the_initial_pose_of_the_parameters_counts_again_when_time_begins_again():
    """A simulation that is reset, or a recording that is played again."""
    with running(always_reset_initial_pose=False, relocalization=False, **start_pose()) as (_, robot):
        assert robot.step(0).state == TRACKING and robot.step(40).state != INITIALIZING
        robot.statuses.clear()
        robot.odometry_ns = stamp_of(0) - 40_000_000
        assert robot.step(0).state == TRACKING


class Heartbeat(String):
    """Stand-in for bond/Status, which the wheels lack."""

    def __init__(self, **fields) -> None:
        super().__init__()
        self.header = Header()
        for name, value in fields.items():
            setattr(self, name, value)

    __slots__ = ("header", "id", "instance_id", "active", "heartbeat_timeout", "heartbeat_period")

    def __setattr__(self, name, value) -> None:
        object.__setattr__(self, name, value)
        if name == "active":
            self.data = f"{self.id} {value} {self.instance_id}"


def test_a_bond_is_offered_while_the_node_is_active(monkeypatch, request):
    """On the topic and under the name that Nav2's lifecycle manager uses, in the node's namespace; a new one each time."""
    monkeypatch.setitem(sys.modules, "bond", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bond.msg", types.SimpleNamespace(Status=Heartbeat))
    policy = ElementTree.parse(request.config.rootpath / "config" / "sros2_policy.xml")
    assert "bond" in {topic.text for topic in policy.iter("topic")}
    with running(autostart=False, connect=False, **start_pose()) as (node, robot):
        beats, names = [], []
        robot.node.create_subscription(String, "bond", lambda beat: beats.append(beat.data.split()), 10)
        assert change_state(robot, Transition.TRANSITION_CONFIGURE) and not robot.node.count_publishers("bond")
        for _ in range(2):
            assert change_state(robot, Transition.TRANSITION_ACTIVATE)
            robot.wait(lambda: len(beats) > 3)
            assert {(name, active) for name, active, _ in beats} == {("localization_node", "True")}
            assert change_state(robot, Transition.TRANSITION_DEACTIVATE)
            robot.wait(lambda: beats[-1][1] == "False" and not robot.node.count_publishers("bond"))
            names += {name for *_, name in beats}
            beats.clear()
        assert len(names) == len(set(names)) == 2


def test_an_activation_that_fails_for_its_bond_stops_listening(monkeypatch):
    monkeypatch.setitem(sys.modules, "bond", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bond.msg", types.SimpleNamespace(Status=None))
    with running(autostart=False, connect=False) as (_, robot):
        assert change_state(robot, Transition.TRANSITION_CONFIGURE)
        assert not change_state(robot, Transition.TRANSITION_ACTIVATE)
        assert state(robot) == State.PRIMARY_STATE_INACTIVE and not robot.odometry.get_subscription_count()


def test_either_name_switches_the_transform_off_whenever_it_is_set():
    with running(autostart=False, connect=False, **start_pose()) as (node, robot):
        assert node.set_parameters([Parameter("tf_broadcast", value=False)])[0].successful
        assert change_state(robot, Transition.TRANSITION_CONFIGURE) and change_state(robot, Transition.TRANSITION_ACTIVATE)
        robot.connect(node)
        assert node.set_parameters([Parameter("publish_tf", value=True)])[0].successful
        assert robot.step(0).state == TRACKING and not robot.transforms

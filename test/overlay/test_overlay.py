# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""tf2_ros and cv_bridge as the node uses them. Holds for the overlay as for those of a distribution."""

import array
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

rclpy = pytest.importorskip("rclpy")
tf2_ros = pytest.importorskip("tf2_ros")
cv_bridge = pytest.importorskip("cv_bridge")
from cv_bridge import CvBridge, CvBridgeError  # noqa: E402
from geometry_msgs.msg import TransformStamped  # noqa: E402
from rclpy.duration import Duration  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy  # noqa: E402
from rclpy.time import Time  # noqa: E402
from rosgraph_msgs.msg import Clock as ClockMessage  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

DOMAIN = 100 + os.getpid() % 50  # below 233; away from what a developer's other nodes use
LATEST = Time()


def at(seconds: float) -> Time:
    return Time(nanoseconds=round(seconds * 1e9))


def stamped(parent, child, seconds=0.0, translation=(0.0, 0.0, 0.0), rotation=None) -> TransformStamped:
    message = TransformStamped()
    message.header.stamp = at(seconds).to_msg()
    message.header.frame_id, message.child_frame_id = parent, child
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = map(float, translation)
    q.x, q.y, q.z, q.w = map(float, (rotation or Rotation.identity()).as_quat())
    return message


def matrix(message: TransformStamped) -> np.ndarray:
    t, q = message.transform.translation, message.transform.rotation
    result = np.eye(4)
    result[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    result[:3, 3] = t.x, t.y, t.z
    return result


def filled(*transforms, static=()) -> "tf2_ros.Buffer":
    buffer = tf2_ros.Buffer()
    for transform in transforms:
        buffer.set_transform(transform, "test")
    for transform in static:
        buffer.set_transform_static(transform, "test")
    return buffer


def x_of(buffer, target, source, time_) -> float:
    return buffer.lookup_transform(target, source, time_).transform.translation.x


def knows(buffer, target, source, time_) -> bool:
    try:
        buffer.lookup_transform(target, source, time_)
    except tf2_ros.TransformException:
        return False
    return True


def seconds_of(message: TransformStamped) -> float:
    return Time.from_msg(message.header.stamp).nanoseconds * 1e-9


rigid = st.tuples(
    st.tuples(*[st.floats(-10, 10)] * 3), st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
).map(lambda pair: (pair[0], Rotation.from_quat(pair[1])))


# ---- arithmetic of the tree


@settings(max_examples=50)
@given(st.lists(rigid, min_size=2, max_size=6), st.lists(rigid, min_size=1, max_size=4))
def test_any_two_frames_of_a_tree(left, right):
    """Two branches from one root; every pair of frames against products of matrices."""
    transforms, from_root = [], {"root": np.eye(4)}
    for branch, chain in (("left", left), ("right", right)):
        parent = "root"
        for index, (translation, rotation) in enumerate(chain):
            child = f"{branch}{index}"
            transforms.append(stamped(parent, child, 1.0, translation, rotation))
            from_root[child] = from_root[parent] @ matrix(transforms[-1])
            parent = child
    buffer = filled(*transforms)
    for target in from_root:
        for source in from_root:
            found = buffer.lookup_transform(target, source, at(1.0))
            assert (found.header.frame_id, found.child_frame_id) == (target, source)
            np.testing.assert_allclose(matrix(found), np.linalg.inv(from_root[target]) @ from_root[source], atol=1e-9)


@settings(max_examples=50)
@given(rigid, rigid, st.floats(0, 1))
def test_interpolates_between_stamps(first, second, ratio):
    buffer = filled(stamped("a", "b", 1.0, *first), stamped("a", "b", 3.0, *second))
    stamp = at(1.0 + 2.0 * ratio)
    ratio = (stamp.nanoseconds - 1_000_000_000) / 2e9
    found = matrix(buffer.lookup_transform("a", "b", stamp))
    expected = (1 - ratio) * np.array(first[0]) + ratio * np.array(second[0])
    np.testing.assert_allclose(found[:3, 3], expected, atol=1e-9)
    difference = (first[1].inv() * second[1]).magnitude()
    if difference < 3.1:  # at half a turn both ways round are right
        rotation = Slerp([0, 1], Rotation.concatenate([first[1], second[1]]))(ratio).as_matrix()
        np.testing.assert_allclose(found[:3, :3], rotation, atol=1e-6)


def test_stamp_of_the_answer():
    buffer = filled(
        stamped("map", "odom", 2.0), stamped("odom", "base", 1.0), stamped("odom", "base", 3.0), static=[stamped("base", "cam")]
    )
    asked = [("map", "cam", LATEST), ("odom", "cam", LATEST), ("odom", "base", at(1.5)), ("base", "cam", LATEST)]
    assert [seconds_of(buffer.lookup_transform(*one)) for one in asked] == [2.0, 3.0, 1.5, 0.0]


def test_static_transforms_hold_at_all_times():
    buffer = filled(static=[stamped("base", "cam", 5.0, (1, 2, 3))])
    for seconds in (0.0, 1.0, 5.0, 1e6):
        assert x_of(buffer, "base", "cam", at(seconds)) == 1.0


def test_a_gap_above_the_common_ancestor_does_no_harm():
    buffer = filled(stamped("map", "odom", 1.0), *(stamped("odom", "base", float(s), (s, 0, 0)) for s in (1, 2, 3)))
    assert x_of(buffer, "odom", "base", at(2.5)) == pytest.approx(2.5)
    with pytest.raises(tf2_ros.ExtrapolationException):
        buffer.lookup_transform("map", "base", at(2.5))


# ---- what cannot be answered


@pytest.mark.parametrize("time_", [LATEST, at(1.0)])
@pytest.mark.parametrize(
    ("target", "source", "error"),
    [
        ("a", "nowhere", "Lookup"), ("a", "d", "Connectivity"), ("", "b", "InvalidArgument"), ("/a", "b", "InvalidArgument"),
        ("x", "u", "Lookup"),
    ],
)  # fmt: skip
def test_frames_that_are_unknown_unconnected_misnamed_or_in_a_loop(target, source, error, time_):
    loop = [stamped("u", "v", 1.0), stamped("v", "w", 1.0), stamped("w", "u", 1.0)]
    buffer = filled(stamped("a", "b", 1.0), stamped("c", "d", 1.0), stamped("x", "y", 1.0), *loop)
    exception = getattr(tf2_ros, f"{error}Exception")
    assert issubclass(exception, tf2_ros.TransformException)
    with pytest.raises(exception):
        buffer.lookup_transform(target, source, time_)


@pytest.mark.parametrize(("seconds", "direction"), [(0.5, "past"), (2.5, "future")])
def test_extrapolation_names_both_times(seconds, direction):
    buffer = filled(stamped("a", "b", 1.0), stamped("a", "b", 2.0))
    with pytest.raises(tf2_ros.ExtrapolationException, match=f"(?s)into the {direction}.*{seconds}.*[12]\\.0"):
        buffer.lookup_transform("a", "b", at(seconds))


def test_nonsense_is_ignored():
    nan, long = stamped("a", "b", 1.0, (float("nan"), 0, 0)), stamped("a", "b", 1.0)
    long.transform.rotation.w = 2.0
    buffer = filled(nan, long, stamped("a", "a", 1.0), stamped("", "b", 1.0), stamped("a", "", 1.0))
    assert not knows(buffer, "a", "b", LATEST)


@pytest.mark.parametrize(("cache_s", "newest"), [(2, 7), (None, 15)])
def test_cache_time_is_bounded(cache_s, newest):
    """By default to ten seconds."""
    buffer = tf2_ros.Buffer(cache_time=cache_s and Duration(seconds=cache_s))
    for second in range(1, newest + 1):
        buffer.set_transform(stamped("a", "b", float(second), (second, 0, 0)), "test")
    assert x_of(buffer, "a", "b", at(5.0)) == 5.0
    with pytest.raises(tf2_ros.ExtrapolationException, match="past"):
        buffer.lookup_transform("a", "b", at(4.0))
    buffer.set_transform(stamped("a", "b", 1.0), "test")  # too late to be of use
    assert not knows(buffer, "a", "b", at(4.0))


def test_late_transforms_are_sorted_in_and_of_equal_stamps_the_last_answers():
    buffer = filled(*(stamped("a", "b", float(s), (x, 0, 0)) for s, x in ((1, 1), (3, 9), (2, 2), (2, 7), (2, 7))))
    for seconds, x in ((2.0, 7.0), (1.5, 1.5), (2.5, 8.0)):
        assert x_of(buffer, "a", "b", at(seconds)) == pytest.approx(x)


def test_clear_forgets_what_moves():
    buffer = filled(stamped("odom", "base", 1.0), static=[stamped("base", "cam")])
    buffer.clear()
    assert knows(buffer, "base", "cam", LATEST) and not knows(buffer, "odom", "base", LATEST)


# ---- over DDS


@pytest.fixture
def context(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    yield context
    rclpy.shutdown(context=context)


def spin_until(executor, condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        executor.spin_once(timeout_sec=0.05)


def test_quality_of_service_and_type(context):
    node = rclpy.create_node("topics", context=context)
    tf2_ros.TransformBroadcaster(node), tf2_ros.StaticTransformBroadcaster(node)
    listener = tf2_ros.TransformListener(tf2_ros.Buffer(), node)
    for topic, durability in (("/tf", DurabilityPolicy.VOLATILE), ("/tf_static", DurabilityPolicy.TRANSIENT_LOCAL)):
        (publisher,) = node.get_publishers_info_by_topic(topic)
        (subscriber,) = node.get_subscriptions_info_by_topic(topic)
        assert publisher.topic_type == "tf2_msgs/msg/TFMessage"
        assert publisher.qos_profile.durability == subscriber.qos_profile.durability == durability
        # The hash of the official message: with another one, other machines would not listen.
        assert str(publisher.topic_type_hash).startswith("RIHS01_e369d0f0")
        assert str(publisher.topic_type_hash).endswith("f087")
    listener.unregister()


def test_listener_fills_the_buffer_also_with_what_was_sent_before(context):
    """Static transforms are sent before anyone listens; the later of two messages repeats the first."""
    node = rclpy.create_node("talker", context=context)
    static, moving = tf2_ros.StaticTransformBroadcaster(node), tf2_ros.TransformBroadcaster(node)
    static.sendTransform([stamped("base", "lidar", 0.0, (2, 0, 0)), stamped("base", "cam", 0.0, (7, 0, 0))])
    static.sendTransform(stamped("base", "cam", 0.0, (1, 0, 0)))
    buffer = tf2_ros.Buffer(node=node)
    listener = tf2_ros.TransformListener(buffer, node)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def arrived():
        moving.sendTransform([stamped("map", "odom", 1.0, (3, 0, 0)), stamped("odom", "base", 1.0, (4, 0, 0))])
        return knows(buffer, "map", "cam", LATEST)

    spin_until(executor, arrived)
    assert x_of(buffer, "map", "cam", at(1.0)) == 8.0 and x_of(buffer, "base", "lidar", LATEST) == 2.0
    listener.unregister()
    assert moving.pub_tf.get_subscription_count() == 0
    executor.shutdown()


def test_time_that_jumps_back_empties_the_buffer(context):
    """A bag played a second time: yesterday's poses must not answer."""
    node = rclpy.create_node(
        "simulated", context=context, parameter_overrides=[Parameter("use_sim_time", Parameter.Type.BOOL, True)]
    )
    clock = node.create_publisher(ClockMessage, "/clock", 10)
    buffer = tf2_ros.Buffer(node=node)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def tick(seconds):
        clock.publish(ClockMessage(clock=at(seconds).to_msg()))
        return node.get_clock().now().nanoseconds == at(seconds).nanoseconds

    spin_until(executor, lambda: tick(100.0))
    buffer.set_transform(stamped("odom", "base", 100.0), "test")
    spin_until(executor, lambda: tick(101.0))
    assert knows(buffer, "odom", "base", LATEST)
    spin_until(executor, lambda: tick(50.0))
    assert not knows(buffer, "odom", "base", LATEST)
    buffer.set_transform(stamped("odom", "base", 50.0), "test")
    assert knows(buffer, "odom", "base", at(50.0))
    executor.shutdown()


# ---- cv_bridge

BRIDGE = CvBridge()
PASSTHROUGH = {
    "mono8": ("u1", 1), "mono16": ("u2", 1), "rgb8": ("u1", 3), "bgr8": ("u1", 3), "rgba8": ("u1", 4), "bgra8": ("u1", 4),
    "rgb16": ("u2", 3), "bayer_rggb8": ("u1", 1), "bayer_gbrg16": ("u2", 1), "yuv422": ("u1", 2), "yuv422_yuy2": ("u1", 2),
    "8UC1": ("u1", 1), "8UC3": ("u1", 3), "16UC1": ("u2", 1), "16SC2": ("i2", 2), "32FC1": ("f4", 1), "64FC3": ("f8", 3),
}  # fmt: skip


def random_pixels(dtype, channels, height=6, width=8, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 250, (height, width, channels)).astype(dtype) * np.dtype(dtype).itemsize
    return pixels[:, :, 0] if channels == 1 else pixels


def image(pixels, encoding, padding=0, big_endian=False) -> Image:
    """Bytes laid out here, without the bridge."""
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<")))
    rows = rows.view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    data, (height, width) = array.array("B", rows.tobytes()), pixels.shape[:2]
    return Image(
        height=height, width=width, encoding=encoding, is_bigendian=int(big_endian), step=rows.shape[1], data=data
    )  # fmt: skip


@pytest.mark.parametrize("encoding", PASSTHROUGH)
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("padding", [0, 3, 8])
def test_pixels_as_they_are(encoding, big_endian, padding):
    pixels = random_pixels(*PASSTHROUGH[encoding])
    found = BRIDGE.imgmsg_to_cv2(image(pixels, encoding, padding, big_endian), desired_encoding="passthrough")
    assert found.dtype == pixels.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels)


@settings(max_examples=60)
@given(st.sampled_from(sorted(PASSTHROUGH)), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_there_and_back(encoding, height, width, big_endian, seed):
    pixels = random_pixels(*PASSTHROUGH[encoding], height, width, seed)
    sent = pixels.astype(pixels.dtype.newbyteorder(">")) if big_endian else pixels
    there = BRIDGE.cv2_to_imgmsg(sent, encoding=encoding)
    assert (there.height, there.width, there.encoding) == (height, width, encoding)
    assert there.step * height == len(there.data)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(there), pixels)


def test_part_of_an_array_and_passthrough_encoding():
    pixels = random_pixels("u1", 3, 20, 30)[2:9:2, 5:11]
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(pixels, "bgr8")), pixels)
    assert BRIDGE.cv2_to_imgmsg(random_pixels("u2", 1)).encoding == "16UC1"


@pytest.mark.parametrize("change", [{"height": 7}, {"step": 10}, {"encoding": "rgb8"}, {"encoding": "mono7"}, {"encoding": ""}])
def test_messages_that_do_not_fit_together(change):
    sent = image(random_pixels("u1", 1), "mono8")
    for name, value in change.items():
        setattr(sent, name, value)
    with pytest.raises(CvBridgeError):
        BRIDGE.imgmsg_to_cv2(sent)


def test_arrays_that_do_not_fit():
    with pytest.raises(TypeError, match="numpy"):
        BRIDGE.cv2_to_imgmsg([[1, 2]])
    colour = random_pixels("u1", 3)
    for pixels, encoding in ((colour, "mono8"), (colour, "bgr16"), (colour[:, :, 0], "rgb8"), (colour > 0, "passthrough")):
        with pytest.raises(CvBridgeError):
            BRIDGE.cv2_to_imgmsg(pixels, encoding)

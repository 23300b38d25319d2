# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What publishes on /tf and /tf_static, and what listens."""

from collections.abc import Sequence

from geometry_msgs.msg import TransformStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from .buffer import Buffer

_AUTHORITY = "default_authority"  # rclpy does not report who sent a message


def _as_list(transform: TransformStamped | Sequence[TransformStamped]) -> list[TransformStamped]:
    return list(transform) if hasattr(transform, "__iter__") else [transform]


class TransformBroadcaster:
    """Publishes changing transforms on /tf."""

    def __init__(self, node: Node) -> None:
        self.pub_tf = node.create_publisher(TFMessage, "/tf", 100)

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:  # noqa: N802
        """Publish one transform or several."""
        self.pub_tf.publish(TFMessage(transforms=_as_list(transform)))


class StaticTransformBroadcaster:
    """Publishes constant transforms on /tf_static, where late subscribers still receive the last message."""

    def __init__(self, node: Node) -> None:
        qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.pub_tf = node.create_publisher(TFMessage, "/tf_static", qos)
        self._by_child: dict[str, TransformStamped] = {}

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:  # noqa: N802
        """Publish one transform or several, with all earlier ones: late subscribers receive only the last message."""
        self._by_child.update((one.child_frame_id, one) for one in _as_list(transform))
        self.pub_tf.publish(TFMessage(transforms=list(self._by_child.values())))


class TransformListener:
    """Subscribes until `unregister`. The owner spins the node."""

    def __init__(self, buffer: Buffer, node: Node) -> None:
        self._node = node
        # Reentrant, so that a callback of the node's default group may wait for a transform.
        group = ReentrantCallbackGroup()

        def listen(topic, add, qos):
            def received(message: TFMessage) -> None:
                for transform in message.transforms:
                    add(transform, _AUTHORITY)

            return node.create_subscription(TFMessage, topic, received, qos, callback_group=group)

        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscriptions = [
            listen("/tf", buffer.set_transform, 100),
            listen("/tf_static", buffer.set_transform_static, latched),
        ]

    def unregister(self) -> None:
        """Stop listening."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

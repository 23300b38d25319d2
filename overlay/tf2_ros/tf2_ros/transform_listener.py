# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Fills a Buffer from /tf and /tf_static."""

from __future__ import annotations

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from .buffer import Buffer

_AUTHORITY = "default_authority"  # rclpy does not report who sent a message


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

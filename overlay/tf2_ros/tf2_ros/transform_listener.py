# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Fills a Buffer from /tf and /tf_static."""

from __future__ import annotations

from contextlib import suppress
from threading import Thread

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from .buffer import Buffer

AUTHORITY = "default_authority"  # rclpy does not tell who sent a message


def _spin(executor: SingleThreadedExecutor) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()


class TransformListener:
    """Subscribes as long as it exists, in a callback group of its own.

    spin_thread: spin the node in a thread of the listener's; else the node must be spun by its owner.
    static_only: leave /tf alone.
    """

    def __init__(
        self,
        buffer: Buffer,
        node: Node,
        *,
        spin_thread: bool = False,
        qos: QoSProfile | int | None = None,
        static_qos: QoSProfile | int | None = None,
        static_only: bool = False,
    ) -> None:
        if qos is None:
            qos = QoSProfile(depth=100, durability=DurabilityPolicy.VOLATILE, history=HistoryPolicy.KEEP_LAST)
        if static_qos is None:
            latched = DurabilityPolicy.TRANSIENT_LOCAL
            static_qos = QoSProfile(depth=100, durability=latched, history=HistoryPolicy.KEEP_LAST)
        self.buffer = buffer
        self.node = node
        # Reentrant, so that a callback of the node's default group may wait for a transform.
        self.group = ReentrantCallbackGroup()
        self.tf_sub = None
        if not static_only:
            self.tf_sub = node.create_subscription(TFMessage, "/tf", self.callback, qos, callback_group=self.group)
        self.tf_static_sub = node.create_subscription(
            TFMessage, "/tf_static", self.static_callback, static_qos, callback_group=self.group
        )
        self.executor: SingleThreadedExecutor | None = None
        if spin_thread:
            self.executor = SingleThreadedExecutor(context=node.context)
            self.executor.add_node(node)
            self.dedicated_listener_thread = Thread(target=_spin, args=(self.executor,), daemon=True)
            self.dedicated_listener_thread.start()

    def __del__(self) -> None:
        # The collector may come after the context is gone, with nothing left to shut down or to destroy.
        with suppress(InvalidHandle):
            if getattr(self, "executor", None) is not None:
                self.executor.shutdown()
                self.dedicated_listener_thread.join()
            if hasattr(self, "tf_static_sub"):
                self.unregister()

    def unregister(self) -> None:
        """Stop listening."""
        if self.tf_sub is not None:
            self.node.destroy_subscription(self.tf_sub)
            self.tf_sub = None
        self.node.destroy_subscription(self.tf_static_sub)

    def callback(self, data: TFMessage) -> None:
        """A message on /tf."""
        for transform in data.transforms:
            self.buffer.set_transform(transform, AUTHORITY)

    def static_callback(self, data: TFMessage) -> None:
        """A message on /tf_static."""
        for transform in data.transforms:
            self.buffer.set_transform_static(transform, AUTHORITY)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What Nav2 expects of a localizer: the services of amcl under its names, and the bond of its lifecycle manager."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.service import Service
from rclpy.task import Future
from std_srvs.srv import Empty

from ..errors import InputError

BOND_TIMEOUT_S = 4.0
"""The manager takes a node that is silent for longer for dead (Nav2's default)."""


def amcl_services(node: Node, relocalize: Callable[[], Future], group: CallbackGroup) -> list[Service]:
    """amcl's services.

    Args:
        node: the node that answers.
        relocalize: forgets the pose and searches the map; gives a future of an error or of None, or raises InputError.
        group: of the callbacks.
    """

    async def reinitialize(_: Empty.Request, response: Empty.Response) -> Empty.Response:
        try:
            error = await relocalize()
        except InputError as refused:
            error = refused
        if error is not None:
            node.get_logger().warning(f"reinitialize_global_localization: {error}")
        return response

    def update(_: Empty.Request, response: Empty.Response) -> Empty.Response:
        return response  # every image is used, whether the robot moves or not

    calls = {"reinitialize_global_localization": reinitialize, "request_nomotion_update": update}
    return [node.create_service(Empty, name, call, callback_group=group) for name, call in calls.items()]


class ManagerBond:
    """Tells Nav2's lifecycle manager that the node lives, as Nav2's own nodes do: heartbeats on `bond`, under the node's name.

    Args:
        node: the node.
        period_s: of the heartbeat; 0 for none.
    """

    def __init__(self, node: Node, period_s: float) -> None:
        self._node, self._period_s = node, period_s
        self._publisher: Publisher | None = None

    def start(self) -> None:
        """Begins to send heartbeats."""
        if not self._period_s:
            return
        try:
            from bond.msg import Status
        except ImportError:
            text = "package bond is not installed: no bond is offered; set bond_timeout of Nav2's lifecycle manager to 0"
            self._node.get_logger().info(text)
            return
        times_s = {"heartbeat_timeout": BOND_TIMEOUT_S, "heartbeat_period": self._period_s}
        self._message = Status(id=self._node.get_name(), instance_id=str(uuid.uuid4()), **times_s)
        self._publisher = self._node.create_publisher(Status, "bond", 5)
        # In the executor, so that one that hangs is noticed; by the machine's clock, as simulated time may stand still.
        self._timer = self._node.create_timer(self._period_s, self._beat, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _beat(self, active: bool = True) -> None:
        self._message.header.stamp, self._message.active = self._node.get_clock().now().to_msg(), active
        self._publisher.publish(self._message)

    def stop(self) -> None:
        """Ends the bond; the manager hears of it."""
        if self._publisher is None:
            return
        self._node.destroy_timer(self._timer)
        self._beat(active=False)
        self._node.destroy_publisher(self._publisher)
        self._publisher = None

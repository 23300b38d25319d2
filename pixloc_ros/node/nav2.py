# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What Nav2 expects of a localizer: the services of amcl under its names, and the bond of its lifecycle manager."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.service import Service
from rclpy.task import Future
from std_srvs.srv import Empty

BOND_TIMEOUT_S = 4.0
"""The manager takes a node that is silent for longer for dead (Nav2's default)."""


def amcl_services(node: Node, relocalize: Callable[[], Future | None], group: CallbackGroup) -> list[Service]:
    """amcl's services.

    Args:
        node: the node that answers.
        relocalize: forgets the pose and searches the map; gives None, or a future of an error or of None.
        group: of the callbacks.
    """

    async def reinitialize(_: Empty.Request, response: Empty.Response) -> Empty.Response:
        pending = relocalize()
        error = await pending if pending is not None else None
        if error is not None:
            node.get_logger().warning(f"reinitialize_global_localization: {error}")
        return response

    def update(_: Empty.Request, response: Empty.Response) -> Empty.Response:
        return response  # every image is used, whether the robot moves or not

    calls = {"reinitialize_global_localization": reinitialize, "request_nomotion_update": update}
    return [node.create_service(Empty, name, call, callback_group=group) for name, call in calls.items()]


class ManagerBond:
    """Tells the lifecycle manager that the node lives, through bondpy where that is installed.

    Args:
        node: the node.
        period_s: of the heartbeat; 0 for none.
    """

    def __init__(self, node: Node, period_s: float) -> None:
        self._node, self._period_s, self._bond = node, period_s, None

    def start(self) -> None:
        """Begins to send heartbeats."""
        if not self._period_s:
            return
        try:
            from bondpy import bondpy
        except ImportError:
            text = "bondpy is not installed: no bond is offered; set bond_timeout of Nav2's lifecycle manager to 0"
            self._node.get_logger().info(text)
            return
        self._bond = bondpy.Bond("/bond", self._node.get_name(), self._node)
        self._bond.set_heartbeat_period(self._period_s)
        self._bond.set_heartbeat_timeout(BOND_TIMEOUT_S)
        self._bond.start()

    def stop(self) -> None:
        """Ends the bond; the manager hears of it."""
        if self._bond is not None:
            self._bond.shutdown()
        self._bond = None

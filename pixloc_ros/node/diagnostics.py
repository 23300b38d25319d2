# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is wrong and what to do about it, as diagnostic_msgs (REP-107).

Each component (map, image, odometry, ...) has named conditions with a level and a message. A component's status carries its
worst level and the messages of all its conditions. A condition stays for at least `HOLD_S` after it was last seen, so that
people notice a single bad message among many good ones as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

COMPONENTS = ("map", "image", "calibration", "transforms", "odometry", "initial pose", "localization")
"""One diagnostic status each."""

HOLD_S = 2.0


@dataclass
class _Condition:
    level: bytes
    message: str
    seen_at: float
    over: bool = False


class DiagnosticBoard:
    """The conditions that hold now. Thread-safe.

    Args:
        on_new: called with (level, "component: message") when a condition begins, for the log.
        clock: monotonic seconds.
    """

    def __init__(self, on_new: Callable[[bytes, str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_new = on_new
        self._clock = clock
        self._lock = threading.Lock()
        self._conditions: dict[str, dict[str, _Condition]] = {component: {} for component in COMPONENTS}
        self._values: dict[str, dict[str, str]] = {component: {} for component in COMPONENTS}
        self._changed = True

    def report(self, component: str, name: str, level: bytes, message: str) -> None:
        """Condition `name` of a component holds."""
        now = self._clock()
        with self._lock:
            known = self._conditions[component].get(name)
            new = known is None or known.level != level
            self._changed |= new
            self._conditions[component][name] = _Condition(level, message, now)
        if new:
            self._on_new(level, f"{component}: {message}")

    def report_once(self, component: str, name: str, level: bytes, message: str) -> None:
        """Condition `name` of a component held for a moment."""
        self.report(component, name, level, message)
        self.clear(component, name)

    def clear(self, component: str, *names: str) -> None:
        """These conditions no longer hold; without names: none of the component's does."""
        with self._lock:
            conditions = self._conditions[component]
            for name in names or tuple(conditions):
                if name in conditions:
                    conditions[name].over = True

    def clear_all(self, keep: tuple[str, ...] = ()) -> None:
        """No condition holds any more, except those of the components to keep."""
        for component in COMPONENTS:
            if component not in keep:
                self.clear(component)

    def value(self, component: str, **values: object) -> None:
        """Figures shown with the component."""
        with self._lock:
            self._values[component].update({key: str(value) for key, value in values.items()})

    def take_changed(self) -> bool:
        """Whether a condition has begun or ended since the last call."""
        with self._lock:
            self._expire()
            changed, self._changed = self._changed, False
            return changed

    def statuses(self, node_name: str, hardware_id: str) -> list[DiagnosticStatus]:
        """The messages, one per component."""
        with self._lock:
            self._expire()
            return [self._status(component, node_name, hardware_id) for component in COMPONENTS]

    def _expire(self) -> None:
        oldest = self._clock() - HOLD_S
        for conditions in self._conditions.values():
            for name in [n for n, condition in conditions.items() if condition.over and condition.seen_at < oldest]:
                del conditions[name]
                self._changed = True

    def _status(self, component: str, node_name: str, hardware_id: str) -> DiagnosticStatus:
        conditions = sorted(self._conditions[component].values(), key=lambda condition: condition.level, reverse=True)
        return DiagnosticStatus(
            name=f"{node_name}: {component}",
            hardware_id=hardware_id,
            level=conditions[0].level if conditions else OK,
            message="; ".join(condition.message for condition in conditions) or "ok",
            values=[KeyValue(key=key, value=value) for key, value in self._values[component].items()],
        )

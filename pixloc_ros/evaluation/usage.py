# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a run costs: processor time and memory of a process, read from Linux' /proc; and on which machine."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """wall_s: from begin to end. cpu_s: processor time of all threads in between. peak_mib: largest resident memory of the
    process so far, mapped files included. None where the system does not tell."""

    wall_s: float
    cpu_s: float | None
    peak_mib: float | None


class UsageMeter:
    """Measures a process from the meter's making until `read`; this one by default."""

    def __init__(self, pid: int | str = "self") -> None:
        self._pid = pid
        self._began_s, self._cpu_s = time.monotonic(), _cpu_s(pid)

    def read(self) -> Usage:
        now = _cpu_s(self._pid)
        cpu_s = now - self._cpu_s if now is not None and self._cpu_s is not None else None
        return Usage(time.monotonic() - self._began_s, cpu_s, _peak_mib(self._pid))


def machine_name() -> str:
    """The processor's name, and how many of its cores this process may use."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def _cpu_s(pid: int | str) -> float | None:
    """User and system time of a process, without its children: fields 14 and 15 of its stat."""
    lines = _lines(f"/proc/{pid}/stat")
    if not lines:
        return None
    # The name in parentheses may hold blanks.
    fields = lines[0].rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mib(pid: int | str) -> float | None:
    """Not `getrusage`, which counts what the parent held when it forked."""
    return next((int(line.split()[1]) / 1024 for line in _lines(f"/proc/{pid}/status") if line.startswith("VmHWM")), None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

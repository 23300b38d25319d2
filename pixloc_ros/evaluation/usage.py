# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a run costs: processor time and memory of a process, read from Linux' /proc; and on which machine."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a process cost; None where the system does not say.

    Attributes:
        wall_s: From begin to end.
        cpu_s: Processor time of all threads in between.
        peak_mib: Largest resident memory of the process so far, mapped files included.
    """

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
        return Usage(time.monotonic() - self._began_s, cpu_s, peak_mib(self._pid))


class Load:
    """Measures this process and all others from its making until `read`."""

    def __init__(self) -> None:
        self._began = busy_s(), time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float, float]:
        """Seconds by the clock, processor seconds of this process, and how many cores others took."""
        busy, cpu, wall = (now - then for now, then in zip((busy_s(), time.process_time(), time.perf_counter()), self._began))
        return wall, cpu, (busy - cpu) / wall


def machine_name() -> str:
    """The processor's name, and how many of its cores this process may use."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def busy_s() -> float:
    """Seconds of processor time that the whole machine has spent, stolen time included; 0 where that is not known."""
    lines = _lines("/proc/stat")
    ticks = [int(word) for word in lines[0].split()[1:9]] if lines else [0] * 8
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int | str = "self") -> dict[str, float]:
    """Resident memory of a process now: its own, and pages of mapped files, which the system can drop."""
    fields = dict(line.split(":", 1) for line in _lines(f"/proc/{pid}/status") if ":" in line)
    return {name: int(fields.get(key, "0").split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("file", "RssFile"))}


def _cpu_s(pid: int | str) -> float | None:
    """User and system time of a process, without its children: fields 14 and 15 of its stat."""
    lines = _lines(f"/proc/{pid}/stat")
    if not lines:
        return None
    # The name in parentheses may hold blanks.
    fields = lines[0].rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int | str = "self") -> float | None:
    """Largest resident memory of a process so far. Not `getrusage`, which counts what the parent held when it forked."""
    return next((int(line.split()[1]) / 1024 for line in _lines(f"/proc/{pid}/status") if line.startswith("VmHWM")), None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

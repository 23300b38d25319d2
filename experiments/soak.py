# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A drive again and again on one node, each time with a random fault: `faults.py --soak-minutes`."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fault_stage import Drive, Fault, Run, staged

from pixloc_ros.evaluation.pages import markdown_table
from pixloc_ros.io.files import write_text

GROWTH_PERCENT = 2.0


@dataclass
class Soak:
    """What happened so far.

    Attributes:
        minutes, rate_hz, seed: how it was run.
        memory_mb: (seconds since the start, MB) before the first round and after each.
        rounds: one run of the drive each.
        exit_code: of the node; None while it runs.
        problem: why the soak ended early.
    """

    minutes: float
    rate_hz: float
    seed: int
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    rounds: list[Run] = field(default_factory=list)
    exit_code: int | None = None
    problem: str = ""

    def settled_mb(self) -> tuple[float, float]:
        """Memory after the warm-up and at the end: medians of the second tenth and the last tenth of the rounds."""
        values = [mb for _, mb in self.memory_mb]
        tenth = max(len(values) // 10, 1)
        return float(np.median(values[tenth : 2 * tenth] or values[-1:])), float(np.median(values[-tenth:]))

    def summary(self) -> dict[str, object]:
        """The figures, ready for JSON."""
        (warm, end), by_fault = self.settled_mb(), {}
        for name in sorted({run.name for run in self.rounds}):
            by_fault[name] = self._of_fault([run for run in self.rounds if run.name == name])
        found = [run.recovered_s for run in self.rounds if run.recovered_s is not None]
        return {
            "minutes": self.memory_mb[-1][0] / 60, "asked_minutes": self.minutes, "rate_hz": self.rate_hz, "seed": self.seed,
            "images": sum(run.images for run in self.rounds), "tracked": sum(run.tracked for run in self.rounds),
            "memory_mb": {"start": self.memory_mb[0][1], "after_warm_up": warm, "end": end,
                          "most": max(mb for _, mb in self.memory_mb)},
            "growth_percent": 100 * (end / warm - 1),
            "faults": len(self.rounds), "missed_recoveries": len(self.rounds) - len(found),
            "worst_recovery_s": max(found, default=None), "wrong_poses": sum(run.wrong for run in self.rounds),
            "exit_code": self.exit_code, "problem": self.problem, "by_fault": by_fault,
        }  # fmt: skip

    @staticmethod
    def _of_fault(runs: list[Run]) -> dict[str, object]:
        found = [run.recovered_s for run in runs if run.recovered_s is not None]
        figures = {"injected": len(runs), "missed": len(runs) - len(found), "wrong_poses": sum(run.wrong for run in runs)}
        return figures | {"worst_recovery_s": max(found, default=None)}

    def good(self) -> bool:
        """Whether the node lived, always recovered, was never wrong, and did not grow."""
        figures = self.summary()
        failed = self.exit_code or self.problem or figures["missed_recoveries"] or figures["wrong_poses"]
        return not failed and figures["growth_percent"] <= GROWTH_PERCENT


def soak(drive: Drive, folder: Path, minutes: float, rate_hz: float, seed: int, faults: Callable[[], dict[str, Fault]]) -> Soak:
    """Random faults on one node for so long; soak.json has the figures so far. Faults that are there from the start of a node, or
    end it or start another, are left out."""
    choice = random.Random(seed)
    names = sorted(name for name, fault in faults().items() if not fault.missing and not fault.ends_node)
    result = Soak(minutes, rate_hz, seed)
    with staged(drive, folder) as stage:
        began = time.monotonic()
        result.memory_mb.append((0.0, stage.memory_mb()))
        while time.monotonic() - began < 60 * minutes:
            name = choice.choice(names)
            # Each round is later than all of the one before, whichever way its fault moved the clock.
            run = stage.play(name, faults()[name], 200.0 * len(result.rounds))
            if stage.process.process.poll() is not None:
                result.problem = f"the node ended in round {len(result.rounds) + 1}: {name}"
                break
            result.rounds.append(run)
            result.memory_mb.append((time.monotonic() - began, stage.memory_mb()))
            write_text(folder / "soak.json", json.dumps(result.summary(), indent=1) + "\n")
            again = "MISSED" if run.recovered_s is None else f"{run.recovered_s:4.1f} s"
            print(
                f"{result.memory_mb[-1][0] / 60:5.1f} min  {name:34} right again {again}  tracked {run.tracked}/{run.images}  "
                f"wrong {run.wrong}  memory {result.memory_mb[-1][1]:.1f} MB",
                flush=True,
            )
    result.exit_code = stage.process.process.returncode
    write_text(folder / "soak.json", json.dumps(result.summary(), indent=1) + "\n")
    return result


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def soak_table(summary: dict) -> str:
    """The summary, and a row per fault."""
    memory = summary["memory_mb"]
    text = (
        f"{summary['minutes']:.0f} minutes at {summary['rate_hz']:g} Hz, {summary['images']} images, {summary['faults']} faults "
        f"on one node: {summary['missed_recoveries']} recoveries missed, {seconds(summary['worst_recovery_s'])} for the slowest, "
        f"{summary['wrong_poses']} wrong poses given as TRACKING. Memory {memory['start']:.0f} MB before the first image, "
        f"{memory['after_warm_up']:.1f} MB after the warm-up (median of the second tenth of the time), {memory['end']:.1f} MB at "
        f"the end (of the last tenth): {summary['growth_percent']:+.1f} %; {memory['most']:.1f} MB at most. "
        f"Exit code {summary['exit_code']}."
    )
    rows = [
        (name, row["injected"], row["missed"], seconds(row["worst_recovery_s"]), row["wrong_poses"])
        for name, row in summary["by_fault"].items()
    ]
    return text + "\n\n" + markdown_table("fault | injected | recoveries missed | slowest | wrong as TRACKING", rows)

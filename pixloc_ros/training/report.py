# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a run tells: progress lines, validation tables, curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io.files import replacing


def progress_line(records: Sequence[dict], steps: int) -> str:
    """One line over the latest records of a run's log."""
    last = records[-1]
    mean = {key: float(np.mean([record[key] for record in records])) for key in ("loss", "error_px", "step_ms", "data_ms")}
    success = np.mean([record["success"] for record in records], 0)
    shares = " ".join(f"{100 * share:.0f}" for share in success)
    seconds = (steps - last["step"]) * mean["step_ms"] / 1000
    return (
        f"step {last['step']}/{steps}  loss {mean['loss']:.3f}  error {mean['error_px']:.2f} px  success {shares} %  "
        f"{mean['step_ms']:.0f} ms/step (data {mean['data_ms']:.0f})  start <= {last['rotation_deg']:.1f} deg "
        f"{100 * last['translation']:.0f} %  skipped {last['skipped']}  left {_duration(seconds)}"
    )


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


@dataclass(frozen=True)
class Validation:
    """Results over a fixed set of pairs; the last three are of the running system's optimizer.

    Attributes:
        loss: The training loss.
        success: Per level, coarse to fine.
        median_px: The median over the pairs of the mean reprojection error.
        fine: Share within 0.1° and 0.2 % of the depth.
        coarse: Share within 0.5° and 1 %.
    """

    loss: float
    success: tuple[float, ...]
    median_px: float
    fine: float
    coarse: float


def validation_table(step: int, pairs: int, rows: dict[str, Validation]) -> str:
    """A table for people."""
    lines = [
        f"validation at step {step}, {pairs} held-out pairs each",
        f"  {'':10s} {'loss':>8s} {'median px':>10s} {'0.1deg 0.2%':>12s} {'0.5deg 1%':>10s}   success by level",
    ]
    for name, row in rows.items():
        success = " ".join(f"{100 * share:.0f}" for share in row.success)
        lines.append(
            f"  {name:10s} {row.loss:8.3f} {row.median_px:10.3f} {100 * row.fine:10.0f} % {100 * row.coarse:8.0f} %   {success} %"
        )
    return "\n".join(lines)


def read_log(path: Path) -> list[dict]:
    """Records of a run's log; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def draw_curves(records: Sequence[dict], path: Path) -> None:
    """Loss, success and error over the steps as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [record for record in records if record["kind"] == "step"]
    checks = [record for record in records if record["kind"] == "validation"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, success, error = figure.subplots(1, 3)
    x = np.array([record["step"] for record in steps])
    loss.plot(*_smooth(x, [record["loss"] for record in steps]), color="0.6", label="training")
    error.plot(*_smooth(x, [record["error_px"] for record in steps]), color="0.6", label="training, mean")
    if steps:
        shares = np.array([record["success"] for record in steps])
        for level in range(shares.shape[1]):
            success.plot(*_smooth(x, shares[:, level]), label=f"level {level}")
    for name, marker in (("clean", "o-"), ("augmented", "s-")):
        at = [record["step"] for record in checks]
        loss.plot(at, [record[name]["loss"] for record in checks], marker, markersize=3, label=name)
        error.plot(at, [record[name]["median_px"] for record in checks], marker, markersize=3, label=f"{name}, median")
    for axes, title in ((loss, "loss [px]"), (success, "success by level (0 coarsest)"), (error, "final error [px]")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    for axes in (loss, error):
        axes.set_yscale("log")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _smooth(x: np.ndarray, y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Means over at most 100 stretches."""
    size = max(1, len(x) // 100)
    used = len(x) // size * size
    return tuple(np.asarray(values, float)[:used].reshape(-1, size).mean(1) for values in (x, y))

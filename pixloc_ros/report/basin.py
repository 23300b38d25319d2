# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Convergence basins as a plot: how many starts succeed, and how exact the poses are, against the initial error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .plots import STYLE, plt, png

# Okabe and Ito's colours, which the colour-blind tell apart; markers and dashes tell them apart without any colour.
SERIES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", (0, (4, 2))),
    ("#009E73", "^", (0, (1, 1))),
    ("#CC79A7", "D", (0, (5, 1, 1, 1))),
    ("#E69F00", "v", "-"),
    ("#56B4E9", "P", (0, (4, 2))),
    ("#000000", "X", (0, (1, 1))),
)
_LEAST_SHOWN_DEG = 1e-3
_LEGEND_CHARACTERS = 130


def plot_basins(basins: Sequence[Mapping[str, object]]) -> bytes:
    """PNG of one or more basins, each as `evaluation.basin.Basin.to_json`: a column per kind of start.

    Above the share of successes, below the median error of the poses found in degrees; gaps are steps at which half of the
    starts or more found no pose.
    """
    first = basins[0]
    kinds = tuple(first["curves"])
    limits = first["success_limits"]
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(
            2, len(kinds), figsize=(11.0, 5.6), sharex="col", sharey="row", layout="constrained", squeeze=False
        )
        for column, kind in enumerate(kinds):
            top, bottom = rows[:, column]
            for basin, (colour, marker, dashes) in zip(basins, _series(len(basins))):
                steps = basin["curves"][kind]["steps"]
                x = [_initial(step, kind) for step in steps]
                look = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1.6, "markersize": 4.5}
                top.plot(x, [100 * step["success"] for step in steps], label=str(basin["label"]), clip_on=False, **look)
                bottom.plot(
                    x,
                    [float("nan") if step["median_deg"] is None else max(step["median_deg"], _LEAST_SHOWN_DEG) for step in steps],
                    **look,
                )
            top.set(title=_TITLES[kind], ylim=(0, 103))
            bottom.axhline(limits["deg"], color="#6b7280", linewidth=1, linestyle=":")
            bottom.set(yscale="log", xlabel=_LABELS[kind].format(farthest=100 * first["options"]["translation"]))
        rows[0, 0].set_ylabel(f"starts that end within\n{limits['deg']:g}° and {100 * limits['depth']:g} % of depth (%)")
        rows[1, 0].set_ylabel("median final rotation error (°)")
        rows[1, 0].annotate(
            "limit of success", (0, limits["deg"]), xytext=(2, 3), textcoords="offset points", fontsize=8, color="#6b7280"
        )
        if len(basins) > 1 or basins[0]["label"]:
            handles, labels = rows[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=_columns(labels))
        return png(figure)


_TITLES = {"rotation": "Turned", "translation": "Shifted", "together": "Turned and shifted"}
_LABELS = {
    "rotation": "initial rotation error (°)",
    "translation": "initial distance (% of depth)",
    "together": "initial rotation error (°), with 0 to {farthest:g} % of depth",
}


def _initial(step: Mapping[str, float], kind: str) -> float:
    return 100 * step["initial_depth"] if kind == "translation" else step["initial_deg"]


def _columns(labels: Sequence[str]) -> int:
    """How many names of the legend stand side by side."""
    return max(1, min(len(labels), 4, _LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))


def _series(count: int) -> list[tuple]:
    return [SERIES[k % len(SERIES)] for k in range(count)]

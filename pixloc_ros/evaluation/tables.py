# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Figures as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .metrics import RECALL_LEVELS, recall_name


def format_number(value: float | int | None, digits: int = 3) -> str:
    """A figure at a given number of significant digits, never in exponents; "–" for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or value == 0:
        return f"{value:g}"
    text = f"{value:.{digits}g}"
    if "e-" in text:
        return f"< {10.0**-9:.9f}" if abs(value) < 1e-9 else f"{float(text):.12f}".rstrip("0")
    return f"{value:.0f}" if "e+" in text else text


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is the head, the first column stands left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
    lines.insert(1, "─" * max(map(len, lines)))
    return "\n".join(lines)


@dataclass(frozen=True)
class Row:
    """One figure of every run. best: indices of the runs in which it is best, empty where there is nothing to choose."""

    label: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Group:
    """Figures that belong together. note: what they are, in a sentence."""

    title: str
    note: str
    rows: tuple[Row, ...]


class _Table:
    """Rows from the figures of several runs; a row that no run has a value for is left out."""

    def __init__(self, figures: Sequence[Mapping[str, object]]) -> None:
        self._figures = figures

    def row(self, label: str, key: str, unit: str = "", better: str = "", scale: float = 1.0) -> Row | None:
        """unit: in the label. better: "less", "more" or "" where it is no merit. scale: of the unit."""
        values = [None if f.get(key) is None else f[key] * scale for f in self._figures]
        if all(value is None for value in values):
            return None
        cells = tuple(format_number(round(value, 1) if unit == "%" else value, 4 if unit == "%" else 3) for value in values)
        label = f"{label} ({unit})" if unit else label
        return Row(label, cells, _best(cells, values, better))

    def length(self, label: str, key: str) -> Row | None:
        """Metres, in centimetres where all are below one."""
        values = [f[key] for f in self._figures if f.get(key) is not None]
        return self.row(label, key, "cm", "less", 100.0) if max(values, default=1.0) < 1.0 else self.row(label, key, "m", "less")

    def count(self, label: str, key: str, of: str, better: str = "") -> Row | None:
        """A number and its share in per cent of another."""
        values = [f.get(key) for f in self._figures]
        if all(value is None for value in values):
            return None
        cells = tuple(
            "–" if value is None else f"{value} ({100 * value / max(f[of], 1):.1f} %)" for value, f in zip(values, self._figures)
        )
        shares = [None if value is None else value / max(f[of], 1) for value, f in zip(values, self._figures)]
        return Row(label, cells, _best(cells, shares, better))

    def finding(self, label: str, name: str) -> Row | None:
        """What the tracker found out about its inputs, with the standard deviation."""
        found = [f.get("findings", {}) for f in self._figures]
        if not any(name in values for values in found):
            return None
        cells = (f"{values[name]:.4f} ± {values[f'{name}_std']:.4f}" if name in values else "–" for values in found)
        return Row(label, tuple(cells))

    @staticmethod
    def nonzero(row: Row | None) -> Row | None:
        """The row, unless it says nothing but 0."""
        return None if row is None or set(row.cells) <= {"0", "–"} else row

    def recall(self, name: str) -> Row | None:
        values = [f["recall"][name] if "recall" in f else None for f in self._figures]
        if all(value is None for value in values):
            return None
        cells = tuple("–" if value is None else f"{100 * value:.1f}" for value in values)
        return Row(f"within {recall_label(name)} (%)", cells, _best(cells, values, "more"))


def _best(cells: Sequence[str], values: Sequence[float | None], better: str) -> frozenset[int]:
    known = [value for value in values if value is not None]
    if not better or len(known) < 2 or len(set(cells)) < 2:
        return frozenset()
    best = (min if better == "less" else max)(known)
    shown = cells[values.index(best)]
    return frozenset(i for i, cell in enumerate(cells) if cell == shown)


def summary(figures: Sequence[Mapping[str, object]]) -> list[Group]:
    """The figures of several runs (`bench.evaluate`) as groups of rows, a column a run; what no run knows is left out."""
    t = _Table(figures)
    step = next((f["relative_step"] for f in figures if f.get("relative_stretches")), "")
    groups = [
        (
            "Errors in the map frame",
            "Nothing is aligned. Over the images that have a pose and whose truth is known.",
            [
                t.row("images scored", "scored_frames"),
                *(t.length(f"translation, {name}", f"translation_error_{key}_m") for key, name in _STATISTICS),
                *(t.row(f"rotation, {name}", f"rotation_error_{key}_deg", "°", "less") for key, name in _STATISTICS),
            ],
        ),
        (
            "Recall",
            "Share of all scored images whose pose is right within both limits. An image without a pose is a failure.",
            [t.recall(recall_name(*level)) for level in RECALL_LEVELS],
        ),
        (
            "Through the drive",
            "How much of it has a pose, and what happened in between.",
            [
                t.row("images", "frames"),
                t.count("with a pose", "published_frames", "frames", "more"),
                t.count("state TRACKING", "tracked_frames", "frames", "more"),
                t.count("confident but wrong by 0.5 m or 5°", "false_tracked_frames", "frames", "less"),
                t.row("until the first pose", "time_to_first_pose_s", "s", "less"),
                t.row("until the first pose", "time_to_first_pose_images", "images", "less"),
                t.row("losses", "losses", "", "less"),
                t.nonzero(t.row("losses not recovered", "losses_not_recovered", "", "less")),
                t.nonzero(t.row("time lost", "time_lost_s", "s", "less")),
                t.nonzero(t.row("time lost", "time_lost_images", "images", "less")),
                t.row("time to recover, median", "time_to_recover_median_s", "s", "less"),
                t.row("time to recover, longest", "time_to_recover_max_s", "s", "less"),
                t.row("time to recover, longest", "time_to_recover_max_images", "images", "less"),
                t.count("images dropped for newer ones", "dropped_frames", "frames", "less"),
                t.nonzero(t.row("unusable images", "unusable_frames")),
            ],
        ),
        (
            "Calibration, clocks and odometry",
            "What images and poses say of the inputs: ratios of 1 and 0 s are right.",
            [
                t.finding("right focal length per the calibration's", "focal_ratio"),
                t.finding("to be added to the images' stamps (s)", "time_offset_s"),
                t.finding("odometry's way per the camera's", "way_ratio"),
                t.finding("odometry's turning per the camera's", "turn_ratio"),
            ],
        ),
        (
            f"Relative errors over {step}",
            "Drift and jitter: of the motion between poses, wherever the map frame is.",
            [
                *(t.length(f"translation, {name}", f"relative_translation_error_{key}_m") for key, name in _SHORT_STATISTICS),
                *(
                    t.row(f"rotation, {name}", f"relative_rotation_error_{key}_deg", "°", "less")
                    for key, name in _SHORT_STATISTICS
                ),
            ]
            if step
            else [],
        ),
        (
            "After alignment",
            "A second figure: what is left when the whole path may be moved and turned to fit the truth. Errors "
            "much smaller than above mean that the map frame is off.",
            [
                *(t.length(f"translation, {name}", f"aligned_translation_error_{key}_m") for key, name in _SHORT_STATISTICS),
                *(
                    t.row(f"rotation, {name}", f"aligned_rotation_error_{key}_deg", "°", "less")
                    for key, name in _SHORT_STATISTICS
                ),
                t.length("moved by", "map_offset_m"),
                t.row("turned by", "map_offset_deg", "°"),
            ],
        ),
        (
            "Covariance",
            "Whether the run knew how sure it was. Above 6, or with fewer than 95 % inside, it claims too much.",
            [
                t.row("NEES, mean (6 is right)", "nees_mean"),
                t.row("NEES, median (5.3 is right)", "nees_median"),
                t.row("inside the 95 % ellipsoid", "nees_inside_95", "%", "", 100.0),
            ],
        ),
        (
            "Time",
            "Of an image: the work; from handing it to ROS until its pose is back; its pose's age when published.",
            [
                t.row(f"{label}, {name}", key.format(point), "ms", "less")
                for label, key in (
                    ("to process an image", "frame_ms_{}"),
                    ("from image to pose", "latency_{}_ms"),
                    ("age of the pose", "age_{}_ms"),
                )
                for point, name in (("p50", "median"), ("p95", "p95"), ("p99", "p99"), ("max", "longest"))
            ]
            + [t.row("speed, times real time", "real_time_factor", "", "more")],
        ),
        (
            "Cost",
            "Of the process that did the work.",
            [
                t.row("processor time an image", "cpu_ms_per_frame", "ms", "less"),
                t.row("cores busy, on average", "cpu_cores"),
                t.row("memory, peak", "memory_peak_mib", "MiB", "less"),
            ],
        ),
        (
            "Odometry alone",
            "For comparison: wheel or other odometry, started from the truth.",
            [
                *(t.length(f"translation, {name}", f"odometry_error_{key}_m") for key, name in _SHORT_STATISTICS),
                *(
                    t.row(f"rotation, {name}", f"odometry_rotation_error_{key}_deg", "°", "less")
                    for key, name in _SHORT_STATISTICS
                ),
            ],
        ),
    ]
    groups = [Group(title, note, tuple(row for row in rows if row is not None)) for title, note, rows in groups]
    return [group for group in groups if group.rows]


_STATISTICS = (("median", "median"), ("rmse", "RMSE"), ("p95", "p95"), ("max", "largest"))
_SHORT_STATISTICS = _STATISTICS[:3]


def recall_label(name: str) -> str:
    metres, degrees = name.split("_")
    return f"{metres[:-1]} m, {degrees[:-3]}°"


def format_summary(names: Sequence[str], figures: Sequence[Mapping[str, object]]) -> str:
    """The figures of several runs as text, a column a run; the best one of a row is marked."""
    groups = summary(figures)
    head = ("", *names)
    marked = [
        (
            group,
            [
                (row.label, *(f"{cell}{' *' if i in row.best else '  ' if row.best else ''}" for i, cell in enumerate(row.cells)))
                for row in group.rows
            ],
        )
        for group in groups
    ]
    if not any(row.best for group in groups for row in group.rows):
        marked = [(group, [(row.label, *row.cells) for row in group.rows]) for group in groups]
    rows = [head, *(row for _, rows in marked for row in rows)]
    lines = format_table(rows).splitlines()
    text, at = lines[:2] if any(names) else [], 2
    for group, rows in marked:
        text += (
            ["", group.title, *("  " + line for line in lines[at : at + len(rows)])]
            if text
            else [group.title, *("  " + line for line in lines[at : at + len(rows)])]
        )
        at += len(rows)
    if any(row.best for group in groups for row in group.rows):
        text += ["", "* best"]
    return "\n".join(text)


def format_run(stats: Mapping[str, object]) -> str:
    """The figures of one run as text, with what it said."""
    lines = [format_summary([""], [stats])]
    for label, key in (("images", "messages"), ("odometry messages", "odometry_messages")):
        lines += [f"  {count} {label}: {message}" for message, count in list(stats.get(key, {}).items())[:5]]
    lines += [f"WARNING: {remark}" for remark in stats.get("remarks", ())]
    return "\n".join(lines)


def format_demo(stats: Mapping[str, object]) -> str:
    """The table that the demo ends with."""

    def cell(key: str, unit: str) -> str:
        return "–" if stats.get(key) is None else f"{format_number(stats[key])} {unit}"

    rows = [("", "pixloc", "odometry alone")]
    for label, ours, alone, unit in (
        ("translation error", "translation_error", "odometry_error", "m"),
        ("rotation error", "rotation_error", "odometry_rotation_error", "deg"),
    ):
        rows += [
            (f"{label}, {name}", cell(f"{ours}_{name}_{unit}", unit), cell(f"{alone}_{name}_{unit}", unit))
            for name in ("median", "p95")
        ]
    processed = stats["frames"] - stats["dropped_frames"]
    of_processed = f" ({100 * stats['tracked_frames'] / max(processed, 1):.1f} % of the {processed} not dropped)"
    lines = [
        f"frames   {stats['frames']}",
        f"tracked  {100 * stats['tracked_fraction']:.1f} %{of_processed if stats['dropped_frames'] else ''}",
        f"latency  {cell('latency_p50_ms', 'ms')} p50, {cell('latency_p95_ms', 'ms')} p95 (image to pose)",
        "",
        format_table(rows),
    ]
    if stats["dropped_frames"]:
        lines += [
            "",
            f"dropped because newer images had come: {stats['dropped_frames']}. This machine is too slow or too busy "
            "for this rate; try a lower --rate",
        ]
    return "\n".join(lines + [f"PROBLEM: {problem}" for problem in stats["problems"]])

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Figures as text for a terminal."""
from __future__ import annotations

from collections.abc import Mapping, Sequence


def format_number(value: float | int | None, digits: int = 3) -> str:
    """A figure at a given number of significant digits, never in exponents; "–" for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or value == 0:
        return f"{value:g}"
    text = f"{value:.{digits}g}"
    if "e-" in text:
        return f"< {10.0 ** -9:.9f}" if abs(value) < 1e-9 else f"{float(text):.12f}".rstrip("0")
    return f"{value:.0f}" if "e+" in text else text


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is the head, the first column stands left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
             for row in rows]
    lines.insert(1, "─" * max(map(len, lines)))
    return "\n".join(lines)


def format_errors(result: Mapping[str, object]) -> str:
    """The result of `metrics.evaluate` as text."""
    names = ("median", "p95", "max", "rmse")
    rows = [("", *names)]
    for label, key, unit in (("translation (m)", "translation_error", "m"), ("rotation (deg)", "rotation_error", "deg"),
                             ("relative translation (m)", "relative_translation_error", "m"),
                             ("relative rotation (deg)", "relative_rotation_error", "deg")):
        if f"{key}_median_{unit}" in result:
            rows.append((label, *(format_number(result[f"{key}_{name}_{unit}"]) for name in names)))
    lines = [f"{result['estimated_frames']} of {result['frames']} reference poses have an estimate "
             f"({100 * result['estimated_fraction']:.1f} %)", "", format_table(rows)]
    if "relative_step_m" in result:
        lines.append(f"relative: over {result['relative_stretches']} stretches of {result['relative_step_m']:g} m")
    recall = result["recall"]
    lines += ["", format_table([("recall of all reference poses", *(_recall_label(name) for name in recall)),
                                ("", *(f"{100 * value:.1f} %" for value in recall.values()))])]
    if result.get("nees_mean") is not None:
        lines += ["", f"NEES mean {result['nees_mean']:.2f} (6 is right), inside the 95 % ellipsoid "
                      f"{100 * result['nees_inside_95']:.1f} %"]
    return "\n".join(lines)


def _recall_label(name: str) -> str:
    metres, degrees = name.split("_")
    return f"{metres[:-1]} m, {degrees[:-3]}°"


def format_run(stats: Mapping[str, object]) -> str:
    """The figures of a drive (`offline.summarize`) as text."""
    rows = [("frames", str(stats["frames"])),
            ("tracked", f"{stats['tracked_frames']}  ({100 * stats['tracked_fraction']:.1f} %)")]
    others = {k: v for k, v in stats["states"].items() if v and k != "TRACKING"}
    if others:
        rows.append(("in other states", ", ".join(f"{state} {n}" for state, n in others.items())))
    if stats["unusable_frames"]:
        rows.append(("unusable images", str(stats["unusable_frames"])))
    if "scored_frames" in stats:
        rows += [("scored against truth", str(stats["scored_frames"])),
                 ("translation error", _median_p95(stats, "translation_error", "m")),
                 ("rotation error", _median_p95(stats, "rotation_error", "deg"))]
        if "odometry_error_median_m" in stats:
            rows.append(("odometry alone", f"{_median_p95(stats, 'odometry_error', 'm')}, "
                                           f"{_median_p95(stats, 'odometry_rotation_error', 'deg')}"))
        rows.append(("false tracks", str(stats["false_tracked_frames"])))
    for key, label in (("frame_ms_p{}", "time a frame"), ("latency_p{}_ms", "image stamp to pose")):
        if stats.get(key.format(50)) is not None:
            p50, p95, p99 = (format_number(stats[key.format(point)]) for point in (50, 95, 99))
            rows.append((label, f"{p50} ms median, {p95} p95, {p99} p99"))
    width = max(len(label) for label, _ in rows)
    lines = [f"{label.ljust(width)}  {value}" for label, value in rows]
    for label, key in (("frames", "messages"), ("odometry", "odometry_messages")):
        lines += [f"  {count} {label}: {message}" for message, count in list(stats.get(key, {}).items())[:5]]
    return "\n".join(lines)


def _median_p95(stats: Mapping[str, object], key: str, unit: str) -> str:
    median, p95 = (format_number(stats[f"{key}_{name}_{unit}"]) for name in ("median", "p95"))
    return f"{median} {unit} median, {p95} p95"


def format_demo(stats: Mapping[str, object]) -> str:
    """The table that the demo ends with."""
    def cell(key: str, unit: str) -> str:
        return "–" if stats.get(key) is None else f"{format_number(stats[key])} {unit}"

    rows = [("", "pixloc", "odometry alone")]
    for label, ours, alone, unit in (("translation error", "translation_error", "odometry_error", "m"),
                                     ("rotation error", "rotation_error", "odometry_rotation_error", "deg")):
        rows += [(f"{label}, {name}", cell(f"{ours}_{name}_{unit}", unit), cell(f"{alone}_{name}_{unit}", unit))
                 for name in ("median", "p95")]
    processed = stats["frames"] - stats["dropped_frames"]
    of_processed = f" ({100 * stats['tracked_frames'] / max(processed, 1):.1f} % of the {processed} not dropped)"
    lines = [f"frames   {stats['frames']}",
             f"tracked  {100 * stats['tracked_fraction']:.1f} %{of_processed if stats['dropped_frames'] else ''}",
             f"latency  {cell('latency_p50_ms', 'ms')} p50, {cell('latency_p95_ms', 'ms')} p95 (image to pose)", "",
             format_table(rows)]
    if stats["dropped_frames"]:
        lines += ["", f"dropped because newer images had come: {stats['dropped_frames']}. This machine is too slow or too busy "
                      "for this rate; try a lower --rate"]
    return "\n".join(lines + [f"PROBLEM: {problem}" for problem in stats["problems"]])

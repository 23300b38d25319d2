# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Figures as text: numbers, tables for a terminal, which figures of a run are shown under which name, and tables that commands
write into Markdown pages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..io.files import write_text
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
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f"{row[0]:<{widths[0]}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:])) for row in rows]
    lines = [line.rstrip() for line in lines]
    lines.insert(1, "─" * max(map(len, lines)))
    return "\n".join(lines)


@dataclass(frozen=True)
class Figure:
    """How one figure of a run is shown.

    Attributes:
        label: What it is, for people.
        key: Its name among the figures of `metrics.evaluate`; "recall NAME" and "finding NAME" of those within.
        unit: Stands in the label. "m" becomes "cm" where all values are below one; "%" is of a share.
        better: "less", "more" or "" where it is no merit.
        scale: Factor of the unit.
        of: The key of a number that this one is a part of; its share is shown as well.
        nonzero: Whether it is left out where it is 0 for all.
    """

    label: str
    key: str
    unit: str = ""
    better: str = "less"
    scale: float = 1.0
    of: str = ""
    nonzero: bool = False


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


def row_of(figure: Figure, runs: Sequence[Mapping[str, object]]) -> Row | None:
    """One figure of several runs; None where no run has it."""
    values = [_value(figures, figure.key) for figures in runs]
    known = [value for value in values if value is not None]
    if not known or (figure.nonzero and not any(known)):
        return None
    if figure.key.startswith("finding "):
        return Row(figure.label, tuple("–" if v is None else f"{v[0]:.4f} ± {v[1]:.4f}" for v in values))
    if figure.of:
        totals = [max(figures[figure.of], 1) for figures in runs]
        cells = ["–" if v is None else f"{v} ({100 * v / total:.1f} %)" for v, total in zip(values, totals)]
        ranks = [None if v is None else v / total for v, total in zip(values, totals)]
        return Row(figure.label, tuple(cells), _best(cells, ranks, figure.better))
    unit, scale = figure.unit, figure.scale
    if unit == "m" and max(known) < 1.0:
        unit, scale = "cm", 100.0
    if unit == "%":
        cells = ["–" if v is None else f"{100 * v:.1f}" for v in values]
    else:
        cells = [format_number(v if v is None or scale == 1.0 else v * scale) for v in values]
    return Row(f"{figure.label} ({unit})" if unit else figure.label, tuple(cells), _best(cells, values, figure.better))


def _value(figures: Mapping[str, object], key: str):
    """A number, or a finding with its standard deviation."""
    kind, _, name = key.partition(" ")
    if kind == "recall":
        return figures.get("recall", {}).get(name)
    if kind == "finding":
        found = figures.get("findings", {})
        return (found[name], found[f"{name}_std"]) if name in found else None
    return figures.get(key)


def _best(cells: Sequence[str], values: Sequence[float | None], better: str) -> frozenset[int]:
    known = [value for value in values if value is not None]
    if not better or len(known) < 2 or len(set(cells)) < 2:
        return frozenset()
    shown = cells[values.index((min if better == "less" else max)(known))]
    return frozenset(i for i, cell in enumerate(cells) if cell == shown)


_STATISTICS = (("median", "median"), ("rmse", "RMSE"), ("p95", "p95"), ("max", "largest"))


def _error_rows(translation: str, rotation: str, statistics=_STATISTICS[:3]) -> list[Figure]:
    """Rows of two keys with {} for the statistic."""
    return [
        *(Figure(f"translation, {name}", translation.format(key), "m") for key, name in statistics),
        *(Figure(f"rotation, {name}", rotation.format(key), "°") for key, name in statistics),
    ]


_LAYOUT: tuple[tuple[str, str, list[Figure]], ...] = (
    (
        "Errors in the map frame",
        "Nothing is aligned. Over the images that have a pose and whose truth is known.",
        [
            Figure("images scored", "scored_frames", better=""),
            *_error_rows("translation_error_{}_m", "rotation_error_{}_deg", _STATISTICS),
        ],
    ),
    (
        "Recall",
        "Share of all scored images whose pose is right within both limits. An image without a pose is a failure.",
        [Figure(f"within {m:g} m, {deg:g}°", f"recall {recall_name(m, deg)}", "%", "more") for m, deg in RECALL_LEVELS],
    ),
    (
        "Through the drive",
        "How much of it has a pose, and what happened in between.",
        [
            Figure("images", "frames", better=""),
            Figure("with a pose", "published_frames", better="more", of="frames"),
            Figure("state TRACKING", "tracked_frames", better="more", of="frames"),
            Figure("confident but wrong by 0.5 m or 5°", "false_tracked_frames", of="frames"),
            Figure("until the first pose", "time_to_first_pose_s", "s"),
            Figure("until the first pose", "time_to_first_pose_images", "images"),
            Figure("losses", "losses"),
            Figure("losses not recovered", "losses_not_recovered", nonzero=True),
            Figure("time lost", "time_lost_s", "s", nonzero=True),
            Figure("time lost", "time_lost_images", "images", nonzero=True),
            Figure("time to recover, median", "time_to_recover_median_s", "s"),
            Figure("time to recover, longest", "time_to_recover_max_s", "s"),
            Figure("time to recover, longest", "time_to_recover_max_images", "images"),
            Figure("images dropped for newer ones", "dropped_frames", of="frames"),
            Figure("unusable images", "unusable_frames", better="", nonzero=True),
        ],
    ),
    (
        "Calibration, clocks and odometry",
        "What images and poses say of the inputs: ratios of 1 and 0 s are right.",
        [
            Figure("right focal length per the calibration's", "finding focal_ratio"),
            Figure("to be added to the images' stamps (s)", "finding time_offset_s"),
            Figure("odometry's way per the camera's", "finding way_ratio"),
            Figure("odometry's turning per the camera's", "finding turn_ratio"),
        ],
    ),
    (
        "Relative errors over {step}",
        "Drift and jitter: of the motion between poses, wherever the map frame is.",
        _error_rows("relative_translation_error_{}_m", "relative_rotation_error_{}_deg"),
    ),
    (
        "After alignment",
        "A second figure: what is left when the whole path may be moved and turned to fit the truth. Errors "
        "much smaller than above mean that the map frame is off.",
        [
            *_error_rows("aligned_translation_error_{}_m", "aligned_rotation_error_{}_deg"),
            Figure("moved by", "map_offset_m", "m"),
            Figure("turned by", "map_offset_deg", "°", ""),
        ],
    ),
    (
        "Covariance",
        "Whether the run knew how sure it was. Above 6, or with fewer than 95 % inside, it claims too much.",
        [
            Figure("NEES, mean (6 is right)", "nees_mean", better=""),
            Figure("NEES, median (5.3 is right)", "nees_median", better=""),
            Figure("inside the 95 % ellipsoid", "nees_inside_95", "%", ""),
        ],
    ),
    (
        "Time",
        "Of an image: the work; from handing it to ROS until its pose is back; its pose's age when published.",
        [
            *(
                Figure(f"{label}, {name}", key.format(point), "ms")
                for label, key in (
                    ("to process an image", "frame_ms_{}"),
                    ("from image to pose", "latency_{}_ms"),
                    ("age of the pose", "age_{}_ms"),
                )
                for point, name in (("p50", "median"), ("p95", "p95"), ("p99", "p99"), ("max", "longest"))
            ),
            Figure("speed, times real time", "real_time_factor", better="more"),
        ],
    ),
    (
        "Cost",
        "Of the process that did the work.",
        [
            Figure("processor time an image", "cpu_ms_per_frame", "ms"),
            Figure("cores busy, on average", "cpu_cores", better=""),
            Figure("memory, peak", "memory_peak_mib", "MiB"),
        ],
    ),
    (
        "Odometry alone",
        "For comparison: wheel or other odometry, started from the truth.",
        _error_rows("odometry_error_{}_m", "odometry_rotation_error_{}_deg"),
    ),
)


def summary(runs: Sequence[Mapping[str, object]]) -> list[Group]:
    """The figures of several runs (`metrics.evaluate`) as groups of rows, a column a run; what no run knows is left out."""
    step = next((figures["relative_step"] for figures in runs if figures.get("relative_stretches")), "")
    groups = []
    for title, note, layout in _LAYOUT:
        rows = tuple(row for figure in layout if (row := row_of(figure, runs)) is not None)
        if rows and (step or "{step}" not in title):
            groups.append(Group(title.format(step=step), note, rows))
    return groups


def format_summary(names: Sequence[str], runs: Sequence[Mapping[str, object]]) -> str:
    """The figures of several runs as text, a column a run; the best one of a row is marked."""
    groups = summary(runs)
    marked = any(row.best for group in groups for row in group.rows)

    def cells(row: Row) -> tuple[str, ...]:
        if not marked:
            return row.cells
        return tuple(f"{cell}{' *' if i in row.best else '  ' if row.best else ''}" for i, cell in enumerate(row.cells))

    lines = format_table([("", *names), *((row.label, *cells(row)) for group in groups for row in group.rows)]).splitlines()
    text, lines = lines[:2] if any(names) else [], lines[2:]
    for group in groups:
        text += [*([""] if text else []), group.title, *(f"  {line}" for line in lines[: len(group.rows)])]
        lines = lines[len(group.rows) :]
    return "\n".join([*text, *(["", "* best"] if marked else [])])


def format_run(figures: Mapping[str, object]) -> str:
    """The figures of one run as text, with what it said."""
    lines = [format_summary([""], [figures])]
    for label, key in (("images", "messages"), ("odometry messages", "odometry_messages")):
        lines += [f"  {count} {label}: {message}" for message, count in list(figures.get(key, {}).items())[:5]]
    lines += [f"WARNING: {remark}" for remark in figures.get("remarks", ())]
    return "\n".join(lines)


def format_demo(figures: Mapping[str, object]) -> str:
    """The table that the demo ends with."""

    def cell(key: str, unit: str) -> str:
        return "–" if figures.get(key) is None else f"{format_number(figures[key])} {unit}"

    rows = [("", "pixloc", "odometry alone")]
    for what, ours, alone, unit in (
        ("translation", "translation_error", "odometry_error", "m"),
        ("rotation", "rotation_error", "odometry_rotation_error", "deg"),
    ):
        for name in ("median", "p95"):
            cells = (cell(f"{key}_{name}_{unit}", unit) for key in (ours, alone))
            rows.append((f"{what} error, {name}", *cells))
    dropped = figures["dropped_frames"]
    processed = figures["frames"] - dropped
    of_processed = f" ({100 * figures['tracked_frames'] / max(processed, 1):.1f} % of the {processed} not dropped)"
    lines = [
        f"frames   {figures['frames']}",
        f"tracked  {100 * figures['tracked_fraction']:.1f} %{of_processed if dropped else ''}",
        f"latency  {cell('latency_p50_ms', 'ms')} p50, {cell('latency_p95_ms', 'ms')} p95 (image to pose)",
        "",
        format_table(rows),
    ]
    if dropped:
        lines += [
            "",
            f"dropped because newer images had come: {dropped}. This machine is too slow or too busy "
            "for this rate; try a lower --rate",
        ]
    return "\n".join(lines + [f"PROBLEM: {problem}" for problem in figures["problems"]])


def around_section(page: Path, name: str) -> tuple[str, str]:
    """What stands before and after the section between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page, these
    lines included. Raises InputError where the page cannot be read or lacks one of the two lines."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    try:
        before, rest = page.read_text(encoding="utf-8").split(begin)
        _, after = rest.split(end)
    except (OSError, ValueError):
        raise InputError(f"{page} has no section between {begin.strip()} and {end}: put these two lines into it") from None
    return before + begin, end + after


def write_section(page: Path, name: str, text: str) -> None:
    """Replace a section of a page (`around_section`); it is unchanged where that raises."""
    before, after = around_section(page, name)
    write_text(page, f"{before}{text.strip()}\n{after}")


def markdown_table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """A table of a Markdown page.

    Args:
        head: Names of the columns, separated by `" | "`.
        rows: Cells of each row; they are written by `str`.
    """
    columns = head.count(" | ") + 1
    return "\n".join((f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows))) + "\n"

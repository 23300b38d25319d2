# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The page about one run or several: a table, path, errors, recall, times, covariances, images with the map on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import __version__
from ..evaluation.metrics import RECALL_LEVELS, Evaluation, recall_name
from ..evaluation.tables import format_number, summary
from ..io.bags import BagReader
from ..io.frames import CameraFrame
from ..localization import Localizer
from . import run_plots
from .overlays import AGREES, DISAGREES, draw_overlay
from .page import Card, Page, Picture
from .plots import ODOMETRY, run_style

_OVERLAYS = 6


@dataclass(frozen=True)
class Scene:
    """What is shown besides the figures. points [P, 3], keyframes [K, 3]: of the map. pictures: what the camera saw."""

    points: np.ndarray
    keyframes: np.ndarray
    pictures: tuple[Picture, ...] = ()


def scene_of(evaluation: Evaluation, localizer: Localizer, bag: BagReader) -> Scene:
    """The map, and some of the bag's images with the map's points where the run's poses put them; reads the bag again."""
    map_ = localizer.map
    return Scene(map_.xyz, map_.map_from_keyframe[:, :3, 3].numpy(), tuple(_pictures(evaluation, localizer, bag)))


def run_report(
    title: str,
    lead: str,
    runs: Sequence[Evaluation],
    scene: Scene | None = None,
    notes: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> str:
    """The page's text.

    notes: what a reader should know of how it was counted. problems: what a run must never do, in words.
    """
    page = Page(title, lead, f"pixloc_ros {__version__}")
    if len(runs) == 1:
        page.cards(_cards(runs[0].figures))
    _summary_table(page, runs)
    page.problems(problems)
    page.notes([*notes, *(f"{f'{e.name}: ' if len(runs) > 1 else ''}{remark}." for e in runs for remark in e.run.remarks)])
    page.heading("Path")
    around = (scene.points, scene.keyframes) if scene else (None, None)
    page.plot(
        run_plots.plot_paths(runs, *around),
        run_plots.plot_paths(runs, *around, run_plots.NARROW),
        "the path from above",
        "From above. Where a line breaks, the run was lost; ✖ marks the last pose before.",
    )
    if any(e.scored.any() for e in runs):
        _errors(page, runs)
        _covariances(page, runs)
    _times(page, runs)
    if scene is not None and scene.pictures:
        page.heading("What the camera saw")
        page.legend(
            ((_rgb(AGREES), "looks as in the map  "), (_rgb(DISAGREES), "does not")),
            "The map's points, where the estimated pose puts them: ",
        )
        page.pictures(scene.pictures)
    page.heading("All figures")
    page.text("The best of each row is set in bold." if len(runs) > 1 else "What is not listed is not known of this run.")
    page.groups(
        [e.name for e in runs],
        summary([e.figures for e in runs]),
        [run_style(i)["color"] for i in range(len(runs))] if len(runs) > 1 else (),
    )
    _circumstances(page, runs)
    return page.html()


def _cards(figures: Mapping[str, object]) -> list[Card]:
    f = figures
    tracked, what = (
        (f["tracked_fraction"], "images tracked")
        if f["tracked_fraction"] is not None
        else (f["completion"], "images with a pose")
    )
    count = f["tracked_frames"] if f["tracked_fraction"] is not None else f["published_frames"]
    cards = [Card(f"{100 * tracked:.1f} %", what, f"{count} of {f['frames']}", bad=tracked < 0.9)]
    if f.get("translation_error_median_m") is not None:
        cards += [
            Card(
                f"{format_number(100 * f['translation_error_median_m'])} cm",
                "translation error, median",
                f"p95 {format_number(100 * f['translation_error_p95_m'])} cm",
            ),
            Card(
                f"{format_number(f['rotation_error_median_deg'])}°",
                "rotation error, median",
                f"p95 {format_number(f['rotation_error_p95_deg'])}°",
            ),
        ]
    if f.get("odometry_error_median_m") is not None:
        cards.append(
            Card(
                f"{format_number(f['odometry_error_median_m'])} m",
                "odometry alone, median",
                f"p95 {format_number(f['odometry_error_p95_m'])} m",
            )
        )
    for key, label in (("latency_p{}_ms", "from image to pose, median"), ("frame_ms_p{}", "a frame takes, median")):
        if f.get(key.format(50)) is not None:
            cards.append(Card(f"{f[key.format(50)]:.0f} ms", label, f"p95 {f[key.format(95)]:.0f} ms"))
    return cards


def _summary_table(page: Page, runs: Sequence[Evaluation]) -> None:
    """A row a run, and one for odometry alone: what most readers look for."""
    errors = [e.figures.get("translation_error_median_m") for e in runs]
    unit, scale = ("cm", 100.0) if all(v is None or v < 1.0 for v in errors) else ("m", 1.0)
    columns = [
        ("images", lambda f: f["frames"], "", ""),
        ("with a\npose (%)", lambda f: 100 * f["completion"], "more", "%"),
        (f"translation\nmedian ({unit})", _scaled("translation_error_median_m", scale), "less", ""),
        (f"\np95 ({unit})", _scaled("translation_error_p95_m", scale), "less", ""),
        ("rotation\nmedian (°)", _scaled("rotation_error_median_deg"), "less", ""),
        ("\np95 (°)", _scaled("rotation_error_p95_deg"), "less", ""),
        *(
            (f"≤ {metres:g} m\n{degrees:g}° (%)", _recall(recall_name(metres, degrees)), "more", "%")
            for metres, degrees in RECALL_LEVELS
        ),
        ("losses", _scaled("losses"), "less", ""),
        ("confident\nbut wrong", _scaled("false_tracked_frames"), "less", ""),
        ("ms an\nimage", _scaled("frame_ms_p50"), "less", ""),
    ]
    values = [[get(e.figures) for e in runs] for _, get, _, _ in columns]
    kept = [i for i, column in enumerate(values) if any(v is not None for v in column)]
    best = set()
    for place, i in enumerate(kept):
        known = [v for v in values[i] if v is not None]
        if columns[i][2] and len(known) > 1 and min(known) != max(known):
            target = (min if columns[i][2] == "less" else max)(known)
            best |= {(row, place) for row, v in enumerate(values[i]) if v == target}
    rows = [["", *(columns[i][0] for i in kept)]]
    for number, evaluation in enumerate(runs):
        rows.append(
            [
                evaluation.name,
                *(
                    "–"
                    if values[i][number] is None
                    else f"{values[i][number]:.1f}"
                    if columns[i][3]
                    else format_number(values[i][number])
                    for i in kept
                ),
            ]
        )
    alone = runs[0].figures
    if alone.get("odometry_error_median_m") is not None:
        known = {
            2: alone["odometry_error_median_m"] * scale,
            3: alone["odometry_error_p95_m"] * scale,
            4: alone["odometry_rotation_error_median_deg"],
            5: alone["odometry_rotation_error_p95_deg"],
        }
        rows.append(["odometry alone", *(format_number(known[i]) if i in known else "" for i in kept)])
    colours = [run_style(i)["color"] for i in range(len(runs))]
    page.table(rows, [*colours, ODOMETRY], best)


def _legend(page: Page, runs: Sequence[Evaluation], text: str = "") -> None:
    """Whose colour is which, for the plots that follow."""
    entries = [(run_style(i)["color"], evaluation.name) for i, evaluation in enumerate(runs)] if len(runs) > 1 else []
    if text or entries:
        page.legend(entries, f"{text} " if text else "")


def _scaled(key: str, scale: float = 1.0):
    return lambda figures: None if figures.get(key) is None else figures[key] * scale if scale != 1.0 else figures[key]


def _recall(name: str):
    return lambda figures: 100 * figures["recall"][name] if "recall" in figures else None


def _errors(page: Page, runs: Sequence[Evaluation]) -> None:
    page.heading("Errors in the map frame")
    _legend(page, runs, "Nothing is aligned before errors are taken.")
    page.plot(
        run_plots.plot_errors(runs),
        run_plots.plot_errors(runs, run_plots.NARROW),
        "errors over time, and states",
        "Each step of the scale is ten times the one before. Below: the states; a gap is an image without a pose."
        + (" Shaded: every state but tracking." if len(runs) == 1 else ""),
    )
    kinds = ("translation", "rotation")
    page.pictures(
        [
            Picture(
                run_plots.plot_recall(runs, kind),
                f"Recall: {kind}",
                "How many of all images are at least that good; higher and further left is better. What is missing to "
                "100 % at the right has no pose, or one further off.",
            )
            for kind in kinds
        ]
        + [
            Picture(
                run_plots.plot_histogram(runs, kind),
                f"Which errors occur: {kind}",
                "Share of the images in each bin; ten bins for each factor of ten.",
            )
            for kind in kinds
        ]
    )


def _covariances(page: Page, runs: Sequence[Evaluation]) -> None:
    if not any(e.figures.get("nees_mean") is not None for e in runs):
        return
    page.heading("Covariances")
    _legend(page, runs, "NEES is the squared error in units of the published covariance: 6 on average where that is right.")
    page.pictures(
        [
            Picture(run_plots.plot_nees(runs), "NEES over time", "Points far above the green band: surer than right."),
            Picture(
                run_plots.plot_calibration(runs),
                "Can the covariances be believed?",
                "On the dashed line they say the truth. Below it, fewer poses are inside than claimed.",
            ),
        ]
    )


def _times(page: Page, runs: Sequence[Evaluation]) -> None:
    plots = [
        (
            run_plots.plot_times(runs, "total", "to process an image"),
            "Time to process an image",
            "How many images are done after so many milliseconds; dots at the median, p95 and p99.",
        ),
        (run_plots.plot_stages(runs), "Where the time goes", "Median and p95 of every stage of the work."),
        (
            run_plots.plot_times(runs, "latency", "from image to pose"),
            "From image to pose",
            "From handing the image to ROS until its pose has come back.",
        ),
        (
            run_plots.plot_times(runs, "age", "age of a pose"),
            "Age when published",
            "From the image's stamp until its pose or status was published.",
        ),
    ]
    pictures = [Picture(image, title, caption) for image, title, caption in plots if image is not None]
    if pictures:
        page.heading("Time")
        _legend(page, runs)
        page.pictures(pictures)


def _circumstances(page: Page, runs: Sequence[Evaluation]) -> None:
    facts: dict[str, str] = {}
    for evaluation in runs:
        for name, value in evaluation.run.about.items():
            facts[f"{evaluation.name}: {name}" if len(runs) > 1 else name] = value
        said = evaluation.figures["messages"]
        if said:
            facts[f"{evaluation.name}: said" if len(runs) > 1 else "said"] = "; ".join(
                f"{text} ({count} images)" for text, count in list(said.items())[:5]
            )
    if facts:
        page.heading("Circumstances")
        page.facts(facts)


def _rgb(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(int(part) for part in colour)


def _pictures(evaluation: Evaluation, localizer: Localizer, bag: BagReader) -> list[Picture]:
    posed = [r for r in evaluation.run.records if r.map_from_base is not None]
    if not posed:
        return []
    chosen = {posed[i].stamp_ns: posed[i] for i in np.linspace(0, len(posed) - 1, _OVERLAYS).round().astype(int)}
    pictures = []
    for frame in bag.frames(lambda stamp_ns: stamp_ns in chosen):
        record = chosen.get(frame.stamp_ns)
        if record is None or not isinstance(frame, CameraFrame):
            continue
        image = draw_overlay(localizer.aligner, frame, record.map_from_base @ bag.base_from_camera)
        if image is not None:
            seconds = (record.stamp_ns - evaluation.run.stamps_ns[0]) * 1e-9
            state = f", {record.state.name.lower()}" if record.state is not None else ""
            agree = f"{100 * record.inlier_fraction:.0f} % of the points agree"
            pictures.append(Picture(image, caption=f"{seconds:.1f} s{state}, {agree}"))
    return pictures

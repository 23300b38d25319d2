# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The page about one run or several: a table, path, errors, recall, times, covariances, images with the map on top."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .. import __version__
from ..evaluation.metrics import RECALL_LEVELS, Evaluation, recall_name
from ..evaluation.reliability import judged
from ..evaluation.runs import TRUTH_GAP_NS
from ..evaluation.tables import Figure, format_number, row_of, summary
from ..io.bags import BagReader
from ..io.frames import CameraFrame
from ..io.rig_images import RigReader
from ..io.trajectory import Trajectory
from ..localization import Localizer
from ..tracking.alignment_judge import RIGHT
from . import run_plots
from .curves import plot_reliability
from .overlays import AGREES, DISAGREES, draw_overlay, side_by_side
from .page import Card, Page, Picture
from .style import ORANGE, run_style

_OVERLAYS = 6
_READ_RECALL = (
    "How many of all images are at least that good; higher and further left is better. What is missing to "
    "100 % at the right has no pose, or one further off."
)
_READ_HISTOGRAM = "Share of the images in each bin; ten bins for each factor of ten."


@dataclass(frozen=True)
class Scene:
    """What is shown besides the figures.

    Attributes:
        points: Of the map [P, 3].
        keyframes: Places of the map's images [K, 3].
        pictures: What the camera saw.
    """

    points: np.ndarray
    keyframes: np.ndarray
    pictures: tuple[Picture, ...] = ()


def scene_of(evaluation: Evaluation, localizer: Localizer, bag: BagReader) -> Scene:
    """The map, and some of the bag's images with the map's points where the run's poses put them; reads the bag again."""
    map_, run = localizer.map, evaluation.run
    posed = [r for r in run.records if r.map_from_base is not None]
    wanted = np.linspace(0, len(posed) - 1, _OVERLAYS).round().astype(int) if posed else ()
    chosen = {posed[i].stamp_ns: posed[i] for i in wanted}
    pictures = []
    for frame in _frames_of(bag, frozenset(chosen)) if chosen else ():
        record = chosen[frame.stamp_ns]
        image = _overlay(localizer, bag, frame, record.map_from_base, run.estimate)
        if image is not None:
            seconds = (record.stamp_ns - run.stamps_ns[0]) * 1e-9
            state = f", {record.state.name.lower()}" if record.state is not None else ""
            agree = f"{100 * record.inlier_fraction:.0f} % of the points agree"
            pictures.append(Picture(image, caption=f"{seconds:.1f} s{state}, {agree}"))
    return Scene(map_.xyz, map_.map_from_keyframe[:, :3, 3].numpy(), tuple(pictures))


def _frames_of(bag: BagReader, stamps_ns: frozenset[int]) -> Iterator[CameraFrame]:
    """Usable images of these stamps, of a rig with those of its other cameras."""
    if isinstance(bag, RigReader):
        yield from bag.frames_at(stamps_ns)
    else:
        yield from (one for one in bag.frames(stamps_ns.__contains__) if isinstance(one, CameraFrame))


def _overlay(
    localizer: Localizer, bag: BagReader, frame: CameraFrame, map_from_base: torch.Tensor, estimate: Trajectory
) -> np.ndarray | None:
    """The image with the map's points, or those of all cameras, named; None where that fails."""
    if not frame.others:
        return draw_overlay(localizer.aligner, frame, map_from_base @ bag.base_from_camera)
    drawn = {frame.name: draw_overlay(localizer.aligner, frame, map_from_base @ bag.base_from_camera)}
    for other in frame.others:
        pose, known = estimate.at(np.array([other.frame.stamp_ns]), TRUTH_GAP_NS)
        place = (pose[0] if known[0] else map_from_base) @ other.base_from_camera
        drawn[other.frame.name] = draw_overlay(localizer.aligner, other.frame, place)
    return side_by_side({one.name: one.image for one in (frame, *(other.frame for other in frame.others))}, drawn)


def run_report(
    title: str,
    lead: str,
    runs: Sequence[Evaluation],
    scene: Scene | None = None,
    notes: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> str:
    """The page's text.

    Args:
        title: Of the page.
        lead: Below it.
        runs: What is compared.
        scene: The map and some images.
        notes: What a reader should know of how it was counted.
        problems: What a run must never do, in words.
    """
    page = Page(title, lead, f"pixloc_ros {__version__}")
    colours = [run_style(i)["color"] for i in range(len(runs))]
    several = len(runs) > 1

    def legend(text: str = "") -> None:
        """Whose colour is which, for the plots that follow."""
        if text or several:
            page.legend([*zip(colours, (e.name for e in runs))] if several else [], f"{text} " if text else "")

    if not several:
        page.cards(_cards(runs[0].figures))
    _summary_table(page, runs, colours)
    page.problems(problems)
    page.notes([*notes, *(f"{f'{e.name}: ' if several else ''}{remark}." for e in runs for remark in e.run.remarks)])
    page.heading("Path")
    around = (scene.points, scene.keyframes) if scene else (None, None)
    page.plot(
        run_plots.plot_paths(runs, *around),
        run_plots.plot_paths(runs, *around, run_plots.NARROW),
        "the path from above",
        "From above. Where a line breaks, the run was lost; ✖ marks the last pose before.",
    )
    if any(e.scored.any() for e in runs):
        page.heading("Errors in the map frame")
        legend("Nothing is aligned before errors are taken.")
        page.plot(
            run_plots.plot_errors(runs),
            run_plots.plot_errors(runs, run_plots.NARROW),
            "errors over time, and states",
            "Each step of the scale is ten times the one before. Below: the states; a gap is an image without a pose."
            + ("" if several else " Shaded: every state but tracking."),
        )
        kinds = ("translation", "rotation")
        pictures = [Picture(run_plots.plot_recall(runs, kind), f"Recall: {kind}", _READ_RECALL) for kind in kinds]
        histograms = ((run_plots.plot_histogram(runs, kind), f"Which errors occur: {kind}", _READ_HISTOGRAM) for kind in kinds)
        pictures += [Picture(*histogram) for histogram in histograms]
        page.pictures(pictures)
        if any(e.figures.get("nees_mean") is not None for e in runs):
            page.heading("Covariances")
            legend("NEES is the squared error in units of the published covariance: 6 on average where that is right.")
            surer = "Points far above the green band: surer than right."
            believed = "On the dashed line they say the truth. Below it, fewer poses are inside than claimed."
            calibration = Picture(run_plots.plot_calibration(runs), "Can the covariances be believed?", believed)
            page.pictures([Picture(run_plots.plot_nees(runs), "NEES over time", surer), calibration])
    likely = {e.name: found for e in runs if len((found := judged(e))[0])}
    if likely:
        page.heading("Probabilities")
        page.legend([], f"A pose is right within {RIGHT[0]:g}° and {100 * RIGHT[1]:g} % of the depth of what the image shows. ")
        read = "On the dashed line they say the truth. Below: how many images fall into each tenth."
        page.pictures([Picture(plot_reliability(likely), "Can the probabilities be believed?", read)])
    times = _times(runs)
    if times:
        page.heading("Time")
        legend()
        page.pictures(times)
    if scene is not None and scene.pictures:
        page.heading("What the camera saw")
        page.legend(
            ((AGREES, "looks as in the map  "), (DISAGREES, "does not")), "The map's points, where the estimated pose puts them: "
        )
        page.pictures(scene.pictures)
    page.heading("All figures")
    page.text("The best of each row is set in bold." if several else "What is not listed is not known of this run.")
    page.groups([e.name for e in runs], summary([e.figures for e in runs]), colours if several else ())
    facts = _circumstances(runs)
    if facts:
        page.heading("Circumstances")
        page.facts(facts)
    return page.html()


def _cards(f: Mapping[str, object]) -> list[Card]:
    share, count, what = f["tracked_fraction"], f["tracked_frames"], "images tracked"
    if share is None:
        share, count, what = f["completion"], f["published_frames"], "images with a pose"
    cards = [Card(f"{100 * share:.1f} %", what, f"{count} of {f['frames']}", bad=share < 0.9)]
    for key, scale, sign, label in (
        ("translation_error_{}_m", 100, " cm", "translation error, median"),
        ("rotation_error_{}_deg", 1, "°", "rotation error, median"),
        ("odometry_error_{}_m", 1, " m", "odometry alone, median"),
    ):
        if f.get(key.format("median")) is not None:
            median, p95 = (f"{format_number(scale * f[key.format(name)])}{sign}" for name in ("median", "p95"))
            cards.append(Card(median, label, f"p95 {p95}"))
    for key, label in (("latency_p{}_ms", "from image to pose, median"), ("frame_ms_p{}", "a frame takes, median")):
        if f.get(key.format(50)) is not None:
            cards.append(Card(f"{f[key.format(50)]:.0f} ms", label, f"p95 {f[key.format(95)]:.0f} ms"))
    return cards


def _summary_table(page: Page, runs: Sequence[Evaluation], colours: Sequence[str]) -> None:
    """A row a run, and one for odometry alone: what most readers look for."""
    figures = [e.figures for e in runs]
    centimetres = all((f.get("translation_error_median_m") or 0.0) < 1.0 for f in figures)
    unit, scale = ("cm", 100.0) if centimetres else ("m", 1.0)
    columns = (
        ("images", Figure("", "frames", better=""), ""),
        ("with a\npose (%)", Figure("", "completion", "%", "more"), ""),
        (f"translation\nmedian ({unit})", Figure("", "translation_error_median_m", scale=scale), "odometry_error_median_m"),
        (f"\np95 ({unit})", Figure("", "translation_error_p95_m", scale=scale), "odometry_error_p95_m"),
        ("rotation\nmedian (°)", Figure("", "rotation_error_median_deg"), "odometry_rotation_error_median_deg"),
        ("\np95 (°)", Figure("", "rotation_error_p95_deg"), "odometry_rotation_error_p95_deg"),
        *((f"≤ {m:g} m\n{d:g}° (%)", Figure("", f"recall {recall_name(m, d)}", "%", "more"), "") for m, d in RECALL_LEVELS),
        ("losses", Figure("", "losses"), ""),
        ("confident\nbut wrong", Figure("", "false_tracked_frames"), ""),
        ("ms an\nimage", Figure("", "frame_ms_p50"), ""),
    )
    kept = [(head, row, alone, f.scale) for head, f, alone in columns if (row := row_of(f, figures)) is not None]
    rows = [["", *(head for head, _, _, _ in kept)]]
    rows += [[e.name, *(row.cells[number] for _, row, _, _ in kept)] for number, e in enumerate(runs)]
    best = {(run, column) for column, (_, row, _, _) in enumerate(kept) for run in row.best}
    odometry = runs[0].figures
    if odometry.get("odometry_error_median_m") is not None:
        cells = (format_number(odometry[alone] * scale) if alone else "" for _, _, alone, scale in kept)
        rows.append(["odometry alone", *cells])
    page.table(rows, [*colours, ORANGE], best)


def _times(runs: Sequence[Evaluation]) -> list[Picture]:
    plots = (
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
    )
    return [Picture(*plot) for plot in plots if plot[0] is not None]


def _circumstances(runs: Sequence[Evaluation]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for evaluation in runs:
        prefix = f"{evaluation.name}: " if len(runs) > 1 else ""
        facts |= {f"{prefix}{name}": value for name, value in evaluation.run.about.items()}
        said = [f"{text} ({count} images)" for text, count in list(evaluation.figures["messages"].items())[:5]]
        if said:
            facts[f"{prefix}said"] = "; ".join(said)
    return facts

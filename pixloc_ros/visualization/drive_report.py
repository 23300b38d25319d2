# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The page about one drive: figures, path, errors, times, and images with the map on top."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .. import __version__
from ..evaluation import metrics
from ..evaluation.bags import BagReader
from ..evaluation.offline import TRUTH_GAP_NS, BagRun, odometry_in_map
from ..evaluation.report import format_number
from ..evaluation.trajectory import Trajectory
from ..tracking.localizer import FrameLocalizer
from ..tracking.types import CameraFrame
from . import plots
from .overlays import AGREES, DISAGREES, draw_overlay
from .page import Card, Page

_OVERLAYS = 6


@dataclass(frozen=True)
class DriveReport:
    """What the page tells: its title and first line, the figures (`offline.summarize` or `replay.summarize`), the run, and
    milliseconds [N] with their label."""

    title: str
    lead: str
    stats: Mapping[str, object]
    run: BagRun
    times_ms: np.ndarray
    times_label: str

    def html(self, localizer: FrameLocalizer, bag: BagReader) -> str:
        """The whole page; reads the bag again for the images."""
        page = Page(self.title, self.lead, f"pixloc_ros {__version__}")
        page.cards(self._cards())
        page.problems(self.stats.get("problems", []))
        map_ = localizer.map
        odometry = odometry_in_map(self.run.odometry, self.run.truth)
        if "scored_frames" in self.stats:
            page.heading("Errors in the map frame, nothing aligned")
            page.table(self._error_rows())
        page.heading("Path")
        keyframes = map_.map_from_keyframe[:, :3, 3].numpy()
        page.plot(plots.plot_paths(map_.xyz, keyframes, self.run.truth, self.run.estimate, odometry), "the path from above")
        if "scored_frames" in self.stats:
            page.plot(self._plot_errors(odometry), "errors over time")
        if len(self.times_ms):
            page.heading("Time")
            page.plot(plots.plot_times(self.times_ms, self.times_label, self._image_period_ms()), self.times_label)
        pictures = self._pictures(localizer, bag)
        if pictures:
            page.heading("What the camera saw")
            page.legend(((AGREES, "looks as in the map"), (DISAGREES, "does not")),
                        "The map's points, where the estimated pose puts them:")
            page.pictures(pictures)
        return page.html()

    def _cards(self) -> list[Card]:
        s = self.stats
        cards = [Card(f"{100 * s['tracked_fraction']:.1f} %", "images tracked", f"{s['tracked_frames']} of {s['frames']}",
                      bad=s["tracked_fraction"] < 0.9)]
        if s.get("translation_error_median_m") is not None:
            cards += [Card(f"{format_number(100 * s['translation_error_median_m'])} cm", "translation error, median",
                           f"p95 {format_number(100 * s['translation_error_p95_m'])} cm"),
                      Card(f"{format_number(s['rotation_error_median_deg'])}°", "rotation error, median",
                           f"p95 {format_number(s['rotation_error_p95_deg'])}°")]
        if s.get("odometry_error_median_m") is not None:
            cards.append(Card(f"{format_number(s['odometry_error_median_m'])} m", "odometry alone, median",
                              f"p95 {format_number(s['odometry_error_p95_m'])} m"))
        for key, label in (("latency_p{}_ms", "from image to pose, median"), ("frame_ms_p{}", "a frame takes, median")):
            if s.get(key.format(50)) is not None:
                cards.append(Card(f"{s[key.format(50)]:.0f} ms", label, f"p95 {s[key.format(95)]:.0f} ms"))
        return cards

    def _error_rows(self) -> list[list[str]]:
        names = ("median", "p95", "max")
        rows = [["", *names, *(name.replace("m_", " m, ").replace("deg", "°") for name in self.stats["recall"])]]
        recall = [f"{100 * v:.1f} %" for v in self.stats["recall"].values()]
        for label, prefix, unit in (("pixloc, translation", "translation_error", "m"),
                                    ("pixloc, rotation", "rotation_error", "deg"),
                                    ("odometry alone, translation", "odometry_error", "m"),
                                    ("odometry alone, rotation", "odometry_rotation_error", "deg")):
            values = [self.stats.get(f"{prefix}_{name}_{unit}") for name in names]
            if values[0] is not None:
                symbol = "°" if unit == "deg" else " m"
                rows.append([label, *(format_number(v) + symbol for v in values),
                             *(recall if prefix == "translation_error" else [""] * len(recall))])
        return rows

    def _plot_errors(self, odometry: Trajectory) -> bytes:
        stamps = np.array(sorted({r.stamp_ns for r in self.run.records}), np.int64)
        poses, known = self.run.truth.at(stamps, TRUTH_GAP_NS)
        reference = Trajectory(stamps[known], poses[known])
        ours = metrics.absolute_errors(reference, self.run.estimate, 0)
        sampled, covered = odometry.at(reference.stamps_ns, TRUTH_GAP_NS)
        alone = metrics.absolute_errors(reference, Trajectory(reference.stamps_ns[covered], sampled[covered]), 0)
        seconds = (reference.stamps_ns - stamps[0]) * 1e-9
        return plots.plot_errors(seconds, ours.translation_m, np.degrees(ours.rotation_rad), alone.translation_m,
                                 np.degrees(alone.rotation_rad), self._gaps())

    def _gaps(self) -> list[tuple[float, float]]:
        """Spans in seconds in which images gave no pose."""
        gaps: list[tuple[float, float]] = []
        half_s = (self._image_period_ms() or 0.0) / 2e3
        for record in self.run.records:
            if record.map_from_base is None:
                at = (record.stamp_ns - self.run.records[0].stamp_ns) * 1e-9
                if gaps and at - half_s <= gaps[-1][1] + 1e-6:
                    gaps[-1] = (gaps[-1][0], at + half_s)
                else:
                    gaps.append((at - half_s, at + half_s))
        return gaps

    def _image_period_ms(self) -> float | None:
        stamps = [r.stamp_ns for r in self.run.records]
        return float(np.median(np.diff(stamps))) * 1e-6 if len(stamps) > 1 else None

    def _pictures(self, localizer: FrameLocalizer, bag: BagReader) -> list[tuple[np.ndarray, str]]:
        posed = [r for r in self.run.records if r.map_from_base is not None]
        if not posed:
            return []
        chosen = {posed[i].stamp_ns: posed[i] for i in np.linspace(0, len(posed) - 1, _OVERLAYS).round().astype(int)}
        pictures = []
        for event in bag.events():
            record = chosen.get(event.stamp_ns) if isinstance(event, CameraFrame) else None
            if record is None:
                continue
            image = draw_overlay(localizer, event, record.map_from_base @ bag.base_from_camera)
            if image is not None:
                seconds = (record.stamp_ns - self.run.records[0].stamp_ns) * 1e-9
                pictures.append((image, f"{seconds:.1f} s, {record.state.name.lower()}, "
                                        f"{100 * record.inlier_fraction:.0f} % of the points agree"))
        return pictures

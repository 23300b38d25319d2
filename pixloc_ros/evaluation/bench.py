# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The figures of a run: errors in the map frame, how long it knew no pose, whether it knew how sure it was, what it took.

Keys and their meaning: docs/evaluation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..io.trajectory import Trajectory
from ..tracking.types import TrackState
from . import metrics
from .metrics import Errors, Step
from .runs import BagRun, odometry_in_map, sampled

FALSE_TRACK = (0.5, 5.0)
"""Metres, degrees: a pose given as TRACKING that is further off is a false one."""
LOSS_S = 0.5
"""A run without states is taken for lost where it gave no pose for longer."""
_LOST = (TrackState.LOST, TrackState.RELOCALIZING)


@dataclass(frozen=True)
class Evaluation:
    """A run with its figures.

    run: truth and odometry at the images' stamps. seconds: float64 [N] of every image, from the first on (their numbers where the
    run has no times). errors: at every image, NaN where truth or pose is unknown; alone: those of odometry alone. scored: bool
    [N], the images that the error figures are taken of. lost: (begin, end) in seconds.
    """

    run: BagRun
    seconds: np.ndarray
    errors: Errors
    alone: Errors
    scored: np.ndarray
    lost: tuple[tuple[float, float], ...]
    figures: Mapping[str, object]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def period_s(self) -> float:
        """Median time between images; 0 where there are not two."""
        return float(np.median(np.diff(self.seconds))) if len(self.seconds) > 1 else 0.0

    def times_ms(self, what: str) -> np.ndarray:
        """Of the images that have one, float64 [M]: "latency", "age", or the stage of that name ("total": all of them)."""
        if what in ("latency", "age"):
            values = np.array([getattr(r, f"{what}_ms") for r in self.run.records], float)
            return values[np.isfinite(values)]
        return np.array([r.timings_ms[what] for r in _aligned(self.run) if what in r.timings_ms], float)


def evaluate(run: BagRun, step: Step | None = None) -> Evaluation:
    """All that can be said of a run. step: of the relative errors, by default 1 m or, for cars, 10 m (`metrics.usual_step`)."""
    run = run.at_images()
    stamps = run.stamps_ns
    seconds = (stamps - stamps[0]) * 1e-9 if len(stamps) else np.empty(0)
    lost, end_known = _lost_spans(run, seconds)
    errors = _errors_at(stamps, run.truth, run.estimate)
    alone = _errors_at(stamps, run.truth, odometry_in_map(run.odometry, run.truth))
    unscored = {r.stamp_ns for i, r in enumerate(run.records) if run.skip_map_frames and i % run.skip_map_frames == 0}
    scored = np.isin(stamps, run.truth.stamps_ns) & ~np.isin(stamps, np.array(sorted(unscored), np.int64))
    figures = {**_life(run, seconds, lost, end_known), **_cost(run, seconds)}
    if len(run.truth):
        figures.update(_accuracy(run, stamps[scored], step or metrics.usual_step(run.truth, run.timed)))
        figures.update(_false_tracks(run, errors, scored))
        figures.update(_odometry_alone(run, stamps[scored]))
    return Evaluation(run, seconds, errors, alone, scored, tuple(lost), figures)


def summarize(run: BagRun, skip_map_frames: int = 0) -> dict[str, object]:
    """Figures of a run: JSON-ready.

    skip_map_frames: where the map was made of every n-th image of this very drive, the errors of those say little: only the
    others are scored (0: all are).
    """
    return dict(evaluate(replace(run, skip_map_frames=skip_map_frames or run.skip_map_frames)).figures)


def _errors_at(stamps_ns: np.ndarray, truth: Trajectory, estimate: Trajectory) -> Errors:
    """At every stamp, NaN where either is unknown."""
    known = metrics.absolute_errors(truth, estimate, 0)
    place = np.searchsorted(stamps_ns, truth.stamps_ns)

    def spread(values: np.ndarray) -> np.ndarray:
        result = np.full(len(stamps_ns), np.nan)
        result[place] = values
        return result

    return Errors(
        stamps_ns, spread(known.translation_m), spread(known.rotation_rad), spread(known.nees) if known.nees is not None else None
    )


def _lost_spans(run: BagRun, seconds: np.ndarray) -> tuple[list[tuple[float, float]], bool]:
    """(begin, end) of every time after the first pose in which the place was not known → spans, whether the last one ended.

    By the states, from the first image LOST to the next that is not; without states where no pose came for `LOSS_S`.
    """
    records = sorted({r.stamp_ns: r for r in run.records}.values(), key=lambda r: r.stamp_ns)
    posed = [r.map_from_base is not None for r in records]
    if not any(posed):
        return [], True
    first = posed.index(True)
    if any(r.state is not None for r in records):
        away = np.array([r.state in _LOST and not p for r, p in zip(records, posed)])
    else:
        away = ~np.array(posed)
    away[:first] = False
    begins = np.flatnonzero(away & ~np.concatenate(([False], away[:-1])))
    ends = np.flatnonzero(away & ~np.concatenate((away[1:], [False]))) + 1
    spans, end_known = [], True
    for begin, end in zip(begins.tolist(), ends.tolist()):
        known = end < len(records)
        span = float(seconds[begin]), float(seconds[end if known else -1])
        if records[begin].state is None and run.timed and span[1] - float(seconds[begin - 1]) <= LOSS_S:
            continue
        spans.append(span)
        end_known = known
    return spans, end_known


def _life(run: BagRun, seconds: np.ndarray, lost: list[tuple[float, float]], end_known: bool) -> dict[str, object]:
    records = run.records
    posed = [r for r in records if r.map_from_base is not None]
    tracked = [r for r in posed if r.state is TrackState.TRACKING]
    stated = any(r.state is not None for r in records)
    states = Counter(r.state.name for r in records if r.state is not None)
    duration = float(seconds[-1]) if len(seconds) else 0.0
    recoveries = [end - begin for begin, end in (lost if end_known else lost[:-1])]
    time_lost = sum(end - begin for begin, end in lost)
    unit = "s" if run.timed else "images"
    return {
        "frames": len(records),
        "duration_s": duration if run.timed else None,
        "published_frames": len(posed),
        "completion": len(posed) / len(records) if records else 0.0,
        "tracked_frames": len(tracked) if stated or not records else None,
        "tracked_fraction": len(tracked) / max(len(records), 1) if stated or not records else None,
        "unusable_frames": sum(r.unusable for r in records),
        "states": {state.name: states[state.name] for state in TrackState} if stated or not records else {},
        f"time_to_first_pose_{unit}": float(seconds[np.searchsorted(run.stamps_ns, posed[0].stamp_ns)]) if posed else None,
        "losses": len(lost),
        "losses_not_recovered": int(not end_known),
        f"time_lost_{unit}": time_lost,
        "time_lost_fraction": time_lost / duration if duration else 0.0,
        f"time_to_recover_median_{unit}": float(np.median(recoveries)) if recoveries else None,
        f"time_to_recover_max_{unit}": max(recoveries, default=None),
        "messages": dict(Counter(r.message for r in records if r.message).most_common(20)),
        "odometry_messages": dict(run.odometry_refused.most_common(20)),
        "findings": dict(run.findings),
        "remarks": list(run.remarks),
    }


def _accuracy(run: BagRun, stamps_ns: np.ndarray, step: Step) -> dict[str, object]:
    """Errors at the stamps, of all of which the truth is known."""
    figures = metrics.trajectory_figures(sampled(run.truth, stamps_ns), run.estimate, step, 0)
    if not run.ordered:
        figures = {key: value for key, value in figures.items() if not key.startswith("relative_")}
    return {("scored_frames" if key == "frames" else key): value for key, value in figures.items()}


def _false_tracks(run: BagRun, errors: Errors, scored: np.ndarray) -> dict[str, object]:
    """Poses given as sure that are wrong. A run without states claims every pose it gives."""
    sure = {r.stamp_ns for r in run.records if r.map_from_base is not None and r.state in (None, TrackState.TRACKING)}
    sure_and_scored = np.isin(errors.stamps_ns, np.array(sorted(sure), np.int64)) & scored
    with np.errstate(invalid="ignore"):
        wrong = (errors.translation_m > FALSE_TRACK[0]) | (np.degrees(errors.rotation_rad) > FALSE_TRACK[1])
    count = int((wrong & sure_and_scored).sum())
    return {
        "false_tracked_frames": count,
        "false_tracked_fraction": count / int(sure_and_scored.sum()) if sure_and_scored.any() else None,
    }


def _odometry_alone(run: BagRun, stamps_ns: np.ndarray) -> dict[str, object]:
    dead_reckoned = odometry_in_map(run.odometry, run.truth)
    if not len(dead_reckoned):
        return {}
    reference = sampled(run.truth, stamps_ns)
    alone = metrics.summarize(metrics.absolute_errors(reference, dead_reckoned, 0))
    return {
        f"odometry_{'rotation_' if what == 'rotation' else ''}error_{name}_{unit}": alone[f"{what}_error_{name}_{unit}"]
        for what, unit in (("translation", "m"), ("rotation", "deg"))
        for name in ("median", "p95", "max", "rmse")
    }


def _aligned(run: BagRun) -> list:
    """Records of the images that were really worked on."""
    return [r for r in run.records if not r.unusable and "alignment" in r.timings_ms]


def _cost(run: BagRun, seconds: np.ndarray) -> dict[str, object]:
    """Times, drops, processor and memory, as far as they are known."""
    figures = metrics.timing_summary([r.timings_ms for r in _aligned(run)])
    figures["frame_ms_max"] = max((r.timings_ms.get("total", 0.0) for r in _aligned(run)), default=None)
    for what in ("latency", "age"):
        values = [ms for ms in (getattr(r, f"{what}_ms") for r in run.records) if np.isfinite(ms)]
        if values:
            figures.update(metrics.percentiles(what + "_p{}_ms", values))
            figures[f"{what}_max_ms"] = max(values)
    if run.dropped_frames is not None:
        figures["dropped_frames"] = run.dropped_frames
        figures["dropped_fraction"] = run.dropped_frames / max(len(run.records), 1)
    usage = run.usage
    if usage is not None:
        figures["wall_s"] = usage.wall_s
        figures["real_time_factor"] = float(seconds[-1]) / usage.wall_s if len(seconds) and usage.wall_s else None
        figures["cpu_s"] = usage.cpu_s
        figures["cpu_ms_per_frame"] = 1e3 * usage.cpu_s / max(len(run.records), 1) if usage.cpu_s is not None else None
        figures["cpu_cores"] = usage.cpu_s / usage.wall_s if usage.cpu_s is not None and usage.wall_s else None
        figures["memory_peak_mib"] = usage.peak_mib
    return figures

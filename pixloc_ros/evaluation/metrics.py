# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Errors in the map frame, and all figures of a run: how long it knew no pose, whether it knew how sure it was, what it took.

Nothing is aligned first: the map frame is what a map-based localizer claims to know. Every reference frame counts; one
without an estimate is a failure in the recall and is absent from the error statistics, which therefore always stand
next to the number of frames. Keys and their meaning: docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..errors import InputError
from ..geometry import se3
from ..io.trajectory import Trajectory
from ..tracking.types import TrackState
from .runs import BagRun, FrameRecord, odometry_in_map, sampled

RECALL_LEVELS = ((0.05, 1.0), (0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
"""(metres, degrees): the first for indoor work, the others those of the visual-localization benchmark."""
FALSE_TRACK = (0.5, 5.0)
"""Metres, degrees: a pose given as TRACKING that is further off is a false one."""
NEES_95 = 12.592
"""95 % point of chi² with 6 degrees of freedom."""
LOSS_S = 0.5
"""A run without states counts as lost where it gave no pose for longer."""
_LOST = (TrackState.LOST, TrackState.RELOCALIZING)
_TOLERANCE_NS = 10_000_000


@dataclass(frozen=True)
class Errors:
    """Errors of each reference frame, float64 [N], NaN where there is no estimate.

    Attributes:
        stamps_ns: Of the reference frames, int64 [N].
        translation_m: Between the bodies' origins.
        rotation_rad: Angle between their axes.
        nees: Normalised estimation error squared, None without covariances; 6 on average where the covariance is right.
    """

    stamps_ns: np.ndarray
    translation_m: np.ndarray
    rotation_rad: np.ndarray
    nees: np.ndarray | None = None

    @property
    def rotation_deg(self) -> np.ndarray:
        return np.degrees(self.rotation_rad)

    @property
    def false(self) -> np.ndarray:
        """bool [N]: the poses that are further off than `FALSE_TRACK`."""
        return (self.translation_m > FALSE_TRACK[0]) | (self.rotation_deg > FALSE_TRACK[1])

    def spread(self, stamps_ns: np.ndarray) -> Errors:
        """The same errors at more stamps (int64 [M], increasing, with all of these among them), NaN at the new ones."""
        places = np.isin(stamps_ns, self.stamps_ns)
        values = (self.translation_m, self.rotation_rad, self.nees)
        return Errors(stamps_ns, *(None if value is None else _spread(value, places) for value in values))


def associate(reference_ns: np.ndarray, estimate_ns: np.ndarray, tolerance_ns: int) -> np.ndarray:
    """For each reference stamp (int64 [N], increasing) the index of its estimate, or -1 → int64 [N].

    Pairs are the nearest stamps within the tolerance; each estimate belongs to one reference frame at most, nearest first.
    """
    matches = np.full(len(reference_ns), -1, np.int64)
    if not len(estimate_ns):
        return matches
    right = np.searchsorted(estimate_ns, reference_ns)
    candidates = []
    for index in (np.maximum(right - 1, 0), np.minimum(right, len(estimate_ns) - 1)):
        distance = np.abs(estimate_ns[index] - reference_ns)
        candidates.append(np.stack((distance, np.arange(len(reference_ns)), index), -1)[distance <= tolerance_ns])
    taken = set()
    for _, i, j in np.unique(np.concatenate(candidates), axis=0).tolist():
        if matches[i] < 0 and j not in taken:
            matches[i] = j
            taken.add(j)
    return matches


def absolute_errors(reference: Trajectory, estimate: Trajectory, tolerance_ns: int = _TOLERANCE_NS) -> Errors:
    """Errors at every reference frame, in the map frame, without alignment. Covariances that are NaN or singular give no NEES."""
    matches = associate(reference.stamps_ns, estimate.stamps_ns, tolerance_ns)
    found = matches >= 0
    truth, guess = reference.map_from_body[found], estimate.map_from_body[matches[found]]
    distance, angle = se3.pose_difference(truth, guess)
    nees = None
    if estimate.covariances is not None:
        xi = se3.se3_log(se3.inverse(guess) @ truth).unsqueeze(-1)
        weighted, singular = torch.linalg.solve_ex(estimate.covariances[matches[found]], xi)
        nees = _spread(torch.where(singular == 0, (xi.mT @ weighted).flatten(), torch.nan), found)
    return Errors(reference.stamps_ns, _spread(distance, found), _spread(angle, found), nees)


@dataclass(frozen=True)
class Step:
    """What relative errors are taken over: a length in metres ("m"), or a number of poses ("poses")."""

    length: float
    unit: str = "m"

    def __post_init__(self) -> None:
        whole = self.unit != "poses" or self.length % 1 == 0
        if self.unit not in ("m", "poses") or not 0 < self.length < math.inf or not whole:
            raise InputError(f"relative errors are taken over a length in metres or a whole number of poses, not {self}")

    def __str__(self) -> str:
        return "1 pose" if self.unit == "poses" and self.length == 1 else f"{self.length:g} {self.unit}"


def usual_step(reference: Trajectory, timed: bool) -> Step:
    """10 m for cars, 1 m for what is slower: by the mean speed (3 m/s); without times by the distance between poses (0.3 m)."""
    if len(reference) < 2:
        return Step(1.0)
    duration = (reference.stamps_ns[-1] - reference.stamps_ns[0]) * 1e-9 if timed else len(reference) - 1
    return Step(10.0 if _way(reference.map_from_body)[-1] / duration > (3.0 if timed else 0.3) else 1.0)


def relative_errors(
    reference: Trajectory, estimate: Trajectory, step: Step, tolerance_ns: int = _TOLERANCE_NS
) -> tuple[np.ndarray, np.ndarray]:
    """Drift over stretches of the path → (translation error in metres, rotation error in radians), both float64 [M].

    Of the frames with an estimate each begins a stretch. It ends at the later one whose distance along the reference path
    comes nearest to the step and differs by a tenth of it at most, or so many poses later. Errors are of the relative pose,
    E = (ref_i⁻¹ ref_j)⁻¹ (est_i⁻¹ est_j), as `evo_rpe --all_pairs --pairs_from_reference` takes them.
    """
    truth, guess = _associated(reference, estimate, tolerance_ns)
    start, end = _stretches(truth, step)
    error = se3.inverse(se3.inverse(truth[start]) @ truth[end]) @ (se3.inverse(guess[start]) @ guess[end])
    return torch.linalg.vector_norm(error[:, :3, 3], dim=-1).numpy(), se3.rotation_angle(error[:, :3, :3]).numpy()


def _stretches(truth: torch.Tensor, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """First and last index of every stretch, int64 [M] each."""
    count = len(truth)
    if count < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    start = np.arange(count - 1)
    if step.unit == "poses":
        end = start + int(step.length)
        return start[end < count], end[end < count]
    way = _way(truth)
    after = np.minimum(np.searchsorted(way, way[start] + step.length), count - 1)
    # Of several at one place (the robot stood) the first.
    before = np.maximum(np.searchsorted(way, way[np.maximum(after - 1, 0)]), start + 1)
    after = np.maximum(after, before)
    off = np.abs(way[np.stack((before, after))] - way[start] - step.length)
    end = np.where(off[0] <= off[1], before, after)
    good = off.min(0) <= 0.1 * step.length
    return start[good], end[good]


def _way(map_from_body: torch.Tensor) -> np.ndarray:
    """Metres [N] along the positions of poses [N, 4, 4], from 0."""
    steps = torch.linalg.vector_norm(map_from_body[1:, :3, 3] - map_from_body[:-1, :3, 3], dim=-1)
    return np.concatenate(([0.0], np.cumsum(steps.numpy())))


def umeyama(reference: Trajectory, estimate: Trajectory, tolerance_ns: int = _TOLERANCE_NS) -> torch.Tensor | None:
    """The rigid transform [4, 4] that brings the estimate's positions nearest to the reference's (least squares, no scale).

    Errors "after alignment" are taken with it. It is None where the positions do not determine it (fewer than three, or on a
    line). Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
    """
    truth, guess = (poses[:, :3, 3].numpy() for poses in _associated(reference, estimate, tolerance_ns))
    if len(truth) < 3:
        return None
    centre_truth, centre_guess = truth.mean(0), guess.mean(0)
    spread = np.linalg.svd((truth - centre_truth).T @ (guess - centre_guess), compute_uv=False)
    if not spread[1] > 1e-12 * spread[0]:
        return None
    rotation = Rotation.align_vectors(truth - centre_truth, guess - centre_guess)[0].as_matrix()
    return se3.from_rotation_translation(torch.from_numpy(rotation), torch.from_numpy(centre_truth - rotation @ centre_guess))


def _associated(reference: Trajectory, estimate: Trajectory, tolerance_ns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """map_from_body of reference and estimate, [K, 4, 4] each, where both are known."""
    matches = associate(reference.stamps_ns, estimate.stamps_ns, tolerance_ns)
    return reference.map_from_body[matches >= 0], estimate.map_from_body[matches[matches >= 0]]


# ---- named figures, JSON-ready


def error_figures(errors: Errors) -> dict[str, object]:
    """Statistics, recall and consistency of the errors; None where nothing was estimated."""
    found = np.isfinite(errors.translation_m)
    right = {recall_name(m, deg): (errors.translation_m <= m) & (errors.rotation_deg <= deg) for m, deg in RECALL_LEVELS}
    figures: dict[str, object] = {
        "frames": int(found.size),
        "estimated_frames": int(found.sum()),
        "estimated_fraction": float(found.mean()) if found.size else 0.0,
        **_error_statistics("", errors.translation_m[found], errors.rotation_rad[found]),
        "recall": {name: float(among.mean()) if found.size else 0.0 for name, among in right.items()},
    }
    if errors.nees is not None:
        nees = errors.nees[np.isfinite(errors.nees)]
        figures["nees_mean"] = float(nees.mean()) if nees.size else None
        figures["nees_median"] = float(np.median(nees)) if nees.size else None
        figures["nees_inside_95"] = float(np.mean(nees <= NEES_95)) if nees.size else None
    return figures


def recall_name(metres: float, degrees: float) -> str:
    return f"{metres:g}m_{degrees:g}deg"


def trajectory_figures(
    reference: Trajectory, estimate: Trajectory, step: Step, tolerance_ns: int = _TOLERANCE_NS
) -> dict[str, object]:
    """`error_figures`, and the same errors after alignment (keys aligned_…) and over stretches (relative_…).

    map_offset_m and map_offset_deg say how far alignment moves the middle of the estimate, and turns it.
    """
    figures = error_figures(absolute_errors(reference, estimate, tolerance_ns))
    translation, rotation = relative_errors(reference, estimate, step, tolerance_ns)
    figures |= {"relative_step": str(step), "relative_stretches": int(translation.size)}
    figures |= _error_statistics("relative_", translation, rotation)
    moved = umeyama(reference, estimate, tolerance_ns)
    if moved is not None:
        aligned = absolute_errors(reference, Trajectory(estimate.stamps_ns, moved @ estimate.map_from_body), tolerance_ns)
        found = np.isfinite(aligned.translation_m)
        figures |= _error_statistics("aligned_", aligned.translation_m[found], aligned.rotation_rad[found])
        middle = _associated(reference, estimate, tolerance_ns)[1][:, :3, 3].mean(0)
        figures["map_offset_m"] = float(torch.linalg.vector_norm(moved[:3, :3] @ middle + moved[:3, 3] - middle))
        figures["map_offset_deg"] = float(torch.rad2deg(se3.rotation_angle(moved[:3, :3])))
    return figures


def _error_statistics(prefix: str, translation_m: np.ndarray, rotation_rad: np.ndarray) -> dict[str, float | None]:
    figures = {}
    for what, unit, values in (("translation", "m", translation_m), ("rotation", "deg", np.degrees(rotation_rad))):
        statistics = dict.fromkeys(("mean", "median", "p95", "max", "rmse"))
        if values.size:
            numbers = (values.mean(), np.median(values), np.percentile(values, 95), values.max(), np.sqrt(np.mean(values**2)))
            statistics = dict(zip(statistics, map(float, numbers)))
        figures |= {f"{prefix}{what}_error_{key}_{unit}": value for key, value in statistics.items()}
    return figures


def _spread(values: torch.Tensor | np.ndarray, found: np.ndarray) -> np.ndarray:
    """Put values [K] at the K true places of found [N], NaN elsewhere."""
    result = np.full(found.size, np.nan)
    result[found] = values
    return result


def percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """50th, 95th and 99th percentile of N values, {} in the name standing for the number; None for all where N = 0."""
    points = (50, 95, 99)
    numbers = np.percentile(values, points).tolist() if len(values) else [None] * len(points)
    return {name.format(point): number for point, number in zip(points, numbers)}


def timing_figures(frames: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """Milliseconds per stage of N frames → frame_ms_p50, _p95, _p99 of the stage "total", and the same of every stage."""
    stages = sorted({stage for frame in frames for stage in frame})
    times = {stage: [frame[stage] for frame in frames if stage in frame] for stage in stages}
    total = percentiles("frame_ms_p{}", times.pop("total", []))
    return {**total, "stage_ms": {stage: percentiles("p{}", values) for stage, values in times.items()}}


# ---- a whole run


@dataclass(frozen=True)
class Evaluation:
    """A run with its figures.

    Attributes:
        run: Its truth and odometry are those at the images' stamps.
        seconds: float64 [N] of every image, from the first on (their numbers where the run has no times).
        errors: At every image, NaN where truth or pose is unknown.
        alone: Those of odometry alone.
        scored: bool [N], the images that the error figures are taken of.
        lost: (begin, end) in seconds.
        figures: By name, JSON-ready.
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
    """All that can be said of a run. step: of the relative errors, by default 1 m or, for cars, 10 m (`usual_step`)."""
    run = run.at_images()
    stamps = run.stamps_ns
    seconds = (stamps - stamps[0]) * 1e-9 if len(stamps) else np.empty(0)
    lost, end_known = _lost_spans(run, seconds)
    dead_reckoned = odometry_in_map(run.odometry, run.truth)
    errors = absolute_errors(run.truth, run.estimate, 0).spread(stamps)
    alone = absolute_errors(run.truth, dead_reckoned, 0).spread(stamps)
    unscored = [r.stamp_ns for r in run.records[:: run.skip_map_frames]] if run.skip_map_frames else []
    scored = np.isin(stamps, run.truth.stamps_ns) & ~np.isin(stamps, np.array(unscored, np.int64))
    figures = {**_life(run, seconds, lost, end_known), **_cost(run, seconds)}
    if len(run.truth):
        reference = sampled(run.truth, stamps[scored])
        accuracy = trajectory_figures(reference, run.estimate, step or usual_step(run.truth, run.timed), 0)
        accuracy = {"scored_frames" if key == "frames" else key: value for key, value in accuracy.items()}
        figures |= {key: value for key, value in accuracy.items() if run.ordered or not key.startswith("relative_")}
        figures |= _false_tracks(run, errors, scored)
        if len(dead_reckoned):
            known = error_figures(absolute_errors(reference, dead_reckoned, 0))
            figures |= {f"odometry_{key.removeprefix('translation_')}": known[key] for key in known if "_error_" in key}
    return Evaluation(run, seconds, errors, alone, scored, tuple(lost), figures)


def run_figures(run: BagRun, skip_map_frames: int = 0) -> dict[str, object]:
    """The figures alone. skip_map_frames: as in `BagRun`, where the run does not say it."""
    return dict(evaluate(replace(run, skip_map_frames=skip_map_frames or run.skip_map_frames)).figures)


def _lost_spans(run: BagRun, seconds: np.ndarray) -> tuple[list[tuple[float, float]], bool]:
    """(begin, end) of every time after the first pose in which the place was not known → spans, whether the last one ended.

    By the states, from the first image LOST to the next that is not; without states where no pose came for `LOSS_S`.
    """
    records = sorted({r.stamp_ns: r for r in run.records}.values(), key=lambda r: r.stamp_ns)
    posed = np.array([r.map_from_base is not None for r in records], bool)
    if not posed.any():
        return [], True
    stated = any(r.state is not None for r in records)
    away = ~posed & np.array([not stated or r.state in _LOST for r in records])
    away[: posed.argmax()] = False
    edges = np.flatnonzero(np.diff(away, prepend=False, append=False))
    spans, end_known = [], True
    for begin, end in edges.reshape(-1, 2).tolist():
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
    tracked = sum(r.state is TrackState.TRACKING for r in posed)
    stated = any(r.state is not None for r in records) or not records
    states = Counter(r.state.name for r in records if r.state is not None)
    duration = float(seconds[-1]) if len(seconds) else 0.0
    recoveries = [end - begin for begin, end in (lost if end_known else lost[:-1])]
    time_lost = sum(end - begin for begin, end in lost)
    unit = "s" if run.timed else "images"
    return {
        "frames": len(records),
        "duration_s": duration if run.timed else None,
        "published_frames": len(posed),
        "completion": len(posed) / max(len(records), 1),
        "tracked_frames": tracked if stated else None,
        "tracked_fraction": tracked / max(len(records), 1) if stated else None,
        "unusable_frames": sum(r.unusable for r in records),
        "states": {state.name: states[state.name] for state in TrackState} if stated else {},
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


def _false_tracks(run: BagRun, errors: Errors, scored: np.ndarray) -> dict[str, object]:
    """Poses given as sure that are wrong. A run without states claims every pose it gives."""
    sure = [r.stamp_ns for r in run.records if r.map_from_base is not None and r.state in (None, TrackState.TRACKING)]
    sure_and_scored = np.isin(errors.stamps_ns, np.array(sure, np.int64)) & scored
    count, of = int((errors.false & sure_and_scored).sum()), int(sure_and_scored.sum())
    return {"false_tracked_frames": count, "false_tracked_fraction": count / of if of else None}


def _aligned(run: BagRun) -> list[FrameRecord]:
    """Records of the images that were really worked on."""
    return [r for r in run.records if not r.unusable and "alignment" in r.timings_ms]


def _cost(run: BagRun, seconds: np.ndarray) -> dict[str, object]:
    """Times, drops, processor and memory, as far as they are known."""
    figures = timing_figures([r.timings_ms for r in _aligned(run)])
    figures["frame_ms_max"] = max((r.timings_ms.get("total", 0.0) for r in _aligned(run)), default=None)
    for what in ("latency", "age"):
        values = [ms for ms in (getattr(r, f"{what}_ms") for r in run.records) if np.isfinite(ms)]
        if values:
            figures |= percentiles(what + "_p{}_ms", values) | {f"{what}_max_ms": max(values)}
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

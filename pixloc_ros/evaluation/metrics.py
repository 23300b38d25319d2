# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Errors of an estimated trajectory in the map frame.

Nothing is aligned first: the map frame is what a map-based localizer claims to know. Every reference frame counts; one
without an estimate is a failure in the recall and is absent from the error statistics, which therefore always stand
beside the number of frames.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .trajectory import Trajectory

RECALL_LEVELS = ((0.05, 1.0), (0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
"""(metres, degrees): the first for indoor work, the others those of the visual-localization benchmark."""


@dataclass(frozen=True)
class Errors:
    """Per reference frame, float64 [N], NaN where there is no estimate.

    translation_m: between the bodies' origins. rotation_rad: angle between their axes. nees: normalised estimation error
    squared, or None without covariances; 6 on average where the covariance is right (6 degrees of freedom).
    """

    stamps_ns: np.ndarray
    translation_m: np.ndarray
    rotation_rad: np.ndarray
    nees: np.ndarray | None = None


def associate(reference_ns: np.ndarray, estimate_ns: np.ndarray, tolerance_ns: int) -> np.ndarray:
    """For each reference stamp (int64 [N], increasing) the index of its estimate, or -1 → int64 [N].

    Pairs are the nearest stamps within the tolerance, each estimate belongs to one reference frame at most, nearest first.
    """
    matches = np.full(len(reference_ns), -1, np.int64)
    if not len(estimate_ns):
        return matches
    right = np.searchsorted(estimate_ns, reference_ns)
    candidates = []
    for index in (np.maximum(right - 1, 0), np.minimum(right, len(estimate_ns) - 1)):
        distance = np.abs(estimate_ns[index] - reference_ns)
        candidates.append(np.stack((distance, np.arange(len(reference_ns)), index), -1)[distance <= tolerance_ns])
    pairs = np.unique(np.concatenate(candidates), axis=0)
    taken = set()
    for _, i, j in pairs.tolist():
        if matches[i] < 0 and j not in taken:
            matches[i] = j
            taken.add(j)
    return matches


def absolute_errors(reference: Trajectory, estimate: Trajectory, tolerance_ns: int = 10_000_000) -> Errors:
    """Errors at every reference frame, in the map frame, without alignment."""
    matches = associate(reference.stamps_ns, estimate.stamps_ns, tolerance_ns)
    found = matches >= 0
    truth, guess = reference.map_from_body[found], estimate.map_from_body[matches[found]]
    distance, angle = se3.pose_difference(truth, guess)
    nees = None
    if estimate.covariances is not None:
        xi = se3.se3_log(se3.inverse(guess) @ truth).unsqueeze(-1)
        nees = _spread((xi.mT @ torch.linalg.solve(estimate.covariances[matches[found]], xi)).flatten(), found)
    return Errors(reference.stamps_ns, _spread(distance, found), _spread(angle, found), nees)


def relative_errors(reference: Trajectory, estimate: Trajectory, step_m: float,
                    tolerance_ns: int = 10_000_000) -> tuple[np.ndarray, np.ndarray]:
    """Drift over stretches of the path → (translation error in metres, rotation error in radians), both float64 [M].

    A stretch runs from an associated frame to the first later one at least `step_m` further along the reference path.
    Both errors are of the relative pose, that is E = (ref_i⁻¹ ref_j)⁻¹ (est_i⁻¹ est_j).
    """
    matches = associate(reference.stamps_ns, estimate.stamps_ns, tolerance_ns)
    found = matches >= 0
    truth, guess = reference.map_from_body[found], estimate.map_from_body[matches[found]]
    if len(truth) < 2:
        return np.empty(0), np.empty(0)
    way = torch.linalg.vector_norm(reference.map_from_body[1:, :3, 3] - reference.map_from_body[:-1, :3, 3], dim=-1)
    way = np.concatenate(([0.0], np.cumsum(way.numpy())))[found]
    start = np.arange(len(way))
    end = np.searchsorted(way, way + step_m)
    start, end = start[end < len(way)], end[end < len(way)]
    error = se3.inverse(se3.inverse(truth[start]) @ truth[end]) @ (se3.inverse(guess[start]) @ guess[end])
    return torch.linalg.vector_norm(error[:, :3, 3], dim=-1).numpy(), se3.rotation_angle(error[:, :3, :3]).numpy()


def summarize(errors: Errors) -> dict[str, float | int | None | dict[str, float]]:
    """Named figures of the errors: JSON-ready, None where nothing was estimated."""
    found = np.isfinite(errors.translation_m)
    degrees = np.degrees(errors.rotation_rad)
    summary: dict[str, float | int | None | dict[str, float]] = {
        "frames": int(found.size), "estimated_frames": int(found.sum()),
        "estimated_fraction": float(found.mean()) if found.size else 0.0}
    for name, values in (("translation_error", errors.translation_m[found]), ("rotation_error", degrees[found])):
        unit = "m" if name.startswith("translation") else "deg"
        summary.update({f"{name}_{key}_{unit}": value for key, value in statistics(values).items()})
    with np.errstate(invalid="ignore"):
        summary["recall"] = {
            recall_name(metres, limit): float(np.mean((errors.translation_m <= metres) & (degrees <= limit)))
            if found.size else 0.0 for metres, limit in RECALL_LEVELS}
    if errors.nees is not None:
        nees = errors.nees[found]
        summary["nees_mean"] = float(nees.mean()) if nees.size else None
        summary["nees_median"] = float(np.median(nees)) if nees.size else None
        # 12.592 is the 95 % point of chi² with 6 degrees of freedom.
        summary["nees_inside_95"] = float(np.mean(nees <= 12.592)) if nees.size else None
    return summary


def recall_name(metres: float, degrees: float) -> str:
    return f"{metres:g}m_{degrees:g}deg"


def statistics(values: np.ndarray) -> dict[str, float | None]:
    """median, p95, max, rmse of float64 [N]; None for all where N = 0."""
    if not values.size:
        return dict.fromkeys(("median", "p95", "max", "rmse"))
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95)), "max": float(values.max()),
            "rmse": float(np.sqrt(np.mean(values**2)))}


def evaluate(reference: Trajectory, estimate: Trajectory, tolerance_ns: int = 10_000_000,
             step_m: float = 1.0) -> dict[str, object]:
    """All figures of `pixloc evaluate`. Raises `InputError` where not one stamp of the two trajectories agrees."""
    errors = absolute_errors(reference, estimate, tolerance_ns)
    if not np.isfinite(errors.translation_m).any():
        raise InputError(f"no stamp of the estimate lies within {tolerance_ns / 1e9:g} s of a reference stamp: "
                         "check that both use the same clock, or raise --tolerance")
    translation, rotation = relative_errors(reference, estimate, step_m, tolerance_ns)
    summary: dict[str, object] = summarize(errors)
    summary["relative_step_m"] = step_m
    summary["relative_stretches"] = int(translation.size)
    summary.update({f"relative_translation_error_{k}_m": v for k, v in statistics(translation).items()})
    summary.update({f"relative_rotation_error_{k}_deg": v for k, v in statistics(np.degrees(rotation)).items()})
    return summary


def _spread(values: torch.Tensor, found: np.ndarray) -> np.ndarray:
    """Put values [K] at the K true places of found [N], NaN elsewhere."""
    result = np.full(found.size, np.nan)
    result[found] = values.numpy()
    return result


def percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """50th, 95th and 99th percentile of N values, {} in the name standing for the number; None for all where N = 0."""
    points = (50, 95, 99)
    numbers = np.percentile(values, points).tolist() if len(values) else [None] * len(points)
    return {name.format(point): number for point, number in zip(points, numbers)}


def timing_summary(frames: Sequence[Mapping[str, float]], total: str = "total") -> dict[str, object]:
    """Milliseconds per stage of N frames → frame_ms_p50, _p95, _p99 of the stage `total`, and the same of every stage."""
    stages = sorted({stage for frame in frames for stage in frame})
    by_stage = {stage: [frame[stage] for frame in frames if stage in frame] for stage in stages}
    return {**percentiles("frame_ms_p{}", by_stage.get(total, [])),
            "stage_ms": {stage: percentiles("p{}", values) for stage, values in by_stage.items() if stage != total}}

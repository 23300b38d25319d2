# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Errors of an estimated trajectory in the map frame.

Nothing is aligned first: the map frame is what a map-based localizer claims to know. Every reference frame counts; one
without an estimate is a failure in the recall and is absent from the error statistics, which therefore always stand
beside the number of frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..errors import InputError
from ..geometry import se3
from ..io.trajectory import Trajectory

RECALL_LEVELS = ((0.05, 1.0), (0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
"""(metres, degrees): the first for indoor work, the others those of the visual-localization benchmark."""

NEES_95 = 12.592
"""95 % point of chi² with 6 degrees of freedom."""


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
    """Errors at every reference frame, in the map frame, without alignment. Covariances that are NaN or singular give no NEES."""
    matches = associate(reference.stamps_ns, estimate.stamps_ns, tolerance_ns)
    found = matches >= 0
    truth, guess = reference.map_from_body[found], estimate.map_from_body[matches[found]]
    distance, angle = se3.pose_difference(truth, guess)
    nees = None
    if estimate.covariances is not None:
        xi = se3.se3_log(se3.inverse(guess) @ truth).unsqueeze(-1)
        weighted, singular = torch.linalg.solve_ex(estimate.covariances[matches[found]], xi)
        squared = (xi.mT @ weighted).flatten()
        nees = _spread(torch.where(singular == 0, squared, torch.nan), found)
    return Errors(reference.stamps_ns, _spread(distance, found), _spread(angle, found), nees)


@dataclass(frozen=True)
class Step:
    """Over what relative errors are taken: a length in metres, or a number of poses."""

    length: float
    unit: str = "m"

    def __post_init__(self) -> None:
        whole = self.unit != "poses" or self.length % 1 == 0
        if self.unit not in ("m", "poses") or not 0 < self.length < math.inf or not whole:
            raise InputError(f"relative errors are taken over a length in metres or a whole number of poses, not {self}")

    def __str__(self) -> str:
        return "1 pose" if self.unit == "poses" and self.length == 1 else f"{self.length:g} {self.unit}"


def relative_errors(
    reference: Trajectory, estimate: Trajectory, step: Step, tolerance_ns: int = 10_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """Drift over stretches of the path → (translation error in metres, rotation error in radians), both float64 [M].

    Of the frames with an estimate each begins a stretch. It ends at the later one whose distance along the reference path
    comes nearest to the step and differs by a tenth of it at most, or so many poses later. Errors are of the relative pose,
    E = (ref_i⁻¹ ref_j)⁻¹ (est_i⁻¹ est_j). As `evo_rpe --all_pairs --pairs_from_reference` takes them, with which tests compare.
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
    way = np.concatenate(([0.0], np.cumsum(torch.linalg.vector_norm(truth[1:, :3, 3] - truth[:-1, :3, 3], dim=-1).numpy())))
    after = np.minimum(np.searchsorted(way, way[start] + step.length), count - 1)
    # Of several at one place (the robot stood) the first.
    before = np.maximum(np.searchsorted(way, way[np.maximum(after - 1, 0)]), start + 1)
    after = np.maximum(after, before)
    off = np.abs(way[np.stack((before, after))] - way[start] - step.length)
    end = np.where(off[0] <= off[1], before, after)
    good = off.min(0) <= 0.1 * step.length
    return start[good], end[good]


def usual_step(reference: Trajectory, timed: bool) -> Step:
    """10 m for cars, 1 m for what is slower: by the mean speed (3 m/s); without times by the distance between poses (0.3 m)."""
    if len(reference) < 2:
        return Step(1.0)
    duration = (reference.stamps_ns[-1] - reference.stamps_ns[0]) * 1e-9 if timed else len(reference) - 1
    return Step(10.0 if path_length(reference) / duration > (3.0 if timed else 0.3) else 1.0)


def path_length(track: Trajectory) -> float:
    """Metres along the positions."""
    return float(torch.linalg.vector_norm(track.map_from_body[1:, :3, 3] - track.map_from_body[:-1, :3, 3], dim=-1).sum())


def align(reference: Trajectory, estimate: Trajectory, tolerance_ns: int = 10_000_000) -> torch.Tensor | None:
    """The rigid transform [4, 4] that brings the estimate's positions nearest to the reference's (least squares, no scale), by
    which errors "after alignment" are taken; None where the positions do not determine it (fewer than three, or on a line).

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
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
    found = matches >= 0
    return reference.map_from_body[found], estimate.map_from_body[matches[found]]


def summarize(errors: Errors) -> dict[str, float | int | None | dict[str, float]]:
    """Named figures of the errors: JSON-ready, None where nothing was estimated."""
    found = np.isfinite(errors.translation_m)
    degrees = np.degrees(errors.rotation_rad)
    summary: dict[str, float | int | None | dict[str, float]] = {
        "frames": int(found.size),
        "estimated_frames": int(found.sum()),
        "estimated_fraction": float(found.mean()) if found.size else 0.0,
        **_named("", errors.translation_m[found], errors.rotation_rad[found]),
    }
    with np.errstate(invalid="ignore"):
        summary["recall"] = {
            recall_name(metres, limit): float(np.mean((errors.translation_m <= metres) & (degrees <= limit)))
            if found.size
            else 0.0
            for metres, limit in RECALL_LEVELS
        }
    if errors.nees is not None:
        nees = errors.nees[np.isfinite(errors.nees)]
        summary["nees_mean"] = float(nees.mean()) if nees.size else None
        summary["nees_median"] = float(np.median(nees)) if nees.size else None
        summary["nees_inside_95"] = float(np.mean(nees <= NEES_95)) if nees.size else None
    return summary


def recall_name(metres: float, degrees: float) -> str:
    return f"{metres:g}m_{degrees:g}deg"


def statistics(values: np.ndarray) -> dict[str, float | None]:
    """mean, median, p95, max, rmse of float64 [N]; None for all where N = 0."""
    if not values.size:
        return dict.fromkeys(("mean", "median", "p95", "max", "rmse"))
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
        "rmse": float(np.sqrt(np.mean(values**2))),
    }


def trajectory_figures(
    reference: Trajectory, estimate: Trajectory, step: Step, tolerance_ns: int = 10_000_000
) -> dict[str, object]:
    """`summarize`, and the same errors after alignment (keys aligned_…) and over stretches (relative_…): JSON-ready.

    map_offset_m, map_offset_deg: how far alignment moves the middle of the estimate, and turns it.
    """
    figures: dict[str, object] = summarize(absolute_errors(reference, estimate, tolerance_ns))
    translation, rotation = relative_errors(reference, estimate, step, tolerance_ns)
    figures["relative_step"] = str(step)
    figures["relative_stretches"] = int(translation.size)
    figures.update(_named("relative_", translation, rotation))
    moved = align(reference, estimate, tolerance_ns)
    if moved is not None:
        aligned = absolute_errors(reference, Trajectory(estimate.stamps_ns, moved @ estimate.map_from_body), tolerance_ns)
        found = np.isfinite(aligned.translation_m)
        figures.update(_named("aligned_", aligned.translation_m[found], aligned.rotation_rad[found]))
        middle = _associated(reference, estimate, tolerance_ns)[1][:, :3, 3].mean(0)
        figures["map_offset_m"] = float(torch.linalg.vector_norm(moved[:3, :3] @ middle + moved[:3, 3] - middle))
        figures["map_offset_deg"] = float(torch.rad2deg(se3.rotation_angle(moved[:3, :3])))
    return figures


def _named(prefix: str, translation_m: np.ndarray, rotation_rad: np.ndarray) -> dict[str, float | None]:
    """Statistics under the names that `summarize` gives them, with a prefix."""
    return {
        f"{prefix}{what}_error_{key}_{unit}": value
        for what, unit, values in (("translation", "m", translation_m), ("rotation", "deg", np.degrees(rotation_rad)))
        for key, value in statistics(values).items()
    }


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
    return {
        **percentiles("frame_ms_p{}", by_stage.get(total, [])),
        "stage_ms": {stage: percentiles("p{}", values) for stage, values in by_stage.items() if stage != total},
    }

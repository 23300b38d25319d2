# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the live node did with a replayed bag: the recording, and the figures drawn from it. The recorder itself is in `rig`."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..geometry import se3
from ..io.files import write_text
from ..io.trajectory import Trajectory
from ..tracking.types import TrackState
from . import metrics
from .runs import BagRun, FrameRecord
from .usage import Usage

CHAIN_TOLERANCE = 1e-6
"""Metres and radians by which the TF chain map → camera may differ from the published pose."""


@dataclass(frozen=True)
class StatusRecord:
    """One status message. received_s: monotonic clock. Times in milliseconds, NaN where the node did not measure them."""

    stamp_ns: int
    state: TrackState
    message: str
    inlier_fraction: float
    frame_ms: float
    feature_ms: float
    alignment_ms: float
    dropped: int
    received_s: float
    age_ms: float = math.nan


@dataclass(frozen=True)
class PoseRecord:
    """One published pose. covariance: float64 [6, 6], base frame, body perturbation."""

    stamp_ns: int
    map_from_base: torch.Tensor
    covariance: torch.Tensor
    received_s: float


@dataclass(frozen=True)
class LookupRecord:
    """A listener's lookup of map → base at an image's stamp, tried until it had waited too long. error: name of tf2's
    exception, empty where it worked."""

    stamp_ns: int
    error: str
    text: str
    waited_ms: float


@dataclass
class Recording:
    """What was sent and what came back.

    Attributes:
        sent_s: Image stamp to the time (monotonic clock, seconds) it was published.
        statuses: What the node said of each image.
        poses: What it published.
        lookups: What a listener asked.
        chain: Image stamp to map_from_camera [4, 4] along TF, looked up when all was over; None where tf2 refused.
        last_odometry_ns: The last stamp at which odom → base is known to TF.
        usage: Of the node's process while the bag was played.
    """

    sent_s: dict[int, float] = field(default_factory=dict)
    statuses: list[StatusRecord] = field(default_factory=list)
    poses: list[PoseRecord] = field(default_factory=list)
    lookups: list[LookupRecord] = field(default_factory=list)
    chain: dict[int, torch.Tensor | None] = field(default_factory=dict)
    last_odometry_ns: int | None = None
    usage: Usage | None = None

    def write(self, path: Path) -> None:
        """As JSON lines, in the order of stamps."""
        rows: list[dict[str, object]] = [{"kind": "sent", "stamp_ns": k, "at_s": v} for k, v in self.sent_s.items()]
        rows += [{"kind": "status", **vars(record), "state": record.state.name} for record in self.statuses]
        rows += [{"kind": kind, **vars(record)} for kind in ("pose", "lookup") for record in getattr(self, f"{kind}s")]
        rows += [{"kind": "chain", "stamp_ns": k, "map_from_camera": v} for k, v in self.chain.items()]
        rows.sort(key=lambda row: row["stamp_ns"])
        write_text(path, "".join(json.dumps(row, default=torch.Tensor.tolist) + "\n" for row in rows))

    def knows_odometry(self, stamp_ns: int) -> bool:
        """Whether odom → base is known at a stamp; beyond the last odometry nobody can know."""
        return self.last_odometry_ns is None or stamp_ns <= self.last_odometry_ns


def as_run(recording: Recording, truth: Trajectory, odometry: Trajectory) -> BagRun:
    """The recording in the form of an offline run, one record for each image sent.

    An image that the node said nothing of has no pose and the message "not reported".
    """
    statuses = {r.stamp_ns: r for r in recording.statuses}
    poses = {r.stamp_ns: r for r in recording.poses}
    records = []
    state = TrackState.INITIALIZING
    for stamp_ns in sorted(recording.sent_s):
        status, pose = statuses.get(stamp_ns), poses.get(stamp_ns)
        state = status.state if status is not None else state
        timings = {}
        if status is not None:
            timings = {"total": status.frame_ms, "features": status.feature_ms, "alignment": status.alignment_ms}
            timings = {stage: ms for stage, ms in timings.items() if np.isfinite(ms)}
        latency_ms = (pose.received_s - recording.sent_s[stamp_ns]) * 1e3 if pose else math.nan
        records.append(
            FrameRecord(
                stamp_ns,
                state,
                *((pose.map_from_base, pose.covariance) if pose else (None, None)),
                timings,
                status.inlier_fraction if status else math.nan,
                status.message if status else "not reported",
                latency_ms=latency_ms,
                age_ms=status.age_ms if status else math.nan,
            )
        )
    dropped = recording.statuses[-1].dropped if recording.statuses else 0
    return BagRun(records, truth, odometry, usage=recording.usage, dropped_frames=dropped)


def live_figures(recording: Recording, figures: Mapping[str, object], base_from_camera: torch.Tensor) -> dict[str, object]:
    """The figures of the run (`metrics.evaluate`), and what only a live run can tell: JSON-ready.

    Returns:
        The figures, and besides others: unreported_frames, images without a status; chain_error_m and _rad, the largest
        difference between TF's map → camera and the published pose; tf_errors, failed lookups at image stamps that have a pose;
        tf_beyond_odometry, those of images newer than the last odometry, which are no errors; problems, in words.
    """
    statuses = Counter(r.stamp_ns for r in recording.statuses)
    translation, rotation, missing = chain_errors(recording, base_from_camera)
    posed = {r.stamp_ns for r in recording.poses}
    failures = [r for r in recording.lookups if r.error and r.stamp_ns in posed]
    failed = [r for r in failures if recording.knows_odometry(r.stamp_ns)]
    stats = {
        **figures,
        "unreported_frames": sum(stamp not in statuses for stamp in recording.sent_s),
        "repeated_statuses": sum(n - 1 for n in statuses.values()),
        "chain_checked": len(translation),
        "chain_missing": missing,
        "chain_error_m": max(translation, default=0.0),
        "chain_error_rad": max(rotation, default=0.0),
        "tf_lookups": sum(r.stamp_ns in posed for r in recording.lookups),
        "tf_errors": len(failed),
        "tf_error_messages": dict(Counter(f"{r.error}: {r.text}" for r in failed).most_common(5)),
        "tf_beyond_odometry": len(failures) - len(failed),
        **metrics.percentiles("tf_wait_p{}_ms", [r.waited_ms for r in recording.lookups if not r.error]),
    }
    stats["problems"] = problems(stats)
    return stats


def problems(stats: dict[str, object]) -> list[str]:
    """What a node must never do, in words; empty where all is well."""
    metres, radians = stats["chain_error_m"], stats["chain_error_rad"]
    unreported, repeated, missing = (stats[key] for key in ("unreported_frames", "repeated_statuses", "chain_missing"))
    refusals = next(iter(stats["tf_error_messages"]), "")
    checks = (
        (not stats["published_frames"], "no pose was published"),
        (unreported, f"{unreported} images were neither tracked nor reported"),
        (repeated, f"{repeated} images were reported more than once"),
        (
            max(metres, radians) > CHAIN_TOLERANCE,
            f"the TF chain differs from the published pose by {metres:.2g} m, {radians:.2g} rad",
        ),
        (missing, f"TF gives no pose of the camera at {missing} images with a published pose"),
        (stats["tf_errors"], f"{stats['tf_errors']} lookups at image stamps failed: {refusals}"),
    )
    return [text for wrong, text in checks if wrong]


def chain_errors(recording: Recording, base_from_camera: torch.Tensor) -> tuple[list[float], list[float], int]:
    """Metres and radians between TF's map_from_camera and the published pose, and at how many poses TF gives none.

    Images beyond the last odometry are left out: nobody knows odom → base there.
    """
    translation, rotation, missing = [], [], 0
    for pose in recording.poses:
        if not recording.knows_odometry(pose.stamp_ns):
            continue
        found = recording.chain.get(pose.stamp_ns)
        if found is None:
            missing += 1
            continue
        distance, angle = se3.pose_difference(found, pose.map_from_base @ base_from_camera)
        translation.append(float(distance))
        rotation.append(float(angle))
    return translation, rotation, missing

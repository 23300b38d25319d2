# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A run: what became of each image of a drive, and the folder in which `pixloc track` and `pixloc replay` keep it.

The folder holds `run.json` (states, covariances, times, cost) next to `poses.tum`, `truth.tum` and `odometry.tum`, which other
tools read as well; truth and odometry are those at the images' stamps.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..io.files import write_text
from ..io.text import read_text
from ..io.trajectory import Trajectory, read_tum, write_tum
from ..tracking.types import TrackState
from .usage import Usage

TRUTH_GAP_NS = 250_000_000
"""Truth is interpolated between poses that are no further apart."""
RUN_FILE, POSES_FILE, TRUTH_FILE, ODOMETRY_FILE = "run.json", "poses.tum", "truth.tum", "odometry.tum"
_FORMAT, _VERSION = "pixloc_ros run", 1
_UPPER = np.triu_indices(6)
_HEAD = ("name", "about", "skip_map_frames", "dropped_frames", "findings", "remarks")
_NUMBERS = ("inlier_fraction", "latency_ms", "age_ms", "probability", "depth")
"""Of a record, left out of the file where they are not finite."""


@dataclass(frozen=True)
class FrameRecord:
    """What became of one image.

    Attributes:
        stamp_ns: The image's stamp.
        state: None where nothing but poses is known.
        map_from_base: float64 [4, 4], None where no pose was given.
        covariance: float64 [6, 6] of the pose, or None.
        timings_ms: Milliseconds by stage; "total" is the whole.
        inlier_fraction: Of the visible points, those that agree; NaN where nothing was aligned.
        message: What the tracker said.
        unusable: Whether the image itself could not be used.
        latency_ms: Of a live run, from handing the image to DDS until its pose came back; NaN otherwise.
        age_ms: Of a live run, from the image's stamp until its status was published; NaN otherwise.
        probability: That the pose of the alignment is right, as the judge has it; NaN where nothing was aligned.
        depth: Median depth of what the image shows; NaN where it is not known.
    """

    stamp_ns: int
    state: TrackState | None
    map_from_base: torch.Tensor | None = None
    covariance: torch.Tensor | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    inlier_fraction: float = math.nan
    message: str = ""
    unusable: bool = False
    latency_ms: float = math.nan
    age_ms: float = math.nan
    probability: float = math.nan
    depth: float = math.nan


@dataclass(frozen=True)
class BagRun:
    """A drive and what the tracker, or another program, said of it.

    Attributes:
        records: One for each image.
        truth: map_from_base; may be empty.
        odometry: odom_from_base; may be empty.
        odometry_refused: How often which message was given on odometry that was not used.
        name: Of the run, for people.
        skip_map_frames: Where the map was made of every n-th image of this very drive, those are not scored (0: all are).
        timed: Whether stamps are times; else they count images, one each 10⁹.
        ordered: Whether one image follows the other; else neither path nor relative errors mean anything.
        usage: What the run cost.
        dropped_frames: Images that a live node left out for newer ones.
        about: What the page shows of the run's circumstances, word by word.
        findings: What the tracker found out about its inputs, by name, each with its standard deviation as NAME_std.
        remarks: What is wrong with the inputs and what to do.
    """

    records: Sequence[FrameRecord]
    truth: Trajectory
    odometry: Trajectory
    odometry_refused: Counter = field(default_factory=Counter)
    name: str = "pixloc"
    skip_map_frames: int = 0
    timed: bool = True
    ordered: bool = True
    usage: Usage | None = None
    dropped_frames: int | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    findings: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def stamps_ns(self) -> np.ndarray:
        """Of the images, int64 [N], increasing."""
        return np.array(sorted({r.stamp_ns for r in self.records}), np.int64)

    @property
    def estimate(self) -> Trajectory:
        """All poses given, with their covariances, if all have one."""
        given = {r.stamp_ns: r for r in self.records if r.map_from_base is not None}
        stamps = sorted(given)
        poses = Trajectory.from_poses((s, given[s].map_from_base) for s in stamps)
        known = bool(stamps) and all(given[s].covariance is not None for s in stamps)
        covariances = torch.stack([given[s].covariance for s in stamps]) if known else None
        return Trajectory(poses.stamps_ns, poses.map_from_body, covariances)

    def at_images(self) -> BagRun:
        """The same run with truth and odometry at the images' stamps alone."""
        stamps = self.stamps_ns
        return replace(self, truth=sampled(self.truth, stamps), odometry=sampled(self.odometry, stamps))


def sampled(track: Trajectory, stamps_ns: np.ndarray) -> Trajectory:
    """The track at those of the stamps (int64 [N], increasing) where it is known."""
    poses, known = track.at(stamps_ns, TRUTH_GAP_NS)
    return Trajectory(stamps_ns[known], poses[known])


def odometry_in_map(odometry: Trajectory, truth: Trajectory) -> Trajectory:
    """Where odometry alone would place the base, started from the first truth it covers; empty where there is none."""
    poses, known = odometry.at(truth.stamps_ns, TRUTH_GAP_NS)
    if not known.any():
        return Trajectory.from_poses([])
    first = int(known.argmax())
    map_from_odom = truth.map_from_body[first] @ se3.inverse(poses[first])
    return Trajectory(odometry.stamps_ns, map_from_odom @ odometry.map_from_body)


def run_of_poses(
    name: str, stamps_ns: np.ndarray, matches: np.ndarray, estimate: Trajectory, truth: Trajectory, timed: bool
) -> BagRun:
    """Bare poses as a run: one record for each image.

    Args:
        name: Of the run.
        stamps_ns: Of the images, int64 [N].
        matches: int64 [N], the index of each image's pose in the estimate, -1 where it has none.
        estimate: The poses.
        truth: map_from_base.
        timed: As in `BagRun`.
    """
    known = [values for values in (estimate.map_from_body, estimate.covariances) if values is not None]
    found = ([values[match] for values in known if match >= 0] for match in matches.tolist())
    records = [FrameRecord(stamp_ns, None, *pose) for stamp_ns, pose in zip(stamps_ns.tolist(), found)]
    return BagRun(records, truth, Trajectory.from_poses([]), name=name, timed=timed)


def write_run(folder: Path, run: BagRun) -> None:
    """Write run.json and the poses of a run; `read_run` reads them."""
    run = run.at_images()
    write_tum(folder / POSES_FILE, run.estimate)
    for name, track in ((TRUTH_FILE, run.truth), (ODOMETRY_FILE, run.odometry)):
        if len(track):
            write_tum(folder / name, track)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier run in this folder
    head = {"format": _FORMAT, "version": _VERSION} | {name: getattr(run, name) for name in _HEAD}
    head |= {"odometry_messages": run.odometry_refused, "usage": run.usage and vars(run.usage)}
    frames = ",\n".join(json.dumps(_frame(record), allow_nan=False) for record in run.records)
    write_text(folder / RUN_FILE, json.dumps(head, indent=1)[:-2] + f',\n "frames": [\n{frames}\n]}}\n')


def _frame(record: FrameRecord) -> dict[str, object]:
    frame = {"stamp_ns": record.stamp_ns, "state": record.state.name if record.state is not None else None}
    optional = {
        "timings_ms": {stage: round(ms, 3) for stage, ms in record.timings_ms.items()},
        "message": record.message,
        "unusable": record.unusable,
    }
    frame |= {key: value for key, value in optional.items() if value}
    frame |= {key: float(value) for key in _NUMBERS if math.isfinite(value := getattr(record, key))}
    if record.covariance is not None and bool(torch.isfinite(record.covariance).all()):
        frame["covariance"] = record.covariance.numpy()[_UPPER].tolist()
    return frame


def read_run(folder: Path) -> BagRun:
    """Read what `write_run` wrote. Raises `InputError` naming the file that is missing, malformed or of another version."""
    path = Path(folder) / RUN_FILE
    text = read_text(path, "a run is a folder that 'pixloc track' or 'pixloc replay' wrote")
    files = [path.with_name(name) for name in (POSES_FILE, TRUTH_FILE, ODOMETRY_FILE)]
    estimate = read_tum(files[0])
    truth, odometry = (read_tum(file) if file.exists() else Trajectory.from_poses([]) for file in files[1:])
    poses = dict(zip(estimate.stamps_ns.tolist(), estimate.map_from_body))
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise InputError(
                f"{path} is a '{content['format']}' of version {content['version']}, not a '{_FORMAT}' of version "
                f"{_VERSION}: run it again with this version"
            )
        return BagRun(
            [_record(frame, poses) for frame in content["frames"]],
            truth,
            odometry,
            Counter(content["odometry_messages"]),
            str(content["name"]),
            int(content["skip_map_frames"]),
            usage=Usage(**content["usage"]) if content["usage"] is not None else None,
            dropped_frames=content["dropped_frames"],
            about={str(key): str(value) for key, value in content["about"].items()},
            findings={str(key): float(value) for key, value in content.get("findings", {}).items()},
            remarks=tuple(map(str, content.get("remarks", ()))),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not what 'pixloc track' or 'pixloc replay' wrote ({type(error).__name__}: {error}): run it again"
        ) from None


def _record(frame: Mapping[str, object], poses: Mapping[int, torch.Tensor]) -> FrameRecord:
    stamp_ns, covariance = int(np.int64(frame["stamp_ns"])), None
    if "covariance" in frame:
        upper = np.zeros((6, 6))
        upper[_UPPER] = frame["covariance"]
        covariance = torch.from_numpy(upper + upper.T - np.diag(np.diag(upper)))
    return FrameRecord(
        stamp_ns,
        TrackState[frame["state"]] if frame["state"] is not None else None,
        poses.get(stamp_ns),
        covariance,
        {str(stage): float(ms) for stage, ms in frame.get("timings_ms", {}).items()},
        message=str(frame.get("message", "")),
        unusable=bool(frame.get("unusable", False)),
        **{key: float(frame.get(key, math.nan)) for key in _NUMBERS},
    )

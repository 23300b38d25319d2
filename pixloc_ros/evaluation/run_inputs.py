# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What `pixloc evaluate` is given, as runs: folders of runs and files of poses, the truth from a file or a bag, and the times of
the images, which are what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..io.bag_storage import is_bag
from ..io.bag_truth import read_bag_times, read_bag_truth
from ..io.files import match_names, plain_name
from ..io.trajectory import Trajectory, pose_format, read_benchmark_poses, read_kitti, read_stamps, read_tum
from .metrics import Step, associate
from .runs import RUN_FILE, TRUTH_GAP_NS, BagRun, read_run, run_of_poses

_COUNT_NS = 1_000_000_000
"""Between the stamps of poses that have none."""
_DENSER = 0.7
"""A truth whose poses come in less than this share of the time between a run's poses was not recorded with the images."""
_WRONG_ORDER_DEG, _RIGHT_ORDER_SHARE = 15.0, 0.3
"""Rotations off by more, but by less than this share of it with their quaternions in another order, are in that order."""


@dataclass(frozen=True)
class RunInputs:
    """What goes with the runs; the options of `pixloc evaluate`.

    Attributes:
        truth: A file of poses, a bag or the folder of a run.
        truth_topic: Of a bag.
        times: When the images were taken: a text file or a bag.
        tolerance_s: Between a pose's stamp and its image's.
    """

    truth: Path | None = None
    truth_topic: str | None = None
    times: Path | None = None
    tolerance_s: float = 0.01


@dataclass(frozen=True)
class _Poses:
    """A file of poses [N, 4, 4]: map_from_body; in a benchmark file, of cameras.

    Attributes:
        path: The file.
        kind: "tum" with stamps, "kitti" with none, "benchmark" with names.
        poses: float64 [N, 4, 4].
        stamps_ns: int64 [N] or None.
        names: Of the images, or None.
        repeated: As of `Trajectory`.
        missing: As of `Trajectory`.
    """

    path: Path
    kind: str
    poses: torch.Tensor
    stamps_ns: np.ndarray | None = None
    names: list[str] | None = None
    repeated: int = 0
    missing: int = 0

    @classmethod
    def read(cls, path: Path) -> _Poses:
        kind = pose_format(path)
        if kind == "tum":
            track = read_tum(path)
            return cls(path, kind, track.map_from_body, track.stamps_ns, repeated=track.repeated, missing=track.missing)
        if kind == "kitti":
            return cls(path, kind, read_kitti(path))
        missing: list[str] = []
        named = read_benchmark_poses(path, missing)
        if not named:
            raise InputError(f"{path} holds no pose: all its lines are NaN or have a quaternion of zeros")
        return cls(path, kind, se3.inverse(torch.stack(list(named.values()))), names=list(named), missing=len(missing))

    def timed(self, times: np.ndarray | None) -> Trajectory:
        """With stamps: those of the images for a KITTI file. Raises InputError where there are none, or not as many."""
        if self.names is not None:
            raise InputError(f"{self.path} names images, the others say times: compare poses by name only with poses by name")
        if self.stamps_ns is not None:
            return Trajectory(self.stamps_ns, self.poses, repeated=self.repeated, missing=self.missing)
        if times is None:
            raise InputError(f"{self.path} says no times, as KITTI files do not: give those of the images with --times")
        if len(times) != len(self.poses):
            raise InputError(
                f"{self.path} has {len(self.poses)} poses, but there are {len(times)} images: a KITTI file has a "
                "line for each of them"
            )
        return Trajectory.from_poses(zip(times.tolist(), self.poses))


def parse_step(text: str | None) -> Step | None:
    """ "5" (metres), "10poses", or None for the usual one. Raises `InputError` for anything else."""
    if text is None:
        return None
    number, unit = (text.removesuffix("poses"), "poses") if text.endswith("poses") else (text.removesuffix("m"), "m")
    try:
        return Step(float(number), unit)
    except (ValueError, OverflowError):
        raise InputError(f"--step {text} must be a positive length in metres (5) or number of poses (10poses)") from None


def read_runs(arguments: Sequence[str], inputs: RunInputs) -> tuple[list[BagRun], list[str]]:
    """The runs named as on the command line ([NAME=]PATH) → runs with truth, and what their reader should know of the counting.

    Raises `InputError` naming the argument that is at fault.
    """
    if not inputs.tolerance_s >= 0:
        raise InputError("--tolerance must not be negative")
    named = _named_paths(arguments)
    notes: list[str] = []
    runs = {name: replace(read_run(path), name=name) for name, path in named.items() if path.is_dir()}
    files = {name: _Poses.read(path) for name, path in named.items() if name not in runs}
    truth, times = _truth_and_times(inputs, runs)
    if isinstance(truth, _Poses) and truth.stamps_ns is None and (truth.names is not None or times is None):
        if runs:
            raise InputError(f"{truth.path} says no times, but {next(iter(runs))} does: give the truth in TUM format")
        return _without_times(truth, files), [*_missing("the truth", truth), *(n for at in files.items() for n in _missing(*at))]
    if isinstance(truth, _Poses):
        truth = truth.timed(times)
    if truth is not None:
        runs = {name: replace(run, truth=truth) for name, run in runs.items()}
    for name, run in runs.items():
        if not len(run.truth):
            raise InputError(f"nothing says the truth of {named[name]}: give --truth, a file or a bag")
    if times is not None:
        notes += _repeats("--times", "images", len(times) - len(np.unique(times)))
    if inputs.truth is not None:
        notes += _repeats("the truth", "poses", truth.repeated) + _missing("the truth", truth)
    if files:
        tracks = {name: file.timed(times) for name, file in files.items()}
        if truth is None:
            truth = next(iter(runs.values())).truth
        for name, track in tracks.items():
            notes += _repeats(name, "poses", track.repeated) + _missing(name, track)
        timed_runs, more = _with_times(tracks, truth, None if times is None else np.unique(times), inputs.tolerance_s)
        runs.update(timed_runs)
        notes += more
    notes += [note for run in runs.values() if (note := _quaternion_order(run))]
    return [runs[name] for name in named], notes


def _quaternion_order(run: BagRun) -> str:
    """What to say where the rotations of a run and its truth only fit if the quaternions of one of them begin with qw."""
    estimate = run.estimate
    truth, known = run.truth.at(estimate.stamps_ns, TRUTH_GAP_NS)
    ours, truth = (poses[torch.from_numpy(known)][:, :3, :3] for poses in (estimate.map_from_body, truth))

    def off_deg(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.rad2deg(se3.so3_log(one.mT @ other).norm(dim=-1)).median())

    def reordered(rotations: torch.Tensor) -> torch.Tensor:
        return se3.rotation_from_quaternion(se3.quaternion_from_rotation(rotations).roll(-1, -1))

    if not len(ours) or (off := off_deg(ours, truth)) < _WRONG_ORDER_DEG:
        return ""
    for whose, rest in (("the truth", off_deg(ours, reordered(truth))), (run.name, off_deg(reordered(ours), truth))):
        if rest < _RIGHT_ORDER_SHARE * off:
            return (
                f"{run.name}: rotations are {off:.0f}° off in the median, but {rest:.1f}° if the quaternions of {whose} are qw "
                "qx qy qz: TUM files have qx qy qz qw, write them so."
            )
    return ""


def _repeats(whose: str, things: str, count: int) -> list[str]:
    return [f"{whose}: stamps of its {things} are repeated, {count} in all: the last of each counts."] if count else []


def _missing(whose: str, poses: Trajectory | _Poses) -> list[str]:
    return [f"{whose}: {poses.missing} lines hold no pose, but NaN or a quaternion of zeros."] if poses.missing else []


def _named_paths(arguments: Sequence[str]) -> dict[str, Path]:
    """Every run's path by its name: the one given, else the file's or the folder's, with as many folders as tell them apart."""
    given = []
    for argument in arguments:
        name, equals, path = argument.partition("=")
        given.append((name, Path(path)) if equals and name and not Path(argument).exists() else ("", Path(argument)))
    depth = 1
    while True:
        names = [name or _short_name(path, depth) for name, path in given]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if not twice:
            return dict(zip(names, (path for _, path in given)))
        if depth > 8 or any(name in twice for name, _ in given):
            raise InputError(f"two runs are called '{twice[0]}': name them, as in first={given[0][1]}")
        depth += 1


def _short_name(path: Path, depth: int) -> str:
    parts = path.resolve().with_suffix("" if path.is_file() else path.suffix).parts
    return "/".join(parts[-depth:])


def _truth_and_times(inputs: RunInputs, folders: dict[str, BagRun]) -> tuple[Trajectory | _Poses | None, np.ndarray | None]:
    """The truth, None where each folder has its own, and the images' stamps int64 [N], None where they are not known."""
    truth, times = None, None
    if inputs.times is not None:
        times = read_bag_times(inputs.times) if is_bag(inputs.times) else read_stamps(inputs.times)
    if inputs.truth is not None and is_bag(inputs.truth):
        truth, images = read_bag_truth(inputs.truth, inputs.truth_topic)
        times = images if times is None else times
    elif inputs.truth_topic is not None:
        raise InputError("--truth-topic is of a bag: give one with --truth")
    elif inputs.truth is not None and inputs.truth.is_dir():
        if not (inputs.truth / RUN_FILE).exists():
            raise InputError(f"{inputs.truth} is neither a bag nor a file of poses: give one of them")
        truth = read_run(inputs.truth).truth
    elif inputs.truth is not None:
        truth = _Poses.read(inputs.truth)
    elif not folders:
        raise InputError("nothing says the truth: give --truth, a file of poses or a bag")
    if times is None and folders:
        times = next(iter(folders.values())).stamps_ns
    return truth, times


def _without_times(truth: _Poses, files: dict[str, _Poses]) -> list[BagRun]:
    """Poses by name or in order, counted one after the other."""
    truth, remarks = _without_comments(truth, files)
    stamps = np.arange(len(truth.poses), dtype=np.int64) * _COUNT_NS
    order, runs = dict(zip(truth.names or (), stamps.tolist())), []
    for name, file in files.items():
        if file.kind != truth.kind:
            raise InputError(
                f"{file.path} is a {file.kind} file and {truth.path} a {truth.kind} file: "
                "give both in one format, or the images' --times"
            )
        if file.names is not None and not (known := match_names(file.names, order)):
            raise InputError(f"{file.path} names none of the images of {truth.path}: names must be the same")
        if file.names is not None:
            poses = Trajectory.from_poses((known[image], pose) for image, pose in zip(file.names, file.poses) if image in known)
        else:
            poses = file.timed(stamps)
        matches = associate(stamps, poses.stamps_ns, 0)
        run = run_of_poses(name, stamps, matches, poses, Trajectory(stamps, truth.poses), timed=False)
        runs.append(replace(run, ordered=truth.names is None, remarks=(*run.remarks, *remarks)))
    return runs


def _without_comments(truth: _Poses, files: dict[str, _Poses]) -> tuple[_Poses, tuple[str, ...]]:
    """The truth without lines that begin with "#" unless some file names their image, and a remark on those left out."""
    known = {plain_name(name) for file in files.values() for name in file.names or ()}
    names = truth.names or []
    kept = [k for k, name in enumerate(names) if not name.startswith("#") or plain_name(name) in known]
    if len(kept) == len(names):
        return truth, ()
    remark = f"{len(names) - len(kept)} lines of {truth.path} that begin with # name an image of no run: taken for comments"
    return replace(truth, poses=truth.poses[kept], names=[names[k] for k in kept]), (remark,)


def _with_times(
    files: dict[str, Trajectory], truth: Trajectory, times: np.ndarray | None, tolerance_s: float
) -> tuple[dict[str, BagRun], list[str]]:
    """Each pose goes to the image nearest in time."""
    runs, notes = {}, []
    begin = min((int(track.stamps_ns[0]) for track in files.values() if len(track)), default=0)
    end = max((int(track.stamps_ns[-1]) for track in files.values() if len(track)), default=0)
    for name, track in files.items():
        images = times
        if images is None and len(track) > 1 and _period(truth.stamps_ns) < _DENSER * _period(track.stamps_ns):
            images = _at_own_rate(track.stamps_ns, begin, end)
            notes.append(
                f"{name}: the truth has poses more often than the run, so they are not those of its images. Images are "
                f"counted at the run's own rate, {1e9 / _period(track.stamps_ns):.3g} a second, from the first pose of "
                "any run to the last. Give the images' times with --times to count those before and after as well."
            )
        elif images is None:
            images = truth.stamps_ns
        matches = associate(images, track.stamps_ns, round(tolerance_s * 1e9))
        if len(track) and not (matches >= 0).any():
            raise InputError(
                f"{name}: no pose lies within {tolerance_s:g} s of an image or pose of the truth: check that both "
                "use the same clock, or raise --tolerance"
            )
        apart = int(len(track) - (matches >= 0).sum())
        if apart:
            notes.append(f"{name}: {apart} of {len(track)} poses belong to no image within {tolerance_s:g} s: they are not used.")
        runs[name] = run_of_poses(name, images, matches, track, truth, timed=True)
    return runs, notes


def _period(stamps_ns: np.ndarray) -> float:
    """Median nanoseconds between stamps; infinite where there are not two."""
    return float(np.median(np.diff(stamps_ns))) if len(stamps_ns) > 1 else float("inf")


def _at_own_rate(stamps_ns: np.ndarray, begin_ns: int, end_ns: int) -> np.ndarray:
    """The stamps, and such as fill the gaps between them and go on to both ends, at their median distance."""
    period = round(_period(stamps_ns))
    first, last = int(stamps_ns[0]), int(stamps_ns[-1])
    filled = [np.arange(first - period, begin_ns - 1, -period), np.arange(last + period, end_ns + 1, period)]
    gaps = np.diff(stamps_ns)
    for at in np.flatnonzero(gaps > 1.5 * period):
        filled.append(np.linspace(stamps_ns[at], stamps_ns[at + 1], round(gaps[at] / period) + 1)[1:-1])
    return np.unique(np.concatenate([stamps_ns, *(part.astype(np.int64) for part in filled)]))

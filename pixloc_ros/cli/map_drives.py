# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map bag A B ...` and `pixloc map images DIR DIR ...`: one map of several drives.

Each drive is a job, and so is each pair of drives in which ties are searched for. Jobs leave what they make in the work folder,
which all machines must see, as they must see bags, images, masks and weights.
"""

import argparse
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..jobs import require_visible, run_jobs
from . import arguments, map_drive
from .lazy import evaluation, io, mapping, pixloc
from .map_care import finish
from .progress import show_progress

_FIRST_ONLY = ("path_length", "distance")


@dataclass(frozen=True)
class _Job:
    """A drive, or two of which the second is searched for in the first.

    Attributes:
        args: The command line, its paths absolute.
        work: Folder of all work.
        key: Its key.
        numbers: Of the drives.
    """

    args: argparse.Namespace
    work: Path
    key: dict[str, Any]
    numbers: tuple[int, ...]


def run_several(args: argparse.Namespace) -> int:
    """As `pixloc map bag` or `pixloc map images`, of several drives."""
    _check(args)
    begin, extractor, build = time.monotonic(), pixloc.load_extractor(args.weights), mapping.build
    options = map_drive.drive_options(args)
    map_drive.check_keep_images(args)
    with contextlib.ExitStack() as stack:  # all are looked at before the first is worked on
        key = {"drives": [_key(args, n, stack.enter_context(_open(args, n)), extractor) for n in range(len(args.sources))]}
    work = map_drive.open_work(args, key)
    away = arguments.for_workers(args)
    names, folder = _names(args.sources), work.folder.resolve()
    print(f"{len(names)} drives, each with poses by structure from motion")
    reports = dict(run_jobs(_solve, [_Job(away, folder, key, (n,)) for n in range(len(names))], args.scheduler))
    drives = [_solved(folder, n, name, reports[n]) for n, name in enumerate(names)]
    pairs = [(home, drive) for drive in range(1, len(names)) for home in range(drive)]
    for number, _ in run_jobs(_tie, [_Job(away, folder, key, pair) for pair in pairs], args.scheduler):
        print(f"  searched for {names[pairs[number][1]]} in the map of {names[pairs[number][0]]}")
    ties = [evaluation.drive_ties.find_ties(drives, *pair, extractor, work) for pair in pairs]
    with show_progress("map") as progress:
        how = (options.posed, args.working_side, args.output.stem, progress)
        map_, made = build.joined_drives.build_map_of_drives(drives, ties, extractor, work, *how)
        checked = evaluation.held_out.localize_held_out(map_, map_drive.stored_images(work, map_), extractor, progress)
    finish(map_, made, args, begin)
    map_drive.print_drive(map_, made, checked, args.output.with_suffix(".html"))
    map_drive.close_work(work, args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises InputError for options that are for one drive."""
    if args.all_poses is not None:
        raise InputError("--all-poses is for one drive: with several, localize each in the finished map ('pixloc track')")
    twice = [str(one) for one, times in Counter(one.resolve() for one in args.sources).items() if times > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice: give each drive once")


def _names(sources: list[Path]) -> list[str]:
    """Of the drives; numbered where some share one."""
    stems = [one.resolve().stem for one in sources]
    return stems if len(set(stems)) == len(stems) else [f"{n}_{stem}" for n, stem in enumerate(stems, 1)]


def _open(args: argparse.Namespace, number: int):
    """Frames of a drive, as a context. Raises InputError, which names it."""
    source = args.sources[number]
    try:
        return map_drive.open_drive(args, source)
    except InputError as error:
        raise error if str(source) in str(error) else InputError(f"{source}: {error}") from error


def _key(args: argparse.Namespace, number: int, frames, extractor) -> dict[str, Any]:
    """What the map of a drive depends on. The scale that is given is that of the first."""
    scale = [getattr(args, name) for name in _FIRST_ONLY] if number == 0 else None
    return map_drive.work_key(frames, args, args.sources[number], extractor) | {"scale": scale}


# ---- jobs


def _solve(job: _Job):
    """Make the map of a drive, in the work folder, and return its `DriveReport`. Raises InputError, which names the drive."""
    args, (number,) = job.args, job.numbers
    source, name = args.sources[number], _names(args.sources)[number]
    require_visible(job.work / io.work_folder.KEY, source)
    extractor, options = pixloc.load_extractor(args.weights), map_drive.drive_options(args)
    if number:
        options = replace(options, **dict.fromkeys(_FIRST_ONLY))
    own = io.work_folder.WorkFolder(job.work / f"drives/{number}", job.key["drives"][number])
    try:
        with _open(args, number) as frames, show_progress(name) as progress:
            map_, report = mapping.build.drive.build_map_from_drive(
                frames, extractor, own, options, args.working_side, name, progress
            )
            report = replace(report, notes=(*report.notes, *getattr(frames, "notes", ())))
    except InputError as error:
        raise error if str(source) in str(error) else InputError(f"{source}: {error}") from error
    map_.save(own.path("drive.pixmap"))
    return report


def _tie(job: _Job) -> None:
    """Search for keyframes of one drive in the map of another; what is found goes to the work folder."""
    require_visible(job.work / io.work_folder.KEY)
    names, extractor = _names(job.args.sources), pixloc.load_extractor(job.args.weights)
    drives = {n: _solved(job.work, n, names[n]) for n in job.numbers}
    with show_progress(f"searching for {names[job.numbers[1]]} in the map of {names[job.numbers[0]]}") as progress:
        work = io.work_folder.WorkFolder(job.work, job.key)
        evaluation.drive_ties.find_ties(drives, *job.numbers, extractor, work, progress)


def _solved(work: Path, number: int, name: str, report=None):
    """`SolvedDrive` of what its job left in the work folder."""
    folder = work / f"drives/{number}"
    require_visible(folder / "drive.pixmap")
    map_ = pixloc.Map.open(folder / "drive.pixmap")
    images = [folder / f"images/{mapping.build.posed_frames.file_name(one)}" for one in map_.keyframe_names]
    return mapping.build.joined_drives.SolvedDrive(name, map_, report, images)

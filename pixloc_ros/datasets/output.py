# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a data set becomes: a folder with a map and a drive as a rosbag, or with a map and queries.

The map of recordings is made as `pixloc map bag` makes it: keyframes by motion, points from depth where there is some, else by
triangulation against the poses given. The bag has what a robot with one camera has (`io.bag_writer`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..evaluation.queries import QueryResult, localize_queries
from ..features import load_extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.bag_writer import RecordedDrive, write_drive_bag
from ..io.camera_files import write_cameras
from ..io.files import write_text
from ..io.frames import Odometry
from ..io.image_format import decode_compressed
from ..io.trajectory import Trajectory, write_benchmark_poses, write_tum
from ..io.work_folder import WorkFolder
from ..localization import Localizer
from ..mapping.build.building import BuildReport, Progress
from ..mapping.build.keyframes import KeyframeOptions
from ..mapping.build.posed_frames import PosedMapOptions, build_map_from_posed_frames
from ..mapping.map_file import Map
from .image_set import ImageSet
from .odometry import SIMULATED_TOPIC, between, errors_in_words, odometry_from_truth
from .recording import Recording, check_size, frames_for_map

_SUMMARY = "dataset.json"
_ODOMETRY_MARGIN_NS = 500_000_000
_LICENCES = {
    "tum": "TUM RGB-D benchmark: CC BY 4.0. Cite Sturm et al., IROS 2012.",
    "7scenes": "7-Scenes: Microsoft Research licence, non-commercial use. Cite Shotton et al., CVPR 2013.",
    "cambridge": "Cambridge Landmarks: terms of the University's repository, non-commercial use. Cite Kendall et al., ICCV 2015.",
    "euroc": "EuRoC MAV: In Copyright - Non-Commercial Use Permitted (ETH Zurich). Cite Burri et al., IJRR 2016.",
    "kitti": "KITTI: CC BY-NC-SA 3.0, non-commercial. Cite Geiger et al., CVPR 2012.",
    "openloris": "OpenLORIS-Scene: terms on its download page, research use. Cite Shi et al., ICRA 2020.",
    "aachen": "Aachen Day-Night: terms in the archive's README, non-commercial research. Cite Sattler et al., CVPR 2018.",
    "cmu": "Extended CMU Seasons: terms in the archive's README, non-commercial research. Cite Sattler et al., CVPR 2018, and "
    "Badino et al., 2011.",
    "robotcar": "RobotCar Seasons: terms in the archive's README, non-commercial research. Cite Sattler et al., CVPR 2018, and "
    "Maddern et al., IJRR 2017.",
}
"""Under what terms the sets come. Their own pages count; these notes say what to look for there."""

Say = Callable[[str], None]
"""Called with a line for people."""


def licence_note(name: str) -> str:
    """What to tell before a set is used."""
    return f"{_LICENCES[name]} The terms on the data set's own page count, also for maps and bags made of it."


class _OutputFolder:
    """`folder` under way in `folder.work/`: what is done stays there, so that the same command goes on after a kill.

    Args:
        folder: The one to make.
        key: What the result depends on, as JSON can hold it.
        say: Called where earlier work goes on.

    Raises:
        InputError: The folder exists already, or the work cannot be written.
    """

    def __init__(self, folder: Path, key: dict, say: Say) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} exists: give another folder, or remove it to make it again")
        self.work = WorkFolder(self.folder.with_name(f"{self.folder.name}.work"), key)
        self.work.path("result").mkdir(exist_ok=True)
        if self.work.resumed:
            say(f"going on with what is in {self.work.folder}")

    def path(self, name: str) -> Path:
        """Where a file of the result is or will be."""
        return self.work.path("result") / name

    def map(self, make: Callable[[], tuple[Map, BuildReport]], made_from: str, say: Say) -> tuple[Map, list[str]]:
        """The map, made unless it is there, and notes on what was left out of it."""
        path, notes = self.path("map.pixmap"), []
        if not path.is_file():
            map_, report = make()
            map_.save(path)
            notes += report.notes
            if report.left_out:
                name, reason = next(iter(report.left_out.items()))
                notes.append(f"Images left out of the map: {len(report.left_out)}, such as {name}: {reason}.")
        map_ = Map.open(path)
        say(f"map of {made_from}: {len(map_.keyframe_names)} keyframes, {len(map_.xyz)} points")
        return map_, notes

    def finish(self, summary: dict, title: str, table: Mapping[str, str], notes: Iterable[str], commands: list[str]) -> dict:
        """Write the summary, which is returned, and a README, and put the folder where it belongs.

        Args:
            summary: For dataset.json; its "set" is the name of the set.
            title: Of the README.
            table: What each file is.
            notes: How they came about.
            commands: What to do next.
        """
        rows = "\n".join(f"| `{file}` | {what} |" for file, what in table.items())
        points, lines = "\n".join(f"- {note}" for note in notes), "\n".join(commands)
        text = f"# {title}\n\n| file | what |\n|---|---|\n{rows}\n\n{points}\n\nNext:\n\n```bash\n{lines}\n```\n\n"
        write_text(self.path("README.md"), f"{text}{licence_note(summary['set'])}\n")
        write_text(self.path(_SUMMARY), json.dumps(summary, indent=2) + "\n")
        if self.folder.exists():
            self.folder.rmdir()
        os.replace(self.path(""), self.folder)
        self.work.remove()
        return summary


def _identity(paths: Iterable[Path]) -> list:
    """What distinguishes files from others, or from themselves changed; of a folder, its entries' number and its own time."""
    return [
        [str(path.resolve()), path.stat().st_mtime_ns, sum(1 for _ in path.iterdir()) if path.is_dir() else path.stat().st_size]
        for path in paths
        if path.exists()
    ]


def _network(weights: str) -> str:
    """The option that names the network, for the commands of a README."""
    return "" if weights == "compact" else f" --weights {weights}"


# ---- sets recorded over time


@dataclass(frozen=True)
class SequenceOptions:
    """How a map and a drive are made.

    Attributes:
        every: Look at each N-th image for the map.
        keyframe_shift: As `KeyframeOptions.shift`.
        depth: Use it for points where there is some.
        working_side: Of the network's images; None for its own.
        seed: Of the odometry made from the truth.
    """

    every: int = 1
    keyframe_shift: float = 0.05
    depth: bool = True
    working_side: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.keyframe_shift <= 1:
            raise InputError("--every must be at least 1 and --keyframe-shift above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """What to make a map and a drive of.

    Attributes:
        name: Of the set, as in `licence_note`.
        mapping: Recordings for the map, which end up in one frame.
        drive: For the bag.
        notes: For people, on frames and poses.
        queries: Single images with truth, by name: (camera, camera_from_map).
        queries_folder: What their names are relative to.
    """

    name: str
    mapping: list[Recording]
    drive: Recording
    notes: tuple[str, ...] = ()
    queries: Mapping[str, tuple[Camera, torch.Tensor]] = field(default_factory=dict)
    queries_folder: Path | None = None


def make_drive(
    output: Path, source: SequenceSet, options: SequenceOptions, weights: str, progress: Progress | None, say: Say
) -> dict:
    """Make a map and a drive of a set.

    Args:
        output: The folder to make.
        source: The set.
        options: How they are made.
        weights: Of the network: a name or a file.
        progress: Called while it works.
        say: See there.

    Returns:
        What its dataset.json holds.

    Raises:
        InputError: The output exists, recordings overlap in time, or no map comes out.
    """
    drive, recordings, extractor = source.drive, [*source.mapping, source.drive], load_extractor(weights)
    mapped = ", ".join(recording.name for recording in source.mapping)
    frames = frames_for_map(source.mapping, options.depth, options.every)
    key = {"set": source.name, "options": vars(options), "network": extractor.fingerprint, "poses": list(source.notes)}
    key["recordings"] = [[r.name, _identity(r.files), len(r.stamps_ns)] for r in recordings]
    out = _OutputFolder(output, key, say)

    def make_map() -> tuple[Map, BuildReport]:
        how = PosedMapOptions(keyframes=KeyframeOptions(shift=options.keyframe_shift))
        name = f"{source.name} {source.mapping[0].name}"
        map_, report = build_map_from_posed_frames(frames, extractor, out.work, how, options.working_side, name, progress)
        write_text(out.path("map_report.json"), json.dumps(vars(report), indent=2) + "\n")
        return map_, report

    map_, notes = out.map(make_map, mapped, say)
    stamps, map_from_base = drive.posed()
    length = float(se3.pose_difference(map_from_base[:-1], map_from_base[1:])[0].sum()) if len(stamps) > 1 else 0.0
    odometry, topic, note = _odometry(drive, stamps, options.seed)
    if not out.path("drive").is_dir():
        recorded = RecordedDrive(drive.pictures.encoding, drive.camera, drive.base_from_camera, odometry, map_from_base, topic)
        write_drive_bag(out.path("drive"), _images(drive, set(stamps.tolist()), progress), recorded)
    write_tum(out.path("truth.tum"), Trajectory(stamps, map_from_base))
    say(f"drive of {drive.name}: {len(stamps)} images over {length:.1f} m, odometry {topic}")
    unusable = {recording.name: recording.unusable() for recording in recordings}
    left_out = [f"Left out of {name}: {n} ({reason})." for name, reasons in unusable.items() for reason, n in reasons.items()]
    repeated = drive.map_from_base.repeated
    if repeated:
        left_out.append(f"Stamps of the ground truth are repeated, {repeated} in all: the last of each counts.")
    if drive.map_from_base.missing:
        left_out.append(f"{drive.map_from_base.missing} lines of the ground truth hold no pose.")
    table = {
        "map.pixmap": f"the map, made of {mapped}",
        "map_report.json": "how good it is",
        "drive/": f"rosbag2 (MCAP): {drive.name}, the images that the map was not made of",
        "truth.tum": "map_from_base at the drive's images",
        _SUMMARY: "counts and options",
    }
    commands = [
        f"pixloc track --map {output}/map.pixmap {output}/drive -o {output}/run{_network(weights)}",
        f"pixloc evaluate --truth {output}/truth.tum {output}/run",
    ]
    if source.queries:
        write_cameras(out.path("queries.txt"), {name: camera for name, (camera, _) in source.queries.items()})
        write_benchmark_poses(out.path("queries_truth.txt"), {name: pose for name, (_, pose) in source.queries.items()})
        table |= {"queries.txt": "all test images with their camera", "queries_truth.txt": "camera_from_map of them"}
        commands += [
            f"pixloc localize --map {output}/map.pixmap --images {source.queries_folder} --cameras {output}/queries.txt "
            f"-o {output}/queries_poses.txt{_network(weights)}",
            f"pixloc evaluate --truth {output}/queries_truth.txt {output}/queries_poses.txt",
        ]
    summary = {"set": source.name, "map_of": [recording.name for recording in source.mapping], "drive_of": drive.name}
    summary |= {"options": vars(options), "camera": drive.camera.to_colmap_line()}
    summary |= {"base_from_camera": drive.base_from_camera.tolist(), "keyframes": len(map_.keyframe_names)}
    summary |= {"points": len(map_.xyz), "images": len(stamps), "length_m": round(length, 3), "odometry": topic}
    summary |= {"queries": len(source.queries), "left_out": unusable}
    title = f"{source.name}: map of {mapped}, drive of {drive.name}"
    return out.finish(summary, title, table, (*source.notes, note, *notes, *left_out), commands)


def _odometry(drive: Recording, stamps: np.ndarray, seed: int) -> tuple[Odometry, str, str]:
    """Odometry around the images of these stamps, its topic, and a note on it."""
    first, last = int(stamps[0]) - _ODOMETRY_MARGIN_NS, int(stamps[-1]) + _ODOMETRY_MARGIN_NS
    if drive.odometry is not None:
        return between(drive.odometry, first, last), "/odom", "`/odom` is the robot's own wheel odometry as recorded."
    note = (
        f"The set has no odometry: `{SIMULATED_TOPIC}` is made from the ground truth with errors (seed {seed}): "
        f"{errors_in_words()}. What it helps says little about a real robot's."
    )
    return odometry_from_truth(drive.map_from_base, first, last, seed), SIMULATED_TOPIC, note


def _images(drive: Recording, stamps: set[int], progress: Progress | None) -> Iterator[tuple[int, np.ndarray]]:
    checked = False
    for done, picture in enumerate(drive.pictures.read(stamps.__contains__)):
        if not checked:
            try:
                image = decode_compressed(picture.encoded)
            except InputError:
                pass  # it is recorded as it is: whoever reads the bag names it
            else:
                check_size(drive, image)
                checked = True
        if progress:
            progress(done, len(stamps), "images into the bag")
        yield picture.stamp_ns, picture.encoded


# ---- sets of single images


def make_queries(
    output: Path, source: ImageSet, weights: str, working_side: int | None, progress: Progress | None, say: Say
) -> dict:
    """Make the folder `output` of a set of single images → what its dataset.json holds. Raises InputError where the output exists
    or no map comes out."""
    extractor = load_extractor(weights)
    key = source.summary() | {"files": _identity(source.files), "network": extractor.fingerprint, "working_side": working_side}
    out = _OutputFolder(output, key, say)
    map_, notes = out.map(lambda: source.map_source.build(extractor, working_side, out.work, progress), source.made_from, say)
    priors = source.priors(map_)
    write_cameras(out.path("queries.txt"), {query.name: query.camera for query in source.queries})
    table = {"map.pixmap": f"the map, made of {source.made_from}", "queries.txt": "the queries with their camera"}
    if priors:
        write_benchmark_poses(out.path("priors.txt"), priors)
        table["priors.txt"] = "where to begin: the pose of the map image that retrieval put first"
    if source.truth:
        write_benchmark_poses(out.path("truth.txt"), source.truth)
        table["truth.txt"] = "camera_from_map of the queries"
    say(f"{len(source.queries)} queries, {len(priors)} with a prior, {len(source.truth)} with truth")
    notes.append("The poses that the map was made with are used as they are.")
    if not priors:
        notes.append("No pairs were given: queries are looked for in the whole map by the map's own global descriptor.")
    counts = {"keyframes": len(map_.keyframe_names), "points": len(map_.xyz), "priors": len(priors), "truth": len(source.truth)}
    given = f" --prior {output}/priors.txt" if priors else ""
    commands = [
        f"pixloc localize --map {output}/map.pixmap --images {source.images} --cameras {output}/queries.txt{given} "
        f"-o {output}/poses.txt{_network(weights)}"
    ]
    if source.truth:
        commands.append(f"pixloc evaluate --truth {output}/truth.txt {output}/poses.txt")
    return out.finish(source.summary() | counts, f"{source.name}: {source.scene}", table, notes, commands)


def made_already(folder: Path, source: ImageSet) -> bool:
    """Whether the folder was made of this set before. Raises InputError where it was made of something else."""
    if not (folder / _SUMMARY).is_file():
        return False
    try:
        made = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        same = all(made[key] == value for key, value in source.summary().items())
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"{folder} was not made of {source.made_from}: give another output, or remove it")
    return True


def localize_set(
    folder: Path, source: ImageSet, localizer: Localizer, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[QueryResult]:
    """Localize all queries of a set whose folder was made; writes poses.txt (the queries' own names) and submission.txt (the
    benchmark's names) there."""
    results = localize_queries(localizer, source.queries, source.priors(localizer.map), progress)
    write_benchmark_poses(folder / "poses.txt", {r.name: r.camera_from_map for r in results if not r.reason})
    write_submission(folder / "submission.txt", source, results)
    return results


def write_submission(path: Path, source: ImageSet, results: list[QueryResult]) -> None:
    """What the benchmark takes: `name qw qx qy qz tx ty tz`, camera_from_map. Raises InputError where two queries would get one
    name."""
    named: dict[str, str] = {}
    for result in results:
        other = named.setdefault(source.submission_name(result.name), result.name)
        if other != result.name:
            raise InputError(f"{other} and {result.name} would have one name in the submission: hand them in apart")
    write_benchmark_poses(path, {source.submission_name(r.name): r.camera_from_map for r in results if not r.reason})


@dataclass(frozen=True)
class QueryErrors:
    """Per query with truth; infinite where no pose was found.

    Attributes:
        translation_m: float64 [N].
        rotation_deg: float64 [N].
    """

    translation_m: np.ndarray
    rotation_deg: np.ndarray

    def medians(self) -> tuple[float, float]:
        """Metres and degrees, over all queries."""
        return float(np.median(self.translation_m)), float(np.median(self.rotation_deg))

    def recall(self, metres: float, degrees: float) -> float:
        """Share of the queries within both."""
        return float(((self.translation_m <= metres) & (self.rotation_deg <= degrees)).mean())


def query_errors(source: ImageSet, results: list[QueryResult]) -> QueryErrors:
    """Errors of all queries with truth. Raises InputError: there is none."""
    if not source.truth:
        raise InputError(f"{source.name} keeps the truth: hand in submission.txt to the benchmark")
    found = {result.name: result.camera_from_map for result in results if not result.reason}
    errors = np.full((len(source.truth), 2), np.inf)
    for k, (name, truth) in enumerate(source.truth.items()):
        if name in found:
            errors[k] = [float(part) for part in se3.pose_difference(se3.inverse(truth), se3.inverse(found[name]))]
    return QueryErrors(errors[:, 0], np.degrees(errors[:, 1]))

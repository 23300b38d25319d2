# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A map and a drive as a rosbag, from recordings of a public data set.

The map is made as `pixloc map bag` makes it: keyframes by motion, points from depth where there is some, else by triangulation
against the poses given. The bag has what a robot with one camera has (`io.bag_writer`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.bag_writer import RecordedDrive, write_drive_bag
from ..io.camera_files import write_cameras
from ..io.files import write_text
from ..io.frames import Odometry
from ..io.image_format import decode_compressed
from ..io.trajectory import Trajectory, write_benchmark_poses, write_tum
from ..mapping.build.building import Progress
from ..mapping.build.keyframes import KeyframeOptions
from ..mapping.build.posed_frames import PosedMapOptions, build_map_from_posed_frames
from ..mapping.map_file import Map
from .odometry import SIMULATED_TOPIC, between, errors_in_words, odometry_from_truth
from .output import OutputFolder, identity, readme_text
from .recording import Recording, check_size, frames_for_map

_ODOMETRY_MARGIN_NS = 500_000_000


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
        name: Of the set, as in `licences`.
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

    @property
    def mapped(self) -> str:
        """Names of the recordings for the map, for people."""
        return ", ".join(recording.name for recording in self.mapping)


def make_drive(
    output: Path,
    source: SequenceSet,
    extractor: Extractor,
    options: SequenceOptions = SequenceOptions(),
    weights: str = "compact",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Make a map and a drive of a set.

    Args:
        output: The folder to make.
        source: The set.
        extractor: The network.
        options: How they are made.
        weights: The network's name, for the commands in the README.
        progress: Called while it works.
        say: Called with a line for people.

    Returns:
        What its dataset.json holds.

    Raises:
        InputError: The output exists, recordings overlap in time, or no map comes out.
    """
    drive, mapped, notes = source.drive, source.mapped, list(source.notes)
    recordings = [*source.mapping, drive]
    frames = frames_for_map(source.mapping, options.depth, options.every)
    key = {
        "set": source.name,
        "recordings": [[r.name, identity(r.files), len(r.stamps_ns)] for r in recordings],
        "options": vars(options),
        "network": extractor.fingerprint,
        "poses": notes,
    }
    out = OutputFolder(output, key, say)
    map_path = out.path("map.pixmap")
    if not map_path.is_file():
        map_options = PosedMapOptions(keyframes=KeyframeOptions(shift=options.keyframe_shift))
        name = f"{source.name} {source.mapping[0].name}"
        map_, report = build_map_from_posed_frames(frames, extractor, out.work, map_options, options.working_side, name, progress)
        write_text(out.path("map_report.json"), json.dumps(report.to_json(), indent=2) + "\n")
        map_.save(map_path)
    map_ = Map.open(map_path)
    say(f"map of {mapped}: {len(map_.keyframe_names)} keyframes, {len(map_.xyz)} points")

    stamps, map_from_base = drive.posed()
    length = float(se3.pose_difference(map_from_base[:-1], map_from_base[1:])[0].sum()) if len(stamps) > 1 else 0.0
    odometry, topic, note = _odometry(drive, stamps, options.seed)
    notes.append(note)
    if drive.map_from_base.repeated:
        notes.append(f"Stamps of the ground truth are repeated, {drive.map_from_base.repeated} in all: the last of each counts.")
    if not out.path("drive").is_dir():
        recorded = RecordedDrive(drive.pictures.encoding, drive.camera, drive.base_from_camera, odometry, map_from_base, topic)
        write_drive_bag(out.path("drive"), _images(drive, set(stamps.tolist()), progress), recorded)
    write_tum(out.path("truth.tum"), Trajectory(stamps, map_from_base))
    say(f"drive of {drive.name}: {len(stamps)} images over {length:.1f} m, odometry {topic}")
    unusable = {recording.name: recording.unusable() for recording in recordings}
    notes += [f"Left out of {name}: {n} ({reason})." for name, reasons in unusable.items() for reason, n in reasons.items()]
    table, commands = _files_and_commands(output, source, weights)
    if source.queries:
        write_cameras(out.path("queries.txt"), {name: camera for name, (camera, _) in source.queries.items()})
        write_benchmark_poses(out.path("queries_truth.txt"), {name: pose for name, (_, pose) in source.queries.items()})
    model, params = drive.camera.to_colmap()
    summary = {
        "set": source.name,
        "map_of": [recording.name for recording in source.mapping],
        "drive_of": drive.name,
        "options": vars(options),
        "camera": f"{model} {drive.camera.width} {drive.camera.height} " + " ".join(f"{value:.10g}" for value in params),
        "base_from_camera": drive.base_from_camera.tolist(),
        "keyframes": len(map_.keyframe_names),
        "points": len(map_.xyz),
        "images": len(stamps),
        "length_m": round(length, 3),
        "odometry": topic,
        "queries": len(source.queries),
        "left_out": unusable,
    }
    title = f"{source.name}: map of {mapped}, drive of {drive.name}"
    out.finish(summary, readme_text(source.name, title, table, notes, commands))
    return summary


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
    for done, picture in enumerate(drive.pictures.read(stamps.__contains__)):
        if done == 0:
            check_size(drive, decode_compressed(picture.encoded))
        if progress:
            progress(done, len(stamps), "images into the bag")
        yield picture.stamp_ns, picture.encoded


def _files_and_commands(output: Path, source: SequenceSet, weights: str) -> tuple[list[tuple[str, str]], list[str]]:
    network = "" if weights == "compact" else f" --weights {weights}"
    table = [
        ("map.pixmap", f"the map, made of {source.mapped}"),
        ("map_report.json", "how good it is"),
        ("drive/", f"rosbag2 (MCAP): {source.drive.name}, the images that the map was not made of"),
        ("truth.tum", "map_from_base at the drive's images"),
        ("dataset.json", "counts and options"),
    ]
    commands = [
        f"pixloc track --map {output}/map.pixmap {output}/drive -o {output}/run{network}",
        f"pixloc evaluate --truth {output}/truth.tum {output}/run",
    ]
    if source.queries:
        table += [("queries.txt", "all test images with their camera"), ("queries_truth.txt", "camera_from_map of them")]
        commands += [
            f"pixloc localize --map {output}/map.pixmap --images {source.queries_folder} --cameras {output}/queries.txt "
            f"-o {output}/queries_poses.txt{network}",
            f"pixloc evaluate --truth {output}/queries_truth.txt {output}/queries_poses.txt",
        ]
    return table, commands

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A map and a drive as a rosbag, from recordings of a public data set.

The map is made as `pixloc map bag` makes it: keyframes by motion, points from depth where there is some, else by triangulation
against the poses given. The bag has what a robot with one camera has: `simulation.bag_writer`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """every: look at each N-th image for the map. keyframe_shift: as `KeyframeOptions.shift`. depth: use it for points where
    there is some. working_side: of the network's images, None for its own. seed: of the odometry made from the truth."""

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
    """name: of the set, as in `licences`. mapping: recordings for the map, which end up in one frame. drive: for the bag.
    queries: single images with truth, by name: (camera, camera_from_map). queries_folder: what their names are relative to.
    notes: for people, on frames and poses."""

    name: str
    mapping: list[Recording]
    drive: Recording
    notes: tuple[str, ...] = ()
    queries: Mapping[str, tuple[Camera, torch.Tensor]] = field(default_factory=dict)
    queries_folder: Path | None = None


def make_drive(
    output: Path,
    source: SequenceSet,
    extractor: Extractor,
    options: SequenceOptions = SequenceOptions(),
    weights: str = "compact",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Make the folder `output` of a set → what its dataset.json holds.

    weights: the network's name, for the commands in the README. say: told what is done. Raises InputError where the output
    exists, recordings overlap in time, or no map comes out.
    """
    recordings = [*source.mapping, source.drive]
    key = {
        "set": source.name,
        "recordings": [[r.name, identity(r.files), len(r.stamps_ns)] for r in recordings],
        "options": vars(options),
        "network": extractor.fingerprint,
        "poses": list(source.notes),
    }
    frames = frames_for_map(source.mapping, options.depth, options.every)
    out = OutputFolder(output, key)
    if out.resumed:
        say(f"going on with what is in {out.work.folder}")
    map_path, notes = out.path("map.pixmap"), list(source.notes)
    if not map_path.is_file():
        drive_options = PosedMapOptions(keyframes=KeyframeOptions(shift=options.keyframe_shift))
        map_, report = build_map_from_posed_frames(
            frames, extractor, out.work, drive_options, options.working_side, f"{source.name} {source.mapping[0].name}", progress
        )
        write_text(out.path("map_report.json"), json.dumps(report.to_json(), indent=2) + "\n")
        map_.save(map_path)
    map_ = Map.open(map_path)
    say(f"map of {_names(source.mapping)}: {len(map_.keyframe_names)} keyframes, {len(map_.xyz)} points")

    stamps, map_from_base = source.drive.posed()
    odometry, topic = source.drive.odometry, "/odom"
    first, last = int(stamps[0]) - _ODOMETRY_MARGIN_NS, int(stamps[-1]) + _ODOMETRY_MARGIN_NS
    if odometry is None:
        odometry, topic = odometry_from_truth(source.drive.map_from_base, first, last, options.seed), SIMULATED_TOPIC
        notes.append(
            f"The set has no odometry: `{topic}` is made from the ground truth with errors (seed {options.seed}): "
            f"{errors_in_words()}. What it helps says little about a real robot's."
        )
    else:
        odometry = between(odometry, first, last)
        notes.append(f"`{topic}` is the robot's own wheel odometry as recorded.")
    if not out.path("drive").is_dir():
        drive = source.drive
        recorded = RecordedDrive(drive.encoding, drive.camera, drive.base_from_camera, odometry, map_from_base, topic)
        write_drive_bag(out.path("drive"), _images(drive, set(stamps.tolist()), progress), recorded)
    write_tum(out.path("truth.tum"), Trajectory(stamps, map_from_base))
    say(f"drive of {source.drive.name}: {len(stamps)} images over {_length(map_from_base):.1f} m, odometry {topic}")
    summary = _summary(source, options, map_, stamps, map_from_base, topic)
    table, commands = _files_and_commands(output, source, weights)
    if source.queries:
        _write_queries(out, source.queries)
    notes += [
        f"Left out of {recording.name}: {count} ({reason})."
        for recording in _unique(recordings)
        for reason, count in recording.unusable().items()
    ]
    out.finish(
        summary,
        readme_text(
            source.name, f"{source.name}: map of {_names(source.mapping)}, drive of {source.drive.name}", table, notes, commands
        ),
    )
    return summary


def _images(drive: Recording, stamps: set[int], progress: Progress | None) -> Iterator[tuple[int, np.ndarray]]:
    for done, picture in enumerate(drive.pictures(stamps.__contains__)):
        if done == 0:
            check_size(drive, decode_compressed(picture.encoded))
        if progress:
            progress(done, len(stamps), "images into the bag")
        yield picture.stamp_ns, picture.encoded


def _write_queries(out: OutputFolder, queries: Mapping[str, tuple[Camera, torch.Tensor]]) -> None:
    write_cameras(out.path("queries.txt"), {name: camera for name, (camera, _) in queries.items()})
    write_benchmark_poses(out.path("queries_truth.txt"), {name: pose for name, (_, pose) in queries.items()})


def _files_and_commands(output: Path, source: SequenceSet, weights: str) -> tuple[list[tuple[str, str]], list[str]]:
    network = "" if weights == "compact" else f" --weights {weights}"
    table = [
        ("map.pixmap", f"the map, made of {_names(source.mapping)}"),
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


def _summary(
    source: SequenceSet, options: SequenceOptions, map_: Map, stamps: np.ndarray, map_from_base: torch.Tensor, topic: str
) -> dict:
    model, params = source.drive.camera.to_colmap()
    return {
        "set": source.name,
        "map_of": [r.name for r in source.mapping],
        "drive_of": source.drive.name,
        "options": vars(options),
        "camera": f"{model} {source.drive.camera.width} {source.drive.camera.height} " + " ".join(f"{v:.10g}" for v in params),
        "base_from_camera": source.drive.base_from_camera.tolist(),
        "keyframes": len(map_.keyframe_names),
        "points": len(map_.xyz),
        "images": len(stamps),
        "length_m": round(_length(map_from_base), 3),
        "odometry": topic,
        "queries": len(source.queries),
        "left_out": {r.name: r.unusable() for r in _unique([*source.mapping, source.drive])},
    }


def _unique(recordings: Iterable[Recording]) -> list[Recording]:
    return list({recording.name: recording for recording in recordings}.values())


def _names(recordings: Iterable[Recording]) -> str:
    return ", ".join(recording.name for recording in recordings)


def _length(poses: torch.Tensor) -> float:
    return float(se3.pose_difference(poses[:-1], poses[1:])[0].sum()) if len(poses) > 1 else 0.0

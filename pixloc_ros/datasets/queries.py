# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A map and a list of queries from a set of single images, their poses, and what to hand in to the benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation.queries import QueryResult, localize_queries
from ..features import Extractor
from ..geometry import se3
from ..io.camera_files import write_cameras
from ..io.trajectory import write_benchmark_poses
from ..localization import Localizer
from ..mapping.build.building import Progress
from ..mapping.map_file import Map
from .image_set import ImageSet
from .output import SUMMARY, OutputFolder, identity, readme_text


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


def make_queries(
    output: Path,
    source: ImageSet,
    extractor: Extractor,
    working_side: int | None = None,
    weights: str = "compact",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Make the folder `output` of a set of single images → what its dataset.json holds. Raises InputError where the output exists
    or no map comes out."""
    key = {
        "set": source.name,
        "scene": source.scene,
        "files": identity(source.files),
        "queries": len(source.queries),
        "network": extractor.fingerprint,
        "working_side": working_side,
        "made_from": source.made_from,
    }
    out = OutputFolder(output, key, say)
    map_path, notes = out.path("map.pixmap"), []
    if not map_path.is_file():
        map_, report = source.map_source.build(extractor, working_side, out.work, progress)
        map_.save(map_path)
        if report.left_out:
            name, reason = next(iter(report.left_out.items()))
            notes.append(f"{len(report.left_out)} images of the map were left out, such as {name}: {reason}.")
    map_ = Map.open(map_path)
    say(f"map of {source.made_from}: {len(map_.keyframe_names)} keyframes, {len(map_.xyz)} points")
    priors = source.priors(map_)
    write_cameras(out.path("queries.txt"), {query.name: query.camera for query in source.queries})
    table = [("map.pixmap", f"the map, made of {source.made_from}"), ("queries.txt", "the queries with their camera")]
    if priors:
        write_benchmark_poses(out.path("priors.txt"), priors)
        table.append(("priors.txt", "where to begin: the pose of the map image that retrieval put first"))
    if source.truth:
        write_benchmark_poses(out.path("truth.txt"), source.truth)
        table.append(("truth.txt", "camera_from_map of the queries"))
    say(f"{len(source.queries)} queries, {len(priors)} with a prior, {len(source.truth)} with truth")
    notes.append("The poses that the map was made with are used as they are.")
    if not priors:
        notes.append("No pairs were given: queries are looked for in the whole map by the map's own global descriptor.")
    summary = {
        "set": source.name,
        "scene": source.scene,
        "made_from": source.made_from,
        "keyframes": len(map_.keyframe_names),
        "points": len(map_.xyz),
        "queries": len(source.queries),
        "priors": len(priors),
        "truth": len(source.truth),
    }
    commands = [
        f"pixloc localize --map {output}/map.pixmap --images {source.images} --cameras {output}/queries.txt"
        f"{f' --prior {output}/priors.txt' if priors else ''} -o {output}/poses.txt"
        f"{'' if weights == 'compact' else f' --weights {weights}'}"
    ]
    if source.truth:
        commands.append(f"pixloc evaluate --truth {output}/truth.txt {output}/poses.txt")
    out.finish(summary, readme_text(source.name, f"{source.name}: {source.scene}", table, notes, commands))
    return summary


def made_already(folder: Path, source: ImageSet) -> bool:
    """Whether the folder was made of this set before. Raises InputError where it was made of something else."""
    if not (folder / SUMMARY).is_file():
        return False
    made_from = source.made_from
    try:
        made = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        wanted = {"set": source.name, "scene": source.scene, "made_from": made_from, "queries": len(source.queries)}
        same = all(made[key] == value for key, value in wanted.items())
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"{folder} was not made of {made_from}: give another output, or remove it")
    return True


def localize_set(
    folder: Path, source: ImageSet, localizer: Localizer, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[QueryResult]:
    """Localize all queries of a set whose folder was made; writes poses.txt (the queries' own names) and submission.txt (the
    benchmark's names) there."""
    results = localize_queries(localizer, source.queries, source.priors(localizer.map), progress)
    poses = {result.name: result.camera_from_map for result in results if not result.reason}
    write_benchmark_poses(folder / "poses.txt", poses)
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
    found = [result for result in results if not result.reason]
    write_benchmark_poses(path, {source.submission_name(result.name): result.camera_from_map for result in found})


def query_errors(source: ImageSet, results: list[QueryResult]) -> QueryErrors:
    """Errors of all queries with truth. Raises InputError: there is none."""
    found = {result.name: result.camera_from_map for result in results}
    metres, degrees = [], []
    for name, truth in source.truth.items():
        estimate = found.get(name)
        distance, angle = (np.inf, np.inf) if estimate is None else se3.pose_difference(se3.inverse(truth), se3.inverse(estimate))
        metres.append(float(distance))
        degrees.append(float(np.degrees(float(angle))))
    if not metres:
        raise InputError(f"{source.name} keeps the truth: hand in submission.txt to the benchmark")
    return QueryErrors(np.array(metres), np.array(degrees))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Single images to localize: which they are, their poses in a map, from a prior or from a search, and the figures of all."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.camera_files import read_cameras, read_names
from ..io.files import find_file, find_files, match_names, without_comments
from ..localization import Localizer, Location
from ..tracking.prior_std import PriorStd
from ..tracking.types import FrameAlignment
from .metrics import timing_figures


@dataclass(frozen=True)
class Query:
    """One image to localize; the camera is that of the file."""

    name: str
    path: Path
    camera: Camera


@dataclass(frozen=True)
class QueryResult:
    """What became of one image.

    Attributes:
        name: Of the query.
        alignment: None where the image could not be used at all, or nothing like it was found.
        prior: Where it came from, "given" or "retrieval"; "none" where nothing was tried.
        total_ms: What it took.
        reason: Empty where a pose was found.
        doubtful: Why it may be wrong all the same.
    """

    name: str
    alignment: FrameAlignment | None
    prior: str
    total_ms: float
    reason: str = ""
    doubtful: str = ""

    @property
    def camera_from_map(self) -> torch.Tensor | None:
        """float64 [4, 4], None where no pose was found."""
        return None if self.reason else se3.inverse(self.alignment.map_from_camera)


def read_queries(images: Path, cameras: Path, left_out: dict[str, str] | None = None) -> list[Query]:
    """What to localize, in the order of the input.

    Args:
        images: The folder that the names are relative to: all images of `cameras` are taken; or a text file with one name a
            line, relative to its folder.
        cameras: Lines ``NAME MODEL WIDTH HEIGHT PARAMS...`` (COLMAP's models and pixel convention).
        left_out: Gets why an image cannot be localized, by name, as long as others can be; None: one is enough to refuse all.

    Raises:
        InputError: A line is malformed, a name is unknown or a file is missing.
    """
    problems: dict[str, str] = {}
    known = read_cameras(cameras, None if left_out is None else problems)
    if Path(images).is_dir():
        folder, names = Path(images), list(known)
    else:
        folder, names = Path(images).parent, read_names(images)
        found = match_names(names, known)
        unknown = [name for name in names if name not in found]
        if unknown and (left_out is None or not found):
            raise InputError(f"{cameras} has no camera for {unknown[0]} ({len(unknown)} of {len(names)} images): add its line")
        wrong = match_names(unknown, problems)
        problems = {name: wrong.get(name, f"{cameras} has no camera for {name}: add its line") for name in unknown}
        names, known = [name for name in names if name in found], found
    names = without_comments(folder, names)
    if left_out is not None:
        there = [name for name in names if find_file(folder, name).is_file()] or names
        problems |= {name: f"no image {folder / name}: check --images" for name in set(names).difference(there)}
        left_out |= {name: problems[name] for name in without_comments(folder, problems)}
        names = there
    paths = find_files(folder, names, "images", "check --images")
    return [Query(name, paths[name], known[name]) for name in paths]


def localize_queries(
    localizer: Localizer,
    queries: Sequence[Query],
    priors: Mapping[str, torch.Tensor],
    progress: Callable[[int, int], None] = lambda done, of: None,
    stds: Mapping[str, PriorStd] | None = None,
) -> list[QueryResult]:
    """Localize each image.

    Args:
        localizer: What does it.
        queries: The images.
        priors: camera_from_map [4, 4] by name; images without are searched for in the whole map.
        progress: Called with the images done and their number.
        stds: How far off the priors may be, by name; where nothing is said, `Localizer.locate`'s default.
    """
    names = [query.name for query in queries]
    results, priors, stds = [], match_names(names, priors), match_names(names, stds or {})
    for index, query in enumerate(queries):
        progress(index, len(queries))
        began = time.perf_counter()
        prior = se3.inverse(priors[query.name]) if query.name in priors else None
        try:
            found = localizer.locate(query.path, query.camera, prior, None if prior is None else stds.get(query.name))
        except InputError as error:
            found = Location(False, str(error), None, None, 0.0, 0.0, None)
        reason, doubtful = ("", found.reason) if found.map_from_camera is not None else (found.reason, "")
        source = "retrieval" if prior is None else "given"
        milliseconds = (time.perf_counter() - began) * 1e3
        results.append(QueryResult(query.name, found.alignment, source, milliseconds, reason, doubtful))
    progress(len(queries), len(queries))
    return results


def query_figures(results: Sequence[QueryResult]) -> dict[str, object]:
    """Counts, times and one entry an image: JSON-ready."""
    found = [r for r in results if not r.reason]
    doubtful = Counter(r.doubtful for r in found if r.doubtful)
    used = [r for r in results if r.alignment is not None]
    return {
        "images": len(results),
        "localized": len(found) - doubtful.total(),
        "doubtful": doubtful.total(),
        "failed": len(results) - len(found),
        "reasons": dict(Counter(r.reason for r in results if r.reason)),
        "doubts": dict(doubtful),
        "priors": dict(Counter(r.prior for r in results)),
        **timing_figures([{**r.alignment.timings_ms, "total": r.total_ms} for r in used]),
        "per_image": [_entry(r) for r in results],
    }


def _entry(result: QueryResult) -> dict[str, object]:
    entry: dict[str, object] = {key: getattr(result, key) for key in ("name", "prior", "reason", "doubtful")}
    entry["ms"] = result.total_ms
    if result.alignment is not None and result.alignment.points_used:
        keys = ("inlier_fraction", "visible_fraction", "points_used", "iterations", "cost")
        entry |= {key.removesuffix("_used"): getattr(result.alignment, key) for key in keys}
    return entry

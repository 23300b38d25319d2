# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses of single images in a map, each from its own prior or from the most similar keyframe."""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..features import load_extractor
from ..features.images import load_image
from ..geometry import se3
from ..geometry.cameras import Camera
from ..mapping import Map
from ..tracking.localizer import FrameLocalizer, LocalizerOptions
from ..tracking.types import FrameAlignment, PreparedImage
from . import metrics

RETRIEVED_KEYFRAMES = 3
"""Without a prior, the alignment starts from so many of the most similar keyframes and the best result is taken."""

DOUBTFUL_INLIERS = 0.15
"""Poses that fewer of the visible points agree with are written, but called doubtful: right ones under heavy blur and wrong ones
look alike there (see `tracking.tracker.QualityGates`)."""


@dataclass(frozen=True)
class Query:
    """One image to localize; the camera is that of the file."""

    name: str
    path: Path
    camera: Camera


@dataclass(frozen=True)
class QueryResult:
    """alignment: None where the image could not be used at all. reason: empty where a pose was found."""

    name: str
    alignment: FrameAlignment | None
    prior: str
    total_ms: float
    reason: str = ""

    @property
    def camera_from_map(self) -> torch.Tensor | None:
        """float64 [4, 4], None where no pose was found."""
        return None if self.reason else se3.inverse(self.alignment.map_from_camera)


def open_localizer(map_path: Path, weights: str | Path = "compact",
                   options: LocalizerOptions | None = None) -> FrameLocalizer:
    """A map file and a network, ready to localize. Raises `InputError` where they cannot be used or do not fit."""
    map_ = Map.open(map_path)
    return FrameLocalizer(map_, load_extractor(weights), options or LocalizerOptions())


def read_queries(images: Path, cameras: Path) -> list[Query]:
    """What to localize, in the order of the input.

    cameras: lines ``NAME MODEL WIDTH HEIGHT PARAMS...`` (COLMAP's models and pixel convention). images: the folder that the
    names are relative to: all images of `cameras` are taken; or a text file with one name a line, relative to its folder.
    Raises `InputError` for malformed lines, unknown names and missing files.
    """
    known = _read_cameras(cameras)
    if Path(images).is_dir():
        folder, names = Path(images), list(known)
    else:
        folder, names = Path(images).parent, _read_names(images)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"{cameras} has no camera for {unknown[0]} ({len(unknown)} of {len(names)} images): add its line")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} images are not in {folder}, the first is {missing[0]}: "
                         "check --images")
    return [Query(name, folder / name, known[name]) for name in names]


def localize_queries(localizer: FrameLocalizer, queries: Sequence[Query], priors: Mapping[str, torch.Tensor],
                     progress: Callable[[int, int], None] = lambda done, of: None) -> list[QueryResult]:
    """Localize each image; images without a prior (camera_from_map [4, 4] by name) start from similar keyframes."""
    results = []
    for index, query in enumerate(queries):
        progress(index, len(queries))
        began = time.perf_counter()
        prior = "given" if query.name in priors else "retrieval"
        try:
            prepared = localizer.prepare(load_image(query.path), query.camera)
            if query.name in priors:
                starts = [se3.inverse(priors[query.name])]
            else:
                starts = similar_keyframes(localizer.map, prepared, RETRIEVED_KEYFRAMES)
            alignment = max((localizer.localize_prepared(prepared, start) for start in starts), key=_goodness)
            reason = "" if alignment.success else alignment.reason
        except InputError as error:
            alignment, reason = None, str(error)
        results.append(QueryResult(query.name, alignment, prior, (time.perf_counter() - began) * 1e3, reason))
    progress(len(queries), len(queries))
    return results


def similar_keyframes(map_: Map, prepared: PreparedImage, count: int) -> list[torch.Tensor]:
    """Poses (map_from_camera [4, 4]) of the keyframes whose global descriptors are most like the image's, best first."""
    coarse = prepared.pyramid.levels[0].features[0].mean((1, 2))
    likeness = map_.global_descriptors.astype(np.float32) @ torch.nn.functional.normalize(coarse, dim=0).numpy()
    return [map_.map_from_keyframe[k] for k in np.argsort(-likeness, kind="stable")[:count]]


def summarize(results: Sequence[QueryResult]) -> dict[str, object]:
    """Counts, times and one entry an image: JSON-ready."""
    found = [r for r in results if not r.reason]
    doubtful = sum(r.alignment.inlier_fraction < DOUBTFUL_INLIERS for r in found)
    used = [r for r in results if r.alignment is not None]
    return {
        "images": len(results), "localized": len(found) - doubtful, "doubtful": doubtful, "failed": len(results) - len(found),
        "reasons": dict(Counter(r.reason for r in results if r.reason)),
        "priors": dict(Counter(r.prior for r in results)),
        **metrics.timing_summary([{**r.alignment.timings_ms, "total": r.total_ms} for r in used]),
        "per_image": [_entry(r) for r in results],
    }


def _entry(result: QueryResult) -> dict[str, object]:
    entry: dict[str, object] = {"name": result.name, "prior": result.prior, "reason": result.reason, "ms": result.total_ms}
    if result.alignment is not None and result.alignment.points_used:
        a = result.alignment
        entry.update(inlier_fraction=a.inlier_fraction, visible_fraction=a.visible_fraction, points=a.points_used,
                     iterations=a.iterations, cost=a.cost)
    return entry


def _goodness(alignment: FrameAlignment) -> float:
    """Number of points that agree: the more of the map is explained, the better."""
    return alignment.inlier_fraction * alignment.visible_fraction * alignment.points_used if alignment.success else -1.0


def _read_cameras(path: Path) -> dict[str, Camera]:
    cameras: dict[str, Camera] = {}
    for number, line in _lines(path):
        name, _, rest = line.partition(" ")
        if name in cameras:
            raise InputError(f"{path}:{number}: a second camera for '{name}': keep one")
        try:
            cameras[name] = Camera.parse_colmap_line(rest)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    if not cameras:
        raise InputError(f"{path} names no camera: write lines NAME MODEL WIDTH HEIGHT PARAMS...")
    return cameras


def _read_names(path: Path) -> list[str]:
    names = [line for _, line in _lines(path)]
    if not names:
        raise InputError(f"{path} names no image: write one file name a line")
    return names


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are neither empty nor comments."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A public data set of single images: what makes its map, the queries, where they may be, and how answers are handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..evaluation.localize import Query
from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.camera_files import read_cameras
from ..io.colmap import read_colmap_model
from ..io.work_folder import WorkFolder
from ..mapping import Map
from ..mapping.build import build_map_from_colmap
from ..mapping.build.building import BuildReport, PosedImages, Progress, build_map
from .nvm import NvmModel

MapBuilder = Callable[[Extractor, int | None, WorkFolder, Progress | None], tuple[Map, BuildReport]]
"""Called with the network, the longer side of its images or None, the work folder and what to tell progress to."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of single images.

    name: of the set, as in `licences`. scene: what of it. build: makes the map. images: the folder that the queries' names are
    relative to. truth: camera_from_map [4, 4] by name, empty where the benchmark keeps it. pairs: names of map images that look
    alike, best first, by query. submission_name: what the benchmark wants a query called. made_from: for people.
    """

    name: str
    scene: str
    build: MapBuilder
    images: Path
    queries: list[Query]
    submission_name: Callable[[str], str]
    made_from: str
    truth: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pairs: Mapping[str, list[str]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def priors(self, map_: Map) -> dict[str, torch.Tensor]:
        """camera_from_map of the first image in the map that looks like a query, by query; those without one are left out."""
        place = {name: k for k, name in enumerate(map_.keyframe_names)}
        first = {
            query.name: next((place[name] for name in self.pairs.get(query.name, ()) if name in place), None)
            for query in self.queries
        }
        return {name: se3.inverse(map_.map_from_keyframe[k]) for name, k in first.items() if k is not None}


def read_pairs(path: Path) -> dict[str, list[str]]:
    """Lines `query database-image`, as hloc writes the results of retrieval → database images by query, in the file's order.
    Raises InputError."""
    pairs: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text file'}") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and len(words) != 2:
            raise InputError(f"{path}:{number}: {len(words)} words instead of 2: write 'QUERY DATABASE_IMAGE'")
        if words:
            pairs.setdefault(words[0], []).append(words[1])
    if not pairs:
        raise InputError(f"{path} names no pair: write lines 'QUERY DATABASE_IMAGE'")
    return pairs


def read_query_lists(lists: list[Path], images: Path) -> list[Query]:
    """Queries of hloc's lists `*_queries_with_intrinsics.txt` (`NAME MODEL WIDTH HEIGHT PARAMS...`). Raises InputError where a
    line is malformed, a name comes twice or images are missing."""
    cameras: dict[str, Camera] = {}
    for path in lists:
        here = read_cameras(path)
        twice = next((name for name in here if name in cameras), None)
        if twice:
            raise InputError(f"{path} names {twice} again: give each query once")
        cameras.update(here)
    return queries_of(cameras, images)


def queries_of(cameras: Mapping[str, Camera], images: Path) -> list[Query]:
    """Raises InputError where images are missing."""
    missing = [name for name in cameras if not (images / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(cameras)} query images are not in {images}, the first is {missing[0]}: unpack "
            "all of the set's images"
        )
    return [Query(name, images / name, camera) for name, camera in cameras.items()]


def colmap_builder(model: Path, images: Path, queries: list[Query], name: str) -> MapBuilder:
    """The map of a COLMAP model. Raises InputError, when it is called, where the model holds a query."""

    def build(
        extractor: Extractor, working_side: int | None, work: WorkFolder, progress: Progress | None
    ) -> tuple[Map, BuildReport]:
        asked = {query.path for query in queries}
        shown = next((image for image in read_colmap_model(model).names if images / image in asked), None)
        if shown:
            raise InputError(f"{model} holds the query {shown}: give the model of the training images alone")
        return build_map_from_colmap(model, images, extractor, working_side=working_side, name=name, progress=progress, work=work)

    return build


def nvm_builder(model: NvmModel, chosen: Mapping[int, tuple[Path, str, Camera]], name: str) -> MapBuilder:
    """The map of the chosen images of an NVM model: index to file, name, camera. Points that two of them see are used."""
    images = sorted(chosen)
    place = np.full(len(model.names), -1)
    place[images] = np.arange(len(images))
    image, point = place[model.observation_image], model.observation_point
    here = image >= 0
    here &= np.bincount(point[here], minlength=len(model.xyz))[point] >= 2

    def build(
        extractor: Extractor, working_side: int | None, work: WorkFolder, progress: Progress | None
    ) -> tuple[Map, BuildReport]:
        paths, names, cameras = zip(*(chosen[k] for k in images))
        source = PosedImages(
            name,
            list(paths),
            list(names),
            list(cameras),
            se3.inverse(model.camera_from_map[images]),
            np.full(len(images), -1, np.int64),
            model.xyz,
            image[here],
            point[here],
        )
        return build_map(source, extractor, working_side, progress, work)

    return build


def base_name(name: str) -> str:
    """`query/day/milestone/a.jpg` → `a.jpg`."""
    return name.rpartition("/")[2]


def camera_and_base_name(name: str) -> str:
    """`night/rear/1.jpg` → `rear/1.jpg`."""
    return "/".join(name.split("/")[-2:])

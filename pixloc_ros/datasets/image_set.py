# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A public data set of single images: what makes its map, the queries, where they may be, and how answers are handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..evaluation.queries import Query
from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.camera_files import read_cameras
from ..io.colmap import read_colmap_model
from ..io.files import find_file, find_files, match_names, without_comments
from ..io.text import read_rows
from ..io.trajectory import parse_pose
from ..io.work_folder import WorkFolder
from ..mapping import Map
from ..mapping.build import build_map_from_colmap
from ..mapping.build.building import BuildReport, PosedImages, Progress, build_map
from .nvm import NvmModel, read_nvm

MapBuilder = Callable[[Extractor, int | None, WorkFolder, Progress | None], tuple[Map, BuildReport]]
"""Called with the network, the longer side of its images or None, the work folder and what to tell progress to."""


class MapSource(NamedTuple):
    """What makes the map, what it is made from (for people), and the file or folder with the model."""

    build: MapBuilder
    made_from: str
    model: Path


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of single images.

    Attributes:
        name: Of the set, as in `output.licence_note`.
        scene: What of it.
        images: The folder that the queries' names are relative to.
        queries: What to localize.
        map_source: What the map is made of.
        truth: camera_from_map [4, 4] by name; empty where the benchmark keeps it.
        pairs: Names of map images that look similar, best first, by query.
        files: What the set was read from, to recognize it.
        folders: How many the benchmark wants before the name of a query's file.
    """

    name: str
    scene: str
    images: Path
    queries: list[Query]
    map_source: MapSource
    truth: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pairs: Mapping[str, list[str]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    folders: int = 0

    def submission_name(self, name: str) -> str:
        """What the benchmark wants a query called."""
        return "/".join(name.split("/")[-1 - self.folders :])

    @property
    def made_from(self) -> str:
        """What the map is made from, for people."""
        return self.map_source.made_from

    def summary(self) -> dict[str, object]:
        """What the results depend on, for dataset.json."""
        return {"set": self.name, "scene": self.scene, "made_from": self.made_from, "queries": len(self.queries)}

    def priors(self, map_: Map) -> dict[str, torch.Tensor]:
        """camera_from_map of the first image in the map that looks like a query, by query; those without one are left out."""
        place = {name: k for k, name in enumerate(map_.keyframe_names)}
        pairs = match_names([query.name for query in self.queries], self.pairs)
        first = {query: next(iter(match_names(similar, place).values()), None) for query, similar in pairs.items()}
        return {name: se3.inverse(map_.map_from_keyframe[k]) for name, k in first.items() if k is not None}


def existing(*paths: Path | None) -> tuple[Path, ...]:
    """The paths that are given."""
    return tuple(path for path in paths if path is not None)


# ---- lists


def read_pairs(path: Path | None) -> dict[str, list[str]]:
    """Lines `query database-image`, as hloc writes the results of retrieval → database images by query, in the file's order;
    nothing for None. Raises `InputError`."""
    pairs: dict[str, list[str]] = {}
    for where, words in [] if path is None else read_rows(path):
        if len(words) != 2:
            raise InputError(f"{where}: {len(words)} words instead of 2: write 'QUERY DATABASE_IMAGE'")
        pairs.setdefault(words[0], []).append(words[1])
    if path is not None and not pairs:
        raise InputError(f"{path} names no pair: write lines 'QUERY DATABASE_IMAGE'")
    return pairs


def query_lists(root: Path, given: Path | None) -> list[Path]:
    """hloc's lists of queries with intrinsics: the one given, or those of the set."""
    lists = (sorted(folder.glob("*queries_with_intrinsics.txt")) for folder in (root / "queries", root))
    return [given] if given else next((found for found in lists if found), [])


def read_query_lists(lists: list[Path], images: Path) -> list[Query]:
    """Queries of hloc's lists (`NAME MODEL WIDTH HEIGHT PARAMS...`).

    Raises:
        InputError: A line is malformed, a name comes twice, or images are missing.
    """
    cameras: dict[str, Camera] = {}
    for path in lists:
        here = read_cameras(path)
        twice = next((name for name in here if name in cameras), None)
        if twice:
            raise InputError(f"{path} names {twice} again: give each query once")
        cameras.update(here)
    return queries_of({name: cameras[name] for name in without_comments(images, cameras)}, images)


def queries_of(cameras: Mapping[str, Camera], images: Path) -> list[Query]:
    """Queries by the name of the image. Raises `InputError` where images are missing."""
    paths = find_files(images, cameras, "query images", "unpack all of the set's images")
    return [Query(name, paths[name], camera) for name, camera in cameras.items()]


def read_centred_poses(path: Path, remedy: str, centre_first: bool = False, skip: int = 0) -> dict[str, torch.Tensor]:
    """Poses written as the camera's CENTRE and the rotation of camera_from_map.

    Args:
        path: Lines `name qw qx qy qz cx cy cz`.
        remedy: What to do where it cannot be read.
        centre_first: Lines are `name cx cy cz qw qx qy qz`.
        skip: Lines of heading.

    Returns:
        camera_from_map [4, 4] by name.

    Raises:
        InputError: The file cannot be read or is malformed.
    """
    poses = {}
    for where, (name, *words) in read_rows(path, remedy, skip):
        if len(words) != 7:
            order = "X Y Z W P Q R" if centre_first else "qw qx qy qz cx cy cz"
            raise InputError(f"{where} is no pose: lines are 'NAME {order}' with a unit quaternion")
        centre, (w, *xyz) = (words[:3], words[3:]) if centre_first else (words[4:], words[:4])
        turned = parse_pose([*centre, *xyz, w], where)
        poses[name] = se3.from_rotation_translation(turned[:3, :3], -turned[:3, :3] @ turned[:3, 3])
    return poses


# ---- maps


def model_source(
    root: Path,
    images: Path,
    queries: list[Query],
    name: str,
    model: Path | None,
    folders: tuple[str, ...],
    nvm: str = "",
    cameras: Callable[[], dict[str, Camera]] = dict,
) -> MapSource:
    """The map of the COLMAP model given, or of the first folder that holds one; else of VisualSFM's.

    Args:
        root: Of the set.
        images: What the model's names are relative to.
        queries: Which the model must not hold.
        name: Of the map.
        model: The one given.
        folders: Where COLMAP models may be.
        nvm: VisualSFM's file.
        cameras: Gives the intrinsics that go with it, by image or by the name of the folder that an image lies in.

    Raises:
        InputError: There is no model, or no image of it.
    """
    there = (root / f for f in folders if any((root / f / f"images{suffix}").is_file() for suffix in (".bin", ".txt")))
    model = model or next(there, None)
    if model is not None:
        return colmap_source(model, images, queries, name)
    path = root / nvm
    if not nvm or not path.is_file():
        raise InputError(f"{root} has no model ({', '.join((*folders, *([nvm] if nvm else [])))}): give --model")
    reconstruction, known, chosen = read_nvm(path), cameras(), {}
    for k, image in enumerate(reconstruction.names):
        names = image, str(PurePosixPath(image).with_suffix(".jpg"))
        file = next((one for one in names if find_file(images, one).is_file()), None)
        camera = known.get(image) or known.get(PurePosixPath(image).parent.name)
        if file is not None and camera is not None:
            chosen[k] = find_file(images, file), file, camera
    if not chosen:
        example = f"no image of {path} is in {images} with known intrinsics, for example {reconstruction.names[0]}"
        raise InputError(f"{example}: unpack the reference images")
    return MapSource(nvm_builder(reconstruction, chosen, name), f"the model {path}", path)


def colmap_source(model: Path, images: Path, queries: list[Query], name: str) -> MapSource:
    """The map of a COLMAP model. Raises `InputError`, when it is made, where the model holds a query."""

    def build(extractor: Extractor, side: int | None, work: WorkFolder, progress: Progress | None) -> tuple[Map, BuildReport]:
        asked = {query.path for query in queries}
        shown = next((image for image in read_colmap_model(model).names if find_file(images, image) in asked), None)
        if shown:
            raise InputError(f"{model} holds the query {shown}: give the model of the training images alone")
        return build_map_from_colmap(model, images, extractor, working_side=side, name=name, progress=progress, work=work)

    return MapSource(build, f"the model {model}", model)


def nvm_builder(model: NvmModel, chosen: Mapping[int, tuple[Path, str, Camera]], name: str) -> MapBuilder:
    """The map of the chosen images of an NVM model: index to file, name, camera. Points that two of them see are used."""
    images = sorted(chosen)
    place = np.full(len(model.names), -1)
    place[images] = np.arange(len(images))
    image, point = place[model.observation_image], model.observation_point
    here = image >= 0
    here &= np.bincount(point[here], minlength=len(model.xyz))[point] >= 2
    paths, names, cameras = (list(values) for values in zip(*(chosen[k] for k in images)))
    poses, stamps = se3.inverse(model.camera_from_map[images]), np.full(len(images), -1, np.int64)
    source = PosedImages(name, paths, names, cameras, poses, stamps, model.xyz, image[here], point[here])
    return lambda extractor, side, work, progress: build_map(source, extractor, side, progress, work)

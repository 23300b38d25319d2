# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the experiments share: scenes of the data folder, command line, localizing and scoring queries, results, errors."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixloc_ros import jobs
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.queries import Query, QueryResult, localize_queries, read_queries
from pixloc_ros.evaluation.tables import write_section
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.files import write_text
from pixloc_ros.io.trajectory import read_benchmark_poses
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.tracking.prior_std import PriorStd
from pixloc_sim.recordings import SimulationOptions, simulate

PRIOR_SIZES = {"small": PriorStd(2.0, 0.03), "medium": PriorStd(5.0, 0.10), "large": PriorStd(10.0, 0.15)}
"""By how much the scenes' priors are wrong: a fixed angle and share of the depth, in random directions."""
MAP_STRIDE = 3
"""Every third image of a scene's drive is in its map; simulated drives take part in no map."""
VALIDATION_DRIVES = ("kitti07", "kitti01")
"""Drives that no network was trained on. The truth of tum_fr1_rpy is wrong by more than the poses are: name it to see."""


@dataclass(frozen=True)
class Scene:
    """A folder with map/ (a COLMAP model), images/ and queries/, and maybe drive/ (a bag).

    Attributes:
        folder: Of the scene.
        shared_images: Folder of its images; None: images/ of its own.
    """

    folder: Path
    shared_images: Path | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def drive(self) -> Path:
        return self.folder / "drive"

    @property
    def images(self) -> Path:
        return self.shared_images or self.folder / "images"

    @cached_property
    def metric(self) -> bool:
        """Whether its unit is the metre."""
        return bool(json.loads((self.folder / "scene.json").read_text()).get("metric"))

    @cached_property
    def queries(self) -> list[Query]:
        return read_queries(self.images, self.folder / "queries" / "cameras.txt")

    @cached_property
    def truth(self) -> dict[str, torch.Tensor]:
        """camera_from_map [4, 4] of each query."""
        return read_benchmark_poses(self.folder / "queries" / "truth.txt")

    @cached_property
    def depths(self) -> dict[str, float]:
        """Median depth of each query."""
        return json.loads((self.folder / "queries" / "scale.json").read_text())

    def priors(self, size: str) -> dict[str, torch.Tensor]:
        """camera_from_map of each query, wrong by "small", "medium" or "large" errors; right for "truth", empty for "none"."""
        if size == "truth":
            return self.truth
        return {} if size == "none" else read_benchmark_poses(self.folder / "queries" / f"priors_{size}.txt")

    def build_map(self, extractor: Extractor, save: Path | None = None) -> Map:
        """The map of the COLMAP model; where it is to be saved, as read from its file."""
        with show_progress(f"{self.name}: map") as progress:
            map_ = build_map_from_colmap(self.folder / "map", self.images, extractor, progress=progress)[0]
        if save is None:
            return map_
        map_.save(save)
        return Map.open(save)

    def localizer(self, args: argparse.Namespace) -> Localizer:
        """A localizer with the map and the weights that the command line names; the map is saved in the output folder."""
        extractor = load_extractor(args.weights)
        return Localizer(self.build_map(extractor, args.output / f"{self.name}.pixmap"), extractor)

    def localize(
        self, localizer: Localizer, priors: str, queries: Sequence[Query] | None = None, said: bool = False
    ) -> list[QueryResult]:
        """Localize the queries (or some) from priors of a size (see `priors`). said: whether the localizer is given that size."""
        queries = self.queries if queries is None else queries
        stds = {query.name: PRIOR_SIZES[priors] for query in queries} if said and priors in PRIOR_SIZES else None
        with show_progress(f"{self.name}: priors {priors}") as progress:
            return localize_queries(localizer, queries, self.priors(priors), progress, stds)

    def errors(self, results: Sequence[QueryResult]) -> np.ndarray:
        """`error` [N, 3] of each query; infinite without a pose."""
        return np.array([self.error(r.name, r.camera_from_map) for r in results])

    def error(self, name: str, camera_from_map: torch.Tensor | None) -> tuple[float, float, float]:
        """Degrees, distance and share of the depth of a query."""
        if camera_from_map is None:
            return (math.inf,) * 3
        distance, angle = se3.pose_difference(se3.inverse(self.truth[name]), se3.inverse(camera_from_map))
        return math.degrees(float(angle)), float(distance), float(distance) / self.depths[name]


def medians(errors: np.ndarray) -> dict[str, float | None]:
    """Medians of `Scene.errors`; None where they are infinite."""
    names = ("median_deg", "median_distance", "median_depth")
    return {name: float(v) if math.isfinite(v) else None for name, v in zip(names, np.median(errors, 0))}


def recall(errors: np.ndarray, degrees: float, share: float) -> float:
    """Share of `Scene.errors` within degrees and share of the depth."""
    return float(((errors[:, 0] <= degrees) & (errors[:, 2] <= share)).mean())


# ---- command line


def parser(doc: str, output: str, scenes: Sequence[str] | None = None, drives: bool = False) -> argparse.ArgumentParser:
    """The arguments that all experiments on the data folder take.

    Args:
        doc: Description of the script.
        output: Default of `--output`.
        scenes: Default scenes; None for all.
        drives: Whether its scenes are those with a drive, not those with queries.
    """
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("data", type=absolute, help="folder of scenes")
    result.add_argument("-o", "--output", type=absolute, default=output, metavar="DIR", help=f"results (default {output})")
    what = "a drive" if drives else "queries"
    default = " ".join(scenes or ()) or f"all with a map and {what}"
    result.add_argument("--scenes", nargs="*", default=scenes, metavar="NAME", help=f"default: {default}")
    result.add_argument("--weights", type=_weights, default="compact", metavar="NAME|FILE", help="network (default compact)")
    result.add_argument("--docs", type=Path, metavar="PAGE", help="also put the tables between their markers in this page")
    if drives:
        result.add_argument("--simulated", action="store_true", help="also a simulated drive of 40 s, made in the output folder")
    return result


def absolute(text: str) -> Path:
    """A path as jobs need it, which may run elsewhere."""
    return Path(text).resolve()


def _weights(text: str) -> str:
    return os.path.abspath(text) if os.path.isfile(text) else text


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    what = "run on a dask cluster whose machines all see data and results, e.g. tcp://HOST:8786 (default: one by one here)"
    parser.add_argument("--scheduler", metavar="ADDRESS", help=what)


def run_jobs(args: argparse.Namespace, function: Callable[[Any], Any], work: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """`jobs.run_jobs` where the command line says. What the function needs of these scripts goes to the workers with it."""
    if args.scheduler is not None:
        with contextlib.suppress(ImportError):
            import cloudpickle

            for module in list(sys.modules.values()):
                if Path(getattr(module, "__file__", None) or "/").parent == Path(__file__).parent:
                    cloudpickle.register_pickle_by_value(module)
    return jobs.run_jobs(function, work, args.scheduler)


def scenes_of(args: argparse.Namespace) -> list[Scene]:
    """The scenes that the command line asks for. Raises `InputError` for one that is not there."""
    names, drives = args.scenes, "simulated" in args
    if names is None:
        found = args.data.glob("*/drive" if drives else "*/queries")
        names = sorted(path.parent.name for path in found if (path.parent / "map").is_dir())
    folders = [args.data / name for name in names]
    if drives and args.simulated:
        folders.append(args.output / "simulated")
        if not folders[-1].is_dir():
            simulate(folders[-1], SimulationOptions(seconds=40.0))
    for folder in folders:
        if not (folder / "map").is_dir():
            raise InputError(f"{folder} is no scene: give a folder of scenes, and names of scenes in it")
    return [Scene(folder, getattr(args, "images", None)) for folder in folders]


def save(args: argparse.Namespace, name: str, results: object, tables: Mapping[str, str]) -> None:
    """Write NAME.json and NAME.md into the output folder: after each scene, so that a long run can be looked at."""
    write_text(args.output / f"{name}.json", json.dumps(results, indent=1) + "\n")
    write_text(args.output / f"{name}.md", "\n".join(tables.values()))


def finish(args: argparse.Namespace, tables: Mapping[str, str]) -> int:
    """Print the tables, and put them into the page where asked for.

    Args:
        args: Command line of `parser`.
        tables: Markdown by the name of its markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`; "" for what is printed only.
    """
    print("\n".join(tables.values()))
    for name, table in tables.items():
        if args.docs and name:
            write_section(args.docs, name, table)
    return 0

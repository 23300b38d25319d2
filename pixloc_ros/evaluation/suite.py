# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The robustness suite: one drive, made worse in nine ways (`degradation.KINDS`), tracked by several methods and scored.

A cell is a method under one degradation. Cells are kept in a JSON file as soon as they are measured: a run that was killed goes
on, and one with another map, seed or option measures what that changes. docs/robustness.md.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..io.bags import BagReader
from ..io.files import write_text
from ..io.trajectory import Trajectory, read_tum
from ..localization import Localizer
from ..tracking.tracker import Tracker
from ..tracking.types import TrackState
from .altered_bag import AlteredBag
from .degradation import CLEAR_S, KINDS, Degradation, degraded
from .metrics import absolute_errors, associate, error_figures, recall_name
from .offline import run_bag
from .rivals import Rival, rival_options
from .runs import odometry_in_map, sampled
from .tables import format_number, markdown_table

OURS, ODOMETRY = "pixloc", "odometry alone"
RIGHT = recall_name(0.25, 2.0)
"""The limits within which a pose is called right."""
HOLDS = 0.9
"""A method holds as long as this share of the images is right."""
EXTERNAL_TOLERANCE_NS = 5_000_000
FORMAT, VERSION = "pixloc robustness suite", 1
_FIGURES = tuple(f"{what}_error_{k}_{u}" for what, u in (("translation", "m"), ("rotation", "deg")) for k in ("median", "p95"))
_CELL_KEYS = {"method", "kind", "severity", "settings", "frames", "tracked_fraction", "false_tracked_frames", *_FIGURES, "recall"}


@dataclass(frozen=True)
class Tracked:
    """What a method made of one drive.

    Attributes:
        estimate: Poses at the images' stamps.
        tracked: Stamps of the poses that an image gave (the others are dead reckoned).
        frame_ms: Median time of an image.
    """

    estimate: Trajectory
    tracked: frozenset[int]
    frame_ms: float | None = None


@dataclass(frozen=True)
class Method:
    """A way to track a drive.

    Attributes:
        name: For people.
        run: Tracks a drive, whose `cause` is the degradation; None where it has nothing for it.
        settings: All that its poses depend on besides the drive, as JSON can hold it.
    """

    name: str
    run: Callable[[AlteredBag], Tracked | None]
    settings: object = None


@dataclass(frozen=True)
class Experiment:
    """What all cells have in common.

    Attributes:
        bag: The drive as recorded, open.
        truth: map_from_base.
        start: float64 [4, 4], where the drive starts; None: from the truth.
        skip_map_frames: Every n-th image, from the first on, is in the map and not scored (0: none).
        seed: Of all that is random.
        clear_s: Images of the first seconds stay as recorded and are not scored.
        identity: What makes the drive different from another one, as JSON can hold it.
    """

    bag: BagReader
    truth: Trajectory
    start: torch.Tensor | None = None
    skip_map_frames: int = 0
    seed: int = 0
    clear_s: float = CLEAR_S
    identity: object = None

    @cached_property
    def image_stamps(self) -> np.ndarray:
        """Of the drive as recorded, int64 [N] rising."""
        return _stamps(self.bag)

    def degraded(self, degradation: Degradation) -> AlteredBag:
        return degraded(self.bag, degradation, self.seed, self.clear_s, self.truth)

    def scored_stamps(self, drive: AlteredBag) -> np.ndarray:
        """True stamps, int64 [N], of the images that are scored: those that reach the localizer, from when they are degraded."""
        stamps = self.image_stamps
        wanted = stamps >= stamps[0] + round(self.clear_s * 1e9)
        if self.skip_map_frames:
            wanted &= np.arange(len(stamps)) % self.skip_map_frames != 0
        return np.intersect1d(stamps[wanted], _stamps(drive) - drive.change.late_ns)


def _stamps(bag: BagReader | AlteredBag) -> np.ndarray:
    return np.unique(np.fromiter(bag.image_stamps(), np.int64))


# ---- methods


def tracker_method(name: str, localizer: Localizer | Rival, start: torch.Tensor | None, settings: object = None) -> Method:
    """The tracker: ours as it ships, with the search in the whole map, or with a rival in the place of our localizer."""

    def run(drive: AlteredBag) -> Tracked:
        tracker = Tracker(localizer, rival_options()) if isinstance(localizer, Rival) else localizer.tracker()
        found = run_bag(tracker, drive, start)
        tracked = (r.stamp_ns for r in found.records if r.state is TrackState.TRACKING and r.map_from_base is not None)
        times = [r.timings_ms["total"] for r in found.records if "alignment" in r.timings_ms]
        return Tracked(found.estimate, frozenset(tracked), float(np.median(times)) if times else None)

    return Method(name, run, settings)


def odometry_method() -> Method:
    """Odometry, started from the truth: what there is without any image."""

    def run(drive: AlteredBag) -> Tracked | None:
        alone = odometry_in_map(drive.odometry(), drive.truth())
        return Tracked(sampled(alone, _stamps(drive)), frozenset()) if len(alone) else None

    return Method(ODOMETRY, run)


def external_method(name: str, folder: Path) -> Method:
    """Trajectories made elsewhere, ``folder/CELL.tum``: map_from_base at the images' stamps. Every pose counts as tracked."""
    if not Path(folder).is_dir():
        raise InputError(f"no folder {folder} with the trajectories of {name}: --external takes NAME=DIR, which holds CELL.tum")

    def run(drive: AlteredBag) -> Tracked | None:
        path = Path(folder) / f"{cell_name(drive.cause)}.tum"
        if not path.is_file():
            return None
        given, stamps = read_tum(path), _stamps(drive)
        found = associate(stamps, given.stamps_ns, EXTERNAL_TOLERANCE_NS)
        estimate = Trajectory(stamps[found >= 0], given.map_from_body[found[found >= 0]])
        return Tracked(estimate, frozenset(estimate.stamps_ns.tolist()))

    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).glob("*.tum"))}
    return Method(name, run, files)


# ---- cells


def cell_name(degradation: Degradation) -> str:
    """Of files and folders: "blur_15", "as_recorded"."""
    return f"{degradation.kind}_{degradation.severity:g}" if degradation.severity else "as_recorded"


def plan(kinds: Iterable[str] | None = None, severities: Sequence[float] | None = None) -> list[Degradation]:
    """The degradations of a run, the drive as recorded first. severities: of one kind, instead of the suite's.

    Raises InputError for what does not exist or fit.
    """
    kinds = list(dict.fromkeys(kinds)) if kinds else list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"no kind of degradation '{kind}': choose of {', '.join(KINDS)}")
    if severities and len(kinds) != 1:
        raise InputError("--severities are those of one kind: give that kind alone with --kinds")
    cells = [Degradation(kinds[0], 0)]
    for kind in kinds:
        cells += [Degradation(kind, float(s)) for s in sorted(set(severities or KINDS[kind].severities)) if s]
    return cells


def measure(experiment: Experiment, method: Method, degradation: Degradation) -> dict[str, object] | None:
    """One cell, JSON-ready; None where the method has nothing for it.

    Its tracked_fraction is the share of the scored images whose own pose was believed, and false_tracked_frames counts those of
    them that are further off than `metrics.FALSE_TRACK`. With wrong stamps, at_exposure holds the errors at the true times.
    """
    began = time.monotonic()
    drive = experiment.degraded(degradation)
    stamps, late_ns = experiment.scored_stamps(drive), drive.change.late_ns
    result = method.run(drive)
    if result is None:
        return None
    cell = _score(experiment.truth, stamps + late_ns, result.estimate, result.tracked)
    if late_ns:
        true_time = Trajectory(result.estimate.stamps_ns - late_ns, result.estimate.map_from_body)
        cell["at_exposure"] = _score(experiment.truth, stamps, true_time, frozenset(s - late_ns for s in result.tracked))
    return {
        "method": method.name,
        "kind": degradation.kind if degradation.severity else None,
        "severity": degradation.severity,
        **cell,
        "frame_ms_p50": result.frame_ms,
        "seconds": round(time.monotonic() - began, 2),
    }


def _score(truth: Trajectory, stamps_ns: np.ndarray, estimate: Trajectory, tracked: frozenset[int]) -> dict[str, object]:
    reference = sampled(truth, stamps_ns)
    errors = absolute_errors(reference, Trajectory(estimate.stamps_ns, estimate.map_from_body), tolerance_ns=0)
    figures = error_figures(errors)
    by_image = np.isin(reference.stamps_ns, np.array(list(tracked), np.int64))
    return {
        "frames": len(reference),
        "published_fraction": figures["estimated_fraction"],
        "tracked_fraction": float(by_image.mean()) if len(reference) else 0.0,
        "false_tracked_frames": int((by_image & errors.false).sum()),
        **{key: figures[key] for key in (*_FIGURES, "recall")},
    }


# ---- the results file


@dataclass
class Results:
    """The cells of a suite and the file they are kept in. about: what the suite was run on, for people."""

    path: Path
    about: dict[str, object] = field(default_factory=dict)
    cells: list[dict] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, about: Mapping[str, object]) -> Results:
        """With the cells that are in the file already. Raises InputError where it is something else."""
        results = cls(Path(path), dict(about))
        if results.path.is_file():
            try:
                data = json.loads(results.path.read_text(encoding="utf-8"))
                if (data["format"], data["version"]) != (FORMAT, VERSION):
                    raise ValueError(f"version {data['version']}")
                results.cells = [cell for cell in data["cells"] if set(cell) >= _CELL_KEYS]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} holds no results of a suite that this program can go on with ({error}): move it away, "
                    "or give another folder"
                ) from None
        return results

    def save(self) -> None:
        """Write the file, atomically."""
        write_text(self.path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    def to_json(self) -> dict[str, object]:
        kinds = {name: {"title": kind.title, "unit": kind.unit} for name, kind in KINDS.items()}
        return {"format": FORMAT, "version": VERSION, **self.about, "kinds": kinds, "cells": self.cells}

    def find(self, method: str, degradation: Degradation, settings: str | None = None) -> dict | None:
        """The cell of a method and degradation, None where there is none (with those settings)."""
        for cell in self.cells:
            same = cell["severity"] == degradation.severity and cell["kind"] in (degradation.kind, None)
            if cell["method"] == method and same and settings in (None, cell["settings"]):
                return cell
        return None

    def put(self, cell: dict) -> None:
        """Instead of an earlier one of the same method and degradation."""
        same = ("method", "kind", "severity")
        self.cells = [old for old in self.cells if any(old[key] != cell[key] for key in same)] + [cell]

    @property
    def methods(self) -> list[str]:
        """Ours first, odometry last."""
        names = dict.fromkeys(cell["method"] for cell in self.cells)
        return sorted(names, key=lambda name: (name == ODOMETRY, name != OURS))

    def curve(self, method: str, kind: str) -> list[dict]:
        """The cells of a method by severity, from the drive as recorded on."""
        cells = [cell for cell in self.cells if cell["method"] == method and cell["kind"] in (kind, None)]
        return sorted(cells, key=lambda cell: cell["severity"])

    @property
    def scored(self) -> int:
        """Images scored, of the drive as recorded."""
        return max((cell["frames"] for cell in self.cells), default=0)

    @property
    def measured_kinds(self) -> list[str]:
        return [kind for kind in KINDS if any(cell["kind"] == kind for cell in self.cells)]


def run(
    experiment: Experiment,
    methods: Sequence[Method],
    cells: Sequence[Degradation],
    results: Results,
    finished: Callable[[int, int, Degradation, dict], None] = lambda done, of, degradation, cell: None,
    elsewhere: Callable[[Sequence[tuple[int, int]]], Iterator[tuple[int, dict | None]]] | None = None,
) -> None:
    """Measure what the results do not hold yet; after each cell they are saved. Cells of other plans or methods stay.

    Args:
        experiment, methods, cells, results: What is measured, and where it goes.
        finished: Called after each cell, kept or measured, with how many are done.
        elsewhere: Called with the numbers of the degradation and of the method of all that is to be measured; gives the places of
            these in that list and what `measure` makes of them, as they are done. None: `measure`, here.

    Raises:
        InputError: Nothing can be scored.
    """
    if not len(experiment.truth):
        raise InputError(f"{experiment.bag.path} has no ground truth: give --truth, a file, a topic or tf:PARENT:CHILD")
    done, total = 0, len(methods) * len(cells)
    settings, missing = [_fingerprint(experiment, method) for method in methods], []
    for d, degradation in enumerate(cells):
        for m, method in enumerate(methods):
            cell = results.find(method.name, degradation, settings[m])
            if cell is None:
                missing.append((d, m))
                continue
            done += 1
            finished(done, total, degradation, cell)
    here = (measure(experiment, methods[m], cells[d]) for d, m in missing)
    for number, cell in elsewhere(missing) if elsewhere else enumerate(here):
        d, m = missing[number]
        done += 1
        if cell is not None:
            results.put({**cell, "settings": settings[m]})
            results.save()
            finished(done, total, cells[d], cell)
    results.save()


def _fingerprint(drive: Experiment, method: Method) -> str:
    start = None if drive.start is None else drive.start.tolist()
    what = [drive.identity, start, drive.skip_map_frames, drive.seed, drive.clear_s, method.settings]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


# ---- tables


def holds_up_to(curve: Sequence[Mapping[str, object]]) -> str:
    """The greatest severity up to which `HOLDS` of the images are right: "15", "≥ 45" where nothing broke it, "< 5" where the
    least did, "–" where the drive as recorded did or nothing was measured. curve: as of `Results.curve`."""
    if len(curve) < 2 or curve[0]["severity"] != 0:
        return "–"
    held = [cell["recall"][RIGHT] >= HOLDS for cell in curve]
    if all(held):
        return f"≥ {curve[-1]['severity']:g}"
    first = held.index(False)
    return "–" if first == 0 else f"< {curve[1]['severity']:g}" if first == 1 else f"{curve[first - 1]['severity']:g}"


def summary_rows(results: Results) -> list[list[str]]:
    """A row per kind with what each method holds up to; the first row is the head."""
    methods = results.methods
    rows = [["90 % of the images are right up to", *methods]]
    for kind in results.measured_kinds:
        rows.append([f"{KINDS[kind].title} ({KINDS[kind].unit})", *(holds_up_to(results.curve(m, kind)) for m in methods)])
    return rows


def cell_rows(results: Results) -> list[list[str]]:
    """A row per degradation, a column per method; the first row is the head."""
    methods = results.methods
    kinds = results.measured_kinds
    present = {(cell["kind"], cell["severity"]) for cell in results.cells}
    cells = [Degradation(kinds[0] if kinds else next(iter(KINDS)), 0)]
    cells += [Degradation(kind, s) for kind in kinds for _, s in sorted((k, s) for k, s in present if k == kind)]
    rows = [["", *methods]]
    for degradation in cells:
        found = [results.find(method, degradation) for method in methods]
        rows.append([str(degradation), *("–" if cell is None else format_cell(cell) for cell in found)])
    return rows


def format_cell(cell: Mapping[str, object]) -> str:
    """ "100 / 98 / 0.52 cm, 0.03°": right, tracked (both in per cent), median errors; and false tracks where there are any."""
    metres, degrees = cell["translation_error_median_m"], cell["rotation_error_median_deg"]
    errors = "no pose" if metres is None else f"{format_number(100 * metres, 2)} cm, {format_number(degrees, 2)}°"
    tracked = "" if cell["method"] == ODOMETRY else f"{100 * cell['tracked_fraction']:.0f} / "
    false = f", {cell['false_tracked_frames']} false" if cell["false_tracked_frames"] else ""
    return f"{100 * cell['recall'][RIGHT]:.0f} / {tracked}{errors}{false}"


def markdown(results: Results) -> str:
    """Both tables and how to read them."""
    summary, cells = (markdown_table(" | ".join(rows[0]), rows[1:]) for rows in (summary_rows(results), cell_rows(results)))
    return f"{summary}\n{how_to_read(results.scored)}\n\n{cells}\n{HOW_TO_READ_CELLS}\n"


def how_to_read(scored: int) -> str:
    """What stands below the summary."""
    return (
        f"Right: a pose within 0.25 m and 2°, of all {scored} images scored. ≥: held at the worst that was tried; –: already "
        "the drive as recorded has fewer."
    )


HOW_TO_READ_CELLS = (
    "Cells: images right in % / tracked in % / median errors of the poses given; false: images with a pose "
    "given as tracked that is more than 0.5 m or 5° off."
)

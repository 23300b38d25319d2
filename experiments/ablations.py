#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What each part of the method and each choice in its design brings, on the validation scenes, as in docs/evidence/results.md.

Rows are variants: "parts" builds the method up from raw intensities to everything learned, "choices" changes one setting of
what ships at a time, "domains" are networks trained without one kind of images (config/training/leave_one_domain_out).
Columns are small, medium and large priors, and from small ones blurred, dark, occluded and half-size queries; then the
convergence basin.

Every cell is a JSON file of its own and is kept: a run that was stopped continues where it was, and one with other weights or
settings measures only what they change.

    experiments/ablations.py ../shared/data -o out/ablations --rows finer trained --scenes fox --columns large basin
    experiments/ablations.py ../shared/data -o out/ablations --trained best.safetensors --docs docs/evidence/results.md
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import cv2
import numpy as np
from feature_variants import intensity_extractor, reduced_extractor, with_damping

from pixloc_ros.alignment import AlignmentOptions, RobustLoss, damping_of
from pixloc_ros.cli.basin import evenly_spaced
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.basin import BasinOptions, BasinQuery, format_radius, measure_basin
from pixloc_ros.evaluation.degradation import CONDITIONS, KINDS
from pixloc_ros.evaluation.queries import Query
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.weights import Weights
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.files import write_bytes, write_text
from pixloc_ros.io.images import load_image
from pixloc_ros.mapping import Map
from pixloc_ros.report.curves import plot_basins
from pixloc_ros.tracking.frame_aligner import AlignerOptions, FrameAligner
from pixloc_ros.tracking.prior_std import WIDE_PRIOR

SCENES = ("kitti07", "kitti01", "fox")
"""Validation scenes. tum_fr1_rpy is training data: name it to have it too, and say so next to its figures."""
QUERY_COLUMNS = {size: (size, "") for size in common.PRIOR_SIZES} | {
    change: ("small", change) for change in ("blurred", "dark", "occluded", "half")
}
"""Size of the priors, and what happens to the images."""
BASIN = "basin"
LIMITS = (0.5, 0.01)
BASIN_LINES = ("intensity", "robust", "stride_2", "finer", "trained", "damping")
"""Rows whose basins are drawn."""
PRIORS = {"wide": dict.fromkeys(common.PRIOR_SIZES, WIDE_PRIOR), "own": common.PRIOR_SIZES, "none": {}}
"""Nothing is said of them; what they were drawn with; they are only where the alignment starts."""
DOMAINS = ("indoor", "outdoor", "driving")


@dataclass(frozen=True)
class Row:
    """A variant.

    Attributes:
        title: For the tables.
        features: "intensity", or which weights: "pretrained", "trained", "shipped", or a domain that they were trained without.
        options: Of the localizer.
        levels: So many are used (0: all); see `reduced_extractor`.
        confidences: Whether they are used.
        damping: Whether the learned one is used.
        weights: Whether the learned weights of levels and prior are used, instead of the options' constants.
        factor: Of the damping at every level and degree of freedom, in place of a learned one; 0: none.
        own_size: Whether queries keep their focal length, instead of being scaled to the map's.
        prior: How far off the priors are said to be, in `PRIORS`.
    """

    title: str
    features: str = "shipped"
    options: AlignerOptions = AlignerOptions()
    levels: int = 0
    confidences: bool = True
    damping: bool = True
    weights: bool = True
    factor: float = 0.0
    own_size: bool = False
    prior: str = "wide"


def _alignment(**changes: object) -> AlignerOptions:
    return AlignerOptions(alignment=AlignmentOptions(**changes))


def _loss(kind: str, scale: float) -> AlignerOptions:
    return _alignment(loss=RobustLoss(kind, scale))


_part = functools.partial(Row, prior="none")
GROUPS: dict[str, dict[str, Row]] = {
    "parts": {
        "intensity": _part("raw intensities (5x5 patches, strides 16 to 1)", "intensity", _loss("geman_mcclure", 0.25)),
        "robust": _part("pretrained features, frozen, without the exact levels", "pretrained", levels=3),
        "stride_2": _part("+ exact level of stride 2", "pretrained", levels=4),
        "finer": _part("+ exact level of stride 1: frozen, as a whole", "pretrained", weights=False),
        "trained": _part("+ trained features", "trained", confidences=False, damping=False, weights=False),
        "confidences": _part("+ confidences", "trained", damping=False, weights=False),
        "damping": _part("+ learned damping", "trained", weights=False),
        "prior": Row("+ prior factor", "trained", weights=False),
    },
    "choices": {
        "shipped": Row("as it ships"),
        "constants": Row("constants instead of learned weights of levels and prior", weights=False),
        "cauchy_0.01": Row("constants; loss: Cauchy, scale 0.01 (the paper's)", options=_loss("cauchy", 0.01), weights=False),
        "cauchy_0.05": Row("constants; loss: Cauchy, scale 0.05", options=_loss("cauchy", 0.05), weights=False),
        "squared": Row("constants; loss: squared", options=_loss("squared", 0.05), weights=False),
        "paper": Row("optimizer: the paper's fixed damping, untrained (λ = 0.32)", options=_alignment(strategy="paper")),
        "paper_0.01": Row("optimizer: the paper's, λ = 0.01 by hand", options=_alignment(strategy="paper"), factor=1e-2),
        "no_rim": Row("half a cell along the query's border not used", options=_alignment(border_cells=0.5)),
        "stop_0.005": Row("levels end ten times later (0.005 cells)", options=_alignment(stop_cells=0.005)),
        "chosen_once": Row("points are chosen once", options=AlignerOptions(reselect_share=math.inf)),
        "points_512": Row("512 points instead of 1024", options=AlignerOptions(max_points=512)),
        "own_size": Row("queries at their own focal length", own_size=True),
        "prior_own": Row("standard deviations of the priors are given", prior="own"),
        "prior_none": Row("prior is only where the alignment starts", prior="none"),
    },
    "domains": {
        "not_trained": Row("pretrained features, frozen", "pretrained"),
        "without_indoor": Row("trained without indoor images", "indoor"),
        "without_outdoor": Row("trained without outdoor images", "outdoor"),
        "without_driving": Row("trained without streets and vehicles", "driving"),
        "all_domains": Row("trained on all", "trained"),
    },
}


def main() -> int:
    parser = common.parser(__doc__, "out/ablations", SCENES)
    columns, add = [*QUERY_COLUMNS, BASIN], parser.add_argument
    add("--group", nargs="+", choices=list(GROUPS), default=["parts", "choices"])
    names = "; ".join(f"{group}: {' '.join(rows)}" for group, rows in GROUPS.items())
    known = {name for rows in GROUPS.values() for name in rows}
    add("--rows", nargs="+", choices=known, metavar="ROW", help=f"measure these only; {names}")
    add("--columns", nargs="+", choices=columns, default=columns)
    frozen = "the frozen encoder (import_xfeat_weights.py -o FILE; default: --weights, if it is)"
    add("--pretrained", metavar="FILE", help=frozen)
    add("--trained", metavar="FILE", help="trained weights (default: --weights, if they are)")
    add("--domains", type=Path, metavar="DIR", help="folder of the runs indoor/, outdoor/, driving/")
    add("--max-queries", type=int, default=36, metavar="N", help="of a scene, evenly spaced (default 36)")
    add("--basin-queries", type=int, default=16, metavar="N", help="of those, for the basin (default 16)")
    args = parser.parse_args()
    study, scenes = Study(args), common.scenes_of(args)
    results = {group: {scene.name: study.measure(group, scene) for scene in scenes} for group in args.group}
    tables = {f"ablations {group}": tables_of(group, results[group], scenes) for group in args.group}
    common.save(args, "ablations", results, tables)
    for scene, rows in results.get("parts", {}).items():
        basins = [rows[name][BASIN] for name in BASIN_LINES if BASIN in rows.get(name, {})]
        if basins:
            write_bytes(args.output / f"basin_{scene}.png", plot_basins(basins))
    return common.finish(args, tables)


class Study:
    """The cells: the networks that rows name, each loaded once, and what is measured with them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        shipped_is_trained = "start" in Weights.open(args.weights).card
        self.files = {
            "shipped": args.weights,
            "pretrained": args.pretrained or (None if shipped_is_trained else args.weights),
            "trained": args.trained or (args.weights if shipped_is_trained else None),
        }
        for domain in DOMAINS if args.domains else ():
            best = args.domains / domain / "best.safetensors"
            self.files[domain] = best if best.is_file() else None
        self._load = functools.cache(load_extractor)

    def extractor(self, row: Row, parts: bool) -> Extractor:
        """Of a row. Raises `InputError` where there is none."""
        if row.features == "intensity":
            return intensity_extractor()
        if self.files.get(row.features) is None:
            what = f"trained without {row.features} images" if row.features in DOMAINS else f"'{row.features}'"
            raise InputError(f"no weights {what}: give --{'domains' if row.features in DOMAINS else row.features}")
        whole = self._load(self.files[row.features])
        if parts and row.features == "trained":
            if row.confidences and getattr(whole.network, "confidence", None) is None:
                raise InputError("the weights have no confidences")
            if row.damping and damping_of(whole) is None:
                raise InputError("the weights have no learned damping")
        reduced = reduced_extractor(whole, row.levels, row.confidences, row.damping, row.weights)
        return with_damping(reduced, row.factor) if row.factor else reduced

    def measure(self, group: str, scene: common.Scene) -> dict[str, dict]:
        """Figures of a group's rows in a scene by column; cells that are not there yet are measured, if they are asked for."""
        queries, results = evenly_spaced(scene.queries, self.args.max_queries), {}
        for name, row in GROUPS[group].items():
            try:
                extractor = self.extractor(row, group == "parts")
            except InputError as error:
                if name in (self.args.rows or GROUPS[group]):
                    print(f"{scene.name}: {name}: skipped, {error}", file=sys.stderr)
                continue
            found, measured, localizer = {}, [], None
            for column in (*QUERY_COLUMNS, BASIN):
                path = self.args.output / "cells" / scene.name / name / f"{column}.json"
                settings = settings_of(row, extractor, len(queries))
                cell = json.loads(path.read_text()) if path.is_file() else {}
                if cell.get("settings") != settings:
                    if column not in self.args.columns or name not in (self.args.rows or GROUPS[group]):
                        continue
                    localizer = localizer or self.localizer(row, extractor, scene)
                    with show_progress(f"{scene.name}: {name}: {column}") as progress:
                        if column == BASIN:
                            near = [basin_query(scene, query) for query in evenly_spaced(queries, self.args.basin_queries)]
                            cell = measure_basin(localizer, near, BasinOptions(), row.title, progress).to_json()
                        else:
                            cell = localize(localizer, row, scene, queries, column, progress)
                    write_text(path, json.dumps(cell | {"settings": settings}))
                    measured.append(column)
                found[column] = cell
            if measured:
                print(f"{scene.name}: {name}: {', '.join(measured)}", file=sys.stderr, flush=True)
            if found:
                results[name] = found
        return results

    def localizer(self, row: Row, extractor: Extractor, scene: common.Scene) -> FrameAligner:
        path = self.args.output / "maps" / f"{scene.name}_{extractor.fingerprint.replace(' ', '_')}.pixmap"
        localizer = FrameAligner(Map.open(path) if path.is_file() else scene.build_map(extractor, path), extractor, row.options)
        if row.own_size:
            localizer.focal_px = None
        return localizer


def settings_of(row: Row, extractor: Extractor, queries: int) -> dict[str, object]:
    """What a cell depends on, as JSON gives it back; a cell with others is measured again."""
    values = dataclasses.asdict(row) | {"extractor": extractor.fingerprint, "queries": queries}
    if learned := extractor.companions:
        state = b"".join(name.encode() + learned[name].numpy().tobytes() for name in sorted(learned))
        values["learned"] = hashlib.sha256(state).hexdigest()[:16]
    return json.loads(json.dumps(values))


def changed(query: Query, change: str) -> tuple[np.ndarray, Camera]:
    """Image and camera of a query, made worse: "" for not at all, "half" for half the size, or a condition."""
    image, camera = load_image(query.path), query.camera
    if change == "half":
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return image, camera.scaled(0.5, 0.5, image.shape[1], image.shape[0])
    if change:
        worse = CONDITIONS[change]
        image = KINDS[worse.kind].image(image, worse.severity, np.random.default_rng(zlib.crc32(query.name.encode())))
    return image, camera


def localize(
    localizer: FrameAligner, row: Row, scene: common.Scene, queries: Sequence[Query], column: str, progress: Callable[..., None]
) -> dict[str, object]:
    """Medians, in which a missing pose is infinite, the share within the limits, and mean steps of the optimizer."""
    (size, change), errors, steps = QUERY_COLUMNS[column], [], []
    priors = scene.priors(size)
    for k, query in enumerate(queries):
        progress(k, len(queries))
        found = localizer.localize(*changed(query, change), se3.inverse(priors[query.name]), PRIORS[row.prior].get(size))
        steps.append(found.iterations)
        errors.append(scene.error(query.name, se3.inverse(found.map_from_camera) if found.success else None))
    errors = np.array(errors)
    figures = {"queries": len(errors), "within": common.recall(errors, *LIMITS), **common.medians(errors)}
    return figures | {"steps": float(np.mean(steps))}


def basin_query(scene: common.Scene, query: Query) -> BasinQuery:
    truth, depth = se3.inverse(scene.truth[query.name]), scene.depths[query.name]
    return BasinQuery(query.name, functools.partial(load_image, query.path), query.camera, truth, depth)


# ---- tables


def tables_of(group: str, results: dict[str, dict], scenes: Sequence[common.Scene]) -> str:
    """Markdown: one table for each scene."""
    parts, choices = [], group == "choices"
    for scene in (scene for scene in scenes if results[scene.name]):
        unit, rows = "cm" if scene.metric else "% depth", results[scene.name]
        counts = {cell["queries"] for cells in rows.values() for column, cell in cells.items() if column != BASIN}
        head = (
            f"variant | small: deg / {unit} / R | medium | large | blurred: R (deg / {unit}) | dark | occluded | half size "
            "| basin 90 % (50 %): turned | shifted | both"
        )
        lines = ((GROUPS[group][name].title, *cells_of(columns, scene.metric, choices)) for name, columns in rows.items())
        table = markdown_table(head + " | steps" * choices, lines)
        parts.append(f"### {scene.name}: {max(counts, default=0)} queries\n\n{table}")
    return "\n".join(parts)


def cells_of(columns: dict[str, dict], metric: bool, steps: bool) -> list[str]:
    """Accuracy, robustness and basin of one row."""
    cells = []
    for name in QUERY_COLUMNS:
        if (column := columns.get(name)) is None:
            cells.append("–")
            continue
        share, errors = f"{100 * column['within']:.0f}", "lost / lost"
        if column["median_deg"] is not None:
            distance = f"{100 * column['median_distance']:.2f}" if metric else f"{100 * column['median_depth']:.3f}"
            errors = f"{column['median_deg']:.3f} / {distance}"
        cells.append(f"{errors} / {share}" if name in common.PRIOR_SIZES else f"{share} ({errors})")
    for kind in ("rotation", "translation", "together"):
        radii = columns[BASIN]["curves"][kind]["radius"] if BASIN in columns else None
        cells.append(f"{format_radius(radii['90%'], kind)} ({format_radius(radii['50%'], kind)})" if radii else "–")
    if steps:
        cells.append(" / ".join(f"{columns[c]['steps']:.0f}" if c in columns else "–" for c in ("small", "large")))
    return cells


if __name__ == "__main__":
    run_script(main)

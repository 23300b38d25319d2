#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What each part of the method and each choice in its design brings, on the validation scenes, as in docs/evidence/results.md.

Rows are variants: "parts" builds the method up from raw intensities to everything learned, "choices" changes one setting of
what ships at a time, "domains" are networks trained without one kind of images (config/training/leave_one_domain_out).
Columns are small, medium and large priors, and from small ones blurred, dark, occluded and half-size queries; then the
convergence basin. Images, priors and their names come from the benchmark harness's export, so that rivals measured by
compare_rivals.py stand in the same tables.

Every cell is a JSON file of its own and is kept: a run that was stopped continues where it was, and one with other weights or
settings measures only what they change. Ends with ablations.json, ablations.md, and, with --docs, the tables in that page.

    experiments/ablations.py ../shared/data -o out/ablations --python ~/rivals/bin/python --rivals out/rivals
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch
from feature_variants import intensity_extractor, reduced_extractor
from harness import LEVELS, RUNS, Export, Harness

from pixloc_ros.alignment import AlignmentOptions, RobustLoss, damping_of
from pixloc_ros.cli.basin import evenly_spaced
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.basin import BasinOptions, BasinQuery, format_radius, measure_basin
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.weights import Weights
from pixloc_ros.geometry import se3
from pixloc_ros.io.files import write_bytes, write_text
from pixloc_ros.mapping import Map
from pixloc_ros.report.curves import plot_basins
from pixloc_ros.tracking.frame_aligner import AlignerOptions, FrameAligner

SCENES = ("kitti07", "kitti01", "fox")
"""Validation scenes. tum_fr1_rpy is training data: name it to have it too, and say so next to its figures."""
QUERY_COLUMNS = dict(zip((*LEVELS, "blurred", "dark", "occluded", "half"), RUNS))
"""The harness's variant and number of its set of priors."""
BASIN = "basin"
PRIOR_SIZES = ((2.0, 0.03), (5.0, 0.10), (10.0, 0.15))
"""Of the harness's priors: degrees, share of the depth."""
LIMITS = (0.5, 0.01)
WITHOUT_EFFECT = ("options.covariance_scale",)
"""Settings that no pose depends on."""
BASIN_LINES = {"parts": ("intensity", "robust", "stride_2", "finer", "trained", "damping"), "choices": (), "domains": ()}
"""Rows whose basins are drawn."""
DOMAINS = ("indoor", "outdoor", "driving")


@dataclass(frozen=True)
class Row:
    """A variant.

    Attributes:
        name: For the command line and the files.
        title: For the tables.
        features: "intensity", or which weights: "pretrained", "trained", "shipped", or a domain that they were trained without.
        options: Of the localizer.
        levels: So many are used (0: all); see `reduced_extractor`, also for the next three.
        confidences: Whether they are used.
        damping: Whether the learned one is used.
        full_size: Whether robust levels come from the full image.
        own_size: Whether queries keep their focal length, instead of being scaled to the map's.
        prior_factor: Whether the prior takes part in the optimization, with the covariance it was drawn with.
    """

    name: str
    title: str
    features: str
    options: AlignerOptions = AlignerOptions()
    levels: int = 0
    confidences: bool = True
    damping: bool = True
    full_size: bool = False
    own_size: bool = False
    prior_factor: bool = False


def _alignment(**changes: object) -> AlignerOptions:
    return AlignerOptions(alignment=AlignmentOptions(**changes))


def _loss(kind: str, scale: float) -> AlignerOptions:
    return _alignment(loss=RobustLoss(kind, scale))


GROUPS = {
    "parts": (
        Row("intensity", "raw intensities (5x5 patches, strides 16 to 1)", "intensity", _loss("geman_mcclure", 0.25)),
        Row("robust", "pretrained features, frozen, without the exact levels", "pretrained", levels=3),
        Row("stride_2", "+ exact level of stride 2", "pretrained", levels=4),
        Row("finer", "+ exact level of stride 1: frozen, as a whole", "pretrained"),
        Row("trained", "+ trained features", "trained", confidences=False, damping=False),
        Row("confidences", "+ confidences", "trained", damping=False),
        Row("damping", "+ learned damping", "trained"),
        Row("prior", "+ prior factor", "trained", prior_factor=True),
    ),
    "choices": (
        Row("shipped", "as it ships", "shipped"),
        Row("cauchy_0.01", "loss: Cauchy, scale 0.01 (the paper's)", "shipped", _loss("cauchy", 0.01)),
        Row("cauchy_0.05", "loss: Cauchy, scale 0.05", "shipped", _loss("cauchy", 0.05)),
        Row("squared", "loss: squared", "shipped", _loss("squared", 0.05)),
        Row("paper", "optimizer: the paper's fixed damping", "shipped", _alignment(strategy="paper")),
        Row("no_rim", "half a cell along the query's border not used", "shipped", _alignment(border_cells=0.5)),
        Row("stop_0.005", "levels end ten times later (0.005 cells)", "shipped", _alignment(stop_cells=0.005)),
        Row("finest_always", "the finest level's pose is always used", "shipped", _alignment(finest_share=0.0)),
        Row("chosen_once", "points are chosen once", "shipped", AlignerOptions(reselect_share=math.inf)),
        Row("points_512", "512 points instead of 1024", "shipped", AlignerOptions(max_points=512)),
        Row("full_size", "robust levels from the full image", "shipped", full_size=True),
        Row("own_size", "queries at their own focal length", "shipped", own_size=True),
        Row("prior_factor", "prior as a factor", "shipped", prior_factor=True),
    ),
    "domains": (
        Row("not_trained", "pretrained features, frozen", "pretrained"),
        Row("without_indoor", "trained without indoor images", "indoor"),
        Row("without_outdoor", "trained without outdoor images", "outdoor"),
        Row("without_driving", "trained without streets and vehicles", "driving"),
        Row("all_domains", "trained on all", "trained"),
    ),
}


def main() -> int:
    parser = common.parser(__doc__, "out/ablations", SCENES, weights=False)
    common.add_rival_arguments(parser)
    columns, add = [*QUERY_COLUMNS, BASIN], parser.add_argument
    names = {group: [row.name for row in rows] for group, rows in GROUPS.items()}
    add("--group", nargs="+", choices=list(GROUPS), default=["parts", "choices"])
    add("--rows", nargs="+", metavar="ROW", help="; ".join(f"{group}: {' '.join(rows)}" for group, rows in names.items()))
    add("--columns", nargs="+", choices=columns, default=columns)
    add(
        "--pretrained",
        metavar="FILE",
        help="the frozen encoder (import_xfeat_weights.py -o FILE; default: the shipped, if it is)",
    )
    add("--trained", metavar="FILE", help="trained weights (default: the shipped ones, if they are)")
    add("--domains", type=Path, metavar="DIR", help="folder of the runs indoor/, outdoor/, driving/")
    add("--shipped", default="compact", metavar="NAME|FILE", help="weights of the choices (default compact)")
    add("--max-queries", type=int, default=36, metavar="N", help="of a scene, evenly spaced; 0: all (default 36)")
    add("--basin-queries", type=int, default=16, metavar="N", help="of those, for the basin (default 16)")
    add("--rivals", type=Path, metavar="DIR", help="results of compare_rivals.py (its -o), with the same --max-queries")
    add("--tables-only", action="store_true", help="measure nothing, print what is there")
    args = parser.parse_args()
    unknown = set(args.rows or ()) - {name for group in names.values() for name in group}
    if unknown:
        raise InputError(f"no row '{sorted(unknown)[0]}': see --help for their names")
    study = Study(args)
    exports = [Export((args.rivals or args.output) / "export" / scene.name, scene) for scene in common.scenes_of(args)]
    for export in () if args.tables_only else exports:
        Harness(args, export.scene, args.max_queries, args.output / f"harness_{export.scene.name}.json").export(export)
        for row in (row for group in args.group for row in GROUPS[group]):
            if not args.rows or row.name in args.rows:
                study.measure(row, export)
    results = {
        group: {export.scene.name: {row.name: study.collect(row, export) for row in GROUPS[group]} for export in exports}
        for group in args.group
    }
    tables = {f"ablations {group}": tables_of(group, results[group], exports, args.rivals) for group in args.group}
    common.save(args, "ablations", results, tables)
    for group in args.group:
        for scene, rows in results[group].items():
            basins = [rows[name][BASIN] for name in BASIN_LINES[group] if BASIN in rows.get(name, {})]
            if basins:
                write_bytes(args.output / f"basin_{scene}.png", plot_basins(basins))
    return common.finish(args, tables)


class Study:
    """The cells: the networks that rows name, each loaded once, and what is measured with them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        shipped_is_trained = "start" in Weights.open(args.shipped).card
        self.files = {
            "shipped": args.shipped,
            "pretrained": args.pretrained or (None if shipped_is_trained else args.shipped),
            "trained": args.trained or (args.shipped if shipped_is_trained else None),
        }
        for domain in DOMAINS if args.domains else ():
            best = args.domains / domain / "best.safetensors"
            self.files[domain] = best if best.is_file() else None
        self._load = functools.cache(load_extractor)

    def extractor(self, row: Row) -> Extractor | str:
        """Of a row, or why there is none."""
        if row.features == "intensity":
            return intensity_extractor()
        if self.files.get(row.features) is None:
            what = f"trained without {row.features} images" if row.features in DOMAINS else f"'{row.features}'"
            return f"no weights {what}: give --{'domains' if row.features in DOMAINS else row.features}"
        whole = self._load(self.files[row.features])
        if row in GROUPS["parts"] and row.features == "trained":
            if row.confidences and getattr(whole.network, "confidence", None) is None:
                return "the weights have no confidences"
            if row.damping and damping_of(whole) is None:
                return "the weights have no learned damping"
        return reduced_extractor(whole, row.levels, row.confidences, row.full_size, row.damping)

    def measure(self, row: Row, export: Export) -> None:
        """The cells of a row in a scene that are not there yet."""
        extractor, scene = self.extractor(row), export.scene.name
        if isinstance(extractor, str):
            print(f"{scene}: {row.name}: skipped, {extractor}", file=sys.stderr)
            return
        missing = [column for column in self.args.columns if self.cell(row, column, extractor, export) is None]
        if not missing:
            return
        path = self.args.output / "maps" / f"{scene}_{extractor.fingerprint.replace(' ', '_')}.pixmap"
        map_ = Map.open(path) if path.is_file() else export.scene.build_map(extractor, path)
        localizer = FrameAligner(map_, extractor, row.options)
        if row.own_size:
            localizer.focal_px = None
        for column in missing:
            with show_progress(f"{scene}: {row.name}: {column}") as progress:
                if column == BASIN:
                    queries = basin_queries(export, self.args.basin_queries)
                    cell = {"basin": measure_basin(localizer, queries, BasinOptions(), row.title, progress).to_json()}
                else:
                    cell = localize(localizer, row, export, *QUERY_COLUMNS[column], progress)
            cell["settings"] = settings_of(row, column, extractor, export)
            write_text(self.cell_path(row, column, export), json.dumps(cell))
        print(f"{scene}: {row.name}: {', '.join(missing)}", file=sys.stderr, flush=True)

    def collect(self, row: Row, export: Export) -> dict[str, object]:
        """The figures of a row in a scene, of the cells that are there."""
        extractor = self.extractor(row)
        if isinstance(extractor, str) or not export.there:
            return {}
        cells = {column: self.cell(row, column, extractor, export) for column in (*QUERY_COLUMNS, BASIN)}
        return {
            column: cell["basin"] if column == BASIN else {**summarize(cell["errors"]), "steps": cell["steps"]}
            for column, cell in cells.items()
            if cell is not None
        }

    def cell(self, row: Row, column: str, extractor: Extractor, export: Export) -> dict[str, object] | None:
        return read_cell(self.cell_path(row, column, export), settings_of(row, column, extractor, export))

    def cell_path(self, row: Row, column: str, export: Export) -> Path:
        return self.args.output / "cells" / export.scene.name / row.name / f"{column}.json"


def localize(
    localizer: FrameAligner, row: Row, export: Export, variant: str, level: int, progress: Callable[..., None]
) -> dict[str, object]:
    """errors: per query [degrees, distance, share of the depth], None where there is no pose. steps: of the optimizer, mean."""
    camera, errors, steps = export.camera(variant), [], []
    for k, (name, prior, truth) in enumerate(zip(export.names, export.priors(level), export.truth)):
        progress(k, len(export.names))
        depth = export.scene.depths[name]
        covariance = prior_covariance(level, depth) if row.prior_factor else None
        found = localizer.localize(export.image(variant, name), camera, prior, covariance)
        steps.append(found.iterations)
        distance, angle = (float(v) for v in se3.pose_difference(truth, found.map_from_camera))
        errors.append([math.degrees(angle), distance, distance / depth] if found.success else None)
    return {"errors": errors, "steps": float(np.mean(steps))}


def prior_covariance(level: int, depth: float) -> torch.Tensor:
    """[6, 6] of priors that are wrong by a fixed amount in a random direction."""
    degrees, share = PRIOR_SIZES[level]
    return torch.diag(torch.tensor([(share * depth) ** 2] * 3 + [math.radians(degrees) ** 2] * 3, dtype=torch.float64)) / 3


def basin_queries(export: Export, count: int) -> list[BasinQuery]:
    camera = export.camera("clean")
    every = [
        BasinQuery(name, functools.partial(export.image, "clean", name), camera, truth, export.scene.depths[name])
        for name, truth in zip(export.names, export.truth)
    ]
    return evenly_spaced(every, count)


# ---- cells


def settings_of(row: Row, column: str, extractor: Extractor, export: Export) -> dict[str, str]:
    """What a cell depends on; a cell with others is measured again."""
    values = {k: v for k, v in dataclasses.asdict(row).items() if k not in ("name", "title", "features")}
    if damping := damping_of(extractor):
        state = b"".join(value.numpy().tobytes() for value in damping.state_dict().values())
        values["damping"] = hashlib.sha256(state).hexdigest()[:16]
    settings = flat({**values, "extractor": extractor.fingerprint, "column": column, "queries": len(export.names)})
    return {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}


def flat(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of names with dots, values as text."""
    result = {}
    for key, value in values.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)})
    return result


def read_cell(path: Path, settings: dict[str, str]) -> dict[str, object] | None:
    """A cell, None where it is not there or was measured with other settings. A setting that did not exist when the cell was
    measured counts as its default."""
    if not path.is_file():
        return None
    cell = json.loads(path.read_text())
    measured = {key: value for key, value in cell["settings"].items() if key not in WITHOUT_EFFECT}
    defaults = flat(dataclasses.asdict(Row("", "", "")))
    return cell if {**{k: v for k, v in defaults.items() if k in settings}, **measured} == settings else None


def summarize(errors: list[list[float] | None]) -> dict[str, float | int | None]:
    """Medians, in which a missing pose is infinite, and the share within the limits."""
    values = np.array([[math.inf] * 3 if e is None else e for e in errors])
    return {"queries": len(errors), "within": common.recall(values, *LIMITS), **common.medians(values)}


# ---- tables


def rival_rows(scene: str, rivals: Path | None) -> dict[str, dict]:
    """What compare_rivals.py has of a scene, in the form of `Study.collect`, by peer."""
    path = None if rivals is None else rivals / f"{scene}.json"
    if path is None or not path.is_file():
        return {}
    keys = {"median_deg": "med_deg", "median_distance": "med_trans", "median_depth": "med_rel", "queries": "n"}
    rows: dict[str, dict] = {}
    for peer, entry in json.loads(path.read_text())["peers"].items():
        for column, (variant, level) in QUERY_COLUMNS.items():
            s = entry.get("summary", {}).get(f"{variant}@{level}")
            if s and peer != "pixloc_ros":
                figures = {ours: s[theirs] for ours, theirs in keys.items()}
                rows.setdefault(f"*{peer}*", {})[column] = figures | {"within": s["recall"][1]}
    return rows


def tables_of(group: str, results: dict[str, dict], exports: list[Export], rivals: Path | None) -> str:
    """Markdown: one table for each scene."""
    parts = []
    for scene in (export.scene for export in exports):
        rows = {row.title: results[scene.name][row.name] for row in GROUPS[group] if results[scene.name][row.name]}
        rows |= rival_rows(scene.name, rivals) if group == "parts" else {}
        if not rows:
            continue
        counts = {entry["queries"] for columns in rows.values() for name, entry in columns.items() if name in QUERY_COLUMNS}
        if len(counts) > 1:
            raise InputError(
                f"{scene.name}: rows of {' and '.join(map(str, sorted(counts)))} queries do not belong in one table: measure the "
                "rivals with the same --max-queries"
            )
        unit = "cm" if scene.metric else "% depth"
        head = (
            f"variant | small: deg / {unit} / R | medium | large | blurred: R (deg / {unit}) | dark | occluded | half size "
            "| basin 90 % (50 %): turned | shifted | both"
        )
        choices = group == "choices"
        table = markdown_table(
            head + " | steps" * choices, ((title, *cells_of(row, scene.metric, choices)) for title, row in rows.items())
        )
        parts.append(f"### {scene.name}: {counts.pop() if counts else 0} queries\n\n{table}")
    return "\n".join(parts)


def cells_of(columns: dict[str, dict], metric: bool, steps: bool) -> list[str]:
    """Accuracy, robustness and basin of one row."""
    cells = []
    for name in QUERY_COLUMNS:
        column = columns.get(name)
        if column is None:
            cells.append("–")
        else:
            share, errors = f"{100 * column['within']:.0f}", errors_of(column, metric)
            cells.append(f"{errors} / {share}" if name in LEVELS else f"{share} ({errors})")
    for kind in ("rotation", "translation", "together"):
        radii = columns[BASIN]["curves"][kind]["radius"] if BASIN in columns else None
        cells.append(f"{format_radius(radii['90%'], kind)} ({format_radius(radii['50%'], kind)})" if radii else "–")
    if steps:
        cells.append(" / ".join(f"{columns[c]['steps']:.0f}" if c in columns else "–" for c in ("small", "large")))
    return cells


def errors_of(column: dict, metric: bool) -> str:
    if column["median_deg"] is None:
        return "lost / lost"
    distance = f"{100 * column['median_distance']:.2f}" if metric else f"{100 * column['median_depth']:.3f}"
    return f"{column['median_deg']:.3f} / {distance}"


if __name__ == "__main__":
    run_script(main)

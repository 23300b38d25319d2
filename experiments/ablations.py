#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What each part of the method and each choice in its design brings, on the validation scenes, as in docs/evidence/results.md.

Rows are variants: "parts" builds the method up from raw intensities to everything learned, "choices" changes one setting of
what ships at a time, "domains" are networks trained without one kind of images (config/training/leave_one_domain_out).
Columns are small, medium and large priors, and from small ones blurred, dark, occluded and half-size queries; then the
convergence basin. Images, priors and their names come from the benchmark harness's export, so that rivals measured by
experiments/compare_rivals.py stand in the same tables.

Every cell is a JSON file of its own and is kept: a run that was killed goes on where it was, and one with other weights or
settings measures only what they change. Ends with ablations.json, ablations.md, and, with --docs, the tables in that file.

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
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compare_rivals import LEVELS, export_camera, png_name, query_names, world_from_map
from feature_variants import intensity_extractor, reduced_extractor

from pixloc_ros.alignment import AlignmentOptions, RobustLoss, damping_of
from pixloc_ros.cli.basin import evenly_spaced
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.basin import BasinOptions, BasinQuery, format_radius, measure_basin
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.weights import Weights
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.files import write_bytes, write_text
from pixloc_ros.io.images import load_image
from pixloc_ros.io.trajectory import read_tum
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.report.curves import plot_basins
from pixloc_ros.tracking.frame_aligner import FrameAligner, LocalizerOptions

SCENES = ("kitti07", "kitti01", "fox")
"""Validation scenes. tum_fr1_rpy is training data: name it to have it too, and say so beside its figures."""
QUERY_COLUMNS = {
    "small": ("clean", 0),
    "medium": ("clean", 1),
    "large": ("clean", 2),
    "blurred": ("blur", 0),
    "dark": ("lowlight", 0),
    "occluded": ("occlusion", 0),
    "half": ("halfres", 0),
}
"""The harness's variant and number of its set of priors."""
BASIN = "basin"
PRIOR_SIZES = ((2.0, 0.03), (5.0, 0.10), (10.0, 0.15))
"""Of the harness's priors: degrees, share of the depth."""
LIMITS = (0.5, 0.01)
WITHOUT_EFFECT = ("options.covariance_scale",)
"""Settings that no pose depends on."""
BASIN_LINES = {"parts": ("intensity", "robust", "stride_2", "finer", "trained", "damping"), "choices": (), "domains": ()}
"""Rows whose basins are drawn."""


@dataclass(frozen=True)
class Row:
    """A variant. features: "intensity", or which weights: "pretrained", "trained", "shipped", or a domain that they were
    trained without. levels, confidences, damping, full_size: what of the features is used (see `reduced_extractor`). own_size:
    queries are not brought to the map's focal length. prior_factor: the prior takes part in the optimisation, with the covariance
    it was drawn with."""

    name: str
    title: str
    features: str
    options: LocalizerOptions = LocalizerOptions()
    levels: int = 0
    confidences: bool = True
    damping: bool = True
    full_size: bool = False
    own_size: bool = False
    prior_factor: bool = False


def _alignment(**changes: object) -> LocalizerOptions:
    return LocalizerOptions(alignment=AlignmentOptions(**changes))


def _loss(kind: str, scale: float) -> LocalizerOptions:
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
        Row("finest_always", "the finest level's pose always stands", "shipped", _alignment(finest_share=0.0)),
        Row("chosen_once", "points are chosen once", "shipped", LocalizerOptions(reselect_share=math.inf)),
        Row("points_512", "512 points instead of 1024", "shipped", LocalizerOptions(max_points=512)),
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
DOMAINS = ("indoor", "outdoor", "driving")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/ablations"), help="folder of maps, cells and tables")
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), help=f"default: {' '.join(SCENES)}")
    parser.add_argument("--group", nargs="+", choices=list(GROUPS), default=["parts", "choices"])
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="; ".join(f"{group}: {' '.join(row.name for row in rows)}" for group, rows in GROUPS.items()),
    )
    parser.add_argument("--columns", nargs="+", choices=[*QUERY_COLUMNS, BASIN], default=[*QUERY_COLUMNS, BASIN])
    parser.add_argument(
        "--pretrained",
        metavar="FILE",
        help="the frozen encoder (experiments/import_xfeat_weights.py -o FILE; default: the shipped weights where they are that)",
    )
    parser.add_argument("--trained", metavar="FILE", help="trained weights (default: the shipped ones where they are)")
    parser.add_argument("--domains", type=Path, metavar="DIR", help="folder of the runs indoor/, outdoor/, driving/")
    parser.add_argument("--shipped", default="compact", metavar="NAME|FILE", help="weights of the choices (default compact)")
    parser.add_argument("--max-queries", type=int, default=36, help="of a scene, evenly spaced; 0: all (default 36)")
    parser.add_argument("--basin-queries", type=int, default=16, help="of those, for the basin (default 16)")
    parser.add_argument("--rivals", type=Path, help="results of compare_rivals.py (its -o), made with the same --max-queries")
    parser.add_argument("--harness", type=Path, help="the harness (default: DATA/../tools/peers/run.py)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the harness's packages")
    parser.add_argument("--docs", type=Path, help="put the tables between the markers in this file")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing, print what is there")
    args = parser.parse_args()
    rows = {group: [row for row in GROUPS[group] if not args.rows or row.name in args.rows] for group in args.group}
    unknown = set(args.rows or ()) - {row.name for group in GROUPS.values() for row in group}
    if unknown:
        raise InputError(f"no row '{sorted(unknown)[0]}': see --help for their names")
    weights = Networks(args)
    scenes = [Scene(args.data / name, args) for name in args.scenes]
    if not args.tables_only:
        for scene in scenes:
            scene.need_export(args)
            for row in (row for group in rows.values() for row in group):
                measure_row(row, scene, weights, args)
    results = {
        group: {scene.name: {row.name: collect(row, scene, weights, args.output) for row in GROUPS[group]} for scene in scenes}
        for group in args.group
    }
    write_text(args.output / "ablations.json", json.dumps(results, indent=1) + "\n")
    tables = {group: tables_of(group, results[group], scenes, args) for group in args.group}
    write_text(args.output / "ablations.md", "\n".join(tables.values()))
    for group in args.group:
        plots_of(group, results[group], args.output)
        if args.docs:
            write_text(args.docs, between_markers(args.docs.read_text(), f"ablations {group}", tables[group]))
    print("\n".join(tables.values()))
    return 0


class Networks:
    """The networks that rows name; each is loaded once."""

    def __init__(self, args: argparse.Namespace) -> None:
        shipped_is_trained = "start" in Weights.open(args.shipped).card
        self.files = {
            "shipped": args.shipped,
            "pretrained": args.pretrained or (None if shipped_is_trained else args.shipped),
            "trained": args.trained or (args.shipped if shipped_is_trained else None),
            **{domain: None for domain in DOMAINS},
        }
        for domain in DOMAINS if args.domains else ():
            best = args.domains / domain / "best.safetensors"
            self.files[domain] = best if best.is_file() else None

        self.loaded: dict[str, Extractor] = {}

    def extractor(self, row: Row) -> Extractor | str:
        """Of a row, or why there is none."""
        if row.features == "intensity":
            return intensity_extractor()
        if self.files[row.features] is None:
            return (
                f"no weights trained without {row.features} images: give --domains"
                if row.features in DOMAINS
                else f"no {row.features} weights: give --{row.features}"
            )
        if row.features not in self.loaded:
            self.loaded[row.features] = load_extractor(self.files[row.features])
        whole = self.loaded[row.features]
        if row in GROUPS["parts"] and row.features == "trained":
            if row.confidences and not has_confidences(whole):
                return "the weights have no confidences"
            if row.damping and damping_of(whole) is None:
                return "the weights have no learned damping"
        return reduced_extractor(whole, row.levels, row.confidences, row.full_size, row.damping)


def has_confidences(extractor: Extractor) -> bool:
    return getattr(extractor.network, "confidence", None) is not None


class Scene:
    """A scene and what the harness exported of it."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.name = folder, folder.name
        shared = args.rivals or args.output
        self.export = shared / "export" / folder.name
        self.metric = json.loads((folder / "cameras.json").read_text()).get("scale") == "metres"

    def need_export(self, args: argparse.Namespace) -> None:
        """Have the harness write priors and degraded queries, unless it has."""
        if (self.export / "lists.json").is_file():
            return
        harness = args.harness or args.data / ".." / "tools" / "peers" / "run.py"
        if not harness.is_file():
            raise InputError(f"no harness {harness}: give --harness")
        subprocess.run(
            [
                args.python,
                str(harness),
                "--scene",
                str(self.folder),
                "--max-queries",
                str(args.max_queries),
                "--peers",
                "--cache",
                str(args.output / "cache"),
                "--out",
                str(args.output / f"harness_{self.name}.json"),
                "--export",
                str(self.export),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    @functools.cached_property
    def names(self) -> list[str]:
        return query_names(self.export)

    @functools.cached_property
    def truth(self) -> torch.Tensor:
        """map_from_camera [N, 4, 4]."""
        return se3.inverse(world_from_map(self.export, self.folder)) @ read_tum(self.export / "truth.txt").map_from_body

    @functools.cached_property
    def depths(self) -> list[float]:
        scale = json.loads((self.folder / "queries" / "scale.json").read_text())
        return [scale[name] for name in self.names]

    def priors(self, level: int) -> torch.Tensor:
        return se3.inverse(world_from_map(self.export, self.folder)) @ read_tum(self.export / f"prior_{level}.txt").map_from_body

    def image(self, variant: str, name: str) -> np.ndarray:
        return load_image(self.export / variant / png_name(name))

    def camera(self, variant: str) -> Camera:
        return export_camera(self.export / variant)


def measure_row(row: Row, scene: Scene, weights: Networks, args: argparse.Namespace) -> None:
    """The cells of a row in a scene that are not there yet."""
    extractor = weights.extractor(row)
    if isinstance(extractor, str):
        print(f"{scene.name}: {row.name}: skipped, {extractor}", file=sys.stderr)
        return
    missing = [
        column
        for column in args.columns
        if read_cell(cell_path(args.output, scene, row, column), settings_of(row, column, extractor, scene)) is None
    ]
    if not missing:
        return
    localizer = FrameAligner(scene_map(scene, extractor, args.output), extractor, row.options)
    if row.own_size:
        localizer.focal_px = None
    for column in missing:
        with show_progress(f"{scene.name}: {row.name}: {column}") as progress:
            if column == BASIN:
                cell = {
                    "basin": measure_basin(
                        localizer, basin_queries(scene, args.basin_queries), BasinOptions(), row.title, progress
                    ).to_json()
                }
            else:
                cell = localize(localizer, row, scene, *QUERY_COLUMNS[column], progress)
        cell["settings"] = settings_of(row, column, extractor, scene)
        write_text(cell_path(args.output, scene, row, column), json.dumps(cell))
    print(f"{scene.name}: {row.name}: {', '.join(missing)}", file=sys.stderr, flush=True)


def localize(localizer: FrameAligner, row: Row, scene: Scene, variant: str, level: int, progress) -> dict[str, object]:
    """errors: per query [degrees, distance, share of the depth], None where there is no pose. steps: of the optimizer, mean."""
    camera, errors, steps = scene.camera(variant), [], []
    for k, (name, prior, truth, depth) in enumerate(zip(scene.names, scene.priors(level), scene.truth, scene.depths)):
        progress(k, len(scene.names))
        covariance = prior_covariance(level, depth) if row.prior_factor else None
        found = localizer.localize(scene.image(variant, name), camera, prior, covariance)
        steps.append(found.iterations)
        distance, angle = (float(v) for v in se3.pose_difference(truth, found.map_from_camera))
        errors.append([math.degrees(angle), distance, distance / depth] if found.success else None)
    return {"errors": errors, "steps": float(np.mean(steps))}


def prior_covariance(level: int, depth: float) -> torch.Tensor:
    """[6, 6] of priors that are wrong by a fixed amount in a random direction."""
    degrees, share = PRIOR_SIZES[level]
    return torch.diag(torch.tensor([(share * depth) ** 2] * 3 + [math.radians(degrees) ** 2] * 3, dtype=torch.float64)) / 3


def basin_queries(scene: Scene, count: int) -> list[BasinQuery]:
    camera = scene.camera("clean")
    every = [
        BasinQuery(name, functools.partial(scene.image, "clean", name), camera, truth, depth)
        for name, truth, depth in zip(scene.names, scene.truth, scene.depths)
    ]
    return evenly_spaced(every, count)


def scene_map(scene: Scene, extractor: Extractor, output: Path) -> Map:
    """Made once for each scene and features."""
    path = output / "maps" / f"{scene.name}_{extractor.fingerprint.replace(' ', '_')}.pixmap"
    if not path.is_file():
        with show_progress(f"{scene.name}: map") as progress:
            build_map_from_colmap(scene.folder / "map", scene.folder / "images", extractor, progress=progress)[0].save(path)
    return Map.open(path)


def settings_of(row: Row, column: str, extractor: Extractor, scene: Scene) -> dict[str, str]:
    """What a cell depends on; a cell with others is measured again."""
    values = {k: v for k, v in dataclasses.asdict(row).items() if k not in ("name", "title", "features")}
    if damping := damping_of(extractor):
        learned = b"".join(v.numpy().tobytes() for v in damping.state_dict().values())
        values["damping"] = hashlib.sha256(learned).hexdigest()[:16]
    settings = flat({**values, "extractor": extractor.fingerprint, "column": column, "queries": len(scene.names)})
    return {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}


def flat(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of names with dots, values as text."""
    result = {}
    for key, value in values.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)})
    return result


def cell_path(output: Path, scene: Scene, row: Row, column: str) -> Path:
    return output / "cells" / scene.name / row.name / f"{column}.json"


def read_cell(path: Path, settings: dict[str, str]) -> dict[str, object] | None:
    """A cell, None where it is not there or was measured with other settings. A setting that did not exist when the cell was
    measured counts as its default."""
    if not path.is_file():
        return None
    cell = json.loads(path.read_text())
    measured = {key: value for key, value in cell["settings"].items() if key not in WITHOUT_EFFECT}
    defaults = flat(dataclasses.asdict(Row("", "", "")))
    return cell if {**{k: v for k, v in defaults.items() if k in settings}, **measured} == settings else None


def collect(row: Row, scene: Scene, weights: Networks, output: Path) -> dict[str, object]:
    """The figures of a row in a scene, of the cells that are there."""
    extractor = weights.extractor(row)
    if isinstance(extractor, str) or not (scene.export / "lists.json").is_file():
        return {}
    cells = {
        column: read_cell(cell_path(output, scene, row, column), settings_of(row, column, extractor, scene))
        for column in (*QUERY_COLUMNS, BASIN)
    }
    return {
        column: cell["basin"] if column == BASIN else {**summarize(cell["errors"]), "steps": cell["steps"]}
        for column, cell in cells.items()
        if cell is not None
    }


def summarize(errors: list[list[float] | None]) -> dict[str, float | int | None]:
    """Medians, in which a missing pose is infinite, and the share within the limits."""
    deg, distance, share = np.array([[math.inf] * 3 if e is None else e for e in errors]).T
    medians = {"median_deg": np.median(deg), "median_distance": np.median(distance), "median_depth": np.median(share)}
    return {
        "queries": len(errors),
        "within": float(((deg <= LIMITS[0]) & (share <= LIMITS[1])).mean()),
        **{k: float(v) if np.isfinite(v) else None for k, v in medians.items()},
    }


def rival_rows(scene: Scene, rivals: Path | None) -> dict[str, dict]:
    """What compare_rivals.py has of a scene, in the form of `collect`."""
    path = None if rivals is None else rivals / f"{scene.name}.json"
    if path is None or not path.is_file():
        return {}
    peers = json.loads(path.read_text())["peers"]
    return {
        peer: {
            column: {
                "within": s["recall"][1],
                "median_deg": s["med_deg"],
                "median_distance": s["med_trans"],
                "median_depth": s["med_rel"],
                "queries": s["n"],
            }
            for column, (variant, level) in QUERY_COLUMNS.items()
            if (s := entry.get("summary", {}).get(f"{variant}@{level}"))
        }
        for peer, entry in peers.items()
        if peer != "pixloc_ros"
    }


def tables_of(group: str, results: dict[str, dict], scenes: list[Scene], args: argparse.Namespace) -> str:
    """Markdown: one table a scene."""
    lines = []
    for scene in scenes:
        rows = {row.title: results[scene.name][row.name] for row in GROUPS[group] if results[scene.name][row.name]}
        if group == "parts":
            rows.update({f"*{peer}*": entry for peer, entry in rival_rows(scene, args.rivals).items()})
        if not rows:
            continue
        counts = {entry["queries"] for columns in rows.values() for name, entry in columns.items() if name in QUERY_COLUMNS}
        if len(counts) > 1:
            raise InputError(
                f"{scene.name}: rows of {' and '.join(map(str, sorted(counts)))} queries do not belong into one "
                "table: measure the rivals with the same --max-queries"
            )
        unit = "cm" if scene.metric else "% depth"
        lines += [
            f"### {scene.name}: {counts.pop() if counts else 0} queries",
            "",
            f"| | small: deg / {unit} / R | medium | large | blurred: R (deg / {unit}) | dark | occluded | half size "
            "| basin 90 % (50 %): turned | shifted | both |" + (" steps |" if group == "choices" else ""),
            "|---" * (11 + (group == "choices")) + "|",
        ]
        for title, columns in rows.items():
            cells = [accuracy(columns.get(c), scene.metric) for c in LEVELS.values()]
            cells += [robustness(columns.get(c), scene.metric) for c in ("blurred", "dark", "occluded", "half")]
            cells += [radius(columns.get(BASIN), kind) for kind in ("rotation", "translation", "together")]
            if group == "choices":
                cells.append(" / ".join(f"{columns[c]['steps']:.0f}" if c in columns else "–" for c in ("small", "large")))
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def accuracy(column: dict | None, metric: bool) -> str:
    return "–" if column is None else f"{medians(column, metric)} / {100 * column['within']:.0f}"


def robustness(column: dict | None, metric: bool) -> str:
    return "–" if column is None else f"{100 * column['within']:.0f} ({medians(column, metric)})"


def medians(column: dict, metric: bool) -> str:
    if column["median_deg"] is None:
        return "lost / lost"
    distance = f"{100 * column['median_distance']:.2f}" if metric else f"{100 * column['median_depth']:.3f}"
    return f"{column['median_deg']:.3f} / {distance}"


def radius(basin: dict | None, kind: str) -> str:
    if basin is None:
        return "–"
    radii = basin["curves"][kind]["radius"]
    return f"{format_radius(radii['90%'], kind)} ({format_radius(radii['50%'], kind)})"


def plots_of(group: str, results: dict[str, dict], output: Path) -> None:
    """Basins of some rows, one picture a scene."""
    for scene, rows in results.items():
        basins = [rows[name][BASIN] for name in BASIN_LINES[group] if BASIN in rows.get(name, {})]
        if basins:
            write_bytes(output / f"basin_{scene}.png", plot_basins(basins))


def between_markers(text: str, name: str, table: str) -> str:
    """Text with a table between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"the document must have one '{begin}' and after it one '{end}'")
    head, tail = text.split(begin)[0], text.split(end)[1]
    return f"{head}{begin}\n\n{table.strip()}\n\n{end}{tail}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"ablations: error: {error}", file=sys.stderr)
        sys.exit(2)

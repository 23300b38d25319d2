# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc suite`: robustness: accuracy against how bad images, odometry, calibration and stamps are.

Applies graded blur, darkness, noise, compression, occlusion, frame drops, odometry noise, calibration error and time offset to
a bag as it is read, tracks each, plots accuracy over severity. Results are kept as they come: run the same command again to go
on after an interruption. docs/evidence/robustness.md explains kinds and severities.

examples:
  pixloc suite --map site.pixmap drive_bag -o out/suite
  pixloc suite --map site.pixmap drive_bag --images site/images -o out/suite     # with rivals
  pixloc suite --map site.pixmap drive_bag --kinds blur --severities 10 20 40 -o out/blur
  pixloc suite --map site.pixmap drive_bag --export out/bags                     # for other systems
  pixloc suite --map site.pixmap drive_bag --external other=out/poses -o out/suite
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from .. import __version__
from ..errors import InputError
from ..io.files import write_bytes, write_text
from ..jobs import require_visible, run_jobs
from .arguments import (
    add_bag,
    add_execution,
    add_scheduler,
    add_verb,
    bag_options,
    for_workers,
    initial_pose,
    open_localizer,
    option,
)
from .lazy import evaluation, io, mapping, report

RIVALS = ("klt", "orb")


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "suite", run, __doc__)
    add_bag(parser)
    option(parser, "-o --output DIR", "folder of suite.json, suite.md and suite.html")
    kinds = "blur dark noise compression occlusion drops odometry calibration time (default: all)"
    option(parser, "--kinds KIND", kinds, nargs="+")
    option(parser, "--severities X", "of the one kind given, instead of the usual ones", nargs="+", type=float)
    option(parser, "--truth FILE|BAG", "true poses: a TUM file or another bag (default: a topic of this bag)")
    option(parser, "--seed N", "of all that is random", 0)
    option(parser, "--clear-start S", "images of the first seconds stay as recorded and are not scored", 1.0)
    option(parser, "--name NAME", "of the drive in tables (default: the bag's)")
    page = (
        "put tables into a Markdown page, too, from <!-- suite NAME: begin --> to <!-- suite NAME: end -->, the plot into images/"
    )
    option(parser, "--write FILE", page)
    methods = parser.add_argument_group("other methods")
    option(methods, "--images DIR", "the images that the map was made of; the rivals need them: KLT + PnP and ORB + PnP (OpenCV)")
    option(methods, "--rivals NAME", "klt, orb (default: both, given --images)", nargs="*", choices=RIVALS)
    external = "trajectories of another system, DIR/CELL.tum, scored too; may be repeated"
    option(methods, "--external NAME=DIR", external, [], action="append", type=str)
    option(methods, "--export DIR", "write the degraded bags, DIR/CELL, for other systems to run on, and stop")
    add_scheduler(parser, "cells")
    add_execution(parser)


def run(args: argparse.Namespace) -> int:
    suite, tables = evaluation.suite, evaluation.tables
    cells = suite.plan(args.kinds, args.severities)
    if not 0 <= args.clear_start < float("inf") or args.seed < 0:
        raise InputError("--clear-start and --seed must not be negative")
    if args.output is None and args.export is None:
        raise InputError("give -o, the folder of the results, or --export")
    name = args.name or args.bag.stem
    if args.write:
        tables.around_section(args.write, f"suite {name}")  # before the work, not after
    with io.bags.BagReader(args.bag, bag_options(args)) as bag:
        experiment = _experiment(args, bag)
        if args.export:
            for number, degradation in enumerate(cells, 1):
                path = args.export / suite.cell_name(degradation)
                evaluation.altered_bag.export_bag(path, experiment.degraded(degradation))
                print(f"{number}/{len(cells)}  {degradation}: {path}", flush=True)
            print(f"{len(cells)} bags: {args.export}; score poses of theirs with --external NAME=DIR, DIR/CELL.tum")
            return 0
        methods, notes = _methods(args)
        about = {"name": name, "bag": args.bag.name, "map": args.map.name, "seed": args.seed}
        about |= {"clear_start_s": args.clear_start, "right": suite.RIGHT}
        results = suite.Results.open(args.output / "suite.json", about)

        def say(done: int, of: int, degradation, cell: dict) -> None:
            print(f"{done}/{of}  {degradation}, {cell['method']}: {suite.format_cell(cell)}", flush=True)

        suite.run(experiment, methods, cells, results, say, partial(_elsewhere, args) if args.scheduler is not None else None)
    text = suite.markdown(results)
    write_text(args.output / "suite.md", f"# {name}\n\n{text}")
    write_text(args.output / "suite.html", report.suite.suite_page(results, notes))
    if args.write:
        picture = args.write.parent / "images" / f"suite_{name}.png"
        write_bytes(picture, report.suite.plot_overview(results))
        plot = f"![right poses against severity, {name}](images/{picture.name})"
        tables.write_section(args.write, f"suite {name}", f"{plot}\n\n{text}")
    print("\n" + tables.format_table(suite.summary_rows(results)))
    print("".join(f"note: {note}\n" for note in notes) + f"page: {args.output / 'suite.html'}    figures: {results.path}")
    return 0


def _elsewhere(args: argparse.Namespace, cells: Sequence[tuple[int, int]]) -> Iterator[tuple[int, dict | None]]:
    """Cells by the numbers of degradation and method, as jobs."""
    away = for_workers(args)
    away.external = [f"{name}={os.path.abspath(folder)}" for name, _, folder in (one.partition("=") for one in args.external)]
    return run_jobs(_measure, [(away, *cell) for cell in cells], args.scheduler)


def _measure(job: tuple[argparse.Namespace, int, int]) -> dict | None:
    """A cell, on a worker."""
    args, degradation, method = job
    require_visible(args.bag, args.map)
    with io.bags.BagReader(args.bag, bag_options(args)) as bag:
        cell = evaluation.suite.plan(args.kinds, args.severities)[degradation]
        return evaluation.suite.measure(_experiment(args, bag), _methods(args)[0][method], cell)


def _experiment(args: argparse.Namespace, bag):
    identify = mapping.build.posed_bag.bag_identity
    if args.truth is None:
        truth = bag.truth()
    elif io.bag_storage.is_bag(args.truth):
        truth, _ = io.bag_truth.read_bag_truth(args.truth, args.truth_topic)
    else:
        truth = io.trajectory.read_tum(args.truth)
    identity = [identify(args.bag), repr(bag.options), identify(args.truth) if args.truth else None]
    identity += [args.time_offset] if args.time_offset else []  # results of before there was such a thing stay good
    how = (initial_pose(args), args.skip_map_frames, args.seed, args.clear_start)
    return evaluation.suite.Experiment(bag, truth, *how, identity)


def _methods(args: argparse.Namespace) -> tuple[list, list[str]]:
    """What is measured, and what the reader should know of what is not."""
    suite, start, localizer = evaluation.suite, initial_pose(args), open_localizer(args)
    settings = [__version__, mapping.build.posed_bag.bag_identity(args.map)]
    settings += [repr(localizer.aligner.options), repr(localizer.extractor.execution)]
    methods = [suite.tracker_method(suite.OURS, localizer, start, settings)]
    wanted = args.rivals if args.rivals is not None else list(RIVALS) if args.images else []
    if wanted and args.images is None:
        raise InputError("the rivals need the images that the map was made of: give --images")
    for name in wanted:
        title, make = evaluation.rivals.RIVALS[name]
        rival = make(localizer.map, args.images)
        methods.append(suite.tracker_method(title, rival, start, [__version__, rival.fingerprint]))
    for given in args.external:
        name, equals, folder = given.partition("=")
        if not (name and equals and folder) or name in [method.name for method in methods] or name == suite.ODOMETRY:
            raise InputError(f"--external {given}: write NAME=DIR, with a name of its own")
        methods.append(suite.external_method(name, Path(folder)))
    notes = [] if args.images else ["without --images, the folder of the map's images, no rival is measured"]
    return [*methods, suite.odometry_method()], notes

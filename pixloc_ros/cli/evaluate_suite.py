# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc evaluate --suite`: accuracy against how bad images, odometry, calibration and stamps are."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bag_arguments import add_bag_arguments, bag_options, initial_pose
from .execution_arguments import add_execution_arguments, execution
from .help_format import HelpFormatter

SWITCH = "--suite"
RIVALS = ("klt", "orb")


def divert(parser: argparse.ArgumentParser) -> None:
    """Let `pixloc evaluate --suite ...` have arguments of its own: it takes a bag and a map, not runs."""
    suite, plain = _make_parser(parser.prog), parser.parse_known_args
    parser.add_argument(
        SWITCH, action="store_true", help="track a bag made worse in graded ways instead: 'pixloc evaluate --suite --help'"
    )

    def parse(args=None, namespace=None):
        if args is not None and SWITCH in args:
            return suite.parse_known_args([arg for arg in args if arg != SWITCH], namespace)
        return plain(args, namespace)

    # The one place where argparse can be told that a switch changes everything that follows.
    parser.parse_known_args = parse


def _make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{prog} {SWITCH}",
        description="Robustness suite: applies graded blur, darkness, noise, compression, occlusion, frame drops, odometry "
        "noise, calibration error and time offset to a bag as it is read, tracks each, plots accuracy over severity. "
        "Results are kept as they come: run the same command again to go on after an interruption. "
        "docs/evidence/robustness.md explains kinds and severities.",
        epilog="examples:\n"
        "  pixloc evaluate --suite --map site.pixmap drive_bag -o out/suite\n"
        "  pixloc evaluate --suite --map site.pixmap drive_bag --images site/images -o out/suite     # rivals beside\n"
        "  pixloc evaluate --suite --map site.pixmap drive_bag --kinds blur --severities 10 20 40 -o out/blur\n"
        "  pixloc evaluate --suite --map site.pixmap drive_bag --export out/bags                     # for other systems\n"
        "  pixloc evaluate --suite --map site.pixmap drive_bag --external other=out/poses -o out/suite",
        formatter_class=HelpFormatter,
    )
    add_bag_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of suite.json, suite.md and suite.html")
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="blur dark noise compression occlusion drops odometry calibration time (default: all)",
    )
    parser.add_argument(
        "--severities", nargs="+", type=float, metavar="X", help="of the one kind given, instead of the usual ones"
    )
    parser.add_argument(
        "--truth", type=Path, metavar="FILE|BAG", help="true poses: a TUM file or another bag (default: a topic of this bag)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (default 0)")
    parser.add_argument(
        "--clear-start",
        type=float,
        default=1.0,
        metavar="S",
        help="images of the first seconds stay as recorded and are not scored (default 1)",
    )
    parser.add_argument("--name", help="of the drive in tables (default: the bag's)")
    beside = parser.add_argument_group("methods beside ours")
    beside.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the images that the map was made of; the rivals need them: KLT + PnP and ORB + PnP (OpenCV)",
    )
    beside.add_argument("--rivals", nargs="*", choices=RIVALS, metavar="NAME", help="klt, orb (default: both, given --images)")
    beside.add_argument(
        "--external",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="trajectories of another system, DIR/CELL.tum, scored beside; may be repeated",
    )
    beside.add_argument(
        "--export", type=Path, metavar="DIR", help="write the degraded bags, DIR/CELL, for other systems to run on, and stop"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="also put the tables into a Markdown page, between <!-- suite NAME: begin --> and <!-- suite NAME: "
        "end -->, and the plot into images/ beside it",
    )
    add_execution_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..evaluation import suite
    from ..evaluation.suite_export import export_bag
    from ..evaluation.tables import format_table
    from ..io.bags import BagReader
    from ..io.files import write_bytes, write_text
    from ..report.suite import plot_overview, suite_page

    cells = suite.plan(args.kinds, args.severities)
    if not 0 <= args.clear_start < float("inf") or args.seed < 0:
        raise InputError("--clear-start and --seed must not be negative")
    if args.output is None and args.export is None:
        raise InputError("give -o, the folder of the results, or --export")
    name = args.name or args.bag.stem
    if args.write:
        _around_section(args.write, name)  # before the work, not after
    with BagReader(args.bag, bag_options(args)) as bag:
        experiment = _experiment(args, bag)
        if args.export:
            for number, degradation in enumerate(cells, 1):
                path = args.export / suite.cell_name(degradation)
                export_bag(path, experiment.degraded(degradation))
                print(f"{number}/{len(cells)}  {degradation}: {path}", flush=True)
            print(f"{len(cells)} bags: {args.export}; score poses of theirs with --external NAME=DIR, DIR/CELL.tum")
            return 0
        methods, notes = _methods(args, suite)
        about = {
            "name": name,
            "bag": args.bag.name,
            "map": args.map.name,
            "seed": args.seed,
            "clear_start_s": args.clear_start,
            "right": suite.RIGHT,
        }
        results = suite.Results.open(args.output / "suite.json", about)
        suite.run(
            experiment,
            methods,
            cells,
            results,
            lambda done, of, degradation, cell: print(
                f"{done}/{of}  {degradation}, {cell['method']}: {suite.format_cell(cell)}", flush=True
            ),
        )
    text = suite.markdown(results)
    write_text(args.output / "suite.md", f"# {name}\n\n{text}")
    write_text(args.output / "suite.html", suite_page(results, notes))
    if args.write:
        picture = args.write.parent / "images" / f"suite_{name}.png"
        write_bytes(picture, plot_overview(results))
        before, after = _around_section(args.write, name)
        write_text(args.write, f"{before}\n![right poses against severity, {name}](images/{picture.name})\n\n{text}\n{after}")
    print("\n" + format_table(suite.summary_rows(results)))
    print("".join(f"note: {note}\n" for note in notes) + f"page: {args.output / 'suite.html'}    figures: {results.path}")
    return 0


def _experiment(args: argparse.Namespace, bag):
    from ..evaluation.suite import Experiment
    from ..io.bag_truth import is_bag, read_bag_truth
    from ..io.trajectory import read_tum
    from ..mapping.build.posed_bag import bag_identity

    if args.truth is None:
        truth = bag.truth()
    else:
        truth = read_bag_truth(args.truth, args.truth_topic)[0] if is_bag(args.truth) else read_tum(args.truth)
    identity = [bag_identity(args.bag), repr(bag.options), bag_identity(args.truth) if args.truth else None]
    identity += [args.time_offset] if args.time_offset else []  # results of before there was such a thing stay good
    return Experiment(bag, truth, initial_pose(args), args.skip_map_frames, args.seed, args.clear_start, identity)


def _methods(args: argparse.Namespace, suite) -> tuple[list, list[str]]:
    """What is measured, and what the reader should know of what is not."""
    from .. import __version__
    from ..errors import InputError
    from ..evaluation.rivals import RIVALS as KNOWN
    from ..localization import Localizer
    from ..mapping.build.posed_bag import bag_identity
    from ..tracking.presets import preset_options

    start, how, options = initial_pose(args), execution(args), preset_options(args.preset)
    localizer = Localizer.open(args.map, args.weights, options, execution=how)
    settings = [__version__, bag_identity(args.map), repr(options), repr(how)]
    methods = [suite.tracker_method(suite.OURS, localizer, start, settings)]
    wanted = args.rivals if args.rivals is not None else list(RIVALS) if args.images else []
    if wanted and args.images is None:
        raise InputError("the rivals need the images that the map was made of: give --images")
    for name in wanted:
        title, make = KNOWN[name]
        rival = make(localizer.map, args.images)
        methods.append(suite.tracker_method(title, rival, start, [__version__, rival.fingerprint]))
    for given in args.external:
        name, equals, folder = given.partition("=")
        if not (name and equals and folder) or name in [method.name for method in methods] or name == suite.ODOMETRY:
            raise InputError(f"--external {given}: write NAME=DIR, with a name of its own")
        methods.append(suite.external_method(name, Path(folder)))
    notes = [] if args.images else ["without --images, the folder of the map's images, no rival is run beside"]
    return [*methods, suite.odometry_method()], notes


def _around_section(path: Path, name: str) -> tuple[str, str]:
    """What stands before and after the drive's section of a page, its marks included."""
    from ..errors import InputError

    begin, end = f"<!-- suite {name}: begin -->\n", f"<!-- suite {name}: end -->"
    try:
        before, rest = path.read_text(encoding="utf-8").split(begin)
        return before + begin, end + rest.split(end, 1)[1]
    except (OSError, ValueError, IndexError):
        raise InputError(f"{path} has no section between {begin.strip()} and {end}: put these two lines into it") from None

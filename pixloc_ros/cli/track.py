# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc track`: a recorded drive against a map, offline."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from .bag_arguments import about_time_offset, add_bag_arguments, bag_options, initial_pose
from .execution_arguments import add_execution_arguments, execution
from .help_format import HelpFormatter
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "track",
        help="track the camera of a bag against a map, offline and deterministic",
        description="Runs the tracker over a bag in the order of the messages' stamps, without ROS and as fast as the machine "
        "can. Writes the poses of the base in the map, figures, and a page with plots and pictures. Where the bag "
        "holds ground truth, it gives the start and the errors.",
        epilog="examples:\n"
        "  pixloc track --map site.pixmap drive_bag -o out/drive\n"
        "  pixloc track --map site.pixmap drive.mcap -o out/drive --initial-pose 1.2 0.5 0 0 0 0.38 0.92\n"
        "  pixloc track --map site.pixmap drive_bag -o out/drive --time-offset -0.08\n\n"
        "'pixloc evaluate out/drive out/other' compares runs.",
        formatter_class=HelpFormatter,
    )
    add_bag_arguments(parser)
    parser.add_argument(
        "--cold-start",
        action="store_true",
        help="begin without a pose: it is looked for in the whole map, as it is whenever it was lost",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of poses.tum (stamp tx ty tz qx qy qz qw), run.json, summary.json and report.html",
    )
    parser.add_argument("--no-report", action="store_true", help="leave report.html out, which takes some seconds")
    add_execution_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..evaluation import offline
    from ..evaluation.metrics import evaluate
    from ..evaluation.runs import write_run
    from ..evaluation.tables import format_run
    from ..evaluation.usage import UsageMeter, machine_name
    from ..io.bags import BagReader
    from ..io.files import write_text
    from ..localization import Localizer

    options, start = bag_options(args), initial_pose(args)
    if args.cold_start and start is not None:
        raise InputError("--cold-start and --initial-pose contradict each other: give one")
    if args.output.is_file() or args.output.suffix in (".tum", ".txt", ".json", ".html"):
        raise InputError(f"-o {args.output}: give a folder; the poses go to poses.tum in it")
    localizer = Localizer.open(args.map, args.weights, args.preset, execution=execution(args))
    about = {
        "bag": str(args.bag),
        "map": str(args.map),
        "weights": args.weights,
        "preset": args.preset,
        "played": "offline, image by image",
        "machine": machine_name(),
        **about_time_offset(args.time_offset),
    }
    with BagReader(args.bag, options) as bag, show_progress("track") as progress:
        meter = UsageMeter()
        result = offline.run_bag(localizer.tracker(), bag, start, cold_start=args.cold_start, progress=progress, ahead=True)
        result = replace(result, usage=meter.read(), skip_map_frames=args.skip_map_frames, about=about)
        evaluation = evaluate(result)
        write_run(args.output, result)
        write_text(args.output / "summary.json", json.dumps(evaluation.figures, indent=2, allow_nan=False) + "\n")
        if not args.no_report:
            from ..report.run_report import run_report, scene_of

            write_text(
                args.output / "report.html",
                run_report(
                    "pixloc track",
                    f"{args.bag}, map {args.map.name}, offline.",
                    [evaluation],
                    scene_of(evaluation, localizer, bag),
                ),
            )
    print(format_run(evaluation.figures))
    print(f"run: {args.output}" + ("" if args.no_report else f"    report: {args.output / 'report.html'}"))
    return 0 if evaluation.figures["published_frames"] else 1

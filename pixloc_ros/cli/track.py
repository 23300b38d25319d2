# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc track`: a recorded drive against a map, offline."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from .bag_arguments import add_bag_arguments, bag_options, initial_pose
from .execution_arguments import add_execution_arguments, execution
from .help_format import HelpFormatter
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "track", help="track the camera of a bag against a map, offline and deterministic",
        description="Runs the tracker over a bag in the order of the messages' stamps, without ROS and as fast as the machine "
                    "can. Writes the poses of the base in the map. Where the bag holds ground truth, it gives the start and "
                    "the errors.",
        epilog="examples:\n"
               "  pixloc track --map site.pixmap drive_bag -o poses.tum --json stats.json\n"
               "  pixloc track --map site.pixmap drive.mcap -o poses.tum --initial-pose 1.2 0.5 0 0 0 0.38 0.92",
        formatter_class=HelpFormatter)
    add_bag_arguments(parser)
    parser.add_argument("--cold-start", action="store_true",
                        help="begin without a pose: it is looked for in the whole map, as it is whenever it was lost")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="poses: stamp tx ty tz qx qy qz qw")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots and pictures (HTML)")
    add_execution_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..evaluation import offline
    from ..evaluation.bags import BagReader
    from ..evaluation.localize import open_localizer
    from ..evaluation.report import format_run
    from ..evaluation.trajectory import write_text, write_tum
    from ..tracking.presets import preset
    from ..tracking.relocalization import Relocalizer

    options, start = bag_options(args), initial_pose(args)
    if args.cold_start and start is not None:
        raise InputError("--cold-start and --initial-pose contradict each other: give one")
    localizer = open_localizer(args.map, args.weights, preset(args.preset), execution(args))
    with BagReader(args.bag, options) as bag, show_progress("track") as progress:
        result = offline.run_bag(localizer, bag, start, pose_search=Relocalizer(localizer), cold_start=args.cold_start,
                                 progress=progress)
        stats = offline.summarize(result, args.skip_map_frames)
        if args.report:
            _write_report(args, localizer, bag, result, stats)
    write_tum(args.output, result.estimate)
    if args.json:
        write_text(args.json, json.dumps(stats, indent=2) + "\n")
    print(format_run(stats))
    return 0 if stats["published_frames"] else 1


def _write_report(args: argparse.Namespace, localizer, bag, result, stats) -> None:
    import numpy as np

    from ..evaluation.trajectory import write_text
    from ..visualization.drive_report import DriveReport

    times = np.array([r.timings_ms["total"] for r in result.records if "alignment" in r.timings_ms])
    report = DriveReport("pixloc track", f"{args.bag}, map {args.map.name}, offline.", stats, result, times, "Time a frame")
    write_text(args.report, report.html(localizer, bag))

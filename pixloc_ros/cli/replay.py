# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc replay`: a recorded drive through the live ROS 2 node."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bag_arguments import add_bag_arguments, bag_options, initial_pose
from .help_format import HelpFormatter
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="play a bag to the live ROS 2 node over DDS and score what it publishes",
        description="Starts localization_node, plays the bag with /clock, records poses, status and TF, and writes the run "
        "(run.json, poses.tum; 'pixloc evaluate' compares runs), summary.json, report.html, recording.jsonl and "
        "node.log. Ends with 1 if the node did what it must never "
        "do (an image neither tracked nor reported, a TF chain that differs from the pose, a failed TF lookup).",
        epilog="examples:\n  pixloc replay --map site.pixmap drive_bag -o out/replay\n"
        "  pixloc replay --map site.pixmap drive_bag --rate 0.5 --all-frames -o out/replay",
        formatter_class=HelpFormatter,
    )
    add_bag_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rate", type=float, default=1.0, metavar="R", help="speed of the clock (default 1)")
    parser.add_argument(
        "--all-frames",
        action="store_true",
        help="the node works through every image in order; default: it drops those it has no time for",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..evaluation.tables import format_run
    from ..io.bags import BagReader
    from ..rig.replay import ReplayOptions
    from .replaying import replay_and_report

    if not args.rate > 0:
        raise InputError("--rate must be positive: 1 is real time")
    options, start = bag_options(args), initial_pose(args)
    with BagReader(args.bag, options) as bag, show_progress("replay") as progress:
        replaying = ReplayOptions(args.rate, args.all_frames, args.weights, args.preset)
        stats = replay_and_report(args.map, bag, start, args.output, replaying, args.skip_map_frames, progress)
    print(format_run(stats))
    for problem in stats["problems"]:
        print(f"PROBLEM: {problem}")
    print(f"report: {args.output / 'report.html'}")
    return 1 if stats["problems"] else 0

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc evaluate`: figures of any number of runs, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import evaluate_suite
from .help_format import HelpFormatter


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="errors, recall, losses, consistency and times of any number of runs, as a table and a page",
        description="Compares runs with the truth and with one another: errors in the map frame (nothing is aligned; after "
        "alignment as a second figure), relative errors, recall over all images, losses, covariances, times, cost. "
        "Prints a table; with -o writes evaluation.json and report.html, one page that needs no network.",
        epilog="examples:\n"
        "  pixloc evaluate out/drive\n"
        "  pixloc evaluate out/drive other=other_poses.txt -o out/comparison\n"
        "  pixloc evaluate --truth truth.tum a.tum b.tum -o out/comparison\n"
        "  pixloc evaluate --truth drive_bag --truth-topic tf:map:base_link poses.tum\n"
        "  pixloc evaluate --truth poses/07.txt --times sequences/07/times.txt kitti_result.txt --step 10\n\n"
        "A run is a folder that 'pixloc track' or 'pixloc replay' wrote, or a file of poses: TUM (stamp tx ty tz qx qy qz "
        "qw),\nKITTI (12 numbers a line) or benchmark (name qw qx qy qz tx ty tz, camera_from_map); NAME= names it.\n"
        "Images that count: those of --times, of the bag or of the folder; else one for each pose of the truth or, where\n"
        "that has many more poses than the runs, at the runs' own rate.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="a folder of 'pixloc track' or 'replay', or poses")
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE|BAG",
        help="true poses: a file in one of the formats, or a bag (default: what the runs' folders hold)",
    )
    parser.add_argument(
        "--truth-topic",
        metavar="NAME",
        help="of a bag: a topic of poses or odometry, or 'tf:PARENT:CHILD' (default: the one that looks like it)",
    )
    parser.add_argument(
        "--times",
        type=Path,
        metavar="FILE|BAG",
        help="when the images were taken: lines that begin with seconds (KITTI's times.txt, TUM's rgb.txt), or a bag",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        metavar="S",
        help="largest difference between a pose's stamp and its image's (default 0.01)",
    )
    parser.add_argument(
        "--step", metavar="M|Nposes", help="over what relative errors are taken: metres, or '10poses' (default 1; 10 for cars)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of evaluation.json and report.html")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    evaluate_suite.divert(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..evaluation.metrics import evaluate
    from ..evaluation.run_inputs import RunInputs, parse_step, read_runs
    from ..evaluation.tables import format_summary
    from ..io.files import write_text

    step = parse_step(args.step)
    inputs = RunInputs(args.truth, args.truth_topic, args.times, args.tolerance)
    runs, notes = read_runs(args.runs, inputs)
    evaluations = [evaluate(each, step) for each in runs]
    content = {
        "truth": str(args.truth) if args.truth else None,
        "notes": notes,
        "runs": [{"name": e.name, **e.figures} for e in evaluations],
    }
    if args.output:
        from ..report.run_report import run_report

        write_text(args.output / "evaluation.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
        lead = f"Truth: {args.truth}." if args.truth else ""
        write_text(args.output / "report.html", run_report("pixloc evaluate", lead, evaluations, notes=notes))
    if args.json:
        print(json.dumps(content, indent=2, allow_nan=False))
    else:
        print(format_summary([e.name for e in evaluations], [e.figures for e in evaluations]))
        print("".join(f"\nnote: {note}" for note in notes), end="\n" if notes else "")
    if args.output and not args.json:
        print(f"report: {args.output / 'report.html'}")
    return 0 if any(e.figures["published_frames"] for e in evaluations) else 1

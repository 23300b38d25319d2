# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc evaluate`: errors, recall, losses, consistency and times of any number of runs, as a table and a page.

Compares runs with the truth and with one another: errors in the map frame (nothing is aligned; after alignment as a second
figure), relative errors, recall over all images, losses, covariances, times, cost. Prints a table; with -o writes
evaluation.json and report.html, one page that needs no network.

examples:
  pixloc evaluate out/drive
  pixloc evaluate out/drive other=other_poses.txt -o out/comparison
  pixloc evaluate --truth truth.tum a.tum b.tum -o out/comparison
  pixloc evaluate --truth drive_bag --truth-topic tf:map:base_link poses.tum
  pixloc evaluate --truth poses/07.txt --times sequences/07/times.txt kitti_result.txt --step 10

A run is a folder that 'pixloc track' or 'pixloc replay' wrote, or a file of poses: TUM (stamp tx ty tz qx qy qz qw),
KITTI (12 numbers a line) or benchmark (name qw qx qy qz tx ty tz, camera_from_map); NAME= names it.
Images that count: those of --times, of the bag or of the folder; else one for each pose of the truth or, where
that has many more poses than the runs, at the runs' own rate.
"""

import argparse
import json

from ..io.files import write_text
from .arguments import add_verb, flag, option
from .lazy import evaluation, report


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "evaluate", run, __doc__)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="a folder of 'pixloc track' or 'replay', or poses")
    option(parser, "--truth FILE|BAG", "true poses: a file, in one of the formats, or a bag (default: of the runs' folders)")
    option(parser, "--truth-topic NAME", "of a bag: of poses or odometry, or 'tf:PARENT:CHILD' (default: what looks like it)")
    option(parser, "--times FILE|BAG", "when the images were taken: a bag, or lines that begin with seconds (KITTI, TUM)")
    option(parser, "--tolerance S", "largest difference between a pose's stamp and its image's", 0.01)
    option(parser, "--step M|Nposes", "over what relative errors are taken: metres, or '10poses' (default 1; 10 for cars)")
    option(parser, "-o --output DIR", "folder of evaluation.json and report.html")
    flag(parser, "--json", "print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    inputs = evaluation.run_inputs
    step, options = inputs.parse_step(args.step), inputs.RunInputs(args.truth, args.truth_topic, args.times, args.tolerance)
    runs, notes = inputs.read_runs(args.runs, options)
    evaluations = [evaluation.metrics.evaluate(each, step) for each in runs]
    figures = [{"name": e.name, **e.figures} for e in evaluations]
    content = {"truth": str(args.truth) if args.truth else None, "notes": notes, "runs": figures}
    content = json.dumps(content, indent=2, allow_nan=False)
    if args.output:
        write_text(args.output / "evaluation.json", content + "\n")
        lead = f"Truth: {args.truth}." if args.truth else ""
        page = report.run_report.run_report("pixloc evaluate", lead, evaluations, notes=notes)
        write_text(args.output / "report.html", page)
    if args.json:
        print(content)
    else:
        print(evaluation.tables.format_summary([e.name for e in evaluations], [e.figures for e in evaluations]))
        print("".join(f"\nnote: {note}" for note in notes), end="\n" if notes else "")
    if args.output and not args.json:
        print(f"report: {args.output / 'report.html'}")
    return 0 if any(e.figures["published_frames"] for e in evaluations) else 1

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc evaluate`: the errors of one trajectory against another."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from .help_format import HelpFormatter


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate", help="compare a trajectory with a reference, in the map frame, without alignment",
        description="Errors of the estimate at every reference pose. Nothing is aligned: the map frame is what a map-based "
                    "localizer claims to know. A reference pose without an estimate counts as a failure in the recall.",
        epilog="example:\n  pixloc evaluate --reference truth.tum --estimate poses.tum",
        formatter_class=HelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="A.tum", help="stamp tx ty tz qx qy qz qw")
    parser.add_argument("--estimate", type=Path, required=True, metavar="B.tum")
    parser.add_argument("--tolerance", type=float, default=0.01, metavar="S", help="largest difference of stamps (default 0.01)")
    parser.add_argument("--step", type=float, default=1.0, metavar="M",
                        help="length of the stretches of the relative error (default 1; 10 suits cars)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..evaluation import metrics
    from ..evaluation.report import format_errors
    from ..evaluation.trajectory import read_tum

    if not args.tolerance >= 0 or not args.step > 0:
        raise InputError("--tolerance must not be negative and --step must be positive")
    result = metrics.evaluate(read_tum(args.reference), read_tum(args.estimate), round(args.tolerance * 1e9), args.step)
    print(json.dumps(result, indent=2) if args.json else format_errors(result))
    return 0

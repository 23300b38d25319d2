# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc localize`: poses of single images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .execution_arguments import add_execution_arguments, execution
from .help_format import HelpFormatter
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "localize",
        help="find the poses of single images in a map",
        description="Aligns each image with the map, from its prior or, without one, from alike keyframes. Writes "
        "'name qw qx qy qz tx ty tz' (camera_from_map), in the order of the input; images without a pose are "
        "left out and counted.",
        epilog="examples:\n"
        "  pixloc localize --map site.pixmap --images queries --cameras queries/cameras.txt -o poses.txt\n"
        "  pixloc localize --map site.pixmap --images list.txt --cameras cameras.txt --prior priors.txt -o poses.txt "
        "--json stats.json\n\ncameras.txt: NAME MODEL WIDTH HEIGHT PARAMS... as in COLMAP, for example\n"
        "  0001.jpg PINHOLE 640 480 517.3 516.5 319.1 255.8",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--map", type=Path, required=True, metavar="FILE", help="made by 'pixloc map'")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR|LIST",
        help="folder of the images that --cameras names, or a text file with some of their names",
    )
    parser.add_argument("--cameras", type=Path, required=True, metavar="FILE", help="one camera an image")
    parser.add_argument("--prior", type=Path, metavar="FILE", help="rough poses, in the format of the output")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and times")
    parser.add_argument(
        "--weights", default="compact", metavar="NAME|FILE", help="the network that made the map (default compact)"
    )
    parser.add_argument(
        "--preset", default="balanced", metavar="NAME", help="fast, balanced (default) or accurate: how much is spent on an image"
    )
    add_execution_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..evaluation import localize
    from ..io.files import write_text
    from ..io.trajectory import read_benchmark_poses, write_benchmark_poses
    from ..localization import Localizer

    queries = localize.read_queries(args.images, args.cameras)
    priors = read_benchmark_poses(args.prior) if args.prior else {}
    if args.prior and not any(query.name in priors for query in queries):
        from ..errors import InputError

        raise InputError(f"{args.prior} has no pose for any of the images: its names must be those of {args.cameras}")
    localizer = Localizer.open(args.map, args.weights, args.preset, execution=execution(args))
    with show_progress("localize") as progress:
        results = localize.localize_queries(localizer, queries, priors, progress)
    poses = {r.name: r.camera_from_map for r in results if not r.reason}
    write_benchmark_poses(args.output, poses)
    stats = localize.query_figures(results)
    if args.json:
        write_text(args.json, json.dumps(stats, indent=2) + "\n")
    times = "" if stats["frame_ms_p50"] is None else f", {stats['frame_ms_p50']:.0f} ms an image"
    print(f"{args.output}: {stats['localized']} of {stats['images']} images localized{times}")
    for doubt, count in stats["doubts"].items():
        print(f"  {count} doubtful, written too: {doubt} (see --json)")
    for reason, count in stats["reasons"].items():
        print(f"  {count} failed: {reason}")
    return 0 if stats["localized"] else 1

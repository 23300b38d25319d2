# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc basin`: from how far away the alignment still finds the pose."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .help_format import HelpFormatter
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "basin",
        help="convergence basin: share of successes and error against the initial error",
        description="Starts the alignment of images of known pose further and further away: turned, shifted, and both at once, "
        "in fixed random directions. A start succeeds where the pose ends within 0.5 degrees and 1 % of the depth. "
        "Prints a table and writes basin.json and basin.png.",
        epilog="examples:\n"
        "  pixloc basin --map fox.pixmap --images fox/images --cameras fox/queries/cameras.txt "
        "--truth fox/queries/truth.txt -o out/basin\n"
        "  pixloc basin --map fox.pixmap --images fox/images --cameras fox/queries/cameras.txt "
        "--truth fox/queries/truth.txt -o out/paper --strategy paper --label paper --beside out/basin/basin.json\n\n"
        "Files are those of 'pixloc localize': cameras.txt one camera an image, truth.txt 'name qw qx qy qz tx ty tz', "
        "camera_from_map.",
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
    parser.add_argument("--truth", type=Path, required=True, metavar="FILE", help="true poses; images without one are left out")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of basin.json and basin.png")
    parser.add_argument("--rotation", type=float, default=40.0, metavar="DEG", help="largest initial rotation error (default 40)")
    parser.add_argument(
        "--translation",
        type=float,
        default=50.0,
        metavar="PERCENT",
        help="largest initial distance, in per cent of the median depth in view (default 50)",
    )
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="steps from zero to the largest (default 8)")
    parser.add_argument("--starts", type=int, default=1, metavar="N", help="starts per image and step (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the directions (default 0)")
    parser.add_argument("--max-images", type=int, default=0, metavar="N", help="so many, evenly spaced (default: all)")
    parser.add_argument(
        "--weights", default="compact", metavar="NAME|FILE", help="the network that made the map (default compact)"
    )
    parser.add_argument(
        "--strategy", choices=("adaptive", "paper"), default="adaptive", help="of the optimizer (default adaptive)"
    )
    parser.add_argument("--label", default="", help="name of this run in the plot")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="FILE", help="basin.json of other runs, drawn in the same plot"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..alignment import AlignmentOptions
    from ..errors import InputError
    from ..evaluation import localize
    from ..evaluation.basin import BasinOptions, BasinQuery, format_basin, measure_basin, median_depth, read_basin
    from ..geometry import se3
    from ..io.files import write_bytes, write_text
    from ..io.images import load_image
    from ..io.trajectory import read_benchmark_poses
    from ..localization import Localizer
    from ..report.curves import plot_basins
    from ..tracking.frame_aligner import LocalizerOptions

    options = BasinOptions(args.rotation, args.translation / 100, args.steps, args.starts, args.seed)
    others = [read_basin(path) for path in args.beside]
    truth = read_benchmark_poses(args.truth)
    queries = [query for query in localize.read_queries(args.images, args.cameras) if query.name in truth]
    if not queries:
        raise InputError(f"{args.truth} has no pose for any of the images: its names must be those of {args.cameras}")
    if args.max_images < 0:
        raise InputError("--max-images must not be negative")
    if args.max_images:
        queries = evenly_spaced(queries, args.max_images)
    localizer = Localizer.open(
        args.map, args.weights, LocalizerOptions(alignment=AlignmentOptions(strategy=args.strategy))
    ).aligner
    known = []
    for query in queries:
        pose = se3.inverse(truth[query.name])
        known.append(
            BasinQuery(
                query.name,
                lambda path=query.path: load_image(path),
                query.camera,
                pose,
                median_depth(localizer.map, pose, query.camera),
            )
        )
    with show_progress("basin") as progress:
        basin = measure_basin(localizer, known, options, args.label or args.map.stem, progress).to_json()
    write_text(args.output / "basin.json", json.dumps(basin, indent=2) + "\n")
    write_bytes(args.output / "basin.png", plot_basins([basin, *others]))
    print(format_basin(basin))
    print(f"{args.output / 'basin.json'}, {args.output / 'basin.png'}")
    return 0


def evenly_spaced(items: list, count: int) -> list:
    """At most `count` of the items, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(k * (len(items) - 1) / max(count - 1, 1))] for k in range(count)]

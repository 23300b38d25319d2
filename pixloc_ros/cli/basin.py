# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc basin`: convergence basin: share of successes and error against the initial error.

Starts the alignment of images of known pose further and further away: turned, shifted, and both at once, in fixed random
directions. A start succeeds where the pose ends within 0.5 degrees and 1 % of the depth. Prints a table and writes basin.json and
basin.png.

examples:
  pixloc basin --map fox.pixmap --images fox/images --cameras fox/queries/cameras.txt --truth fox/queries/truth.txt -o out/basin
  pixloc basin --map fox.pixmap --images fox/images --cameras fox/queries/cameras.txt --truth fox/queries/truth.txt \\
      -o out/paper --strategy paper --label paper --beside out/basin/basin.json

Files are those of 'pixloc localize': cameras.txt one camera an image, truth.txt 'name qw qx qy qz tx ty tz', camera_from_map.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .arguments import add_images, add_map, add_verb, option, path
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "basin", run, __doc__)
    add_map(parser, preset=False)
    add_images(parser)
    path(parser, "--truth", "FILE", "true poses; images without one are left out")
    path(parser, "-o --output", "DIR", "folder of basin.json and basin.png")
    option(parser, "--rotation", "DEG", "largest initial rotation error (default 40)", 40.0)
    distance = "largest initial distance, in per cent of the median depth in view (default 50)"
    option(parser, "--translation", "PERCENT", distance, 50.0)
    option(parser, "--steps", "N", "steps from zero to the largest (default 8)", 8)
    option(parser, "--starts", "N", "starts per image and step (default 1)", 1)
    option(parser, "--seed", "N", "of the directions (default 0)", 0)
    option(parser, "--max-images", "N", "so many, evenly spaced (default: all)", 0)
    strategy = "of the optimizer (default adaptive)"
    parser.add_argument("--strategy", choices=("adaptive", "paper"), default="adaptive", help=strategy)
    option(parser, "--label", "NAME", "of this run in the plot", "")
    others = "basin.json of other runs, drawn in the same plot"
    option(parser, "--beside", "FILE", others, type=Path, nargs="+", default=[])


def run(args: argparse.Namespace) -> int:
    from ..alignment import AlignmentOptions
    from ..errors import InputError
    from ..evaluation.basin import BasinOptions, BasinQuery, format_basin, measure_basin, median_depth, read_basin
    from ..evaluation.queries import read_queries
    from ..geometry import se3
    from ..io.files import match_names, write_bytes, write_text
    from ..io.images import load_image
    from ..io.trajectory import read_benchmark_poses
    from ..localization import Localizer
    from ..report.curves import plot_basins
    from ..tracking.frame_aligner import AlignerOptions

    options = BasinOptions(args.rotation, args.translation / 100, args.steps, args.starts, args.seed)
    others = [read_basin(path) for path in args.beside]
    asked = read_queries(args.images, args.cameras)
    truth = match_names([query.name for query in asked], read_benchmark_poses(args.truth))
    queries = [query for query in asked if query.name in truth]
    if not queries:
        raise InputError(f"{args.truth} has no pose for any of the images: its names must be those of {args.cameras}")
    if args.max_images < 0:
        raise InputError("--max-images must not be negative")
    if args.max_images:
        queries = evenly_spaced(queries, args.max_images)
    alignment = AlignmentOptions(strategy=args.strategy)
    aligner = Localizer.open(args.map, args.weights, AlignerOptions(alignment=alignment)).aligner
    known = []
    for query in queries:
        pose = se3.inverse(truth[query.name])
        depth = median_depth(aligner.map, pose, query.camera)
        known.append(BasinQuery(query.name, lambda path=query.path: load_image(path), query.camera, pose, depth))
    with show_progress("basin") as progress:
        basin = measure_basin(aligner, known, options, args.label or args.map.stem, progress).to_json()
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

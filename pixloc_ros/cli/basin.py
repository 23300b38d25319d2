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

import argparse
import json

from ..errors import InputError
from ..io.files import match_names, write_bytes, write_text
from .arguments import add_images, add_map, add_verb, option, path
from .lazy import alignment, evaluation, geometry, io, pixloc, report, tracking
from .progress import show_progress, tell_reasons


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "basin", run, __doc__)
    add_map(parser, preset=False)
    add_images(parser)
    path(parser, "--truth FILE", "true poses; images without one are left out")
    path(parser, "-o --output DIR", "folder of basin.json and basin.png")
    option(parser, "--rotation DEG", "largest initial rotation error", 40.0)
    option(parser, "--translation PERCENT", "largest initial distance, in per cent of the median depth in view", 50.0)
    option(parser, "--steps N", "steps from zero to the largest", 8)
    option(parser, "--starts N", "starts per image and step", 1)
    option(parser, "--seed N", "of the directions", 0)
    option(parser, "--max-images N", "so many, evenly spaced (default: all)", 0)
    option(parser, "--strategy NAME", "of the optimizer: adaptive (default) or paper", "adaptive", choices=("adaptive", "paper"))
    option(parser, "--label NAME", "of this run in the plot", "")
    option(parser, "--beside FILE", "basin.json of other runs, drawn in the same plot", default=[], nargs="+")


def run(args: argparse.Namespace) -> int:
    starts = evaluation.basin.BasinOptions(args.rotation, args.translation / 100, args.steps, args.starts, args.seed)
    others = [evaluation.basin.read_basin(path) for path in args.beside]
    left_out: dict[str, str] = {}
    asked = evaluation.queries.read_queries(args.images, args.cameras, left_out)
    tell_reasons("left out", left_out, "pixloc localize --json FILE")
    truth = match_names([query.name for query in asked], io.trajectory.read_benchmark_poses(args.truth))
    queries = [query for query in asked if query.name in truth]
    if not queries:
        raise InputError(f"{args.truth} has no pose for any of the images: its names must be those of {args.cameras}")
    if args.max_images < 0:
        raise InputError("--max-images must not be negative")
    if args.max_images:
        queries = evenly_spaced(queries, args.max_images)
    options = tracking.frame_aligner.AlignerOptions(alignment=alignment.AlignmentOptions(strategy=args.strategy))
    aligner = pixloc.Localizer.open(args.map, args.weights, options).aligner
    known = []
    for query in queries:
        pose = geometry.se3.inverse(truth[query.name])
        depth = evaluation.basin.median_depth(aligner.map, pose, query.camera)
        known.append(
            evaluation.basin.BasinQuery(query.name, lambda path=query.path: io.images.load_image(path), query.camera, pose, depth)
        )
    with show_progress("basin") as progress:
        basin = evaluation.basin.measure_basin(aligner, known, starts, args.label or args.map.stem, progress).to_json()
    write_text(args.output / "basin.json", json.dumps(basin, indent=2) + "\n")
    write_bytes(args.output / "basin.png", report.curves.plot_basins([basin, *others]))
    print(evaluation.basin.format_basin(basin))
    print(f"{args.output / 'basin.json'}, {args.output / 'basin.png'}")
    return 0


def evenly_spaced(items: list, count: int) -> list:
    """At most `count` of the items, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(k * (len(items) - 1) / max(count - 1, 1))] for k in range(count)]

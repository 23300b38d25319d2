# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc localize`: find the poses of single images in a map.

Aligns each image with the map, from its prior or, without one, from similar keyframes. Writes 'name qw qx qy qz tx ty tz'
(camera_from_map), in the order of the input; images without a pose are left out and counted.

A prior holds the pose as far as the image leaves it open, by how far off it may be: --prior-std, or two more columns of its
line, degrees and a share of the depth or metres (standard deviations of the whole angle and the whole distance). The depth is
the median depth of the map points that the prior sees.

examples:
  pixloc localize --map site.pixmap --images queries --cameras queries/cameras.txt -o poses.txt
  pixloc localize --map site.pixmap --images list.txt --cameras cameras.txt --prior priors.txt -o poses.txt --json stats.json
  pixloc localize --map site.pixmap --images queries --cameras cameras.txt --prior gps.txt --prior-std 10 3m -o poses.txt

cameras.txt: NAME MODEL WIDTH HEIGHT PARAMS... as in COLMAP, for example
  0001.jpg PINHOLE 640 480 517.3 516.5 319.1 255.8
a line of --prior, the last two words where they are known:
  0001.jpg 0.98 0.01 0.19 0.02 1.3 -0.2 4.1 5 10%
"""

import argparse
import json

from ..errors import InputError
from ..io.files import match_names, write_text
from .arguments import add_execution, add_images, add_map, add_prior_std, add_verb, open_localizer, option, path, read_priors
from .lazy import evaluation, io
from .progress import show_progress, tell_reasons


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "localize", run, __doc__)
    add_map(parser)
    add_images(parser)
    option(parser, "--prior FILE", "rough poses, in the format of the output")
    add_prior_std(parser)
    path(parser, "-o --output FILE")
    option(parser, "--json FILE", "write counts and times")
    add_execution(parser)


def run(args: argparse.Namespace) -> int:
    left_out: dict[str, str] = {}
    queries = evaluation.queries.read_queries(args.images, args.cameras, left_out)
    missing: list[str] = []
    priors, stds = read_priors(args, missing)
    if args.prior and not match_names([query.name for query in queries], priors):
        raise InputError(f"{args.prior} has no pose for any of the images: its names must be those of {args.cameras}")
    localizer = open_localizer(args)
    with show_progress("localize") as progress:
        results = evaluation.queries.localize_queries(localizer, queries, priors, progress, stds)
    results += [evaluation.queries.QueryResult(name, None, "none", 0.0, reason) for name, reason in left_out.items()]
    io.trajectory.write_benchmark_poses(args.output, {r.name: r.camera_from_map for r in results if not r.reason})
    stats = evaluation.queries.query_figures(results)
    if args.json:
        write_text(args.json, json.dumps(stats, indent=2) + "\n")
    times = "" if stats["frame_ms_p50"] is None else f", {stats['frame_ms_p50']:.0f} ms an image"
    print(f"{args.output}: {stats['localized']} of {stats['images']} images localized{times}")
    if turned := io.images.exif_remark({query.name: query.path for query in queries}):
        print(f"  {turned}")
    if missing:
        print(f"  {len(missing)} priors hold no pose ({missing[0]}): their images were searched for in the whole map")
    for doubt, count in stats["doubts"].items():
        print(f"  {count} doubtful, written too: {doubt} (see --json)")
    tell_reasons("  no pose for", {r.name: r.reason for r in results if r.reason}, "--json FILE")
    return 0 if stats["localized"] else 1

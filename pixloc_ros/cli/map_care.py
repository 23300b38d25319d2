# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map merge | prune | check | export | re-encode`: care of maps."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .map_common import ProgressLine, add_common, check_common, contents, describe, save, size


def add_parsers(sources) -> None:
    _add_merge(sources)
    _add_prune(sources)
    _add_check(sources)
    _add_export(sources)
    _add_re_encode(sources)


def _parser(sources, name: str, help_: str, description: str, examples: str, run) -> argparse.ArgumentParser:
    parser = sources.add_parser(
        name,
        help=help_,
        description=description,
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _output(parser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pixmap")


def _add_merge(sources) -> None:
    parser = _parser(
        sources,
        "merge",
        "put several maps together: sessions of one place, or places beside each other",
        "Points that two maps share become one, with what they looked like in both. The maps must be in one frame, or "
        "--second-pose says how the second lies in the first.",
        "pixloc map merge morning.pixmap evening.pixmap -o site.pixmap",
        _run_merge,
    )
    parser.add_argument("maps", type=Path, nargs="+", metavar="FILE")
    parser.add_argument(
        "--second-pose",
        nargs=7,
        metavar=("X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="pose of the second map's frame in the first's, for two maps",
    )
    _output(parser)


def _add_prune(sources) -> None:
    parser = _parser(
        sources,
        "prune",
        "make a map smaller",
        "Leaves out keyframes and points, and stores descriptors in fewer bits. docs/evidence/maps.md: what each costs.",
        "pixloc map prune site.pixmap -o small.pixmap --points-per-keyframe 300 --int8",
        _run_prune,
    )
    parser.add_argument("map", type=Path, metavar="FILE")
    _output(parser)
    parser.add_argument("--points-per-keyframe", type=int, metavar="N", help="at most so many, spread over the image")
    parser.add_argument(
        "--keyframe-spacing",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="leave out keyframes nearer to another than this share of the scene's depth, if turned by less than 8 degrees",
    )
    parser.add_argument("--min-track-length", type=int, default=0, metavar="N", help="points that at least N keyframes see")
    parser.add_argument("--min-quality", type=float, default=0.0, metavar="Q", help="points at least so alike, 0 to 1")
    parser.add_argument("--int8", action="store_true", help="descriptors in eight bits, half the size")


def _add_check(sources) -> None:
    parser = _parser(
        sources,
        "check",
        "is a map whole and sound",
        "Compares the whole content with its checksums and looks for what does not fit together. Exit code 1 where the map "
        "should not be used so.",
        "pixloc map check site.pixmap",
        _run_check,
    )
    parser.add_argument("map", type=Path, metavar="FILE")


def _add_export(sources) -> None:
    parser = _parser(
        sources,
        "export",
        "write a map for other programs",
        "COLMAP's text format (poses, cameras of the shrunk images, points and where they project) or a point cloud.",
        "pixloc map export site.pixmap --colmap model\n  pixloc map export site.pixmap --ply points.ply",
        _run_export,
    )
    parser.add_argument("map", type=Path, metavar="FILE")
    parser.add_argument("--colmap", type=Path, metavar="DIR", help="write cameras.txt, images.txt, points3D.txt")
    parser.add_argument("--ply", type=Path, metavar="FILE", help="write points (grey: quality) and keyframes (red)")


def _add_re_encode(sources) -> None:
    parser = _parser(
        sources,
        "re-encode",
        "make a map anew with another network, from its images",
        "Keyframes and points stay; their features are those of --weights.",
        "pixloc map re-encode site.pixmap --images images --weights vgg.safetensors -o site_vgg.pixmap",
        _run_re_encode,
    )
    parser.add_argument("map", type=Path, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="what the keyframes' names are relative to")
    add_common(parser)


def _run_merge(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..io.trajectory import parse_pose
    from ..mapping import Map
    from ..mapping.build.care import merge, moved

    maps = [Map.open(path) for path in args.maps]
    if args.second_pose:
        if len(maps) != 2:
            raise InputError("--second-pose goes with two maps: merge the others afterwards")
        maps[1] = moved(maps[1], parse_pose(args.second_pose, "--second-pose"))
    merged, report = merge(maps, [path.stem for path in args.maps])
    merged.save(args.output)
    print(f"{args.output}: {contents(describe(merged, args.output))}; {report.fused} points were in more than one map")
    if report.fused == 0:
        print("no point was: if the maps show one place, they are not in one frame")
    return 0


def _run_prune(args: argparse.Namespace) -> int:
    from ..mapping import Map
    from ..mapping.build.care import PruneOptions, prune

    options = PruneOptions(args.keyframe_spacing, args.points_per_keyframe, args.min_track_length, args.min_quality, args.int8)
    prune(Map.open(args.map), options).save(args.output)
    before, after = describe(Map.open(args.map), args.map), describe(Map.open(args.output), args.output)
    print(f"{args.map}: {contents(before)}, {size(before['bytes'])}")
    print(f"{args.output}: {contents(after)}, {size(after['bytes'])}")
    return 0


def _run_check(args: argparse.Namespace) -> int:
    from ..mapping import Map
    from ..mapping.build.care import check

    findings = check(Map.open(args.map, verify=True))
    for finding in findings:
        print(f"{'serious' if finding.serious else 'note'}: {finding.text}")
    serious = any(finding.serious for finding in findings)
    print(f"{args.map}: contents match their checksums; {'not sound' if serious else 'sound'}")
    return int(serious)


def _run_export(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..mapping import Map
    from ..mapping.build.export import export_colmap, export_ply

    if args.colmap is None and args.ply is None:
        raise InputError("nothing to write: give --colmap DIR or --ply FILE")
    map_ = Map.open(args.map, verify=True)
    if args.colmap is not None:
        export_colmap(map_, args.colmap)
        print(f"{args.colmap}: {contents(describe(map_, args.map))}")
    if args.ply is not None:
        export_ply(map_, args.ply)
        print(f"{args.ply}: {len(map_.xyz)} points, {len(map_.keyframe_names)} keyframes")
    return 0


def _run_re_encode(args: argparse.Namespace) -> int:
    from ..features import load_extractor
    from ..mapping import Map
    from ..mapping.build.care import re_encode

    check_common(args)
    begin = time.monotonic()
    with ProgressLine() as progress:
        map_, report = re_encode(Map.open(args.map), args.images, load_extractor(args.weights), args.working_side, progress)
    save(map_, report, args.output, begin)
    return 0

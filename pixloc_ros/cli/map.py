# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map`: make maps, look into them, care for them."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from . import map_bag, map_care, map_georeference
from .map_common import ProgressLine, add_common, check_common, contents, describe, save, size


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "map",
        help="make a map from a rosbag, a COLMAP model or a posed RGB-D sequence, look into one, mend one",
        description="A map (*.pixmap) holds the points of a place and the features that its images had there; the "
        "images themselves are not needed afterwards.",
        epilog="examples:\n  pixloc map bag drive_bag -o site.pixmap\n"
        "  pixloc map colmap --model sparse/0 --images images -o site.pixmap\n"
        "  pixloc map rgbd --sequence rgbd_dataset_freiburg1_desk -o desk.pixmap\n  pixloc map info site.pixmap",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)
    map_bag.add_parser(sources)
    _add_colmap(sources)
    _add_rgbd(sources)
    _add_info(sources)
    map_georeference.add_parser(sources)
    map_care.add_parsers(sources)


def _add_colmap(sources) -> None:
    parser = sources.add_parser(
        "colmap",
        help="make a map from a COLMAP model and its images",
        description="Reads text and binary models of all COLMAP versions, with and without rigs. The map frame is the "
        "model's; it should be metric (colmap model_aligner).",
        epilog="example:\n  pixloc map colmap --model sparse/0 --images images -o site.pixmap",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="cameras, images, points3D as .bin or .txt")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="what the model's image names are relative to")
    parser.add_argument(
        "--min-track-length", type=int, default=2, metavar="N", help="use points that at least N images see (default 2)"
    )
    parser.add_argument(
        "--max-error",
        type=float,
        default=4.0,
        metavar="PX",
        help="leave out observations farther than this from their point's projection (default 4)",
    )
    add_common(parser)
    parser.set_defaults(run=_run_colmap)


def _add_rgbd(sources) -> None:
    parser = sources.add_parser(
        "rgbd",
        help="make a map from a posed RGB-D sequence in TUM format",
        description="The folder holds rgb.txt, depth.txt, groundtruth.txt (camera poses in the map), camera.txt (one "
        "line: MODEL WIDTH HEIGHT PARAMS..., as in COLMAP's cameras.txt; or give --camera).",
        epilog="examples:\n  pixloc map rgbd --sequence recording -o room.pixmap\n"
        "  pixloc map rgbd --sequence rgbd_dataset_freiburg1_desk -o desk.pixmap \\\n"
        '      --camera "OPENCV 640 480 517.3 516.5 319.1 255.8 0.2624 -0.9531 -0.0054 0.0026" --depth-scale 5000',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sequence", type=Path, required=True, metavar="DIR")
    parser.add_argument("--camera", metavar="LINE", help='"MODEL WIDTH HEIGHT PARAMS...", instead of camera.txt')
    parser.add_argument(
        "--depth-scale",
        type=float,
        metavar="N",
        help="units of the depth images per metre, 5000 for TUM's, 1000 for millimetres (default: whichever of "
        "the two makes the images agree)",
    )
    add_common(parser)
    parser.set_defaults(run=_run_rgbd)


def _add_info(sources) -> None:
    parser = sources.add_parser(
        "info",
        help="what a map holds",
        description="What a map holds.",
        epilog="example:\n  pixloc map info site.pixmap",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("map", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_info)


def _run_colmap(args: argparse.Namespace) -> int:
    from ..features import load_extractor
    from ..mapping.build import build_map_from_colmap

    check_common(args)
    begin = time.monotonic()
    with ProgressLine() as progress:
        map_, report = build_map_from_colmap(
            args.model,
            args.images,
            load_extractor(args.weights),
            args.min_track_length,
            args.max_error,
            args.working_side,
            args.output.stem,
            progress,
        )
    save(map_, report, args.output, begin)
    return 0


def _run_rgbd(args: argparse.Namespace) -> int:
    from ..features import load_extractor
    from ..geometry.cameras import Camera
    from ..mapping.build import build_map_from_rgbd

    check_common(args)
    begin = time.monotonic()
    camera = Camera.parse_colmap_line(args.camera) if args.camera else None
    with ProgressLine() as progress:
        map_, report, scale = build_map_from_rgbd(
            args.sequence, load_extractor(args.weights), camera, args.depth_scale, args.working_side, args.output.stem, progress
        )
    print(f"depth scale {scale.value:g} units per metre, {scale.reason}")
    save(map_, report, args.output, begin)
    return 0


def _run_info(args: argparse.Namespace) -> int:
    from ..mapping import Map

    map_ = Map.open(args.map)
    info = describe(map_, args.map)
    if args.json:
        print(json.dumps(info, indent=2))
        return 0
    print(f"map '{map_.name}', {size(info['bytes'])}")
    print(f"  {contents(info)}")
    print(
        f"  points per keyframe: median {info['observations_per_keyframe_median']:.0f}; "
        f"keyframes per point: mean {info['track_length_mean']:.1f}; scene depth: median {info['depth_median']:.3g}"
    )
    print(f"  keyframes span {' x '.join(f'{side:.3g}' for side in info['extent'])} (x, y, z of the map frame)")
    for camera in info["cameras"]:
        print(f"  camera {camera['model']} {camera['width']}x{camera['height']}, focal {camera['params'][0]:.1f} px")
    network = info["extractor"]
    print(
        f"  network '{network['name']}' ({network['fingerprint']}), strides {', '.join(map(str, network['strides']))}, "
        f"channels {', '.join(map(str, network['channels']))}, images of at most {network['working_side']} px"
    )
    return 0

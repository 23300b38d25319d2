# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map`: make a map from a COLMAP model or an RGB-D sequence, and look into one."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "map",
        help="make a map from a COLMAP model or a posed RGB-D sequence, or look into one",
        description="A map (*.pixmap) holds the points of a place and the features that its images had there; the "
        "images themselves are not needed afterwards.",
        epilog="examples:\n  pixloc map colmap --model sparse/0 --images images -o site.pixmap\n"
        "  pixloc map rgbd --sequence rgbd_dataset_freiburg1_desk -o desk.pixmap\n  pixloc map info site.pixmap",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)
    _add_colmap(sources)
    _add_rgbd(sources)
    _add_info(sources)


def _add_colmap(sources) -> None:
    parser = sources.add_parser(
        "colmap",
        help="make a map from a COLMAP model and its images",
        description="Reads text and binary models of all COLMAP versions, with and without rigs. The map frame is the "
        "model's; it should be metric (colmap model_aligner).",
        epilog="example:\n  pixloc map colmap --model sparse/0 --images images -o site.pixmap",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="cameras, images, points3D as .bin or .txt"
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="what the model's image names are relative to"
    )
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
    _add_common(parser)
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
    _add_common(parser)
    parser.set_defaults(run=_run_rgbd)


def _add_common(parser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pixmap")
    parser.add_argument(
        "--weights",
        default="compact",
        metavar="W",
        help="network: a shipped name or a .safetensors file; localize with the same (default compact)",
    )
    parser.add_argument(
        "--working-side", type=int, metavar="PX", help="shrink images to this longer side (default: the network's, 640)"
    )


def _add_info(sources) -> None:
    parser = sources.add_parser(
        "info",
        help="what a map holds",
        description="What a map holds, and whether it is sound.",
        epilog="example:\n  pixloc map info site.pixmap --verify",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("map", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--verify", action="store_true", help="check the whole content against its checksums")
    parser.set_defaults(run=_run_info)


def _run_colmap(args: argparse.Namespace) -> int:
    from ..features import load_extractor
    from ..mapping import build_map_from_colmap

    _check_common(args)
    begin = time.monotonic()
    with _ProgressLine() as progress:
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
    _save(map_, report, args.output, begin)
    return 0


def _run_rgbd(args: argparse.Namespace) -> int:
    from ..features import load_extractor
    from ..geometry.cameras import Camera
    from ..mapping import build_map_from_rgbd

    _check_common(args)
    begin = time.monotonic()
    camera = Camera.parse_colmap_line(args.camera) if args.camera else None
    with _ProgressLine() as progress:
        map_, report, scale = build_map_from_rgbd(
            args.sequence,
            load_extractor(args.weights),
            camera,
            args.depth_scale,
            args.working_side,
            args.output.stem,
            progress,
        )
    print(f"depth scale {scale.value:g} units per metre, {scale.reason}")
    _save(map_, report, args.output, begin)
    return 0


def _run_info(args: argparse.Namespace) -> int:
    from ..mapping import Map

    map_ = Map.open(args.map, verify=args.verify)
    info = _describe(map_, args.map)
    if args.json:
        print(json.dumps(info | {"verified": args.verify}, indent=2))
        return 0
    print(f"map '{map_.name}', {_size(info['bytes'])}{', contents match their checksums' if args.verify else ''}")
    print(f"  {_contents(info)}")
    print(
        f"  points per keyframe: median {info['observations_per_keyframe_median']:.0f}; "
        f"keyframes per point: mean {info['track_length_mean']:.1f}; scene depth: median {info['depth_median']:.3g}"
    )
    print(f"  keyframes span {' x '.join(f'{side:.3g}' for side in info['extent'])} (x, y, z of the map frame)")
    for camera in info["cameras"]:
        print(
            f"  camera {camera['model']} {camera['width']}x{camera['height']}, focal {camera['params'][0]:.1f} px"
        )
    network = info["extractor"]
    print(
        f"  network '{network['name']}' ({network['fingerprint']}), strides {', '.join(map(str, network['strides']))}, "
        f"channels {', '.join(map(str, network['channels']))}, images of at most {network['working_side']} px"
    )
    return 0


def _describe(map_, path: Path) -> dict:
    import numpy as np

    centres = map_.map_from_keyframe[:, :3, 3].numpy()
    return {
        "name": map_.name,
        "bytes": path.stat().st_size,
        "keyframes": len(map_.keyframe_names),
        "points": len(map_.xyz),
        "observations": len(map_.observation_point),
        "observations_per_keyframe_median": float(np.median(np.diff(map_.observation_offsets))),
        "track_length_mean": len(map_.observation_point) / max(len(map_.xyz), 1),
        "depth_median": float(np.median(map_.keyframe_depth)),
        "extent": (centres.max(0) - centres.min(0)).tolist(),
        "cameras": [
            {"model": camera.model, "width": camera.width, "height": camera.height, "params": camera.params.tolist()}
            for camera in map_.cameras
        ],
        "extractor": {
            "name": map_.extractor_name,
            "fingerprint": map_.extractor_fingerprint,
            "strides": list(map_.strides),
            "channels": list(map_.channels),
            "working_side": map_.working_side,
        },
    }


def _check_common(args: argparse.Namespace) -> None:
    """What would otherwise come out only after the work."""
    from ..errors import InputError

    if args.working_side is not None and args.working_side < 64:
        raise InputError(f"--working-side {args.working_side}: give at least 64 pixels")
    if getattr(args, "min_track_length", 1) < 1 or not getattr(args, "max_error", 1.0) > 0:
        raise InputError("--min-track-length must be at least 1 and --max-error above 0")
    if args.output.is_dir():
        raise InputError(f"{args.output} is a folder: name the map's file, for example {args.output / 'site.pixmap'}")


def _save(map_, report, output: Path, begin: float) -> None:
    map_.save(output)
    if report.missing:
        print(f"left out {_some(report.missing)}: not found or not readable")
    if report.empty:
        print(f"left out {_some(report.empty)}: no point to see there")
    info = _describe(map_, output)
    print(f"{output}: {_contents(info)}, {_size(info['bytes'])}, made in {time.monotonic() - begin:.1f} s")


def _contents(info: dict) -> str:
    return f"{info['keyframes']} keyframes, {info['points']} points, {info['observations']} observations"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({shown}{', ...' if len(names) > 3 else ''})"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


class _ProgressLine:
    """One line on the terminal that is written over; nothing where stderr is not a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> _ProgressLine:
        return self

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._shown:
            line = f"{done}/{total} {what}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

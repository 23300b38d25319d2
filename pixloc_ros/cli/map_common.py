# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the actions of `pixloc map` share."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path


def add_common(parser) -> None:
    """The options of everything that makes a map of images."""
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


def describe(map_, path: Path) -> dict:
    """What a map holds, for JSON."""
    import numpy as np

    from ..mapping.map_file import describe_camera

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
        "cameras": [describe_camera(camera) for camera in map_.cameras],
        "extractor": {
            "name": map_.extractor_name,
            "fingerprint": map_.extractor_fingerprint,
            "strides": list(map_.strides),
            "channels": list(map_.channels),
            "working_side": map_.working_side,
        },
    }


def check_common(args: argparse.Namespace) -> None:
    """What would otherwise come out only after the work."""
    from ..errors import InputError

    if args.working_side is not None and args.working_side < 64:
        raise InputError(f"--working-side {args.working_side}: give at least 64 pixels")
    if getattr(args, "min_track_length", 1) < 1 or not getattr(args, "max_error", 1.0) > 0:
        raise InputError("--min-track-length must be at least 1 and --max-error above 0")
    if args.output.is_dir():
        raise InputError(f"{args.output} is a folder: name the map's file, for example {args.output / 'site.pixmap'}")


def save(map_, report, output: Path, begin: float) -> None:
    """Write a map that was made of images and say what it holds. begin: of the work, seconds of the monotonic clock."""
    map_.save(output)
    if report.missing:
        print(f"left out {some(report.missing)}: not found or not readable")
    if report.empty:
        print(f"left out {some(report.empty)}: no point to see there")
    info = describe(map_, output)
    print(f"{output}: {contents(info)}, {size(info['bytes'])}, made in {time.monotonic() - begin:.1f} s")


def contents(info: dict) -> str:
    """The counts of a description, for people."""
    return f"{info['keyframes']} keyframes, {info['points']} points, {info['observations']} observations"


def some(names: tuple[str, ...]) -> str:
    """How many images, and the names of some."""
    shown = ", ".join(names[:3])
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({shown}{', ...' if len(names) > 3 else ''})"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


class ProgressLine:
    """One line on the terminal that is written over; nothing where stderr is not a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> ProgressLine:
        return self

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._shown:
            line = f"{done}/{total} {what}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

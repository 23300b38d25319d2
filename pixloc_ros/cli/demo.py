# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc demo`: a drive tracked through the live node, from nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .help_format import HelpFormatter
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="simulate a drive, map it, track another drive through the live ROS 2 node, report",
        description="Drives a robot twice through a small textured world. The first drive becomes a map; the second one (other "
        "path, light and speed, wheel odometry that slips) is played to localization_node over DDS, in real time. "
        "Ends with a table; index.html shows the path, the errors and what the camera saw. With --data, a "
        "recorded scene takes the place of the simulation. The world and the map are kept for the next run.",
        epilog="examples:\n  pixloc demo\n  pixloc demo --seconds 10\n  pixloc demo --data ../shared/data/kitti07",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="SCENE",
        help="a folder with map/ (COLMAP), images/ and drive/ (bag), instead of the simulation",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("out/demo"), metavar="DIR", help="default out/demo")
    parser.add_argument("--seconds", type=float, default=25.0, metavar="S", help="length of the simulated drive (default 25)")
    parser.add_argument("--rate", type=float, default=1.0, metavar="R", help="speed of the clock (default 1: real time)")
    parser.add_argument(
        "--all-frames",
        action="store_true",
        help="the node works through every image in order; default: it drops those it has no time for",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..evaluation.tables import format_demo
    from ..io.bags import BagReader
    from ..rig.replay import ReplayOptions
    from .replaying import replay_and_report

    if not args.rate > 0:
        raise InputError("--rate must be positive: 1 is real time")
    if args.data is None:
        print("1/3 world: two drives through a simulated workshop", flush=True)
        scene = _simulated_world(args.output / "world", args.seconds)
        name = "a simulated drive"
    else:
        print(f"1/3 scene: {args.data}", flush=True)
        scene, name = _checked_scene(args.data), f"the drive of {args.data.name}"
    print("2/3 map: features of the mapping drive's images", flush=True)
    map_path = _cached_map(scene, args.output / f"{scene.name}.pixmap")
    print("3/3 replay: the other drive, played to the live node over DDS", flush=True)
    with BagReader(scene / "drive") as bag, show_progress("replay") as progress:
        lead = (
            f"Tracking {name} with the live ROS 2 node at {args.rate:g} times real time: {bag.image_count} images, each "
            "aligned with a map made from another drive's images."
            if args.data is None
            else f"Tracking {name} with the live ROS 2 node at {args.rate:g} times real time: {bag.image_count} images, each "
            "aligned with a map. Images that the map was made of are not scored."
        )
        stats = replay_and_report(
            map_path,
            bag,
            None,
            args.output,
            ReplayOptions(args.rate, args.all_frames),
            _map_stride(scene),
            progress,
            "index.html",
            "pixloc demo",
            lead,
        )
    print("\n" + format_demo(stats))
    print(f"\nfigures: {args.output / 'summary.json'}    page: {args.output / 'index.html'}")
    return 1 if stats["problems"] else 0


def _simulated_world(folder: Path, seconds: float) -> Path:
    """The simulation in `folder`, made unless it is there with the same options."""
    import dataclasses

    from pixloc_sim.recordings import SUMMARY, SimulationOptions, simulate

    options = SimulationOptions(seconds=seconds)
    wanted = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("camera", "workers", "rgbd")}
    try:
        there = json.loads((folder / SUMMARY).read_text())["options"]
    except (OSError, ValueError, KeyError):
        there = {}
    if {k: there.get(k) for k in wanted} == wanted:
        print("    kept from the last run", flush=True)
        return folder
    with show_progress("   ") as progress:
        simulate(folder, options, lambda what, done, of: progress(done, of, what))
    return folder


def _checked_scene(scene: Path) -> Path:
    from ..errors import InputError

    missing = [part for part in ("map", "images", "drive") if not (scene / part).is_dir()]
    if missing:
        raise InputError(f"{scene} has no folder {' and no '.join(missing)}: a scene is map/ (COLMAP), images/ and drive/ (bag)")
    return scene


def _cached_map(scene: Path, path: Path) -> Path:
    """The scene's map, made unless it is there, newer than the scene and of the same network."""
    from ..errors import InputError
    from ..features import load_extractor
    from ..mapping import Map
    from ..mapping.build import build_map_from_colmap

    extractor = load_extractor()
    newest = max(file.stat().st_mtime for file in (scene / "map").iterdir())
    try:
        if path.stat().st_mtime > newest:
            Map.open(path).require_extractor(extractor)
            print("    kept from the last run", flush=True)
            return path
    except (OSError, InputError):
        pass
    with show_progress("   ") as progress:
        map_, _ = build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)
    map_.save(path)
    print(f"    {len(map_.keyframe_names)} images, {len(map_.xyz)} points, {path.stat().st_size / 2**20:.1f} MiB", flush=True)
    return path


def _map_stride(scene: Path) -> int:
    """n, if scene.json says that the map was made of every n-th image of the drive, else 0."""
    try:
        description = json.loads((scene / "scene.json").read_text())
        references, queries = description["refs"], description["queries"]
    except (OSError, ValueError, KeyError):
        return 0
    names = sorted({*references, *queries})
    stride = round(len(names) / max(len(references), 1))
    return stride if stride > 1 and names[::stride] == sorted(references) else 0

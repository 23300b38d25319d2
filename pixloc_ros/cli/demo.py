# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc demo`: simulate a drive, map it, track another drive through the live ROS 2 node, report.

Drives a robot twice through a small textured world. The first drive becomes a map; the second one (other path, light and speed,
wheel odometry that slips) is played to localization_node over DDS, in real time. Ends with a table; index.html shows the path,
the errors and what the camera saw. With --data, a recorded scene takes the place of the simulation. The world and the map are
kept for the next run.

examples:
  pixloc demo
  pixloc demo --seconds 10
  pixloc demo --data ../shared/data/kitti07
"""

import argparse
import dataclasses
import json
from pathlib import Path

from ..errors import InputError
from .arguments import add_verb, option
from .lazy import evaluation, io, pixloc, rig
from .progress import show_progress
from .replay import add_pace, check_pace, replay_and_report


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "demo", run, __doc__)
    option(parser, "--data SCENE", "a folder with map/ (COLMAP), images/ and drive/ (bag), instead of the simulation")
    option(parser, "-o --output DIR", "made, or gone on with", Path("out/demo"))
    option(parser, "--seconds S", "length of the simulated drive", 25.0)
    add_pace(parser)


def run(args: argparse.Namespace) -> int:
    check_pace(args)
    if args.data is None:
        print("1/3 world: two drives through a simulated workshop", flush=True)
        scene = _simulated_world(args.output / "world", args.seconds)
        name, mapped = "a simulated drive", "made from another drive's images."
    else:
        print(f"1/3 scene: {args.data}", flush=True)
        scene, name = _checked_scene(args.data), f"the drive of {args.data.name}"
        mapped = "of the same place. Images that the map was made of are not scored."
    print("2/3 map: features of the mapping drive's images", flush=True)
    map_path = _cached_map(scene, args.output / f"{scene.name}.pixmap")
    print("3/3 replay: the other drive, played to the live node over DDS", flush=True)
    with io.bags.BagReader(scene / "drive") as bag:
        lead = (
            f"Tracking {name} with the live ROS 2 node at {args.rate:g} times real time: {bag.image_count} images, each aligned "
            f"with a map {mapped}"
        )
        options, page = rig.replay.ReplayOptions(args.rate, args.all_frames), ("index.html", "pixloc demo", lead)
        stats = replay_and_report(map_path, bag, None, args.output, options, _map_stride(scene), page)
    print("\n" + evaluation.tables.format_demo(stats))
    print(f"\nfigures: {args.output / 'summary.json'}    page: {args.output / 'index.html'}")
    return 1 if stats["problems"] else 0


def _simulated_world(folder: Path, seconds: float) -> Path:
    """The simulation in `folder`, made unless it is there with the same options."""
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
    missing = [part for part in ("map", "images", "drive") if not (scene / part).is_dir()]
    if missing:
        raise InputError(f"{scene} has no folder {' and no '.join(missing)}: a scene is map/ (COLMAP), images/ and drive/ (bag)")
    return scene


def _cached_map(scene: Path, path: Path) -> Path:
    """The scene's map, made unless it is there, newer than the scene and of the same network."""
    extractor = pixloc.load_extractor()
    newest = max(file.stat().st_mtime for file in (scene / "map").iterdir())
    try:
        if path.stat().st_mtime > newest:
            pixloc.Map.open(path).require_extractor(extractor)
            print("    kept from the last run", flush=True)
            return path
    except (OSError, InputError):
        pass
    with show_progress("   ") as progress:
        map_, _ = pixloc.build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)
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

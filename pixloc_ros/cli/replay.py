# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc replay`: play a bag to the live ROS 2 node over DDS and score what it publishes.

Starts localization_node, plays the bag with /clock, records poses, status and TF, and writes the run (run.json, poses.tum;
'pixloc evaluate' compares runs), summary.json, report.html, recording.jsonl and node.log. Ends with 1 if the node did what it
must never do (an image neither tracked nor reported, a TF chain that differs from the pose, a failed TF lookup).

examples:
  pixloc replay --map site.pixmap drive_bag -o out/replay
  pixloc replay --map site.pixmap drive_bag --rate 0.5 --all-frames -o out/replay
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..io.files import write_text
from .arguments import add_bag, add_cameras, add_imu, add_verb, bag_options, camera_names, flag, initial_pose, option, path
from .lazy import evaluation, io, pixloc, report, rig
from .progress import show_progress
from .track import about_run


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "replay", run, __doc__)
    add_bag(parser)
    add_cameras(parser)
    add_imu(parser)
    path(parser, "-o --output DIR")
    add_pace(parser)


def add_pace(parser) -> None:
    option(parser, "--rate R", "speed of the clock (default 1: real time)", 1.0)
    flag(parser, "--all-frames", "the node works through every image in order; default: it drops those it has no time for")


def check_pace(args: argparse.Namespace) -> None:
    if not args.rate > 0:
        raise InputError("--rate must be positive: 1 is real time")


def run(args: argparse.Namespace) -> int:
    check_pace(args)
    options, start = bag_options(args), initial_pose(args)
    with io.rig_images.open_bag(args.bag, options, camera_names(args)) as bag:
        mount = (("mount_check", args.mount_check),)
        imu = io.bag_sensors.imu_topic(bag, args.imu_topic)
        replaying = rig.replay.ReplayOptions(args.rate, args.all_frames, args.weights, args.preset, mount, imu)
        stats = replay_and_report(args.map, bag, start, args.output, replaying, args.skip_map_frames)
    print(evaluation.tables.format_run(stats))
    for problem in stats["problems"]:
        print(f"PROBLEM: {problem}")
    print(f"report: {args.output / 'report.html'}")
    return 1 if stats["problems"] else 0


def replay_and_report(
    map_path: Path, bag, start, output: Path, options, skip_map_frames: int, page=("report.html", "pixloc replay", "")
) -> dict[str, object]:
    """Replays a bag and writes the run, summary.json, recording.jsonl, node.log and the page to a folder.

    Args:
        map_path: The map.
        bag: An open `BagReader`.
        start: map_from_base, None for the truth's.
        output: The folder.
        options: `ReplayOptions`.
        skip_map_frames: Every so many images are in the map, and not scored.
        page: File, title and lead of the page; by default the lead says what was played and how.

    Returns:
        The summary.
    """
    localizer = pixloc.Localizer.open(map_path, options.weights, options.preset)  # first: a bad map is reported in one line
    truth, odometry = bag.truth(), bag.odometry()
    start_ns, start = evaluation.offline.first_pose(bag, truth, start)
    with show_progress("replay") as progress:
        recording = rig.replay.replay(map_path, bag, start_ns, start, output / "node.log", options, progress)
    played = f"at {options.rate:g} times real time to the live node{', every image' if options.all_frames else ''}"
    about = about_run(bag, map_path, options.weights, options.preset, played)
    run = evaluation.live_run.as_run(recording, truth, odometry)
    run = replace(run, skip_map_frames=skip_map_frames, about=about, remarks=(*run.remarks, *bag.notes))
    result = evaluation.metrics.evaluate(run)
    stats = evaluation.live_run.live_figures(recording, result.figures, bag.base_from_camera)
    recording.write(output / "recording.jsonl")
    evaluation.runs.write_run(output, run)
    write_text(output / "summary.json", json.dumps(stats, indent=2, allow_nan=False) + "\n")
    name, title, lead = page
    lead = lead or f"{bag.path}, map {map_path.name}, played {played}."
    scene = report.run_report.scene_of(result, localizer, bag)
    write_text(output / name, report.run_report.run_report(title, lead, [result], scene, problems=stats["problems"]))
    return stats

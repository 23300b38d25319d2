# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc track`: track the camera of a bag against a map, offline and deterministic.

Runs the tracker over a bag in the order of the messages' stamps, without ROS and as fast as the machine can. Writes the poses of
the base in the map, figures, and a page with plots and pictures. Where the bag holds ground truth, it gives the start and the
errors.

examples:
  pixloc track --map site.pixmap drive_bag -o out/drive
  pixloc track --map site.pixmap drive.mcap -o out/drive --initial-pose 1.2 0.5 0 0 0 0.38 0.92
  pixloc track --map site.pixmap drive_bag -o out/drive --time-offset -0.08

'pixloc evaluate out/drive out/other' compares runs.
"""

import argparse
import json
from dataclasses import replace

from ..errors import InputError
from ..io.files import write_text
from .arguments import (
    add_bag,
    add_cameras,
    add_cold_start,
    add_execution,
    add_imu,
    add_verb,
    bag_options,
    camera_names,
    flag,
    initial_pose,
    open_localizer,
    path,
)
from .lazy import evaluation, io, report
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "track", run, __doc__)
    add_bag(parser)
    add_cameras(parser)
    add_cold_start(parser)
    add_imu(parser)
    path(parser, "-o --output DIR", "folder of poses.tum (stamp tx ty tz qx qy qz qw), run.json, summary.json and report.html")
    flag(parser, "--no-report", "leave report.html out, which takes some seconds")
    add_execution(parser)


def run(args: argparse.Namespace) -> int:
    options, start = bag_options(args), initial_pose(args)
    if args.output.is_file() or args.output.suffix in (".tum", ".txt", ".json", ".html"):
        raise InputError(f"-o {args.output}: give a folder; the poses go to poses.tum in it")
    localizer = open_localizer(args)
    with io.rig_images.open_bag(args.bag, options, camera_names(args)) as bag, show_progress("track") as progress:
        meter = evaluation.usage.UsageMeter()
        tracker = localizer.tracker()
        imu, unused = io.bag_sensors.find_sensor(bag, io.bag_sensors.IMU, args.imu_topic)
        how = {"cold_start": args.cold_start, "progress": progress, "ahead": True, "imu": imu}
        result = evaluation.offline.run_bag(tracker, bag, start, **how)
        result = replace(result, remarks=(*result.remarks, *filter(None, (unused,))))
        about = about_run(bag, args.map, args.weights, args.preset, "offline, image by image")
        result = replace(result, usage=meter.read(), skip_map_frames=args.skip_map_frames, about=about)
        evaluated = evaluation.metrics.evaluate(result)
        evaluation.runs.write_run(args.output, result)
        write_text(args.output / "summary.json", json.dumps(evaluated.figures, indent=2, allow_nan=False) + "\n")
        if not args.no_report:
            lead, scene = f"{args.bag}, map {args.map.name}, offline.", report.run_report.scene_of(evaluated, localizer, bag)
            write_text(args.output / "report.html", report.run_report.run_report("pixloc track", lead, [evaluated], scene))
    print(evaluation.tables.format_run(evaluated.figures))
    print(f"run: {args.output}" + ("" if args.no_report else f"    report: {args.output / 'report.html'}"))
    return 0 if evaluated.figures["published_frames"] else 1


def about_run(bag, map_path, weights: str, preset: str, played: str) -> dict[str, str]:
    """What a run's page tells of how it was made."""
    about = {"bag": str(bag.path), "map": str(map_path), "weights": weights, "preset": preset, "played": played}
    about["machine"], offset_s = evaluation.usage.machine_name(), bag.options.time_offset_s
    return about | ({"time offset": f"{offset_s:+g} s on the images' stamps"} if offset_s else {})

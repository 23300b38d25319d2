# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The options about a bag that `track` and `replay` share."""

from __future__ import annotations

import argparse
from pathlib import Path

_POSE = ("X", "Y", "Z", "QX", "QY", "QZ", "QW")


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 folder, .mcap or .db3 file, or ROS 1 .bag")
    parser.add_argument("--map", type=Path, required=True, metavar="FILE", help="made by 'pixloc map'")
    parser.add_argument(
        "--weights", default="compact", metavar="NAME|FILE", help="the network that made the map (default compact)"
    )
    parser.add_argument(
        "--preset", default="balanced", metavar="NAME", help="fast, balanced (default) or accurate: how much is spent on an image"
    )
    parser.add_argument(
        "--initial-pose",
        nargs=7,
        metavar=_POSE,
        help="of the base in the map at the first image (default: from the bag's ground truth)",
    )
    parser.add_argument(
        "--skip-map-frames",
        type=int,
        default=0,
        metavar="N",
        help="leave every N-th image, from the first on, out of the errors: those the map was made of",
    )
    parser.add_argument(
        "--time-offset",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds added to the images' stamps, as by the node's parameter time_offset: negative where the "
        "camera's driver stamped late (default 0)",
    )
    topics = parser.add_argument_group("what cannot be found in the bag by itself")
    topics.add_argument("--image-topic", metavar="NAME")
    topics.add_argument("--camera-info-topic", metavar="NAME")
    topics.add_argument("--odometry-topic", metavar="NAME", help="'tf': the transform odom -> base; 'none': there is none")
    topics.add_argument("--truth-topic", metavar="NAME", help="'tf:PARENT:CHILD': that transform; 'none': there is none")
    topics.add_argument("--odom-frame", default="odom", metavar="NAME", help="for odometry from TF (default odom)")
    topics.add_argument("--base-frame", metavar="NAME", help="default: the child frame of the odometry, or base_link")
    topics.add_argument(
        "--base-from-camera",
        nargs=7,
        metavar=_POSE,
        help="where the camera (optical axes) sits, if the bag has no static transforms",
    )


def bag_options(args: argparse.Namespace):
    """`BagOptions` of the arguments. Raises InputError for numbers that make no pose, and for a time offset the node would
    refuse."""
    from ..errors import InputError
    from ..io.bags import BagOptions
    from ..io.trajectory import parse_pose
    from ..node.parameters import BY_NAME

    if args.skip_map_frames < 0 or args.skip_map_frames == 1:
        raise InputError("--skip-map-frames takes 2 or more (every second, third, ... image), or 0 for none")
    least, most = BY_NAME["time_offset"].bounds
    if not least <= args.time_offset <= most:
        raise InputError(f"--time-offset {args.time_offset:g}: give seconds from {least:g} to {most:g}")
    mount = parse_pose(args.base_from_camera, "--base-from-camera") if args.base_from_camera else None
    return BagOptions(
        args.image_topic,
        args.camera_info_topic,
        args.odometry_topic,
        args.truth_topic,
        args.odom_frame,
        args.base_frame,
        mount,
        args.time_offset,
    )


def about_time_offset(seconds: float) -> dict[str, str]:
    """What a run's page tells of it; nothing where there is none."""
    return {"time offset": f"{seconds:+g} s on the images' stamps"} if seconds else {}


def initial_pose(args: argparse.Namespace):
    """The pose given, or None for the truth's. Raises InputError for numbers that make no pose."""
    from ..io.trajectory import parse_pose

    return parse_pose(args.initial_pose, "--initial-pose") if args.initial_pose else None

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How verbs say what they take: the same option for the same thing in every verb, and help from docstrings."""

import argparse
import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from .lazy import io, mapping, node, pixloc, tracking

POSE = "X Y Z QX QY QZ QW"
_PATHS = {"FILE", "DIR", "BAG", "LIST", "SCENE"}


class HelpFormatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves what has line breaks of its own (examples) as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "".join(indent + line for line in text.splitlines(keepends=True))


def add_verb(subparsers, name: str, run: Callable[[argparse.Namespace], int] | None, text: str | None) -> argparse.ArgumentParser:
    """A verb, or an action of one.

    Args:
        subparsers: Where it is added.
        name: As it is typed.
        run: What it does; None where its actions do.
        text: A docstring: "NAME: what it does." for the list of verbs, paragraphs that describe it, and what begins with the word
            "example", which is shown as it is.
    """
    head, _, rest = inspect.cleandoc(text or "").partition("\n\n")
    description, _, examples = f"\n\n{rest}".partition("\n\nexample")
    help_ = " ".join(head.partition(": ")[2].split()).removesuffix(".")
    parser = subparsers.add_parser(
        name,
        help=help_.replace("%", "%%"),
        description=" ".join(description.split()) or help_,
        epilog=f"example{examples}",
        formatter_class=HelpFormatter,
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def option(parser, names: str, help_: str = "", default=None, **more) -> None:
    """An option with a value.

    Args:
        parser: Or a group of one.
        names: All names, and what stands for the value or values: "-o --output DIR". FILE, DIR and the like are paths.
        help_: The default is added, unless the text says what it means.
        default: Says the type of the value, too.
        more: As of `add_argument`.
    """
    words = names.split()
    values = [word for word in words[1:] if not word.startswith("-")]
    if values and _PATHS.issuperset(values[0].split("|")):
        more = {"type": Path, **more}
    if len(values) > 1:
        more = {"nargs": len(values), **more}
    if default is not None:
        more = {"type": type(default), "default": default, **more}
    if default not in (None, "", []) and "default" not in help_:
        help_ += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
    metavar = tuple(values) if len(values) > 1 else "".join(values) or None
    parser.add_argument(*words[: len(words) - len(values)], metavar=metavar, help=help_, **more)


def path(parser, names: str, help_: str = "", **more) -> None:
    """A file or folder that must be given: an option, or an argument without dashes, and what stands for it: "map FILE"."""
    *names, metavar = names.split()
    required = {"required": True} if names[0].startswith("-") else {}
    parser.add_argument(*names, type=Path, metavar=metavar, help=help_, **required, **more)


def flag(parser, name: str, help_: str) -> None:
    """An option without a value."""
    parser.add_argument(name, action="store_true", help=help_)


def add_scheduler(parser, what: str) -> None:
    """Where independent jobs run."""
    address = f"{what}: on a dask cluster whose machines all see these files, e.g. tcp://HOST:8786 (default: one by one here)"
    option(parser, "--scheduler ADDRESS", address)


def for_workers(args: argparse.Namespace) -> argparse.Namespace:
    """The command line as jobs take it along: paths are absolute, as workers run elsewhere."""

    def absolute(value):
        if isinstance(value, list):
            return [absolute(one) for one in value]
        if isinstance(value, str) and not os.path.isfile(value):  # a file: weights, cameras
            return value
        return type(value)(os.path.abspath(value)) if isinstance(value, (str, Path)) else value

    return argparse.Namespace(**{name: absolute(value) for name, value in vars(args).items() if name != "run"})


# ---- map and network


def add_weights(parser, help_: str = "network: a shipped name or a .safetensors file; localize with the same") -> None:
    option(parser, "--weights NAME|FILE", f"{help_}", "compact")


def add_map(parser, preset: bool = True) -> None:
    """A map and what localizes in it."""
    path(parser, "--map FILE", "made by 'pixloc map'")
    add_weights(parser, "the network that made the map")
    if preset:
        add_preset(parser)


def add_preset(parser) -> None:
    option(parser, "--preset NAME", "fast, balanced (default) or accurate: how much is spent on an image", "balanced")


def add_execution(parser) -> None:
    group = parser.add_argument_group("what runs the network")
    option(group, "--backend NAME", "torch, onnxruntime, openvino, or auto (default): ONNX Runtime where it serves", "auto")
    option(group, "--device NAME", "cpu (default) or cuda; of the optimizer, too", "cpu")
    option(group, "--precision NAME", "float32 (default), bfloat16 or float16", "float32")


def open_localizer(args: argparse.Namespace):
    """`Localizer` of the arguments. Raises InputError for what cannot be used, or what this machine cannot do."""
    execution = pixloc.Execution(args.backend, args.device, args.precision) if hasattr(args, "backend") else None
    localizer = pixloc.Localizer.open(args.map, args.weights, args.preset, execution=execution)
    localizer.mount_check = getattr(args, "mount_check", localizer.mount_check)
    return localizer


def add_map_making(parser) -> None:
    """What all that makes a map of images takes."""
    path(parser, "-o --output FILE.pixmap")
    option(parser, "--report FILE", "write as JSON what the map holds, and which images were left out and why")
    add_network(parser)


def add_refine(parser) -> None:
    """Whether poses that somebody else gave are refined."""
    flag(parser, "--refine", "refine poses and mount, which are off by centimetres and half a degree, before points are made")
    option(parser, "--pose-std DEG METRES", "with --refine: how far off they may be (default 0.5 0.03)", type=float)


def refine_options(args: argparse.Namespace):
    """`RefineOptions` of the arguments, None without --refine. Raises InputError."""
    if not args.refine:
        if args.pose_std is not None:
            raise InputError("--pose-std says how far off the poses are that --refine refines: give --refine, too")
        return None
    degrees, metres = args.pose_std or (0.5, 0.03)
    return mapping.build.refinement.RefineOptions(metres, math.radians(degrees))


def add_network(parser) -> None:
    """The network that maps are made with."""
    add_weights(parser)
    option(parser, "--working-side PX", "shrink images to this longer side (default: the network's, 640)", type=int)


def check_working_side(args: argparse.Namespace) -> None:
    if args.working_side is not None and args.working_side < 64:
        raise InputError(f"--working-side {args.working_side}: give at least 64 pixels")


def check_map_making(args: argparse.Namespace) -> None:
    """What would otherwise come out only after the work. Raises InputError."""
    check_working_side(args)
    if getattr(args, "min_track_length", 1) < 1 or not getattr(args, "max_error", 1.0) > 0:
        raise InputError("--min-track-length must be at least 1 and --max-error above 0")
    if args.output.is_dir():
        raise InputError(f"{args.output} is a folder: name the map's file, for example {args.output / 'site.pixmap'}")


# ---- images and bags


def add_images(parser) -> None:
    """Images with their cameras."""
    path(parser, "--images DIR|LIST", "folder of the images that --cameras names, or a text file with some of their names")
    path(parser, "--cameras FILE", "one camera an image")


def add_prior_std(parser) -> None:
    """How far off the poses of --prior may be."""
    said = "how far off they may be, where their lines do not say it: degrees, and 10%% of the depth or 0.3m"
    option(parser, "--prior-std DEG DISTANCE", f"{said} (default 15 25%%)")


def read_priors(args: argparse.Namespace, missing: list[str] | None = None) -> tuple[dict, dict]:
    """camera_from_map and `PriorStd` by name, of --prior and --prior-std; empty without. Raises InputError for what cannot be
    read. missing: gets the names of lines without a pose."""
    if args.prior is None:
        if args.prior_std:
            raise InputError("--prior-std says how far off the poses of --prior may be: give --prior, too")
        return {}, {}
    words: dict[str, tuple[str, list[str]]] = {}
    priors, parse = io.trajectory.read_benchmark_poses(args.prior, missing, words), tracking.prior_std.PriorStd.parse
    stds = dict.fromkeys(priors, parse(args.prior_std, "--prior-std") if args.prior_std else tracking.prior_std.WIDE_PRIOR)
    for name, (where, each) in words.items():
        try:
            stds[name] = parse(each, where)
        except InputError:
            if not io.text.may_be_comment(name):
                raise
    return priors, stds


def add_topics(parser, base: str):
    """The group of what cannot be found in a bag by itself; --body-... are former names."""
    topics = parser.add_argument_group("what cannot be found in the bag by itself")
    option(topics, "--image-topic NAME")
    option(topics, "--camera-info-topic NAME")
    option(topics, "--base-frame NAME", base)
    option(topics, f"--base-from-camera {POSE}", "where the camera (optical axes) sits, if the bag has no static transforms")
    flag(topics, "--recording-time", "date images by when they were recorded, where their stamps are 0 or of another clock")
    hidden = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    topics.add_argument("--body-frame", dest="base_frame", **hidden)
    topics.add_argument("--body-from-camera", dest="base_from_camera", nargs=7, **hidden)
    return topics


def add_bag(parser) -> None:
    """A drive to track in a map."""
    path(parser, "bag BAG", "rosbag2 folder, .mcap or .db3 file, or ROS 1 .bag")
    add_map(parser)
    option(parser, f"--initial-pose {POSE}", "of the base in the map at the first image (default: from the bag's ground truth)")
    option(parser, "--skip-map-frames N", "every N-th image, from the first on, is in the map: leave it out of the errors", 0)
    offset = "seconds added to the images' stamps, as by the node's time_offset: negative where the camera's driver stamped late"
    option(parser, "--time-offset S", offset, 0.0)
    mount = "what is checked of the camera's mount: level, motion (for drones and hand-held cameras) or off"
    option(parser, "--mount-check WHAT", mount, "level", choices=("level", "motion", "off"))
    topics = add_topics(parser, "default: the child frame of the odometry, or base_link")
    option(topics, "--odometry-topic NAME", "'tf': the transform odom -> base; 'none': there is none")
    option(topics, "--truth-topic NAME", "'tf:PARENT:CHILD': that transform; 'none': there is none")
    option(topics, "--odom-frame NAME", "for odometry from TF", "odom")


def add_imu(parser) -> None:
    option(
        parser, "--imu-topic NAME", "sensor_msgs/Imu: its gyro says how the base turns (default: the only one); 'none': not used"
    )


def add_cameras(parser) -> None:
    option(parser, "--cameras NAMES", "several cameras together: the namespaces of their topics, as front,left", "")


def camera_names(args: argparse.Namespace) -> tuple[str, ...]:
    """Of --cameras, in their order."""
    return tuple(name.strip("/ ") for name in args.cameras.split(",") if name.strip("/ "))


def add_cold_start(parser) -> None:
    flag(parser, "--cold-start", "begin without a pose: it is searched for in the whole map, as whenever it is lost")


def parse_poses(args: argparse.Namespace, *names: str) -> list:
    """float64 [4, 4] of options of seven numbers, None where one is not given. Raises InputError for numbers that are no pose."""
    given = [(getattr(args, name), f"--{name.replace('_', '-')}") for name in names]
    return [io.trajectory.parse_pose(numbers, option) if numbers else None for numbers, option in given]


def bag_options(args: argparse.Namespace):
    """`BagOptions` of the arguments. Raises InputError for numbers that make no pose, and for a time offset the node would
    refuse."""
    if args.skip_map_frames < 0 or args.skip_map_frames == 1:
        raise InputError("--skip-map-frames takes 2 or more (every second, third, ... image), or 0 for none")
    least, most = node.parameters.BY_NAME["time_offset"].bounds
    if not least <= args.time_offset <= most:
        raise InputError(f"--time-offset {args.time_offset:g}: give seconds from {least:g} to {most:g}")
    topics = (args.image_topic, args.camera_info_topic, args.odometry_topic, args.truth_topic)
    (mount,) = parse_poses(args, "base_from_camera")
    return io.bags.BagOptions(*topics, args.odom_frame, args.base_frame, mount, args.time_offset, args.recording_time)


def initial_pose(args: argparse.Namespace):
    """The pose to start from, None for the truth's or, with --cold-start, none. Raises InputError where both are given."""
    (pose,) = parse_poses(args, "initial_pose")
    if getattr(args, "cold_start", False) and pose is not None:
        raise InputError("--cold-start and --initial-pose contradict each other: give one")
    return pose

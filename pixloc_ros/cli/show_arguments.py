# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a picture is drawn of: an image file with a prior, or one image of a bag as the tracker met it."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bag_arguments import add_bag_arguments, bag_options, initial_pose
from .progress import show_progress

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def add_frame_arguments(parser: argparse.ArgumentParser) -> None:
    """Which image of a bag."""
    choice = parser.add_argument_group("which image of the bag (one of)")
    choice.add_argument("--frame", type=int, metavar="N", help="its number, from 0, in the order of stamps")
    choice.add_argument("--at", type=float, metavar="S", help="the one nearest to so many seconds after the first")
    choice.add_argument("--stamp", type=int, metavar="NS", help="the one nearest to this stamp, nanoseconds")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """An image file or a bag, and where the alignment starts."""
    add_bag_arguments(parser)
    add_frame_arguments(parser)
    single = parser.add_argument_group("for an image file in place of the bag")
    single.add_argument(
        "--camera", metavar="'MODEL W H P...'", help="as in COLMAP's cameras.txt: 'PINHOLE 640 480 520 520 320 240'"
    )
    single.add_argument("--cameras", type=Path, metavar="FILE", help="instead: one camera an image, as for 'pixloc localize'")
    single.add_argument(
        "--prior",
        type=Path,
        metavar="FILE",
        help="poses 'name qw qx qy qz tx ty tz', camera_from_map (default: of the keyframe most alike)",
    )
    single.add_argument("--truth", type=Path, metavar="FILE", help="true poses in the same format")
    parser.add_argument(
        "--start-off",
        nargs=2,
        type=float,
        metavar=("DEG", "PERCENT"),
        help="start further away: turned by DEG degrees, shifted by PERCENT of the depth",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the direction of --start-off (default 0)")


def open_localizer(args: argparse.Namespace):
    """The map and its network, ready. Raises InputError for what cannot be used."""
    from ..localization import Localizer

    return Localizer.open(args.map, args.weights, args.preset)


def frame_choice(args: argparse.Namespace):
    """`FrameChoice` of the arguments."""
    from ..report.frame_evidence import FrameChoice

    return FrameChoice(args.frame, args.at, args.stamp)


def aligned_image(args: argparse.Namespace, localizer):
    """`AlignedImage` of the arguments. Raises InputError for arguments that name no image, and images that cannot be used."""
    return _of_file(args, localizer) if args.bag.suffix.lower() in IMAGE_SUFFIXES else _of_bag(args, localizer)


def _of_bag(args: argparse.Namespace, localizer):
    from ..errors import InputError
    from ..io.bags import BagReader
    from ..io.frames import UnusableFrame
    from ..report.aligned_image import align_image
    from ..report.frame_evidence import track_to

    if args.camera or args.cameras or args.prior or args.truth:
        raise InputError(f"--camera, --cameras, --prior and --truth are for an image file, and {args.bag} is taken for a bag")
    choice = frame_choice(args)
    with BagReader(args.bag, bag_options(args)) as bag, show_progress("track") as progress:
        tracked = track_to(localizer, bag, choice, initial_pose(args), progress=progress)
    title = f"image {tracked.index} of {args.bag.name} ({tracked.seconds:.2f} s)"
    if isinstance(tracked.frame, UnusableFrame):
        raise InputError(f"{title} cannot be used: {tracked.frame.reason}")
    start, covariance = tracked.prior, None
    if start is None:
        start = tracked.camera_truth
    else:
        covariance = tracked.prior_covariance
    if start is None:
        raise InputError(f"{title}: the tracker has no prior there: choose an image after it was found, or give --initial-pose")
    prepared = localizer.aligner.prepare(tracked.frame.image, tracked.frame.camera)
    if args.start_off:
        start, covariance = _started_off(args, localizer, prepared.camera, start), None
    return align_image(localizer.aligner, title, tracked.frame.image, prepared, start, covariance, tracked.camera_truth)


def _of_file(args: argparse.Namespace, localizer):
    from ..errors import InputError
    from ..geometry import se3
    from ..geometry.cameras import Camera
    from ..io.camera_files import read_cameras
    from ..io.images import load_image
    from ..io.trajectory import read_benchmark_poses
    from ..mapping.retrieval import KeyframeIndex
    from ..report.aligned_image import align_image

    if (args.frame, args.at, args.stamp) != (None, None, None):
        raise InputError(f"--frame, --at and --stamp choose an image of a bag, and {args.bag} is an image")
    if bool(args.camera) == bool(args.cameras):
        raise InputError("an image file needs its calibration: give one of --camera and --cameras")
    name = args.bag.name
    if args.camera:
        camera = Camera.parse_colmap_line(args.camera)
    else:
        camera = _of_name(read_cameras(args.cameras), args.bag, args.cameras)
    image = load_image(args.bag)
    prepared = localizer.aligner.prepare(image, camera)
    truth = None if args.truth is None else se3.inverse(_of_name(read_benchmark_poses(args.truth), args.bag, args.truth))
    if args.prior is not None:
        start = se3.inverse(_of_name(read_benchmark_poses(args.prior), args.bag, args.prior))
    else:
        index = KeyframeIndex(localizer.map)
        alike = index.most_similar(index.descriptor.describe(image, prepared.pyramid), 1)
        start = localizer.map.map_from_keyframe[int(alike[0])]
        name += f", from keyframe {localizer.map.keyframe_names[int(alike[0])]}"
    if args.start_off:
        start = _started_off(args, localizer, prepared.camera, start)
    return align_image(localizer.aligner, name, image, prepared, start, truth=truth)


def _of_name(values: dict, image: Path, source: Path):
    """The entry of an image: of its whole path as written, or of the part of it that the file knows."""
    from ..errors import InputError

    for first in range(len(image.parts)):
        name = "/".join(image.parts[first:])
        if name in values:
            return values[name]
    raise InputError(f"{source} has no line for {image.name}: add it")


def _started_off(args: argparse.Namespace, localizer, camera, map_from_camera):
    from ..errors import InputError
    from ..evaluation.basin import median_depth
    from ..report.aligned_image import moved_off

    degrees, percent = args.start_off
    if not (0 <= degrees <= 180 and 0 <= percent <= 1000):
        raise InputError("--start-off: give 0 to 180 degrees and 0 to 1000 per cent of the depth")
    return moved_off(map_from_camera, degrees, percent / 100 * median_depth(localizer.map, map_from_camera, camera), args.seed)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc show`: pictures of what happens, and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bag_arguments import add_bag_arguments, bag_options, initial_pose
from .help_format import HelpFormatter
from .progress import show_progress
from .show_arguments import add_frame_arguments, add_source_arguments, aligned_image, frame_choice, open_localizer

_SOURCE = "BAG may be an image file instead, with --camera or --cameras."


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "show",
        help="pictures: reprojections, features, the way of the optimisation, map coverage, why an image failed",
        description="Draws what the alignment does, for one image or a whole drive. docs/evaluation.md explains the pictures.",
        epilog="examples:\n"
        "  pixloc show reprojections --map site.pixmap drive_bag --frame 120 -o reprojections.png\n"
        "  pixloc show frame --map site.pixmap drive_bag --at 12.5 -o why.html\n"
        "  pixloc show map site.pixmap -o coverage.png\n\n"
        "Elsewhere: 'pixloc basin' measures and draws the convergence basin, 'pixloc weights plot' the learned damping "
        "and prior, 'pixloc track --report' a whole drive; RViz shows overlay and points live (config/localization.rviz).",
        formatter_class=HelpFormatter,
    )
    kinds = parser.add_subparsers(title="pictures", metavar="PICTURE", required=True)
    _add_reprojections(kinds)
    _add_features(kinds)
    _add_optimization(kinds)
    _add_map(kinds)
    _add_frame(kinds)
    _add_run(kinds)


def _kind(kinds, name: str, help_: str, description: str, example: str, run) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        name,
        help=help_,
        description=description,
        epilog=f"example:\n  pixloc show {name} {example}",
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _output(parser: argparse.ArgumentParser, metavar: str, help_: str = "") -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=help_)


def _map_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--map-images",
        type=Path,
        metavar="DIR",
        help="the images that the map was made of, to show them too (the map holds none)",
    )


# ---- one image


def _add_reprojections(kinds) -> None:
    parser = _kind(
        kinds,
        "reprojections",
        "the map's points over the image, before and after the alignment",
        "The points where the prior puts them and where the found pose does, coloured by how well they agree with the "
        f"map, with the way of each. {_SOURCE}",
        "--map site.pixmap drive_bag --frame 120 --colour inliers -o reprojections.png",
        _run_reprojections,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--colour",
        default="residual",
        metavar="WHAT",
        help="residual (distance of the features, default), inliers, confidence, or weight after the robust loss",
    )
    parser.add_argument(
        "--level", type=int, default=-1, metavar="K", help="of the features: 0 is the coarsest (default: the finest)"
    )
    _output(parser, "FILE", ".png, .jpg or .webp")


def _run_reprojections(args: argparse.Namespace) -> int:
    from ..report.alignment_pictures import plot_reprojections
    from ..report.style import check_suffix

    check_suffix(args.output)
    return _draw(args, lambda aligned: plot_reprojections(aligned, args.colour, args.level, args.output.suffix.lower()))


def _add_features(kinds) -> None:
    parser = _kind(
        kinds,
        "features",
        "features and confidences of every level, beside those of the map",
        "Features as colours (three principal components, the same for map and image) and confidences; where the "
        f"network has none, the weights of the map's points. {_SOURCE}",
        "--map site.pixmap drive_bag --frame 120 --map-images site/images -o features.png",
        _run_features,
    )
    add_source_arguments(parser)
    _map_images(parser)
    _output(parser, "FILE", ".png, .jpg or .webp")


def _run_features(args: argparse.Namespace) -> int:
    from ..report.feature_maps import KeyframeImages, plot_feature_maps
    from ..report.style import check_suffix

    check_suffix(args.output)

    def draw(aligned) -> bytes:
        keyframes = KeyframeImages(aligned.localizer.map, args.map_images)
        reference = keyframes.view(aligned.localizer, int(aligned.points.keyframe_ids[0]))
        return plot_feature_maps(aligned, reference, args.output.suffix.lower())

    return _draw(args, draw)


def _add_optimization(kinds) -> None:
    parser = _kind(
        kinds,
        "optimization",
        "the way of the optimisation, as an animation and a still",
        "The points on their way over the image, the camera on its way in the scene, the cost of every step of every "
        f"level. A still of the same name is written beside the animation. {_SOURCE}",
        "--map site.pixmap drive_bag --frame 120 --start-off 6 15 -o way.webp",
        _run_optimization,
    )
    add_source_arguments(parser)
    parser.add_argument("--width", type=int, default=840, metavar="PX", help="of the animation (default 840)")
    _output(parser, "FILE", ".gif or .webp: an animation and FILE.png; .png or .jpg: the still alone")


def _run_optimization(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..io.files import write_bytes
    from ..report.optimization import ANIMATIONS, animate_optimization, plot_optimization
    from ..report.style import SUFFIXES, check_suffix

    animated = args.output.suffix.lower() in ANIMATIONS
    check_suffix(args.output, (*ANIMATIONS, *SUFFIXES))
    if not 320 <= args.width <= 2000:
        raise InputError("--width must lie between 320 and 2000 pixels")
    aligned = aligned_image(args, open_localizer(args))
    still = args.output.with_suffix(".png") if animated else args.output
    write_bytes(still, plot_optimization(aligned, still.suffix.lower()))
    if animated:
        with show_progress("animation") as progress:
            animate_optimization(aligned, args.output, args.width, progress)
        print(f"{args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    print(_told(aligned, still))
    return 0


def _draw(args: argparse.Namespace, draw) -> int:
    """Align the image, draw it and write the picture."""
    from ..io.files import write_bytes

    aligned = aligned_image(args, open_localizer(args))
    write_bytes(args.output, draw(aligned))
    print(_told(aligned, args.output))
    return 0


def _told(aligned, output: Path) -> str:
    from ..report.aligned_image import difference_text

    answer = aligned.answer
    off = "" if aligned.truth is None else f", {difference_text(aligned.truth, answer.map_from_camera)} off the truth"
    return (
        f"{output}: {aligned.title}, {answer.reason}, moved by {difference_text(aligned.prior, answer.map_from_camera)}, "
        f"{answer.inlier_fraction:.0%} of the points agree{off}"
    )


# ---- a map


def _add_map(kinds) -> None:
    parser = _kind(
        kinds,
        "map",
        "what a map covers: keyframes and points from above, and where it is thin",
        "Keyframes and points from above, how many keyframes see each place, points per keyframe. Weak and lonely "
        "keyframes and gaps are marked, and printed.",
        "site.pixmap -o coverage.png",
        _run_map,
    )
    parser.add_argument("map", type=Path, metavar="FILE.pixmap")
    _output(parser, "FILE", ".png, .jpg or .webp")


def _run_map(args: argparse.Namespace) -> int:
    from ..io.files import write_bytes
    from ..mapping import Map
    from ..report.map_coverage import measure_coverage, plot_coverage
    from ..report.style import check_suffix

    check_suffix(args.output)
    map_ = Map.open(args.map)
    found = measure_coverage(map_)
    write_bytes(args.output, plot_coverage(map_, found, args.output.suffix.lower()))
    print(found.summary())
    print(args.output)
    return 0


# ---- a drive


def _add_frame(kinds) -> None:
    parser = _kind(
        kinds,
        "frame",
        "why was this image of a drive refused, or believed? one page",
        "Runs the tracker up to the image, as 'pixloc track' does, and writes a page: the verdict in words, every "
        "gate with its limit, prior, found pose and truth, the image's brightness and sharpness, reprojections, "
        "features, levels, and the cost around the pose. The page holds everything it shows.",
        "--map site.pixmap drive_bag --at 12.5 --map-images site/images -o why.html",
        _run_frame,
    )
    add_bag_arguments(parser)
    add_frame_arguments(parser)
    _cold_start(parser)
    _map_images(parser)
    _output(parser, "FILE.html")


def _run_frame(args: argparse.Namespace) -> int:
    from ..io.bags import BagReader
    from ..io.files import write_bytes
    from ..report.feature_maps import KeyframeImages
    from ..report.frame_diagnosis import diagnose
    from ..report.frame_evidence import examine, track_to
    from ..report.frame_report import frame_report
    from ..report.style import check_suffix

    check_suffix(args.output, (".html",))
    choice, start = frame_choice(args), _start(args)
    localizer = open_localizer(args)
    keyframes = KeyframeImages(localizer.map, args.map_images)
    with BagReader(args.bag, bag_options(args)) as bag, show_progress("frame") as progress:
        tracked = track_to(localizer, bag, choice, start, args.cold_start, progress)
        evidence = examine(localizer, bag, tracked, keyframes)
        findings = diagnose(evidence)
        page = frame_report(evidence, findings, keyframes, localizer.map, progress)
    write_bytes(args.output, page.encode())
    print(findings.verdict)
    for line in (*findings.causes, *findings.notes):
        print(f"  {line}")
    print(args.output)
    return 0


def _add_run(kinds) -> None:
    parser = _kind(
        kinds,
        "run",
        "a whole drive as a recording for the Rerun viewer",
        "Tracks the bag as 'pixloc track' does and records map, path, images with the map's points on them, state and "
        "errors for the 3D viewer Rerun (python -m pip install rerun-sdk).",
        "--map site.pixmap drive_bag -o run.rrd\n  rerun run.rrd",
        _run_run,
    )
    add_bag_arguments(parser)
    _cold_start(parser)
    _output(parser, "FILE.rrd")


def _run_run(args: argparse.Namespace) -> int:
    from ..io.bags import BagReader
    from ..report.run_recording import record_run, viewer
    from ..report.style import check_suffix
    from ..tracking.types import TrackState

    check_suffix(args.output, (".rrd",))
    viewer()
    start = _start(args)
    localizer = open_localizer(args)
    with BagReader(args.bag, bag_options(args)) as bag, show_progress("record") as progress:
        run = record_run(args.output, localizer, bag, initial_pose=start, cold_start=args.cold_start, progress=progress)
    tracked = sum(record.state is TrackState.TRACKING for record in run.records)
    print(f"{tracked} of {len(run.records)} images tracked")
    print(f"{args.output} ({args.output.stat().st_size / 1e6:.1f} MB); open it with: rerun {args.output}")
    return 0


def _cold_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cold-start", action="store_true", help="begin without a pose: it is looked for in the whole map")


def _start(args: argparse.Namespace):
    """The initial pose. Raises InputError where there is one and --cold-start too."""
    from ..errors import InputError

    start = initial_pose(args)
    if args.cold_start and start is not None:
        raise InputError("--cold-start and --initial-pose contradict each other: give one")
    return start

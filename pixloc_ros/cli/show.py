# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc show`: pictures: reprojections, features, the way of the optimisation, map coverage, why an image failed.

Draws what the alignment does, for one image or a whole drive. docs/evaluation.md explains the pictures.

examples:
  pixloc show reprojections --map site.pixmap drive_bag --frame 120 -o reprojections.png
  pixloc show frame --map site.pixmap drive_bag --at 12.5 -o why.html
  pixloc show map site.pixmap -o coverage.png

Elsewhere: 'pixloc basin' measures and draws the convergence basin, 'pixloc weights plot' what the optimizer learned,
'pixloc track' writes a page of a whole drive; RViz shows overlay and points live (config/localization.rviz).
"""

import argparse
from pathlib import Path

from ..errors import InputError
from ..io.files import match_names, write_bytes
from .arguments import (
    add_bag,
    add_cameras,
    add_cold_start,
    add_prior_std,
    add_verb,
    bag_options,
    camera_names,
    initial_pose,
    open_localizer,
    option,
    path,
    read_priors,
)
from .lazy import evaluation, geometry, io, mapping, pixloc, report
from .progress import show_progress

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def add_parser(subparsers) -> None:
    kinds = add_verb(subparsers, "show", None, __doc__).add_subparsers(title="pictures", metavar="PICTURE", required=True)

    def picture(name: str, run, output: str = "FILE", suffixes: str = ".png, .jpg or .webp") -> argparse.ArgumentParser:
        parser = add_verb(kinds, name, run, run.__doc__)
        path(parser, f"-o --output {output}", suffixes)
        return parser

    parser = picture("reprojections", _run_reprojections)
    _add_source(parser)
    option(parser, "--colour WHAT", "residual (distance of features, default), inliers, confidence, weight (robust)", "residual")
    option(parser, "--level K", "of the features: 0 is the coarsest (default: the finest)", -1)

    parser = picture("features", _run_features)
    _add_source(parser)
    _add_map_images(parser)

    animation = ".gif or .webp: an animation and FILE.png; .png or .jpg: the still"
    parser = picture("optimization", _run_optimization, "FILE", animation)
    _add_source(parser)
    option(parser, "--width PX", "of the animation", 840)

    path(picture("map", _run_map), "map FILE.pixmap")

    parser = picture("frame", _run_frame, "FILE.html", "")
    add_bag(parser)
    _add_frame(parser)
    add_cold_start(parser)
    _add_map_images(parser)

    parser = picture("run", _run_run, "FILE.rrd", "")
    add_bag(parser)
    add_cameras(parser)
    add_cold_start(parser)


def _add_map_images(parser) -> None:
    option(parser, "--map-images DIR", "the images that the map was made of, to show them too (the map holds none)")


def _add_frame(parser) -> None:
    choice = parser.add_argument_group("which image of the bag (one of)")
    option(choice, "--frame N", "its number, from 0, in the order of stamps", type=int)
    option(choice, "--at S", "the one nearest to so many seconds after the first", type=float)
    option(choice, "--stamp NS", "the one nearest to this stamp, nanoseconds", type=int)


def _add_source(parser) -> None:
    """An image file or a bag, and where the alignment starts."""
    add_bag(parser)
    _add_frame(parser)
    single = parser.add_argument_group("for an image file in place of the bag")
    option(single, "--camera LINE", "as in COLMAP's cameras.txt: 'PINHOLE 640 480 520 520 320 240'")
    option(single, "--cameras FILE", "instead: one camera an image, as for 'pixloc localize'")
    option(single, "--prior FILE", "poses 'name qw qx qy qz tx ty tz', camera_from_map (default: of the most similar keyframe)")
    add_prior_std(single)
    option(single, "--truth FILE", "true poses in the same format")
    option(parser, "--start-off DEG PERCENT", "start further away: turned, and shifted by a share of the depth", type=float)
    option(parser, "--seed N", "of the direction of --start-off", 0)


# ---- one image


def _run_reprojections(args: argparse.Namespace) -> int:
    """`pixloc show reprojections`: the map's points over the image, before and after the alignment.

    The points where the prior puts them and where the found pose does, coloured by how well they agree with the map, with the way
    of each. BAG may be an image file instead, with --camera or --cameras.

    example:
      pixloc show reprojections --map site.pixmap drive_bag --frame 120 --colour inliers -o reprojections.png
    """
    draw = report.alignment_pictures.plot_reprojections
    return _draw(args, lambda aligned: draw(aligned, args.colour, args.level, args.output.suffix.lower()))


def _run_features(args: argparse.Namespace) -> int:
    """`pixloc show features`: features and confidences of every level, next to those of the map.

    Features as colours (three principal components, the same for map and image) and confidences; where the network has none, the
    weights of the map's points. BAG may be an image file instead, with --camera or --cameras.

    example:
      pixloc show features --map site.pixmap drive_bag --frame 120 --map-images site/images -o features.png
    """

    def draw(aligned) -> bytes:
        keyframes = report.feature_maps.KeyframeImages(aligned.localizer.map, args.map_images)
        reference = keyframes.view(aligned.localizer, int(aligned.points.keyframe_ids[0]))
        return report.feature_maps.plot_feature_maps(aligned, reference, args.output.suffix.lower())

    return _draw(args, draw)


def _run_optimization(args: argparse.Namespace) -> int:
    """`pixloc show optimization`: the way of the optimisation, as an animation and a still.

    The points on their way over the image, the camera on its way in the scene, the cost of every step of every level. A still of
    the same name is written next to the animation. BAG may be an image file instead, with --camera or --cameras.

    example:
      pixloc show optimization --map site.pixmap drive_bag --frame 120 --start-off 6 15 -o way.webp
    """
    animated = args.output.suffix.lower() in report.alignment_pictures.ANIMATIONS
    report.style.check_suffix(args.output, (*report.alignment_pictures.ANIMATIONS, *report.style.SUFFIXES))
    if not 320 <= args.width <= 2000:
        raise InputError("--width must lie between 320 and 2000 pixels")
    aligned = _aligned_image(args)
    still = args.output.with_suffix(".png") if animated else args.output
    write_bytes(still, report.alignment_pictures.plot_optimization(aligned, still.suffix.lower()))
    if animated:
        with show_progress("animation") as progress:
            report.alignment_pictures.animate_optimization(aligned, args.output, args.width, progress)
        print(f"{args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    print(_summary(aligned, still))
    return 0


def _draw(args: argparse.Namespace, draw) -> int:
    """Align the image, draw it and write the picture."""
    report.style.check_suffix(args.output)
    aligned = _aligned_image(args)
    write_bytes(args.output, draw(aligned))
    print(_summary(aligned, args.output))
    return 0


def _summary(aligned, output: Path) -> str:
    answer, difference = aligned.answer, report.aligned_image.difference_text
    off = "" if aligned.truth is None else f", {difference(aligned.truth, answer.map_from_camera)} off the truth"
    moved = difference(aligned.prior, answer.map_from_camera)
    return f"{output}: {aligned.title}, {answer.reason}, moved by {moved}, {answer.inlier_fraction:.0%} of the points agree{off}"


def _aligned_image(args: argparse.Namespace):
    """`AlignedImage` of the arguments. Raises InputError for arguments that name no image, and images that cannot be used."""
    localizer = open_localizer(args)
    return _of_file(args, localizer) if args.bag.suffix.lower() in IMAGE_SUFFIXES else _of_bag(args, localizer)


def _of_bag(args: argparse.Namespace, localizer):
    if args.camera or args.cameras or args.prior or args.prior_std or args.truth:
        raise InputError(
            f"--camera, --cameras, --prior, --prior-std and --truth are for an image file, and {args.bag} is taken for a bag"
        )
    choice = report.frame_evidence.FrameChoice(args.frame, args.at, args.stamp)
    with io.bags.BagReader(args.bag, bag_options(args)) as bag, show_progress("track") as progress:
        tracked = report.frame_evidence.track_to(localizer, bag, choice, initial_pose(args), progress=progress)
    title = f"image {tracked.index} of {args.bag.name} ({tracked.seconds:.2f} s)"
    if isinstance(tracked.frame, io.frames.UnusableFrame):
        raise InputError(f"{title} cannot be used: {tracked.frame.reason}")
    start, covariance = (tracked.camera_truth, None) if tracked.prior is None else (tracked.prior, tracked.prior_covariance)
    if start is None:
        raise InputError(f"{title}: the tracker has no prior there: choose an image after it was found, or give --initial-pose")
    image = tracked.frame.image
    prepared = localizer.aligner.prepare(image, tracked.frame.camera)
    if args.start_off:
        start, covariance = _started_off(args, localizer, prepared.camera, start), None
    align = report.aligned_image.align_image
    return align(localizer.aligner, title, image, prepared, start, covariance, tracked.camera_truth)


def _of_file(args: argparse.Namespace, localizer):
    if (args.frame, args.at, args.stamp) != (None, None, None):
        raise InputError(f"--frame, --at and --stamp choose an image of a bag, and {args.bag} is an image")
    if bool(args.camera) == bool(args.cameras):
        raise InputError("an image file needs its calibration: give one of --camera and --cameras")

    def of_image(values: dict, source: Path):
        """The entry of the image: of its whole path as written, or of the part of it that the file knows."""
        for first in range(len(args.bag.parts)):
            for value in match_names(["/".join(args.bag.parts[first:])], values).values():
                return value
        raise InputError(f"{source} has no line for {args.bag.name}: add it")

    if args.camera:
        camera = pixloc.Camera.parse_colmap_line(args.camera)
    else:
        camera = of_image(io.camera_files.read_cameras(args.cameras), args.cameras)
    image, title, map_ = io.images.load_image(args.bag), args.bag.name, localizer.map
    prepared = localizer.aligner.prepare(image, camera)
    inverse, truth, start, std = geometry.se3.inverse, None, None, None
    if args.truth:
        truth = inverse(of_image(io.trajectory.read_benchmark_poses(args.truth), args.truth))
    priors, stds = read_priors(args)
    if args.prior:
        start, std = inverse(of_image(priors, args.prior)), of_image(stds, args.prior)
    else:
        index = mapping.retrieval.KeyframeIndex(map_)
        keyframe = int(index.most_similar(index.descriptor.describe(image, prepared.pyramid), 1)[0])
        start, title = map_.map_from_keyframe[keyframe], f"{title}, from keyframe {map_.keyframe_names[keyframe]}"
    if args.start_off:
        start, std = _started_off(args, localizer, prepared.camera, start), None
    return report.aligned_image.align_image(localizer.aligner, title, image, prepared, start, std, truth)


def _started_off(args: argparse.Namespace, localizer, camera, map_from_camera):
    degrees, percent = args.start_off
    if not (0 <= degrees <= 180 and 0 <= percent <= 1000):
        raise InputError("--start-off: give 0 to 180 degrees and 0 to 1000 per cent of the depth")
    metres = percent / 100 * evaluation.basin.median_depth(localizer.map, map_from_camera, camera)
    return report.aligned_image.moved_off(map_from_camera, degrees, metres, args.seed)


# ---- a map, a drive


def _run_map(args: argparse.Namespace) -> int:
    """`pixloc show map`: what a map covers: keyframes and points from above, and where it is thin.

    Keyframes and points from above, how many keyframes see each place, points per keyframe. Weak and lonely keyframes and gaps
    are marked, and printed.

    example:
      pixloc show map site.pixmap -o coverage.png
    """
    report.style.check_suffix(args.output)
    map_ = pixloc.Map.open(args.map)
    found = report.feature_maps.measure_coverage(map_)
    write_bytes(args.output, report.feature_maps.plot_coverage(map_, found, args.output.suffix.lower()))
    print(found.summary())
    print(args.output)
    return 0


def _run_frame(args: argparse.Namespace) -> int:
    """`pixloc show frame`: why was this image of a drive refused, or believed? one page.

    Runs the tracker up to the image, as 'pixloc track' does, and writes a page: the verdict in words, every gate with its limit,
    prior, found pose and truth, the image's brightness and sharpness, reprojections, features, levels, and the cost around the
    pose. The page holds everything it shows.

    example:
      pixloc show frame --map site.pixmap drive_bag --at 12.5 --map-images site/images -o why.html
    """
    report.style.check_suffix(args.output, (".html",))
    choice, start = report.frame_evidence.FrameChoice(args.frame, args.at, args.stamp), initial_pose(args)
    localizer = open_localizer(args)
    keyframes = report.feature_maps.KeyframeImages(localizer.map, args.map_images)
    with io.bags.BagReader(args.bag, bag_options(args)) as bag, show_progress("frame") as progress:
        tracked = report.frame_evidence.track_to(localizer, bag, choice, start, args.cold_start, progress)
        evidence = report.frame_evidence.examine(localizer, bag, tracked, keyframes)
        findings = report.frame_report.diagnose(evidence)
        page = report.frame_report.frame_report(evidence, findings, keyframes, localizer.map, progress)
    write_bytes(args.output, page.encode())
    print(findings.verdict)
    for line in (*findings.causes, *findings.notes):
        print(f"  {line}")
    print(args.output)
    return 0


def _run_run(args: argparse.Namespace) -> int:
    """`pixloc show run`: a whole drive as a recording for the Rerun viewer.

    Tracks the bag as 'pixloc track' does and records map, path, images with the map's points on them, state and errors for the 3D
    viewer Rerun (python -m pip install rerun-sdk).

    examples:
      pixloc show run --map site.pixmap drive_bag -o run.rrd
      pixloc show run --map site.pixmap drive_bag -o run.rrd --cameras front,left
      rerun run.rrd
    """
    report.style.check_suffix(args.output, (".rrd",))
    report.run_recording.viewer()
    start, localizer = {"initial_pose": initial_pose(args), "cold_start": args.cold_start}, open_localizer(args)
    bag = io.rig_images.open_bag(args.bag, bag_options(args), camera_names(args))
    with bag, show_progress("record") as progress:
        run = report.run_recording.record_run(args.output, localizer, bag, progress=progress, **start)
    tracked = sum(record.state is pixloc.TrackState.TRACKING for record in run.records)
    print(f"{tracked} of {len(run.records)} images tracked")
    print(f"{args.output} ({args.output.stat().st_size / 1e6:.1f} MB); open it with: rerun {args.output}")
    return 0

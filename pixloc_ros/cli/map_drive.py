# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map images | video`, and `pixloc map bag --poses images`: maps without anybody's poses."""

import argparse
import contextlib
import time
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from . import arguments, map_drives
from .arguments import add_map_making, add_verb, check_map_making, flag, option, parse_poses, path
from .lazy import evaluation, io, mapping, pixloc, report
from .map_care import finish
from .progress import show_progress

_CAMERA = '"MODEL WIDTH HEIGHT PARAMS...", or a file NAME MODEL WIDTH ... with one a line (default: it is estimated)'


def add_parsers(sources) -> None:
    parser = add_verb(sources, "images", _run_images, _run_images.__doc__)
    path(parser, "sources DIR", "images in the order of their names; several: drives through one place", nargs="+")
    option(parser, "--camera LINE|FILE", _CAMERA)
    arguments.add_scheduler(parser, "several drives")
    _add_common(parser)
    parser = add_verb(sources, "video", _run_video, _run_video.__doc__)
    path(parser, "video FILE", "what OpenCV reads: .mp4, .avi, .mov, .mkv")
    option(parser, "--camera LINE", '"MODEL WIDTH HEIGHT PARAMS..." (default: it is estimated)')
    _add_common(parser)


def _add_common(parser) -> None:
    add_map_making(parser)
    add_keyframes(parser)
    add_drive(parser)


def add_keyframes(parser) -> None:
    """How keyframes and points are chosen, of all that has images in the order of time."""
    option(parser, "--keep-images DIR", "keep the keyframes' images, for 'map re-encode'")
    option(parser, "--mask FILE|DIR", "white where points may be: one for all images, or one each, named like the keyframes")
    option(parser, "--every N", "use each N-th image only, from the first on", 1)
    option(parser, "--keyframe-shift SHARE", "a keyframe wherever the picture has shifted by this share of its width", 0.03)
    option(parser, "--min-angle DEG", "least angle under which a point is seen", 1.0)
    option(parser, "--max-error PX", "largest reprojection error at 640 px", 3.0)
    option(parser, "--surest N", "triangulated points that stay: the N surest of a keyframe, spread over its image; 0: all", 200)


def add_drive(parser) -> None:
    """What structure from motion takes."""
    group = parser.add_argument_group("where images give the poses")
    flag(group, "--refine-camera", "refine focal length and distortion (always done where the camera is not known)")
    length = "how long the path (of several: the first one) is, where no odometry gives the scale"
    option(group, "--path-length METRES", length, type=float)
    option(group, "--distance A B METRES", "how far two keyframes' images are apart, instead")
    kinds = "TUM, of the camera in the map; of a folder of images: the name, and the map in the camera"
    option(group, "--all-poses FILE", f"also localize the images that are no keyframes, and write the poses of all ({kinds})")


def drive_options(args: argparse.Namespace):
    """`DriveOptions` of the arguments. Raises InputError."""
    distance = args.distance
    if distance is not None:
        try:
            distance = (distance[0], distance[1], float(distance[2]))
        except ValueError:
            raise InputError(f"--distance {' '.join(distance)}: the third is no number of metres") from None
    build = mapping.build
    return build.drive.DriveOptions(posed_options(args), args.refine_camera, args.path_length, distance)


def posed_options(args: argparse.Namespace):
    """`PosedMapOptions` of the arguments."""
    build, limits = mapping.build, {"min_angle_deg": args.min_angle, "max_error_px": args.max_error, "surest": args.surest}
    chosen = build.keyframes.KeyframeOptions(shift=args.keyframe_shift)
    return build.posed_frames.PosedMapOptions(args.mask, chosen, build.triangulation.TriangulationOptions(**limits))


def _run_images(args: argparse.Namespace) -> int:
    """`pixloc map images`: make a map from a folder of images, without poses.

    The images are those of one drive, in the order of their names. Structure from motion (pycolmap) finds where the camera was.
    Images alone have no scale: give --path-length or --distance. The map begins at the first image, z up. Several folders, one a
    drive, become one map. Work that was stopped or killed goes on when the same command is given again.

    examples:
      pixloc map images photos -o site.pixmap --camera "PINHOLE 640 480 525 525 320 240" --path-length 25
      pixloc map images photos -o site.pixmap --distance 0001.jpg 0020.jpg 3.5
      pixloc map images morning evening -o site.pixmap --path-length 25
    """
    check_map_making(args)
    return run_drives(args)


def _run_video(args: argparse.Namespace) -> int:
    """`pixloc map video`: make a map from a video, without poses.

    As 'pixloc map images', of the video's frames.

    example:
      pixloc map video walk.mp4 -o site.pixmap --every 3 --path-length 40
    """
    check_map_making(args)
    return make(mapping.build.drive_frames.Video(args.video, args.camera, _every(args)), args, args.video)


def run_drives(args: argparse.Namespace) -> int:
    """As `pixloc map images`, and `pixloc map bag` with the poses from the images: of one drive, or of several."""
    if len(args.sources) > 1:
        return map_drives.run_several(args)
    if args.scheduler is not None:
        raise InputError("--scheduler is for several drives: leave it out")
    with open_drive(args, *args.sources) as frames:
        return make(frames, args, *args.sources)


def open_drive(args: argparse.Namespace, source: Path):
    """Frames of a bag or of a folder of images, as a context. Raises InputError."""
    kinds = mapping.build.drive_frames
    if not hasattr(args, "odometry_topic"):
        return contextlib.nullcontext(kinds.ImageFolder(source, args.camera, _every(args)))
    if args.refine:
        raise InputError("--refine is for poses that somebody else gave; here the images give them: leave it out")
    (mount,) = parse_poses(args, "base_from_camera")
    topics = (args.image_topic, args.camera_info_topic, args.odometry_topic, "none")
    options = io.bags.BagOptions(*topics, base_frame=args.base_frame, base_from_camera=mount, recording_time=args.recording_time)
    sensors, cameras = (args.imu_topic, args.fix_topic), rig_cameras(args)
    if not cameras:
        return kinds.DriveBag(source, options, _every(args), sensors)
    for given, what in ((args.refine_camera, "--refine-camera"), (args.all_poses, "--all-poses")):
        if given:
            raise InputError(f"{what} is for one camera: leave out --cameras")

    def open_camera(name: str):
        lead = name == cameras[0]
        return kinds.DriveBag(source, options, _every(args) if lead else 1, sensors if lead else ("none", "none"), name)

    return mapping.build.rig_frames.RigFrames(cameras, open_camera)


def rig_cameras(args: argparse.Namespace) -> tuple[str, ...]:
    """Of --cameras. Raises InputError with options that are for one camera."""
    cameras = arguments.camera_names(args)
    if cameras:
        for name in ("image_topic", "camera_info_topic", "base_from_camera", "depth_topic"):
            if getattr(args, name, None) not in (None, "none"):
                raise InputError(f"--{name.replace('_', '-')} is for one camera: leave it out, or --cameras")
        if args.refine:
            raise InputError("--refine learns one mount, not one for each camera: leave it out, or --cameras")
        if len(args.sources) > 1:
            raise InputError("--cameras is for one bag: make a map of each and join them ('pixloc map merge')")
    return cameras


def _every(args: argparse.Namespace) -> int:
    if args.every < 1:
        raise InputError(f"--every {args.every}: give 1 or more")
    return args.every


def make(frames, args: argparse.Namespace, source: Path) -> int:
    """Make the map and say what came of it."""
    begin, extractor, options = time.monotonic(), pixloc.load_extractor(args.weights), drive_options(args)
    check_keep_images(args)
    if args.all_poses is not None and args.all_poses.is_dir():
        raise InputError(f"--all-poses {args.all_poses} is a folder: name the file")
    work = open_work(args, work_key(frames, args, source, extractor))
    print(f"poses by structure from motion: {frames.said}")
    with show_progress("map") as progress:
        how = (work, options, args.working_side, args.output.stem, progress)
        map_, made = mapping.build.drive.build_map_from_drive(frames, extractor, *how)
        checked = evaluation.held_out.localize_held_out(map_, stored_images(work, map_), extractor, progress)
        if args.all_poses:
            refined = options.refine_camera or not frames.known_camera
            every = evaluation.drive_poses.localize_drive(map_, frames, extractor, work, refined, progress)
            every.write(args.all_poses, frames.stamped)
            made = replace(made, images_posed=(int(every.found.sum()), len(every.names)))
    made = replace(made, notes=(*made.notes, *getattr(frames, "notes", ())))
    finish(map_, made, args, begin)
    print_drive(map_, made, checked, args.output.with_suffix(".html"))
    close_work(work, args)
    return 0


def work_key(frames, args: argparse.Namespace, source: Path, extractor) -> dict:
    """What the map of a drive depends on, but for the scale that is given."""
    options = drive_options(args)
    return {
        "drive": mapping.build.posed_bag.bag_identity(source),
        "said": frames.said,
        "options": [options.posed.to_json(), options.refine_camera, getattr(args, "camera", None), args.every],
        "network": extractor.fingerprint,
        "working_side": args.working_side,
    }


def stored_images(work, map_) -> list[Path]:
    """Files of the keyframes' images in the work folder."""
    return [work.path(f"images/{mapping.build.posed_frames.file_name(name)}") for name in map_.keyframe_names]


def print_drive(map_, made, checked, page) -> None:
    """What came of a drive, or of several, and the page on it."""
    print_posed(made)
    sure = "" if not made.scale_uncertainty else f", ± {100 * made.scale_uncertainty:.1f} %"
    print(
        f"  poses: {made.posed[0]} of {made.posed[1]} keyframes in {made.structure_s:.0f} s, reprojection error "
        f"{made.structure_px:.2f} px, {len(made.loops)} pairs close loops\n"
        + (f"  poses: {made.images_posed[0]} of {made.images_posed[1]} images\n" if made.images_posed else "")
        + "".join(f"  {tie}\n" for tie in made.ties)
        + f"  scale: {made.scale}{sure}\n"
        + "".join(f"  {line}\n" for line in made.sensors)
        + f"  check: {checked.summary()}"
    )
    covered = report.feature_maps.measure_coverage(map_)
    for line in report.drive_report.weaknesses(map_, made, checked, covered):
        print(f"  weak: {line}")
    io.files.write_text(page, report.drive_report.drive_page(map_, made, checked))
    print(f"  how good it is: {page}")


# ---- shared with `map bag`


def check_keep_images(args: argparse.Namespace) -> None:
    if args.keep_images is not None and args.keep_images.exists() and any(args.keep_images.iterdir()):
        raise InputError(f"{args.keep_images} is not empty: give a new folder for the images")


def open_work(args: argparse.Namespace, key: dict):
    """The work folder next to the output."""
    work = io.work_folder.WorkFolder(args.output.with_name(f"{args.output.name}.work"), key)
    if work.resumed:
        print(f"going on with what is in {work.folder}")
    return work


def close_work(work, args: argparse.Namespace) -> None:
    """Keep the images where asked for, and remove the rest."""
    if args.keep_images is not None:
        if args.keep_images.exists():
            args.keep_images.rmdir()
        args.keep_images.parent.mkdir(parents=True, exist_ok=True)
        work.path("images").rename(args.keep_images)
    work.remove()


def print_posed(made) -> None:
    """What came of images in the order of time."""
    (low, median), error = made.points_per_keyframe, made.reprojection_px
    print(
        f"  {made.images} images with a pose over {made.length_m:.1f} m gave {made.keyframes} keyframes\n"
        f"  points per keyframe: median {median:.0f}, 5 % have fewer than {low:.0f}; they cover {100 * made.coverage:.0f} %"
        " of an image\n"
        + (f"  reprojection error: median {error[0]:.2f} px, 95 % below {error[1]:.2f} px\n" if error else "")
        + f"  descriptor consistency: median cosine {made.descriptor_consistency:.2f}"
    )
    for reason, count in made.rejected.items():
        print(f"  left out {count}: {reason}")
    if made.poor_keyframes:
        print(f"  {len(made.poor_keyframes)} keyframes see fewer than 50 points: the camera may get lost there")

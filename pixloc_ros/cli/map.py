# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map`: make a map from a rosbag, images, a video, a COLMAP model or a posed RGB-D sequence, look into one, repair one.

A map (*.pixmap) holds the points of a place and the features that its images had there; the images themselves are not needed
afterwards.

examples:
  pixloc map bag drive_bag -o site.pixmap
  pixloc map images photos -o site.pixmap --path-length 25
  pixloc map colmap --model sparse/0 --images images -o site.pixmap
  pixloc map rgbd --sequence rgbd_dataset_freiburg1_desk -o desk.pixmap
  pixloc map info site.pixmap
"""

import argparse
import time
from dataclasses import replace

from ..errors import InputError
from . import arguments, map_care, map_drive, map_extend
from .arguments import add_map_making, add_topics, add_verb, check_map_making, option, parse_poses, path
from .lazy import mapping, pixloc
from .map_care import finish
from .progress import show_progress


def add_parser(subparsers) -> None:
    sources = add_verb(subparsers, "map", None, __doc__).add_subparsers(title="what to do", metavar="ACTION", required=True)
    _add_bag(sources)
    parser = add_verb(sources, "colmap", _run_colmap, _run_colmap.__doc__)
    path(parser, "--model DIR", "cameras, images, points3D as .bin or .txt")
    path(parser, "--images DIR", "what the model's image names are relative to")
    option(parser, "--min-track-length N", "use points that at least N images see", 2)
    option(parser, "--max-error PX", "leave out observations farther than this from their point's projection", 4.0)
    arguments.add_refine(parser)
    add_map_making(parser)

    parser = add_verb(sources, "rgbd", _run_rgbd, _run_rgbd.__doc__)
    path(parser, "--sequence DIR")
    option(parser, "--camera LINE", '"MODEL WIDTH HEIGHT PARAMS...", instead of camera.txt')
    scale = "units of the depth images per metre, 5000 for TUM's, 1000 for millimetres (default: found where images tell it)"
    option(parser, "--depth-scale N", scale, type=float)
    arguments.add_refine(parser)
    add_map_making(parser)
    map_drive.add_parsers(sources)
    map_extend.add_parser(sources)
    map_care.add_parsers(sources)


def _add_bag(sources) -> None:
    parser = add_verb(sources, "bag", _run_bag, _run_bag.__doc__)
    path(parser, "sources BAG", "rosbag2 folder, .mcap or .db3 file, or ROS 1 .bag; several: drives through one place", nargs="+")
    add_map_making(parser)
    map_drive.add_keyframes(parser)
    where = "'images': structure from motion; 'bag': a topic or TF (default: the bag's where it has some, else images)"
    arguments.add_cameras(parser)
    option(parser, "--poses WHERE", where, choices=("images", "bag"))
    map_drive.add_drive(parser)
    arguments.add_scheduler(parser, "several drives")
    arguments.add_refine(parser)
    topics = add_topics(parser, "whose pose the topic tells (default: as it says, or base_link)")
    option(topics, "--pose-topic NAME", "poses in the map; 'tf': the transforms from --map-frame")
    option(topics, "--map-frame NAME", "for poses from TF", "map")
    option(topics, "--depth-topic NAME", "depth aligned with the images; 'none': triangulate")
    option(topics, "--depth-scale N", "its units per metre (default: 1000 for integers, 1 for floats)", type=float)
    option(topics, "--max-pose-gap S", "interpolate over gaps up to this", 0.25)
    option(topics, "--odometry-topic NAME", "with --poses images: 'tf': the transform odom -> base; 'none': there is none")
    option(topics, "--imu-topic NAME", "with --poses images: sensor_msgs/Imu; 'none': not used")
    option(topics, "--fix-topic NAME", "with --poses images: sensor_msgs/NavSatFix; 'none': not used")


def _run_colmap(args: argparse.Namespace) -> int:
    """`pixloc map colmap`: make a map from a COLMAP model and its images.

    Reads text and binary models of all COLMAP versions, with and without rigs. The map frame is the model's; it should be metric
    (colmap model_aligner).

    example:
      pixloc map colmap --model sparse/0 --images images -o site.pixmap
    """
    check_map_making(args)
    begin, limits = time.monotonic(), (args.min_track_length, args.max_error, args.working_side, args.output.stem)
    with show_progress("map") as progress:
        network = pixloc.load_extractor(args.weights)
        sources = (args.model, args.images, network, *limits, progress)
        map_, report = pixloc.build_map_from_colmap(*sources, refine=arguments.refine_options(args))
    return finish(map_, report, args, begin)


def _run_rgbd(args: argparse.Namespace) -> int:
    """`pixloc map rgbd`: make a map from a posed RGB-D sequence in TUM format.

    The folder holds rgb.txt, depth.txt, groundtruth.txt (camera poses in the map), camera.txt (one line: MODEL WIDTH HEIGHT
    PARAMS..., as in COLMAP's cameras.txt; or give --camera).

    examples:
      pixloc map rgbd --sequence recording -o room.pixmap
      pixloc map rgbd --sequence rgbd_dataset_freiburg1_desk -o desk.pixmap \\
          --camera "OPENCV 640 480 517.3 516.5 319.1 255.8 0.2624 -0.9531 -0.0054 0.0026" --depth-scale 5000
    """
    check_map_making(args)
    begin, extractor = time.monotonic(), pixloc.load_extractor(args.weights)
    camera = pixloc.Camera.parse_colmap_line(args.camera) if args.camera else None
    how, refine = (camera, args.depth_scale, args.working_side, args.output.stem), arguments.refine_options(args)
    with show_progress("map") as progress:
        map_, report = pixloc.build_map_from_rgbd(args.sequence, extractor, *how, progress, refine)
    return finish(map_, report, args, begin)


def _run_bag(args: argparse.Namespace) -> int:
    """`pixloc map bag`: make a map from a rosbag with images, and poses or not.

    Takes images, calibration and poses (a topic of a LiDAR SLAM or of ground truth, or TF) from a rosbag2 (sqlite3, MCAP) or a
    ROS 1 bag. Points are triangulated with the poses as they are (or refined: --refine), or come from a depth topic. Where no
    topic holds poses, or with --poses images, they are found from the images. Odometry or satellite fixes give the scale, a gyro
    the turns, gravity the z axis, fixes the georeference, where the bag has them. The map begins at the base's first pose
    ('pixloc map move' brings it into another frame); several drives become one map. Work that was stopped or killed goes on when
    the same command is given again.

    examples:
      pixloc map bag drive_bag -o site.pixmap
      pixloc map bag drive_bag -o site.pixmap --poses images
      pixloc map bag monday tuesday -o site.pixmap
      pixloc map bag drive_bag -o site.pixmap --cameras front,left,right
      pixloc map bag drive.mcap -o site.pixmap --pose-topic /lio/odometry --base-frame imu_link --refine
      pixloc map bag drive.bag -o site.pixmap --pose-topic tf --map-frame map --depth-topic none
    """
    check_map_making(args)
    if args.poses == "images":
        return map_drive.run_drives(args)
    begin, build = time.monotonic(), mapping.build
    (mount,) = parse_poses(args, "base_from_camera")
    where = (args.image_topic, args.camera_info_topic, args.pose_topic, args.map_frame, args.base_frame, mount, args.depth_topic)
    timing = (args.every, round(args.max_pose_gap * 1e9), args.recording_time)
    cameras = map_drive.rig_cameras(args)
    source = build.posed_bag.PosedBagOptions(*where, args.depth_scale, *timing, camera=next(iter(cameras), None))
    given = args.poses == "bag" or args.pose_topic is not None
    if not (given or any(build.posed_bag.has_poses(bag, source) for bag in args.sources)):
        print(f"no topic of {' or '.join(map(str, args.sources))} holds poses in the map: they are found from the images")
        return map_drive.run_drives(args)
    if len(args.sources) > 1:
        raise InputError(
            "several bags with poses: give --poses images, or make a map of each with its poses and join them "
            "('pixloc map merge')"
        )
    (bag,) = args.sources
    if args.all_poses is not None:
        raise InputError("--all-poses is for poses that the images give; the bag has them already: leave it out")
    if args.scheduler is not None:
        raise InputError("--scheduler is for several drives with poses from the images: leave it out")
    extractor = pixloc.load_extractor(args.weights)
    options = replace(map_drive.posed_options(args), refine=arguments.refine_options(args))
    map_drive.check_keep_images(args)

    def open_camera(name: str | None):
        return build.posed_bag.PosedBag(bag, replace(source, camera=name, every=args.every if name == source.camera else 1))

    with build.rig_frames.RigFrames(cameras, open_camera) if cameras else open_camera(None) as frames:
        key = {
            "bag": build.posed_bag.bag_identity(bag),
            "frames": {name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(source).items()},
            "options": options.to_json(),
            "network": extractor.fingerprint,
            "working_side": args.working_side,
            "cameras": cameras,
        }
        work = map_drive.open_work(args, key)
        points = f"depth from {frames.depth_topic}" if frames.depth_topic else "points by triangulation"
        print(f"poses from {frames.pose_source}; {points}")
        with show_progress("map") as progress:
            how = (work, options, args.working_side, args.output.stem, progress)
            map_, report = build.posed_frames.build_map_from_posed_frames(frames, extractor, *how)
        notes = frames.notes if cameras else frames.bag.notes
        report = replace(report, notes=(*report.notes, *notes))
    finish(map_, report, args, begin)
    map_drive.print_posed(report)
    map_drive.close_work(work, args)
    return 0

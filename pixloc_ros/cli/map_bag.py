# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map bag`: make a map from a rosbag with images and poses."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

from .map_common import ProgressLine, add_common, check_common, save

_POSE = ("X", "Y", "Z", "QX", "QY", "QZ", "QW")


def add_parser(sources) -> None:
    parser = sources.add_parser(
        "bag",
        help="make a map from a rosbag with images and poses",
        description="Takes images, calibration and poses (a topic of a LiDAR SLAM or of ground truth, or TF) from a rosbag2 "
        "(sqlite3, MCAP) or a ROS 1 bag. Points are triangulated with the poses as they are, or come from a depth topic. Work "
        "that was stopped or killed goes on when the same command is given again.",
        epilog="examples:\n  pixloc map bag drive_bag -o site.pixmap\n"
        "  pixloc map bag drive.mcap -o site.pixmap --pose-topic /lio/odometry --body-frame imu_link\n"
        "  pixloc map bag drive.bag -o site.pixmap --pose-topic tf --map-frame map --depth-topic none",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 folder, .mcap or .db3 file, or ROS 1 .bag")
    add_common(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--keep-images", type=Path, metavar="DIR", help="keep the keyframes' images, for 'map re-encode'")
    parser.add_argument(
        "--mask", type=Path, metavar="FILE|DIR", help="white where points may be: one for all images, or STAMP_NS.png each"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use each N-th image only, from the first on")
    parser.add_argument(
        "--keyframe-shift",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="a keyframe wherever the picture has shifted by this share of its width (default 0.03)",
    )
    parser.add_argument(
        "--min-angle", type=float, default=1.0, metavar="DEG", help="least angle under which a point is seen (default 1)"
    )
    parser.add_argument(
        "--max-error", type=float, default=3.0, metavar="PX", help="largest reprojection error at 640 px (default 3)"
    )
    parser.add_argument(
        "--surest",
        type=int,
        default=200,
        metavar="N",
        help="triangulated points stay that are among the N surest of a keyframe, spread over its image (default 200; 0: all)",
    )
    topics = parser.add_argument_group("what cannot be found in the bag by itself")
    topics.add_argument("--image-topic", metavar="NAME")
    topics.add_argument("--camera-info-topic", metavar="NAME")
    topics.add_argument("--pose-topic", metavar="NAME", help="poses in the map; 'tf': the transforms from --map-frame")
    topics.add_argument("--map-frame", default="map", metavar="NAME", help="for poses from TF (default map)")
    topics.add_argument("--body-frame", metavar="NAME", help="whose pose the topic tells (default: as it says, or base_link)")
    topics.add_argument(
        "--body-from-camera", nargs=7, metavar=_POSE, help="where the camera (optical axes) sits, without static transforms"
    )
    topics.add_argument("--depth-topic", metavar="NAME", help="depth aligned with the images; 'none': triangulate")
    topics.add_argument(
        "--max-pose-gap", type=float, default=0.25, metavar="S", help="interpolate over gaps up to this (default 0.25)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..features import load_extractor
    from ..io.files import write_text
    from ..io.trajectory import parse_pose
    from ..io.work_folder import WorkFolder
    from ..mapping.build.keyframes import KeyframeOptions
    from ..mapping.build.posed_bag import PosedBag, PosedBagOptions, bag_identity
    from ..mapping.build.posed_frames import PosedMapOptions, build_map_from_posed_frames
    from ..mapping.build.triangulation import TriangulationOptions

    check_common(args)
    begin = time.monotonic()
    extractor = load_extractor(args.weights)
    mount = parse_pose(args.body_from_camera, "--body-from-camera") if args.body_from_camera else None
    frame_options = PosedBagOptions(
        args.image_topic,
        args.camera_info_topic,
        args.pose_topic,
        args.map_frame,
        args.body_frame,
        mount,
        args.depth_topic,
        args.every,
        round(args.max_pose_gap * 1e9),
    )
    options = PosedMapOptions(
        args.mask,
        KeyframeOptions(shift=args.keyframe_shift),
        TriangulationOptions(min_angle_deg=args.min_angle, max_error_px=args.max_error, surest=args.surest),
    )
    if args.keep_images is not None and args.keep_images.exists() and any(args.keep_images.iterdir()):
        raise InputError(f"{args.keep_images} is not empty: give a new folder for the images")
    with PosedBag(args.bag, frame_options) as frames:
        key = {
            "bag": bag_identity(args.bag),
            "frames": {
                name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(frame_options).items()
            },
            "options": options.to_json(),
            "network": extractor.fingerprint,
            "working_side": args.working_side,
        }
        work = WorkFolder(args.output.with_name(f"{args.output.name}.work"), key)
        if work.resumed:
            print(f"going on with what is in {work.folder}")
        print(
            f"poses from {frames.pose_source}; "
            + (f"depth from {frames.depth_topic}" if frames.depth_topic else "points by triangulation")
        )
        with ProgressLine() as progress:
            map_, report = build_map_from_posed_frames(
                frames, extractor, work, options, args.working_side, args.output.stem, progress
            )
    save(map_, report.build, args.output, begin)
    summary = report.to_json() | {
        "images_left_out": dict(frames.skipped),
        "bytes": args.output.stat().st_size,
        "seconds": round(time.monotonic() - begin, 1),
    }
    _print(summary)
    if args.report is not None:
        write_text(args.report, json.dumps(summary, indent=2) + "\n")
    if args.keep_images is not None:
        with contextlib.suppress(FileNotFoundError):
            args.keep_images.rmdir()
        args.keep_images.parent.mkdir(parents=True, exist_ok=True)
        work.path("images").rename(args.keep_images)
    work.remove()
    return 0


def _print(summary: dict) -> None:
    low, median = summary["points_per_keyframe"]
    error = summary["reprojection_px"]
    print(
        f"  {summary['images']} images with a pose over {summary['length_m']:.1f} m gave {summary['keyframes']} keyframes\n"
        f"  points per keyframe: median {median:.0f}, 5 % have fewer than {low:.0f}; they cover {100 * summary['coverage']:.0f} %"
        " of an image\n"
        + (f"  reprojection error: median {error[0]:.2f} px, 95 % below {error[1]:.2f} px\n" if error else "")
        + f"  descriptor consistency: median cosine {summary['descriptor_consistency']:.2f}"
    )
    for what in ("rejected", "images_left_out"):
        for reason, count in summary[what].items():
            print(f"  left out {count}: {reason}")
    if summary["poor_keyframes"]:
        print(f"  {len(summary['poor_keyframes'])} keyframes see fewer than 50 points: the camera may get lost there")

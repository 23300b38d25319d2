# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc simulate`: make a data set to try things on: a map's images and model, and a drive as a rosbag2.

Drives a wheeled robot twice through a small textured workshop. The first drive becomes a COLMAP model with its images, the
second one (other path, light and speed; wheel odometry that slips) a rosbag2 with ground truth. Nothing is downloaded; the same
seed gives the same data.

example:
  pixloc simulate -o sim
  pixloc map colmap --model sim/map --images sim/images -o sim.pixmap
  pixloc track --map sim.pixmap sim/drive -o out/drive
  pixloc evaluate out/drive
  pixloc simulate -o sim4 --cameras front,left,right,back
"""

import argparse

from ..errors import InputError
from .arguments import add_verb, flag, option, path
from .lazy import pixloc
from .progress import show_progress


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "simulate", run, __doc__)
    path(parser, "-o --output DIR", "made, or replaced if it is a simulation")
    option(parser, "--seed N", "another seed is another place", 0)
    option(parser, "--seconds S", "length of the test drive", 25.0)
    option(parser, "--rate HZ", "images a second", 10.0)
    option(parser, "--size WxH", "image size", "640x480")
    option(parser, "--camera LINE", "as in COLMAP's cameras.txt, instead of --size (default: a pinhole that sees 80 degrees)")
    encodings = "of the images: jpeg, png, rgb8, bgr8, mono8, mono16, bayer_rggb8, yuv422, yuv422_yuy2"
    option(parser, "--encoding NAME", encodings, "jpeg")
    option(parser, "--texel M", "detail of the textures; 0.01 is rough and quick", 0.004)
    option(parser, "--cameras NAMES", "several, of front,left,right,back (default: one that looks ahead)", "")
    flag(parser, "--rgbd", "write the mapping drive in TUM RGB-D format too")
    flag(parser, "--imu", "record an IMU in the bag: sensor_msgs/Imu on /imu/data")
    flag(parser, "--fixes", "record satellite fixes in the bag: sensor_msgs/NavSatFix on /gnss/fix")


def run(args: argparse.Namespace) -> int:
    from pixloc_sim.recordings import SimulationOptions, simulate

    camera = pixloc.Camera.parse_colmap_line(args.camera) if args.camera else None
    try:
        width, height = (camera.width, camera.height) if camera else (int(word) for word in args.size.lower().split("x"))
    except ValueError:
        raise InputError(f"--size {args.size} cannot be read: write it as 640x480") from None
    chosen = {name: getattr(args, name) for name in ("seed", "seconds", "texel", "encoding", "rgbd", "imu", "fixes")}
    chosen["cameras"] = tuple(filter(None, args.cameras.split(",")))
    options = SimulationOptions(rate_hz=args.rate, width=width, height=height, camera=camera, **chosen)
    with show_progress("simulate") as progress:
        summary = simulate(args.output, options, lambda what, done, of: progress(done, of, what))
    print(
        f"{args.output}: {summary['keyframes']} keyframes, {summary['points']} points, {summary['frames']} images over "
        f"{summary['drive_length_m']:.1f} m, odometry drifts by {summary['odometry_drift_end_m']:.2f} m"
    )
    return 0

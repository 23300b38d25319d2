# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map extend`: a map that grows with later drives."""

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from . import arguments
from .arguments import POSE, add_topics, add_verb, flag, option, path
from .lazy import evaluation, io, mapping, pixloc, tracking
from .map_care import contents, describe, size
from .progress import show_progress

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def add_parser(sources) -> None:
    parser = add_verb(sources, "extend", _run_extend, _run_extend.__doc__)
    path(parser, "map FILE")
    path(parser, "bag BAG", "rosbag2 folder, .mcap or .db3 file, or ROS 1 .bag")
    option(parser, "-o --output FILE", "where the new map goes")
    flag(parser, "--in-place", "write it in the place of the old one, when it is whole")
    arguments.add_weights(parser, "the network that made the map")
    arguments.add_preset(parser)
    option(parser, f"--initial-pose {POSE}", "of the base in the map at the first image (default: it is searched for)")
    option(
        parser, "--budget N|SIZE", "the map has at most so many keyframes, or a file of at most this size (40MB, 40MiB)", type=str
    )
    option(parser, "--changed SHARE", "a keyframe where fewer of the points in sight agree with the image than this share", 0.85)
    option(parser, "--retire N", "a point goes where N new keyframes should show it and none does; 0: none goes", 5)
    option(parser, "--keyframe-shift SHARE", "a new keyframe wherever the picture has shifted by this share of its width", 0.08)
    option(parser, "--time-offset S", "seconds added to the images' stamps, as by the node's time_offset", 0.0)
    topics = add_topics(parser, "default: the child frame of the odometry, or base_link")
    option(topics, "--odometry-topic NAME", "'tf': the transform odom -> base; 'none': there is none")
    option(topics, "--odom-frame NAME", "for odometry from TF", "odom")
    parser.set_defaults(skip_map_frames=0, truth_topic="none", cold_start=False)


def _run_extend(args: argparse.Namespace) -> int:
    """`pixloc map extend`: add a later drive to a map: other light, moved furniture, new places next to it.

    The drive is localized in the map. Where its poses are sure but the map looks different, or has no keyframe, images become
    keyframes, with new points and with how they show the old ones; points that new keyframes should show and do not are retired.
    With --budget, of keyframes that show nearly the same in the same light the older ones go. The old map stays as it is unless
    --in-place is given. Work that was stopped or killed goes on when the same command is given again.

    examples:
      pixloc map extend site.pixmap evening -o site2.pixmap
      pixloc map extend site.pixmap evening --in-place --budget 500
      pixloc map extend site.pixmap evening -o site2.pixmap --budget 40MiB
    """
    begin, output = time.monotonic(), _output(args)
    build, (keyframes, most_bytes) = mapping.build, parse_budget(args.budget)
    options = build.extend.ExtendOptions(args.changed, retire=args.retire, keyframes=keyframes, bytes=most_bytes)
    how = build.posed_frames.PosedMapOptions(keyframes=build.keyframes.KeyframeOptions(shift=args.keyframe_shift))
    localizer, source = arguments.open_localizer(args), arguments.bag_options(args)
    old, extractor = localizer.map, localizer.extractor
    key = {
        "map": build.posed_bag.bag_identity(args.map),
        "bag": build.posed_bag.bag_identity(args.bag),
        "how": [how.to_json(), args.changed, args.preset, args.initial_pose],
        "source": {name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(source).items()},
        "network": extractor.fingerprint,
    }
    work = io.work_folder.WorkFolder(output.with_name(f"{output.name}.work"), key)
    if work.resumed:
        print(f"going on with what is in {work.folder}")
    tracked, images = _tracked(localizer, args, source, work)
    frames = build.extend.believed(old, tracked)
    unsure = {frame.stamp_ns for frame in frames if not frame.sure}
    print(
        f"{len(frames) - len(unsure)} of {images} images have a sure pose in the map"
        + (f", and {len(unsure)} between them one that odometry confirms" if unsure else "")
    )
    if not frames:
        raise InputError(f"{args.bag} is not found in {args.map}: is it of this place? --initial-pose may help")
    choice = build.extend.choose_frames(old, frames, options)
    print(f"the look has changed in {len(choice.changed)} of them, {len(choice.unseen)} are where the map has no keyframe")
    result = old
    if len(choice.stamps) > 1:  # points need two keyframes
        if unsure & choice.stamps:
            how = replace(how, refine=build.extend.refining(old))
        with io.bags.BagReader(args.bag, source) as bag, show_progress("map") as progress:
            new, report = build.extend.map_of_frames(old, _source(bag, frames, choice.stamps), extractor, work, how, progress)
        for note in report.notes:
            print(f"note: {note}")
        extension = build.extend.extend(old, new, (args.map.stem, args.bag.stem), options)
        result = extension.map
        print(
            f"{extension.added} keyframes added, which show {extension.observed} old points; {extension.retired} points retired"
            + (f"; {extension.dropped} keyframes left out, as --budget leaves no room" if extension.dropped else "")
        )
    else:
        print("the map holds all of it")
        result = build.extend.bounded(old, keyframes, most_bytes)
    result.save(output)
    work.remove()
    print(f"{output}: {contents(describe(result, output))}, {size(output.stat().st_size)}, in {time.monotonic() - begin:.1f} s")
    return 0


def _output(args: argparse.Namespace) -> Path:
    """Where the map goes. Raises InputError where it would overwrite the old one unasked."""
    if args.in_place == (args.output is not None):
        raise InputError("give -o FILE for the new map, or --in-place to replace the old one")
    if args.in_place:
        return args.map
    if args.output.is_dir():
        raise InputError(f"{args.output} is a folder: name the map's file, for example {args.output / 'site.pixmap'}")
    if args.output.exists() and args.map.exists() and args.output.samefile(args.map):
        raise InputError(f"{args.output} is the old map: give another file, or --in-place instead of -o")
    return args.output


def parse_budget(text: str | None) -> tuple[int | None, int | None]:
    """Keyframes, or bytes. Raises InputError."""
    if text is None:
        return None, None
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-zA-Z]*)", text.strip())
    unit = parts.group(2).lower() if parts else "?"
    if parts and not unit and "." not in parts.group(1):
        return int(parts.group(1)), None
    if unit not in _UNITS:
        raise InputError(f"--budget {text}: give a number of keyframes (500) or the size of the file (40MB, 40MiB)")
    return None, int(float(parts.group(1)) * _UNITS[unit])


def _tracked(localizer, args: argparse.Namespace, source, work) -> tuple[list, int]:
    """The frames of the drive that have a pose, and how many images there are."""
    import numpy as np
    import torch

    made, start = mapping.build.extend.TrackedFrame, arguments.initial_pose(args)

    def track() -> dict[str, np.ndarray]:
        stamps, poses, agreement, sure = [], [np.empty((0, 4, 4))], [], []
        with io.bags.BagReader(args.bag, source) as bag, show_progress("localize") as progress:

            def watch(frame, result) -> bool:
                tracked = result is not None and result.state == tracking.types.TrackState.TRACKING
                if tracked and result.alignment:
                    stamps.append(frame.stamp_ns)
                    poses.append((result.map_from_base @ bag.base_from_camera).numpy()[None])
                    agreement.append(result.alignment.inlier_fraction)
                    sure.append(result.alignment.probability >= pixloc.localization.SURE)
                return False

            run = evaluation.offline.run_bag(localizer.tracker(), bag, start, start is None, progress, watch, ahead=True)
            odometry = np.full((len(stamps), 4, 4), np.nan)
            if len(run.odometry.stamps_ns):
                at, known = run.odometry.at(np.array(stamps, np.int64), evaluation.runs.TRUTH_GAP_NS)
                odometry[known] = (at @ bag.base_from_camera)[known].numpy()
        found = {"stamps": np.array(stamps, np.int64), "poses": np.concatenate(poses), "agreement": np.array(agreement)}
        return found | {"sure": np.array(sure, bool), "odometry": odometry, "images": np.array(len(run.records))}

    found = work.arrays("frames", track)
    poses = [torch.from_numpy(found[name]) for name in ("poses", "odometry")]
    rows = zip(found["stamps"].tolist(), poses[0], found["agreement"].tolist(), found["sure"].tolist(), poses[1])
    frames = [made(*row[:4], None if row[4].isnan().any() else row[4]) for row in rows]
    return frames, int(found["images"])


def _source(bag, frames: list, stamps: frozenset[int]):
    """A `FrameSource` of the frames with these stamps."""
    poses = {frame.stamp_ns: frame.map_from_camera for frame in frames if frame.stamp_ns in stamps}

    def source(wanted):
        for frame in bag.frames(lambda stamp_ns: stamp_ns in poses and wanted(stamp_ns), None):
            if isinstance(frame, io.frames.UnusableFrame):
                yield frame
            else:
                pose = poses[frame.stamp_ns]
                yield mapping.build.keyframes.PosedFrame(
                    frame.stamp_ns, frame.image, frame.camera, pose, calibration=frame.calibration
                )

    return source

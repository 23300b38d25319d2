# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc dataset`: make a map and a drive, or a map and queries, of a public data set that you have.

Reads public data sets in their own formats. Sets recorded over time become a map and a rosbag with ground truth; sets of single
images become a map and a list of queries. Nothing is downloaded. A command that was killed goes on when it is given again.

examples:
  pixloc dataset tum rgbd_dataset_freiburg2_desk -o out/fr2_desk
  pixloc dataset euroc V1_02_medium --map-sequence V1_01_easy -o out/v102
  pixloc dataset openloris office1-2 --map-sequence office1-1 -o out/office
  pixloc dataset cambridge ShopFacade -o out/shop --localize

docs/evidence/datasets.md has a section on each set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_network, add_preset, add_verb, check_working_side, flag, option, path
from .progress import show_progress

_DRIVE = "Makes map.pixmap, a rosbag2 in drive/, truth.tum and a README that says what was made of what."
_QUERIES = "Makes map.pixmap, queries.txt, priors and truth where they are known, and a README that says what was made of what."


def add_parser(subparsers) -> None:
    sets = add_verb(subparsers, "dataset", None, __doc__).add_subparsers(title="data sets", metavar="SET", required=True)

    def add(name: str, run, what: str, root: str, example: str) -> argparse.ArgumentParser:
        makes = _QUERIES if run is _run_images else _DRIVE
        text = f"{name}: {what}.\n\n{what}. {makes}\n\nexample:\n  pixloc dataset {name} {example}"
        parser = add_verb(sets, name, run, text)
        path(parser, "root", "ROOT", root)
        path(parser, "-o --output", "DIR", "made; must not exist")
        parser.set_defaults(set=name)
        return parser

    files = "a sequence: rgb.txt, depth.txt, groundtruth.txt"
    example = "rgbd_dataset_freiburg2_desk -o out/fr2_desk"
    tum = add("tum", _run_recordings, "TUM RGB-D benchmark, a sequence", files, example)
    _add_map_sequence(tum)
    camera = '"MODEL WIDTH HEIGHT PARAMS..." as in COLMAP, instead of camera.txt or the calibration of freiburg1, 2, 3'
    option(tum, "--camera", "LINE", camera)
    option(tum, "--depth-scale", "N", "units of the depth images per metre (default 5000)", 5000.0)
    _add_common(tum)

    files = "a scene: TrainSplit.txt, TestSplit.txt, seq-01"
    scenes = add("7scenes", _run_seven_scenes, "7-Scenes, a scene", files, "7scenes/chess -o out/chess")
    option(scenes, "--sequence", "seq-NN", "the test sequence for the drive (default: the first)")
    poses = "calibrated: moved to the colour camera (default); original: as written, the depth camera's; then depth is not used"
    option(scenes, "--poses", "KIND", poses, "calibrated")
    _add_model(scenes)
    _add_common(scenes, keyframe_shift=0.1)

    example = "V1_02_medium --map-sequence V1_01_easy -o out/v102"
    euroc = add("euroc", _run_recordings, "EuRoC MAV, a sequence in the ASL layout", "a sequence: mav0", example)
    _add_map_sequence(euroc)
    _add_common(euroc, depth=False)

    files, example = "the benchmark's folder: sequences, poses", "kitti/dataset --sequence 07 -o out/kitti07"
    kitti = add("kitti", _run_recordings, "KITTI odometry, a sequence", files, example)
    option(kitti, "--sequence", "NN", "00 to 10", required=True)
    option(kitti, "--camera-name", "NAME", "image_0 (left, grey; default) to image_3", "image_0")
    option(kitti, "--map-every", "N", "each N-th image is for the map, the others for the drive (default 3)", 3)
    _add_common(kitti, depth=False)

    files, example = "a recording: office1-1 or office1-1.bag", "office1-2 --map-sequence office1-1 -o out/office"
    openloris = add("openloris", _run_recordings, "OpenLORIS-Scene, a recording as folder or bag", files, example)
    _add_map_sequence(openloris)
    _add_common(openloris)

    for name, what, root, example in (
        ("cambridge", "Cambridge Landmarks, a scene", "a scene: dataset_train.txt, reconstruction.nvm, seq1", "ShopFacade"),
        ("aachen", "Aachen Day-Night 1.0 or 1.1", "images_upright, queries, 3D-models", "aachen_v1.1 --pairs netvlad50.txt"),
        ("cmu", "Extended CMU Seasons, a slice", "a slice: database, query, sparse", "cmu_extended/slice2"),
        ("robotcar", "RobotCar Seasons", "images, intrinsics, 3D-models", "robotcar --pairs pairs.txt"),
    ):
        parser = add(name, _run_images, what, root, f"{example} -o out/{name} --localize")
        _add_model(parser)
        poses = "find the queries' poses as well, also of an output made before: poses.txt, and submission.txt for the benchmark"
        flag(parser, "--localize", poses)
        add_preset(parser)
        add_network(parser)


def _add_map_sequence(parser) -> None:
    other = "make the map of this one, which shares the ground truth's frame; may be repeated"
    option(parser, "--map-sequence", "DIR", other, action="append", type=Path, default=[])
    every = "without --map-sequence: each N-th image is for the map, the others for the drive (default 3)"
    option(parser, "--map-every", "N", every, 3)


def _add_model(parser) -> None:
    group = parser.add_argument_group("from hloc")
    option(group, "--model", "DIR", "COLMAP model to make the map of, instead of the set's own", type=Path)
    option(group, "--pairs", "FILE", "where to begin: retrieval's lines 'QUERY DATABASE_IMAGE'", type=Path)
    option(group, "--queries", "FILE", "queries with intrinsics, instead of the set's own", type=Path)


def _add_common(parser, depth: bool = True, keyframe_shift: float = 0.05) -> None:
    option(parser, "--every", "N", "look at each N-th image for the map (default 1)", 1)
    shift = f"a keyframe wherever the picture has shifted by this share of its width (default {keyframe_shift:g})"
    option(parser, "--keyframe-shift", "SHARE", shift, keyframe_shift)
    if depth:
        flag(parser, "--no-depth", "triangulate the map's points instead of taking depth")
    option(parser, "--seed", "N", "of odometry made from the ground truth (default 0)", 0)
    add_network(parser)


# ---- sets recorded over time


_FRAMES = {
    "tum": ("The map frame is the world of the motion capture; the base is the colour camera, x forward.",),
    "euroc": ("The map frame is that of the ground truth; the base is the IMU.",),
    "kitti": (
        "The map frame is camera 0 at the start, turned to z up; the base is camera 0, x forward.",
        "Stamps are the set's seconds plus 1e9.",
    ),
    "openloris": ("The map frame is the scene's, shared by its recordings; the base is base_link.",),
}


def _reader(args: argparse.Namespace):
    """What reads a recording of the set from its path."""
    from ..datasets import openloris, sequences
    from ..errors import InputError
    from ..geometry.cameras import Camera

    if args.set == "kitti":
        return lambda root: sequences.read_kitti_sequence(root, args.sequence, args.camera_name)
    if args.set != "tum":
        return {"euroc": sequences.read_euroc_sequence, "openloris": openloris.read_openloris_sequence}[args.set]
    if not 0 < args.depth_scale < float("inf"):
        raise InputError(f"--depth-scale {args.depth_scale:g}: give the depth images' units per metre, for example 5000")
    camera = Camera.parse_colmap_line(args.camera) if args.camera else None
    return lambda path: sequences.read_tum_sequence(path, camera, args.depth_scale)


def _run_recordings(args: argparse.Namespace) -> int:
    from ..datasets.output import SequenceSet
    from ..datasets.recording import split_every
    from ..errors import InputError

    _say_licence(args.set)
    read, others, notes = _reader(args), getattr(args, "map_sequence", []), _FRAMES[args.set]
    if any(path.resolve() == args.root.resolve() for path in others):
        raise InputError(f"--map-sequence {args.root} is the drive's own: leave it out, and --map-every parts the images")
    drive, mapping = read(args.root), [read(path) for path in others]
    if not mapping:
        mapped, drive = split_every(drive, args.map_every)
        mapping = [mapped]
        notes += (f"One image in {args.map_every} is for the map; the drive holds the others.",)
    return _make_drive(args, SequenceSet(args.set, mapping, drive, notes))


def _run_seven_scenes(args: argparse.Namespace) -> int:
    from ..datasets import seven_scenes
    from ..datasets.output import SequenceSet
    from ..errors import InputError

    if args.model or args.queries:
        _say_licence(args.set)
        return _make_queries(args, seven_scenes.open_seven_scenes(args.root, args.model, args.pairs, args.queries))
    if args.pairs:
        raise InputError("--pairs needs --model and --queries: the map's keyframes are not the set's images otherwise")
    _say_licence(args.set)
    test = seven_scenes.read_split(args.root, "Test")
    name = args.sequence or test[0]
    if name not in test:
        raise InputError(f"--sequence {name} is none of the test sequences {', '.join(test)}")
    mapping, tests = (
        [seven_scenes.read_seven_scenes_sequence(args.root, sequence, args.poses) for sequence in sequences]
        for sequences in (seven_scenes.read_split(args.root, "Train"), test)
    )
    queries = {
        image: (seven_scenes.COLOUR, pose) for sequence in tests for image, pose in seven_scenes.image_poses(sequence).items()
    }
    notes = (
        "The map frame is the scene's, which need not have z up; the base is the colour camera, x forward.",
        f"Poses: {args.poses}. Stamps are made up, 30 Hz.",
    )
    return _make_drive(args, SequenceSet(args.set, mapping, tests[test.index(name)], notes, queries, args.root))


def _make_drive(args: argparse.Namespace, source) -> int:
    from ..datasets.output import SequenceOptions, make_drive

    check_working_side(args)
    options = SequenceOptions(args.every, args.keyframe_shift, not getattr(args, "no_depth", True), args.working_side, args.seed)
    with show_progress(args.set) as progress:
        make_drive(args.output, source, options, args.weights, progress, print)
    _say_where(args.output)
    return 0


# ---- sets of single images


def _run_images(args: argparse.Namespace) -> int:
    from ..datasets import image_benchmarks

    _say_licence(args.set)
    open_ = getattr(image_benchmarks, f"open_{args.set}")
    return _make_queries(args, open_(args.root, args.model, args.pairs, args.queries))


def _make_queries(args: argparse.Namespace, source) -> int:
    from ..datasets.output import localize_set, made_already, make_queries, query_errors
    from ..localization import Localizer
    from ..tracking.frame_aligner import preset_options

    check_working_side(args)
    preset = preset_options(getattr(args, "preset", "balanced"))
    wanted = getattr(args, "localize", False)
    if not (wanted and made_already(args.output, source)):
        with show_progress(args.set) as progress:
            make_queries(args.output, source, args.weights, args.working_side, progress, print)
        _say_where(args.output)
    if not wanted:
        return 0
    localizer = Localizer.open(args.output / "map.pixmap", args.weights, preset)
    with show_progress("localize") as progress:
        results = localize_set(args.output, source, localizer, progress)
    found = sum(not result.reason for result in results)
    print(f"{args.output / 'submission.txt'}: {found} of {len(results)} queries localized")
    if source.truth:
        errors = query_errors(source, results)
        metres, degrees = errors.medians()
        print(
            f"median error over all queries {100 * metres:.1f} cm, {degrees:.2f} deg; within 5 cm and 5 deg: "
            f"{100 * errors.recall(0.05, 5.0):.1f} %"
        )
    return 0 if found else 1


# ---- what both share


def _say_licence(name: str) -> None:
    from ..datasets.output import licence_note

    print(licence_note(name))


def _say_where(output: Path) -> None:
    print(f"{output}: see {output / 'README.md'} for what it holds and the next command")

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

import argparse
from pathlib import Path

from ..errors import InputError
from .arguments import add_network, add_preset, add_verb, check_working_side, flag, option, path
from .lazy import datasets, pixloc, tracking
from .progress import show_progress

_DRIVE = "Makes map.pixmap, a rosbag2 in drive/, truth.tum and a README that says what was made of what."
_QUERIES = "Makes map.pixmap, queries.txt, priors and truth where they are known, and a README that says what was made of what."
_SETS = (
    ("tum", "TUM RGB-D benchmark, a sequence", "a sequence: rgb.txt, depth.txt, groundtruth.txt", "rgbd_dataset_freiburg2_desk"),
    ("7scenes", "7-Scenes, a scene", "a scene: TrainSplit.txt, TestSplit.txt, seq-01", "7scenes/chess"),
    ("euroc", "EuRoC MAV, a sequence in the ASL layout", "a sequence: mav0", "V1_02_medium --map-sequence V1_01_easy"),
    ("kitti", "KITTI odometry, a sequence", "the benchmark's folder: sequences, poses", "kitti/dataset --sequence 07"),
    (
        "openloris",
        "OpenLORIS-Scene, a recording as folder or bag",
        "a recording: office1-1 or office1-1.bag",
        "office1-2 --map-sequence office1-1",
    ),
    ("cambridge", "Cambridge Landmarks, a scene", "a scene: dataset_train.txt, reconstruction.nvm, seq1", "ShopFacade"),
    ("aachen", "Aachen Day-Night 1.0 or 1.1", "images_upright, queries, 3D-models", "aachen_v1.1 --pairs netvlad50.txt"),
    ("cmu", "Extended CMU Seasons, a slice", "a slice: database, query, sparse", "cmu_extended/slice2"),
    ("robotcar", "RobotCar Seasons", "images, intrinsics, 3D-models", "robotcar --pairs pairs.txt"),
)
"""Name, what it is, what its folder holds, an example."""
_SINGLE_IMAGES = ("cambridge", "aachen", "cmu", "robotcar")


def add_parser(subparsers) -> None:
    sets = add_verb(subparsers, "dataset", None, __doc__).add_subparsers(title="data sets", metavar="SET", required=True)
    parsers = {}
    for name, what, root, example in _SETS:
        single = name in _SINGLE_IMAGES
        example += f" -o out/{name}{' --localize' if single else ''}"
        text = f"{name}: {what}.\n\n{what}. {_QUERIES if single else _DRIVE}\n\nexample:\n  pixloc dataset {name} {example}"
        run = _run_images if single else _run_seven_scenes if name == "7scenes" else _run_recordings
        parsers[name] = parser = add_verb(sets, name, run, text)
        path(parser, "root ROOT", root)
        path(parser, "-o --output DIR", "made; must not exist")
        parser.set_defaults(set=name, map_sequence=[])
        if name in ("tum", "euroc", "openloris"):
            other = "make the map of this one, in the same frame; may be repeated"
            option(parser, "--map-sequence DIR", other, [], action="append")
        if name in ("tum", "euroc", "openloris", "kitti"):
            every = "each N-th image is for the map, the others for the drive"
            option(parser, "--map-every N", every if name == "kitti" else f"without --map-sequence: {every}", 3)
        if single or name == "7scenes":
            group = parser.add_argument_group("from hloc")
            option(group, "--model DIR", "COLMAP model to make the map of, instead of the set's own")
            option(group, "--pairs FILE", "where to begin: retrieval's lines 'QUERY DATABASE_IMAGE'")
            option(group, "--queries FILE", "queries with intrinsics, instead of the set's own")
        if single:
            poses = (
                "find the queries' poses as well, also of an output made before: poses.txt, and submission.txt for the benchmark"
            )
            flag(parser, "--localize", poses)
            add_preset(parser)
        else:
            option(parser, "--every N", "look at each N-th image for the map", 1)
            share = 0.1 if name == "7scenes" else 0.05
            option(parser, "--keyframe-shift SHARE", "a keyframe where the picture has shifted by this share of its width", share)
            option(parser, "--seed N", "of odometry made from the ground truth", 0)
        if name in ("tum", "7scenes", "openloris"):
            flag(parser, "--no-depth", "triangulate the map's points instead of taking depth")
        add_network(parser)
    option(parsers["tum"], "--camera LINE", '"MODEL WIDTH HEIGHT PARAMS..." as in COLMAP, instead of camera.txt or what is known')
    option(parsers["tum"], "--depth-scale N", "units of the depth images per metre", 5000.0)
    option(parsers["7scenes"], "--sequence seq-NN", "the test sequence for the drive (default: the first)")
    poses = "calibrated: moved to the colour camera (default); original: as written, the depth camera's; then depth is not used"
    option(parsers["7scenes"], "--poses KIND", poses, "calibrated")
    option(parsers["kitti"], "--sequence NN", "00 to 10", required=True)
    option(parsers["kitti"], "--camera-name NAME", "image_0 (left, grey; default) to image_3", "image_0")


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
    if args.set == "kitti":
        return lambda root: datasets.sequences.read_kitti_sequence(root, args.sequence, args.camera_name)
    if args.set != "tum":
        return datasets.sequences.read_euroc_sequence if args.set == "euroc" else datasets.openloris.read_openloris_sequence
    if not 0 < args.depth_scale < float("inf"):
        raise InputError(f"--depth-scale {args.depth_scale:g}: give the depth images' units per metre, for example 5000")
    camera = pixloc.Camera.parse_colmap_line(args.camera) if args.camera else None
    return lambda path: datasets.sequences.read_tum_sequence(path, camera, args.depth_scale)


def _run_recordings(args: argparse.Namespace) -> int:
    _say_licence(args.set)
    read, notes = _reader(args), _FRAMES[args.set]
    if any(path.resolve() == args.root.resolve() for path in args.map_sequence):
        raise InputError(f"--map-sequence {args.root} is the drive's own: leave it out, and --map-every parts the images")
    drive, mapping = read(args.root), [read(path) for path in args.map_sequence]
    if not mapping:
        mapped, drive = datasets.recording.split_every(drive, args.map_every)
        mapping = [mapped]
        notes += (f"One image in {args.map_every} is for the map; the drive holds the others.",)
    return _make_drive(args, datasets.output.SequenceSet(args.set, mapping, drive, notes))


def _run_seven_scenes(args: argparse.Namespace) -> int:
    scenes = datasets.seven_scenes
    if args.pairs and not (args.model or args.queries):
        raise InputError("--pairs needs --model and --queries: the map's keyframes are not the set's images otherwise")
    _say_licence(args.set)
    if args.model or args.queries:
        return _make_queries(args, scenes.open_seven_scenes(args.root, args.model, args.pairs, args.queries))
    train, test = (scenes.read_split(args.root, split) for split in ("Train", "Test"))
    name = args.sequence or test[0]
    if name not in test:
        raise InputError(f"--sequence {name} is none of the test sequences {', '.join(test)}")
    mapping, tests = ([scenes.read_seven_scenes_sequence(args.root, one, args.poses) for one in names] for names in (train, test))
    queries = {image: (scenes.COLOUR, pose) for one in tests for image, pose in scenes.image_poses(one).items()}
    notes = (
        "The map frame is the scene's, which need not have z up; the base is the colour camera, x forward.",
        f"Poses: {args.poses}. Stamps are made up, 30 Hz.",
    )
    return _make_drive(args, datasets.output.SequenceSet(args.set, mapping, tests[test.index(name)], notes, queries, args.root))


def _make_drive(args: argparse.Namespace, source) -> int:
    check_working_side(args)
    depth = not getattr(args, "no_depth", True)
    options = datasets.output.SequenceOptions(args.every, args.keyframe_shift, depth, args.working_side, args.seed)
    with show_progress(args.set) as progress:
        datasets.output.make_drive(args.output, source, options, args.weights, progress, print)
    _say_where(args.output)
    return 0


# ---- sets of single images


def _run_images(args: argparse.Namespace) -> int:
    _say_licence(args.set)
    open_ = getattr(datasets.image_benchmarks, f"open_{args.set}")
    return _make_queries(args, open_(args.root, args.model, args.pairs, args.queries))


def _make_queries(args: argparse.Namespace, source) -> int:
    check_working_side(args)
    preset = tracking.frame_aligner.preset_options(getattr(args, "preset", "balanced"))
    wanted = getattr(args, "localize", False)
    if not (wanted and datasets.output.made_already(args.output, source)):
        with show_progress(args.set) as progress:
            datasets.output.make_queries(args.output, source, args.weights, args.working_side, progress, print)
        _say_where(args.output)
    if not wanted:
        return 0
    localizer = pixloc.Localizer.open(args.output / "map.pixmap", args.weights, preset)
    with show_progress("localize") as progress:
        results = datasets.output.localize_set(args.output, source, localizer, progress)
    found = sum(not result.reason for result in results)
    print(f"{args.output / 'submission.txt'}: {found} of {len(results)} queries localized")
    if source.truth:
        errors = datasets.output.query_errors(source, results)
        metres, degrees = errors.medians()
        print(
            f"median error over all queries {100 * metres:.1f} cm, {degrees:.2f} deg; within 5 cm and 5 deg: "
            f"{100 * errors.recall(0.05, 5.0):.1f} %"
        )
    return 0 if found else 1


# ---- what both share


def _say_licence(name: str) -> None:
    print(datasets.output.licence_note(name))


def _say_where(output: Path) -> None:
    print(f"{output}: see {output / 'README.md'} for what it holds and the next command")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc dataset`: public data sets, in the layouts they come in, as a map and a drive or a list of queries."""

from __future__ import annotations

import argparse
from pathlib import Path

from .help_format import HelpFormatter
from .map_common import ProgressLine


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "dataset",
        help="make a map and a drive, or a map and queries, of a public data set that you have",
        description="Reads public data sets in their own formats. Sets recorded over time become a map and a rosbag with ground "
        "truth; sets of single images become a map and a list of queries. Nothing is downloaded. A command that was "
        "killed goes on when it is given again.",
        epilog="examples:\n"
        "  pixloc dataset tum rgbd_dataset_freiburg2_desk -o out/fr2_desk\n"
        "  pixloc dataset euroc V1_02_medium --map-sequence V1_01_easy -o out/v102\n"
        "  pixloc dataset openloris office1-2 --map-sequence office1-1 -o out/office\n"
        "  pixloc dataset cambridge ShopFacade -o out/shop --localize\n\n"
        "docs/evidence/datasets.md has a section on each set.",
        formatter_class=HelpFormatter,
    )
    sets = parser.add_subparsers(title="data sets", metavar="SET", required=True)
    _add_sequences(sets)
    _add_images(sets)


def _add_sequences(sets) -> None:
    tum = _add(sets, "tum", "TUM RGB-D benchmark, a sequence", "a sequence: rgb.txt, depth.txt, groundtruth.txt", _run_tum)
    _add_map_sequence(tum)
    tum.add_argument(
        "--camera",
        metavar="LINE",
        help='"MODEL WIDTH HEIGHT PARAMS..." as in COLMAP, instead of camera.txt or the calibration of freiburg1, 2, 3',
    )
    tum.add_argument("--depth-scale", type=float, metavar="N", help="units of the depth images per metre (default 5000)")
    _add_common(tum)

    scenes = _add(sets, "7scenes", "7-Scenes, a scene", "a scene: TrainSplit.txt, TestSplit.txt, seq-01", _run_seven_scenes)
    scenes.add_argument("--sequence", metavar="seq-NN", help="the test sequence for the drive (default: the first)")
    scenes.add_argument(
        "--poses",
        default="calibrated",
        metavar="KIND",
        help="calibrated: moved to the colour camera (default); original: as written, which are the depth "
        "camera's; then depth is not used",
    )
    _add_model(scenes)
    _add_common(scenes, keyframe_shift=0.1)

    euroc = _add(sets, "euroc", "EuRoC MAV, a sequence in the ASL layout", "a sequence: mav0", _run_euroc)
    _add_map_sequence(euroc)
    _add_common(euroc, depth=False)

    kitti = _add(sets, "kitti", "KITTI odometry, a sequence", "the benchmark's folder: sequences, poses", _run_kitti)
    kitti.add_argument("--sequence", required=True, metavar="NN", help="00 to 10")
    kitti.add_argument("--camera-name", default="image_0", metavar="NAME", help="image_0 (left, grey; default) to image_3")
    kitti.add_argument(
        "--map-every",
        type=int,
        default=3,
        metavar="N",
        help="each N-th image is for the map, the others for the drive (default 3)",
    )
    _add_common(kitti, depth=False)

    openloris = _add(
        sets,
        "openloris",
        "OpenLORIS-Scene, a recording as folder or bag",
        "a recording: office1-1 or office1-1.bag",
        _run_openloris,
    )
    _add_map_sequence(openloris)
    _add_common(openloris)


def _add_images(sets) -> None:
    for name, help_, root in (
        ("cambridge", "Cambridge Landmarks, a scene", "a scene: dataset_train.txt, reconstruction.nvm, seq1"),
        ("aachen", "Aachen Day-Night 1.0 or 1.1", "images_upright, queries, 3D-models"),
        ("cmu", "Extended CMU Seasons, a slice", "a slice: database, query, sparse"),
        ("robotcar", "RobotCar Seasons", "images, intrinsics, 3D-models"),
    ):
        parser = _add(sets, name, help_, root, _run_images)
        _add_model(parser)
        parser.add_argument(
            "--localize",
            action="store_true",
            help="find the queries' poses as well, also of an output made before: poses.txt, and submission.txt "
            "as the benchmark wants it",
        )
        parser.add_argument("--preset", default="balanced", metavar="NAME", help="fast, balanced (default) or accurate")
        _add_network(parser)


def _add(sets, name: str, help_: str, root: str, run) -> argparse.ArgumentParser:
    parser = sets.add_parser(
        name,
        help=help_,
        description=f"{help_}. {_WHAT[run is _run_images]}",
        epilog=f"example:\n  {_EXAMPLES[name]}",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help=root)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="made; must not exist")
    parser.set_defaults(run=run, set=name)
    return parser


_WHAT = (
    "Makes map.pixmap, a rosbag2 in drive/, truth.tum and a README that says what was made of what.",
    "Makes map.pixmap, queries.txt, priors and truth where they are known, and a README that says what was made of what.",
)
_EXAMPLES = {
    "tum": "pixloc dataset tum rgbd_dataset_freiburg2_desk -o out/fr2_desk",
    "7scenes": "pixloc dataset 7scenes 7scenes/chess -o out/chess",
    "euroc": "pixloc dataset euroc V1_02_medium --map-sequence V1_01_easy -o out/v102",
    "kitti": "pixloc dataset kitti kitti/dataset --sequence 07 -o out/kitti07",
    "openloris": "pixloc dataset openloris office1-2 --map-sequence office1-1 -o out/office",
    "cambridge": "pixloc dataset cambridge ShopFacade -o out/shop --localize",
    "aachen": "pixloc dataset aachen aachen_v1.1 --pairs pairs-query-netvlad50.txt -o out/aachen --localize",
    "cmu": "pixloc dataset cmu cmu_extended/slice2 -o out/slice2 --localize",
    "robotcar": "pixloc dataset robotcar robotcar --pairs pairs.txt -o out/robotcar --localize",
}


def _add_map_sequence(parser) -> None:
    parser.add_argument(
        "--map-sequence",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="make the map of this one, which shares the ground truth's frame; may be repeated",
    )
    parser.add_argument(
        "--map-every",
        type=int,
        default=3,
        metavar="N",
        help="without --map-sequence: each N-th image is for the map, the others for the drive (default 3)",
    )


def _add_model(parser) -> None:
    group = parser.add_argument_group("from hloc")
    group.add_argument("--model", type=Path, metavar="DIR", help="COLMAP model to make the map of, instead of the set's own")
    group.add_argument("--pairs", type=Path, metavar="FILE", help="where to begin: retrieval's lines 'QUERY DATABASE_IMAGE'")
    group.add_argument("--queries", type=Path, metavar="FILE", help="queries with intrinsics, instead of the set's own")


def _add_common(parser, depth: bool = True, keyframe_shift: float = 0.05) -> None:
    parser.add_argument("--every", type=int, default=1, metavar="N", help="look at each N-th image for the map (default 1)")
    parser.add_argument(
        "--keyframe-shift",
        type=float,
        default=keyframe_shift,
        metavar="SHARE",
        help=f"a keyframe wherever the picture has shifted by this share of its width (default {keyframe_shift:g})",
    )
    if depth:
        parser.add_argument("--no-depth", action="store_true", help="triangulate the map's points instead of taking depth")
    parser.add_argument("--seed", type=int, default=0, help="of odometry made from the ground truth (default 0)")
    _add_network(parser)


def _add_network(parser) -> None:
    parser.add_argument("--weights", default="compact", metavar="NAME|FILE", help="network (default compact)")
    parser.add_argument("--working-side", type=int, metavar="PX", help="longer side of the network's images (default: its own)")


# ---- sets recorded over time


def _run_tum(args: argparse.Namespace) -> int:
    from ..datasets.tum import DEPTH_SCALE, read_tum_sequence
    from ..errors import InputError
    from ..geometry.cameras import Camera

    scale = DEPTH_SCALE if args.depth_scale is None else args.depth_scale
    if not 0 < scale < float("inf"):
        raise InputError(f"--depth-scale {scale:g}: give the depth images' units per metre, for example 5000")
    camera = Camera.parse_colmap_line(args.camera) if args.camera else None
    return _run_recordings(
        args,
        lambda path: read_tum_sequence(path, camera, scale),
        "The map frame is the world of the motion capture; the base is the colour camera, x forward.",
    )


def _run_euroc(args: argparse.Namespace) -> int:
    from ..datasets.euroc import read_euroc_sequence

    return _run_recordings(args, read_euroc_sequence, "The map frame is that of the ground truth; the base is the IMU.")


def _run_openloris(args: argparse.Namespace) -> int:
    from ..datasets.openloris import read_openloris_sequence

    return _run_recordings(
        args, read_openloris_sequence, "The map frame is the scene's, shared by its recordings; the base is base_link."
    )


def _run_kitti(args: argparse.Namespace) -> int:
    from ..datasets.kitti import read_kitti_sequence

    args.map_sequence = []
    return _run_recordings(
        args,
        lambda root: read_kitti_sequence(root, args.sequence, args.camera_name),
        "The map frame is camera 0 at the start, turned to z up; the base is camera 0, x forward.",
        "Stamps are the set's seconds plus 1e9.",
    )


def _run_recordings(args: argparse.Namespace, read, *notes: str) -> int:
    from ..datasets.drives import SequenceSet
    from ..datasets.recording import split_every
    from ..errors import InputError

    _say_licence(args.set)
    if any(path.resolve() == args.root.resolve() for path in args.map_sequence):
        raise InputError(f"--map-sequence {args.root} is the drive's own: leave it out, and --map-every parts the images")
    drive = read(args.root)
    mapping = [read(path) for path in args.map_sequence]
    if not mapping:
        mapped, drive = split_every(drive, args.map_every)
        mapping = [mapped]
        notes += (f"One image in {args.map_every} is for the map; the drive holds the others.",)
    return _make_drive(args, SequenceSet(args.set, mapping, drive, notes))


def _run_seven_scenes(args: argparse.Namespace) -> int:
    from ..datasets import seven_scenes
    from ..datasets.drives import SequenceSet
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
    from ..datasets.drives import SequenceOptions, make_drive
    from ..features import load_extractor

    _check(args)
    options = SequenceOptions(args.every, args.keyframe_shift, not getattr(args, "no_depth", True), args.working_side, args.seed)
    with ProgressLine() as progress:
        make_drive(args.output, source, load_extractor(args.weights), options, args.weights, progress, print)
    _say_where(args.output)
    return 0


# ---- sets of single images


def _run_images(args: argparse.Namespace) -> int:
    from ..datasets import cambridge, hloc

    _say_licence(args.set)
    open_ = {
        "cambridge": cambridge.open_cambridge,
        "aachen": hloc.open_aachen,
        "cmu": hloc.open_cmu,
        "robotcar": hloc.open_robotcar,
    }[args.set]
    return _make_queries(args, open_(args.root, args.model, args.pairs, args.queries))


def _make_queries(args: argparse.Namespace, source) -> int:
    from ..datasets.queries import localize_set, made_already, make_queries, query_errors
    from ..features import load_extractor
    from ..localization import Localizer
    from ..tracking.presets import preset_options
    from .progress import show_progress

    _check(args)
    chosen = preset_options(getattr(args, "preset", "balanced"))
    wanted = getattr(args, "localize", False)
    if not (wanted and made_already(args.output, source)):
        with ProgressLine() as progress:
            make_queries(args.output, source, load_extractor(args.weights), args.working_side, args.weights, progress, print)
        _say_where(args.output)
    if not wanted:
        return 0
    localizer = Localizer.open(args.output / "map.pixmap", args.weights, chosen)
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


def _check(args: argparse.Namespace) -> None:
    from ..errors import InputError

    if args.working_side is not None and args.working_side < 64:
        raise InputError(f"--working-side {args.working_side}: give at least 64 pixels")


def _say_licence(name: str) -> None:
    from ..datasets.licences import licence_note

    print(licence_note(name))


def _say_where(output: Path) -> None:
    print(f"{output}: see {output / 'README.md'} for what it holds and the next command")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map info | move | merge | prune | check | export | re-encode | georeference`: what is done with maps that are there."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..io.files import write_text
from .arguments import POSE, add_map_making, add_verb, check_map_making, flag, option, parse_poses, path
from .lazy import geometry, io, mapping, pixloc
from .progress import show_progress, tell_reasons

_MOVE_ERROR_SHARE = 0.1  # of the places' spread: a median error above is no fit
_MOVE_LEAST_SPREAD = 0.01  # across the direction of the largest
_MOST_M = 1e8  # further than any place on the earth from its middle
_MOVE_SCALE, _MOVE_TILT = 0.02, 0.7  # more is remarked: as a share; cosine of the angle between the z axes


def add_parsers(sources) -> None:
    def action(name: str, run, *arguments: str) -> argparse.ArgumentParser:
        parser = add_verb(sources, name, run, run.__doc__)
        for argument in arguments:
            path(parser, f"{argument} FILE")
        return parser

    flag(action("info", _run_info, "map"), "--json", "print JSON")

    parser = action("georeference", _run_georeference, "map")
    path(parser, "--fixes FILE", "places and their fixes")
    flag(parser, "--upright", "the map's z axis points up: only its heading is searched for, for which a straight road is enough")
    option(parser, "-o --output FILE", "another file than the map itself")

    parser = action("merge", _run_merge)
    parser.add_argument("maps", type=Path, nargs="+", metavar="FILE")
    option(parser, f"--second-pose {POSE}", "pose of the second map's frame in the first's, for two maps")
    path(parser, "-o --output FILE.pixmap")

    parser = action("move", _run_move, "map")
    path(parser, "-o --output FILE.pixmap")
    ways = parser.add_mutually_exclusive_group(required=True)
    option(ways, f"--pose {POSE}", "pose of the map's frame in the new frame")
    option(ways, "--points FILE", "places in the map and in the new frame")
    option(ways, "--trajectories IN_MAP IN_NEW", "one drive in both frames (TUM format)", type=Path)
    flag(parser, "--upright", "the z axes of both frames point up: only heading and shift are fitted")

    parser = action("prune", _run_prune, "map")
    path(parser, "-o --output FILE.pixmap")
    option(parser, "--points-per-keyframe N", "at most so many, spread over the image", type=int)
    spacing = "leave out keyframes nearer to another than this share of the scene's depth, if turned by less than 8 degrees"
    option(parser, "--keyframe-spacing SHARE", spacing, 0.0)
    option(parser, "--min-track-length N", "points that at least N keyframes see", 0)
    option(parser, "--min-quality Q", "points whose descriptors agree at least so well, 0 to 1", 0.0)
    flag(parser, "--int8", "descriptors in eight bits, half the size")

    action("check", _run_check, "map")

    parser = action("export", _run_export, "map")
    option(parser, "--colmap DIR", "write cameras.txt, images.txt, points3D.txt")
    option(parser, "--ply FILE", "write points (grey: quality) and keyframes (red)")

    parser = action("re-encode", _run_re_encode, "map")
    path(parser, "--images DIR", "what the keyframes' names are relative to")
    add_map_making(parser)


def _run_info(args: argparse.Namespace) -> int:
    """`pixloc map info`: what a map holds.

    example:
      pixloc map info site.pixmap
    """
    map_ = pixloc.Map.open(args.map)
    info = describe(map_, args.map)
    if args.json:
        print(json.dumps(info, indent=2))
        return 0
    print(f"map '{map_.name}', {size(info['bytes'])}")
    print(f"  {contents(info)}")
    print(
        f"  points per keyframe: median {info['observations_per_keyframe_median']:.0f}; "
        f"keyframes per point: mean {info['track_length_mean']:.1f}; scene depth: median {info['depth_median']:.3g}"
    )
    print(f"  keyframes span {' x '.join(f'{side:.3g}' for side in info['extent'])} (x, y, z of the map frame)")
    for camera in info["cameras"]:
        print(f"  camera {camera['model']} {camera['width']}x{camera['height']}, focal {camera['params'][0]:.1f} px")
    network = info["extractor"]
    print(
        f"  network '{network['name']}' ({network['fingerprint']}), strides {', '.join(map(str, network['strides']))}, "
        f"channels {', '.join(map(str, network['channels']))}, images of at most {network['working_side']} px"
    )
    return 0


def _run_georeference(args: argparse.Namespace) -> int:
    """`pixloc map georeference`: say where a map lies on the earth, so that satellite fixes tell where to look for the robot.

    Fits the map's places to satellite fixes (WGS 84, altitude above the ellipsoid, as in NavSatFix) and keeps the result in the
    map. Fixes that are far off the others count little.

    examples:
      pixloc map georeference site.pixmap --fixes gps.txt
      pixloc map georeference site.pixmap --fixes gps.txt --upright -o placed.pixmap

    gps.txt: a line per place, a keyframe's file name or x y z in the map, then latitude longitude altitude:
      0001.jpg 48.13741 11.57549 519.3
      12.5 -3.1 0.0 48.13752 11.57561 519.2
    """
    import numpy as np

    map_ = pixloc.Map.open(args.map)
    xyz, fixes, names = read_fixes(args.fixes, dict(zip(map_.keyframe_names, map_.map_from_keyframe[:, :3, 3].numpy())))
    georeference, errors = mapping.georeference.fit_georeference(xyz, fixes, args.upright)
    output = args.output or args.map
    replace(map_, georeference=georeference).save(output)
    worst = int(np.argmax(errors))
    errors = f"{np.median(errors):.2f} m in the median, at worst {errors[worst]:.2f} m ({names[worst]})"
    print(f"{output}: {len(xyz)} fixes fit with {errors}")
    return 0


def read_fixes(path: Path, keyframes: dict, columns: str = "LAT LON ALT") -> tuple:
    """Places float64 [N, 3] in the map, fixes [N, 3], and what each is called. Raises InputError for what cannot be read.

    columns: names of the fix's three numbers.
    """
    import numpy as np

    xyz, fixes, names = [], [], []
    # A keyframe's name may begin with "#", as comments do.
    lines = ((f"{path}:{number}", line.strip()) for number, line in enumerate(io.text.read_text(path).split("\n"), 1))
    for where, line in lines:
        words = line.split()
        place = line.rsplit(maxsplit=3)[0] if len(words) > 3 else ""
        if not line or (line.startswith("#") and place not in keyframes):
            continue
        try:
            fix = [float(word) for word in words[-3:]]
            position = keyframes[place] if place in keyframes else [float(word) for word in words[:-3]]
        except ValueError:
            position = fix = []
        if len(fix) != 3 or len(position) != 3:
            expected = f"'KEYFRAME {columns}' with a keyframe of the map nor 'X Y Z {columns}'"
            raise InputError(f"{where}: '{line}' is neither {expected}")
        if not np.isfinite([*position, *fix]).all() or max(map(abs, (*position, *fix))) > _MOST_M:
            raise InputError(f"{where}: '{line}' has impossible numbers: remove the line")
        xyz.append(position)
        fixes.append(fix)
        names.append(place)
    return np.array(xyz, float).reshape(-1, 3), np.array(fixes, float).reshape(-1, 3), names


def _run_move(args: argparse.Namespace) -> int:
    """`pixloc map move`: bring a map into another frame, for example that of an occupancy grid.

    The rotation and shift are given, or fitted to places or to a drive that is known in both frames. The map is not scaled. A
    georeference moves with it.

    examples:
      pixloc map move site.pixmap -o in_grid.pixmap --pose 1.5 -2 0 0 0 0.7071068 0.7071068
      pixloc map move site.pixmap -o in_grid.pixmap --points pairs.txt --upright
      pixloc map move site.pixmap -o in_grid.pixmap --trajectories camera.tum slam_toolbox.tum --upright

    pairs.txt: a line per place, a keyframe's file name or x y z in the map, then x y z in the new frame:
      0001.jpg 4.20 1.35 0.60
      12.5 -3.1 0.0 9.75 14.02 0.0
    """

    map_ = pixloc.Map.open(args.map)
    (new_from_map,) = parse_poses(args, "pose")
    if new_from_map is None:
        new_from_map = _fitted_move(args, map_)
    if not new_from_map[:3, 3].abs().max() <= _MOST_M:
        raise InputError("the map would be off the earth: check the units")
    mapping.build.care.moved(map_, new_from_map).save(args.output)
    x, y, z, *quaternion = (*new_from_map[:3, 3].tolist(), *geometry.se3.quaternion_from_rotation(new_from_map[:3, :3]).tolist())
    print(f"{args.output}: moved by {x:.4g} {y:.4g} {z:.4g}, turned by {' '.join(f'{q:.6f}' for q in quaternion)} (x y z w)")
    return 0


def _fitted_move(args: argparse.Namespace, map_):
    """new_from_map float64 [4, 4] of places that are known in both frames. Raises InputError if they do not determine it."""
    import numpy as np

    hint = ""
    if args.points is not None:
        centres = dict(zip(map_.keyframe_names, map_.map_from_keyframe[:, :3, 3].numpy()))
        points, places, _ = read_fixes(args.points, centres, "X Y Z")
    else:
        in_map, in_new = map(io.trajectory.read_tum, args.trajectories)
        poses, known = in_new.at(in_map.stamps_ns, 1_000_000_000)
        points, places = in_map.map_from_body[known, :3, 3].numpy(), poses[known, :3, 3].numpy()
        times = (f"{t.stamps_ns[0] / 1e9:.1f} to {t.stamps_ns[-1] / 1e9:.1f} s" for t in (in_map, in_new) if len(t))
        hint = f"; the drives are from {' and '.join(times)}: both need one clock and at least one pose a second"
    if len(points) < (2 if args.upright else 3):
        raise InputError(f"{len(points)} places are known in both frames: give at least 3, or 2 with --upright{hint}")
    new_from_map, errors, spread = mapping.georeference.rigid_fit(points, places, args.upright)
    fit = f"{len(points)} places fit with {np.median(errors):.3g} in the median, at worst {errors.max():.3g}"
    if not np.median(errors) < _MOVE_ERROR_SHARE * spread or spread < _MOVE_LEAST_SPREAD * np.ptp(points, axis=0).max():
        raise InputError(
            f"{fit}; they spread over {spread:.3g}, which does not determine how the map lies: check the units and the order "
            "of the places, and give places further apart" + ("" if args.upright else " and off one line, or --upright")
        )
    print(fit)
    near, far = (np.median(np.linalg.norm(p - np.median(p, 0), axis=1)) for p in (points, places))
    if near and abs(far / near - 1) > _MOVE_SCALE:
        print(f"note: in the new frame the places are {100 * (far / near - 1):+.1f} % further apart; the map is not scaled")
    if new_from_map[2, 2] < _MOVE_TILT:
        print("note: the map's z axis is turned away from the new frame's; if both point up, give --upright")
    return new_from_map


def _run_merge(args: argparse.Namespace) -> int:
    """`pixloc map merge`: put several maps together: sessions of one place, or places next to each other.

    Points that two maps share become one, with what they looked like in both. The maps must be in one frame, or --second-pose
    says how the second lies in the first.

    example:
      pixloc map merge morning.pixmap evening.pixmap -o site.pixmap
    """
    maps = [pixloc.Map.open(path) for path in args.maps]
    (second,) = parse_poses(args, "second_pose")
    if second is not None:
        if len(maps) != 2:
            raise InputError("--second-pose goes with two maps: merge the others afterwards")
        maps[1] = mapping.build.care.moved(maps[1], second)
    merged, fused = mapping.build.care.merge(maps, [path.stem for path in args.maps])
    merged.save(args.output)
    print(f"{args.output}: {contents(describe(merged, args.output))}; {fused} points were in more than one map")
    if fused == 0:
        print("no point was: if the maps show one place, they are not in one frame")
    return 0


def _run_prune(args: argparse.Namespace) -> int:
    """`pixloc map prune`: make a map smaller.

    Leaves out keyframes and points, and stores descriptors in fewer bits. docs/evidence/maps.md: what each costs.

    example:
      pixloc map prune site.pixmap -o small.pixmap --points-per-keyframe 300 --int8
    """
    how = (args.keyframe_spacing, args.points_per_keyframe, args.min_track_length, args.min_quality, args.int8)
    mapping.build.care.prune(pixloc.Map.open(args.map), mapping.build.care.PruneOptions(*how)).save(args.output)
    for file in (args.map, args.output):
        info = describe(pixloc.Map.open(file), file)
        print(f"{file}: {contents(info)}, {size(info['bytes'])}")
    return 0


def _run_check(args: argparse.Namespace) -> int:
    """`pixloc map check`: is a map whole and sound.

    Compares the whole content with its checksums and looks for what does not fit together. Exit code 1 where the map should not
    be used so.

    example:
      pixloc map check site.pixmap
    """
    findings = mapping.build.care.check(pixloc.Map.open(args.map, verify=True))
    for finding in findings:
        print(f"{'serious' if finding.serious else 'note'}: {finding.text}")
    serious = any(finding.serious for finding in findings)
    print(f"{args.map}: contents match their checksums; {'not sound' if serious else 'sound'}")
    return int(serious)


def _run_export(args: argparse.Namespace) -> int:
    """`pixloc map export`: write a map for other programs.

    COLMAP's text format (poses, cameras of the shrunk images, points and where they project) or a point cloud.

    examples:
      pixloc map export site.pixmap --colmap model
      pixloc map export site.pixmap --ply points.ply
    """
    if args.colmap is None and args.ply is None:
        raise InputError("nothing to write: give --colmap DIR or --ply FILE")
    map_ = pixloc.Map.open(args.map, verify=True)
    if args.colmap is not None:
        mapping.build.care.export_colmap(map_, args.colmap)
        print(f"{args.colmap}: {contents(describe(map_, args.map))}")
    if args.ply is not None:
        mapping.build.care.export_ply(map_, args.ply)
        print(f"{args.ply}: {len(map_.xyz)} points, {len(map_.keyframe_names)} keyframes")
    return 0


def _run_re_encode(args: argparse.Namespace) -> int:
    """`pixloc map re-encode`: make a map anew with another network, from its images.

    Keyframes and points stay; their features are those of --weights.

    example:
      pixloc map re-encode site.pixmap --images images --weights vgg.safetensors -o site_vgg.pixmap
    """
    check_map_making(args)
    begin, extractor, old = time.monotonic(), pixloc.load_extractor(args.weights), pixloc.Map.open(args.map)
    with show_progress("map") as progress:
        map_, report = mapping.build.care.re_encode(old, args.images, extractor, args.working_side, progress)
    return finish(map_, report, args, begin)


# ---- what a map holds


def finish(map_, report, args: argparse.Namespace, begin: float) -> int:
    """Write a map that was made of images, say what it holds, and write --report, if given. begin: of the work, seconds of the
    monotonic clock."""
    map_.save(args.output)
    tell_reasons("left out", report.left_out, "--report FILE")
    for note in report.notes:
        print(f"note: {note}")
    info = describe(map_, args.output)
    print(f"{args.output}: {contents(info)}, {size(info['bytes'])}, made in {time.monotonic() - begin:.1f} s")
    if args.report is not None:
        summary = {key: info[key] for key in ("keyframes", "points", "observations", "bytes")} | vars(report)
        summary["seconds"] = round(time.monotonic() - begin, 1)
        write_text(args.report, json.dumps(summary, indent=2) + "\n")
    return 0


def describe(map_, path: Path) -> dict:
    """What a map holds, for JSON."""
    import numpy as np

    centres = map_.map_from_keyframe[:, :3, 3].numpy()
    return {
        "name": map_.name,
        "bytes": path.stat().st_size,
        "keyframes": len(map_.keyframe_names),
        "points": len(map_.xyz),
        "observations": len(map_.observation_point),
        "observations_per_keyframe_median": float(np.median(np.diff(map_.observation_offsets))),
        "track_length_mean": len(map_.observation_point) / max(len(map_.xyz), 1),
        "depth_median": float(np.median(map_.keyframe_depth)),
        "extent": (centres.max(0) - centres.min(0)).tolist(),
        "cameras": [mapping.map_file.describe_camera(camera) for camera in map_.cameras],
        "extractor": {
            "name": map_.extractor_name,
            "fingerprint": map_.extractor_fingerprint,
            "strides": list(map_.strides),
            "channels": list(map_.channels),
            "working_side": map_.working_side,
        },
    }


def contents(info: dict) -> str:
    """The counts of a description, for people."""
    return f"{info['keyframes']} keyframes, {info['points']} points, {info['observations']} observations"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc map georeference`: where a map lies on the earth."""

from __future__ import annotations

import argparse
from pathlib import Path

from .help_format import HelpFormatter


def add_parser(sources) -> None:
    parser = sources.add_parser(
        "georeference",
        help="say where a map lies on the earth, so that satellite fixes tell where to look for the robot",
        description="Fits the map's places to satellite fixes (WGS 84, altitude above the ellipsoid, as in NavSatFix) and keeps "
        "the result in the map. Fixes that are far off the others count little.",
        epilog="examples:\n"
        "  pixloc map georeference site.pixmap --fixes gps.txt\n"
        "  pixloc map georeference site.pixmap --fixes gps.txt --upright -o placed.pixmap\n\n"
        "gps.txt: a line per place, a keyframe's file name or x y z in the map, then latitude longitude altitude:\n"
        "  0001.jpg 48.13741 11.57549 519.3\n"
        "  12.5 -3.1 0.0 48.13752 11.57561 519.2",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("map", type=Path, metavar="FILE")
    parser.add_argument("--fixes", type=Path, required=True, metavar="FILE", help="places and their fixes")
    parser.add_argument(
        "--upright",
        action="store_true",
        help="the map's z axis points up: only its heading is looked for, for which a straight road is enough",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="another file than the map itself")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    import numpy as np

    from ..mapping import Map
    from ..mapping.georeference import fit_georeference

    map_ = Map.open(args.map)
    xyz, fixes, names = read_fixes(args.fixes, dict(zip(map_.keyframe_names, map_.map_from_keyframe[:, :3, 3].numpy())))
    georeference, errors = fit_georeference(xyz, fixes, args.upright)
    output = args.output or args.map
    replace(map_, georeference=georeference).save(output)
    worst = int(np.argmax(errors))
    print(
        f"{output}: {len(xyz)} fixes fit with {np.median(errors):.2f} m in the median, at worst {errors[worst]:.2f} m "
        f"({names[worst]})"
    )
    return 0


def read_fixes(path: Path, keyframes: dict) -> tuple:
    """Places float64 [N, 3] in the map, fixes [N, 3], and what each is called. Raises InputError for what cannot be read."""
    import numpy as np

    from ..errors import InputError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    xyz, fixes, names = [], [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = " ".join(words[:-3])
        try:
            fix = [float(word) for word in words[-3:]]
            where = keyframes[place] if place in keyframes else [float(word) for word in words[:-3]]
        except ValueError:
            where = fix = []
        if len(fix) != 3 or len(where) != 3:
            raise InputError(
                f"{path}:{number}: '{line.strip()}' is neither 'KEYFRAME LAT LON ALT' with a keyframe of the map "
                "nor 'X Y Z LAT LON ALT'"
            )
        xyz.append(where)
        fixes.append(fix)
        names.append(place)
    return np.array(xyz, float).reshape(-1, 3), np.array(fixes, float).reshape(-1, 3), names

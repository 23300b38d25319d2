#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether two checkouts give the same poses, to the bit.

For each scene with map/ and queries/: a map of the COLMAP model, the queries localized from each set of priors and without
one; for each drive/: the bag tracked. Both checkouts run their own command line, and the files of poses are compared.

    experiments/compare_checkouts.py ../before . --data ../shared/data -o out/compare
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PRIORS = ("small", "medium", "large", "none")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, help="one or two; results that are there already are kept")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/compare"))
    args = parser.parse_args()
    scenes = sorted(folder.parent.resolve() for data in args.data for folder in data.glob("*/queries"))
    hashes: list[dict[str, str]] = []
    for number, checkout in enumerate(args.checkouts):
        hashes.append({})
        for scene in scenes:
            for name, result, words in commands(scene, args.output.resolve() / str(number) / scene.name):
                pixloc(checkout.resolve(), result, *words)
                hashes[-1][f"{scene.name}: {name}"] = hashlib.sha256(result.read_bytes()).hexdigest()
    if len(hashes) == 1:
        print(f"{len(hashes[0])} files of poses in {args.output / '0'}: name a second checkout to compare")
        return 0
    names = sorted(set(hashes[0]) | set(hashes[1]))
    different = [name for name in names if hashes[0].get(name) != hashes[1].get(name)]
    for name in names:
        print(f"{'DIFFERENT' if name in different else 'equal':9}  {name}")
    print(f"{len(names) - len(different)} of {len(names)} files of poses are equal to the bit")
    return 1 if different or not names else 0


def commands(scene: Path, folder: Path) -> Iterator[tuple[str, Path, list[object]]]:
    """Name, result and words of each command for a scene, in their order."""
    pixmap, rgbd, of_drive = (folder / f"{name}.pixmap" for name in ("map", "rgbd", "drive"))
    images = scene / "images" if (scene / "images").is_dir() else scene.parent / "images"
    yield "map", pixmap, ["map", "colmap", "--model", scene / "map", "--images", images, "-o", pixmap]
    for prior in PRIORS:
        start = [] if prior == "none" else ["--prior", scene / "queries" / f"priors_{prior}.txt"]
        poses, cameras = folder / f"poses_{prior}.txt", scene / "queries" / "cameras.txt"
        words = ["localize", "--map", pixmap, "--images", images, "--cameras", cameras, *start, "-o", poses]
        yield f"priors {prior}", poses, words
    if (scene / "tum").is_dir():
        yield "RGB-D map", rgbd, ["map", "rgbd", "--sequence", scene / "tum", "-o", rgbd]
    if (scene / "drive").is_dir():
        for name, option in (("drive", []), ("drive_cold_start", ["--cold-start"])):
            words = ["track", "--map", pixmap, scene / "drive", "-o", folder / name, "--no-report", *option]
            yield name, folder / name / "poses.tum", words
        yield "map of the drive", of_drive, ["map", "bag", scene / "drive", "--every", 3, "-o", of_drive]


def pixloc(checkout: Path, result: Path, *words: object) -> None:
    """Run a verb, unless its result is there. One thread: what is compared is arithmetic, not its order."""
    if result.exists():
        return
    result.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pixloc_ros.cli.main", *map(str, words)]
    print(json.dumps(command[2:]), file=sys.stderr)
    done = subprocess.run(command, cwd=checkout, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    if done.returncode and not result.exists():  # images without a pose make a verb fail, too
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())

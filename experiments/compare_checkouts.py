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
from pathlib import Path

PRIORS = ("small", "medium", "large", "none")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, help="one or two; results that are there already are kept")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of scenes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/compare"))
    args = parser.parse_args()
    scenes = sorted(folder.parent for data in args.data for folder in data.glob("*/queries"))
    hashes = [run_all(checkout.resolve(), scenes, args.output.resolve() / str(k)) for k, checkout in enumerate(args.checkouts)]
    if len(hashes) == 1:
        print(f"{len(hashes[0])} files of poses in {args.output / '0'}: name a second checkout to compare")
        return 0
    names = sorted(set(hashes[0]) | set(hashes[1]))
    different = [name for name in names if hashes[0].get(name) != hashes[1].get(name)]
    for name in names:
        print(f"{'DIFFERENT' if name in different else 'equal':9}  {name}")
    print(f"{len(names) - len(different)} of {len(names)} files of poses are equal to the bit")
    return 1 if different or not names else 0


def run_all(checkout: Path, scenes: list[Path], output: Path) -> dict[str, str]:
    """SHA-256 of each file of poses by scene and kind."""
    found = {}
    for scene in scenes:
        folder = output / scene.name
        for name, path in run_scene(checkout, scene.resolve(), folder).items():
            found[f"{scene.name}: {name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run_scene(checkout: Path, scene: Path, folder: Path) -> dict[str, Path]:
    """Files of poses of one scene, made by the checkout's own command line."""
    folder.mkdir(parents=True, exist_ok=True)
    pixmap = folder / "map.pixmap"
    images = scene / "images" if (scene / "images").is_dir() else scene.parent / "images"
    pixloc(checkout, pixmap, "map", "colmap", "--model", scene / "map", "--images", images, "-o", pixmap)
    files = {"map": pixmap}
    for prior in PRIORS:
        start = [] if prior == "none" else ["--prior", scene / "queries" / f"priors_{prior}.txt"]
        poses = files[f"priors {prior}"] = folder / f"poses_{prior}.txt"
        words = ["--map", pixmap, "--images", images, "--cameras", scene / "queries" / "cameras.txt", *start, "-o", poses]
        pixloc(checkout, poses, "localize", *words)
    if (scene / "tum").is_dir():
        files["RGB-D map"] = folder / "rgbd.pixmap"
        pixloc(checkout, files["RGB-D map"], "map", "rgbd", "--sequence", scene / "tum", "-o", files["RGB-D map"])
    if (scene / "drive").is_dir():
        for name, option in (("drive", []), ("drive, cold start", ["--cold-start"])):
            out = folder / name.replace(", ", "_").replace(" ", "_")
            files[name] = out / "poses.tum"
            pixloc(checkout, files[name], "track", "--map", pixmap, scene / "drive", "-o", out, "--no-report", *option)
        files["map of the drive"] = folder / "drive.pixmap"
        pixloc(checkout, files["map of the drive"], "map", "bag", scene / "drive", "--every", 3, "-o", files["map of the drive"])
    return files


def pixloc(checkout: Path, result: Path, *words: object) -> None:
    """Run a verb, unless its result is there. One thread: what is compared is arithmetic, not its order."""
    if result.exists():
        return
    command = [sys.executable, "-m", "pixloc_ros.cli.main", *map(str, words)]
    print(json.dumps(command[2:]), file=sys.stderr)
    done = subprocess.run(command, cwd=checkout, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    if done.returncode and not result.exists():  # images without a pose make a verb fail, too
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The places that config/training/alignment.json learns from: maps, and images with poses that are not in them.

From the data folder: tum_fr1_rpy (its map split), and buddha in two halves, each of which is the map of the other's images
(points triangulated with the given poses). Simulated: two workshops, whose test drives have another light, path and speed than
the map's.

    experiments/training_places.py ../shared/data -o out/places
"""

from __future__ import annotations

import json
from pathlib import Path

import common
import numpy as np
import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.files import write_text
from pixloc_ros.io.images import load_grey
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_sim.recordings import SimulationOptions, simulate

SEEDS = (101, 102)
"""Not those of demo and tests."""


def main() -> int:
    parser = common.parser(__doc__, "out/places")
    args = parser.parse_args()
    out, extractor = args.output, load_extractor(args.weights)

    def build(model: Path, images: Path, name: str) -> None:
        path = out / f"{name}.pixmap"
        if not path.is_file():
            build_map_from_colmap(model, images, extractor)[0].save(path)
            print(path, flush=True)

    build(args.data / "tum_fr1_rpy" / "map", args.data / "tum_fr1_rpy" / "images", "tum")
    for half in (0, 1):
        split_poses(args.data / "buddha", half, out / f"buddha{half}")
        build(out / f"buddha{half}" / "map", args.data / "buddha" / "images", f"buddha{half}")
    for seed in SEEDS:
        folder = out / f"workshop{seed}"
        if not folder.is_dir():
            simulate(folder, SimulationOptions(seed=seed, seconds=20.0, rate_hz=4.0))
        build(folder / "map", folder / "images", f"workshop{seed}")
    return 0


def split_poses(scene: Path, half: int, out: Path) -> None:
    """Every other image of a scene's cameras.json as a COLMAP model without points (map/), the others as queries (queries/)."""
    frames = json.loads((scene / "cameras.json").read_text())["frames"]
    lines: dict[str, list[str]] = {"cameras": [], "images": [], "query cameras": [], "truth": []}
    for number, frame in enumerate(frames, 1):
        name = Path(frame["file"]).name
        height, width = load_grey(scene / frame["file"]).shape
        # The file counts pixels from the centre of the first, COLMAP from its corner.
        camera = f"PINHOLE {width} {height} {frame['fx']} {frame['fy']} {frame['cx'] + 0.5} {frame['cy'] + 0.5}"
        pose = torch.from_numpy(np.linalg.inv(np.array(frame["T_world_cam"])))
        numbers = " ".join(repr(float(v)) for v in (*se3.quaternion_from_rotation(pose[:3, :3]).roll(1), *pose[:3, 3]))
        if number % 2 == half:
            lines["cameras"].append(f"{number} {camera}\n")
            lines["images"].append(f"{number} {numbers} {number} {name}\n\n")
        else:
            lines["query cameras"].append(f"{name} {camera}\n")
            lines["truth"].append(f"{name} {numbers}\n")
    for name in ("cameras", "images"):
        write_text(out / "map" / f"{name}.txt", "".join(lines[name]))
    write_text(out / "map" / "points3D.txt", "")
    write_text(out / "queries" / "cameras.txt", "".join(lines["query cameras"]))
    write_text(out / "queries" / "truth.txt", "".join(lines["truth"]))


if __name__ == "__main__":
    run_script(main)

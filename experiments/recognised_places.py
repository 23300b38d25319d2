#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How well a network recognises places in pairs of real images taken years, seasons or hours apart.

Takes a folder FAMILY/PAIR with two images and corrs.txt: x1 y1 x2 y2 in pixels, one correspondence a line, as WxBS has them
(Mishkin et al., BMVC 2015). Images are brought to 640 pixels. For each correspondence, in both directions, the descriptor in one
image is compared with all cells of the other one: how often is the nearest cell the right one, within 8 pixels and within 1.5
cells, and how far is it away in the median? Means are over pairs, then over families. No pose and no optimizer takes part.

    experiments/recognised_places.py ../shared/data/wxbs --networks compact best.safetensors --docs docs/evidence/change.md
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import common
import cv2
import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.features.pyramid import FeatureLevel
from pixloc_ros.features.sampling import sample_reference
from pixloc_ros.io.images import load_grey

SIDE_PX = 640
NEAR_PX, NEAR_CELLS = 8.0, 1.5
LEVELS = 2
"""Levels finer than that are for the neighbourhood of the right place, not for finding it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the families")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/recognised_places"), metavar="DIR", help="results")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="also put the table between its markers in this page")
    parser.add_argument("--networks", nargs="+", default=["compact"], metavar="NAME|FILE", help="to compare (default: compact)")
    args = parser.parse_args()
    pairs = sorted(path.parent for path in args.data.glob("*/*/corrs.txt"))
    if not pairs:
        raise InputError(f"{args.data} holds no FAMILY/PAIR/corrs.txt: give the folder of the pairs")
    figures: dict[str, dict[str, dict]] = {}
    for name in args.networks:
        extractor = load_extractor(name)
        figures[Path(name).stem] = found = {}
        with show_progress(f"{Path(name).stem}: pairs") as progress:
            for done, folder in enumerate(pairs, 1):
                found[f"{folder.parent.name}/{folder.name}"] = score(folder, extractor)
                progress(done, len(pairs))
    tables = {"recognised places": table(figures)}
    common.save(args, "recognised_places", figures, tables)
    return common.finish(args, tables)


def score(folder: Path, extractor: Extractor) -> dict[str, list[float]]:
    """Stride of each level to the share within pixels, the share within cells, and the median distance in pixels."""
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(images) != 2:
        raise InputError(f"{folder} holds {len(images)} images: two are needed")
    places = np.loadtxt(folder / "corrs.txt", ndmin=2)
    sides = []
    for path, pixels in zip(images, (places[:, :2], places[:, 2:4])):
        grey = load_grey(path)
        scale = SIDE_PX / max(grey.shape)
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        levels = extractor.with_strides((32, 8, 4, 2, 1)).extract(grey).levels[:LEVELS]
        sides.append((levels, torch.from_numpy((pixels + 0.5) * scale - 0.5)))
    away = [distances(*pair) for pair in (sides, sides[::-1])]
    result = {}
    for k, level in enumerate(sides[0][0]):
        both = [((d < NEAR_PX).mean(), (d < NEAR_CELLS * level.stride).mean(), np.median(d)) for d in (away[0][k], away[1][k])]
        result[f"{level.stride:g}"] = np.mean(both, 0).tolist()
    return result


def distances(here: tuple[list[FeatureLevel], torch.Tensor], there: tuple[list[FeatureLevel], torch.Tensor]) -> list[np.ndarray]:
    """For each level, how far the nearest cell is from each right place, pixels [N]."""
    result = []
    for mine, other in zip(here[0], there[0]):
        descriptors = sample_reference(mine, here[1][None].float())[0][0]
        nearest = (descriptors @ other.features[0].flatten(1)).argmax(1)
        width = other.features.shape[-1]
        cells = torch.stack((nearest % width, nearest.div(width, rounding_mode="floor")), 1)
        result.append(((cells + 0.5) * other.stride - 0.5 - there[1]).norm(dim=1).numpy())
    return result


def table(figures: dict[str, dict[str, dict]]) -> str:
    """A row for each network and family, and one for all families."""
    rows = []
    for name, found in figures.items():
        families = defaultdict(list)
        for pair, by_level in found.items():
            families[pair.split("/")[0]].append([value for level in by_level.values() for value in level])
        means = {family: np.mean(values, 0) for family, values in families.items()}
        for family, values in [*means.items(), ("mean of families", np.mean(list(means.values()), 0))]:
            rows.append((name, family, len(families.get(family, found)), *map(format_number, values)))
    measures = (f"< {NEAR_PX:g} px", f"< {NEAR_CELLS:g} cells", "median px")
    columns = (f"stride {stride}: {measure}" for stride in (32, 8) for measure in measures)
    return markdown_table(" | ".join(("network", "family", "pairs", *columns)), rows)


if __name__ == "__main__":
    run_script(main)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The benchmark harness that runs other systems, and what it exports of a scene: priors, and clean and degraded queries."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import common
import numpy as np
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.images import load_image
from pixloc_ros.io.trajectory import read_tum

LEVELS = ("small", "medium", "large")
"""Names of the harness's sets of priors, which it counts from 0."""
VARIANTS = ("clean", "blur", "lowlight", "occlusion", "halfres")
RUNS = (*(("clean", level) for level in range(3)), *((variant, 0) for variant in VARIANTS[1:]))
"""Variants and sets of priors that are measured."""
SAME_FRAME = 1e-3


@dataclass(frozen=True)
class Export:
    """What the harness writes of a scene into a folder, in the map frame of the scene."""

    folder: Path
    scene: common.Scene

    @property
    def there(self) -> bool:
        return (self.folder / "lists.json").is_file()

    @cached_property
    def lists(self) -> list[dict]:
        """An entry for each query: its name, and the map images near it."""
        return json.loads((self.folder / "lists.json").read_text())["queries"]

    @cached_property
    def names(self) -> list[str]:
        return [query["name"] for query in self.lists]

    @cached_property
    def world_from_map(self) -> torch.Tensor:
        """[4, 4]: the harness may use another frame than the scene's map; the true poses of the queries are known in both."""
        camera_from_map = torch.stack([self.scene.truth[name] for name in self.names])
        both = read_tum(self.folder / "truth.txt").map_from_body @ camera_from_map
        if float((both - both[0]).abs().max()) > SAME_FRAME:
            raise InputError(f"{self.folder} and {self.scene.folder} have different poses: remove the export")
        return both[0]

    @cached_property
    def truth(self) -> torch.Tensor:
        """map_from_camera [N, 4, 4]."""
        return self._poses("truth")

    def priors(self, level: int) -> torch.Tensor:
        """map_from_camera [N, 4, 4]."""
        return self._poses(f"prior_{level}")

    def stamps_ns(self) -> list[int]:
        """Stamps that the harness knows the queries by."""
        return read_tum(self.folder / "prior_0.txt").stamps_ns.tolist()

    def image(self, variant: str, name: str) -> np.ndarray:
        return load_image(self.folder / variant / Path(name).with_suffix(".png"))

    def camera(self, variant: str) -> Camera:
        return Camera.parse_colmap_line((self.folder / variant / "camera.txt").read_text().strip())

    def _poses(self, name: str) -> torch.Tensor:
        return se3.inverse(self.world_from_map) @ read_tum(self.folder / f"{name}.txt").map_from_body


class Harness:
    """Runs the harness on a scene, on so many of its queries (0: all)."""

    def __init__(self, args: argparse.Namespace, scene: common.Scene, queries: int, result: Path) -> None:
        self._args, self._words = args, ["--scene", scene.folder, "--cache", args.output / "cache"]
        self._words += ["--max-queries", queries, "--out", result]

    def run(self, *words: object, peers: Sequence[str] = ()) -> None:
        """words: further options. Raises `InputError` where the harness is not there."""
        command = [self._args.python or sys.executable, common.harness_folder(self._args) / "run.py", *self._words]
        subprocess.run(list(map(str, (*command, "--peers", *peers, *words))), check=True, stdout=subprocess.DEVNULL)

    def export(self, export: Export) -> Export:
        """Have it write priors and queries, unless it has."""
        if not export.there:
            self.run("--export", export.folder)
        return export

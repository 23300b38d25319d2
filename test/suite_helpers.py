# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A small simulated scene for the tests of the robustness suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pixloc_ros.features import load_extractor
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_sim.recordings import SimulationOptions, simulate


@dataclass(frozen=True)
class Scene:
    """Paths of a map, its images and a drive."""

    map: Path
    images: Path
    drive: Path


def simulated_scene(tmp_path_factory) -> Scene:
    """Two and a half seconds at six images a second, 320 x 240; made once for all tests of a session."""
    folder = tmp_path_factory.getbasetemp() / "suite_scene"
    data, map_path = folder / "scene", folder / "site.pixmap"
    if not map_path.is_file():
        simulate(data, SimulationOptions(seconds=2.5, rate_hz=6.0, width=320, height=240, texel=0.02))
        build_map_from_colmap(data / "map", data / "images", load_extractor())[0].save(map_path)
    return Scene(map_path, data / "images", data / "drive")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Small scenes that several tests share: a simulated drive, made once a session, and maps of a textured plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mapping_helpers import plane_images, texture

from pixloc_ros.features import load_extractor
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.build.building import build_map
from pixloc_sim.recordings import SimulationOptions, simulate


@dataclass(frozen=True)
class Scene:
    """Paths of a simulated data set, its map, the map's images and a drive."""

    folder: Path
    map: Path
    images: Path
    drive: Path


def simulated_scene(tmp_path_factory, **options) -> Scene:
    """Two and a half seconds at six images a second, 320 x 240, unless options of the simulation say otherwise; made once for
    all tests of a session."""
    folder = tmp_path_factory.getbasetemp() / "_".join(["simulated_scene", *map(str, options.values())])
    data, map_path = folder / "scene", folder / "site.pixmap"
    if not map_path.is_file():
        usual = {"seconds": 2.5, "rate_hz": 6.0, "width": 320, "height": 240, "texel": 0.02}
        simulate(data, SimulationOptions(**usual | options))
        build_map_from_colmap(data / "map", data / "images", load_extractor())[0].save(map_path)
    return Scene(data, map_path, data / "images", data / "drive")


def plane_map(folder: Path, extractor, camera: Camera, poses: torch.Tensor, picture: np.ndarray | None = None) -> Map:
    """Map of the corners of the textured plane z = 0, from images at map_from_camera [K, 4, 4] that are written to the folder."""
    picture, metres = texture() if picture is None else picture, 6.0
    corners = cv2.goodFeaturesToTrack(picture, 1000, 0.01, 8)[:, 0]
    xyz = np.pad((corners + 0.5) * metres / len(picture) - metres / 2, ((0, 0), (0, 1))).astype(float)
    return build_map(plane_images(folder, poses, camera, xyz, picture), extractor)[0]


def decoded(data: bytes) -> np.ndarray:
    """A picture of which something is to be seen."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.std() > 5
    return image

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Small scenes that several tests share: a simulated drive, made once a session, and maps of a textured plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mapping_helpers import plane_view, texture

from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.build.building import PosedImages, build_map
from pixloc_sim.recordings import SimulationOptions, simulate


@dataclass(frozen=True)
class Scene:
    """Paths of a simulated data set, its map, the map's images and a drive."""

    folder: Path
    map: Path
    images: Path
    drive: Path


def simulated_scene(tmp_path_factory) -> Scene:
    """Two and a half seconds at six images a second, 320 x 240; made once for all tests of a session."""
    folder = tmp_path_factory.getbasetemp() / "simulated_scene"
    data, map_path = folder / "scene", folder / "site.pixmap"
    if not map_path.is_file():
        simulate(data, SimulationOptions(seconds=2.5, rate_hz=6.0, width=320, height=240, texel=0.02))
        build_map_from_colmap(data / "map", data / "images", load_extractor())[0].save(map_path)
    return Scene(data, map_path, data / "images", data / "drive")


def plane_map(folder: Path, extractor, camera: Camera, poses: torch.Tensor, corners: int) -> Map:
    """Map of the textured plane z = 0, from images at map_from_camera [K, 4, 4] that are written to the folder; the points are
    `corners` corners of each."""
    picture, xyz = texture(), []
    for k, pose in enumerate(poses):
        image, depth = plane_view(pose, camera, picture)
        cv2.imwrite(str(folder / f"{k}.png"), image)
        found = cv2.goodFeaturesToTrack(image, corners, 0.01, 4)[:, 0]
        rays, _ = camera.unproject(torch.from_numpy(found.astype(float)))
        there = torch.from_numpy(depth[found[:, 1].astype(int), found[:, 0].astype(int)])
        hit = se3.transform(pose, rays / rays[:, 2:] * there[:, None]).numpy()
        hit[:, 2] = 0.0
        xyz.append(hit)
    names = [f"{k}.png" for k in range(len(poses))]
    images, points = np.repeat(np.arange(len(poses)), list(map(len, xyz))), np.arange(sum(map(len, xyz)))
    files, stamps = [folder / name for name in names], np.full(len(poses), -1)
    cameras = [camera] * len(poses)
    source = PosedImages("plane", files, names, cameras, poses, stamps, np.concatenate(xyz), images, points)
    return build_map(source, extractor)[0]

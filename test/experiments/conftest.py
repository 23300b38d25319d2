# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A small scene as the data folder has them."""

import json

import cv2
import numpy as np
import pytest
import torch
from mapping_helpers import look_at, pinhole, plane_view, texture

from pixloc_ros.geometry import se3
from pixloc_ros.io.colmap import write_colmap_model
from pixloc_ros.io.trajectory import write_benchmark_poses
from pixloc_sim.sparse_model import Keyframe, build_sparse_model

CAMERA = pinhole(320, 240, 260.0)


@pytest.fixture
def data(tmp_path):
    """A scene of a textured plane as the shared data has it."""
    scene, picture, frames = tmp_path / "data" / "plane", texture(), []
    for folder in ("images", "queries"):
        (scene / folder).mkdir(parents=True)
    for k, x in enumerate((-0.6, 0.0, 0.6)):
        pose = look_at((x, -1.2, 2.0), (x, 0.0, 0.0))
        image, depth = plane_view(pose, CAMERA, picture)
        cv2.imwrite(str(scene / "images" / f"{k}.png"), image)
        frames.append(Keyframe(f"{k}.png", 0, np.stack([image] * 3, -1), depth.astype(np.float32), pose))
    write_colmap_model(scene / "map", *build_sparse_model(frames, CAMERA, np.random.default_rng(0), 0.1))
    truth = {f"q{k}.png": look_at((x, -1.15, 2.0), (x, 0.02, 0.0)) for k, x in enumerate((-0.3, 0.35))}
    for name, pose in truth.items():
        cv2.imwrite(str(scene / "images" / name), plane_view(pose, CAMERA, picture)[0])
    write_benchmark_poses(scene / "queries" / "truth.txt", {name: se3.inverse(pose) for name, pose in truth.items()})
    for size, name in ((0.02, "small"), (0.05, "medium"), (0.1, "large")):
        wrong = se3.se3_exp(torch.tensor([size, -size, 0, 0, size, 0], dtype=torch.float64))
        poses = {query: se3.inverse(pose @ wrong) for query, pose in truth.items()}
        write_benchmark_poses(scene / "queries" / f"priors_{name}.txt", poses)
    (scene / "queries" / "cameras.txt").write_text("".join(f"{name} PINHOLE 320 240 260 260 160 120\n" for name in truth))
    (scene / "queries" / "scale.json").write_text(json.dumps(dict.fromkeys(truth, 2.3)))
    (scene / "scene.json").write_text(json.dumps({"metric": True}))
    return tmp_path

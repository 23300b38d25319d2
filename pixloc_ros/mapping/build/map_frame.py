# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The frame of a map whose poses come from images: it begins at the first pose, z up."""

from __future__ import annotations

import numpy as np
import torch

from ...geometry import se3


def map_frame(poses: torch.Tensor, up: np.ndarray, base_from_camera: torch.Tensor | None, level: bool) -> torch.Tensor:
    """map_from_old float64 [4, 4], where poses of the camera [K, 4, 4] are in the old frame.

    Args:
        poses: In metres.
        up: float64 [3], unit, in the old frame.
        base_from_camera: The map begins at the base, with its axes; None: at the camera.
        level: Whether gravity tells better what is up than the base's first pose.
    """
    if base_from_camera is not None:
        map_from_old = base_from_camera @ se3.inverse(poses[0])
        return _levelling(map_from_old[:3, :3].numpy() @ up) @ map_from_old if level else map_from_old
    forward = poses[0, :3, 2].numpy()
    forward = forward - up * (forward @ up)
    if np.linalg.norm(forward) < 0.1:  # it looks up or down
        forward = -poses[0, :3, 1].numpy()
        forward = forward - up * (forward @ up)
    x = forward / np.linalg.norm(forward)
    map_from_old = torch.eye(4, dtype=torch.float64)
    map_from_old[:3, :3] = torch.from_numpy(np.stack((x, np.cross(up, x), up)))
    map_from_old[:3, 3] = -map_from_old[:3, :3] @ poses[0, :3, 3]
    return map_from_old


def _levelling(up: np.ndarray) -> torch.Tensor:
    """The smallest turn, float64 [4, 4], that brings a direction to the z axis."""
    axis, cosine = np.cross(up, (0.0, 0.0, 1.0)), up[2]
    sine = np.linalg.norm(axis)
    vector = axis / sine * np.arctan2(sine, cosine) if sine > 1e-12 else np.zeros(3)
    turn = se3.so3_exp(torch.from_numpy(vector))
    return se3.from_rotation_translation(turn, torch.zeros(3, dtype=torch.float64))


def upwards_of_cameras(rotations: np.ndarray) -> np.ndarray:
    """Unit vector [3] that the cameras' x axes are level to: robots and people hold them so. Where those do not say it, as on a
    straight drive, the mean of their y axes counts."""
    x, mean = rotations[:, :, 0], -rotations[:, :, 1].mean(0)
    mean /= max(np.linalg.norm(mean), 1e-9)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    if values[1] < 0.02:
        x = rotations[:, :, 0].mean(0)
        level = mean - x * (mean @ x) / (x @ x)
        return level / np.linalg.norm(level)
    up = vectors[:, 0]
    return up if up @ mean >= 0 else -up

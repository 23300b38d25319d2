# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which reading of a calibration fits images with known poses: by how near to their epipolar lines the matches lie."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from ...geometry.cameras import Camera
from .keyframes import KeyframeFiles
from .matching import pixel_scale

_PAIRS, _APART = 16, 3
"""So many pairs of keyframes, this many apart, are looked at."""
_FEATURES, _RATIO, _FEWEST_MATCHES, _FEWEST_PAIRS = 1000, 0.75, 30, 4
_CLEAR, _SIGMAS = 0.02, 3.0
"""A reading must bring so many more of the matches to their lines, and by so many standard errors of that over the pairs."""


def fitting_reading(images: KeyframeFiles, readings: Sequence[Sequence[Camera]]) -> tuple[int, float]:
    """The reading that fits, the first unless another one is clearly better, and how many more of the matches it explains.

    Args:
        images: In the order of time.
        readings: Of each keyframe the cameras to choose from, as many for all.

    Raises:
        InputError: An image cannot be read.
    """
    poses, count = images.map_from_camera.numpy(), len(images.paths)
    starts = np.unique(np.linspace(0, count - 1 - _APART, _PAIRS).round().astype(int)) if count > _APART else ()
    gains = []
    for a in starts:
        b = int(a) + _APART
        pixels = _matches(images.grey(a), images.grey(b))
        if len(pixels[0]) >= _FEWEST_MATCHES:
            b_from_a = np.linalg.inv(poses[b]) @ poses[a]
            agree = [_agreement(*cameras, *pixels, b_from_a) for cameras in zip(readings[a], readings[b])]
            gains.append(np.array(agree) - agree[0])
    if len(gains) < _FEWEST_PAIRS:
        return 0, 0.0
    mean, error = np.mean(gains, 0), np.std(gains, 0) / len(gains) ** 0.5
    best = int(mean.argmax())
    return (best, float(mean[best])) if mean[best] > max(_CLEAR, _SIGMAS * error[best]) else (0, 0.0)


def _matches(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [m, 2] of both images that look the same, whatever the poses say."""
    sift = cv2.SIFT_create(_FEATURES)
    (points, first), (there, second) = (sift.detectAndCompute(image, None) for image in (one, other))
    if first is None or second is None or min(len(first), len(second)) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    near = [pair for pair in cv2.BFMatcher().knnMatch(first, second, 2) if pair[0].distance < _RATIO * pair[1].distance]
    rows = np.array([(pair[0].queryIdx, pair[0].trainIdx) for pair in near], int).reshape(-1, 2)
    _, alone = np.unique(rows[:, 1], return_index=True)
    pixels = (np.array([point.pt for point in found]) for found in (points, there))
    return tuple(found[rows[alone, k]] for k, found in enumerate(pixels))


def _agreement(camera_a: Camera, camera_b: Camera, a: np.ndarray, b: np.ndarray, b_from_a: np.ndarray) -> float:
    """Share of the matches near their epipolar lines, those at a distance of one pixel (of an image of 640) by half."""
    rays = [camera.unproject(torch.from_numpy(pixels))[0].numpy() for camera, pixels in ((camera_a, a), (camera_b, b))]
    ray_a, ray_b = (ray / np.linalg.norm(ray, axis=1, keepdims=True) for ray in rays)
    normal = np.cross(b_from_a[:3, 3], ray_a @ b_from_a[:3, :3].T)
    sine = (normal * ray_b).sum(1) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    off = sine * float(camera_b.params[0]) / pixel_scale(camera_b)
    return float((1 / (1 + off**2)).mean())

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How the camera turned from keyframe to keyframe by their matches alone; odometry, gyro and result are checked against it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import cv2
import numpy as np
import torch

from ...geometry import se3
from .building import Progress
from .matching import pixel_scale, require_pycolmap
from .two_view import Pair, PairFinder, colmap_camera

_ERROR_PX, _EXACT_PX = 1.5, 0.1
"""Of a match that counts at most; and below which errors tell no motion from another. In pixels at 640."""
_MOST_MATCHES, _SURE_MATCHES, _FEWEST_MATCHES = 300, 100, 15
_LEAST_Z = 0.2  # of a unit ray that is brought to z = 1
_SAME_RAD, _DOUBTFUL, _BEFORE = np.radians(1.0), 1.5, 0.9
"""Turns this near are one; another counts that fits no worse than so many times, with that share of the points before it."""
_FLAT = 0.9
"""Where so much of what two views match is flat, their turn is often wrong by degrees, and by the same from step to step."""
_CONTRADICTS_RAD = np.radians(10.0)


@dataclass(frozen=True, eq=False)
class ImageTurns:
    """Turns of the camera that the images show.

    Of a wall two views show two motions. Where another turn fits nearly as well both are kept, and the one that is nearer to what
    it is compared with counts.

    Attributes:
        first: int64 [n], keyframes, rising; each turn is to the next one.
        rotations: float64 [n, 2, 3, 3], the next one's axes in those of the first; twice the same where there is no doubt.
        sure: bool [n], whether enough matches say it, and not those of a wall alone.
    """

    first: np.ndarray
    rotations: np.ndarray
    sure: np.ndarray

    @classmethod
    def of(cls, finder: PairFinder, progress: Progress | None = None) -> ImageTurns:
        """By essential matrices."""
        steps = [(k, pair) for k in range(finder.count - 1) if (pair := finder.pairs.get((k, k + 1))) and pair.is_link]
        first, rotations, sure = [], [], []
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for n, found in enumerate(threads.map(lambda step: _turns(finder, *step), steps)):
                if progress:
                    progress(n, len(steps), "how the camera turned")
                if found is not None:
                    first.append(steps[n][0])
                    rotations.append(found[0])
                    sure.append(found[1])
        return cls(np.array(first, np.int64), np.array(rotations).reshape(-1, 2, 3, 3), np.array(sure, bool))

    def nearest(self, poses: np.ndarray) -> np.ndarray:
        """The turns, float64 [n, 3, 3], that are nearer to those of poses [K, 4, 4]."""
        return nearer(self.rotations, self._steps(poses))

    def off_rad(self, poses: np.ndarray) -> np.ndarray:
        """Rotation vectors, float64 [n, 3], from the turns of poses [K, 4, 4] to these."""
        return rotation_vectors(self._steps(poses).transpose(0, 2, 1) @ self.nearest(poses))

    def _steps(self, poses: np.ndarray) -> np.ndarray:
        rotations = poses[:, :3, :3]
        return rotations[self.first].transpose(0, 2, 1) @ rotations[self.first + 1]

    def contradicted_by(self, poses: np.ndarray) -> np.ndarray:
        """Steps, int64, over which poses [K, 4, 4] turn otherwise, far beyond what either may be wrong by."""
        return self.first[self.sure & (np.linalg.norm(self.off_rad(poses), axis=1) > _CONTRADICTS_RAD)]


def nearer(choices: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Of rotations [n, A, 3, 3] those nearest to rotations [n, 3, 3]."""
    likeness = np.einsum("naij,nij->na", choices, rotations)
    return choices[np.arange(len(choices)), likeness.argmax(1)]


def with_turns(poses: np.ndarray, first: np.ndarray, rotations: np.ndarray, base_from_camera: np.ndarray) -> np.ndarray:
    """Odometry's poses with other turns.

    Args:
        poses: float64 [K, 4, 4], of the camera.
        first: int64 [n], keyframes.
        rotations: float64 [n, 3, 3], how the camera turned from each to the next.
        base_from_camera: float64 [4, 4]; the base moves as before.
    """
    camera_from_base = np.linalg.inv(base_from_camera)
    steps = base_from_camera @ np.linalg.inv(poses[:-1]) @ poses[1:] @ camera_from_base
    turned = base_from_camera[:3, :3] @ rotations @ camera_from_base[:3, :3]
    more = rotation_vectors(turned @ steps[first, :3, :3].transpose(0, 2, 1))
    # Wheels that turn wrongly all along a step also place its end wrongly, by half of that angle.
    half = se3.so3_exp(torch.from_numpy(more / 2)).numpy()
    steps[first, :3, 3] = np.einsum("nij,nj->ni", half, steps[first, :3, 3])
    steps[first, :3, :3] = turned
    return along(poses[0], camera_from_base @ steps @ base_from_camera)


def along(start: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The poses, float64 [n + 1, 4, 4], of relative ones [n, 4, 4] that follow each other."""
    return np.stack(list(accumulate(steps, np.matmul, initial=start)))


def rotation_vectors(rotations: np.ndarray) -> np.ndarray:
    """float64 [n, 3] of [n, 3, 3]."""
    return se3.so3_log(torch.from_numpy(np.ascontiguousarray(rotations))).numpy()


def _turns(finder: PairFinder, k: int, pair: Pair) -> tuple[np.ndarray, bool] | None:
    """Two turns [2, 3, 3], which may be the same, and whether they are sure; None where there is none."""
    matches = pair.matches[:: -(-len(pair.matches) // _MOST_MATCHES)]
    features = [finder.matcher.features(k + side) for side in (0, 1)]
    pixels, rays = ([features[side][what][matches[:, side]] for side in (0, 1)] for what in (0, 1))
    pycolmap, cameras = require_pycolmap(), finder.matcher.images.cameras
    options = pycolmap.RANSACOptions()
    options.max_error, options.random_seed = _ERROR_PX * pixel_scale(cameras[k]), 0
    views = (pixels[0] + 0.5, pixels[1] + 0.5, *(colmap_camera(cameras[n], n + 1, True) for n in (k, k + 1)))
    found = pycolmap.estimate_essential_matrix(*views, options)
    if found is None:
        return None
    second_from_first = found["cam2_from_cam1"].matrix()
    ahead = found["inlier_mask"] & (rays[0][:, 2] > _LEAST_Z) & (rays[1][:, 2] > _LEAST_Z)
    one, other = (side[ahead] / side[ahead, 2:] for side in rays)
    turn = second_from_first[:, :3].T
    twin, flat = _twin(second_from_first, one, other, pixel_scale(cameras[k]) / float(cameras[k].params[0]))
    # Without parallax a step to the side and a turn look the same.
    sure = found["num_inliers"] >= _SURE_MATCHES and flat < _FLAT and pair.has_parallax
    return np.stack((turn, turn if twin is None else twin)), sure


def _twin(second_from_first: np.ndarray, one: np.ndarray, other: np.ndarray, pixel: float) -> tuple[np.ndarray | None, float]:
    """The other turn [3, 3] that two views [m, 3] at z = 1 show if what they see is as good as flat (None where it is not); and
    which share of it is."""
    if len(one) < _FEWEST_MATCHES:
        return None, 1.0
    homography, flat = cv2.findHomography(one[:, :2], other[:, :2], cv2.RANSAC, _ERROR_PX * pixel)
    if homography is None:
        return None, 0.0
    least, twin = _DOUBTFUL * max(_epipolar_error(second_from_first, one, other), _EXACT_PX * pixel), None
    for turn, way, normal in zip(*cv2.decomposeHomographyMat(homography, np.eye(3))[1:]):
        apart = np.linalg.norm(rotation_vectors((turn.T @ second_from_first[:, :3])[None]))
        if apart > _SAME_RAD and np.linalg.norm(way) > 0 and np.mean(one[flat.ravel() > 0] @ normal > 0) > _BEFORE:
            this = _epipolar_error(np.column_stack((turn, way)), one, other)
            least, twin = (this, turn.T) if this < least else (least, twin)
    return twin, float(flat.mean())


def _epipolar_error(second_from_first: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """Median Sampson distance of points [m, 3] at z = 1 under a motion [3, 4]."""
    turn, way = second_from_first[:, :3], second_from_first[:, 3]
    lines = np.cross(way, one @ turn.T)
    back = np.cross(other, way) @ turn
    return float(
        np.median(np.abs((other * lines).sum(1)) / np.sqrt((lines[:, :2] ** 2).sum(1) + (back[:, :2] ** 2).sum(1) + 1e-18))
    )

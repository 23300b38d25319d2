# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How much an image looks like the map from hundreds of poses, at a level on which places are recognised.

The features of each map point are compared once with those of all cells of the image. Then a pose costs one look-up a point, not
a comparison of features: a hundredth of a step of an alignment.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch

from ..geometry.projection import camera_numbers, project_point
from ..geometry.single import FAST_JIT, INLINE_JIT, retract
from .compiled import solve
from .damping import ADAPTIVE_DOWN, ADAPTIVE_LEAST, ADAPTIVE_MOST, ADAPTIVE_START, ADAPTIVE_UP
from .types import View

_SHARPNESS = 20.0
"""Of the cells, one whose cosine is larger by one over this is e times as likely the point's."""
_SEEN = 0.5
"""How likely it is that a cell shows the point where it is expected: the other half of the time another shows up in front."""
_STEPS, _STILL = 8, 0.05
"""Steps of a climb at most, and the gain of one with which it ends."""
_TOGETHER = 32
"""Ratios that are multiplied before their logarithm is taken."""


class Likeness:
    """The log likelihood ratio of an image at poses of its camera: that its cells show the map points that lie there, not any.

    A point that the image shows elsewhere costs little, as it may be hidden or changed; one beyond the border says nothing.
    """

    def __init__(self, view: View, level: int) -> None:
        """On one of the levels of an unbatched view."""
        features = view.pyramid.levels[level].features[0].float().cpu().permute(1, 2, 0)
        rows, columns, channels = features.shape
        self._stride = float(view.pyramid.levels[level].stride)
        cosines = view.points.descriptors[level].float().cpu() @ features.reshape(-1, channels).T
        ratios = torch.exp(_SHARPNESS * cosines)
        mean = ratios.mean(1, keepdim=True)
        self._shifts = mean[:, 0].log().double().numpy()
        self._ratios = ratios.mul_(_SEEN / mean).add_(1 - _SEEN).reshape(-1, rows, columns).numpy()
        self._cosines = cosines.reshape(-1, rows, columns).numpy()
        self._slopes = _slopes(features)
        self._xyz = view.points.xyz.double().cpu().numpy()
        self._camera, self._size = camera_numbers(view.camera), view.pyramid.image_size

    def roughly(self, camera_from_map: torch.Tensor) -> np.ndarray:
        """float64 [H], of poses float64 [H, 4, 4], by the cells where the points lie."""
        found = np.zeros(len(camera_from_map))
        _look_up(self._camera, self._size, self._xyz, self._ratios, self._stride, _array(camera_from_map), found)
        return found

    def climb(self, camera_from_map: torch.Tensor, steps: int = _STEPS) -> tuple[torch.Tensor, np.ndarray]:
        """Poses [H, 4, 4] near those given, from which the image looks more like the map, and how much, float64 [H]."""
        poses, found = _array(camera_from_map).copy(), np.empty(len(camera_from_map))
        arrays = self._xyz, self._cosines, self._shifts, self._slopes
        _climb(self._camera, self._size, *arrays, self._stride, steps, poses, found)
        return torch.from_numpy(poses), found

    def at(self, camera_from_map: torch.Tensor) -> np.ndarray:
        """float64 [H], of poses float64 [H, 4, 4]; between cells it is interpolated."""
        return self.climb(camera_from_map, 0)[1]


def _array(poses: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(poses.numpy(), np.float64)


def _slopes(features: torch.Tensor) -> np.ndarray:
    """Products of the slopes of features [H, W, C] along x and y, over two cells, float32 [H, W, 3]: xx, xy, yy."""
    padded = torch.nn.functional.pad(features.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0)
    x, y = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    return torch.stack([(one * other).sum(-1) for one, other in ((x, x), (x, y), (y, y))], -1).numpy()


@numba.njit(**FAST_JIT)
def _look_up(camera, size, xyz, ratios, stride, poses, found):
    """Add the log ratio of the nearest cells at each pose, point after point: a point's cells stay in the cache."""
    pixel, jac, product = np.empty(2), np.empty((2, 3)), np.ones(len(poses))
    count, rows, columns = ratios.shape
    for i in range(count):
        a, b, c, ratio = xyz[i, 0], xyz[i, 1], xyz[i, 2], ratios[i]
        for k in range(len(poses)):
            p = poses[k]
            x = p[0, 0] * a + p[0, 1] * b + p[0, 2] * c + p[0, 3]
            y = p[1, 0] * a + p[1, 1] * b + p[1, 2] * c + p[1, 3]
            z = p[2, 0] * a + p[2, 1] * b + p[2, 2] * c + p[2, 3]
            if not project_point(camera, x, y, z, pixel, jac):
                continue
            if 0 <= pixel[0] <= size[0] - 1 and 0 <= pixel[1] <= size[1] - 1:
                row, column = int((pixel[1] + 0.5) / stride), int((pixel[0] + 0.5) / stride)
                product[k] *= ratio[min(row, rows - 1), min(column, columns - 1)]
        if i % _TOGETHER == _TOGETHER - 1 or i == count - 1:
            for k in range(len(poses)):
                found[k] += math.log(product[k])
                product[k] = 1.0


@numba.njit(**INLINE_JIT)
def _linearize(camera, size, xyz, cosines, shifts, slopes, stride, pose, hessian, gradient):
    """Fill in the normal equations of minus the log ratio at a pose [4, 4]; return the log ratio.

    Each point counts by the probability that it is seen; the Hessian is Gauss and Newton's of the features' differences.
    """
    pixel, jac, full = np.empty(2), np.empty((2, 3)), np.empty((2, 6))
    count, rows, columns = cosines.shape
    hessian[:], gradient[:] = 0.0, 0.0
    total, half = 0.0, 0.5 / stride
    for i in range(count):
        px, py, pz = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
        y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
        z = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3]
        if not project_point(camera, x, y, z, pixel, jac):
            continue
        if not (0 <= pixel[0] <= size[0] - 1 and 0 <= pixel[1] <= size[1] - 1):
            continue
        cell_x = min(max((pixel[0] + 0.5) / stride - 0.5, 0.0), columns - 1.0)
        cell_y = min(max((pixel[1] + 0.5) / stride - 0.5, 0.0), rows - 1.0)
        column, row = int(cell_x), int(cell_y)
        a, b, f = cell_x - column, cell_y - row, cosines[i]
        left, right, far = max(column - 1, 0), min(column + 1, columns - 1), min(column + 2, columns - 1)
        above, below, deep = max(row - 1, 0), min(row + 1, rows - 1), min(row + 2, rows - 1)
        top, low = (1 - a) * f[row, column] + a * f[row, right], (1 - a) * f[below, column] + a * f[below, right]
        up, down = (1 - a) * f[above, column] + a * f[above, right], (1 - a) * f[deep, column] + a * f[deep, right]
        sx = (1 - b) * ((1 - a) * (f[row, right] - f[row, left]) + a * (f[row, far] - f[row, column])) + b * (
            (1 - a) * (f[below, right] - f[below, left]) + a * (f[below, far] - f[below, column])
        )
        sy = (1 - b) * (low - up) + b * (down - top)
        seen = _SEEN * math.exp(_SHARPNESS * ((1 - b) * top + b * low) - shifts[i])
        total += math.log(1 - _SEEN + seen)
        weight = _SHARPNESS * seen / (1 - _SEEN + seen)
        s = slopes[row if b < 0.5 else below, column if a < 0.5 else right]
        for k in range(2):
            j0, j1, j2 = jac[k, 0], jac[k, 1], jac[k, 2]
            full[k, 0], full[k, 1], full[k, 2] = j0, j1, j2
            full[k, 3], full[k, 4], full[k, 5] = y * j2 - z * j1, z * j0 - x * j2, x * j1 - y * j0
        gx, gy = -weight * half * sx, -weight * half * sy
        hxx, hxy, hyy = weight * half * half * s[0], weight * half * half * s[1], weight * half * half * s[2]
        for m in range(6):
            u, v = full[0, m], full[1, m]
            gradient[m] += u * gx + v * gy
            hu, hv = u * hxx + v * hxy, u * hxy + v * hyy
            for n in range(m, 6):
                hessian[m, n] += hu * full[0, n] + hv * full[1, n]
    for m in range(6):
        for n in range(m):
            hessian[m, n] = hessian[n, m]
    return total


@numba.njit(**FAST_JIT)
def _climb(camera, size, xyz, cosines, shifts, slopes, stride, steps, poses, found):
    """Levenberg-Marquardt from each pose [H, 4, 4], which it moves."""
    hessian, gradient, new_hessian, new_gradient = np.empty((6, 6)), np.empty(6), np.empty((6, 6)), np.empty(6)
    step, candidate, factors = np.empty(6), np.eye(4), np.full(6, ADAPTIVE_START)
    for k in range(len(poses)):
        best, scale = _linearize(camera, size, xyz, cosines, shifts, slopes, stride, poses[k], hessian, gradient), 1.0
        for _ in range(steps):
            solve(hessian, gradient, factors * scale, step)
            retract(poses[k], step, candidate)
            new = _linearize(camera, size, xyz, cosines, shifts, slopes, stride, candidate, new_hessian, new_gradient)
            gain = new - best
            scale = min(max(scale * (ADAPTIVE_DOWN if gain > 0 else ADAPTIVE_UP), ADAPTIVE_LEAST), ADAPTIVE_MOST)
            if gain > 0:
                best = new
                for m in range(4):
                    for n in range(4):
                        poses[k, m, n] = candidate[m, n]
                for m in range(6):
                    gradient[m] = new_gradient[m]
                    for n in range(6):
                        hessian[m, n] = new_hessian[m, n]
                if gain < _STILL:
                    break
        found[k] = best

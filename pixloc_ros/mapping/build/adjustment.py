# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of poses and points together with measured relative poses (odometry, loops), which pycolmap's does not take.

Levenberg-Marquardt on rays: an observation's error is the angle between where its feature and its point are seen, times the focal
length, so that any camera model will do. Points are eliminated (Schur complement). A pose that is known is a motion from a pose
that no image has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.sparse import bsr_array, coo_array, csc_array, csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from ...geometry import se3

_GAUGE = 1e8
_LINK_ROBUST = 3.0  # standard deviations
_CONVERGED = 1e-4
_BLOCK = 250_000
_POSES = 256
_SLIGHT = 1e-6  # damping, for points without parallax


@dataclass(frozen=True, eq=False)
class Rays:
    """M observations.

    Attributes:
        image: int64 [M].
        point: int64 [M].
        ray: float64 [M, 3], unit, camera frame.
        focal_px: float64 [M], what turns an angle into pixels.
        feature: int64 [M], numbers in their images.
    """

    image: np.ndarray
    point: np.ndarray
    ray: np.ndarray
    focal_px: np.ndarray
    feature: np.ndarray

    def only(self, rows: np.ndarray | slice) -> Rays:
        """Some of them."""
        return Rays(*(value[rows] for value in vars(self).values()))

    @property
    def basis(self) -> np.ndarray:
        """[M, 2, 3]: two directions across each ray, times the focal length."""
        axis = np.eye(3)[np.abs(self.ray).argmin(1)]
        one = np.cross(self.ray, axis)
        one /= np.linalg.norm(one, axis=1, keepdims=True)
        return np.stack((one, np.cross(self.ray, one)), 1) * self.focal_px[:, None, None]


@dataclass(frozen=True, eq=False)
class Links:
    """L measured relative poses.

    Attributes:
        first: int64 [L], images.
        second: int64 [L].
        first_from_second: float64 [L, 4, 4].
        translation_std: float64 [L], of each axis, metres, or [L, 3] where they differ; infinite: not measured.
        rotation_std: float64 [L], of each axis, radians; infinite: not measured.
        robust: bool [L], whether it may be wrong altogether.
    """

    first: np.ndarray
    second: np.ndarray
    first_from_second: np.ndarray
    translation_std: np.ndarray
    rotation_std: np.ndarray
    robust: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Links]) -> Links:
        if len({part.translation_std.ndim for part in parts}) > 1:
            parts = [replace(part, translation_std=part.std[:, :3]) for part in parts]
        return cls(*(np.concatenate(values) for values in zip(*(vars(part).values() for part in parts))))

    def only(self, rows: np.ndarray) -> Links:
        """Some of them."""
        return Links(*(value[rows] for value in vars(self).values()))

    @property
    def std(self) -> np.ndarray:
        """Of translation and rotation, [L, 6]."""
        shape = (len(self.first), 3)
        translation = self.translation_std if self.translation_std.ndim == 2 else self.translation_std[:, None]
        return np.concatenate((np.broadcast_to(translation, shape), np.broadcast_to(self.rotation_std[:, None], shape)), 1)


@dataclass(frozen=True, eq=False)
class Bundle:
    """Poses map_from_camera float64 [K, 4, 4] and points float64 [P, 3]."""

    poses: np.ndarray
    xyz: np.ndarray


def adjust(bundle: Bundle, rays: Rays, links: Links, robust_px: float, iterations: int = 15, std_px: float = 1.0) -> Bundle:
    """The bundle at the least cost; the first pose stays.

    Args:
        bundle: Where to begin.
        rays: Observations.
        links: Measured relative poses.
        robust_px: Errors far above count little (Cauchy's loss).
        iterations: At most.
        std_px: Of an observation; weighs them against the links.
    """
    order = np.argsort(rays.image, kind="stable")
    rays = rays.only(order)
    rays, robust_px = replace(rays, focal_px=rays.focal_px / std_px), robust_px / std_px
    basis, damping = rays.basis, 1e-4
    cost = _cost(bundle, rays, basis, links, robust_px)
    for _ in range(iterations):
        system = _System(bundle, rays, basis, links, robust_px)
        for _ in range(6):
            try:
                moved = system.step(damping).applied(bundle)
                new = _cost(moved, rays, basis, links, robust_px)
                if new < cost:
                    break
            except np.linalg.LinAlgError:  # not positive definite, as far as numbers tell
                pass
            damping *= 8
        else:
            return bundle
        gain, bundle, cost, damping = (cost - new) / max(cost, 1e-12), moved, new, max(damping / 5, 1e-9)
        if gain < _CONVERGED:
            break
    return bundle


def information(bundle: Bundle, rays: Rays, links: Links, robust_px: float) -> tuple[csc_array, np.ndarray]:
    """How the least cost over all points grows with the poses: half its second derivatives [6 K, 6 K], half its first [6 K].

    A pose's unknowns are its turn in the camera's frame and its shift in the map's. The first pose stays.
    """
    rays = rays.only(np.argsort(rays.image, kind="stable"))
    band, gradient, *_ = _System(bundle, rays, rays.basis, links, robust_px).reduced(_SLIGHT)
    return band.matrix(), gradient


def errors_px(bundle: Bundle, rays: Rays) -> np.ndarray:
    """Of each observation, pixels [M]; infinite where the point lies behind the camera."""
    direction = _inside(bundle, rays)
    ahead = (direction * rays.ray).sum(1) > 0
    unit = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    return np.where(ahead, np.linalg.norm(np.einsum("nij,nj->ni", rays.basis, unit), axis=1), np.inf)


def triangulated(poses: np.ndarray, rays: Rays, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points float64 [count, 3] nearest to all their rays, and the largest angle between a ray and their mean, radians."""
    direction = np.einsum("nij,nj->ni", poses[rays.image, :3, :3], rays.ray)
    across = np.eye(3) - direction[:, :, None] * direction[:, None, :]
    normal, target = np.zeros((count, 3, 3)), np.zeros((count, 3))
    np.add.at(normal, rays.point, across)
    np.add.at(target, rays.point, np.einsum("nij,nj->ni", across, poses[rays.image, :3, 3]))
    normal += 1e-9 * np.eye(3)
    xyz = np.linalg.solve(normal, target[..., None])[..., 0]
    mean = np.stack([np.bincount(rays.point, direction[:, axis], count) for axis in range(3)], 1)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    angle = np.zeros(count)
    np.maximum.at(angle, rays.point, np.arccos(np.clip((direction * mean[rays.point]).sum(1), -1, 1)))
    return xyz, angle


# ---- the pieces


def _inside(bundle: Bundle, rays: Rays) -> np.ndarray:
    """Points in their cameras' frames, [M, 3]."""
    poses = bundle.poses[rays.image]
    return np.einsum("nji,nj->ni", poses[:, :3, :3], bundle.xyz[rays.point] - poses[:, :3, 3])


def link_errors(bundle: Bundle, links: Links) -> np.ndarray:
    """[L, 6] in standard deviations: translation in the first's frame, rotation."""
    one, other = bundle.poses[links.first], bundle.poses[links.second]
    translation = np.einsum("nji,nj->ni", one[:, :3, :3], other[:, :3, 3] - one[:, :3, 3]) - links.first_from_second[:, :3, 3]
    found = np.einsum("nji,njk->nik", one[:, :3, :3], other[:, :3, :3])
    turned = np.einsum("nji,njk->nik", links.first_from_second[:, :3, :3], found)
    rotation = se3.so3_log(torch.from_numpy(turned)).numpy()
    return np.concatenate((translation, rotation), 1) / links.std


def _cost(bundle: Bundle, rays: Rays, basis: np.ndarray, links: Links, robust_px: float) -> float:
    direction = _inside(bundle, rays)
    unit = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    squared = (np.einsum("nij,nj->ni", basis, unit) ** 2).sum(1)
    # Behind the camera the angle is above 90°, whose sine would shrink.
    squared = np.where((direction * rays.ray).sum(1) > 0, squared, rays.focal_px**2)
    of_links = (link_errors(bundle, links) ** 2).sum(1)
    of_links = np.where(links.robust, _LINK_ROBUST**2 * np.log1p(of_links / _LINK_ROBUST**2), of_links)
    return float((robust_px**2 * np.log1p(squared / robust_px**2)).sum() + of_links.sum())


@dataclass(frozen=True, eq=False)
class _Step:
    turn: np.ndarray
    shift: np.ndarray
    points: np.ndarray

    def applied(self, bundle: Bundle) -> Bundle:
        poses = bundle.poses.copy()
        poses[:, :3, :3] = poses[:, :3, :3] @ se3.so3_exp(torch.from_numpy(self.turn)).numpy()
        poses[:, :3, 3] += self.shift
        return replace(bundle, poses=poses, xyz=bundle.xyz + self.points)


class _System:
    """Normal equations at a bundle. A pose's unknowns are its turn in the camera's frame and its shift in the map's."""

    def __init__(self, bundle: Bundle, rays: Rays, basis: np.ndarray, links: Links, robust_px: float) -> None:
        self.rays, self.poses, self.points = rays, len(bundle.poses), len(bundle.xyz)
        self.of_poses, self.pose_gradient = np.zeros((self.poses, 6, 6)), np.zeros((self.poses, 6))
        self.of_points, self.point_gradient = np.zeros((self.points, 3, 3)), np.zeros((self.points, 3))
        self.mixed = np.empty((len(rays.point), 6, 3))
        for begin in range(0, len(rays.point), _BLOCK):  # their derivatives would not all fit into memory
            self._add_rays(bundle, rays, basis, robust_px, slice(begin, begin + _BLOCK))
        self.starts = np.searchsorted(rays.image, np.arange(self.poses + 1))
        self._add_links(bundle, links)
        self.of_poses[0] += _GAUGE * np.trace(self.of_poses[0]) * np.eye(6)

    def _add_rays(self, bundle: Bundle, rays: Rays, basis: np.ndarray, robust_px: float, rows: slice) -> None:
        rays, basis = rays.only(rows), basis[rows]
        inside = _inside(bundle, rays)
        length = np.maximum(np.linalg.norm(inside, axis=1), 1e-12)
        unit = inside / length[:, None]
        residual = np.einsum("nij,nj->ni", basis, unit)
        weight = 1 / (1 + (residual**2).sum(1) / robust_px**2)
        weight[(inside * rays.ray).sum(1) <= 0] = 0.0
        by_inside = (basis - np.einsum("nij,nj->ni", basis, unit)[:, :, None] * unit[:, None]) / length[:, None, None]
        by_point = by_inside @ bundle.poses[rays.image, :3, :3].transpose(0, 2, 1)
        by_turn = by_inside @ se3.skew(torch.from_numpy(inside)).numpy()
        by_pose = np.concatenate((by_turn, -by_point), 2)
        weighted_pose, weighted_point = by_pose * weight[:, None, None], by_point * weight[:, None, None]
        _add(self.of_poses, rays.image, weighted_pose.transpose(0, 2, 1) @ by_pose)
        _add(self.pose_gradient, rays.image, np.einsum("nki,nk->ni", weighted_pose, residual))
        _add(self.of_points, rays.point, weighted_point.transpose(0, 2, 1) @ by_point)
        _add(self.point_gradient, rays.point, np.einsum("nki,nk->ni", weighted_point, residual))
        self.mixed[rows] = weighted_pose.transpose(0, 2, 1) @ by_point

    def _add_links(self, bundle: Bundle, links: Links) -> None:
        one, other = bundle.poses[links.first, :3, :3], bundle.poses[links.second, :3, :3]
        error = link_errors(bundle, links)
        weight = np.where(links.robust, 1 / (1 + (error**2).sum(1) / _LINK_ROBUST**2), 1.0)
        apart = np.einsum("nji,nj->ni", one, bundle.poses[links.second, :3, 3] - bundle.poses[links.first, :3, 3])
        by_first, by_second = np.zeros((2, len(links.first), 6, 6))
        by_first[:, :3, :3] = se3.skew(torch.from_numpy(apart)).numpy()
        by_first[:, :3, 3:], by_second[:, :3, 3:] = -one.transpose(0, 2, 1), one.transpose(0, 2, 1)
        by_first[:, 3:, :3], by_second[:, 3:, :3] = -np.einsum("nji,njk->nik", other, one), np.eye(3)
        by_first, by_second = by_first / links.std[:, :, None], by_second / links.std[:, :, None]
        product = lambda a, b: np.einsum("n,nki,nkj->nij", weight, a, b)  # noqa: E731
        _add(self.of_poses, links.first, product(by_first, by_first))
        _add(self.of_poses, links.second, product(by_second, by_second))
        _add(self.pose_gradient, links.first, np.einsum("n,nki,nk->ni", weight, by_first, error))
        _add(self.pose_gradient, links.second, np.einsum("n,nki,nk->ni", weight, by_second, error))
        self.between = links.first, links.second, product(by_first, by_second)

    def reduced(self, damping: float) -> tuple[BlockBand, np.ndarray, np.ndarray, bsr_array]:
        """Matrix and gradient [6 K] of the poses alone; inverse blocks of points, and what ties them to poses."""
        diagonal = np.arange(3)
        points, poses = self.of_points.copy(), self.of_poses.copy()
        points[:, diagonal, diagonal] *= 1 + damping
        points += 1e-9 * np.eye(3)
        poses[:, np.arange(6), np.arange(6)] *= 1 + damping
        inverse, rays, starts = np.linalg.inv(points), self.rays, self.starts
        shape, every = (6 * self.poses, 3 * self.points), np.arange(self.poses)
        first, second, between = self.between
        sees = csr_array((np.ones(len(rays.point), np.int32), rays.point, starts), shape=(self.poses, self.points))
        linked = csr_array((np.ones(len(first), np.int32), (first, second)), shape=(self.poses, self.poses))
        band = BlockBand(sees @ sees.T + linked + linked.T)
        band.add(every, every, poses)
        band.add(first, second, between)
        band.add(second, first, between.transpose(0, 2, 1))
        right, gradient = bsr_array((self.mixed, rays.point, starts), shape=shape), self.pose_gradient.ravel().copy()
        transposed = right.T
        for begin in range(0, self.poses, _POSES):  # the blocks of all poses together would take more memory than the band
            end = min(begin + _POSES, self.poses)
            rows = slice(starts[begin], starts[end])
            eliminated = self.mixed[rows] @ inverse[rays.point[rows]]
            own = starts[begin : end + 1] - starts[begin]
            left = bsr_array((eliminated, rays.point[rows], own), shape=(6 * (end - begin), shape[1]))
            product = left @ transposed
            band.add(np.repeat(every[begin:end], np.diff(product.indptr)), product.indices, -product.data)
            gradient[6 * begin : 6 * end] -= left @ self.point_gradient.ravel()
        return band, gradient, inverse, right

    def step(self, damping: float) -> _Step:
        band, gradient, inverse, right = self.reduced(damping)
        of_poses = -band.solve(gradient)
        rest = -(self.point_gradient.ravel() + right.T @ of_poses).reshape(-1, 3)
        of_points = np.einsum("nij,nj->ni", inverse, rest)
        of_poses = of_poses.reshape(-1, 6)
        return _Step(of_poses[:, :3], of_poses[:, 3:], of_points)


class BlockBand:
    """A symmetric matrix of 6x6 blocks as a band.

    Poses are put in an order in which those that see the same things are near each other. What is left is a band as wide as a
    place was visited often, however long the drive: its Cholesky factor takes no more memory than itself.
    """

    def __init__(self, pattern: csr_array) -> None:
        """pattern: symmetric [K, K]; where it is not zero there may be a block. Those on the diagonal may be there always."""
        self._order = reverse_cuthill_mckee(pattern, symmetric_mode=True)
        self._place = np.empty(len(self._order), np.int64)
        self._place[self._order] = np.arange(len(self._order))
        row = np.repeat(self._place, np.diff(pattern.indptr))
        width = int(np.abs(row - self._place[pattern.indices]).max(initial=0)) + 1
        self._band = np.zeros((6 * width, 6 * len(self._order)), order="F")

    def add(self, row: np.ndarray, column: np.ndarray, blocks: np.ndarray) -> None:
        """Add blocks [N, 6, 6] at rows and columns [N] of blocks."""
        row, column = self._place[row], self._place[column]
        lower = np.flatnonzero(row >= column)
        row, column, blocks = row[lower], column[lower], blocks[lower]
        places, which = np.unique(row * len(self._order) + column, return_inverse=True)
        if len(places) < len(row):
            row, column, total = *np.divmod(places, len(self._order)), np.zeros((len(places), 6, 6))
            _add(total, which, blocks)
            blocks = total
        for a, b in np.ndindex(6, 6):
            below = 6 * (row - column) + a - b
            used = below >= 0
            self._band[below[used], 6 * column[used] + b] += blocks[used, a, b]

    @property
    def _unknowns(self) -> np.ndarray:
        return (6 * self._order[:, None] + np.arange(6)).ravel()

    def matrix(self) -> csc_array:
        """All of it."""
        below, column = np.nonzero(self._band)
        unknowns, values = self._unknowns, self._band[below, column]
        row, column = unknowns[column + below], unknowns[column]
        shape, off = (len(unknowns),) * 2, below > 0
        lower = coo_array((values, (row, column)), shape=shape)
        return csc_array(lower + coo_array((values[off], (column[off], row[off])), shape=shape))

    def solve(self, right: np.ndarray) -> np.ndarray:
        """The solution [6 K] for a right side [6 K]; the matrix is gone then.

        Raises:
            LinAlgError: The matrix is not positive definite.
        """
        solution, unknowns = np.empty(len(right)), self._unknowns
        factor = cholesky_banded(self._band, overwrite_ab=True, lower=True, check_finite=False)
        solution[unknowns] = cho_solve_banded((factor, True), right[unknowns], check_finite=False)
        return solution


def _add(total: np.ndarray, index: np.ndarray, values: np.ndarray) -> None:
    """`np.add.at`, faster."""
    if not len(values):
        return
    flat = values.reshape(len(values), -1)
    for column in range(flat.shape[1]):
        total.reshape(len(total), -1)[:, column] += np.bincount(index, flat[:, column], len(total))

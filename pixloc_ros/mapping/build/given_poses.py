# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far poses that somebody else gave are off: each for itself, and all in the same way in the camera's frame (its mount).

All of it is learned from the images (empirical Bayes): a given pose is the right one times the mount's error times its own, both
of normal distribution. The adjustment's information about the poses, points eliminated, is a quadratic; with it the mount is one
more unknown of least squares, and the spread of the poses' own errors is found by expectation maximization. Where the images
confirm the given poses, they are believed almost to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import block_diag, csc_array, diags_array, eye_array, hstack, kron
from scipy.sparse.linalg import splu

from ...errors import InputError
from ...geometry import se3
from .adjustment import Bundle, Links, Rays, errors_px, information, link_errors

_NO_MOUNT = 1e-3
_ITERATIONS, _SETTLED = 60, 0.01
_LEAST, _MOST = 1e-3, 1.0  # times what was said of the poses
_PIXEL_STD = 0.15, 0.5
_AS_ONE = 2.5
"""Observations count as so many times less exact than they agree: calibration, and a patch's first view, err the same way in many
of them."""
_EXACT, _PROBES = 900, 64  # unknowns up to which traces are exact; random vectors beyond


@dataclass(frozen=True)
class RefineOptions:
    """How well poses are known.

    Attributes:
        position_std: Of the whole distance, in units of the map.
        rotation_std: Of the whole angle, radians.
        mount: Whether the camera's mount may be off by as much, too.
    """

    position_std: float = 0.03
    rotation_std: float = float(np.radians(0.5))
    mount: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.position_std < np.inf and 0 < self.rotation_std < 0.2):
            raise InputError("standard deviations of poses to refine: above 0, and the angle below 11 degrees")

    @property
    def stds(self) -> np.ndarray:
        """float64 [2], of each axis: units of the map and radians."""
        return np.array((self.position_std, self.rotation_std)) / np.sqrt(3)

    @property
    def mount_std(self) -> np.ndarray:
        """float64 [6], of `Belief.mount`."""
        return np.repeat(self.stds[::-1], 3) * (1.0 if self.mount else _NO_MOUNT)


@dataclass(frozen=True, eq=False)
class Belief:
    """What is known of given poses.

    Attributes:
        stds: float64 [2], of the poses' own errors: of each axis, metres and radians.
        mount: float64 [6], the right camera in the given one's frame: rotation vector (radians) and place.
        information: float64 [6, 6], inverse covariance of `mount`.
        pixel_std: Of observations.
    """

    stds: np.ndarray
    mount: np.ndarray
    information: np.ndarray
    pixel_std: float = 1.0

    @classmethod
    def of(cls, said: RefineOptions) -> Belief:
        """Before anything was seen."""
        return cls(said.stds, np.zeros(6), np.diag(1 / said.mount_std**2))

    @property
    def given_from_right(self) -> np.ndarray:
        """float64 [4, 4], of camera frames."""
        pose = np.eye(4)
        pose[:3, :3] = se3.so3_exp(torch.from_numpy(self.mount[:3])).numpy()
        pose[:3, 3] = self.mount[3:]
        return pose

    def links(self, given: np.ndarray) -> Links:
        """Given poses [K, 4, 4], corrected for the mount, as motions from image 0; errors in pixels' standard deviations."""
        count = len(given)
        stds = (np.full(count, std / self.pixel_std) for std in self.stds)
        nothing = np.zeros(count, bool)
        return Links(np.zeros(count, np.int64), np.arange(1, count + 1), given @ self.given_from_right, *stds, nothing)

    def learned(self, bundle: Bundle, rays: Rays, given: np.ndarray, said: RefineOptions, robust_px: float) -> Belief:
        """What images tell.

        Args:
            bundle: Adjusted; pose 0 is the map itself.
            rays: Observations that agree.
            given: map_from_camera, float64 [K, 4, 4].
            said: How well they are said to be known: at most so far off are they held for.
            robust_px: As of `adjust`.
        """
        pixel_std = _pixel_std(bundle, rays, robust_px)
        every = self.links(given)
        none = Links(*(value[:0] for value in vars(every).values()))
        matrix, gradient = information(bundle, rays, none, robust_px)
        prior = said.stds
        problem = _Problem(
            csc_array(matrix[6:, 6:]) / pixel_std**2,
            gradient[6:] / pixel_std**2,
            link_errors(bundle, replace(every, translation_std=np.ones(len(given)), rotation_std=np.ones(len(given)))),
            given[:, :3, :3],
            self.mount,
            said.mount_std,
        )
        stds = prior
        for _ in range(_ITERATIONS):
            change, of_mount, squares = problem.solved(stds)
            before, stds = stds, np.clip(np.sqrt(squares), _LEAST * prior, _MOST * prior)
            if np.abs(np.log(stds / before)).max() < _SETTLED:
                break
        turned = se3.so3_exp(torch.from_numpy(self.mount[:3])) @ se3.so3_exp(torch.from_numpy(change[:3]))
        mount = np.concatenate((se3.so3_log(turned).numpy(), self.mount[3:] + change[3:]))
        return Belief(stds, mount, of_mount, pixel_std)


def _pixel_std(bundle: Bundle, rays: Rays, robust_px: float) -> float:
    """Of each axis of the observations that agree."""
    squared = errors_px(bundle, rays) ** 2
    squared = squared[np.isfinite(squared)]  # not behind the camera
    weight = 1 / (1 + squared / robust_px**2)
    images, points = len(np.unique(rays.image)), len(np.unique(rays.point))
    left = max(2 * weight.sum() - 3 * points - 6 * images, 0.1 * weight.sum())
    return float(np.clip(_AS_ONE * np.sqrt((weight * squared).sum() / left), *_PIXEL_STD))


class _Problem:
    """Poses and mount around where they are, all of it quadratic.

    Args:
        matrix: [6 K, 6 K], of the images: turn in the camera's frame, shift in the map's.
        gradient: [6 K].
        error: [K, 6], by how much each pose is off from the given one, corrected for the mount: shift, turn.
        given: Rotations [K, 3, 3].
        mount: [6], as of `Belief`.
        mount_std: [6].
    """

    def __init__(self, matrix, gradient, error, given, mount, mount_std) -> None:
        self.error, count = error.ravel(), len(error)
        of_mount = np.zeros((count, 6, 6))  # of the mount's turn and shift
        of_mount[:, :3, 3:], of_mount[:, 3:, :3] = -given, -np.eye(3)
        turn_and_shift = np.roll(np.eye(6), 3, axis=0)
        self.by = csc_array(hstack((kron(eye_array(count), turn_and_shift), of_mount.reshape(-1, 6))))
        prior = 1 / mount_std**2
        self.matrix = csc_array(block_diag((matrix, diags_array(prior))))
        self.gradient = np.concatenate((gradient, prior * mount))

    def solved(self, stds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Change of the mount [6], its information [6, 6], and the mean squares expected of the poses' errors [2]."""
        weight = np.tile(np.repeat(1 / stds**2, 3), len(self.error) // 6)
        weighted = diags_array(weight) @ self.by
        normal = csc_array(self.matrix + self.by.T @ weighted)
        solve = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}).solve
        step = -solve(self.gradient + weighted.T @ self.error)
        left = self.error + self.by @ step
        if len(step) <= _EXACT:
            probes = eye_array(len(self.error)).toarray()
        else:
            probes = np.random.default_rng(0).choice((-1.0, 1.0), (len(self.error), _PROBES)) / np.sqrt(_PROBES)
        spread = (probes * (self.by @ solve(self.by.T @ probes))).sum(1)
        last = np.zeros((len(step), 6))
        last[-6:] = np.eye(6)
        return step[-6:], np.linalg.inv(solve(last)[-6:]), (left**2 + np.maximum(spread, 0)).reshape(-1, 2, 3).mean((0, 2))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Points as small pieces of surface that are looked for in the images around: what maps from depth and from triangulation
share."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from ...geometry import se3
from ...geometry.cameras import Camera

PATCH_PX = 6
"""A patch is a square of twice this and one pixel."""
_BLUR_PX = 1.0
_TRACK_ITERATIONS, _LARGEST_SHIFT_PX, _LEAST_LIKENESS = 8, 4.0, 0.8
_REFINE_ITERATIONS = 4
_PIXEL_SIGMA_PX = 0.5  # of a tracked observation
_REMAP_ROWS = 30_000


@dataclass(frozen=True)
class Patches:
    """xyz [n, 3] of the centre in the map, grid [n, S * S, 3] of the pixels around relative to it, float32, and their grey
    values [n, S * S], float32, as the keyframe that the patch was found in saw them."""

    xyz: np.ndarray
    grid: np.ndarray
    grey: np.ndarray

    @staticmethod
    def concatenate(parts: list[Patches]) -> Patches:
        """One after another."""
        return Patches(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("xyz", "grid", "grey")))


def patch_pixels(pixels: np.ndarray) -> np.ndarray:
    """The pixels [n, S * S, 2] of the patches around pixels [n, 2]."""
    span = np.arange(-PATCH_PX, PATCH_PX + 1)
    return pixels[:, None] + np.stack(np.meshgrid(span, span), -1).reshape(-1, 2)


def cut_patches(
    grey: np.ndarray, camera: Camera, map_from_camera: torch.Tensor, pixels: np.ndarray, depth: np.ndarray
) -> Patches:
    """The patches around pixels [n, 2] of a grey image uint8 [H, W]; depth [n, S * S]: metres along the optical axis."""
    around = patch_pixels(pixels)
    image = cv2.GaussianBlur(grey, (0, 0), _BLUR_PX).astype(np.float32)
    values = _remap(image, around)
    points = lift(camera, around.reshape(-1, 2), depth.reshape(-1))
    points = se3.transform(map_from_camera, points).numpy().reshape(*around.shape[:2], 3)
    xyz = points[:, around.shape[1] // 2].copy()
    return Patches(xyz, (points - xyz[:, None]).astype(np.float32), values)


def lift(camera: Camera, pixels: np.ndarray, depth: np.ndarray) -> torch.Tensor:
    """Points [N, 3] in the camera frame at pixels [N, 2] with depth along the optical axis [N]."""
    rays, _ = camera.unproject(torch.from_numpy(np.asarray(pixels, np.float64)))
    return rays * (torch.from_numpy(np.asarray(depth, np.float64)) / rays[:, 2])[:, None]


def track_patches(
    patches: Patches, which: np.ndarray, grey: np.ndarray, camera: Camera, map_from_camera: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Where a grey image uint8 [H, W] shows the patches `which`: pixels [n, 2], and whether they look like it there (bool
    [n]).

    Depth and pose say where a patch's pixels fall; a shift of the patch along its own image axes is then found by
    Lucas and Kanade's method, so that errors of depth and of its alignment with the colour image do not stay.
    """
    camera_from_map = se3.inverse(map_from_camera)
    points = torch.from_numpy(patches.xyz[which][:, None] + patches.grid[which])
    pixels, valid = camera.project(se3.transform(camera_from_map, points.reshape(-1, 3)))
    side = 2 * PATCH_PX + 1
    inside = (valid & camera.in_image(pixels, _LARGEST_SHIFT_PX)).numpy().reshape(len(which), -1).all(1)
    pixels = pixels.numpy().reshape(len(which), side, side, 2)
    middle = PATCH_PX
    # How the keyframe's pixels move when the patch's do, at its centre: columns of [n, 2, 2].
    across = (pixels[:, middle, -1] - pixels[:, middle, 0]) / (side - 1)
    down = (pixels[:, -1, middle] - pixels[:, 0, middle]) / (side - 1)
    affine = np.stack((across, down), -1)
    template = _standardized(patches.grey[which]).reshape(-1, side, side)
    slopes = np.stack((np.gradient(template, axis=2), np.gradient(template, axis=1)), -1).reshape(len(which), side * side, 2)
    normal = np.einsum("npi,npj->nij", slopes, slopes) + 1e-6 * np.eye(2)
    image = cv2.GaussianBlur(grey, (0, 0), _BLUR_PX).astype(np.float32)
    shift = np.zeros((len(which), 2))
    likeness = np.zeros(len(which))
    flat = pixels.reshape(len(which), side * side, 2)
    for step in range(_TRACK_ITERATIONS + 1):
        values = _standardized(_remap(image, flat + np.einsum("nij,nj->ni", affine, shift)[:, None]))
        likeness = (values * template.reshape(len(which), -1)).sum(1)
        if step < _TRACK_ITERATIONS:
            difference = template.reshape(len(which), -1) - values
            shift += np.linalg.solve(normal, np.einsum("npi,np->ni", slopes, difference)[..., None])[..., 0]
            shift = np.clip(shift, -2 * _LARGEST_SHIFT_PX, 2 * _LARGEST_SHIFT_PX)
    moved = np.einsum("nij,nj->ni", affine, shift)
    tracked = inside & (likeness > _LEAST_LIKENESS) & (np.linalg.norm(moved, axis=1) < _LARGEST_SHIFT_PX)
    return pixels[:, middle, middle] + moved, tracked


def _standardized(values: np.ndarray) -> np.ndarray:
    """Rows with their mean taken off and of unit length."""
    values = values - values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def refine_points(
    xyz: np.ndarray,
    poses: torch.Tensor,
    cameras: list[Camera],
    image: np.ndarray,
    point: np.ndarray,
    observed: np.ndarray,
    depth_sigma: float,
) -> np.ndarray:
    """Points moved to where they reproject best, [P, 3]: Gauss-Newton per point, poses [K, 4, 4] fixed, held where they were.

    image, point [M], observed [M, 2]: observations; an image sees a point once. depth_sigma: how well xyz is known, as a
    share of its distance.
    """
    result = xyz.copy()
    centres = poses[:, :3, 3].numpy()
    distance = np.full(len(xyz), np.inf)
    np.minimum.at(distance, point, np.linalg.norm(xyz[point] - centres[image], axis=1))
    hold = (_PIXEL_SIGMA_PX / (depth_sigma * np.where(np.isfinite(distance), distance, 1.0))) ** 2
    observed_pixels, camera_from_map = torch.from_numpy(observed), se3.inverse(poses)
    order = np.argsort(image, kind="stable")
    bounds = np.searchsorted(image[order], np.arange(len(poses) + 1))
    for _ in range(_REFINE_ITERATIONS):
        normal, gradient = np.zeros((len(xyz), 3, 3)), np.zeros((len(xyz), 3))
        for k in range(len(poses)):
            rows = order[bounds[k] : bounds[k + 1]]
            inside = se3.transform(camera_from_map[k], torch.from_numpy(result[point[rows]]))
            pixels, valid, jacobian = cameras[k].project_with_jacobian(inside)
            jacobian = (jacobian @ camera_from_map[k, :3, :3]).numpy()
            error = (pixels - observed_pixels[rows]).numpy()
            weight = valid.numpy() / (1 + (error**2).sum(1))  # Cauchy, one pixel
            # A keyframe sees a point once, so plain indexing adds up.
            normal[point[rows]] += np.einsum("n,nki,nkj->nij", weight, jacobian, jacobian)
            gradient[point[rows]] += np.einsum("n,nki,nk->ni", weight, jacobian, error)
        normal += hold[:, None, None] * np.eye(3)
        gradient += hold[:, None] * (result - xyz)
        result = result - np.linalg.solve(normal, gradient[..., None])[..., 0]
    return result


def neighbours(poses: torch.Tensor, depth: float, count: int) -> list[list[int]]:
    """For each keyframe those near it in place and viewing direction, itself among them, by index.

    depth: the scene's, metres, which says how far is near. count: at most.
    """
    values = poses.numpy()
    keys = np.concatenate((values[:, :3, 3], depth * values[:, :3, 2]), axis=1)
    _, near = cKDTree(keys).query(keys, k=[*range(1, min(count, len(keys)) + 1)])
    return [sorted(row) for row in near.tolist()]


def _remap(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values [n, m] of an image at pixels [n, m, 2]; the border is repeated outside."""
    # OpenCV's maps have at most 32767 rows.
    parts = [where[k : k + _REMAP_ROWS].astype(np.float32) for k in range(0, max(len(where), 1), _REMAP_ROWS)]
    if not len(where):
        return np.empty(where.shape[:2], np.float32)
    return np.concatenate([cv2.remap(image, part, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for part in parts])

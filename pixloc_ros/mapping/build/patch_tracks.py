# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Points as small pieces of surface that are searched for in the images around: shared by maps from depth and from
triangulation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.depth import lift
from .observations import Observations, Views, rows_by_image

PATCH_PX = 6
"""A patch is a square of twice this and one pixel: S of them along each side."""
_BLUR_PX = 1.0
_TRACK_ITERATIONS, _LARGEST_SHIFT_PX, _LEAST_LIKENESS = 8, 4.0, 0.8
_REFINE_ITERATIONS = 4
_PIXEL_SIGMA_PX = 0.5  # of a tracked observation
_REMAP_ROWS = 30_000


@dataclass(frozen=True)
class SurfacePatches:
    """Small pieces of surface as the keyframe that they were found in saw them.

    Attributes:
        xyz: float64 [n, 3], the centres in the map.
        grid: float32 [n, S * S, 3], the places of the pixels around relative to the centre.
        grey: float32 [n, S * S], the grey values of those pixels.
    """

    xyz: np.ndarray
    grid: np.ndarray
    grey: np.ndarray

    @staticmethod
    def concatenate(parts: list[SurfacePatches]) -> SurfacePatches:
        """One after another."""
        return SurfacePatches(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("xyz", "grid", "grey")))

    def only(self, rows: np.ndarray) -> SurfacePatches:
        """Some of them."""
        return SurfacePatches(self.xyz[rows], self.grid[rows], self.grey[rows])


def patch_pixels(pixels: np.ndarray) -> np.ndarray:
    """The pixels [n, S * S, 2] of the patches around pixels [n, 2]."""
    span = np.arange(-PATCH_PX, PATCH_PX + 1)
    return pixels[:, None] + np.stack(np.meshgrid(span, span), -1).reshape(-1, 2)


def cut_patches(
    grey: np.ndarray, camera: Camera, map_from_camera: torch.Tensor, pixels: np.ndarray, depth: np.ndarray
) -> SurfacePatches:
    """The patches around pixels [n, 2] of a grey image uint8 [H, W]; depth [n, S * S]: metres along the optical axis."""
    around = patch_pixels(pixels)
    points = lift(camera, around.reshape(-1, 2), depth.reshape(-1))
    points = se3.transform(map_from_camera, points).numpy().reshape(*around.shape[:2], 3)
    xyz = points[:, around.shape[1] // 2].copy()
    return SurfacePatches(xyz, (points - xyz[:, None]).astype(np.float32), _values(_blurred(grey), around))


def track_patches(
    patches: SurfacePatches, grey: np.ndarray, camera: Camera, map_from_camera: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Find patches in another image.

    Depth and pose say where a patch's pixels fall. A shift of the patch along its own image axes is then found by the method of
    Lucas and Kanade (IJCAI 1981), so that errors of depth and of its alignment with the colour image do not stay.

    Args:
        patches: n of them.
        grey: uint8 [H, W].
        camera: Of the image.
        map_from_camera: float64 [4, 4].

    Returns:
        Pixels [n, 2], and bool [n], whether the image looks like the patch there.
    """
    flat, inside = _patch_pixels_in(patches, camera, map_from_camera)
    side, middle = 2 * PATCH_PX + 1, PATCH_PX
    pixels = flat.reshape(-1, side, side, 2)
    # How the keyframe's pixels move when the patch's do, at its centre: columns of [n, 2, 2].
    across = (pixels[:, middle, -1] - pixels[:, middle, 0]) / (side - 1)
    down = (pixels[:, -1, middle] - pixels[:, 0, middle]) / (side - 1)
    affine = np.stack((across, down), -1)
    template = _standardized(patches.grey)
    square = template.reshape(-1, side, side)
    slopes = np.stack((np.gradient(square, axis=2), np.gradient(square, axis=1)), -1).reshape(-1, side * side, 2)
    normal = np.einsum("npi,npj->nij", slopes, slopes) + 1e-6 * np.eye(2)
    image = _blurred(grey)
    shift, likeness = np.zeros((len(flat), 2)), np.zeros(len(flat))
    for step in range(_TRACK_ITERATIONS + 1):
        values = _standardized(_values(image, flat + np.einsum("nij,nj->ni", affine, shift)[:, None]))
        likeness = (values * template).sum(1)
        if step < _TRACK_ITERATIONS:
            shift += np.linalg.solve(normal, np.einsum("npi,np->ni", slopes, template - values)[..., None])[..., 0]
            shift = np.clip(shift, -2 * _LARGEST_SHIFT_PX, 2 * _LARGEST_SHIFT_PX)
    moved = np.einsum("nij,nj->ni", affine, shift)
    tracked = inside & (likeness > _LEAST_LIKENESS) & (np.linalg.norm(moved, axis=1) < _LARGEST_SHIFT_PX)
    return pixels[:, middle, middle] + moved, tracked


def _patch_pixels_in(patches: SurfacePatches, camera: Camera, map_from_camera: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, S * S, 2] where patches fall in an image, and whether all of them are well inside, bool [n]."""
    points = torch.from_numpy(patches.xyz[:, None] + patches.grid).reshape(-1, 3)
    pixels, valid = camera.project(se3.transform(se3.inverse(map_from_camera), points))
    inside = (valid & camera.in_image(pixels, _LARGEST_SHIFT_PX)).numpy()
    shape = patches.grid.shape[:2]
    return pixels.numpy().reshape(*shape, 2), inside.reshape(shape).all(1)


def _blurred(grey: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(grey, (0, 0), _BLUR_PX).astype(np.float32)


def _standardized(values: np.ndarray) -> np.ndarray:
    """Rows with their mean taken off and of unit length."""
    values = values - values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _values(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values [n, m] of an image at pixels [n, m, 2]; the border is repeated outside."""
    values = np.empty(where.shape[:2], np.float32)
    for k in range(0, len(where), _REMAP_ROWS):  # OpenCV's maps have at most 32767 rows
        part = where[k : k + _REMAP_ROWS].astype(np.float32)
        values[k : k + _REMAP_ROWS] = cv2.remap(image, part, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return values


def refine_points(xyz: np.ndarray, views: Views, seen: Observations, depth_sigma: float) -> np.ndarray:
    """Points moved to where they reproject best: Gauss-Newton per point, poses fixed, weakly held where they were.

    Args:
        xyz: float64 [P, 3].
        views: Of the images.
        seen: Observations; an image sees a point once.
        depth_sigma: How well `xyz` is known, as a share of its distance.

    Returns:
        float64 [P, 3].
    """
    image, point, poses = seen.image, seen.point, views.map_from_camera
    result = xyz.copy()
    centres = poses[:, :3, 3].numpy()
    distance = np.full(len(xyz), np.inf)
    np.minimum.at(distance, point, np.linalg.norm(xyz[point] - centres[image], axis=1))
    hold = (_PIXEL_SIGMA_PX / (depth_sigma * np.where(np.isfinite(distance), distance, 1.0))) ** 2
    observed_pixels, camera_from_map = torch.from_numpy(seen.pixel), se3.inverse(poses)
    by_image = rows_by_image(image, len(poses))
    for _ in range(_REFINE_ITERATIONS):
        normal, gradient = np.zeros((len(xyz), 3, 3)), np.zeros((len(xyz), 3))
        for k, rows in enumerate(by_image):
            inside = se3.transform(camera_from_map[k], torch.from_numpy(result[point[rows]]))
            pixels, valid, jacobian = views.cameras[k].project_with_jacobian(inside)
            jacobian = (jacobian @ camera_from_map[k, :3, :3]).numpy()
            error = (pixels - observed_pixels[rows]).numpy()
            weight = valid.numpy() / (1 + (error**2).sum(1))  # Cauchy, one pixel
            # An image sees a point once, so plain indexing adds up.
            normal[point[rows]] += np.einsum("n,nki,nkj->nij", weight, jacobian, jacobian)
            gradient[point[rows]] += np.einsum("n,nki,nk->ni", weight, jacobian, error)
        normal += hold[:, None, None] * np.eye(3)
        gradient += hold[:, None] * (result - xyz)
        result = result - np.linalg.solve(normal, gradient[..., None])[..., 0]
    return result


def neighbours(poses: torch.Tensor, depth: float, count: int) -> list[list[int]]:
    """For each keyframe those near it in place and viewing direction, itself among them, by index.

    Args:
        poses: float64 [K, 4, 4], map_from_camera.
        depth: The scene's, metres, which says how far is near.
        count: At most so many.
    """
    values = poses.numpy()
    keys = np.concatenate((values[:, :3, 3], depth * values[:, :3, 2]), axis=1)
    _, near = cKDTree(keys).query(keys, k=[*range(1, min(count, len(keys)) + 1)])
    return [sorted(row) for row in near.tolist()]

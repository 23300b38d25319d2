# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A sparse model of rendered keyframes that looks like the work of structure from motion.

What is real about it: points sit on corners that a detector finds, are seen by the keyframes that could match them,
their observations are noisy (half a pixel by default) and each point is triangulated from those, so that its error is that of
structure from motion: small sideways, larger along the view where the baseline is short. What is ideal: the poses are exact and
there are no wrong matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.colmap import ColmapModel
from pixloc_ros.io.trajectory import Trajectory, write_tum

_CORNERS_PER_IMAGE = 500
_CORNER_SPACING_PX = 6
_SAME_POINT_PX = 3.0
_DEPTH_TOLERANCE = 0.015
_MAX_SCALE_CHANGE = 2.2
_MAX_VIEW_ANGLE_COSINE = 0.6
_MATCH_RATE = 0.85
_MIN_PARALLAX_COSINE = np.cos(np.deg2rad(1.5))


@dataclass(frozen=True)
class Keyframe:
    """One posed image.

    Attributes:
        name: Of its file.
        stamp_ns: When it was taken.
        image: uint8 [H, W, 3] RGB.
        depth: float32 [H, W], metres, exact.
        map_from_camera: float64 [4, 4].
    """

    name: str
    stamp_ns: int
    image: np.ndarray
    depth: np.ndarray
    map_from_camera: torch.Tensor


def build_sparse_model(
    keyframes: Sequence[Keyframe], camera: Camera, rng: np.random.Generator, noise_px: float = 0.5
) -> tuple[ColmapModel, np.ndarray]:
    """Detect corners, follow them through the keyframes by projection and depth, and triangulate noisy observations → the model,
    whose ids count from 1, and the points' colours uint8 [P, 3]."""
    true_xyz, rgb, origin = _detect(keyframes, camera)
    point, keyframe, pixel = _observe(true_xyz, origin, keyframes, camera, rng)
    pixel = pixel + rng.normal(size=pixel.shape) * noise_px
    count = np.bincount(point, minlength=len(true_xyz))
    kept = (count >= 2) & _has_parallax(true_xyz, point, keyframe, keyframes)
    used = kept[point]
    point, keyframe, pixel = (np.cumsum(kept) - 1)[point[used]], keyframe[used], pixel[used]
    camera_from_map = se3.inverse(torch.stack([frame.map_from_camera for frame in keyframes]))
    xyz, error = _triangulate(true_xyz[kept], point, pixel, camera_from_map[keyframe], camera)
    names, count = [frame.name for frame in keyframes], len(keyframes)
    images, cameras, points = np.arange(1, count + 1), np.ones(count, int), np.arange(1, len(xyz) + 1)
    observations = keyframe, point, pixel
    return ColmapModel({1: camera}, images, names, cameras, camera_from_map, points, xyz, error, *observations), rgb[kept]


def _detect(keyframes: Sequence[Keyframe], camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact points [P, 3] of new corners, their colours, and the keyframe each was found in."""
    found, colours, origins = [np.empty((0, 3))], [np.empty((0, 3), np.uint8)], [np.empty(0, int)]
    for index, frame in enumerate(keyframes):
        grey = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
        corners = cv2.goodFeaturesToTrack(grey, _CORNERS_PER_IMAGE, 0.004, _CORNER_SPACING_PX)
        if corners is None:
            continue
        corners = corners.reshape(-1, 2).astype(float)
        z, flat = _depth_at(frame.depth, corners)
        known, _, _ = _visible(np.concatenate(found), frame, camera)
        mask = np.zeros(grey.shape, np.uint8)
        for x, y in np.rint(known).astype(int):
            cv2.circle(mask, (int(x), int(y)), int(_SAME_POINT_PX), 1, -1)
        at = corners.astype(int)
        fresh = flat & (mask[at[:, 1], at[:, 0]] == 0)
        rays, valid = camera.unproject(torch.from_numpy(corners))
        points = rays / rays[:, 2:] * torch.from_numpy(z)[:, None]
        fresh &= valid.numpy()
        found.append(se3.transform(frame.map_from_camera, points).numpy()[fresh])
        colours.append(frame.image[at[fresh, 1], at[fresh, 0]])
        origins.append(np.full(int(fresh.sum()), index))
    return np.concatenate(found), np.concatenate(colours), np.concatenate(origins)


def _depth_at(depth: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth at pixels [N, 2], and where the surface around them is one (no edge of depth nearby)."""
    x, y = np.rint(pixels).astype(int).T
    height, width = depth.shape
    inside = (x >= 2) & (y >= 2) & (x < width - 2) & (y < height - 2)
    x, y = np.clip(x, 2, width - 3), np.clip(y, 2, height - 3)
    around = np.stack([depth[y + dy, x + dx] for dy in (-2, 0, 2) for dx in (-2, 0, 2)])
    # Inverse depth is linear on a plane: opposite neighbours average to the middle, a step does not.
    with np.errstate(divide="ignore"):
        inverse = 1.0 / around
    bend = np.abs(inverse[:4] + inverse[:4:-1] - 2 * inverse[4]).max(0)
    flat = inside & (around > 0).all(0) & (bend < 0.01 * inverse[4])
    return depth[y, x].astype(float), flat


def _visible(points: np.ndarray, frame: Keyframe, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels [K, 2] of the points [N, 3] that the keyframe sees unhidden, their indices [K] and depths [K]."""
    local = se3.transform(se3.inverse(frame.map_from_camera), torch.from_numpy(points))
    pixels, valid = camera.project(local)
    index = torch.nonzero(valid & camera.in_image(pixels, 3.0)).squeeze(-1).numpy()
    pixels, z = pixels.numpy()[index], local[:, 2].numpy()[index]
    seen, _ = _depth_at(frame.depth, pixels)
    # The depth image is read at the nearest pixel: allow what a slanted surface changes within half of one.
    good = np.abs(seen - z) < _DEPTH_TOLERANCE * z
    return pixels[good], index[good], z[good]


def _observe(points: np.ndarray, origin: np.ndarray, keyframes: Sequence[Keyframe], camera: Camera, rng: np.random.Generator):
    """Exact observations: point [M], keyframe [M], pixel [M, 2], sorted by point."""
    centres = np.array([k.map_from_camera[:3, 3].numpy() for k in keyframes])
    first_view = points - centres[origin]
    first_distance = np.linalg.norm(first_view, axis=1)
    rows = []
    for index, frame in enumerate(keyframes):
        pixels, seen, _ = _visible(points, frame, camera)
        view = points[seen] - centres[index]
        distance = np.linalg.norm(view, axis=1)
        ratio = distance / first_distance[seen]
        cosine = (view * first_view[seen]).sum(1) / (distance * first_distance[seen])
        matched = (ratio < _MAX_SCALE_CHANGE) & (ratio > 1 / _MAX_SCALE_CHANGE) & (cosine > _MAX_VIEW_ANGLE_COSINE)
        matched &= (rng.random(len(seen)) < _MATCH_RATE) | (origin[seen] == index)
        rows.append((seen[matched], np.full(int(matched.sum()), index), pixels[matched]))
    point, keyframe, pixel = (np.concatenate(parts) for parts in zip(*rows))
    order = np.argsort(point, kind="stable")
    return point[order], keyframe[order], pixel[order]


def _has_parallax(points: np.ndarray, point: np.ndarray, keyframe: np.ndarray, keyframes: Sequence[Keyframe]) -> np.ndarray:
    """Which points are seen from directions far enough apart to be triangulated: bool [P]."""
    centres = np.array([k.map_from_camera[:3, 3].numpy() for k in keyframes])
    view = points[point] - centres[keyframe]
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    total = np.zeros((len(points), 3))
    np.add.at(total, point, view)
    mean = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    lowest = np.ones(len(points))
    np.minimum.at(lowest, point, (mean[point] * view).sum(1))
    # The angle to the mean direction is half of that between two views.
    return lowest < np.sqrt((1 + _MIN_PARALLAX_COSINE) / 2)


def _triangulate(xyz: np.ndarray, point: np.ndarray, pixel: np.ndarray, camera_from_map: torch.Tensor, camera: Camera):
    """Points that fit their observations best, three Gauss-Newton steps from the given ones; mean errors (px)."""
    rotation = camera_from_map[:, :3, :3]
    target, index = torch.from_numpy(pixel), torch.from_numpy(point)
    xyz = torch.from_numpy(xyz.copy())
    for _ in range(3):
        local = se3.transform(camera_from_map, xyz[index].unsqueeze(-2)).squeeze(-2)
        projected, _, jacobian = camera.project_with_jacobian(local)
        jacobian = jacobian @ rotation
        residual = (target - projected).unsqueeze(-1)
        hessian = torch.zeros(len(xyz), 3, 3, dtype=torch.float64).index_add_(0, index, jacobian.mT @ jacobian)
        gradient = torch.zeros(len(xyz), 3, 1, dtype=torch.float64).index_add_(0, index, jacobian.mT @ residual)
        xyz = xyz + torch.linalg.solve(hessian + 1e-6 * torch.eye(3, dtype=torch.float64), gradient).squeeze(-1)
    local = se3.transform(camera_from_map, xyz[index].unsqueeze(-2)).squeeze(-2)
    error = (camera.project(local)[0] - target).norm(dim=-1).numpy()
    return xyz.numpy(), np.bincount(point, error, len(xyz)) / np.bincount(point, minlength=len(xyz))


def write_tum_rgbd(folder: Path, keyframes: Sequence[Keyframe], camera: Camera, images: str) -> None:
    """The keyframes in TUM RGB-D format: rgb.txt, depth.txt, groundtruth.txt (camera poses), camera.txt, depth/.

    Args:
        folder: Made here.
        keyframes: Their depth is written as PNG files, in millimetres.
        camera: Of all keyframes.
        images: Where the images are, relative to the folder.
    """
    (folder / "depth").mkdir(parents=True)
    rows: dict[str, list[str]] = {"rgb": [], "depth": []}
    for frame in keyframes:
        stamp = f"{frame.stamp_ns // 10**9}.{frame.stamp_ns % 10**9:09d}"
        depth = f"depth/{Path(frame.name).stem}.png"
        cv2.imwrite(str(folder / depth), np.rint(frame.depth * 1000.0).astype(np.uint16))
        rows["rgb"].append(f"{stamp} {images}/{frame.name}\n")
        rows["depth"].append(f"{stamp} {depth}\n")
    for key, lines in rows.items():
        (folder / f"{key}.txt").write_text("# timestamp filename\n" + "".join(lines))
    write_tum(folder / "groundtruth.txt", Trajectory.from_poses((frame.stamp_ns, frame.map_from_camera) for frame in keyframes))
    (folder / "camera.txt").write_text(f"{camera.to_colmap_line()}\n")

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses that somebody else gave (a LiDAR SLAM and a mount measured by hand), made as exact as the images are.

Features are matched with room for wrong poses, poses and points adjusted, and matched again with what is allowed then. The given
poses are priors: they hold scale, place and direction of the map, which images alone do not tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ...errors import InputError
from ...geometry import se3
from ...io.work_folder import WorkFolder
from .building import Progress
from .bundle_adjustment import AdjustmentOptions, adjust
from .keyframes import KeyframeFiles
from .matching import Matcher, MatchingOptions, colmap_tracks, pixel_scale, require_pycolmap
from .observations import Observations, Views
from .triangulation import TriangulationOptions, triangulate

_STDS = 2.5  # of a pose's error that matching leaves room for
_FEWEST_SHARED, _FEWEST_KEYFRAMES = 15, 3  # points that tie two keyframes; keyframes of a part that is adjusted
_SURE_MOUNT = 16.3  # 99.9 % of the squared distances, three degrees of freedom
_MATCHING = TriangulationOptions()
_LARGEST_MOVE = 6.0  # standard deviations, in the median


@dataclass(frozen=True)
class RefineOptions:
    """How well poses are known.

    Attributes:
        position_std: Of the whole distance, in units of the map.
        rotation_std: Of the whole angle, radians; also that of the camera's mount.
    """

    position_std: float = 0.03
    rotation_std: float = float(np.radians(0.5))

    def __post_init__(self) -> None:
        if not (0 < self.position_std < np.inf and 0 < self.rotation_std < 0.2):
            raise InputError("standard deviations of poses to refine: above 0, and the angle below 11 degrees")


@dataclass(frozen=True, eq=False)
class Refinement:
    """Poses, and what was found.

    Attributes:
        map_from_camera: float64 [K, 4, 4].
        moved: float64 [K, 2], by how much each has moved (units of the map) and turned (radians).
        mount: float64 [3], rotation vector of the given camera axes in the right ones, radians; 0 where it is not sure.
        kept: int64 of the keyframes that are as they were given, as too little ties them to others.
        error_px: Median reprojection error after.
    """

    map_from_camera: torch.Tensor
    moved: np.ndarray
    mount: np.ndarray
    kept: np.ndarray
    error_px: float

    @property
    def notes(self) -> tuple[str, ...]:
        """For people."""
        (metres, angle), (far, turned) = np.median(self.moved, 0), self.moved.max(0)
        notes = [
            f"poses were refined: moved by {metres:.3g} and turned by {np.degrees(angle):.2g}° in the median, at most {far:.3g} "
            f"and {np.degrees(turned):.2g}°; points reproject to {self.error_px:.2f} px"
        ]
        if self.mount.any():
            x, y, z = np.degrees(-self.mount)  # the right axes in the given ones
            notes.append(
                f"the camera is turned by {np.degrees(np.linalg.norm(self.mount)):.2f}° against the given mount "
                f"({x:.2f}°, {y:.2f}° and {z:.2f}° about the given right, down and forward axes): check base_from_camera"
            )
        if len(self.kept):
            notes.append(f"{len(self.kept)} keyframes keep the given pose, as they share too few points with others")
        return tuple(notes)


def refine_poses(
    images: KeyframeFiles,
    work: WorkFolder,
    options: RefineOptions = RefineOptions(),
    matching: TriangulationOptions = _MATCHING,
    progress: Progress | None = None,
) -> Refinement:
    """Poses of images, from how well they fit each other.

    Args:
        images: With the given poses.
        work: Keeps features, matches and the result.
        options: See there.
        matching: As of `triangulate`.
        progress: As of `build_map`.

    Raises:
        InputError: pycolmap is missing, nothing can be matched, or the images contradict the poses.
    """
    require_pycolmap()
    found = work.arrays("refined/poses", lambda: _refine(images, work, options, matching, progress))
    poses = torch.from_numpy(found["poses"])
    distance, angle = se3.pose_difference(images.map_from_camera, poses)
    moved = np.stack((distance.numpy(), angle.numpy()), 1)
    times = np.median(moved, 0) / (options.position_std, options.rotation_std)
    if times.max() > _LARGEST_MOVE:
        raise InputError(
            f"the images fit the poses only when these move by {np.median(moved[:, 0]):.3g} and turn by "
            f"{np.degrees(np.median(moved[:, 1])):.2g}° in the median: check that poses, camera and images belong together, or "
            "say with --pose-std how far off the poses are"
        )
    return Refinement(poses, moved, found["mount"], found["kept"], float(found["error_px"]))


def _refine(
    images: KeyframeFiles, work: WorkFolder, options: RefineOptions, matching: TriangulationOptions, progress: Progress | None
) -> dict[str, np.ndarray]:
    given, state = images.map_from_camera, _State(images.map_from_camera, np.zeros(3), np.empty(0, np.int64), 0.0)
    matcher, wide = _wide_matcher(images, work, options, matching, progress)
    state = _adjusted(matcher, given, options, AdjustmentOptions(None, (wide, 6.0, 3.0), (wide / 3, 2.0, 1.0)))
    images = replace(images, map_from_camera=state.poses)
    matcher = Matcher(images, work, matching, "refined/second/")
    matcher.match(matcher.scene_depth(progress), progress)
    state = _adjusted(matcher, given, options, AdjustmentOptions(None, (3.0, 2.0), (1.0, 0.5)))
    # Patches are found to a tenth of a pixel, features to a third.
    images = replace(images, map_from_camera=state.poses)
    points = triangulate(images, work, matching, progress, "refined/third/")
    seen = Observations(points.observation_image, points.observation_point, points.pixel)
    last = AdjustmentOptions(None, (2.0, 1.0), (0.5, 0.3))
    state = _adjust_parts(Views(images.cameras, images.map_from_camera), points.xyz, seen, given, options, last)
    return {"poses": state.poses.numpy(), "mount": state.mount, "kept": state.kept, "error_px": np.array(state.error_px)}


def _wide_matcher(
    images: KeyframeFiles, work: WorkFolder, options: RefineOptions, matching: MatchingOptions, progress: Progress | None
) -> tuple[Matcher, float]:
    """Matches with room for wrong poses, and how much that is: pixels of an image of 640."""
    focal = float(images.cameras[0].params[0]) / pixel_scale(images.cameras[0])

    def matcher(error: float, stage: str) -> tuple[Matcher, float]:
        room = matching.epipolar_px + _STDS * np.sqrt(2) * error * focal
        how = replace(matching, epipolar_px=room, max_error_px=room, position_error=options.position_std)
        return Matcher(images, work, how, stage), room

    first, _ = matcher(options.rotation_std, "refined/depth/")
    depth = first.scene_depth(progress)
    if not depth > 0:
        raise InputError("poses cannot be refined: nothing in images that follow each other matches under two directions")
    result, room = matcher(float(np.hypot(options.rotation_std, options.position_std / depth)), "refined/first/")
    result.match(depth, progress)
    return result, room


@dataclass(frozen=True, eq=False)
class _State:
    poses: torch.Tensor
    mount: np.ndarray
    kept: np.ndarray
    error_px: float


def _adjusted(matcher: Matcher, given: torch.Tensor, options: RefineOptions, how: AdjustmentOptions) -> _State:
    tracks = matcher.work.arrays(f"{matcher.stage}tracks", lambda: colmap_tracks(matcher))
    pixel = np.empty((len(tracks["point"]), 2))
    for k in range(len(given)):
        rows = tracks["image"] == k
        pixel[rows] = matcher.features(k)[0][tracks["feature"][rows]]
    seen = Observations(tracks["image"], tracks["point"], pixel)
    views = Views(matcher.images.cameras, matcher.images.map_from_camera)
    return _adjust_parts(views, tracks["xyz"], seen, given, options, how)


def _adjust_parts(
    views: Views, xyz: np.ndarray, seen: Observations, given: torch.Tensor, options: RefineOptions, how: AdjustmentOptions
) -> _State:
    """Adjust each part of the images that shares points, and bring it back to the given poses as one rigid body."""
    how = replace(how, position_std=options.position_std / np.sqrt(3))
    poses, mounts, kept, errors = given.clone(), [], [], []
    for part in _parts(seen, len(given), len(xyz)):
        if len(part) < _FEWEST_KEYFRAMES:
            kept.append(part)
            continue
        rows = np.isin(seen.image, part)
        number = np.zeros(len(given), np.int64)
        number[part] = np.arange(len(part))
        mine = Observations(number[seen.image[rows]], seen.point[rows], seen.pixel[rows])
        part_views = Views([views.cameras[k] for k in part], views.map_from_camera[part])
        centres = given[part, :3, 3].numpy()
        found = adjust(part_views, xyz, mine, how, centres)
        few = np.bincount(mine.image[found.kept], minlength=len(part)) < _FEWEST_SHARED
        if few.all():
            kept.append(part)
            continue
        given_from_adjusted, mount, information = rigid_back(given[part[~few]], found.map_from_camera[~few], options)
        poses[part[~few]] = given_from_adjusted @ found.map_from_camera[~few]
        kept.append(part[few])
        mounts.append((mount, information))
        errors.append(found.error_px[found.kept])
    if not errors:
        raise InputError("poses cannot be refined: too few points are shared by three images or more")
    total = sum(information for _, information in mounts)
    mount = np.linalg.solve(total, sum(information @ vector for vector, information in mounts))
    sure = mount @ total @ mount > _SURE_MOUNT
    return _State(poses, mount if sure else np.zeros(3), np.concatenate(kept), float(np.median(np.concatenate(errors))))


def _parts(seen: Observations, images: int, points: int) -> list[np.ndarray]:
    """Images that are tied to each other by enough points, int64, the largest part first."""
    ones = np.ones(len(seen.point), np.int32)
    sees = coo_array((ones, (seen.image, seen.point)), (images, points)).tocsr()
    shared = (sees @ sees.T).tocoo()
    tied = shared.data >= _FEWEST_SHARED
    graph = coo_array((shared.data[tied], (shared.coords[0][tied], shared.coords[1][tied])), (images, images))
    _, label = connected_components(graph, directed=False)
    return sorted((np.flatnonzero(label == part) for part in range(label.max() + 1)), key=len, reverse=True)


def rigid_back(
    given: torch.Tensor, adjusted: torch.Tensor, options: RefineOptions
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """How adjusted poses as one rigid body fit the given ones best.

    Adjusted rotations may all differ from the given ones in the camera frame: by the error of its mount.

    Args:
        given: map_from_camera, float64 [n, 4, 4].
        adjusted: The same in the adjustment's frame.
        options: How well the given ones are known.

    Returns:
        given_from_adjusted float64 [4, 4]; the given camera's axes in the adjusted one's, rotation vector [3]; its information
        [3, 3], the inverse of its covariance.
    """
    position_std, rotation_std = (value / np.sqrt(3) for value in (options.position_std, options.rotation_std))
    middle = adjusted[:, :3, 3].mean(0)
    start = torch.eye(4, dtype=torch.float64)
    u, _, vt = torch.linalg.svd((given[:, :3, :3] @ adjusted[:, :3, :3].transpose(1, 2)).sum(0))
    start[:3, :3] = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.det(u @ vt))], dtype=torch.float64)) @ vt
    start[:3, 3] = given[:, :3, 3].mean(0)
    moved = adjusted.clone()
    moved[:, :3, 3] -= middle

    def whole(x: np.ndarray) -> torch.Tensor:
        turned = se3.so3_exp(torch.from_numpy(x[3:6])) @ start[:3, :3]
        return se3.from_rotation_translation(turned, start[:3, 3] + torch.from_numpy(x[:3]))

    def residuals(x: np.ndarray) -> np.ndarray:
        placed = whole(x) @ moved
        mount = se3.so3_exp(torch.from_numpy(x[6:]))
        turned = se3.so3_log(given[:, :3, :3].transpose(1, 2) @ placed[:, :3, :3] @ mount)
        away = placed[:, :3, 3] - given[:, :3, 3]
        parts = away / position_std, turned / rotation_std, torch.from_numpy(x[6:]) / rotation_std
        return torch.cat([part.reshape(-1) for part in parts]).numpy()

    scale = np.repeat((position_std, rotation_std, rotation_std), 3)
    found = least_squares(residuals, np.zeros(9), loss="soft_l1", x_scale=scale)
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = -middle
    spread = max(1.0, float(np.mean(found.fun[:-3] ** 2)))
    normal = found.jac.T @ found.jac / spread
    rest = normal[6:, :6] @ np.linalg.solve(normal[:6, :6], normal[:6, 6:])
    return whole(found.x) @ shift, found.x[6:], normal[6:, 6:] - rest

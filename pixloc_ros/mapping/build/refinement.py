# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses that somebody else gave (a LiDAR SLAM and a mount measured by hand), made as exact as the images are.

Features are matched with room for wrong poses, poses and points adjusted, and matched again with what is allowed then. The given
poses are priors: they hold scale, place and direction of the map, which images alone do not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...errors import InputError
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.work_folder import WorkFolder
from .adjustment import Bundle, Rays, adjust, errors_px
from .building import Progress
from .given_poses import Belief, RefineOptions
from .keyframes import KeyframeFiles
from .matching import Matcher, MatchingOptions, colmap_tracks, pixel_scale, require_pycolmap
from .observations import Observations, Views, rows_by_image
from .triangulation import TriangulationOptions, triangulate

_STDS = 2.5  # of a pose's error that matching leaves room for
_FEWEST_SHARED = 15  # points that tie a keyframe to others
_LAST_ROUNDS = 4  # in which poses and what is believed of the given ones settle
_SURE_MOUNT = 16.3  # 99.9 % of the squared distances, three degrees of freedom
_KNOWN, _MATCHING = RefineOptions(), TriangulationOptions()
_LARGEST_MOVE = 6.0  # standard deviations, in the median


@dataclass(frozen=True, eq=False)
class Refinement:
    """Poses, and what was found.

    Attributes:
        map_from_camera: float64 [K, 4, 4].
        moved: float64 [K, 2], by how much each has moved (units of the map) and turned (radians).
        mount: float64 [6], the right camera in the given one's frame: rotation vector (radians) and place.
        mount_information: float64 [6, 6], the inverse of its covariance.
        stds: float64 [2], of the given poses' own errors as the images tell: of each axis, units of the map and radians.
        kept: int64 of the keyframes that too little ties to others: only the mount's error is taken from their given pose.
        error_px: Median reprojection error after.
    """

    map_from_camera: torch.Tensor
    moved: np.ndarray
    mount: np.ndarray
    mount_information: np.ndarray
    stds: np.ndarray
    kept: np.ndarray
    error_px: float

    @property
    def notes(self) -> tuple[str, ...]:
        """For people."""
        (metres, angle), (far, turned) = np.median(self.moved, 0), self.moved.max(0)
        own_metres, own_angle = np.sqrt(3) * self.stds
        notes = [
            f"poses were refined: moved by {metres:.3g} and turned by {np.degrees(angle):.2g}° in the median, at most {far:.3g} "
            f"and {np.degrees(turned):.2g}°; apart from the mount they were off by about {own_metres:.2g} and "
            f"{np.degrees(own_angle):.2g}° each; points reproject to {self.error_px:.2f} px"
        ]
        axes = "the given right, down and forward axes"
        if self._sure(slice(0, 3)):
            x, y, z = np.degrees(self.mount[:3])
            notes.append(
                f"the camera is turned by {np.degrees(np.linalg.norm(self.mount[:3])):.2f}° against the given mount "
                f"({x:.2f}°, {y:.2f}° and {z:.2f}° about {axes}): check base_from_camera"
            )
        if self._sure(slice(3, 6)):
            x, y, z = self.mount[3:]
            notes.append(
                f"the camera sits {np.linalg.norm(self.mount[3:]):.3f} from the given mount ({x:.3f}, {y:.3f} and {z:.3f} along "
                f"{axes}): check base_from_camera"
            )
        if len(self.kept):
            notes.append(f"{len(self.kept)} keyframes keep the given pose on the mount, as they share too few points with others")
        return tuple(notes)

    def _sure(self, part: slice) -> bool:
        covariance = np.linalg.inv(self.mount_information)[part, part]
        return bool(self.mount[part] @ np.linalg.solve(covariance, self.mount[part]) > _SURE_MOUNT)


def refine_poses(
    images: KeyframeFiles,
    work: WorkFolder,
    options: RefineOptions = _KNOWN,
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
    mount, information = found["mount"], found["mount_information"]
    return Refinement(poses, moved, mount, information, found["stds"], found["kept"], float(found["error_px"]))


def _refine(
    images: KeyframeFiles, work: WorkFolder, options: RefineOptions, matching: TriangulationOptions, progress: Progress | None
) -> dict[str, np.ndarray]:
    given = images.map_from_camera.numpy()
    matcher, wide = _wide_matcher(images, work, options, matching, progress)
    state = _adjusted_matches(matcher, given, options, ((wide / 3, wide), (2.0, 6.0), (1.0, 3.0)))
    images = replace(images, map_from_camera=torch.from_numpy(state.poses))
    matcher = Matcher(images, work, matching, "refined/second/")
    matcher.match(matcher.scene_depth(progress), progress)
    state = _adjusted_matches(matcher, given, options, ((1.0, 3.0), (0.5, 2.0)))
    # Patches are found to a tenth of a pixel, features to a third.
    images = replace(images, map_from_camera=torch.from_numpy(state.poses))
    points = triangulate(images, work, matching, progress, "refined/third/")
    seen = Observations(points.observation_image, points.observation_point, points.pixel)
    state = adjusted(Views(images.cameras, images.map_from_camera), points.xyz, seen, given, options, ((0.5, 2.0), (0.3, 1.0)))
    return {name: np.array(value) for name, value in vars(state).items()}


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
class AdjustedPoses:
    """Poses [K, 4, 4], the rest as of `Refinement`."""

    poses: np.ndarray
    mount: np.ndarray
    mount_information: np.ndarray
    stds: np.ndarray
    kept: np.ndarray
    error_px: float


def _adjusted_matches(matcher: Matcher, given: np.ndarray, options: RefineOptions, rounds: Sequence[tuple]) -> AdjustedPoses:
    tracks = matcher.work.arrays(f"{matcher.stage}tracks", lambda: colmap_tracks(matcher))
    pixel = np.empty((len(tracks["point"]), 2))
    for k in range(len(given)):
        rows = tracks["image"] == k
        pixel[rows] = matcher.features(k)[0][tracks["feature"][rows]]
    seen = Observations(tracks["image"], tracks["point"], pixel)
    views = Views(matcher.images.cameras, matcher.images.map_from_camera)
    return adjusted(views, tracks["xyz"], seen, given, options, rounds)


def adjusted(
    views: Views,
    xyz: np.ndarray,
    seen: Observations,
    given: np.ndarray,
    options: RefineOptions,
    rounds: Sequence[tuple[float, float]],
) -> AdjustedPoses:
    """Poses and points that fit the observations and the given poses best.

    Args:
        views: K images, with the poses to begin with.
        xyz: float64 [P, 3].
        seen: An image sees a point once.
        given: map_from_camera, float64 [K, 4, 4].
        options: See there.
        rounds: In each, errors above the first number of pixels count little, and observations beyond the second are left out.

    Raises:
        InputError: No image shares enough points with others.
    """
    rays = _rays(views.cameras, seen)
    bundle = Bundle(np.concatenate((np.eye(4)[None], views.map_from_camera.numpy())), xyz)
    belief = Belief.of(options)
    kept = _twice_seen(rays.point, np.ones(len(rays.point), bool))
    rounds = [*rounds, *rounds[-1:] * _LAST_ROUNDS]
    for number, (loss, most) in enumerate(rounds):
        if not kept.any():
            raise InputError("poses cannot be refined: too few points are shared by three images or more")
        used = rays.only(kept)
        bundle = adjust(bundle, used, belief.links(given), loss)
        if number >= len(rounds) - 1 - _LAST_ROUNDS:
            belief = belief.learned(bundle, used, given, options, loss)
        kept = _twice_seen(rays.point, kept & (errors_px(bundle, rays) <= most))
    used = rays.only(kept)
    bundle = adjust(bundle, used, belief.links(given), loss)
    few = np.bincount(used.image - 1, minlength=len(given)) < _FEWEST_SHARED
    if few.all():
        raise InputError("poses cannot be refined: too few points are shared by three images or more")
    error = float(np.median(errors_px(bundle, used)))
    return AdjustedPoses(bundle.poses[1:], belief.mount, belief.information, belief.stds, np.flatnonzero(few), error)


def _rays(cameras: Sequence[Camera], seen: Observations) -> Rays:
    """Observations as the adjustment takes them, in pixels of an image of 640; image 0 is the map itself, which sees nothing."""
    ray, focal = np.empty((len(seen.point), 3)), np.empty(len(seen.point))
    for k, rows in enumerate(rows_by_image(seen.image, len(cameras))):
        directions, _ = cameras[k].unproject(torch.from_numpy(seen.pixel[rows]))
        ray[rows] = torch.nn.functional.normalize(directions, dim=1).numpy()
        focal[rows] = float(cameras[k].params[0]) / pixel_scale(cameras[k])
    return Rays(seen.image + 1, seen.point, ray, focal, np.zeros(len(seen.point), np.int64))


def _twice_seen(point: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Those of the observations kept (bool [M]) whose point has another."""
    return kept & (np.bincount(point[kept], minlength=int(point.max(initial=0)) + 1) >= 2)[point]

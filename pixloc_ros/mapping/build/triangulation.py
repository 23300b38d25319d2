# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Points by triangulation against known poses.

SIFT features are matched where the poses allow it, pycolmap (COLMAP's own code; an optional dependency) makes points of the
matches, and every point is then searched for as a patch in all keyframes that should see it. That gives positions to a fraction
of a pixel and more observations, and shows what stands still: a thing that moves is found where it should be by few keyframes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.spatial import cKDTree

from ...errors import InputError
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.work_folder import WorkFolder
from .building import Progress
from .keyframes import KeyframeFiles
from .matching import Matcher, MatchingOptions, colmap_tracks, pixel_scale, require_pycolmap
from .observations import Observations, Views, expected_error, project, reprojection_errors, rows_by_image, surest_points
from .patch_tracks import SurfacePatches, cut_patches, neighbours, patch_pixels, refine_points, track_patches

_TINY = np.finfo(float).tiny
_POINT_DEPTH_SIGMA = 0.5
_SEEN_ANGLE_COSINE, _SEEN_SCALE = float(np.cos(np.radians(20.0))), 1.6
_PATCH_BORDER_PX = 8
_CACHED_HOMES = 96
_SURFACE_POINTS, _SURFACE_REACH_PX = 10, 20.0
_SURFACE_TOLERANCE, _LARGEST_SLANT = 0.02, 0.3  # of the depth
_SURFACE_STIFFNESS = 10.0  # square pixels: what the fit must outweigh


@dataclass(frozen=True)
class TriangulationOptions(MatchingOptions):
    """How points are triangulated.

    Attributes:
        features, neighbours, min_angle_deg, max_error_px: As of `MatchingOptions`.
        min_seen: A point is a thing that moved where no more than this share of the keyframes that should see it find it, or
            twice that where only two do; 0 believes all.
        look: Keyframes around in which a point is searched for.
        surest: A point stays where it is among so many of the surest of a keyframe, spread over its image; 0 keeps all.
    """

    min_seen: float = 0.2
    look: int = 24
    surest: int = 200

    def __post_init__(self) -> None:
        if min(self.features, self.neighbours, self.look) < 1 or not (
            self.min_angle_deg > 0 and self.max_error_px > 0 and 0 <= self.min_seen <= 1 and self.surest >= 0
        ):
            raise InputError(
                "triangulation: counts, angle and error must be above 0, min_seen between 0 and 1, surest not negative"
            )


@dataclass(frozen=True, eq=False)
class Triangulation:
    """Points and their observations.

    Attributes:
        xyz: float64 [P, 3], map frame.
        observation_image: int64 [M].
        observation_point: int64 [M], each pair once.
        pixel: float64 [M, 2], where the images show the points.
        error_px: float64 [M], distance between observation and projection.
        rejected: Points left out, by reason.
    """

    xyz: np.ndarray
    observation_image: np.ndarray
    observation_point: np.ndarray
    pixel: np.ndarray
    error_px: np.ndarray
    rejected: dict[str, int]


def triangulate(
    images: KeyframeFiles,
    work: WorkFolder,
    options: TriangulationOptions = TriangulationOptions(),
    progress: Progress | None = None,
    stage: str = "",
) -> Triangulation:
    """Points of images with known poses.

    Args:
        images: In the order of time.
        work: Keeps features and matches.
        options: See there.
        progress: As of `build_map`.
        stage: As of `Matcher`.

    Raises:
        InputError: pycolmap is missing, or no points come out.
    """
    require_pycolmap()
    matcher = Matcher(images, work, options, stage)
    depth = matcher.scene_depth(progress)
    if not depth > 0:
        raise _no_points()
    matcher.match(depth, progress)
    tracks = work.arrays(f"{stage}tracks", lambda: colmap_tracks(matcher))
    if not len(tracks["xyz"]):
        raise _no_points()
    return _search(tracks, matcher, depth, options, progress)


def _no_points() -> InputError:
    return InputError(
        "no points could be triangulated: check that poses, camera and images belong together, and that the camera moves "
        "sideways or forward, not only turns (or use a bag with a depth topic)"
    )


def _search(
    tracks: dict[str, np.ndarray], matcher: Matcher, depth: float, options: TriangulationOptions, progress: Progress | None
) -> Triangulation:
    """Search for every point in the keyframes that should see it, refine it, and leave out what does not hold.

    An observation is where the point's patch was found. Matches that the patch does not confirm are twice as far off in the
    median; they count only in telling what stands still.
    """
    images, work = matcher.images, matcher.work
    cameras, poses = images.cameras, images.map_from_camera
    centres, count = poses[:, :3, 3].numpy(), len(poses)
    near = neighbours(poses, depth, options.look)
    homes = _Homes(tracks, images)
    home, place = homes.home, homes.place
    xyz = work.arrays(f"{matcher.stage}centres", lambda: {"xyz": homes.centres()})["xyz"]
    at_home = rows_by_image(home, count)
    matched = [place[tracks["point"][rows]] for rows in rows_by_image(tracks["image"], count)]

    def look(k: int) -> dict[str, np.ndarray]:
        candidates = np.unique(np.concatenate([*(at_home[n] for n in near[k]), matched[k]]))
        visible = should_see(xyz[candidates], centres[home[candidates]], cameras[k], poses[k])
        known = np.isin(candidates, matched[k])
        candidates, visible, known = (v[visible | known] for v in (candidates, visible, known))
        pixel, tracked = track_patches(homes.patches(candidates), images.grey(k), cameras[k], poses[k])
        seen = candidates[visible & (tracked | known)]
        return {"point": candidates[tracked], "pixel": pixel[tracked], "expected": candidates[visible], "seen": seen}

    times = np.zeros(len(home), np.int64)
    looked = []
    for k in range(count):
        if progress:
            progress(k, count, "searching for points")
        looked.append(work.arrays(f"{matcher.stage}found/{k:06d}", lambda k=k: look(k)))
        times[looked[-1].pop("seen")] += 1
    image, view = (np.repeat(np.arange(count), [len(one[name]) for one in looked]) for name in ("point", "expected"))
    points, pixels, expected = (np.concatenate([one[name] for one in looked]) for name in ("point", "pixel", "expected"))
    found = Observations(image, points, pixels)
    return _filter(xyz, Views(cameras, poses), found, Observations(view, expected), times, options)


class _Homes:
    """A patch for every point, on the surface around it. Of all points they would not fit into memory: they are cut when needed.

    Attributes:
        home: int64 [P], rising, the image that cuts the patch: of those that see the point the one in the middle by distance.
        place: int64 [P], where each point of the tracks went.
    """

    def __init__(self, tracks: dict[str, np.ndarray], images: KeyframeFiles) -> None:
        self._images, self._xyz, count = images, tracks["xyz"], len(images.paths)
        distance = np.linalg.norm(self._xyz[tracks["point"]] - images.map_from_camera[:, :3, 3].numpy()[tracks["image"]], axis=1)
        order = np.lexsort((tracks["image"], distance, tracks["point"]))
        start = np.searchsorted(tracks["point"][order], np.arange(len(self._xyz) + 1))
        self._home = tracks["image"][order][(start[:-1] + start[1:] - 1) // 2]
        self._seen = [tracks["point"][rows] for rows in rows_by_image(tracks["image"], count)]
        self.home, self.place = np.sort(self._home), np.empty(len(self._xyz), np.int64)
        self.place[np.argsort(self._home, kind="stable")] = np.arange(len(self._xyz))
        self._first = np.searchsorted(self.home, np.arange(count))
        self._cut = lru_cache(_CACHED_HOMES)(self._cut)

    def centres(self) -> np.ndarray:
        """The middles of all patches, float64 [P, 3]."""
        return np.concatenate([self._cut(k).xyz for k in np.unique(self.home).tolist()])

    def patches(self, points: np.ndarray) -> SurfacePatches:
        """Of some points, int64 [n] rising."""
        if not len(points):
            return self._cut(int(self.home[0])).only(points)
        homes, starts = np.unique(self.home[points], return_index=True)
        parts = zip(homes.tolist(), np.split(points, starts[1:]))
        return SurfacePatches.concatenate([self._cut(k).only(part - self._first[k]) for k, part in parts])

    def _cut(self, k: int) -> SurfacePatches:
        images, seen = self._images, np.unique(self._seen[k])
        pose, camera = images.map_from_camera[k], images.cameras[k]
        pixels, _, depth = project(camera, se3.inverse(pose), self._xyz[seen])
        here = self._home[seen] == k
        inverse = _surface(pixels, 1 / depth, here)
        return cut_patches(images.grey(k), camera, pose, pixels[here], 1 / inverse)


def _surface(pixels: np.ndarray, inverse_depth: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Inverse depth of the patches' pixels, [n, S * S], of the points `which` (bool [m]) of an image.

    On a plane it is linear in the pixels: the slope is fitted to the nearest points. Where those lie on no plane, as at the edges
    of things, the patch faces the camera.
    """
    around = patch_pixels(np.zeros((1, 2)))[0]
    middle = inverse_depth[which][:, None]
    if len(pixels) <= _SURFACE_POINTS:
        return np.repeat(middle, len(around), 1)
    _, near = cKDTree(pixels).query(pixels[which], k=_SURFACE_POINTS + 1)
    offset = pixels[near] - pixels[which][:, None]
    step = inverse_depth[near] / middle - 1  # relative to the point itself
    weight = 1 / (1 + (offset / _SURFACE_REACH_PX) ** 2).prod(-1)
    for _ in range(3):
        weighted = offset * weight[..., None]
        normal = np.einsum("nki,nkj->nij", weighted, offset) + _SURFACE_STIFFNESS * np.eye(2)
        slope = np.linalg.solve(normal, np.einsum("nki,nk->ni", weighted, step)[..., None])[..., 0]
        error = step - np.einsum("nki,ni->nk", offset, slope)
        weight = 1 / (1 + (error / _SURFACE_TOLERANCE) ** 2) ** 2
    planar = np.median(np.abs(error), axis=1) < _SURFACE_TOLERANCE
    change = np.where(planar[:, None], slope @ around.T, 0.0)
    return middle * (1 + np.clip(change, -_LARGEST_SLANT, _LARGEST_SLANT))


def should_see(xyz: np.ndarray, home_centres: np.ndarray, camera: Camera, map_from_camera: torch.Tensor) -> np.ndarray:
    """bool [n]: which points lie well inside an image, in much the direction and distance that their home image has."""
    pixels, valid, _ = project(camera, se3.inverse(map_from_camera), xyz)
    inside = valid & camera.in_image(torch.from_numpy(pixels), _PATCH_BORDER_PX).numpy()
    here, home = xyz - map_from_camera[:3, 3].numpy(), xyz - home_centres
    distance, home_distance = np.linalg.norm(here, axis=1), np.linalg.norm(home, axis=1)
    cosine = (here * home).sum(1) / np.maximum(distance * home_distance, _TINY)
    scale = distance / np.maximum(home_distance, _TINY)
    return inside & (cosine > _SEEN_ANGLE_COSINE) & (scale < _SEEN_SCALE) & (scale > 1 / _SEEN_SCALE)


def _filter(
    xyz: np.ndarray, views: Views, found: Observations, expected: Observations, times: np.ndarray, options: TriangulationOptions
) -> Triangulation:
    """Refine points and leave out what does not hold.

    Args:
        xyz: float64 [P, 3].
        views: Of the keyframes.
        found: Where patches were found.
        expected: Every pair in which the point should be seen.
        times: int64 [P], in how many of those it was found or matched.
        options: See there.
    """
    point, count = found.point, len(xyz)
    # Any two views of a moving thing may agree on a place; three hardly do.
    limit = options.min_seen * np.where(times < 3, 2, 1) * np.bincount(expected.point, minlength=count)
    moved = (times <= limit) & (options.min_seen > 0)
    good = ~moved[point]
    xyz = refine_points(xyz, views, found.only(good), _POINT_DEPTH_SIGMA)
    error = np.full(len(point), np.inf)
    camera_from_map = [se3.inverse(pose) for pose in views.map_from_camera]
    error[good] = reprojection_errors(xyz, views.cameras, camera_from_map, found.only(good))
    error /= np.array([pixel_scale(camera) for camera in views.cameras])[found.image]
    good &= error <= options.max_error_px
    few = ~moved & (np.bincount(point[good], minlength=count) < 2)
    narrow = ~moved & ~few & (_largest_angle(xyz, views, found.only(good)) < np.radians(options.min_angle_deg))
    rejected = {
        "moved or hidden: few keyframes that should see it do": int(moved.sum()),
        "found in fewer than two keyframes within the largest reprojection error": int(few.sum()),
        "seen under too small an angle": int(narrow.sum()),
    }
    good &= ~(moved | few | narrow)[point]
    if options.surest and good.any():
        seen = found.only(good)
        pairs = np.union1d(expected.image * count + expected.point, seen.image * count + seen.point)
        unsure = expected_error(xyz, views, seen, error[good], Observations(pairs // count, pairs % count))
        surplus = np.bincount(seen.point, minlength=count) > 0
        surplus &= ~surest_points(xyz, views, seen, unsure, options.surest)
        rejected["less sure than enough others around"] = int(surplus.sum())
        good &= ~surplus[point]
    if not good.any():
        raise _no_points()
    used, renumbered = np.unique(point[good], return_inverse=True)
    return Triangulation(xyz[used], found.image[good], renumbered, found.pixel[good], error[good], rejected)


def _largest_angle(xyz: np.ndarray, views: Views, seen: Observations) -> np.ndarray:
    """Radians [P]: the largest angle of an observation's ray with the mean ray of its point, times two."""
    point = seen.point
    rays = xyz[point] - views.map_from_camera[:, :3, 3].numpy()[seen.image]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), _TINY)
    mean = np.stack([np.bincount(point, rays[:, axis], len(xyz)) for axis in range(3)], 1)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    angle = np.zeros(len(xyz))
    np.maximum.at(angle, point, np.arccos(np.clip((rays * mean[point]).sum(1), -1, 1)))
    return 2 * angle

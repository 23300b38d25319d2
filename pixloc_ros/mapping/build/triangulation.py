# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Points by triangulation against known poses.

SIFT features are matched where the poses allow it, pycolmap (COLMAP's own code; an optional dependency) makes points of
the matches, and every point is then looked for as a patch in all keyframes that should see it: that gives positions to a
fraction of a pixel, more observations, and tells what stands still. A thing that moves is found where it should be by
few of the keyframes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from ...errors import InputError
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.work_folder import WorkFolder
from .building import Progress
from .patch_tracks import SurfacePatches, cut_patches, neighbours, patch_pixels, refine_points, track_patches
from .point_uncertainty import expected_error, surest_points

_SIFT_CONTRAST = 0.005
_EPIPOLAR_PX = 2.0
_RATIO, _LEAST_COSINE = 0.85, 0.7
_NEAREST = 0.1  # of the scene's depth: nothing is looked for nearer
_FEWEST_MATCHES = 8
_LARGEST_TURN_COSINE = 0.5
_WORKING_SIDE_PX = 640.0  # thresholds in pixels are meant for images of this side
_POINT_DEPTH_SIGMA = 0.5
_SEEN_ANGLE_COSINE, _SEEN_SCALE = float(np.cos(np.radians(20.0))), 1.6
_PATCH_BORDER_PX = 8
_SURFACE_POINTS, _SURFACE_REACH_PX = 10, 20.0
_SURFACE_TOLERANCE, _LARGEST_SLANT = 0.02, 0.3  # of the depth
_SURFACE_STIFFNESS = 10.0  # square pixels: what the fit must outweigh


@dataclass(frozen=True)
class TriangulationOptions:
    """features: SIFT features per image at most. neighbours: keyframes that each is matched with. min_angle_deg: least
    angle between two rays of a point. max_error_px: largest reprojection error, for images of 640 pixels. min_seen: a point
    is a thing that moved where no more than this share of the keyframes that should see it find it, or twice that where only
    two do; 0 believes all. look: keyframes around in which a point is looked for. surest: a point stays where it is among so many
    of the surest of a keyframe, spread over its image; 0 keeps all.
    """

    features: int = 4000
    neighbours: int = 12
    min_angle_deg: float = 1.0
    max_error_px: float = 3.0
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
    """xyz float64 [P, 3], map frame. observation_image, observation_point int64 [M], each pair once. error_px float64 [M]:
    distance between observation and projection. rejected: points left out, by reason."""

    xyz: np.ndarray
    observation_image: np.ndarray
    observation_point: np.ndarray
    error_px: np.ndarray
    rejected: dict[str, int]


def require_pycolmap():
    """The module. Raises InputError where it is not installed."""
    try:
        import pycolmap
    except ImportError:
        raise InputError(
            "points are triangulated by pycolmap, which is not installed: python3 -m pip install 'pixloc_ros[sfm]' "
            "(or use a bag with a depth topic)"
        ) from None
    return pycolmap


def triangulate(
    load_grey: Callable[[int], np.ndarray],
    load_mask: Callable[[int], np.ndarray | None],
    cameras: list[Camera],
    map_from_camera: torch.Tensor,
    work: WorkFolder,
    options: TriangulationOptions = TriangulationOptions(),
    progress: Progress | None = None,
) -> Triangulation:
    """Points of images with known poses.

    load_grey: image by number, uint8 [H, W], of its camera's size. load_mask: bool [H, W], where points may be, or None.
    cameras: per image. map_from_camera: float64 [K, 4, 4], in the order of time. work: keeps features and matches.

    Raises InputError where pycolmap is missing or no points come out.
    """
    require_pycolmap()
    matcher = _Matcher(load_grey, load_mask, cameras, map_from_camera, work, options)
    depth = matcher.scene_depth(progress)
    matcher.match(depth, progress)
    tracks = work.arrays("tracks", lambda: _colmap_tracks(matcher, options))
    if not len(tracks["xyz"]):
        raise _no_points()
    return _look_for(tracks, load_grey, cameras, map_from_camera, depth, options, progress)


def _no_points() -> InputError:
    return InputError(
        "no points could be triangulated: check that poses, camera and images belong together, and that the camera moves "
        "sideways or forward, not only turns (or use a bag with a depth topic)"
    )


class _Matcher:
    """Features of the images and their matches, kept in the work folder."""

    def __init__(self, load_grey, load_mask, cameras, map_from_camera, work, options) -> None:
        self.load_grey, self.load_mask, self.cameras, self.work, self.options = (load_grey, load_mask, cameras, work, options)
        self.poses = map_from_camera.numpy()
        self.count = len(self.poses)
        self._features: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.pairs: dict[tuple[int, int], np.ndarray] = {}

    def features(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels [n, 2], unit rays [n, 3] in the camera frame, descriptors float32 [n, 128] of unit length."""
        if k not in self._features:
            if len(self._features) > 4 * self.options.neighbours:
                self._features.pop(next(iter(self._features)))
            stored = self.work.arrays(f"features/{k:06d}", lambda: self._extract(k))
            pixels = stored["pixels"].astype(np.float64)
            rays, _ = self.cameras[k].unproject(torch.from_numpy(pixels))
            rays = torch.nn.functional.normalize(rays, dim=1).numpy()
            # Hellinger's kernel in place of the plain one (RootSIFT).
            descriptors = np.sqrt(stored["descriptors"].astype(np.float32))
            descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6)
            self._features[k] = pixels, rays, descriptors
        return self._features[k]

    def _extract(self, k: int) -> dict[str, np.ndarray]:
        mask = self.load_mask(k)
        sift = _sift(self.options.features)
        keypoints, descriptors = sift.detectAndCompute(self.load_grey(k), None if mask is None else mask.astype(np.uint8))
        pixels = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
        if descriptors is None:
            descriptors = np.empty((0, 128))
        _, first = np.unique(pixels, axis=0, return_index=True)  # one of several directions of the same spot
        return {"pixels": pixels[first], "descriptors": descriptors[first].astype(np.uint8)}

    def scene_depth(self, progress: Progress | None) -> float:
        """Median distance of points between keyframes that follow each other, metres."""

        def measure() -> dict[str, np.ndarray]:
            depths = []
            for k in range(self.count - 1):
                if progress:
                    progress(k, self.count, "features")
                depths.append(self._depths(k, k + 1, self._matches(k, k + 1, None)))
            depths = np.concatenate(depths) if depths else np.empty(0)
            return {"depth": np.array(np.median(depths) if len(depths) else 0.0)}

        depth = float(self.work.arrays("depth", measure)["depth"])
        if not depth > 0:
            raise _no_points()
        return depth

    def match(self, depth: float, progress: Progress | None) -> None:
        """Match each keyframe with those around it."""
        near = neighbours(torch.from_numpy(self.poses), depth, self.options.neighbours + 1)
        for k in range(self.count):
            if progress:
                progress(k, self.count, "matching")
            # Nearness is not mutual: a pair belongs to its later image.
            earlier = sorted({n for n in near[k] if n < k} | {n for n in range(k) if k in near[n]})
            earlier = [n for n in earlier if self.poses[k][:3, 2] @ self.poses[n][:3, 2] > _LARGEST_TURN_COSINE]
            stored = self.work.arrays(f"matches/{k:06d}", lambda k=k, earlier=earlier: self._match(k, earlier, depth))
            for n in earlier:
                self.pairs[n, k] = stored[str(n)]

    def _match(self, k: int, earlier: list[int], depth: float) -> dict[str, np.ndarray]:
        return {str(n): self._matches(n, k, depth).astype(np.int32) for n in earlier}

    def _matches(self, a: int, b: int, depth: float | None) -> np.ndarray:
        """Rows [m, 2] of features of two images that look alike and lie where the poses allow it.

        Allowed is what lies near the epipolar plane of the other and not beyond where the nearest point could be.
        """
        (_, rays_a, descriptors_a), (_, rays_b, descriptors_b) = self.features(a), self.features(b)
        if not (len(rays_a) and len(rays_b)):
            return np.empty((0, 2), np.int64)
        b_from_a = np.linalg.inv(self.poses[b]) @ self.poses[a]
        turned = rays_a @ b_from_a[:3, :3].T
        baseline = float(np.linalg.norm(b_from_a[:3, 3]))
        tolerance = (
            _EPIPOLAR_PX * _pixel_scale(self.cameras[b]) / float(min(c.params[0] for c in (self.cameras[a], self.cameras[b])))
        )
        likeness = descriptors_a @ descriptors_b.T
        if baseline > 1e-6:
            direction = b_from_a[:3, 3] / baseline
            normal_a, normal_b = np.cross(direction, turned), np.cross(direction, rays_b)
            volume = normal_a @ rays_b.T
            limit_a = np.maximum(np.linalg.norm(normal_a, axis=1), 1e-6)[:, None] * tolerance
            limit_b = np.maximum(np.linalg.norm(normal_b, axis=1), 1e-6)[None] * tolerance
            likeness[np.abs(volume) > np.minimum(limit_a, limit_b)] = -1.0
        if depth is not None:
            reach = min(np.arctan2(baseline, _NEAREST * depth) + tolerance, np.pi)
            likeness[turned @ rays_b.T < np.cos(reach)] = -1.0
        best_b = likeness.argmax(1)
        rows = np.arange(len(best_b))
        best = likeness[rows, best_b]
        mutual = likeness.argmax(0)[best_b] == rows
        likeness[rows, best_b] = -1.0
        second = likeness.max(1)
        near, far = np.sqrt(np.maximum(2 - 2 * best, 0)), np.sqrt(np.maximum(2 - 2 * second, 0))
        good = mutual & (best > _LEAST_COSINE) & (near < _RATIO * far)
        return np.stack((rows[good], best_b[good]), 1)

    def _depths(self, a: int, b: int, matches: np.ndarray) -> np.ndarray:
        """Distances from image b of matched features that are seen under at least a degree."""
        b_from_a = np.linalg.inv(self.poses[b]) @ self.poses[a]
        ray_a = self.features(a)[1][matches[:, 0]] @ b_from_a[:3, :3].T
        ray_b = self.features(b)[1][matches[:, 1]]
        cosine = (ray_a * ray_b).sum(1)
        # The nearest points of two lines: from b's centre along ray_b, from a's along ray_a.
        along_a, along_b = ray_a @ b_from_a[:3, 3], ray_b @ b_from_a[:3, 3]
        sine_squared = np.maximum(1 - cosine**2, 1e-12)
        distance = (along_b - cosine * along_a) / sine_squared
        return distance[(sine_squared > np.sin(np.radians(1.0)) ** 2) & (distance > 0)]


def _sift(features: int):
    try:
        return cv2.SIFT_create(features, 3, _SIFT_CONTRAST, enable_precise_upscale=True)
    except TypeError:  # OpenCV before 4.8: positions a quarter of a pixel off, which the search for patches mends
        return cv2.SIFT_create(features, 3, _SIFT_CONTRAST)


def _pixel_scale(camera: Camera) -> float:
    return max(1.0, max(camera.width, camera.height) / _WORKING_SIDE_PX)


def _colmap_tracks(matcher: _Matcher, options: TriangulationOptions) -> dict[str, np.ndarray]:
    """Points that COLMAP makes of the matches: xyz [P, 3]; image and point [M] of their observations."""
    pycolmap = require_pycolmap()
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value if hasattr(pycolmap.logging, "ERROR") else 2
    with tempfile.TemporaryDirectory(dir=matcher.work.folder) as folder:
        database = pycolmap.Database.open(str(Path(folder) / "database.db"))
        model = pycolmap.Reconstruction()
        numbers: dict[tuple, int] = {}
        for k, camera in enumerate(matcher.cameras):
            name, params = camera.to_colmap()
            key = (name, camera.width, camera.height, *params)
            if key not in numbers:
                numbers[key] = number = len(numbers) + 1
                colmap_camera = pycolmap.Camera(
                    camera_id=number, model=name, width=camera.width, height=camera.height, params=params
                )
                model.add_camera_with_trivial_rig(colmap_camera)
                database.write_camera(colmap_camera, use_camera_id=True)
                database.write_rig(model.rigs[number], use_rig_id=True)
            pixels = matcher.features(k)[0] + 0.5  # COLMAP's pixel (0, 0) is a corner
            image = pycolmap.Image(
                f"{k:06d}", points2D=[pycolmap.Point2D(p) for p in pixels], camera_id=numbers[key], image_id=k + 1
            )
            camera_from_map = np.linalg.inv(matcher.poses[k])
            model.add_image_with_trivial_frame(
                image, pycolmap.Rigid3d(pycolmap.Rotation3d(camera_from_map[:3, :3]), camera_from_map[:3, 3])
            )
            database.write_frame(model.frames[k + 1], use_frame_id=True)
            database.write_image(model.images[k + 1], use_image_id=True)
            database.write_keypoints(k + 1, pixels.astype(np.float32))
        for (a, b), matches in matcher.pairs.items():
            if len(matches) >= _FEWEST_MATCHES:
                geometry = pycolmap.TwoViewGeometry()
                geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
                geometry.inlier_matches = matches.astype(np.uint32)
                database.write_matches(a + 1, b + 1, matches.astype(np.uint32))
                database.write_two_view_geometry(a + 1, b + 1, geometry)
        database.close()
        settings = pycolmap.IncrementalPipelineOptions()
        settings.num_threads = 1  # several threads would not give the same points twice
        settings.extract_colors = False
        error = 2 * options.max_error_px * _pixel_scale(matcher.cameras[0])  # refined below
        settings.triangulation.min_angle = settings.mapper.filter_min_tri_angle = options.min_angle_deg
        settings.mapper.filter_max_reproj_error = error
        settings.triangulation.ignore_two_view_tracks = False
        model = pycolmap.triangulate_points(model, str(Path(folder) / "database.db"), folder, folder, options=settings)
        xyz, image, point = [], [], []
        for number in sorted(model.points3D):
            element = model.points3D[number]
            seen = sorted({e.image_id - 1 for e in element.track.elements})
            image += seen
            point += [len(xyz)] * len(seen)
            xyz.append(element.xyz)
    return {
        "xyz": np.array(xyz, np.float64).reshape(-1, 3),
        "image": np.array(image, np.int64),
        "point": np.array(point, np.int64),
    }


def _look_for(tracks, load_grey, cameras, map_from_camera, depth, options, progress) -> Triangulation:
    """Look for every point in the keyframes that should see it, refine it, and leave out what does not hold.

    An observation is where the point's patch was found. Matches that the patch does not confirm are twice as far off in the
    median; they count only in telling what stands still.
    """
    xyz, poses = tracks["xyz"], map_from_camera
    centres = poses[:, :3, 3].numpy()
    home = _home_images(tracks, xyz, centres)
    near = neighbours(poses, depth, options.look)
    patches, place = _patches_at_home(tracks, xyz, home, load_grey, cameras, poses)
    xyz = patches.xyz
    matched = [np.empty(0, np.int64) for _ in range(len(poses))]
    for k in np.unique(tracks["image"]).tolist():
        matched[k] = place[tracks["point"][tracks["image"] == k]]
    home = home[np.argsort(place, kind="stable")]
    at_home: dict[int, np.ndarray] = {k: np.flatnonzero(home == k) for k in np.unique(home).tolist()}
    found = np.zeros(len(xyz), np.int64)
    points, pixels, expected = [], [], []
    for k in range(len(poses)):
        if progress:
            progress(k, len(poses), "looking for points")
        around = [at_home[n] for n in near[k] if n in at_home]
        candidates = np.unique(np.concatenate([*around, matched[k]]))
        visible = _should_see(xyz[candidates], centres[home[candidates]], cameras[k], poses[k])
        known = np.isin(candidates, matched[k])
        candidates, visible, known = (v[visible | known] for v in (candidates, visible, known))
        pixel, tracked = track_patches(patches, candidates, load_grey(k), cameras[k], poses[k])
        expected.append(candidates[visible])
        found[candidates[visible & (tracked | known)]] += 1
        points.append(candidates[tracked])
        pixels.append(pixel[tracked])
    image, view = (np.repeat(np.arange(len(poses)), [len(v) for v in lists]) for lists in (points, expected))
    views = view, np.concatenate(expected)
    return _filter(xyz, image, np.concatenate(points), np.concatenate(pixels), views, found, cameras, poses, options)


def _home_images(tracks, xyz: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The image of each point that cuts its patch: of those that see it the one in the middle by distance."""
    distance = np.linalg.norm(xyz[tracks["point"]] - centres[tracks["image"]], axis=1)
    order = np.lexsort((tracks["image"], distance, tracks["point"]))
    start = np.searchsorted(tracks["point"][order], np.arange(len(xyz) + 1))
    return tracks["image"][order][(start[:-1] + start[1:] - 1) // 2]


def _patches_at_home(tracks, xyz, home, load_grey, cameras, poses) -> tuple[SurfacePatches, np.ndarray]:
    """A patch for every point, on the surface around it, and where each point went in the new order."""
    parts, order = [], []
    by_image = np.argsort(tracks["image"], kind="stable")
    bounds = np.searchsorted(tracks["image"][by_image], np.arange(len(cameras) + 1))
    for k in np.unique(home).tolist():
        seen = np.unique(tracks["point"][by_image[bounds[k] : bounds[k + 1]]])
        inside = se3.transform(se3.inverse(poses[k]), torch.from_numpy(xyz[seen]))
        pixels, _ = cameras[k].project(inside)
        pixels, here = pixels.numpy(), home[seen] == k
        inverse = _surface(pixels, 1 / inside[:, 2].numpy(), here)
        parts.append(cut_patches(load_grey(k), cameras[k], poses[k], pixels[here], 1 / inverse))
        order.append(seen[here])
    place = np.empty(len(xyz), np.int64)
    place[np.concatenate(order)] = np.arange(len(xyz))
    return SurfacePatches.concatenate(parts), place


def _surface(pixels: np.ndarray, inverse_depth: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Inverse depth of the patches' pixels, [n, S * S], of the points `which` (bool [m]) of an image.

    On a plane it is linear in the pixels: the slope is fitted to the nearest points. Where those lie on no plane, as at the
    edges of things, the patch faces the camera.
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


def _should_see(xyz, home_centres, camera: Camera, map_from_camera: torch.Tensor) -> np.ndarray:
    """bool [n]: which points lie well inside an image, in much the direction and distance that their home image has."""
    pixels, valid = camera.project(se3.transform(se3.inverse(map_from_camera), torch.from_numpy(xyz)))
    inside = (valid & camera.in_image(pixels, _PATCH_BORDER_PX)).numpy()
    here, home = xyz - map_from_camera[:3, 3].numpy(), xyz - home_centres
    distance, home_distance = np.linalg.norm(here, axis=1), np.linalg.norm(home, axis=1)
    cosine = (here * home).sum(1) / np.maximum(distance * home_distance, 1e-12)
    scale = distance / np.maximum(home_distance, 1e-12)
    return inside & (cosine > _SEEN_ANGLE_COSINE) & (scale < _SEEN_SCALE) & (scale > 1 / _SEEN_SCALE)


def _filter(xyz, image, point, pixel, views, found, cameras, poses, options) -> Triangulation:
    """views: image and point of every pair in which the point should be seen."""
    rejected = {}
    expected = np.bincount(views[1], minlength=len(xyz))
    # Any two views of a moving thing may agree on a place; three hardly do.
    moved = (found <= options.min_seen * np.where(found < 3, 2, 1) * expected) & (options.min_seen > 0)
    rejected["moved or hidden: few keyframes that should see it do"] = int(moved.sum())
    good = ~moved[point]
    xyz = refine_points(xyz, poses, cameras, image[good], point[good], pixel[good], _POINT_DEPTH_SIGMA)
    error = np.full(len(point), np.inf)
    for k in range(len(poses)):
        here = np.flatnonzero(good & (image == k))
        projected, valid = cameras[k].project(se3.transform(se3.inverse(poses[k]), torch.from_numpy(xyz[point[here]])))
        distance = np.linalg.norm(projected.numpy() - pixel[here], axis=1) / _pixel_scale(cameras[k])
        error[here] = np.where(valid.numpy() & np.isfinite(distance), distance, np.inf)
    good &= error <= options.max_error_px
    length = np.bincount(point[good], minlength=len(xyz))
    few = ~moved & (length < 2)
    rejected["found in fewer than two keyframes within the largest reprojection error"] = int(few.sum())
    narrow = ~moved & ~few & (_largest_angle(xyz, image[good], point[good], poses) < np.radians(options.min_angle_deg))
    rejected["seen under too small an angle"] = int(narrow.sum())
    good &= ~(moved | few | narrow)[point]
    if options.surest and good.any():
        seen = image[good], point[good]
        pairs = np.union1d(views[0] * len(xyz) + views[1], seen[0] * len(xyz) + seen[1])
        unsure = expected_error(xyz, cameras, poses, *seen, error[good], pairs // len(xyz), pairs % len(xyz))
        surplus = np.bincount(seen[1], minlength=len(xyz)) > 0
        surplus &= ~surest_points(xyz, cameras, poses, *seen, unsure, options.surest)
        rejected["less sure than enough others around"] = int(surplus.sum())
        good &= ~surplus[point]
    if not good.any():
        raise _no_points()
    used, renumbered = np.unique(point[good], return_inverse=True)
    return Triangulation(xyz[used], image[good], renumbered, error[good], rejected)


def _largest_angle(xyz, image, point, poses: torch.Tensor) -> np.ndarray:
    """Radians [P]: the largest angle of an observation's ray with the mean ray of its point, times two."""
    rays = xyz[point] - poses[:, :3, 3].numpy()[image]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
    mean = np.stack([np.bincount(point, rays[:, axis], len(xyz)) for axis in range(3)], 1)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    angle = np.zeros(len(xyz))
    np.maximum.at(angle, point, np.arccos(np.clip((rays * mean[point]).sum(1), -1, 1)))
    return 2 * angle

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Features of keyframes, their matches where the known poses allow them, and the points that COLMAP makes of those."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
import torch

from ...errors import InputError
from ...geometry.cameras import Camera
from ...io.work_folder import WorkFolder
from .building import Progress, unique_cameras
from .keyframes import KeyframeFiles
from .patch_tracks import neighbours

_SIFT_CONTRAST = 0.005
_RATIO, _LEAST_COSINE = 0.85, 0.7
_ROUNDING = 1e3 * np.finfo(float).eps  # of coordinates: centres that are nearer to each other are the same
_SURE_BASELINE = 2.0  # times the error of positions
_NEAREST = 0.1  # of the scene's depth: nothing is searched for nearer
_FEWEST_MATCHES = 8
_LARGEST_TURN_COSINE = 0.5
_WORKING_SIDE_PX = 640.0
_AT_ONCE = 64  # images that are handed to threads: an interrupt waits for no more


@dataclass(frozen=True)
class MatchingOptions:
    """How points are found by matching.

    Attributes:
        features: SIFT features per image at most.
        neighbours: Keyframes that each is matched with.
        min_angle_deg: Least angle between two rays of a point.
        max_error_px: Largest reprojection error, for images of 640 pixels.
        epipolar_px: Largest distance of a match from its epipolar line, for images of 640 pixels.
        position_error: By how much the distance of two centres may be wrong, in units of the map: between centres that are hardly
            further apart there is no epipolar line to go by.
    """

    features: int = 4000
    neighbours: int = 12
    min_angle_deg: float = 1.0
    max_error_px: float = 3.0
    epipolar_px: float = 2.0
    position_error: float = 0.0


def pixel_scale(camera: Camera) -> float:
    """Pixels of an image per pixel of one of 640 pixels, at least 1: what thresholds are multiplied with."""
    return max(1.0, max(camera.width, camera.height) / _WORKING_SIDE_PX)


def require_pycolmap():
    """The module. Raises `InputError` where it is not installed."""
    try:
        import pycolmap
    except ImportError:
        raise InputError(
            "points are triangulated by pycolmap, which is not installed: python3 -m pip install 'pixloc_ros[sfm]' "
            "(or use a bag with a depth topic)"
        ) from None
    return pycolmap


class Matcher:
    """Features of the images and their matches, kept in the work folder.

    Args:
        images: With the poses that matches must agree with.
        work: The work folder.
        options: See there.
        stage: Put before the names of what depends on the poses, where a work folder sees several.

    Attributes:
        pairs: After `match`, rows [m, 2] of features by pair of images.
    """

    def __init__(self, images: KeyframeFiles, work: WorkFolder, options: MatchingOptions, stage: str = "") -> None:
        self.images, self.work, self.options, self.stage = images, work, options, stage
        self.poses = images.map_from_camera.numpy()
        self.pairs: dict[tuple[int, int], np.ndarray] = {}
        self._features: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}
        self._lock = Lock()

    def extract(self, progress: Progress | None) -> list[int]:
        """Have all features in the work folder, made on all cores; how many each image has."""
        count, found = len(self.poses), []
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for begin in range(0, count, _AT_ONCE):
                for stored in threads.map(self._stored, range(begin, min(begin + _AT_ONCE, count))):
                    found.append(len(stored["pixels"]))
                    if progress:
                        progress(len(found) - 1, count, "features")
        return found

    def _stored(self, k: int) -> dict[str, np.ndarray]:
        path = self.images.paths[k]  # not its number: some images are left out between one matcher and the next
        return self.work.arrays(f"features/{path.parent.name}/{path.stem}", lambda: self._extract(k))

    def features(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels [n, 2], unit rays [n, 3] in the camera frame, descriptors float32 [n, 128] of unit length."""
        return self._features_of(k)[:3]

    def _features_of(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same and their strengths [n]."""
        with self._lock:
            if k not in self._features:
                if len(self._features) > 4 * self.options.neighbours:
                    self._features.pop(next(iter(self._features)))
                stored = self._stored(k)
                pixels = stored["pixels"].astype(np.float64)
                rays, _ = self.images.cameras[k].unproject(torch.from_numpy(pixels))
                rays = torch.nn.functional.normalize(rays, dim=1).numpy()
                # RootSIFT: Hellinger's kernel in place of the plain one (Arandjelović and Zisserman, CVPR 2012).
                descriptors = np.sqrt(stored["descriptors"].astype(np.float32))
                descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6)
                self._features[k] = pixels, rays, descriptors, stored["strength"]
            return self._features[k]

    def _extract(self, k: int) -> dict[str, np.ndarray]:
        mask = self.images.mask(k)
        mask = None if mask is None else mask.astype(np.uint8)
        keypoints, descriptors = _sift(self.options.features).detectAndCompute(self.images.grey(k), mask)
        pixels = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
        if descriptors is None:
            descriptors = np.empty((0, 128))
        _, first = np.unique(pixels, axis=0, return_index=True)  # one of several directions of the same spot
        strength = np.array([keypoint.response for keypoint in keypoints], np.float32)
        return {"pixels": pixels[first], "descriptors": descriptors[first].astype(np.uint8), "strength": strength[first]}

    def strongest(self, k: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `features` gives of the `count` strongest features of an image, and their numbers, int64 rising."""
        pixels, rays, descriptors, strength = self._features_of(k)
        which = np.arange(len(pixels))
        if len(pixels) > count:
            which = np.sort(np.argsort(-strength, kind="stable")[:count])
        return pixels[which], rays[which], descriptors[which], which

    def scene_depth(self, progress: Progress | None) -> float:
        """Median distance of points between keyframes that follow each other, metres; 0 where there is none."""

        def measure() -> dict[str, np.ndarray]:
            depths = [np.empty(0)]
            for k in range(len(self.poses) - 1):
                if progress:
                    progress(k, len(self.poses), "features")
                depths.append(self.distances(k, k + 1, self.matches(k, k + 1, None)))
            found = np.concatenate(depths)
            found = found[np.isfinite(found)]
            return {"depth": np.array(np.median(found) if len(found) else 0.0)}

        return float(self.work.arrays(f"{self.stage}depth", measure)["depth"])

    def match(self, depth: float, progress: Progress | None) -> None:
        """Match each keyframe with those around it."""
        near = neighbours(self.images.map_from_camera, depth, self.options.neighbours + 1)
        far: list[list[int]] = [[] for _ in near]  # those that an image is near to
        for k, row in enumerate(near):
            for n in row:
                far[n].append(k)
        for k in range(len(self.poses)):
            if progress:
                progress(k, len(self.poses), "matching")
            # Nearness is not mutual: a pair belongs to its later image.
            earlier = sorted({n for n in (*near[k], *far[k]) if n < k})
            earlier = [n for n in earlier if self.poses[k][:3, 2] @ self.poses[n][:3, 2] > _LARGEST_TURN_COSINE]
            stored = self.work.arrays(f"{self.stage}matches/{k:06d}", lambda k=k, earlier=earlier: self._match(k, earlier, depth))
            self.pairs |= {(n, k): stored[str(n)] for n in earlier}

    def _match(self, k: int, earlier: list[int], depth: float) -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = list(threads.map(lambda n: self.matches(n, k, depth), earlier))
        return {str(n): matches.astype(np.int32) for n, matches in zip(earlier, found)}

    def matches(self, a: int, b: int, depth: float | None) -> np.ndarray:
        """Rows [m, 2] of features of two images that look the same and lie where the poses allow it: near the epipolar plane of
        the other, and not beyond where the nearest point could be in a scene of that depth."""
        (_, rays_a, descriptors_a), (_, rays_b, descriptors_b) = self.features(a), self.features(b)
        if not (len(rays_a) and len(rays_b)):
            return np.empty((0, 2), np.int64)
        b_from_a = np.linalg.inv(self.poses[b]) @ self.poses[a]
        turned = rays_a @ b_from_a[:3, :3].T
        baseline = float(np.linalg.norm(b_from_a[:3, 3]))
        cameras = self.images.cameras
        tolerance = self.options.epipolar_px * pixel_scale(cameras[b]) / float(min(cameras[k].params[0] for k in (a, b)))
        likeness = descriptors_a @ descriptors_b.T
        rounding = _ROUNDING * max(np.abs(self.poses[k][:3, 3]).max() for k in (a, b))
        if baseline > max(rounding, _SURE_BASELINE * self.options.position_error):
            direction = b_from_a[:3, 3] / baseline
            normal_a, normal_b = np.cross(direction, turned), np.cross(direction, rays_b)
            volume = normal_a @ rays_b.T
            limit_a = np.maximum(np.linalg.norm(normal_a, axis=1), 1e-6)[:, None] * tolerance
            limit_b = np.maximum(np.linalg.norm(normal_b, axis=1), 1e-6)[None] * tolerance
            likeness[np.abs(volume) > np.minimum(limit_a, limit_b)] = -1.0
        if depth is not None:
            farthest = baseline + self.options.position_error
            reach = min(np.arctan2(farthest, _NEAREST * depth) + tolerance, np.pi)
            likeness[turned @ rays_b.T < np.cos(reach)] = -1.0
        return match_descriptors(likeness)

    def distances(self, a: int, b: int, matches: np.ndarray, least_deg: float = 1.0) -> np.ndarray:
        """Distances [m] from image b of matched features, NaN where they are seen under less than so many degrees."""
        b_from_a = np.linalg.inv(self.poses[b]) @ self.poses[a]
        ray_a = self.features(a)[1][matches[:, 0]] @ b_from_a[:3, :3].T
        ray_b = self.features(b)[1][matches[:, 1]]
        cosine = (ray_a * ray_b).sum(1)
        # The nearest points of two lines: from b's centre along ray_b, from a's along ray_a.
        along_a, along_b = ray_a @ b_from_a[:3, 3], ray_b @ b_from_a[:3, 3]
        sine_squared = np.maximum(1 - cosine**2, 1e-12)
        distance = (along_b - cosine * along_a) / sine_squared
        return np.where((sine_squared > np.sin(np.radians(least_deg)) ** 2) & (distance > 0), distance, np.nan)


def match_descriptors(likeness: np.ndarray) -> np.ndarray:
    """Rows [m, 2] of features of two images that are each other's nearest, and clearly so.

    Args:
        likeness: Cosines of their descriptors, [a, b]; overwritten.
    """
    if not likeness.size:
        return np.empty((0, 2), np.int64)
    rows, best_b = np.arange(len(likeness)), likeness.argmax(1)
    best = likeness[rows, best_b]
    mutual = likeness.argmax(0)[best_b] == rows
    likeness[rows, best_b] = -1.0
    second = likeness.max(1)
    near, far = np.sqrt(np.maximum(2 - 2 * best, 0)), np.sqrt(np.maximum(2 - 2 * second, 0))
    good = mutual & (best > _LEAST_COSINE) & (near < _RATIO * far)
    return np.stack((rows[good], best_b[good]), 1)


def _sift(features: int):
    try:
        return cv2.SIFT_create(features, 3, _SIFT_CONTRAST, enable_precise_upscale=True)
    except TypeError:  # OpenCV before 4.8: positions a quarter of a pixel off, which the search for patches corrects
        return cv2.SIFT_create(features, 3, _SIFT_CONTRAST)


def colmap_model(cameras: Sequence[Camera], poses: np.ndarray, pixels: Sequence[np.ndarray]):
    """pycolmap's model of images without points: image k + 1 has the map_from_camera `poses[k]` and the 2D points `pixels[k]`."""
    pycolmap = require_pycolmap()
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value if hasattr(pycolmap.logging, "ERROR") else 2
    model = pycolmap.Reconstruction()
    unique, camera_of = unique_cameras(list(cameras))
    for number, camera in enumerate(unique, 1):
        name, params = camera.to_colmap()
        camera = pycolmap.Camera(camera_id=number, model=name, width=camera.width, height=camera.height, params=params)
        model.add_camera_with_trivial_rig(camera)
    for k, pose in enumerate(poses):
        points = [pycolmap.Point2D(p + 0.5) for p in pixels[k]]  # COLMAP's pixel (0, 0) is a corner
        image = pycolmap.Image(f"{k:06d}", points2D=points, camera_id=camera_of[k] + 1, image_id=k + 1)
        camera_from_map = np.linalg.inv(pose)
        rotation = pycolmap.Rotation3d(camera_from_map[:3, :3])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rotation, camera_from_map[:3, 3]))
    return model


def colmap_tracks(matcher: Matcher) -> dict[str, np.ndarray]:
    """Points that COLMAP makes of the matches: xyz [P, 3]; image, point and feature [M] of their observations."""
    pycolmap, options = require_pycolmap(), matcher.options
    pixels = [matcher.features(k)[0] for k in range(len(matcher.poses))]
    model = colmap_model(matcher.images.cameras, matcher.poses, pixels)
    with tempfile.TemporaryDirectory(dir=matcher.work.folder) as folder:
        database = pycolmap.Database.open(str(Path(folder) / "database.db"))
        for number in sorted(model.cameras):
            database.write_camera(model.cameras[number], use_camera_id=True)
            database.write_rig(model.rigs[number], use_rig_id=True)
        for k in range(len(pixels)):
            database.write_frame(model.frames[k + 1], use_frame_id=True)
            database.write_image(model.images[k + 1], use_image_id=True)
            database.write_keypoints(k + 1, (pixels[k] + 0.5).astype(np.float32))
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
        settings.triangulation.min_angle = settings.mapper.filter_min_tri_angle = options.min_angle_deg
        # Points are refined afterwards.
        scale = pixel_scale(matcher.images.cameras[0])
        settings.mapper.filter_max_reproj_error = 2 * options.max_error_px * scale
        angle = np.degrees(options.epipolar_px * scale / float(matcher.images.cameras[0].params[0]))
        for name in ("create_max_angle_error", "continue_max_angle_error"):
            setattr(settings.triangulation, name, max(getattr(settings.triangulation, name), angle))
        settings.triangulation.ignore_two_view_tracks = False
        model = pycolmap.triangulate_points(model, str(Path(folder) / "database.db"), folder, folder, options=settings)
        points = [model.points3D[number] for number in sorted(model.points3D)]
        # An image may have several features in a track: the first counts.
        seen = [sorted({e.image_id - 1: e.point2D_idx for e in reversed(point.track.elements)}.items()) for point in points]
        return {
            "xyz": np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
            "image": np.array([k for images in seen for k, _ in images], np.int64),
            "feature": np.array([feature for images in seen for _, feature in images], np.int64),
            "point": np.repeat(np.arange(len(seen)), [len(images) for images in seen]),
        }

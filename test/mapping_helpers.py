# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for the tests of maps: a fast extractor, a textured plane, maps made of numbers."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.mapping import Map


class FakeExtractor:
    """Blurred intensity and its differences: levels of stride 8 and 4 with 8 channels, made in a millisecond."""

    name = "fake"
    fingerprint = "0123456789abcdef"
    strides = (8, 4)
    channels = (8, 8)
    working_side = 160
    companions: dict = {}

    def __init__(self, confidence: bool = False) -> None:
        self.confidence = confidence

    def suited_to(self, width: int, height: int) -> FakeExtractor:
        return self

    def extract(self, image: np.ndarray) -> FeaturePyramid:
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        tensor = torch.from_numpy(grey.astype(np.float32) / 255)[None, None]
        return FeaturePyramid(tuple(self._level(tensor, stride) for stride in self.strides), (grey.shape[1], grey.shape[0]))

    def _level(self, grey: torch.Tensor, stride: int) -> FeatureLevel:
        small = torch.nn.functional.avg_pool2d(grey, stride)
        padded = torch.nn.functional.pad(small, (1, 1, 1, 1), mode="replicate")
        height, width = small.shape[-2:]
        shifted = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
        features = torch.cat([one - small for k, one in enumerate(shifted) if k not in (4, 8)] + [small + 0.1], 1)
        features = torch.nn.functional.normalize(features, dim=1).contiguous(memory_format=torch.channels_last)
        return FeatureLevel(features, (0.5 + 0.5 * small[:, 0]) if self.confidence else None, float(stride))


def look_at(centre, target, up=(0.0, 0.0, 1.0)) -> torch.Tensor:
    """map_from_camera, float64 [4, 4], optical axes, at `centre` looking at `target`."""
    centre, target, up = (np.asarray(v, float) for v in (centre, target, up))
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(np.stack((x, np.cross(z, x), z), 1))
    pose[:3, 3] = torch.from_numpy(centre)
    return pose


def texture(size_px: int = 1024, seed: int = 0) -> np.ndarray:
    """Smooth random blobs with sharp borders, uint8 [size, size]."""
    noise = np.random.default_rng(seed).random((size_px, size_px), np.float32)
    blobs = (cv2.GaussianBlur(noise, (0, 0), 12) > 0.5).astype(np.float32)
    return np.clip(40 + 120 * blobs + 80 * cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)


def plane_view(
    map_from_camera: torch.Tensor, camera: Camera, picture: np.ndarray, metres: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """Image, uint8 [H, W], and depth, float64 metres [H, W] (0 beyond), of the textured square z = 0 of the map."""
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays, _ = camera.unproject(torch.from_numpy(np.stack((columns, rows), -1).reshape(-1, 2).astype(float)))
    rays = (rays / rays[:, 2:]) @ map_from_camera[:3, :3].T
    depth = -map_from_camera[2, 3] / rays[:, 2]
    hit = (map_from_camera[:3, 3] + rays * depth[:, None]).numpy().reshape(camera.height, camera.width, 3)
    depth = depth.numpy().reshape(camera.height, camera.width)
    scale = picture.shape[0] / metres
    where = ((hit[..., :2] + metres / 2) * scale - 0.5).astype(np.float32)
    image = cv2.remap(picture, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    inside = (depth > 0) & (np.abs(hit[..., :2]) < metres / 2).all(-1)
    return image, np.where(inside, depth, 0.0)


def pinhole(width: int = 160, height: int = 120, focal: float = 130.0) -> Camera:
    return Camera("pinhole", width, height, torch.tensor([focal, focal, (width - 1) / 2, (height - 1) / 2], dtype=torch.float64))


def numbers_map(
    poses: torch.Tensor, xyz: np.ndarray, camera: Camera, seed: int = 0, farthest: float = np.inf, confidence: bool = False
) -> Map:
    """A map without images: every keyframe sees the points that project into it nearer than `farthest`, random
    features."""
    generator = np.random.default_rng(seed)
    points, depths = [], []
    for pose in poses:
        inside = se3.transform(se3.inverse(pose), torch.from_numpy(xyz))
        pixels, valid = camera.project(inside)
        seen = (valid & camera.in_image(pixels) & (inside[:, 2] < farthest)).numpy()
        points.append(np.flatnonzero(seen))
        depths.append(float(inside[seen, 2].median()) if seen.any() else 0.0)
    observations = np.concatenate(points)
    descriptors = [generator.normal(size=(len(observations), 8)) for _ in range(2)]
    descriptors = tuple((d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float16) for d in descriptors)
    levels = [generator.uniform(0.1, 1.0, len(observations)).astype(np.float16) if confidence else None for _ in range(2)]
    coarse = np.ones((len(poses), 8), np.float16) / np.float16(8**0.5)
    return Map(
        name="numbers",
        extractor_name="fake",
        extractor_fingerprint=FakeExtractor.fingerprint,
        strides=(8, 4),
        channels=(8, 8),
        working_side=160,
        cameras=[camera],
        keyframe_names=[f"{k:04d}.png" for k in range(len(poses))],
        map_from_keyframe=poses,
        keyframe_camera=np.zeros(len(poses), np.int32),
        keyframe_stamp_ns=np.arange(len(poses), dtype=np.int64) * 100_000_000,
        keyframe_depth=np.array(depths, np.float32),
        global_descriptors=coarse,
        xyz=xyz,
        track_length=np.bincount(observations, minlength=len(xyz)).astype(np.int32),
        quality=generator.uniform(size=len(xyz)).astype(np.float32),
        observation_offsets=np.cumsum([0] + [len(p) for p in points]),
        observation_point=observations.astype(np.int32),
        descriptors=descriptors,
        confidences=tuple(levels),
    )

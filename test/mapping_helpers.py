# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for the tests of maps: a fast extractor, a textured plane and images of it, maps made of numbers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.building import PosedImages, observation_fields


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


def visible(camera: Camera, map_from_camera: torch.Tensor, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of points [N, 3], whether they are in the image, and their depth."""
    inside = se3.transform(se3.inverse(map_from_camera), torch.from_numpy(xyz))
    pixels, valid = camera.project(inside)
    return pixels.numpy(), (valid & camera.in_image(pixels)).numpy(), inside[:, 2].numpy()


def plane_images(
    folder: Path, poses: torch.Tensor, camera: Camera, xyz: np.ndarray, picture: np.ndarray | None = None, brightness: int = 0
) -> PosedImages:
    """Views of the plane as files, and points that each sees wherever they project (some at the images' borders)."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = texture() if picture is None else picture
    paths = [folder / f"{k}.png" for k in range(len(poses))]
    for path, pose in zip(paths, poses):
        cv2.imwrite(str(path), cv2.add(plane_view(pose, camera, picture)[0], brightness))
    image, point = np.nonzero([visible(camera, pose, xyz)[1] for pose in poses])
    stamps, names = np.arange(len(poses)) * 100, [path.name for path in paths]
    return PosedImages(folder.name, paths, names, [camera] * len(poses), poses, stamps, xyz, image, point)


SEQUENCE_CAMERA = pinhole(320, 240, 250.0)
SEQUENCE_START = 1_305_031_229


def sequence_pose(seconds: float) -> torch.Tensor:
    """A camera that moves sideways at 0.3 m/s above a plane, and turns about 9 degrees per second."""
    return look_at((0.3 * seconds - 0.6, -1.0 + 0.1 * seconds, 1.6), (0.6 * seconds - 1.0, 0.1, 0.0))


def write_sequence(folder, stamps, depth_delay=0.0, scale=5000.0, pose=sequence_pose, pose_rate=100, bias=1.0):
    """An RGB-D sequence of the plane in the layout of TUM's benchmark."""
    picture, start = texture(), SEQUENCE_START
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    lists = {"rgb": ["# timestamp filename"], "depth": ["# depth maps"], "groundtruth": ["# timestamp tx ty tz qx qy qz qw"]}
    for seconds in stamps:
        later = seconds + depth_delay
        cv2.imwrite(str(folder / "rgb" / f"{seconds:.3f}.png"), plane_view(pose(seconds), SEQUENCE_CAMERA, picture)[0])
        metres = plane_view(pose(later), SEQUENCE_CAMERA, picture)[1]
        cv2.imwrite(str(folder / "depth" / f"{later:.3f}.png"), np.round(metres * bias * scale).astype(np.uint16))
        lists["rgb"].append(f"{start + seconds:.6f} rgb/{seconds:.3f}.png")
        lists["depth"].append(f"{start + later:.6f} depth/{later:.3f}.png")
    for seconds in np.arange(stamps[0] - 0.05, stamps[-1] + 0.1, 1 / pose_rate):
        t = pose(seconds)
        numbers = [*t[:3, 3].tolist(), *se3.quaternion_from_rotation(t[:3, :3]).tolist()]
        lists["groundtruth"].append(f"{start + seconds:.4f} " + " ".join(f"{n:.9f}" for n in numbers))
    lists["camera"] = ["# camera", "SIMPLE_PINHOLE 320 240 250 160 120"]
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def numbers_map(
    poses: torch.Tensor, xyz: np.ndarray, camera: Camera, seed: int = 0, farthest: float = np.inf, confidence: bool = False
) -> Map:
    """A map without images: every keyframe sees the points that project into it nearer than `farthest`, random features."""
    generator = np.random.default_rng(seed)
    points, depths = [], []
    for pose in poses:
        _, seen, depth = visible(camera, pose, xyz)
        seen &= depth < farthest
        points.append(np.flatnonzero(seen))
        depths.append(float(torch.from_numpy(depth)[seen].median()) if seen.any() else 0.0)
    observations = np.concatenate(points)
    descriptors = [generator.normal(size=(len(observations), 8)) for _ in range(2)]
    descriptors = tuple((d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float16) for d in descriptors)
    levels = [generator.uniform(0.1, 1.0, len(observations)).astype(np.float16) if confidence else None for _ in range(2)]
    fields = observation_fields([len(p) for p in points], observations, len(xyz), descriptors, tuple(levels))
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
        global_descriptors=np.ones((len(poses), 8), np.float16) / np.float16(8**0.5),
        xyz=xyz,
        **fields | {"quality": generator.uniform(size=len(xyz)).astype(np.float32)},
    )

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From posed images and points to a map: what all sources share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...features import Extractor
from ...features.sampling import sample_level
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.images import fit_to_working_size, load_image
from ...io.work_folder import WorkFolder
from ..map_file import Map

Progress = Callable[[int, int, str], None]
"""Called with the number done, the number of all, and what is done now."""


@dataclass(frozen=True, eq=False)
class PosedImages:
    """Images of known pose, and which of them sees which point.

    name: the map's. paths, names: per image. camera: per image, of the file's size. map_from_camera: float64 [K, 4,
    4]. stamp_ns: int64 [K], -1 where unknown. xyz: float64 [P, 3]. observation_image, observation_point: int64 [M],
    each pair once.
    """

    name: str
    paths: list[Path]
    names: list[str]
    cameras: list[Camera]
    map_from_camera: torch.Tensor
    stamp_ns: np.ndarray
    xyz: np.ndarray
    observation_image: np.ndarray
    observation_point: np.ndarray


@dataclass(frozen=True)
class BuildReport:
    """What became of the source. missing: names of images that were not found or not readable. empty: images that see
    no point. outside: observations left out because the point lies at the border of the image or outside."""

    missing: tuple[str, ...]
    empty: tuple[str, ...]
    outside: int


@dataclass
class _Keyframe:
    """What one image gives to the map."""

    image: int
    camera: Camera
    depth: float
    global_descriptor: np.ndarray
    points: np.ndarray
    descriptors: list[np.ndarray]
    confidences: list[np.ndarray | None]


def build_map(
    source: PosedImages,
    extractor: Extractor,
    working_side: int | None = None,
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> tuple[Map, BuildReport]:
    """Extract every image's features where its points project, and put them together as a map.

    The place is the projection of the 3D point with the image's pose, not the keypoint that once gave rise to it, so
    that the pose's own residual is zero in the map (PixLoc, `base_refiner`). An observation is kept where it is valid
    at every level. working_side: longer side in pixels that images are shrunk to, the extractor's own by default.
    work: keeps every image's features, so that killed work goes on.

    Raises InputError where no image is found, one has another size than its camera, or nothing is left.
    """
    side = extractor.working_side if working_side is None else working_side
    order = np.argsort(source.observation_image, kind="stable")
    bounds = np.searchsorted(source.observation_image[order], np.arange(len(source.paths) + 1))
    keyframes: list[_Keyframe] = []
    missing, empty, outside = [], [], 0
    for k, path in enumerate(source.paths):
        if progress:
            progress(k, len(source.paths), source.names[k])
        points = source.observation_point[order[bounds[k] : bounds[k + 1]]]
        if len(points) == 0:
            empty.append(source.names[k])
            continue
        try:
            image = load_image(path)
        except InputError:
            missing.append(source.names[k])
            continue
        image, camera = fit_to_working_size(image, source.cameras[k], side)
        if not keyframes:  # one choice of levels for the whole map
            extractor = extractor.suited_to(camera.width, camera.height)
        keyframe = _keyframe(k, image, camera, source, np.sort(points), extractor, work)
        outside += len(points) - len(keyframe.points)
        if len(keyframe.points):
            keyframes.append(keyframe)
        else:
            empty.append(source.names[k])
    if progress:
        progress(len(source.paths), len(source.paths), "")
    if missing and not keyframes:
        raise InputError(
            f"none of the {len(missing)} images could be read, for example {source.paths[0]}: check the images folder"
        )
    if not keyframes:
        raise InputError("no image sees a point away from its border: check that poses, camera and images belong together")
    return _assemble(source, keyframes, extractor, side), BuildReport(tuple(missing), tuple(empty), outside)


def _keyframe(
    index: int,
    image: np.ndarray,
    camera: Camera,
    source: PosedImages,
    points: np.ndarray,
    extractor: Extractor,
    work: WorkFolder | None,
) -> _Keyframe:
    def encode() -> dict[str, np.ndarray]:
        return _encode(image, camera, source.map_from_camera[index], source.xyz[points], extractor)

    stored = encode() if work is None else work.arrays(f"encoded/{index:06d}", encode)
    levels = range(len(extractor.strides))
    return _Keyframe(
        index,
        camera,
        float(stored["depth"]),
        stored["global_descriptor"],
        points[stored["kept"]],
        [stored[f"descriptor.{level}"] for level in levels],
        [stored.get(f"confidence.{level}") for level in levels],
    )


def _encode(
    image: np.ndarray, camera: Camera, map_from_camera: torch.Tensor, xyz: np.ndarray, extractor: Extractor
) -> dict[str, np.ndarray]:
    """What the features of an image are where points [n, 3] project, of those that are kept (bool [n])."""
    inside = se3.transform(se3.inverse(map_from_camera), torch.from_numpy(xyz))
    pixels, valid = camera.project(inside)
    valid &= camera.in_image(pixels)
    pyramid = extractor.extract(image)
    samples = [sample_level(level, pixels[None].float()) for level in pyramid.levels]
    for _, _, within in samples:
        valid = valid & within[0]
    coarse = torch.nn.functional.normalize(pyramid.levels[0].features[0].mean((1, 2)), dim=0)
    encoded = {
        "kept": valid.numpy(),
        "depth": np.float64(inside[valid, 2].median() if bool(valid.any()) else 0.0),
        "global_descriptor": coarse.numpy().astype(np.float16),
    }
    for level, (values, confidence, _) in enumerate(samples):
        encoded[f"descriptor.{level}"] = torch.nn.functional.normalize(values[0][valid], dim=-1).half().numpy()
        if confidence is not None:
            encoded[f"confidence.{level}"] = confidence[0][valid].half().numpy()
    return encoded


def _assemble(source: PosedImages, keyframes: list[_Keyframe], extractor: Extractor, working_side: int) -> Map:
    observed = np.concatenate([keyframe.points for keyframe in keyframes])
    used, observation_point = np.unique(observed, return_inverse=True)
    levels = range(len(extractor.strides))
    descriptors = tuple(np.concatenate([keyframe.descriptors[level] for keyframe in keyframes]) for level in levels)
    confidences = tuple(
        None
        if keyframes[0].confidences[level] is None
        else np.concatenate([keyframe.confidences[level] for keyframe in keyframes])
        for level in levels
    )
    track_length = np.bincount(observation_point, minlength=len(used))
    cameras, camera_index = unique_cameras([keyframe.camera for keyframe in keyframes])
    images = [keyframe.image for keyframe in keyframes]
    return Map(
        name=source.name,
        extractor_name=extractor.name,
        extractor_fingerprint=extractor.fingerprint,
        strides=tuple(extractor.strides),
        channels=tuple(extractor.channels),
        working_side=working_side,
        cameras=cameras,
        keyframe_names=[source.names[k] for k in images],
        map_from_keyframe=source.map_from_camera[images].contiguous(),
        keyframe_camera=np.array(camera_index, np.int32),
        keyframe_stamp_ns=source.stamp_ns[images].astype(np.int64),
        keyframe_depth=np.array([keyframe.depth for keyframe in keyframes], np.float32),
        global_descriptors=np.stack([keyframe.global_descriptor for keyframe in keyframes]),
        xyz=source.xyz[used],
        track_length=track_length.astype(np.int32),
        quality=descriptor_agreement(descriptors[-1], observation_point, track_length),
        observation_offsets=np.cumsum([0] + [len(keyframe.points) for keyframe in keyframes]),
        observation_point=observation_point.astype(np.int32),
        descriptors=descriptors,
        confidences=confidences,
    )


def unique_cameras(cameras: list[Camera]) -> tuple[list[Camera], list[int]]:
    """Each camera once, and which of them each was, by index."""
    keys = [(camera.model, camera.width, camera.height, *camera.params.tolist()) for camera in cameras]
    unique = {key: camera for key, camera in zip(reversed(keys), reversed(cameras))}
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return [unique[key] for key in number], [number[key] for key in keys]


def descriptor_agreement(descriptors: np.ndarray, point: np.ndarray, track_length: np.ndarray) -> np.ndarray:
    """Mean cosine over the pairs of a point's unit descriptors, float32 [P], at least 0; 0 for a single observation.

    Over the n descriptors of a point with sum s it is (|s|² - n) / (n (n - 1)).
    """
    squared = np.zeros(len(track_length))
    for channel in range(descriptors.shape[1]):
        squared += np.bincount(point, descriptors[:, channel].astype(np.float64), len(track_length)) ** 2
    pairs = np.maximum(track_length * (track_length - 1), 1)
    return np.where(track_length > 1, np.clip((squared - track_length) / pairs, 0.0, 1.0), 0.0).astype(np.float32)

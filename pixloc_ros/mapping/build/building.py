# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From posed images and points to a map: what all sources share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...errors import InputError, none_left
from ...features import Extractor
from ...features.sampling import sample_reference
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.images import exif_remark, fit_to_working_size, load_image
from ...io.work_folder import WorkFolder
from ..map_file import Map, decode_descriptors
from ..retrieval import PooledFeatures
from .observations import rows_by_image

Progress = Callable[[int, int, str], None]
"""Called with the number done, the number of all, and what is done now."""
_NO_POINT = "no point to see there"


@dataclass(frozen=True, eq=False)
class PosedImages:
    """K images of known pose, P points, and which image sees which point.

    Attributes:
        name: The map's.
        paths: [K].
        names: [K].
        cameras: [K], of the files' size.
        map_from_camera: float64 [K, 4, 4].
        stamp_ns: int64 [K], -1 where unknown.
        xyz: float64 [P, 3].
        observation_image: int64 [M].
        observation_point: int64 [M], each pair once.
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
    """What became of the source.

    Attributes:
        left_out: Why images were left out, by their names.
        outside: Observations left out because the point lies at the border of the image or outside.
        notes: What else is to be known of the source.
    """

    left_out: dict[str, str]
    outside: int
    notes: tuple[str, ...] = ()


class _Keyframe(NamedTuple):
    """What one image gives to the map: its number, camera, points, and where what `_encode` gives comes from."""

    image: int
    camera: Camera
    points: np.ndarray
    encoded: Callable[[], dict[str, np.ndarray]]


def build_map(
    source: PosedImages,
    extractor: Extractor,
    working_side: int | None = None,
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> tuple[Map, BuildReport]:
    """Extract every image's features where its points project, and put them together as a map.

    The place is the projection of the 3D point with the image's pose, not the keypoint that once gave rise to it, so that the
    pose's own residual is zero in the map (PixLoc, `base_refiner`). An observation is kept where it is valid at every level.
    Images that cannot be used are left out and reported.

    Args:
        source: Images and points.
        extractor: Makes the features.
        working_side: Longer side in pixels that images are shrunk to, the extractor's own by default.
        progress: Told what is done.
        work: Keeps every image's features, so that killed work goes on.

    Raises:
        InputError: No image can be used; it names the first reasons.
    """
    side = extractor.working_side if working_side is None else working_side
    keyframes: list[_Keyframe] = []
    left_out, outside = {}, 0
    for k, rows in enumerate(rows_by_image(source.observation_image, len(source.paths))):
        if progress:
            progress(k, len(source.paths), source.names[k])
        points = np.sort(source.observation_point[rows])
        if len(points) == 0:
            left_out[source.names[k]] = _NO_POINT
            continue
        try:
            image, camera = fit_to_working_size(load_image(source.paths[k]), source.cameras[k], side)
        except InputError as error:
            left_out[source.names[k]] = str(error)
            continue
        if not keyframes:  # one choice of levels for the whole map
            extractor = extractor.suited_to(camera.width, camera.height)

        def encode(k=k, image=image, camera=camera, points=points, extractor=extractor) -> dict[str, np.ndarray]:
            return _encode(image, camera, source.map_from_camera[k], source.xyz[points], extractor)

        # With a work folder, the files' content is not held: all of a long drive would not fit into memory.
        stored = None if work is None else partial(work.arrays, f"encoded/{k:06d}", encode)
        encoded = encode() if stored is None else stored()
        kept = points[encoded["kept"]]
        outside += len(points) - len(kept)
        if len(kept):
            keyframes.append(_Keyframe(k, camera, kept, stored or (lambda encoded=encoded: encoded)))
        else:
            left_out[source.names[k]] = _NO_POINT
    if progress:
        progress(len(source.paths), len(source.paths), "")
    if not keyframes:
        unusable = {name: reason for name, reason in left_out.items() if reason is not _NO_POINT}
        if unusable:
            raise none_left(f"none of the {len(left_out)} images can be used", unusable)
        raise InputError("no image sees a point away from its border: check that poses, camera and images belong together")
    turned = exif_remark(dict(zip(source.names, source.paths)))
    return _assemble(source, keyframes, extractor, side, work), BuildReport(left_out, outside, (turned,) if turned else ())


def _encode(
    image: np.ndarray, camera: Camera, map_from_camera: torch.Tensor, xyz: np.ndarray, extractor: Extractor
) -> dict[str, np.ndarray]:
    """What the features of an image are where points [n, 3] project, of those that are kept (bool [n])."""
    inside = se3.transform(se3.inverse(map_from_camera), torch.from_numpy(xyz))
    pixels, valid = camera.project(inside)
    valid &= camera.in_image(pixels)
    pyramid = extractor.extract(image)
    samples = [sample_reference(level, pixels[None].float()) for level in pyramid.levels]
    for _, _, within in samples:
        valid = valid & within[0]
    encoded = {
        "kept": valid.numpy(),
        "depth": np.float64(inside[valid, 2].median() if bool(valid.any()) else 0.0),
        "global_descriptor": PooledFeatures().describe(image, pyramid).astype(np.float16),
    }
    for level, (values, confidence, _) in enumerate(samples):
        encoded[f"descriptor.{level}"] = values[0][valid].half().numpy()
        if confidence is not None:
            encoded[f"confidence.{level}"] = confidence[0][valid].half().numpy()
    return encoded


def _assemble(
    source: PosedImages, keyframes: list[_Keyframe], extractor: Extractor, working_side: int, work: WorkFolder | None
) -> Map:
    counts = [len(keyframe.points) for keyframe in keyframes]
    joined: dict[str, np.ndarray] = {}
    depths, global_descriptors, end = [], [], 0
    for keyframe in keyframes:
        encoded = keyframe.encoded()
        depths.append(encoded["depth"])
        global_descriptors.append(encoded["global_descriptor"])
        begin, end = end, end + len(keyframe.points)
        for name, values in encoded.items():
            if name.startswith(("descriptor.", "confidence.")):
                if name not in joined:
                    shape = (sum(counts), *values.shape[1:])
                    joined[name] = np.empty(shape, values.dtype) if work is None else work.array(name, shape, values.dtype)
                joined[name][begin:end] = values
    used, point = np.unique(np.concatenate([keyframe.points for keyframe in keyframes]), return_inverse=True)
    levels = range(len(extractor.strides))
    descriptors = tuple(joined[f"descriptor.{level}"] for level in levels)
    confidences = tuple(joined.get(f"confidence.{level}") for level in levels)
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
        keyframe_depth=np.array(depths, np.float32),
        global_descriptors=np.stack(global_descriptors),
        xyz=source.xyz[used],
        **observation_fields(counts, point, len(used), descriptors, confidences),
    )


def observation_fields(
    counts: np.ndarray | list[int],
    point: np.ndarray,
    points: int,
    descriptors: tuple[np.ndarray, ...],
    confidences: tuple[np.ndarray | None, ...],
) -> dict[str, object]:
    """The fields of a `Map` that depend on its observations.

    Args:
        counts: Observations of each keyframe.
        point: [M], rising within each keyframe.
        points: How many there are, P.
        descriptors: Per level [M, C].
        confidences: Per level [M], or None.
    """
    track_length = np.bincount(point, minlength=points).astype(np.int32)
    return {
        "track_length": track_length,
        "quality": _descriptor_agreement(decode_descriptors(descriptors[-1]), point, track_length),
        "observation_offsets": np.concatenate(([0], np.cumsum(counts))),
        "observation_point": point.astype(np.int32),
        "descriptors": descriptors,
        "confidences": confidences,
    }


def _descriptor_agreement(descriptors: np.ndarray, point: np.ndarray, track_length: np.ndarray) -> np.ndarray:
    """Mean cosine over the pairs of a point's unit descriptors, float32 [P], at least 0; 0 for a single observation.

    Over the n descriptors of a point with sum s it is (|s|² - n) / (n (n - 1)).
    """
    squared = np.zeros(len(track_length))
    for channel in range(descriptors.shape[1]):
        squared += np.bincount(point, descriptors[:, channel].astype(np.float64), len(track_length)) ** 2
    pairs = np.maximum(track_length * (track_length - 1), 1)
    return np.where(track_length > 1, np.clip((squared - track_length) / pairs, 0.0, 1.0), 0.0).astype(np.float32)


def unique_cameras(cameras: list[Camera]) -> tuple[list[Camera], list[int]]:
    """Each camera once, and which of them each was, by index."""
    keys = [(camera.model, camera.width, camera.height, *camera.params.tolist()) for camera in cameras]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return [cameras[keys.index(key)] for key in number], [number[key] for key in keys]

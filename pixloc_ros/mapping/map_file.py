# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The map and its file, `*.pixmap` (docs/reference.md).

The file is a tensor file with a description. Opening it maps it into memory. Only the header and what is as long as the list of
keyframes is read then, the rest when it is used.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.tensor_file import TensorFile, TensorFileError, tensor_bytes, write_arrays
from .georeference import Georeference

FORMAT = "pixmap"
VERSIONS = {"1": np.float16, "2": np.int8}
"""Dtype of the descriptors by version of the format. A map is written in the earliest version that can hold it."""
POOLED_FEATURES = "mean of the coarsest features"
"""Name of the default global descriptor (`retrieval.PooledFeatures`)."""
_COVERAGE_GRID = (8, 6)
_TENSORS = (
    ("keyframe.map_from_keyframe", "map_from_keyframe", np.float64, ("K", 4, 4)),
    ("keyframe.camera", "keyframe_camera", np.int32, ("K",)),
    ("keyframe.stamp_ns", "keyframe_stamp_ns", np.int64, ("K",)),
    ("keyframe.depth", "keyframe_depth", np.float32, ("K",)),
    ("keyframe.global_descriptor", "global_descriptors", np.float16, ("K", "G")),
    ("keyframe.observation_offset", "observation_offsets", np.int64, ("K+1",)),
    ("point.xyz", "xyz", np.float64, ("P", 3)),
    ("point.track_length", "track_length", np.int32, ("P",)),
    ("point.quality", "quality", np.float32, ("P",)),
    ("observation.point", "observation_point", np.int32, ("M",)),
)
"""Name in the file, field of `Map`, dtype and shape, where letters are lengths that must agree."""
_EXTRACTOR = {"name": "extractor_name", "fingerprint": "extractor_fingerprint"}
_EXTRACTOR |= {key: key for key in ("strides", "channels", "working_side")}
"""Key in the file's description, and field of `Map`."""


@dataclass(frozen=True, eq=False)
class Map:
    """Keyframes, points, and what each keyframe's features were at the points it sees.

    K keyframes, P points, M observations (pairs of keyframe and point), L feature levels, coarse to fine. Big arrays are
    read-only views of the mapped file.

    Attributes:
        name: The map's.
        extractor_name: Of the network that made the features.
        extractor_fingerprint: Of that network's weights.
        strides: [L], pixels.
        channels: [L].
        working_side: The longer side in pixels that images were shrunk to.
        cameras: Of the shrunk images.
        keyframe_names: [K], file names of the images.
        map_from_keyframe: float64 [K, 4, 4], optical axes.
        keyframe_camera: int32 [K], indices into `cameras`.
        keyframe_stamp_ns: int64 [K], -1 where unknown.
        keyframe_depth: float32 [K], median depth of the points seen, metres.
        global_descriptors: float16 [K, G], unit length.
        xyz: float64 [P, 3] metres, map frame.
        track_length: int32 [P], observations of the point.
        quality: float32 [P] in [0, 1], how similar the point's finest descriptors are (mean cosine over pairs of observations; 0
            for a single observation).
        observation_offsets: int64 [K + 1]; keyframe k's observations are rows offsets[k] to offsets[k + 1].
        observation_point: int32 [M], rising within each keyframe.
        descriptors: Per level float16 [M, C], unit length, or int8 [M, C], in the same direction (`decode_descriptors`).
        confidences: Per level float16 [M] in (0, 1], or None where the network has none.
        global_descriptor_name: What the global descriptors are.
        georeference: Where the map lies on the earth, None where that is unknown.
    """

    name: str
    extractor_name: str
    extractor_fingerprint: str
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    working_side: int
    cameras: list[Camera]
    keyframe_names: list[str]
    map_from_keyframe: torch.Tensor
    keyframe_camera: np.ndarray
    keyframe_stamp_ns: np.ndarray
    keyframe_depth: np.ndarray
    global_descriptors: np.ndarray
    xyz: np.ndarray
    track_length: np.ndarray
    quality: np.ndarray
    observation_offsets: np.ndarray
    observation_point: np.ndarray
    descriptors: tuple[np.ndarray, ...]
    confidences: tuple[np.ndarray | None, ...]
    global_descriptor_name: str = POOLED_FEATURES
    georeference: Georeference | None = None

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Map:
        """Map a file into memory.

        Args:
            path: The file.
            verify: Compare the contents of all tensors with their checksums, too. The structure is always checked.

        Raises:
            InputError: The file is missing, not a map, of a later version, cut short or damaged.
        """
        try:
            file = _MappedFile(Path(path))
            if verify:
                file.check_all()
            return file.to_map()
        except InputError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path} is damaged (its header makes no sense: {error!r}): build the map again or copy the file again"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Same map, same bytes. Raises `InputError`."""
        tensors = self._tensors()
        write_arrays(path, tensors, self._metadata(tensors))

    def require_extractor(self, extractor: Extractor) -> None:
        """Raise `InputError` where the map's features come from another network than the one given."""
        if extractor.fingerprint != self.extractor_fingerprint:
            raise InputError(
                f"map '{self.name}' was made with network '{self.extractor_name}' ({self.extractor_fingerprint}), "
                f"not with '{extractor.name}' ({extractor.fingerprint}): use those weights, or make the map again from its "
                "images with 'pixloc map re-encode'"
            )

    def observations(self, keyframe: int) -> slice:
        """The rows of one keyframe's observations."""
        return slice(int(self.observation_offsets[keyframe]), int(self.observation_offsets[keyframe + 1]))

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {name: np.ascontiguousarray(getattr(self, field), dtype) for name, field, dtype, _ in _TENSORS}
        for level, (descriptors, confidences) in enumerate(zip(self.descriptors, self.confidences)):
            tensors[f"observation.descriptor.{level}"] = np.ascontiguousarray(descriptors, VERSIONS[self.version])
            if confidences is not None:
                tensors[f"observation.confidence.{level}"] = np.ascontiguousarray(confidences, np.float16)
        return tensors

    @property
    def version(self) -> str:
        """Of the file that the map is written to."""
        return "2" if self.descriptors[0].dtype == np.int8 else "1"

    def _metadata(self, tensors: dict[str, np.ndarray]) -> dict[str, str]:
        description = {
            "name": self.name,
            "extractor": {key: getattr(self, field) for key, field in _EXTRACTOR.items()},
            "cameras": [describe_camera(camera) for camera in self.cameras],
            "keyframe_names": self.keyframe_names,
            "global_descriptor": self.global_descriptor_name,
            "crc32": {name: zlib.crc32(tensor_bytes(tensor)) for name, tensor in tensors.items()},
        }
        if self.georeference is not None:
            place = self.georeference
            description["georeference"] = {**vars(place), "enu_from_map": place.enu_from_map.tolist()}
        text = json.dumps(description, sort_keys=True)
        return {"format": FORMAT, "version": self.version, "map": text, "map_crc32": str(zlib.crc32(text.encode()))}


def keyframe_of_observations(map_: Map) -> np.ndarray:
    """Index of the keyframe of each observation, int64 [M]."""
    return np.repeat(np.arange(len(map_.keyframe_names)), np.diff(map_.observation_offsets))


def keyframe_pixels(map_: Map, keyframe: int) -> tuple[np.ndarray, np.ndarray, Camera]:
    """Where a keyframe's points project.

    Returns:
        Pixels float64 [n, 2] of its (shrunk) image; bool [n], whether the projection is valid and inside; its camera.
    """
    camera = map_.cameras[int(map_.keyframe_camera[keyframe])]
    xyz = torch.from_numpy(map_.xyz[map_.observation_point[map_.observations(keyframe)]])
    pixels, valid = camera.project(se3.transform(se3.inverse(map_.map_from_keyframe[keyframe]), xyz))
    return pixels.numpy(), (valid & camera.in_image(pixels)).numpy(), camera


def coverage(map_: Map, keyframe: int) -> float:
    """Share of the cells of an 8x6 grid over a keyframe's image that hold a point."""
    pixels, _, camera = keyframe_pixels(map_, keyframe)
    columns, rows = _COVERAGE_GRID
    cell = np.floor((pixels + 0.5) / [camera.width / columns, camera.height / rows]).astype(int)
    return len(np.unique(np.clip(cell, 0, [columns - 1, rows - 1]), axis=0)) / (columns * rows)


def describe_camera(camera: Camera) -> dict:
    """A camera as plain values."""
    return {"model": camera.model, "width": camera.width, "height": camera.height, "params": camera.params.tolist()}


def decode_descriptors(stored: np.ndarray) -> np.ndarray:
    """Rows of a map's descriptors, float16 or int8 [N, C], as float32; those of eight bits brought back to unit length."""
    values = torch.from_numpy(np.require(stored, None, "W")).float().numpy()  # NumPy takes ten times as long for float16
    if stored.dtype == np.int8:
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1.0)
    return values


def encode_descriptors(values: np.ndarray) -> np.ndarray:
    """Unit vectors [N, C] in eight bits: each row scaled so that its largest component is 127."""
    values = values.astype(np.float32)
    largest = np.maximum(np.abs(values).max(1, keepdims=True), np.float32(1e-12))
    return np.round(values * (127 / largest)).astype(np.int8)


def _specification(levels: int, version: str) -> dict[str, tuple[type, tuple[str | int, ...]]]:
    """Name to dtype and shape of all tensors; C0... are the channels."""
    tensors = {name: (dtype, shape) for name, _, dtype, shape in _TENSORS}
    for level in range(levels):
        tensors[f"observation.descriptor.{level}"] = VERSIONS[version], ("M", f"C{level}")
        tensors[f"observation.confidence.{level}"] = np.float16, ("M",)
    return tensors


class _MappedFile:
    """A tensor file whose description and tensors are those of a map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = self._open()
        self.description = self._description(file.metadata)
        self.tensors = file.arrays
        self._check_shapes()

    def damaged(self, why: str) -> InputError:
        return InputError(f"{self.path} is damaged ({why}): build the map again or copy the file again")

    def _open(self) -> TensorFile:
        try:
            return TensorFile(self.path)
        except TensorFileError as error:
            if error.foreign:
                raise InputError(f"{self.path} is not a pixloc map: make one with 'pixloc map'") from None
            raise self.damaged(str(error)) from None
        except FileNotFoundError:
            raise InputError(f"no map file {self.path}: check the path, or make it with 'pixloc map'") from None
        except OSError as error:
            raise InputError(f"cannot read {self.path} ({error.strerror}): give a map file made with 'pixloc map'") from error

    def _description(self, metadata: dict[str, str]) -> dict:
        if metadata.get("format") != FORMAT:
            raise InputError(f"{self.path} is not a pixloc map but another safetensors file: make a map with 'pixloc map'")
        self.version = metadata.get("version")
        if self.version not in VERSIONS:
            raise InputError(
                f"{self.path} is a map of format version {self.version}, this program reads versions "
                f"{' and '.join(VERSIONS)}: update pixloc_ros or build the map again"
            )
        text = metadata.get("map", "")
        if str(zlib.crc32(text.encode())) != metadata.get("map_crc32"):
            raise self.damaged("its description does not match its checksum")
        return json.loads(text)

    def _check_shapes(self) -> None:
        extractor = self.description["extractor"]
        specification = _specification(len(extractor["strides"]), self.version)
        optional = {name for name in specification if name.startswith("observation.confidence.")}
        if not set(specification) - optional <= set(self.tensors) <= set(specification):
            raise self.damaged("it lacks tensors or has too many")
        lengths: dict[str | int, int] = {f"C{level}": channels for level, channels in enumerate(extractor["channels"])}
        lengths["K"] = len(self.description["keyframe_names"])
        lengths["K+1"] = lengths["K"] + 1
        for name, tensor in self.tensors.items():
            dtype, wanted = specification[name]
            if tensor.dtype != dtype:
                raise self.damaged(f"'{name}' is of type {tensor.dtype}, which makes no sense")
            if len(wanted) != tensor.ndim or any(
                length != (lengths.setdefault(symbol, length) if isinstance(symbol, str) else symbol)
                for symbol, length in zip(wanted, tensor.shape)
            ):
                raise self.damaged(f"'{name}' has shape {list(tensor.shape)}, which does not fit the others")

    def _check(self, name: str) -> None:
        if zlib.crc32(tensor_bytes(self.tensors[name])) != self.description["crc32"].get(name):
            raise self.damaged(f"'{name}' does not match its checksum")

    def check_all(self) -> None:
        """Compare every tensor with its checksum, and look at every index."""
        for name in self.tensors:
            self._check(name)
        point = self.tensors["observation.point"]
        if point.size and not (point.min() >= 0 and point.max() < len(self.tensors["point.xyz"])):
            raise self.damaged("observations refer to points that it does not hold")
        if not np.isfinite(self.tensors["point.xyz"]).all():
            raise self.damaged("points are not finite numbers")

    def to_map(self) -> Map:
        tensors, description = self.tensors, self.description
        for name in tensors:
            if name.startswith("keyframe."):
                self._check(name)
        offsets = tensors["keyframe.observation_offset"]
        if offsets[0] != 0 or offsets[-1] != len(tensors["observation.point"]) or (np.diff(offsets) < 0).any():
            raise self.damaged("its observation offsets do not rise from 0 to the number of observations")
        cameras = [
            Camera(camera["model"], camera["width"], camera["height"], torch.tensor(camera["params"], dtype=torch.float64))
            for camera in description["cameras"]
        ]
        camera_index = tensors["keyframe.camera"]
        if camera_index.size and not (camera_index.min() >= 0 and camera_index.max() < len(cameras)):
            raise self.damaged("keyframes refer to cameras that it does not hold")
        fields = {field: tensors[name] for name, field, _, _ in _TENSORS}
        fields["map_from_keyframe"] = torch.from_numpy(fields["map_from_keyframe"].copy())
        se3.check_pose(fields["map_from_keyframe"], f"a keyframe of {self.path}")
        extractor = {field: description["extractor"][key] for key, field in _EXTRACTOR.items()}
        levels = range(len(extractor["strides"]))
        georeference = description.get("georeference")
        if georeference is not None:
            pose = torch.tensor(georeference["enu_from_map"], dtype=torch.float64)
            place = (float(georeference[key]) for key in ("latitude", "longitude", "altitude"))
            georeference = Georeference(*place, pose)
        return Map(
            name=description["name"],
            **{field: tuple(value) if isinstance(value, list) else value for field, value in extractor.items()},
            cameras=cameras,
            keyframe_names=description["keyframe_names"],
            **fields,
            descriptors=tuple(tensors[f"observation.descriptor.{level}"] for level in levels),
            confidences=tuple(tensors.get(f"observation.confidence.{level}") for level in levels),
            global_descriptor_name=str(description.get("global_descriptor", POOLED_FEATURES)),
            georeference=georeference,
        )

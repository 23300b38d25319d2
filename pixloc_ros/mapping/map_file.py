# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The map and its file, `*.pixmap` (docs/map_format.md).

The file is laid out like safetensors: the length of a JSON header, the header, then the tensors one after another.
Opening it maps it into memory; only the header and what is as long as the list of keyframes is read then, the rest
when it is used.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera

FORMAT = "pixmap"
VERSION = 1
_LONGEST_HEADER = 100_000_000  # safetensors' own bound
_ALIGNMENT = 64
_DTYPES = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Map:
    """Keyframes, points, and what each keyframe's features were at the points it sees.

    K keyframes, P points, M observations (pairs of keyframe and point), L feature levels, coarse to fine. Big arrays
    are read-only views of the mapped file.

    name: the map's. extractor_name, extractor_fingerprint, strides [L], channels [L]: the network that made the
    features. working_side: the longer side in pixels that images were shrunk to. cameras: of the shrunk images.
    keyframe_names: file names of the images. map_from_keyframe: float64 [K, 4, 4], optical axes. keyframe_camera:
    int32 [K], indices into cameras. keyframe_stamp_ns: int64 [K], -1 where unknown. keyframe_depth: float32 [K],
    median depth of the points seen, metres. global_descriptors: float16 [K, G], unit length. xyz: float64 [P, 3]
    metres, map frame. track_length: int32 [P], observations of the point. quality: float32 [P] in [0, 1], how alike
    the point's finest descriptors are (mean cosine over pairs of observations; 0 where there is but one).
    observation_offsets: int64 [K + 1]: keyframe k's observations are rows offsets[k] to offsets[k + 1].
    observation_point: int32 [M]. descriptors: per level float16 [M, C], unit length. confidences: per level float16
    [M] in (0, 1], or None where the network has none.
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

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Map:
        """Map a file into memory. Its structure is always checked, the contents of all tensors only with `verify`.

        Raises InputError where the file is missing, no map, of a later version, cut short or damaged.
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
        """Write the file: under a temporary name in the same folder, synced, then renamed. Same map, same bytes."""
        path = Path(path)
        tensors = self._tensors()
        header = _header(self, tensors)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(header)
                for tensor in tensors.values():
                    file.write(memoryview(tensor).cast("B") if tensor.size else b"")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror}): give a place that is writable and has room"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # gone after the rename
                temporary.unlink()

    def require_extractor(self, extractor: Extractor) -> None:
        """Raise InputError where the map's features come from another network than the one given."""
        if extractor.fingerprint != self.extractor_fingerprint:
            raise InputError(
                f"map '{self.name}' was made with network '{self.extractor_name}' ({self.extractor_fingerprint}), "
                f"not with '{extractor.name}' ({extractor.fingerprint}): use those weights or build the map again"
            )

    def observations(self, keyframe: int) -> slice:
        """The rows of one keyframe's observations."""
        return slice(int(self.observation_offsets[keyframe]), int(self.observation_offsets[keyframe + 1]))

    def _tensors(self) -> dict[str, np.ndarray]:
        """Name to array, widest items first, so that every tensor of the file is aligned to its items."""
        tensors = {
            "keyframe.map_from_keyframe": self.map_from_keyframe.numpy(),
            "keyframe.camera": self.keyframe_camera,
            "keyframe.stamp_ns": self.keyframe_stamp_ns,
            "keyframe.depth": self.keyframe_depth,
            "keyframe.global_descriptor": self.global_descriptors,
            "keyframe.observation_offset": self.observation_offsets,
            "point.xyz": self.xyz,
            "point.track_length": self.track_length,
            "point.quality": self.quality,
            "observation.point": self.observation_point,
        }
        for level, (descriptors, confidences) in enumerate(zip(self.descriptors, self.confidences)):
            tensors[f"observation.descriptor.{level}"] = descriptors
            if confidences is not None:
                tensors[f"observation.confidence.{level}"] = confidences
        specification = _specification(len(self.strides))
        tensors = {
            name: np.ascontiguousarray(tensor, _DTYPES[specification[name][0]]) for name, tensor in tensors.items()
        }
        return dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))


def _specification(levels: int) -> dict[str, tuple[str, tuple[str | int, ...]]]:
    """Name to dtype and shape; letters are lengths that must agree, C0... the channels."""
    tensors: dict[str, tuple[str, tuple[str | int, ...]]] = {
        "keyframe.map_from_keyframe": ("F64", ("K", 4, 4)),
        "keyframe.camera": ("I32", ("K",)),
        "keyframe.stamp_ns": ("I64", ("K",)),
        "keyframe.depth": ("F32", ("K",)),
        "keyframe.global_descriptor": ("F16", ("K", "G")),
        "keyframe.observation_offset": ("I64", ("K+1",)),
        "point.xyz": ("F64", ("P", 3)),
        "point.track_length": ("I32", ("P",)),
        "point.quality": ("F32", ("P",)),
        "observation.point": ("I32", ("M",)),
    }
    for level in range(levels):
        tensors[f"observation.descriptor.{level}"] = ("F16", ("M", f"C{level}"))
        tensors[f"observation.confidence.{level}"] = ("F16", ("M",))
    return tensors


def _header(map_: Map, tensors: dict[str, np.ndarray]) -> bytes:
    description = {
        "name": map_.name,
        "extractor": {
            "name": map_.extractor_name,
            "fingerprint": map_.extractor_fingerprint,
            "strides": list(map_.strides),
            "channels": list(map_.channels),
            "working_side": map_.working_side,
        },
        "cameras": [
            {"model": camera.model, "width": camera.width, "height": camera.height, "params": camera.params.tolist()}
            for camera in map_.cameras
        ],
        "keyframe_names": map_.keyframe_names,
        "crc32": {
            name: zlib.crc32(memoryview(tensor).cast("B") if tensor.size else b"") for name, tensor in tensors.items()
        },
    }
    text = json.dumps(description, sort_keys=True)
    table: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "map": text,
            "map_crc32": str(zlib.crc32(text.encode())),
        }
    }
    end = 0
    for name, tensor in tensors.items():
        table[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


class _MappedFile:
    """A file that has the layout of a map: header parsed, tensors as views."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapping = self._map()
        table, start = self._table()
        metadata = table.pop("__metadata__", None)
        self.description = self._description(metadata)
        self.tensors = dict(self._views(table, start))
        self._check_shapes()

    def damaged(self, why: str) -> InputError:
        return InputError(f"{self.path} is damaged ({why}): build the map again or copy the file again")

    def _map(self) -> mmap.mmap:
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < 8:
                    raise InputError(f"{self.path} is not a pixloc map: make one with 'pixloc map'")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise InputError(f"no map file {self.path}: check the path, or make it with 'pixloc map'") from None
        except OSError as error:
            raise InputError(
                f"cannot read {self.path} ({error.strerror}): give a map file made with 'pixloc map'"
            ) from error

    def _table(self) -> tuple[dict, int]:
        (length,) = struct.unpack("<Q", self._mapping[:8])
        foreign = InputError(f"{self.path} is not a pixloc map: make one with 'pixloc map'")
        if length > _LONGEST_HEADER or self._mapping[8:9] != b"{":
            raise foreign
        if 8 + length > len(self._mapping):
            raise self.damaged("it ends within its header")
        try:
            table = json.loads(self._mapping[8 : 8 + length])
        except (ValueError, RecursionError):
            raise foreign from None
        return table, 8 + length

    def _description(self, metadata: object) -> dict:
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise InputError(
                f"{self.path} is not a pixloc map but another safetensors file: make a map with 'pixloc map'"
            )
        if metadata.get("version") != str(VERSION):
            raise InputError(
                f"{self.path} is a map of format version {metadata.get('version')}, this program reads version "
                f"{VERSION}: update pixloc_ros or build the map again"
            )
        text = metadata.get("map")
        if not isinstance(text, str) or str(zlib.crc32(text.encode())) != metadata.get("map_crc32"):
            raise self.damaged("its description does not match its checksum")
        return json.loads(text)

    def _views(self, table: dict, start: int) -> Iterator[tuple[str, np.ndarray]]:
        specification = _specification(len(self.description["extractor"]["strides"]))
        optional = {name for name in specification if name.startswith("observation.confidence.")}
        if not set(specification) - optional <= set(table) <= set(specification):
            raise self.damaged("it lacks tensors or has too many")
        size = len(self._mapping) - start
        ends = [0]
        for name, entry in table.items():
            try:
                first, last = entry["data_offsets"]
                shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
                sound = entry["dtype"] == specification[name][0] and all(isinstance(n, int) and n >= 0 for n in shape)
                count = int(np.prod(shape, dtype=object))
                sound = sound and first == ends[-1] and last - first == count * dtype.itemsize
            except (KeyError, TypeError, ValueError):
                sound = False
            if not sound:
                raise self.damaged(f"the entry of '{name}' in its header makes no sense")
            if last > size:
                raise self.damaged(f"it is cut short: {size} bytes of data where '{name}' ends at {last}")
            ends.append(last)
            yield name, np.frombuffer(self._mapping, dtype, count, start + first).reshape(shape)
        if ends[-1] != size:
            raise self.damaged("it is longer than its header says")

    def _check_shapes(self) -> None:
        extractor = self.description["extractor"]
        lengths: dict[str | int, int] = {f"C{level}": channels for level, channels in enumerate(extractor["channels"])}
        lengths["K"] = len(self.description["keyframe_names"])
        lengths["K+1"] = lengths["K"] + 1
        specification = _specification(len(extractor["strides"]))
        for name, tensor in self.tensors.items():
            wanted = specification[name][1]
            if len(wanted) != tensor.ndim or any(
                length != (lengths.setdefault(symbol, length) if isinstance(symbol, str) else symbol)
                for symbol, length in zip(wanted, tensor.shape)
            ):
                raise self.damaged(f"'{name}' has shape {list(tensor.shape)}, which does not fit the others")

    def _check(self, name: str) -> None:
        tensor = self.tensors[name]
        if zlib.crc32(memoryview(tensor).cast("B") if tensor.size else b"") != self.description["crc32"].get(name):
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
            Camera(
                camera["model"], camera["width"], camera["height"], torch.tensor(camera["params"], dtype=torch.float64)
            )
            for camera in description["cameras"]
        ]
        camera_index = tensors["keyframe.camera"]
        if camera_index.size and not (camera_index.min() >= 0 and camera_index.max() < len(cameras)):
            raise self.damaged("keyframes refer to cameras that it does not hold")
        map_from_keyframe = torch.from_numpy(tensors["keyframe.map_from_keyframe"].copy())
        se3.check_pose(map_from_keyframe, f"a keyframe of {self.path}")
        extractor = description["extractor"]
        levels = range(len(extractor["strides"]))
        return Map(
            name=description["name"],
            extractor_name=extractor["name"],
            extractor_fingerprint=extractor["fingerprint"],
            strides=tuple(extractor["strides"]),
            channels=tuple(extractor["channels"]),
            working_side=extractor["working_side"],
            cameras=cameras,
            keyframe_names=description["keyframe_names"],
            map_from_keyframe=map_from_keyframe,
            keyframe_camera=camera_index,
            keyframe_stamp_ns=tensors["keyframe.stamp_ns"],
            keyframe_depth=tensors["keyframe.depth"],
            global_descriptors=tensors["keyframe.global_descriptor"],
            xyz=tensors["point.xyz"],
            track_length=tensors["point.track_length"],
            quality=tensors["point.quality"],
            observation_offsets=offsets,
            observation_point=tensors["observation.point"],
            descriptors=tuple(tensors[f"observation.descriptor.{level}"] for level in levels),
            confidences=tuple(tensors.get(f"observation.confidence.{level}") for level in levels),
        )

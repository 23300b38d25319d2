# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps from a drive: images with poses in the order of time, as a rosbag holds them.

Steps, each kept in the work folder until the map is written: keyframes; points, by triangulation or from depth; features.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ...errors import InputError
from ...features import Extractor
from ...geometry.cameras import Camera
from ...io.depth import without_edges
from ...io.images import load_grey
from ...io.work_folder import WorkFolder
from ..map_file import Map
from ..statistics import coverage
from .building import BuildReport, PosedImages, Progress, build_map
from .depth_points import DepthKeyframe, find_points
from .keyframes import KeyframeOptions, KeyframeSelector, PosedFrame
from .triangulation import TriangulationOptions, triangulate

DEPTH_UNITS_PER_METRE = 1000.0
"""Of the depth images in the work folder."""
_FEWEST_KEYFRAMES = 2
_POOR_KEYFRAME = 50

FrameSource = Callable[[Callable[[int], bool]], Iterable[PosedFrame]]
"""Called with what says which stamps are still wanted; yields frames in the order of time."""


@dataclass(frozen=True)
class PosedMapOptions:
    """mask: an image file, or a folder of those named like the keyframes; black is left out. keyframes, triangulation: see
    there."""

    mask: Path | None = None
    keyframes: KeyframeOptions = KeyframeOptions()
    triangulation: TriangulationOptions = TriangulationOptions()

    def to_json(self) -> dict:
        """For the work folder's key."""
        return {**asdict(self), "mask": str(self.mask) if self.mask else None}


@dataclass(frozen=True)
class PosedMapReport:
    """How good a map of a drive is.

    images: given with a pose. keyframes, points, observations: of the map. points_per_keyframe: 5th percentile, median.
    coverage: share of the cells of an 8x6 grid over the image that hold a point, median over keyframes. poor_keyframes:
    names of those with fewer than 50 points. reprojection_px: median and 95th percentile of the observations' distance from
    the projection, image pixels; None with depth. descriptor_consistency: median of the points' quality. length_m: of the path
    through the keyframes. rejected: points and frames left out, by reason. build: of the features.
    """

    images: int
    keyframes: int
    points: int
    observations: int
    points_per_keyframe: tuple[float, float]
    coverage: float
    poor_keyframes: tuple[str, ...]
    reprojection_px: tuple[float, float] | None
    descriptor_consistency: float
    length_m: float
    rejected: dict[str, int]
    build: BuildReport

    def to_json(self) -> dict:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Keyframe:
    name: str
    stamp_ns: int
    camera: Camera
    map_from_camera: torch.Tensor
    depth: bool


def build_map_from_posed_frames(
    frames: FrameSource,
    extractor: Extractor,
    work: WorkFolder,
    options: PosedMapOptions = PosedMapOptions(),
    working_side: int | None = None,
    name: str = "drive",
    progress: Progress | None = None,
) -> tuple[Map, PosedMapReport]:
    """Map of a drive.

    frames: called once; gives the images of known pose. work: the work folder, for the same frames and options as before.
    Points come from depth where the keyframes have it, else from triangulation. Raises InputError where fewer than two
    keyframes come out, or no points.
    """
    posed = points_of_posed_frames(frames, work, options, name, progress)
    map_, build = build_map(posed.source, extractor, working_side, progress, work)
    return map_, _report(map_, build, posed)


@dataclass(frozen=True, eq=False)
class PosedPoints:
    """Keyframes of a drive, their images in the work folder, and the points they see. images: given with a pose. rejected:
    points and frames left out, by reason. error_px: of the observations, None with depth."""

    source: PosedImages
    images: int
    rejected: dict[str, int]
    error_px: np.ndarray | None


def points_of_posed_frames(
    frames: FrameSource,
    work: WorkFolder,
    options: PosedMapOptions = PosedMapOptions(),
    name: str = "drive",
    progress: Progress | None = None,
) -> PosedPoints:
    """All of a map but its features; arguments and errors as of `build_map_from_posed_frames`."""
    keyframes, images, rejected = _choose_keyframes(frames, work, options.keyframes, progress)
    paths = [work.path(f"images/{keyframe.name}") for keyframe in keyframes]
    poses = torch.stack([keyframe.map_from_camera for keyframe in keyframes])
    cameras = [keyframe.camera for keyframe in keyframes]
    masks, error = _Masks(options.mask), None
    if all(keyframe.depth for keyframe in keyframes):
        xyz, image, point = _points_from_depth(keyframes, paths, work, masks)
    else:

        def load(k: int) -> np.ndarray:
            return load_grey(paths[k], cameras[k])

        def load_mask(k: int) -> np.ndarray | None:
            return masks.load(paths[k].name, cameras[k])

        points = triangulate(load, load_mask, cameras, poses, work, options.triangulation, progress)
        xyz, image, point, error = points.xyz, points.observation_image, points.observation_point, points.error_px
        rejected.update(points.rejected)
    stamps = np.array([keyframe.stamp_ns for keyframe in keyframes], np.int64)
    source = PosedImages(name, paths, [keyframe.name for keyframe in keyframes], cameras, poses, stamps, xyz, image, point)
    return PosedPoints(source, images, {reason: count for reason, count in rejected.items() if count}, error)


# ---- keyframes


def _choose_keyframes(
    frames: FrameSource, work: WorkFolder, options: KeyframeOptions, progress: Progress | None
) -> tuple[list[_Keyframe], int, Counter]:
    """The keyframes, their images in the work folder; the number of images with a pose; what was left out.

    Every keyframe is written down with the stamp of the frame at which its stretch ended: where the choice goes on.
    """
    keyframes: list[_Keyframe] = []
    images, blank, since, whole = 0, 0, -1, False
    while (path := work.path(f"keyframes/{len(keyframes):06d}.json")).is_file():
        stored = json.loads(path.read_text())
        images, blank, since, whole = stored["images"], stored["blank"], stored["next_stamp_ns"], stored["last"]
        keyframes.append(_keyframe_of(stored))
    if not whole:
        selector = KeyframeSelector(options)
        selector.blank = blank

        frame = None
        for frame in frames(lambda stamp_ns: stamp_ns >= since):
            if progress:
                progress(len(keyframes), images, "keyframes of images read")
            done = selector.feed(frame)
            if done is not None:
                # The frame that ended the stretch is counted with the next one.
                keyframes.append(_store(done, len(keyframes), work, images, blank, frame.stamp_ns, False))
            images, blank = images + 1, selector.blank
        done = selector.finish()
        if done is not None:
            keyframes.append(_store(done, len(keyframes), work, images, blank, frame.stamp_ns, True))
    if len(keyframes) < _FEWEST_KEYFRAMES:
        raise InputError(
            f"{images} images with a pose give {len(keyframes)} keyframes, a map needs {_FEWEST_KEYFRAMES}: check that the "
            "camera moves and that the poses cover the images"
        )
    return keyframes, images, Counter({"blank images": blank} if blank else {})


def _store(frame: PosedFrame, number: int, work: WorkFolder, images: int, blank: int, following: int, last: bool) -> _Keyframe:
    name = f"{frame.stamp_ns}.png"
    image = frame.image if frame.image.ndim == 2 else cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
    work.write(f"images/{name}", lambda path: _write_png(path, image))
    if frame.depth is not None:
        units = np.clip(np.round(frame.depth * DEPTH_UNITS_PER_METRE), 0, 65535).astype(np.uint16)
        work.write(f"depth/{name}", lambda path: _write_png(path, units))
    camera = frame.camera
    stored = {
        "name": name,
        "stamp_ns": frame.stamp_ns,
        "map_from_camera": frame.map_from_camera.tolist(),
        "camera": [camera.model, camera.width, camera.height, camera.params.tolist()],
        "depth": frame.depth is not None,
        "images": images,
        "blank": blank,
        "next_stamp_ns": following,
        "last": last,
    }
    work.write(f"keyframes/{number:06d}.json", lambda path: path.write_text(json.dumps(stored)))
    return _keyframe_of(stored)


def _keyframe_of(stored: dict) -> _Keyframe:
    model, width, height, params = stored["camera"]
    return _Keyframe(
        stored["name"],
        stored["stamp_ns"],
        Camera(model, width, height, torch.tensor(params, dtype=torch.float64)),
        torch.tensor(stored["map_from_camera"], dtype=torch.float64),
        stored["depth"],
    )


def _write_png(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise InputError(f"cannot write {path}: give a place that is writable and has room")


# ---- points


class _Masks:
    """Where points may be: white in the mask's images."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None and not Path(path).exists():
            raise InputError(f"no mask {path}: give an image, or a folder of images named like the keyframes")

    def load(self, name: str, camera: Camera) -> np.ndarray | None:
        """bool [H, W], or None where there is none for this image."""
        if self._path is None:
            return None
        path = self._path / name if self._path.is_dir() else self._path
        return load_grey(path, camera) > 127 if path.is_file() else None


def _points_from_depth(
    keyframes: list[_Keyframe], paths: list[Path], work: WorkFolder, masks: _Masks
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def find() -> dict[str, np.ndarray]:
        camera, loaded = keyframes[0].camera, []
        for keyframe, path in zip(keyframes, paths):
            if not torch.equal(keyframe.camera.params, camera.params):
                raise InputError("the calibration changes within the bag: a map from depth needs one; cut the bag there")
            units = cv2.imread(str(work.path(f"depth/{keyframe.name}")), cv2.IMREAD_UNCHANGED)
            depth = without_edges((units / np.float32(DEPTH_UNITS_PER_METRE)).astype(np.float32))
            mask = masks.load(keyframe.name, camera)
            if mask is not None:
                depth[~mask] = 0
            loaded.append(DepthKeyframe(keyframe.map_from_camera, load_grey(path, camera), depth))
        return dict(zip(("xyz", "image", "point"), find_points(loaded, camera)))

    found = work.arrays("points", find)
    if not len(found["point"]):
        raise InputError("the depth images give no point: check that depth is aligned with the images and in metres or mm")
    return found["xyz"], found["image"], found["point"]


# ---- report


def _report(map_: Map, build: BuildReport, posed: PosedPoints) -> PosedMapReport:
    counts = np.diff(map_.observation_offsets)
    centres = map_.map_from_keyframe[:, :3, 3].numpy()
    error = None
    if posed.error_px is not None:
        error = tuple(float(v) for v in np.percentile(posed.error_px, (50, 95)))
    return PosedMapReport(
        images=posed.images,
        keyframes=len(counts),
        points=len(map_.xyz),
        observations=len(map_.observation_point),
        points_per_keyframe=tuple(float(v) for v in np.percentile(counts, (5, 50))),
        coverage=float(np.median([coverage(map_, k) for k in range(len(counts))])),
        poor_keyframes=tuple(map_.keyframe_names[k] for k in np.flatnonzero(counts < _POOR_KEYFRAME)),
        reprojection_px=error,
        descriptor_consistency=float(np.median(map_.quality[map_.track_length > 1])) if (map_.track_length > 1).any() else 0.0,
        length_m=float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum()),
        rejected=posed.rejected,
        build=build,
    )

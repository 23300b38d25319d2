# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One recording of a public data set: images over time, where the body was, how the camera sits on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.depth import MAX_DEPTH_OFFSET_NS
from ..io.frames import Odometry, UnusableFrame
from ..io.image_format import decode_compressed
from ..io.images import load_image
from ..io.trajectory import Trajectory
from ..io.tum import SAME_INSTANT_NS, RgbdFrame, load_depth, nearest_stamp
from ..mapping.build.keyframes import PosedFrame
from ..mapping.build.posed_frames import FrameSource

MAX_POSE_GAP_NS = 250_000_000
"""Poses are interpolated to the images' stamps between neighbours no further apart."""
EPOCH_NS = 1_000_000_000_000_000_000
"""Added to the stamps of sets whose clock starts at zero: a stamp of 0 means "unset" in ROS."""
BASE_FROM_OPTICAL = torch.tensor([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
"""Of a base that is the camera itself in the axes of REP-103: x forward, y left, z up."""
_ENCODINGS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


@dataclass(frozen=True, eq=False)
class Picture:
    """One image.

    Attributes:
        encoded: uint8 [N], a PNG or JPEG file.
        depth: Gives float32 [H, W] metres as the camera saw it at this stamp, 0 where unknown; None where there is none.
    """

    stamp_ns: int
    encoded: np.ndarray
    depth: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images of a recording.

    Attributes:
        stamps_ns: int64 [N], rising.
        encoding: "png" or "jpeg".
        read: Called with what says which stamps are wanted; gives those pictures in the order of time.
        has_depth: Whether depth images come with them.
        left_out: Images that cannot be used, by reason.
    """

    stamps_ns: np.ndarray
    encoding: str
    read: Callable[[Callable[[int], bool]], Iterator[Picture]]
    has_depth: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording.

    Attributes:
        name: Of the recording.
        camera: Its calibration.
        pictures: Its images.
        map_from_base: The ground truth.
        base_from_camera: float64 [4, 4].
        odometry: What the set has recorded, None where it has none.
        files: What it was read from, to recognize it.
    """

    name: str
    camera: Camera
    pictures: Pictures
    map_from_base: Trajectory
    base_from_camera: torch.Tensor
    odometry: Odometry | None = None
    files: tuple[Path, ...] = ()

    @property
    def stamps_ns(self) -> np.ndarray:
        """Of the images, int64 [N]."""
        return self.pictures.stamps_ns

    def posed(self) -> tuple[np.ndarray, torch.Tensor]:
        """Stamps of the images whose pose is known, int64 [M], and map_from_base float64 [M, 4, 4]. Raises InputError: none."""
        poses, known = self.map_from_base.at(self.stamps_ns, MAX_POSE_GAP_NS)
        if not known.any():
            raise InputError(f"{self.name}: no image lies within the times of the ground truth: they use different clocks")
        return self.stamps_ns[known], poses[torch.from_numpy(known)]

    def unusable(self) -> dict[str, int]:
        """Images left out, by reason, with those that have no pose."""
        unposed = len(self.stamps_ns) - len(self.posed()[0])
        return {**self.pictures.left_out, **({"no ground truth at its time": unposed} if unposed else {})}

    def only(self, chosen: np.ndarray) -> Recording:
        """The same with the chosen images only; bool [N]."""
        return replace(self, pictures=replace(self.pictures, stamps_ns=self.stamps_ns[chosen]))


def split_every(sequence: Recording, every: int) -> tuple[Recording, Recording]:
    """Each `every`-th image of known pose for the map, and the others for the drive. Raises InputError: every below 2."""
    if every < 2:
        raise InputError(f"--map-every {every}: give 2 or more, so that images are left for the drive")
    posed = sequence.only(np.isin(sequence.stamps_ns, sequence.posed()[0]))
    posed = replace(posed, pictures=replace(posed.pictures, left_out=sequence.unusable()))
    mapped = np.arange(len(posed.stamps_ns)) % every == 0
    return posed.only(mapped), posed.only(~mapped)


def frames_for_map(sequences: Sequence[Recording], with_depth: bool, every: int = 1) -> FrameSource:
    """The images of known pose, one recording after the other, each `every`-th of them; with depth only those that have it, where
    the recording has any; an unusable image comes as `UnusableFrame`. Raises InputError: recordings overlap in time."""
    ordered = sorted(sequences, key=lambda sequence: int(sequence.stamps_ns[0]))
    for before, after in zip(ordered, ordered[1:]):
        if before.stamps_ns[-1] >= after.stamps_ns[0]:
            raise InputError(f"{before.name} and {after.name} overlap in time: make the map of one of them")

    def frames(wanted: Callable[[int], bool]) -> Iterator[PosedFrame | UnusableFrame]:
        for sequence in ordered:
            stamps, map_from_base = sequence.posed()
            poses = dict(zip(stamps[::every].tolist(), map_from_base[::every] @ sequence.base_from_camera))
            for picture in sequence.pictures.read(lambda stamp_ns, poses=poses: stamp_ns in poses and wanted(stamp_ns)):
                if with_depth and sequence.pictures.has_depth and picture.depth is None:
                    continue
                try:
                    image = decode_compressed(picture.encoded)
                    check_size(sequence, image)
                    depth = picture.depth() if with_depth and picture.depth is not None else None
                    yield PosedFrame(picture.stamp_ns, image, sequence.camera, poses[picture.stamp_ns], depth)
                except InputError as error:
                    yield UnusableFrame(picture.stamp_ns, str(error))

    return frames


def check_size(sequence: Recording, image: np.ndarray) -> None:
    """Raises InputError where an image has another size than the sequence's camera."""
    camera = sequence.camera
    if image.shape[:2] != (camera.height, camera.width):
        raise InputError(
            f"{sequence.name}: images are {image.shape[1]}x{image.shape[0]} but the calibration is for "
            f"{camera.width}x{camera.height}: give the calibration of these images"
        )


def picture_files(name: str, paths: Mapping[int, Path], depth: Mapping[int, Callable[[], np.ndarray]] | None = None) -> Pictures:
    """Pictures from files by stamp, with what loads their depth. Files that are missing are left out and counted.

    Raises:
        InputError: None is there, or they are of no known kind.
    """
    present = {stamp: path for stamp, path in sorted(paths.items()) if path.is_file()}
    if not present:
        example = next((f", for example {path}" for path in paths.values()), "")
        raise InputError(f"{name}: none of its {len(paths)} images is there{example}: unpack the images where the set has them")
    kinds = {_ENCODINGS.get(path.suffix.lower()) for path in present.values()}
    if len(kinds) != 1 or None in kinds:
        raise InputError(f"{name}: images must be all PNG or all JPEG, for example {next(iter(present.values()))}")

    def read(wanted: Callable[[int], bool]) -> Iterator[Picture]:
        for stamp, path in present.items():
            if wanted(stamp):
                yield Picture(stamp, np.fromfile(path, np.uint8), depth.get(stamp) if depth else None)

    missing = len(paths) - len(present)
    left_out = {"image file missing": missing} if missing else {}
    return Pictures(np.array(list(present), np.int64), kinds.pop(), read, bool(depth), left_out)


def aligned_depth_files(
    images: Mapping[int, Path],
    depths: Mapping[int, Path],
    map_from_base: Trajectory,
    base_from_camera: torch.Tensor,
    camera: Camera,
    scale: float,
) -> dict[int, Callable[[], np.ndarray]]:
    """For each image stamp that has one: what loads the depth image nearest in time, moved to the image's instant.

    Args:
        images: Files by stamp.
        depths: Files by stamp, in the colour camera's pixels.
        map_from_base: The ground truth.
        base_from_camera: float64 [4, 4].
        camera: The colour camera.
        scale: Units of the depth images per metre.
    """
    there = np.array(sorted(stamp for stamp, path in depths.items() if path.is_file()), np.int64)
    if not len(there):
        return {}
    wanted = np.array(sorted(images), np.int64)
    nearest = there[[nearest_stamp(there, stamp) for stamp in wanted.tolist()]]
    (at_image, known), (at_depth, known_then) = (map_from_base.at(stamps, MAX_POSE_GAP_NS) for stamps in (wanted, nearest))
    usable = known & known_then & (np.abs(nearest - wanted) <= MAX_DEPTH_OFFSET_NS)
    loaders = {}
    for k in np.flatnonzero(usable).tolist():
        stamp, depth_stamp = int(wanted[k]), int(nearest[k])
        poses = at_image[k] @ base_from_camera, at_depth[k] @ base_from_camera
        same = abs(depth_stamp - stamp) < SAME_INSTANT_NS
        loaders[stamp] = partial(load_depth, RgbdFrame(stamp, images[stamp], depths[depth_stamp], *poses, same), camera, scale)
    return loaders


def image_size(files: Iterable[Path]) -> tuple[int, int]:
    """Width and height of the first image that can be read. Raises InputError: none can."""
    trouble = InputError("there is no image: unpack the set again")
    for file in files:
        try:
            height, width = load_image(file).shape[:2]
            return width, height
        except InputError as error:
            trouble = error
    raise trouble


def encode_png(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or RGB [H, W, 3] as the bytes of a PNG file, quickly packed."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].ravel()


def need_folder(path: Path, what: str) -> Path:
    """The path, as one. Raises InputError where it is no folder, saying what belongs there."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no folder {path}: give {what}")
    return path


def rigid(values: np.ndarray, where: object) -> torch.Tensor:
    """A pose float64 [4, 4] of 16 numbers, or of 12 (its upper rows), row by row. Raises InputError where it is none."""
    pose = torch.eye(4, dtype=torch.float64)
    if values.size not in (12, 16) or not np.isfinite(values).all():
        raise InputError(f"{where}: {values.size} numbers that make no pose: write the rows of a 4x4 (or 3x4) matrix")
    pose[: values.size // 4] = torch.from_numpy(np.asarray(values, np.float64).reshape(-1, 4).copy())
    # Rotations are written with few digits: the nearest true one is taken.
    u, scale, vt = torch.linalg.svd(pose[:3, :3])
    if float((scale - 1).abs().max()) > 0.02 or float(torch.det(pose[:3, :3])) < 0:
        raise InputError(f"{where} holds no rotation: the matrix is not the pose of a camera")
    return se3.from_rotation_translation(u @ vt, pose[:3, 3])

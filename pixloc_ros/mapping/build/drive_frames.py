# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The frames of a drive that nobody's poses are known of: a folder of images, a video, or a bag with or without odometry.

Each gives frames in the order of time, as `posed_frames` takes them. Their poses are those of the odometry where there is one,
else the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from ...errors import InputError
from ...geometry.cameras import Camera
from ...io.bag_sensors import FIX, IMU, Fixes, ImuReadings, find_sensor
from ...io.bags import BagOptions, BagReader
from ...io.camera_files import read_cameras
from ...io.frames import UnusableFrame
from ...io.images import load_image
from ...io.rig_images import open_bag
from .keyframes import PosedFrame

Wanted = Callable[[int], bool]
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_USUAL_FOCAL = 1.2  # of the longer side, of cameras that nothing is known of
_REACH_NS = 250_000_000  # odometry is taken for an image this far beyond its ends, and interpolated over such gaps


class DriveFrames(Protocol):
    """A source of frames.

    Attributes:
        said: What it is, for people.
        known_camera: Whether the camera is calibrated.
        has_odometry: Whether the frames' poses are odometry's: metres, z up, drifting.
        base_from_camera: float64 [4, 4] where the camera sits on a base whose z axis points up; None where unknown.
        stamped: Whether stamps are times, else they count the frames, which are the files `paths`.
        imu: What an IMU read; None without one.
        fixes: Of a satellite receiver; None without one.
    """

    said: str
    known_camera: bool
    has_odometry: bool
    base_from_camera: torch.Tensor | None
    stamped: bool
    imu: ImuReadings | None
    fixes: Fixes | None

    def __call__(self, wanted: Wanted) -> Iterator[PosedFrame | UnusableFrame]: ...


class _Unposed:
    has_odometry, base_from_camera, imu, fixes = False, None, None, None


class ImageFolder(_Unposed):
    """Images of a folder in the order of their names.

    Args:
        folder: Of the images.
        camera: "MODEL WIDTH HEIGHT PARAMS...", or a file with one camera an image; None: not known.
        every: Use each N-th image only.

    Raises:
        InputError: There are no images, or cameras that cannot be used.
    """

    stamped = False

    def __init__(self, folder: Path, camera: str | None = None, every: int = 1) -> None:
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: give the folder of the images")
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())[::every]
        if not self.paths:
            raise InputError(f"{folder} holds no images ({', '.join(SUFFIXES)}): give the folder that they are in")
        self.known_camera, self.said = camera is not None, f"{len(self.paths)} images of {folder}, in the order of their names"
        self._problems: dict[str, str] = {}
        self._cameras = read_cameras(camera, self._problems) if camera is not None and Path(camera).is_file() else None
        self._camera = Camera.parse_colmap_line(camera) if camera is not None and self._cameras is None else None

    def __call__(self, wanted: Wanted = lambda stamp_ns: True) -> Iterator[PosedFrame | UnusableFrame]:
        for k, path in enumerate(self.paths):
            if not wanted(k):
                continue
            try:
                image = load_image(path)
                camera = self._cameras.get(path.name) if self._cameras is not None else self._camera
                if camera is None and self._cameras is not None:
                    raise InputError(self._problems.get(path.name, "no camera is given for it"))
                yield _frame(k, image, camera, name=path.name)
            except InputError as error:
                yield UnusableFrame(k, f"{path.name}: {error}")


class Video(_Unposed):
    """Frames of a video file.

    Args:
        path: Of the file.
        camera: "MODEL WIDTH HEIGHT PARAMS..."; None: not known.
        every: Use each N-th frame only.

    Raises:
        InputError: The file cannot be read as a video.
    """

    stamped = True

    def __init__(self, path: Path, camera: str | None = None, every: int = 1) -> None:
        if not path.is_file():
            raise InputError(f"no video {path}: give the file")
        self.path, self.every = path, every
        self.known_camera, self.said = camera is not None, f"frames of {path}"
        self._camera = Camera.parse_colmap_line(camera) if camera is not None else None
        video = self._open()
        read, _ = video.read()
        video.release()
        if not read:
            raise InputError(f"{path} cannot be read as a video: convert it (ffmpeg -i {path.name} drive.mp4)")

    def _open(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(str(self.path))
        video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)  # the calibration is of the pixels as they are stored
        return video

    def __call__(self, wanted: Wanted = lambda stamp_ns: True) -> Iterator[PosedFrame | UnusableFrame]:
        video, last, count = self._open(), -1, -1
        rate = video.get(cv2.CAP_PROP_FPS) or 30.0
        try:
            while video.grab():
                count += 1
                stamp = round(video.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                stamp = stamp if stamp > last else last + round(1e9 / rate)  # some files date frames badly
                last = stamp
                if count % self.every or not wanted(stamp):
                    continue
                read, image = video.retrieve()
                if not read:
                    yield UnusableFrame(stamp, "the frame cannot be decoded")
                    continue
                try:
                    yield _frame(stamp, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), self._camera)
                except InputError as error:
                    yield UnusableFrame(stamp, str(error))
        finally:
            video.release()


class DriveBag:
    """Images of a bag, with its odometry where it has one; use it in a `with` statement.

    Args:
        path: The bag.
        options: Topics, frames and mount; a truth in it is not looked at.
        every: Use each N-th image only.
        sensors: Topics of the IMU and of satellite fixes; None: the only one there is, "none": not used.
        camera: Namespace of the topics, where there are several cameras.

    Raises:
        InputError: As of `BagReader`; a topic asked for cannot be used.
    """

    known_camera = stamped = True

    def __init__(
        self,
        path: Path,
        options: BagOptions,
        every: int = 1,
        sensors: tuple[str | None, str | None] = (None, None),
        camera: str | None = None,
    ) -> None:
        self.bag, self.every = (_bag(path, options) if camera is None else open_bag(path, options, (camera,))), every
        self.base_from_camera, self.has_odometry, self.said = self.bag.base_from_camera, False, "no odometry"
        if not bool(torch.isfinite(self.base_from_camera).all()):
            self.base_from_camera = None
        try:
            self._odometry = self.bag.odometry()
            found = [find_sensor(self.bag, kind, topic) for kind, topic in zip((IMU, FIX), sensors)]
        except BaseException:
            self.bag.close()
            raise
        if len(self._odometry) > 1 and self.base_from_camera is None:
            self.said = f"{self.bag.odometry_topic} is of no use without the camera's place on the base: give --base-from-camera"
        elif len(self._odometry) > 1:
            self.has_odometry, self.said = True, f"odometry from {self.bag.odometry_topic}"
        (self.imu, self.fixes), notes = zip(*found)
        self._unused = tuple(filter(None, notes))
        for what, one in (("gyro", self.imu), ("fixes", self.fixes)):
            self.said += f", {what} from {one.topic}" if one is not None else ""

    def __enter__(self) -> DriveBag:
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of the bag."""
        return *self._unused, *self.bag.notes

    def __exit__(self, *_: object) -> None:
        self.bag.close()

    def __call__(self, wanted: Wanted = lambda stamp_ns: True) -> Iterator[PosedFrame | UnusableFrame]:
        count = -1

        def chosen(stamp_ns: int) -> bool:
            nonlocal count
            count += 1
            return count % self.every == 0 and wanted(stamp_ns)

        for frame in self.bag.frames(chosen):
            if isinstance(frame, UnusableFrame):
                yield frame
                continue
            pose = self._pose(frame.stamp_ns)
            if pose is None:
                yield UnusableFrame(frame.stamp_ns, "no odometry at the image's time")
                continue
            yield PosedFrame(frame.stamp_ns, frame.image, frame.camera, pose, calibration=frame.calibration)

    def _pose(self, stamp_ns: int) -> torch.Tensor | None:
        """odom_from_camera; at the ends the nearest."""
        if not self.has_odometry:
            return torch.eye(4, dtype=torch.float64)
        ends = self._odometry.stamps_ns[[0, -1]]
        inside = int(np.clip(stamp_ns, *ends))
        if abs(inside - stamp_ns) > _REACH_NS:
            return None
        pose, known = self._odometry.at(np.array([inside]), 4 * _REACH_NS)
        return pose[0] @ self.base_from_camera if known[0] else None


def _bag(path: Path, options: BagOptions) -> BagReader:
    """The bag; one whose transforms do not lead to the camera is of use, too."""
    try:
        return BagReader(path, options)
    except InputError:
        if options.base_from_camera is not None or options.base_frame is not None:
            raise
        unknown = torch.full((4, 4), float("nan"), dtype=torch.float64)
        return BagReader(path, BagOptions(**vars(options) | {"base_from_camera": unknown}))


def _frame(stamp_ns: int, image: np.ndarray, camera: Camera | None, name: str = "") -> PosedFrame:
    height, width = image.shape[:2]
    if camera is None:
        focal = _USUAL_FOCAL * max(width, height)
        camera = Camera.from_colmap("SIMPLE_RADIAL", width, height, (focal, width / 2, height / 2, 0.0))
    if (camera.width, camera.height) != (width, height):
        raise InputError(f"it is {width}x{height} but the camera is {camera.width}x{camera.height}: give this size's calibration")
    return PosedFrame(stamp_ns, image, camera, torch.eye(4, dtype=torch.float64), name=name)

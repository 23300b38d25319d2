# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Writes a drive as a rosbag2 (MCAP), with the topics and frames a wheeled robot with one camera has.

============================  ===========================  ===============================================
topic                         type                         frames
============================  ===========================  ===============================================
/camera/image_raw/compressed  sensor_msgs/CompressedImage  camera_optical
/camera/camera_info           sensor_msgs/CameraInfo       camera_optical
/odom (or another name)       nav_msgs/Odometry            odom -> base_link
/tf                           tf2_msgs/TFMessage           odom -> base_link
/tf_static                    tf2_msgs/TFMessage           base_link -> camera_optical, transient local
/ground_truth/pose            geometry_msgs/PoseStamped    map, of base_link, at the stamps of the images
/imu/data (if recorded)       sensor_msgs/Imu              imu_link, static from base_link
/gnss/fix (if recorded)       sensor_msgs/NavSatFix        gnss_link, static from base_link
============================  ===========================  ===============================================

With a raw encoding, /camera/image_raw (sensor_msgs/Image) takes the place of the compressed images. Further cameras have their
name in the place of "camera".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from .files import replacing_folder
from .frames import Odometry

MAP_FRAME, ODOM_FRAME, BASE_FRAME = "map", "odom", "base_link"
IMU_FRAME, ANTENNA_FRAME = "imu_link", "gnss_link"
COMPRESSED = ("jpeg", "png")
RAW = ("rgb8", "bgr8", "mono8", "mono16", "bayer_rggb8", "yuv422", "yuv422_yuy2")
ENCODINGS = COMPRESSED + RAW
_JPEG_QUALITY = 92
_ROS_MODEL = {
    "pinhole": ("plumb_bob", 5),
    "plumb_bob": ("plumb_bob", 5),
    "radial": ("plumb_bob", 5),
    "rational_polynomial": ("rational_polynomial", 8),
    "equidistant": ("equidistant", 4),
}


def encode_image(image: np.ndarray, encoding: str) -> np.ndarray:
    """RGB uint8 [H, W, 3] as the bytes uint8 [N] of a message of that encoding (`ENCODINGS`). Raises `InputError`."""
    if encoding not in ENCODINGS:
        raise InputError(f"image encoding '{encoding}' is not known: use one of {', '.join(ENCODINGS)}")
    if encoding == "jpeg":
        return cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].ravel()
    if encoding == "png":
        return cv2.imencode(".png", image[..., ::-1])[1].ravel()
    if encoding == "bgr8":
        image = image[..., ::-1]
    elif encoding == "mono8":
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    elif encoding == "mono16":
        image = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype("<u2") * 257).view(np.uint8)
    elif encoding.startswith("bayer"):
        mosaic = image[..., 1].copy()
        mosaic[0::2, 0::2], mosaic[1::2, 1::2] = image[0::2, 0::2, 0], image[1::2, 1::2, 2]
        image = mosaic
    elif encoding.startswith("yuv422"):
        image = _yuv422(image, luma_first=encoding == "yuv422_yuy2")
    return np.ascontiguousarray(image).reshape(-1)


def _yuv422(image: np.ndarray, luma_first: bool) -> np.ndarray:
    """ITU-R BT.601, limited range, one chroma pair for two pixels: uint8 [H, W, 2], as UYVY or YUYV."""
    r, g, b = (image[..., i].astype(np.float32) / 255.0 for i in range(3))
    luma = 16.0 + 65.481 * r + 128.553 * g + 24.966 * b
    blue, red = 128.0 - 37.797 * r - 74.203 * g + 112.0 * b, 128.0 + 112.0 * r - 93.786 * g - 18.214 * b
    out = np.empty((*luma.shape, 2), np.uint8)
    out[..., 0 if luma_first else 1] = np.rint(luma)
    for first, chroma in ((0, blue), (1, red)):
        out[:, first::2, 1 if luma_first else 0] = np.rint((chroma[:, 0::2] + chroma[:, 1::2]) / 2)
    return out


class BagWriter:
    """Writes the messages of an open bag; poses are float64 [4, 4].

    Args:
        writer: Of rosbags, open.
        store: Its types of messages, ROS 2 Jazzy's by default.
    """

    def __init__(self, writer, store=None) -> None:
        from rosbags.typesys import Stores, get_typestore

        self.store = store or get_typestore(Stores.ROS2_JAZZY)
        self._writer, self._connections = writer, {}

    def put(self, time_ns: int, topic: str, message) -> None:
        """Write a message; topics are made as they come, those of static transforms latched."""
        if topic not in self._connections:
            profiles = {"offered_qos_profiles": _latched()} if topic.endswith("tf_static") else {}
            self._connections[topic] = self._connect(topic, message.__msgtype__, profiles)
        self._writer.write(self._connections[topic], time_ns, self._serialize(message))

    def _connect(self, topic: str, type_name: str, profiles: dict):
        return self._writer.add_connection(topic, type_name, typestore=self.store, **profiles)

    def _serialize(self, message):
        return self.store.serialize_cdr(message, message.__msgtype__)

    def make(self, type_name: str, *fields):
        """A message of a type such as "std_msgs/Header", its fields in their order."""
        return self.store.types[type_name.replace("/", "/msg/")](*fields)

    def header(self, stamp_ns: int, frame: str):
        return self.make("std_msgs/Header", self.make("builtin_interfaces/Time", stamp_ns // 10**9, stamp_ns % 10**9), frame)

    def _placed(self, kind: str, place: str, pose: torch.Tensor):
        pose = torch.as_tensor(pose, dtype=torch.float64)
        rotation = self.make("geometry_msgs/Quaternion", *se3.quaternion_from_rotation(pose[:3, :3]).tolist())
        return self.make(f"geometry_msgs/{kind}", self.make(f"geometry_msgs/{place}", *pose[:3, 3].tolist()), rotation)

    def pose(self, pose: torch.Tensor):
        return self._placed("Pose", "Point", pose)

    def pose_stamped(self, stamp_ns: int, frame: str, pose: torch.Tensor):
        return self.make("geometry_msgs/PoseStamped", self.header(stamp_ns, frame), self.pose(pose))

    def transform(self, stamp_ns: int, parent: str, child: str, pose: torch.Tensor):
        """A TFMessage of one transform."""
        placed = self._placed("Transform", "Vector3", pose)
        stamped = self.make("geometry_msgs/TransformStamped", self.header(stamp_ns, parent), child, placed)
        return self.make("tf2_msgs/TFMessage", [stamped])

    def odometry(self, stamp_ns: int, frames: tuple[str, str], pose: torch.Tensor, twist, covariances):
        """frames: odom and base. twist: 6 numbers. covariances: [6, 6] of the pose and of the twist."""
        vectors = (self.make("geometry_msgs/Vector3", *map(float, part)) for part in (twist[:3], twist[3:]))
        parts = self.pose(pose), self.make("geometry_msgs/Twist", *vectors)
        both = [
            self.make(f"geometry_msgs/{kind}WithCovariance", part, np.asarray(covariance, np.float64).ravel())
            for kind, part, covariance in zip(("Pose", "Twist"), parts, covariances)
        ]
        return self.make("nav_msgs/Odometry", self.header(stamp_ns, frames[0]), frames[1], *both)

    def camera_info(self, stamp_ns: int, frame: str, size: tuple[int, int], model: str, intrinsics, distortion):
        """size: width and height. intrinsics: fx, fy, cx, cy."""
        fx, fy, cx, cy = intrinsics
        k = np.array([fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0])
        p = np.array([fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0])
        arrays = np.array(distortion, np.float64), k, np.eye(3).ravel(), p
        region = self.make("sensor_msgs/RegionOfInterest", 0, 0, 0, 0, False)
        return self.make("sensor_msgs/CameraInfo", self.header(stamp_ns, frame), *size[::-1], model, *arrays, 0, 0, region)

    def image(self, stamp_ns: int, frame: str, size: tuple[int, int], encoding: str, data: np.ndarray, step: int | None = None):
        """A CompressedImage where the encoding is one of `COMPRESSED`, else an Image.

        Args:
            stamp_ns: Of the header.
            frame: Of the header.
            size: Width and height.
            encoding: One of `ENCODINGS`.
            data: uint8 [N].
            step: Bytes of a row; without padding by default.
        """
        header = self.header(stamp_ns, frame)
        if encoding in COMPRESSED:
            return self.make("sensor_msgs/CompressedImage", header, encoding, data)
        width, height = size
        return self.make("sensor_msgs/Image", header, height, width, encoding, 0, step or len(data) // height, data)

    def imu(self, stamp_ns: int, frame: str, rates, forces):
        """rates, forces: [3] rad/s and m/s². It knows no orientation."""
        nothing = self.make("geometry_msgs/Quaternion", 0.0, 0.0, 0.0, 1.0), np.array([-1.0] + 8 * [0.0])
        vectors = [(self.make("geometry_msgs/Vector3", *map(float, v)), np.zeros(9)) for v in (rates, forces)]
        return self.make("sensor_msgs/Imu", self.header(stamp_ns, frame), *nothing, *vectors[0], *vectors[1])

    def fix(self, stamp_ns: int, frame: str, place, covariance, status: int = 0):
        """place: latitude, longitude, altitude. covariance: [3, 3] m², or None where it is unknown."""
        known = covariance is not None
        variances = np.asarray(covariance, np.float64).ravel() if known else np.zeros(9)
        state = self.make("sensor_msgs/NavSatStatus", status, 1)
        return self.make("sensor_msgs/NavSatFix", self.header(stamp_ns, frame), state, *map(float, place), variances, 2 * known)


@contextlib.contextmanager
def new_bag(path: Path) -> Iterator[BagWriter]:
    """A rosbag2 (MCAP); the folder appears under its name only when it is complete, and replaces an earlier one.

    Raises:
        InputError: The package rosbags is not installed, or the folder cannot be written.
    """
    try:
        from rosbags.rosbag2 import StoragePlugin, Writer
    except ImportError:
        raise InputError("writing bags needs the package rosbags: pip install rosbags") from None
    # Version 8 of metadata.yaml can be read by every distribution; 9 only from Jazzy on.
    with replacing_folder(path) as place, Writer(place, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        yield BagWriter(writer)


class RecordedImage(NamedTuple):
    """An image of a drive: its encoded bytes uint8 [N], as from `encode_image`, and the name of its camera."""

    stamp_ns: int
    data: np.ndarray
    camera: str = "camera"


@dataclass(frozen=True, eq=False)
class RecordedImu:
    """Readings int64 [N] stamps, float64 [N, 3] rad/s and m/s² in the IMU's axes, and base_from_imu float64 [4, 4]."""

    stamps_ns: np.ndarray
    rates: np.ndarray
    forces: np.ndarray
    base_from_imu: torch.Tensor

    def write(self, bag: BagWriter) -> None:
        """With its place on the base."""
        bag.put(int(self.stamps_ns[0]), "/tf_static", bag.transform(0, BASE_FRAME, IMU_FRAME, self.base_from_imu))
        for stamp_ns, rates, forces in zip(self.stamps_ns.tolist(), self.rates, self.forces):
            bag.put(stamp_ns, "/imu/data", bag.imu(stamp_ns, IMU_FRAME, rates, forces))


@dataclass(frozen=True, eq=False)
class RecordedFixes:
    """Fixes: int64 [N] stamps, float64 [N, 3] latitude, longitude, altitude, std float64 [3] metres, antenna [3] on the base."""

    stamps_ns: np.ndarray
    places: np.ndarray
    std: np.ndarray
    antenna: np.ndarray

    def write(self, bag: BagWriter) -> None:
        """With the antenna's place on the base."""
        place = torch.eye(4, dtype=torch.float64)
        place[:3, 3] = torch.from_numpy(self.antenna)
        bag.put(int(self.stamps_ns[0]), "/tf_static", bag.transform(0, BASE_FRAME, ANTENNA_FRAME, place))
        for stamp_ns, fix in zip(self.stamps_ns.tolist(), self.places):
            bag.put(stamp_ns, "/gnss/fix", bag.fix(stamp_ns, ANTENNA_FRAME, fix, np.diag(self.std**2)))


@dataclass(frozen=True, eq=False)
class RecordedDrive:
    """What a drive is besides its images.

    Attributes:
        encoding: Of the images, one of `ENCODINGS`.
        camera: Its calibration.
        base_from_camera: float64 [4, 4]; of several cameras, by their names.
        odometry: Over the whole drive.
        map_from_base: float64 [N, 4, 4], the truth for each image; None leaves its topic out.
        odometry_topic: Its name.
        sensors: An IMU, a satellite receiver, or both.
    """

    encoding: str
    camera: Camera
    base_from_camera: torch.Tensor | dict[str, torch.Tensor]
    odometry: Odometry
    map_from_base: torch.Tensor | None
    odometry_topic: str = "/odom"
    sensors: tuple[RecordedImu | RecordedFixes, ...] = ()


def write_drive_bag(path: Path, images: Iterable[tuple], drive: RecordedDrive) -> None:
    """Write a drive as `new_bag` does.

    Args:
        path: The folder.
        images: `RecordedImage`s, or their first two fields, in the order of time; read one by one while writing.
        drive: Everything else.

    Raises:
        InputError: As `new_bag`.
    """
    camera, odometry = drive.camera, drive.odometry
    params, size = [float(value) for value in camera.params], (camera.width, camera.height)
    model, count = _ROS_MODEL[camera.model]
    # A radial lens is a plumb_bob one without tangential terms.
    distortion = params[4:] + [0.0] * (count - len(params[4:]))
    stamps = odometry.stamps_ns.tolist()
    mounts = drive.base_from_camera if isinstance(drive.base_from_camera, dict) else {"camera": drive.base_from_camera}
    with new_bag(path) as bag:

        def put_odometry(until_ns: float) -> None:
            nonlocal number
            while number < len(stamps) and stamps[number] <= until_ns:
                stamp_ns, pose = stamps[number], odometry.odom_from_base[number]
                covariances = odometry.pose_covariance[number], odometry.twist_covariance[number]
                message = bag.odometry(stamp_ns, (ODOM_FRAME, BASE_FRAME), pose, odometry.twist[number], covariances)
                bag.put(stamp_ns, drive.odometry_topic, message)
                bag.put(stamp_ns, "/tf", bag.transform(stamp_ns, ODOM_FRAME, BASE_FRAME, pose))
                number += 1

        number = 0
        for name, mount in mounts.items():
            bag.put(stamps[0], "/tf_static", bag.transform(stamps[0], BASE_FRAME, f"{name}_optical", mount))
        for index, image in enumerate(images):
            stamp_ns, data, name = RecordedImage(*image)
            put_odometry(stamp_ns)
            frame, topic = f"{name}_optical", f"/{name}/image_raw" + ("/compressed" if drive.encoding in COMPRESSED else "")
            info = bag.camera_info(stamp_ns, frame, size, model, params[:4], distortion)
            bag.put(stamp_ns, f"/{name}/camera_info", info)
            bag.put(stamp_ns, topic, bag.image(stamp_ns, frame, size, drive.encoding, data))
            if drive.map_from_base is not None:
                truth = bag.pose_stamped(stamp_ns, MAP_FRAME, drive.map_from_base[index])
                bag.put(stamp_ns, "/ground_truth/pose", truth)
        put_odometry(float("inf"))
        for sensor in drive.sensors:
            sensor.write(bag)


def _latched() -> list:
    """Quality of service of /tf_static: reliable, transient local, the last message kept."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(2147483647, 4294967295)
    kinds = QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL
    return [Qos(QosHistory.KEEP_LAST, 1, *kinds, forever, forever, QosLiveliness.AUTOMATIC, forever, False)]

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
============================  ===========================  ===============================================

With a raw encoding, /camera/image_raw (sensor_msgs/Image) takes the place of the compressed images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from .files import replacing_folder
from .frames import Odometry

MAP_FRAME, ODOM_FRAME, BASE_FRAME, CAMERA_FRAME = "map", "odom", "base_link", "camera_optical"
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


def write_drive_bag(
    path: Path,
    images: Iterable[tuple[int, np.ndarray]],
    encoding: str,
    camera: Camera,
    odometry: Odometry,
    map_from_base: torch.Tensor,
    base_from_camera: torch.Tensor,
    odometry_topic: str = "/odom",
) -> None:
    """Write a drive; the folder appears under its name only when it is complete, and replaces an earlier one.

    images: (stamp_ns, encoded bytes as from `encode_image`) in the order of time; read one by one while writing.
    map_from_base: float64 [N, 4, 4], the truth for each image. Raises `InputError` if rosbags is not installed or the
    camera has no CameraInfo form.
    """
    with new_bag(path) as writer:
        _DriveWriter(writer, encoding, camera, base_from_camera).write(images, odometry, map_from_base, odometry_topic)


@contextlib.contextmanager
def new_bag(path: Path) -> Iterator:
    """A rosbags `Writer` of a rosbag2 (MCAP); the folder appears under its name only when it is complete, and replaces an earlier
    one. Raises `InputError` if rosbags is not installed."""
    try:
        from rosbags.rosbag2 import StoragePlugin, Writer
    except ImportError:
        raise InputError("writing bags needs the package rosbags: pip install rosbags") from None
    # Version 8 of metadata.yaml can be read by every distribution; 9 only from Jazzy on.
    with replacing_folder(path) as place, Writer(place, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        yield writer


class _DriveWriter:
    def __init__(self, writer, encoding: str, camera: Camera, base_from_camera: torch.Tensor) -> None:
        from rosbags.typesys import Stores, get_typestore

        self._writer, self._encoding, self._camera = writer, encoding, camera
        self._base_from_camera = base_from_camera
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._types = self._store.types
        # A radial lens is a plumb_bob one without tangential terms.
        params = [float(value) for value in camera.params]
        self._intrinsics, distortion = params[:4], params[4:]
        self._model, count = _ROS_MODEL[camera.model]
        self._distortion = np.array(distortion + [0.0] * (count - len(distortion)))

    def _type(self, name: str):
        return self._types[f"{name.split('/')[0]}/msg/{name.split('/')[1]}"]

    def _topic(self, name: str, type_name: str, qos=()):
        full = f"{type_name.split('/')[0]}/msg/{type_name.split('/')[1]}"
        connection = self._writer.add_connection(name, full, typestore=self._store, offered_qos_profiles=list(qos))
        return lambda stamp_ns, message: self._writer.write(connection, stamp_ns, self._store.serialize_cdr(message, full))

    def _header(self, stamp_ns: int, frame: str):
        stamp = self._type("builtin_interfaces/Time")(stamp_ns // 10**9, stamp_ns % 10**9)
        return self._type("std_msgs/Header")(stamp, frame)

    def _quaternion(self, pose: torch.Tensor):
        return self._type("geometry_msgs/Quaternion")(*se3.quaternion_from_rotation(pose[:3, :3]).tolist())

    def _pose(self, pose: torch.Tensor):
        return self._type("geometry_msgs/Pose")(self._type("geometry_msgs/Point")(*pose[:3, 3].tolist()), self._quaternion(pose))

    def _transform(self, stamp_ns: int, parent: str, child: str, pose: torch.Tensor):
        translation = self._type("geometry_msgs/Vector3")(*pose[:3, 3].tolist())
        transform = self._type("geometry_msgs/Transform")(translation, self._quaternion(pose))
        stamped = self._type("geometry_msgs/TransformStamped")(self._header(stamp_ns, parent), child, transform)
        return self._type("tf2_msgs/TFMessage")([stamped])

    def write(
        self, images: Iterable[tuple[int, np.ndarray]], odometry: Odometry, map_from_base: torch.Tensor, odometry_topic: str
    ) -> None:
        publish_static = self._topic("/tf_static", "tf2_msgs/TFMessage", latched_profile())
        publish_tf = self._topic("/tf", "tf2_msgs/TFMessage")
        publish_odometry = self._topic(odometry_topic, "nav_msgs/Odometry")
        publish_info = self._topic("/camera/camera_info", "sensor_msgs/CameraInfo")
        publish_truth = self._topic("/ground_truth/pose", "geometry_msgs/PoseStamped")
        if self._encoding in COMPRESSED:
            publish_image = self._topic("/camera/image_raw/compressed", "sensor_msgs/CompressedImage")
        else:
            publish_image = self._topic("/camera/image_raw", "sensor_msgs/Image")
        stamps = odometry.stamps_ns.tolist()
        publish_static(stamps[0], self._transform(stamps[0], BASE_FRAME, CAMERA_FRAME, self._base_from_camera))
        upcoming: Iterator[int] = iter(range(len(stamps)))
        number = next(upcoming, None)
        for index, (stamp_ns, data) in enumerate(images):
            while number is not None and stamps[number] <= stamp_ns:
                self._write_odometry(number, odometry, publish_odometry, publish_tf)
                number = next(upcoming, None)
            publish_info(stamp_ns, self._camera_info(stamp_ns))
            publish_image(stamp_ns, self._image(stamp_ns, data))
            pose = self._pose(map_from_base[index])
            publish_truth(stamp_ns, self._type("geometry_msgs/PoseStamped")(self._header(stamp_ns, MAP_FRAME), pose))
        while number is not None:
            self._write_odometry(number, odometry, publish_odometry, publish_tf)
            number = next(upcoming, None)

    def _write_odometry(self, number: int, odometry: Odometry, publish_odometry, publish_tf) -> None:
        stamp_ns, pose = int(odometry.stamps_ns[number]), odometry.odom_from_base[number]
        vector = self._type("geometry_msgs/Vector3")
        velocity = odometry.twist[number].tolist()
        twist = self._type("geometry_msgs/Twist")(vector(*velocity[:3]), vector(*velocity[3:]))
        message = self._type("nav_msgs/Odometry")(
            self._header(stamp_ns, ODOM_FRAME),
            BASE_FRAME,
            self._type("geometry_msgs/PoseWithCovariance")(self._pose(pose), odometry.pose_covariance[number].ravel()),
            self._type("geometry_msgs/TwistWithCovariance")(twist, odometry.twist_covariance[number].ravel()),
        )
        publish_odometry(stamp_ns, message)
        publish_tf(stamp_ns, self._transform(stamp_ns, ODOM_FRAME, BASE_FRAME, pose))

    def _camera_info(self, stamp_ns: int):
        fx, fy, cx, cy = self._intrinsics
        matrix = np.array([fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0])
        projection = np.array([fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0])
        region = self._type("sensor_msgs/RegionOfInterest")(0, 0, 0, 0, False)
        return self._type("sensor_msgs/CameraInfo")(
            self._header(stamp_ns, CAMERA_FRAME),
            self._camera.height,
            self._camera.width,
            self._model,
            self._distortion,
            matrix,
            np.eye(3).ravel(),
            projection,
            0,
            0,
            region,
        )

    def _image(self, stamp_ns: int, data: np.ndarray):
        header = self._header(stamp_ns, CAMERA_FRAME)
        if self._encoding in COMPRESSED:
            return self._type("sensor_msgs/CompressedImage")(header, self._encoding, data)
        height = self._camera.height
        return self._type("sensor_msgs/Image")(header, height, self._camera.width, self._encoding, 0, len(data) // height, data)


def latched_profile():
    """Quality of service of /tf_static: reliable, transient local, the last message kept."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(2147483647, 4294967295)
    return (
        Qos(
            QosHistory.KEEP_LAST,
            1,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL,
            forever,
            forever,
            QosLiveliness.AUTOMATIC,
            forever,
            False,
        ),
    )

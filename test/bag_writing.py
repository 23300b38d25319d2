# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Small bags for the tests."""

from __future__ import annotations

import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

BASE_FROM_CAMERA = np.array([[0, 0, 1, 0.2], [-1, 0, 0, 0], [0, -1, 0, 0.5], [0, 0, 0, 1.0]])


class BagWriter:
    """Writes messages by topic; stamps are nanoseconds, poses 4x4 arrays. storage: "mcap", "sqlite3" or "ros1"."""

    def __init__(self, path, storage="mcap"):
        self.store = get_typestore(Stores.ROS1_NOETIC if storage == "ros1" else Stores.ROS2_HUMBLE)
        if storage == "ros1":
            self.store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))
        self.types, self.ros1, self.path = self.store.types, storage == "ros1", path
        self._writer = Writer1(path) if self.ros1 else Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
        self._connections = {}

    def __enter__(self):
        self._writer.open()
        return self

    def __exit__(self, *_):
        self._writer.close()

    def write(self, topic, type_name, message, time_ns):
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, type_name, typestore=self.store)
        serialize = self.store.serialize_ros1 if self.ros1 else self.store.serialize_cdr
        self._writer.write(self._connections[topic], time_ns, serialize(message, type_name))

    def make(self, type_name, **fields):
        return self.types[type_name](**fields)

    def header(self, stamp_ns, frame):
        extra = {"seq": 0} if self.ros1 else {}
        stamp = self.make("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return self.make("std_msgs/msg/Header", stamp=stamp, frame_id=frame, **extra)

    def _parts(self, matrix):
        return matrix[:3, 3].tolist(), Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist()

    def pose(self, matrix):
        t, q = self._parts(matrix)
        return self.make(
            "geometry_msgs/msg/Pose",
            position=self.make("geometry_msgs/msg/Point", x=t[0], y=t[1], z=t[2]),
            orientation=self.make("geometry_msgs/msg/Quaternion", x=q[0], y=q[1], z=q[2], w=q[3]),
        )

    def transform(self, topic, stamp_ns, parent, child, matrix, time_ns=None):
        t, q = self._parts(matrix)
        body = self.make(
            "geometry_msgs/msg/Transform",
            translation=self.make("geometry_msgs/msg/Vector3", x=t[0], y=t[1], z=t[2]),
            rotation=self.make("geometry_msgs/msg/Quaternion", x=q[0], y=q[1], z=q[2], w=q[3]),
        )
        stamped = self.make(
            "geometry_msgs/msg/TransformStamped", header=self.header(stamp_ns, parent), child_frame_id=child, transform=body
        )
        name = "tf2_msgs/msg/TFMessage"
        self.write(topic, name, self.make(name, transforms=[stamped]), stamp_ns if time_ns is None else time_ns)

    def odometry(self, stamp_ns, matrix, topic="/odom", frames=("odom", "base_link"), time_ns=None):
        zero = self.make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
        covariance = np.diag([1.0, 2, 3, 4, 5, 6]).ravel()
        message = self.make(
            "nav_msgs/msg/Odometry",
            header=self.header(stamp_ns, frames[0]),
            child_frame_id=frames[1],
            pose=self.make("geometry_msgs/msg/PoseWithCovariance", pose=self.pose(matrix), covariance=covariance),
            twist=self.make(
                "geometry_msgs/msg/TwistWithCovariance",
                covariance=covariance,
                twist=self.make("geometry_msgs/msg/Twist", linear=zero, angular=zero),
            ),
        )
        self.write(topic, "nav_msgs/msg/Odometry", message, stamp_ns if time_ns is None else time_ns)

    def truth(self, stamp_ns, matrix, topic="/ground_truth/pose"):
        message = self.make("geometry_msgs/msg/PoseStamped", header=self.header(stamp_ns, "map"), pose=self.pose(matrix))
        self.write(topic, "geometry_msgs/msg/PoseStamped", message, stamp_ns)

    def info(self, stamp_ns, width, height, focal, topic="/camera/camera_info", d=(0.0, 0, 0, 0, 0), time_ns=None):
        k = np.array([focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1.0])
        roi = self.make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        fields = {"d": np.array(d), "k": k, "r": np.eye(3).ravel(), "p": np.zeros(12)}
        if self.ros1:
            fields = {name.upper(): value for name, value in fields.items()}
        message = self.make(
            "sensor_msgs/msg/CameraInfo",
            header=self.header(stamp_ns, "camera_optical"),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            binning_x=0,
            binning_y=0,
            roi=roi,
            **fields,
        )
        self.write(topic, "sensor_msgs/msg/CameraInfo", message, stamp_ns if time_ns is None else time_ns)

    def image(self, stamp_ns, data, width, height, encoding="mono8", step=None, topic="/camera/image_raw", time_ns=None):
        data = np.ascontiguousarray(data).view(np.uint8).ravel()
        message = self.make(
            "sensor_msgs/msg/Image",
            header=self.header(stamp_ns, "camera_optical"),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=step or data.size // height,
            data=data,
        )
        self.write(topic, "sensor_msgs/msg/Image", message, stamp_ns if time_ns is None else time_ns)

    def compressed(self, stamp_ns, data, format_="jpeg", topic="/camera/image_raw/compressed"):
        message = self.make(
            "sensor_msgs/msg/CompressedImage",
            header=self.header(stamp_ns, "camera_optical"),
            format=format_,
            data=np.frombuffer(data, np.uint8),
        )
        self.write(topic, "sensor_msgs/msg/CompressedImage", message, stamp_ns)

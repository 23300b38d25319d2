# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Small bags for the tests."""

from __future__ import annotations

import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from pixloc_ros.io import bag_writer

BASE_FROM_CAMERA = np.array([[0, 0, 1, 0.2], [-1, 0, 0, 0], [0, -1, 0, 0.5], [0, 0, 0, 1.0]])
_OPTICAL = "camera_optical"


class BagWriter(bag_writer.BagWriter):
    """Makes and writes messages in one call; stamps are nanoseconds, poses 4x4 arrays. storage: "mcap", "sqlite3" or "ros1"."""

    def __init__(self, path, storage="mcap"):
        self.ros1 = storage == "ros1"
        store = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_HUMBLE)
        if self.ros1:
            store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))
        super().__init__(
            Writer1(path) if self.ros1 else Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]), store
        )

    def __enter__(self):
        self._writer.open()
        return self

    def __exit__(self, *_):
        self._writer.close()

    def _connect(self, topic, type_name, profiles):
        return super()._connect(topic, type_name, {} if self.ros1 else profiles)

    def _serialize(self, message):
        return self.store.serialize_ros1(message, message.__msgtype__) if self.ros1 else super()._serialize(message)

    def header(self, stamp_ns, frame):
        if not self.ros1:
            return super().header(stamp_ns, frame)
        return self.make("std_msgs/Header", 0, self.make("builtin_interfaces/Time", *divmod(stamp_ns, 10**9)), frame)

    def transform(self, topic, stamp_ns, parent, child, matrix, time_ns=None):
        message = super().transform(stamp_ns, parent, child, matrix)
        self.put(stamp_ns if time_ns is None else time_ns, topic, message)

    def odometry(self, stamp_ns, matrix, topic="/odom", frames=("odom", "base_link"), time_ns=None):
        covariance = np.diag([1.0, 2, 3, 4, 5, 6])
        message = super().odometry(stamp_ns, frames, matrix, np.zeros(6), (covariance, covariance))
        self.put(stamp_ns if time_ns is None else time_ns, topic, message)

    def truth(self, stamp_ns, matrix, topic="/ground_truth/pose"):
        self.put(stamp_ns, topic, self.pose_stamped(stamp_ns, "map", matrix))

    def info(self, stamp_ns, width, height, focal, topic="/camera/camera_info", d=(0.0, 0, 0, 0, 0), time_ns=None):
        intrinsics = focal, focal, (width - 1) / 2, (height - 1) / 2
        message = self.camera_info(stamp_ns, _OPTICAL, (width, height), "plumb_bob", intrinsics, d)
        self.put(stamp_ns if time_ns is None else time_ns, topic, message)

    def image(self, stamp_ns, data, width, height, encoding="mono8", step=None, topic="/camera/image_raw", time_ns=None):
        data = np.ascontiguousarray(data).view(np.uint8).ravel()
        message = super().image(stamp_ns, _OPTICAL, (width, height), encoding, data, step)
        self.put(stamp_ns if time_ns is None else time_ns, topic, message)

    def compressed(self, stamp_ns, data, format_="jpeg", topic="/camera/image_raw/compressed", frame=_OPTICAL):
        header = self.header(stamp_ns, frame)
        self.put(stamp_ns, topic, self.make("sensor_msgs/CompressedImage", header, format_, np.frombuffer(data, np.uint8)))

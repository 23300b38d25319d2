# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the messages of a bag say: stamps, poses, calibrations, images. Works on any object with the fields of the message."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .image_format import decode_compressed, decode_raw

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO, ODOMETRY = "sensor_msgs/msg/CameraInfo", "nav_msgs/msg/Odometry"
POSE, POSE_COVARIANCE = "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped"
OF_CAMERAS = IMAGE, COMPRESSED, INFO
TRANSFORM, TF = "geometry_msgs/msg/TransformStamped", "tf2_msgs/msg/TFMessage"
_TRUTH_WORDS = ("truth", "gt", "mocap", "vicon", "reference")


@dataclass(frozen=True)
class RawMessage:
    """One message as recorded: bag time, and the CDR bytes of its ROS 2 type ("package/msg/Type")."""

    time_ns: int
    topic: str
    type_name: str
    cdr: bytes


def message_stamp(message) -> int:
    """Nanoseconds of a message's header."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def frame_name(name: str) -> str:
    """tf2 names have no leading slash; ROS 1 bags may."""
    return name.lstrip("/")


def frames_of(transform) -> tuple[str, str]:
    """Parent and child of a TransformStamped."""
    return frame_name(transform.header.frame_id), frame_name(transform.child_frame_id)


def is_truth_name(topic: str) -> bool:
    """Whether a topic's name says that it is ground truth."""
    words = topic.lower().replace("/", "_").replace("groundtruth", "ground_truth").split("_")
    return any(word in words for word in _TRUTH_WORDS)


def pose_of(message):
    """The Pose or Transform inside a PoseStamped, PoseWithCovarianceStamped, Odometry or TransformStamped."""
    if hasattr(message, "transform"):
        return message.transform
    return message.pose.pose if hasattr(message.pose, "pose") else message.pose


def matrix(pose) -> torch.Tensor:
    """float64 [4, 4] of a geometry_msgs Pose or Transform; NaN where its numbers are, or its quaternion is 0."""
    t = pose.translation if hasattr(pose, "translation") else pose.position
    q = pose.rotation if hasattr(pose, "rotation") else pose.orientation
    quaternion = torch.tensor([q.x, q.y, q.z, q.w], dtype=torch.float64)
    rotation = se3.rotation_from_quaternion(quaternion if bool(quaternion.any()) else quaternion * torch.nan)
    return se3.from_rotation_translation(rotation, torch.tensor([t.x, t.y, t.z], dtype=torch.float64))


def image_of(message) -> np.ndarray:
    """uint8 [H, W] or RGB [H, W, 3] of an Image or CompressedImage. Raises `InputError`."""
    if hasattr(message, "encoding"):
        size = message.height, message.width
        return decode_raw(message.data, *size, message.encoding, message.step, bool(message.is_bigendian))
    if "compressedDepth" in message.format:
        raise InputError("it is compressed depth, not a picture: choose another --image-topic")
    return decode_compressed(message.data)

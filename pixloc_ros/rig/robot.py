# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a robot sends: messages of images, odometry and calibration, on the topics of the node's default parameters."""

from array import array
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_ros import StaticTransformBroadcaster

from ..geometry.cameras import Camera
from ..node import conversions
from ..node.conversions import stamp_from_ns

_DEPTH = 50


class RobotTopics:
    """Publishers on a node.

    Args:
        node: the node that publishes.
        compressed: whether images are CompressedImage.
        cameras: namespaces of their topics.

    Attributes:
        images: publishers by camera; `image` is the first camera's.
        infos: as `images`, of calibrations.
    """

    def __init__(self, node: Node, compressed: bool = False, cameras: Sequence[str] = ("camera",)) -> None:
        topic, kind = ("image_raw/compressed", CompressedImage) if compressed else ("image_raw", Image)
        self.images = {name: node.create_publisher(kind, f"{name}/{topic}", _DEPTH) for name in cameras}
        self.infos = {name: node.create_publisher(CameraInfo, f"{name}/camera_info", _DEPTH) for name in cameras}
        self.image, self.info = self.images[cameras[0]], self.infos[cameras[0]]
        self.odometry = node.create_publisher(Odometry, "odom", _DEPTH)
        self.initial_pose = node.create_publisher(PoseWithCovarianceStamped, "initialpose", 1)
        self.static_tf = StaticTransformBroadcaster(node)

    def is_heard(self) -> bool:
        """Whether somebody listens to each of them."""
        publishers = *self.images.values(), *self.infos.values(), self.odometry, self.initial_pose
        return all(publisher.get_subscription_count() for publisher in publishers)


def image_message(
    pixels: np.ndarray, stamp_ns: int, frame_id: str = "camera_optical", compressed: bool = False
) -> Image | CompressedImage:
    """uint8 [H, W] grey or [H, W, 3] RGB as a camera driver sends it."""
    if compressed:
        bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        message = CompressedImage(format="jpeg", data=array("B", cv2.imencode(".jpg", bgr)[1].tobytes()))
    else:
        height, width = pixels.shape[:2]
        encoding = "mono8" if pixels.ndim == 2 else "rgb8"
        data = array("B", pixels.tobytes())
        message = Image(height=height, width=width, encoding=encoding, step=len(data) // height, data=data)
    message.header.frame_id, message.header.stamp = frame_id, stamp_from_ns(stamp_ns)
    return message


def odometry_message(stamp_ns: int, odom_from_base: torch.Tensor, twist: np.ndarray | torch.Tensor | None = None) -> Odometry:
    """nav_msgs/Odometry of base_link in odom. twist: [6], its velocity (linear m/s, angular rad/s); None for an empty one."""
    message = Odometry(child_frame_id="base_link")
    message.header.frame_id, message.header.stamp = "odom", stamp_from_ns(stamp_ns)
    message.pose.pose = conversions.matrix_to_pose(odom_from_base)
    if twist is not None:
        message.twist.twist = conversions.twist_from_vector(twist)
    return message


def initial_pose_message(map_from_base: torch.Tensor, covariance: torch.Tensor) -> PoseWithCovarianceStamped:
    """An initial pose that is valid at the next image."""
    message = PoseWithCovarianceStamped(pose=conversions.pose_with_covariance(map_from_base, covariance))
    message.header.frame_id = "map"
    return message


def camera_info_message(camera: Camera) -> CameraInfo:
    """Calibration of a pinhole camera."""
    fx, fy, cx, cy = camera.params[:4].tolist()
    k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    return CameraInfo(width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5, k=k)

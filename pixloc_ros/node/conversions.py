# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""ROS messages to the core's types and back.

Poses of the core are float64 tensors [4, 4]. Its covariances are [6, 6] of (translation, rotation) in the axes of the
moving frame: true = pose · exp(error). Those of geometry_msgs (REP-103) are row-major in (x, y, z, rotation about the
fixed axes X, Y, Z of the header's frame), rotations about the pose's own origin: both halves are turned by the pose's
rotation. Plain NumPy on single poses: a torch call costs more than the arithmetic here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Point, Pose, PoseWithCovariance, Quaternion, Transform, TransformStamped, Twist, Vector3
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ..errors import InputError
from ..io.image_format import bytes_per_pixel, check_layout, decode_compressed, decode_raw, to_grey_or_rgb
from .parameters import Parameter

_BRIDGE = CvBridge()
NS_PER_S = 1_000_000_000
_QUATERNION_TOLERANCE = 0.1
"""Accepted deviation of a quaternion's length from 1; it is normalised."""


# ---- time


def stamp_to_ns(stamp: Time) -> int:
    """Integer nanoseconds of builtin_interfaces/Time."""
    return stamp.sec * NS_PER_S + stamp.nanosec


def stamp_from_ns(stamp_ns: int) -> Time:
    """builtin_interfaces/Time of non-negative integer nanoseconds."""
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


# ---- poses


def matrix_from_parts(position: Point | Vector3, orientation: Quaternion, what: str) -> torch.Tensor:
    """Rigid transform, float64 [4, 4], from a message's position and quaternion.

    Args:
        position: of the message.
        orientation: of the message; it is normalised.
        what: its name in error messages.

    Raises:
        InputError: numbers are not finite, or the quaternion's length is not about 1.
    """
    x, y, z, w = orientation.x, orientation.y, orientation.z, orientation.w
    px, py, pz = position.x, position.y, position.z
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not (math.isfinite(norm) and math.isfinite(px) and math.isfinite(py) and math.isfinite(pz)):
        raise InputError(f"{what} holds NaN or infinite numbers: fix its publisher")
    if abs(norm - 1.0) > _QUATERNION_TOLERANCE:
        raise InputError(f"{what} has a quaternion of length {norm:.3g}: publish a unit quaternion (no rotation is w = 1)")
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    return torch.tensor(
        (
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), px),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), py),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), pz),
            (0.0, 0.0, 0.0, 1.0),
        ),
        dtype=torch.float64,
    )


def _position_and_quaternion(matrix: torch.Tensor) -> tuple[list[float], list[float]]:
    """[x, y, z] and the unit quaternion [x, y, z, w], w >= 0."""
    m = matrix.numpy()
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = m[:3, :3].ravel().tolist()
    # The rows of 4 q qᵀ are multiples of q: take the one with the largest diagonal entry.
    rows = (
        (1 + r00 - r11 - r22, r10 + r01, r20 + r02, r21 - r12),
        (r10 + r01, 1 - r00 + r11 - r22, r21 + r12, r02 - r20),
        (r20 + r02, r21 + r12, 1 - r00 - r11 + r22, r10 - r01),
        (r21 - r12, r02 - r20, r10 - r01, 1 + r00 + r11 + r22),
    )
    row = rows[max(range(4), key=lambda i: rows[i][i])]
    norm = math.copysign(math.sqrt(sum(v * v for v in row)), row[3])
    return m[:3, 3].tolist(), [v / norm for v in row]


def pose_to_matrix(pose: Pose, what: str) -> torch.Tensor:
    """See `matrix_from_parts`."""
    return matrix_from_parts(pose.position, pose.orientation, what)


def transform_to_matrix(transform: Transform, what: str) -> torch.Tensor:
    """See `matrix_from_parts`."""
    return matrix_from_parts(transform.translation, transform.rotation, what)


def matrix_to_pose(matrix: torch.Tensor) -> Pose:
    """geometry_msgs/Pose of a [4, 4] transform."""
    (px, py, pz), (x, y, z, w) = _position_and_quaternion(matrix)
    return Pose(position=Point(x=px, y=py, z=pz), orientation=Quaternion(x=x, y=y, z=z, w=w))


def matrix_to_transform(matrix: torch.Tensor) -> Transform:
    """geometry_msgs/Transform of a [4, 4] transform."""
    (px, py, pz), (x, y, z, w) = _position_and_quaternion(matrix)
    return Transform(translation=Vector3(x=px, y=py, z=pz), rotation=Quaternion(x=x, y=y, z=z, w=w))


def transform_stamped(parent: str, child: str, stamp_ns: int, parent_from_child: torch.Tensor | Transform) -> TransformStamped:
    """The TF message of one transform: [4, 4], or already a message."""
    if isinstance(parent_from_child, torch.Tensor):
        parent_from_child = matrix_to_transform(parent_from_child)
    header = Header(stamp=stamp_from_ns(stamp_ns), frame_id=parent)
    return TransformStamped(header=header, child_frame_id=child, transform=parent_from_child)


def matrix_from_euler(position: tuple[float, float, float], roll: float, pitch: float, yaw: float) -> torch.Tensor:
    """Transform from a position and fixed-axes angles (REP-103): R = Rz(yaw) Ry(pitch) Rx(roll)."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", (roll, pitch, yaw)).as_matrix())
    matrix[:3, 3] = torch.tensor(position)
    return matrix


# ---- covariances


def _turned(covariance: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Covariance [6, 6] with both halves turned by rotation [3, 3], exactly symmetric."""
    block = np.zeros((6, 6))
    block[:3, :3] = block[3:, 3:] = rotation
    turned = block @ covariance @ block.T
    return 0.5 * (turned + turned.T)


def covariance_to_message(covariance: torch.Tensor, header_from_child: torch.Tensor) -> list[float]:
    """The 36 numbers of geometry_msgs/PoseWithCovariance from a covariance in the child's axes."""
    return _turned(covariance.numpy(), header_from_child.numpy()[:3, :3]).ravel().tolist()


def covariance_from_message(numbers, header_from_child: torch.Tensor, what: str) -> torch.Tensor | None:
    """Covariance [6, 6] in the child's axes from a message's 36 numbers; None if they are all zero, i.e. unknown.

    Args:
        numbers: row-major, as in geometry_msgs/PoseWithCovariance.
        header_from_child: float64 [4, 4], the pose.
        what: its name in error messages.

    Raises:
        InputError: they are no covariance: not finite, not symmetric, or with a negative variance.
    """
    fixed = np.asarray(numbers, dtype=np.float64).reshape(6, 6)
    if not fixed.any():
        return None
    if not np.isfinite(fixed).all():
        raise InputError(f"{what} has a covariance with NaN or infinite numbers: publish zeros if it is unknown")
    scale = np.abs(fixed).max()
    if np.abs(fixed - fixed.T).max() > 1e-6 * scale or np.linalg.eigvalsh(fixed).min() < -1e-6 * scale:
        raise InputError(f"{what} has a covariance that is not symmetric and positive: publish zeros if it is unknown")
    return torch.from_numpy(_turned(fixed, header_from_child.numpy()[:3, :3].T))


def pose_with_covariance(matrix: torch.Tensor, covariance: torch.Tensor) -> PoseWithCovariance:
    """Message of a pose and its covariance in the child's axes."""
    return PoseWithCovariance(pose=matrix_to_pose(matrix), covariance=covariance_to_message(covariance, matrix))


def twist_from_vector(vector: torch.Tensor) -> Twist:
    """geometry_msgs/Twist of [6] = (linear m/s, angular rad/s)."""
    vx, vy, vz, wx, wy, wz = vector.tolist()
    return Twist(linear=Vector3(x=vx, y=vy, z=vz), angular=Vector3(x=wx, y=wy, z=wz))


# ---- images


def decode_image(message: Image | CompressedImage) -> np.ndarray:
    """Pixels of a message: uint8 [H, W] for grey encodings, [H, W, 3] RGB for the others.

    Raises:
        InputError: it is no image, cut short, or its encoding is not supported.
    """
    if isinstance(message, CompressedImage):
        return decode_compressed(memoryview(message.data))
    m = message
    check_layout(m.height, m.width, m.encoding, m.step, bool(m.is_bigendian), len(m.data))
    try:
        # cv_bridge fails on swapped bytes with NumPy 2, and shears rows whose padding is no whole number of pixels.
        if not m.is_bigendian and m.step % bytes_per_pixel(m.encoding) == 0:
            return to_grey_or_rgb(_BRIDGE.imgmsg_to_cv2(m, desired_encoding="passthrough"), m.encoding)
    except CvBridgeError:
        pass  # an encoding that this version of cv_bridge does not know
    return decode_raw(memoryview(m.data), m.height, m.width, m.encoding, m.step, bool(m.is_bigendian))


def rgb_message(pixels: np.ndarray) -> Image:
    """uint8 [H, W, 3] RGB as a message, its header left empty."""
    return _BRIDGE.cv2_to_imgmsg(pixels, encoding="rgb8")


# ---- parameters


def parameter_descriptor(parameter: Parameter) -> ParameterDescriptor:
    """What `ros2 param describe` shows, and what rclpy checks by itself."""
    descriptor = ParameterDescriptor(description=parameter.description)
    if parameter.choices:
        descriptor.additional_constraints = f"one of {parameter.constraint}"
    if parameter.bounds and isinstance(parameter.default, int):
        descriptor.integer_range = [IntegerRange(from_value=int(parameter.bounds[0]), to_value=int(parameter.bounds[1]))]
    elif parameter.bounds:
        descriptor.floating_point_range = [FloatingPointRange(from_value=parameter.bounds[0], to_value=parameter.bounds[1])]
    return descriptor

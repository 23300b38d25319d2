# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What recordings and live topics give: images and odometry, each with its stamp."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..geometry.cameras import Camera
from .calibration import Calibration


@dataclass(frozen=True)
class CameraFrame:
    """One image as it left the camera.

    Attributes:
        stamp_ns: Time of acquisition from the message header, integer nanoseconds.
        image: uint8 [H, W] grey or [H, W, 3] RGB; its size equals the camera's.
        camera: The calibration at that time.
        calibration: That `camera` is from, where there may be another reading of it.
        name: Of the camera, where a robot has several.
        others: What the robot's other cameras saw at about the same time.
        shown_ns: Since when the camera has shown this very picture, where images before it were not used.
    """

    stamp_ns: int
    image: np.ndarray
    camera: Camera
    calibration: Calibration | None = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)
    others: tuple[MountedFrame, ...] = field(default=(), kw_only=True)
    shown_ns: int | None = field(default=None, kw_only=True)

    @property
    def newest_ns(self) -> int:
        """Stamp of its newest image."""
        return max((self.stamp_ns, *(other.frame.stamp_ns for other in self.others)))


@dataclass(frozen=True)
class MountedFrame:
    """An image of a camera of a rig, and base_from_camera float64 [4, 4] at its stamp."""

    frame: CameraFrame
    base_from_camera: torch.Tensor


@dataclass(frozen=True)
class UnusableFrame:
    """An image that is in a recording but cannot be used, and why."""

    stamp_ns: int
    reason: str

    @property
    def newest_ns(self) -> int:
        """As of a `CameraFrame`."""
        return self.stamp_ns


@dataclass(frozen=True)
class OdometryMessage:
    """One pose from odometry.

    Attributes:
        stamp_ns: Its time.
        odom_from_base: float64 [4, 4].
        twist_covariance: float64 [6, 6] of the velocity in base axes, or None.
        twist: float64 [6], that velocity (translation, rotation), or None.
    """

    stamp_ns: int
    odom_from_base: torch.Tensor
    twist_covariance: torch.Tensor | None = None
    twist: np.ndarray | None = None


@dataclass(frozen=True)
class Odometry:
    """What a base publishes as nav_msgs/Odometry, over time.

    Attributes:
        stamps_ns: int64 [N], rising.
        odom_from_base: float64 [N, 4, 4].
        pose_covariance: float64 [N, 6, 6] (translation, rotation) along the axes of odom, about the base.
        twist: float64 [N, 6] velocity (translation, rotation) as read, in base axes.
        twist_covariance: float64 [N, 6, 6], likewise.
    """

    stamps_ns: np.ndarray
    odom_from_base: torch.Tensor
    pose_covariance: np.ndarray
    twist: np.ndarray
    twist_covariance: np.ndarray


Event = OdometryMessage | CameraFrame | UnusableFrame

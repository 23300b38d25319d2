# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The published transform in three degrees of freedom, for robots on a flat floor and maps in two dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..geometry import se3

_MOST_HEIGHT_M, _MOST_TILT_RAD = 0.2, math.radians(5.0)


class Planar(NamedTuple):
    """A pose without height and tilt, and what was left out of it.

    Attributes:
        transform: map_from_odom (or map_from_base) float64 [4, 4]: turned about z, at z = 0.
        height_m: of the base above where that places it.
        tilt_rad: of the base against that.
    """

    transform: torch.Tensor
    height_m: float
    tilt_rad: float

    @property
    def warning(self) -> str:
        """What is wrong with a floor that is not flat; empty if all is well."""
        if abs(self.height_m) <= _MOST_HEIGHT_M and self.tilt_rad <= _MOST_TILT_RAD:
            return ""
        return (
            f"planar: the images see the robot {self.height_m:.2f} m above the floor and tilted by "
            f"{math.degrees(self.tilt_rad):.1f} degrees: bring the map's floor to z = 0 with 'pixloc map move', check the "
            "camera's mount, or set planar to false"
        )


def planar(map_from_base: torch.Tensor, odom_from_base: torch.Tensor) -> Planar:
    """The transform map_from_odom that places the base as seen from above, for poses float64 [4, 4].

    x, y and heading are those of map_from_base; height, roll and pitch are the odometry's.
    """
    transform = flat(map_from_base) @ se3.inverse(flat(odom_from_base))
    left = se3.inverse(transform @ odom_from_base) @ map_from_base
    return Planar(transform, float(left[2, 3]), float(se3.rotation_angle(left[:3, :3])))


def flat(a_from_b: torch.Tensor) -> torch.Tensor:
    """The pose at z = 0, turned about z to where the other's x axis points."""
    cos, sin = a_from_b[:2, 0].tolist()
    heading = math.atan2(sin, cos)
    result = torch.eye(4, dtype=torch.float64)
    result[:2, :2] = torch.tensor([[math.cos(heading), -math.sin(heading)], [math.sin(heading), math.cos(heading)]])
    result[:2, 3] = a_from_b[:2, 3]
    return result

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Where a map lies on the earth, so that a satellite fix says where in the map the robot is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3

# WGS 84 (NIMA TR8350.2, table 3.1): semi-major axis in metres, flattening.
_AXIS, _FLATTENING = 6378137.0, 1 / 298.257223563
_ECCENTRICITY2 = _FLATTENING * (2 - _FLATTENING)
_LEAST_SPREAD_M = 1.0
_LARGEST_ERROR = 0.25  # in the median, as a share of the distance from the middle: some 14 degrees of heading
_ROUNDS = 20


@dataclass(frozen=True, eq=False)
class Georeference:
    """A frame with axes east, north, up at a place, and the map in it.

    Good for maps of some kilometres: nothing in it is bent with the earth.

    Attributes:
        latitude: Degrees, WGS 84.
        longitude: Degrees, WGS 84.
        altitude: Metres above the ellipsoid, as in sensor_msgs/NavSatFix.
        enu_from_map: float64 [4, 4].
    """

    latitude: float
    longitude: float
    altitude: float
    enu_from_map: torch.Tensor

    def __post_init__(self) -> None:
        check_fix(np.array([[self.latitude, self.longitude, self.altitude]]))
        se3.check_pose(self.enu_from_map, "enu_from_map")

    def enu_from_fix(self, fixes: np.ndarray) -> np.ndarray:
        """float64 [N, 3] metres east, north, up of the origin."""
        origin = np.array([[self.latitude, self.longitude, self.altitude]])
        return (_earth_from_fix(fixes) - _earth_from_fix(origin)) @ _enu_axes(self.latitude, self.longitude).T

    def prior(
        self, fix: np.ndarray, enu_covariance: np.ndarray, antenna_height: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a fix says of a robot that stands upright. The heading is unknown: a whole turn.

        Args:
            fix: [3].
            enu_covariance: [3, 3] m².
            antenna_height: Of the antenna above the base, metres.

        Returns:
            map_from_base [4, 4] and its covariance [6, 6] (base frame, body perturbation).

        Raises:
            InputError: Fix or covariance are not usable.
        """
        if not np.isfinite(enu_covariance).all() or np.linalg.eigvalsh(enu_covariance)[0] <= 0:
            raise InputError("the fix has no usable position covariance: set up the receiver's driver to give one")
        up = np.array([0.0, 0.0, antenna_height])
        map_from_enu = se3.inverse(self.enu_from_map)
        place = se3.transform(map_from_enu, torch.from_numpy(self.enu_from_fix(fix[None]) - up))[0]
        map_from_base = se3.from_rotation_translation(map_from_enu[:3, :3], place)
        covariance = torch.zeros((6, 6), dtype=torch.float64)
        covariance[:3, :3] = torch.from_numpy(enu_covariance)  # the base's axes are east, north, up
        covariance[3:, 3:] = torch.diag(torch.tensor([0.15, 0.15, np.pi], dtype=torch.float64) ** 2)
        return map_from_base, covariance


def check_fix(fixes: np.ndarray) -> None:
    """Raise InputError unless fixes [N, 3] are latitudes, longitudes (degrees) and altitudes (metres)."""
    good = np.isfinite(fixes).all() and (np.abs(fixes[:, 0]) <= 90).all() and (np.abs(fixes[:, 1]) <= 360).all()
    if not good:
        raise InputError("a place on the earth needs latitude (-90 to 90), longitude (degrees) and altitude (m): check the fix")


def fit_georeference(xyz: np.ndarray, fixes: np.ndarray, upright: bool = False) -> tuple[Georeference, np.ndarray]:
    """The georeference that brings map points onto their fixes.

    Outliers count less the further off they are (Cauchy, at the median error).

    Args:
        xyz: float64 [N, 3] map frame, metres.
        fixes: float64 [N, 3].
        upright: The map's z axis points up, and only its heading is found: enough for a straight road, whose fixes do not
            determine its roll.

    Returns:
        The georeference, and how far each point is off, float64 [N] metres.

    Raises:
        InputError: The fixes do not determine it, or fit nowhere.
    """
    check_fix(fixes)
    if len(xyz) < (2 if upright else 3):
        raise InputError(f"a georeference needs at least {2 if upright else 3} fixes, not {len(xyz)}: give more")
    latitude, longitude, altitude = np.median(fixes, 0)
    local = Georeference(latitude, longitude, altitude, torch.eye(4, dtype=torch.float64))
    pose, errors, spread = rigid_fit(xyz, local.enu_from_fix(fixes), upright)
    if spread < _LEAST_SPREAD_M:
        raise InputError(
            f"the fixes spread over {spread:.1f} m only, which does not determine the map's "
            + ("heading: give fixes further apart" if upright else "roll: give fixes to the sides as well, or --upright")
        )
    off, reach, away = np.median(errors), _reach(xyz), _reach(local.enu_from_fix(fixes))
    if off > _LARGEST_ERROR * reach:
        raise InputError(
            f"the fixes are {off:.1f} m off in the median wherever the map is ({away:.1f} m from their middle, in the map "
            f"{reach:.1f} m): check that they belong to these places, latitude before longitude, and that the map is in metres"
        )
    return Georeference(float(latitude), float(longitude), float(altitude), pose), errors


def _reach(places: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(places - np.median(places, 0), axis=1)))


def rigid_fit(points: np.ndarray, places: np.ndarray, upright: bool = False) -> tuple[torch.Tensor, np.ndarray, float]:
    """The rotation and shift that bring points onto their places.

    Outliers count less the further off they are (Cauchy, at the median error).

    Args:
        points: float64 [N, 3] in one frame.
        places: float64 [N, 3] of the same in another.
        upright: The z axes of both frames point up: only heading and shift are fitted.

    Returns:
        places_from_points float64 [4, 4], how far each point is off, float64 [N], and how far the points spread across the
        direction that determines the rotation least (upright: horizontally).
    """
    weights = np.ones(len(points))
    for _ in range(_ROUNDS):
        weights /= weights.sum()
        centre, target = weights @ points, weights @ places
        correlation = (places - target).T @ (weights[:, None] * (points - centre))
        if upright:
            flat = correlation[:2, :2]
            spread = np.sqrt(weights @ ((points - centre)[:, :2] ** 2).sum(1))
            yaw = np.arctan2(flat[1, 0] - flat[0, 1], flat[0, 0] + flat[1, 1])
            rotation = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        else:
            # Kabsch: the rotation nearest to the correlation. Its second singular value is the spread across the road.
            u, s, vt = np.linalg.svd(correlation)
            spread = np.sqrt(s[1])
            rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        errors = np.linalg.norm(places - target - (points - centre) @ rotation.T, axis=1)
        weights = 1 / (1 + (errors / max(np.median(errors), 1e-6)) ** 2)
    shift = torch.from_numpy(target - rotation @ centre)
    return se3.from_rotation_translation(torch.from_numpy(rotation), shift), errors, float(spread)


def _earth_from_fix(fixes: np.ndarray) -> np.ndarray:
    """Earth-centred, earth-fixed coordinates float64 [N, 3] in metres."""
    latitude, longitude, altitude = np.radians(fixes[:, 0]), np.radians(fixes[:, 1]), fixes[:, 2]
    radius = _AXIS / np.sqrt(1 - _ECCENTRICITY2 * np.sin(latitude) ** 2)
    around = (radius + altitude) * np.cos(latitude)
    up = (radius * (1 - _ECCENTRICITY2) + altitude) * np.sin(latitude)
    return np.stack((around * np.cos(longitude), around * np.sin(longitude), up), 1)


def _enu_axes(latitude: float, longitude: float) -> np.ndarray:
    """Rows: east, north, up at a place, in earth-centred coordinates."""
    phi, lam = np.radians(latitude), np.radians(longitude)
    return np.array([
        [-np.sin(lam), np.cos(lam), 0.0],
        [-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)],
        [np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)],
    ])  # fmt: skip

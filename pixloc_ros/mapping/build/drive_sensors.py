# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a gyro and satellite fixes add to the structure of a drive, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...errors import InputError
from ...io.bag_sensors import Fixes, ImuReadings
from ..georeference import Georeference, fit_georeference
from .adjustment import Links
from .fix_prior import FixPrior
from .gyro_prior import GyroPrior, upwards
from .matching import pixel_scale
from .odometry_structure import STAGES, stage, tracks
from .turns import ImageTurns
from .two_view import PairFinder

_LEAST_PX = 1.0


@dataclass
class DriveSensors:
    """The sensors of a drive besides camera and wheels.

    Attributes:
        imu: What it read, or None.
        fixes: Likewise.
        stamps_ns: int64 [K], of the keyframes.
        said: What became of each sensor, by its name; filled while it is used, "" where it was of no use.
    """

    imu: ImuReadings | None
    fixes: Fixes | None
    stamps_ns: np.ndarray
    said: dict[str, str] = field(default_factory=dict)
    _gyro: GyroPrior | None = None

    def gyro(self, turns: ImageTurns) -> GyroPrior | None:
        """Its bias found by the images; None where it is of no use."""
        if self.imu is None:
            return None
        self._gyro = GyroPrior(self.imu, self.stamps_ns)
        self._gyro.fit(turns.first, turns.rotations)
        return None if self._gyro.trouble else self._gyro

    def up(self, image: np.ndarray, poses: np.ndarray) -> np.ndarray | None:
        """Unit vector [3] upwards in the frame of the poses of some keyframes, by gravity; None where nothing says it."""
        if self.imu is None or "left out" in self.said.get("gyro", ""):
            return None
        up = upwards(self.imu, self.stamps_ns[image], poses)
        self.said["gravity"] = "" if up is None else f"z axis: from the accelerometer of {self.imu.topic}"
        return up

    def refined(
        self,
        finder: PairFinder,
        stored: dict[str, np.ndarray],
        motions: Links | None,
        wheels: float | None,
        up: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> dict[str, np.ndarray]:
        """A structure held by what the sensors say, too.

        Args:
            finder: Of the images; their cameras are right.
            stored: The structure: "image", "poses", "depth", "loops"; metric where there are wheels.
            motions: Those of wheels and gyro, where the structure is already held by them.
            wheels: How wrong the structure's scale may be, as a share; None: it is unknown.
            up: Called with keyframes and their poses, gives the unit vector [3] upwards in their frame.
        """
        image, poses = stored["image"], stored["poses"]
        adjusted = motions is not None
        if self.imu is not None and not adjusted:
            self._gyro = GyroPrior(self.imu, self.stamps_ns[image])
            motions = self._gyro.joined(None, poses)
        if self._gyro is not None:
            self.said["gyro"] = self._gyro.summary()
        if self.fixes is None and (adjusted or motions is None):
            return stored
        motions = _NONE if motions is None else motions
        loops = {tuple(pair) for pair in stored["loops"].tolist()}
        rays, points = tracks(finder, [pair for pair in finder.pairs if pair not in finder.loops or pair in loops])
        rows = np.isin(rays.image, image)
        rays = rays.only(rows)
        rays.image[:] = np.searchsorted(image, rays.image)
        robust_px = _LEAST_PX * pixel_scale(finder.matcher.images.cameras[0])
        if self.fixes is not None:
            prior = FixPrior(self.fixes, self.stamps_ns[image], up(image, poses))
            solved = prior.solve(poses, rays, points, motions, wheels, robust_px)
            if not isinstance(solved, str):
                unused = f", {self.fixes.without} messages without a fix" if self.fixes.without else ""
                self.said["fixes"] = (
                    f"fixes of {self.fixes.topic}: {len(solved.used)} used, {solved.rejected} rejected{unused}, "
                    f"{solved.error_m:.2f} m off in the median, scale ± {100 * solved.uncertainty:.1f} %"
                )
                figures = {"scale_uncertainty": np.array(solved.uncertainty), "depth": stored["depth"] * solved.scale}
                return stored | figures | {"poses": solved.poses, "fixes_used": solved.used}
            self.said["fixes"] = f"fixes of {self.fixes.topic}: left out, {solved}"
        if adjusted or motions is _NONE:
            return stored
        length = _length(poses)
        for share, iterations in STAGES[1:]:
            poses = stage(poses, rays, points, motions, share * robust_px, iterations)[0].poses
        poses[:, :3, 3] *= length / _length(poses)  # nothing but the beginning says how long it is
        return stored | {"poses": poses}

    def georeference(self, image: np.ndarray, map_from_camera: np.ndarray, used: np.ndarray) -> Georeference | None:
        """Where the map lies on the earth, by the fixes used; the map's z axis points up."""
        prior = FixPrior(self.fixes, self.stamps_ns[image], np.array((0.0, 0.0, 1.0)))
        places, _ = prior.antennas(map_from_camera, 1.0)
        try:
            georeference, errors = fit_georeference(places[used], self.fixes.places[used], upright=True)
        except InputError as error:
            self.said["georeference"] = f"not georeferenced: {error}"
            return None
        self.said["georeference"] = f"georeferenced by {len(used)} fixes, {np.median(errors):.2f} m off in the median"
        return georeference


_NONE = Links(*np.zeros((2, 0), np.int64), np.zeros((0, 4, 4)), np.zeros(0), np.zeros(0), np.zeros(0, bool))


def _length(poses: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())

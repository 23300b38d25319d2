# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The last pose, kept in a file, so that a robot that was switched off begins where it stood."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..io.files import write_text

_VERSION = 1
MOVED_STD = (0.5, 0.3)
"""Metres, radians: how far a robot may have been pushed while it was off. Added to what was known of the pose."""


@dataclass(frozen=True)
class LastPose:
    """Where the robot was last.

    Attributes:
        map: File name of the map.
        stamp_ns: When.
        map_from_base: float64 [4, 4].
        covariance: float64 [6, 6], base frame, body perturbation.
    """

    map: str
    stamp_ns: int
    map_from_base: torch.Tensor
    covariance: torch.Tensor

    def prior_covariance(self) -> torch.Tensor:
        """For a start from it: what was known, and that the robot may have been moved a little since."""
        moved = [MOVED_STD[0] ** 2] * 3 + [MOVED_STD[1] ** 2] * 3
        return self.covariance + torch.diag(torch.tensor(moved, dtype=torch.float64))


def save_last_pose(path: Path, pose: LastPose) -> None:
    """Write the file whole or not at all; only its owner may read or write it. Raises `InputError`."""
    text = json.dumps(
        {
            "version": _VERSION,
            "map": pose.map,
            "stamp_ns": pose.stamp_ns,
            "translation": pose.map_from_base[:3, 3].tolist(),
            "quaternion_xyzw": se3.quaternion_from_rotation(pose.map_from_base[:3, :3]).tolist(),
            "covariance": pose.covariance.flatten().tolist(),
        }
    )
    write_text(path, text + "\n", mode=0o600)


def load_last_pose(path: Path, map_name: str) -> LastPose | None:
    """The pose kept for a map; None where there is no file, or it is of another map.

    Raises InputError where the file is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        if values["version"] != _VERSION:
            raise ValueError(f"version {values['version']}")
        numbers = np.array(values["covariance"], float).reshape(6, 6)
        if not np.isfinite(numbers).all() or not np.allclose(numbers, numbers.T) or np.linalg.eigvalsh(numbers)[0] < 0:
            raise ValueError("covariance")
        quaternion = torch.tensor(values["quaternion_xyzw"], dtype=torch.float64)
        if not abs(float(quaternion.norm()) - 1) < 1e-3:
            raise ValueError("quaternion is not of unit length")
        pose = se3.from_rotation_translation(
            se3.rotation_from_quaternion(quaternion), torch.tensor(values["translation"], dtype=torch.float64)
        )
        se3.check_pose(pose, f"the pose in {path}")
        last = LastPose(str(values["map"]), int(values["stamp_ns"]), pose, torch.from_numpy(numbers))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, RuntimeError, InputError) as error:
        raise InputError(f"{path} is not a saved pose ({error}): delete it, or give an initial pose") from None
    return last if last.map == map_name else None

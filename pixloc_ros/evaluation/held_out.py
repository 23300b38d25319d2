# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A map checked by its own keyframes: each tenth is localized in the map without it and its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..features import Extractor
from ..geometry import se3
from ..io.images import load_image
from ..localization import Localizer
from ..mapping.build.care import subset
from ..mapping.map_file import Map, keyframe_of_observations
from ..tracking.prior_std import PriorStd

_EVERY, _NEIGHBOURS, _MOST = 10, 1, 60
_AROUND = 1000
_LEAST_STD = (5.0, 0.1)


@dataclass(frozen=True)
class HeldOut:
    """What became of the keyframes that were left out.

    Attributes:
        names: Of them.
        found: Whether each got a pose that is not doubtful.
        metres: How far that is from its place in the map; NaN without.
        degrees: Likewise.
        reasons: Why there is none; empty.
    """

    names: tuple[str, ...]
    found: tuple[bool, ...]
    metres: tuple[float, ...]
    degrees: tuple[float, ...]
    reasons: tuple[str, ...]

    def summary(self) -> str:
        """For people, a line."""
        found = np.array(self.found, bool)
        if not found.any():
            return f"none of {len(found)} keyframes is found in the map without it and its neighbours"
        metres, degrees = (float(np.median(np.array(values)[found])) for values in (self.metres, self.degrees))
        return (
            f"{found.sum()} of {len(found)} keyframes are found in the map without them and their neighbours, "
            f"{100 * metres:.1f} cm and {degrees:.2f}° from their places in the median"
        )


def localize_held_out(
    map_: Map, images: Sequence[Path], extractor: Extractor, progress: Callable[..., None] = lambda done, of, note="": None
) -> HeldOut:
    """Localize each tenth keyframe, beginning at the pose of the nearest one that stays.

    Points were made with its image, too: the check shows whether the map holds together, not how exact it is.

    Args:
        map_: The map.
        images: Of its keyframes.
        extractor: That made it.
        progress: Called with the work done and all of it.
    """
    count = len(map_.keyframe_names)
    chosen = (
        np.arange(_EVERY // 2, count, max(_EVERY, -(-count // _MOST)))
        if count > _EVERY
        else np.arange(count // 2, count // 2 + 1)
    )
    owner, rows = keyframe_of_observations(map_), []
    centres = map_.map_from_keyframe[:, :3, 3].numpy()
    for n, k in enumerate(chosen.tolist()):
        progress(n, len(chosen), "checking keyframes left out")
        stays = np.abs(np.arange(count) - k) > _NEIGHBOURS
        if count > _AROUND:  # what is far away is not looked at, and a copy of a large map takes long
            away = np.linalg.norm(centres - centres[k], axis=1)
            stays &= away <= np.partition(away, _AROUND)[_AROUND]
        rest = subset(map_, stays[owner])
        distance, angle = se3.pose_difference(rest.map_from_keyframe, map_.map_from_keyframe[k].expand_as(rest.map_from_keyframe))
        nearest = int((distance / max(float(map_.keyframe_depth[k]), 1e-9) + angle).argmin())
        prior_std = nearby_std(distance[nearest], angle[nearest], float(map_.keyframe_depth[k]))
        image = load_image(images[k])
        camera = map_.cameras[map_.keyframe_camera[k]].of_image(image)
        found = Localizer(rest, extractor).locate(image, camera, rest.map_from_keyframe[nearest], prior_std)
        off = (float("nan"), float("nan"))
        if found.map_from_camera is not None:
            metres, radians = se3.pose_difference(map_.map_from_keyframe[k], found.map_from_camera)
            off = float(metres), math.degrees(float(radians))
        rows.append((map_.keyframe_names[k], found.success, *off, found.reason))
    return HeldOut(*map(tuple, zip(*rows)))


def nearby_std(distance: torch.Tensor, angle: torch.Tensor, depth: float) -> PriorStd:
    """How far off the pose of a keyframe may be that is at this distance and angle (radians), where things are so far away."""
    return PriorStd(max(math.degrees(float(angle)), _LEAST_STD[0]), max(float(distance) / max(depth, 1e-9), _LEAST_STD[1]))

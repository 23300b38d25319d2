# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How far off a rough pose may be, as people say it: by some degrees, and by some metres or a share of the depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..io.text import is_number
from .covariances import isotropic


@dataclass(frozen=True)
class PriorStd:
    """Standard deviations of a prior pose: of its whole angle and its whole distance, in no particular direction.

    Attributes:
        degrees: Of the angle.
        depth_share: Of the distance, as a share of the median depth of the map points that the prior sees.
        metres: Of the distance (in units of the map), in place of `depth_share`.
    """

    degrees: float
    depth_share: float | None = None
    metres: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.depth_share, self.metres) if value is not None]
        if len(given) != 1:
            raise InputError("the standard deviation of a prior's distance: give one of depth_share and metres")
        if not (0 < self.degrees <= 180 and 0 < given[0] < math.inf):
            raise InputError("standard deviations of a prior: the angle must be above 0 and at most 180°, the distance above 0")

    @classmethod
    def parse(cls, words: Sequence[str], what: str) -> PriorStd:
        """Of two words, degrees and percent of the depth or metres: "5 10%", "5 0.3m". Raises `InputError` naming `what`."""
        degrees, distance = words
        number, unit = distance[:-1], distance[-1:]
        if is_number(distance):
            raise InputError(f"{what}: '{distance}' has no unit: write {distance}% (of the depth) or {distance}m (metres)")
        if not is_number(degrees) or unit not in ("%", "m") or not is_number(number):
            raise InputError(f"{what}: '{degrees} {distance}' says no standard deviations: write degrees and 10% or 0.3m")
        try:
            value = float(number)
            return cls(float(degrees), value / 100 if unit == "%" else None, value if unit == "m" else None)
        except InputError as error:
            raise InputError(f"{what}: '{degrees} {distance}': {error}") from None

    def covariance(self, depth: float) -> torch.Tensor:
        """float64 [6, 6] (translation, rotation): each axis has a third of the variance.

        Args:
            depth: Median depth of the map points that the prior sees.
        """
        distance = self.depth_share * max(depth, 1e-9) if self.metres is None else self.metres
        return isotropic(distance / math.sqrt(3), math.radians(self.degrees) / math.sqrt(3))


WIDE_PRIOR = PriorStd(15.0, 0.25)
"""Of a prior of which nothing is said: satellite fix and compass, a similar image's pose, a guess on the map."""

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What an alignment is worth: the probability that its pose is right, and how far its covariance may be trusted.

Both are log-linear in what the optimizer leaves behind on all levels. Their numbers are learned from poses only, on right and
wrong alignments, and live in the weights file. Where none were learned, a hand rule on the share of points that agree serves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..alignment import AlignmentResult
from ..errors import InputError
from .covariances import isotropic

RIGHT = (2.0, 0.02)
"""A pose is right that is wrong by less: degrees, and share of the median depth of the points in view."""
STATISTICS = (
    *(f"agreement, level {k}" for k in range(5)),
    *(f"recognised, level {k}" for k in range(5)),
    *(f"slopes, level {k}" for k in range(5)),
    "visible points",
    "visible share",
    "spread of translation",
    "spread of rotation",
    "moved in all",
    "moved since level 1",
)
"""Per level, coarse to fine: log10 of the share of visible points that agree, plus 0.02; the share that is recognised at the
final pose; the log mean slope of the image's features, which blur flattens (`alignment.LevelTrace`). log10 of the number of
visible points over 500; their share of those asked for; log10 of the standard deviations that the image alone leaves, as shares
of the depth and in radians; log10 of how far the pose went from the start and since level 1, the share of the depth plus
radians."""
PRIORS = "narrow", "wide"
"""What a pose's probability is read from differs: where it is known, few points that agree do; where it is not, they may be those
of a place that looks the same."""
_WIDTHS = -2.5, -0.5
"""log10 of the standard deviations of such priors: means of translation's, as a share of the depth, and rotation's, rad."""
TENSORS = "judge."
_LEVELS = 5
_NAMES = tuple(TENSORS + name for name in ("probability", "noise", "turn", "shift"))
_ELSEWHERE = TENSORS + "elsewhere"
_NEVER = -9.0
_LEAST_AGREEMENT = 0.02
_HAND = (0.0, 0.15, 0.2, 0.32, 0.4, 1.0), (0.0, 0.85, 0.92, 0.95, 0.98, 1.0)
"""Where nothing was learned: shares of points that agree, and probabilities, which put the tracker's gates where they were when
they looked at these shares."""
_LIMITS = (-9.0, 4.0)
_LEAST, _LARGEST_POWER = 1e-5, 30.0


def statistics_of(
    result: AlignmentResult, covariance: np.ndarray, start: np.ndarray, depth: float, prior: np.ndarray | None = None
) -> np.ndarray:
    """The `STATISTICS` of one alignment and how wide its prior was, float64 [22]: 0 narrow, 1 wide (`PRIORS`), between them the
    share of the logarithm's way. Of fewer levels than five, the coarsest stands for those missing.

    Args:
        result: Unbatched.
        covariance: float64 [6, 6] that it claims.
        start: camera_from_map float64 [4, 4] where it began.
        depth: Median depth of the visible points.
        prior: float64 [6, 6], covariance of the prior, camera axes; None where there is none.
    """
    traces = [result.trace[0]] * (_LEVELS - len(result.trace)) + list(result.trace[-_LEVELS:])
    visible = int(result.visible.sum())
    end, coarse = result.camera_from_map.numpy(), traces[1].camera_from_map[-1].double().numpy()
    unit = depth if np.isfinite(depth) and depth > 0 else 1.0
    spread = _log_std(covariance, unit)
    width = 1.0 if prior is None else float(np.interp(_log_std(prior, unit).mean(), _WIDTHS, (0.0, 1.0)))
    return np.array(
        [
            *(math.log10(float(trace.agreement) + _LEAST_AGREEMENT) for trace in traces),
            *(float(trace.recognised) for trace in traces),
            *(float(trace.slopes) for trace in traces),
            np.log10(max(visible, 1) / 500),
            visible / max(result.visible.shape[-1], 1),
            *spread,
            _moved(start, end, unit),
            _moved(coarse, end, unit),
            width,
        ]
    )


def _log_std(covariance: np.ndarray, unit: float) -> np.ndarray:
    """log10 of the standard deviations of translation, in units, and rotation, rad, float64 [2]."""
    scaled = covariance.diagonal() / np.repeat((unit**2, 1.0), 3)
    return 0.5 * np.log10(np.nan_to_num(scaled, nan=1e6, posinf=1e6).clip(1e-20, 1e6).reshape(2, 3).mean(1))


def _moved(one: np.ndarray, other: np.ndarray, depth: float) -> float:
    difference = one[:3, :3] @ other[:3, :3].T
    shift = np.linalg.norm(one[:3, 3] - difference @ other[:3, 3]) / depth
    return float(np.log10(_LEAST + shift + np.arccos(np.clip((np.trace(difference) - 1) / 2, -1, 1))))


@dataclass(frozen=True)
class AlignmentJudge:
    """Learned numbers: a constant and a slope for each of the `STATISTICS`, float64 [22].

    The covariance of a pose is what the optimizer claims, as if all points erred independently, times a factor, and what all
    points have in common: blur that is not centred, light from another side, a map that is off. That turns and shifts the camera.
    It does not depend on the prior, which would be counted twice.

    Attributes:
        log_odds: Of a right pose (`RIGHT`), float64 [2, 22]: with a narrow and with a wide prior (`PRIORS`).
        noise: log10 of the factor on the claimed covariance.
        turn: log10 of the standard deviation that points have in common, rad.
        shift: The same of the camera's place, as a share of the depth.
        elsewhere: Factor on the covariance that others get: places that taught nothing are less well known. Not on that of the
            next prior: image and prior are weighed as they were learned.
    """

    log_odds: np.ndarray
    noise: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    elsewhere: float = 1.0

    @classmethod
    def by_hand(cls) -> AlignmentJudge:
        """Where nothing was learned: the share of points that agree on the level before the finest; the covariance as claimed."""
        noise, turn, shift = np.zeros((3, 1 + len(STATISTICS)))
        turn[0] = shift[0] = _NEVER
        return _HandJudge(np.zeros((2, 1 + len(STATISTICS))), noise, turn, shift)

    @classmethod
    def of(cls, companions: Mapping[str, torch.Tensor], source: str) -> AlignmentJudge:
        """The one that a weights file holds, or the one by hand. Raises InputError for numbers that cannot be."""
        found = [companions.get(name) for name in _NAMES]
        if any(value is None for value in found):
            return cls.by_hand()
        for name, value in zip(_NAMES, found):
            wanted = (2, 1 + len(STATISTICS))[name != _NAMES[0] :]
            if tuple(value.shape) != wanted or not bool(value.isfinite().all()):
                count = "x".join(map(str, wanted))
                raise InputError(f"{source}: '{name}' must hold {count} finite numbers: train it again")
        elsewhere = companions.get(_ELSEWHERE, torch.ones(1))
        if tuple(elsewhere.shape) != (1,) or not 1 <= float(elsewhere) < float("inf"):
            raise InputError(f"{source}: '{_ELSEWHERE}' must hold one number, 1 or more: train it again")
        return cls(*(value.double().numpy() for value in found), float(elsewhere))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a weights file keeps."""
        values = (self.log_odds, self.noise, self.turn, self.shift)
        found = {name: torch.from_numpy(value).float() for name, value in zip(_NAMES, values)}
        return found | {_ELSEWHERE: torch.tensor([self.elsewhere], dtype=torch.float32)}

    def probability(self, statistics: np.ndarray) -> float:
        """That the pose is right."""
        narrow, wide = self.log_odds[:, 0] + self.log_odds[:, 1:] @ statistics[:-1]
        power = float(np.clip(narrow + statistics[-1] * (wide - narrow), -_LARGEST_POWER, _LARGEST_POWER))
        return 1 / (1 + math.exp(-power))

    def covariance(self, claimed: torch.Tensor, statistics: np.ndarray, depth: float) -> torch.Tensor:
        """Of a pose [6, 6] (translation, rotation): of what the optimizer claims, and the median depth of the visible points."""
        noise, turn, shift = (
            10 ** float(np.clip(v[0] + v[1:] @ statistics[:-1], *_LIMITS)) for v in (self.noise, self.turn, self.shift)
        )
        return claimed * noise + isotropic(shift * depth if np.isfinite(depth) else 0.0, turn)


class _HandJudge(AlignmentJudge):
    def probability(self, statistics: np.ndarray) -> float:
        return float(np.interp(10 ** statistics[_LEVELS - 2] - _LEAST_AGREEMENT, *_HAND))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Odometry judged by what the camera sees: are both on one clock, and do both measure the same distances and turns?

The motion between two poses of the camera some tenths of a second apart is compared with that of the odometry between the same
two times, all shifted by an offset from a grid. Where turning or speed change, only the right offset makes the two agree. A wrong
scale must not look like an offset: for each offset the best scale is taken out (what is minimized is 1 - correlation²), and so is
turning in proportion to the way, which wheels of unequal size read. Slipping wheels are outliers, taken out by weights.

Standard deviations are the larger of two: by the curvature of the cost at its minimum, and by a jackknife over blocks of time,
since errors of wheels last.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import se3
from .odometry import OdometryBuffer, OdometryUnavailable

FIGURES = ("time_offset_s", "way_ratio", "turn_ratio")
WARNINGS = ("clocks", "way", "turning")


@dataclass(frozen=True)
class OdometryCheckOptions:
    """What is compared, and what counts as wrong (chosen on kitti07, tum_fr1_rpy and simulated wheels).

    Attributes:
        step_s: Time between poses that are compared.
        max_step_s: More is a gap.
        max_offset_s: Largest offset that is tried.
        grid_s: Step between those that are tried.
        pairs: Motions that are remembered.
        least_pairs: Needed before anything is said.
        pairs_a_fit: New ones until the next fit.
        least_motion: Metres or radians; less is no motion.
        known_offset_std_s: An offset that is less sure is not known.
        known_ratio_std: The same for ratios.
        wrong_offset_s: An offset worth a warning; drivers that stamp the beginning of the exposure are off by less.
        wrong_ratio: A ratio's distance from 1 worth a warning; worn wheels are off by less.
        sigmas: Standard deviations that it must also be off by,
        confirm_fits: so many times in a row.
    """

    step_s: float = 0.3
    max_step_s: float = 1.2
    max_offset_s: float = 0.5
    grid_s: float = 0.025
    pairs: int = 200
    least_pairs: int = 10
    pairs_a_fit: int = 3
    least_motion: float = 0.01
    known_offset_std_s: float = 0.03
    known_ratio_std: float = 0.03
    wrong_offset_s: float = 0.025
    wrong_ratio: float = 0.06
    sigmas: float = 3.0
    confirm_fits: int = 4


@dataclass(frozen=True)
class OdometryFindings:
    """What the camera says of the odometry, each figure with its standard deviation; None: the drive has not shown it yet.

    Attributes:
        pairs: Motions compared.
        time_offset_s: What must be added to the stamps of the images (as they were given to the tracker) to be on the odometry's
            clock.
        time_offset_std_s: Its standard deviation.
        way_ratio: The odometry's way per the camera's.
        way_ratio_std: Its standard deviation.
        turn_ratio: The odometry's turning per the camera's.
        turn_ratio_std: Its standard deviation.
        wrong: Of `WARNINGS`, those that were found several times in a row.
    """

    pairs: int = 0
    time_offset_s: float | None = None
    time_offset_std_s: float | None = None
    way_ratio: float | None = None
    way_ratio_std: float | None = None
    turn_ratio: float | None = None
    turn_ratio_std: float | None = None
    wrong: frozenset[str] = frozenset()

    def warnings(self, time_offset_s: float = 0.0) -> dict[str, str]:
        """What is wrong and what to do, in words, by name (`WARNINGS`). time_offset_s: added to the stamps already."""
        found = {}
        if "clocks" in self.wrong:
            offset, std = self.time_offset_s, self.time_offset_std_s
            than = "later" if offset < 0 else "earlier"
            known = f", time_offset {time_offset_s:g} included" if time_offset_s else ""
            found["clocks"] = (
                f"images are stamped {abs(offset):.3f} s (± {std:.3f}) {than} than the odometry{known}: set time_offset to "
                f"{time_offset_s + offset:.3f}, or fix the driver"
            )
        if "way" in self.wrong:
            found["way"] = (
                f"the odometry's way is {self.way_ratio:.2f} (± {max(self.way_ratio_std, 0.01):.2f}) times the camera's: check "
                "wheel radius and gear ratio, or the scale of the map"
            )
        if "turning" in self.wrong:
            found["turning"] = (
                f"the odometry turns {self.turn_ratio:.2f} (± {max(self.turn_ratio_std, 0.01):.2f}) times as far as the camera: "
                "check the wheels' distance, or the gyroscope's scale"
            )
        return found

    def known(self) -> dict[str, tuple[float, float]]:
        """The figures (`FIGURES`) that are known, with their standard deviations."""
        values = (self.time_offset_s, self.way_ratio, self.turn_ratio)
        stds = (self.time_offset_std_s, self.way_ratio_std, self.turn_ratio_std)
        return {name: (value, std) for name, value, std in zip(FIGURES, values, stds) if value is not None}


class OdometryCheck:
    """Takes the poses that are believed, in the order of time, and compares them with the odometry when it is asked for its
    findings. For one thread; the odometry may be filled by another.
    """

    def __init__(self, odometry: OdometryBuffer, options: OdometryCheckOptions | None = None) -> None:
        self.options = options or OdometryCheckOptions()
        self._odometry = odometry
        steps = round(self.options.max_offset_s / self.options.grid_s)
        self._offsets_s = self.options.grid_s * np.arange(-steps, steps + 1)
        self._shifts_ns = [round(s * 1e9) for s in self._offsets_s]
        self.restart()

    def restart(self) -> None:
        """Forgets all: the clocks are others from now on, or the map is."""
        self._turns = _Regression(len(self._offsets_s), self.options.pairs)
        self._ways = _Regression(len(self._offsets_s), self.options.pairs)
        self._findings = OdometryFindings()
        self._in_a_row = Counter()
        self.interrupt()

    def interrupt(self) -> None:
        """The poses that follow have nothing to do with those before: the robot is somewhere else."""
        self._waiting: deque[tuple[int, torch.Tensor]] = deque()
        self._newest_ns: int | None = None
        self._last: tuple[int, torch.Tensor, torch.Tensor, int] | None = None

    def add(self, stamp_ns: int, map_from_base: torch.Tensor) -> None:
        """A pose that an image gave, float64 [4, 4]: kept until findings are asked for."""
        if self._newest_ns is not None and (stamp_ns - self._newest_ns) * 1e-9 < self.options.step_s - 0.01:
            return
        self._newest_ns = stamp_ns
        self._waiting.append((stamp_ns, map_from_base))
        if len(self._waiting) > _MOST_WAITING:  # nobody asks, or odometry has stopped
            self._waiting.popleft()
            self._last = None

    def findings(self) -> OdometryFindings:
        """What is known by now."""
        newest_ns = self._odometry.newest_stamp_ns
        while self._waiting and newest_ns is not None and self._waiting[0][0] + self._shifts_ns[-1] <= newest_ns:
            self._compare(*self._waiting.popleft())
        if self._turns.added >= self.options.pairs_a_fit:
            self._findings = self._find()
        return self._findings

    @torch.no_grad()
    def _compare(self, stamp_ns: int, map_from_base: torch.Tensor) -> None:
        """A pose with the one before."""
        last, self._last = self._last, None
        try:
            samples = [self._odometry.lookup(stamp_ns + shift_ns) for shift_ns in self._shifts_ns]
        except OdometryUnavailable:
            return
        odom_from_base, epoch = torch.stack([sample.odom_from_base for sample in samples]), samples[0].epoch
        self._last = stamp_ns, map_from_base, odom_from_base, epoch
        if last is None or last[3] != epoch or (stamp_ns - last[0]) * 1e-9 > self.options.max_step_s:
            return
        odometry, camera = _motion(last[2], odom_from_base), _motion(last[1][None], map_from_base[None])[0]
        if max(np.abs(odometry).max(), np.abs(camera).max()) < self.options.least_motion:
            return
        way, turn = np.linalg.norm(camera[:3]), np.linalg.norm(camera[3:])
        # Least errors of a camera and usual ones of wheels; what they really are is found by the fit.
        self._turns.add(camera[3:], odometry[:, 3:], 0.002 + 0.03 * turn + 0.004 * way, np.array([0.0, 0.0, way]))
        self._ways.add(camera[:3], odometry[:, :3], 0.006 + 0.04 * way + 0.02 * turn, np.zeros(3))

    def _find(self) -> OdometryFindings:
        pairs, options = len(self._turns), self.options
        if pairs < options.least_pairs:
            return OdometryFindings(pairs)
        offset, std, index = _fit(self._turns, self._ways, self._offsets_s)
        known = std <= options.known_offset_std_s and 0 < index < len(self._offsets_s) - 1
        ratios = []
        for regression in (self._ways, self._turns):
            ratio, ratio_std = regression.ratio(index)
            ratios += [ratio, ratio_std] if ratio_std <= options.known_ratio_std * max(ratio, 1.0) else [None, None]
        # The best of the grid need not be right: where the camera turns, the odometry must turn as it does at that offset.
        known &= ratios[2] is not None or not self._turns.shows_motion
        found = OdometryFindings(pairs, *((offset, std) if known else (None, None)), *ratios)
        for warning, figure, right, least in zip(
            WARNINGS, FIGURES, (0.0, 1.0, 1.0), (options.wrong_offset_s, options.wrong_ratio, options.wrong_ratio)
        ):
            value, std = found.known().get(figure, (right, 0.0))
            wrong = abs(value - right) > max(least, options.sigmas * std)
            self._in_a_row[warning] = self._in_a_row[warning] + 1 if wrong else 0
        return replace(found, wrong=frozenset(w for w, times in self._in_a_row.items() if times >= options.confirm_fits))


class _Regression:
    """Vectors of the camera against those of the odometry at every offset: translations, or rotation vectors, of the last pairs.

    At each offset, camera = ratio · odometry + share · nuisance is solved for ratio and share, by weighted least squares.
    """

    def __init__(self, offsets: int, limit: int) -> None:
        self._limit, self._count, self.added = limit, 0, 0
        self._camera, self._nuisance = np.empty((2 * limit, 3)), np.empty((2 * limit, 3))
        self._odometry = np.empty((2 * limit, 3, offsets))

    def __len__(self) -> int:
        return min(self._count, self._limit)

    def add(self, camera: np.ndarray, odometry: np.ndarray, std: float, nuisance: np.ndarray) -> None:
        """camera [3], odometry [offsets, 3], nuisance [3]; std: expected of the residuals."""
        if self._count == len(self._camera):
            for array in (self._camera, self._odometry, self._nuisance):
                array[: self._limit] = array[self._limit :]
            self._count = self._limit
        self._camera[self._count], self._nuisance[self._count] = camera / std, nuisance / std
        self._odometry[self._count] = odometry.T / std
        self._count += 1
        self.added += 1

    def begin(self) -> None:
        """Takes what is remembered now, all with the same weight."""
        self.added = 0
        part = slice(self._count - len(self), self._count)
        c, n, o = self._camera[part], self._nuisance[part], self._odometry[part]
        products = [(o * factor).reshape(3 * len(o), -1) for factor in (o, c[..., None], n[..., None])]
        self._products = np.hstack([*products, np.stack((c * c, c * n, n * n), -1).reshape(-1, 3)])
        self._parts = c, n, o
        self._weights = np.ones((1, 3 * len(o)))

    def residuals2(self, weights: np.ndarray) -> np.ndarray:
        """Squared residuals float64 [N, offsets], each offset with its own ratio and share, found with weights [N, offsets]."""
        c, n, o = self._parts
        weighted = weights[:, None] * o
        oo, oc, on = ((weighted * factor).sum((0, 1)) for factor in (o, c[..., None], n[..., None]))
        cn, nn = (c * n).sum(1) @ weights, (n * n).sum(1) @ weights
        share = (cn * oo - oc * on) / (nn * oo - on * on + _TINY)
        ratio = (oc - share * on) / (oo + _TINY)
        return ((c[..., None] - ratio * o - share * n[..., None]) ** 2).sum(1)

    def rescale(self, index: int) -> np.ndarray:
        """Squared residuals float64 [N] at an offset, in units of how large those of each axis usually are."""
        oo, oc, on, _, cn, nn = (float(value[0, index]) for value in self._sums(self._weights))
        share = (cn * oo - oc * on) / (nn * oo - on * on + _TINY)
        c, n, o = self._parts
        residuals = c - (oc - share * on) / (oo + _TINY) * o[..., index] - share * n
        self._sizes = np.maximum(1.4826 * np.median(np.abs(residuals), axis=0), _LEAST_SIZE)
        return ((residuals / self._sizes) ** 2).sum(1)

    def weigh(self, weights: np.ndarray) -> None:
        """Takes the pairs with weights [N], in the units of `rescale`."""
        self._weights = (weights[:, None] / self._sizes**2).reshape(1, -1)

    def costs(self, without_blocks: bool = False) -> np.ndarray:
        """Weighted squares of the residuals float64 [1, offsets]; or [1 + blocks, offsets]: of all, then without each block."""
        oo, oc, cc = self._without_nuisance(self._left_out() if without_blocks else self._weights)
        return cc - oc**2 / oo

    def ratio(self, index: int) -> tuple[float, float]:
        """The odometry's vectors per the camera's at an offset, and its standard deviation: infinite where the camera's are
        hardly larger than their errors, which would make the ratio too small."""
        _, oc, cc = self._without_nuisance(self._left_out())
        ratios = oc[:, index] / cc[:, 0]
        std = max(_jackknife(ratios[1:]), abs(float(ratios[0])) / float(cc[0, 0]) ** 0.5) * _unsure(len(self))
        return float(ratios[0]), std if cc[0, 0] >= _SIGNAL * len(self) else np.inf

    @property
    def shows_motion(self) -> bool:
        """Whether the camera's vectors are clearly larger than the errors that are expected of them."""
        return bool((self._parts[0] ** 2).sum(1).mean() >= _SIGNAL)

    def _left_out(self) -> np.ndarray:
        """The weights [1 + blocks, 3 N]: all, then without each of the blocks of time."""
        weights = np.repeat(self._weights, _BLOCKS + 1, 0)
        for block, rows in enumerate(np.array_split(np.arange(weights.shape[1]), _BLOCKS), 1):
            weights[block, rows] = 0.0
        return weights

    def _without_nuisance(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        oo, oc, on, cc, cn, nn = self._sums(weights)
        nn = nn + _TINY
        return oo - on * on / nn + _TINY, oc - on * cn / nn, cc - cn * cn / nn + _TINY

    def _sums(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """odometry², odometry · camera, odometry · nuisance, camera², camera · nuisance, nuisance², each [K, offsets], summed
        with weights [K, 3 N]."""
        sums = weights @ self._products
        offsets = self._odometry.shape[-1]
        of_odometry = np.split(sums[:, :-3], 3, 1)
        return *of_odometry, *(np.broadcast_to(sums[:, i, None], (len(sums), offsets)) for i in (-3, -2, -1))


_MOST_WAITING = 32
_BLOCKS = 8
_LEAST_SIZE = 0.3
"""Residuals are not taken for smaller than this share of what was expected of them."""
_OUTLIER = 3.0
_SIGNAL = 10.0
"""Least square of the camera's motions, in units of the residuals' variance."""
_TINY = 1e-9
_ROUNDS = 3


def _fit(turns: _Regression, ways: _Regression, offsets_s: np.ndarray) -> tuple[float, float, int]:
    """The offset at which both agree best, its standard deviation, and the index of the one nearest to it.

    A pair is weighed by way and turning together, by Cauchy's function: wheels that slip while the robot begins to turn look like
    an offset, but their way is wrong as well.
    """
    turns.begin()
    ways.begin()
    # In which valley the minimum lies, whatever the outliers say.
    weights = np.ones((len(turns), len(offsets_s)))
    for _ in range(_ROUNDS):
        unusual = (turns.residuals2(weights) + ways.residuals2(weights)) / _OUTLIER**2
        weights = 1.0 / (1.0 + unusual)
    index = int(np.log1p(unusual).sum(0).argmin())
    for _ in range(_ROUNDS):
        weights = 1.0 / (1.0 + (turns.rescale(index) + ways.rescale(index)) / _OUTLIER**2)
        turns.weigh(weights)
        ways.weigh(weights)
        index = int((turns.costs() + ways.costs())[0].argmin())
    costs = turns.costs(True) + ways.costs(True)
    found, curvature = _minimum(costs, offsets_s)
    by_curvature = (2.0 / curvature[0]) ** 0.5 if curvature[0] > 0 else np.inf
    std = max(float(by_curvature), _jackknife(found[1:])) * _unsure(len(turns))
    return float(found[0]), std, int(costs[0].argmin())


def _minimum(costs: np.ndarray, offsets_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of costs [N, offsets]: where its minimum lies, by a parabola, and the second derivative there."""
    step = offsets_s[1] - offsets_s[0]
    at = costs.argmin(1).clip(1, costs.shape[1] - 2)
    before, here, after = (costs[np.arange(len(costs)), at + shift] for shift in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1.0), 0.0).clip(-1, 1)
    return offsets_s[at] + step * shift, bend / step**2


def _unsure(pairs: int) -> float:
    """How much larger a standard deviation that was found from so few pairs may be: one slip of the wheels in the only bend so
    far."""
    return 1.0 + 10.0 / pairs


def _jackknife(values: np.ndarray) -> float:
    """Standard deviation of an estimate, from its values without each of the blocks [B]."""
    return float((((values - values.mean()) ** 2).sum() * (len(values) - 1) / len(values)) ** 0.5)


def _motion(a_from_b: torch.Tensor, a_from_c: torch.Tensor) -> np.ndarray:
    """Translation and rotation vector of b_from_c, float64 [N, 6], of two [N, 4, 4]."""
    motion = se3.inverse(a_from_b) @ a_from_c
    return torch.cat((motion[..., :3, 3], se3.so3_log(motion[..., :3, :3])), -1).numpy()

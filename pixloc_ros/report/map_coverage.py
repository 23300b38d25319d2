# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a map covers, from above: keyframes and points, how many keyframes see each place, and where it is thin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm
from scipy.sparse import csr_array

from ..mapping.map_file import Map
from ..mapping.statistics import coverage
from .style import BLUE, SHARES, TRUTH, VERMILION, encode, plt, styled

FEW_POINTS, LITTLE_OF_IMAGE = 60, 0.25
"""A keyframe with fewer points, or with points in less of its image (8x6 cells), is a weak one."""
FEW_SHARED = 30
"""A keyframe that shares fewer points than that with every other one stands alone."""
GAP_DEPTHS = 0.5
"""Between neighbouring keyframes further apart than this share of the depth the view changes a lot: a gap."""
_GAP_SPACINGS = 2.5
_CELLS = 60
_MOST_POINTS = 60_000
_SEEN_BY = (1, 2, 3, 5, 8, 13, 21)


@dataclass(frozen=True)
class Coverage:
    """Figures of a map.

    Attributes:
        points: That each keyframe sees [K].
        image_share: Of each keyframe's image, what they cover [K].
        shared: The most points that each keyframe shares with another one [K].
        gaps: Neighbours that lie too far apart, int [G, 2].
        gap_m: Metres between them [G].
        seen_by: How many keyframes see each point [P].
    """

    points: np.ndarray
    image_share: np.ndarray
    shared: np.ndarray
    gaps: np.ndarray
    gap_m: np.ndarray
    seen_by: np.ndarray

    @property
    def weak(self) -> np.ndarray:
        """Numbers of the keyframes with too few points."""
        return np.flatnonzero((self.points < FEW_POINTS) | (self.image_share < LITTLE_OF_IMAGE))

    @property
    def alone(self) -> np.ndarray:
        """Numbers of those that share too few points."""
        return np.flatnonzero(self.shared < FEW_SHARED)

    def summary(self) -> str:
        """For people, a few lines."""
        few = float((self.seen_by < 2).mean()) if len(self.seen_by) else 0.0
        lines = [
            f"{len(self.points)} keyframes, {np.median(self.points):.0f} points each (median; least {self.points.min()}), "
            f"in {np.median(self.image_share):.0%} of the image (median); {few:.0%} of the points seen by one keyframe only"
        ]
        weak = f"weak keyframes (fewer than {FEW_POINTS} points, or in less than {LITTLE_OF_IMAGE:.0%} of the image)"
        alone = f"keyframes that share fewer than {FEW_SHARED} points with any other"
        for label, found in ((weak, self.weak), (alone, self.alone)):
            some = ", ".join(map(str, found[:5]))
            lines.append(f"{label}: {len(found)}" + (f", for example {some}" if len(found) else ""))
        widest = f", the widest {self.gap_m.max():.2g} m" if len(self.gaps) else ""
        lines.append(f"gaps along the way: {len(self.gaps)}{widest}")
        return "\n".join(lines)


def measure_coverage(map_: Map) -> Coverage:
    """Figures of the whole map; keyframes in the order of the map, which is that of the drive."""
    counts = np.diff(map_.observation_offsets)
    share = np.array([coverage(map_, k) for k in range(len(counts))])
    steps = np.linalg.norm(np.diff(map_.map_from_keyframe[:, :3, 3].numpy(), axis=0), axis=1)
    depth = np.minimum(map_.keyframe_depth[1:], map_.keyframe_depth[:-1])
    wide = (steps > GAP_DEPTHS * depth) & (steps > _GAP_SPACINGS * (np.median(steps) if len(steps) else 0.0))
    gaps = np.flatnonzero(wide)
    return Coverage(counts, share, _most_shared(map_), np.stack((gaps, gaps + 1), 1), steps[wide], map_.track_length)


@styled
def plot_coverage(map_: Map, found: Coverage, suffix: str = ".png") -> bytes:
    """A picture of three parts: keyframes and points from above, how many keyframes see each cell of the ground plan, points per
    keyframe. Keyframes that are weak or alone, and gaps, are marked."""
    plan = ground_plan(map_)
    xyz, places = plan.flat(map_.xyz), plan.flat(map_.map_from_keyframe[:, :3, 3].numpy())
    low, high = _extent(xyz, places)
    tall = float(np.clip((high - low)[1] / max((high - low)[0], 1e-9), 0.35, 1.3))
    figure = plt.figure(figsize=(13.0, 6.2 * tall + 2.9), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(6.0 * tall, 2.2))
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _draw_keyframes(left, map_, plan, xyz, places, found)
    cells = _draw_cells(figure, right, map_, xyz, low, high)
    for axes in (left, right):
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel=plan.names[0])
    left.set_ylabel(plan.names[1])
    right.plot(places[:, 0], places[:, 1], ".", color=TRUTH, markersize=2.5)
    right.set_title(f"How many keyframes see a place\n(cells of {cells:.2g} m; dots: keyframes)")
    _draw_counts(figure.add_subplot(grid[1, :]), found)
    figure.suptitle(f"Map {map_.name}: {len(places)} keyframes, {len(map_.xyz)} points", fontsize=11, x=0.01, ha="left")
    return encode(figure, suffix)


@dataclass(frozen=True)
class GroundPlan:
    """Two directions of the map, [2, 3], to look at it along the third, and their names for axes."""

    axes: np.ndarray
    names: tuple[str, str]

    def flat(self, vectors: np.ndarray) -> np.ndarray:
        """[N, 3] to [N, 2]."""
        return vectors @ self.axes.T


def ground_plan(map_: Map) -> GroundPlan:
    """x and y of the map where z is up, which the cameras tell; else the two widest directions across their mean up."""
    up = -map_.map_from_keyframe[:, :3, 1].numpy().mean(0)
    up /= max(np.linalg.norm(up), 1e-9)
    if up[2] > np.cos(np.radians(35)):
        return GroundPlan(np.eye(3)[:2], ("x (m)", "y (m)"))
    centred = map_.xyz - np.median(map_.xyz, 0)
    across = centred - np.outer(centred @ up, up)
    across = across[np.linalg.norm(across, axis=1) <= np.percentile(np.linalg.norm(across, axis=1), 95)]
    _, _, directions = np.linalg.svd(across[:: max(1, len(across) // 5000)], full_matrices=False)
    first = directions[0] - directions[0] @ up * up
    first /= np.linalg.norm(first)
    return GroundPlan(np.stack((first, np.cross(up, first))), ("along the widest direction (m)", "across it (m)"))


def _draw_keyframes(axes: plt.Axes, map_: Map, plan: GroundPlan, xyz: np.ndarray, places: np.ndarray, found: Coverage) -> None:
    shown = xyz[:: max(1, len(xyz) // _MOST_POINTS)]
    axes.scatter(shown[:, 0], shown[:, 1], s=1.0, color="#9aa3af", alpha=0.7, linewidths=0)
    axes.scatter([], [], s=12, color="#9aa3af", label="map points")
    views = plan.flat(map_.map_from_keyframe[:, :3, 2].numpy())
    look = {"cmap": SHARES, "edgecolor": "black", "linewidth": 0.3, "zorder": 3}
    shape = {"angles": "xy", "scale": 32, "width": 0.0042, "headwidth": 3.5}
    colours = axes.quiver(*places.T, *views.T, found.points, **shape, **look)
    plt.colorbar(colours, ax=axes, label="points of the keyframe", shrink=0.85, pad=0.01)
    dashes = (0, (2, 1))
    axes.add_collection(LineCollection(places[found.gaps], colors=VERMILION, linewidths=2.2, linestyles=dashes, zorder=2))
    if len(found.gaps):
        axes.plot([], [], color=VERMILION, linewidth=2.2, linestyle=dashes, label=f"gap ({len(found.gaps)})")
    ring = {"s": 110, "facecolors": "none", "edgecolors": VERMILION, "linewidths": 1.5, "zorder": 4}
    for name, some, marker in (("weak keyframe", found.weak, "o"), ("alone", found.alone, "s")):
        if len(some):
            axes.scatter(*places[some].T, marker=marker, label=f"{name} ({len(some)})", **ring)
    axes.legend(loc="upper left", fontsize=8, frameon=True, framealpha=0.85, markerscale=1.0)
    axes.set_title("Keyframes and points, from above\n(arrows: where they look)")


def _draw_cells(figure: plt.Figure, axes: plt.Axes, map_: Map, xyz: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The heat map; its cell size in metres."""
    size = float((high - low).max()) / _CELLS
    columns, rows = np.maximum(np.ceil((high - low) / size).astype(int), 1)
    cell = np.floor((xyz - low) / size).astype(int)
    inside = ((cell >= 0) & (cell < (columns, rows))).all(1)
    number = np.where(inside, cell[:, 1] * columns + cell[:, 0], -1)[map_.observation_point]
    keyframe = np.repeat(np.arange(len(map_.keyframe_names)), np.diff(map_.observation_offsets))
    pairs = np.unique(np.stack((number, keyframe), 1)[number >= 0], axis=0)
    seen = np.bincount(pairs[:, 0], minlength=columns * rows).reshape(rows, columns).astype(float)
    bounds = [0.5 + count - 1 for count in _SEEN_BY] + [max(seen.max(), _SEEN_BY[-1]) + 1]
    colours = plt.get_cmap(SHARES, len(bounds) - 1)
    drawn = axes.imshow(
        np.where(seen > 0, seen, np.nan),
        origin="lower",
        cmap=colours,
        norm=BoundaryNorm(bounds, colours.N),
        extent=(low[0], low[0] + columns * size, low[1], low[1] + rows * size),
        interpolation="nearest",
    )
    axes.grid(False)
    bar = figure.colorbar(drawn, ax=axes, label="keyframes that see points there (white: none)", shrink=0.85, pad=0.01)
    middles = [(a + b) / 2 for a, b in zip(bounds, bounds[1:])]
    names = [f"{a}" if b - a == 1 else f"{a}–{b - 1}" for a, b in zip(_SEEN_BY, _SEEN_BY[1:])] + [f"≥ {_SEEN_BY[-1]}"]
    bar.set_ticks(middles, labels=names)
    return size


def _draw_counts(axes: plt.Axes, found: Coverage) -> None:
    flagged = np.isin(np.arange(len(found.points)), np.concatenate((found.weak, found.alone)))
    numbers, label = np.arange(len(found.points)), "of those, shared with its best neighbour"
    axes.bar(numbers, found.points, width=0.85, color=np.where(flagged, VERMILION, BLUE))
    axes.step(numbers, found.shared, where="mid", color=TRUTH, linewidth=1.2, label=label)
    axes.axhline(FEW_POINTS, color=VERMILION, linewidth=1, linestyle=":", label=f"{FEW_POINTS}: weak below")
    axes.set(xlabel="keyframe, in the order of the map", ylabel="points", title="Points per keyframe")
    axes.set_xlim(-0.7, len(found.points) - 0.3)
    axes.legend(fontsize=8, ncols=2, loc="upper right", frameon=True, framealpha=0.85)


def _most_shared(map_: Map) -> np.ndarray:
    """Per keyframe [K], the most points that it shares with one other."""
    count = len(map_.keyframe_names)
    keyframe = np.repeat(np.arange(count), np.diff(map_.observation_offsets))
    sees = csr_array((np.ones(len(keyframe), np.int32), (keyframe, map_.observation_point)), shape=(count, len(map_.xyz)))
    both = (sees @ sees.T).tocsr()
    both.setdiag(0)
    return both.max(axis=1).toarray().ravel() if count > 1 else np.zeros(count, int)


def _extent(xyz: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to show: all keyframes and, without stray ones, the points."""
    low = np.minimum(np.percentile(xyz, 1, axis=0), places.min(0))
    high = np.maximum(np.percentile(xyz, 99, axis=0), places.max(0))
    margin = 0.04 * float((high - low).max()) + 1e-6
    return low - margin, high + margin

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the network and the map see: the features of every level as colours (PCA, the same for map and image) with their
confidences, and from above what a map covers and where it is thin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

from ..features.pyramid import FeatureLevel, FeaturePyramid
from ..geometry.cameras import Camera
from ..io.files import find_file, find_files
from ..io.images import fit_to_working_size, load_image
from ..mapping.map_file import Map, coverage, decode_descriptors, keyframe_pixels
from ..tracking.frame_aligner import FrameAligner
from .aligned_image import AlignedImage
from .style import BLUE, INK, SHARES, TRUTH, VERMILION, encode, level_name, plt, show_image, styled

_ROWS = 20_000
"""Features that the principal components are computed from, of each side."""
_PERCENTILES = (1, 99)
_WIDTH_IN = 15.0


@dataclass(frozen=True)
class ReferenceView:
    """A keyframe next to the image.

    Attributes:
        map: That holds it.
        keyframe: Its number.
        image: uint8, None where its file is not at hand.
        pyramid: Its features, None in the same case.
    """

    map: Map
    keyframe: int
    image: np.ndarray | None = None
    pyramid: FeaturePyramid | None = None

    @property
    def camera(self) -> Camera:
        return self.map.cameras[int(self.map.keyframe_camera[self.keyframe])]

    @property
    def name(self) -> str:
        return self.map.keyframe_names[self.keyframe]

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [n, 2] of the points that it sees, and bool [n]: whether they are inside."""
        pixels, inside, _ = keyframe_pixels(self.map, self.keyframe)
        return pixels, inside

    def descriptors(self, level: int) -> np.ndarray:
        """float32 [n, C] of the same points."""
        return decode_descriptors(self.map.descriptors[level][self.map.observations(self.keyframe)])

    def confidences(self, level: int) -> np.ndarray | None:
        values = self.map.confidences[level]
        return None if values is None else values[self.map.observations(self.keyframe)].astype(np.float32)


class KeyframeImages:
    """The images that a map was made of, where they are still at hand: the map itself holds none."""

    def __init__(self, map_: Map, folder: Path | None = None) -> None:
        """folder: what the keyframes' names are relative to, None where the images are not at hand. Raises InputError where one
        is missing."""
        self.folder, remedy = folder, "give the folder that the map was made of, or none"
        if folder is not None:
            find_files(folder, map_.keyframe_names, f"images of map '{map_.name}'", remedy)

    def view(self, localizer: FrameAligner, keyframe: int) -> ReferenceView:
        """The keyframe with its image (of the size of its shrunk camera) and features, as far as they are at hand."""
        if self.folder is None:
            return ReferenceView(localizer.map, keyframe)
        image = load_image(find_file(self.folder, localizer.map.keyframe_names[keyframe]))
        camera = localizer.map.cameras[int(localizer.map.keyframe_camera[keyframe])]
        (height, width), size = image.shape[:2], (camera.width, camera.height)
        if (width, height) != size:
            full = camera.scaled(width / camera.width, height / camera.height, width, height)
            image = fit_to_working_size(image, full, max(size))[0]
        return ReferenceView(localizer.map, keyframe, image, localizer.extractor.extract(image))


def principal_colours(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Colours in [0, 1] of feature vectors [n, C], n x 3 each: the first three principal components of all of them together, so
    that similar features have similar colours on both sides."""
    rows = np.concatenate([side[:: max(1, len(side) // _ROWS)] for side in features]).astype(np.float64)
    mean = rows.mean(0)
    _, axes = np.linalg.eigh(np.cov((rows - mean).T))
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)  # eigenvectors have no sign
    spread = (rows - mean) @ axes
    low, high = np.percentile(spread, _PERCENTILES, axis=0)
    colours = [np.clip(((side - mean) @ axes - low) / np.maximum(high - low, 1e-9), 0, 1) for side in features]
    return [np.pad(one, ((0, 0), (0, 3 - one.shape[1]))) for one in colours]


@styled
def plot_feature_maps(aligned: AlignedImage, reference: ReferenceView, suffix: str = ".png") -> bytes:
    """A picture with a column a level, coarse to fine.

    Rows: the keyframe's features; the image's in the same colours; then the confidences of both where the network has them, else
    the weights that the map's points have at the answer. Of a keyframe without its image the features are drawn where the map
    holds them, at its points.
    """
    levels, camera = aligned.prepared.pyramid.levels, aligned.prepared.camera
    confident = any(level.confidence is not None for level in levels)
    rows, columns = 4 if confident else 3, len(levels) + 1
    wide = (_WIDTH_IN - 1.2) / columns
    size = (_WIDTH_IN, rows * (wide * camera.height / camera.width + 0.12) + 1.0)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    _images(grid[:, 0], aligned, reference)
    shades = None
    for k, (column, level) in enumerate(zip(grid[:, 1:].T, levels)):
        column[0].set_title(f"{level_name(level.stride)}, {level.channels} channels", fontsize=9.5)
        _colours(column, k, level, aligned, reference)
        shades = (
            _confidences(column[2:], k, level, aligned, reference) if confident else _weights(column[2], k, aligned)
        ) or shades
        for axes in column[2:]:
            axes.set(xticks=[], yticks=[])
    if shades is not None:
        label = f"{'confidence' if confident else 'weight at the answer'} (0 to 1)"
        figure.colorbar(shades, ax=grid[2:, :], label=label, shrink=0.95, pad=0.005, aspect=12 * (rows - 2))
    how = "Same colour in a column: similar features (three principal components as red, green, blue)"
    figure.suptitle(f"{aligned.title}. {how}", fontsize=10.5, x=0.01, ha="left")
    return encode(figure, suffix)


def _images(column: np.ndarray, aligned: AlignedImage, reference: ReferenceView) -> None:
    camera, what = aligned.prepared.camera, ""
    if reference.image is not None:
        show_image(column[0], reference.image, reference.camera.width, reference.camera.height)
        _frame(column[0], reference.camera)
    else:
        what = " (its points)"
        _show_points(column[0], reference, s=1.5, color="white")
    show_image(column[1], aligned.image, camera.width, camera.height)
    _frame(column[1], camera)
    column[0].set_title(f"map: {Path(reference.name).name}{what}", fontsize=9.5)
    column[1].set_title("image", fontsize=9.5)
    for axes in column[2:]:
        axes.set_axis_off()


def _colours(column: np.ndarray, k: int, level: FeatureLevel, aligned: AlignedImage, reference: ReferenceView) -> None:
    mine = _rows(level)
    if reference.pyramid is not None:
        other = reference.pyramid.levels[k]
        theirs, ours = principal_colours((_rows(other), mine))
        _show_cells(column[0], theirs.reshape(*other.features.shape[-2:], 3), other.stride, reference.camera)
    else:
        theirs, ours = principal_colours((reference.descriptors(k), mine))
        _show_points(column[0], reference, theirs, s=7, linewidths=0)
    _show_cells(column[1], ours.reshape(*level.features.shape[-2:], 3), level.stride, aligned.prepared.camera)


_LOOK = {"cmap": SHARES, "vmin": 0, "vmax": 1}
_SMALL = {"fontsize": 8, "fontweight": "normal", "pad": 3}


def _weights(axes: plt.Axes, k: int, aligned: AlignedImage):
    """The points' weights at the answer; what a colour bar needs."""
    camera, seen = aligned.prepared.camera, aligned.agreement(aligned.answer.map_from_camera, k)
    show_image(axes, aligned.image, camera.width, camera.height, 0.5)
    axes.set_title(f"points of the map: {100 * seen.agrees.sum() / max(seen.visible.sum(), 1):.0f} % agree", **_SMALL)
    return axes.scatter(*seen.pixels[seen.visible].T, s=7, c=seen.weight[seen.visible], linewidths=0, **_LOOK)


def _confidences(column: np.ndarray, k: int, level: FeatureLevel, aligned: AlignedImage, reference: ReferenceView):
    """Of the map and of the image; what a colour bar needs, None where there are none."""
    shades = None
    if reference.pyramid is not None and reference.pyramid.levels[k].confidence is not None:
        other = reference.pyramid.levels[k]
        shades = _show_cells(column[0], other.confidence[0].numpy(), other.stride, reference.camera, **_LOOK)
    elif (values := reference.confidences(k)) is not None:
        shades = _show_points(column[0], reference, values, face=None, s=7, linewidths=0, **_LOOK)
    column[0].set_title("confidence, map", **_SMALL)
    if level.confidence is not None:
        shades = _show_cells(column[1], level.confidence[0].numpy(), level.stride, aligned.prepared.camera, **_LOOK)
    column[1].set_title("confidence, image", **_SMALL)
    return shades


def _rows(level: FeatureLevel) -> np.ndarray:
    """float32 [H * W, C]."""
    return level.features[0].permute(1, 2, 0).reshape(-1, level.channels).to(torch.float32).numpy()


def _show_points(axes: plt.Axes, reference: ReferenceView, values: np.ndarray | None = None, face: str | None = INK, **look):
    """A keyframe's points where they lie in its image, with a colour or value each."""
    pixels, inside = reference.points()
    if face is not None:
        axes.set_facecolor(face)
    shown = axes.scatter(*pixels[inside].T, **look, **({} if values is None else {"c": values[inside]}))
    _frame(axes, reference.camera)
    return shown


def _show_cells(axes: plt.Axes, values: np.ndarray, stride: float, camera: Camera, **look):
    """Cells of a level where they lie in the image; those beyond it are cut off."""
    height, width = values.shape[:2]
    shown = axes.imshow(values, extent=(-0.5, width * stride - 0.5, height * stride - 0.5, -0.5), interpolation="nearest", **look)
    _frame(axes, camera)
    return shown


def _frame(axes: plt.Axes, camera: Camera) -> None:
    axes.set(xlim=(-0.5, camera.width - 0.5), ylim=(camera.height - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])


FEW_POINTS, LITTLE_OF_IMAGE = 60, 0.25
"""A keyframe with fewer points, or with points in less of its image (8x6 cells), is a weak one."""
FEW_SHARED = 30
"""A keyframe that shares fewer points than that with every other one stands alone."""
GAP_DEPTHS = 0.5
"""Between neighbouring keyframes further apart than this share of the depth the view changes a lot: a gap."""
_GAP_SPACINGS = 2.5
_DETOUR, _NEIGHBOURS = 1.5, 32
"""A gap is none if keyframes lead past it over so many times the distance; so many around each are looked at."""
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
    folders = np.array([name.rpartition("/")[0] for name in map_.keyframe_names])  # of cameras or drives
    wide &= folders[1:] == folders[:-1]
    gaps = np.flatnonzero(wide & ~_led_past(map_, np.flatnonzero(wide), steps))
    return Coverage(counts, share, _most_shared(map_), np.stack((gaps, gaps + 1), 1), steps[gaps], map_.track_length)


def _led_past(map_: Map, wide: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Which wide steps [K - 1] are none: keyframes of other visits lead from one end to the other, without a large detour."""
    result = np.zeros(len(steps), bool)
    if not len(wide):
        return result
    places, depth = map_.map_from_keyframe[:, :3, 3].numpy(), map_.keyframe_depth
    away, second = KDTree(places).query(places, [*range(2, min(_NEIGHBOURS, len(places)) + 1)])
    first = np.arange(len(places))[:, None].repeat(away.shape[1], 1)
    near = away <= GAP_DEPTHS * np.minimum(depth[first], depth[second])
    links = csr_array((away[near] + 1e-9, (first[near], second[near])), (len(places),) * 2)  # zero would be no link
    for k in wide:
        ways = dijkstra(links, directed=False, indices=k, limit=_DETOUR * steps[k])
        result[k] = np.isfinite(ways[k + 1])
    return result


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
    extent = (low[0], low[0] + columns * size, low[1], low[1] + rows * size)
    look = {"origin": "lower", "interpolation": "nearest", "cmap": colours, "norm": BoundaryNorm(bounds, colours.N)}
    drawn = axes.imshow(np.where(seen > 0, seen, np.nan), extent=extent, **look)
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

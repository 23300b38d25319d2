# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pictures of one alignment: the map's points over the image before and after it, level by level, the cost around a pose, and
the way to the answer step by step, also as an animation."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.collections import LineCollection
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from ..errors import InputError
from ..evaluation.tables import format_number
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.files import replacing
from .aligned_image import AlignedImage, PathStep, PointAgreement, difference_text, image_corners
from .overlays import AGREES, DISAGREES
from .style import ANSWER, BLUE, DISTANCES, PRIOR, SHARES, TRUTH, encode, level_colours, level_name, note, plt, show_image, styled

COLOURS = {
    "residual": "feature distance to the map, {level} (0: the same)",
    "inliers": "",
    "confidence": "confidence of map and image, {level}",
    "weight": "weight after the robust loss, {level}",
}
"""What the points may be coloured by, and the label of the colour bar."""
AXES = ("x, forward", "y, left", "z, up", "roll about x", "pitch about y", "yaw about z")
FARTHEST = 1.2
"""Feature distance of the darkest colour: unit vectors that have nothing in common are 1.4 apart."""
_WIDTH_IN = 12.6
_SAMPLES = 41
_SHARE_OF_DEPTH, _TURN_RAD = 0.15, np.radians(8.0)
_MARKERS = ((0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


@styled
def plot_reprojections(aligned: AlignedImage, colour: str = "residual", level: int = -1, suffix: str = ".png") -> bytes:
    """A picture of two panels: before, with the way to the answer as a line from each point; after, with rings where the truth
    puts the points, if it is known.

    Args:
        aligned: What is drawn.
        colour: One of `COLOURS`.
        level: Of the residuals and weights (-1: the finest).
        suffix: Kind of file.

    Raises:
        InputError: There is no such colour or level.
    """
    if colour not in COLOURS:
        raise InputError(f"points cannot be coloured by '{colour}': choose {', '.join(COLOURS)}")
    if not -1 <= level < len(aligned.strides):
        names = ", ".join(f"{k} ({level_name(stride)})" for k, stride in enumerate(aligned.strides))
        raise InputError(f"no feature level {level}: choose {names}")
    before, after = aligned.agreement(aligned.prior, level), aligned.agreement(aligned.answer.map_from_camera, level)
    camera, name = aligned.prepared.camera, level_name(aligned.strides[level])
    size = (_WIDTH_IN, (_WIDTH_IN - 1.6) / 2 * camera.height / camera.width + 1.3)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharex=True, sharey=True, layout="constrained")
    for axes, seen in ((left, before), (right, after)):
        show_image(axes, aligned.image, camera.width, camera.height, 0.25)
        shades = _points(axes, seen, colour)
        axes.set_xlabel("x (px of the working image)")
    left.set_ylabel("y (px)")
    both = before.visible & after.visible
    ways = np.stack((before.pixels[both], after.pixels[both]), 1)
    left.add_collection(LineCollection(ways, colors=ANSWER, linewidths=0.8, alpha=0.75, zorder=2))
    moved = np.linalg.norm(ways[:, 0] - ways[:, 1], axis=1)
    reached = "no point stays in view"
    if len(moved):
        reached = f"points move by {format_number(np.median(moved), 2)} px (median) to the blue ends"
    # An orange that can be read on white.
    left.set_title(f"Before, at the prior: {before.summary(name)}\n{reached}", fontsize=9.5, color="#8a5a00")
    away = f"moved by {difference_text(aligned.prior, aligned.answer.map_from_camera)}"
    title = f"After the alignment: {after.summary(name)}\n{away}{_truth(right, aligned, after)}"
    right.set_title(title, fontsize=9.5, color=ANSWER)
    if shades is not None:
        figure.colorbar(shades, ax=(left, right), label=COLOURS[colour].format(level=name), shrink=0.95, pad=0.01)
    else:
        for text, dot in (("looks as in the map", AGREES), ("does not", DISAGREES)):
            right.scatter([], [], color=np.array(dot) / 255, edgecolors="black", linewidths=0.4, label=text)
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.85)
    figure.suptitle(aligned.title, fontsize=11, x=0.01, ha="left")
    return encode(figure, suffix)


def _points(axes: plt.Axes, seen: PointAgreement, colour: str):
    """Draws the visible points; what a colour bar needs, None where the colours are but two."""
    look = {"s": 15, "linewidths": 0.35, "edgecolors": "black", "zorder": 3}
    if colour == "inliers":
        for chosen, dot in ((~seen.agrees, DISAGREES), (seen.agrees, AGREES)):
            axes.scatter(*seen.pixels[seen.visible & chosen].T, color=np.array(dot) / 255, **look)
        return None
    if colour == "residual":
        values, look = seen.distance, look | {"cmap": DISTANCES, "vmin": 0, "vmax": FARTHEST}
    else:
        values = seen.confidence if colour == "confidence" else seen.weight
        look |= {"cmap": SHARES, "vmin": 0, "vmax": 1}
    return axes.scatter(*seen.pixels[seen.visible].T, c=values[seen.visible], **look)


def _truth(axes: plt.Axes, aligned: AlignedImage, after: PointAgreement) -> str:
    """Draws where the points truly are, and says how far the answer is from there; nothing where that is not known."""
    if aligned.truth is None:
        return ""
    away, true = difference_text(aligned.truth, aligned.answer.map_from_camera), aligned.agreement(aligned.truth)
    both = true.visible & after.visible
    if not both.any():
        return f"; off by {away}"
    off = np.median(np.linalg.norm(true.pixels[both] - after.pixels[both], axis=1))
    if off > 1.0:
        ring = {"s": 34, "facecolors": "none", "edgecolors": TRUTH, "linewidths": 0.7, "zorder": 2}
        axes.scatter(*true.pixels[true.visible].T, label="where the truth puts them", **ring)
    return f"; off the truth by {away}, {format_number(off, 2)} px (median)"


@styled
def plot_levels(aligned: AlignedImage) -> bytes:
    """A PNG of two plots: cost over the steps of every level, and the share of the visible points that agree at its start and
    end."""
    colours = level_colours(len(aligned.strides))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 3.4), layout="constrained")
    runs = runs_of(aligned.path())
    for k, run in enumerate(runs):
        steps = [step for _, step in run]
        look = {"color": colours[steps[0].level], "marker": "o"}
        left.plot([at for at, _ in run], [step.cost for step in steps], markersize=4, linewidth=1.6, **look)
        ends = (aligned.agreement(step.map_from_camera, step.level) for step in (steps[0], steps[-1]))
        agree = [100 * seen.agrees.sum() / max(seen.visible.sum(), 1) for seen in ends]
        right.plot((k - 0.18, k + 0.18), agree, markersize=6, linewidth=2, **look)
        note(right, f"{agree[1]:.0f} %", (k + 0.18, agree[1]), (4, 3), fontsize=8.5)
    left.set(xlabel="step", ylabel="mean robust cost", title="Cost")
    left.set_ylim(bottom=0)
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(ylim=(0, 105), xlim=(-0.6, len(runs) - 0.2), ylabel="points in view that agree (%)")
    right.set_title("Agreement from the start to the end of each level")
    names = [f"{level_name(run[0][1].stride)}\n{len(run) - 1} steps" for run in runs]
    right.set_xticks(range(len(runs)), names, fontsize=8)
    for colour, stride in zip(colours, aligned.strides):
        left.plot([], [], color=colour, marker="o", label=level_name(stride))
    left.legend(fontsize=8, ncols=2)
    return encode(figure)


def runs_of(path: list[PathStep]) -> list[list[tuple[int, PathStep]]]:
    """Numbered steps, level by level."""
    runs: list[list[tuple[int, PathStep]]] = []
    for number, step in enumerate(path):
        if step.step == 0:
            runs.append([])
        runs[-1].append((number, step))
    return runs


def slice_costs(
    aligned: AlignedImage, map_from_base: torch.Tensor, base_from_camera: torch.Tensor, metres: float, radians: float
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets float64 [6, S], metres and radians along the axes of `AXES`, and costs float64 [6, levels, S] there; NaN where too
    few points are in view."""
    ramp = torch.linspace(-1, 1, _SAMPLES, dtype=torch.float64)
    offsets = torch.stack([ramp * (metres if axis < 3 else radians) for axis in range(6)])
    costs = np.empty((6, len(aligned.strides), _SAMPLES))
    for axis in range(6):
        tangents = torch.zeros(_SAMPLES, 6, dtype=torch.float64)
        tangents[:, axis] = offsets[axis]
        poses = map_from_base @ se3.se3_exp(tangents) @ base_from_camera
        for level in range(len(aligned.strides)):
            costs[axis, level] = aligned.costs(poses, level)
    return offsets.numpy(), costs


@styled
def plot_cost_slices(
    aligned: AlignedImage,
    map_from_camera: torch.Tensor,
    base_from_camera: torch.Tensor,
    others: Mapping[str, tuple[torch.Tensor, str]],
) -> bytes:
    """A PNG of six plots around a pose that was found, each along one axis of the robot's base, with one curve a level.

    Args:
        aligned: What is drawn.
        map_from_camera: The pose, float64 [4, 4].
        base_from_camera: The mount, float64 [4, 4].
        others: Further poses by name, with a colour, marked where they lie along each axis.
    """
    map_from_base = map_from_camera @ se3.inverse(base_from_camera)
    marks = {
        name: (se3.se3_log(se3.inverse(map_from_base) @ pose @ se3.inverse(base_from_camera)).numpy(), colour)
        for name, (pose, colour) in others.items()
    }
    furthest = np.max([np.zeros(6), *(1.15 * np.abs(offset) for offset, _ in marks.values())], 0)
    metres = min(max(_SHARE_OF_DEPTH * aligned.depth, furthest[:3].max()), aligned.depth)
    radians = min(max(_TURN_RAD, furthest[3:].max()), np.pi / 4)
    offsets, costs = slice_costs(aligned, map_from_base, base_from_camera, metres, radians)
    figure, grid = plt.subplots(2, 3, figsize=(12.0, 5.6), sharey=True, layout="constrained")
    for axis, axes in enumerate(grid.flat):
        unit, factor = ("m", 1.0) if axis < 3 else ("°", 180 / np.pi)
        at = offsets[axis] * factor
        for stride, curve, colour in zip(aligned.strides, costs[axis], level_colours(len(aligned.strides))):
            axes.plot(at, curve, color=colour, linewidth=1.6, label=level_name(stride))
        axes.axvline(0, color=BLUE, linewidth=1.2, label="found")
        for (name, (offset, colour)), dashes in zip(marks.items(), _MARKERS):
            axes.axvline(offset[axis] * factor, color=colour, linewidth=1.6, linestyle=dashes, label=name)
        axes.set(xlabel=f"{AXES[axis]} ({unit})", xlim=(at[0], at[-1]))
    for row in grid:
        row[0].set_ylabel("mean robust cost")
    grid[0, 0].set_ylim(bottom=0)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return encode(figure)


ANIMATIONS = (".gif", ".webp")
FRAMES_A_SECOND = 8
_BETWEEN = 2
"""Pictures a step: the pose in between is drawn too, so that the eye can follow."""
_MOST_FRAMES = 90
_REST_FRAMES = 8
_TRAIL = 8
_LEAST_PX = 0.02


class _Drawing:
    """The three panels, drawn once and then only moved. stops: the points at each step of the path, finest level."""

    def __init__(self, aligned: AlignedImage, width_in: float) -> None:
        self.aligned, self.path = aligned, aligned.path()
        self.stops = [aligned.agreement(step.map_from_camera) for step in self.path]
        self.goal = aligned.answer.map_from_camera if aligned.truth is None else aligned.truth
        self.goal_name = "answer" if aligned.truth is None else "truth"
        self.colours = level_colours(len(aligned.strides))
        camera = aligned.prepared.camera
        height_in = width_in * 0.62 * camera.height / camera.width
        self.figure = plt.figure(figsize=(width_in, max(height_in, 0.42 * width_in) + 0.7), layout="constrained")
        self.figure.suptitle(aligned.title, fontsize=10.5, x=0.01, ha="left")
        grid = self.figure.add_gridspec(2, 2, width_ratios=(1.45, 1.0), height_ratios=(1.5, 1.0))
        self.left = self.figure.add_subplot(grid[:, 0])
        self.scene = self.figure.add_subplot(grid[0, 1], projection="3d")
        self.curve = self.figure.add_subplot(grid[1, 1])
        self._draw_image(camera)
        self._draw_scene(camera)
        self._draw_curve()
        self.show(0)
        for _ in range(2):  # the first time the titles are not as high as they will be
            self.figure.canvas.draw()
        self.figure.set_layout_engine("none")  # laying out anew takes longer than drawing

    # ---- the image

    def _draw_image(self, camera: Camera) -> None:
        show_image(self.left, self.aligned.image, camera.width, camera.height, 0.3)
        self.left.set(xlabel="x (px)", ylabel="y (px)")
        self.trails = LineCollection([], colors="white", linewidths=0.9, alpha=0.7, zorder=2)
        self.left.add_collection(self.trails)
        look = {"cmap": DISTANCES, "vmin": 0, "vmax": FARTHEST, "edgecolors": "black", "linewidths": 0.3, "zorder": 3}
        self.dots = self.left.scatter([], [], s=13, c=[], **look)
        label = "feature distance to the map at this level (0: the same)"
        self.figure.colorbar(self.dots, ax=self.left, label=label, shrink=0.75, location="bottom", pad=0.01, aspect=45)

    # ---- the scene, in the axes of the goal's camera: to the right, forwards, up

    def _draw_scene(self, camera: Camera) -> None:
        xyz = self._in_scene(self.aligned.xyz[self.aligned.answer.details.visible])
        near = xyz[np.abs(xyz).max(1) < 2.5 * self.aligned.depth]
        self.scene.scatter(*near.T, s=2.5, color="#4b5563", alpha=0.7, linewidths=0)
        # As long as the way is, so that it can be seen, and not so long that it hides the scene.
        moved = [float(se3.pose_difference(self.goal, step.map_from_camera)[0]) for step in self.path]
        self.size = float(np.clip(1.2 * max(moved), 0.12 * self.aligned.depth, 0.45 * self.aligned.depth))
        self.corners = image_corners(camera) * self.size
        for pose, colour, width, name in ((self.aligned.prior, PRIOR, 1.4, "prior"), (self.goal, TRUTH, 4.0, self.goal_name)):
            look = {"linewidth": width, "alpha": 0.55 if width > 2 else 1.0}
            self.scene.add_collection3d(Line3DCollection(self._frustum(pose), colors=colour, **look))
            self.scene.plot([], [], [], color=colour, label=name, **look)
        self.frustum = Line3DCollection(self._frustum(self.aligned.prior), colors=ANSWER, linewidths=1.6)
        self.scene.add_collection3d(self.frustum)
        self.scene.plot([], [], [], color=ANSWER, linewidth=1.6, label="now")
        (self.track,) = self.scene.plot([], [], [], color=ANSWER, linewidth=1.0, marker=".", markersize=3)
        low, high = np.percentile(np.concatenate((near, np.zeros((1, 3)))), (4, 96), axis=0)
        frusta = np.concatenate([self._frustum(pose).reshape(-1, 3) for pose in (self.aligned.prior, self.goal)])
        low, high = np.minimum(low, frusta.min(0)), np.maximum(high, frusta.max(0))
        for axis, label, begin, end in zip("xyz", ("right", "forwards", "up"), low, high):
            self.scene.set(**{f"{axis}lim": (begin, end), f"{axis}label": f"{label} (m)"})
        self.scene.set_box_aspect(np.maximum(high - low, 1e-6), zoom=1.45)
        self.scene.view_init(elev=32, azim=-118)
        self.scene.tick_params(labelsize=6, pad=-2)
        for axis in (self.scene.xaxis, self.scene.yaxis, self.scene.zaxis):
            axis.label.set_size(7)
            axis.labelpad = -6
            axis.set_major_locator(plt.MaxNLocator(4))
        self.scene.legend(loc="upper right", fontsize=7, bbox_to_anchor=(1.3, 1.05))

    def _in_scene(self, xyz_map: torch.Tensor) -> np.ndarray:
        x, y, z = se3.transform(se3.inverse(self.goal), xyz_map).unbind(-1)
        return torch.stack((x, z, -y), -1).numpy()

    def _frustum(self, map_from_camera: torch.Tensor) -> np.ndarray:
        """Eight lines [8, 2, 3]: a pyramid over the image's corners."""
        places = torch.cat((torch.zeros(1, 3, dtype=torch.float64), self.corners))
        tip, *corners = self._in_scene(se3.transform(map_from_camera, places))
        return np.array([(tip, corner) for corner in corners] + [(corners[i], corners[(i + 1) % 4]) for i in range(4)])

    # ---- the cost

    def _draw_curve(self) -> None:
        axes = self.curve
        runs, over = runs_of(self.path), {"xycoords": ("data", "axes fraction")}
        for run in runs:
            at, step = [number for number, _ in run], run[0][1]
            colour = self.colours[step.level]
            axes.plot(at, [step.cost for _, step in run], color=colour, marker="o", markersize=3, linewidth=1.5)
            axes.axvspan(at[0] - 0.5, at[-1] + 0.5, color=colour, alpha=0.08, linewidth=0)
            look = {"fontsize": 7, "color": colour, "fontweight": "bold", "ha": "center", "va": "bottom"}
            note(axes, f"{step.stride:g}", ((at[0] + at[-1]) / 2, 1.0), **over, **look)
        for number in [run[0][0] for run in runs if run[0][1].level == 0][1:]:
            axes.axvline(number - 0.5, color=TRUTH, linewidth=0.8, linestyle=":")
            look = {"fontsize": 6.5, "zorder": 5, "bbox": {"color": "white", "alpha": 0.6, "pad": 0}}
            note(axes, " points chosen\n again from here", (number - 0.5, 0.03), **over, **look)
        axes.set(xlabel="step (above: stride of the level, px)", ylabel="mean robust cost", xlim=(-0.8, len(self.path) - 0.2))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
        axes.tick_params(labelsize=7)
        far = axes.twinx()
        far.plot(range(len(self.path)), self._away_px(), color="#4b5563", linewidth=1.1, linestyle=(0, (4, 2)))
        far.set(yscale="log")
        far.set_ylabel(f"points off the {self.goal_name}'s,\nmedian (px, dashed)", fontsize=7.5, color="#4b5563")
        far.tick_params(labelsize=7)
        far.grid(False)
        self.now = axes.axvline(0, color=ANSWER, linewidth=1.2)

    def _away_px(self) -> list[float]:
        """Median distance in pixels of the points at each step from where the goal puts them."""
        there = self.aligned.agreement(self.goal)
        distances = []
        for here in self.stops:
            both = here.visible & there.visible
            off = np.linalg.norm(here.pixels[both] - there.pixels[both], axis=1)
            distances.append(max(float(np.median(off)), _LEAST_PX) if len(off) else float("nan"))
        return distances

    # ---- one moment

    def show(self, number: float) -> None:
        """The alignment at a step; a number between two is on the way from one to the other."""
        first = min(int(number), len(self.path) - 1)
        step = self.path[first]
        following = self.path[min(first + 1, len(self.path) - 1)]
        pose = se3.interpolate(step.map_from_camera, following.map_from_camera, number - first)
        seen = self.aligned.agreement(pose, step.level)
        self.dots.set_offsets(seen.pixels[seen.visible])
        self.dots.set_array(seen.distance[seen.visible])
        self.trails.set_segments(self._trail(first, seen.pixels, seen.visible))
        where = f"level {step.level + 1} of {len(self.aligned.strides)}, {level_name(step.stride)}, step {step.step}"
        away = f"from the {self.goal_name}: {difference_text(self.goal, pose)}"
        self.left.set_title(f"{where}: {seen.summary()}\n{away}", fontsize=9.5)
        self.frustum.set_segments(self._frustum(pose))
        way = np.array([self._in_scene(s.map_from_camera[:3, 3][None])[0] for s in self.path[: first + 1]])
        self.track.set_data_3d(*way.T)
        self.now.set_xdata([number, number])

    def _trail(self, first: int, pixels: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Where each visible point came from over the last steps: lines [n, k, 2]."""
        before = self.stops[max(0, first - _TRAIL) : first + 1]
        kept = visible & np.logical_and.reduce([one.visible for one in before])
        return np.stack([one.pixels[kept] for one in before] + [pixels[kept]], 1)


@styled
def plot_optimization(aligned: AlignedImage, suffix: str = ".png") -> bytes:
    """A still: the answer, with the whole way of every point behind it."""
    drawing = _Drawing(aligned, 12.0)
    drawing.show(len(drawing.path) - 1)
    kept = drawing.stops[0].visible & drawing.stops[-1].visible
    drawing.trails.set_segments(np.stack([stop.pixels[kept] for stop in drawing.stops], 1) if kept.any() else [])
    return encode(drawing.figure, suffix)


@styled
def animate_optimization(
    aligned: AlignedImage, path: Path, width_px: int = 840, progress: Callable[..., None] = lambda done, of, note="": None
) -> int:
    """Write the way as an animation (GIF or WebP, by the file's ending), under a temporary name first → number of pictures.

    Raises InputError for another ending, or where the file cannot be written.
    """
    if path.suffix.lower() not in ANIMATIONS:
        raise InputError(f"{path} must end in {' or '.join(ANIMATIONS)}: the ending says what kind of animation is written")
    dpi = 100
    drawing = _Drawing(aligned, width_px / dpi)
    numbers, writer = moments(len(drawing.path)), PillowWriter(fps=FRAMES_A_SECOND)
    try:
        with replacing(path) as temporary, writer.saving(drawing.figure, str(temporary), dpi):
            for k, number in enumerate(numbers):
                progress(k, len(numbers))
                drawing.show(number)
                writer.grab_frame()
    finally:
        plt.close(drawing.figure)
    return len(numbers)


def moments(steps: int) -> list[float]:
    """Step numbers to draw, of so many poses: every one and what lies between, fewer where there are very many, and a rest at
    both ends."""
    count = min((steps - 1) * _BETWEEN + 1, _MOST_FRAMES)
    way = np.linspace(0, steps - 1, count).tolist() if steps > 1 else [0.0]
    return [way[0]] * (_REST_FRAMES // 2) + way + [way[-1]] * _REST_FRAMES

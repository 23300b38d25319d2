# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The map's points over an image, before the alignment and after it, and how each moved."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection

from ..errors import InputError
from ..evaluation.tables import format_number
from .aligned_image import AlignedImage, PointAgreement, difference_text
from .figures import ANSWER, DISTANCES, PRIOR, SHARES, STYLE, TRUTH, encode, level_name, plt, show_image
from .overlays import AGREES, DISAGREES

COLOURS = ("residual", "inliers", "confidence", "weight")
"""What the points may be coloured by."""
_WIDTH_IN = 12.6
_FARTHEST = 1.2
"""Feature distance of the darkest colour: unit vectors that have nothing in common are 1.4 apart."""


def plot_reprojections(aligned: AlignedImage, colour: str = "residual", level: int = -1, suffix: str = ".png") -> bytes:
    """A picture of two panels: before, with the way to the answer as a line from each point; after, with rings where the truth
    puts the points, if it is known. level: of the residuals and weights (-1: the finest). Raises InputError for another colour
    or level."""
    if colour not in COLOURS:
        raise InputError(f"points cannot be coloured by '{colour}': choose {', '.join(COLOURS)}")
    check_level(aligned, level)
    before, after = aligned.agreement(aligned.prior, level), aligned.agreement(aligned.answer.map_from_camera, level)
    camera = aligned.prepared.camera
    with plt.rc_context(STYLE):
        size = (_WIDTH_IN, (_WIDTH_IN - 1.6) / 2 * camera.height / camera.width + 1.3)
        figure, (left, right) = plt.subplots(1, 2, figsize=size, sharex=True, sharey=True, layout="constrained")
        for axes, seen in ((left, before), (right, after)):
            show_image(axes, aligned.image, camera.width, camera.height, 0.25)
            shades = _points(axes, seen, colour)
            axes.set_xlabel("x (px of the working image)")
        left.set_ylabel("y (px)")
        name = level_name(aligned.strides[level])
        both = before.visible & after.visible
        ways = np.stack((before.pixels[both], after.pixels[both]), 1)
        left.add_collection(LineCollection(ways, colors=ANSWER, linewidths=0.8, alpha=0.75, zorder=2))
        moved = np.linalg.norm(ways[:, 0] - ways[:, 1], axis=1)
        reached = "no point stays in view"
        if len(moved):
            reached = f"points move by {format_number(np.median(moved), 2)} px (median) to the blue ends"
        left.set_title(f"Before, at the prior: {_summary(before, name)}\n{reached}", fontsize=9.5, color=_dark(PRIOR))
        away = f"moved by {difference_text(aligned.prior, aligned.answer.map_from_camera)}"
        right.set_title(
            f"After the alignment: {_summary(after, name)}\n{away}{_truth(right, aligned, after)}", fontsize=9.5, color=ANSWER
        )
        if shades is not None:
            label = {
                "residual": f"feature distance to the map, {name} (0: alike)",
                "confidence": f"confidence of map and image, {name}",
                "weight": f"weight after the robust loss, {name}",
            }[colour]
            figure.colorbar(shades, ax=(left, right), label=label, shrink=0.95, pad=0.01)
        else:
            for text, rgb in (("looks as in the map", AGREES), ("does not", DISAGREES)):
                right.scatter([], [], color=np.array(rgb) / 255, edgecolors="black", linewidths=0.4, label=text)
        if right.get_legend_handles_labels()[0]:
            right.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.85)
        figure.suptitle(aligned.title, fontsize=11, x=0.01, ha="left")
        return encode(figure, suffix)


def check_level(aligned: AlignedImage, level: int) -> None:
    """Raise InputError where the network has no such level."""
    count = len(aligned.strides)
    if not -1 <= level < count:
        names = ", ".join(f"{k} ({level_name(stride)})" for k, stride in enumerate(aligned.strides))
        raise InputError(f"no feature level {level}: choose {names}")


def _points(axes: plt.Axes, seen: PointAgreement, colour: str):
    """Draws the visible points; what a colour bar needs, None where the colours are but two."""
    pixels, look = seen.pixels[seen.visible], {"s": 15, "linewidths": 0.35, "edgecolors": "black", "zorder": 3}
    if colour == "inliers":
        for chosen, rgb in ((~seen.agrees, DISAGREES), (seen.agrees, AGREES)):
            some = seen.pixels[seen.visible & chosen]
            axes.scatter(some[:, 0], some[:, 1], color=np.array(rgb) / 255, **look)
        return None
    if colour == "residual":
        return axes.scatter(*pixels.T, c=seen.distance[seen.visible], cmap=DISTANCES, vmin=0, vmax=_FARTHEST, **look)
    values = seen.confidence if colour == "confidence" else seen.weight
    return axes.scatter(*pixels.T, c=values[seen.visible], cmap=SHARES, vmin=0, vmax=1, **look)


def _summary(seen: PointAgreement, name: str) -> str:
    visible = int(seen.visible.sum())
    return f"{100 * seen.agrees.sum() / max(visible, 1):.0f} % of {visible} points agree, {name}"


def _truth(axes: plt.Axes, aligned: AlignedImage, after: PointAgreement) -> str:
    """Draws where the points truly are, and says how far the answer is from there; nothing where that is not known."""
    if aligned.truth is None:
        return ""
    true = aligned.agreement(aligned.truth)
    both = true.visible & after.visible
    if not both.any():
        return f"; off by {difference_text(aligned.truth, aligned.answer.map_from_camera)}"
    off = np.linalg.norm(true.pixels[both] - after.pixels[both], axis=1)
    if np.median(off) > 1.0:
        axes.scatter(
            *true.pixels[true.visible].T,
            s=34,
            facecolors="none",
            edgecolors=TRUTH,
            linewidths=0.7,
            zorder=2,
            label="where the truth puts them",
        )
    away = difference_text(aligned.truth, aligned.answer.map_from_camera)
    return f"; off the truth by {away}, {format_number(np.median(off), 2)} px (median)"


def _dark(colour: str) -> str:
    """An orange that can be read on white."""
    return {PRIOR: "#8a5a00"}.get(colour, colour)

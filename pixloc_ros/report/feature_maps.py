# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the network sees: the features of every level as colours (PCA, the same for map and image), and the confidences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..features.pyramid import FeatureLevel, FeaturePyramid
from ..geometry.cameras import Camera
from ..mapping.map_file import Map, decode_descriptors
from ..mapping.statistics import keyframe_pixels
from .aligned_image import AlignedImage
from .figures import SHARES, STYLE, encode, level_name, plt, show_image

_ROWS = 20_000
"""Features that the principal components are computed from, of each side."""
_PERCENTILES = (1, 99)
_WIDTH_IN = 15.0
_NO_IMAGE = "#1f2937"


@dataclass(frozen=True)
class ReferenceView:
    """A keyframe beside the image. image: uint8, None where its file is not at hand; pyramid: its features, likewise."""

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


def principal_colours(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Colours in [0, 1] of feature vectors [n, C], n x 3 each: the first three principal components of all of them together, so
    that alike features have alike colours on both sides."""
    rows = np.concatenate([side[:: max(1, len(side) // _ROWS)] for side in features]).astype(np.float64)
    mean = rows.mean(0)
    _, axes = np.linalg.eigh(np.cov((rows - mean).T))
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)  # eigenvectors have no sign
    spread = (rows - mean) @ axes
    low, high = np.percentile(spread, _PERCENTILES, axis=0)
    colours = [np.clip(((side - mean) @ axes - low) / np.maximum(high - low, 1e-9), 0, 1) for side in features]
    return [np.pad(one, ((0, 0), (0, 3 - one.shape[1]))) for one in colours]


def plot_feature_maps(aligned: AlignedImage, reference: ReferenceView, suffix: str = ".png") -> bytes:
    """A picture with a column a level, coarse to fine. Rows: the keyframe's features; the image's in the same colours; then the
    confidences of both where the network has them, else the weights that the map's points have at the answer. Of a keyframe
    without its image the features are drawn where the map holds them, at its points."""
    levels = aligned.prepared.pyramid.levels
    confident = any(level.confidence is not None for level in levels)
    rows = 4 if confident else 3
    camera = aligned.prepared.camera
    with plt.rc_context(STYLE):
        wide = (_WIDTH_IN - 1.2) / (len(levels) + 1)
        size = (_WIDTH_IN, rows * (wide * camera.height / camera.width + 0.12) + 1.0)
        figure, grid = plt.subplots(rows, len(levels) + 1, figsize=size, squeeze=False, layout="constrained")
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        _images(grid[:, 0], aligned, reference)
        shades = None
        for k, (column, level) in enumerate(zip(grid[:, 1:].T, levels)):
            column[0].set_title(f"{level_name(level.stride)}, {level.channels} channels", fontsize=9.5)
            _colours(column, k, level, aligned, reference)
            shades = _shares(column, k, level, aligned, reference, confident) or shades
        if shades is not None:
            label = "confidence" if confident else "weight at the answer"
            figure.colorbar(shades, ax=grid[2:, :], label=f"{label} (0 to 1)", shrink=0.95, pad=0.005, aspect=12 * (rows - 2))
        how = "Same colour in a column: alike features (three principal components as red, green, blue)"
        figure.suptitle(f"{aligned.title}. {how}", fontsize=10.5, x=0.01, ha="left")
        return encode(figure, suffix)


def _images(column: np.ndarray, aligned: AlignedImage, reference: ReferenceView) -> None:
    camera = aligned.prepared.camera
    if reference.image is not None:
        show_image(column[0], reference.image, reference.camera.width, reference.camera.height)
        _frame(column[0], reference.camera)
    else:
        pixels, inside = reference.points()
        column[0].set_facecolor(_NO_IMAGE)
        column[0].scatter(*pixels[inside].T, s=1.5, color="white")
        _frame(column[0], reference.camera)
    show_image(column[1], aligned.image, camera.width, camera.height)
    _frame(column[1], camera)
    what = "" if reference.image is not None else " (its points)"
    column[0].set_title(f"map: {Path(reference.name).name}{what}", fontsize=9.5)
    column[1].set_title("image", fontsize=9.5)
    for axes in column[2:]:
        axes.set_axis_off()


def _colours(column: np.ndarray, k: int, level: FeatureLevel, aligned: AlignedImage, reference: ReferenceView) -> None:
    mine = _rows(level)
    shape = level.features.shape[-2:]
    if reference.pyramid is not None:
        other = reference.pyramid.levels[k]
        theirs, ours = principal_colours((_rows(other), mine))
        _show_cells(column[0], theirs.reshape(*other.features.shape[-2:], 3), other.stride, reference.camera)
    else:
        theirs, ours = principal_colours((reference.descriptors(k), mine))
        pixels, inside = reference.points()
        column[0].set_facecolor(_NO_IMAGE)
        column[0].scatter(*pixels[inside].T, s=7, c=theirs[inside], linewidths=0)
        _frame(column[0], reference.camera)
    _show_cells(column[1], ours.reshape(*shape, 3), level.stride, aligned.prepared.camera)


def _shares(column: np.ndarray, k: int, level: FeatureLevel, aligned: AlignedImage, reference: ReferenceView, confident: bool):
    """Confidences or weights in the rows from the third; what a colour bar needs."""
    camera, look = aligned.prepared.camera, {"cmap": SHARES, "vmin": 0, "vmax": 1}
    shades = None
    small = {"fontsize": 8, "fontweight": "normal", "pad": 3}
    if not confident:
        seen = aligned.agreement(aligned.answer.map_from_camera, k)
        show_image(column[2], aligned.image, camera.width, camera.height, 0.5)
        shades = column[2].scatter(*seen.pixels[seen.visible].T, s=7, c=seen.weight[seen.visible], linewidths=0, **look)
        share = 100 * seen.agrees.sum() / max(seen.visible.sum(), 1)
        column[2].set_title(f"points of the map: {share:.0f} % agree", **small)
    else:
        if reference.pyramid is not None and reference.pyramid.levels[k].confidence is not None:
            other = reference.pyramid.levels[k]
            shades = _show_cells(column[2], other.confidence[0].numpy(), other.stride, reference.camera, **look)
        elif (values := reference.confidences(k)) is not None:
            pixels, inside = reference.points()
            shades = column[2].scatter(*pixels[inside].T, s=7, c=values[inside], linewidths=0, **look)
            _frame(column[2], reference.camera)
        column[2].set_title("confidence, map", **small)
        if level.confidence is not None:
            shades = _show_cells(column[3], level.confidence[0].numpy(), level.stride, camera, **look)
        column[3].set_title("confidence, image", **small)
    for axes in column[2:]:
        axes.set(xticks=[], yticks=[])
    return shades


def _rows(level: FeatureLevel) -> np.ndarray:
    """float32 [H * W, C]."""
    return level.features[0].permute(1, 2, 0).reshape(-1, level.channels).to(torch.float32).numpy()


def _show_cells(axes: plt.Axes, values: np.ndarray, stride: float, camera: Camera, **look):
    """Cells of a level where they lie in the image; those beyond it are cut off."""
    height, width = values.shape[:2]
    shown = axes.imshow(values, extent=(-0.5, width * stride - 0.5, height * stride - 0.5, -0.5), interpolation="nearest", **look)
    _frame(axes, camera)
    return shown


def _frame(axes: plt.Axes, camera: Camera) -> None:
    axes.set(xlim=(-0.5, camera.width - 0.5), ylim=(camera.height - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])

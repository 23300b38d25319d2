# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the network sees: the features of every level as colours (PCA, the same for map and image), and the confidences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..features.pyramid import FeatureLevel, FeaturePyramid
from ..geometry.cameras import Camera
from ..io.images import fit_to_working_size, load_image
from ..mapping.map_file import Map, decode_descriptors
from ..mapping.statistics import keyframe_pixels
from ..tracking.frame_aligner import FrameAligner
from .aligned_image import AlignedImage
from .style import INK, SHARES, encode, level_name, plt, show_image, styled

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
        self.folder = folder
        missing = [name for name in map_.keyframe_names if folder is not None and not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(map_.keyframe_names)} images of map '{map_.name}' are not in {folder}, "
                f"the first is {missing[0]}: give the folder that the map was made of, or none"
            )

    def view(self, localizer: FrameAligner, keyframe: int) -> ReferenceView:
        """The keyframe with its image (of the size of its shrunk camera) and features, as far as they are at hand."""
        if self.folder is None:
            return ReferenceView(localizer.map, keyframe)
        image = load_image(self.folder / localizer.map.keyframe_names[keyframe])
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

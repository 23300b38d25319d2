# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pairs out of single photos: invented depth and motion, so that any picture teaches (self-supervised).

A scene is a background and up to three patches before it. Each is a surface given by an inverse depth for every pixel of the
reference (a slanted plane, the background with smooth relief on top) and textured with a photo. The query is rendered by
finding, for each of its pixels, where its ray meets each surface; patches hide what is behind them, and what they uncover is
there. Points lie on the same surfaces, so images, points and poses agree to a small fraction of a pixel.
"""

from __future__ import annotations

import fnmatch
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import map_coordinates, spline_filter

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.images import load_grey
from .pairs import BadSample, Pair, PairShape, spread_corners

SUFFIXES = (".jpg", ".jpeg", ".png")
HELD_OUT_SHARE = 10
"""One photo in this many is kept for validation."""

_MARGIN = 0.25  # of the view: how far beyond the reference a surface varies
_FIXED_POINT_STEPS = 20
_FIXED_POINT_PX = 0.02  # OpenCV looks fields up at multiples of 1/32 pixel: it does not settle much closer
_STEEPEST = 0.3  # largest change of a point's shift per pixel: keeps surfaces from hiding parts of themselves
_LEAST_OVERLAP = 0.4
_SMALLEST_CONTRAST = 12.0  # grey levels, standard deviation
_PERIODS, _BANDS = (0.1, 0.35), (0.3, 1.0)  # of a part that repeats, shares of the view's width and of the photo's height


@dataclass(frozen=True)
class MotionRange:
    """How far apart reference and query are: angles in degrees; translation as a share of the background's depth."""

    rotation_deg: float = 15.0
    roll_deg: float = 10.0
    translation: float = 0.25


def list_photos(folders: Sequence[Path], held_out: bool, leave_out: Sequence[str] = ()) -> list[Path]:
    """Photos of folders in a fixed order, either those held out for validation or the rest.

    Tiles of one picture (`name_t0`, `name_t1`) stay on one side.

    Args:
        leave_out: File names, with * and ?, that are not taken.

    Raises:
        InputError: A folder is missing or empty, or a name to leave out matches nothing.
    """
    files = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: check the photos of the training configuration")
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"{folder} holds no .jpg or .png files: check the photos of the training configuration")
        files += found
    for pattern in leave_out:
        kept = [path for path in files if not fnmatch.fnmatchcase(path.name, pattern)]
        if len(kept) == len(files):
            raise InputError(f"leave_out: no photo is called '{pattern}': check the training configuration")
        files = kept
    stems = [re.sub(r"_t\d+$", "", path.stem) for path in files]
    chosen = [path for path, stem in zip(files, stems) if (zlib.crc32(stem.encode()) % HELD_OUT_SHARE == 0) == held_out]
    if not chosen:
        raise InputError(f"{len(files)} photos are too few to hold some out for validation: add more")
    return chosen


class PhotoPairs:
    """Draws pairs out of photos. `files` as of `list_photos`; `repeated`: the share of photos of which a part repeats."""

    def __init__(
        self, files: Sequence[Path], view: PairShape, motion: MotionRange = MotionRange(), repeated: float = 0.0
    ) -> None:
        self.files, self.view, self.motion, self.repeated = list(files), view, motion, repeated

    def draw(self, rng: np.random.Generator) -> Pair:
        """A pair, in metres of an invented scale, out of one to four photos. Raises BadSample where the first one is blank or the
        views hardly overlap."""
        path = self.files[rng.integers(len(self.files))]
        photo = self._maybe_repeated(path, rng)
        if photo.std() < _SMALLEST_CONTRAST:
            raise BadSample("blank photo")
        textures = [photo]
        for _ in range(rng.choice(4, p=(0.35, 0.3, 0.2, 0.15))):
            textures.append(self._maybe_repeated(self.files[rng.integers(len(self.files))], rng))
        return render_pair(textures, self.view, self.motion, rng, path.name)

    def _maybe_repeated(self, path: Path, rng: np.random.Generator) -> np.ndarray:
        photo = _texture(path, self.view, rng)
        return repeated(photo, self.view.width, rng) if self.repeated and rng.random() < self.repeated else photo


def _texture(path: Path, view: PairShape, rng: np.random.Generator) -> np.ndarray:
    """A photo as grey levels at the scale of the view, at least as large as the view, mirrored half of the time."""
    photo = load_grey(path)
    height, width = photo.shape
    largest = min(width / view.width, height / view.height)
    scale = 1 / rng.uniform(min(1.0, 0.9 * largest), largest)
    size = (max(view.width, round(width * scale)), max(view.height, round(height * scale)))
    photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return np.ascontiguousarray(photo[:, ::-1]) if rng.random() < 0.5 else photo


def repeated(photo: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """A photo [h, w] in which a band shows one part again and again, as shelves and facades do; what is around it stays, and
    tells the repetitions apart. width: of the view, in pixels."""
    across = rng.random() < 0.3
    result = np.ascontiguousarray(photo.T if across else photo).copy()
    rows, columns = result.shape
    period = min(round(width * rng.uniform(*_PERIODS)), columns)
    height, length = (round(side * rng.uniform(*_BANDS)) for side in (rows, columns))
    top, left, first = (int(rng.integers(room + 1)) for room in (rows - height, columns - length, columns - period))
    part = result[top : top + height, first : first + period].copy()
    result[top : top + height, left : left + length] = np.tile(part, -(-length // period))[:, :length]
    return np.ascontiguousarray(result.T) if across else result


@dataclass(frozen=True, eq=False)
class Surface:
    """One surface over the reference's pixels and the margin around them.

    Attributes:
        inverse_depth: float32 [h, w].
        opacity: float32 [h, w] in [0, 1], None for 1 everywhere.
        texture: uint8 grey.
        texture_offset: Where reference pixel (0, 0) lies in the texture.
    """

    inverse_depth: np.ndarray
    opacity: np.ndarray | None
    texture: np.ndarray
    texture_offset: np.ndarray


def render_pair(
    textures: Sequence[np.ndarray], view: PairShape, motion: MotionRange, rng: np.random.Generator, name: str
) -> Pair:
    """A pair with a background of the first texture and a patch for each of the others, in metres of an invented scale.

    Raises BadSample where the views overlap little.
    """
    # A pinhole camera from wide to narrow, its centre a little off.
    focal = view.width * rng.uniform(0.6, 1.3)
    centre = np.array([view.width - 1, view.height - 1]) / 2 + rng.uniform(-0.03, 0.03, 2) * view.width
    camera = Camera("pinhole", view.width, view.height, torch.tensor([focal, focal, *centre], dtype=torch.float64))
    query_from_reference = random_motion(motion, rng)
    surfaces = _surfaces(textures, view, focal * float(query_from_reference[:3, 3].norm()), rng)
    grid = np.stack(np.meshgrid(np.arange(view.width), np.arange(view.height))).astype(np.float32)
    reference = _composite(surfaces, [grid] * len(surfaces), view)
    seen = [meet(surface.inverse_depth, grid, camera, query_from_reference, view) for surface in surfaces]
    query = _composite(surfaces, seen, view)
    pixels, inverse_depth = _points(surfaces, reference, view, rng)
    rays = np.concatenate(((pixels - centre) / focal, np.ones((len(pixels), 1))), 1)
    xyz = torch.from_numpy(rays / inverse_depth[:, None])
    projected, valid = camera.project(se3.transform(query_from_reference, xyz))
    if int((valid & camera.in_image(projected)).sum()) < _LEAST_OVERLAP * len(xyz):
        raise BadSample("little overlap")
    metres = float(np.exp(rng.uniform(np.log(0.5), np.log(20.0))))  # to the background: from a table to a street
    query_from_reference[:3, 3] *= metres
    return Pair(reference, query, camera, camera, xyz * metres, query_from_reference, name)


def random_motion(motion: MotionRange, rng: np.random.Generator) -> torch.Tensor:
    """query_from_reference in units of the background's depth; small motions are as likely as large ones."""
    axis = rng.normal(size=3)
    turn = torch.from_numpy(axis / np.linalg.norm(axis) * rng.uniform(0, np.radians(motion.rotation_deg)))
    turn[2] = np.radians(rng.uniform(-motion.roll_deg, motion.roll_deg))
    shift = rng.normal(size=3)
    shift *= motion.translation * rng.random() / np.linalg.norm(shift)
    return se3.from_rotation_translation(se3.so3_exp(turn), torch.from_numpy(shift))


def _surfaces(textures: Sequence[np.ndarray], view: PairShape, parallax_px: float, rng: np.random.Generator) -> list[Surface]:
    """Back to front. parallax_px: focal length times baseline, so that a surface's steepness can be bounded."""
    margin = round(_MARGIN * view.width)
    rows, columns = view.height + 2 * margin, view.width + 2 * margin
    v, u = np.meshgrid(
        np.linspace(-1, 1, rows, dtype=np.float32) * rows / view.height,
        np.linspace(-1, 1, columns, dtype=np.float32) * columns / view.width,
        indexing="ij",
    )
    slope = rng.normal(size=2) * 0.25
    if rng.random() < 0.4:  # a floor: near at the bottom of the image
        slope[1] = rng.uniform(0.2, 0.6)
    variation = np.float32(slope[0]) * u + np.float32(slope[1]) * v
    if rng.random() < 0.7:
        variation = variation + _relief(u, v, rng)
    steepness = parallax_px * max(float(np.abs(np.diff(variation, axis=axis)).max()) for axis in (0, 1))
    variation *= min(1.0, _STEEPEST / max(steepness, 1e-6))
    background = np.maximum(1.0 + variation, 0.15).astype(np.float32)
    surfaces = [Surface(background, None, textures[0], _offset(textures[0], view, rng))]
    hidden = background
    for texture in textures[1:]:
        opacity = _patch(rows, columns, margin, view, rng)
        covered = hidden[opacity > 0]
        if covered.size == 0:
            continue
        tilt = rng.normal(size=2) * 0.1
        plane = 1 + np.float32(tilt[0]) * u + np.float32(tilt[1]) * v
        # Just in front of everything it covers, by a random factor; bounded so that it does not fly past the camera.
        factor = float((covered / plane[opacity > 0]).max()) * rng.uniform(1.1, 1.8)
        if factor > 3.5:
            continue
        nearer = (factor * plane).astype(np.float32)
        surfaces.append(Surface(nearer, opacity, texture, _offset(texture, view, rng)))
        hidden = np.where(opacity > 0, np.maximum(hidden, nearer), hidden)
    return surfaces


def _relief(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few random waves, at least a third of the view long."""
    coarse = (slice(None, None, 4),) * 2  # smooth enough to be computed at a quarter of the resolution
    relief = np.zeros_like(u[coarse])
    for _ in range(4):
        direction, phase = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
        frequency, height = np.float32(np.pi * rng.uniform(0.5, 3.0)), np.float32(rng.uniform(0.02, 0.12))
        relief += height * np.sin(frequency * (np.cos(direction) * u[coarse] + np.sin(direction) * v[coarse]) + phase)
    return cv2.resize(relief, u.shape[::-1], interpolation=cv2.INTER_CUBIC)


def _patch(rows: int, columns: int, margin: int, view: PairShape, rng: np.random.Generator) -> np.ndarray:
    """Opacity of a patch with a random outline somewhere in the view: a polygon or a blob, soft over a pixel."""
    middle = margin + rng.uniform(0, 1, 2) * (view.width, view.height)
    size = view.height * rng.uniform(0.12, 0.45)
    corners = int(rng.choice((4, 5, 6, 24)))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < 24 else np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radii = size * (rng.uniform(0.6, 1.2, corners) if corners < 24 else 1 + 0.25 * np.sin(angles * 3 + rng.uniform(0, 6)))
    outline = middle + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1) * rng.uniform(0.5, 1.0, 2)
    mask = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(mask.astype(np.float32) / 255, (3, 3), 0)


def _offset(texture: np.ndarray, view: PairShape, rng: np.random.Generator) -> np.ndarray:
    room = np.array([texture.shape[1] - view.width, texture.shape[0] - view.height])
    return (rng.random(2) * np.maximum(room, 1)).astype(np.float32)


def _lookup(field: np.ndarray, pixels: np.ndarray, view: PairShape, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """A surface's field at reference pixels [2, h, w]."""
    x, y = pixels + np.float32(round(_MARGIN * view.width))
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=border)


def meet(
    inverse_depth: np.ndarray, grid: np.ndarray, camera: Camera, query_from_reference: torch.Tensor, view: PairShape
) -> np.ndarray:
    """Reference pixels float32 [2, H, W] where the rays of query pixels [2, H, W] meet a surface.

    A fixed point: from a guess of the inverse depth follows the point on the ray, from the point's reference pixel a better
    guess. It contracts because shifts change by less than a pixel per pixel. Raises BadSample where it did not settle.
    """
    focal, (cx, cy) = np.float32(camera.params[0]), camera.params[2:4].numpy().astype(np.float32)
    reference_from_query = se3.inverse(query_from_reference).numpy().astype(np.float32)
    rotation, (ox, oy, oz) = reference_from_query[:3, :3], reference_from_query[:3, 3]
    x, y = (grid[0] - cx) / focal, (grid[1] - cy) / focal
    ray_x, ray_y, ray_z = (row[0] * x + row[1] * y + row[2] for row in rotation)
    if float(ray_z.min()) < 0.1:
        raise BadSample("turned away")
    # P = origin + s ray and P_z = 1 / rho give P_xy / P_z = ray_xy / ray_z + rho (origin_xy - origin_z ray_xy / ray_z).
    slope = np.stack((ray_x, ray_y)) / ray_z
    base = focal * slope + np.array([cx, cy])[:, None, None]
    offset = focal * (np.array([ox, oy])[:, None, None] - oz * slope)
    pixels = base + offset
    for _ in range(_FIXED_POINT_STEPS):
        moved = base + offset * _lookup(inverse_depth, pixels, view)
        change = np.abs(moved - pixels).max()
        pixels = moved
        if change < _FIXED_POINT_PX:
            return pixels
    raise BadSample("surface too steep")


def _composite(surfaces: Sequence[Surface], lookups: Sequence[np.ndarray], view: PairShape) -> np.ndarray:
    """The surfaces' textures at reference pixels [2, H, W] each, back to front, uint8."""
    image: np.ndarray | None = None
    for surface, pixels in zip(surfaces, lookups):
        x, y = pixels + surface.texture_offset[:, None, None]
        # Cubic splines: OpenCV's cubic kernel does not reproduce ramps, which moves edges by 0.04 px.
        values = map_coordinates(
            spline_filter(surface.texture, 3, np.float32, "mirror"), (y, x), np.float32, 3, "mirror", prefilter=False
        )
        if image is None:
            image = values
            continue
        opacity = _lookup(surface.opacity, pixels, view, cv2.BORDER_CONSTANT)
        image += opacity * (values - image)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _points(
    surfaces: Sequence[Surface], reference: np.ndarray, view: PairShape, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Reference pixels [n, 2] and inverse depths [n] of points on what the reference sees, away from the patches' edges."""
    pixels = spread_corners(reference, view.points, rng) + rng.uniform(-0.5, 0.5, 2)
    pixels = np.clip(pixels, 0, (view.width - 1, view.height - 1)).astype(np.float32)
    where = np.ascontiguousarray(pixels.T)[:, None]
    inverse_depth = _lookup(surfaces[0].inverse_depth, where, view)[0]
    clear = np.ones(len(pixels), bool)
    for surface in surfaces[1:]:
        opacity = _lookup(surface.opacity, where, view, cv2.BORDER_CONSTANT)[0]
        clear = np.where(opacity > 0.95, True, clear & (opacity < 0.05))
        inverse_depth = np.where(opacity > 0.95, _lookup(surface.inverse_depth, where, view)[0], inverse_depth)
    if clear.sum() < 32:
        raise BadSample("few points")
    return pixels[clear].astype(np.float64), inverse_depth[clear].astype(np.float64)

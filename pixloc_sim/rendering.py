# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A small renderer for flat textured pieces, on the CPU, made for measurements rather than looks.

Two passes. First, which quad is seen: every quad is scan-converted into an inverse-depth buffer of twice the image's
resolution, where inverse depth is linear in the pixel. Then colour: each pixel's ray meets its quad's plane in closed
form, and the texture is looked up at the level of detail of the pixel's footprint, with several taps along its longer
axis, so that nothing aliases and nothing is shifted. Pixels that several quads share get the mean of their four
quarters.

Depth and geometry are exact to float32; any `Camera` can be used (the first pass then runs in a pinhole view that
covers it, the second one on the camera's own rays).
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.geometry.cameras import Camera

from .lighting import Lighting, bake
from .world import World

NEAR = 0.03
"""Nearest visible depth (m)."""
_SUPERSAMPLING = 2
_MAX_RAY_SLOPE = 2.6
"""Widest ray of a distorted camera, as tangent of its angle to the axis: a field of view of about 138 degrees."""
_TAPS = (1, 2, 4)
_STRETCH_LIMITS = (1.4**2, 2.8**2)
"""Taps along the longer axis of a pixel's footprint, by the squared ratio of its axes."""
_LOD_BIAS = 0.25
"""A little softer than one texel per pixel. Measured on a chequerboard: edges stay where they are to a few hundredths
of a pixel; at -0.25 the error of a corner is twice as large, and the picture no closer to the integral over each
pixel."""
_BLOCK = 32768
"""Rays shaded at once."""
_SHEET_WIDTH = 8192
_LINEAR = np.power(np.linspace(0.0, 1.0, 255 * 16 + 1), 2.2).astype(np.float32)


def _pack(images: list[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Images packed into one sheet, so that a single remap call can read from all of them → the sheet, and places x, y [N, 2]."""
    width = max([width, *(image.shape[1] for image in images)])
    places, x, y, tallest = np.zeros((len(images), 2), int), 0, 0, 0
    for index in sorted(range(len(images)), key=lambda i: -images[i].shape[0]):
        rows, columns = images[index].shape[:2]
        if x + columns > width:
            x, y, tallest = 0, y + tallest, 0
        places[index] = x, y
        x, tallest = x + columns, max(tallest, rows)
    if max(width, y + tallest) >= 32767:
        raise ValueError("the world's textures are too many for one sheet: use a larger texel")
    sheet = np.zeros((y + tallest, width, 3), images[0].dtype)
    for (x, y), image in zip(places.tolist(), images):
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet, places


class TextureSheet:
    """All textures of a world with their levels of detail; made once, shared by renderers with different light.

    Attributes:
        world: The world.
        image: All textures at all levels.
        level_count: Of the largest texture.
        levels: float32 [6, textures * level_count] = scale x, scale y from texels of level 0, last column, last row, place x, y;
            the last level of a small texture is repeated.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        images, first, scales = [], [], []
        for texture in world.textures:
            first.append(len(images))
            images.append(texture)
            while max(images[-1].shape[:2]) > 1:
                rows, columns = images[-1].shape[:2]
                half = max(1, columns // 2), max(1, rows // 2)
                images.append(cv2.resize(images[-1], half, interpolation=cv2.INTER_AREA))
            scales += [np.divide(image.shape[1::-1], texture.shape[1::-1]) for image in images[first[-1] :]]
        counts = np.diff([*first, len(images)])
        self.level_count = int(counts.max())
        self.image, places = _pack(images, _SHEET_WIDTH)
        entries = np.column_stack((scales, [np.subtract(image.shape[1::-1], 1) for image in images], places))
        level = np.minimum(np.arange(self.level_count), counts[:, None] - 1)
        self.levels = np.ascontiguousarray(entries[(np.array(first)[:, None] + level).ravel()].T, np.float32)


class Renderer:
    """Renders a world under one light."""

    def __init__(self, world: World | TextureSheet, lighting: Lighting | None = None) -> None:
        """Bake the light.

        Args:
            world: What to render; a `TextureSheet` saves time when several lights are wanted.
            lighting: None for even light, in which textures appear as drawn.
        """
        self.sheet = world if isinstance(world, TextureSheet) else TextureSheet(world)
        self.world = self.sheet.world
        quads = self.world.quads
        light = bake(self.world, lighting)
        self._light, places = _pack(light, 2048)
        light_size = np.array([image.shape[1::-1] for image in light], float)
        self._corners = np.array([[q.origin, q.origin + q.right, q.origin + q.right + q.down, q.origin + q.down] for q in quads])
        self._normals = np.array([q.normal for q in quads])
        self._right = np.array([q.right / (q.right @ q.right) for q in quads])
        self._down = np.array([q.down / (q.down @ q.down) for q in quads])
        self._texture = np.array([q.texture for q in quads])
        self._texture_size = np.array([self.world.textures[q.texture].shape[1::-1] for q in quads], np.float32)
        # Texels to places on the sheet of light: scale, place, last sample; and the quad's own light.
        self._light_table = np.column_stack(
            ((light_size - 1) / self._texture_size, places, light_size - 1, [q.emission for q in quads])
        ).T.astype(np.float32)

    def render(self, camera: Camera, map_from_camera: torch.Tensor, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """What an ideal camera sees.

        Args:
            camera: Any model.
            map_from_camera: float64 [4, 4].
            gain: Exposure.

        Returns:
            Image uint8 [H, W, 3] RGB, and depth float32 [H, W] along z in metres: that of the nearest surface within the pixel, 0
            where there is none.

        Raises:
            InputError: The field of view is too wide.
        """
        radiance, depth = self.radiance(camera, map_from_camera)
        return encode(radiance, gain), depth

    def radiance(self, camera: Camera, map_from_camera: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """As `render`, with linear radiance float32 [H, W, 3] (1 = white in light 1) in the place of the image."""
        view = _view(camera)
        pose = np.asarray(map_from_camera, float)
        table, inverse_depth_rows = self._plane_table(pose)
        ids = self._visible(view, pose, inverse_depth_rows)
        first = ids[0::2, 0::2]
        mixed = (first != ids[0::2, 1::2]) | (first != ids[1::2, 0::2]) | (first != ids[1::2, 1::2]) | (first < 0)
        mixed &= view.valid
        radiance, depth = self._shade(first.ravel(), table, view.x, view.y, view.steps)
        radiance, depth = radiance.reshape(*first.shape, 3), depth.reshape(first.shape)
        rows, columns = np.nonzero(mixed)
        if len(rows):
            quarters = np.zeros((len(rows), 4, 3), np.float32)
            nearest = np.full(len(rows), np.inf, np.float32)
            for part, (dy, dx) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
                quad = ids[2 * rows + dy, 2 * columns + dx]
                colour, z = self._shade(quad, table, *view.quarter(rows, columns, dy, dx))
                quarters[:, part] = colour
                nearest = np.where(z > 0, np.minimum(nearest, z), nearest)
            radiance[rows, columns] = quarters.mean(1)
            depth[rows, columns] = np.where(np.isfinite(nearest), nearest, 0.0)
        if not view.valid.all():
            radiance[~view.valid], depth[~view.valid] = 0.0, 0.0
        return radiance, depth

    def cast(self, rays: np.ndarray, map_from_camera: torch.Tensor) -> np.ndarray:
        """Depth along z, float64 [N], of what the rays [N, 3] (camera frame, any length) hit first; 0 for nothing.

        Every ray is tried against every quad, which suits a few rays and checks the renderer.
        """
        pose = np.asarray(map_from_camera, float)
        matrices = self._plane_table(pose)[0].reshape(3, 3, -1).astype(float)
        u, v, inverse_depth = np.einsum("ijq,nj->inq", matrices, rays / rays[:, 2:])
        facing = np.einsum("qi,qi->q", self._normals, pose[:3, 3] - self._corners[:, 0]) > 0
        columns, rows = self._texture_size.T
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = u / inverse_depth + 0.5, v / inverse_depth + 0.5
            hit = facing & (inverse_depth > 0) & (inverse_depth < 1 / NEAR) & (u >= 0) & (u <= columns) & (v >= 0) & (v <= rows)
        nearest = np.where(hit, inverse_depth, 0.0).max(1)
        return np.where(nearest > 0, 1.0 / np.where(nearest > 0, nearest, 1.0), 0.0)

    def _plane_table(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per quad the 3x3 matrix that takes a ray (x, y, 1) to (u w, v w, w): texel coordinates and inverse depth.

        Returns it as float32 [9, Q], and the rows of w as float64 [Q, 3].
        """
        centre, rotation = pose[:3, 3], pose[:3, :3]
        offset = centre - self._corners[:, 0]
        distance = -np.einsum("qi,qi->q", self._normals, offset)
        inverse_depth = (self._normals @ rotation) / np.where(np.abs(distance) < 1e-9, 1e-9, distance)[:, None]
        across = np.einsum("qi,qi->q", self._right, offset)[:, None] * inverse_depth + self._right @ rotation
        along = np.einsum("qi,qi->q", self._down, offset)[:, None] * inverse_depth + self._down @ rotation
        size = self._texture_size
        table = np.stack((across * size[:, :1] - 0.5 * inverse_depth, along * size[:, 1:] - 0.5 * inverse_depth, inverse_depth))
        return np.ascontiguousarray(table.transpose(0, 2, 1).reshape(9, -1), np.float32), inverse_depth

    def _visible(self, view: _View, pose: np.ndarray, inverse_depth_rows: np.ndarray) -> np.ndarray:
        """Index of the quad seen by each quarter pixel, int16 [2H, 2W]; -1 for none."""
        points = (self._corners - pose[:3, 3]) @ pose[:3, :3]
        facing = np.einsum("qi,qi->q", self._normals, pose[:3, 3] - self._corners[:, 0]) > 1e-6
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        left, right, top, bottom = view.bounds
        outside = (
            (z < NEAR).all(1) | (x < left * z).all(1) | (x > right * z).all(1) | (y < top * z).all(1) | (y > bottom * z).all(1)
        )
        buffer = np.zeros((view.rows, view.columns), np.float32)
        ids = np.full((view.rows, view.columns), -1, np.int16)
        for index in np.flatnonzero(facing & ~outside):
            polygon = _clip_near(points[index])
            pixels = polygon[:, :2] / polygon[:, 2:] * view.focal + view.centre
            _scan_convert(pixels, inverse_depth_rows[index], int(index), view, buffer, ids)
        return ids[view.lookup]

    def _shade(self, quad: np.ndarray, table: np.ndarray, x: np.ndarray, y: np.ndarray, steps) -> tuple[np.ndarray, np.ndarray]:
        """As `_shade_block`, for any number of rays, a block at a time: blocks that fit the cache are quicker."""
        radiance, depth = np.empty((len(quad), 3), np.float32), np.empty(len(quad), np.float32)
        for start in range(0, len(quad), _BLOCK):
            part = slice(start, start + _BLOCK)
            local = tuple(step[part] for step in steps)
            radiance[part], depth[part] = self._shade_block(quad[part], table, x[part], y[part], local)
        return radiance, depth

    def _shade_block(
        self, quad: np.ndarray, table: np.ndarray, x: np.ndarray, y: np.ndarray, steps
    ) -> tuple[np.ndarray, np.ndarray]:
        """Radiance [N, 3] and depth [N] of rays (x, y, 1) [N] that meet the quads [N]; black and 0 where quad is -1.

        steps: dx/dcolumn, dy/dcolumn, dx/drow, dy/drow of the rays, numbers or [N]: the footprint of a pixel.
        """
        empty = quad < 0
        quad = np.maximum(quad, 0)
        a0, a1, a2, b0, b1, b2, c0, c1, c2 = (np.take(row, quad) for row in table)
        depth = 1.0 / (c0 * x + c1 * y + c2)
        u, v = (a0 * x + a1 * y + a2) * depth, (b0 * x + b1 * y + b2) * depth
        u_x, u_y = (a0 - u * c0) * depth, (a1 - u * c1) * depth
        v_x, v_y = (b0 - v * c0) * depth, (b1 - v * c1) * depth
        x_column, y_column, x_row, y_row = steps
        u_column, v_column = u_x * x_column + u_y * y_column, v_x * x_column + v_y * y_column
        u_row, v_row = u_x * x_row + u_y * y_row, v_x * x_row + v_y * y_row
        length_column, length_row = u_column * u_column + v_column * v_column, u_row * u_row + v_row * v_row
        by_column = length_column > length_row
        longer, shorter = np.maximum(length_column, length_row), np.minimum(length_column, length_row)
        along_u, along_v = np.where(by_column, u_column, u_row), np.where(by_column, v_column, v_row)
        colour = self._texels(quad, u, v, along_u, along_v, longer, shorter)
        scale_x, scale_y, place_x, place_y, last_x, last_y, emission = (np.take(column, quad) for column in self._light_table)
        light_x = np.clip((u + np.float32(0.5)) * scale_x, 0, last_x) + place_x
        light_y = np.clip((v + np.float32(0.5)) * scale_y, 0, last_y) + place_y
        light = _remap(self._light, light_x, light_y)
        light += emission[:, None]
        radiance = np.take(_LINEAR, (colour * 16.0).astype(np.uint16)) * light
        radiance[empty], depth[empty] = 0.0, 0.0
        return radiance, depth

    def _texels(self, quad, u, v, along_u, along_v, longer, shorter) -> np.ndarray:
        """Antialiased texture colour, float32 [N, 3] in 0..255 (gamma encoded)."""
        colour = np.empty((len(quad), 3), np.float32)
        base = self._texture[quad] * self.sheet.level_count
        stretch = longer / np.maximum(shorter, 1e-20)
        classes = np.searchsorted(_STRETCH_LIMITS, stretch)
        for number, taps in enumerate(_TAPS):
            index = np.flatnonzero(classes == number)
            if not len(index):
                continue
            footprint = longer[index]
            if taps > 1:
                footprint = np.maximum(footprint / taps**2, shorter[index])
            lod = np.clip(0.5 * np.log2(np.maximum(footprint, 1e-12)) + _LOD_BIAS, 0, self.sheet.level_count - 1.001)
            whole = lod.astype(np.int64)
            centre_u, centre_v = u[index] + np.float32(0.5), v[index] + np.float32(0.5)
            step_u, step_v = along_u[index], along_v[index]
            sums = []
            for level in (whole, whole + 1):
                entry = base[index] + level
                scale_x, scale_y, last_x, last_y, place_x, place_y = (np.take(column, entry) for column in self.sheet.levels)
                x, y = centre_u * scale_x - np.float32(0.5), centre_v * scale_y - np.float32(0.5)
                step_x, step_y = step_u * scale_x, step_v * scale_y
                total = None
                for tap in range(taps):
                    offset = np.float32((tap + 0.5) / taps - 0.5)
                    texel_x, texel_y = x + offset * step_x, y + offset * step_y
                    np.clip(texel_x, 0, last_x, out=texel_x)
                    np.clip(texel_y, 0, last_y, out=texel_y)
                    texel_x += place_x
                    texel_y += place_y
                    texels = _remap(self.sheet.image, texel_x, texel_y)
                    total = texels.astype(np.float32) if total is None else np.add(total, texels, out=total)
                sums.append(total)
            sums[1] -= sums[0]
            sums[1] *= (lod - whole).astype(np.float32)[:, None]
            sums[0] += sums[1]
            colour[index] = sums[0] * np.float32(1.0 / taps)
        return colour


class _View:
    """What the renderer needs to know of a camera: the rays of its pixels, and the pinhole view of the first pass."""

    def __init__(self, camera: Camera) -> None:
        rays, valid = _ray_grid(camera, _SUPERSAMPLING)
        self.focal = camera.params[:2].numpy() * float(_SUPERSAMPLING)
        low, high = rays[valid].min(0), rays[valid].max(0)
        self.columns, self.rows = (int(n) + 3 for n in np.ceil((high - low) * self.focal))
        self.centre = 1.0 - low * self.focal
        column, row = np.rint(np.where(valid[..., None], rays, low) * self.focal + self.centre).astype(np.intp).transpose(2, 0, 1)
        self.lookup = row, column
        self._width, self._quarter_rays = camera.width, rays.astype(np.float32)
        centre_rays, centre_valid = _ray_grid(camera, 1)
        self.valid = centre_valid & valid.reshape(camera.height, 2, camera.width, 2).all((1, 3))
        x, y = np.where(centre_valid[..., None], centre_rays, 0.0).transpose(2, 0, 1)
        self.steps = tuple(np.gradient(grid, axis=axis).astype(np.float32).ravel() for axis in (1, 0) for grid in (x, y))
        self.x, self.y = x.astype(np.float32).ravel(), y.astype(np.float32).ravel()
        # Scan conversion evaluates inverse depth on these.
        self.column_ray = (np.arange(self.columns) - self.centre[0]) / self.focal[0]
        self.row_ray = (np.arange(self.rows) - self.centre[1]) / self.focal[1]
        self.bounds = (self.column_ray[0] - 1e-3, self.column_ray[-1] + 1e-3, self.row_ray[0] - 1e-3, self.row_ray[-1] + 1e-3)

    def quarter(self, rows: np.ndarray, columns: np.ndarray, dy: int, dx: int) -> tuple:
        """Rays x, y and pixel steps of one quarter of the given pixels."""
        ray = self._quarter_rays[2 * rows + dy, 2 * columns + dx]
        return ray[:, 0], ray[:, 1], tuple(np.float32(0.5) * step[rows * self._width + columns] for step in self.steps)


@functools.lru_cache(maxsize=8)
def _view(camera: Camera) -> _View:
    """Views are kept: they take long to make."""
    return _View(camera)


def _ray_grid(camera: Camera, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Rays (x, y) at z = 1, float64 [sH, sW, 2], through an s-fold grid of pixels, and which are valid [sH, sW]."""
    column = (torch.arange(samples * camera.width, dtype=torch.float64) + 0.5) / samples - 0.5
    row = (torch.arange(samples * camera.height, dtype=torch.float64) + 0.5) / samples - 0.5
    grid = torch.stack(torch.meshgrid(column, row, indexing="xy"), -1)
    rays, valid = camera.unproject(grid.reshape(-1, 2))
    rays, valid = rays.numpy().reshape(*grid.shape[:2], 3), valid.numpy().reshape(grid.shape[:2])
    forward = rays[..., 2] > 1e-3
    slopes = rays[..., :2] / np.where(forward, rays[..., 2], 1.0)[..., None]
    if not forward[valid].all() or np.abs(slopes[valid]).max() > _MAX_RAY_SLOPE:
        raise InputError("the camera's field of view is too wide to simulate: use one below 138 degrees, corner to corner")
    return slopes, valid


def _clip_near(polygon: np.ndarray) -> np.ndarray:
    """The part of a convex polygon [N, 3] (camera frame) beyond the near plane."""
    if (polygon[:, 2] >= NEAR).all():
        return polygon
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0)):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept)


def _scan_convert(
    pixels: np.ndarray, inverse_depth: np.ndarray, index: int, view: _View, buffer: np.ndarray, ids: np.ndarray
) -> None:
    """Enter a convex polygon [N, 2] into the buffers where it is nearest; a sample counts if its centre lies inside."""
    low, high = pixels.min(0), pixels.max(0)
    top, bottom = max(0, int(np.ceil(low[1]))), min(view.rows - 1, int(np.floor(high[1])))
    start, end = max(0, int(np.ceil(low[0]))), min(view.columns - 1, int(np.floor(high[0])))
    if top > bottom or start > end:
        return
    row = np.arange(top, bottom + 1, dtype=float)
    left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    for (x0, y0), (x1, y1) in zip(pixels, np.roll(pixels, -1, axis=0)):
        if y0 == y1:
            continue
        first, last = max(top, int(np.ceil(min(y0, y1)))), min(bottom, int(np.floor(max(y0, y1))))
        if first > last:
            continue
        part = slice(first - top, last - top + 1)
        crossing = x0 + (row[part] - y0) * ((x1 - x0) / (y1 - y0))
        np.minimum(left[part], crossing, out=left[part])
        np.maximum(right[part], crossing, out=right[part])
    column = np.arange(start, end + 1, dtype=np.float32)
    inside = (column >= left[:, None].astype(np.float32)) & (column < right[:, None].astype(np.float32))
    across = (inverse_depth[0] * view.column_ray[start : end + 1]).astype(np.float32)
    down = (inverse_depth[1] * view.row_ray[top : bottom + 1] + inverse_depth[2]).astype(np.float32)
    here = down[:, None] + across
    window = (slice(top, bottom + 1), slice(start, end + 1))
    inside &= here > buffer[window]
    np.copyto(buffer[window], here, where=inside)
    np.copyto(ids[window], np.int16(index), where=inside)


def _remap(image: np.ndarray, x: np.ndarray, y: np.ndarray, row_length: int = 1024) -> np.ndarray:
    """Bilinear look-up of [N] places in an image: [N, 3]. (OpenCV wants maps of less than 32768 columns.)"""
    count = len(x)
    padded = -(-count // row_length) * row_length
    maps = np.zeros((2, padded), np.float32)
    maps[0, :count], maps[1, :count] = x, y
    maps = maps.reshape(2, -1, row_length)
    return cv2.remap(image, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, 3)[:count]


_GAMMA = (255.0 * np.power(np.linspace(0.0, 1.0, 4096), 1 / 2.2) + 0.5).astype(np.uint8)


def encode(radiance: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """Linear radiance float32 [..., 3] to gamma-encoded uint8, clipped at white."""
    return np.take(_GAMMA, (np.clip(radiance * np.float32(gain), 0.0, 1.0) * 4095.0 + 0.5).astype(np.uint16))

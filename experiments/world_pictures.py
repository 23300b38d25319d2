# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pictures made by chance from a name: for textures that are missing, for walls that are too plain, and in place of photos."""

from __future__ import annotations

import zlib

import numpy as np

_SIZE = 512
_WOOD = ("desk", "shelf", "cabinet", "table", "wood", "floor", "door", "furniture")


def picture_for(name: str) -> np.ndarray:
    """uint8 [512, 512, 3] RGB; the same name gives the same picture."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    lower = name.lower()
    if "portrait" in lower or "photo" in lower:
        return painting(rng)
    if "book" in lower and "shelf" not in lower:
        return books(rng)
    if "person" in lower:
        return clothes(rng)
    return wood(rng) if any(word in lower for word in _WOOD) else plaster(rng)


def clouds(rng: np.random.Generator, octaves: int = 6, persistence: float = 0.6) -> np.ndarray:
    """Noise of several scales that repeats at the edges: float [512, 512], mean 0, about ±1."""
    total, weight = np.zeros((_SIZE, _SIZE)), 1.0
    for octave in range(octaves):
        cells = 4 << octave
        grid = rng.standard_normal((cells, cells))
        at = np.arange(_SIZE) * cells / _SIZE
        low = at.astype(int)
        part = (at - low) ** 2 * (3 - 2 * (at - low))
        high = (low + 1) % cells
        rows = grid[low] * (1 - part[:, None]) + grid[high] * part[:, None]
        total += weight * (rows[:, low] * (1 - part) + rows[:, high] * part)
        weight *= persistence
    return total / (2 * total.std())


def plaster(rng: np.random.Generator) -> np.ndarray:
    """A plain colour with stains and grain."""
    colour = rng.uniform(90, 200) + rng.uniform(-25, 25, 3)
    return _to_bytes(colour + 14 * clouds(rng)[..., None] + rng.normal(0, 3, (_SIZE, _SIZE, 1)))


def wood(rng: np.random.Generator) -> np.ndarray:
    """Boards with grain."""
    boards = int(rng.integers(3, 7))
    v = np.arange(_SIZE)[:, None] * boards / _SIZE
    tone = rng.uniform(-18, 18, boards)[v.astype(int) % boards]
    grain = np.sin(40 * v + 6 * clouds(rng, 4)) * 9 + 14 * clouds(rng, 7, 0.75)
    colour = np.array((150, 104, 66)) * rng.uniform(0.6, 1.2)
    seam = (v % 1 < 0.02) * 45
    return _to_bytes(colour + (tone + grain - seam)[..., None])


def books(rng: np.random.Generator) -> np.ndarray:
    """Backs of books side by side, with titles."""
    image, x = np.zeros((_SIZE, _SIZE, 3)), 0
    while x < _SIZE:
        width = int(rng.integers(14, 40))
        colour = rng.uniform(20, 230, 3)
        image[:, x : x + width] = colour
        image[:, x : x + 2] *= 0.4
        for _ in range(int(rng.integers(2, 6))):
            y, height = int(rng.integers(20, 460)), int(rng.integers(4, 60))
            image[y : y + height, x + 4 : x + width - 4] = rng.uniform(20, 250, 3)
        x += width
    return _to_bytes(image + 6 * clouds(rng)[..., None])


def painting(rng: np.random.Generator) -> np.ndarray:
    """Hills, discs and bars in many colours: what hangs in the place of a photo of people."""
    y, x = np.mgrid[0:_SIZE, 0:_SIZE] / _SIZE
    image = rng.uniform(60, 240, 3) * (1 - y[..., None]) + rng.uniform(60, 240, 3) * y[..., None]
    for _ in range(5):
        hill = rng.uniform(0.3, 0.95) + 0.12 * np.sin(2 * np.pi * (rng.uniform(0.5, 3) * x + rng.uniform()))
        image[y > hill] = rng.uniform(10, 230, 3)
    for _ in range(14):
        centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.14)
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = rng.uniform(0, 255, 3)
        left, top, wide, high = *rng.uniform(0, 1, 2), *rng.uniform(0.01, 0.2, 2)
        image[(x > left) & (x < left + wide) & (y > top) & (y < top + high)] = rng.uniform(0, 255, 3)
    return _to_bytes(image + 10 * clouds(rng)[..., None])


def clothes(rng: np.random.Generator) -> np.ndarray:
    """From the feet (bottom) to the head: shoes, trousers, a striped shirt, skin, hair."""
    image = np.zeros((_SIZE, _SIZE, 3))
    edges = np.array((0.0, 0.1, 0.2, 0.52, 0.95, 1.0)) * _SIZE
    colours = (rng.uniform(10, 90, 3), np.array((200, 160, 130)), rng.uniform(20, 230, 3), rng.uniform(20, 140, 3), (30, 25, 25))
    for low, high, colour in zip(edges[:-1].astype(int), edges[1:].astype(int), colours):
        image[low:high] = colour
    stripes = (np.arange(_SIZE) // int(rng.integers(6, 24))) % 2 == 0
    shirt = slice(int(edges[2]), int(edges[3]))
    image[shirt][stripes[shirt]] = rng.uniform(20, 230, 3)
    return _to_bytes(image + 10 * clouds(rng)[..., None])


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).astype(np.uint8)

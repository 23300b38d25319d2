# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Procedural textures with the statistics of photographs.

Every function takes a random generator, the size in texels and the size of a texel in metres (so that a brick is as
large as a brick at any resolution) and returns uint8 [H, W, 3], RGB, gamma encoded. Surfaces are built on
`fractal_noise`, whose
octaves carry equal energy: the 1/f amplitude spectrum of natural images, which gives an aligner gradients at every
scale.
"""

from __future__ import annotations

import cv2
import numpy as np

Colour = tuple[float, float, float]

_WORDS = (
    "EXIT",
    "DANGER",
    "STORE 3",
    "LOADING",
    "GATE",
    "PUMP",
    "NORTH",
    "KEEP CLEAR",
    "FRAGILE",
    "THIS SIDE UP",
    "NOTICE",
    "MAP",
    "CONCERT",
    "HARBOUR",
    "SUMMER",
    "VOLT",
    "LAB",
    "SAFETY FIRST",
    "ROBOTS",
    "COFFEE",
    "OPEN DAY",
    "PLAN B",
    "WORKSHOP",
    "ARCHIVE",
)
_FONTS = (cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SIMPLEX)


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, texel: float, largest: float = 2.0, persistence: float = 1.0
) -> np.ndarray:
    """Sum of octaves from wavelength `largest` (m) down to a texel: float32 [H, W], zero mean, unit variance.

    persistence: amplitude of an octave relative to the next larger one; 1 gives the 1/f amplitude spectrum of
    photographs (equal energy per octave), smaller values are smoother.
    """
    # From the coarsest grid to the finest, each enlarged to the next: an octave costs as much as all coarser ones
    # together.
    sizes = [(height, width)]
    while 2 * texel * 2 ** (len(sizes) - 1) < largest and max(sizes[-1]) > 2 or len(sizes) == 1:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    total = rng.standard_normal(sizes[-1], np.float32)
    for rows, columns in sizes[-2::-1]:
        total = cv2.resize(total, (columns, rows), interpolation=cv2.INTER_CUBIC)
        # Enlarging loses a part of the variance, which is made up for here to keep octaves equal.
        total = total * np.float32(1.1 / persistence) + rng.standard_normal((rows, columns), np.float32)
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def _broad_noise(rng: np.random.Generator, height: int, width: int, texel: float, largest: float = 3.0) -> np.ndarray:
    """Noise without fine detail, made small and enlarged: where the eye wants only a slow change."""
    small = fractal_noise(rng, height // 8 + 2, width // 8 + 2, texel * 8, largest, 0.7)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _tint(shade: np.ndarray, colour: Colour, other: Colour | None = None, mix: np.ndarray | None = None) -> np.ndarray:
    """Colour (0..1) times shade [H, W], maybe mixed with another by `mix` [H, W] in 0..1: uint8 [H, W, 3]."""
    out = np.empty((*shade.shape, 3), np.uint8)
    for channel in range(3):
        value = colour[channel] if mix is None else colour[channel] + (other[channel] - colour[channel]) * mix
        out[..., channel] = np.clip(value * shade * 255.0 + 0.5, 0, 255)
    return out


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-values))


def _px(metres: float, texel: float) -> int:
    return max(1, int(round(metres / texel)))


def _draw_cracks(rng: np.random.Generator, image: np.ndarray, texel: float, per_square_metre: float, colour: Colour) -> None:
    """Random walks drawn as thin dark lines: cracks and scratches."""
    height, width = image.shape[:2]
    count = rng.poisson(per_square_metre * height * width * texel * texel)
    for _ in range(count):
        point = rng.uniform((0, 0), (width, height))
        heading, points = rng.uniform(0, 2 * np.pi), []
        for _ in range(int(rng.integers(4, 28))):
            points.append(point.copy())
            heading += rng.normal() * 0.45
            point += np.array([np.cos(heading), np.sin(heading)]) * rng.uniform(0.01, 0.05) / texel
        line = (np.array(points) * 16).astype(np.int32)
        strength = 255 * rng.uniform(0.6, 1.2)
        tone = tuple(strength * c for c in colour)
        cv2.polylines(image, [line], False, tone, max(1, _px(rng.uniform(0.001, 0.005), texel)), cv2.LINE_AA, 4)


def _draw_stains(rng: np.random.Generator, image: np.ndarray, texel: float, count: int, strength: float = 0.25) -> None:
    """Soft blotches that darken or lighten, with ragged rims."""
    height, width = image.shape[:2]
    for _ in range(count):
        size = _px(rng.uniform(0.08, 0.6), texel)
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        x0, x1, y0, y1 = max(0, x - size), min(width, x + size), max(0, y - size), min(height, y + size)
        if x1 - x0 < 4 or y1 - y0 < 4:
            continue
        v, u = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        radius = np.hypot((u - x) / size, (v - y) / size)
        radius += 0.12 * fractal_noise(rng, y1 - y0, x1 - x0, texel, size * texel)
        weight = _sigmoid((0.62 - radius) * 14.0)[..., None] * rng.uniform(-1.0, 0.5) * strength
        image[y0:y1, x0:x1] = np.clip(image[y0:y1, x0:x1] * (1.0 + weight), 0, 255)


def concrete(rng: np.random.Generator, height: int, width: int, texel: float, colour: Colour = (0.52, 0.51, 0.49)) -> np.ndarray:
    """Rough cast concrete with stains, pores and cracks."""
    noise = fractal_noise(rng, height, width, texel, 2.5)
    tone = _broad_noise(rng, height, width, texel)
    image = _tint(1.0 + 0.12 * noise, colour, (colour[0] * 1.12, colour[1] * 1.02, colour[2] * 0.86), _sigmoid(tone))
    _draw_stains(rng, image, texel, int(height * width * texel**2 * 0.7) + 2)
    _draw_cracks(rng, image, texel, 0.8, (0.20, 0.19, 0.18))
    return image


def plaster(
    rng: np.random.Generator, height: int, width: int, texel: float, colour: Colour = (0.78, 0.77, 0.72), contrast: float = 0.035
) -> np.ndarray:
    """Painted plaster: nearly blank, with the faint mottling and the few marks that real walls have."""
    noise = fractal_noise(rng, height, width, texel, 3.0, 0.9)
    image = _tint(1.0 + contrast * noise, colour)
    _draw_stains(rng, image, texel, int(height * width * texel**2 * 0.25) + 1, 0.10)
    _draw_cracks(rng, image, texel, 0.25, (0.45, 0.44, 0.42))
    return image


def dado(
    rng: np.random.Generator, height: int, width: int, texel: float, lower: Colour, upper: Colour, edge: float = 1.1
) -> np.ndarray:
    """A wall painted in two colours with a stripe between, worn near the floor. Row 0 is the top."""
    image = plaster(rng, height, width, texel, upper, 0.05)
    wobble = fractal_noise(rng, 1, width, texel, 1.0)[0] * 0.002 / texel
    level = height - edge / texel + wobble
    row = np.arange(height, dtype=np.float32)[:, None]
    wear = fractal_noise(rng, height, width, texel, 1.5)
    painted = _tint(1.0 + 0.07 * wear, lower)
    bare = _sigmoid((wear - 1.0 - (height - row) * texel / 0.35) * 4.0)
    painted = (painted * (1 - bare[..., None]) + 150 * bare[..., None]).astype(np.uint8)
    np.copyto(image, painted, where=(row > level)[..., None])
    stripe = np.abs(row - level) < 0.02 / texel
    np.copyto(image, np.uint8(40), where=stripe[..., None])
    return image


def bricks(
    rng: np.random.Generator,
    height: int,
    width: int,
    texel: float,
    colour: Colour = (0.56, 0.30, 0.22),
    length: float = 0.24,
    course: float = 0.075,
    mortar: float = 0.011,
) -> np.ndarray:
    """Running bond with uneven bricks: repetitive, told apart only by each brick's own tone and dirt."""
    noise = fractal_noise(rng, height, width, texel, 2.0)
    wobble = fractal_noise(rng, height, width, texel, 0.3, 0.6)
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    y = v * np.float32(texel) + wobble * 0.0016
    x = u * np.float32(texel) + wobble[::-1] * 0.0016
    row = np.floor(y / course)
    x = x + (row % 2) * np.float32(length / 2)
    column = np.floor(x / length)
    inside = np.minimum.reduce([y - row * course, (row + 1) * course - y, x - column * length, (column + 1) * length - x])
    body = _sigmoid((inside - mortar / 2) * (2.0 / max(texel, 0.002)))
    rows, columns = int(row.max()) + 2, int(column.max()) + 2
    index = np.clip(row, 0, None).astype(np.int32) * columns + np.clip(column, 0, None).astype(np.int32)
    shade = rng.normal(1.0, 0.16, rows * columns).astype(np.float32)[index]
    hue = rng.uniform(0, 1, rows * columns).astype(np.float32)[index]
    brick = _tint(shade * (1.0 + 0.15 * noise), colour, (colour[0] * 0.82, colour[1] * 1.15, colour[2] * 1.35), hue)
    joint = _tint(1.0 + 0.16 * noise, (0.60, 0.58, 0.54))
    image = (brick * body[..., None] + joint * (1 - body[..., None])).astype(np.uint8)
    _draw_stains(rng, image, texel, int(height * width * texel**2 * 0.5) + 1, 0.3)
    return image


def tiles(
    rng: np.random.Generator,
    height: int,
    width: int,
    texel: float,
    size: float = 0.3,
    joint: float = 0.006,
    colours: tuple[Colour, ...] = ((0.62, 0.60, 0.56),),
    spread: float = 0.05,
    grain: float = 0.11,
) -> np.ndarray:
    """Square tiles, chequered when two colours are given, with dirt that ignores the joints."""
    noise = fractal_noise(rng, height, width, texel, 2.5)
    row = np.arange(height, dtype=np.float32) * texel
    column = np.arange(width, dtype=np.float32) * texel
    i, j = np.floor(row / size).astype(np.int32), np.floor(column / size).astype(np.int32)
    shade = rng.normal(1.0, spread, (i.max() + 1, j.max() + 1)).astype(np.float32)
    palette = np.array(colours, np.float32)[(i[:, None] + j[None, :]) % len(colours)]
    mottle = 1.0 + np.float32(grain) * noise
    image = np.clip(palette * (shade[i][:, j] * mottle)[..., None] * 255, 0, 255).astype(np.uint8)
    row_gap = np.minimum(row - i * size, (i + 1) * size - row)
    column_gap = np.minimum(column - j * size, (j + 1) * size - column)
    line = np.clip(1.2 - np.minimum(row_gap[:, None], column_gap[None, :]) / (joint / 2), 0, 1)
    image = (image * (1 - 0.62 * line[..., None])).astype(np.uint8)
    _draw_stains(rng, image, texel, int(height * width * texel**2 * 0.5) + 1)
    _draw_cracks(rng, image, texel, 0.4, (0.25, 0.24, 0.22))
    return image


def planks(
    rng: np.random.Generator,
    height: int,
    width: int,
    texel: float,
    board: float = 0.12,
    colour: Colour = (0.55, 0.40, 0.25),
    along_rows: bool = True,
) -> np.ndarray:
    """Wooden boards with grain and knots, running along the rows (or the columns)."""
    if not along_rows:
        return np.ascontiguousarray(np.rot90(planks(rng, width, height, texel, board, colour)))
    grain = cv2.resize(
        fractal_noise(rng, height, max(8, width // 12), texel, 0.25, 0.95), (width, height), interpolation=cv2.INTER_LINEAR
    )
    noise = fractal_noise(rng, height, width, texel, 1.5)
    index = (np.arange(height) * texel / board).astype(np.int32)
    offset = (np.arange(height, dtype=np.float32) * texel) - index * board
    tone = rng.normal(1.0, 0.13, index.max() + 1).astype(np.float32)[index][:, None]
    # Each board takes its grain from elsewhere, else the pattern would run across the joints.
    grain = np.take_along_axis(grain, (np.arange(width)[None, :] + (index * 7919 % width)[:, None]) % width, axis=1)
    gap = np.clip(1.2 - np.minimum(offset, board - offset) / 0.003, 0, 1)[:, None]
    shade = tone * (1.0 + 0.13 * grain + 0.08 * noise) * (1 - 0.7 * gap)
    image = _tint(shade, colour, (colour[0] * 1.05, colour[1] * 0.92, colour[2] * 0.72), _sigmoid(grain))
    for _ in range(int(height * width * texel**2 * 2) + 1):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        radius = _px(rng.uniform(0.006, 0.016), texel)
        for ring, darkness in ((2.0, 0.75), (1.3, 0.5), (0.8, 0.3)):
            cv2.ellipse(
                image,
                centre,
                (int(radius * ring * 1.6) + 1, int(radius * ring) + 1),
                0,
                0,
                360,
                tuple(255 * c * darkness for c in colour),
                max(1, radius // 3),
                cv2.LINE_AA,
            )
    return image


def crate_side(rng: np.random.Generator, height: int, width: int, texel: float) -> np.ndarray:
    """The side of a wooden crate: slats, a frame, a diagonal, nails and a stencilled mark."""
    colour = (rng.uniform(0.50, 0.68), rng.uniform(0.40, 0.50), rng.uniform(0.28, 0.38))
    image = planks(rng, height, width, texel, rng.uniform(0.09, 0.14), colour, bool(rng.integers(2)))
    rim = _px(0.07, texel)
    frame = planks(rng, height, width, texel, 0.07, tuple(c * 1.12 for c in colour))
    mask = np.zeros((height, width), np.uint8)
    if rng.random() < 0.6:
        cv2.line(mask, (0, height), (width, 0), 255, rim)
    cv2.rectangle(mask, (0, 0), (width - 1, height - 1), 255, 2 * rim)
    edge = cv2.GaussianBlur(
        cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=_px(0.006, texel)), (0, 0), 0.008 / texel + 0.3
    )
    image = (image * (1 - 0.55 * (edge[..., None] / 255.0))).astype(np.uint8)
    np.copyto(image, frame, where=mask[..., None] > 0)
    for corner in (
        (rim // 2, rim // 2),
        (width - rim // 2, rim // 2),
        (rim // 2, height - rim // 2),
        (width - rim // 2, height - rim // 2),
    ):
        cv2.circle(image, corner, _px(0.007, texel), (45, 42, 40), -1, cv2.LINE_AA)
    _write(rng, image, (width * 0.2, height * 0.35, width * 0.8, height * 0.62), (50, 40, 35))
    return image


def cardboard(rng: np.random.Generator, height: int, width: int, texel: float) -> np.ndarray:
    """The side of a cardboard box: tape, a label with lines and bars, marks."""
    base = (rng.uniform(0.60, 0.72), rng.uniform(0.47, 0.56), rng.uniform(0.32, 0.40))
    image = _tint(1.0 + 0.06 * fractal_noise(rng, height, width, texel, 0.6), base)
    _draw_stains(rng, image, texel, 2, 0.2)
    centre, half = height // 2 if rng.random() < 0.3 else _px(0.03, texel), _px(0.025, texel)
    band = slice(max(0, centre - half), min(height, centre + half))
    image[band] = (image[band] * 0.6 + np.array([90, 80, 55]) * rng.uniform(0.6, 1.0)).clip(0, 255).astype(np.uint8)
    w, h = width * rng.uniform(0.25, 0.45), height * rng.uniform(0.25, 0.4)
    x, y = rng.uniform(0.05, 0.9) * (width - w), rng.uniform(0.2, 0.9) * (height - h)
    cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), (232, 230, 222), -1)
    _write(rng, image, (x + w * 0.08, y + h * 0.08, x + w * 0.9, y + h * 0.45), (25, 25, 30))
    _bars(rng, image, x + w * 0.1, y + h * 0.55, w * 0.75, h * 0.35)
    if rng.random() < 0.6:
        _write(rng, image, (width * 0.1, height * 0.72, width * 0.9, height * 0.95), (120, 30, 25))
    return image


def metal(
    rng: np.random.Generator, height: int, width: int, texel: float, colour: Colour = (0.45, 0.50, 0.55), pitch: float = 0.0
) -> np.ndarray:
    """Painted sheet metal with scratches and rust; corrugated along the rows when pitch (m) is given."""
    noise = fractal_noise(rng, height, width, texel, 1.5)
    shade = 1.0 + 0.07 * noise
    if pitch:
        shade = shade * (0.82 + 0.26 * np.sin(np.arange(height, dtype=np.float32) * (2 * np.pi * texel / pitch)))[:, None]
    rust = _sigmoid((noise + 0.5 * fractal_noise(rng, height, width, texel, 0.8) - 1.9) * 4.0)
    image = _tint(shade, colour, (0.42, 0.25, 0.14), rust)
    _draw_cracks(rng, image, texel, 2.5, (0.68, 0.67, 0.65))
    return image


def poster(rng: np.random.Generator, height: int, width: int, texel: float) -> np.ndarray:
    """A printed poster: a photo-like gradient with shapes, a headline, small print."""
    first, second = (rng.uniform(0.35, 0.95) * (0.5 + 0.5 * rng.uniform(0, 1, 3)) for _ in range(2))
    slope = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    mix = np.clip(slope + 0.25 * fractal_noise(rng, height, width, texel, max(height, width) * texel * 0.7), 0, 1)
    image = _tint(1.0 + 0.10 * fractal_noise(rng, height, width, texel, 0.4), tuple(first), tuple(second), mix)
    for _ in range(int(rng.integers(4, 12))):
        colour = tuple(float(c) for c in rng.uniform(20, 245) * (0.4 + 0.6 * rng.uniform(0, 1, 3)))
        x, y = int(rng.uniform(0.05, 0.95) * width), int(rng.uniform(0.1, 0.9) * height)
        size = max(2, int(min(height, width) * rng.uniform(0.04, 0.24)))
        kind = int(rng.integers(4))
        if kind == 0:
            cv2.circle(image, (x, y), size, colour, -1 if rng.random() < 0.7 else max(2, size // 5), cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(image, (x, y), (x + size, y + int(size * rng.uniform(0.5, 2))), colour, -1)
        elif kind == 2:
            corners = np.array([x, y]) + rng.uniform(-1.2, 1.2, (int(rng.integers(3, 7)), 2)) * size
            cv2.fillPoly(image, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        else:
            cv2.line(
                image, (x, y), tuple(int(c) for c in rng.uniform((0, 0), (width, height))), colour, max(1, size // 6), cv2.LINE_AA
            )
    ink = (20, 20, 25) if rng.random() < 0.6 else (240, 238, 230)
    _write(rng, image, (width * 0.06, height * 0.03, width * 0.94, height * 0.2), ink)
    for line in range(int(rng.integers(2, 6))):
        y = height * (0.78 + 0.035 * line)
        _small_print(rng, image, width * 0.08, y, width * rng.uniform(0.5, 0.85), height * 0.02, ink)
    cv2.rectangle(
        image, (0, 0), (width - 1, height - 1), (235, 233, 226) if rng.random() < 0.7 else (30, 30, 32), _px(0.012, texel)
    )
    return image


def notice_board(rng: np.random.Generator, height: int, width: int, texel: float) -> np.ndarray:
    """A cork board full of papers."""
    image = _tint(1.0 + 0.14 * fractal_noise(rng, height, width, texel, 0.05), (0.56, 0.44, 0.31))
    for _ in range(int(width * height * texel**2 * 9) + 3):
        w, h = sorted((_px(rng.uniform(0.12, 0.22), texel), _px(rng.uniform(0.16, 0.3), texel)))
        x, y = int(rng.uniform(0, max(1, width - w))), int(rng.uniform(0, max(1, height - h)))
        paper = tuple(float(c) for c in (rng.uniform(190, 250, 3) if rng.random() < 0.6 else rng.uniform(90, 250, 3)))
        cv2.rectangle(image, (x + 2, y + 2), (x + w + 2, y + h + 2), (55, 42, 30), -1)
        cv2.rectangle(image, (x, y), (x + w, y + h), paper, -1)
        _write(rng, image, (x + w * 0.1, y + h * 0.05, x + w * 0.9, y + h * 0.22), (30, 30, 40))
        for line in range(int(rng.integers(3, 10))):
            _small_print(rng, image, x + w * 0.1, y + h * (0.3 + 0.065 * line), w * rng.uniform(0.4, 0.8), h * 0.03, (60, 60, 70))
        cv2.circle(
            image, (x + w // 2, y + 4), _px(0.006, texel), tuple(float(c) for c in rng.uniform(30, 230, 3)), -1, cv2.LINE_AA
        )
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (95, 70, 45), _px(0.03, texel))
    return image


def door(rng: np.random.Generator, height: int, width: int, texel: float) -> np.ndarray:
    """A panelled door with handle, kick plate and sign."""
    colour = tuple(rng.uniform(0.25, 0.6, 3))
    image = _tint(1.0 + 0.05 * fractal_noise(rng, height, width, texel, 1.0), colour)
    for top, bottom in ((0.08, 0.42), (0.5, 0.86)):
        a, b = (int(width * 0.16), int(height * top)), (int(width * 0.84), int(height * bottom))
        cv2.rectangle(image, a, b, tuple(255 * c * 0.55 for c in colour), _px(0.015, texel))
        cv2.rectangle(
            image, (a[0] + 3, a[1] + 3), (b[0] + 3, b[1] + 3), tuple(255 * min(1, c * 1.4) for c in colour), _px(0.006, texel)
        )
    cv2.rectangle(image, (0, int(height * 0.91)), (width, height), (150, 152, 155), -1)
    cv2.circle(image, (int(width * 0.9), int(height * 0.5)), _px(0.03, texel), (205, 200, 185), -1, cv2.LINE_AA)
    cv2.rectangle(image, (int(width * 0.3), int(height * 0.2)), (int(width * 0.7), int(height * 0.27)), (235, 235, 228), -1)
    _write(rng, image, (width * 0.32, height * 0.205, width * 0.68, height * 0.265), (30, 40, 80))
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (70, 66, 60), _px(0.05, texel))
    return image


def window(rng: np.random.Generator, height: int, width: int, texel: float) -> np.ndarray:
    """A window on a bright yard: sky, trees, roofs, glazing bars."""
    v = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    clouds = fractal_noise(rng, height, width, texel, 0.9)
    image = _tint(1.0 + 0.05 * clouds, (0.72, 0.84, 0.98), (0.95, 0.96, 0.97), np.clip(v + 0.2 * clouds, 0, 1))
    skyline = 0.55 + 0.06 * fractal_noise(rng, 1, width, texel, 0.8, 0.7)[0]
    trees = _tint(1.0 + 0.25 * fractal_noise(rng, height, width, texel, 0.4), (0.30, 0.38, 0.24))
    np.copyto(image, trees, where=(v > skyline[None, :])[..., None])
    for _ in range(3):
        x, w = int(rng.uniform(0, width)), int(rng.uniform(0.15, 0.3) * width)
        top = int(height * rng.uniform(0.4, 0.65))
        cv2.rectangle(
            image, (x, top), (x + w, height), tuple(float(c) for c in rng.uniform(100, 190) + rng.uniform(-20, 20, 3)), -1
        )
        for k in range(3):
            cv2.rectangle(
                image,
                (x + int(w * (0.12 + 0.3 * k)), top + int(height * 0.06)),
                (x + int(w * (0.27 + 0.3 * k)), top + int(height * 0.14)),
                (60, 70, 85),
                -1,
            )
    bar = _px(0.04, texel)
    for k in range(4):
        cv2.line(image, (int(width * k / 3), 0), (int(width * k / 3), height), (225, 224, 218), bar)
    for k in range(3):
        cv2.line(image, (0, int(height * k / 2)), (width, int(height * k / 2)), (225, 224, 218), bar)
    return image


def goods(rng: np.random.Generator, height: int, width: int, texel: float) -> np.ndarray:
    """Fronts of small things on a shelf: binders, tins, packets."""
    image = _tint(
        1.0 + 0.06 * fractal_noise(rng, height, width, texel, 0.3),
        tuple(rng.uniform(0.2, 0.9) * (0.5 + 0.5 * rng.uniform(0, 1, 3))),
    )
    if rng.random() < 0.5:
        edges = np.unique(np.concatenate([[0, width], rng.integers(0, width, max(2, int(width * texel / 0.06)))]))
        for left, right in zip(edges[:-1], edges[1:]):
            tone = rng.uniform(40, 235) * (0.45 + 0.55 * rng.uniform(0, 1, 3))
            shade = (0.7 + 0.3 * np.sin(np.linspace(0.3, np.pi - 0.3, right - left)))[None, :, None]
            image[:, left:right] = np.clip(image[:, left:right] * 0.35 + tone * shade * 0.65, 0, 255)
            cv2.rectangle(
                image,
                (int(left) + 2, int(height * 0.2)),
                (int(right) - 3, int(height * rng.uniform(0.35, 0.6))),
                tuple(float(c) for c in rng.uniform(200, 245, 3)),
                -1,
            )
    else:
        cv2.rectangle(
            image, (0, int(height * 0.3)), (width, int(height * 0.7)), tuple(float(c) for c in rng.uniform(20, 250, 3)), -1
        )
        _write(
            rng,
            image,
            (width * 0.05, height * 0.36, width * 0.95, height * 0.64),
            tuple(float(c) for c in rng.uniform(0, 255, 3)),
        )
    return image


def hazard_stripes(image: np.ndarray, texel: float, top: float, bottom: float) -> None:
    """Paint yellow and black diagonals between two heights above the image's lower edge (m), in place."""
    height, width = image.shape[:2]
    rows = slice(max(0, height - _px(top, texel)), max(1, height - _px(bottom, texel)))
    v, u = np.mgrid[rows, 0:width]
    stripe = ((u + v) * texel / 0.1).astype(np.int32) % 2 == 0
    paint = np.where(stripe[..., None], np.array([222, 180, 30]), np.array([30, 29, 27]))
    image[rows] = (paint * (0.8 + 0.2 * image[rows].mean(-1, keepdims=True) / 128.0)).clip(0, 255).astype(np.uint8)


def floor_marks(rng: np.random.Generator, image: np.ndarray, texel: float) -> None:
    """Worn paint lines, arrows, numbers and tyre marks on a floor, in place."""
    height, width = image.shape[:2]
    layer = np.zeros((height, width), np.uint8)
    for y in (0.18, 0.82):
        cv2.line(layer, (0, int(height * y)), (width, int(height * y)), 255, _px(0.08, texel))
    for _ in range(6):
        x, y = int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.25, 0.75) * height)
        length = _px(0.5, texel)
        cv2.arrowedLine(layer, (x, y), (x + int(rng.choice((-1, 1))) * length, y), 255, _px(0.06, texel), cv2.LINE_AA, 0, 0.4)
    for _ in range(7):
        cv2.putText(
            layer,
            str(int(rng.integers(1, 60))),
            (int(rng.uniform(0, 0.9) * width), int(rng.uniform(0.1, 0.95) * height)),
            _FONTS[0],
            0.012 / texel,
            255,
            _px(0.05, texel),
            cv2.LINE_AA,
        )
    worn = layer.astype(np.float32) / 255.0 * _sigmoid(2.5 * fractal_noise(rng, height, width, texel, 1.0) + 1.5)
    for channel, paint in enumerate((215.0, 190.0, 70.0)):
        image[..., channel] = image[..., channel] * (1 - 0.8 * worn) + paint * 0.8 * worn
    layer[:] = 0
    for _ in range(14):
        centre = tuple(int(c) for c in rng.uniform((0, 0), (width, height)))
        radius = _px(rng.uniform(0.5, 2.5), texel)
        start = rng.uniform(0, 360)
        cv2.ellipse(layer, centre, (radius, radius), 0, start, start + rng.uniform(15, 70), 255, _px(0.04, texel), cv2.LINE_AA)
    tyre = layer.astype(np.float32) / 255.0 * 0.35 * _sigmoid(2 * fractal_noise(rng, height, width, texel, 0.5))
    image[:] = (image * (1 - tyre[..., None])).astype(np.uint8)


def _write(rng: np.random.Generator, image: np.ndarray, box: tuple[float, float, float, float], ink: tuple) -> None:
    """A random word that fills the box (x0, y0, x1, y1)."""
    word, font = str(rng.choice(_WORDS)), int(rng.choice(_FONTS))
    x0, y0, x1, y1 = box
    (w, h), _ = cv2.getTextSize(word, font, 1.0, 2)
    scale = min((x1 - x0) / w, (y1 - y0) / (h * 1.1))
    if scale * h < 3:
        return
    thickness = max(1, int(round(scale * 2.5)))
    cv2.putText(image, word, (int(x0), int(y0 + (y1 - y0 + h * scale) / 2)), font, scale, tuple(ink), thickness, cv2.LINE_AA)


def _small_print(
    rng: np.random.Generator, image: np.ndarray, x: float, y: float, width: float, height: float, ink: tuple
) -> None:
    """A row of dashes that reads as text from afar."""
    end, thickness = x + width, max(1, int(height))
    while x < end:
        step = rng.uniform(1.5, 6.0) * height
        cv2.line(image, (int(x), int(y)), (int(min(x + step, end)), int(y)), tuple(ink), thickness)
        x += step + height


def _bars(rng: np.random.Generator, image: np.ndarray, x: float, y: float, width: float, height: float) -> None:
    """A bar code."""
    end, step = x + width, max(1.0, width / 60)
    while x < end:
        thick = step * int(rng.integers(1, 4))
        cv2.rectangle(image, (int(x), int(y)), (int(x + thick) - 1, int(y + height)), (20, 20, 20), -1)
        x += thick + step * int(rng.integers(1, 4))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Procedural textures with the statistics of photographs.

A texture is painted on a `Canvas`, whose size is in texels and whose lengths are in metres, so that a brick is as large as a
brick at any resolution. Surfaces are built on `fractal_noise`, whose octaves carry equal energy: the 1/f amplitude spectrum of
natural images, which gives an aligner gradients at every scale. Colours are RGB in 0..1, gamma encoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Colour = Sequence[float]

WORDS = (
    *("EXIT", "DANGER", "STORE", "LOADING", "GATE", "PUMP", "NORTH", "FRAGILE", "NOTICE"),
    *("MAP", "CONCERT", "HARBOUR", "SUMMER", "VOLT", "LAB", "ROBOTS", "COFFEE", "PLAN"),
)
FONTS = (cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SIMPLEX)
DARK, LIGHT = (0.09, 0.09, 0.11), (0.92, 0.91, 0.88)


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], texel: float, largest: float = 2.0, persistence: float = 1.0
) -> np.ndarray:
    """Sum of octaves of noise: float32 [H, W], zero mean, unit variance.

    Args:
        rng: Source of the noise.
        shape: Rows and columns.
        texel: Size of a texel (m).
        largest: Longest wavelength (m); the shortest is a texel.
        persistence: Amplitude of an octave relative to the next larger one; 1 gives the 1/f amplitude spectrum of photographs
            (equal energy per octave), smaller values are smoother.
    """
    # From the coarsest grid to the finest, each enlarged to the next: an octave costs as much as all coarser ones together.
    sizes = [shape]
    while 2 * texel * 2 ** (len(sizes) - 1) < largest and max(sizes[-1]) > 2 or len(sizes) == 1:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    total = rng.standard_normal(sizes[-1], np.float32)
    for rows, columns in sizes[-2::-1]:
        total = cv2.resize(total, (columns, rows), interpolation=cv2.INTER_CUBIC)
        # Enlarging loses a part of the variance, which is made up for here to keep octaves equal.
        total = total * np.float32(1.1 / persistence) + rng.standard_normal((rows, columns), np.float32)
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-values))


class Canvas:
    """A texture while it is painted.

    Places are shares of its width and height, from the upper left corner; thicknesses are metres.

    Attributes:
        image: uint8 [H, W, 3].
        rng: Source of all chance.
        texel: Size of a texel (m).
    """

    def __init__(self, rng: np.random.Generator, rows: int, columns: int, texel: float) -> None:
        self.rng, self.texel, self.shape = rng, texel, (rows, columns)
        self.image = np.zeros((rows, columns, 3), np.uint8)

    @property
    def area(self) -> float:
        """Square metres."""
        return self.shape[0] * self.shape[1] * self.texel**2

    def px(self, metres: float) -> int:
        return max(1, int(round(metres / self.texel)))

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Metres from the upper edge [H, 1] and from the left one [1, W], float32."""
        rows, columns = self.shape
        return np.arange(rows, dtype=np.float32)[:, None] * self.texel, np.arange(columns, dtype=np.float32)[None] * self.texel

    def noise(self, largest: float = 2.0, persistence: float = 1.0) -> np.ndarray:
        return fractal_noise(self.rng, self.shape, self.texel, largest, persistence)

    def colour(self, low: float = 0.2, high: float = 0.9) -> np.ndarray:
        """A random colour of a random brightness."""
        return self.rng.uniform(low, high) * self.rng.uniform(0.45, 1.0, 3)

    def paint(
        self, shade: np.ndarray, colour: Colour, other: Colour | None = None, mix: np.ndarray | None = None, cover=None
    ) -> None:
        """Paint everything.

        Args:
            shade: Brightness [H, W].
            colour: At brightness 1, or [H, W, 3].
            other: A second colour, mixed in by `mix` [H, W] in 0..1.
            mix: See `other`.
            cover: How much of what was there is covered, [H, W] in 0..1; None: all.
        """
        colour = np.asarray(colour, np.float32)
        if mix is not None:
            colour = colour + (np.asarray(other, np.float32) - colour) * mix.astype(np.float32)[..., None]
        painted = colour * (255.0 * shade.astype(np.float32))[..., None]
        if cover is not None:
            painted = self.image + (painted - self.image) * np.asarray(cover, np.float32)[..., None]
        self.image[:] = np.clip(painted + 0.5, 0, 255)

    def darken(self, by: np.ndarray) -> None:
        """Take away shares [H, W] of the brightness."""
        self.paint(1.0 - by, self.image / np.float32(255.0))

    def cracks(self, per_square_metre: float, colour: Colour) -> None:
        """Random walks drawn as thin lines: cracks and scratches."""
        for _ in range(self.rng.poisson(per_square_metre * self.area)):
            count = int(self.rng.integers(4, 28))
            heading = self.rng.uniform(0, 2 * np.pi) + np.cumsum(self.rng.normal(size=count)) * 0.45
            steps = self.rng.uniform(0.01, 0.05, count) / self.texel * np.array((np.cos(heading), np.sin(heading)))
            points = self.rng.uniform(0, self.shape[::-1]) + np.cumsum(steps, 1).T
            tone, thickness = 255 * self.rng.uniform(0.6, 1.2) * np.array(colour), self.px(self.rng.uniform(0.001, 0.005))
            cv2.polylines(self.image, [(points * 16).astype(np.int32)], False, tone.tolist(), thickness, cv2.LINE_AA, 4)

    def stains(self, per_square_metre: float, strength: float = 0.25) -> None:
        """Soft blotches that darken or lighten, with ragged rims."""
        rows, columns = self.shape
        for _ in range(int(self.area * per_square_metre) + 1):
            size, x, y = self.px(self.rng.uniform(0.08, 0.6)), int(self.rng.integers(columns)), int(self.rng.integers(rows))
            part = slice(max(0, y - size), min(rows, y + size)), slice(max(0, x - size), min(columns, x + size))
            v, u = np.mgrid[part].astype(np.float32)
            if min(v.shape) < 4:
                continue
            radius = np.hypot(u - x, v - y) / size
            radius += 0.12 * fractal_noise(self.rng, v.shape, self.texel, size * self.texel)
            weight = _sigmoid((0.62 - radius) * 14.0)[..., None] * self.rng.uniform(-1.0, 0.5) * strength
            self.image[part] = np.clip(self.image[part] * (1.0 + weight), 0, 255)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour, line: float = 0.0) -> None:
        """A rectangle: filled, or its outline of a thickness."""
        rows, columns = self.shape
        corners = (int(x * columns), int(y * rows)), (int((x + width) * columns) - 1, int((y + height) * rows) - 1)
        cv2.rectangle(self.image, *corners, (255 * np.asarray(colour)).tolist(), self.px(line) if line else -1)

    def word(self, x: float, y: float, width: float, height: float, ink: Colour) -> None:
        """A random word that fills a rectangle."""
        text, font = str(self.rng.choice(WORDS)), int(self.rng.choice(FONTS))
        rows, columns = self.shape
        (w, h), _ = cv2.getTextSize(text, font, 1.0, 2)
        scale = min(width * columns / w, height * rows / (h * 1.1))
        if scale * h >= 3:
            place = int(x * columns), int((y + height / 2) * rows + h * scale / 2)
            ink, thickness = (255 * np.asarray(ink)).tolist(), max(1, int(round(scale * 2.5)))
            cv2.putText(self.image, text, place, font, scale, ink, thickness, cv2.LINE_AA)

    def print_lines(self, x: float, y: float, width: float, height: float, count: int, ink: Colour) -> None:
        """Rows of dashes that read as text from afar."""
        for line in range(count):
            at, end, tall = x, x + width * self.rng.uniform(0.5, 1.0), 0.5 * height / count
            while at < end:
                dash = self.rng.uniform(1.5, 6.0) * tall
                self.box(at, y + 2 * tall * line, min(dash, end - at), tall, ink)
                at += dash + tall

    def shape_at_random(self, colour: Colour) -> None:
        """A disc, a polygon or a line."""
        rows, columns = self.shape
        x, y = int(self.rng.uniform(0.05, 0.95) * columns), int(self.rng.uniform(0.1, 0.9) * rows)
        size, colour = max(2, int(min(self.shape) * self.rng.uniform(0.04, 0.24))), (255 * np.asarray(colour)).tolist()
        kind = int(self.rng.integers(3))
        if kind == 0:
            cv2.circle(self.image, (x, y), size, colour, -1 if self.rng.random() < 0.7 else max(2, size // 5), cv2.LINE_AA)
        elif kind == 1:
            corners = np.array([x, y]) + self.rng.uniform(-1.2, 1.2, (int(self.rng.integers(3, 7)), 2)) * size
            cv2.fillPoly(self.image, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        else:
            end = self.rng.uniform((0, 0), (columns, rows)).astype(int).tolist()
            cv2.line(self.image, (x, y), end, colour, max(1, size // 6), cv2.LINE_AA)


# ---- surfaces


def concrete(c: Canvas, colour: Colour = (0.52, 0.51, 0.49)) -> None:
    """Rough cast concrete with stains, pores and cracks."""
    warm = np.array(colour) * (1.12, 1.02, 0.86)
    c.paint(1.0 + 0.12 * c.noise(2.5), colour, warm, _sigmoid(c.noise(3.0, 0.7)))
    c.stains(0.7)
    c.cracks(0.8, (0.20, 0.19, 0.18))


def plaster(c: Canvas, colour: Colour = (0.78, 0.77, 0.72), lower: Colour | None = None, edge: float = 1.1) -> None:
    """Painted plaster: nearly blank, with the faint mottling and the few marks that real walls have.

    Args:
        c: The canvas.
        colour: Of the wall.
        lower: Of its lower part, up to a stripe; it is worn near the floor.
        edge: Height of the stripe (m).
    """
    c.paint(1.0 + (0.05 if lower else 0.035) * c.noise(3.0, 0.9), colour)
    c.stains(0.25, 0.10)
    c.cracks(0.25, (0.45, 0.44, 0.42))
    if lower:
        wear, height = c.noise(1.5), c.shape[0] * c.texel - c.grid()[0]
        bare = _sigmoid((wear - 1.0 - height / 0.35) * 4.0)
        c.paint(1.0 + 0.07 * wear, lower, (0.59, 0.59, 0.59), bare, height < edge + 0 * wear)
        c.paint(np.ones_like(wear), (0.16, 0.16, 0.16), cover=np.abs(height - edge) < 0.02 + 0 * wear)


def bricks(c: Canvas, colour: Colour = (0.56, 0.30, 0.22), length: float = 0.24, course: float = 0.075) -> None:
    """Running bond with uneven bricks: repetitive, each brick with its own tone and dirt."""
    noise, wobble, (y, x) = c.noise(), 0.0016 * c.noise(0.3, 0.6), c.grid()
    y, x = y + wobble, x + wobble[::-1]
    row = np.floor(y / course)
    x = x + (row % 2) * np.float32(length / 2)
    column = np.floor(x / length)
    inside = np.minimum.reduce([y - row * course, (row + 1) * course - y, x - column * length, (column + 1) * length - x])
    row, column = (np.clip(index, 0, None).astype(np.int32) for index in (row, column))
    tones = c.rng.normal(1.0, 0.16, (row.max() + 1, column.max() + 1)), c.rng.random((row.max() + 1, column.max() + 1))
    shade, hue = (values.astype(np.float32)[row, column] for values in tones)
    c.paint(1.0 + 0.16 * noise, (0.60, 0.58, 0.54))
    body = _sigmoid((inside - 0.0055) * (2.0 / max(c.texel, 0.002)))
    c.paint(shade * (1.0 + 0.15 * noise), colour, np.array(colour) * (0.82, 1.15, 1.35), hue, body)
    c.stains(0.5, 0.3)


def tiles(
    c: Canvas, size: float = 0.3, colours: Sequence[Colour] = ((0.62, 0.60, 0.56),), spread: float = 0.05, grain: float = 0.11
) -> None:
    """Square tiles, chequered when two colours are given, with dirt that ignores the joints."""
    y, x = c.grid()
    i, j = (np.floor(at / size).astype(np.int32) for at in (y, x))
    shade = c.rng.normal(1.0, spread, (i.max() + 1, j.max() + 1)).astype(np.float32)[i, j]
    c.paint(shade * (1.0 + grain * c.noise(2.5)), np.array(colours, np.float32)[(i + j) % len(colours)])
    gap = np.minimum(*(np.minimum(at - index * size, (index + 1) * size - at) for at, index in ((y, i), (x, j))))
    c.darken(0.62 * np.clip(1.2 - gap / (0.01 * size), 0, 1))
    c.stains(0.5)
    c.cracks(0.4, (0.25, 0.24, 0.22))


def planks(c: Canvas, board: float = 0.12, colour: Colour = (0.55, 0.40, 0.25)) -> None:
    """Wooden boards along the rows, with grain and knots."""
    rows, columns = c.shape
    y = c.grid()[0][:, 0]
    index = (y / board).astype(np.int32)
    offset = y - index * board
    grain = fractal_noise(c.rng, (rows, max(8, columns // 12)), c.texel, 0.25, 0.95)
    grain = cv2.resize(grain, (columns, rows), interpolation=cv2.INTER_LINEAR)
    # Each board takes its grain from elsewhere, else the pattern would run across the joints.
    grain = np.take_along_axis(grain, (np.arange(columns) + (index * 7919 % columns)[:, None]) % columns, axis=1)
    tone = c.rng.normal(1.0, 0.13, index.max() + 1)[index][:, None]
    gap = np.clip(1.2 - np.minimum(offset, board - offset) / 0.003, 0, 1)[:, None]
    shade = tone * (1.0 + 0.13 * grain + 0.08 * c.noise(1.5)) * (1 - 0.7 * gap)
    c.paint(shade, colour, np.array(colour) * (1.05, 0.92, 0.72), _sigmoid(grain))
    for _ in range(int(c.area * 2) + 1):
        centre, radius = c.rng.integers(0, (columns, rows)).tolist(), c.px(c.rng.uniform(0.006, 0.016))
        for ring, darkness in ((2.0, 0.75), (1.3, 0.5), (0.8, 0.3)):
            axes, tone = (int(radius * ring * 1.6) + 1, int(radius * ring) + 1), (255 * darkness * np.array(colour)).tolist()
            cv2.ellipse(c.image, centre, axes, 0, 0, 360, tone, max(1, radius // 3), cv2.LINE_AA)


def metal(c: Canvas, colour: Colour = (0.45, 0.50, 0.55), pitch: float = 0.0) -> None:
    """Painted sheet metal with scratches and rust; corrugated along the rows when pitch (m) is given."""
    noise = c.noise(1.5)
    shade = 1.0 + 0.07 * noise
    if pitch:
        shade = shade * (0.82 + 0.26 * np.sin(c.grid()[0] * (2 * np.pi / pitch)))
    c.paint(shade, colour, (0.42, 0.25, 0.14), _sigmoid((noise + 0.5 * c.noise(0.8) - 1.9) * 4.0))
    c.cracks(2.5, (0.68, 0.67, 0.65))


# ---- things


def crate(c: Canvas) -> None:
    """The side of a wooden crate: slats, a frame, a diagonal and a stencilled mark."""
    colour = c.rng.uniform((0.50, 0.40, 0.28), (0.68, 0.50, 0.38))
    planks(c, c.rng.uniform(0.09, 0.14), colour)
    slats, (rows, columns), rim = c.image.copy(), c.shape, c.px(0.07)
    mask = np.zeros(c.shape, np.uint8)
    if c.rng.random() < 0.6:
        cv2.line(mask, (0, rows), (columns, 0), 255, rim)
    cv2.rectangle(mask, (0, 0), (columns - 1, rows - 1), 255, 2 * rim)
    planks(c, 0.07, colour * 1.12)
    shadow = cv2.GaussianBlur(mask, (0, 0), 0.012 / c.texel + 0.3) / np.float32(255)
    np.copyto(c.image, (slats * (1 - 0.55 * shadow[..., None])).astype(np.uint8), where=mask[..., None] == 0)
    c.word(0.2, 0.35, 0.6, 0.27, (0.2, 0.16, 0.14))


def cardboard(c: Canvas) -> None:
    """The side of a cardboard box: tape, a label with print and bars, marks."""
    c.paint(1.0 + 0.06 * c.noise(0.6), c.rng.uniform((0.60, 0.47, 0.32), (0.72, 0.56, 0.40)))
    c.stains(1.0, 0.2)
    c.box(0, 0.4 if c.rng.random() < 0.3 else 0.0, 1, 0.12, np.array((0.66, 0.55, 0.4)) * c.rng.uniform(0.7, 1.1))
    width, height = c.rng.uniform((0.25, 0.25), (0.45, 0.4))
    x, y = c.rng.uniform((0.05, 0.2), (0.9 - width, 0.9 - height))
    c.box(x, y, width, height, LIGHT)
    c.word(x + width * 0.08, y + height * 0.08, width * 0.8, height * 0.35, DARK)
    for at in x + width * c.rng.uniform(0.1, 0.85, 22):
        c.box(at, y + 0.55 * height, width * c.rng.uniform(0.01, 0.04), 0.35 * height, DARK)
    if c.rng.random() < 0.6:
        c.word(0.1, 0.72, 0.8, 0.23, (0.47, 0.12, 0.1))


def goods(c: Canvas) -> None:
    """Fronts of small things on a shelf: binders or packets."""
    c.paint(1.0 + 0.06 * c.noise(0.3), c.colour())
    if c.rng.random() < 0.5:
        edges = np.unique([0, 1, *c.rng.random(max(2, int(c.shape[1] * c.texel / 0.06)))])
        for left, width in zip(edges, np.diff(edges)):
            c.box(left, 0, width, 1, c.colour())
            c.box(left, 0, width, 1, DARK, 0.002)
            c.box(left + 0.2 * width, 0.2, 0.6 * width, c.rng.uniform(0.15, 0.4), c.rng.uniform(0.8, 0.95, 3))
    else:
        c.box(0, 0.3, 1, 0.4, c.rng.uniform(0.1, 1, 3))
        c.word(0.05, 0.36, 0.9, 0.28, c.rng.uniform(0, 1, 3))


def poster(c: Canvas) -> None:
    """A printed poster: a photo-like gradient with shapes, a headline, small print."""
    slope = c.grid()[0] / (c.shape[0] * c.texel)
    mix = np.clip(slope + 0.25 * c.noise(0.7 * max(c.shape) * c.texel), 0, 1)
    c.paint(1.0 + 0.10 * c.noise(0.4), c.colour(0.4, 1.0), c.colour(0.4, 1.0), mix)
    for _ in range(int(c.rng.integers(4, 12))):
        c.shape_at_random(c.colour(0.1, 1.0))
    ink = DARK if c.rng.random() < 0.6 else LIGHT
    c.word(0.06, 0.03, 0.88, 0.17, ink)
    c.print_lines(0.08, 0.78, 0.8, 0.18, int(c.rng.integers(2, 6)), ink)
    c.box(0, 0, 1, 1, LIGHT if c.rng.random() < 0.7 else DARK, 0.012)


def notice_board(c: Canvas) -> None:
    """A cork board full of papers."""
    c.paint(1.0 + 0.14 * c.noise(0.05), (0.56, 0.44, 0.31))
    rows, columns = np.array(c.shape) * c.texel
    for _ in range(int(c.area * 9) + 3):
        width, height = c.rng.uniform((0.12, 0.2), (0.2, 0.3)) / (columns, rows)
        x, y = c.rng.uniform(0, (1 - width, 1 - height))
        c.box(x + 0.006, y + 0.006, width, height, (0.2, 0.16, 0.12))
        c.box(x, y, width, height, c.rng.uniform(0.75 if c.rng.random() < 0.6 else 0.35, 0.98, 3))
        c.word(x + 0.1 * width, y + 0.05 * height, 0.8 * width, 0.17 * height, DARK)
        c.print_lines(
            x + 0.1 * width, y + 0.3 * height, 0.8 * width, 0.6 * height, int(c.rng.integers(3, 10)), (0.24, 0.24, 0.27)
        )
        c.box(x + 0.46 * width, y + 0.01, 0.08 * width, 0.04 * height, c.colour())
    c.box(0, 0, 1, 1, (0.37, 0.27, 0.18), 0.03)


def door(c: Canvas) -> None:
    """A panelled door with handle, kick plate and sign."""
    colour = c.rng.uniform(0.25, 0.6, 3)
    c.paint(1.0 + 0.05 * c.noise(1.0), colour)
    for top in (0.08, 0.5):
        c.box(0.16, top, 0.68, 0.35, 0.55 * colour, 0.015)
        c.box(0.175, top + 0.008, 0.65, 0.335, np.minimum(1.4 * colour, 1), 0.006)
    c.box(0, 0.91, 1, 0.09, (0.59, 0.6, 0.61))
    c.box(0.87, 0.48, 0.06, 0.04, (0.8, 0.78, 0.72))
    c.box(0.3, 0.2, 0.4, 0.07, LIGHT)
    c.word(0.32, 0.205, 0.36, 0.06, (0.12, 0.16, 0.31))
    c.box(0, 0, 1, 1, (0.27, 0.26, 0.24), 0.05)


def window(c: Canvas) -> None:
    """A window on a bright yard: sky, trees, houses, glazing bars."""
    clouds, below = c.noise(0.9), c.grid()[0] / (c.shape[0] * c.texel)
    c.paint(1.0 + 0.05 * clouds, (0.72, 0.84, 0.98), (0.95, 0.96, 0.97), np.clip(below + 0.2 * clouds, 0, 1))
    c.paint(1.0 + 0.25 * c.noise(0.4), (0.30, 0.38, 0.24), cover=below > 0.55 + 0.06 * c.noise(0.8, 0.7)[:1])
    for _ in range(3):
        x, top, width = c.rng.uniform((0, 0.4, 0.15), (1, 0.65, 0.3))
        c.box(x, top, width, 1 - top, c.rng.uniform(0.4, 0.75, 3))
        for k in range(3):
            c.box(x + width * (0.12 + 0.3 * k), top + 0.06, 0.15 * width, 0.08, (0.24, 0.27, 0.33))
    for k in range(3):
        c.box(k / 3, 0, 1 / 3, 0.5, LIGHT, 0.03)
        c.box(k / 3, 0.5, 1 / 3, 0.5, LIGHT, 0.03)


def hazard_stripes(c: Canvas, top: float, bottom: float) -> None:
    """Paint yellow and black diagonals between two heights above the lower edge (m)."""
    y, x = c.grid()
    height, stripe = c.shape[0] * c.texel - y, ((x + y) / 0.1).astype(int) % 2
    shade = 0.8 + 0.2 * c.image.mean(-1) / 128.0
    c.paint(shade, (0.87, 0.7, 0.12), (0.12, 0.11, 0.1), stripe, (height < top) & (height >= bottom) & (x >= 0))


def floor_marks(c: Canvas) -> None:
    """Worn paint lines, arrows, numbers and tyre marks on a floor."""
    rows, columns = c.shape
    layer, rng = np.zeros(c.shape, np.uint8), c.rng
    for y in (int(0.18 * rows), int(0.82 * rows)):
        cv2.line(layer, (0, y), (columns, y), 255, c.px(0.08))
    for x, y in rng.uniform((0.1, 0.25), (0.9, 0.75), (6, 2)) * (columns, rows):
        end = int(x) + int(rng.choice((-1, 1))) * c.px(0.5), int(y)
        cv2.arrowedLine(layer, (int(x), int(y)), end, 255, c.px(0.06), cv2.LINE_AA, 0, 0.4)
    for x, y in rng.uniform((0, 0.1), (0.9, 0.95), (7, 2)) * (columns, rows):
        place, text = (int(x), int(y)), str(int(rng.integers(1, 60)))
        cv2.putText(layer, text, place, FONTS[0], 0.012 / c.texel, 255, c.px(0.05), cv2.LINE_AA)
    worn = layer / np.float32(255) * _sigmoid(2.5 * c.noise(1.0) + 1.5)
    c.paint(np.ones_like(worn), (0.84, 0.75, 0.27), cover=0.8 * worn)
    layer[:] = 0
    for x, y in rng.uniform((0, 0), (columns, rows), (14, 2)).astype(int).tolist():
        radius, start, turn = c.px(rng.uniform(0.5, 2.5)), rng.uniform(0, 360), rng.uniform(15, 70)
        cv2.ellipse(layer, (x, y), (radius, radius), 0, start, start + turn, 255, c.px(0.04), cv2.LINE_AA)
    c.darken(layer / np.float32(255) * 0.35 * _sigmoid(2 * c.noise(0.5)))

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A place made of textured flat pieces: two rooms of a workshop, 12 m x 8 m, with everything that stands in them.

The map frame is z-up with its origin on the floor between the two rooms: x in [-6, 6], y in [-4, 4], z in [0, 3],
metres. Like a real building the place has rich walls, repetitive ones (bricks, tiles) and almost blank ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from . import textures

LENGTH, WIDTH, HEIGHT = 12.0, 8.0, 3.0
_MIN_SHADOW_SIZE = 0.42
"""Boxes smaller than this (m) cast no shadow of their own; the eye does not miss it and baking is quicker."""

Painter = Callable[..., None]
"""A function of `textures` that paints a canvas."""


@dataclass(frozen=True)
class Quad:
    """A flat textured rectangle, seen from one side only.

    Attributes:
        origin: Its upper left corner as seen from the front (m, map frame).
        right: Its upper edge from there (m).
        down: Its left edge from there (m), at a right angle to `right`.
        texture: Index into `World.textures`; texel (0, 0) lies at the origin.
        emission: Radiance added to what it reflects, in units of the texture.
    """

    origin: np.ndarray
    right: np.ndarray
    down: np.ndarray
    texture: int
    emission: float = 0.0

    @property
    def normal(self) -> np.ndarray:
        """Unit normal towards the side it is seen from."""
        normal = np.cross(self.down, self.right)
        return normal / np.linalg.norm(normal)


@dataclass(frozen=True)
class Lamp:
    """A lamp.

    Attributes:
        position: In the map frame (m).
        colour: RGB intensity.
        extent: Half of what it is spread over (m), for soft shadows.
    """

    position: np.ndarray
    colour: np.ndarray
    extent: np.ndarray


@dataclass
class World:
    """A place. Without any lamp it is lit evenly.

    Attributes:
        quads: All surfaces.
        textures: uint8 [H, W, 3] RGB each, gamma encoded.
        blockers: Boxes that throw shadows: centre (3), half size (3), yaw.
        lamps: On the ceiling.
        daylight: Lamps that stand for windows.
    """

    quads: list[Quad] = field(default_factory=list)
    textures: list[np.ndarray] = field(default_factory=list)
    blockers: list[tuple[float, ...]] = field(default_factory=list)
    lamps: list[Lamp] = field(default_factory=list)
    daylight: list[Lamp] = field(default_factory=list)

    def add_texture(self, image: np.ndarray) -> int:
        """Store a texture, return its index. Raises ValueError unless it is uint8 [H, W, 3]."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"a texture is uint8 [H, W, 3], not {image.dtype} {image.shape}")
        self.textures.append(np.ascontiguousarray(image))
        return len(self.textures) - 1

    def add_quad(self, origin, right, down, texture: int, emission: float = 0.0) -> None:
        """Add a rectangle: see `Quad` for the arguments."""
        self.quads.append(Quad(np.array(origin, float), np.array(right, float), np.array(down, float), texture, emission))

    def add_box(
        self, centre, size, yaw: float, sides: int | list[int], top: int | None, bottom: int | None = None, shadow: bool = True
    ) -> None:
        """Add a box.

        Args:
            centre: x, y, z (m).
            size: x, y, z (m), before it is turned.
            yaw: How far it is turned about z.
            sides: One texture, or four: front (+x), left, back, right.
            top: Texture, or None to leave that face out.
            bottom: As `top`.
            shadow: Whether it throws one, unless it is small.
        """
        centre, half = np.array(centre, float), np.array(size, float) / 2
        forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        left, up = np.array([-forward[1], forward[0], 0.0]), np.array([0.0, 0.0, 2 * half[2]])
        for k, texture in enumerate([sides] * 4 if isinstance(sides, int) else sides):
            out, across = ((forward, left), (left, -forward), (-forward, -left), (-left, forward))[k]
            # Seen from outside, the right-hand direction of a side is its left-turned normal: up × out.
            edge = across * 2 * half[1 - k % 2]
            self.add_quad(centre + out * half[k % 2] - edge / 2 + up / 2, edge, -up, texture)
        across, along = left * 2 * half[1], forward * 2 * half[0]
        if top is not None:
            self.add_quad(centre + (up + along + across) / 2, -across, -along, top)
        if bottom is not None:
            self.add_quad(centre + (across - up - along) / 2, -across, along, bottom)
        if shadow and max(size) >= _MIN_SHADOW_SIZE:
            self.blockers.append((*centre, *half, yaw))


class _Builder:
    """Fills a world piece by piece; each piece has a texture of its own, or a shared one where things come in series."""

    def __init__(self, seed: int, texel: float) -> None:
        self.world = World()
        self.rng = np.random.default_rng(seed)
        self.texel = texel

    def texture(self, paint: Painter, height: float, width: float, texel: float | None = None, **options) -> int:
        """A new texture of a size (m)."""
        texel = texel or self.texel
        canvas = textures.Canvas(self.rng, max(8, round(height / texel)), max(8, round(width / texel)), texel)
        paint(canvas, **options)
        return self.world.add_texture(canvas.image)

    def fine(self, size: float) -> float:
        """Texel for a thing of this size: small things are seen from near."""
        return min(self.texel, max(self.texel / 2, size * self.texel / 3))

    def jitter(self, most: float) -> float:
        return self.rng.uniform(-most, most)

    # ---- the shell

    def shell(self) -> None:
        world, (x, y) = self.world, (LENGTH / 2, WIDTH / 2)
        world.add_quad((-x, y, 0), (LENGTH, 0, 0), (0, -WIDTH, 0), self.texture(_ground, WIDTH, LENGTH))
        panels = {"size": 0.62, "colours": ((0.76, 0.76, 0.74),), "spread": 0.02, "grain": 0.05}
        ceiling = self.texture(textures.tiles, WIDTH, LENGTH, self.texel * 2, **panels)
        world.add_quad((-x, -y, HEIGHT), (LENGTH, 0, 0), (0, WIDTH, 0), ceiling)
        blue, green = ((0.36, 0.42, 0.50), (0.80, 0.79, 0.76)), ((0.33, 0.43, 0.38), (0.80, 0.77, 0.68))
        for start, right, paint, options in (
            ((-x, y), (x, 0), textures.bricks, {}),
            ((0, y), (x, 0), textures.plaster, {"lower": blue[0], "colour": blue[1]}),
            ((0, -y), (-x, 0), textures.plaster, {"lower": green[0], "colour": green[1]}),
            ((x, -y), (-x, 0), textures.tiles, {"size": 0.2, "colours": ((0.72, 0.74, 0.72),), "spread": 0.04}),
            ((-x, -y), (0, WIDTH), textures.concrete, {}),
            ((x, y), (0, -WIDTH), textures.plaster, {}),
        ):
            texture = self.texture(paint, HEIGHT, float(np.hypot(*right)), **options)
            world.add_quad((*start, HEIGHT), (*right, 0), (0, 0, -HEIGHT), texture)
        for sign in (-1, 1):
            ends = [self.texture(textures.concrete, HEIGHT, 0.25) for _ in range(2)]
            front = self.texture(textures.bricks, HEIGHT, 2.0, colour=(0.62, 0.55, 0.47))
            back = self.texture(textures.plaster, HEIGHT, 2.0, colour=(0.70, 0.74, 0.77))
            faces = [front, ends[0], back, ends[1]]
            world.add_box((0, sign * (y - 1), HEIGHT / 2), (0.25, 2.0, HEIGHT), 0.0, faces, None)
        lintel, under = (self.texture(textures.concrete, height, WIDTH - 4) for height in (0.4, 0.3))
        world.add_box((0, 0, HEIGHT - 0.2), (0.3, WIDTH - 4, 0.4), 0.0, lintel, None, under)

    def ceiling_things(self) -> None:
        """Lamps and pipes, which throw no shadow."""
        world = self.world
        glow = world.add_texture(np.full((16, 16, 3), 250, np.uint8))
        housing = self.texture(textures.metal, 0.1, 1.3, colour=(0.72, 0.72, 0.70))
        warm, extent = np.array([1.0, 0.95, 0.86]), np.array([0.55, 0.1, 0.0])
        for x in (-4.4, -1.7, 1.7, 4.4):
            for y in (-2.0, 2.0):
                world.add_box((x, y, HEIGHT - 0.05), (1.3, 0.3, 0.1), 0.0, housing, None, housing, shadow=False)
                world.add_quad((x - 0.6, y - 0.12, HEIGHT - 0.102), (1.2, 0, 0), (0, 0.24, 0), glow, 4.0)
                world.lamps.append(Lamp(np.array([x, y, HEIGHT - 0.14]), warm, extent))
        pipe = self.texture(textures.metal, 0.12, LENGTH, colour=(0.62, 0.60, 0.52))
        for y, z in ((3.3, 2.8), (-3.5, 2.7)):
            world.add_box((0, y, z), (LENGTH - 0.02, 0.12, 0.12), 0.0, pipe, pipe, pipe, shadow=False)

    # ---- things on walls

    def hang(self, wall: str, along: float, bottom: float, width: float, height: float, paint: Painter, **options) -> None:
        """Hang a thing a little before a wall; along: its centre's coordinate along the wall."""
        outward, right = _WALLS[wall]
        texture = self.texture(paint, height, width, self.fine(max(width, height)), **options)
        corner = _on_wall(wall, along, 0.012) - right * width / 2 + (0, 0, bottom + height)
        self.world.add_quad(corner, right * width, (0, 0, -height), texture)

    def wall_things(self) -> None:
        rng, world = self.rng, self.world
        for wall, along in (("south", -3.2 + self.jitter(0.5)), ("east", 1.4 + self.jitter(0.4))):
            self.hang(wall, along, 1.25, 1.8, 1.2, textures.window)
            extent = 0.8 * np.abs(_WALLS[wall][1]) + (0, 0, 0.5)
            world.daylight.append(Lamp(_on_wall(wall, along, 0.25) + (0, 0, 1.85), np.array([0.82, 0.92, 1.0]), extent))
        for wall, along, bottom, width, height, paint, options in _HUNG:
            self.hang(wall, along + self.jitter(0.3), bottom, width, height, paint, **options)
        for wall, places in _POSTERS.items():
            for along in places:
                if rng.random() < 0.85:
                    width = rng.uniform(0.45, 0.95)
                    size = width, width * rng.uniform(1.0, 1.45)
                    self.hang(wall, along + self.jitter(0.15), rng.uniform(1.0, 1.5), *size, textures.poster)
        for wall, along in (("north", -0.35), ("south", -0.45), ("east", 3.75), ("west", -3.7), ("north", 2.2), ("south", 2.2)):
            self.hang(wall, along, rng.uniform(1.1, 1.5), 0.25, 0.25, textures.goods)
        for wall, along, length in (("south", -2.0, 1.4), ("east", 0.6, 1.2), ("north", 5.0, 1.0)):
            ribs = self.texture(textures.metal, length, 0.55, colour=(0.80, 0.79, 0.75), pitch=0.06)
            world.textures[ribs] = np.ascontiguousarray(np.rot90(world.textures[ribs]))
            size = np.abs(_WALLS[wall][1]) * length + np.abs(_WALLS[wall][0]) * 0.1 + (0, 0, 0.55)
            world.add_box(_on_wall(wall, along, 0.07) + (0, 0, 0.42), size, 0.0, ribs, ribs)
        for x in (-0.14, 0.14):
            for y in (-3.2, 2.9):
                width = rng.uniform(0.6, 0.9)
                texture = self.texture(textures.poster, 1.0, width, self.fine(1.0))
                step = width / 2 if x < 0 else -width / 2
                world.add_quad((x, y + step, 2.1), (0, -2 * step, 0), (0, 0, -1.0), texture)

    # ---- things that stand on the floor

    def series(self) -> None:
        """Textures shared by crates, boxes and shelves: series of equal goods make a place ambiguous."""
        fine = self.fine(0.8)
        self.crates = [self.texture(textures.crate, 0.8, 0.8, fine) for _ in range(6)]
        self.boxes = [self.texture(textures.cardboard, 0.4, 0.5, self.fine(0.4)) for _ in range(10)]
        self.goods = [self.texture(textures.goods, 0.3, 0.4, self.fine(0.3)) for _ in range(14)]
        self.wood = [self.texture(textures.planks, 0.5, 1.6, fine) for _ in range(3)]
        steel, drums = ((0.36, 0.42, 0.52), (0.55, 0.30, 0.20), (0.62, 0.62, 0.60)), ((0.26, 0.36, 0.52), (0.30, 0.42, 0.33))
        self.steel = [self.texture(textures.metal, 1.0, 1.0, fine, colour=colour) for colour in steel]
        self.drums = [self.texture(textures.metal, 0.88, 0.23, fine, colour=colour, pitch=0.29) for colour in drums]

    def pick(self, options: list[int]) -> int:
        return options[int(self.rng.integers(len(options)))]

    def thing(self, place, size, yaw: float, options: list[int]) -> None:
        """A box that stands on a place, with sides and top of a series."""
        faces = [self.pick(options) for _ in range(5)]
        self.world.add_box(np.add(place, (0, 0, size[2] / 2)), size, yaw, faces[:4], faces[4])

    def shelf(self, x: float, y: float, yaw: float, length: float = 1.7, backed: bool = True) -> None:
        """A rack whose long side runs along its own y axis and whose open side looks along its own x axis."""
        rng, world, depth, height, at = self.rng, self.world, 0.45, 1.9, _turned(x, y, yaw)
        post, plank = self.pick(self.steel), self.pick(self.wood)
        for side in (-1, 1):
            world.add_box(at(0, side * (length / 2 - 0.02), height / 2), (depth, 0.04, height), yaw, post, post)
        if backed:
            world.add_box(at(-depth / 2 + 0.01, 0, height / 2), (0.02, length - 0.08, height), yaw, post, post)
        for level in np.linspace(0.12, height - 0.3, 4):
            world.add_box(at(0, 0, level), (depth, length - 0.08, 0.03), yaw, plank, plank, plank)
            along = -length / 2 + 0.08
            while along < length / 2 - 0.2:
                width, tall = rng.uniform((0.16, 0.14), (0.42, 0.38))
                if along + width > length / 2 - 0.06:
                    break
                if rng.random() < 0.88:
                    place = at(rng.uniform(-0.03, 0.05), along + width / 2, level + 0.015)
                    kind = self.goods if rng.random() < 0.6 else self.boxes
                    self.thing(place, (depth * 0.7, width, tall), yaw + self.jitter(0.06), kind)
                along += width + rng.uniform(0.01, 0.1)

    def crate(self, x: float, y: float, z: float, size: float, turn: float) -> None:
        self.thing((x, y, z), (size, size, size), self.jitter(turn), self.crates)

    def stack(self, x: float, y: float, count: int) -> None:
        """Cardboard boxes, one on the other."""
        z, size = 0.0, self.rng.uniform(0.45, 0.6)
        for _ in range(count):
            tall = self.rng.uniform(0.25, 0.42)
            place = x + self.jitter(0.04), y + self.jitter(0.04), z
            self.thing(place, (size, size * 0.8, tall), self.jitter(0.35), self.boxes)
            z, size = z + tall, size * self.rng.uniform(0.8, 0.98)

    def table(self, x: float, y: float, yaw: float) -> None:
        wood, at, rng = self.pick(self.wood), _turned(x, y, yaw), self.rng
        self.world.add_box(at(0, 0, 0.74), (0.7, 1.5, 0.05), yaw, wood, wood, wood)
        for along in (-0.7, 0.7):
            for across in (-0.3, 0.3):
                self.world.add_box(at(across, along, 0.36), (0.06, 0.06, 0.72), yaw, self.steel[2], None)
        for along in (-0.5, -0.1, 0.35):
            self.thing(at(0, along, 0.765), rng.uniform((0.2, 0.2, 0.12), (0.4, 0.35, 0.4)), yaw + self.jitter(0.5), self.goods)

    def barrel(self, x: float, y: float) -> None:
        """An eight-sided drum."""
        radius, height, texture, lid = 0.29, 0.88, self.pick(self.drums), self.pick(self.steel[:2])
        corners = [np.array([x + radius * np.cos(a), y + radius * np.sin(a), height]) for a in np.arange(8) * np.pi / 4 + 0.3]
        for a, b in zip(corners, corners[1:] + corners[:1]):
            self.world.add_quad(a, b - a, (0, 0, -height), texture)
        side = radius * 1.3
        self.world.add_quad((x - side / 2, y + side / 2, height), (side, 0, 0), (0, -side, 0), lid)
        self.world.blockers.append((x, y, height / 2, radius * 0.65, radius * 0.65, height / 2, 0.0))

    def pillar(self, x: float, y: float, size: float = 0.36) -> None:
        faces = [self.texture(_striped, HEIGHT, size) for _ in range(4)]
        self.world.add_box((x, y, HEIGHT / 2), (size, size, HEIGHT), 0.0, faces, None)
        for sign in (-1, 1):
            sheet = self.texture(textures.goods, 0.3, 0.24, self.fine(0.3))
            corner = (x - sign * 0.12, y - sign * (size / 2 + 0.008), 1.85)
            self.world.add_quad(corner, (sign * 0.24, 0, 0), (0, 0, -0.3), sheet)

    def floor_things(self) -> None:
        """Two islands the drives go round, and goods along the walls; a ring around each island stays free."""
        rng, wood = self.rng, self.pick(self.wood)
        self.shelf(-2.95, 0.0, 0.0, 1.5, backed=False)
        self.crate(-3.1, 1.1 + rng.uniform(-0.05, 0.1), 0.0, 0.5, 0.4)
        self.stack(-2.9, -1.05, 2)
        self.world.add_box((3.0, 0.0, 0.07), (1.2, 0.9, 0.14), self.jitter(0.2), wood, wood)
        for x, y, z, size, turn in ((2.75, 0.05, 0.14, 0.55, 0.15), (3.32, -0.02, 0.14, 0.5, 0.2), (2.9, 0.02, 0.69, 0.45, 0.5)):
            self.crate(x, y, z, size, turn)
        self.pillar(3.15, 0.85)
        for x, y, yaw, length in _SHELVES:
            self.shelf(x, y, yaw, length)
        for x, y, yaw in ((-3.6, 3.55, -np.pi / 2), (5.5, -0.9, np.pi)):
            self.table(x, y, yaw)
        for x, y, size in ((0.65, 3.5, 0.7), (5.4, -3.5, 0.75), (-0.6, -3.55, 0.6), (-5.5, 1.55, 0.55)):
            self.crate(x + self.jitter(0.1), y + self.jitter(0.1), 0.0, size, 0.3)
            if rng.random() < 0.7:
                self.crate(x, y, size, size * 0.7, 0.6)
        for x, y in ((-2.0, 3.55), (2.4, -3.6), (-4.6, -3.5), (5.55, 0.2), (-0.65, 3.5)):
            if rng.random() < 0.85:
                self.stack(x, y, int(rng.integers(2, 5)))
        for x, y in ((0.6, -3.6), (1.25, -3.62), (-5.6, -1.35), (3.6, 3.6)):
            if rng.random() < 0.85:
                self.barrel(x, y)


_WALLS = {
    "north": (np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])),
    "south": (np.array([0.0, -1.0, 0.0]), np.array([-1.0, 0.0, 0.0])),
    "west": (np.array([-1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])),
    "east": (np.array([1.0, 0.0, 0.0]), np.array([0.0, -1.0, 0.0])),
}
"""Directions out of the room, and to the right for whoever looks at the wall."""
_HUNG = (
    ("north", -1.1, 0.0, 1.0, 2.1, textures.door, {}),
    ("east", -2.4, 0.0, 1.0, 2.1, textures.door, {}),
    ("west", 0.2, 0.0, 2.6, 2.5, textures.metal, {"pitch": 0.12, "colour": (0.40, 0.46, 0.50)}),
    ("north", 3.6, 0.9, 1.9, 1.1, textures.notice_board, {}),
    ("south", 3.3, 1.0, 1.5, 0.9, textures.notice_board, {}),
)
_POSTERS = {
    "north": (-4.9, -3.6, -2.4, 1.2, 5.3),
    "south": (-5.2, -1.4, 1.3, 5.2),
    "west": (-2.7, 2.8, -1.8),
    "east": (3.2, -0.6),
}
_SHELVES = (
    (-5.65, 2.9, 0.0, 1.7),
    (-5.65, -2.75, 0.0, 1.7),
    (5.65, 3.0, np.pi, 1.5),
    (1.9, 3.68, -np.pi / 2, 1.6),
    (4.3, -3.68, np.pi / 2, 1.6),
)


def _on_wall(wall: str, along: float, gap: float) -> np.ndarray:
    """The point on the floor in front of a wall (m, map frame)."""
    outward, right = _WALLS[wall]
    return outward * (np.abs(outward) @ (LENGTH / 2, WIDTH / 2, 0) - gap) + np.abs(right) * along


def _turned(x: float, y: float, yaw: float) -> Callable[[float, float, float], tuple[float, float, float]]:
    """Places in the map of a thing's own coordinates."""
    c, s = np.cos(yaw), np.sin(yaw)
    return lambda forward, left, z: (x + c * forward - s * left, y + s * forward + c * left, z)


def _ground(canvas: textures.Canvas) -> None:
    """One room has tiles: the floor alone tells the rooms apart."""
    textures.concrete(canvas, (0.50, 0.49, 0.47))
    rows, columns = canvas.shape
    half = textures.Canvas(canvas.rng, rows, columns - columns // 2, canvas.texel)
    textures.tiles(half, 0.4, ((0.52, 0.50, 0.46), (0.40, 0.40, 0.41)), 0.07)
    canvas.image[:, columns // 2 :] = half.image
    textures.floor_marks(canvas)


def _striped(canvas: textures.Canvas) -> None:
    textures.concrete(canvas, (0.60, 0.59, 0.56))
    textures.hazard_stripes(canvas, 1.3, 0.5)


def build_world(seed: int = 0, texel: float = 0.004) -> World:
    """The workshop.

    Args:
        seed: The same seed and texel give the same place, bit for bit; other seeds other textures and goods.
        texel: Size of a texel of walls and floor in metres (posters and goods get up to half of that). 0.004 is right for VGA
            images from a metre away; tests are quicker with 0.01.
    """
    builder = _Builder(seed, texel)
    builder.shell()
    builder.ceiling_things()
    builder.series()
    builder.wall_things()
    builder.floor_things()
    return builder.world


def repainted(world: World, share: float, seed: int = 0) -> World:
    """The same place after years: so large a share of all textures is turned upside down, floor and ceiling, too. What is left in
    its place tells where one is; most of what is to be seen does not."""
    turned = np.random.default_rng([seed, 29]).random(len(world.textures)) < share
    textures_ = [np.ascontiguousarray(t[::-1, ::-1]) if turn else t for t, turn in zip(world.textures, turned)]
    return replace(world, textures=textures_)

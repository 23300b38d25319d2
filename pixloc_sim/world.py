# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A place made of textured flat pieces: two rooms of a workshop, 12 m x 8 m, with everything that stands in them.

The map frame is z-up with its origin on the floor between the two rooms: x in [-6, 6], y in [-4, 4], z in [0, 3],
metres. Like a real building the place has rich walls, repetitive ones (bricks, tiles) and almost blank ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import textures

LENGTH, WIDTH, HEIGHT = 12.0, 8.0, 3.0
_MIN_SHADOW_SIZE = 0.42
"""Boxes smaller than this (m) cast no shadow of their own; the eye does not miss it and baking is quicker."""

TextureMaker = Callable[[np.random.Generator, int, int, float], np.ndarray]


@dataclass(frozen=True)
class Quad:
    """A flat textured rectangle, seen from one side only.

    origin: its upper left corner as seen from the front (m, map frame); right, down: its edges from there (m), at a
    right angle. texture: index into `World.textures`; texel (0, 0) lies at the origin. emission: radiance added to
    what it reflects, in units of the texture.
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
    """A lamp: position (m, map frame), RGB intensity, and the half extent over which it is spread (soft shadows)."""

    position: np.ndarray
    colour: np.ndarray
    extent: np.ndarray


@dataclass
class World:
    """Quads, their textures, boxes that throw shadows, lamps and windows.

    textures: list of uint8 [H, W, 3] RGB, gamma encoded. blockers: float64 [N, 7] = centre (3), half size (3), yaw.
    lamps: ceiling lamps. daylight: lamps that stand for windows. A world with no lamp at all is lit evenly.
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

    def add_box(self, centre, size, yaw: float, sides: int | list[int], top: int | None, bottom: int | None = None) -> None:
        """A box turned by yaw about z. centre, size: (x, y, z) m.

        sides: one texture, or four: front (+x), left, back, right. top, bottom: textures, or None to leave that face
        out.
        """
        centre, half = np.array(centre, float), np.array(size, float) / 2
        forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        left, up = np.array([-forward[1], forward[0], 0.0]), np.array([0.0, 0.0, 1.0])
        faces = [sides] * 4 if isinstance(sides, int) else sides
        axes = (
            (forward, left, half[0], half[1]),
            (left, -forward, half[1], half[0]),
            (-forward, -left, half[0], half[1]),
            (-left, forward, half[1], half[0]),
        )
        for (out, across, depth, breadth), texture in zip(axes, faces):
            # Seen from outside, the right-hand direction of a side is its left-turned normal: up × out.
            corner = centre + out * depth - across * breadth + up * half[2]
            self.add_quad(corner, across * 2 * breadth, -up * 2 * half[2], texture)
        if top is not None:
            self.add_quad(
                centre + up * half[2] + forward * half[0] + left * half[1], -left * 2 * half[1], -forward * 2 * half[0], top
            )
        if bottom is not None:
            self.add_quad(
                centre - up * half[2] - forward * half[0] + left * half[1], -left * 2 * half[1], forward * 2 * half[0], bottom
            )
        if max(size) >= _MIN_SHADOW_SIZE:
            self.blockers.append((*centre, *half, yaw))


class _Builder:
    """Fills a world piece by piece; one texture is made per piece, or shared where things come in series."""

    def __init__(self, seed: int, texel: float) -> None:
        self.world = World()
        self.rng = np.random.default_rng(seed)
        self.texel = texel

    def texture(self, maker: TextureMaker, height: float, width: float, texel: float | None = None, **options) -> int:
        texel = texel or self.texel
        rows, columns = max(8, int(round(height / texel))), max(8, int(round(width / texel)))
        return self.world.add_texture(maker(self.rng, rows, columns, texel, **options))

    def fine(self, size: float) -> float:
        """Texel for a thing of this size: small things are seen from near."""
        return min(self.texel, max(self.texel / 2, size * self.texel / 3))

    # ---- the shell

    def shell(self) -> None:
        rng, world, texel = self.rng, self.world, self.texel
        ground = textures.concrete(rng, int(WIDTH / texel), int(LENGTH / texel), texel, (0.50, 0.49, 0.47))
        half = ground.shape[1] // 2
        # One room has tiles: the floor alone tells the rooms apart.
        ground[:, half:] = textures.tiles(
            rng, ground.shape[0], ground.shape[1] - half, texel, 0.4, 0.008, ((0.52, 0.50, 0.46), (0.40, 0.40, 0.41)), 0.07
        )
        textures.floor_marks(rng, ground, texel)
        world.add_quad((-LENGTH / 2, WIDTH / 2, 0), (LENGTH, 0, 0), (0, -WIDTH, 0), world.add_texture(ground))
        ceiling = self.texture(
            textures.tiles,
            WIDTH,
            LENGTH,
            texel * 2,
            size=0.62,
            joint=0.02,
            colours=((0.76, 0.76, 0.74),),
            spread=0.02,
            grain=0.05,
        )
        world.add_quad((-LENGTH / 2, -WIDTH / 2, HEIGHT), (LENGTH, 0, 0), (0, WIDTH, 0), ceiling)
        green, cream = (0.33, 0.43, 0.38), (0.80, 0.77, 0.68)
        north_west = self.texture(textures.bricks, HEIGHT, LENGTH / 2)
        north_east = self.texture(textures.dado, HEIGHT, LENGTH / 2, lower=(0.36, 0.42, 0.50), upper=(0.80, 0.79, 0.76))
        south_west = self.texture(textures.dado, HEIGHT, LENGTH / 2, lower=green, upper=cream)
        south_east = self.texture(
            textures.tiles, HEIGHT, LENGTH / 2, size=0.2, joint=0.005, colours=((0.72, 0.74, 0.72),), spread=0.04
        )
        west = self.texture(textures.concrete, HEIGHT, WIDTH)
        east = self.texture(textures.plaster, HEIGHT, WIDTH)
        x, y, down = LENGTH / 2, WIDTH / 2, (0, 0, -HEIGHT)
        world.add_quad((-x, y, HEIGHT), (x, 0, 0), down, north_west)
        world.add_quad((0, y, HEIGHT), (x, 0, 0), down, north_east)
        world.add_quad((x, -y, HEIGHT), (-x, 0, 0), down, south_east)
        world.add_quad((0, -y, HEIGHT), (-x, 0, 0), down, south_west)
        world.add_quad((-x, -y, HEIGHT), (0, WIDTH, 0), down, west)
        world.add_quad((x, y, HEIGHT), (0, -WIDTH, 0), down, east)
        for sign in (-1, 1):
            length = 2.0
            faces = [
                self.texture(textures.bricks, HEIGHT, length, colour=(0.62, 0.55, 0.47)),
                self.texture(textures.concrete, HEIGHT, 0.25),
                self.texture(textures.plaster, HEIGHT, length, colour=(0.70, 0.74, 0.77)),
                self.texture(textures.concrete, HEIGHT, 0.25),
            ]
            world.add_box((0, sign * (y - length / 2), HEIGHT / 2), (0.25, length, HEIGHT), 0.0, faces, None)
        lintel = self.texture(textures.concrete, 0.4, WIDTH - 4)
        world.add_box(
            (0, 0, HEIGHT - 0.2), (0.3, WIDTH - 4, 0.4), 0.0, lintel, None, self.texture(textures.concrete, 0.3, WIDTH - 4)
        )

    def ceiling_lamps(self) -> None:
        glow = self.world.add_texture(np.full((16, 16, 3), 250, np.uint8))
        housing = self.texture(textures.metal, 0.1, 1.3, colour=(0.72, 0.72, 0.70))
        for x in (-4.4, -1.7, 1.7, 4.4):
            for y in (-2.0, 2.0):
                self.world.add_box((x, y, HEIGHT - 0.05), (1.3, 0.3, 0.1), 0.0, housing, None, housing)
                self.world.blockers.pop()
                self.world.add_quad((x - 0.6, y - 0.12, HEIGHT - 0.102), (1.2, 0, 0), (0, 0.24, 0), glow, 4.0)
                self.world.lamps.append(
                    Lamp(np.array([x, y, HEIGHT - 0.14]), np.array([1.0, 0.95, 0.86]), np.array([0.55, 0.1, 0.0]))
                )
        pipe = self.texture(textures.metal, 0.12, LENGTH, colour=(0.62, 0.60, 0.52))
        for y, z in ((3.3, 2.8), (-3.5, 2.7)):
            self.world.add_box((0, y, z), (LENGTH - 0.02, 0.12, 0.12), 0.0, pipe, pipe, pipe)
            self.world.blockers.pop()

    # ---- things on walls

    def on_wall(
        self, wall: str, along: float, bottom: float, width: float, height: float, texture: int, gap: float = 0.012
    ) -> None:
        """Hang a thing: along = its centre's coordinate along the wall, gap = its distance from the wall (m)."""
        x, y = LENGTH / 2 - gap, WIDTH / 2 - gap
        top, down = bottom + height, (0, 0, -height)
        if wall == "north":
            self.world.add_quad((along - width / 2, y, top), (width, 0, 0), down, texture)
        elif wall == "south":
            self.world.add_quad((along + width / 2, -y, top), (-width, 0, 0), down, texture)
        elif wall == "west":
            self.world.add_quad((-x, along - width / 2, top), (0, width, 0), down, texture)
        else:
            self.world.add_quad((x, along + width / 2, top), (0, -width, 0), down, texture)

    def hang(self, wall: str, along: float, bottom: float, width: float, height: float, maker: TextureMaker, **options) -> None:
        self.on_wall(
            wall, along, bottom, width, height, self.texture(maker, height, width, self.fine(max(width, height)), **options)
        )

    def wall_things(self) -> None:
        rng = self.rng
        for wall, along in (("south", -3.2 + rng.uniform(-0.5, 0.5)), ("east", 1.4 + rng.uniform(-0.4, 0.4))):
            self.hang(wall, along, 1.25, 1.8, 1.2, textures.window)
            inward = np.array([0.0, 0.25, 0.0]) if wall == "south" else np.array([-0.25, 0.0, 0.0])
            centre = np.array([along, -WIDTH / 2, 1.85]) if wall == "south" else np.array([LENGTH / 2, along, 1.85])
            extent = np.array([0.8, 0.0, 0.5]) if wall == "south" else np.array([0.0, 0.8, 0.5])
            self.world.daylight.append(Lamp(centre + inward, np.array([0.82, 0.92, 1.0]), extent))
        self.hang("north", -1.1 + rng.uniform(-0.3, 0.2), 0.0, 1.0, 2.1, textures.door)
        self.hang("east", -2.4 + rng.uniform(-0.3, 0.3), 0.0, 1.0, 2.1, textures.door)
        self.hang("west", 0.2 + rng.uniform(-0.3, 0.3), 0.0, 2.6, 2.5, textures.metal, pitch=0.12, colour=(0.40, 0.46, 0.50))
        self.hang("north", 3.6 + rng.uniform(-0.3, 0.3), 0.9, 1.9, 1.1, textures.notice_board)
        self.hang("south", 3.3 + rng.uniform(-0.3, 0.3), 1.0, 1.5, 0.9, textures.notice_board)
        slots = [
            ("north", -4.9),
            ("north", -3.6),
            ("north", -2.4),
            ("north", 1.2),
            ("north", 5.3),
            ("south", -5.2),
            ("south", -1.4),
            ("south", 1.3),
            ("south", 5.2),
            ("west", -2.7),
            ("west", 2.8),
            ("west", -1.8),
            ("east", 3.2),
            ("east", -0.6),
        ]
        for wall, along in slots:
            if rng.random() < 0.85:
                width = rng.uniform(0.45, 0.95)
                self.hang(
                    wall,
                    along + rng.uniform(-0.15, 0.15),
                    rng.uniform(1.0, 1.5),
                    width,
                    width * rng.uniform(1.0, 1.45),
                    textures.poster,
                )
        for wall, along in (("north", -0.35), ("south", -0.45), ("east", 3.75), ("west", -3.7), ("north", 2.2), ("south", 2.2)):
            self.hang(wall, along, rng.uniform(1.1, 1.5), 0.25, 0.25, textures.goods)
        for wall, along, length in (("south", -2.0, 1.4), ("east", 0.6, 1.2), ("north", 5.0, 1.0)):
            self.radiator(wall, along, length)
        for x in (-0.14, 0.14):
            for y in (-3.2, 2.9):
                width = rng.uniform(0.6, 0.9)
                texture = self.texture(textures.poster, 1.0, width, self.fine(1.0))
                step = width / 2 if x < 0 else -width / 2
                self.world.add_quad((x, y + step, 2.1), (0, -2 * step, 0), (0, 0, -1.0), texture)

    def radiator(self, wall: str, along: float, length: float) -> None:
        texture = np.ascontiguousarray(
            np.rot90(
                textures.metal(self.rng, int(length / self.texel), int(0.55 / self.texel), self.texel, (0.80, 0.79, 0.75), 0.06)
            )
        )
        index = self.world.add_texture(texture)
        distance = 0.07
        centre = {
            "south": (along, -WIDTH / 2 + distance, 0.42),
            "north": (along, WIDTH / 2 - distance, 0.42),
            "east": (LENGTH / 2 - distance, along, 0.42),
        }[wall]
        size = (0.1, length, 0.55) if wall == "east" else (length, 0.1, 0.55)
        self.world.add_box(centre, size, 0.0, index, index)

    # ---- things that stand on the floor

    def series(self) -> None:
        """Textures shared by crates, boxes and shelves: series of equal goods make a place ambiguous."""
        fine = self.fine(0.8)
        self.crates = [self.texture(textures.crate_side, 0.8, 0.8, fine) for _ in range(6)]
        self.boxes = [self.texture(textures.cardboard, 0.4, 0.5, self.fine(0.4)) for _ in range(10)]
        self.goods = [self.texture(textures.goods, 0.3, 0.4, self.fine(0.3)) for _ in range(14)]
        self.wood = [self.texture(textures.planks, 0.5, 1.6, fine) for _ in range(3)]
        self.steel = [
            self.texture(textures.metal, 1.0, 1.0, fine, colour=c)
            for c in ((0.36, 0.42, 0.52), (0.55, 0.30, 0.20), (0.62, 0.62, 0.60))
        ]
        self.drums = [
            self.texture(textures.metal, 0.88, 0.23, fine, colour=c, pitch=0.29) for c in ((0.26, 0.36, 0.52), (0.30, 0.42, 0.33))
        ]

    def pick(self, options: list[int], count: int = 4) -> list[int]:
        return [options[int(i)] for i in self.rng.integers(0, len(options), count)]

    def shelf(
        self, x: float, y: float, yaw: float, length: float = 1.7, depth: float = 0.45, height: float = 1.9, backed: bool = True
    ) -> None:
        """A rack whose long side runs along its own y axis and whose open side looks along its own x axis."""
        rng, world = self.rng, self.world
        forward, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])

        def place(fx: float, fy: float, z: float) -> tuple[float, float, float]:
            p = np.array([x, y]) + forward * fx + left * fy
            return (p[0], p[1], z)

        post, plank = self.steel[int(rng.integers(3))], self.wood[int(rng.integers(3))]
        for side in (-1, 1):
            world.add_box(place(0, side * (length / 2 - 0.02), height / 2), (depth, 0.04, height), yaw, post, post)
        if backed:
            world.add_box(place(-depth / 2 + 0.01, 0, height / 2), (0.02, length - 0.08, height), yaw, post, post)
        levels = np.linspace(0.12, height - 0.3, 4)
        for level in levels:
            world.add_box(place(0, 0, level), (depth, length - 0.08, 0.03), yaw, plank, plank, plank)
            at = -length / 2 + 0.08
            while at < length / 2 - 0.2:
                width, tall = rng.uniform(0.16, 0.42), rng.uniform(0.14, 0.38)
                if at + width > length / 2 - 0.06:
                    break
                if rng.random() < 0.88:
                    faces = self.pick(self.goods if rng.random() < 0.6 else self.boxes)
                    world.add_box(
                        place(rng.uniform(-0.03, 0.05), at + width / 2, level + 0.015 + tall / 2),
                        (depth * 0.7, width, tall),
                        yaw + rng.uniform(-0.06, 0.06),
                        faces,
                        faces[0],
                    )
                at += width + rng.uniform(0.01, 0.1)

    def crate(self, x: float, y: float, z: float, size: float, yaw: float) -> None:
        faces = self.pick(self.crates, 5)
        self.world.add_box((x, y, z + size / 2), (size, size, size), yaw, faces[:4], faces[4])

    def stack(self, x: float, y: float, count: int) -> None:
        """Cardboard boxes, one on the other."""
        z, size = 0.0, self.rng.uniform(0.45, 0.6)
        for _ in range(count):
            faces, tall = self.pick(self.boxes, 5), self.rng.uniform(0.25, 0.42)
            self.world.add_box(
                (x + self.rng.uniform(-0.04, 0.04), y + self.rng.uniform(-0.04, 0.04), z + tall / 2),
                (size, size * 0.8, tall),
                self.rng.uniform(-0.35, 0.35),
                faces[:4],
                faces[4],
            )
            z, size = z + tall, size * self.rng.uniform(0.8, 0.98)

    def pallet(self, x: float, y: float, yaw: float) -> None:
        wood = self.wood[int(self.rng.integers(3))]
        self.world.add_box((x, y, 0.07), (1.2, 0.9, 0.14), yaw, wood, wood)

    def table(self, x: float, y: float, yaw: float) -> None:
        wood, world, rng = self.wood[int(self.rng.integers(3))], self.world, self.rng
        world.add_box((x, y, 0.74), (0.7, 1.5, 0.05), yaw, wood, wood, wood)
        c, s = np.cos(yaw), np.sin(yaw)
        for fx, fy in ((-0.3, -0.7), (-0.3, 0.7), (0.3, -0.7), (0.3, 0.7)):
            world.add_box((x + c * fx - s * fy, y + s * fx + c * fy, 0.36), (0.06, 0.06, 0.72), yaw, self.steel[2], None)
        for fy in (-0.5, -0.1, 0.35):
            faces, tall = self.pick(self.goods, 5), rng.uniform(0.12, 0.4)
            world.add_box(
                (x - s * fy, y + c * fy, 0.765 + tall / 2),
                (rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.35), tall),
                yaw + rng.uniform(-0.5, 0.5),
                faces[:4],
                faces[4],
            )

    def barrel(self, x: float, y: float) -> None:
        """An eight-sided drum."""
        radius, height, texture, lid = (0.29, 0.88, self.drums[int(self.rng.integers(2))], self.steel[int(self.rng.integers(2))])
        corners = [np.array([x + radius * np.cos(a), y + radius * np.sin(a), height]) for a in np.arange(8) * np.pi / 4 + 0.3]
        for a, b in zip(corners, corners[1:] + corners[:1]):
            self.world.add_quad(a, b - a, (0, 0, -height), texture)
        side = radius * 1.3
        self.world.add_quad((x - side / 2, y + side / 2, height), (side, 0, 0), (0, -side, 0), lid)
        self.world.blockers.append((x, y, height / 2, radius * 0.65, radius * 0.65, height / 2, 0.0))

    def pillar(self, x: float, y: float, size: float = 0.36) -> None:
        faces = []
        for _ in range(4):
            image = textures.concrete(self.rng, int(HEIGHT / self.texel), int(size / self.texel), self.texel, (0.60, 0.59, 0.56))
            textures.hazard_stripes(image, self.texel, 1.3, 0.5)
            faces.append(self.world.add_texture(image))
        self.world.add_box((x, y, HEIGHT / 2), (size, size, HEIGHT), 0.0, faces, None)
        for sign in (-1, 1):
            sheet = self.texture(textures.goods, 0.3, 0.24, self.fine(0.3))
            self.world.add_quad((x - sign * 0.12, y - sign * (size / 2 + 0.008), 1.85), (sign * 0.24, 0, 0), (0, 0, -0.3), sheet)

    def floor_things(self) -> None:
        """Two islands the drives go round, and goods along the walls; a ring around each island stays free."""
        rng = self.rng
        self.shelf(-2.95, 0.0, 0.0, length=1.5, backed=False)
        self.crate(-3.1, 1.1 + rng.uniform(-0.05, 0.1), 0.0, 0.5, rng.uniform(-0.4, 0.4))
        self.stack(-2.9, -1.05, 2)
        self.pallet(3.0, 0.0, rng.uniform(-0.2, 0.2))
        self.crate(2.75, 0.05, 0.14, 0.55, rng.uniform(-0.15, 0.15))
        self.crate(3.32, -0.02, 0.14, 0.5, rng.uniform(-0.2, 0.2))
        self.crate(2.9, 0.02, 0.69, 0.45, rng.uniform(-0.5, 0.5))
        self.pillar(3.15, 0.85)
        self.shelf(-5.65, 2.9, 0.0)
        self.shelf(-5.65, -2.75, 0.0)
        self.shelf(5.65, 3.0, np.pi, length=1.5)
        self.shelf(1.9, 3.68, -np.pi / 2, length=1.6)
        self.table(-3.6, 3.55, -np.pi / 2)
        self.table(5.5, -0.9, np.pi)
        self.shelf(4.3, -3.68, np.pi / 2, length=1.6)
        for x, y, size in ((0.65, 3.5, 0.7), (5.4, -3.5, 0.75), (-0.6, -3.55, 0.6), (-5.5, 1.55, 0.55)):
            self.crate(x + rng.uniform(-0.1, 0.1), y + rng.uniform(-0.1, 0.1), 0.0, size, rng.uniform(-0.3, 0.3))
            if rng.random() < 0.7:
                self.crate(x, y, size, size * 0.7, rng.uniform(-0.6, 0.6))
        for x, y in ((-2.0, 3.55), (2.4, -3.6), (-4.6, -3.5), (5.55, 0.2), (-0.65, 3.5)):
            if rng.random() < 0.85:
                self.stack(x, y, int(rng.integers(2, 5)))
        for x, y in ((0.6, -3.6), (1.25, -3.62), (-5.6, -1.35), (3.6, 3.6)):
            if rng.random() < 0.85:
                self.barrel(x, y)


def build_world(seed: int = 0, texel: float = 0.004) -> World:
    """The workshop. The same seed and texel give the same place, bit for bit; other seeds other textures and goods.

    texel: size of a texel of walls and floor in metres (posters and goods get up to half of that). 0.004 is right for
    VGA images from a metre away; tests are quicker with 0.01.
    """
    builder = _Builder(seed, texel)
    builder.shell()
    builder.ceiling_lamps()
    builder.series()
    builder.wall_things()
    builder.floor_things()
    return builder.world

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Light on every surface, computed once per setting: lamps with soft shadows, daylight, ambient occlusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .world import HEIGHT, LENGTH, WIDTH, Lamp, World

_LAMP_SAMPLES = 3
_SKY_SAMPLES = 16
_OPEN_DISTANCE = 1.3
"""A surface that sees nothing nearer than this (m) receives the whole ambient light."""


@dataclass(frozen=True)
class Lighting:
    """How bright it is.

    Attributes:
        lamps: Power of the ceiling lamps, in order, repeated as needed; 0 switches one off.
        daylight: Power of the windows.
        ambient: Light from everywhere, weakened in corners.
        spacing: Distance of the light's samples on a surface (m).
        seed: Of their scatter.
    """

    lamps: tuple[float, ...] = (1.0,)
    daylight: float = 1.0
    ambient: float = 0.25
    spacing: float = 0.15
    seed: int = 0


def _blocked(points: np.ndarray, towards: np.ndarray, world: World, shortest: np.ndarray | None) -> np.ndarray:
    """Whether the segments points → points + towards, float32 [3, N], hit a box: bool [N].

    With `shortest` [N] given, it is lowered in place to the fraction of `towards` at which the nearest box is hit.
    """
    hit = np.zeros(points.shape[1], bool)
    px, py, pz = points
    dx, dy, dz = towards
    inverse_length = 1.0 / np.maximum(dx * dx + dy * dy + dz * dz, 1e-12)
    for x, y, z, *half, yaw in np.array(world.blockers, np.float32):
        # Most segments pass far from most boxes: those near its bounding sphere are looked at closely.
        ox, oy, oz = x - px, y - py, z - pz
        nearest = np.clip((ox * dx + oy * dy + oz * dz) * inverse_length, 0.0, 1.0)
        ox, oy, oz = ox - nearest * dx, oy - nearest * dy, oz - nearest * dz
        near = np.flatnonzero(ox * ox + oy * oy + oz * oz < half[0] ** 2 + half[1] ** 2 + half[2] ** 2)
        if not len(near):
            continue
        cosine, sine = np.cos(yaw), np.sin(yaw)
        nx, ny, nz, tx, ty, tz = px[near] - x, py[near] - y, pz[near] - z, dx[near], dy[near], dz[near]
        enter, leave = np.full(len(near), 1e-4, np.float32), np.ones(len(near), np.float32)
        for start, step, size in (
            (cosine * nx + sine * ny, cosine * tx + sine * ty, half[0]),
            (cosine * ny - sine * nx, cosine * ty - sine * tx, half[1]),
            (nz, tz, half[2]),
        ):
            inverse = 1.0 / np.where(np.abs(step) < 1e-9, np.float32(1e-9), step)
            a, b = (-size - start) * inverse, (size - start) * inverse
            np.maximum(enter, np.minimum(a, b), out=enter)
            np.minimum(leave, np.maximum(a, b), out=leave)
        here = enter < leave
        hit[near] |= here
        if shortest is not None:
            shortest[near] = np.minimum(shortest[near], np.where(here, enter, 1.0))
    return hit


def _lamp_light(points, normals, world: World, lamp: Lamp, rng: np.random.Generator) -> np.ndarray:
    """Irradiance [N] of one lamp of power 1: inverse square, cosine, share of the lamp that is seen."""
    total = np.zeros(points.shape[1], np.float32)
    for sample in range(_LAMP_SAMPLES):
        spread = (sample + 0.5) / _LAMP_SAMPLES * 2 - 1
        shift = np.float32(spread) + rng.uniform(-0.25, 0.25, points.shape[1]).astype(np.float32)
        position = lamp.position.astype(np.float32)[:, None] + shift * lamp.extent.astype(np.float32)[:, None]
        towards = position - points
        squared = (towards * towards).sum(0)
        cosine = (towards * normals).sum(0) / np.sqrt(squared)
        facing = np.flatnonzero(cosine > 0)
        light = cosine[facing] / (squared[facing] + 0.15)
        light[_blocked(points[:, facing], towards[:, facing], world, None)] = 0.0
        total[facing] += light
    return total / _LAMP_SAMPLES


def _openness(points, normals, world: World, rng: np.random.Generator) -> np.ndarray:
    """How much of what each point faces is free for `_OPEN_DISTANCE`, 0..1 [N]: darkens corners and niches."""
    total = np.zeros(points.shape[1], np.float32)
    upper = np.array([[LENGTH / 2], [WIDTH / 2], [HEIGHT]], np.float32)
    lower = np.array([[-LENGTH / 2], [-WIDTH / 2], [0.0]], np.float32)
    for _ in range(_SKY_SAMPLES):
        direction = rng.standard_normal(points.shape, np.float32)
        direction /= np.sqrt((direction * direction).sum(0))
        direction += np.float32(1.02) * normals  # cosine-weighted about the normal
        direction /= np.sqrt((direction * direction).sum(0))
        towards = direction * np.float32(_OPEN_DISTANCE)
        room = (np.where(towards > 0, upper, lower) - points) / np.where(np.abs(towards) < 1e-6, np.float32(1e-6), towards)
        nearest = np.clip(room.min(0), 0.0, 1.0)
        _blocked(points, towards, world, nearest)
        total += nearest
    return total / _SKY_SAMPLES


def bake(world: World, lighting: Lighting | None) -> list[np.ndarray]:
    """Light on each quad of the world: a list of float32 [h, w, 3], bilinear samples from its upper left corner.

    Light 1 shows a texture as it was drawn. None, or a world without lamps: light 1 everywhere.
    """
    if lighting is None or not (world.lamps or world.daylight):
        return [np.ones((2, 2, 3), np.float32) for _ in world.quads]
    sizes, points, normals = [], [], []
    for quad in world.quads:
        columns, rows = (max(2, int(np.linalg.norm(edge) / lighting.spacing) + 1) for edge in (quad.right, quad.down))
        # Samples reach the rims of the quad but for a hair, so that they do not lie inside a neighbour.
        across, along = np.linspace(0.02, 0.98, columns), np.linspace(0.02, 0.98, rows)
        grid = quad.origin + along[:, None, None] * quad.down + across[None, :, None] * quad.right + 0.01 * quad.normal
        sizes.append((rows, columns))
        points.append(grid.reshape(-1, 3))
        normals.append(np.repeat(quad.normal[None], rows * columns, 0))
    points = np.ascontiguousarray(np.concatenate(points).T, np.float32)
    normals = np.ascontiguousarray(np.concatenate(normals).T, np.float32)
    rng = np.random.default_rng(lighting.seed)
    light = lighting.ambient * _openness(points, normals, world, rng)[:, None] * np.ones((1, 3), np.float32)
    powers = [lighting.lamps[index % len(lighting.lamps)] for index in range(len(world.lamps))]
    for lamp, power in zip(world.lamps + world.daylight, powers + [lighting.daylight] * len(world.daylight)):
        if power > 0:
            light += power * _lamp_light(points, normals, world, lamp, rng)[:, None] * lamp.colour.astype(np.float32)
    ends = np.cumsum([rows * columns for rows, columns in sizes])
    return [part.reshape(*size, 3).astype(np.float32) for part, size in zip(np.split(light, ends[:-1]), sizes)]

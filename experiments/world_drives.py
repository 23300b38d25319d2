# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Where a robot drives in a world of meshes, and what has changed there when it comes back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra
from world_scene import Scene

from pixloc_ros.errors import InputError
from pixloc_sim.sensor import Sensor

CELL_M = 0.05
_LOW_M, _HIGH_M = 0.08, 1.3
_RADIUS_M = 0.30
_STOPS = 9
_MOVABLE = (
    "Chair",
    "Dumbbell",
    "Fitness",
    "Trash",
    "BalconyTable",
    "CoffeeTable",
    "NightStand",
    "ShoeRack",
    "BookshelfC",
    "Sofa_",
)
WARM, WHITE = (1.0, 0.82, 0.62), (1.0, 0.98, 0.95)


@dataclass(frozen=True)
class Condition:
    """What the world is like during a drive, and by which camera it is seen.

    Attributes:
        sun_elevation: Degrees above the horizon.
        sun_azimuth: Degrees about the vertical.
        sun: Irradiance (W/m²).
        sun_colour: RGB.
        sky: Radiance of the sky.
        sky_colour: RGB.
        lamps: Power of each (W).
        lamp_colours: RGB, given to the lamps by turns.
        torch: Power of the light beside the camera (W).
        blinds: Whether they are closed.
        furniture: Share of the movable furniture that is moved.
        people: Their number.
        sensor: Exposure and noise.
        field_of_view_deg: Horizontal.
        scale: Of the image's width and height.
        height_m: Of the camera.
    """

    sun_elevation: float = 50.0
    sun_azimuth: float = 70.0
    sun: float = 4.0
    sun_colour: tuple[float, float, float] = (1.0, 0.96, 0.90)
    sky: float = 2.0
    sky_colour: tuple[float, float, float] = (0.72, 0.85, 1.0)
    lamps: float = 20.0
    lamp_colours: tuple[tuple[float, float, float], ...] = (WARM,)
    torch: float = 0.0
    blinds: bool = False
    furniture: float = 0.0
    people: int = 0
    sensor: Sensor = field(default_factory=lambda: Sensor(exposure_s=0.0))
    field_of_view_deg: float = 80.0
    scale: float = 1.0
    height_m: float = 0.9

    def light(self, moved: dict[str, list]) -> dict:
        """What `world_cycles.py` needs to know."""
        names = [
            "sun_elevation",
            "sun_azimuth",
            "sun",
            "sun_colour",
            "sky",
            "sky_colour",
            "lamps",
            "lamp_colours",
            "torch",
            "blinds",
        ]
        return {name: getattr(self, name) for name in names} | {"moved": moved}


NOON = Condition()
_DARK = replace(NOON, sun=0.0, sky=0.004, lamps=0.0, sensor=Sensor(0.0, read_noise=0.012, shot_noise=0.03, vignetting=0.35))
CONDITIONS = {
    "map": NOON,
    "noon": NOON,
    "morning": replace(NOON, sun_elevation=14.0, sun_azimuth=-10.0, sun_colour=(1.0, 0.80, 0.58), sky=1.2, lamps=0.0),
    "evening": replace(
        NOON, sun_elevation=8.0, sun_azimuth=185.0, sun_colour=(1.0, 0.62, 0.35), sky=0.5, sky_colour=(0.8, 0.7, 0.8)
    ),
    "lamps": replace(_DARK, lamps=60.0, sensor=Sensor(0.0, read_noise=0.005, shot_noise=0.02)),
    "torch": replace(_DARK, torch=40.0),
    "blinds": replace(NOON, blinds=True, lamps=4.0),
    "coloured": replace(_DARK, lamps=60.0, lamp_colours=((1.0, 0.25, 0.2), (0.25, 0.4, 1.0), (0.3, 1.0, 0.4))),
    "exposure": replace(NOON, sensor=Sensor(0.0, gain=3.0, automatic=0.3, read_noise=0.004, shot_noise=0.02)),
    "camera": replace(NOON, field_of_view_deg=100.0, scale=0.75, height_m=0.65),
    "furniture": replace(NOON, furniture=0.7),
    "people": replace(NOON, people=4),
}
"""By the name of the drive; "map" is the mapping drive, "noon" a second drive in its light."""


@dataclass(frozen=True)
class FreeSpace:
    """Metres to the nearest obstacle by place: float [rows (y), columns (x)], and the corner [2] of its first cell."""

    clearance: np.ndarray
    origin: np.ndarray

    def at(self, xy: np.ndarray) -> np.ndarray:
        """Clearance at places [N, 2]; 0 outside."""
        column, row = np.floor((np.asarray(xy) - self.origin) / CELL_M).astype(int).T
        inside = (row >= 0) & (column >= 0) & (row < self.clearance.shape[0]) & (column < self.clearance.shape[1])
        rows, columns = np.clip(row, 0, self.clearance.shape[0] - 1), np.clip(column, 0, self.clearance.shape[1] - 1)
        return np.where(inside, self.clearance[rows, columns], 0.0)


def free_space(scene: Scene) -> FreeSpace:
    """Over the floor, between the ankles and the top of a robot. Raises InputError where the world has no floor."""
    floors = [scene.triangles(item).reshape(-1, 3) for item in scene.placements if "Floor" in item.model]
    if not floors:
        raise InputError("the world has no model with 'Floor' in its name: where can a robot drive?")
    corners = np.concatenate(floors)[:, :2]
    origin = corners.min(0)
    size = np.ceil((corners.max(0) - origin) / CELL_M).astype(int)
    blocked = np.zeros(size[::-1], bool)
    blocked[[0, -1]] = blocked[:, [0, -1]] = True
    for placement in scene.placements:
        triangles = scene.triangles(placement)
        z = triangles[..., 2]
        points = _sample(triangles[(z.max(1) > _LOW_M) & (z.min(1) < _HIGH_M)])
        points = points[(points[:, 2] > _LOW_M) & (points[:, 2] < _HIGH_M)]
        column, row = np.floor((points[:, :2] - origin) / CELL_M).astype(int).T
        inside = (row >= 0) & (column >= 0) & (row < size[1]) & (column < size[0])
        blocked[row[inside], column[inside]] = True
    return FreeSpace(ndimage.distance_transform_edt(~blocked) * CELL_M, origin)


def _sample(triangles: np.ndarray) -> np.ndarray:
    """Points [N, 3] on triangles [T, 3, 3], half a cell apart."""
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2).max(1, initial=0.0)
    steps = 2 ** np.ceil(np.log2(np.maximum(edges / (CELL_M / 2), 1))).astype(int)
    found = [np.empty((0, 3))]
    for count in np.unique(steps):
        a, b = np.divmod(np.arange((count + 1) ** 2), count + 1)
        weights = np.stack((a, b, count - a - b), 1)[a + b <= count] / count
        for group in np.array_split(triangles[steps == count], max(1, len(weights) * int((steps == count).sum()) // 2_000_000)):
            found.append(np.einsum("nk,tkd->tnd", weights, group).reshape(-1, 3))
    return np.concatenate(found)


def tour(space: FreeSpace) -> np.ndarray:
    """A smooth closed round through all of the free space: way points [N, 2], half a metre apart,
    beginning where there is most room.

    Raises:
        InputError: No part of the floor is free.
    """
    label, count = ndimage.label(space.clearance > _RADIUS_M)
    if not count:
        raise InputError("there is no free floor in the world")
    largest = 1 + int(np.argmax(np.bincount(label.ravel())[1:]))
    cells = np.argwhere(label == largest)
    graph = _graph(cells, space)
    stops = [int(dijkstra(graph, directed=False, indices=0).argmax())]
    length, before = dijkstra(graph, directed=False, indices=stops, return_predecessors=True)
    while len(stops) < _STOPS:
        stops.append(int(length.min(0).argmax()))
        more, back = dijkstra(graph, directed=False, indices=stops[-1:], return_predecessors=True)
        length, before = np.vstack((length, more)), np.vstack((before, back))
    order = _round(length[:, stops])
    path = []
    for start, end in zip(order, (*order[1:], order[0])):
        at, leg = stops[end], []
        while at != stops[start]:
            leg.append(at)
            at = int(before[start, at])
        path += [stops[start], *leg[:0:-1]]
    xy = space.origin + (cells[path][:, ::-1] + 0.5) * CELL_M
    return _smooth(xy, space)


def _graph(cells: np.ndarray, space: FreeSpace) -> sparse.csr_matrix:
    """Neighbouring cells, dearer near obstacles."""
    index = np.full(space.clearance.shape, -1)
    index[tuple(cells.T)] = np.arange(len(cells))
    cost = 1 + (0.6 / space.clearance[tuple(cells.T)]) ** 2
    rows, columns, costs = [], [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = index[tuple((cells + (dy, dx)).T)]  # the rim of the floor is blocked: all neighbours exist
        near = np.flatnonzero(other >= 0)
        rows.append(near)
        columns.append(other[near])
        costs.append(np.hypot(dy, dx) * (cost[near] + cost[other[near]]) / 2)
    shape = (len(cells), len(cells))
    return sparse.csr_matrix((np.concatenate(costs), (np.concatenate(rows), np.concatenate(columns))), shape)


def _round(length: np.ndarray) -> list[int]:
    """A short round through all stops: nearest first, then pairs of legs are exchanged."""
    order, left = [0], set(range(1, len(length)))
    while left:
        order.append(min(left, key=lambda stop: length[order[-1], stop]))
        left.remove(order[-1])
    total = lambda stops: sum(length[a, b] for a, b in zip(stops, (*stops[1:], stops[0])))  # noqa: E731
    better = True
    while better:
        better = False
        for i in range(1, len(order) - 1):
            for j in range(i + 1, len(order)):
                turned = order[:i] + order[i : j + 1][::-1] + order[j + 1 :]
                if total(turned) < total(order) - 1e-9:
                    order, better = turned, True
    return order


def _smooth(xy: np.ndarray, space: FreeSpace) -> np.ndarray:
    """A closed path made round where there is room, as points half a metre apart."""
    for sigma in (0.45, 0.3, 0.2, 0.1):
        closed = np.vstack((xy, xy[:1]))
        along = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))))
        even = np.arange(0.0, along[-1], CELL_M)
        path = np.stack([np.interp(even, along, closed[:, axis]) for axis in (0, 1)], 1)
        path = ndimage.gaussian_filter1d(path, sigma / CELL_M, axis=0, mode="wrap")
        if space.at(path).min() > _RADIUS_M - 2 * CELL_M:
            break
    path = path[:: round(0.5 / CELL_M)]
    return np.roll(path, -int(space.at(path).argmax()), axis=0)


def beside(waypoints: np.ndarray, space: FreeSpace, offset_m: float, seed: int) -> np.ndarray:
    """The round, up to so far to its left and right, where there is room."""
    rng = np.random.default_rng([seed, 43])
    aside = ndimage.gaussian_filter1d(rng.uniform(-1, 1, len(waypoints)), 3, mode="wrap")
    aside *= offset_m / max(np.abs(aside).max(), 1e-9)
    ahead = np.roll(waypoints, -1, 0) - np.roll(waypoints, 1, 0)
    left = np.stack((-ahead[:, 1], ahead[:, 0]), 1) / np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-6)
    room = np.clip(space.at(waypoints) - _RADIUS_M, 0.0, offset_m) / offset_m
    return waypoints + left * (aside * room)[:, None]


def moved_furniture(scene: Scene, path: np.ndarray, share: float, seed: int) -> dict[str, list]:
    """New world_from_model of some of the furniture that carries nothing, none of it within a robot of the path."""
    rng = np.random.default_rng([seed, 47])
    boxes = {item.name: scene.triangles(item).reshape(-1, 3) for item in scene.placements}
    boxes = {name: (corners.min(0), corners.max(0)) for name, corners in boxes.items()}
    moved = {}
    for item in scene.placements:
        low, high = boxes[item.name]
        chosen, turn, shift = rng.random() < share, rng.uniform(-0.7, 0.7), rng.uniform(-0.5, 0.5, 2)
        carries = any(
            other.name != item.name and (other.pose[:2, 3] > low[:2]).all() and (other.pose[:2, 3] < high[:2]).all()
            and boxes[other.name][0][2] > low[2] + 0.15 and boxes[other.name][0][2] < high[2] + 0.1
            for other in scene.placements
        )  # fmt: skip
        if not chosen or carries or low[2] > 0.2 or not any(word in item.model for word in _MOVABLE):
            continue
        (c, s), pose = (np.cos(turn), np.sin(turn)), item.pose.copy()
        pose[:3, :3] = np.array(((c, -s, 0), (s, c, 0), (0, 0, 1))) @ pose[:3, :3]
        pose[:2, 3] += shift
        radius = np.linalg.norm((high - low)[:2]) / 2
        middle = (low + high)[:2] / 2 + shift
        if np.linalg.norm(path - middle, axis=1).min() > radius + _RADIUS_M:
            moved[item.name] = pose.tolist()
    return moved


def people_at(count: int, path: np.ndarray, space: FreeSpace, time_s: float, seed: int) -> list[tuple[float, float, float]]:
    """x, y, yaw of people beside the path: every second one stands, the others walk to and fro."""
    rng, found = np.random.default_rng([seed, 53]), []
    for number in range(count):
        at, side, phase = rng.uniform(0, len(path)), rng.choice((-1, 1)), rng.uniform(0, 2 * np.pi)
        at += (number % 2) * 2.0 * np.sin(0.6 * time_s + phase)
        index = int(at) % len(path)
        ahead = path[(index + 1) % len(path)] - path[index]
        ahead /= max(np.linalg.norm(ahead), 1e-6)
        place = path[index] + ahead * (at % 1) * 0.5 + side * 0.75 * np.array((-ahead[1], ahead[0]))
        if space.at(place[None])[0] > 0.1:
            found.append((float(place[0]), float(place[1]), float(np.arctan2(ahead[1], ahead[0]))))
    return found

#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A Gazebo world of Collada meshes as plain arrays: what `render_world.py` plans drives in and `world_cycles.py` renders.

Needs `pip install pycollada`; reading the arrays again needs NumPy only.

    experiments/world_scene.py WORLD_FOLDER out.npz
"""

from __future__ import annotations

import json
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_CEILINGS = {"aws_robomaker_residential_RoomCeiling_01": (0.0, 0.0, 2.5)}
"""Ceilings that a world has in its models but leaves out, to be looked at from above."""


@dataclass(frozen=True)
class Part:
    """Triangles of one material.

    Attributes:
        xyz: float32 [T, 3, 3] metres, in the model's frame.
        uv: float32 [T, 3, 2].
        texture: File of the material's picture as it is named in the mesh; empty where it has none.
        colour: RGB of a material without a picture.
    """

    xyz: np.ndarray
    uv: np.ndarray
    texture: str
    colour: tuple[float, float, float] = (0.6, 0.6, 0.6)


@dataclass(frozen=True)
class Placement:
    """A model at a place: its name in the world, the model's, and world_from_model float64 [4, 4]."""

    name: str
    model: str
    pose: np.ndarray


@dataclass(frozen=True)
class Light:
    """A lamp of the world: its place (m) and colour, both [3]."""

    name: str
    xyz: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Models by name, where they stand, and the lamps."""

    models: dict[str, list[Part]]
    placements: list[Placement]
    lights: list[Light]

    def triangles(self, placement: Placement) -> np.ndarray:
        """float64 [T, 3, 3] in the world's frame."""
        xyz = np.concatenate([part.xyz for part in self.models[placement.model]]).astype(float)
        return xyz @ placement.pose[:3, :3].T + placement.pose[:3, 3]


def pose_of(text: str | None) -> np.ndarray:
    """World-from-thing, float64 [4, 4], of SDF's "x y z roll pitch yaw"; the identity without text."""
    pose = np.eye(4)
    if not text:
        return pose
    x, y, z, *angles = map(float, text.split())
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles), np.sin(angles)
    pose[:3, :3] = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    pose[:3, 3] = x, y, z
    return pose


def read_world(folder: Path) -> Scene:
    """The world in `folder`/worlds/*.world with the meshes in `folder`/models; says on stderr what could not be read."""
    world = ElementTree.parse(next((folder / "worlds").glob("*.world"))).getroot().find("world")
    placements, models = [], {}
    for element in (*world.findall("model"), *world.findall("include")):
        inner = element.find("include") if element.tag == "model" else element
        if inner is None:
            continue
        model = inner.findtext("uri").removeprefix("model://").strip("/")
        name = element.get("name") or inner.findtext("name") or model
        pose = pose_of(element.findtext("pose")) @ (pose_of(inner.findtext("pose")) if inner is not element else np.eye(4))
        placements.append(Placement(name, model, pose))
    used = {placement.model for placement in placements}
    for model, place in _CEILINGS.items():
        if (folder / "models" / model).is_dir() and model not in used:
            placements.append(Placement("ceiling", model, pose_of(f"{place[0]} {place[1]} {place[2]} 0 0 0")))
    for model in sorted({placement.model for placement in placements}):
        models[model] = _read_model(folder / "models", model)
    placements = [placement for placement in placements if models[placement.model]]
    lights = []
    for light in world.findall("light"):
        if light.get("type") != "directional":
            colour = np.array(light.findtext("diffuse").split()[:3], float)
            lights.append(Light(light.get("name"), pose_of(light.findtext("pose"))[:3, 3], colour))
    return Scene({name: parts for name, parts in models.items() if parts}, placements, lights)


def _read_model(models: Path, name: str) -> list[Part]:
    """Parts of the visual meshes; where those are missing or damaged, of the collision meshes, without pictures."""
    root = ElementTree.parse(models / name / "model.sdf").getroot().find("model")
    for kind in ("visual", "collision"):
        parts = []
        for link in root.findall("link"):
            for element in link.findall(kind):
                mesh = element.find("geometry/mesh")
                if mesh is None:
                    continue
                file = models / name / "meshes" / Path(mesh.findtext("uri")).name
                scale = np.array((mesh.findtext("scale") or "1 1 1").split(), float)
                pose = pose_of(root.findtext("pose")) @ pose_of(link.findtext("pose")) @ pose_of(element.findtext("pose"))
                try:
                    parts += read_collada(file, scale, pose)
                except Exception as error:  # the reader's errors have no common base
                    print(f"left out {file.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        if parts:
            return parts if kind == "visual" else [Part(part.xyz, box_uv(part.xyz), f"missing_{name}.png") for part in parts]
    print(f"left out {name}: it has no mesh that can be read", file=sys.stderr)
    return []


def read_collada(file: Path, scale: np.ndarray, pose: np.ndarray) -> list[Part]:
    """Triangles of a Collada file in metres, z up, scaled by `scale` [3] and moved by `pose` [4, 4]."""
    try:
        import collada
    except ImportError:
        raise SystemExit("reading Collada meshes needs pycollada: pip install pycollada") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = collada.Collada(str(file), ignore=[collada.DaeError])
        bound = [primitive for item in document.scene.objects("geometry") for primitive in item.primitives()]
    turn = {"Y_UP": np.array(((1, 0, 0), (0, 0, -1), (0, 1, 0))), "X_UP": np.array(((0, -1, 0), (1, 0, 0), (0, 0, 1)))}
    turn = turn.get(document.assetInfo.upaxis, np.eye(3)) * (document.assetInfo.unitmeter or 1.0)
    parts = []
    for primitive in bound:
        if hasattr(primitive, "triangleset"):
            primitive = primitive.triangleset()
        if not hasattr(primitive, "vertex_index") or primitive.vertex is None or not len(primitive.vertex_index):
            continue
        xyz = primitive.vertex[primitive.vertex_index] @ turn.T * scale
        xyz = xyz @ pose[:3, :3].T + pose[:3, 3]
        uv = primitive.texcoordset[0][primitive.texcoord_indexset[0]][..., :2] if len(primitive.texcoordset) else box_uv(xyz)
        effect = primitive.material.effect if primitive.material else None
        diffuse = effect.diffuse if effect else None
        texture, colour = "", (0.6, 0.6, 0.6)
        if hasattr(diffuse, "sampler"):
            texture = diffuse.sampler.surface.image.path.replace("\\", "/").rsplit("/", 1)[-1]
        elif diffuse is not None:
            colour = tuple(float(value) for value in diffuse[:3])
        parts.append(Part(xyz.astype(np.float32), uv.astype(np.float32), texture, colour))
    return parts


def box_uv(xyz: np.ndarray) -> np.ndarray:
    """Texture coordinates [T, 3, 2] of triangles [T, 3, 3], one unit a metre, seen along the axis they face most."""
    normal = np.abs(np.cross(xyz[:, 1] - xyz[:, 0], xyz[:, 2] - xyz[:, 0]))
    seen = np.array(((1, 2), (0, 2), (0, 1)))[normal.argmax(1)]
    return np.take_along_axis(xyz, np.broadcast_to(seen[:, None], (*xyz.shape[:2], 2)), 2)


def save_scene(file: Path, scene: Scene) -> None:
    """As arrays, with what else there is as JSON in one of them."""
    arrays, models = {}, {}
    for model, parts in scene.models.items():
        models[model] = [{"texture": part.texture, "colour": part.colour} for part in parts]
        for index, part in enumerate(parts):
            arrays[f"{model}/{index}/xyz"], arrays[f"{model}/{index}/uv"] = part.xyz, part.uv
    about = {
        "models": models,
        "placements": [(item.name, item.model, item.pose.tolist()) for item in scene.placements],
        "lights": [(item.name, item.xyz.tolist(), item.colour.tolist()) for item in scene.lights],
    }
    np.savez(file, about=np.array(json.dumps(about)), **arrays)


def load_scene(file: Path) -> Scene:
    """What `save_scene` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        models = {
            model: [
                Part(arrays[f"{model}/{index}/xyz"], arrays[f"{model}/{index}/uv"], part["texture"], tuple(part["colour"]))
                for index, part in enumerate(parts)
            ]
            for model, parts in about["models"].items()
        }
    placements = [Placement(name, model, np.array(pose)) for name, model, pose in about["placements"]]
    return Scene(models, placements, [Light(name, np.array(xyz), np.array(colour)) for name, xyz, colour in about["lights"]])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    save_scene(Path(sys.argv[2]), read_world(Path(sys.argv[1])))

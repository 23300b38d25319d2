#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Renders views of a world with Blender's path tracer, one after another as they are asked for on standard input.

Needs `pip install bpy==5.0.1 OpenEXR` (Python 3.11) and nothing of pixloc_ros: `render_world.py` starts it. Every line of input
is a JSON object: `condition` (as `world_drives.Condition` has it; sent when it changes), `camera` (width, height, focal), `pose`
(world_from_camera, optical axes, 4 by 4), `people` (list of x, y, yaw), `seed`, `out`. For each, `out` gets npz arrays
`radiance` float16 [H, W, 3] and `depth` float32 [H, W] (metres along the optical axis at the middle of each pixel), and
"RENDERED out" is printed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from world_pictures import picture_for
from world_scene import Scene, load_scene

try:
    import bpy
    import OpenEXR
    from mathutils import Matrix
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install bpy==5.0.1 OpenEXR pycollada (Python 3.11)") from None

_PLAIN = ("Wall", "Ceiling", "Floor")
_LAMPS = ("Light", "Chandelier", "Spotlight")
_WINDOWS, _GLAZED = ("Window",), ("Window", "FoldingDoor_01")
_PHOTOS = ("Portrait", "TV_", "Tablet")
"""Models with photos of people on them, in whichever of their textures: all of those are replaced."""
_PERSON_M, _PERSON_RADIUS_M = 1.72, 0.24
_FAR_M = 60.0
_OPTICAL = np.diag((1.0, -1.0, -1.0, 1.0))


class Studio:
    """The world in Blender.

    Args:
        scene: What stands where.
        textures: Folder with the models.
        samples: Light paths a pixel, before noise is removed.
    """

    def __init__(self, scene: Scene, textures: Path, samples: int) -> None:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.world, self.textures, self.samples = scene, textures, samples
        self.scene = bpy.context.scene
        self._materials: dict[tuple, bpy.types.Material] = {}
        self.objects = {}
        for model, parts in scene.models.items():
            mesh = self._mesh(model, parts)
            for placement in scene.placements:
                if placement.model == model:
                    item = bpy.data.objects.new(placement.name, mesh)
                    item.matrix_world = Matrix(placement.pose)
                    if any(word in model for word in _LAMPS):
                        item.visible_shadow = False
                    self.scene.collection.objects.link(item)
                    self.objects[placement.name] = item
        self._lights()
        self._people = []
        self._blinds = self._make_blinds()
        self._settings()

    def _settings(self) -> None:
        scene = self.scene
        scene.render.engine = "CYCLES"
        scene.render.threads_mode, scene.render.threads = "FIXED", 1
        scene.render.use_persistent_data = True
        scene.render.image_settings.file_format = "OPEN_EXR"
        scene.render.image_settings.color_depth = "32"
        scene.view_settings.view_transform = "Raw"
        cycles = scene.cycles
        cycles.device, cycles.use_denoising, cycles.denoiser = "CPU", True, "OPENIMAGEDENOISE"
        cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
        cycles.denoising_prefilter, cycles.denoising_quality = "NONE", "BALANCED"
        cycles.use_adaptive_sampling, cycles.use_auto_tile = False, False
        cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 3, 2, 1
        cycles.transmission_bounces, cycles.transparent_max_bounces = 2, 6
        cycles.caustics_reflective = cycles.caustics_refractive = False
        cycles.sample_clamp_indirect = 4.0
        cycles.use_light_tree = True
        camera = bpy.data.cameras.new("camera")
        camera.sensor_fit, camera.clip_start, camera.clip_end = "HORIZONTAL", 0.02, _FAR_M * 2
        self.camera = bpy.data.objects.new("camera", camera)
        scene.collection.objects.link(self.camera)
        scene.camera = self.camera
        torch = bpy.data.lights.new("torch", "SPOT")
        torch.spot_size, torch.spot_blend, torch.shadow_soft_size, torch.color = 1.25, 0.6, 0.03, (1.0, 0.96, 0.88)
        self.torch = bpy.data.objects.new("torch", torch)
        scene.collection.objects.link(self.torch)

    def _mesh(self, model: str, parts: list) -> bpy.types.Mesh:
        """One mesh of a model's parts, flat triangles, without shared corners."""
        mesh = bpy.data.meshes.new(model)
        xyz = np.concatenate([part.xyz for part in parts]).reshape(-1, 3)
        uv = np.concatenate([part.uv for part in parts]).reshape(-1, 2)
        mesh.from_pydata(xyz.tolist(), [], np.arange(len(xyz)).reshape(-1, 3).tolist())
        mesh.uv_layers.new(name="uv").uv.foreach_set("vector", uv.astype(np.float32).ravel())
        for part in parts:
            mesh.materials.append(self._material(model, part.texture, part.colour))
        index = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.xyz) for part in parts])
        mesh.polygons.foreach_set("material_index", index)
        mesh.update()
        return mesh

    def _image(self, model: str, texture: str) -> bpy.types.Image:
        """The file, or a picture made of its name where it is missing or a photo of people."""
        if any(word in model for word in _PHOTOS):
            texture = f"photo_{texture}"
        file = self.textures / model / "materials" / "textures" / texture
        if file.is_file():
            return bpy.data.images.load(str(file), check_existing=True)
        known = bpy.data.images.get(texture)
        if known:
            return known
        picture = picture_for(texture)
        image = bpy.data.images.new(texture, *picture.shape[1::-1])
        rgba = np.ones((*picture.shape[:2], 4), np.float32)
        rgba[..., :3] = picture[::-1] / np.float32(255)
        image.pixels.foreach_set(rgba.ravel())
        image.update()
        image.pack()
        return image

    def _material(self, model: str, texture: str, colour: tuple[float, float, float]) -> bpy.types.Material:
        key = model, texture, colour
        if key in self._materials:
            return self._materials[key]
        material = bpy.data.materials.new(f"{model}/{texture}")
        material.use_nodes = True
        nodes, links = material.node_tree.nodes, material.node_tree.links
        surface = nodes["Principled BSDF"]
        surface.inputs["Roughness"].default_value = 0.55
        surface.inputs["Specular IOR Level"].default_value = 0.25
        surface.inputs["Base Color"].default_value = (*colour, 1.0)
        if texture:
            picture = nodes.new("ShaderNodeTexImage")
            picture.image = self._image(model, texture)
            source = picture.outputs["Color"]
            if any(word in model for word in _PLAIN):
                source = self._stained(nodes, links, source)
            links.new(source, surface.inputs["Base Color"])
            if any(word in model for word in _GLAZED):
                self._glaze(nodes, links, picture.outputs["Color"])
        self._materials[key] = material
        return material

    def _glaze(self, nodes, links, source) -> None:
        """Let light through where the picture is whitest: the panes, not their frames."""
        split, bright = nodes.new("ShaderNodeSeparateColor"), nodes.new("ShaderNodeMath")
        bright.operation, bright.inputs[1].default_value = "GREATER_THAN", 0.9
        clear, mix = nodes.new("ShaderNodeBsdfTransparent"), nodes.new("ShaderNodeMixShader")
        links.new(source, split.inputs["Color"])
        links.new(split.outputs["Red"], bright.inputs[0])
        links.new(bright.outputs["Value"], mix.inputs[0])
        links.new(nodes["Principled BSDF"].outputs["BSDF"], mix.inputs[1])
        links.new(clear.outputs["BSDF"], mix.inputs[2])
        links.new(mix.outputs["Shader"], nodes["Material Output"].inputs["Surface"])

    def _stained(self, nodes, links, source):
        """Marks and wear on large plain surfaces, by noise in the object's frame."""
        place = nodes.new("ShaderNodeTexCoord").outputs["Object"]
        for scale, low in ((1.7, 0.72), (30.0, 0.74)):
            noise, ramp, mix = (nodes.new(f"ShaderNode{kind}") for kind in ("TexNoise", "MapRange", "Mix"))
            noise.inputs["Scale"].default_value, noise.inputs["Detail"].default_value = scale, 1.0
            links.new(place, noise.inputs["Vector"])
            links.new(noise.outputs["Fac"], ramp.inputs["Value"])
            for name, value in (("From Min", 0.3), ("From Max", 0.7), ("To Min", low), ("To Max", 1.0)):
                ramp.inputs[name].default_value = value
            mix.data_type, mix.blend_type = "RGBA", "MULTIPLY"
            mix.inputs["Factor"].default_value = 1.0
            links.new(source, mix.inputs["A"])
            links.new(ramp.outputs["Result"], mix.inputs["B"])
            source = mix.outputs["Result"]
        return source

    def _lights(self) -> None:
        self.lamps = []
        for light in self.world.lights:
            lamp = bpy.data.lights.new(light.name, "POINT")
            lamp.shadow_soft_size = 0.12
            item = bpy.data.objects.new(light.name, lamp)
            item.location = light.xyz
            self.scene.collection.objects.link(item)
            self.lamps.append((lamp, light))
        self.sun = bpy.data.lights.new("sun", "SUN")
        self.sun.angle = 0.01
        self.sun_object = bpy.data.objects.new("sun", self.sun)
        self.scene.collection.objects.link(self.sun_object)
        self.scene.world = bpy.data.worlds.new("sky")
        self.scene.world.use_nodes = True
        self.sky = self.scene.world.node_tree.nodes["Background"]

    def _make_blinds(self) -> list:
        """A slatted sheet on the inner and outer side of every window's box."""
        made = []
        material = self._material("blinds", "", (0.62, 0.58, 0.50))
        for placement in self.world.placements:
            if not any(word in placement.model for word in _WINDOWS):
                continue
            corners = self.world.triangles(placement).reshape(-1, 3)
            low, high = corners.min(0), corners.max(0)
            thin = int((high - low)[:2].argmin())
            wide = 1 - thin
            middle = (low[thin] + high[thin]) / 2
            inside = middle - np.sign(middle) * ((high - low)[thin] / 2 + 0.03)
            quads = []
            for bottom in np.arange(low[2] - 0.05, high[2] + 0.05, 0.05):
                for side, z in ((low, bottom), (high, bottom), (high, bottom + 0.044), (low, bottom + 0.044)):
                    corner = np.empty(3)
                    corner[wide], corner[2] = side[wide] + (0.05 if side is high else -0.05), z
                    corner[thin] = inside + (0.02 if z > bottom else 0.0)
                    quads.append(corner)
            mesh = bpy.data.meshes.new("blinds")
            mesh.from_pydata(np.array(quads).tolist(), [], np.arange(len(quads)).reshape(-1, 4).tolist())
            mesh.materials.append(material)
            item = bpy.data.objects.new("blinds", mesh)
            self.scene.collection.objects.link(item)
            made.append(item)
        return made

    def _person(self, number: int):
        """A capsule in clothes."""
        sides, rings = 20, 24
        part = np.linspace(0, 1, rings)
        z = part * _PERSON_M
        cap = np.minimum(np.minimum(z, _PERSON_M - z) / _PERSON_RADIUS_M, 1.0)
        radius = _PERSON_RADIUS_M * np.sqrt(np.maximum(1 - (1 - cap) ** 2, 1e-4)) * np.where(part > 0.82, 0.5, 1.0)
        turn = np.linspace(0, 2 * np.pi, sides + 1)
        grid = np.stack([np.outer(radius, np.cos(turn)), np.outer(radius, np.sin(turn)), np.outer(z, np.ones_like(turn))], -1)
        uv = np.stack(np.broadcast_arrays(turn / (2 * np.pi) * 2, part[:, None]), -1)
        at = np.arange(rings * (sides + 1)).reshape(rings, sides + 1)
        faces = np.stack((at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]), -1).reshape(-1, 4)
        mesh = bpy.data.meshes.new(f"person {number}")
        mesh.from_pydata(grid.reshape(-1, 3).tolist(), [], faces.tolist())
        mesh.uv_layers.new(name="uv").uv.foreach_set("vector", uv.reshape(-1, 2)[faces.ravel()].astype(np.float32).ravel())
        mesh.materials.append(self._material("person", f"person_{number}.png", (0.5, 0.5, 0.5)))
        item = bpy.data.objects.new(f"person {number}", mesh)
        self.scene.collection.objects.link(item)
        return item

    def set_condition(self, condition: dict) -> None:
        """Sun, sky, lamps, blinds, torch and furniture as a `Condition` says."""
        elevation, azimuth = np.deg2rad(condition["sun_elevation"]), np.deg2rad(condition["sun_azimuth"])
        self.sun_object.rotation_euler = (0.0, np.pi / 2 - elevation, azimuth)
        self.sun.energy, self.sun.color = condition["sun"], condition["sun_colour"]
        self.sky.inputs["Color"].default_value = (*condition["sky_colour"], 1.0)
        self.sky.inputs["Strength"].default_value = condition["sky"]
        for number, (lamp, light) in enumerate(self.lamps):
            colours = condition["lamp_colours"]
            lamp.energy = condition["lamps"] * float(light.colour.mean())
            lamp.color = colours[number % len(colours)]
        self.torch.data.energy = condition["torch"]
        for item in self._blinds:
            item.hide_render = item.hide_viewport = not condition["blinds"]
        moved = condition["moved"]
        for placement in self.world.placements:
            self.objects[placement.name].matrix_world = Matrix(moved.get(placement.name, placement.pose.tolist()))

    def render(self, view: dict) -> tuple[np.ndarray, np.ndarray]:
        """Linear light float16 [H, W, 3] and depth float32 [H, W] of a view; 0 where nothing is."""
        scene, camera = self.scene, view["camera"]
        scene.render.resolution_x, scene.render.resolution_y = camera["width"], camera["height"]
        self.camera.data.angle = 2 * np.arctan(camera["width"] / (2 * camera["focal"]))
        pose = np.array(view["pose"])
        self.camera.matrix_world = Matrix(pose @ _OPTICAL)
        beside = np.eye(4)
        beside[:3, 3] = 0.12, -0.08, 0.0  # of the lens, in optical axes
        self.torch.matrix_world = Matrix(pose @ beside @ _OPTICAL)
        while len(self._people) < len(view["people"]):
            self._people.append(self._person(len(self._people)))
        for number, item in enumerate(self._people):
            item.hide_render = item.hide_viewport = number >= len(view["people"])
            if not item.hide_render:
                x, y, yaw = view["people"][number]
                item.location, item.rotation_euler = (x, y, 0.0), (0.0, 0.0, yaw)
        scene.cycles.seed = view["seed"]
        scene.cycles.samples = self.samples
        return self._light(), self._depth(camera, pose)

    def _light(self) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            self.scene.render.filepath = f"{folder}/image.exr"
            bpy.ops.render.render(write_still=True)
            with OpenEXR.File(self.scene.render.filepath, separate_channels=True) as file:
                channels = {name.rsplit(".", 1)[-1]: channel.pixels for name, channel in file.channels().items()}
        return np.minimum(np.stack([channels[name] for name in "RGB"], -1), 6e4).astype(np.float16)

    def _depth(self, camera: dict, pose: np.ndarray) -> np.ndarray:
        """By a ray through the middle of each pixel: exact, where the renderer's own is taken at random within the pixel."""
        width, height, graph = camera["width"], camera["height"], bpy.context.evaluated_depsgraph_get()
        x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
        rays = np.stack((x, y, np.full_like(x, camera["focal"])), -1).reshape(-1, 3)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        origin, cast = tuple(pose[:3, 3]), self.scene.ray_cast
        points = np.full((len(rays), 3), np.nan)
        for index, ray in enumerate((rays @ pose[:3, :3].T).tolist()):
            hit, place, *_ = cast(graph, origin, ray, distance=_FAR_M)
            if hit:
                points[index] = place
        return (
            np.where(np.isfinite(points[:, 0]), (points - pose[:3, 3]) @ pose[:3, 2], 0).reshape(height, width).astype(np.float32)
        )


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit("usage: world_cycles.py scene.npz MODELS_FOLDER SAMPLES < views")
    studio = Studio(load_scene(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]))
    for line in sys.stdin:
        view = json.loads(line)
        if view.get("condition"):
            studio.set_condition(view["condition"])
        radiance, depth = studio.render(view)
        out = Path(view["out"])
        with open(f"{out}.part", "wb") as file:
            np.savez(file, radiance=radiance, depth=depth)
        os.replace(f"{out}.part", out)
        print(f"RENDERED {out}", flush=True)


if __name__ == "__main__":
    main()

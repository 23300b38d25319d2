# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Worlds of meshes: reading, free space, rounds, changes, and going on after a kill, with a renderer that makes flat pictures."""

import contextlib
import json
import sys

import common
import numpy as np
import pytest
import render_world
import torch
from world_drives import CONDITIONS, beside, free_space, moved_furniture, people_at, tour
from world_pictures import picture_for
from world_scene import Light, Part, Placement, Scene, box_uv, load_scene, pose_of, read_world, save_scene

from pixloc_ros.geometry import se3
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.training.pairs import BadSample, PairShape
from pixloc_ros.training.scenes import RgbdPairs

BOX = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], float)
QUADS = ((0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 5, 4), (2, 3, 7, 6), (1, 2, 6, 5), (0, 3, 7, 4))
FAKE_RENDERER = """import json, pathlib, sys
import numpy as np
for number, line in enumerate(sys.stdin):
    if (limit := pathlib.Path(__file__).with_name("limit")).exists() and number >= int(limit.read_text()):
        sys.exit("out of power")
    view = json.loads(line)
    width, height, focal = (view["camera"][name] for name in ("width", "height", "focal"))
    pose, (rows, columns) = np.array(view["pose"]), np.mgrid[:height, :width]
    rays = np.stack(((columns - (width - 1) / 2) / focal, (rows - (height - 1) / 2) / focal, np.ones(rows.shape)), -1)
    turned, centre = rays @ pose[:3, :3].T, pose[:3, 3]
    with np.errstate(divide="ignore"):
        walls = np.where(turned > 0, ([5, 3, 2.5] - centre) / turned, ([-5, -3, 0] - centre) / turned)
    depth = walls.min(-1)
    grey = np.sin(np.floor(4 * (centre + depth[..., None] * turned) + 1e-6) @ [12.99, 78.23, 37.72]) * 43758.5
    radiance = np.repeat(0.1 + 0.8 * (grey - np.floor(grey))[..., None], 3, -1)
    np.savez(view["out"], radiance=radiance.astype(np.float16), depth=depth.astype("f4"))
    print("RENDERED", flush=True)
"""
"""A room with a pattern on its walls."""


def box(low, high, texture=""):
    corners = np.array(low) + BOX * (np.array(high) - low)
    xyz = np.concatenate([corners[[[a, b, c], [a, c, d]]] for a, b, c, d in QUADS]).astype(np.float32)
    return Part(xyz, box_uv(xyz).astype(np.float32), texture)


@pytest.fixture(scope="module")
def scene():
    """Two rooms of 4 by 4 metres, a door between them, a table and a chair."""
    models = {
        "Floor": [box((-4, -2, -0.1), (4, 2, 0))],
        "Wall": [box((-0.1, -2, 0), (0.1, -0.6, 2.5)), box((-0.1, 0.6, 0), (0.1, 2, 2.5))],
        "Table": [box((-0.5, -0.5, 0), (0.5, 0.5, 0.7))],
        "Chair": [box((-0.2, -0.2, 0), (0.2, 0.2, 0.8))],
    }
    placed = [("Floor", "0 0 0"), ("Wall", "0 0 0"), ("Table", "-2 0 0"), ("Chair", "2.4 0.2 0")]
    placements = [Placement(f"{model}_1", model, pose_of(f"{place} 0 0 0")) for model, place in placed]
    return Scene(models, placements, [Light("lamp", np.array((0, 0, 2.2)), np.ones(3))])


@pytest.fixture(scope="module")
def space(scene):
    return free_space(scene)


@pytest.fixture(scope="module")
def path(space):
    return tour(space)


def test_free_space_is_what_is_left_between_walls_and_furniture(space):
    places = np.array([(-2, 0), (0, 1.0), (0, 0), (3, -1), (9, 9)])
    assert np.array_equal(space.at(places) > 0.3, (False, False, True, True, False))
    assert space.at(np.array([(0.0, 0.0)]))[0] == pytest.approx(0.6, abs=0.08)


def test_round_is_smooth_visits_both_rooms_and_touches_nothing(space, path):
    assert space.at(path).min() > 0.19
    assert path[:, 0].min() < -2.5 and path[:, 0].max() > 2.5
    steps = np.linalg.norm(np.roll(path, -1, 0) - path, axis=1)
    assert steps.max() < 0.6
    assert np.array_equal(path, tour(space))


def test_other_drive_keeps_its_distance_from_things(space, path):
    other = beside(path, space, 0.25, seed=3)
    assert 0.02 < np.linalg.norm(other - path, axis=1).max() <= 0.26
    assert space.at(other).min() > 0.19


def test_furniture_moves_but_not_into_the_way(scene, path):
    seeds = [moved_furniture(scene, path, 1.0, seed) for seed in range(20)]
    assert any(seeds) and {name for moved in seeds for name in moved} == {"Chair_1"}
    for moved in filter(None, seeds):
        assert np.linalg.norm(path - np.array(moved["Chair_1"])[:2, 3], axis=1).min() > 0.3
    assert seeds[3] == moved_furniture(scene, path, 1.0, 3)


def test_some_people_stand_and_some_walk(path, space):
    now, later = (people_at(6, path, space, time_s, seed=2) for time_s in (0.0, 1.0))
    assert now and set(now) & set(later) and set(now) - set(later)


def test_pictures_follow_from_the_name():
    first = picture_for("PortraitA_01.jpg")
    assert first.shape == (512, 512, 3) and first.std() > 20
    assert np.array_equal(first, picture_for("PortraitA_01.jpg")) and not np.array_equal(first, picture_for("PortraitA_02.jpg"))


def test_collada_world_in_metres_with_z_up(tmp_path):
    collada = pytest.importorskip("collada")
    folder = tmp_path / "models" / "Crate"
    (folder / "meshes").mkdir(parents=True)
    (tmp_path / "worlds").mkdir()
    document = collada.Collada()
    document.assetInfo.upaxis = "Y_UP"
    document.assetInfo.unitname, document.assetInfo.unitmeter = "centimeter", 0.01
    part = box((0, 0, 0), (100, 200, 300))
    places = collada.source.FloatSource("places", part.xyz.ravel(), ("X", "Y", "Z"))
    geometry = collada.geometry.Geometry(document, "crate", "crate", [places])
    inputs = collada.source.InputList()
    inputs.addInput(0, "VERTEX", "#places")
    geometry.primitives.append(geometry.createTriangleSet(np.arange(len(part.xyz) * 3), inputs, "paint"))
    document.geometries.append(geometry)
    node = collada.scene.Node("crate", children=[collada.scene.GeometryNode(geometry, [])])
    document.scene = collada.scene.Scene("scene", [node])
    document.scenes.append(document.scene)
    document.write(str(folder / "meshes" / "crate.dae"))
    mesh = "<geometry><mesh><uri>model://Crate/meshes/crate.dae</uri></mesh></geometry>"
    (folder / "model.sdf").write_text(f"<sdf><model><link><visual>{mesh}</visual></link></model></sdf>")
    include = "<include><uri>model://Crate</uri></include><pose>5 0 0 0 0 1.5707963</pose>"
    world = f"<sdf><world><model name='crate'>{include}</model></world></sdf>"
    (tmp_path / "worlds" / "test.world").write_text(world)

    scene = read_world(tmp_path)
    save_scene(tmp_path / "scene.npz", scene)
    corners = load_scene(tmp_path / "scene.npz").triangles(scene.placements[0]).reshape(-1, 3)
    # In the file 1 x 2 x 3 m with y up: 1 wide, 3 deep towards -y, 2 high; then a quarter turn to the left.
    assert np.allclose(corners.min(0), (5, 0, 0), atol=1e-5) and np.allclose(corners.max(0), (8, 1, 2), atol=1e-5)


@pytest.fixture
def command(scene, tmp_path, monkeypatch):
    """Runs the script on the scene with another renderer."""
    (tmp_path / "world" / "worlds").mkdir(parents=True)
    (tmp_path / "world" / "worlds" / "test.world").touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "world_cycles.py").write_text(FAKE_RENDERER)
    save_scene(tmp_path / "scene.npz", scene)
    (tools / "world_scene.py").write_text(f"import shutil, sys\nshutil.copy({str(tmp_path / 'scene.npz')!r}, sys.argv[2])\n")
    monkeypatch.setattr(render_world, "_HERE", tools)
    size = ["--map-images=6", "--images=3", "--width=64", "--height=48", "--workers=1", "--drives", "noon", "camera"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["render_world.py", str(tmp_path / "world"), "-o", str(tmp_path / "out"), *size, *more])
        return render_world.main()

    run.limit, run.out = tools / "limit", tmp_path / "out"
    return run


def test_killed_work_goes_on_and_gives_map_bags_and_truth(command):
    command.limit.write_text("4")
    with pytest.raises(render_world.InputError, match="out of power"):
        command()
    kept = sorted((command.out / "work").glob("*/*.png"))
    times = [file.stat().st_mtime_ns for file in kept]
    assert len(kept) == 4
    command.limit.unlink()
    assert command() == 0 and times == [file.stat().st_mtime_ns for file in kept]

    model = read_colmap_model(command.out / "map")
    assert len(model.names) == 6
    assert (command.out / "images" / model.names[0]).is_file()
    said = json.loads((command.out / "world.json").read_text())
    assert said["images"] == {"map": 6, "noon": 3, "camera": 3}
    for name in ("noon", "camera"):
        assert len((command.out / name / "truth.tum").read_text().strip().splitlines()) >= 3
        assert list((command.out / name / "drive").glob("*.mcap"))
    with np.load(command.out / "work" / "noon" / "00000.npz") as arrays:
        assert arrays["depth"].shape == (48, 64)
        depth = np.median(arrays["depth"][arrays["depth"] > 0])

    case = common.Scene(command.out / "cases" / "noon", command.out / "images")
    assert [query.path.is_file() for query in case.queries] == [True] * 3 == [name in case.truth for name in case.depths]
    assert case.depths["noon/00000.png"] == pytest.approx(depth)
    for size, std in common.PRIOR_SIZES.items():
        for name, prior in case.priors(size).items():
            degrees, _, share = case.error(name, prior)
            assert degrees == pytest.approx(std.degrees) and share == pytest.approx(std.depth_share)
    assert read_colmap_model(case.folder / "map").names == model.names

    np.savez(command.out / "work" / "noon" / "00001.npz", depth=np.zeros((48, 64), np.float32))
    assert command() == 0
    case = common.Scene(command.out / "cases" / "noon", command.out / "images")
    assert [query.name for query in case.queries] == ["noon/00000.png", "noon/00002.png"] == list(case.truth)


def test_sequence_pairs_the_same_places_across_drives(command):
    """Points of a pair have the same grey in both images: poses, depth and camera are in one frame."""
    command("--width=128", "--height=96", "--map-images=30", "--images=12", "--drives", "evening", "morning", "camera")
    source = RgbdPairs(command.out / "sequence", PairShape(128, 96, 64), False, 1000, apart_s=100)
    drives = [path.name.split("_")[0] for path in source.paths]
    assert set(drives) == {"map", "evening", "morning"}
    assert len(source.candidates) and all(drives[a] != drives[b] for a, b in source.candidates)
    greys, rng = [], np.random.default_rng(0)
    for _ in range(30):
        with contextlib.suppress(BadSample):
            pair = source.draw(rng)
            sides = (
                (pair.reference, pair.reference_camera, pair.xyz),
                (pair.query, pair.query_camera, se3.transform(pair.query_from_reference, pair.xyz)),
            )
            seen = [(camera.project(xyz)[0], camera) for _, camera, xyz in sides]
            both = torch.stack([camera.in_image(pixels) for pixels, camera in seen]).all(0)
            at = [pixels[both].round().long().numpy().T for pixels, _ in seen]
            greys.append(np.stack([side[0][row, column] for side, (column, row) in zip(sides, at)]).astype(float))
    assert len(greys) > 5
    assert np.median([np.corrcoef(both)[0, 1] for both in greys]) > 0.8


def test_conditions_differ_in_light_or_camera():
    lights = [json.dumps([CONDITIONS[name].light({}), repr(CONDITIONS[name])]) for name in CONDITIONS if name != "map"]
    assert len(set(lights)) == len(lights)

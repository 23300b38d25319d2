# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_helpers import FakeExtractor, look_at, numbers_map, pinhole, plane_images

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.io.trajectory import Trajectory, read_tum, write_tum
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.building import build_map
from pixloc_ros.mapping.build.care import (
    PruneOptions,
    check,
    export_colmap,
    export_ply,
    merge,
    moved,
    prune,
    re_encode,
    subset,
    with_int8,
)
from pixloc_ros.mapping.local_points import LocalPointSelector
from pixloc_ros.mapping.map_file import decode_descriptors, encode_descriptors, keyframe_pixels

CAMERA = pinhole(320, 240, 250.0)
XYZ = np.random.default_rng(0).uniform((-2, -2, 0), (2, 2, 0), (400, 3))


def poses(count, y=-1.5):
    return torch.stack([look_at((0.2 * k - 0.4, y, 2.5), (0.1 * k, 0, 0)) for k in range(count)])


def session(folder, map_from_camera, brightness=0):
    """A map of views of a plane; its images are in the folder."""
    return build_map(plane_images(folder, map_from_camera, CAMERA, XYZ, brightness=brightness), FakeExtractor())[0]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return session(tmp_path_factory.mktemp("care") / "one", poses(5))


@given(values=st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).normal(size=(8, 24))))
@settings(max_examples=25, deadline=None)
def test_eight_bits_keep_the_direction(values):
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    stored = encode_descriptors(unit)
    decoded = decode_descriptors(stored)
    assert stored.dtype == np.int8 and np.allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-6)
    # Rounding moves each component by at most half a step of the row.
    step = np.abs(unit).max(1) / 127
    assert (np.linalg.norm(decoded - unit, axis=1) <= 1.1 * step * np.sqrt(24) / 2).all()


def test_eight_bit_map_survives_the_file_and_serves_the_same_points(one, tmp_path):
    small = with_int8(one)
    small.save(tmp_path / "small.pixmap")
    one.save(tmp_path / "one.pixmap")
    opened = Map.open(tmp_path / "small.pixmap", verify=True)
    assert (one.version, opened.version) == ("1", "2")
    assert opened.descriptors[0].dtype == np.int8 and np.array_equal(opened.descriptors[0], small.descriptors[0])
    assert (tmp_path / "small.pixmap").stat().st_size < 0.75 * (tmp_path / "one.pixmap").stat().st_size
    plain, coded = (LocalPointSelector(m).select(poses(3)[2], one.cameras[0], 100) for m in (one, opened))
    assert torch.equal(plain.points.xyz, coded.points.xyz)
    for a, b in zip(plain.points.descriptors, coded.points.descriptors):
        assert (a - b).norm(dim=-1).max() < 0.02


def test_subset_keeps_what_belongs_together(one):
    keep = np.random.default_rng(1).random(len(one.observation_point)) < 0.3
    keep[one.observations(2)] = False
    part = subset(one, keep)
    assert part.keyframe_names == ["0.png", "1.png", "3.png", "4.png"] and len(part.observation_point) == keep.sum()
    assert np.array_equal(part.track_length, np.bincount(part.observation_point)) and part.track_length.min() == 1
    whole = {
        (one.keyframe_names[k], tuple(one.xyz[p])): tuple(d)
        for k in range(5)
        for p, d in zip(one.observation_point[one.observations(k)], one.descriptors[1][one.observations(k)])
    }
    for k, name in enumerate(part.keyframe_names):
        for p, d in zip(part.observation_point[part.observations(k)], part.descriptors[1][part.observations(k)]):
            assert whole[name, tuple(part.xyz[p])] == tuple(d)
    assert not [f for f in check(part) if f.serious]
    with pytest.raises(InputError, match="nothing of map"):
        subset(one, np.zeros(len(keep), bool))


def test_prune(one):
    assert np.diff(prune(one, PruneOptions(points_per_keyframe=40)).observation_offsets).max() == 40
    assert prune(one, PruneOptions(min_track_length=4)).track_length.min() >= 4
    wide = prune(one, PruneOptions(keyframe_spacing=0.15))
    assert 1 < len(wide.keyframe_names) < 5
    nothing = prune(one, PruneOptions())
    assert np.array_equal(nothing.observation_point, one.observation_point)
    assert np.allclose(nothing.quality, one.quality, atol=1e-3)


def test_sessions_of_one_place_share_points_and_keep_both_looks(one, tmp_path):
    evening = session(tmp_path / "evening", poses(4, y=-1.3), brightness=40)
    # The second session's own frame: merging needs it moved back.
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([5.0, -3.0, 1.0])
    foreign = moved(evening, shift)
    apart, fused = merge([one, foreign], ["one", "evening"])
    assert fused == 0 and len(apart.xyz) == len(one.xyz) + len(evening.xyz)
    merged, fused = merge([one, moved(foreign, se3.inverse(shift))], ["one", "evening"])
    common = len(np.intersect1d(one.xyz[:, 0], evening.xyz[:, 0]))
    assert fused > 0.95 * common > 100
    assert len(merged.xyz) == len(one.xyz) + len(evening.xyz) - fused
    assert len(set(merged.keyframe_names)) == 9 and merged.keyframe_names[0] == "one/0.png"
    assert not [f for f in check(merged) if f.serious]
    both = merged.track_length.argmax()
    rows = np.flatnonzero(merged.observation_point == both)
    assert merged.track_length[both] > one.track_length.max() and len(rows) == merged.track_length[both]
    # Every observation kept its own descriptor.
    assert sorted(map(tuple, merged.descriptors[1].tolist())) == sorted(
        map(tuple, np.concatenate((one.descriptors[1], evening.descriptors[1])).tolist())
    )


def test_maps_of_different_kinds_do_not_merge(one):
    with pytest.raises(InputError, match="re-encode"):
        merge([one, replace(one, extractor_fingerprint="f" * 16)], ["a", "b"])
    with pytest.raises(InputError, match="prune --int8"):
        merge([one, with_int8(one)], ["a", "b"])
    assert merge([with_int8(one), with_int8(with_int8(one))], ["a", "b"])[1] == len(one.xyz)  # as the message says
    with pytest.raises(InputError, match="two maps"):
        merge([one], ["a"])


def test_check_finds_what_does_not_fit(one):
    assert not [f for f in check(one) if f.serious]
    turned = one.map_from_keyframe.clone()
    turned[3] = turned[0]
    assert any(f.serious and "outside" in f.text for f in check(replace(one, map_from_keyframe=turned)))
    assert any(f.serious and "track lengths" in f.text for f in check(replace(one, track_length=one.track_length + 1)))
    bad = (one.descriptors[0], (one.descriptors[1] * np.float16(0.5)))
    assert any(f.serious and "unit length" in f.text for f in check(replace(one, descriptors=bad)))
    far = numbers_map(
        torch.stack([look_at((x, -1.5, 2.5), (x, 0, 0)) for x in (0.0, 50.0)]),
        np.concatenate((XYZ, XYZ + [50, 0, 0])),
        CAMERA,
        farthest=10,
    )
    assert any(not f.serious and "2 parts" in f.text for f in check(far))


def test_export_colmap_reads_back(one, tmp_path):
    export_colmap(one, tmp_path / "model")
    model = read_colmap_model(tmp_path / "model")
    assert model.names == one.keyframe_names and np.allclose(model.xyz, one.xyz, atol=1e-12)
    assert torch.allclose(se3.inverse(model.camera_from_map), one.map_from_keyframe, atol=1e-9)
    assert torch.allclose(model.cameras[1].params, one.cameras[0].params)
    keyframe = np.repeat(np.arange(5), np.diff(one.observation_offsets))
    assert sorted(zip(model.observation_image, model.observation_point)) == sorted(zip(keyframe, one.observation_point))
    for k in range(5):
        projected = model.observation_px[model.observation_image == k][
            np.argsort(model.observation_point[model.observation_image == k])
        ]
        assert np.abs(projected - keyframe_pixels(one, k)[0]).max() < 1e-3


def test_export_colmap_agrees_with_colmap(one, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    export_colmap(one, tmp_path)
    model = pycolmap.Reconstruction(str(tmp_path))
    assert model.num_reg_images() == 5 and model.num_points3D() == len(one.xyz)
    assert model.compute_num_observations() == len(one.observation_point)


def test_export_ply(one, tmp_path):
    export_ply(one, tmp_path / "points.ply")
    header, body = (tmp_path / "points.ply").read_bytes().split(b"end_header\n")
    vertices = np.frombuffer(body, [("xyz", "<f8", 3), ("rgb", "u1", 3)])
    assert f"element vertex {len(one.xyz) + 5}".encode() in header and len(vertices) == len(one.xyz) + 5
    assert np.array_equal(vertices["xyz"][: len(one.xyz)], one.xyz) and (vertices["rgb"][-5:] == (255, 0, 0)).all()


def test_re_encode_is_the_map_built_with_that_network(tmp_path):
    map_ = session(tmp_path / "images", poses(3))
    again, report = re_encode(map_, tmp_path / "images", FakeExtractor(confidence=True), working_side=200)
    assert not report.left_out and (again.working_side, again.cameras[0].width) == (200, 200)
    assert again.confidences[0] is not None
    same, _ = re_encode(map_, tmp_path / "images", FakeExtractor())
    assert np.array_equal(same.observation_point, map_.observation_point)
    assert np.abs(same.descriptors[1].astype(float) - map_.descriptors[1]).max() < 2e-3
    with pytest.raises(InputError, match="no folder"):
        re_encode(map_, tmp_path / "gone", FakeExtractor())
    cv2.imwrite(str(tmp_path / "images" / "1.png"), np.zeros((300, 320), np.uint8))
    (tmp_path / "images" / "2.png").unlink()
    one, report = re_encode(map_, tmp_path / "images", FakeExtractor())
    assert one.keyframe_names == ["0.png"] and "made of images like" in report.left_out["1.png"] and "2.png" in report.left_out
    (tmp_path / "images" / "0.png").unlink()
    with pytest.raises(InputError, match="can be used .0.png: no image"):
        re_encode(map_, tmp_path / "images", FakeExtractor())


def test_commands(one, tmp_path, capsys):
    one.save(tmp_path / "one.pixmap")
    path = str(tmp_path / "one.pixmap")
    assert main(["map", "check", path]) == 0 and "sound" in capsys.readouterr().out
    assert main(["map", "prune", path, "-o", str(tmp_path / "s.pixmap"), "--points-per-keyframe", "50", "--int8"]) == 0
    assert Map.open(tmp_path / "s.pixmap", verify=True).version == "2"
    assert main(["map", "merge", path, path, "-o", str(tmp_path / "m.pixmap")]) == 0
    assert len(Map.open(tmp_path / "m.pixmap").xyz) == len(one.xyz)
    assert main(["map", "export", path, "--colmap", str(tmp_path / "model"), "--ply", str(tmp_path / "p.ply")]) == 0
    assert (tmp_path / "model" / "points3D.txt").is_file() and (tmp_path / "p.ply").is_file()
    assert main(["map", "export", path]) == 2 and "--colmap" in capsys.readouterr().err
    data = bytearray((tmp_path / "one.pixmap").read_bytes())
    data[-5] ^= 1
    (tmp_path / "broken.pixmap").write_bytes(data)
    assert main(["map", "check", str(tmp_path / "broken.pixmap")]) == 2
    replace(one, track_length=one.track_length + 1).save(tmp_path / "wrong.pixmap")
    assert main(["map", "check", str(tmp_path / "wrong.pixmap")]) == 1


GRID_FROM_MAP = se3.se3_exp(torch.tensor([12.0, -3.0, 0.4, 0.0, 0.0, 2.2], dtype=torch.float64))


def write_ways(folder, map_, grid_from_map):
    """The options of `map move` that describe the same move."""
    centres, pose = map_.map_from_keyframe[:, :3, 3], grid_from_map
    places = se3.transform(pose, centres)
    lines = [" ".join((name, *map(repr, place))) for name, place in zip(map_.keyframe_names, places.tolist())]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    stamps = 1_000_000_000 * np.arange(len(centres))
    write_tum(folder / "map.tum", Trajectory(stamps, map_.map_from_keyframe))
    write_tum(folder / "grid.tum", Trajectory(stamps, pose @ map_.map_from_keyframe))
    numbers = [*pose[:3, 3].tolist(), *se3.quaternion_from_rotation(pose[:3, :3]).tolist()]
    return {
        "pose": ["--pose", *map(repr, numbers)],
        "points": ["--points", folder / "pairs.txt", "--upright"],
        "trajectories": ["--trajectories", folder / "map.tum", folder / "grid.tum", "--upright"],
    }


@pytest.mark.parametrize("way", ["pose", "points", "trajectories"])
def test_move_brings_a_map_into_the_grids_frame(one, tmp_path, way, capsys):
    one.save(tmp_path / "site.pixmap")
    words = write_ways(tmp_path, one, GRID_FROM_MAP)[way]
    output = tmp_path / "grid.pixmap"
    assert main(["map", "move", str(tmp_path / "site.pixmap"), "-o", str(output), *map(str, words)]) == 0, capsys.readouterr()
    result = Map.open(output, verify=True)
    assert torch.allclose(result.map_from_keyframe, GRID_FROM_MAP @ one.map_from_keyframe, atol=1e-6)
    np.testing.assert_allclose(result.xyz, se3.transform(GRID_FROM_MAP, torch.from_numpy(np.array(one.xyz))), atol=1e-6)
    assert not check(result) or all(not finding.serious for finding in check(result))


@pytest.mark.parametrize("fault", ["scaled", "on one line", "two places", "NaN", "infinite", "off the earth"])
def test_move_refuses_places_that_do_not_determine_it(one, tmp_path, fault, capsys):
    one.save(tmp_path / "site.pixmap")
    rng = np.random.default_rng(0)
    places = {
        "scaled": (a := rng.normal(size=(12, 3)), 100 * a),
        "on one line": (b := np.outer(np.arange(9.0), [1, 2, 0.5]), b + 1),
        "two places": (c := np.eye(3)[:2], c),
        "NaN": (np.where(a == a[3, 1], np.nan, a), a),
        "infinite": (a, np.where(a == a[3, 1], np.inf, a)),
        "off the earth": (a, 1e12 + a),
    }[fault]
    (tmp_path / "pairs.txt").write_text("\n".join(" ".join(map(repr, row)) for row in np.hstack(places).tolist()))
    words = [str(tmp_path / "site.pixmap"), "-o", str(tmp_path / "out.pixmap"), "--points", str(tmp_path / "pairs.txt")]
    assert main(["map", "move", *words]) == 2
    hint = "give" if fault in ("scaled", "on one line", "two places") else "impossible numbers: remove the line"
    assert hint in capsys.readouterr().err and not (tmp_path / "out.pixmap").exists()


def test_move_names_the_times_of_drives_that_do_not_overlap(one, tmp_path, capsys):
    one.save(tmp_path / "site.pixmap")
    write_ways(tmp_path, one, GRID_FROM_MAP)
    drive = read_tum(tmp_path / "grid.tum")
    write_tum(tmp_path / "late.tum", Trajectory(drive.stamps_ns + 10**12, drive.map_from_body))
    words = [str(tmp_path / "site.pixmap"), "-o", str(tmp_path / "out.pixmap"), "--upright"]
    assert main(["map", "move", *words, "--trajectories", str(tmp_path / "map.tum"), str(tmp_path / "late.tum")]) == 2
    assert f"from 0.0 to {drive.stamps_ns[-1] / 1e9:.1f} s and 1000.0 to" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "note"), [([1.03, 1.03, 1.03], "+3.0 % further apart"), ([1.0, -1.0, 1.0], "give --upright")])
def test_move_remarks_another_scale_and_a_mirrored_frame(one, tmp_path, change, note, capsys):
    """A flat drive fits a frame whose y points the other way, with the map upside down."""
    one.save(tmp_path / "site.pixmap")
    flat = np.random.default_rng(0).uniform(-1, 1, (30, 3)) * [10, 10, 0.01]
    rows = np.hstack([flat, flat * change]).tolist()
    (tmp_path / "pairs.txt").write_text("\n".join(" ".join(map(repr, row)) for row in rows))
    words = [str(tmp_path / "site.pixmap"), "-o", str(tmp_path / "out.pixmap"), "--points", str(tmp_path / "pairs.txt")]
    assert main(["map", "move", *words]) == 0 and note in capsys.readouterr().out

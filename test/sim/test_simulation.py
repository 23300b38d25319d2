# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The simulated world: the renderer against closed-form projection, the data set against itself."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from layouts import check_twist
from rosbags.highlevel import AnyReader

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io import bag_writer
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.io.image_format import decode_compressed, decode_raw
from pixloc_ros.io.messages import matrix, message_stamp
from pixloc_ros.io.trajectory import read_tum
from pixloc_ros.io.tum import load_depth, read_camera, read_rgbd_sequence
from pixloc_sim import drives
from pixloc_sim import recordings as datasets
from pixloc_sim.lighting import Lighting
from pixloc_sim.rendering import Renderer, TextureSheet, encode
from pixloc_sim.sensor import Sensor
from pixloc_sim.world import World, build_world, repainted

ROUGH_TEXEL = 0.015
ROUGH_LIGHT = Lighting(spacing=0.5)


def camera(model="pinhole", *distortion, width=320, height=240, focal=200.0) -> Camera:
    params = [focal, focal * 1.01, width / 2 + 3.2, height / 2 - 2.7, *distortion]
    return Camera(model, width, height, torch.tensor(params, dtype=torch.float64))


def looking(position, yaw, pitch_down=0.0) -> torch.Tensor:
    """map_from_camera of a camera that looks along yaw (x of the map is 0)."""
    turn = se3.so3_exp(torch.tensor([0.0, 0.0, yaw], dtype=torch.float64))
    tilt = se3.so3_exp(torch.tensor([0.0, pitch_down, 0.0], dtype=torch.float64))
    axes = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    return se3.from_rotation_translation(turn @ tilt @ axes, torch.tensor(position, dtype=torch.float64))


def chequered_wall(fields=8, texels_per_field=64) -> tuple[World, np.ndarray]:
    """A wall of 2 m x 2 m at x = 2 that looks towards -x, and its inner corners [N, 3]."""
    board = (np.indices((fields, fields)).sum(0) % 2 * 180 + 40).astype(np.uint8)
    texture = np.repeat(np.repeat(board, texels_per_field, 0), texels_per_field, 1)
    world = World()
    world.add_quad((2.0, 1.0, 1.0), (0, -2.0, 0), (0, 0, -2.0), world.add_texture(np.stack([texture] * 3, -1)))
    inner = np.linspace(-1, 1, fields + 1)[1:-1]
    y, z = np.meshgrid(inner, inner)
    return world, np.stack((np.full(y.size, 2.0), y.ravel(), z.ravel()), -1)


@pytest.fixture(scope="module")
def place() -> Renderer:
    return Renderer(build_world(0, ROUGH_TEXEL), ROUGH_LIGHT)


@pytest.fixture(scope="module")
def rough_options() -> datasets.SimulationOptions:
    return datasets.SimulationOptions(seconds=2.5, rate_hz=6.0, width=320, height=240, texel=ROUGH_TEXEL, rgbd=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, rough_options):
    folder = tmp_path_factory.mktemp("simulation") / "world"
    summary = datasets.simulate(folder, rough_options)
    return folder, summary


LENSES = [
    camera(),
    camera("plumb_bob", -0.25, 0.08, 0.001, -0.002, -0.01),
    camera("equidistant", -0.02, 0.003, 0.0, 0.0, focal=190.0),
]


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.model)
@pytest.mark.parametrize(
    "pose", [looking((0.3, 0.1, 0.05), 0.05), looking((0.9, -1.2, -0.3), 0.7, -0.15)], ids=["frontal", "oblique"]
)
def test_corners_are_where_projection_says(lens, pose):
    world, corners = chequered_wall()
    image, _ = Renderer(world).render(lens, pose)
    pixels, valid = lens.project(se3.transform(se3.inverse(pose), torch.from_numpy(corners)))
    expected = pixels[valid & lens.in_image(pixels, 12)].numpy()
    assert len(expected) >= 12
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.2)
    found = expected.astype(np.float32).reshape(-1, 1, 2) + np.float32(0.6)
    cv2.cornerSubPix(grey, found, (4, 4), (-1, -1), (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4))
    error = found.reshape(-1, 2) - expected
    assert np.abs(error.mean(0)).max() < 0.03
    assert np.median(np.linalg.norm(error, axis=1)) < 0.05
    assert np.linalg.norm(error, axis=1).max() < 0.1


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.model)
def test_depth_is_that_of_the_first_surface_on_the_ray(place, lens):
    pose = looking((0.2, -0.1, 0.6), 2.6, 0.05)
    _, depth = place.render(lens, pose)
    rng = np.random.default_rng(0)
    pixels = rng.integers(2, (lens.width - 2, lens.height - 2), (400, 2))
    rays, valid = lens.unproject(torch.from_numpy(pixels.astype(float)))
    expected = place.cast(rays.numpy(), pose)
    seen = depth[pixels[:, 1], pixels[:, 0]]
    # Inverse depth is (through a lens nearly) linear on a plane: elsewhere the pixel shows several surfaces.
    around = 1.0 / np.maximum([depth[pixels[:, 1] + dy, pixels[:, 0] + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], 1e-3)
    bend = np.abs(around + around[::-1] - 2 * around[4]).max(0) / around[4]
    inner = valid.numpy() & (bend < 3e-4)
    assert inner.sum() > 250
    assert (expected[inner] > 0).all(), "the room is closed"
    np.testing.assert_allclose(seen[inner], expected[inner], rtol=1e-4)


def test_edges_are_antialiased_without_a_shift():
    world, _ = chequered_wall()
    world.textures[0][:] = 255
    edge = 0.37
    world.add_quad((1.5, edge, 1.5), (0, -3.0, 0), (0, 0, -3.0), world.add_texture(np.zeros((4, 4, 3), np.uint8)))
    lens, pose = camera(), looking((0.0, 0.0, 0.0), 0.013)
    radiance, _ = Renderer(world).radiance(lens, pose)
    white = radiance[100, 80:, 0].sum() + 80  # columns until the edge, which is upright in the image
    ends = torch.tensor([[2.0, 1.0, 0.0], [1.5, edge, 0.0]], dtype=torch.float64)
    pixels, _ = lens.project(se3.transform(se3.inverse(pose), ends))
    assert pixels[0, 0] < 79 and pixels[1, 0] > 81
    assert white == pytest.approx(float(pixels[1, 0]) + 0.5, abs=0.26), "half of a half pixel at most"


def test_texture_seen_from_afar_keeps_its_mean():
    rng = np.random.default_rng(0)
    world, _ = chequered_wall()
    world.textures[0][:] = rng.integers(90, 111, world.textures[0].shape)
    renderer = Renderer(world)
    for distance in (0.5, 4.0, 30.0):
        image, depth = renderer.render(camera(), looking((2.0 - distance, 0.0, 0.0), 0.0))
        inside = cv2.erode((depth > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert image[inside].mean() == pytest.approx(100.0, abs=1.5)
        if distance > 1:
            assert image[inside].std() < 5.0, "fine texture does not alias into noise"


def test_same_seed_same_image_other_seed_other_place(place):
    lens, pose = camera(), looking((0.0, 0.0, 0.6), 0.3)
    image, _ = place.render(lens, pose)
    again, _ = Renderer(build_world(0, ROUGH_TEXEL), ROUGH_LIGHT).render(lens, pose)
    assert np.array_equal(image, again)
    other, _ = Renderer(build_world(1, ROUGH_TEXEL), None).render(lens, pose)
    assert np.abs(image.astype(int) - other).mean() > 5


def test_a_repainted_place_looks_otherwise_and_stands_as_it_did(place):
    lens, pose = camera(), looking((0.0, 0.0, 0.6), 0.3)
    image, depth = place.render(lens, pose)
    changes = []
    for share in (0.0, 0.5, 1.0):
        other, same = Renderer(repainted(build_world(0, ROUGH_TEXEL), share), ROUGH_LIGHT).render(lens, pose)
        assert np.array_equal(depth, same)
        changes.append(float((np.abs(image.astype(int) - other).max(-1) > 10).mean()))
    assert changes[0] == 0 and 0.02 < changes[1] < changes[2]


def test_light_changes_the_image_but_not_the_depth(place):
    lens, pose = camera(), looking((0.0, 0.0, 0.6), 0.3)
    image, depth = place.render(lens, pose)
    dark = Renderer(TextureSheet(place.world), replace(ROUGH_LIGHT, lamps=(0.0, 1.0), daylight=0.1))
    darker, same = dark.render(lens, pose)
    assert np.array_equal(depth, same)
    assert darker.mean() < 0.9 * image.mean()


def test_too_wide_a_camera_is_refused():
    world, _ = chequered_wall()
    with pytest.raises(InputError, match="field of view"):
        Renderer(world).render(camera("equidistant", 0.0, 0.0, 0.0, 0.0, focal=80.0), looking((0, 0, 0), 0.0))


def test_sensor_blurs_along_the_motion_only_and_keeps_the_middle():
    world, _ = chequered_wall()
    renderer, lens = Renderer(world), camera()
    sharp = Sensor(exposure_s=0.0, automatic=0.0, read_noise=0.0, shot_noise=0.0, vignetting=0.0)
    blurred = replace(sharp, exposure_s=0.05)

    def at(offset):
        return looking((0.0, offset * 1.6, 0.0), 0.0)  # 8 px sideways in 0.05 s

    still, moving = (
        s.capture(renderer, lens, at, np.random.default_rng(0))[60:180, 80:240, 0].astype(float) for s in (sharp, blurred)
    )
    slope = [np.abs(np.diff(image, axis=axis)).max() for image in (still, moving) for axis in (1, 0)]
    assert slope[2] < 0.5 * slope[0] and slope[3] > 0.9 * slope[1]
    assert np.array_equal(still, encode(renderer.radiance(lens, at(0.0))[0])[60:180, 80:240, 0])
    shift, _ = cv2.phaseCorrelate(cv2.GaussianBlur(still, (0, 0), 4), cv2.GaussianBlur(moving, (0, 0), 4))
    assert np.hypot(*shift) < 0.15


def test_base_never_moves_sideways_and_keeps_its_limits():
    drive = drives.SimulatedDrive(drives.DriveOptions(duration_s=20.0, speed=0.8, turn_rate=0.9, wander=0.2, seed=3))
    time = np.arange(0.0, 20.0, 0.02)
    planar = drive.planar(time)
    step = np.diff(planar, axis=0)
    middle = planar[:-1, 2] + step[:, 2] / 2
    sideways = -np.sin(middle) * step[:, 0] + np.cos(middle) * step[:, 1]
    forward = np.cos(middle) * step[:, 0] + np.sin(middle) * step[:, 1]
    assert np.abs(sideways).max() < 2e-4 and forward.min() > 0
    assert forward.max() / 0.02 < 0.8 + 1e-3 and np.abs(step[:, 2]).max() / 0.02 < 0.9 + 0.02
    assert drive.length == pytest.approx(np.linalg.norm(step[:, :2], axis=1).sum(), rel=2e-3)
    se3.check_pose(drive.at(time))


def test_odometry_without_errors_is_the_truth_and_with_them_drifts_within_bounds():
    drive = drives.SimulatedDrive(drives.DriveOptions(duration_s=20.0, shake=0.0))
    perfect = drives.OdometryErrors(scale=1.0, yaw_scale=1.0, yaw_per_metre=0.0, noise=0.0, slips_per_minute=0.0)
    for errors, low, high in ((perfect, 0.0, 0.002), (drives.OdometryErrors(), 0.1, 0.15 * drive.length)):
        odometry = drives.wheel_odometry(drive, errors, seed=2)
        truth = drive.at((odometry.stamps_ns - drives.START_NS) * 1e-9)
        distance, _ = se3.pose_difference(se3.inverse(truth[0]) @ truth, odometry.odom_from_base)
        assert low <= float(distance.max()) <= high
    assert np.linalg.eigvalsh(odometry.pose_covariance).min() > 0 and np.linalg.eigvalsh(odometry.twist_covariance).min() > 0
    sigma = np.sqrt(odometry.pose_covariance[-1, 0, 0] + odometry.pose_covariance[-1, 1, 1])
    assert 0.2 < float(distance[-1]) / sigma < 4.0 or float(distance[-1]) < sigma, "the covariance reported is about right"


def test_points_project_into_the_keyframes_of_the_written_model(dataset):
    folder, summary = dataset
    model = read_colmap_model(folder / "map")
    assert len(model.names) == summary["keyframes"] and len(model.xyz) == summary["points"] > 150
    assert all((folder / "images" / name).is_file() for name in model.names)
    xyz = torch.from_numpy(model.xyz)[model.observation_point].unsqueeze(-2)
    local = se3.transform(model.camera_from_map[model.observation_image], xyz).squeeze(-2)
    pixels, valid = model.cameras[1].project(local)
    errors = pixels.numpy() - model.observation_px
    assert bool(valid.all()) and len(errors) == summary["observations"]
    assert np.abs(errors.mean(0)).max() < 0.05, "no half pixel is lost"
    assert 0.2 < errors.std() < 0.6, "observations are noisy by half a pixel, points follow some of it"


def test_rgbd_sequence_matches_the_model(dataset):
    folder, summary = dataset
    frames, lens = read_rgbd_sequence(folder / "rgbd"), read_camera(folder / "rgbd")
    assert len(frames) == summary["keyframes"] and all(frame.image.is_file() and frame.same_instant for frame in frames)
    assert 0.3 < np.median(load_depth(frames[0], lens, 1000.0)) < 9
    poses = torch.stack([frame.map_from_camera for frame in frames])
    torch.testing.assert_close(se3.inverse(poses), read_colmap_model(folder / "map").camera_from_map, atol=1e-6, rtol=0)


def read_bag(folder):
    """Messages by topic, and the durability of each topic."""
    messages = {}
    with AnyReader([folder]) as reader:
        durability = {c.topic: [profile.durability.name for profile in c.ext.offered_qos_profiles] for c in reader.connections}
        for connection, stamp_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            messages.setdefault(connection.topic, []).append(message)
            assert stamp_ns == message_stamp(message.transforms[0] if connection.topic.startswith("/tf") else message)
    return messages, durability


def test_bag_is_consistent(dataset, rough_options):
    folder, summary = dataset
    messages, durability = read_bag(folder / "drive")
    camera_topics = ("/camera/image_raw/compressed", "/camera/camera_info")
    assert set(messages) == {*camera_topics, "/odom", "/tf", "/tf_static", "/ground_truth/pose"}
    assert durability["/tf_static"] == ["TRANSIENT_LOCAL"]
    images, infos, truths = (messages[topic] for topic in (*camera_topics, "/ground_truth/pose"))
    image_stamps, *others = ([message_stamp(message) for message in part] for part in (images, infos, truths))
    assert len(images) == summary["frames"] and others == [image_stamps] * 2
    assert {m.header.frame_id for m in (*images, *infos)} == {"camera_optical"} and {m.header.frame_id for m in truths} == {"map"}
    info = infos[0]
    read = Camera.from_camera_info(info.distortion_model, info.width, info.height, info.k, info.d)
    torch.testing.assert_close(read.params, rough_options.make_camera().params)

    odometry, links = messages["/odom"], [tf.transforms[0] for tf in messages["/tf"]]
    stamps = np.array([message_stamp(m) for m in odometry])
    assert (np.diff(stamps) == 20_000_000).all()
    assert (np.diff(image_stamps) > 0).all() and stamps[0] < image_stamps[0] and image_stamps[-1] < stamps[-1]
    for message, link in zip(odometry, links, strict=True):
        assert (link.header.frame_id, link.child_frame_id, message.child_frame_id) == ("odom", "base_link", "base_link")
        torch.testing.assert_close(matrix(link.transform), matrix(message.pose.pose), rtol=0, atol=1e-12)
    check_twist(odometry)
    (static,) = messages["/tf_static"][0].transforms
    assert (static.header.frame_id, static.child_frame_id) == ("base_link", "camera_optical")
    torch.testing.assert_close(matrix(static.transform), drives.camera_mount(), rtol=0, atol=1e-12)
    true = torch.stack([matrix(m.pose) for m in truths])
    torch.testing.assert_close(read_tum(folder / "drive_truth.tum").map_from_body, true, atol=1e-9, rtol=0)
    assert float(true[:, :3, 3].diff(dim=0).norm(dim=-1).max()) < 1.0 / rough_options.rate_hz
    # Truth, mount and image belong together: a render from that pose is the same picture but for the light.
    image = cv2.imdecode(images[-1].data, cv2.IMREAD_GRAYSCALE)
    renderer = Renderer(build_world(rough_options.seed, rough_options.texel))
    render, _ = renderer.render(rough_options.make_camera(), true[-1] @ drives.camera_mount())
    pictures = (cv2.GaussianBlur(i, (0, 0), 1.5) for i in (image, cv2.cvtColor(render, cv2.COLOR_RGB2GRAY)))
    shift, response = cv2.phaseCorrelate(*(cv2.Laplacian(picture, cv2.CV_64F) for picture in pictures))
    assert response > 0.2 and np.hypot(*shift) < 0.1


@pytest.mark.parametrize("encoding", bag_writer.ENCODINGS)
def test_encodings_decode_to_the_same_picture(encoding):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)
    data = bag_writer.encode_image(image, encoding)
    compressed = encoding in bag_writer.COMPRESSED
    decoded = decode_compressed(data) if compressed else decode_raw(data, 48, 64, encoding, len(data) // 48, False)
    expected = image if decoded.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert np.abs(decoded.astype(int) - expected)[2:-2, 2:-2].mean() < 6


def test_bad_requests_are_refused_in_one_line(tmp_path, rough_options):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not made by a simulation"):
        datasets.simulate(tmp_path, rough_options)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    for change in ({"seconds": 0.0}, {"rate_hz": float("nan")}, {"width": 641}, {"encoding": "rgb9"}):
        with pytest.raises(InputError):
            replace(rough_options, **change)
    with pytest.raises(InputError, match="encoding"):
        bag_writer.encode_image(np.zeros((4, 4, 3), np.uint8), "tiff")


def test_command_line(tmp_path, capsys):
    assert main(["simulate", "-o", str(tmp_path / "x"), "--size", "abc"]) == 2
    assert "640x480" in capsys.readouterr().err
    options = {"--seconds": 1, "--rate": 1.2, "--size": "96x64", "--texel": 0.05, "--encoding": "mono8"}
    arguments = ["simulate", "-o", str(tmp_path / "x"), *(str(word) for option in options.items() for word in option)]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "simulation.json").write_text("{}")
    assert main(arguments) == 0, "an earlier simulation may be replaced"
    assert json.loads((tmp_path / "x" / "simulation.json").read_text())["frames"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"], "nothing temporary is left"
    messages, _ = read_bag(tmp_path / "x" / "drive")
    (image,) = messages["/camera/image_raw"]
    assert (image.encoding, image.width, image.height, image.step, len(image.data)) == ("mono8", 96, 64, 96, 96 * 64)

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Loss, data and augmentation of training."""

import dataclasses
import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_scene import SMALL, drawn, invented_photo, write_config, write_photos

from pixloc_ros import alignment
from pixloc_ros.alignment import AlignmentOptions, LearnedDamping, ReferencePoints, RobustLoss, align
from pixloc_ros.alignment.types import LevelTrace
from pixloc_ros.errors import InputError
from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.training import photos
from pixloc_ros.training.augmentation import AugmentationOptions
from pixloc_ros.training.config import build_mixture, build_network, read_config
from pixloc_ros.training.loss import LossOptions, pair_loss, robust_error
from pixloc_ros.training.pairs import (
    BadSample,
    Curriculum,
    PairMixture,
    PairShape,
    TrainingSteps,
    fit_view,
    perturbed,
    stack_cameras,
)
from pixloc_ros.training.photos import MotionRange, PhotoPairs, list_photos, meet, render_pair
from pixloc_ros.training.refiner import PairRefiner
from pixloc_ros.training.scenes import ColmapPairs, RgbdPairs

VIEW = PairShape(**SMALL)
CAMERA = Camera("pinhole", 128, 96, torch.tensor([110.0, 110.0, 63.0, 48.0], dtype=torch.float64))


TRUTH = torch.eye(4, dtype=torch.float64)[None]
GRID = (
    CAMERA,
    torch.tensor([[[x, y, 1.0] for x in (-0.05, 0.0, 0.05) for y in (-0.1, -0.05, 0.0, 0.1)]], dtype=torch.float64),
    torch.ones(1, 12, dtype=torch.bool),
)


def random_points(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(1, count, 2, generator=generator, dtype=torch.float64) * torch.tensor([88.0, 56.0]) + 20
    rays, _ = CAMERA.unproject(pixels)
    return rays / rays[..., 2:] * (2 + 3 * torch.rand(1, count, 1, generator=generator, dtype=torch.float64))


def trace_of(stride, poses):
    """Of a level whose poses [1, steps + 1, 4, 4] are known."""
    return LevelTrace(stride, torch.zeros(poses.shape[:2]), poses, poses.shape[1] - 1, torch.ones(1, 6), *torch.zeros(4, 1))


def trace_at(pose, stride):
    return trace_of(stride, torch.stack((torch.eye(4, dtype=torch.float64), pose))[None])


# ---- loss


def test_robust_error_is_the_paper_s_barron_loss():
    """Barron's loss with shape 1 and scale c is c² (2 sqrt(x / c² + 1) - 2); PixLoc takes c = 2 and a quarter of it."""
    x = torch.linspace(0, 5000, 200, dtype=torch.float64)
    torch.testing.assert_close(robust_error(x, 2.0), 4 * (2 * torch.sqrt(x / 4 + 1) - 2) / 4)
    assert robust_error(torch.tensor(1e8), 0.5) == pytest.approx(1e4, rel=1e-3)


@pytest.mark.parametrize("shape,far", [("linear", 100 - 0.5), ("log", 0.5 * np.log(200.0))])
def test_shapes_of_the_loss(shape, far):
    """The same near zero; far away they grow like the distance, or its logarithm."""
    assert robust_error(torch.tensor(1e-4, dtype=torch.float64), 0.5, shape) == pytest.approx(1e-4 / (2 * 0.5), rel=1e-3)
    assert robust_error(torch.tensor(1e4, dtype=torch.float64), 0.5, shape) == pytest.approx(far, rel=1e-3)


def shifted(pixels):
    """Pose that moves points at depth 1 by about that many pixels."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = pixels / 110
    return pose


@pytest.mark.parametrize(
    "errors,counted",
    [
        ((5.0, 1.0, 0.1), (True, True, True)),
        ((60.0, 1.0, 0.1), (True, False, True)),  # the first level failed (48 px), the second succeeded all the same
        ((5.0, 20.0, 0.1), (True, True, False)),  # the second failed (12 px)
    ],
)
def test_levels_contribute_where_the_one_before_succeeded(errors, counted):
    traces = tuple(trace_at(shifted(error), stride) for error, stride in zip(errors, (16.0, 4.0, 1.0)))
    loss = pair_loss(traces, *GRID, TRUTH, TRUTH)
    torch.testing.assert_close(loss.errors[0], torch.tensor(errors, dtype=torch.float64))
    robust = [min(2 * ((error**2 / 4 + 1) ** 0.5 - 1), 50.0) for error in errors]
    assert float(loss.loss) == pytest.approx(sum(r for r, c in zip(robust, counted) if c) / 3, rel=1e-6)
    assert loss.success[0].tolist() == [errors[0] < 48, errors[1] < 12, errors[2] < 3]


def test_levels_with_scales_of_their_own():
    """In units of the level's scale; without a limit nothing is cut off."""
    errors, strides, cells = (40.0, 2.0, 0.5), (16.0, 4.0, 1.0), (0.5, 0.25, 0.125)
    traces = tuple(trace_at(shifted(error), stride) for error, stride in zip(errors, strides))
    options = LossOptions("log", scale_cells=cells, limit=None)
    expected = [0.5 * np.log1p((e / (c * s)) ** 2) for e, c, s in zip(errors, cells, strides)]
    assert float(pair_loss(traces, *GRID, TRUTH, TRUTH, options).loss) == pytest.approx(sum(expected) / 3, rel=1e-6)
    limited = dataclasses.replace(options, limit=1.0)
    assert float(pair_loss(traces, *GRID, TRUTH, TRUTH, limited).loss) == pytest.approx(
        sum(min(e, 1.0) for e in expected) / 3, rel=1e-6
    )
    with pytest.raises(InputError, match="2 scale_cells for 3 levels"):
        pair_loss(traces, *GRID, TRUTH, TRUTH, dataclasses.replace(options, scale_cells=(1.0, 1.0)))


def test_every_iteration_counts_on_request():
    poses = torch.stack([shifted(error) for error in (9.0, 3.0, 1.0)])[None]  # the start, and after two steps
    trace = trace_of(1.0, poses)
    single = [float(pair_loss((trace_at(shifted(error), 1.0),), *GRID, TRUTH, TRUTH).loss) for error in (3.0, 1.0)]
    both = pair_loss((trace,), *GRID, TRUTH, TRUTH, LossOptions(every_iteration=True))
    assert float(both.loss) == pytest.approx(sum(single) / 2) and float(both.errors) == pytest.approx(1.0)


def test_points_outside_either_view_do_not_count_and_few_points_drop_the_pair():
    xyz = random_points(40)
    truth = torch.eye(4, dtype=torch.float64)[None]
    traces = (trace_at(shifted(3.0), 4.0),)
    mask = torch.ones(1, 40, dtype=torch.bool)
    full = pair_loss(traces, CAMERA, xyz, mask, truth, truth)
    assert bool(full.kept) and float(full.loss) > 0
    away = se3.se3_exp(torch.tensor([0, 0, 0, 0, 3.0, 0], dtype=torch.float64))[None]
    dropped = pair_loss(traces, CAMERA, xyz, mask, truth, away)
    assert not bool(dropped.kept) and float(dropped.loss) == 0
    assert not bool(pair_loss(traces, CAMERA, xyz, mask & (torch.arange(40) < 9), truth, truth).kept)
    assert bool(pair_loss(traces, CAMERA, xyz, mask & (torch.arange(40) < 10), truth, truth).kept)


def small_problem(*levels):
    """Truth and start, and for each level (stride, channels, height, width) double precision features and descriptors: leaves."""
    generator = torch.Generator().manual_seed(3)
    truth = se3.se3_exp(torch.tensor([[0.02, -0.01, 0.03, 0.01, 0.02, -0.01]], dtype=torch.float64))
    initial = se3.retract(truth, torch.tensor([[0.05, -0.04, 0.03, 0.01, -0.02, 0.015]], dtype=torch.float64))
    features, descriptors = [], []
    for _, channels, height, width in levels:
        coarse = torch.randn(1, channels, height // 3 + 1, width // 3 + 1, generator=generator, dtype=torch.float64)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
        features.append(torch.nn.functional.normalize(smooth, dim=1).requires_grad_())
        values = torch.randn(1, 24, channels, generator=generator, dtype=torch.float64)
        descriptors.append(torch.nn.functional.normalize(values, dim=-1).requires_grad_())
    return truth, initial, features, descriptors


def unrolled(levels, initial, features, descriptors, options, confidence=None, damping=None):
    """The poses of every level on 24 points."""
    pyramid = FeaturePyramid(tuple(FeatureLevel(f, confidence, stride) for f, (stride, *_) in zip(features, levels)), (128, 96))
    points = ReferencePoints(random_points(24, 5), tuple(descriptors), (None,) * len(levels))
    return align(alignment.View(pyramid, CAMERA, points), initial, options, damping).trace


COARSE, FINE = (16.0, 3, 6, 8), (8.0, 3, 12, 16)


@pytest.mark.parametrize("strategy", ["paper", "adaptive"])
def test_gradient_of_the_loss_through_the_unrolled_alignment(strategy):
    """In double precision, against finite differences: in features, confidences, descriptors and damping."""
    truth, initial, (feature,), (descriptor,) = small_problem(FINE)
    confidence = torch.rand(1, 12, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.8 + 0.1
    damping, options = LearnedDamping(1).double(), AlignmentOptions(strategy, 4, RobustLoss("cauchy", 0.1))

    def loss(feature, confidence, descriptor, theta):
        damped = lambda level: torch.func.functional_call(damping, {"theta": theta}, (level,))  # noqa: E731
        trace = unrolled([FINE], initial, [feature], [descriptor], options, confidence, damped)
        every, lenient = torch.ones(1, 24, dtype=torch.bool), LossOptions(success_px=100.0)
        return pair_loss(trace, CAMERA, random_points(24, 5), every, truth, initial, lenient).loss.sum()

    inputs = (feature, confidence.requires_grad_(), descriptor, damping.theta.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    assert all(float(gradient.abs().max()) > 1e-6 for gradient in gradients)


def test_detached_steps_teach_only_themselves():
    """Same poses and the same gradient of the first step; the second step's gradient leaves out where it began."""
    _, *problem = small_problem(FINE)
    options = AlignmentOptions("adaptive", 3, RobustLoss("cauchy", 0.1), stop_cells=0.0)
    poses, whole = (
        unrolled([FINE], *problem, dataclasses.replace(options, detach_steps=detach))[0].camera_from_map
        for detach in (True, False)
    )
    torch.testing.assert_close(poses, whole)

    def gradient(pose):
        return torch.autograd.grad(pose[:3].sum(), problem[1], retain_graph=True)[0]

    torch.testing.assert_close(gradient(poses[0, 1]), gradient(whole[0, 1]))
    assert not torch.allclose(gradient(poses[0, 2]), gradient(whole[0, 2]))


def test_a_level_teaches_only_itself():
    """The pose is a constant between levels: the second level's loss has no gradient in the first level's features."""
    _, *problem = small_problem(COARSE, FINE)
    trace = unrolled([COARSE, FINE], *problem, AlignmentOptions("paper", 3), damping=LearnedDamping(2).double())
    fine = trace[1].camera_from_map[:, -1].sum()
    coarse_gradient, fine_gradient = torch.autograd.grad(fine, problem[1], allow_unused=True)
    assert coarse_gradient is None and float(fine_gradient.abs().sum()) > 0


# ---- pairs from photos


@given(st.integers(0, 10_000))
def test_rays_meet_the_surface_where_it_projects_back(seed):
    """What `meet` finds, lifted with the inverse depth there and projected into the query, is the pixel it began with."""
    rng = np.random.default_rng(seed)
    pose = photos.random_motion(MotionRange(), rng)
    surface = photos._surfaces([invented_photo(0)], VIEW, 110 * float(pose[:3, 3].norm()), rng)[0]
    grid = np.stack(np.meshgrid(np.arange(128), np.arange(96))).astype(np.float32)
    pixels = meet(surface.inverse_depth, grid, CAMERA, pose, VIEW)
    depth = 1 / photos._lookup(surface.inverse_depth, pixels, VIEW).astype(np.float64)
    xyz = np.stack(((pixels[0] - 63.0) / 110.0 * depth, (pixels[1] - 48.0) / 110.0 * depth, depth), -1)
    projected, _ = CAMERA.project(se3.transform(pose, torch.from_numpy(xyz.reshape(-1, 3))))
    assert np.abs(projected.numpy() - grid.reshape(2, -1).T).max() < 0.05


def bilinear(image, pixels):
    x, y = pixels[:, 0].astype(np.float32), pixels[:, 1].astype(np.float32)
    return photos.cv2.remap(image.astype(np.float32), x[None], y[None], photos.cv2.INTER_LINEAR)[0]


def test_points_look_the_same_in_both_images():
    """Grey levels at the projections agree where nothing hides the point, and no longer after a shift of half a pixel."""
    right, wrong = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        smooth = [photos.cv2.GaussianBlur(invented_photo(seed + k), (0, 0), 2) for k in range(3)]
        try:
            pair = render_pair(smooth, VIEW, MotionRange(8, 5, 0.15), rng, "test")
        except BadSample:
            continue
        here, _ = pair.reference_camera.project(pair.xyz)
        there, valid = pair.query_camera.project(se3.transform(pair.query_from_reference, pair.xyz))
        seen = (valid & pair.query_camera.in_image(there, 1.0)).numpy()
        grey = bilinear(pair.reference, here.numpy()[seen])
        right.append(np.abs(grey - bilinear(pair.query, there.numpy()[seen])))
        wrong.append(np.abs(grey - bilinear(pair.query, there.numpy()[seen] + 0.5)))
    right, wrong = np.concatenate(right), np.concatenate(wrong)
    assert len(right) > 150
    assert np.median(right) < 1.0 and np.median(right) < 0.4 * np.median(wrong)


def test_photos_held_out_are_never_trained_on(tmp_path):
    for k in range(40):
        for tile in range(2):
            photos.cv2.imwrite(str(tmp_path / f"picture{k}_t{tile}.png"), np.zeros((8, 8), np.uint8))
    training, held_out = (list_photos([tmp_path], flag) for flag in (False, True))
    assert len(training) + len(held_out) == 80 and 2 <= len(held_out) <= 20
    stems = [{path.stem.split("_")[0] for path in files} for files in (training, held_out)]
    assert not stems[0] & stems[1]
    with pytest.raises(InputError, match="no folder"):
        list_photos([tmp_path / "missing"], False)


def test_photos_can_be_left_out_by_name(tmp_path):
    write_photos(tmp_path, 20)
    every = {path.name for flag in (False, True) for path in list_photos([tmp_path], flag)}
    left = {path.name for flag in (False, True) for path in list_photos([tmp_path], flag, ("photo1?.png", "photo3.png"))}
    assert every - left == {"photo3.png", *(f"photo{k}.png" for k in range(10, 20))}
    with pytest.raises(InputError, match="phtoo"):
        list_photos([tmp_path], False, ("phtoo*",))


def test_blank_photos_are_skipped_and_counted(tmp_path):
    files = [tmp_path / "blank.png", write_photos(tmp_path / "photos", 1) / "photo0.png", tmp_path / "broken.png"]
    photos.cv2.imwrite(str(files[0]), np.full((150, 200), 90, np.uint8))
    files[2].write_bytes(b"not an image")
    mixture = PairMixture([PhotoPairs(files, VIEW)], [1.0], VIEW.points, 0, None)
    batch = mixture.batch([(0, k) for k in range(6)], (2.0, 0.02))
    assert len(batch) == 6 and {"blank photo"} < set(batch.skipped)
    assert all("photo0" in name for name in batch.names)
    with pytest.raises(InputError, match="draws in a row"):
        PairMixture([PhotoPairs(files[:1], VIEW)], [1.0], VIEW.points, 0, None).batch([(0, 0)], (2.0, 0.02))


def test_samples_depend_on_seed_and_number_only(tmp_path):
    source = PhotoPairs(list_photos([write_photos(tmp_path, 20)], False), VIEW)
    mixture = PairMixture([source], [1.0], VIEW.points, 7, AugmentationOptions())
    one = TrainingSteps(mixture, Curriculum(), 4)[5]
    parts = [TrainingSteps(pickle.loads(pickle.dumps(mixture)), Curriculum(), 2, rank, 2)[5] for rank in (0, 1)]
    for name in ("reference", "query", "xyz", "mask", "query_from_reference", "initial"):
        assert torch.equal(getattr(one, name), torch.cat([getattr(part, name) for part in parts])), name
    other = dataclasses.replace(mixture, seed=8).batch([(0, 20)], (2.0, 0.02))
    assert not torch.equal(other.reference[0], one.reference[0])


def test_initial_errors_grow_to_their_limits():
    curriculum = Curriculum((2.0, 10.0), (0.0, 0.2), 100)
    assert curriculum.limits(0) == (2.0, 0.0) and curriculum.limits(50) == (6.0, 0.1) and curriculum.limits(900) == (10.0, 0.2)
    truth = se3.se3_exp(torch.tensor([1.0, 2, 3, 0.1, 0.2, 0.3], dtype=torch.float64))
    moved = perturbed(truth, 0.2, 0.7, np.random.default_rng(0))
    distance, angle = se3.pose_difference(se3.inverse(moved), se3.inverse(truth))
    assert float(angle) == pytest.approx(0.2) and float(distance) == pytest.approx(0.7, rel=1e-6)


# ---- pairs from scenes


@pytest.mark.parametrize("kind", ["colmap", "rgbd"])
def test_pairs_of_a_real_scene(shared_data, kind):
    scene, colmap = shared_data / "tum_fr1_rpy", kind == "colmap"
    source = ColmapPairs(scene / "map", scene / "images", VIEW, False) if colmap else RgbdPairs(scene / "tum", VIEW, False)
    pairs, _ = drawn(source, 12)
    assert len(pairs) >= 4
    for pair in pairs:
        assert pair.reference.shape == pair.query.shape == (96, 128) and 32 <= len(pair.xyz) <= VIEW.points
        pixels, valid = pair.reference_camera.project(pair.xyz)
        assert bool((valid & pair.reference_camera.in_image(pixels)).all())


def test_points_that_something_hides_in_the_query_are_left_out(tmp_path):
    """A wall 2 m away; in every other image a board at 1 m hides its left half. Pairs are 9 s apart or more."""
    for kind in ("rgb", "depth"):
        (tmp_path / kind).mkdir()
        (tmp_path / f"{kind}.txt").write_text("".join(f"{k} {kind}/{k}.png\n" for k in range(20)))
    (tmp_path / "groundtruth.txt").write_text("".join(f"{k} 0 0 0 0 0 0 1\n" for k in range(20)))
    (tmp_path / "camera.txt").write_text(CAMERA.to_colmap_line() + "\n")
    for k in range(20):
        depth = np.full((96, 128), 2000, np.uint16)
        depth[:, : 64 * (k % 2)] = 1000
        cv2.imwrite(str(tmp_path / "depth" / f"{k}.png"), depth)
        cv2.imwrite(str(tmp_path / "rgb" / f"{k}.png"), invented_photo(1, 128, 96))
    source = RgbdPairs(tmp_path, VIEW, False, 1000, apart_s=9)
    pairs, _ = drawn(source, 40)
    assert {abs(int(a) - int(b)) >= 9 for a, b in source.candidates} == {True}
    kinds = set()
    for pair in pairs:
        a, b = (int(name.split(".")[0]) % 2 for name in pair.name.split("/")[1].split("-"))
        kinds.add((a, b))
        left = pair.xyz[:, 0] / pair.xyz[:, 2] < (63.5 - 63) / 110
        assert bool(left.any()) == (a == b)
    assert len(kinds) == 4


def test_cut_out_views_keep_the_camera_right():
    camera = Camera("radial", 640, 480, torch.tensor([500.0, 505, 321, 238, -0.1, 0.02], dtype=torch.float64))
    point = torch.tensor([[0.05, -0.04, 1.0]], dtype=torch.float64)
    ((x, y),) = camera.project(point)[0].tolist()
    rows, columns = np.mgrid[:480, :640]
    dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 9.0**2))
    for seed in range(5):
        image, cut = fit_view(dot.astype(np.float32), camera, PairShape(320, 240), np.random.default_rng(seed))
        ((x, y),) = cut.project(point)[0].tolist()
        rows, columns = np.mgrid[:240, :320]
        assert (image * columns).sum() / image.sum() == pytest.approx(x, abs=0.05)
        assert (image * rows).sum() / image.sum() == pytest.approx(y, abs=0.05)


def test_cameras_of_several_models_share_a_batch():
    radial = Camera("radial", 128, 96, torch.tensor([110.0, 100, 63, 48, -0.2, 0.01], dtype=torch.float64))
    both = stack_cameras([CAMERA, radial])
    points = random_points(10)
    pixels, valid = both.project(points.expand(2, -1, -1))
    for k, camera in enumerate((CAMERA, radial)):
        torch.testing.assert_close(pixels[k], camera.project(points[0])[0])
    fisheye = Camera("equidistant", 128, 96, torch.tensor([110.0, 100, 63, 48, 0, 0, 0, 0], dtype=torch.float64))
    with pytest.raises(InputError, match="undistort"):
        stack_cameras([CAMERA, fisheye])


# ---- configuration


@pytest.mark.parametrize(
    "change,message",
    [
        ({"netwrk": {}}, "unknown key 'netwrk'"),
        ({"run": {"stepz": 3}}, "unknown key 'run.stepz'"),
        ({"run": {"steps": "many"}}, "'run.steps' must be int"),
        ({"run": {"steps": 0}}, "at least 1"),
        ({"view": {"width": 100, "height": 100}}, "multiple"),
        ({"data": [{"kind": "photos"}]}, "unknown or incomplete"),
        ({"data": [{"kind": "video"}]}, "unknown or incomplete"),
        ({"initial_error": {"rotation_deg": [1]}}, "list of 2"),
        ({"run": {"rates": {"stem.": -1}}}, "rates must be positive"),
        ({"run": {"average": 1.0}}, "average must be"),
        ({"loss": {"shape": "round"}}, "choose one of"),
        ({"loss": {"scale_cells": [0.5, 0]}}, "must be above 0"),
        ({"initial_error": {"exponent": 0}}, "exponent"),
        ({"alignment": {"strategy": "newton"}}, "choose one of"),
        ({"network": {"architecture": "huge"}}, "choose one of"),
        ({"network": {"start": "nothing"}}, "no weights"),
    ],
)
def test_mistakes_in_the_configuration_are_told_in_one_line(tmp_path, change, message):
    path = write_config(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message) as caught:
        config = read_config(path)
        build_network(config.network, tmp_path)
        build_mixture(config, False, True)
    assert "\n" not in str(caught.value)


def test_new_confidence_heads_change_nothing_at_first(tmp_path):
    config = read_config(write_config(tmp_path))
    pairs = build_mixture(config, False, False).batch([(0, 0), (0, 1)], (2.0, 0.03))
    poses = []
    for confidences in (False, True):
        network, damping, _ = build_network(dataclasses.replace(config.network, confidences=confidences), tmp_path)
        refiner = PairRefiner(network, damping, config.alignment.options(), config.loss)
        with torch.no_grad():
            poses.append(refiner.refine(pairs, tuple(network.strides))[1].camera_from_map)
    torch.testing.assert_close(*poses, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_are_left_out(tmp_path):
    config = read_config(write_config(tmp_path))
    section = dataclasses.replace(config.network, frozen=("stem", "block"), confidences=True)
    network, _, _ = build_network(section, tmp_path)
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"confidence", "skip", "fusion"}

# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The optimizer against closed forms, automatic differentiation, and small scenes whose answer is known."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from alignment_scene import BASE, CAMERA, SIZE, level_weights, perturbed, scene
from torch.utils._python_dispatch import TorchDispatchMode

from pixloc_ros.alignment import AlignmentOptions, PriorFactor, ReferencePoints, RobustLoss, View, align, optimizer
from pixloc_ros.alignment.compiled import Task
from pixloc_ros.alignment.cost import linearize
from pixloc_ros.alignment.damping import LearnedDamping, level_dampings
from pixloc_ros.alignment.types import map_tensors, to_device
from pixloc_ros.errors import InputError
from pixloc_ros.features import FeatureLevel, FeaturePyramid
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera

MODELS = [
    ("PINHOLE", [200.0, 210.0, 128.5, 96.5]),
    ("SIMPLE_RADIAL", [200.0, 128.5, 96.5, -0.03]),
    ("OPENCV", [200.0, 210.0, 128.5, 96.5, 0.05, -0.02, 1e-3, -2e-3]),
    ("FULL_OPENCV", [200.0, 210.0, 128.5, 96.5, 0.05, -0.02, 1e-3, -2e-3, 0.01, 0.02, 0.01, -0.01]),
    ("OPENCV_FISHEYE", [200.0, 210.0, 128.5, 96.5, 0.02, -0.01, 1e-3, 1e-4]),
]


@pytest.mark.parametrize("kind", ["cauchy", "geman_mcclure", "squared"])
def test_robust_weight_is_the_derivative_of_the_loss(kind):
    x = torch.tensor([0.0, 1e-4, 0.01, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    value, weight = RobustLoss(kind, 0.02)(x)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], weight.detach())
    assert value[0] == 0 and weight[0] == 1


def test_cauchy_is_the_paper_s_barron_loss():
    """Barron's general loss, shape 0 and scale c, of a squared residual: 2 log(z / 2 + 1) scaled by c², z = x / c²."""
    x, c = torch.linspace(0, 2, 50, dtype=torch.float64), 0.1
    torch.testing.assert_close(RobustLoss("cauchy", c**2)(x)[0], c**2 * 2 * torch.log1p(0.5 * x / c**2))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (lambda: RobustLoss("huber"), "choose cauchy"),
        (lambda: RobustLoss("cauchy", 0.0), "scale above 0"),
        (lambda: AlignmentOptions(strategy="dogleg"), "choose one of adaptive"),
        (lambda: AlignmentOptions(strategy="paper", backend="compiled"), "adaptive only"),
        (lambda: AlignmentOptions(iterations=0), "at least 1"),
    ],
)
def test_unknown_choices_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        options()


@pytest.mark.parametrize("model,params", MODELS)
def test_gradient_and_hessian_against_automatic_differentiation(model, params):
    """On features that are affine in the image, slopes are exact, so the analytic system must match autodiff's."""
    camera = Camera.from_colmap(model, *SIZE, params)
    _, points, truth = scene()
    y, x = torch.meshgrid(torch.arange(48, dtype=torch.float64), torch.arange(64, dtype=torch.float64), indexing="ij")
    level = FeatureLevel(torch.stack((0.02 * x - 0.01 * y, 0.03 * y, 0.01 * x + 0.02 * y))[None], None, 4.0)
    descriptors = torch.randn(1, len(points), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pose, loss = perturbed(truth)[None], RobustLoss("cauchy", 0.1)
    confidences = torch.rand(1, len(points), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    view = View(FeaturePyramid((level,), SIZE), camera, ReferencePoints(points.xyz[None], (descriptors,), (confidences,)))

    def system(delta, robust):
        return linearize(view, 0, se3.retract(pose, delta[None]), robust, 0.0)

    def cost(delta, robust=loss):
        now = system(delta, robust)
        return 0.5 * (now.confidence * now.loss * now.valid).sum()

    zero = torch.zeros(6, dtype=torch.float64)
    now = system(zero, loss)
    assert now.valid.sum() > 100
    torch.testing.assert_close(torch.autograd.functional.jacobian(cost, zero), now.gradient[0], rtol=1e-9, atol=1e-9)
    # The Gauss-Newton matrix of a squared loss: J^T C J with J from autodiff of the residuals.
    now = system(zero, RobustLoss("squared", 1.0))

    def residuals(delta):
        moved = se3.retract(pose, delta[None])
        pixels, _ = camera.project(se3.transform(moved, points.xyz[None]))
        return (sample_level(level, pixels)[0] - descriptors)[0]

    jacobian = torch.autograd.functional.jacobian(residuals, zero)
    weight = (confidences * now.valid)[0, :, None, None]
    expected = (jacobian * weight).flatten(0, 1).mT @ jacobian.flatten(0, 1)
    torch.testing.assert_close(now.hessian[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strategy", ["adaptive", "paper"])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-4), (torch.float32, 1e-3)])
def test_alignment_finds_the_pose(strategy, dtype, tolerance):
    pyramid, points, truth = scene(dtype)
    options = AlignmentOptions(strategy=strategy, iterations=60, stop_cells=1e-6)
    result = align(View(pyramid, CAMERA.to(dtype), points), perturbed(truth).double(), options)
    translation, rotation = se3.pose_difference(result.camera_from_map, truth.double())
    assert result.converged and translation < tolerance and rotation < tolerance
    assert result.inliers.sum() == result.visible.sum() > 100
    assert result.cost < 1e-6


@pytest.mark.parametrize("model,params", MODELS)
@pytest.mark.parametrize("kind", ["cauchy", "geman_mcclure", "squared"])
@pytest.mark.parametrize("with_prior", ["none", "factor", "learned"])
def test_compiled_alignment_equals_the_tensor_one(model, params, kind, with_prior):
    """Same poses, costs, information, beliefs and visible points, with confidences, a mask, points behind the camera."""
    camera = Camera.from_colmap(model, *SIZE, params)
    pyramid, points, truth = scene(torch.float32)
    generator = torch.Generator().manual_seed(2)
    sure = [0.2 + 0.8 * torch.rand(level.features[:, 0].shape, generator=generator) for level in pyramid.levels]
    features = [level.features.contiguous(memory_format=torch.channels_last) for level in pyramid.levels]
    pyramid = FeaturePyramid(tuple(map(FeatureLevel, features, sure, (16.0, 4.0))), SIZE)
    xyz = points.xyz.clone()
    xyz[:5] = -xyz[:5]
    points = ReferencePoints(xyz, points.descriptors, tuple(torch.rand(len(points), generator=generator) for _ in range(2)))
    mask = (torch.rand(1, len(points), generator=generator) > 0.1).expand(3, -1)
    starts = torch.stack([perturbed(truth.double(), 0.7, seed=k) for k in range(3)])
    prior = weights = None
    if with_prior != "none":
        prior = PriorFactor(starts.flip(0), torch.eye(6, dtype=torch.float64).expand(3, 6, 6) * 100)
    if with_prior == "learned":
        prior = [prior, PriorFactor(starts[0], torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)))]
        weights = level_weights(seed=3)
    options = AlignmentOptions(iterations=6, loss=RobustLoss(kind, 0.1), stop_cells=1e-3)
    results = [
        align(View(pyramid, camera, points, mask), starts, chosen, LearnedDamping(2), prior, weights)
        for chosen in (dataclasses.replace(options, backend=backend) for backend in ("compiled", "torch"))
    ]
    ours, reference = results
    torch.testing.assert_close(ours.camera_from_map, reference.camera_from_map, rtol=0, atol=1e-4)
    scale = reference.information.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = scale[:, :, None] * scale[:, None, :]
    torch.testing.assert_close(ours.information / scale, reference.information / scale, rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.cost.float(), reference.cost.float(), rtol=1e-3, atol=1e-5)
    assert (ours.visible == reference.visible).float().mean() > 0.995
    both = ours.visible & reference.visible
    torch.testing.assert_close(ours.pixels[both].float(), reference.pixels[both].float(), rtol=0, atol=0.05)
    assert [t.iterations for t in ours.trace] == [t.iterations for t in reference.trace]
    for one, other in zip(ours.trace, reference.trace):
        torch.testing.assert_close(one.outputs, other.outputs, rtol=1e-3, atol=0)
        torch.testing.assert_close(one.residual.float(), other.residual.float(), rtol=0, atol=5e-3)
        torch.testing.assert_close(one.agreement, other.agreement, rtol=0, atol=0.02)
        torch.testing.assert_close(one.slopes.float(), other.slopes.float(), rtol=0, atol=5e-3)
        torch.testing.assert_close(one.recognised.float(), other.recognised.float(), rtol=0, atol=0.03)
    first = [r.trace[0].costs[:, :2].float() for r in results]
    torch.testing.assert_close(first[0], first[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "compiled"])
def test_a_rig_is_the_sum_of_its_views(backend):
    """Two cameras that share the points of one: the same pose and normal equations, wherever the second one's frame is."""
    pyramid, points, truth = scene(torch.float32)
    options = AlignmentOptions(iterations=40, stop_cells=1e-4, backend=backend)
    even, odd = (map_tensors(points, lambda tensor: tensor[k::2]) for k in (0, 1))  # noqa: B023
    whole = View(pyramid, CAMERA, points)
    here = View(pyramid, CAMERA, odd, camera_from_rig=torch.eye(4, dtype=torch.float64))
    start = perturbed(truth.double(), 0.5)
    alone, rig = align(whole, start, options), align([View(pyramid, CAMERA, even), here], start, options)
    torch.testing.assert_close(rig.camera_from_map, alone.camera_from_map, rtol=0, atol=1e-5)
    most = float(alone.information.abs().max())
    torch.testing.assert_close(rig.information, alone.information, rtol=1e-3, atol=1e-3 * most)
    assert rig.visible.shape == alone.visible.shape and int(rig.inliers.sum()) == int(alone.inliers.sum())
    # A rig whose base is elsewhere: base_from_map is asked for, both cameras have their place.
    placed = [View(pyramid, CAMERA, part, camera_from_rig=BASE) for part in (even, odd)]
    base = align(placed, se3.inverse(BASE) @ start, options)
    found, expected = BASE @ base.camera_from_map, truth.double()
    assert base.converged and se3.pose_difference(found, expected)[0] < 1e-3
    axes = se3.adjoint(BASE)
    near = align(whole, BASE @ base.camera_from_map, dataclasses.replace(options, iterations=1))
    scale = float(base.information.abs().max())
    torch.testing.assert_close((axes.mT @ near.information @ axes) / scale, base.information / scale, rtol=0, atol=0.02)


PRINT_BITS = """
import torch
from alignment_scene import BASE, CAMERA, level_weights, perturbed, scene
from pixloc_ros.alignment import AlignmentOptions, PriorFactor, View, align

pyramid, points, truth = scene(torch.float32)
for place in (None, BASE):
    views = [View(pyramid, CAMERA, points), View(pyramid, CAMERA, points, camera_from_rig=place)]
    for seed in range(10):
        start = perturbed(truth.double(), 0.7, seed)[None]
        prior = PriorFactor(perturbed(truth.double(), 0.3, seed), torch.eye(6, dtype=torch.float64))
        result = align(views, start, AlignmentOptions(backend="compiled"), None, prior, level_weights(seed=1))
        print(result.camera_from_map.numpy().tobytes().hex(), result.information.numpy().tobytes().hex())
"""


def test_the_process_that_compiles_computes_the_bits_of_those_that_load_from_the_cache(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PRINT_BITS]
    first, second = (subprocess.run(command, env=environment, capture_output=True, check=True).stdout for _ in range(2))
    assert first == second and first.count(b"\n") == 20 and list(tmp_path.rglob("*.nbi"))


def test_what_cannot_be_aligned_is_refused():
    pyramid, points, truth = scene()
    other = FeaturePyramid(tuple(dataclasses.replace(level, stride=2 * level.stride) for level in pyramid.levels), SIZE)
    good, coarse = View(pyramid, CAMERA, points), View(FeaturePyramid(pyramid.levels[:1], SIZE), CAMERA, points)
    for views, backend, word in (
        ([good, View(other, CAMERA, points)], "auto", "different strides"),
        (coarse, "auto", "same network"),
        (good, "compiled", "use torch"),
    ):
        with pytest.raises(InputError, match=word):
            align(views, truth, AlignmentOptions(backend=backend))
    with pytest.raises(InputError, match="no pose to start from"):
        align(good, truth[None][:0])


def test_a_batch_equals_its_members():
    pyramid, points, truth = scene()
    starts = torch.stack([perturbed(truth, seed=k) for k in range(4)])
    options, weights = AlignmentOptions(iterations=8, stop_cells=0.0), level_weights()
    prior = PriorFactor(starts.flip(0), torch.eye(6, dtype=torch.float64).expand(4, 6, 6) * 10)
    together = align(View(pyramid, CAMERA, points), starts, options, None, prior, weights)
    for k in range(4):
        mine = PriorFactor(prior.camera_from_map[k], prior.information[k])
        alone = align(View(pyramid, CAMERA, points), starts[k], options, None, mine, weights)
        torch.testing.assert_close(together.camera_from_map[k], alone.camera_from_map, rtol=0, atol=1e-9)
        torch.testing.assert_close(together.information[k], alone.information)
        torch.testing.assert_close(together.trace[1].outputs[k], alone.trace[1].outputs)


def test_accepted_steps_never_raise_the_cost_of_one_view():
    pyramid, points, truth = scene()
    result = align(View(pyramid, CAMERA, points), perturbed(truth, 0.3))
    for level in result.trace:
        assert (level.costs.diff() <= 1e-12).all()
        assert level.costs.shape[-1] == level.iterations + 1 == level.camera_from_map.shape[-3]


def test_outliers_are_left_out():
    pyramid, points, truth = scene()
    descriptors = tuple(torch.where(torch.arange(len(points))[:, None] % 4 == 0, -d, d) for d in points.descriptors)
    view = View(pyramid, CAMERA, dataclasses.replace(points, descriptors=descriptors))
    result = align(view, perturbed(truth, 0.5), AlignmentOptions(iterations=40))
    translation, rotation = se3.pose_difference(result.camera_from_map, truth)
    assert translation < 0.01 and rotation < 0.005
    assert not result.inliers[::4].any()


def test_confidence_of_zero_removes_a_point():
    pyramid, points, truth = scene()
    wrong = torch.arange(len(points)) % 3 == 0
    descriptors = tuple(torch.where(wrong[:, None], d.roll(7, 0), d) for d in points.descriptors)
    confident = tuple(torch.where(wrong, 0.0, 1.0).double() for _ in descriptors)
    options = AlignmentOptions(iterations=60, stop_cells=1e-6, loss=RobustLoss("squared", 1.0))
    result = align(View(pyramid, CAMERA, ReferencePoints(points.xyz, descriptors, confident)), perturbed(truth), options)
    assert se3.pose_difference(result.camera_from_map, truth)[0] < 1e-4


def test_masked_points_do_not_count():
    pyramid, points, truth = scene()
    padded = ReferencePoints(
        torch.cat((points.xyz, torch.full((5, 3), float("nan"), dtype=torch.float64))),
        tuple(torch.cat((d, d[:5])) for d in points.descriptors),
        points.confidences,
    )
    mask = torch.arange(len(padded))[None] < len(points)
    a = align(View(pyramid, CAMERA, padded, mask), perturbed(truth)[None])
    b = align(View(pyramid, CAMERA, points), perturbed(truth)[None])
    torch.testing.assert_close(a.camera_from_map, b.camera_from_map)
    assert not a.visible[0, -5:].any()


def test_no_points_in_view_is_a_failure_not_a_pose():
    pyramid, points, truth = scene()
    behind = se3.retract(truth, torch.tensor([0, 0, -50.0, 0, 0, 0], dtype=torch.float64))
    result = align(View(pyramid, CAMERA, points), behind)
    assert not result.converged and result.reason == "points"
    torch.testing.assert_close(result.camera_from_map, behind)


def test_features_that_are_not_numbers_are_a_failure_not_a_pose():
    pyramid, points, truth = scene()
    broken = FeaturePyramid(
        tuple(FeatureLevel(level.features * float("nan"), None, level.stride) for level in pyramid.levels), SIZE
    )
    for strategy in ("adaptive", "paper"):
        result = align(View(broken, CAMERA, points), truth, AlignmentOptions(strategy=strategy))
        assert not result.converged or torch.equal(result.camera_from_map, truth)
        assert not result.inliers.any()


def test_unrolled_alignment_is_differentiable():
    """Gradients of the final pose through the whole fixed-damping optimizer, against numeric differences."""
    pyramid, points, truth = scene(points=30)
    start = perturbed(truth, 0.3)
    damping = LearnedDamping(2).double()
    options = AlignmentOptions(strategy="paper", iterations=3, loss=RobustLoss("cauchy", 0.01))

    def final(coarse, fine, descriptors, theta):
        damped = LearnedDamping(2).double()
        del damped.theta
        damped.theta = theta
        levels = tuple(FeatureLevel(f, None, level.stride) for f, level in zip((coarse, fine), pyramid.levels))
        changed = dataclasses.replace(points, descriptors=(points.descriptors[0], descriptors))
        return align(View(FeaturePyramid(levels, SIZE), CAMERA, changed), start, options, damped).camera_from_map

    inputs = [pyramid.levels[0].features, pyramid.levels[1].features, points.descriptors[1], damping.theta]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    weights = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    analytic = torch.autograd.grad((final(*leaves) * weights).sum(), leaves[1:])
    generator = torch.Generator().manual_seed(1)
    for k, slope in enumerate(analytic, start=1):
        direction = torch.randn(leaves[k].shape, dtype=torch.float64, generator=generator)
        if k == 3:
            direction[0] = 0  # the pose is cut from the graph between levels, so the coarse damping gets no gradient here
        step = 1e-6
        values = []
        for sign in (1, -1):
            moved = [leaf.detach() + (sign * step * direction if i == k else 0) for i, leaf in enumerate(leaves)]
            values.append((final(*moved) * weights).sum())
        numeric = (values[0] - values[1]) / (2 * step)
        assert numeric.abs() > 1e-9
        torch.testing.assert_close((slope * direction).sum(), numeric.detach(), rtol=1e-5, atol=1e-9)


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a device: to read a value, to learn a shape, to copy numbers over."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "lift_fresh", "unique", "_to_cpu")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        assert not any(name.startswith(waiting) for waiting in self.WAITING), name
        if name == "_to_copy":
            assert kwargs.get("device") in (None, args[0].device), "a copy between devices"
        if name in ("index", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "a shape that values decide"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("strategy", ["adaptive", "paper"])
@pytest.mark.parametrize("model", ["pinhole", "plumb_bob", "equidistant"])
def test_no_iteration_waits_for_the_device(strategy, model):
    """On torch's device without data, where reading a value is an error; what is read at the end is read outside."""
    pyramid, points, truth = scene(torch.float32)
    prior = PriorFactor(truth[None].double(), torch.eye(6).double()[None])
    params = [200.0, 210.0, 128.0, 96.0] + {"pinhole": [], "plumb_bob": [0.01] * 5, "equidistant": [0.01] * 4}[model]
    camera = Camera(model, *SIZE, torch.tensor(params)).to("meta")

    def away(*tensors):
        return [tensor.to("meta") for tensor in tensors]

    pyramid = FeaturePyramid(
        tuple(FeatureLevel(*away(level.features, level.features[:, 0]), level.stride) for level in pyramid.levels), SIZE
    )
    points = ReferencePoints(points.xyz[None].to("meta"), tuple(away(*points.descriptors)), tuple(away(*torch.ones(2, 1, 120))))
    with torch.no_grad():
        factors, weights = to_device(((prior,), level_weights()), torch.device("meta"))
        dampings = level_dampings(LearnedDamping(2).to("meta"), 2, 1.0, torch.device("meta"))
        options, starts = AlignmentOptions(strategy=strategy), torch.eye(4, device="meta").repeat(3, 1, 1)
        view = View(pyramid, camera, points, torch.ones(1, 120, dtype=torch.bool, device="meta"))
        with NoWaiting():
            task = Task((view,), starts, options, dampings, factors, weights)
            end, ends, finished, outputs = optimizer._run_levels(task)
    assert end.camera_from_map.shape == (3, 4, 4) and finished.shape == (3,)
    assert [level.trace.costs.shape for level in ends] == [(3, options.iterations + 1)] * 2
    assert [values.shape for values in outputs] == [(3, 6)] * 2


@pytest.mark.parametrize("strategy", ["adaptive", "paper"])
def test_iterations_after_the_last_pose_stopped_change_nothing(strategy, monkeypatch):
    """As happens on a GPU, whose word that all have stopped comes late."""
    pyramid, points, truth = scene()
    starts = torch.stack([perturbed(truth, scale, seed) for scale, seed in ((1, 0), (0.1, 1), (0.5, 2))])
    starts[1, 2, 3] -= 100  # sees nothing
    options = AlignmentOptions(strategy=strategy, backend="torch")
    with torch.no_grad():
        expected = align(View(pyramid, CAMERA, points), starts, options)
        monkeypatch.setattr(optimizer, "_Stop", lambda: lambda moving: False)
        late = align(View(pyramid, CAMERA, points), starts, options)
    assert late.reason == expected.reason and late.converged.tolist() == expected.converged.tolist() == [True, False, True]
    torch.testing.assert_close(late.camera_from_map, expected.camera_from_map, atol=1e-12, rtol=0)
    for one, other in zip(late.trace, expected.trace):
        assert one.iterations == other.iterations < options.iterations
        torch.testing.assert_close(one.costs, other.costs)

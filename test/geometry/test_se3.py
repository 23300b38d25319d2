# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Rotations and rigid transforms."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

import pixloc_ros
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.0316, 0.0633, 0.4999, 0.5001, 1.0, 2.5, 3.1, math.pi - 1e-4, math.pi - 1e-8]
DTYPES = {torch.float32: 2e-6, torch.float64: 1e-14}

coordinate = st.floats(-5, 5, allow_subnormal=False)
vectors6 = st.lists(coordinate, min_size=6, max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))


def random_axes(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    axes = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    axes = torch.cat((axes, torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)))
    return torch.nn.functional.normalize(axes, dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", ANGLES)
def test_so3_exp_and_log_match_scipy_from_zero_to_pi(angle, dtype):
    w = random_axes(10) * angle
    exact = torch.from_numpy(Rotation.from_rotvec(w.numpy()).as_matrix())
    rotation = se3.so3_exp(w.to(dtype))
    assert rotation.dtype == dtype
    torch.testing.assert_close(rotation.double(), exact, atol=2 * DTYPES[dtype], rtol=0)
    log = se3.so3_log(exact.to(dtype)).double()
    flipped = (log * w).sum(-1, keepdim=True) < 0  # rounding may cross π, where the axis turns round
    if angle > 3:
        log = torch.where(flipped, log - 2 * math.pi * torch.nn.functional.normalize(log, dim=-1), log)
    torch.testing.assert_close(log, w, atol=4 * DTYPES[dtype], rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.1, 1.0, 3.0])
def test_gradients_are_right_and_finite(angle):
    xi = torch.cat((torch.randn(9, 3, dtype=torch.float64), random_axes(3) * angle), -1).requires_grad_()
    assert torch.autograd.gradcheck(se3.se3_exp, (xi,))
    assert torch.autograd.gradcheck(lambda v: se3.se3_log(se3.se3_exp(v)), (xi,), atol=1e-4)
    (gradient,) = torch.autograd.grad(se3.se3_log(se3.se3_exp(xi)).sum(), xi)
    torch.testing.assert_close(gradient, torch.ones_like(gradient), atol=1e-9, rtol=0)


def test_float32_gradients_are_finite_at_zero():
    xi = torch.zeros(6, requires_grad=True)
    se3.se3_log(se3.se3_exp(xi)).sum().backward()
    torch.testing.assert_close(xi.grad, torch.ones(6))
    xi = torch.zeros(6, requires_grad=True)
    distance, angle = se3.pose_difference(se3.se3_exp(xi), torch.eye(4))
    (distance + angle).backward()
    assert torch.isfinite(xi.grad).all()


@settings(max_examples=60, deadline=None)
@given(vectors6)
def test_se3_exp_is_the_matrix_exponential(xi):
    twist = torch.zeros(4, 4, dtype=torch.float64)
    twist[:3, :3] = se3.skew(xi[3:])
    twist[:3, 3] = xi[:3]
    torch.testing.assert_close(se3.se3_exp(xi), torch.from_numpy(expm(twist.numpy())), atol=1e-11, rtol=1e-11)


@settings(max_examples=60, deadline=None)
@given(vectors6, vectors6)
def test_group_properties(xi_a, xi_b):
    a, b = se3.se3_exp(xi_a), se3.se3_exp(xi_b)
    close = {"atol": 1e-11, "rtol": 1e-11}
    torch.testing.assert_close(se3.se3_exp(se3.se3_log(a)), a, **close)
    torch.testing.assert_close(se3.inverse(a) @ a, torch.eye(4, dtype=torch.float64), **close)
    torch.testing.assert_close(a @ b @ se3.inverse(a), se3.se3_exp(se3.adjoint(a) @ xi_b), **close)
    torch.testing.assert_close(se3.adjoint(a @ b), se3.adjoint(a) @ se3.adjoint(b), **close)
    torch.testing.assert_close(se3.interpolate(a, b, 0.0), a, **close)
    torch.testing.assert_close(se3.interpolate(a, b, 1.0), b, **close)
    distance, angle = se3.pose_difference(a, b)
    torch.testing.assert_close(distance, torch.dist(a[:3, 3], b[:3, 3]), **close)
    torch.testing.assert_close(angle, se3.so3_log(a[:3, :3].mT @ b[:3, :3]).norm(), atol=1e-7, rtol=0)


@settings(max_examples=60, deadline=None)
@given(vectors6, vectors6, st.sampled_from([1.0, 1e-2, 1e-5, 1e-9, 0.0]), st.floats(-1, 2))
def test_single_poses_without_gradients_are_those_of_the_tensor_code(xi_a, xi_b, size, fraction):
    xi_b = xi_b * size
    covariance = xi_a[:, None] * xi_b + torch.eye(6, dtype=torch.float64)

    def everything() -> list[torch.Tensor]:
        a = se3.se3_exp(xi_a)
        b = a @ se3.se3_exp(xi_b)
        return [
            *(a, se3.se3_log(b), se3.inverse(a), se3.interpolate(a, b, fraction), *se3.pose_difference(a, b)),
            *(se3.transform_covariance(covariance, a), se3.se3_log(se3.inverse(a) @ b)),
        ]

    with torch.no_grad():
        compiled = everything()
    for fast, slow in zip(compiled, everything(), strict=True):
        assert fast.shape == slow.shape and fast.dtype == slow.dtype
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("axis", random_axes(4).tolist())
@pytest.mark.parametrize("angle", ANGLES)
def test_single_logarithm_from_zero_to_pi(angle, axis):
    xi = torch.tensor([0.3, -2.0, 1.0, *axis], dtype=torch.float64)
    xi[3:] *= angle
    with torch.no_grad():
        found = se3.se3_log(se3.se3_exp(xi))
    torch.testing.assert_close(found, xi, atol=1e-11 if angle < 3 else 1e-7, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(coordinate, min_size=3, max_size=3))
def test_quaternions_match_scipy(w):
    rotation = Rotation.from_rotvec(w)
    q = se3.quaternion_from_rotation(torch.from_numpy(rotation.as_matrix()))
    assert q[3] >= 0
    torch.testing.assert_close((q @ torch.from_numpy(rotation.as_quat())).abs(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(se3.rotation_from_quaternion(3.0 * q), torch.from_numpy(rotation.as_matrix()))


def test_quaternion_of_half_turns():
    axes = random_axes(20)
    rotations = torch.from_numpy(Rotation.from_rotvec(math.pi * axes.numpy()).as_matrix())
    q = se3.quaternion_from_rotation(rotations)
    torch.testing.assert_close((q[:, :3] * axes).sum(-1).abs(), torch.ones(26, dtype=torch.float64))
    torch.testing.assert_close(se3.rotation_angle(rotations), torch.full((26,), math.pi, dtype=torch.float64))


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 1.0, math.pi - 1e-6])
def test_rotation_angle_keeps_its_digits(angle):
    found = se3.rotation_angle(se3.so3_exp(random_axes(10) * angle))
    torch.testing.assert_close(found, torch.full_like(found, angle), rtol=1e-7, atol=1e-15)


def test_interpolation_halfway_and_batched():
    a = torch.eye(4, dtype=torch.float64)
    b = se3.from_rotation_translation(se3.so3_exp(torch.tensor([0.0, 0, 1.0])).double(), torch.tensor([2.0, 0, 0]).double())
    poses = se3.interpolate(a.expand(3, 4, 4), b.expand(3, 4, 4), torch.tensor([0.0, 0.5, 1.5]))
    torch.testing.assert_close(poses[:, 0, 3], torch.tensor([0.0, 1, 3], dtype=torch.float64))
    torch.testing.assert_close(se3.so3_log(poses[:, :3, :3])[:, 2], torch.tensor([0, 0.5, 1.5]).double(), atol=1e-6, rtol=0)


def test_retract_is_decoupled_and_left():
    generator = torch.Generator().manual_seed(2)
    pose = se3.se3_exp(torch.randn(7, 6, generator=generator, dtype=torch.float64))
    delta = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    step = se3.from_rotation_translation(se3.so3_exp(delta[:, 3:]), delta[:, :3])
    torch.testing.assert_close(se3.retract(pose, delta), step @ pose)
    tiny = 1e-6 * delta
    torch.testing.assert_close(se3.retract(pose, tiny), se3.se3_exp(tiny) @ pose, atol=1e-11, rtol=0)


def sampled_covariance(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.mT @ vectors / len(vectors)


def test_covariances_against_sampling():
    generator = torch.Generator().manual_seed(3)
    root = 1e-3 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT
    samples = torch.randn(40000, 6, generator=generator, dtype=torch.float64) @ root.mT
    covariance_sampled = sampled_covariance(samples)  # exact for these samples: only linearisation is under test
    map_from_base, base_from_camera = se3.se3_exp(torch.randn(2, 6, generator=generator, dtype=torch.float64))
    perturbed = map_from_base @ se3.se3_exp(samples)
    assert torch.dist(covariance, covariance_sampled) / covariance.norm() < 0.05

    def check(found: torch.Tensor, vectors: torch.Tensor) -> None:
        torch.testing.assert_close(found, sampled_covariance(vectors), atol=2e-3 * float(found.abs().max()), rtol=0)

    left = se3.se3_log(perturbed @ se3.inverse(map_from_base))
    check(se3.transform_covariance(covariance_sampled, map_from_base), left)
    map_from_camera = map_from_base @ base_from_camera
    camera = se3.se3_log(se3.inverse(map_from_camera) @ perturbed @ base_from_camera)
    check(se3.transform_covariance(covariance_sampled, se3.inverse(base_from_camera)), camera)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.fill_(float("nan")), "NaN"),
        (lambda t: t[:3, :3].mul_(1.01), "rotation"),
        (lambda t: t[0].mul_(-1), "rotation"),
        (lambda t: t[3].copy_(torch.tensor([0.0, 0, 1, 1])), "last row"),
    ],
)
def test_check_pose_refuses_in_one_line(change, word):
    pose = torch.eye(4, dtype=torch.float64)
    se3.check_pose(pose)
    change(pose)
    with pytest.raises(InputError, match=word), torch.no_grad():
        se3.check_pose(pose)
    with pytest.raises(InputError, match=word) as caught:
        se3.check_pose(torch.stack((torch.eye(4, dtype=torch.float64), pose)), "start pose")
    assert str(caught.value).startswith("start pose") and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="4x4"):
        se3.check_pose(pose[:3])


def test_one_rotation_for_many_translations():
    rotation, translations = se3.so3_exp(torch.ones(3)), torch.arange(12.0).reshape(4, 3)
    poses = se3.from_rotation_translation(rotation, translations)
    torch.testing.assert_close(poses[:, :3, 3], translations)
    torch.testing.assert_close(poses[2, :3, :3], rotation)
    assert poses[:, 3].tolist() == [[0, 0, 0, 1]] * 4


def test_it_works_where_compiled_code_cannot_be_kept(tmp_path):
    """As for a service without a home, from a folder that it may not write to."""
    package = tmp_path / "pixloc_ros"
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(Path(pixloc_ros.__file__).parent, package, ignore=ignored)
    (package / "geometry" / "__pycache__").write_text("not a folder")
    nowhere = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    code = "import numpy as np; from pixloc_ros.geometry import single; print(single.__file__, single.log(np.eye(4)))"
    answer = subprocess.run([sys.executable, "-Bc", code], cwd=tmp_path, env=os.environ | nowhere, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stdout.startswith(str(package)), answer.stderr
